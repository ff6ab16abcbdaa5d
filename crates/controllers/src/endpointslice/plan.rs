//! From a service and its pods to endpoints, and from endpoints to the slices that are to be written.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as LegacyPort, EndpointSubset, ObjectReference, Pod, Service, ServicePort,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::pods;

/// Endpoints in a slice.
const SLICE_SIZE: usize = 100;
/// Addresses in an `Endpoints` object; larger services are told apart by an annotation.
pub const LEGACY_SIZE: usize = 1000;

/// Endpoints that listen on the same numbers.
pub type Groups = BTreeMap<Vec<PortNumber>, Vec<Endpoint>>;

/// A port of a service as one pod has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortNumber {
    name: String,
    protocol: String,
    number: i32,
    app_protocol: Option<String>,
}

impl PortNumber {
    fn of(port: &ServicePort, pod: &Pod) -> Option<Self> {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        let number = match &port.target_port {
            None => port.port,
            Some(IntOrString::Int(number)) if *number > 0 => *number,
            Some(IntOrString::Int(_)) => port.port,
            Some(IntOrString::String(name)) => named_port(pod, name, &protocol)?,
        };
        Some(Self {
            name: port.name.clone().unwrap_or_default(),
            protocol,
            number,
            app_protocol: port.app_protocol.clone(),
        })
    }
}

fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let mut ports =
        spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let same = |of: &Option<String>| of.as_deref().unwrap_or("TCP") == protocol;
    ports
        .find(|port| port.name.as_deref() == Some(name) && same(&port.protocol))
        .map(|port| port.container_port)
}

fn ip_of(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref().filter(|ip| !ip.is_empty())
}

fn endpoint(pod: &Pod, service: &Service, ip: &str) -> Endpoint {
    let publish = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let serving = pods::is_ready(pod);
    let spec = pod.spec.as_ref();
    let of_subdomain = spec.and_then(|spec| spec.subdomain.as_deref()) == Some(&service.name_any());
    Endpoint {
        addresses: vec![ip.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(publish || (serving && !terminating)),
            serving: Some(publish || serving),
            terminating: Some(terminating),
        }),
        hostname: spec.and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty() && of_subdomain),
        node_name: spec.and_then(|spec| spec.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

/// The endpoints of a service, by the port numbers they share.
pub fn groups(service: &Service, pods: &[Arc<Pod>]) -> Groups {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.clone()).unwrap_or_default();
    let mut groups = Groups::new();
    for pod in pods {
        let ended = matches!(
            pod.status.as_ref().and_then(|status| status.phase.as_deref()),
            Some("Succeeded" | "Failed")
        );
        let Some(ip) = ip_of(pod).filter(|_| !ended) else { continue };
        let numbers: Vec<PortNumber> = ports.iter().filter_map(|port| PortNumber::of(port, pod)).collect();
        if numbers.is_empty() && !ports.is_empty() {
            continue;
        }
        groups.entry(numbers).or_default().push(endpoint(pod, service, ip));
    }
    groups
}

/// What somebody else's Endpoints say, of the addresses that are `wanted`.
pub fn of_subsets(subsets: &[EndpointSubset], wanted: impl Fn(&str) -> bool) -> Groups {
    let mut groups = Groups::new();
    for subset in subsets {
        let port = |port: &LegacyPort| PortNumber {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            number: port.port,
            app_protocol: port.app_protocol.clone(),
        };
        let numbers: Vec<PortNumber> = subset.ports.iter().flatten().map(port).collect();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let endpoints = ready.chain(unready).filter(|(address, _)| wanted(&address.ip)).map(mirror);
        groups.entry(numbers).or_default().extend(endpoints);
    }
    groups.retain(|_, endpoints| !endpoints.is_empty());
    groups
}

fn mirror((address, ready): (&EndpointAddress, bool)) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn slice_ports(numbers: &[PortNumber]) -> Vec<EndpointPort> {
    let port = |port: &PortNumber| EndpointPort {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.clone()),
        port: Some(port.number),
        app_protocol: port.app_protocol.clone(),
    };
    numbers.iter().map(port).collect()
}

