//! Cluster IPs and node ports: given out under a lock that lasts until the service is written. Where several servers share the
//! store, the write also moves a record that all of them move: of two that chose at once, one has to choose again.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use coxswain_meta::Status;
use coxswain_meta::field::{ErrorList, FieldError, Path};
use coxswain_meta::json::{Map, Value, json};
use coxswain_store::{Expect, Key, Write};
use rand::Rng;
use tokio::sync::MutexGuard;

use crate::Server;
use crate::object::{Attributes, Meta, encode};
use crate::resource::Resource;

/// The record that every allocation of a shared store moves: its collection and name.
const RECORD: (&str, &str) = ("ranges", "services");

/// The addresses and ports that services may have.
#[derive(Clone, Debug)]
pub struct ServiceRange {
    /// The first address of the range; a multiple of its size.
    pub network: Ipv4Addr,
    /// Its prefix length.
    pub prefix_length: u8,
    /// Node ports.
    pub node_ports: RangeInclusive<u16>,
}

impl Default for ServiceRange {
    fn default() -> Self {
        Self { network: Ipv4Addr::new(10, 43, 0, 0), prefix_length: 16, node_ports: 30000..=32767 }
    }
}

impl ServiceRange {
    fn size(&self) -> u32 {
        1 << (32 - self.prefix_length)
    }

    fn address(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + offset)
    }

    /// The address of the service `kubernetes`.
    pub fn kubernetes(&self) -> Ipv4Addr {
        self.address(1)
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        (1..self.size() - 1).contains(&u32::from(address).wrapping_sub(u32::from(self.network)))
    }

    /// The first part of a range is left to addresses that users choose (KEP-3070).
    fn reserved(&self) -> u32 {
        (self.size() / 16).clamp(16, 256)
    }
}

/// The right to give out addresses; nothing for kinds that have none.
pub struct Allocation<'a> {
    server: &'a Server,
    guard: Option<MutexGuard<'a, ()>>,
    /// What the record of the allocations was before anything was looked at.
    before: Option<Expect>,
}

/// Takes the lock where a kind needs it. Hold the result until the object is written.
pub async fn lock<'a>(server: &'a Server, kind: &Resource) -> Allocation<'a> {
    if kind.plural() != "services" || !kind.group().is_empty() {
        return Allocation { server, guard: None, before: None };
    }
    let guard = Some(server.allocating.lock().await);
    let before = server.store.is_shared().then(|| {
        let record = server.store.get(&Key::new(RECORD.0, RECORD.1));
        record.map_or(Expect::Absent, |record| Expect::At(record.revision))
    });
    Allocation { server, guard, before }
}

impl Allocation<'_> {
    /// What has to be written with the object, so that no other server gives out the same at once.
    pub fn claim(&self) -> Option<Write<Attributes>> {
        let expect = self.before?;
        let record =
            json!({ "apiVersion": "v1", "kind": "RangeAllocation", "metadata": { "name": RECORD.1 } });
        let value = Some((encode(&record), Attributes::default()));
        Some(Write { key: Key::new(RECORD.0, RECORD.1), expect, value })
    }

    /// Gives a new service what it needs.
    pub fn create(&self, service: &mut Value) -> Result<(), Status> {
        self.assign(service, None)
    }

    /// Gives a changed service what it newly needs, and lets it keep what it has.
    pub fn update(&self, service: &mut Value, old: &Value) -> Result<(), Status> {
        self.assign(service, Some(old))
    }

    fn assign(&self, service: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        if self.guard.is_none() || !service["spec"].is_object() {
            return Ok(());
        }
        let name = service.name().to_owned();
        let others: Vec<Value> = self.server.read_all("", "services", "");
        let same = |other: &Value| other.name() == name && other.namespace() == service.namespace();
        // What is created anew finds even the ports of its own name taken.
        let others: Vec<&Value> = others.iter().filter(|other| old.is_none() || !same(other)).collect();
        let mut errors = ErrorList::new();
        let range = &self.server.config.services;
        assign_ip(range, service, old, &others, &mut errors);
        assign_ports(range, service, old, &others, &mut errors);
        if errors.is_empty() { Ok(()) } else { Err(Status::invalid("", "Service", &name, &errors)) }
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn assign_ip(
    range: &ServiceRange,
    service: &mut Value,
    old: Option<&Value>,
    others: &[&Value],
    errors: &mut ErrorList,
) {
    let spec = &mut service["spec"];
    if text(spec, "type") == "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if let Some(spec) = spec.as_object_mut() {
                spec.remove(field);
            }
        }
        return;
    }
    if text(spec, "clusterIP").is_empty()
        && let Some(kept) = old.map(|old| text(&old["spec"], "clusterIP")).filter(|ip| !ip.is_empty())
    {
        spec["clusterIP"] = kept.into();
    }
    if text(spec, "clusterIP").is_empty()
        && let Some(first) = spec["clusterIPs"][0].as_str().map(str::to_owned)
    {
        spec["clusterIP"] = first.into();
    }
    let taken: HashSet<&str> = others.iter().map(|other| text(&other["spec"], "clusterIP")).collect();
    let path = Path::new("spec").child("clusterIPs");
    match text(spec, "clusterIP") {
        "None" => {}
        "" => match free_ip(range, &taken) {
            Some(address) => spec["clusterIP"] = address.to_string().into(),
            None => errors.push(FieldError::internal(&path, "failed to allocate a serviceIP: range is full")),
        },
        wanted => {
            let fails = |why: &str| {
                FieldError::invalid(&path, json!([wanted]), format!("failed to allocate IP {wanted}: {why}"))
            };
            match wanted.parse::<Ipv4Addr>() {
                Ok(address) if !range.contains(address) => errors.push(fails(&format!(
                    "the provided IP ({wanted}) is not in the valid range. The range of valid IPs is {}/{}",
                    range.network, range.prefix_length
                ))),
                Ok(_) if taken.contains(wanted) => errors.push(fails("provided IP is already allocated")),
                // What is no address is named by validation.
                _ => {}
            }
        }
    }
    if !spec["clusterIPs"].is_array()
        || old.is_some_and(|old| {
            old["spec"]["clusterIP"] != spec["clusterIP"] && old["spec"]["clusterIPs"] == spec["clusterIPs"]
        })
    {
        spec["clusterIPs"] = json!([spec["clusterIP"]]);
    }
    // Who has no address and chooses no pods may be of all families.
    let anyone = spec["clusterIP"] == "None" && spec["selector"].as_object().is_none_or(Map::is_empty);
    let (policy, families) = match anyone && spec["ipFamilies"].as_array().is_none_or(|f| f.len() != 1) {
        true => ("RequireDualStack", json!(["IPv4", "IPv6"])),
        false => ("SingleStack", json!(["IPv4"])),
    };
    if text(spec, "ipFamilyPolicy").is_empty() {
        spec["ipFamilyPolicy"] = policy.into();
    }
    if !spec["ipFamilies"].is_array() {
        spec["ipFamilies"] = families;
    }
}

