//! Every kind of the catalogue through the API of `cox server --no-node`: written, read in every form, selected, refused, deleted.
#![allow(missing_docs)]

use std::path::Path;

use anyhow::{Context, ensure};
use coxswain_testkit::{Api, Cluster, Options, Request, Response, is_root};
use serde::Deserialize;
use serde_json::{Value, json};

/// One manifest of each kind; the differential test has more of them.
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/differential/manifests");
const NAMESPACE: &str = "walk";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

#[test]
fn every_kind_through_the_api() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let manifests = manifests()?;
    let options = Options { no_node: true, arguments: vec!["--no-controllers".into()], ..Options::default() };
    let cluster = Cluster::start(options)?;
    let api = cluster.api()?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    api.write("POST", "/api/v1/namespaces", &namespace)?;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    api.write("POST", &format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts"), &account)?;
    let mut broken = Vec::new();
    for kind in &kinds(&api)? {
        let walked = manifests
            .iter()
            .find(|m| m["apiVersion"] == *kind.version && m["kind"] == *kind.name)
            .context("there is no manifest of it")
            .and_then(|manifest| walk(&api, kind, manifest));
        if let Err(error) = walked {
            broken.push(format!("{} {}: {error:#}", kind.version, kind.name));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}

/// A kind as discovery tells of it.
struct Kind {
    version: String,
    name: String,
    plural: String,
    namespaced: bool,
}

/// The built-in kinds that can be watched.
fn kinds(api: &Api) -> anyhow::Result<Vec<Kind>> {
    let mut versions = vec!["v1".to_owned()];
    for group in api.get("/apis")?["groups"].as_array().into_iter().flatten() {
        for version in group["versions"].as_array().into_iter().flatten() {
            versions.push(text(&version["groupVersion"]));
        }
    }
    let mut out = Vec::new();
    for version in versions {
        let resources = api.get(&root(&version))?;
        for resource in resources["resources"].as_array().into_iter().flatten() {
            let verbs = resource["verbs"].as_array().cloned().unwrap_or_default();
            let plural = text(&resource["name"]);
            if verbs.contains(&json!("watch")) && !plural.contains('/') {
                let (name, namespaced) = (text(&resource["kind"]), resource["namespaced"] == true);
                out.push(Kind { version: version.clone(), name, plural, namespaced });
            }
        }
    }
    Ok(out)
}

fn root(version: &str) -> String {
    format!("/{}/{version}", if version.contains('/') { "apis" } else { "api" })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn manifests() -> anyhow::Result<Vec<Value>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(Path::new(MANIFESTS))? {
        let text = std::fs::read_to_string(entry?.path())?;
        for document in serde_yaml::Deserializer::from_str(&text) {
            out.push(Value::deserialize(document)?);
        }
    }
    Ok(out)
}

fn walk(api: &Api, kind: &Kind, manifest: &Value) -> anyhow::Result<()> {
    let place = if kind.namespaced { format!("/namespaces/{NAMESPACE}") } else { String::new() };
    let collection = format!("{}{place}/{}", root(&kind.version), kind.plural);
    let mut object = manifest.clone();
    if kind.namespaced {
        object["metadata"]["namespace"] = NAMESPACE.into();
    }
    for about in ["involvedObject", "regarding"] {
        if object[about].is_object() {
            object[about]["namespace"] = NAMESPACE.into();
        }
    }
    let name = object["metadata"]["name"].as_str().context("a name")?.to_owned();
    let one = format!("{collection}/{name}");
    // What other manifests also make is made anew.
    let _ = api.send(&Request { method: "DELETE".into(), ..Request::get(&one) })?;

    refused(api, &collection)?;
    let dry = api.write("POST", &format!("{collection}?dryRun=All"), &object)?;
    ensure!(dry["kind"] == *kind.name, "a dry run answers with the object: {dry}");
    ensure!(api.send(&Request::get(&one))?.code == 404, "a dry run stores nothing");

    let created = api.write("POST", &collection, &object)?;
    let read = api.get(&one)?;
    ensure!(wished(&created) == wished(&read), "what is created is what is read: {created} and {read}");
    forms(api, kind, &collection, &one, &read)?;

    let patch = br#"{"metadata":{"labels":{"walked":"yes"}}}"#.to_vec();
    let before = read;
    let patched = answer(api, &Request::with_body("PATCH", &one, "application/merge-patch+json", patch))?;
    ensure!(patched["metadata"]["labels"]["walked"] == "yes", "a patch is kept: {patched}");
    let selected = api.get(&format!("{collection}?labelSelector=walked%3Dyes"))?;
    ensure!(names(&selected) == [name.clone()], "a selector finds it: {selected}");
    let stale = api.send(&json_request("PUT", &one, &before)?)?;
    ensure!(stale.code == 409, "an update of an older version is refused: {}", stale.code);
    let mut patched = api.get(&one)?;
    remove_version(&mut patched);
    let updated = api.write("PUT", &one, &patched)?;
    ensure!(wished(&updated) == wished(&patched), "an update without changes changes nothing: {updated}");

    answer(api, &json_request("DELETE", &one, &json!({"gracePeriodSeconds": 0}))?)?;
    let after = api.send(&Request::get(&one))?;
    let leaving = || {
        let left: Value = serde_json::from_slice(&after.body).unwrap_or_default();
        left["metadata"]["deletionTimestamp"].is_string()
    };
    ensure!(after.code == 404 || leaving(), "it is gone, or waits for its finalizers: {}", after.text());
    Ok(())
}

/// Without a version an update is not refused for its age.
fn remove_version(object: &mut Value) {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
    }
}

/// Who may nothing gets nothing.
fn refused(api: &Api, collection: &str) -> anyhow::Result<()> {
    let stranger = api.send(&Request::get(collection).header("Impersonate-User", "nobody"))?;
    ensure!(stranger.code == 403, "a stranger is refused: {}", stranger.code);
    Ok(())
}

/// Protobuf, YAML, a list, a table and a watch.
fn forms(api: &Api, kind: &Kind, collection: &str, one: &str, read: &Value) -> anyhow::Result<()> {
    let mut binary = api.send(&Request::get(one).header("Accept", PROTOBUF))?;
    ensure!(binary.body.starts_with(b"k8s\0"), "protobuf: {}", binary.text());
    // The server may write a status meanwhile.
    let mut tries = 0;
    let back = loop {
        let put = Request::with_body("PUT", one, PROTOBUF, binary.body);
        match answer(api, &put) {
            Err(_) if tries < 3 => binary = api.send(&Request::get(one).header("Accept", PROTOBUF))?,
            answered => break answered?,
        }
        tries += 1;
    };
    ensure!(wished(&back) == wished(read), "protobuf says the same: {back} and {read}");
    let yaml = api.send(&Request::get(one).header("Accept", "application/yaml"))?;
    let yaml: Value = serde_yaml::from_slice(&yaml.body)?;
    ensure!(wished(&yaml) == wished(read), "YAML says the same: {yaml} and {read}");

    let list = api.get(collection)?;
    ensure!(list["kind"] == format!("{}List", kind.name), "a list: {}", list["kind"]);
    let name = read["metadata"]["name"].as_str().unwrap_or_default();
    ensure!(names(&list).iter().any(|known| known == name), "the list has it");
    let table = Request::get(collection).header("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table = answer(api, &table)?;
    let columns = table["columnDefinitions"].as_array().map_or(0, Vec::len);
    let cells = table["rows"][0]["cells"].as_array().map_or(0, Vec::len);
    ensure!(columns > 0 && cells == columns, "{columns} columns, {cells} cells");

    let watch = format!("{collection}?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3D{name}");
    let events = api.send(&Request::get(&watch))?.text();
    let first: Value = serde_json::from_str(events.lines().next().unwrap_or_default())?;
    let same = wished(&first["object"]) == wished(read);
    ensure!(first["type"] == "ADDED" && same, "a watch begins with it: {events}");
    Ok(())
}

/// An object without its status, which the server writes at any time, and without what is nothing.
fn wished(object: &Value) -> Value {
    let mut out = object.clone();
    if let Some(map) = out.as_object_mut() {
        map.remove("status");
    }
    if let Some(metadata) = out["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
        metadata.remove("managedFields");
    }
    // Protobuf has no type in objects inside of others.
    for claim in out["spec"]["volumeClaimTemplates"].as_array_mut().into_iter().flatten() {
        if let Some(claim) = claim.as_object_mut() {
            claim.remove("apiVersion");
            claim.remove("kind");
        }
    }
    drop_nothing(&mut out);
    out
}

fn drop_nothing(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(drop_nothing);
            map.retain(|_, value| !value.is_null() && *value != json!({}) && *value != json!([]));
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nothing),
        _ => {}
    }
}

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().into_iter().flatten();
    items.filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned)).collect()
}

fn json_request(method: &str, path: &str, body: &Value) -> anyhow::Result<Request> {
    Ok(Request::with_body(method, path, "application/json", serde_json::to_vec(body)?))
}

fn answer(api: &Api, request: &Request) -> anyhow::Result<Value> {
    let Response { code, body, .. } = api.send(request)?;
    let text = String::from_utf8_lossy(&body);
    ensure!((200..300).contains(&code), "{} {}: {code} {text}", request.method, request.path);
    Ok(serde_json::from_slice(&body)?)
}
