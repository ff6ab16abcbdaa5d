//! Quotas: what an object consumes, which quotas count it, and whether there is room for it.
//! <https://kubernetes.io/docs/concepts/policy/resource-quotas/>
//!
//! Pure: the API server charges quotas with it at admission, the controller counts with it what is there.

mod scope;

use coxswain_meta::json::Value;
use coxswain_meta::quantity::Quantity;

use crate::resources::{self, ResourceList};
use crate::value::{entries, flag, has, int, items, name, text};

const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
/// What pods consume, besides extended resources and huge pages.
const OF_PODS: &[&str] = &[
    "pods",
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];
const OF_SERVICES: &[&str] = &["services", "services.loadbalancers", "services.nodeports"];
const OF_CLAIMS: &[&str] = &["persistentvolumeclaims", "requests.storage"];
/// Kinds that are counted under their own name, too.
const COUNTED_BY_NAME: &[&str] = &["configmaps", "secrets", "replicationcontrollers", "resourcequotas"];
/// A quota of these wants every container to name its own amount.
const WANTED: &[&str] = &["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

/// The kind whose objects consume something: API group and plural.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Consumer {
    /// API group, empty for the core group.
    pub group: String,
    /// Resource name in paths.
    pub plural: String,
}

impl Consumer {
    /// The consumer of that group and plural.
    pub fn new(group: &str, plural: &str) -> Self {
        Self { group: group.to_owned(), plural: plural.to_owned() }
    }

    /// Whose objects consume a resource that a quota names; none where nothing does.
    pub fn of(resource: &str) -> Option<Self> {
        if let Some(counted) = resource.strip_prefix("count/") {
            let (plural, group) = counted.split_once('.').unwrap_or((counted, ""));
            return Some(Self::new(group, plural));
        }
        let plural = if OF_SERVICES.contains(&resource) {
            "services"
        } else if OF_CLAIMS.contains(&resource) || resource.contains(STORAGE_CLASS) {
            "persistentvolumeclaims"
        } else if COUNTED_BY_NAME.contains(&resource) {
            resource
        } else if OF_PODS.contains(&resource) || is_extended_or_huge(resource) {
            "pods"
        } else {
            return None;
        };
        Some(Self::new("", plural))
    }

    /// What an object consumes.
    pub fn usage(&self, object: &Value) -> ResourceList {
        let counted = if self.group.is_empty() {
            format!("count/{}", self.plural)
        } else {
            format!("count/{}.{}", self.plural, self.group)
        };
        let mut usage = ResourceList::from([(counted, Quantity::from_units(1))]);
        if !self.group.is_empty() {
            return usage;
        }
        match self.plural.as_str() {
            "pods" if !is_over(object) => resources::add(&mut usage, &of_pod(&object["spec"])),
            "services" => usage.extend(of_service(&object["spec"])),
            "persistentvolumeclaims" => usage.extend(of_claim(object)),
            named if COUNTED_BY_NAME.contains(&named) => {
                usage.insert(named.to_owned(), Quantity::from_units(1));
            }
            _ => {}
        }
        usage
    }

    /// Whether a quota counts an object of this kind.
    pub fn is_counted(&self, quota: &Value, hard: &Value, object: &Value) -> bool {
        let concerned = hard.as_object().into_iter().flatten().any(|(name, _)| self.consumes(name));
        concerned && scope::matches(self, quota, object)
    }

    fn consumes(&self, resource: &str) -> bool {
        Self::of(resource).as_ref() == Some(self)
    }
}

fn is_extended_or_huge(resource: &str) -> bool {
    let requested = resource.strip_prefix("requests.");
    requested.unwrap_or(resource).starts_with("hugepages-")
        || requested.is_some_and(|name| name.contains('/'))
}

/// Whether a pod has ended, or was to have by now.
fn is_over(pod: &Value) -> bool {
    matches!(text(&pod["status"], "phase"), "Failed" | "Succeeded")
}

fn of_pod(spec: &Value) -> ResourceList {
    let overhead = resources::list(spec, "overhead");
    let total = |field| {
        let mut total = resources::of_pod(spec, field);
        let bounded: ResourceList = overhead
            .iter()
            .filter(|(name, _)| field == "requests" || total.contains_key(*name))
            .map(|(name, amount)| (name.clone(), *amount))
            .collect();
        resources::add(&mut total, &bounded);
        total
    };
    compute(&total("requests"), &total("limits"))
}

/// The names under which quotas count requests and limits.
fn compute(requests: &ResourceList, limits: &ResourceList) -> ResourceList {
    let mut usage = ResourceList::from([("pods".to_owned(), Quantity::from_units(1))]);
    for (name, amount) in requests {
        let plain = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        if plain || name.starts_with("hugepages-") {
            usage.insert(name.clone(), *amount);
        }
        if plain || name.starts_with("hugepages-") || name.contains('/') {
            usage.insert(format!("requests.{name}"), *amount);
        }
    }
    for (name, amount) in limits {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            usage.insert(format!("limits.{name}"), *amount);
        }
    }
    usage
}

fn of_service(spec: &Value) -> ResourceList {
    let kind = text(spec, "type");
    let ports = items(spec, "ports");
    let chosen = || ports.iter().filter(|port| int(port, "nodePort").unwrap_or(0) != 0).count();
    let node_ports = match kind {
        "NodePort" => ports.len(),
        "LoadBalancer"
            if has(spec, "allocateLoadBalancerNodePorts") && !flag(spec, "allocateLoadBalancerNodePorts") =>
        {
            chosen()
        }
        "LoadBalancer" => ports.len(),
        _ => 0,
    };
    let count = |count: usize| Quantity::from_units(i64::try_from(count).unwrap_or(i64::MAX));
    ResourceList::from([
        ("services".to_owned(), count(1)),
        ("services.loadbalancers".to_owned(), count(usize::from(kind == "LoadBalancer"))),
        ("services.nodeports".to_owned(), count(node_ports)),
    ])
}

