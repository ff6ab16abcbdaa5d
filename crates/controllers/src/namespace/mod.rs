//! Finalisation of namespaces: everything inside goes first, then the namespace.

mod plan;

use std::time::Duration;

use coxswain_client::{Change, Client, Informer, ObjectKey, Requeue, WorkQueue};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::context::{Context, ignore};
use crate::discovery::{Discovered, discover};
use plan::Remaining;

/// Content that finalizers hold is looked at again after this; pods, which take longest, tell by themselves.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

struct Controller {
    client: Client,
    namespaces: Informer<Namespace>,
}

/// Runs the controller.
pub async fn run(context: &Context) {
    let controller = Controller { client: context.client(), namespaces: context.informer() };
    let pods: Informer<Pod> = context.pods();
    controller.namespaces.synced().await;
    let queue = WorkQueue::new();
    let is_deleting = |namespace: &Namespace| namespace.metadata.deletion_timestamp.is_some();
    controller.namespaces.feed(&queue, move |change| {
        Some(change.object()).filter(|namespace| is_deleting(namespace)).map(|namespace| namespace.name_any())
    });
    let namespaces = controller.namespaces.clone();
    pods.feed(&queue, move |change| {
        let namespace = change.object().namespace().filter(|_| matches!(change, Change::Deleted(_)))?;
        namespaces
            .get(&ObjectKey::cluster(&namespace))
            .filter(|namespace| is_deleting(namespace))
            .map(|_| namespace)
    });
    context.drive("namespace", queue, 2, |name| controller.reconcile(name)).await;
}

impl Controller {
    async fn reconcile(&self, name: String) -> Result<Requeue, kube::Error> {
        let Some(namespace) = self.namespaces.get(&ObjectKey::cluster(&name)) else {
            return Ok(Requeue::OnChange);
        };
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
        if namespace.metadata.deletion_timestamp.is_none()
            || !finalizers.iter().any(|name| name == "kubernetes")
        {
            return Ok(Requeue::OnChange);
        }
        let mut kinds = discover(&self.client).await?;
        kinds.retain(|kind| kind.namespaced && kind.serves(&["list", "deletecollection"]));
        // What runs ends first, while all that it may need is still there (KEP-5080).
        let (pods, others): (Vec<_>, Vec<_>) = kinds.into_iter().partition(is_pods);
        let mut remaining = Remaining::default();
        for kind in &pods {
            self.empty(kind, &name, &mut remaining).await;
        }
        if remaining.is_nothing() {
            for kind in &others {
                self.empty(kind, &name, &mut remaining).await;
            }
        }
        self.tell(&namespace, &remaining).await?;
        if !remaining.is_nothing() {
            return Ok(Requeue::After(LOOK_AGAIN));
        }
        let others: Vec<&String> = finalizers.iter().filter(|name| *name != "kubernetes").collect();
        let body = json!({ "kind": "Namespace", "apiVersion": "v1", "metadata": { "name": name }, "spec": { "finalizers": others } });
        let body = serde_json::to_vec(&body).map_err(kube::Error::SerdeError)?;
        let request = http::Request::put(format!("/api/v1/namespaces/{name}/finalize"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(kube::Error::HttpError)?;
        let finalized = self.client.request::<serde_json::Value>(request).await;
        finalized
            .map(|_| Requeue::OnChange)
            .or_else(|error| ignore(error, &[404]).map(|()| Requeue::OnChange))
    }

    /// Deletes the objects of a kind, and counts what is left.
    async fn empty(&self, kind: &Discovered, namespace: &str, remaining: &mut Remaining) {
        match self.delete_all(kind, namespace).await {
            Ok(left) if left.is_empty() => {}
            Ok(left) => {
                let name = format!("{}.{}", kind.resource.plural, kind.resource.group);
                remaining.objects.insert(name, left.len());
                for finalizer in left.into_iter().flat_map(|meta| meta.finalizers.unwrap_or_default()) {
                    *remaining.held.entry(finalizer).or_default() += 1;
                }
            }
            Err(error) => remaining.failures.push(error.to_string()),
        }
    }

    async fn delete_all(&self, kind: &Discovered, namespace: &str) -> Result<Vec<ObjectMeta>, kube::Error> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &kind.resource);
        if api.list_metadata(&ListParams::default().limit(1)).await?.items.is_empty() {
            return Ok(Vec::new());
        }
        api.delete_collection(&DeleteParams::background(), &ListParams::default()).await?;
        let left = api.list_metadata(&ListParams::default()).await?.items;
        Ok(left.into_iter().map(|object| object.metadata).collect())
    }

    /// Writes the conditions where they differ.
    async fn tell(&self, namespace: &Namespace, remaining: &Remaining) -> Result<(), kube::Error> {
        let status = namespace.status.clone().unwrap_or_default();
        let before = status.conditions.unwrap_or_default();
        let conditions = remaining.conditions(&before, Timestamp::now());
        if conditions == before {
            return Ok(());
        }
        let api: Api<Namespace> = Api::all(self.client.clone());
        let patch = json!({ "metadata": { "uid": namespace.uid() }, "status": { "conditions": conditions } });
        let patched =
            api.patch_status(&namespace.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await;
        patched.map(drop).or_else(|error| ignore(error, &[404, 409]))
    }
}

fn is_pods(kind: &Discovered) -> bool {
    kind.resource.group.is_empty() && kind.resource.plural == "pods"
}
