//! The rules at work: a node and three pods, each a network namespace of its own that goes away with its threads.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use coxswain_client::{InformerFactory, ObjectKey};
use nix::sched::{CloneFlags, setns, unshare};
use nlink::netlink::addr::Ipv4Address;
use nlink::netlink::link::{BridgeLink, BridgePortConfig, VethLink};
use nlink::netlink::route::Ipv4Route;
use nlink::netlink::{Connection, Route};
use serde_json::{Value as Json, json};
use tokio_util::sync::CancellationToken;

use super::super::apply::Table;
use super::super::conntrack::{Flows, forget};
use super::super::model::{Changes, Fragment, Ruleset};
use super::super::plan::plan;
use super::super::{ProxyConfig, host, remove_proxy, run_proxy};
use super::{facts, service, slice};
use crate::testing::frozen;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 1);
const PODS: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 42, 0, 0), 16);
const SERVICE: &str = "10.43.0.9:80";

fn privileged() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root for network namespaces");
    }
    root
}

/// A namespace of its own for the calling thread; the file keeps it.
fn new_namespace() -> Arc<File> {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    Arc::new(File::open("/proc/thread-self/ns/net").expect("the namespace"))
}

fn within<T: Send + 'static>(namespace: &Arc<File>, what: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = namespace.clone();
    let inside = move || {
        setns(&*namespace, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
        what()
    };
    thread::spawn(inside).join().expect("the thread")
}

/// Answers every TCP connection and UDP packet on port 8080 with its number and the client's address.
fn serve(number: u8) {
    let listener = TcpListener::bind("0.0.0.0:8080").expect("listening");
    let socket = UdpSocket::bind("0.0.0.0:8080").expect("listening");
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&[number], from);
        }
    });
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            thread::spawn(move || {
                let from = client.peer_addr().expect("the client").ip();
                let mut request = [0; 1];
                while client.read_exact(&mut request).is_ok() {
                    let _ = client.write_all(format!("{number} {from}\n").as_bytes());
                }
            });
        }
    });
}

fn ask(stream: &mut TcpStream) -> Option<(u8, String)> {
    stream.write_all(b"?").ok()?;
    let mut answer = Vec::new();
    let mut byte = [0; 1];
    while byte[0] != b'\n' {
        stream.read_exact(&mut byte).ok()?;
        answer.push(byte[0]);
    }
    let answer = String::from_utf8(answer).ok()?;
    let (number, from) = answer.trim().split_once(' ')?;
    Some((number.parse().ok()?, from.to_owned()))
}

fn connect(to: &str) -> std::io::Result<TcpStream> {
    let to: SocketAddr = to.parse().expect("an address");
    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(stream)
}

fn call(to: &str) -> Option<(u8, String)> {
    ask(&mut connect(to).ok()?)
}

/// How often each pod answered.
fn spread(to: &'static str, calls: usize) -> BTreeMap<u8, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..calls {
        let (number, _) = call(to).expect("an answer");
        *counts.entry(number).or_default() += 1;
    }
    counts
}

struct Node {
    pods: Vec<Arc<File>>,
    route: Connection<Route>,
    table: Table,
    ruleset: Ruleset,
}

