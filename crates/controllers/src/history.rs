//! ControllerRevisions: the templates that a StatefulSet or DaemonSet had, numbered.

use std::collections::BTreeMap;
use std::sync::Arc;

use coxswain_client::{Client, Informer};
use coxswain_meta::labels::Selector;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::context::{Context, ignore};
use crate::deployment::template_hash;
use crate::owner::{self, Claim, claim};
use crate::podcontrol::{Owner, PodControl};

/// The label on pods that names their revision.
pub const REVISION_LABEL: &str = "controller-revision-hash";
/// The names of revisions are those of their owners, cut to this, and a hash.
const LONGEST_PREFIX: usize = 223;
/// So many names are tried for a revision before giving up until the next reconcile.
const ATTEMPTS: usize = 16;

/// The template in the form in which a revision holds it: a patch that puts it back.
fn data_of(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = "replace".into();
    json!({ "spec": { "template": template } })
}

/// The template that a revision holds.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let RawExtension(data) = &revision.data;
    let mut template = data.get("spec")?.get("template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// The number of a revision.
pub fn number_of(revision: &ControllerRevision) -> i64 {
    revision.revision.unwrap_or(0)
}

/// A label of a revision.
pub fn label<'a>(revision: &'a ControllerRevision, name: &str) -> &'a str {
    revision
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(name))
        .map(String::as_str)
        .unwrap_or_default()
}

/// The revisions of the owners of one kind.
pub struct History {
    pub client: Client,
    pub revisions: Informer<ControllerRevision>,
    /// The label of a revision that carries its hash.
    pub hash_label: &'static str,
}

impl History {
    pub fn new(context: &Context, hash_label: &'static str) -> Self {
        Self { client: context.client(), revisions: context.informer(), hash_label }
    }

    fn api<K: Owner>(&self, owner: &K) -> Api<ControllerRevision> {
        Api::namespaced(self.client.clone(), &owner.namespace().unwrap_or_default())
    }

    /// The revisions of an owner, oldest first, after adopting and releasing.
    pub async fn claim<K: Owner>(
        &self,
        owner: &K,
        selector: &Selector,
        control: &PodControl,
    ) -> Result<Vec<Arc<ControllerRevision>>, kube::Error> {
        let uid = owner.uid().unwrap_or_default();
        let deleting = owner.meta().deletion_timestamp.is_some();
        let mut owned = Vec::new();
        for revision in self.revisions.in_namespace(&owner.namespace().unwrap_or_default()) {
            let meta = &revision.metadata;
            let selected = selector.matches(meta.labels.as_ref().unwrap_or(&BTreeMap::new()));
            let patch = match claim(meta, &uid, deleting, selected) {
                Claim::Keep => {
                    owned.push(revision);
                    continue;
                }
                Claim::Adopt if control.is_alive(owner).await? => {
                    owner::adopt_patch(meta, &owner::controller_ref(owner))
                }
                Claim::Release => owner::release_patch(meta, &uid),
                Claim::Adopt | Claim::Ignore => continue,
            };
            let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
            match self.api(owner).patch(&revision.name_any(), &params, &patch).await {
                Ok(revision) if owner::is_controlled_by(&revision.metadata, &uid) => {
                    owned.push(Arc::new(revision));
                }
                Ok(_) => {}
                Err(error) => ignore(error, &[404, 422])?,
            }
        }
        let created = |meta: &ObjectMeta| meta.creation_timestamp.as_ref().map(|Time(at)| *at);
        owned.sort_by_key(|revision| {
            (number_of(revision), created(&revision.metadata), revision.metadata.name.clone())
        });
        Ok(owned)
    }

    /// The revision of the owner's template, made the newest; `collisions` counts the names that were taken.
    pub async fn current<K: Owner>(
        &self,
        owner: &K,
        template: &PodTemplateSpec,
        known: &[Arc<ControllerRevision>],
        collisions: &mut i32,
    ) -> Result<Arc<ControllerRevision>, kube::Error> {
        let newest = known.last().map_or(0, |revision| number_of(revision));
        let same = known.iter().rev().find(|revision| template_of(revision).as_ref() == Some(template));
        match same {
            Some(same) if number_of(same) == newest => Ok(same.clone()),
            Some(same) => {
                let patch = Patch::Merge(json!({ "revision": newest + 1 }));
                let patched =
                    self.api(owner).patch(&same.name_any(), &PatchParams::default(), &patch).await?;
                Ok(Arc::new(patched))
            }
            None => self.create(owner, template, newest + 1, collisions).await.map(Arc::new),
        }
    }

    async fn create<K: Owner>(
        &self,
        owner: &K,
        template: &PodTemplateSpec,
        number: i64,
        collisions: &mut i32,
    ) -> Result<ControllerRevision, kube::Error> {
        let (api, owner_name) = (self.api(owner), owner.name_any());
        let prefix = owner_name.get(..LONGEST_PREFIX).unwrap_or(&owner_name);
        let mut attempts = 0;
        loop {
            let hash = template_hash(template, *collisions);
            let name = format!("{prefix}-{hash}");
            let mut labels =
                template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
            labels.insert(self.hash_label.into(), hash);
            let revision = ControllerRevision {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    labels: Some(labels),
                    annotations: owner.meta().annotations.clone(),
                    owner_references: Some(vec![owner::controller_ref(owner)]),
                    ..ObjectMeta::default()
                },
                data: RawExtension(data_of(template)),
                revision: Some(number),
            };
            let refused = match api.create(&PostParams::default(), &revision).await {
                Ok(made) => return Ok(made),
                Err(error) => error,
            };
            if !matches!(&refused, kube::Error::Api(status) if status.code == 409) || attempts == ATTEMPTS {
                return Err(refused);
            }
            attempts += 1;
            match api.get_opt(&name).await? {
                Some(existing) if template_of(&existing).as_ref() == Some(template) => return Ok(existing),
                Some(_) => *collisions += 1,
                None => {}
            }
        }
    }

    /// Deletes a revision.
    pub async fn delete<K: Owner>(
        &self,
        owner: &K,
        revision: &ControllerRevision,
    ) -> Result<(), kube::Error> {
        let deleted = self.api(owner).delete(&revision.name_any(), &DeleteParams::default()).await;
        deleted.map(drop).or_else(|error| ignore(error, &[404]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_gives_its_template_back() {
        let template: PodTemplateSpec =
            serde_json::from_value(json!({ "metadata": { "labels": { "a": "b" } },
            "spec": { "containers": [{ "name": "c", "image": "i" }] } }))
            .unwrap();
        let data = data_of(&template);
        assert_eq!(data["spec"]["template"]["$patch"], "replace");
        let revision = ControllerRevision { data: RawExtension(data), ..ControllerRevision::default() };
        assert_eq!(template_of(&revision), Some(template));
    }
}
