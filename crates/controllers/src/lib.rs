//! The controllers: one folder each, a pure `plan` that decides and a shell that feeds it and acts.
//!
//! Every reconcile gets a key, reads the shared caches and is idempotent. Nothing polls: queues are fed by informers.

mod bootstraptoken;
mod certificates;
mod clusterrole;
mod context;
mod cronjob;
mod daemonset;
mod deployment;
mod discovery;
mod disruption;
mod endpointslice;
mod expectations;
mod garbagecollector;
mod history;
mod job;
mod namespace;
mod node;
mod owner;
mod podcontrol;
mod podgc;
mod pods;
mod replicaset;
mod resourcequota;
mod serviceaccount;
mod statefulset;
mod volumeprotection;

use std::sync::Arc;

use coxswain_client::InformerFactory;
use tokio_util::sync::CancellationToken;

pub use certificates::{Authority, AuthorityError};
pub use context::Config;
use context::Context;

/// Runs every controller until `cancel`.
pub async fn run(factory: Arc<InformerFactory>, config: Config, cancel: CancellationToken) {
    let context = Context::new(factory, config, cancel);
    tokio::join!(
        replicaset::run_replica_sets(&context),
        replicaset::run_replication_controllers(&context),
        deployment::run(&context),
        job::run(&context),
        statefulset::run(&context),
        daemonset::run(&context),
        cronjob::run(&context),
        disruption::run(&context),
        endpointslice::run(&context),
        namespace::run(&context),
        serviceaccount::run(&context),
        garbagecollector::run(&context),
        node::run_lifecycle(&context),
        node::run_ipam(&context),
        podgc::run(&context),
        resourcequota::run(&context),
        volumeprotection::run_claims(&context),
        volumeprotection::run_volumes(&context),
        volumeprotection::run_classes(&context),
        clusterrole::run(&context),
        certificates::run(&context),
        bootstraptoken::run(&context),
    );
}
