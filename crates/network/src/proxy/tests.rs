//! The plan as text, and the rules at work in network namespaces of their own.

mod kernel;

use std::sync::Arc;

use coxswain_client::ObjectKey;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value as Json, json};

use super::conntrack::Flows;
use super::model::{Changes, Ruleset};
use super::plan::{Facts, plan};

pub(super) fn facts() -> Facts {
    Facts { node_name: "here".into(), node_ip: "192.0.2.1".parse().expect("an address") }
}

pub(super) fn service(spec: Json) -> Service {
    let mut object =
        json!({"metadata": {"namespace": "ns", "name": "web"}, "spec": spec, "status": spec["status"]});
    object["spec"].as_object_mut().expect("an object").remove("status");
    serde_json::from_value(object).expect("a service")
}

/// Endpoints as `ip node state`, where the state is `ready`, `draining` or `dead`.
pub(super) fn slice(port: Json, endpoints: &[(&str, &str, &str)]) -> Arc<EndpointSlice> {
    let endpoints: Vec<Json> = endpoints
        .iter()
        .map(|(ip, node, state)| {
            let conditions = match *state {
                "ready" => json!({"ready": true, "serving": true, "terminating": false}),
                "draining" => json!({"ready": false, "serving": true, "terminating": true}),
                _ => json!({"ready": false, "serving": false, "terminating": true}),
            };
            json!({"addresses": [ip], "nodeName": node, "conditions": conditions})
        })
        .collect();
    let object = json!({"metadata": {"namespace": "ns", "name": "web-1"}, "addressType": "IPv4", "ports": [port], "endpoints": endpoints});
    Arc::new(serde_json::from_value(object).expect("a slice"))
}

fn check(spec: Json, endpoints: &[(&str, &str, &str)], expected: &str) {
    let text = plan(&service(spec), &[slice(json!({"port": 8080}), endpoints)], &facts()).to_string();
    let lines = |text: &str| {
        text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(lines(&text), lines(expected));
}

fn spec(more: Json) -> Json {
    let mut spec = json!({"clusterIP": "10.43.0.9", "ports": [{"port": 80}]});
    spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    spec
}

#[test]
fn a_cluster_ip_balances_over_ready_endpoints() {
    check(
        spec(json!({})),
        &[
            ("10.42.0.5", "here", "ready"),
            ("10.42.1.6", "there", "ready"),
            ("10.42.1.7", "there", "draining"),
        ],
        "chain cluster/ns/web/tcp/80: masquerade outsiders; balance cluster 2;
         address 10.43.0.9 . tcp . 80: goto cluster/ns/web/tcp/80
         cluster ip 10.43.0.9
         hairpin 10.42.0.5
         endpoint 10.43.0.9 . tcp . 80 #0x0: 10.42.0.5:8080
         endpoint 10.43.0.9 . tcp . 80 #0x1: 10.42.1.6:8080",
    );
}

#[test]
fn terminating_endpoints_serve_when_no_other_does() {
    check(
        spec(json!({})),
        &[("10.42.1.6", "there", "dead"), ("10.42.1.7", "there", "draining")],
        "chain cluster/ns/web/tcp/80: masquerade outsiders; balance cluster 1;
         address 10.43.0.9 . tcp . 80: goto cluster/ns/web/tcp/80
         cluster ip 10.43.0.9
         endpoint 10.43.0.9 . tcp . 80 #0x0: 10.42.1.7:8080",
    );
}

#[test]
fn nobody_to_serve_is_a_reject() {
    check(
        spec(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]})),
        &[("10.42.1.6", "there", "dead")],
        "address 10.43.0.9 . tcp . 80: reject
         node port tcp . 30080: reject
         cluster ip 10.43.0.9",
    );
}

#[test]
fn traffic_from_outside_to_any_node_is_masqueraded() {
    check(
        spec(
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}], "externalIPs": ["203.0.113.7"]}),
        ),
        &[("10.42.1.6", "there", "ready")],
        "chain cluster/ns/web/tcp/80: masquerade outsiders; balance cluster 1;
         chain external/ns/web/tcp/80: masquerade; goto cluster/ns/web/tcp/80;
         address 10.43.0.9 . tcp . 80: goto cluster/ns/web/tcp/80
         address 203.0.113.7 . tcp . 80: goto external/ns/web/tcp/80
         node port tcp . 30080: goto external/ns/web/tcp/80
         cluster ip 10.43.0.9
         endpoint 10.43.0.9 . tcp . 80 #0x0: 10.42.1.6:8080",
    );
}

