//! The FlowSchemas and priority levels that every server has; the facts are those of upstream's bootstrap configuration.

use coxswain_meta::json::{Value, json};

/// How many queues a level has, and how many of them a flow is dealt.
type Queuing = Option<(u32, u32)>;

/// Name, shares, percent that is lent.
const LEVELS: &[(&str, u32, u32, Queuing)] = &[
    ("catch-all", 5, 0, None),
    ("system", 30, 33, Some((64, 6))),
    ("node-high", 40, 25, Some((64, 6))),
    ("leader-election", 10, 0, Some((16, 4))),
    ("workload-high", 40, 50, Some((128, 6))),
    ("workload-low", 100, 90, Some((128, 6))),
    ("global-default", 20, 50, Some((128, 6))),
];

const USER: &str = "ByUser";
const NAMESPACE: &str = "ByNamespace";

/// Whether the server insists on an object's spec: it does on those it cannot do without.
pub fn is_mandatory(name: &str) -> bool {
    matches!(name, "exempt" | "catch-all")
}

fn metadata(name: &str) -> Value {
    json!({ "name": name, "annotations": { "apf.kubernetes.io/autoupdate-spec": "true" } })
}

/// The priority levels.
pub fn levels() -> Vec<Value> {
    let exempt = json!({ "metadata": metadata("exempt"), "spec": { "type": "Exempt",
        "exempt": { "nominalConcurrencyShares": 0, "lendablePercent": 0 } } });
    let limited = LEVELS.iter().map(|(name, shares, lendable, queuing)| {
        let response = match queuing {
            None => json!({ "type": "Reject" }),
            Some((queues, hand)) => json!({ "type": "Queue",
                "queuing": { "queues": queues, "handSize": hand, "queueLengthLimit": 50 } }),
        };
        json!({ "metadata": metadata(name), "spec": { "type": "Limited", "limited": {
            "nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response } } })
    });
    limited.chain([exempt]).collect()
}

fn groups(names: &[&str]) -> Vec<Value> {
    names.iter().map(|name| json!({ "kind": "Group", "group": { "name": name } })).collect()
}

fn user(name: &str) -> Value {
    json!({ "kind": "User", "user": { "name": name } })
}

fn resources(verbs: &[&str], group: &str, resources: &[&str], cluster_scope: bool) -> Value {
    let mut rule =
        json!({ "verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"] });
    if cluster_scope {
        rule["clusterScope"] = true.into();
    }
    rule
}

fn everything(subjects: Vec<Value>) -> Value {
    json!({ "subjects": subjects, "resourceRules": [resources(&["*"], "*", &["*"], true)],
        "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }] })
}

/// The FlowSchemas.
pub fn schemas() -> Vec<Value> {
    const MANAGER: &str = "system:kube-controller-manager";
    const SCHEDULER: &str = "system:kube-scheduler";
    const LEASES: &str = "coordination.k8s.io";
    let all = || groups(&["system:unauthenticated", "system:authenticated"]);
    let of_system =
        || json!({ "kind": "ServiceAccount", "serviceAccount": { "name": "*", "namespace": "kube-system" } });
    let nodes = || groups(&["system:nodes"]);
    let probes = json!({ "subjects": all(), "nonResourceRules":
        [{ "verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"] }] });
    let elections = json!({ "subjects": [user(MANAGER), user(SCHEDULER), of_system()],
        "resourceRules": [resources(&["get", "create", "update"], LEASES, &["leases"], false)] });
    let heartbeats = json!({ "subjects": nodes(), "resourceRules":
        [resources(&["*"], "", &["nodes", "nodes/status"], true), resources(&["*"], LEASES, &["leases"], false)] });
    let accounts = groups(&["system:serviceaccounts"]);
    let rows = [
        ("exempt", "exempt", 1, None, everything(groups(&["system:masters"]))),
        ("probes", "exempt", 2, None, probes),
        ("system-leader-election", "leader-election", 100, Some(USER), elections),
        ("system-node-high", "node-high", 400, Some(USER), heartbeats),
        ("system-nodes", "system", 500, Some(USER), everything(nodes())),
        ("kube-controller-manager", "workload-high", 800, Some(NAMESPACE), everything(vec![user(MANAGER)])),
        ("kube-scheduler", "workload-high", 800, Some(NAMESPACE), everything(vec![user(SCHEDULER)])),
        (
            "kube-system-service-accounts",
            "workload-high",
            900,
            Some(NAMESPACE),
            everything(vec![of_system()]),
        ),
        ("service-accounts", "workload-low", 9000, Some(USER), everything(accounts)),
        ("global-default", "global-default", 9900, Some(USER), everything(all())),
        ("catch-all", "catch-all", 10000, Some(USER), everything(all())),
    ];
    let schema = |(name, level, precedence, distinguisher, rule): (&str, &str, u32, Option<&str>, Value)| {
        let mut spec = json!({ "priorityLevelConfiguration": { "name": level },
            "matchingPrecedence": precedence, "rules": [rule] });
        if let Some(distinguisher) = distinguisher {
            spec["distinguisherMethod"] = json!({ "type": distinguisher });
        }
        json!({ "metadata": metadata(name), "spec": spec })
    };
    rows.into_iter().map(schema).collect()
}
