//! The questions, asked of both sides.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use coxswain_testkit::{Api, Request, Response, eventually};
use serde_json::{Value, json};

use crate::Arguments;
use crate::compare::{Answer, Question, Report};
use crate::mutate::mutations;
use crate::surface;

/// Ours and upstream's.
pub struct Sides {
    pub ours: Api,
    pub theirs: Api,
}

const ESTABLISHED: Duration = Duration::from_secs(3);
pub const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

impl Sides {
    /// The answers of both to the same request.
    pub fn both(&self, request: &Request) -> anyhow::Result<(Answer, Answer)> {
        self.each(request, request)
    }

    /// The answers of both, each to its own request.
    fn each(&self, request: &Request, of_theirs: &Request) -> anyhow::Result<(Answer, Answer)> {
        let ours = self.ours.send(request).with_context(|| format!("{} {}", request.method, request.path))?;
        let theirs = match self.theirs.send(of_theirs) {
            Ok(theirs) => theirs,
            // Upstream ends the connection where it panics: that is no answer to be equal to.
            Err(error) => {
                eprintln!("the oracle does not answer {} {}: {error}", request.method, request.path);
                Response { code: 0, ..ours.clone() }
            }
        };
        Ok((Answer::of(ours), Answer::of(theirs)))
    }
}

/// Where objects of a kind are, as upstream's discovery says.
struct Place {
    collection: String,
}

fn place(sides: &Sides, document: &Value) -> anyhow::Result<Option<Place>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = text(&document["apiVersion"]);
    let root = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    let answer = Answer::of(sides.theirs.send(&Request::get(&root))?);
    let resources = answer.body["resources"].as_array().cloned().unwrap_or_default();
    let found = resources.iter().find(|r| r["kind"] == document["kind"] && !text(&r["name"]).contains('/'));
    Ok(found.map(|resource| {
        let namespaced = resource["namespaced"] == true;
        let namespace = match text(&document["metadata"]["namespace"]) {
            empty if empty.is_empty() => "default".to_owned(),
            namespace => namespace,
        };
        let name = text(&resource["name"]);
        let collection = if namespaced {
            format!("{root}/namespaces/{namespace}/{name}")
        } else {
            format!("{root}/{name}")
        };
        Place { collection }
    }))
}

/// Asks everything.
pub fn ask(
    sides: &Sides,
    documents: &[Value],
    arguments: &Arguments,
    report: &mut Report,
) -> anyhow::Result<()> {
    prepare(sides, documents)?;
    let mut collections = BTreeSet::new();
    for (at, document) in documents.iter().enumerate() {
        let kind = document["kind"].as_str().unwrap_or_default();
        if arguments.only.as_ref().is_some_and(|only| only != kind) {
            continue;
        }
        let Some(place) = place(sides, document)? else {
            eprintln!("{kind} is unknown to the oracle");
            continue;
        };
        collections.insert((kind.to_owned(), place.collection.clone()));
        let name = document["metadata"]["name"].as_str().unwrap_or_default();
        let ask = Ask { sides, kind, name, collection: &place.collection };
        let seed = arguments.seed.wrapping_mul(1_000_003).wrapping_add(at as u64);
        for mutation in mutations(document, seed, arguments.mutations) {
            ask.post(&mutation.what, mutation.body, "&dryRun=All", report)?;
        }
        ask.post("create", document.to_string(), "", report)?;
        if kind == "CustomResourceDefinition" {
            established(sides, &format!("{}/{name}", place.collection));
        }
        ask.updates(seed, arguments.mutations / 2, report)?;
        if at % 4 == 0 {
            ask.patches(report)?;
            ask.seeded_patches(document, seed, report)?;
        }
        if arguments.surface {
            surface::object(sides, kind, document, &place.collection, report)?;
        }
    }
    for (kind, collection) in &collections {
        reads(sides, kind, collection, report)?;
        if arguments.surface {
            surface::collection(sides, kind, collection, report)?;
        }
    }
    discovery(sides, report)
}

