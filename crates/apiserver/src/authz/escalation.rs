//! Nobody gives away rights that he does not hold: which rights a role grants beyond those of its author. Pure.
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#privilege-escalation-prevention-and-bootstrapping>

use std::collections::BTreeSet;

use super::Rule;

/// The rights in `wanted`, one verb on one thing each, that no single rule of `held` covers.
pub fn uncovered(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let rights = wanted.iter().flat_map(single_rights);
    rights.filter(|right| !held.iter().any(|rule| covers(rule, right))).collect()
}

/// What of `wanted` no single rule of `held` covers, in upstream's words, one right a line and sorted; none where all is held.
pub fn missing(held: &[Rule], wanted: &[Rule]) -> Option<String> {
    let mut lacking: Vec<Rule> = Vec::new();
    for right in uncovered(held, wanted) {
        // Rights on one resource are told together.
        let same = lacking.iter_mut().find(|other| {
            other.resource_names.is_empty()
                && right.resource_names.is_empty()
                && other.non_resource_urls.is_empty()
                && (&other.api_groups, &other.resources) == (&right.api_groups, &right.resources)
        });
        match same {
            Some(other) if right.non_resource_urls.is_empty() => other.verbs.extend(right.verbs),
            _ => lacking.push(right),
        }
    }
    let told: BTreeSet<String> = lacking.iter().map(shown).collect();
    (!told.is_empty()).then(|| told.into_iter().collect::<Vec<_>>().join("\n"))
}

/// A rule as the rights it consists of: one verb on one resource, object or path each.
fn single_rights(rule: &Rule) -> Vec<Rule> {
    let mut rights = Vec::new();
    for group in &rule.api_groups {
        for resource in &rule.resources {
            for verb in &rule.verbs {
                let right = Rule {
                    verbs: vec![verb.clone()],
                    api_groups: vec![group.clone()],
                    resources: vec![resource.clone()],
                    ..Rule::default()
                };
                if rule.resource_names.is_empty() {
                    rights.push(right);
                    continue;
                }
                let named = |name: &String| Rule { resource_names: vec![name.clone()], ..right.clone() };
                rights.extend(rule.resource_names.iter().map(named));
            }
        }
    }
    for url in &rule.non_resource_urls {
        for verb in &rule.verbs {
            rights.push(Rule {
                verbs: vec![verb.clone()],
                non_resource_urls: vec![url.clone()],
                ..Rule::default()
            });
        }
    }
    rights
}

fn covers(rule: &Rule, right: &Rule) -> bool {
    let holds = |list: &[String], wanted: &[String]| {
        list.iter().any(|item| item == "*") || wanted.iter().all(|item| list.contains(item))
    };
    let resource = |wanted: &String| {
        let sub = wanted.split_once('/').map(|(_, sub)| format!("*/{sub}"));
        rule.resources.iter().any(|item| item == "*" || item == wanted || Some(item) == sub.as_ref())
    };
    let names = match (rule.resource_names.is_empty(), right.resource_names.is_empty()) {
        (true, _) => true,
        (false, true) => false,
        (false, false) => right.resource_names.iter().all(|name| rule.resource_names.contains(name)),
    };
    let url = |wanted: &String| {
        rule.non_resource_urls.iter().any(|item| {
            item == wanted || item.strip_suffix('*').is_some_and(|prefix| wanted.starts_with(prefix))
        })
    };
    holds(&rule.verbs, &right.verbs)
        && holds(&rule.api_groups, &right.api_groups)
        && right.resources.iter().all(resource)
        && names
        && right.non_resource_urls.iter().all(url)
}

/// A rule as upstream writes it in messages.
fn shown(rule: &Rule) -> String {
    let parts = [
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("NonResourceURLs", &rule.non_resource_urls),
        ("ResourceNames", &rule.resource_names),
        ("Verbs", &rule.verbs),
    ];
    let parts = parts.iter().filter(|(_, list)| !list.is_empty());
    let parts: Vec<String> = parts.map(|(name, list)| format!("{name}:{}", quoted(list))).collect();
    format!("{{{}}}", parts.join(", "))
}

/// A list of texts as Go's `%q` writes it.
pub fn quoted(list: &[String]) -> String {
    let texts: Vec<String> = list.iter().map(|text| format!("{text:?}")).collect();
    format!("[{}]", texts.join(" "))
}

#[cfg(test)]
mod tests {
    use coxswain_meta::json::{Value, json};

    use super::*;

    fn rules(value: Value) -> Vec<Rule> {
        coxswain_meta::json::from_value(value).expect("rules")
    }

    #[test]
    fn what_is_held_may_be_given() {
        let held = rules(json!([
            {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "*/status"]},
            {"verbs": ["*"], "apiGroups": ["apps"], "resources": ["*"]},
            {"verbs": ["get"], "nonResourceURLs": ["/healthz/*"]},
        ]));
        let within = rules(json!([
            {"verbs": ["get"], "apiGroups": ["", "apps"], "resources": ["pods"], "resourceNames": ["a"]},
            {"verbs": ["list"], "apiGroups": [""], "resources": ["services/status"]},
            {"verbs": ["get"], "nonResourceURLs": ["/healthz/ping"]},
        ]));
        assert_eq!(missing(&held, &within), None);
    }

    #[test]
    fn what_is_not_held_is_told_by_resource() {
        let held = rules(
            json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]}]),
        );
        let wanted = rules(json!([
            {"verbs": ["get", "watch"], "apiGroups": [""], "resources": ["secrets", "pods"]},
            {"verbs": ["get"], "nonResourceURLs": ["/metrics"]},
        ]));
        assert_eq!(
            missing(&held, &wanted).as_deref(),
            Some(
                "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\" \"watch\"]}\n\
                 {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"watch\"]}\n\
                 {NonResourceURLs:[\"/metrics\"], Verbs:[\"get\"]}"
            )
        );
    }
}
