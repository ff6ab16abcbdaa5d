//! The service proxy: connections to a service's addresses go to one of its endpoints, by rules in the kernel.
//!
//! `plan` says what a service needs, `model` holds and compares the entries of all services, `rules` says how an entry is
//! written for the kernel, and `apply` writes what changed in one transaction. Nothing here sees a packet.

mod apply;
mod conntrack;
mod host;
mod model;
mod plan;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use coxswain_client::{InformerFactory, ObjectKey};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use apply::Table;
use conntrack::Flows;
use model::{Changes, Fragment, Ruleset};
use plan::{Facts, plan};

use crate::services::Services;

/// Changes within this time go into one transaction.
const COALESCE: Duration = Duration::from_millis(2);
/// How long a refused transaction waits for the next attempt.
const RETRY: Duration = Duration::from_secs(1);

/// What the proxy needs to know of its node and cluster.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// The node's name.
    pub node_name: String,
    /// The node's address.
    pub node_ip: IpAddr,
    /// The addresses of all pods of the cluster: network and prefix length.
    pub cluster_cidr: (Ipv4Addr, u8),
    /// The addresses of services: network and prefix length.
    pub service_cidr: (Ipv4Addr, u8),
    /// The pod network's bridge.
    pub bridge: String,
}

/// The proxy could not be started, or removed.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Only IPv4 is served.
    #[error("the node's address {0} is not an IPv4 address")]
    NotIpv4(IpAddr),
    /// The kernel refused.
    #[error("{0}: {1}")]
    Netlink(&'static str, nlink::Error),
}

/// Serves services until cancelled. The rules stay then, so that pods go on being served while this process is away.
///
/// # Errors
/// The kernel's tables cannot be opened. Later refusals are logged and tried again.
pub async fn run_proxy(
    factory: Arc<InformerFactory>,
    config: ProxyConfig,
    cancel: CancellationToken,
) -> Result<(), ProxyError> {
    let IpAddr::V4(node_ip) = config.node_ip else { return Err(ProxyError::NotIpv4(config.node_ip)) };
    let table =
        Table::open(config.cluster_cidr).map_err(|error| ProxyError::Netlink("opening nftables", error))?;
    if let Err(error) = host::filter_bridged() {
        tracing::warn!(%error, "bridged packets do not pass through the rules: pods of one node may not reach each other by services");
    }
    let proxy = Proxy {
        table,
        facts: Facts { node_name: config.node_name.clone(), node_ip },
        services: Services::new(&factory),
        ruleset: Ruleset::default(),
        applied: false,
    };
    let route = async {
        if let Err(error) = host::keep_route(config.service_cidr, &config.bridge, &cancel).await {
            tracing::warn!(%error, "services are not reachable from this host without a default route");
        }
    };
    tokio::join!(proxy.run(&cancel), route);
    Ok(())
}

/// Removes the rules.
///
/// # Errors
/// The kernel refused.
pub async fn remove_proxy() -> Result<(), ProxyError> {
    Table::remove().await.map_err(|error| ProxyError::Netlink("removing the rules", error))
}

struct Proxy {
    table: Table,
    facts: Facts,
    services: Services,
    ruleset: Ruleset,
    /// Whether the kernel holds the ruleset.
    applied: bool,
}

impl Proxy {
    async fn run(mut self, cancel: &CancellationToken) {
        if cancel.run_until_cancelled(self.services.synced()).await.is_none() {
            return;
        }
        let mut dirty = BTreeSet::new();
        // The table is made even when there are no services.
        let mut due = Some(Instant::now() + COALESCE);
        loop {
            let wake = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                concerned = self.services.changed() => {
                    let Some(concerned) = concerned else { return };
                    dirty.extend(concerned);
                    due.get_or_insert_with(|| Instant::now() + COALESCE);
                }
                () = wake => {
                    due = self.sync(std::mem::take(&mut dirty)).await.err().map(|error| {
                        tracing::warn!(%error, "writing the rules of services");
                        Instant::now() + RETRY
                    });
                }
            }
        }
    }

    async fn sync(&mut self, dirty: BTreeSet<ObjectKey>) -> nlink::Result<()> {
        let mut changes = Changes::new();
        for key in dirty {
            let service = self.services.service(&key);
            let fragment = service.map_or_else(Fragment::default, |service| {
                plan(&service, &self.services.slices(&key), &self.facts)
            });
            self.ruleset.replace(&key, fragment, &mut changes);
        }
        if self.applied && changes.is_empty() {
            return Ok(());
        }
        // What the kernel holds is unknown at the start and after a refusal.
        let outcome = if std::mem::take(&mut self.applied) {
            self.table.change(&changes).await
        } else {
            self.table.replace(&self.ruleset.additions()).await
        };
        outcome?;
        self.applied = true;
        if let Some(flows) = Flows::after(&changes, &self.ruleset) {
            // The rules are right already; a flow that stays is not worth writing them again.
            if let Err(error) = conntrack::forget(&flows).await {
                tracing::warn!(%error, "forgetting UDP flows to endpoints that are gone");
            }
        }
        Ok(())
    }
}
