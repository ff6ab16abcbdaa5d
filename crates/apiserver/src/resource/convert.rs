//! Objects of custom resources between what is stored and what is served: version, schema and defaults as they are now.

use std::sync::Arc;

use coxswain_api::openapi::CustomKind;
use coxswain_meta::Status;
use coxswain_meta::json::Value;
use coxswain_store::{Object, View};

use super::{Conversion, Custom, Resource};
use crate::Server;
use crate::handler::Stored;
use crate::object::{Meta, ObjectView, encode, read_managers};

impl Server {
    /// The resource that serves a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Resource> {
        Resource::built_in(group, version, plural)
            .or_else(|| self.customs.current(&self.store).find(group, version, plural))
    }

    /// What OpenAPI documents say of the custom resources.
    pub fn custom_kinds(&self) -> Vec<CustomKind> {
        let served = self.customs.current(&self.store).served();
        let described = served.iter().filter_map(|kind| {
            let version = kind.custom()?.version();
            let subresources = [("status", version.status), ("scale", version.scale.is_some())];
            Some(CustomKind {
                group: kind.group().to_owned(),
                version: kind.version().to_owned(),
                kind: kind.kind().to_owned(),
                list_kind: kind.list_kind().to_owned(),
                plural: kind.plural().to_owned(),
                namespaced: kind.namespaced(),
                subresources: subresources
                    .into_iter()
                    .filter_map(|(name, has)| has.then_some(name))
                    .collect(),
                schema: version.source.clone(),
                digest: kind.custom()?.definition.digest,
            })
        });
        described.collect()
    }

    /// Stored objects as a resource serves them. Objects of built-in kinds, and those that are in that form already, are
    /// passed through untouched.
    pub async fn served(&self, kind: &Resource, mut objects: Vec<Stored>) -> Result<Vec<Stored>, Status> {
        let Resource::Custom(custom) = kind else { return Ok(objects) };
        let prefix = format!("{{\"apiVersion\":\"{}\",", kind.api_version());
        let since = custom.definition.since;
        let stale: Vec<usize> = (0..objects.len())
            .filter(|at| objects[*at].revision <= since || !objects[*at].bytes.starts_with(prefix.as_bytes()))
            .collect();
        if stale.is_empty() {
            return Ok(objects);
        }
        let parse = |at: &usize| serde_json::from_slice(&objects[*at].bytes).unwrap_or_default();
        let documents: Vec<Value> = stale.iter().map(parse).collect();
        let converted = self.convert(custom, documents).await?;
        for (at, mut document) in stale.into_iter().zip(converted) {
            custom.prune(&mut document)?;
            custom.default(&mut document);
            let old = &objects[at];
            objects[at] = Arc::new(Object {
                name: old.name.clone(),
                revision: old.revision,
                bytes: ObjectView.stamp(&encode(&document), old.revision),
                attributes: old.attributes.clone(),
            });
        }
        Ok(objects)
    }

    /// One stored object as a resource serves it.
    pub async fn served_one(&self, kind: &Resource, object: Stored) -> Result<Stored, Status> {
        if kind.custom().is_none() {
            return Ok(object);
        }
        let mut objects = self.served(kind, vec![object]).await?;
        objects.pop().ok_or_else(|| Status::internal("an object was lost in conversion"))
    }

    /// An object in the version that is stored.
    pub async fn to_storage(&self, kind: &Resource, mut object: Value) -> Result<Value, Status> {
        let Resource::Custom(custom) = kind else {
            kind.to_storage(&mut object);
            return Ok(object);
        };
        let definition = &custom.definition;
        if definition.storage() == custom.version().name {
            return Ok(object);
        }
        let Some(storage) = Custom::stored(definition) else { return Ok(object) };
        let mut converted = self.convert(&storage, vec![object]).await?.pop().unwrap_or_default();
        storage.prune(&mut converted)?;
        storage.default(&mut converted);
        Ok(converted)
    }

    /// Objects in the version of a resource.
    pub async fn convert(&self, to: &Custom, mut objects: Vec<Value>) -> Result<Vec<Value>, Status> {
        let definition = &to.definition;
        let wanted = format!("{}/{}", definition.group, to.version().name);
        let foreign: Vec<usize> =
            (0..objects.len()).filter(|at| objects[*at]["apiVersion"] != wanted.as_str()).collect();
        if foreign.is_empty() {
            return Ok(objects);
        }
        match &definition.conversion {
            Conversion::None => {
                foreign.iter().for_each(|at| objects[*at]["apiVersion"] = wanted.as_str().into())
            }
            Conversion::Webhook(client, versions) => {
                foreign.iter().for_each(|at| read_managers(&mut objects[*at]));
                let sent: Vec<Value> = foreign.iter().map(|at| objects[*at].clone()).collect();
                let converted = self.webhooks.convert(self, client, versions, &wanted, &sent).await;
                let converted = converted.map_err(|why| {
                    let from = sent[0]["apiVersion"].as_str().unwrap_or_default();
                    let (_, from) = from.rsplit_once('/').unwrap_or(("", from));
                    tracing::debug!(definition = definition.name, %why, "conversion failed");
                    Status::internal(&format!(
                        "conversion webhook for {}/{from}, Kind={} failed: {why}",
                        definition.group, definition.kind
                    ))
                })?;
                for (at, (mut object, old)) in foreign.into_iter().zip(converted.into_iter().zip(&sent)) {
                    // A webhook may change labels and annotations only of the metadata.
                    let said = object.meta().clone();
                    let mut metadata = old.meta().clone();
                    for field in ["labels", "annotations"] {
                        if said[field].is_object() {
                            metadata[field] = said[field].clone();
                        } else if let Some(metadata) = metadata.as_object_mut() {
                            metadata.remove(field);
                        }
                    }
                    object["metadata"] = metadata;
                    objects[at] = object;
                }
            }
        }
        Ok(objects)
    }
}
