//! Discovery: which groups, versions and resources there are, in the legacy and the aggregated form.

use std::cmp::Reverse;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use coxswain_api::catalogue::{ALL_VERBS, KINDS};
use coxswain_meta::json::{Value, json};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response, StatusCode};

use crate::Server;
use crate::aggregation::Backend;
use crate::body::Body;
use crate::resource::Resource;
use crate::respond;
use crate::subresource::review;

/// Groups in the order in which clients prefer them.
const GROUP_ORDER: &[&str] = &[
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
];

/// One resource of a group version, whether it is stored or only answers.
struct Entry {
    group: String,
    version: String,
    /// `pods`, or `pods/log`.
    name: String,
    singular: String,
    namespaced: bool,
    kind: String,
    kind_group: String,
    kind_version: String,
    verbs: Vec<&'static str>,
    short_names: Vec<String>,
    categories: Vec<String>,
    /// Changes with the version that objects are stored in; empty for what is not stored.
    storage_hash: String,
}

/// What clients compare to notice another storage version.
fn storage_hash(group: &str, version: &str, kind: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{group}/{version}/{kind}").as_bytes());
    BASE64_STANDARD.encode(&digest.as_ref()[..8])
}

fn entries(server: &Server) -> Vec<Entry> {
    let built_in = KINDS.iter().map(Resource::BuiltIn);
    let custom = server.customs.current(&server.store).served();
    let mut entries: Vec<Entry> = built_in.chain(custom).flat_map(|kind| of_kind(&kind)).collect();
    entries.extend(review::KINDS.iter().map(|review| Entry {
        group: review.group.into(),
        version: "v1".into(),
        name: review.plural.into(),
        singular: review.singular.into(),
        namespaced: review.namespaced,
        kind: review.kind.into(),
        kind_group: review.group.into(),
        kind_version: "v1".into(),
        verbs: vec!["create"],
        short_names: Vec::new(),
        categories: Vec::new(),
        storage_hash: String::new(),
    }));
    for (backend, resources) in server.backends.resources(server) {
        entries.extend(resources.iter().map(|resource| of_backend(&backend, resource)));
    }
    entries
}

