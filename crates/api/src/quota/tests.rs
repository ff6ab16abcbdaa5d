//! Charges and counts, in upstream's words where they are refused.

use coxswain_meta::json::{Value, json};

use super::{Consumer, charge, used};

fn quota(hard: Value, in_use: Value) -> Value {
    json!({"metadata": {"name": "q"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": in_use}})
}

fn pod(requests: Value) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests}}]}})
}

fn pods() -> Consumer {
    Consumer::new("", "pods")
}

#[test]
fn what_there_is_room_for_is_charged() {
    let quota = quota(
        json!({"pods": "2", "requests.cpu": "1", "secrets": "1"}),
        json!({"pods": "1", "requests.cpu": "600m"}),
    );
    let more = charge(&quota, &pods(), &pod(json!({"cpu": "400m"})), None).expect("room");
    let shown: Vec<String> = more.iter().map(|(name, amount)| format!("{name}={amount}")).collect();
    assert_eq!(shown, ["pods=1", "requests.cpu=400m"]);
    assert_eq!(
        charge(&quota, &pods(), &pod(json!({"cpu": "500m"})), None),
        Err("exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1".into())
    );
}

#[test]
fn a_limited_resource_must_be_named() {
    let quota = quota(json!({"cpu": "1", "memory": "1Gi"}), json!({"cpu": "0", "memory": "0"}));
    assert_eq!(
        charge(&quota, &pods(), &pod(json!({})), None),
        Err("failed quota: q: must specify cpu for: c; memory for: c".into())
    );
}

#[test]
fn nothing_is_let_in_before_the_first_count() {
    let mut quota = quota(json!({"pods": "1"}), json!({}));
    assert_eq!(
        charge(&quota, &pods(), &pod(json!({})), None),
        Err("status unknown for quota: q, resources: pods".into())
    );
    // A quota that the controller has not seen yet limits nothing.
    quota["status"] = json!({});
    assert_eq!(charge(&quota, &pods(), &pod(json!({})), None), Ok(Default::default()));
}

#[test]
fn a_change_is_charged_for_what_it_adds() {
    let service =
        |kind: &str, ports: usize| json!({"spec": {"type": kind, "ports": vec![json!({"port": 1}); ports]}});
    let services = Consumer::new("", "services");
    let quota = quota(
        json!({"services": "1", "services.nodeports": "2"}),
        json!({"services": "1", "services.nodeports": "0"}),
    );
    let more =
        charge(&quota, &services, &service("NodePort", 2), Some(&service("ClusterIP", 2))).expect("room");
    assert_eq!(more.into_keys().collect::<Vec<_>>(), ["services.nodeports"]);
    assert!(charge(&quota, &services, &service("NodePort", 3), Some(&service("ClusterIP", 3))).is_err());
    assert!(charge(&quota, &services, &service("ClusterIP", 1), None).is_err());
}

#[test]
fn scopes_choose_pods() {
    let mut scoped = quota(json!({"pods": "5"}), json!({"pods": "0"}));
    scoped["spec"]["scopes"] = json!(["BestEffort"]);
    let (best_effort, burstable) = (pod(json!({})), pod(json!({"cpu": "1"})));
    let hard = scoped["status"]["hard"].clone();
    assert!(pods().is_counted(&scoped, &hard, &best_effort));
    assert!(!pods().is_counted(&scoped, &hard, &burstable));
    scoped["spec"] = json!({"scopeSelector": {"matchExpressions": [
        {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}});
    let mut high = burstable.clone();
    high["spec"]["priorityClassName"] = "high".into();
    assert!(pods().is_counted(&scoped, &hard, &high) && !pods().is_counted(&scoped, &hard, &burstable));
}

#[test]
fn what_is_there_is_counted_by_kind() {
    let hard = json!({"pods": "5", "count/deployments.apps": "3", "fast.storageclass.storage.k8s.io/requests.storage": "9Gi"});
    let quota = quota(hard.clone(), json!({}));
    let mut ended = pod(json!({"cpu": "1"}));
    ended["status"] = json!({"phase": "Succeeded"});
    let shown = |consumer: &Consumer, objects: &[Value]| {
        let used = used(&quota, &hard, consumer, objects);
        used.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(",")
    };
    assert_eq!(shown(&pods(), &[ended, pod(json!({}))]), "pods=1");
    let deployments = Consumer::of("count/deployments.apps").expect("a consumer");
    assert_eq!(deployments, Consumer::new("apps", "deployments"));
    assert_eq!(shown(&deployments, &[json!({}), json!({})]), "count/deployments.apps=2");
    let claim = json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "2Gi"}}}});
    let claims = Consumer::of("fast.storageclass.storage.k8s.io/requests.storage").expect("a consumer");
    assert_eq!(shown(&claims, &[claim]), "fast.storageclass.storage.k8s.io/requests.storage=2Gi");
}
