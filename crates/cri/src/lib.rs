//! The seam between the kubelet and a container runtime: the CRI v1 bindings, and the trait through
//! which a runtime asks for a pod's network. This crate holds contracts only, never behaviour.

mod network;

pub use network::{NetworkError, SandboxNetwork, SandboxPort, SandboxRef, TransportProtocol};

/// CRI v1 (`runtime.v1`) messages, clients and servers, generated from `proto/cri.proto`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}
