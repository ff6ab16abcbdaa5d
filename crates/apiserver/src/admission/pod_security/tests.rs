//! The wording is upstream's: clients and people search for it.

use coxswain_meta::json::{Value, json};

use super::{Verdict, judge};

fn namespace(mode: &str, level: &str) -> Value {
    json!({"metadata": {"name": "n", "labels": {(format!("pod-security.kubernetes.io/{mode}")): level}}})
}

fn refused(level: &str, spec: Value) -> String {
    judge(&namespace("enforce", level), &json!({}), &spec, true).refused.unwrap_or_default()
}

#[test]
fn the_privileged_level_forbids_nothing() {
    let spec = json!({"hostNetwork": true, "containers": [{"name": "c"}]});
    assert_eq!(judge(&json!({"metadata": {}}), &json!({}), &spec, true), Verdict::default());
}

#[test]
fn the_baseline_forbids_what_leads_out_of_the_container() {
    let spec = json!({
        "hostNetwork": true,
        "hostPID": true,
        "volumes": [{"name": "v", "hostPath": {"path": "/"}}],
        "containers": [
            {"name": "a", "securityContext": {"privileged": true, "capabilities": {"add": ["NET_ADMIN", "CHOWN"]}}},
            {"name": "b", "securityContext": {"privileged": true}, "ports": [{"containerPort": 80, "hostPort": 80}]},
        ],
    });
    assert_eq!(
        refused("baseline", spec),
        "violates PodSecurity \"baseline:latest\": non-default capabilities (container \"a\" must not include \
         \"NET_ADMIN\" in securityContext.capabilities.add), host namespaces (hostNetwork=true, hostPID=true), hostPath \
         volumes (volume \"v\"), hostPort (container \"b\" uses hostPort 80), privileged (containers \"a\", \"b\" must not \
         set securityContext.privileged=true)"
    );
}

#[test]
fn the_restricted_level_asks_for_hardening() {
    let spec = json!({"containers": [{"name": "c"}], "volumes": [{"name": "v", "nfs": {}}]});
    assert_eq!(
        refused("restricted", spec),
        "violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"c\" must set \
         securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set \
         securityContext.capabilities.drop=[\"ALL\"]), restricted volume types (volume \"v\" uses restricted volume type \
         \"nfs\"), runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile \
         (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
    );
    let hardened = json!({
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}],
    });
    assert_eq!(refused("restricted", hardened), "");
}

#[test]
fn a_version_is_its_own_policy() {
    let labels = json!({"pod-security.kubernetes.io/enforce": "baseline",
        "pod-security.kubernetes.io/enforce-version": "v1.20"});
    let namespace = json!({"metadata": {"labels": labels}});
    let probe = json!({"httpGet": {"host": "elsewhere"}});
    let spec = json!({"containers": [{"name": "c", "livenessProbe": probe}]});
    assert_eq!(judge(&namespace, &json!({}), &spec, true), Verdict::default());
    assert!(refused("baseline", spec).contains("container \"c\" uses probe or lifecycle host \"elsewhere\""));
}

#[test]
fn a_template_is_warned_of_and_never_refused() {
    let spec = json!({"hostIPC": true, "containers": []});
    let verdict = judge(&namespace("warn", "baseline"), &json!({}), &spec, false);
    assert_eq!(
        verdict.warning.as_deref(),
        Some("would violate PodSecurity \"baseline:latest\": host namespaces (hostIPC=true)")
    );
    assert_eq!(judge(&namespace("enforce", "baseline"), &json!({}), &spec, false), Verdict::default());
}