/// An `APIResource` that another server listed.
fn of_backend(backend: &Backend, resource: &Value) -> Entry {
    let text = |key: &str| resource[key].as_str().unwrap_or_default().to_owned();
    let or = |key: &str, usual: &str| {
        Some(text(key)).filter(|said| !said.is_empty()).unwrap_or_else(|| usual.to_owned())
    };
    let texts = |key: &str| -> Vec<String> {
        resource[key].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let verbs = texts("verbs");
    Entry {
        group: backend.group.clone(),
        version: backend.version.clone(),
        name: text("name"),
        singular: text("singularName"),
        namespaced: resource["namespaced"] == true,
        kind: text("kind"),
        kind_group: or("group", &backend.group),
        kind_version: or("version", &backend.version),
        verbs: ALL_VERBS.iter().copied().filter(|verb| verbs.iter().any(|served| served == verb)).collect(),
        short_names: texts("shortNames"),
        categories: texts("categories"),
        storage_hash: resource["storageVersionHash"].as_str().unwrap_or_default().to_owned(),
    }
}

fn of_kind(kind: &Resource) -> Vec<Entry> {
    let entry = |name: String, of: (&str, &str, &str), verbs: &[&'static str]| Entry {
        group: kind.group().into(),
        version: kind.version().into(),
        name,
        singular: String::new(),
        namespaced: kind.namespaced(),
        kind: of.2.into(),
        kind_group: of.0.into(),
        kind_version: of.1.into(),
        verbs: verbs.to_vec(),
        short_names: Vec::new(),
        categories: Vec::new(),
        storage_hash: String::new(),
    };
    let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
    let own = Entry {
        singular: kind.singular().into(),
        short_names: owned(kind.short_names()),
        categories: owned(kind.categories()),
        storage_hash: match kind.verbs().contains(&"list") {
            true => {
                let version = kind.custom().map_or(kind.version(), |custom| custom.definition.storage());
                storage_hash(kind.group(), version, kind.kind())
            }
            false => String::new(),
        },
        ..entry(kind.plural().into(), (kind.group(), kind.version(), kind.kind()), kind.verbs())
    };
    let subs = kind.subresources();
    let subs = subs.iter().map(|sub| entry(format!("{}/{}", kind.plural(), sub.name), sub.gvk, sub.verbs));
    std::iter::once(own).chain(subs).collect()
}

fn rank(group: &str) -> usize {
    GROUP_ORDER.iter().position(|known| *known == group).unwrap_or(GROUP_ORDER.len())
}

/// How well a version is preferred: stable before beta before alpha, and the newer first.
fn preference(version: &str) -> (u8, Reverse<u64>, Reverse<u64>, String) {
    let number = |text: &str| text.parse::<u64>().ok();
    let split = |word: &str| {
        let (major, minor) = version.strip_prefix('v')?.split_once(word)?;
        Some((number(major)?, number(minor)?))
    };
    let (rank, major, minor) =
        match (version.strip_prefix('v').and_then(number), split("beta"), split("alpha")) {
            (Some(major), ..) => (0, major, 0),
            (_, Some((major, minor)), _) => (1, major, minor),
            (_, _, Some((major, minor))) => (2, major, minor),
            _ => (3, 0, 0),
        };
    (rank, Reverse(major), Reverse(minor), version.to_owned())
}

/// Groups with their versions, best first.
fn groups(entries: &[Entry]) -> Vec<(&str, Vec<&str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for entry in entries {
        match groups.iter_mut().find(|(group, _)| *group == entry.group) {
            Some((_, versions)) if versions.contains(&entry.version.as_str()) => {}
            Some((_, versions)) => versions.push(&entry.version),
            None => groups.push((&entry.group, vec![&entry.version])),
        }
    }
    groups.iter_mut().for_each(|(_, versions)| versions.sort_by_key(|version| preference(version)));
    groups.sort_by_key(|(group, _)| (rank(group), *group));
    groups
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn api_group((group, versions): &(&str, Vec<&str>)) -> Value {
    let shown = |version: &&str| json!({ "groupVersion": group_version(group, version), "version": version });
    let list: Vec<Value> = versions.iter().map(shown).collect();
    json!({ "name": group, "versions": list, "preferredVersion": list[0] })
}

fn legacy_resource(entry: &Entry) -> Value {
    let mut resource = json!({ "name": entry.name, "singularName": entry.singular, "namespaced": entry.namespaced,
        "kind": entry.kind, "verbs": entry.verbs });
    if (&entry.kind_group, &entry.kind_version) != (&entry.group, &entry.version) {
        if !entry.kind_group.is_empty() {
            resource["group"] = entry.kind_group.as_str().into();
        }
        resource["version"] = entry.kind_version.as_str().into();
    }
    if !entry.short_names.is_empty() {
        resource["shortNames"] = json!(entry.short_names);
    }
    if !entry.categories.is_empty() {
        resource["categories"] = json!(entry.categories);
    }
    if !entry.storage_hash.is_empty() {
        resource["storageVersionHash"] = entry.storage_hash.as_str().into();
    }
    resource
}

fn aggregated_resources(entries: &[&Entry]) -> Vec<Value> {
    let kind = |entry: &Entry| json!({ "group": entry.kind_group, "version": entry.kind_version, "kind": entry.kind });
    let mut resources: Vec<Value> = Vec::new();
    for entry in entries {
        if let Some((main, sub)) = entry.name.split_once('/') {
            let shown = json!({ "subresource": sub, "responseKind": kind(entry), "verbs": entry.verbs });
            if let Some(resource) = resources.iter_mut().find(|resource| resource["resource"] == main)
                && let Some(resource) = resource.as_object_mut()
                && let Some(list) = resource.entry("subresources").or_insert_with(|| json!([])).as_array_mut()
            {
                list.push(shown);
            }
            continue;
        }
        let mut resource = json!({ "resource": entry.name, "responseKind": kind(entry),
            "scope": if entry.namespaced { "Namespaced" } else { "Cluster" }, "singularResource": entry.singular, "verbs": entry.verbs });
        if !entry.short_names.is_empty() {
            resource["shortNames"] = json!(entry.short_names);
        }
        if !entry.categories.is_empty() {
            resource["categories"] = json!(entry.categories);
        }
        resources.push(resource);
    }
    resources
}

/// `APIGroupDiscoveryList` (KEP-3352) of the core group or of all others.
fn aggregated(entries: &[Entry], core: bool) -> Value {
    let items: Vec<Value> = groups(entries)
        .iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let of: Vec<&Entry> = entries.iter().filter(|e| (e.group.as_str(), e.version.as_str()) == (*group, *version)).collect();
                    json!({ "version": version, "freshness": "Current", "resources": aggregated_resources(&of) })
                })
                .collect();
            let mut item = json!({ "metadata": { "creationTimestamp": null }, "versions": versions });
            if !group.is_empty() {
                item["metadata"]["name"] = (*group).into();
            }
            item
        })
        .collect();
    json!({ "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items })
}

/// `/api`, `/apis` and what lies directly below them; none for other paths.
pub fn answer(
    server: &Server,
    path: &str,
    headers: &HeaderMap,
    server_address: &str,
) -> Option<Response<Body>> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let wants_aggregated =
        headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).any(|value| {
            value.contains("as=APIGroupDiscoveryList")
                && value.contains("v=v2;") | value.contains("v=v2,") | value.ends_with("v=v2")
        });
    let entries = &entries(server);
    let body = match parts.as_slice() {
        ["api"] | ["apis"] if wants_aggregated => {
            let mut response = respond::json(StatusCode::OK, &aggregated(entries, parts == ["api"]));
            let media = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
            return Some(response);
        }
        ["api"] => json!({ "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": server_address }] }),
        ["apis"] => {
            let groups: Vec<Value> =
                groups(entries).iter().filter(|(group, _)| !group.is_empty()).map(api_group).collect();
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
        }
        ["apis", group] => {
            let group = groups(entries).into_iter().find(|(name, _)| name == group)?;
            let mut shown = api_group(&group);
            (shown["kind"], shown["apiVersion"]) = ("APIGroup".into(), "v1".into());
            shown
        }
        ["api", version] => resource_list(entries, "", version)?,
        ["apis", group, version] => resource_list(entries, group, version)?,
        _ => return None,
    };
    Some(respond::json(StatusCode::OK, &body))
}

fn resource_list(entries: &[Entry], group: &str, version: &str) -> Option<Value> {
    let of: Vec<Value> = entries
        .iter()
        .filter(|e| (e.group.as_str(), e.version.as_str()) == (group, version))
        .map(legacy_resource)
        .collect();
    (!of.is_empty()).then(|| {
        json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version(group, version), "resources": of })
    })
}
