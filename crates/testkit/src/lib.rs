//! A cluster for tests: the `cox` binary in namespaces of its own, with clients that wait on conditions.
//!
//! [`Cluster`] starts the server, restarts it, kills it, runs `kubectl` against it, and leaves no trace behind. It knows
//! the product by its command line and its API only, never by its code.

mod api;
mod cluster;
mod etcd;
mod http;
mod image;
mod isolation;
mod process;
mod wait;

pub use api::{Api, Watched};
pub use cluster::{Agent, Cluster, NODE_IP, NODE_NAME, Options, Ran};
pub use etcd::{Etcd, EtcdOptions, etcd_binary};
pub use http::{HttpError, Request, Response};
pub use image::{BUSYBOX, busybox_archive};
pub use isolation::Isolation;
pub use process::Process;
pub use wait::eventually;

/// Whether tests can make clusters with pods here; they make namespaces and cgroups. Says so where they cannot.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}
