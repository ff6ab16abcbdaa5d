//! The cluster's network on one node: pod interfaces, service proxy and cluster DNS.
//!
//! Each part has a pure `plan` that takes objects and returns rules or records, and a thin shell that applies them.

mod dns;
mod pods;
mod proxy;
mod services;
#[cfg(test)]
mod testing;

pub use dns::{DnsConfig, DnsError, run_dns};
pub use pods::{PodNetwork, PodNetworkConfig, PodNetworkError};
pub use proxy::{ProxyConfig, ProxyError, remove_proxy, run_proxy};
