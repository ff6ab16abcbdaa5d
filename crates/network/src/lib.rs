//! The cluster's network on one node: pod interfaces, service proxy and cluster DNS.
//!
//! Each part has a pure `plan` that takes objects and returns rules or records, and a thin shell that applies them.

mod pods;

pub use pods::{PodNetwork, PodNetworkConfig, PodNetworkError};
