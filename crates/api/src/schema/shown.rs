//! Values as upstream's messages show them: Go's structs written out, every field in its order, nothing left out.

use std::fmt::Write as _;

use coxswain_meta::json::{Map, Value};

use super::{Field, Type, TypeRef, by_name};

/// Fields that the internal pod spec keeps at the head of its security context.
const OF_THE_HOST: &[&str] = &["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace", "hostUsers"];
/// Structs whose fields are no pointers inside.
const PLAIN_INSIDE: &[&str] = &["RollingUpdateDaemonSet"];
/// Fields that came with 1.37: until all know them, messages show them only where they are set.
const RECENT: &[&str] = &[
    "PodSpec.evictionResponders",
    "VolumeMount.bindMountOptions",
    "KeyToPath.user",
    "DownwardAPIVolumeFile.user",
    "ServiceAccountTokenProjection.user",
    "ClusterTrustBundleProjection.user",
    "PodCertificateProjection.user",
    "EmptyDirVolumeSource.mode",
    "ExactDeviceRequest.derivedAttributes",
    "DeviceSubRequest.derivedAttributes",
];
/// Fields that stand elsewhere inside: each comes after the other one.
const MOVED: &[(&str, &str, &str)] = &[
    ("ContainerResourceMetricSource", "container", "name"),
    ("ContainerResourceMetricStatus", "container", "name"),
    ("CSIDriverSpec", "fsGroupPolicy", "attachRequired"),
    ("JSONSchemaProps", "nullable", "type"),
    ("JobSpec", "activeDeadlineSeconds", "successPolicy"),
    ("PodSecurityContext", "fsGroupChangePolicy", "fsGroup"),
    ("PodSpec", "setHostnameAsFQDN", "subdomain"),
    ("PodSpec", "preemptionPolicy", "priority"),
    ("PodSpec", "overhead", "runtimeClassName"),
    ("PersistentVolumeSpec", "quobyte", "rbd"),
    ("PersistentVolumeSpec", "flexVolume", "iscsi"),
    ("Volume", "quobyte", "rbd"),
    ("ValidatingAdmissionPolicySpec", "matchConditions", "validations"),
];
/// Lines around a change.
const CONTEXT: usize = 3;

/// A value of a type on one line.
pub fn internal(value: &Value, definition: &str) -> String {
    let mut writer = Writer { out: String::new(), indent: None };
    if let Some(target) = by_name(definition) {
        writer.value(value, &Type::Ref(target), true);
    }
    writer.out
}

/// A list of values of a type on one line.
pub fn internal_list(values: &[Value], definition: &str) -> String {
    let shown: Vec<String> = values.iter().map(|value| internal(value, definition)).collect();
    format!("[{}]", shown.join(","))
}

