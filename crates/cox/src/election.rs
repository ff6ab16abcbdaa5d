//! Of several servers on one etcd, one runs the controllers and one the scheduler.

use coxswain_apiserver::ApiServer;
use coxswain_client::{Candidate, InformerFactory};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::in_process;
use crate::node::NodeIdentity;
use crate::server::{CONTROLLER_MANAGER, SCHEDULER};

/// Stands for both elections until `cancel`. Every term begins with caches of its own.
pub fn spawn(
    tasks: &TaskTracker,
    api: &ApiServer,
    node: &NodeIdentity,
    config: coxswain_controllers::Config,
    cancel: &CancellationToken,
) {
    let identity = format!("{}_{:016x}", node.name, rand::random::<u64>());
    let (controllers, scheduler) =
        (in_process(api, CONTROLLER_MANAGER, &[]), in_process(api, SCHEDULER, &[]));
    let manager = Candidate::new(controllers.clone(), "kube-controller-manager", identity.clone());
    tasks.spawn(manager.run(cancel.clone(), move |term| {
        let informers = InformerFactory::new(controllers.clone(), term.clone());
        coxswain_controllers::run(informers, config.clone(), term)
    }));
    let candidate = Candidate::new(scheduler.clone(), "kube-scheduler", identity);
    tasks.spawn(candidate.run(cancel.clone(), move |term| {
        let informers = InformerFactory::new(scheduler.clone(), term.clone());
        coxswain_scheduler::run(informers, term)
    }));
}