impl Node {
    async fn set_up() -> Self {
        // The calling thread's own.
        let _node = new_namespace();
        for setting in ["ip_forward", "conf/all/route_localnet"] {
            std::fs::write(format!("/proc/sys/net/ipv4/{setting}"), "1").expect("a setting");
        }
        host::filter_bridged().expect("a setting");
        let route = Connection::<Route>::new().expect("netlink");
        route.set_link_up("lo").await.expect("lo");
        route.add_link(BridgeLink::new("cox0")).await.expect("a bridge");
        route.replace_address(Ipv4Address::new("cox0", GATEWAY, 24)).await.expect("an address");
        route.set_link_up("cox0").await.expect("the bridge");
        let mut pods = Vec::new();
        for number in 1..=3 {
            let (sender, receiver) = std::sync::mpsc::channel();
            thread::spawn(move || {
                sender.send(new_namespace()).expect("the test waits");
                serve(number);
            });
            let namespace = receiver.recv().expect("a namespace");
            let end = format!("veth{number}");
            let pair = VethLink::new(&end, "eth0").peer_netns_fd(&*namespace);
            route.add_link(pair).await.expect("a pair");
            route.set_link_master(end.as_str(), "cox0").await.expect("a port");
            route.set_bridge_port(end.as_str(), BridgePortConfig::new().hairpin(true)).await.expect("a port");
            route.set_link_up(end.as_str()).await.expect("the pair");
            let inside = Connection::<Route>::new_in(std::os::fd::AsFd::as_fd(&*namespace)).expect("netlink");
            inside.set_link_up("lo").await.expect("lo");
            let address = Ipv4Addr::new(10, 42, 0, 10 + number);
            inside.replace_address(Ipv4Address::new("eth0", address, 24)).await.expect("an address");
            inside.set_link_up("eth0").await.expect("the pair");
            inside.replace_route(Ipv4Route::default_route().gateway(GATEWAY)).await.expect("a route");
            pods.push(namespace);
        }
        let table = Table::open(PODS).expect("nftables");
        let ruleset = Ruleset::default();
        table.replace(&ruleset.additions()).await.expect("the table");
        Self { pods, route, table, ruleset }
    }

    async fn apply(&mut self, spec: Json, endpoints: &[(&str, &str, &str)]) {
        let protocol = spec["ports"][0]["protocol"].clone();
        let slice = slice(json!({"port": 8080, "protocol": protocol}), endpoints);
        self.replace(plan(&service(spec), &[slice], &facts())).await;
    }

    async fn replace(&mut self, fragment: Fragment) {
        let mut changes = Changes::new();
        self.ruleset.replace(&ObjectKey::new("ns", "web"), fragment, &mut changes);
        self.table.change(&changes).await.expect("a change");
        if let Some(flows) = Flows::after(&changes, &self.ruleset) {
            forget(&flows).await.expect("forgetting");
        }
    }
}

const ALL: [(&str, &str, &str); 3] =
    [("10.42.0.11", "here", "ready"), ("10.42.0.12", "here", "ready"), ("10.42.0.13", "here", "ready")];

fn spec(more: Json) -> Json {
    let mut spec = json!({
        "type": "NodePort", "clusterIP": "10.43.0.9", "ports": [{"port": 80, "nodePort": 30080}],
    });
    spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    spec
}

/// Runs in a thread of its own, whose namespace is the node's.
fn with_node<F: Future<Output = ()>>(test: impl FnOnce(Node) -> F + Send + 'static) {
    if !privileged() {
        return;
    }
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async { test(Node::set_up().await).await });
    };
    thread::spawn(run).join().expect("the test");
}

fn spreads_evenly(counts: &BTreeMap<u8, usize>, pods: &[u8]) {
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), pods, "{counts:?}");
    assert!(counts.values().all(|count| *count > 10), "{counts:?}");
}

#[test]
fn connections_are_balanced_from_pods_and_from_the_node() {
    with_node(async |mut node| {
        node.apply(spec(json!({})), &ALL).await;
        spreads_evenly(&within(&node.pods[0], || spread(SERVICE, 90)), &[1, 2, 3]);

        let add = host::add_route(&node.route, Ipv4Addr::new(10, 43, 0, 0), 16, "cox0");
        add.await.expect("a route");
        spreads_evenly(&spread(SERVICE, 90), &[1, 2, 3]);
        spreads_evenly(&spread("10.42.0.1:30080", 90), &[1, 2, 3]);
        spreads_evenly(&spread("127.0.0.1:30080", 90), &[1, 2, 3]);
        let from_pod = within(&node.pods[1], || spread("10.42.0.1:30080", 90));
        spreads_evenly(&from_pod, &[1, 2, 3]);
    });
}

#[test]
fn pods_keep_their_address_and_reach_themselves() {
    with_node(async |mut node| {
        node.apply(spec(json!({})), &ALL[..1]).await;
        let other = within(&node.pods[1], || call(SERVICE)).expect("an answer");
        assert_eq!(other, (1, "10.42.0.12".to_owned()));
        let hairpin = within(&node.pods[0], || call(SERVICE)).expect("an answer");
        assert_eq!(hairpin, (1, GATEWAY.to_string()));
    });
}

