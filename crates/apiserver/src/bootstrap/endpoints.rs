//! The endpoints of the service `kubernetes`: this server, or all that share the store.
//!
//! Each of those writes a record of its own now and then, under its address. Clocks are not compared: a server whose record has
//! not moved for a while, as seen from here, is gone.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use coxswain_meta::Status;
use coxswain_meta::json::{Value, json};
use coxswain_store::{CommitError, Expect, Key, Revision};
use tokio::time::Instant;

use super::{create, find, user};
use crate::Server;
use crate::handler::{Change, FieldManager, Part};
use crate::object::{Attributes, encode};

/// The collection of the servers' records, as upstream calls it.
const COLLECTION: &str = "masterleases";
/// Upstream's periods.
const PERIOD: Duration = Duration::from_secs(10);
const LIFE: Duration = Duration::from_secs(15);

type Address = (IpAddr, u16);

fn key((address, port): Address) -> Key {
    Key::new(COLLECTION, format!("{address}/{port}"))
}

/// The servers that have records.
fn recorded(server: &Server) -> Vec<(Address, Revision)> {
    let records = server.store.collection(COLLECTION).list("");
    let address = |name: &str| {
        let (address, port) = name.rsplit_once('/')?;
        Some((address.parse().ok()?, port.parse().ok()?))
    };
    records.iter().filter_map(|record| Some((address(&record.name)?, record.revision))).collect()
}

/// Says that this server is there, and sees to it that the endpoints are all that are.
pub async fn write(server: &Arc<Server>) -> Result<(), Status> {
    let mut addresses = vec![server.config.advertise];
    if server.store.is_shared() {
        renew(server).await;
        addresses.extend(recorded(server).into_iter().map(|(address, _)| address));
    }
    publish(server, addresses).await
}

/// Keeps the endpoints right where servers come and go, until this one stops; it takes itself out then.
pub async fn keep(server: Arc<Server>) {
    if !server.store.is_shared() {
        return;
    }
    let mut period = tokio::time::interval(PERIOD);
    let mut seen: HashMap<Address, (Revision, Instant)> = HashMap::new();
    while server.shutdown.run_until_cancelled(period.tick()).await.is_some() {
        let now = Instant::now();
        let records = recorded(&server);
        seen.retain(|address, _| records.iter().any(|(known, _)| known == address));
        for (address, revision) in records {
            let since = match seen.get(&address) {
                Some((before, since)) if *before == revision => *since,
                _ => now,
            };
            seen.insert(address, (revision, since));
            if now.duration_since(since) > LIFE && address != server.config.advertise {
                // Another server may be faster.
                let _ = server.store.delete(key(address), revision).await;
            }
        }
        if let Err(status) = write(&server).await {
            tracing::warn!(%status, "the endpoints of the API servers were not written");
        }
    }
    if let Some(own) = server.store.get(&key(server.config.advertise)) {
        let _ = server.store.delete(key(server.config.advertise), own.revision).await;
        let _ = publish(&server, recorded(&server).into_iter().map(|(address, _)| address).collect()).await;
    }
}

async fn renew(server: &Server) {
    let key = key(server.config.advertise);
    let expect = server.store.get(&key).map_or(Expect::Absent, |record| Expect::At(record.revision));
    let record =
        encode(&json!({ "apiVersion": "v1", "kind": "Endpoints", "metadata": { "name": &*key.name } }));
    if let Err(CommitError::Unavailable(error)) =
        server.store.put(key, expect, record, Attributes::default()).await
    {
        tracing::warn!(error, "this server's record was not written");
    }
}

/// Writes the endpoints where they are others.
async fn publish(server: &Arc<Server>, addresses: Vec<Address>) -> Result<(), Status> {
    for (group, plural, object) in objects(addresses) {
        let Some(kind) = find(group, plural) else { continue };
        let user = user();
        create(server, &kind, &user, object.clone()).await?;
        let change = Change {
            kind: &kind,
            user: &user,
            namespace: "default",
            name: "kubernetes",
            part: Part::Main,
            dry_run: false,
            manager: Some(FieldManager::server()),
        };
        let current = |old: &Value| {
            let mut new = old.clone();
            if let Some(metadata) = new["metadata"].as_object_mut() {
                metadata.remove("resourceVersion");
            }
            for field in ["subsets", "endpoints", "ports"] {
                if object.get(field).is_some() {
                    new[field] = object[field].clone();
                }
            }
            Ok(new)
        };
        server.update(&change, current).await?;
    }
    Ok(())
}

/// The endpoints, and the slice of those with the first port; nothing without servers that others reach.
fn objects(mut addresses: Vec<Address>) -> Vec<(&'static str, &'static str, Value)> {
    addresses.retain(|(address, _)| !address.is_loopback());
    if addresses.is_empty() {
        return Vec::new();
    }
    addresses.sort_unstable();
    addresses.dedup();
    let mut by_port: BTreeMap<u16, Vec<IpAddr>> = BTreeMap::new();
    addresses.into_iter().for_each(|(address, port)| by_port.entry(port).or_default().push(address));
    let ports = |port: u16| json!([{ "name": "https", "port": port, "protocol": "TCP" }]);
    let subset = |(port, addresses): (&u16, &Vec<IpAddr>)| {
        let addresses: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip.to_string() })).collect();
        json!({ "addresses": addresses, "ports": ports(*port) })
    };
    let subsets: Vec<Value> = by_port.iter().map(subset).collect();
    let (port, first) = by_port.first_key_value().map_or((0, &[][..]), |(port, first)| (*port, first));
    let ready = |ip: &IpAddr| json!({ "addresses": [ip.to_string()], "conditions": { "ready": true } });
    let endpoints: Vec<Value> = first.iter().map(ready).collect();
    let metadata = |labels: Value| json!({ "name": "kubernetes", "namespace": "default", "labels": labels });
    let unmirrored = metadata(json!({ "endpointslice.kubernetes.io/skip-mirror": "true" }));
    let of_service = metadata(json!({ "kubernetes.io/service-name": "kubernetes" }));
    let slice = json!({ "metadata": of_service, "addressType": "IPv4", "ports": ports(port), "endpoints": endpoints });
    vec![
        ("", "endpoints", json!({ "metadata": unmirrored, "subsets": subsets })),
        ("discovery.k8s.io", "endpointslices", slice),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_listed_once_and_in_order() {
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let servers = vec![(address(2), 6443), (address(1), 6443), (address(2), 6443), (address(2), 7443)];
        let written = objects(servers);
        let [(.., endpoints), (.., slice)] = written.as_slice() else { panic!("{written:?}") };
        let ips = |subset: &Value| {
            subset["addresses"].as_array().unwrap().iter().map(|at| at["ip"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(ips(&endpoints["subsets"][0]), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(ips(&endpoints["subsets"][1]), ["10.0.0.2"]);
        assert_eq!(slice["endpoints"].as_array().unwrap().len(), 2);
        assert_eq!(slice["ports"][0]["port"], 6443);
    }

    #[test]
    fn a_server_that_only_its_own_machine_reaches_is_not_listed() {
        let (own, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([10, 0, 0, 1]));
        assert!(objects(vec![(own, 6443)]).is_empty());
        let [(.., endpoints), _] = &objects(vec![(own, 6443), (other, 6443)])[..] else { panic!("not two") };
        assert_eq!(endpoints["subsets"][0]["addresses"], json!([{ "ip": "10.0.0.1" }]));
    }
}
