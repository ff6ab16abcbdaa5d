//! The shim: one small process a pod. It is the pause process (it holds the pod's namespaces), starts
//! containers, reaps them, writes their logs, keeps their exit codes on disk and tells the server.
//!
//! It outlives the server. It is single-threaded: libcontainer forks and changes process-wide state, so
//! it runs in a short-lived re-executed helper whose children the shim inherits as their subreaper.

pub(crate) mod client;
mod daemon;
mod helper;
mod logs;
mod namespaces;
mod process;
pub(crate) mod protocol;
mod run;

pub(crate) use process::{resize, set_nonblocking};
pub use run::shim_main;
