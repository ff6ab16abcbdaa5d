//! NodeAffinity: node selectors and node affinity, required and preferred.

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

fn satisfies(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |value: &str| values.iter().any(|other| other == value);
    let compare = |wanted: fn(&i64, &i64) -> bool| {
        let (own, bound) =
            (value.and_then(|value| value.parse().ok()), values.first().and_then(|bound| bound.parse().ok()));
        own.zip(bound).is_some_and(|(own, bound): (i64, i64)| wanted(&own, &bound))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

/// A term without requirements selects nothing.
fn selects(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let (labels, fields) = (
        term.match_expressions.as_deref().unwrap_or_default(),
        term.match_fields.as_deref().unwrap_or_default(),
    );
    let field = |name: &str| (name == "metadata.name").then_some(node.name.as_str());
    !(labels.is_empty() && fields.is_empty())
        && labels
            .iter()
            .all(|requirement| satisfies(requirement, node.labels.get(&requirement.key).map(String::as_str)))
        && fields.iter().all(|requirement| satisfies(requirement, field(&requirement.key)))
}

/// Filter.
pub fn filter(pod: &PodInfo, node: &NodeInfo) -> Vec<String> {
    let selected = pod.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value));
    let wanted = pod
        .required
        .as_ref()
        .is_none_or(|required| required.node_selector_terms.iter().any(|term| selects(term, node)));
    if selected && wanted {
        Vec::new()
    } else {
        vec!["node(s) didn't match Pod's node affinity/selector".into()]
    }
}

/// Score: the weights of the preferences that the node meets.
pub fn score(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let met = pod.preferred.iter().filter(|preferred| selects(&preferred.preference, node));
    met.map(|preferred| i64::from(preferred.weight)).sum()
}
