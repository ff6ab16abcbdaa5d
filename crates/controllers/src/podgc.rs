//! Pods whose node is gone: nobody else would ever end them.

use coxswain_client::{Client, Informer, ObjectKey, Requeue, WorkQueue};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};

use crate::context::{Context, ignore};
use crate::pods;

struct Controller {
    client: Client,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
}

/// Runs the controller.
pub async fn run(context: &Context) {
    let controller = Controller { client: context.client(), pods: context.pods(), nodes: context.informer() };
    controller.pods.synced().await;
    controller.nodes.synced().await;
    let queue = WorkQueue::new();
    controller.pods.feed(&queue, |change| {
        let pod = change.object();
        node_of(pod).map(|_| ObjectKey::of(&**pod))
    });
    let pods = controller.pods.clone();
    controller.nodes.feed(&queue, move |change| {
        let gone = matches!(change, coxswain_client::Change::Deleted(_)).then(|| change.object().name_any());
        let pods = gone.map(|node| {
            pods.list()
                .into_iter()
                .filter(|pod| node_of(pod) == Some(&node))
                .map(|pod| ObjectKey::of(&*pod))
                .collect::<Vec<_>>()
        });
        pods.unwrap_or_default()
    });
    context.drive("podgc", queue, 1, |key| controller.reconcile(key)).await;
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, kube::Error> {
        let Some(pod) = self.pods.get(&key) else { return Ok(Requeue::OnChange) };
        let Some(node) = node_of(&pod) else { return Ok(Requeue::OnChange) };
        if self.nodes.get(&ObjectKey::cluster(node)).is_some() {
            return Ok(Requeue::OnChange);
        }
        // The cache may lag behind a node that has just come: ask.
        if Api::<Node>::all(self.client.clone()).get_opt(node).await?.is_some() {
            return Ok(Requeue::OnChange);
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        if !pods::has_ended(&pod) {
            let mut patch = pods::disruption(&pod, "DeletionByPodGC", "PodGC: node no longer exists");
            patch["status"]["phase"] = "Failed".into();
            let patched =
                api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
            patched.map(drop).or_else(|error| ignore(error, &[404, 409]))?;
        }
        let deleted = api.delete(&key.name, &DeleteParams::default().grace_period(0)).await;
        deleted.map(|_| Requeue::OnChange).or_else(|error| ignore(error, &[404]).map(|()| Requeue::OnChange))
    }
}
