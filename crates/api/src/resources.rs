//! What pods ask for: requests and limits of containers added up as the scheduler and the quotas count them.

use std::collections::BTreeMap;

use coxswain_meta::json::Value;
use coxswain_meta::quantity::Quantity;

use crate::value::{entries, items, text};

/// Amounts by resource.
pub type ResourceList = BTreeMap<String, Quantity>;

/// A resource list of an object; amounts that are none are left out, since validation has refused them.
pub fn list(object: &Value, field: &str) -> ResourceList {
    let amounts = entries(object, field);
    amounts.filter_map(|(name, amount)| Some((name.to_owned(), Quantity::from_json(amount).ok()?))).collect()
}

/// Adds amounts to others.
pub fn add(to: &mut ResourceList, amounts: &ResourceList) {
    for (name, amount) in amounts {
        to.entry(name.clone()).and_modify(|sum| *sum = *sum + *amount).or_insert(*amount);
    }
}

fn raise(to: &mut ResourceList, amounts: &ResourceList) {
    for (name, amount) in amounts {
        to.entry(name.clone()).and_modify(|most| *most = (*most).max(*amount)).or_insert(*amount);
    }
}

/// The `requests` or `limits` of a whole pod: its containers and sidecars together, or the init container that needs more.
/// What the pod itself says of cpu, memory and huge pages stands in place of the sum.
pub fn of_pod(spec: &Value, field: &str) -> ResourceList {
    let mut total = ResourceList::new();
    for container in items(spec, "containers") {
        add(&mut total, &list(&container["resources"], field));
    }
    let (mut sidecars, mut most) = (ResourceList::new(), ResourceList::new());
    for container in items(spec, "initContainers") {
        let mut own = list(&container["resources"], field);
        if text(container, "restartPolicy") == "Always" {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            own = sidecars.clone();
        } else {
            add(&mut own, &sidecars);
        }
        raise(&mut most, &own);
    }
    raise(&mut total, &most);
    for (name, amount) in list(&spec["resources"], field) {
        if matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-") {
            total.insert(name, amount);
        }
    }
    total
}
