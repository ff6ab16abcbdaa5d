//! The embedded container runtime: CRI v1 on a unix socket, containers by libcontainer below one small
//! shim a pod, images from registries and archives as overlay layers.
//!
//! - [`serve`] is the runtime; [`shim_main`] the entry point of its re-executed children.
//! - [`image::ImageStore`] works on the images directly, with or without a running server.
//!
//! The runtime knows nothing of Kubernetes: pods reach it as CRI sandboxes, their network is a
//! [`coxswain_cri::SandboxNetwork`].

// Namespaces, forks, ioctls and descriptor passing have no safe interface; each block says why it holds.
#![allow(unsafe_code)]

mod allocator;
mod cgroup;
mod container;
mod error;
mod exec;
mod files;
pub mod image;
mod limits;
mod records;
mod runtime;
mod sandbox;
mod server;
mod shim;
mod snapshot;
mod spec;
mod stats;
mod streaming;

pub use allocator::Allocator;
pub use limits::raise_open_files;
pub use runtime::RuntimeConfig;
pub use server::{ServeError, serve};
pub use shim::shim_main;