/// The changes from one value of a type to another, as a unified diff of their lines; of the fields of one embedded struct alone
/// where that is named.
pub fn changes(old: &Value, new: &Value, definition: &str, embedded: &str) -> String {
    let Some(target) = by_name(definition) else { return String::new() };
    let lines = |value: &Value| {
        let mut writer = Writer { out: String::new(), indent: Some(0) };
        let mut members = Vec::new();
        collect(value, target, false, &mut members);
        members.retain(|(_, _, field)| embedded.is_empty() || field.embedded == embedded);
        writer.members(members, false);
        writer.out.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    unified(&lines(old), &lines(new))
}

struct Writer {
    out: String,
    /// The depth, where every member has a line.
    indent: Option<usize>,
}

impl Writer {
    fn value(&mut self, value: &Value, ty: &Type, plain: bool) {
        match (ty, value) {
            (Type::Ref(target), Value::Object(_)) => self.fields(value, *target),
            (Type::Ref(target), Value::Null) if plain => self.fields(&Value::Null, *target),
            (Type::List(inner), Value::Array(items)) => {
                self.block('[', ']', items.iter(), |writer, item| writer.value(item, inner, true));
            }
            (ty, Value::Object(map)) => {
                let inner = if let Type::Map(inner) = ty { inner } else { &Type::Any };
                self.block('{', '}', map.iter(), |writer, (key, item)| {
                    writer.name(key);
                    writer.value(item, inner, true);
                });
            }
            (_, Value::Array(items)) => {
                self.block('[', ']', items.iter(), |writer, item| writer.value(item, &Type::Any, true));
            }
            (ty, Value::Null) if plain => self.out.push_str(match ty {
                Type::String => "\"\"",
                Type::Int32 | Type::Int64 | Type::Number | Type::IntOrString => "0",
                Type::Bool => "false",
                Type::Quantity => "\"0\"",
                _ => "null",
            }),
            (_, scalar) => self.out.push_str(&scalar.to_string()),
        }
    }

    fn fields(&mut self, object: &Value, target: TypeRef) {
        let plain = PLAIN_INSIDE.contains(&target.short_name());
        // The types of the metadata package carry their JSON names inside too.
        let tagged = target.name().contains(".apimachinery.");
        let mut members = Vec::new();
        collect(object, target, tagged, &mut members);
        self.members(members, plain);
    }

    fn members(&mut self, members: Vec<(String, Value, &'static Field)>, plain: bool) {
        self.block('{', '}', members.into_iter(), |writer, (name, value, field)| {
            writer.name(&name);
            writer.value(&value, &field.ty, plain || field.plain);
        });
    }

    fn name(&mut self, name: &str) {
        // Infallible: a String takes all.
        let _ = write!(self.out, "{}:", Value::from(name));
        if self.indent.is_some() {
            self.out.push(' ');
        }
    }

    fn block<T>(
        &mut self,
        open: char,
        close: char,
        items: impl Iterator<Item = T>,
        mut write: impl FnMut(&mut Self, T),
    ) {
        self.out.push(open);
        self.indent = self.indent.map(|depth| depth + 1);
        let mut empty = true;
        for item in items {
            if !std::mem::take(&mut empty) {
                self.out.push(',');
            }
            self.line();
            write(self, item);
        }
        self.indent = self.indent.map(|depth| depth - 1);
        if !empty {
            self.line();
        }
        self.out.push(close);
    }

    fn line(&mut self) {
        if let Some(depth) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', depth));
        }
    }
}

/// The members of a struct as Go writes them: names, values and facts.
fn collect(object: &Value, target: TypeRef, tagged: bool, out: &mut Vec<(String, Value, &'static Field)>) {
    let pod_spec = target.short_name() == "PodSpec";
    if target.short_name() == "PodSecurityContext"
        && let Some(spec) = by_name("io.k8s.api.core.v1.PodSpec")
    {
        for field in OF_THE_HOST.iter().filter_map(|name| spec.get(name)) {
            let value = object.get(field.name).cloned().unwrap_or_default();
            out.push((go_name(field), value, field));
        }
    }
    for field in inside(target) {
        let mut value = object.get(field.name).cloned().unwrap_or_default();
        let recent = |known: &&str| known.split_once('.') == Some((target.short_name(), field.name));
        if value.is_null() && (field.name == "defaultUser" || RECENT.iter().any(recent)) {
            continue;
        }
        if pod_spec && (field.name == "serviceAccount" || OF_THE_HOST.contains(&field.name)) {
            continue;
        }
        if let (true, "securityContext", Some(map)) = (pod_spec, field.name, value.as_object_mut()) {
            let found = OF_THE_HOST.iter().filter_map(|name| Some((*name, object.get(name)?)));
            map.extend(found.map(|(name, value)| (name.to_owned(), value.clone())));
        }
        if tagged {
            let empty =
                value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty);
            if !(value.is_null() || empty && field.omits_zero) {
                out.push((field.name.to_owned(), value, field));
            }
            continue;
        }
        // Embedded metadata has no name of its own.
        if field.name == "metadata"
            && let Type::Ref(meta) = field.ty
        {
            collect(&value, meta, true, out);
            continue;
        }
        out.push((go_name(field), value, field));
    }
}

/// The fields of a struct in the order that they have inside.
fn inside(target: TypeRef) -> Vec<&'static Field> {
    let mut fields: Vec<_> = target.declared().filter(|field| field.numbers[0] != 0).collect();
    let moved = MOVED.iter().filter(|(owner, ..)| *owner == target.short_name());
    for (_, name, before) in moved {
        let place = |fields: &[&Field], name: &str| fields.iter().position(|field| field.name == name);
        if let Some(field) = place(&fields, name).map(|at| fields.remove(at)) {
            let after = place(&fields, before).map_or(fields.len(), |at| at + 1);
            fields.insert(after, field);
        }
    }
    fields
}

