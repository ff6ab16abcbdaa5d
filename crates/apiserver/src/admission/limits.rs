//! LimitRanger: a namespace's limit ranges give containers the requests and limits they leave out, and bound them.
//! <https://kubernetes.io/docs/concepts/policy/limit-range/>

use std::collections::BTreeSet;

use coxswain_api::resources::{self, ResourceList};
use coxswain_meta::json::{Map, Value, json};
use coxswain_meta::quantity::Quantity;

use crate::object::Meta;

/// Tells of what was filled in.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

fn limits<'a>(range: &'a Value, kind: &str) -> impl Iterator<Item = &'a Value> {
    let limits = range["spec"]["limits"].as_array().into_iter().flatten();
    limits.filter(move |limit| limit["type"] == *kind)
}

fn containers<'a>(pod: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    pod["spec"][list].as_array().into_iter().flatten()
}

/// Fills the defaults of a limit range into a pod.
pub fn fill(range: &Value, pod: &mut Value) {
    let defaults = |field: &str| {
        let sources = limits(range, "Container").filter_map(|limit| limit[field].as_object());
        sources.flatten().map(|(name, amount)| (name, amount.clone())).collect::<Map>()
    };
    let defaults =
        [("requests", "request", defaults("defaultRequest")), ("limits", "limit", defaults("default"))];
    let mut told = Vec::new();
    for (list, title) in [("containers", "container"), ("initContainers", "init container")] {
        for container in super::members(&mut pod["spec"], list).filter(|container| container.is_object()) {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (field, singular, amounts) in &defaults {
                let set = fill_in(container, field, amounts);
                if !set.is_empty() {
                    let set: Vec<&str> = set.into_iter().collect();
                    told.push(format!("{} {singular} for {title} {name}", set.join(", ")));
                }
            }
        }
    }
    if !told.is_empty() {
        let annotations = pod.meta_mut().entry("annotations").or_insert_with(|| json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(ANNOTATION, format!("LimitRanger plugin set: {}", told.join("; ")).into());
        }
    }
}

/// Fills amounts into one list of a container; gives the names of those it had not.
fn fill_in<'a>(container: &mut Value, field: &str, amounts: &'a Map) -> BTreeSet<&'a str> {
    let mut set = BTreeSet::new();
    for (name, amount) in amounts {
        if container["resources"][field].get(name).is_some() {
            continue;
        }
        for parent in ["resources"] {
            if !container[parent].is_object() {
                container[parent] = json!({});
            }
        }
        if !container["resources"][field].is_object() {
            container["resources"][field] = json!({});
        }
        container["resources"][field][name] = amount.clone();
        set.insert(name);
    }
    set
}

/// What a pod or a claim (`plural`) does against a limit range; empty where it keeps it.
pub fn violations(range: &Value, plural: &str, object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if plural == "persistentvolumeclaims" {
        let requests = resources::list(&object["spec"]["resources"], "requests");
        for limit in limits(range, "PersistentVolumeClaim") {
            let bound =
                Bound { kind: "PersistentVolumeClaim", requests: &requests, limits: &ResourceList::new() };
            found.extend(each(limit, "min", |name, amount| bound.at_least(name, amount)));
            found.extend(each(limit, "max", |name, amount| bound.requests_at_most(name, amount)));
        }
        return found;
    }
    for limit in limits(range, "Container") {
        for container in containers(object, "containers").chain(containers(object, "initContainers")) {
            let of = |field| resources::list(&container["resources"], field);
            found.extend(
                Bound { kind: "Container", requests: &of("requests"), limits: &of("limits") }.all(limit),
            );
        }
    }
    for limit in limits(range, "Pod") {
        let of = |field| resources::of_pod(&object["spec"], field);
        found.extend(Bound { kind: "Pod", requests: &of("requests"), limits: &of("limits") }.all(limit));
    }
    found
}

fn each(limit: &Value, field: &str, check: impl Fn(&str, Quantity) -> Result<(), String>) -> Vec<String> {
    resources::list(limit, field)
        .into_iter()
        .filter_map(|(name, amount)| check(&name, amount).err())
        .collect()
}

/// What is bounded: a container, a pod or a claim.
struct Bound<'a> {
    kind: &'static str,
    requests: &'a ResourceList,
    limits: &'a ResourceList,
}