#[test]
fn connections_outlive_their_endpoint_and_new_ones_avoid_it() {
    with_node(async |mut node| {
        node.apply(spec(json!({})), &ALL[..1]).await;
        let mut old = within(&node.pods[2], || connect(SERVICE).expect("a connection"));
        assert_eq!(ask(&mut old).expect("an answer").0, 1);
        let (mut endpoints, mut answered) = (ALL, 0);
        // While endpoints come and go, every call is answered.
        let pod = node.pods[2].clone();
        let caller = thread::spawn(move || {
            within(&pod, || {
                let end = Instant::now() + Duration::from_secs(2);
                let mut slowest = Duration::ZERO;
                let mut calls = 0;
                while Instant::now() < end {
                    let start = Instant::now();
                    let mut stream = connect(SERVICE).expect("a connection");
                    ask(&mut stream).expect("an answer");
                    slowest = slowest.max(start.elapsed());
                    calls += 1;
                }
                (calls, slowest)
            })
        });
        while !caller.is_finished() {
            endpoints.rotate_left(1);
            node.apply(spec(json!({})), &endpoints[..1 + answered % 3]).await;
            answered += 1;
            tokio::task::yield_now().await;
        }
        let (calls, slowest) = caller.join().expect("no call failed");
        eprintln!("{calls} calls during {answered} changes, slowest {slowest:?}");
        node.apply(spec(json!({})), &ALL[1..]).await;
        assert_eq!(ask(&mut old).expect("an answer").0, 1, "conntrack keeps the old connection");
        spreads_evenly(&within(&node.pods[2], || spread(SERVICE, 60)), &[2, 3]);
    });
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    with_node(async |mut node| {
        node.apply(spec(json!({})), &[]).await;
        host::add_route(&node.route, Ipv4Addr::new(10, 43, 0, 0), 16, "cox0").await.expect("a route");
        let refused = |to| connect(to).expect_err("nobody serves").kind();
        let from_pod =
            within(&node.pods[0], move || ["10.43.0.9:80", "10.43.0.9:81", "10.42.0.1:30080"].map(refused));
        assert_eq!(from_pod, [std::io::ErrorKind::ConnectionRefused; 3]);
        assert_eq!(refused(SERVICE), std::io::ErrorKind::ConnectionRefused);
        node.apply(spec(json!({})), &ALL).await;
        spreads_evenly(&spread(SERVICE, 90), &[1, 2, 3]);
        node.replace(Fragment::default()).await;
        assert!(call(SERVICE).is_none());
    });
}

#[test]
fn a_client_keeps_its_endpoint_until_that_is_gone() {
    with_node(async |mut node| {
        let sticky = || spec(json!({"sessionAffinity": "ClientIP"}));
        node.apply(sticky(), &ALL).await;
        let first = within(&node.pods[0], || spread(SERVICE, 20));
        assert_eq!(first.len(), 1, "{first:?}");
        let kept = *first.keys().next().expect("one pod");
        let rest: Vec<_> = ALL.into_iter().filter(|(ip, ..)| !ip.ends_with(&kept.to_string())).collect();
        node.apply(sticky(), &rest).await;
        let second = within(&node.pods[0], || spread(SERVICE, 20));
        assert_eq!(second.len(), 1, "{second:?}");
        assert!(!second.contains_key(&kept), "{second:?}");
        node.apply(sticky(), &ALL).await;
        assert_eq!(within(&node.pods[0], || spread(SERVICE, 20)).keys().next(), second.keys().next());
    });
}

#[test]
fn udp_flows_leave_an_endpoint_that_is_gone() {
    with_node(async |mut node| {
        let udp = || spec(json!({"ports": [{"port": 80, "protocol": "UDP", "nodePort": 30080}]}));
        node.apply(udp(), &ALL[..1]).await;
        let socket = within(&node.pods[2], || UdpSocket::bind("0.0.0.0:4000").expect("a socket"));
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        let ask = || {
            let mut answer = [0];
            socket.send_to(b"?", SERVICE).expect("sending");
            socket.recv_from(&mut answer).map(|_| answer[0]).expect("an answer")
        };
        assert_eq!(ask(), 1);
        node.apply(udp(), &ALL[1..2]).await;
        assert_eq!(ask(), 2);
    });
}