#[test]
fn external_policy_local_keeps_the_source_and_drops_what_others_serve() {
    let spec = spec(json!({
        "type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30080}], "externalTrafficPolicy": "Local",
        "loadBalancerSourceRanges": ["198.51.100.0/24"], "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}},
    }));
    check(
        spec.clone(),
        &[("10.42.0.5", "here", "ready"), ("10.42.1.6", "there", "ready")],
        "chain cluster/ns/web/tcp/80: masquerade outsiders; balance cluster 2;
         chain external/ns/web/tcp/80: pods goto cluster/ns/web/tcp/80; host masquerade goto cluster/ns/web/tcp/80; goto local/ns/web/tcp/80;
         chain firewall/ns/web/tcp/80: from 198.51.100.0/24 goto external/ns/web/tcp/80; drop;
         chain local/ns/web/tcp/80: balance local 1;
         address 10.43.0.9 . tcp . 80: goto cluster/ns/web/tcp/80
         address 203.0.113.7 . tcp . 80: goto firewall/ns/web/tcp/80
         node port tcp . 30080: goto external/ns/web/tcp/80
         cluster ip 10.43.0.9
         hairpin 10.42.0.5
         endpoint 10.43.0.9 . tcp . 80 #0x0: 10.42.0.5:8080
         endpoint 10.43.0.9 . tcp . 80 #0x1: 10.42.1.6:8080
         endpoint 10.43.0.9 . tcp . 80 #0x10000: 10.42.0.5:8080",
    );
    let elsewhere =
        plan(&service(spec), &[slice(json!({"port": 8080}), &[("10.42.1.6", "there", "ready")])], &facts());
    let text = elsewhere.to_string();
    assert!(text.contains("node port tcp . 30080: drop"), "{text}");
    assert!(text.contains("address 203.0.113.7 . tcp . 80: drop"), "{text}");
    assert!(!text.contains("chain local"), "{text}");
}

#[test]
fn internal_policy_local_and_affinity() {
    check(
        spec(
            json!({"internalTrafficPolicy": "Local", "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}),
        ),
        &[("10.42.0.5", "here", "ready"), ("10.42.1.6", "there", "ready")],
        "chain local/ns/web/tcp/80: balance local 1 affinity 60s;
         address 10.43.0.9 . tcp . 80: goto local/ns/web/tcp/80
         cluster ip 10.43.0.9
         hairpin 10.42.0.5
         endpoint 10.43.0.9 . tcp . 80 #0x10000: 10.42.0.5:8080
         kept local 10.43.0.9 . tcp . 80 10.42.0.5:8080",
    );
}

#[test]
fn headless_and_external_name_services_need_nothing() {
    check(json!({"clusterIP": "None", "ports": [{"port": 80}]}), &[("10.42.0.5", "here", "ready")], "");
    check(json!({"type": "ExternalName", "externalName": "example.com"}), &[], "");
}

#[test]
fn an_address_two_services_claim_stays_with_the_first() {
    let plan_of = |ip: &str| {
        let spec = json!({"clusterIP": ip, "ports": [{"port": 80}], "externalIPs": ["203.0.113.7"]});
        plan(&service(spec), &[slice(json!({"port": 8080}), &[("10.42.1.6", "there", "ready")])], &facts())
    };
    let (first, second) = (ObjectKey::new("ns", "a"), ObjectKey::new("ns", "b"));
    let (mut ruleset, mut changes) = (Ruleset::default(), Changes::new());
    ruleset.replace(&second, plan_of("10.43.0.2"), &mut changes);
    ruleset.replace(&first, plan_of("10.43.0.1"), &mut changes);
    let mut later = Changes::new();
    ruleset.replace(&second, super::Fragment::default(), &mut later);
    assert!(
        !later.keys().any(|key| matches!(key, super::model::Key::Address(at) if at.ip.octets()[0] == 203)),
        "{later:?}"
    );
    ruleset.replace(&first, super::Fragment::default(), &mut later);
    assert_eq!(ruleset.entries().count(), 0);
}

#[test]
fn only_udp_changes_concern_flows() {
    let apply = |protocol: &str, ruleset: &mut Ruleset, endpoints: &[(&str, &str, &str)]| {
        let spec = json!({"clusterIP": "10.43.0.9", "ports": [{"port": 53, "protocol": protocol}]});
        let slice = slice(json!({"port": 5353, "protocol": protocol}), endpoints);
        let mut changes = Changes::new();
        ruleset.replace(&ObjectKey::new("ns", "web"), plan(&service(spec), &[slice], &facts()), &mut changes);
        Flows::after(&changes, ruleset)
    };
    let both = [("10.42.0.5", "here", "ready"), ("10.42.0.6", "here", "ready")];
    assert_eq!(apply("TCP", &mut Ruleset::default(), &both), None);
    let mut ruleset = Ruleset::default();
    assert!(apply("UDP", &mut ruleset, &both).is_some());
    let flows = apply("UDP", &mut ruleset, &both[..1]).expect("an endpoint went");
    let to = ("10.43.0.9".parse().expect("an address"), 53);
    let from = |ip: &str| super::model::Endpoint { ip: ip.parse().expect("an address"), port: 5353 };
    assert!(!flows.is_stale(to, from("10.42.0.5"), true));
    assert!(flows.is_stale(to, from("10.42.0.6"), true));
}
