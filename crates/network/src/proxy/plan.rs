//! From a service and its endpoint slices to the entries the kernel should hold. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::model::{Endpoint, Fragment, Frontend, Key, Protocol, Refusal, Scope, Step, Value};

/// Services with this label are served by somebody else.
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// `sessionAffinityConfig.clientIP.timeoutSeconds` when it is absent.
const AFFINITY_SECONDS: u64 = 10_800;

/// What the plan needs to know of the node.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The node's name, which says what endpoints are local.
    pub node_name: String,
    /// The node's address, which its host-network pods share.
    pub node_ip: Ipv4Addr,
}

/// The entries of one service.
pub fn plan(service: &Service, slices: &[Arc<EndpointSlice>], facts: &Facts) -> Fragment {
    let mut fragment = Fragment::default();
    let Some(spec) = &service.spec else { return fragment };
    let labels = service.metadata.labels.as_ref();
    if spec.type_.as_deref() == Some("ExternalName")
        || labels.is_some_and(|labels| labels.contains_key(OTHER_PROXY))
    {
        return fragment;
    }
    let Some(ip) = cluster_ip(spec) else { return fragment };
    fragment.0.insert(Key::ClusterIp(ip), Value::Member);
    for port in spec.ports.iter().flatten() {
        let (Some(protocol), Some(number)) =
            (Protocol::parse(port.protocol.as_deref()), port_number(port.port))
        else {
            continue;
        };
        let meta = &service.metadata;
        let id = format!(
            "{}/{}/{protocol}/{number}",
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default()
        );
        let mut port_plan = PortPlan {
            spec,
            service: Frontend { ip, protocol, port: number },
            id,
            pools: Pools::choose(&candidates(port, protocol, slices, facts)),
            fragment: &mut fragment,
        };
        port_plan.internal();
        port_plan.external(service, port);
        port_plan.hairpins(facts);
    }
    fragment
}

fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port > 0)
}

fn cluster_ip(spec: &ServiceSpec) -> Option<Ipv4Addr> {
    spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).find_map(|ip| ip.parse().ok())
}

fn parse_all(addresses: Option<&Vec<String>>) -> BTreeSet<Ipv4Addr> {
    addresses.into_iter().flatten().filter_map(|ip| ip.parse().ok()).collect()
}

/// What decides whether an endpoint is used.
#[derive(Clone, Copy, Debug, Default)]
struct Candidate {
    ready: bool,
    /// Terminating, but still answering.
    draining: bool,
    local: bool,
}

fn candidates(
    port: &ServicePort,
    protocol: Protocol,
    slices: &[Arc<EndpointSlice>],
    facts: &Facts,
) -> BTreeMap<Endpoint, Candidate> {
    let mut all: BTreeMap<Endpoint, Candidate> = BTreeMap::new();
    let name = port.name.as_deref().unwrap_or_default();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
        let same = slice.ports.iter().flatten().find(|candidate| {
            candidate.name.as_deref().unwrap_or_default() == name
                && Protocol::parse(candidate.protocol.as_deref()) == Some(protocol)
        });
        let Some(port) = same.and_then(|port| port_number(port.port?)) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(ip) = endpoint.addresses.first().and_then(|ip| ip.parse().ok()) else { continue };
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let ready = conditions.ready.unwrap_or(true);
            // While an endpoint moves between slices it is in both: the better news is the newer.
            let candidate = all.entry(Endpoint { ip, port }).or_default();
            candidate.ready |= ready;
            candidate.draining |=
                conditions.terminating.unwrap_or(false) && conditions.serving.unwrap_or(ready);
            candidate.local |= endpoint.node_name.as_deref() == Some(&facts.node_name);
        }
    }
    all
}

/// The endpoints used for each scope: the ready ones, else (KEP-1669) those that terminate but still serve.
struct Pools {
    cluster: BTreeSet<Endpoint>,
    local: BTreeSet<Endpoint>,
}

impl Pools {
    fn choose(candidates: &BTreeMap<Endpoint, Candidate>) -> Self {
        let select = |wanted: &dyn Fn(&Candidate) -> bool| -> BTreeSet<Endpoint> {
            candidates
                .iter()
                .filter(|(_, candidate)| wanted(candidate))
                .map(|(endpoint, _)| *endpoint)
                .collect()
        };
        let or = |ready: BTreeSet<Endpoint>, draining| if ready.is_empty() { draining } else { ready };
        Self {
            cluster: or(select(&|c| c.ready), select(&|c| c.draining)),
            local: or(select(&|c| c.local && c.ready), select(&|c| c.local && c.draining)),
        }
    }

    fn of(&self, scope: Scope) -> &BTreeSet<Endpoint> {
        match scope {
            Scope::Cluster => &self.cluster,
            Scope::Local => &self.local,
        }
    }
}

struct PortPlan<'a> {
    spec: &'a ServiceSpec,
    service: Frontend,
    /// Of the service's port, for the names of chains.
    id: String,
    pools: Pools,
    fragment: &'a mut Fragment,
}