/// Waits until both sides serve what a definition brings, or for long enough: some are never served.
fn established(sides: &Sides, path: &str) {
    let serves = |api: &Api| -> anyhow::Result<()> {
        let answer = Answer::of(api.send(&Request::get(path))?);
        let conditions = answer.body["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let holds = |c: &Value| c["type"] == "Established" && c["status"] == "True";
        anyhow::ensure!(answer.code != 200 || conditions.iter().any(holds), "not established");
        Ok(())
    };
    for api in [&sides.ours, &sides.theirs] {
        if let Err(error) = eventually("the definition", ESTABLISHED, || serves(api)) {
            eprintln!("{path}: {error}");
        }
    }
}

/// What the manifests rely on: their namespaces, each with its service account.
fn prepare(sides: &Sides, documents: &[Value]) -> anyhow::Result<()> {
    let namespaces: BTreeSet<&str> =
        documents.iter().filter_map(|d| d["metadata"]["namespace"].as_str()).chain(["default"]).collect();
    for namespace in namespaces {
        let object = json!({"metadata": {"name": namespace}});
        let account = json!({"metadata": {"name": "default"}});
        for api in [&sides.ours, &sides.theirs] {
            for (path, body) in [
                ("/api/v1/namespaces".to_owned(), &object),
                (format!("/api/v1/namespaces/{namespace}/serviceaccounts"), &account),
            ] {
                api.send(&Request::with_body("POST", &path, "application/json", body.to_string()))?;
            }
        }
    }
    Ok(())
}

struct Ask<'a> {
    sides: &'a Sides,
    kind: &'a str,
    name: &'a str,
    collection: &'a str,
}

impl Ask<'_> {
    fn question(&self, what: &str) -> Question {
        Question { kind: self.kind.to_owned(), what: format!("{} {what}", self.name) }
    }

    fn post(&self, what: &str, body: String, query: &str, report: &mut Report) -> anyhow::Result<()> {
        let path = format!("{}?fieldValidation=Strict{query}", self.collection);
        let (ours, theirs) = self.sides.both(&Request::with_body("POST", &path, "application/json", body))?;
        report.add(self.question(what), &ours, &theirs);
        Ok(())
    }

    /// Each side's own object, changed in the same way and sent back as a dry run.
    fn updates(&self, seed: u64, count: usize, report: &mut Report) -> anyhow::Result<()> {
        let path = format!("{}/{}", self.collection, self.name);
        let (ours, theirs) = self.sides.both(&Request::get(&path))?;
        if ours.code != 200 || theirs.code != 200 {
            return Ok(());
        }
        let path = format!("{path}?fieldValidation=Strict&dryRun=All");
        // The same places exist in both objects as long as they are equal but for metadata.
        let strip = |object: &Value| {
            let mut object = object.clone();
            for key in ["uid", "resourceVersion", "creationTimestamp", "managedFields"] {
                object["metadata"].as_object_mut().map(|m| m.remove(key));
            }
            object
        };
        if strip(&ours.body) != strip(&theirs.body) {
            return Ok(());
        }
        for mutation in mutations(&strip(&theirs.body), seed ^ 0xa5a5, count) {
            let put = |object: &Value| {
                let own = |key: &str| object["metadata"][key].clone();
                // Text only: the mutation may repeat keys.
                let own = json!({"uid": own("uid"), "resourceVersion": own("resourceVersion")}).to_string();
                let inner = own.trim_matches(['{', '}']);
                let body = mutation.body.replacen("\"metadata\":{", &format!("\"metadata\":{{{inner},"), 1);
                Request::with_body("PUT", &path, "application/json", body)
            };
            let (ours, theirs) = self.sides.each(&put(&ours.body), &put(&theirs.body))?;
            report.add(self.question(&format!("update {}", mutation.what)), &ours, &theirs);
        }
        Ok(())
    }

    /// The manifest, mutated, as a patch of each kind, and as a whole in YAML.
    fn seeded_patches(&self, document: &Value, seed: u64, report: &mut Report) -> anyhow::Result<()> {
        let object = format!("{}/{}", self.collection, self.name);
        let options = "fieldValidation=Strict&dryRun=All&fieldManager=differential";
        for (i, (media, force)) in [
            ("application/merge-patch+json", ""),
            ("application/strategic-merge-patch+json", ""),
            ("application/apply-patch+yaml", ""),
            ("application/apply-patch+yaml", "&force=true"),
            ("application/json-patch+json", ""),
            ("application/yaml", ""),
        ]
        .into_iter()
        .enumerate()
        {
            let seed = seed ^ (0x77 * (i as u64 + 1));
            for mutation in mutations(document, seed, 2) {
                let (method, path, body) = match media {
                    "application/json-patch+json" => {
                        let Ok(mutated) = serde_json::from_str::<Value>(&mutation.body) else { continue };
                        let members = mutated.as_object().into_iter().flatten();
                        let steps = members.filter(|(key, _)| *key != "metadata").map(
                            |(key, value)| json!({"op": "add", "path": format!("/{key}"), "value": value}),
                        );
                        ("PATCH", &object, json!(steps.collect::<Vec<_>>()).to_string())
                    }
                    "application/yaml" => ("POST", &self.collection.to_owned(), mutation.body),
                    _ => ("PATCH", &object, mutation.body),
                };
                let request = Request::with_body(method, &format!("{path}?{options}{force}"), media, body);
                let (ours, theirs) = self.sides.both(&request)?;
                report.add(self.question(&format!("{media}{force} {}", mutation.what)), &ours, &theirs);
            }
        }
        Ok(())
    }

    fn patches(&self, report: &mut Report) -> anyhow::Result<()> {
        let path = format!("{}/{}?dryRun=All&fieldManager=differential", self.collection, self.name);
        for (media, body) in [
            ("application/merge-patch+json", json!({"metadata": {"labels": {"patched": "yes"}}})),
            ("application/merge-patch+json", json!({"metadata": {"labels": {"patched": "no spaces!"}}})),
            ("application/merge-patch+json", json!({"metadata": {"name": "other"}})),
            ("application/merge-patch+json", json!({"spec": null})),
            ("application/merge-patch+json", json!({"status": {"conditions": []}})),
            ("application/merge-patch+json", json!([1])),
            ("text/plain", json!({})),
            ("application/apply-patch+yaml", json!({"metadata": {"labels": {"applied": "yes"}}})),
            ("application/strategic-merge-patch+json", json!({"metadata": {"finalizers": ["a.example/b"]}})),
            ("application/json-patch+json", json!([{"op": "remove", "path": "/metadata/absent"}])),
            (
                "application/json-patch+json",
                json!([{"op": "test", "path": "/metadata/name", "value": "another"}]),
            ),
        ] {
            let request = Request::with_body("PATCH", &path, media, body.to_string());
            let (ours, theirs) = self.sides.both(&request)?;
            report.add(self.question(&format!("{media} {body}")), &ours, &theirs);
        }
        Ok(())
    }
}

