//! Writing objects as text: as JSON like Go's encoder, fields in the order of their declaration, and as YAML.

use coxswain_meta::json::{Map, Value};

use super::{Alternative, Type, TypeRef};

/// The object as JSON with two spaces of indentation, fields in Go's order.
pub fn write(object: &Value, type_ref: TypeRef) -> String {
    let mut writer = Writer { out: String::new(), depth: Some(0) };
    writer.value(object, &Type::Ref(type_ref));
    writer.out
}

/// A value as JSON on one line, fields in Go's order.
pub(super) fn compact(value: &Value, ty: &Type) -> String {
    let mut writer = Writer { out: String::new(), depth: None };
    writer.value(value, ty);
    writer.out
}

/// The object as YAML, keys sorted.
pub fn yaml(object: &Value) -> String {
    serde_yaml::to_string(object).unwrap_or_default()
}

struct Writer {
    out: String,
    /// How deep the line is; none where all is on one line.
    depth: Option<usize>,
}

impl Writer {
    fn value(&mut self, value: &Value, ty: &Type) {
        match (ty, value) {
            (Type::Ref(target) | Type::Either(_, target), Value::Object(map)) => self.fields(map, *target),
            (Type::List(inner), Value::Array(items)) => {
                self.block('[', ']', items.iter(), |writer, item| writer.value(item, inner));
            }
            (Type::Either(Alternative::Array, target), Value::Array(items)) => {
                self.block('[', ']', items.iter(), |writer, item| writer.value(item, &Type::Ref(*target)));
            }
            (ty, Value::Object(map)) => {
                let inner = if let Type::Map(inner) = ty { inner } else { &Type::Any };
                let mut members: Vec<_> = map.iter().collect();
                members.sort_by(|(a, _), (b, _)| coxswain_meta::apply::order(a, b));
                self.block('{', '}', members.into_iter(), |writer, (key, item)| {
                    writer.member(key, item, inner);
                });
            }
            (_, Value::Array(items)) => {
                self.block('[', ']', items.iter(), |writer, item| writer.value(item, &Type::Any));
            }
            (_, scalar) => self.out.push_str(&escaped(scalar)),
        }
    }

    fn fields(&mut self, map: &Map, target: TypeRef) {
        let present = target.declared().filter_map(|field| Some((field, map.get(field.name)?)));
        self.block('{', '}', present, |writer, (field, value)| writer.member(field.name, value, &field.ty));
    }

    fn member(&mut self, name: &str, value: &Value, ty: &Type) {
        self.out.push_str(&escaped(&name.into()));
        self.out.push_str(if self.depth.is_some() { ": " } else { ":" });
        self.value(value, ty);
    }

    fn block<T>(
        &mut self,
        open: char,
        close: char,
        items: impl Iterator<Item = T>,
        mut write: impl FnMut(&mut Self, T),
    ) {
        self.out.push(open);
        self.depth = self.depth.map(|depth| depth + 1);
        let mut empty = true;
        for item in items {
            if !std::mem::take(&mut empty) {
                self.out.push(',');
            }
            self.line();
            write(self, item);
        }
        self.depth = self.depth.map(|depth| depth - 1);
        if !empty {
            self.line();
        }
        self.out.push(close);
    }

    fn line(&mut self) {
        if let Some(depth) = self.depth {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n("  ", depth));
        }
    }
}

/// A scalar; Go escapes what HTML would misunderstand.
pub(super) fn escaped(scalar: &Value) -> String {
    scalar.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}
