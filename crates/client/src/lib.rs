//! How components live: shared informers, work queues, the one reconcile driver, leader election and the event recorder.
//!
//! Scheduler, controllers, kubelet, service proxy and DNS hold a [`kube::Client`] and nothing else of the cluster.
//! Which transport the client uses (HTTPS or the in-process API server) is not known here.

mod decode;
pub mod informer;
pub mod leader;
mod lean;
pub mod queue;
pub mod recorder;

pub use informer::{Change, Informer, InformerFactory, ObjectKey};
pub use kube::Client;
pub use leader::Candidate;
pub use lean::Outline;
pub use queue::{Requeue, WorkQueue, drive};
pub use recorder::{EventType, Recorder};