impl Bound<'_> {
    fn all(&self, limit: &Value) -> Vec<String> {
        let least = each(limit, "min", |name, amount| self.at_least(name, amount));
        let most = each(limit, "max", |name, amount| self.at_most(name, amount));
        let ratio = each(limit, "maxLimitRequestRatio", |name, amount| self.ratio_at_most(name, amount));
        least.into_iter().chain(most).chain(ratio).collect()
    }

    fn at_least(&self, name: &str, least: Quantity) -> Result<(), String> {
        let rule = format!("minimum {name} usage per {} is {least}", self.kind);
        let Some(request) = self.requests.get(name) else {
            return Err(format!("{rule}.  No request is specified"));
        };
        if *request < least {
            return Err(format!("{rule}, but request is {request}"));
        }
        match self.limits.get(name) {
            Some(limit) if *limit < least => Err(format!("{rule}, but limit is {limit}")),
            _ => Ok(()),
        }
    }

    fn requests_at_most(&self, name: &str, most: Quantity) -> Result<(), String> {
        let rule = format!("maximum {name} usage per {} is {most}", self.kind);
        match self.requests.get(name) {
            None => Err(format!("{rule}.  No request is specified")),
            Some(request) if *request > most => Err(format!("{rule}, but request is {request}")),
            Some(_) => Ok(()),
        }
    }

    fn at_most(&self, name: &str, most: Quantity) -> Result<(), String> {
        let rule = format!("maximum {name} usage per {} is {most}", self.kind);
        let Some(limit) = self.limits.get(name) else {
            return Err(format!("{rule}.  No limit is specified"));
        };
        if *limit > most {
            return Err(format!("{rule}, but limit is {limit}"));
        }
        match self.requests.get(name) {
            Some(request) if *request > most => Err(format!("{rule}, but request is {request}")),
            _ => Ok(()),
        }
    }

    fn ratio_at_most(&self, name: &str, most: Quantity) -> Result<(), String> {
        let rule = format!("{name} max limit to request ratio per {} is {most}", self.kind);
        let Some(request) = self.requests.get(name).filter(|request| !request.is_zero()) else {
            return Err(format!("{rule}, but no request is specified or request is 0"));
        };
        let Some(limit) = self.limits.get(name).filter(|limit| !limit.is_zero()) else {
            return Err(format!("{rule}, but no limit is specified or limit is 0"));
        };
        let ratio = limit.as_f64() / request.as_f64();
        if ratio > most.as_f64() { Err(format!("{rule}, but provided ratio is {ratio:.6}")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use coxswain_meta::json::json;

    use super::*;

    #[test]
    fn what_is_left_out_is_filled_in_and_told() {
        let range = json!({"spec": {"limits": [{"type": "Container",
            "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m", "memory": "1Mi"}}]}});
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "1"}}}]}});
        fill(&range, &mut pod);
        assert_eq!(
            pod["spec"]["containers"],
            json!([
                {"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Mi"}, "limits": {"cpu": "500m"}}},
                {"name": "b", "resources": {"requests": {"cpu": "1", "memory": "1Mi"}, "limits": {"cpu": "500m"}}},
            ])
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu, memory request for container a; cpu limit for container a; \
             memory request for container b; cpu limit for container b"
        );
    }

    #[test]
    fn bounds_are_kept_in_upstreams_words() {
        let range = json!({"spec": {"limits": [
            {"type": "Container", "min": {"cpu": "50m"}, "max": {"memory": "100Mi"}, "maxLimitRequestRatio": {"cpu": "2"}},
            {"type": "Pod", "max": {"cpu": "1"}},
        ]}});
        let pod = json!({"spec": {"containers": [{"name": "a", "resources": {
            "requests": {"cpu": "10m"}, "limits": {"cpu": "2", "memory": "200Mi"}}}]}});
        assert_eq!(
            violations(&range, "pods", &pod),
            [
                "minimum cpu usage per Container is 50m, but request is 10m",
                "maximum memory usage per Container is 100Mi, but limit is 200Mi",
                "cpu max limit to request ratio per Container is 2, but provided ratio is 200.000000",
                "maximum cpu usage per Pod is 1, but limit is 2",
            ]
        );
    }
}