fn of_claim(claim: &Value) -> ResourceList {
    let one = Quantity::from_units(1);
    let mut usage = ResourceList::from([("persistentvolumeclaims".to_owned(), one)]);
    let annotated = claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"].as_str();
    let class = annotated.unwrap_or_else(|| text(&claim["spec"], "storageClassName"));
    if !class.is_empty() {
        usage.insert(format!("{class}{STORAGE_CLASS}persistentvolumeclaims"), one);
    }
    let asked = resources::list(&claim["spec"]["resources"], "requests").remove("storage");
    let allocated = resources::list(&claim["status"], "allocatedResources").remove("storage");
    if let Some(asked) = asked {
        let storage = allocated.map_or(asked, |allocated| allocated.max(asked));
        usage.insert("requests.storage".to_owned(), storage);
        if !class.is_empty() {
            usage.insert(format!("{class}{STORAGE_CLASS}requests.storage"), storage);
        }
    }
    usage
}

/// What `objects` of a kind use of a quota whose hard limits are `hard`, for the resources that the kind consumes.
pub fn used<'a>(
    quota: &Value,
    hard: &Value,
    consumer: &Consumer,
    objects: impl IntoIterator<Item = &'a Value>,
) -> ResourceList {
    let concerned = hard.as_object().into_iter().flatten().filter(|(name, _)| consumer.consumes(name));
    let mut used: ResourceList =
        concerned.map(|(name, _)| (name.to_owned(), Quantity::from_units(0))).collect();
    for object in objects.into_iter().filter(|object| consumer.is_counted(quota, hard, object)) {
        let mut usage = consumer.usage(object);
        usage.retain(|name, _| used.contains_key(name));
        resources::add(&mut used, &usage);
    }
    used
}

/// What a write adds to the use of one quota; nothing where the quota does not count it.
///
/// # Errors
/// There is no room for it, or it does not say what it needs, in upstream's words.
pub fn charge(
    quota: &Value,
    consumer: &Consumer,
    new: &Value,
    old: Option<&Value>,
) -> Result<ResourceList, String> {
    let hard = &quota["status"]["hard"];
    if !consumer.is_counted(quota, hard, new) {
        return Ok(ResourceList::new());
    }
    let limits = resources::list(&quota["status"], "hard");
    let concerned: Vec<&str> =
        limits.keys().map(String::as_str).filter(|name| consumer.consumes(name)).collect();
    if *consumer == Consumer::new("", "pods") {
        names_what_it_needs(&concerned, &new["spec"])
            .map_err(|missing| format!("failed quota: {}: {missing}", name(quota)))?;
    }
    let used = resources::list(&quota["status"], "used");
    if concerned.iter().any(|name| !used.contains_key(*name)) {
        return Err(format!("status unknown for quota: {}, resources: {}", name(quota), concerned.join(",")));
    }
    let before = old.filter(|old| consumer.is_counted(quota, hard, old)).map(|old| consumer.usage(old));
    let mut more = consumer.usage(new);
    for (name, amount) in before.into_iter().flatten() {
        more.entry(name).and_modify(|sum| *sum = *sum - amount);
    }
    more.retain(|name, amount| {
        concerned.contains(&name.as_str()) && !amount.is_zero() && !amount.is_negative()
    });
    let exceeded: Vec<&String> = more
        .iter()
        .filter(|(name, amount)| used[*name] + **amount > limits[*name])
        .map(|(name, _)| name)
        .collect();
    if exceeded.is_empty() {
        return Ok(more);
    }
    let shown = |list: &ResourceList| {
        let amounts: Vec<String> = exceeded.iter().map(|name| format!("{name}={}", list[*name])).collect();
        amounts.join(",")
    };
    Err(format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        name(quota),
        shown(&more),
        shown(&used),
        shown(&limits)
    ))
}

/// Refuses a pod with containers that leave out what a quota limits, unless the pod says it for all of them.
fn names_what_it_needs(concerned: &[&str], spec: &Value) -> Result<(), String> {
    let pod_says =
        ["requests", "limits"].iter().any(|field| entries(&spec["resources"], field).next().is_some());
    if pod_says {
        return Ok(());
    }
    let containers = items(spec, "containers").iter().chain(items(spec, "initContainers"));
    let containers: Vec<(&str, ResourceList)> = containers
        .map(|container| {
            let of = |field| resources::list(&container["resources"], field);
            (text(container, "name"), compute(&of("requests"), &of("limits")))
        })
        .collect();
    let mut wanted: Vec<&str> = concerned.iter().copied().filter(|name| WANTED.contains(name)).collect();
    wanted.sort_unstable();
    let missing: Vec<String> = wanted
        .into_iter()
        .filter_map(|resource| {
            let without = containers.iter().filter(|(_, usage)| !usage.contains_key(resource));
            let mut names: Vec<&str> = without.map(|(name, _)| *name).collect();
            names.sort_unstable();
            names.dedup();
            (!names.is_empty()).then(|| format!("{resource} for: {}", names.join(",")))
        })
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("must specify {}", missing.join("; "))) }
}

#[cfg(test)]
mod tests;
