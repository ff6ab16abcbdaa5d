//! What a patch makes of an object, as upstream's messages show it: JSON in which the structs that the patch went through have
//! their members sorted, and all that it left alone has them in Go's order.

use std::collections::BTreeMap;

use coxswain_meta::json::Value;

use super::{Type, TypeRef, json};

/// The object of a type (none: a custom one) after a merge patch, or after a JSON patch where the patch is a list. Steps that
/// lead nowhere are passed over: the patch has been applied before.
pub fn patched(old: &Value, target: Option<TypeRef>, patch: &Value) -> String {
    let ty = target.map_or(Type::Any, Type::Ref);
    let mut root = Node::Kept(old, &ty);
    match patch {
        Value::Array(steps) => steps.iter().for_each(|step| root.step(step)),
        patch => root.merge(patch),
    }
    let mut out = String::new();
    root.write(&mut out);
    out
}

/// A value, as far as it has been looked into.
#[derive(Clone)]
enum Node<'a> {
    Kept(&'a Value, &'a Type),
    Members(BTreeMap<String, Node<'a>>),
    Items(Vec<Node<'a>>),
}

impl<'a> Node<'a> {
    fn sent(value: &'a Value) -> Self {
        Self::Kept(value, &Type::Any)
    }

    fn null() -> Self {
        Self::Kept(&Value::Null, &Type::Any)
    }

    fn is_null(&self) -> bool {
        matches!(self, Self::Kept(Value::Null, _))
    }

    /// Looks into the value.
    fn open(&mut self) {
        let Self::Kept(value, ty) = *self else { return };
        match value {
            Value::Object(map) => {
                let inner = |name: &str| match ty {
                    Type::Ref(target) | Type::Either(_, target) => {
                        target.get(name).map_or(&Type::Any, |field| &field.ty)
                    }
                    Type::Map(inner) => &**inner,
                    _ => &Type::Any,
                };
                let members =
                    map.iter().map(|(name, value)| (name.to_owned(), Self::Kept(value, inner(name))));
                *self = Self::Members(members.collect());
            }
            Value::Array(items) => {
                let inner = if let Type::List(inner) = ty { &**inner } else { &Type::Any };
                *self = Self::Items(items.iter().map(|item| Self::Kept(item, inner)).collect());
            }
            _ => {}
        }
    }

    fn merge(&mut self, patch: &'a Value) {
        let Value::Object(patch) = patch else {
            *self = Self::sent(patch);
            return;
        };
        self.open();
        if !matches!(self, Self::Members(_)) {
            *self = Self::Members(BTreeMap::new());
        }
        let Self::Members(members) = self else { return };
        for (name, value) in patch {
            match members.get_mut(name) {
                _ if value.is_null() => drop(members.remove(name)),
                Some(known) if !known.is_null() => known.merge(value),
                _ => drop(members.insert(name.to_owned(), Self::without_nulls(value))),
            }
        }
    }

    /// A value that comes with a merge patch.
    fn without_nulls(value: &'a Value) -> Self {
        match value {
            Value::Object(map) => {
                let left = map.iter().filter(|(_, value)| !value.is_null());
                Self::Members(
                    left.map(|(name, value)| (name.to_owned(), Self::without_nulls(value))).collect(),
                )
            }
            Value::Array(items) => Self::Items(items.iter().map(Self::without_nulls).collect()),
            scalar => Self::sent(scalar),
        }
    }

    fn step(&mut self, step: &'a Value) {
        let text = |key: &str| step[key].as_str().unwrap_or_default();
        let (path, from) = (text("path"), text("from"));
        match text("op") {
            "add" => self.put(path, Self::sent(&step["value"]), true),
            "replace" => self.put(path, Self::sent(&step["value"]), false),
            "remove" => drop(self.take(path, true)),
            "move" => {
                let moved = self.take(from, true);
                self.put(path, moved.unwrap_or_else(Self::null), true);
            }
            "copy" => {
                let copied = self.take(from, false);
                self.put(path, copied.unwrap_or_else(Self::null), true);
            }
            _ => drop(self.take(path, false)),
        }
    }

    /// The struct or list that a pointer's last part is in, and that part.
    fn container(&mut self, pointer: &str) -> Option<(&mut Self, String)> {
        let (parents, last) = pointer.rsplit_once('/')?;
        let plain = |part: &str| part.replace("~1", "/").replace("~0", "~");
        let mut at = self;
        at.open();
        for part in parents.split('/').skip(1).map(plain) {
            at = match at {
                Self::Members(members) => members.get_mut(&part)?,
                Self::Items(items) => items.get_mut(part.parse::<usize>().ok()?)?,
                Self::Kept(..) => return None,
            };
            at.open();
        }
        Some((at, plain(last)))
    }

    fn put(&mut self, pointer: &str, value: Self, inserts: bool) {
        match self.container(pointer) {
            Some((Self::Members(members), name)) => drop(members.insert(name, value)),
            Some((Self::Items(items), at)) => {
                let at = at.parse::<usize>().unwrap_or(items.len()).min(items.len());
                if inserts {
                    items.insert(at, value);
                } else if let Some(item) = items.get_mut(at) {
                    *item = value;
                }
            }
            _ => {}
        }
    }

    fn take(&mut self, pointer: &str, removes: bool) -> Option<Self> {
        match self.container(pointer)? {
            (Self::Members(members), name) if removes => members.remove(&name),
            (Self::Members(members), name) => members.get(&name).cloned(),
            (Self::Items(items), at) => {
                let at = at.parse::<usize>().ok().filter(|at| *at < items.len())?;
                if removes { Some(items.remove(at)) } else { items.get(at).cloned() }
            }
            (Self::Kept(..), _) => None,
        }
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Kept(value, ty) => out.push_str(&json::compact(value, ty)),
            Self::Members(members) => {
                out.push('{');
                for (i, (name, node)) in members.iter().enumerate() {
                    out.push_str(if i > 0 { "," } else { "" });
                    out.push_str(&json::escaped(&name.as_str().into()));
                    out.push(':');
                    node.write(out);
                }
                out.push('}');
            }
            Self::Items(items) => {
                out.push('[');
                for (i, node) in items.iter().enumerate() {
                    out.push_str(if i > 0 { "," } else { "" });
                    node.write(out);
                }
                out.push(']');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use coxswain_meta::json::json;

    use super::*;

    #[test]
    fn what_a_patch_leaves_alone_keeps_the_order_of_go() {
        let pod = super::super::by_gvk("", "v1", "Pod");
        let old = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"a": "<"}, "name": "p"},
            "spec": {"nodeName": "n", "containers": [{"image": "i", "name": "c"}]}});
        assert_eq!(
            patched(&old, pod, &json!({"spec": {"nodeName": 1, "extra": {"b": null, "a": [{"x": null}]}}})),
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","labels":{"a":"\u003c"}},"spec":{"containers":[{"name":"c","image":"i"}],"extra":{"a":[{}]},"nodeName":1}}"#
        );
        let steps = json!([{"op": "replace", "path": "/metadata/labels/a", "value": 1},
            {"op": "add", "path": "/spec/containers/-", "value": true}, {"op": "remove", "path": "/spec/nodeName"}]);
        assert_eq!(
            patched(&old, pod, &steps),
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"labels":{"a":1},"name":"p"},"spec":{"containers":[{"name":"c","image":"i"},true]}}"#
        );
    }
}
