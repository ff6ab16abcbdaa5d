//! Pruning: what the schema does not know is dropped.

use crate::json::Value;

use super::Structural;

const META_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Drops the members of a whole object that the schema does not know; returns their paths, sorted.
pub fn prune(object: &mut Value, schema: &Structural) -> Vec<String> {
    let mut pruner = Pruner { path: String::new(), unknown: Vec::new() };
    pruner.value(object, Some(schema), true);
    pruner.unknown.sort();
    pruner.unknown
}

struct Pruner {
    path: String,
    unknown: Vec<String>,
}

impl Pruner {
    fn below(&mut self, step: &str, value: &mut Value, schema: Option<&Structural>) {
        let length = self.path.len();
        if !step.starts_with('[') && !self.path.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(step);
        self.value(value, schema, false);
        self.path.truncate(length);
    }

    fn value(&mut self, value: &mut Value, schema: Option<&Structural>, root: bool) {
        let preserves = schema.is_some_and(|schema| schema.preserves_unknown);
        match value {
            Value::Object(map) => {
                let whole = root || schema.is_some_and(|schema| schema.embedded);
                let mut unknown = Vec::new();
                for (name, member) in map.iter_mut() {
                    if whole && META_FIELDS.contains(&name) {
                        continue;
                    }
                    match schema.and_then(|schema| schema.member(name)) {
                        Some(inner) => self.below(name, member, Some(inner)),
                        None if preserves => {}
                        None => unknown.push(name.to_owned()),
                    }
                }
                for name in unknown {
                    map.remove(&name);
                    let dot = if self.path.is_empty() { "" } else { "." };
                    self.unknown.push(format!("{}{dot}{name}", self.path));
                }
            }
            Value::Array(items) => {
                let inner = schema.and_then(|schema| schema.items.as_deref());
                if inner.is_none() && preserves {
                    return;
                }
                for (at, item) in items.iter_mut().enumerate() {
                    self.below(&format!("[{at}]"), item, inner);
                }
            }
            _ => {}
        }
    }
}
