//! The custom resources that are served now, read from the definitions in the store.

use std::sync::{Arc, PoisonError, RwLock};

use coxswain_store::{Revision, Store};

use super::Resource;
use super::definition::{Custom, Definition};
use crate::object::ObjectView;
use crate::rows::Rows;

/// Where the definitions are kept.
pub const COLLECTION: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// Every definition that names were accepted for.
#[derive(Default)]
pub struct Customs {
    at: Revision,
    definitions: Rows<Arc<Definition>>,
}

/// The definitions, rebuilt when one of them changed.
#[derive(Default)]
pub struct Registry(RwLock<Arc<Customs>>);

impl Registry {
    /// The definitions as of now.
    pub fn current(&self, store: &Store<ObjectView>) -> Arc<Customs> {
        let collection = store.collection(COLLECTION);
        let newest = collection.newest();
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        if known.at == newest {
            return known;
        }
        let mut definitions = known.definitions.clone();
        definitions.refresh(&collection.list(""), |stored, previous| {
            Arc::new(Definition::parse(&stored.bytes, stored.revision, previous.as_deref()))
        });
        let customs = Arc::new(Customs { at: newest, definitions });
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = customs.clone();
        customs
    }
}

impl Customs {
    /// The resource that serves a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Resource> {
        let definition = self.definitions.get(&format!("{plural}.{group}"))?;
        Custom::of(definition, version).map(Resource::Custom)
    }

    /// Every definition, served or not.
    pub fn definitions(&self) -> impl Iterator<Item = &Arc<Definition>> {
        self.definitions.values()
    }

    /// Every version that is served, by group, plural and version.
    pub fn served(&self) -> Vec<Resource> {
        let mut all: Vec<Resource> = self
            .definitions
            .values()
            .flat_map(|definition| {
                definition.versions.iter().filter_map(|version| Custom::of(definition, &version.name))
            })
            .map(Resource::Custom)
            .collect();
        all.sort_by(|a, b| (a.group(), a.plural(), a.version()).cmp(&(b.group(), b.plural(), b.version())));
        all
    }
}
