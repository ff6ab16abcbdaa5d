//! What every controller of pods does with them: claims them, makes them, deletes them, and remembers what it asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use coxswain_client::{Change, Client, EventType, Informer, ObjectKey, Recorder};
use coxswain_meta::json::to_value;
use coxswain_meta::labels::Selector;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::context::{Context, ignore, message, namespace_terminates};
use crate::expectations::Expectations;
use crate::owner::{self, Claim, claim, controller_of};

/// Requests under way at a time.
const PARALLEL: usize = 16;

/// A kind that owns pods.
pub trait Owner:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + DeserializeOwned
    + std::fmt::Debug
    + Send
    + Sync
    + 'static
{
}

impl<K> Owner for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static
{
}

/// The selector that a spec holds; one that cannot be read selects nothing.
pub fn selector_of(selector: &LabelSelector) -> Selector {
    let value = to_value(selector).ok();
    value.and_then(|value| Selector::from_label_selector(&value).ok()).unwrap_or_else(Selector::nothing)
}

/// A pod as a template says, controlled by `owner`; the name is for the caller to give.
pub fn pod_of<K: Owner>(owner: &K, template: PodTemplateSpec) -> Pod {
    let metadata = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            labels: metadata.labels,
            annotations: metadata.annotations,
            finalizers: metadata.finalizers,
            owner_references: Some(vec![owner::controller_ref(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// One controller's dealings with pods.
pub struct PodControl {
    pub client: Client,
    pub pods: Informer<Pod>,
    pub expectations: Expectations,
    pub recorder: Recorder,
}

impl PodControl {
    pub fn new(context: &Context, component: &str) -> Self {
        Self {
            client: context.client(),
            pods: context.pods(),
            expectations: Expectations::default(),
            recorder: context.recorder(component),
        }
    }

    /// The pods of a namespace.
    pub fn api(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The owners that a change of a pod concerns; also where expectations are met.
    pub fn owners_of<K: Owner>(
        &self,
        owners: &Informer<K>,
        change: &Change<Pod>,
        selector: impl Fn(&K) -> Selector,
    ) -> Vec<ObjectKey> {
        let key_of = |pod: &Pod| {
            let owner = controller_of(&pod.metadata).filter(|owner| owner.kind == K::kind(&()))?;
            Some(ObjectKey::new(pod.namespace().unwrap_or_default(), &owner.name))
        };
        let pod = change.object();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut keys: Vec<ObjectKey> = key_of(pod).into_iter().collect();
        if let Change::Updated { old, .. } = change {
            keys.extend(key_of(old).filter(|key| !keys.contains(key)));
        }
        for key in &keys {
            match change {
                Change::Deleted(_) => self.expectations.saw_deletion(key, uid),
                _ if pod.metadata.deletion_timestamp.is_some() => self.expectations.saw_deletion(key, uid),
                _ => self.expectations.saw_creation(key, uid),
            }
        }
        if keys.is_empty()
            && pod.metadata.deletion_timestamp.is_none()
            && controller_of(&pod.metadata).is_none()
        {
            let labels = pod.metadata.labels.clone().unwrap_or_default();
            let owners = owners.in_namespace(&pod.namespace().unwrap_or_default()).into_iter();
            let selecting = owners.filter(|owner| selector(owner).matches(&labels));
            keys.extend(selecting.map(|owner| ObjectKey::of(&*owner)));
        }
        keys
    }

    /// The pods of an owner among the `candidates`, after adopting and releasing. A `finalizer` comes and goes with ownership.
    pub async fn claim<K: Owner>(
        &self,
        owner: &K,
        selector: &Selector,
        finalizer: Option<&str>,
        candidate: impl Fn(&Pod) -> bool,
    ) -> Result<Vec<Arc<Pod>>, kube::Error> {
        let (uid, namespace) = (owner.uid().unwrap_or_default(), owner.namespace().unwrap_or_default());
        let deleting = owner.meta().deletion_timestamp.is_some();
        let api = self.api(&namespace);
        let mut may_adopt = None;
        let mut claimed = Vec::new();
        for pod in self.pods.in_namespace(&namespace).into_iter().filter(|pod| candidate(pod)) {
            let selected = selector.matches(pod.metadata.labels.as_ref().unwrap_or(&BTreeMap::new()));
            let mut patch = match claim(&pod.metadata, &uid, deleting, selected) {
                Claim::Keep => {
                    claimed.push(pod);
                    continue;
                }
                Claim::Ignore => continue,
                Claim::Adopt => {
                    // The cache may not know yet that the owner is going, which is why its pods are orphans.
                    let may = match may_adopt {
                        Some(may) => may,
                        None => self.is_alive(owner).await?,
                    };
                    may_adopt = Some(may);
                    if !may {
                        continue;
                    }
                    owner::adopt_patch(&pod.metadata, &owner::controller_ref(owner))
                }
                Claim::Release => owner::release_patch(&pod.metadata, &uid),
            };
            if let Some(finalizer) = finalizer {
                let adopts = !owner::is_controlled_by(&pod.metadata, &uid);
                patch["metadata"]["finalizers"] =
                    owner::with_finalizer(&pod.metadata, finalizer, adopts).into();
            }
            let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
            match api.patch(&pod.name_any(), &params, &patch).await {
                Ok(pod) if owner::is_controlled_by(&pod.metadata, &uid) => claimed.push(Arc::new(pod)),
                Ok(_) => {}
                Err(error) => ignore(error, &[404, 422])?,
            }
        }
        Ok(claimed)
    }

    /// Whether the server still has this owner, and is not deleting it.
    pub async fn is_alive<K: Owner>(&self, owner: &K) -> Result<bool, kube::Error> {
        let api: Api<K> = Api::namespaced(self.client.clone(), &owner.namespace().unwrap_or_default());
        let found = api.get_opt(&owner.name_any()).await?;
        Ok(found.is_some_and(|found| {
            found.meta().uid == owner.meta().uid && found.meta().deletion_timestamp.is_none()
        }))
    }

    /// Makes pods, doubling the number at a time, so that a refusal costs few requests. How many were made, and the first
    /// failure.
    pub async fn create<K: Owner>(
        &self,
        owner: &K,
        pods: impl IntoIterator<Item = Pod>,
    ) -> (usize, Result<(), kube::Error>) {
        let key = ObjectKey::of(owner);
        let (api, params) = (self.api(&key.namespace), PostParams::default());
        let (mut pods, mut made, mut batch) = (pods.into_iter().peekable(), 0, 1);
        while pods.peek().is_some() {
            let requests = pods.by_ref().take(batch).map(|pod| {
                let (api, params) = (&api, &params);
                async move { api.create(params, &pod).await }
            });
            let requests: Vec<_> = requests.collect();
            let results: Vec<_> = stream::iter(requests).buffer_unordered(PARALLEL).collect().await;
            let mut failure = None;
            for result in results {
                match result {
                    Ok(pod) => {
                        made += 1;
                        self.made(owner, &key, &pod);
                    }
                    Err(error) => failure = Some(error),
                }
            }
            match failure {
                // Nothing can be made in a namespace that ends, and nobody has to be told.
                Some(error) if namespace_terminates(&error) => return (made, Ok(())),
                Some(error) => {
                    let text = format!("Error creating: {}", message(&error));
                    self.recorder.event(owner, EventType::Warning, "FailedCreate", text);
                    return (made, Err(error));
                }
                None => batch *= 2,
            }
        }
        (made, Ok(()))
    }

    fn made<K: Owner>(&self, owner: &K, key: &ObjectKey, pod: &Pod) {
        let (pod_key, uid) = (ObjectKey::of(pod), pod.uid().unwrap_or_default());
        self.expectations.created(key, &uid, || self.pods.get(&pod_key).is_some());
        let text = format!("Created pod: {}", pod.name_any());
        self.recorder.event(owner, EventType::Normal, "SuccessfulCreate", text);
    }

    /// Deletes pods: those that are gone or going now, and the first failure.
    pub async fn delete<K: Owner>(
        &self,
        owner: &K,
        pods: Vec<Arc<Pod>>,
    ) -> (Vec<Arc<Pod>>, Result<(), kube::Error>) {
        let key = ObjectKey::of(owner);
        let api = self.api(&key.namespace);
        let delete = |pod: Arc<Pod>| {
            let (api, key) = (&api, &key);
            async move {
                let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
                self.expectations.deleting(key, &uid);
                match api.delete(&name, &DeleteParams::default()).await {
                    Ok(_) => {
                        let text = format!("Deleted pod: {name}");
                        self.recorder.event(owner, EventType::Normal, "SuccessfulDelete", text);
                        Ok(pod)
                    }
                    Err(error) => {
                        self.expectations.saw_deletion(key, &uid);
                        let gone = ignore(error, &[404]);
                        if let Err(error) = &gone {
                            let text = format!("Error deleting: {}", message(error));
                            self.recorder.event(owner, EventType::Warning, "FailedDelete", text);
                        }
                        gone.map(|()| pod)
                    }
                }
            }
        };
        let results: Vec<_> = stream::iter(pods).map(delete).buffer_unordered(PARALLEL).collect().await;
        let (mut gone, mut outcome) = (Vec::new(), Ok(()));
        for result in results {
            match result {
                Ok(pod) => gone.push(pod),
                Err(error) => outcome = Err(error),
            }
        }
        (gone, outcome)
    }
}