impl PortPlan<'_> {
    fn put(&mut self, key: Key, value: Value) {
        self.fragment.0.insert(key, value);
    }

    /// The cluster IP.
    fn internal(&mut self) {
        let local = self.spec.internal_traffic_policy.as_deref() == Some("Local");
        let scope = if local { Scope::Local } else { Scope::Cluster };
        if self.pools.of(scope).is_empty() {
            let refusal = if local { Refusal::Drop } else { Refusal::Reject };
            self.put(Key::RefusedAddress(self.service), Value::Refusal(refusal));
        } else {
            let chain = self.balance(scope);
            self.put(Key::Address(self.service), Value::Chain(chain, self.service));
        }
    }

    /// Node port, external IPs and load balancer IPs.
    fn external(&mut self, service: &Service, port: &ServicePort) {
        let at = |ip| Frontend { ip, ..self.service };
        let mut addresses: Vec<Frontend> =
            parse_all(self.spec.external_ips.as_ref()).into_iter().map(at).collect();
        let balancers: Vec<Frontend> = balancer_ips(service).into_iter().map(at).collect();
        let node_port = match self.spec.type_.as_deref() {
            Some("NodePort" | "LoadBalancer") => port.node_port.and_then(port_number),
            _ => None,
        };
        if addresses.is_empty() && balancers.is_empty() && node_port.is_none() {
            return;
        }
        let local = self.spec.external_traffic_policy.as_deref() == Some("Local");
        let refusal = if self.pools.cluster.is_empty() {
            Some(Refusal::Reject)
        } else {
            (local && self.pools.local.is_empty()).then_some(Refusal::Drop)
        };
        let chain = (!self.pools.cluster.is_empty()).then(|| self.external_chain(local));
        if let Some(chain) = &chain {
            let allowed = self.firewall(chain);
            for balancer in &balancers {
                self.put(Key::Address(*balancer), Value::Chain(allowed.clone(), self.service));
            }
            for address in &addresses {
                self.put(Key::Address(*address), Value::Chain(chain.clone(), self.service));
            }
            if let Some(port) = node_port {
                let chain = Value::Chain(chain.clone(), self.service);
                self.put(Key::NodePort(self.service.protocol, port), chain);
            }
        }
        addresses.extend(balancers);
        let Some(refusal) = refusal else { return };
        for address in addresses {
            self.put(Key::RefusedAddress(address), Value::Refusal(refusal));
        }
        if let Some(port) = node_port {
            let key = Key::RefusedNodePort(self.service.protocol, port);
            self.put(key, Value::Refusal(refusal));
        }
    }

    /// What traffic from outside goes through. With policy Local, the cluster's own traffic still goes everywhere.
    fn external_chain(&mut self, local: bool) -> String {
        let cluster = self.balance(Scope::Cluster);
        let mut steps = if local {
            vec![Step::PodsGoto(cluster.clone()), Step::HostGoto(cluster)]
        } else {
            vec![Step::Masquerade, Step::Goto(cluster)]
        };
        if local && !self.pools.local.is_empty() {
            let chain = self.balance(Scope::Local);
            steps.push(Step::Goto(chain));
        }
        self.chain("external", steps)
    }

    /// The chain in front of `chain` that lets only `loadBalancerSourceRanges` in.
    fn firewall(&mut self, chain: &str) -> String {
        let ranges = self.spec.load_balancer_source_ranges.iter().flatten();
        let ranges: Vec<(Ipv4Addr, u8)> = ranges.filter_map(|range| parse_range(range)).collect();
        if ranges.is_empty() {
            return chain.to_owned();
        }
        let allow = |range| Step::SourceGoto(range, chain.to_owned());
        let steps = ranges.into_iter().map(allow).chain([Step::Drop]).collect();
        self.chain("firewall", steps)
    }

    /// The chain that chooses among the endpoints of `scope`.
    fn balance(&mut self, scope: Scope) -> String {
        let affinity = (self.spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let client =
                self.spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            let seconds = client.and_then(|client| client.timeout_seconds);
            Duration::from_secs(seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(AFFINITY_SECONDS))
        });
        let endpoints: Vec<Endpoint> = self.pools.of(scope).iter().copied().collect();
        for (number, endpoint) in (scope.offset()..).zip(&endpoints) {
            self.put(Key::Endpoint(self.service, number), Value::Endpoint(*endpoint));
            if affinity.is_some() {
                self.put(Key::Kept(scope, self.service, *endpoint), Value::Member);
            }
        }
        let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
        let balance = Step::Balance { service: self.service, scope, count, affinity };
        let steps = match scope {
            Scope::Cluster => vec![Step::MasqueradeOutsiders, balance],
            // The endpoint is on this node: its answers come by here anyway.
            Scope::Local => vec![balance],
        };
        self.chain(&scope.to_string(), steps)
    }

    fn chain(&mut self, kind: &str, steps: Vec<Step>) -> String {
        let name = format!("{kind}/{}", self.id);
        self.put(Key::Chain(name.clone()), Value::Steps(steps));
        name
    }

    /// Pods of this node may reach themselves; a host-network pod needs no help for that.
    fn hairpins(&mut self, facts: &Facts) {
        let ips: BTreeSet<Ipv4Addr> = self.pools.local.iter().map(|endpoint| endpoint.ip).collect();
        for ip in ips.into_iter().filter(|ip| *ip != facts.node_ip) {
            self.put(Key::Hairpin(ip), Value::Member);
        }
    }
}

fn balancer_ips(service: &Service) -> BTreeSet<Ipv4Addr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    ingress
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_deref()?.parse().ok())
        .collect()
}

fn parse_range(range: &str) -> Option<(Ipv4Addr, u8)> {
    let (ip, prefix) = range.trim().split_once('/')?;
    Some((ip.parse().ok()?, prefix.parse().ok().filter(|prefix| *prefix <= 32)?))
}
