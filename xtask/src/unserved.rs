//! Types that no path of the API serves, and which its swagger lacks: they are known from Go alone.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::gofacts::{GoField, GoTypes};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// Kinds in the core group, in two packages.
const CORE: &[&str] = &[
    "NodeProxyOptions",
    "PodAttachOptions",
    "PodExecOptions",
    "PodLogOptions",
    "PodPortForwardOptions",
    "PodProxyOptions",
    "RangeAllocation",
    "SerializedReference",
    "ServiceProxyOptions",
];
const OPTIONS: &[&str] =
    &["APIVersions", "CreateOptions", "GetOptions", "ListOptions", "PatchOptions", "UpdateOptions"];

/// A type by its Go declaration.
pub struct GoType<'a> {
    /// Definition name.
    pub name: String,
    gvk: Option<String>,
    fields: Vec<(&'a str, &'a GoField, String)>,
}

/// The types that the swagger definitions lack and what they refer to, with fields whose references are `@name`.
pub fn types<'a>(definitions: &BTreeMap<String, Value>, go: &'a GoTypes) -> Result<Vec<GoType<'a>>> {
    let mut wanted: Vec<(String, Option<String>)> = Vec::new();
    wanted.extend(CORE.iter().map(|k| (format!("io.k8s.api.core.v1.{k}"), Some(format!("/v1/{k}")))));
    wanted.extend(OPTIONS.iter().map(|k| (format!("{META}.{k}"), Some(format!("/v1/{k}")))));
    for kind in ["PartialObjectMetadata", "PartialObjectMetadataList"] {
        wanted.push((format!("{META}.{kind}"), Some(format!("meta.k8s.io/v1/{kind}"))));
    }
    let review = "io.k8s.api.admission.v1.AdmissionReview";
    wanted.push((review.into(), Some("admission.k8s.io/v1/AdmissionReview".into())));
    for kind in ["APIGroupDiscovery", "APIGroupDiscoveryList"] {
        let gvk = format!("apidiscovery.k8s.io/v2/{kind}");
        wanted.push((format!("io.k8s.api.apidiscovery.v2.{kind}"), Some(gvk)));
    }
    let mut out: Vec<GoType<'_>> = Vec::new();
    let mut wanted = VecDeque::from(wanted);
    // First in, first out: a kind comes before the references to it, which name no kind.
    while let Some((name, gvk)) = wanted.pop_front() {
        if definitions.contains_key(&name) || out.iter().any(|t| t.name == name) {
            continue;
        }
        let declared = go.structs.get(&name).with_context(|| format!("no struct {name}"))?;
        let mut fields = Vec::new();
        for (field, facts) in declared {
            let ty = spell(&facts.go_type, &facts.package, go).with_context(|| format!("{name}.{field}"))?;
            if let Some((_, reference)) = ty.split_once('@') {
                wanted.push_back((reference.to_owned(), None));
            }
            fields.push((field.as_str(), facts, ty));
        }
        out.push(GoType { name, gvk, fields });
    }
    Ok(out)
}

/// A Go type in the letters of the fact table.
fn spell(go_type: &str, package: &str, go: &GoTypes) -> Result<String> {
    let go_type = go_type.trim_start_matches('*');
    if let Some(inner) = go_type.strip_prefix("[]").filter(|inner| *inner != "byte") {
        return Ok(format!("[{}", spell(inner, package, go)?));
    }
    if let Some((_, inner)) = go_type.strip_prefix("map[").and_then(|rest| rest.split_once(']')) {
        return Ok(format!("{{{}", spell(inner, package, go)?));
    }
    Ok(match go_type {
        "string" | "types.UID" => "s".into(),
        "bool" => "b".into(),
        "int32" => "i".into(),
        "int64" => "l".into(),
        "[]byte" => "y".into(),
        "runtime.RawExtension" | "FieldsV1" => "*".into(),
        "metav1.Time" | "Time" => "t".into(),
        other => {
            let name = match other.split_once('.') {
                None => format!("{package}.{other}"),
                Some(("metav1" | "v1", name)) => format!("{META}.{name}"),
                Some(("authenticationv1", name)) => format!("io.k8s.api.authentication.v1.{name}"),
                Some(_) => bail!("unknown package of {other}"),
            };
            match go.aliases.get(&name) {
                Some(alias) => spell(alias, package, go)?,
                None => format!("@{name}"),
            }
        }
    })
}

impl GoType<'_> {
    /// The lines of the type.
    pub fn write(&self, out: &mut String, index: &BTreeMap<&str, usize>) -> Result<()> {
        write!(out, "= {}", self.name)?;
        if let Some(gvk) = &self.gvk {
            write!(out, " {gvk}\nkind s\napiVersion s")?;
        }
        out.push('\n');
        for (field, facts, ty) in &self.fields {
            let ty = match ty.split_once('@') {
                Some((shape, name)) => {
                    format!("{shape}@{}", index.get(name).with_context(|| format!("no type {name}"))?)
                }
                None => ty.clone(),
            };
            write!(out, "{field} {ty}")?;
            super::schema::numbers(out, field, facts)?;
            out.push('\n');
        }
        Ok(())
    }
}
