//! The apps kinds under test: defaults, validation and updates.

use coxswain_meta::json::json;

use super::*;

fn deployment(change: impl Fn(&mut Value)) -> Value {
    let mut object = json!({"metadata": {"name": "d", "namespace": "n"}, "spec": {
        "selector": {"matchLabels": {"app": "a"}},
        "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    change(&mut object);
    DEPLOYMENT.default(&mut object).expect("defaults");
    object
}

#[track_caller]
fn check(change: impl Fn(&mut Value), want: &str) {
    assert_eq!(DEPLOYMENT.validate_create(&deployment(change)).to_string(), want);
}

#[test]
fn deployment_defaults() {
    let spec = &deployment(|_| {})["spec"];
    assert_eq!(
        spec["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
    );
    assert_eq!((&spec["replicas"], &spec["revisionHistoryLimit"]), (&json!(1), &json!(10)));
    assert_eq!(spec["progressDeadlineSeconds"], 600);
    assert_eq!(spec["template"]["spec"]["containers"][0]["imagePullPolicy"], "Always");
    assert!(spec["template"]["spec"].get("enableServiceLinks").is_none());
}

#[test]
fn deployment_rules() {
    check(|_| {}, "[]");
    check(
        |d| d["spec"]["template"]["metadata"]["labels"]["app"] = json!("b"),
        r#"spec.template.metadata.labels: Invalid value: {"app":"b"}: `selector` does not match template `labels`"#,
    );
    check(
        |d| d["spec"]["replicas"] = json!(-1),
        "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
    );
    check(
        |d| d["spec"]["strategy"] = json!({"type": "Recreate", "rollingUpdate": {}}),
        "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
    );
    check(
        |d| d["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}),
        r#"spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "0%": may not be 0 when `maxSurge` is 0"#,
    );
    check(
        |d| d["spec"]["template"]["spec"]["restartPolicy"] = json!("Never"),
        r#"spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always""#,
    );
    let old = deployment(|_| {});
    let mut new = old.clone();
    new["spec"]["selector"]["matchLabels"]["x"] = json!("y");
    new["spec"]["template"]["metadata"]["labels"]["x"] = json!("y");
    assert_eq!(
        DEPLOYMENT.validate_update(&new, &old).to_string(),
        r#"spec.selector: Invalid value: {"matchLabels":{"app":"a","x":"y"}}: field is immutable"#
    );
}

#[test]
fn generations_count_spec_changes() {
    let mut old = deployment(|_| {});
    DEPLOYMENT.prepare_create(&mut old);
    assert_eq!((&old["metadata"]["generation"], &old["status"]), (&json!(1), &json!({})));
    let mut new = old.clone();
    new["metadata"]["labels"] = json!({"a": "b"});
    new["status"] = json!({"replicas": 5});
    DEPLOYMENT.prepare_update(&mut new, &old);
    assert_eq!((&new["metadata"]["generation"], &new["status"]), (&json!(1), &json!({})));
    new["spec"]["replicas"] = json!(3);
    DEPLOYMENT.prepare_update(&mut new, &old);
    assert_eq!(new["metadata"]["generation"], 2);
    let mut status = json!({"metadata": {"name": "d"}, "spec": {"replicas": 9}, "status": {"replicas": 1}});
    DEPLOYMENT.prepare_status_update(&mut status, &new);
    assert_eq!((&status["spec"]["replicas"], &status["status"]["replicas"]), (&json!(3), &json!(1)));
}
