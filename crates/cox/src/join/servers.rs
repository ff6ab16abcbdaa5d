//! Where the cluster's API servers are: what the agent was told, and what the cluster has said of itself since. A connection
//! goes to the first that takes it; whichever it is proves to be `kubernetes`, a name in every server's certificate.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::vec;

use coxswain_client::InformerFactory;
use http::Uri;
use hyper_util::client::legacy::connect::dns::Name;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tower::Service;

use crate::files;

/// What every server is asked as.
pub const NAME: &str = "https://kubernetes";
const HTTPS: u16 = 443;

/// The servers, as a resolver of names: every name is theirs.
#[derive(Clone)]
pub struct Servers(Arc<Known>);

struct Known {
    /// Host and port, as the agent was told.
    told: (String, u16),
    learned: RwLock<BTreeSet<SocketAddr>>,
    /// Keeps what was learned, for a start while the server that was told is away.
    file: PathBuf,
}

impl Servers {
    /// The server of a URL, and those that `file` remembers.
    pub fn new(server: &Uri, file: &Path) -> Self {
        let told = (server.host().unwrap_or_default().to_owned(), server.port_u16().unwrap_or(HTTPS));
        let remembered = std::fs::read_to_string(file).unwrap_or_default();
        let learned = remembered.lines().filter_map(|line| line.parse().ok()).collect();
        Self(Arc::new(Known { told, learned: RwLock::new(learned), file: file.to_owned() }))
    }

    /// Learns of servers that come and go, for as long as it is polled.
    pub async fn follow(&self, informers: &InformerFactory) {
        let slices = informers.informer::<EndpointSlice>();
        let mut changes = slices.subscribe();
        while let Some(change) = changes.recv().await {
            let metadata = &change.object().metadata;
            if (metadata.namespace.as_deref(), metadata.name.as_deref())
                == (Some("default"), Some("kubernetes"))
            {
                self.learn(addresses(change.object()));
            }
        }
    }

    fn learn(&self, servers: BTreeSet<SocketAddr>) {
        let mut learned = self.0.learned.write().unwrap_or_else(PoisonError::into_inner);
        if servers.is_empty() || *learned == servers {
            return;
        }
        let lines: String = servers.iter().map(|server| format!("{server}\n")).collect();
        if let Err(error) = files::write_private(&self.0.file, lines.as_bytes()) {
            tracing::warn!(%error, "the servers' addresses are not kept");
        }
        *learned = servers;
    }
}

fn addresses(slice: &EndpointSlice) -> BTreeSet<SocketAddr> {
    let ports: Vec<u16> =
        slice.ports.iter().flatten().filter_map(|port| port.port?.try_into().ok()).collect();
    let hosts = slice.endpoints.iter().flatten().flat_map(|endpoint| &endpoint.addresses);
    let hosts: Vec<IpAddr> = hosts.filter_map(|address| address.parse().ok()).collect();
    hosts.iter().flat_map(|host| ports.iter().map(|port| SocketAddr::new(*host, *port))).collect()
}

impl Service<Name> for Servers {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Name) -> Self::Future {
        let known = self.0.clone();
        Box::pin(async move {
            let learned = known.learned.read().unwrap_or_else(PoisonError::into_inner).clone();
            let told = tokio::net::lookup_host((known.told.0.as_str(), known.told.1)).await;
            let told = match told {
                Err(error) if learned.is_empty() => return Err(error),
                told => told.into_iter().flatten(),
            };
            // What was told comes first, so that several agents may be told different servers.
            let mut all: Vec<SocketAddr> = told.collect();
            let others: Vec<SocketAddr> =
                learned.into_iter().filter(|server| !all.contains(server)).collect();
            all.extend(others);
            Ok(all.into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_cluster_says_outlives_what_was_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("servers");
        let of = |server: &str| Servers::new(&server.parse().unwrap(), &file);
        let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["192.0.2.1"]}, {"addresses": ["192.0.2.2"]}],
            "ports": [{"port": 6443}],
        }))
        .unwrap();
        of("https://192.0.2.1:6443").learn(addresses(&slice));
        let resolved = of("https://nowhere.invalid:6443").call("kubernetes".parse().unwrap()).await.unwrap();
        assert_eq!(
            resolved.map(|address| address.to_string()).collect::<Vec<_>>(),
            ["192.0.2.1:6443", "192.0.2.2:6443"]
        );
    }
}
