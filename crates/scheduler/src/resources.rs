//! Amounts of resources, as integers: milli-CPUs, bytes, counts.

use std::collections::BTreeMap;

use coxswain_meta::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// An amount of every resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// CPU in thousandths.
    pub milli_cpu: i64,
    /// Memory in bytes.
    pub memory_bytes: i64,
    /// Local storage in bytes.
    pub ephemeral_bytes: i64,
    /// Everything else, by name.
    pub extended: BTreeMap<String, i64>,
}

/// What a container without a request counts as when nodes are compared (not when they are filtered).
const UNASKED_MILLI_CPU: i64 = 100;
const UNASKED_MEMORY_BYTES: i64 = 200 << 20;

impl Resources {
    /// Reads a resource list.
    pub fn of(list: Option<&BTreeMap<String, Text>>) -> Self {
        let mut resources = Self::default();
        for (name, Text(text)) in list.into_iter().flatten() {
            let Ok(quantity) = text.parse::<Quantity>() else { continue };
            match name.as_str() {
                "cpu" => resources.milli_cpu = quantity.milli_value(),
                "memory" => resources.memory_bytes = quantity.value(),
                "ephemeral-storage" => resources.ephemeral_bytes = quantity.value(),
                "pods" => {}
                _ => {
                    resources.extended.insert(name.clone(), quantity.value());
                }
            }
        }
        resources
    }

    fn combine(&mut self, other: &Self, with: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = with(self.milli_cpu, other.milli_cpu);
        self.memory_bytes = with(self.memory_bytes, other.memory_bytes);
        self.ephemeral_bytes = with(self.ephemeral_bytes, other.ephemeral_bytes);
        for (name, amount) in &other.extended {
            let own = self.extended.entry(name.clone()).or_default();
            *own = with(*own, *amount);
        }
    }

    /// Adds another amount.
    pub fn add(&mut self, other: &Self) {
        self.combine(other, i64::saturating_add);
    }

    /// Takes another amount away.
    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, i64::saturating_sub);
    }

    fn max(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }
}

fn of_container(container: &Container, unasked: bool) -> Resources {
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let mut resources = Resources::of(requests);
    let asks = |name: &str| requests.is_some_and(|requests| requests.contains_key(name));
    if unasked && !asks("cpu") {
        resources.milli_cpu = UNASKED_MILLI_CPU;
    }
    if unasked && !asks("memory") {
        resources.memory_bytes = UNASKED_MEMORY_BYTES;
    }
    resources
}

/// What a pod asks for: its containers and sidecars together, or more where an init container needs more (KEP-753).
/// With `unasked`, containers without requests count for something.
pub fn of_pod(spec: &PodSpec, unasked: bool) -> Resources {
    let mut total = Resources::default();
    for container in &spec.containers {
        total.add(&of_container(container, unasked));
    }
    let (mut sidecars, mut largest) = (Resources::default(), Resources::default());
    for container in spec.init_containers.iter().flatten() {
        let own = of_container(container, unasked);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&own);
            largest.max(&sidecars);
        } else {
            let mut with_sidecars = sidecars.clone();
            with_sidecars.add(&own);
            largest.max(&with_sidecars);
        }
    }
    total.add(&sidecars);
    total.max(&largest);
    total.add(&Resources::of(spec.overhead.as_ref()));
    total
}
