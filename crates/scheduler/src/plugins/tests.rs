//! The plugins under test, through whole scheduling cycles.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::cycle::{Failure, schedule};
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;

fn node(name: &str, spec: Value, labels: Value) -> Node {
    let amounts = json!({ "cpu": "2", "memory": "4Gi", "pods": "3" });
    serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels }, "spec": spec, "status": { "allocatable": amounts } })).unwrap()
}

fn pod(name: &str, spec: Value) -> PodInfo {
    let mut spec = spec;
    if spec["containers"].is_null() {
        spec["containers"] = json!([{ "name": "c" }]);
    }
    let pod: Pod =
        serde_json::from_value(json!({ "metadata": { "name": name, "uid": name }, "spec": spec })).unwrap();
    PodInfo::new(&Arc::new(pod))
}

fn asks(cpu: &str, memory: &str) -> Value {
    json!([{ "name": "c", "resources": { "requests": { "cpu": cpu, "memory": memory } } }])
}

/// Two nodes, `a` and `b`; where the pod goes, or why it goes nowhere.
fn check(nodes: [Node; 2], running: Vec<PodInfo>, wanted: Value, expected: Result<&str, &str>) {
    let mut snapshot = Snapshot::default();
    nodes.iter().for_each(|node| snapshot.put_node(node));
    running.into_iter().for_each(|pod| snapshot.put_pod(pod));
    let got = schedule(&pod("new", wanted.clone()), &snapshot, 0);
    match (&got, expected) {
        (Ok(at), Ok(node)) => assert_eq!(snapshot.nodes()[*at].name, node, "{wanted}"),
        (Err(failure), Err(message)) => assert_eq!(failure.message(), message, "{wanted}"),
        (got, expected) => panic!("{wanted}: {:?}, not {expected:?}", got.as_ref().map_err(Failure::message)),
    }
}

fn plain() -> [Node; 2] {
    [
        node("a", json!({}), json!({ "disk": "ssd", "size": "5" })),
        node("b", json!({}), json!({ "disk": "hdd" })),
    ]
}

#[test]
fn each_filter_says_why() {
    let full = || vec![pod("x", json!({ "nodeName": "a", "containers": asks("1500m", "1Gi") }))];
    check(plain(), full(), json!({ "containers": asks("1", "1Gi") }), Ok("b"));
    check(
        plain(),
        full(),
        json!({ "containers": asks("3", "1Gi") }),
        Err("0/2 nodes are available: 2 Insufficient cpu."),
    );
    check(plain(), vec![], json!({ "nodeSelector": { "disk": "hdd" } }), Ok("b"));
    let bigger = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
        { "matchExpressions": [{ "key": "size", "operator": "Gt", "values": ["4"] }] }] } } });
    check(plain(), vec![], json!({ "affinity": bigger }), Ok("a"));
    check(
        plain(),
        vec![],
        json!({ "nodeSelector": { "disk": "tape" } }),
        Err("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."),
    );
    let ports = json!([{ "name": "c", "ports": [{ "containerPort": 80, "hostPort": 80 }] }]);
    let taken = vec![pod("x", json!({ "nodeName": "a", "containers": ports }))];
    check(plain(), taken, json!({ "containers": ports }), Ok("b"));
    let tainted = [
        node("a", json!({ "taints": [{ "key": "k", "value": "v", "effect": "NoSchedule" }] }), json!({})),
        node("b", json!({ "unschedulable": true }), json!({})),
    ];
    check(tainted.clone(), vec![], json!({ "tolerations": [{ "key": "k", "operator": "Exists" }] }), Ok("a"));
    let message =
        "0/2 nodes are available: 1 node(s) had untolerated taint(s) {k: v}, 1 node(s) were unschedulable.";
    check(tainted, vec![], json!({}), Err(message));
}

#[test]
fn scores_spread_and_balance() {
    let running =
        |node: &str| vec![pod("x", json!({ "nodeName": node, "containers": asks("500m", "512Mi") }))];
    check(plain(), running("a"), json!({}), Ok("b"));
    check(plain(), running("b"), json!({}), Ok("a"));
    let preferred = json!({ "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 50,
        "preference": { "matchExpressions": [{ "key": "disk", "operator": "In", "values": ["ssd"] }] } }] } });
    check(plain(), running("a"), json!({ "affinity": preferred }), Ok("a"));
}

#[test]
fn an_init_container_counts_when_it_is_the_largest() {
    let small = json!([{ "name": "c", "resources": { "requests": { "cpu": "100m" } } }]);
    let large = json!([{ "name": "i", "resources": { "requests": { "cpu": "3" } } }]);
    let spec = json!({ "containers": small, "initContainers": large });
    assert_eq!(pod("p", spec.clone()).requests.milli_cpu, 3000);
    let mut sidecar = spec;
    sidecar["initContainers"][0]["restartPolicy"] = "Always".into();
    assert_eq!(pod("p", sidecar).requests.milli_cpu, 3100);
}
