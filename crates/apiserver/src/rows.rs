//! What was read of the objects of a kind: each is read once a change.

use std::collections::BTreeMap;
use std::sync::Arc;

use coxswain_store::Revision;

use crate::handler::Stored;

/// What was read, by the names of the objects and in their order.
#[derive(Clone)]
pub struct Rows<T>(BTreeMap<Arc<str>, (Revision, T)>);

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Rows<T> {
    /// Takes in what is stored now. What has changed is read, with what was read of it before; what is gone is forgotten.
    pub fn refresh(&mut self, stored: &[Stored], read: impl Fn(&Stored, Option<T>) -> T) {
        let mut before = std::mem::take(&mut self.0);
        let rows = stored.iter().map(|object| {
            let row = match before.remove(&object.name) {
                Some((revision, row)) if revision == object.revision => row,
                previous => read(object, previous.map(|(_, row)| row)),
            };
            (object.name.clone(), (object.revision, row))
        });
        self.0 = rows.collect();
    }

    /// The row of a name.
    pub fn get(&self, name: &str) -> Option<&T> {
        self.0.get(name).map(|(_, row)| row)
    }

    /// The row of a name, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut T> {
        self.0.get_mut(name).map(|(_, row)| row)
    }

    /// Every row with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &T)> {
        self.0.iter().map(|(name, (_, row))| (name, row))
    }

    /// Every row.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.values().map(|(_, row)| row)
    }
}
