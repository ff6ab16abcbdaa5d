//! Pods under test: defaults, validation and what may change.

use coxswain_meta::json::{Value, json};

use super::*;

fn pod(change: impl Fn(&mut Value)) -> Value {
    let mut pod = json!({"metadata": {"name": "p", "namespace": "d"},
        "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    change(&mut pod);
    KIND.default(&mut pod).expect("defaults");
    pod
}

#[track_caller]
fn check(change: impl Fn(&mut Value), want: &str) {
    assert_eq!(KIND.validate_create(&pod(change)).to_string(), want);
}

#[test]
fn a_plain_pod_is_fine_and_fully_defaulted() {
    check(|_| {}, "[]");
    assert_eq!(
        pod(|_| {})["spec"],
        json!({"containers": [{"name": "c", "image": "i:1", "imagePullPolicy": "IfNotPresent", "resources": {},
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "restartPolicy": "Always",
            "schedulerName": "default-scheduler", "securityContext": {}, "terminationGracePeriodSeconds": 30})
    );
}

#[test]
fn container_rules() {
    check(|p| p["spec"]["containers"] = json!([]), "spec.containers: Required value");
    check(|p| p["spec"]["containers"][0]["image"] = json!(""), "spec.containers[0].image: Required value");
    check(
        |p| p["spec"]["containers"][0]["imagePullPolicy"] = json!("Sometimes"),
        r#"spec.containers[0].imagePullPolicy: Unsupported value: "Sometimes": supported values: "Always", "IfNotPresent", "Never""#,
    );
    check(
        |p| p["spec"]["containers"][0]["ports"] = json!([{"containerPort": 70000}]),
        "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
    );
    check(
        |p| p["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]),
        r#"spec.containers[0].volumeMounts[0].name: Not found: "v""#,
    );
    check(
        |p| p["spec"]["containers"][0]["livenessProbe"] = json!({"periodSeconds": -1}),
        "[spec.containers[0].livenessProbe: Required value: must specify a handler type, \
         spec.containers[0].livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0]",
    );
    check(
        |p| p["spec"]["containers"][0]["env"] = json!([{"name": "A", "valueFrom": {}}]),
        "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, \
         `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
    );
    check(
        |p| p["spec"]["containers"] = json!([{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]),
        r#"spec.containers[1].name: Duplicate value: "c""#,
    );
}

#[test]
fn resource_rules() {
    let resources =
        |value: Value| move |p: &mut Value| p["spec"]["containers"][0]["resources"] = value.clone();
    check(
        resources(json!({"requests": {"cpu": "2"}, "limits": {"cpu": "500m"}})),
        r#"spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 500m"#,
    );
    check(
        resources(json!({"limits": {"memory": "-1"}, "requests": {"memory": "-1"}})),
        "[spec.containers[0].resources.limits[memory]: Invalid value: \"-1\": must be greater than or equal to 0, \
         spec.containers[0].resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0]",
    );
    let qos = |p: &Value| qos_class(p).as_str();
    assert_eq!(qos(&pod(|_| {})), "BestEffort");
    assert_eq!(qos(&pod(resources(json!({"limits": {"cpu": "1", "memory": "1Gi"}})))), "Guaranteed");
    assert_eq!(qos(&pod(resources(json!({"requests": {"cpu": "1"}})))), "Burstable");
}

#[test]
fn spec_rules() {
    check(
        |p| p["spec"]["restartPolicy"] = json!("Maybe"),
        r#"spec.restartPolicy: Unsupported value: "Maybe": supported values: "Always", "OnFailure", "Never""#,
    );
    check(
        |p| p["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]),
        "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
    );
    check(
        |p| p["spec"]["tolerations"] = json!([{"key": "", "operator": "Equal"}]),
        "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \
         \"match all values and all keys\"",
    );
    check(
        |p| {
            p["spec"]["hostNetwork"] = json!(true);
            p["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 81}]);
        },
        "spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true",
    );
    check(
        |p| {
            p["spec"]["affinity"] = json!({"podAntiAffinity":
                {"requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {}, "topologyKey": "a b"}]}});
        },
        "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Invalid value: \
         \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
         alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
         '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
    );
}

#[test]
fn only_some_fields_change() {
    let old = pod(|p| p["metadata"]["uid"] = json!("u"));
    let update = |change: fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        KIND.validate_update(&new, &old).to_string()
    };
    assert_eq!(update(|p| p["spec"]["containers"][0]["image"] = json!("i:2")), "[]");
    assert_eq!(update(|p| p["spec"]["tolerations"] = json!([{"operator": "Exists"}])), "[]");
    let error = update(|p| p["spec"]["hostname"] = json!("h"));
    assert!(error.starts_with(
        "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
    ));
    assert!(error.contains("\n- \"Hostname\": \"\",\n+ \"Hostname\": \"h\",\n"), "{error}");
    assert_eq!(
        update(|p| p["metadata"]["name"] = json!("q")),
        "metadata.name: Invalid value: \"q\": field is immutable"
    );
}

#[test]
fn table_row() {
    let now = 1_795_261_426;
    let mut pod = pod(|_| {});
    pod["metadata"]["creationTimestamp"] = json!("2026-11-21T11:41:46Z");
    pod["status"] = json!({"phase": "Running", "podIPs": [{"ip": "10.42.0.5"}], "containerStatuses": [
        {"name": "c", "ready": false, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
         "lastState": {"terminated": {"finishedAt": "2026-11-21T11:43:26Z"}}}]});
    let row = KIND.row(&pod, now);
    assert_eq!(row[1..6], ["0/1", "CrashLoopBackOff", "3 (20s ago)", "2m", "10.42.0.5"].map(Value::from));
    pod["metadata"]["deletionTimestamp"] = json!("2026-11-21T11:43:46Z");
    assert_eq!(KIND.row(&pod, now)[2], "Terminating");
}

#[test]
fn a_change_leaves_the_priority_that_it_does_not_name() {
    let mut new = json!({"spec": {"priority": 7}});
    (KIND.hooks.prepare_update)(&mut new, &json!({"spec": {"priority": 3, "preemptionPolicy": "Never"}}));
    assert_eq!(new["spec"], json!({"priority": 7, "preemptionPolicy": "Never"}));
}