#[test]
fn a_restarted_proxy_takes_over_without_a_gap() {
    with_node(async |mut node| {
        node.apply(spec(json!({})), &ALL).await;
        let again = Table::open(PODS).expect("nftables");
        again.replace(&node.ruleset.additions()).await.expect("the table");
        spreads_evenly(&within(&node.pods[0], || spread(SERVICE, 90)), &[1, 2, 3]);
        Table::remove().await.expect("removal");
        Table::remove().await.expect("removal of nothing");
    });
}

#[test]
fn the_proxy_serves_what_it_watches_and_its_rules_stay() {
    with_node(async |node| {
        let service = json!({"metadata": {"namespace": "ns", "name": "web"}, "spec": spec(json!({}))});
        let mut slice = serde_json::to_value(&*slice(json!({"port": 8080}), &ALL)).expect("a slice");
        slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": "web"});
        let cancel = CancellationToken::new();
        let client = frozen(BTreeMap::from([("services", vec![service]), ("endpointslices", vec![slice])]));
        let factory = InformerFactory::new(client, cancel.clone());
        let config = ProxyConfig {
            node_name: "here".into(),
            node_ip: GATEWAY.into(),
            cluster_cidr: PODS,
            service_cidr: (Ipv4Addr::new(10, 43, 0, 0), 16),
            bridge: "cox0".into(),
        };
        let proxy = tokio::spawn(run_proxy(factory, config, cancel.clone()));
        let deadline = Instant::now() + Duration::from_secs(5);
        while tokio::task::spawn_blocking(|| call(SERVICE)).await.expect("the call").is_none() {
            assert!(Instant::now() < deadline, "not served in time");
        }
        cancel.cancel();
        proxy.await.expect("the task").expect("a clean end");
        spreads_evenly(&within(&node.pods[0], || spread(SERVICE, 90)), &[1, 2, 3]);
        spreads_evenly(&spread(SERVICE, 90), &[1, 2, 3]);
        remove_proxy().await.expect("removal");
    });
}

/// `cargo test -p coxswain-network --release five_thousand -- --ignored --nocapture`
#[test]
#[ignore = "a benchmark"]
fn five_thousand_services() {
    with_node(async |mut node| {
        let endpoints =
            |count: u8| -> Vec<String> { (0..count).map(|last| format!("10.42.1.{last}")).collect() };
        let fragment = |number: u16, count: u8| {
            let [high, low] = number.to_be_bytes();
            let mut object =
                service(json!({"clusterIP": format!("10.43.{high}.{low}"), "ports": [{"port": 80}]}));
            object.metadata.name = Some(format!("web-{number}"));
            let endpoints = endpoints(count);
            let endpoints: Vec<_> = endpoints.iter().map(|ip| (ip.as_str(), "there", "ready")).collect();
            plan(&object, &[slice(json!({"port": 8080}), &endpoints)], &facts())
        };
        let mut changes = Changes::new();
        let start = Instant::now();
        for number in 1..=5000 {
            node.ruleset.replace(
                &ObjectKey::new("ns", format!("web-{number}")),
                fragment(number, 4),
                &mut changes,
            );
        }
        let planned = start.elapsed();
        node.table.replace(&node.ruleset.additions()).await.expect("the table");
        println!("5,000 services with 4 endpoints: plan {planned:?}, apply {:?}", start.elapsed() - planned);
        let start = Instant::now();
        for turn in 0..100 {
            let mut changes = Changes::new();
            node.ruleset.replace(&ObjectKey::new("ns", "web-77"), fragment(77, 3 + turn % 2), &mut changes);
            node.table.change(&changes).await.expect("a change");
        }
        println!("one endpoint among them: {:?}", start.elapsed() / 100);
    });
}
