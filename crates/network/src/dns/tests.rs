//! Answers as text, and the server on loopback.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use coxswain_client::{InformerFactory, ObjectKey};
use futures::FutureExt;
use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RecordType};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

use super::forward::nameservers;
use super::index::Index;
use super::message::{Outcome, answer, encode};
use super::{DnsConfig, run_dns};
use crate::testing::frozen;

const NETWORKS: [(Ipv4Addr, u8); 2] = [(Ipv4Addr::new(10, 43, 0, 0), 16), (Ipv4Addr::new(10, 42, 0, 0), 16)];

fn services() -> Vec<Json> {
    let service =
        |name: &str, spec: Json| json!({"metadata": {"namespace": "ns", "name": name}, "spec": spec});
    let ports = json!([{"name": "http", "port": 80}, {"port": 81}]);
    vec![
        service("web", json!({"clusterIP": "10.43.0.9", "ports": ports})),
        service("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]})),
        service("idle", json!({"clusterIP": "None"})),
        service("alias", json!({"type": "ExternalName", "externalName": "WEB.ns.svc.cluster.local"})),
        service("away", json!({"type": "ExternalName", "externalName": "example.com"})),
    ]
}

fn slice() -> Json {
    json!({
        "metadata": {"namespace": "ns", "name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4", "ports": [{"name": "sql", "port": 5433, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": ["10.42.0.5"], "hostname": "db-0", "conditions": {"ready": true}},
            {"addresses": ["10.42.0.6"], "conditions": {"ready": true}},
            {"addresses": ["10.42.0.7"], "conditions": {"ready": false}},
        ],
    })
}

fn index() -> Index {
    let mut index = Index::new("cluster.local", NETWORKS.to_vec());
    for service in services() {
        let service: k8s_openapi::api::core::v1::Service =
            serde_json::from_value(service).expect("a service");
        let key = ObjectKey::of(&service);
        let slices = if key.name == "db" {
            vec![Arc::new(serde_json::from_value(slice()).expect("a slice"))]
        } else {
            vec![]
        };
        index.replace(&key, Some(&service), &slices);
    }
    index
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 0;
    message.queries.push(Query::query(Name::from_ascii(name).expect("a name"), kind));
    message.to_vec().expect("a message")
}

fn text(message: &Message) -> String {
    let mut lines = vec![format!("{:?}", message.metadata.response_code)];
    let records = message.answers.iter().chain(&message.additionals);
    let mut records: Vec<String> =
        records.map(|r| format!("{} {} {} {}", r.name, r.ttl, r.record_type(), r.data)).collect();
    records.sort();
    lines.extend(records);
    let negative = message.authorities.iter().map(|r| format!("authority {} {}", r.name, r.record_type()));
    lines.extend(negative);
    lines.join("\n")
}

fn check(name: &str, kind: RecordType, expected: &[&str]) {
    match answer(&index(), &question(name, kind)) {
        Outcome::Reply(reply) => assert_eq!(text(&reply), expected.join("\n"), "{name} {kind}"),
        other => panic!("{name} {kind}: {other:?}"),
    }
}

const SOA: &str = "authority cluster.local. SOA";
const REVERSE_SOA: &str = "authority in-addr.arpa. SOA";

#[test]
fn services_have_addresses_ports_and_reverse_names() {
    check(
        "web.ns.svc.cluster.local.",
        RecordType::A,
        &["NoError", "web.ns.svc.cluster.local. 5 A 10.43.0.9"],
    );
    check(
        "WEB.ns.Svc.cluster.local.",
        RecordType::A,
        &["NoError", "WEB.ns.Svc.cluster.local. 5 A 10.43.0.9"],
    );
    check("web.ns.svc.cluster.local.", RecordType::AAAA, &["NoError", SOA]);
    let srv = [
        "NoError",
        "_http._tcp.web.ns.svc.cluster.local. 5 SRV 0 100 80 web.ns.svc.cluster.local.",
        "web.ns.svc.cluster.local. 5 A 10.43.0.9",
    ];
    check("_http._tcp.web.ns.svc.cluster.local.", RecordType::SRV, &srv);
    check(
        "9.0.43.10.in-addr.arpa.",
        RecordType::PTR,
        &["NoError", "9.0.43.10.in-addr.arpa. 5 PTR web.ns.svc.cluster.local."],
    );
    check("10.0.43.10.in-addr.arpa.", RecordType::PTR, &["NXDomain", REVERSE_SOA]);
}

#[test]
fn headless_services_are_their_ready_endpoints() {
    let name = "db.ns.svc.cluster.local.";
    check(
        name,
        RecordType::A,
        &["NoError", &format!("{name} 5 A 10.42.0.5"), &format!("{name} 5 A 10.42.0.6")],
    );
    check(
        "db-0.db.ns.svc.cluster.local.",
        RecordType::A,
        &["NoError", &format!("db-0.{name} 5 A 10.42.0.5")],
    );
    let srv = "_sql._tcp.db.ns.svc.cluster.local.";
    let expected = [
        "NoError".to_owned(),
        format!("10-42-0-6.{name} 5 A 10.42.0.6"),
        format!("{srv} 5 SRV 0 100 5433 10-42-0-6.{name}"),
        format!("{srv} 5 SRV 0 100 5433 db-0.{name}"),
        format!("db-0.{name} 5 A 10.42.0.5"),
    ];
    check(srv, RecordType::SRV, &expected.each_ref().map(String::as_str));
    check(
        "5.0.42.10.in-addr.arpa.",
        RecordType::PTR,
        &["NoError", &format!("5.0.42.10.in-addr.arpa. 5 PTR db-0.{name}")],
    );
    check("idle.ns.svc.cluster.local.", RecordType::A, &["NXDomain", SOA]);
}

#[test]
fn pods_and_names_in_between_exist() {
    check(
        "10-42-0-5.ns.pod.cluster.local.",
        RecordType::A,
        &["NoError", "10-42-0-5.ns.pod.cluster.local. 5 A 10.42.0.5"],
    );
    check("no-address.ns.pod.cluster.local.", RecordType::A, &["NXDomain", SOA]);
    check("ns.svc.cluster.local.", RecordType::A, &["NoError", SOA]);
    check("nobody.ns.svc.cluster.local.", RecordType::A, &["NXDomain", SOA]);
    check("cluster.local.", RecordType::A, &["NoError", SOA]);
    check(
        "dns-version.cluster.local.",
        RecordType::TXT,
        &["NoError", "dns-version.cluster.local. 5 TXT 1.1.0"],
    );
}

#[test]
fn aliases_are_followed_as_far_as_they_are_ours() {
    let expected = [
        "NoError",
        "alias.ns.svc.cluster.local. 5 CNAME web.ns.svc.cluster.local.",
        "web.ns.svc.cluster.local. 5 A 10.43.0.9",
    ];
    check("alias.ns.svc.cluster.local.", RecordType::A, &expected);
    check(
        "away.ns.svc.cluster.local.",
        RecordType::CNAME,
        &["NoError", "away.ns.svc.cluster.local. 5 CNAME example.com."],
    );
    let away = answer(&index(), &question("away.ns.svc.cluster.local.", RecordType::A));
    assert!(matches!(&away, Outcome::Alias(_, query) if query.name.to_ascii() == "example.com."), "{away:?}");
}

#[test]
fn other_names_are_not_ours() {
    for name in ["example.com.", "notcluster.local.", "1.2.0.192.in-addr.arpa."] {
        assert!(matches!(answer(&index(), &question(name, RecordType::A)), Outcome::Forward), "{name}");
    }
    assert!(matches!(answer(&index(), b"noise"), Outcome::Ignore));
}

#[test]
fn a_service_that_goes_leaves_nothing() {
    let mut index = index();
    for service in services() {
        let name = service["metadata"]["name"].as_str().expect("a name");
        index.replace(&ObjectKey::new("ns", name), None, &[]);
    }
    assert!(!index.lookup("ns.svc.cluster.local", super::index::Kind::A).exists);
    assert!(!index.lookup("9.0.43.10.in-addr.arpa", super::index::Kind::Ptr).exists);
}

#[test]
fn what_is_too_long_for_udp_is_cut_and_says_so() {
    let Outcome::Reply(mut reply) = answer(&index(), &question("db.ns.svc.cluster.local.", RecordType::A))
    else {
        panic!("no reply");
    };
    let one = reply.answers[0].clone();
    reply.answers.extend(std::iter::repeat_n(one, 100));
    let cut = Message::from_vec(&encode(&reply, Some(512)).expect("bytes")).expect("a message");
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let whole = Message::from_vec(&encode(&reply, None).expect("bytes")).expect("a message");
    assert_eq!(whole.answers.len(), 102);
}

#[test]
fn name_servers_of_the_host_without_ourselves() {
    let own: SocketAddr = "10.43.0.10:53".parse().expect("an address");
    let servers = nameservers(
        "# comment\nsearch x\nnameserver 10.43.0.10\nnameserver 192.0.2.53\nnameserver bad\n",
        &[own],
    );
    assert_eq!(servers, ["192.0.2.53:53".parse().expect("an address")]);
}

async fn free_port() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").await.expect("a socket").local_addr().expect("its address")
}

async fn ask(server: SocketAddr, request: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    socket.send_to(request, server).await.expect("sending");
    let mut buffer = [0; 1500];
    let length = tokio::time::timeout(std::time::Duration::from_secs(5), socket.recv(&mut buffer)).await;
    Message::from_vec(&buffer[..length.expect("in time").expect("an answer")]).expect("a message")
}

#[tokio::test]
async fn the_server_answers_by_udp_and_tcp_and_relays() {
    let upstream = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let upstreams = Some(vec![upstream.local_addr().expect("its address")]);
    let relay = async {
        let mut buffer = [0; 1500];
        loop {
            let (length, from) = upstream.recv_from(&mut buffer).await.expect("a question");
            let mut reply = super::failure(
                &Message::from_vec(&buffer[..length]).expect("a message"),
                super::ResponseCode::NoError,
            );
            let address =
                hickory_proto::rr::RData::A(hickory_proto::rr::rdata::A(Ipv4Addr::new(192, 0, 2, 7)));
            reply.answers.push(hickory_proto::rr::Record::from_rdata(
                reply.queries[0].name.clone(),
                60,
                address,
            ));
            upstream.send_to(&reply.to_vec().expect("bytes"), from).await.expect("sending");
        }
    };
    let cancel = CancellationToken::new();
    let client = frozen(BTreeMap::from([("services", services()), ("endpointslices", vec![slice()])]));
    let factory = InformerFactory::new(client, cancel.clone());
    // An address the host does not have must not be in the way.
    let (here, not_here) = (free_port().await, "198.51.100.7:5353".parse().expect("an address"));
    let config = DnsConfig {
        listen: vec![here, not_here],
        cluster_domain: "cluster.local".into(),
        networks: NETWORKS.to_vec(),
        upstreams,
    };
    let server = run_dns(factory.clone(), config, cancel.clone());
    let test = async {
        let reply = ask(here, &question("web.ns.svc.cluster.local.", RecordType::A)).await;
        assert_eq!(text(&reply), "NoError\nweb.ns.svc.cluster.local. 5 A 10.43.0.9");
        let mut with_edns =
            Message::from_vec(&question("ns.svc.cluster.local.", RecordType::A)).expect("a message");
        with_edns.edns = Some(Edns::new());
        assert!(ask(here, &with_edns.to_vec().expect("bytes")).await.edns.is_some());
        let other = ask(here, &question("example.com.", RecordType::A)).await;
        assert_eq!(text(&other), "NoError\nexample.com. 60 A 192.0.2.7");
        let away = ask(here, &question("away.ns.svc.cluster.local.", RecordType::A)).await;
        assert_eq!(
            text(&away),
            "NoError\naway.ns.svc.cluster.local. 5 CNAME example.com.\nexample.com. 60 A 192.0.2.7"
        );
        let mut stream = TcpStream::connect(here).await.expect("a connection");
        for _ in 0..2 {
            let request = question("db.ns.svc.cluster.local.", RecordType::A);
            stream.write_u16(request.len().try_into().expect("short")).await.expect("sending");
            stream.write_all(&request).await.expect("sending");
            let mut reply = vec![0; stream.read_u16().await.expect("a length").into()];
            stream.read_exact(&mut reply).await.expect("an answer");
            assert_eq!(Message::from_vec(&reply).expect("a message").answers.len(), 2);
        }
        cancel.cancel();
    };
    let ((), ended) = tokio::select! {
        both = futures::future::join(test, server) => both,
        () = relay.map(drop) => panic!("the relay does not end"),
    };
    ended.expect("a clean end");
}