/// Tables, selectors and paging of a collection.
fn reads(sides: &Sides, kind: &str, collection: &str, report: &mut Report) -> anyhow::Result<()> {
    for (what, query, accept) in [
        ("table", "", TABLE),
        ("first page", "limit=1", "application/json"),
        ("as bare metadata", "limit=2", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"),
        ("label selector", "labelSelector=app%20in%20(web,api)", "application/json"),
        ("bad label selector", "labelSelector=a%3D%3D%3Db%20c", "application/json"),
        ("bad field selector", "fieldSelector=spec.bogus%3Dx", "application/json"),
        ("field selector", "fieldSelector=metadata.name%3Dabsent", "application/json"),
        ("limit", "limit=x", "application/json"),
        ("continue", "continue=bogus", "application/json"),
        ("version", "resourceVersion=x", "application/json"),
        ("media type", "", "text/html"),
    ] {
        let request = Request::get(&format!("{collection}?{query}")).header("Accept", accept);
        let (ours, theirs) = sides.both(&request)?;
        report.add(Question { kind: kind.into(), what: format!("list: {what}") }, &ours, &theirs);
    }
    let (ours, theirs) = sides.both(&Request::get(&format!("{collection}/absent")))?;
    report.add(Question { kind: kind.into(), what: "get absent".into() }, &ours, &theirs);
    Ok(())
}

/// What upstream serves in stable versions, resource by resource.
fn discovery(sides: &Sides, report: &mut Report) -> anyhow::Result<()> {
    let groups = Answer::of(sides.theirs.send(&Request::get("/apis"))?);
    let mut roots = vec!["/api/v1".to_owned()];
    for group in groups.body["groups"].as_array().into_iter().flatten() {
        let versions = group["versions"].as_array().into_iter().flatten();
        roots.extend(versions.filter_map(|v| Some(format!("/apis/{}", v["groupVersion"].as_str()?))));
    }
    for root in roots.iter().filter(|root| !root.contains("alpha") && !root.contains("beta")) {
        let (ours, theirs) = sides.both(&Request::get(root))?;
        let named = |answer: &Answer, name: &Value| {
            let list = answer.body["resources"].as_array().into_iter().flatten();
            list.filter(|r| &r["name"] == name)
                .cloned()
                .map(|mut resource| {
                    resource.as_object_mut().map(|r| r.remove("storageVersionHash"));
                    resource
                })
                .next()
                .unwrap_or_default()
        };
        for resource in theirs.body["resources"].as_array().into_iter().flatten() {
            let name = &resource["name"];
            let answer = |from: &Answer| Answer { code: 200, body: named(from, name) };
            let question = Question { kind: "discovery".into(), what: format!("{root} {name}") };
            report.add(question, &answer(&ours), &answer(&theirs));
        }
    }
    Ok(())
}