/// What is to be written of a service's slices.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// Ports and endpoints of new slices.
    pub create: Vec<(Vec<EndpointPort>, Vec<Endpoint>)>,
    /// Existing slices by index, with their new endpoints.
    pub update: Vec<(usize, Vec<Endpoint>)>,
    /// Existing slices by index.
    pub delete: Vec<usize>,
}

/// Compares slices with endpoints: every endpoint stays in its slice, new ones fill the gaps, and only what changed is written.
pub fn changes(existing: &[Arc<EndpointSlice>], groups: &Groups) -> Changes {
    let mut changes = Changes::default();
    let mut used = vec![false; existing.len()];
    for (numbers, endpoints) in groups {
        let ports = slice_ports(numbers);
        let mut left: BTreeMap<String, &Endpoint> =
            endpoints.iter().map(|endpoint| (key(endpoint), endpoint)).collect();
        let own: Vec<usize> = (0..existing.len())
            .filter(|at| !used[*at] && existing[*at].ports.clone().unwrap_or_default() == ports)
            .collect();
        let mut kept: Vec<(usize, Vec<Endpoint>)> = Vec::new();
        for at in own {
            used[at] = true;
            let old = existing[at].endpoints.iter().flatten();
            kept.push((at, old.filter_map(|endpoint| left.remove(&key(endpoint)).cloned()).collect()));
        }
        let mut left: Vec<Endpoint> = left.into_values().cloned().collect();
        for (_, endpoints) in &mut kept {
            let room = SLICE_SIZE.saturating_sub(endpoints.len()).min(left.len());
            endpoints.extend(left.drain(..room));
        }
        for (at, endpoints) in kept {
            if endpoints.is_empty() {
                changes.delete.push(at);
            } else if existing[at].endpoints.as_ref() != Some(&endpoints) {
                changes.update.push((at, endpoints));
            }
        }
        changes.create.extend(left.chunks(SLICE_SIZE).map(|chunk| (ports.clone(), chunk.to_vec())));
    }
    changes.delete.extend((0..existing.len()).filter(|at| !used[*at]));
    keep_one(existing, &mut changes);
    changes
}

/// A service without endpoints still has a slice, so that its emptiness can be seen.
fn keep_one(existing: &[Arc<EndpointSlice>], changes: &mut Changes) {
    if !changes.create.is_empty() || changes.delete.len() < existing.len() {
        return;
    }
    match changes.delete.pop() {
        Some(at) if existing[at].endpoints.iter().flatten().next().is_some() => {
            changes.update.push((at, Vec::new()))
        }
        Some(_) => {}
        None => changes.create.push((Vec::new(), Vec::new())),
    }
}

fn key(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()).unwrap_or_default();
    format!("{uid} {}", endpoint.addresses.join(","))
}

/// The same endpoints in the form of the older `Endpoints` kind.
pub fn subsets(groups: &Groups) -> Vec<EndpointSubset> {
    let mut left = LEGACY_SIZE;
    let mut subsets = Vec::new();
    for (numbers, endpoints) in groups {
        let conditions = |endpoint: &Endpoint| endpoint.conditions.clone().unwrap_or_default();
        let is_ready = |endpoint: &&Endpoint| conditions(endpoint).ready == Some(true);
        let mut take = |ready: bool| -> Option<Vec<EndpointAddress>> {
            let of = endpoints.iter().filter(|endpoint| is_ready(endpoint) == ready);
            // Those that go away without being ready are nobody's business any more.
            let of = of.filter(|endpoint| ready || conditions(endpoint).terminating != Some(true));
            let addresses: Vec<_> = of.take(left).map(address).collect();
            left -= addresses.len();
            (!addresses.is_empty()).then_some(addresses)
        };
        let (addresses, not_ready_addresses) = (take(true), take(false));
        if addresses.is_none() && not_ready_addresses.is_none() {
            continue;
        }
        let port = |port: &PortNumber| LegacyPort {
            name: (!port.name.is_empty()).then(|| port.name.clone()),
            port: port.number,
            protocol: Some(port.protocol.clone()),
            app_protocol: port.app_protocol.clone(),
        };
        let ports: Vec<_> = numbers.iter().map(port).collect();
        subsets.push(EndpointSubset {
            addresses,
            not_ready_addresses,
            ports: (!ports.is_empty()).then_some(ports),
        });
    }
    subsets
}