fn go_name(field: &Field) -> String {
    let mut name = field.name.to_owned();
    if let Some(first) = name.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    field.go_name.map_or(name, str::to_owned)
}

/// A unified diff, hunk by hunk.
fn unified(old: &[String], new: &[String]) -> String {
    let edits = edits(old, new);
    let changed: Vec<usize> = (0..edits.len()).filter(|i| edits[*i].0 != ' ').collect();
    let mut out = String::new();
    let mut next = 0;
    while next < changed.len() {
        let start = changed[next].saturating_sub(CONTEXT);
        let mut last = changed[next];
        while next < changed.len() && changed[next] <= last + 2 * CONTEXT {
            last = changed[next];
            next += 1;
        }
        let hunk = &edits[start..(last + CONTEXT + 1).min(edits.len())];
        let count = |not: char| hunk.iter().filter(|(sign, _)| *sign != not).count();
        let before = |not: char| edits[..start].iter().filter(|(sign, _)| *sign != not).count();
        let range = |not: char| match (before(not), count(not)) {
            (at, 1) => format!("{}", at + 1),
            (at, 0) => format!("{at},0"),
            (at, n) => format!("{},{n}", at + 1),
        };
        // Infallible: a String takes all.
        let _ = writeln!(out, "@@ -{} +{} @@", range('+'), range('-'));
        for (sign, line) in hunk {
            let _ = writeln!(out, "{sign}{line}");
        }
    }
    out
}

/// The lines of both, marked by where they are: the longest common subsequence stays.
fn edits<'a>(old: &'a [String], new: &'a [String]) -> Vec<(char, &'a str)> {
    let width = new.len() + 1;
    let mut common = vec![0u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i * width + j] = match old[i] == new[j] {
                true => common[(i + 1) * width + j + 1] + 1,
                false => common[(i + 1) * width + j].max(common[i * width + j + 1]),
            };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            out.push((' ', old[i].as_str()));
            (i, j) = (i + 1, j + 1);
        } else if i < old.len()
            && (j == new.len() || common[(i + 1) * width + j] >= common[i * width + j + 1])
        {
            out.push(('-', old[i].as_str()));
            i += 1;
        } else {
            out.push(('+', new[j].as_str()));
            j += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use coxswain_meta::json::json;

    use super::*;

    #[test]
    fn fields_have_the_order_that_they_have_inside() {
        let shown = internal(&json!({}), "io.k8s.api.core.v1.PodSpec");
        let order =
            ["Subdomain", "SetHostnameAsFQDN", "Affinity", "Priority", "PreemptionPolicy", "Overhead"];
        let places: Vec<_> = order.iter().map(|name| shown.find(&format!("\"{name}\":"))).collect();
        assert!(places.is_sorted() && places.iter().all(Option::is_some), "{shown}");
    }

    #[test]
    fn structs_are_shown_whole() {
        let spec = json!({"attacher": "a", "nodeName": "n", "source": {"persistentVolumeName": "v"}});
        assert_eq!(
            internal(&spec, "io.k8s.api.storage.v1.VolumeAttachmentSpec"),
            r#"{"Attacher":"a","Source":{"PersistentVolumeName":"v","InlineVolumeSpec":null},"NodeName":"n"}"#
        );
        let mut changed = spec.clone();
        changed["nodeName"] = json!("m");
        assert_eq!(
            changes(&spec, &changed, "io.k8s.api.storage.v1.VolumeAttachmentSpec", ""),
            "@@ -4,5 +4,5 @@\n   \"PersistentVolumeName\": \"v\",\n   \"InlineVolumeSpec\": null\n  },\n- \"NodeName\": \"n\"\n+ \"NodeName\": \"m\"\n }\n"
        );
    }
}