fn free_ip(range: &ServiceRange, taken: &HashSet<&str>) -> Option<Ipv4Addr> {
    let (reserved, size) = (range.reserved(), range.size());
    let free = |offset: &u32| !taken.contains(range.address(*offset).to_string().as_str());
    let start = rand::rng().random_range(reserved..size - 1);
    let offsets = (start..size - 1).chain(reserved..start).chain(2..reserved);
    offsets.into_iter().find(free).map(|offset| range.address(offset))
}

const OUT_OF_RANGE: &str = "provided port is not in the valid range. The range of valid ports is";

fn free_port(range: &ServiceRange, taken: &HashSet<u64>) -> Option<u64> {
    let (first, last) = (u64::from(*range.node_ports.start()), u64::from(*range.node_ports.end()));
    let start = rand::rng().random_range(first..=last);
    (start..=last).chain(first..start).find(|port| !taken.contains(port))
}

fn assign_ports(
    range: &ServiceRange,
    service: &mut Value,
    old: Option<&Value>,
    others: &[&Value],
    errors: &mut ErrorList,
) {
    let spec = &mut service["spec"];
    let kind = text(spec, "type").to_owned();
    let wants = match kind.as_str() {
        "NodePort" => true,
        "LoadBalancer" => spec["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    };
    let node_port = |port: &Value| port["nodePort"].as_u64().unwrap_or(0);
    let mut taken: HashSet<u64> = others
        .iter()
        .flat_map(|other| other["spec"]["ports"].as_array().into_iter().flatten())
        .map(node_port)
        .collect();
    // A port of several protocols has one node port.
    let mut given: Vec<(Value, u64)> = Vec::new();
    let requested: Vec<(Value, u64)> = spec["ports"].as_array().map_or_else(Vec::new, |ports| {
        ports.iter().map(|port| (port["port"].clone(), node_port(port))).filter(|(_, n)| *n > 0).collect()
    });
    let of = |known: &[(Value, u64)], port: &Value| {
        known.iter().find(|(number, _)| *number == port["port"]).map(|(_, node_port)| *node_port)
    };
    let old_ports: Vec<Value> =
        old.and_then(|old| old["spec"]["ports"].as_array().cloned()).unwrap_or_default();
    let had_ports = old.is_some_and(|old| matches!(text(&old["spec"], "type"), "NodePort" | "LoadBalancer"));
    let path = Path::new("spec").child("ports");
    for (at, port) in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
        let mut number = node_port(port);
        let same = old_ports
            .iter()
            .find(|other| other["port"] == port["port"] && other["protocol"] == port["protocol"]);
        if !wants && kind != "LoadBalancer" {
            // A type without node ports gives up those it was given.
            if had_ports
                && same.is_some_and(|same| same["nodePort"] == port["nodePort"])
                && let Some(port) = port.as_object_mut()
            {
                port.remove("nodePort");
            }
            continue;
        }
        if number == 0
            && let Some(kept) = same.and_then(|same| same["nodePort"].as_u64()).filter(|kept| *kept > 0)
        {
            number = kept;
        }
        let sibling = of(&given, port);
        if number == 0 && wants && old.is_none() {
            number = sibling.or_else(|| of(&requested, port)).unwrap_or(0);
        }
        let path = path.index(at).child("nodePort");
        let bounds = u64::from(*range.node_ports.start())..=u64::from(*range.node_ports.end());
        if number == 0 && wants {
            match free_port(range, &taken) {
                Some(free) => number = free,
                None => {
                    errors.push(FieldError::internal(&path, "failed to allocate a nodePort: range is full"))
                }
            }
        } else if number > 0 && !bounds.contains(&number) {
            let (first, last) = bounds.into_inner();
            let why = format!("{OUT_OF_RANGE} {first}-{last}");
            errors.push(FieldError::invalid(&path, number, why));
        } else if number > 0 && sibling != Some(number) && taken.contains(&number) {
            errors.push(FieldError::invalid(&path, number, "provided port is already allocated"));
        }
        if number > 0 {
            port["nodePort"] = number.into();
            taken.insert(number);
            given.push((port["port"].clone(), number));
        }
    }
}