fn address(endpoint: &Endpoint) -> EndpointAddress {
    EndpointAddress {
        ip: endpoint.addresses.first().cloned().unwrap_or_default(),
        hostname: endpoint.hostname.clone(),
        node_name: endpoint.node_name.clone(),
        target_ref: endpoint.target_ref.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, ready: bool) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({ "metadata": { "name": name, "uid": name }, "spec": { "containers": [{ "name": "c",
                "ports": [{ "name": "web", "containerPort": 8080 }] }] }, "status": { "podIP": format!("10.0.0.{}", name.len()),
                "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }] } }))
            .unwrap(),
        )
    }

    fn service() -> Service {
        let spec = json!({ "ports": [{ "port": 80, "targetPort": "web" }, { "name": "other", "port": 81, "targetPort": 9090 }] });
        serde_json::from_value(json!({ "metadata": { "name": "s" }, "spec": spec })).unwrap()
    }

    fn slice(ports: Vec<EndpointPort>, endpoints: Vec<Endpoint>) -> Arc<EndpointSlice> {
        Arc::new(EndpointSlice { ports: Some(ports), endpoints: Some(endpoints), ..EndpointSlice::default() })
    }

    #[test]
    fn endpoints_stay_where_they_are_and_only_changes_are_written() {
        let both = groups(&service(), &[pod("a", true), pod("bb", false)]);
        let mut first = changes(&[], &both);
        assert_eq!((first.create.len(), first.create[0].1.len()), (1, 2));
        assert_eq!(first.create[0].0.iter().map(|port| port.port.unwrap()).collect::<Vec<_>>(), [8080, 9090]);
        let (ports, endpoints) = first.create.pop().unwrap();
        let existing = [slice(ports, endpoints)];
        assert_eq!(changes(&existing, &both), Changes::default());
        let one = groups(&service(), &[pod("a", true)]);
        assert_eq!(
            changes(&existing, &one).update,
            [(0, vec![existing[0].endpoints.as_ref().unwrap()[0].clone()])]
        );
        let none = changes(&existing, &Groups::new());
        assert_eq!((none.update.len(), none.delete.len()), (1, 0), "the last slice stays, empty");
    }

    #[test]
    fn a_full_slice_is_followed_by_another() {
        let pods: Vec<_> = (0..150)
            .map(|at| {
                let mut pod = (*pod("p", true)).clone();
                pod.metadata.uid = Some(format!("{at:03}"));
                Arc::new(pod)
            })
            .collect();
        let sizes: Vec<_> = changes(&[], &groups(&service(), &pods))
            .create
            .iter()
            .map(|(_, endpoints)| endpoints.len())
            .collect();
        assert_eq!(sizes, [100, 50]);
        let subsets = subsets(&groups(&service(), &[pod("a", true), pod("bb", false)]));
        assert_eq!(
            (
                subsets[0].addresses.as_ref().unwrap().len(),
                subsets[0].not_ready_addresses.as_ref().unwrap().len()
            ),
            (1, 1)
        );
    }

    #[test]
    fn other_peoples_endpoints_keep_their_readiness_and_family() {
        let subsets: Vec<EndpointSubset> = serde_json::from_value(serde_json::json!([{
            "addresses": [{ "ip": "10.1.2.3" }, { "ip": "fd00::1" }], "notReadyAddresses": [{ "ip": "10.1.2.4" }],
            "ports": [{ "port": 80 }] }]))
        .unwrap();
        let groups = of_subsets(&subsets, |ip| !ip.contains(':'));
        let (ports, endpoints) = groups.first_key_value().unwrap();
        assert_eq!((groups.len(), ports[0].number, ports[0].protocol.as_str()), (1, 80, "TCP"));
        let ready = |e: &Endpoint| (e.addresses[0].clone(), e.conditions.as_ref().and_then(|c| c.ready));
        let expected = [("10.1.2.3".to_owned(), Some(true)), ("10.1.2.4".to_owned(), Some(false))];
        assert_eq!(endpoints.iter().map(ready).collect::<Vec<_>>(), expected);
        assert!(of_subsets(&subsets, |_| false).is_empty());
    }
}
