//! What every path of a kind answers, whatever the object: verbs, subresources, options, media types and selectors.

use coxswain_testkit::Request;
use serde_json::{Value, json};

use crate::compare::{Answer, Question, Report};
use crate::questions::{Sides, TABLE};

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// Patches that are none, or that make something else of an object.
const BROKEN: &[(&str, &str)] = &[
    ("merge-patch+json", "{"),
    ("merge-patch+json", "null"),
    ("merge-patch+json", r#"{"kind": "Other"}"#),
    ("merge-patch+json", r#"{"metadata": null}"#),
    ("merge-patch+json", r#"{"metadata": {"uid": "other"}}"#),
    ("merge-patch+json", r#"{"metadata": {"resourceVersion": "other"}}"#),
    ("strategic-merge-patch+json", "7"),
    ("strategic-merge-patch+json", r#"{"metadata": {"$patch": "other"}}"#),
    ("json-patch+json", "{}"),
    ("json-patch+json", r#"[{"op": "other", "path": "/metadata"}]"#),
    ("json-patch+json", r#"[{"op": "add", "path": "/metadata/labels", "other": 1}]"#),
    ("apply-patch+yaml", "[1]"),
    ("apply-patch+yaml", r#"{"apiVersion": "v1", "kind": "Other"}"#),
];

/// Asks about an object that both sides have.
pub fn object(
    sides: &Sides,
    kind: &str,
    document: &Value,
    collection: &str,
    report: &mut Report,
) -> anyhow::Result<()> {
    let name = document["metadata"]["name"].as_str().unwrap_or_default();
    let path = format!("{collection}/{name}");
    let mut ask = |what: &str, request: &Request| -> anyhow::Result<(Answer, Answer)> {
        let (ours, theirs) = sides.both(request)?;
        report.add(Question { kind: kind.into(), what: format!("{name} {what}") }, &ours, &theirs);
        Ok((ours, theirs))
    };
    let (ours, theirs) = ask("get", &Request::get(&path))?;
    if ours.code != 200 || theirs.code != 200 {
        return Ok(());
    }
    ask("get as table", &Request::get(&path).header("Accept", TABLE))?;
    let metadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    ask("get as metadata", &Request::get(&path).header("Accept", metadata))?;
    ask("create again", &Request::with_body("POST", collection, JSON, document.to_string()))?;
    let mut other = document.clone();
    other["metadata"]["namespace"] = "elsewhere".into();
    ask("create elsewhere", &Request::with_body("POST", collection, JSON, other.to_string()))?;
    let mut other = document.clone();
    other["kind"] = "Other".into();
    let dry = format!("{collection}?dryRun=All");
    ask("create another kind", &Request::with_body("POST", &dry, JSON, other.to_string()))?;
    other["kind"] = document["kind"].clone();
    other["apiVersion"] = "other/v1".into();
    ask("create another version", &Request::with_body("POST", &dry, JSON, other.to_string()))?;
    ask("create of text", &Request::with_body("POST", &dry, "text/plain", document.to_string()))?;
    ask("create of half", &Request::with_body("POST", &dry, JSON, "{\"kind\":"))?;
    ask("create of a list", &Request::with_body("POST", &dry, JSON, "[]"))?;
    let bad = format!("{collection}?dryRun=Some&fieldValidation=Bogus");
    ask("create with bad options", &Request::with_body("POST", &bad, JSON, document.to_string()))?;
    let put = |query: &str| format!("{path}?dryRun=All{query}");
    let mut old = document.clone();
    old["metadata"]["resourceVersion"] = "1".into();
    ask("put of an old version", &Request::with_body("PUT", &put(""), JSON, old.to_string()))?;
    let mut renamed = document.clone();
    renamed["metadata"]["name"] = "another".into();
    ask("put of another name", &Request::with_body("PUT", &put(""), JSON, renamed.to_string()))?;
    let absent = format!("{collection}/another?dryRun=All");
    ask("put of what is absent", &Request::with_body("PUT", &absent, JSON, renamed.to_string()))?;
    ask("patch of what is absent", &Request::with_body("PATCH", &absent, MERGE, "{}"))?;
    ask("delete of what is absent", &Request::with_body("DELETE", &absent, JSON, ""))?;
    ask("post to an object", &Request::with_body("POST", &path, JSON, document.to_string()))?;
    ask("put to a collection", &Request::with_body("PUT", collection, JSON, document.to_string()))?;
    let applied = put("&fieldManager=other&fieldValidation=Strict");
    let mut changed = document.clone();
    ask("apply by another", &Request::with_body("PATCH", &applied, APPLY, changed.to_string()))?;
    for section in ["spec", "data", "rules", "webhooks", "parameters"] {
        changed.get_mut(section).into_iter().for_each(contradict);
    }
    ask("apply in conflict", &Request::with_body("PATCH", &applied, APPLY, changed.to_string()))?;
    ask("apply by nobody", &Request::with_body("PATCH", &put(""), APPLY, document.to_string()))?;
    for (what, body) in [
        ("another uid", json!({"preconditions": {"uid": "another"}})),
        ("a wrong policy", json!({"propagationPolicy": "Bogus"})),
        ("two policies", json!({"propagationPolicy": "Orphan", "orphanDependents": true})),
        ("a wrong type", json!({"gracePeriodSeconds": "soon"})),
        ("nothing to wait for", json!({"gracePeriodSeconds": 0, "propagationPolicy": "Background"})),
    ] {
        // The query does not count beside a body.
        let mut body = body;
        body["dryRun"] = json!(["All"]);
        let request = Request::with_body("DELETE", &path, JSON, body.to_string());
        ask(&format!("delete with {what}"), &request)?;
    }
    for (media, body) in BROKEN {
        let media = format!("application/{media}");
        let of_nobody = format!("{absent}&fieldManager=differential");
        for path in [put("&fieldManager=differential&fieldValidation=Strict"), of_nobody] {
            ask(&format!("{media} {body}"), &Request::with_body("PATCH", &path, &media, *body))?;
        }
    }
    for sub in ["status", "scale", "bogus", "log", "status/more"] {
        let below = format!("{path}/{sub}");
        ask(&format!("get {sub}"), &Request::get(&below))?;
        let dry = format!("{below}?dryRun=All&fieldManager=differential");
        let body = json!({"status": {"replicas": "many"}, "spec": {"replicas": -1}}).to_string();
        ask(&format!("patch {sub}"), &Request::with_body("PATCH", &dry, MERGE, body))?;
        let body = json!({"status": {"conditions": [{"type": "A"}]}, "spec": {"replicas": 3}}).to_string();
        ask(&format!("patch {sub} again"), &Request::with_body("PATCH", &dry, MERGE, body))?;
    }
    managers(&ours, &theirs, &Question { kind: kind.into(), what: format!("{name} managers") }, report);
    Ok(())
}

/// Changes every scalar of a value.
fn contradict(value: &mut Value) {
    match value {
        Value::String(text) => text.push('x'),
        Value::Number(number) => *value = json!(number.as_i64().unwrap_or_default() + 1),
        Value::Array(items) => items.iter_mut().for_each(contradict),
        Value::Object(map) => map.values_mut().for_each(contradict),
        _ => {}
    }
}

/// Who owns what, whenever it was written.
fn managers(ours: &Answer, theirs: &Answer, question: &Question, report: &mut Report) {
    let entries = |answer: &Answer| {
        let mut entries = answer.body["metadata"]["managedFields"].clone();
        for entry in entries.as_array_mut().into_iter().flatten() {
            entry.as_object_mut().map(|entry| entry.remove("time"));
        }
        Answer { code: answer.code, body: json!({ "managers": entries }) }
    };
    let question = Question { kind: question.kind.clone(), what: question.what.clone() };
    report.add(question, &entries(ours), &entries(theirs));
}

/// Asks about a collection.
pub fn collection(sides: &Sides, kind: &str, collection: &str, report: &mut Report) -> anyhow::Result<()> {
    let mut ask = |what: &str, request: &Request| -> anyhow::Result<()> {
        let (ours, theirs) = sides.both(request)?;
        report.add(Question { kind: kind.into(), what: format!("collection: {what}") }, &ours, &theirs);
        Ok(())
    };
    for query in [
        "resourceVersionMatch=Exact",
        "resourceVersionMatch=Bogus&resourceVersion=1",
        "resourceVersionMatch=Exact&resourceVersion=0",
        "resourceVersionMatch=NotOlderThan&resourceVersion=1&continue=abc",
        "resourceVersionMatch=NotOlderThan&resourceVersion=999999999",
        "sendInitialEvents=true",
        "watch=true&sendInitialEvents=true&timeoutSeconds=1",
        "watch=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=1",
        "watch=true&resourceVersion=x&timeoutSeconds=1",
        "watch=maybe&timeoutSeconds=1&fieldSelector=metadata.name%3Dabsent",
        "timeoutSeconds=x",
        "allowWatchBookmarks=x&fieldSelector=metadata.name%3Dabsent",
        "limit=-1&fieldSelector=metadata.name%3Dabsent",
        "labelSelector=-a",
        "labelSelector=a%20in%20()",
        "labelSelector=a%3Db!",
        "fieldSelector=metadata.name%3Dabsent,metadata.namespace!%3Dx",
        "fieldSelector=metadata.name%20in%20(a)",
        "fieldSelector=spec.nodeName%3Dabsent",
        "fieldSelector=status.phase%3Dabsent",
        "fieldSelector=type%3Dabsent",
        "fieldSelector=metadata.uid%3Dabsent",
    ] {
        ask(query, &Request::get(&format!("{collection}?{query}")))?;
    }
    for accept in [
        "application/xml",
        "application/json;as=Table;v=v2;g=meta.k8s.io",
        "application/json;as=Bogus;v=v1;g=meta.k8s.io",
        "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
    ] {
        ask(accept, &Request::get(&format!("{collection}?limit=1")).header("Accept", accept))?;
    }
    let table = |query: &str| Request::get(&format!("{collection}?{query}")).header("Accept", TABLE);
    ask("table of nothing", &table("fieldSelector=metadata.name%3Dabsent"))?;
    ask("table with bad options", &table("includeObject=Bogus"))?;
    ask("table without objects", &table("includeObject=None&fieldSelector=metadata.name%3Dabsent"))?;
    for (what, query) in [
        ("delete all", "dryRun=All&labelSelector=absent%3Dabsent"),
        ("delete all with a bad selector", "dryRun=All&labelSelector=a%3D%3D%3Db"),
        ("delete all with a bad option", "dryRun=Bogus"),
    ] {
        ask(what, &Request::with_body("DELETE", &format!("{collection}?{query}"), JSON, ""))?;
    }
    ask("patch", &Request::with_body("PATCH", collection, MERGE, "{}"))?;
    ask("generated name", &Request::with_body("POST", &format!("{collection}?dryRun=All"), JSON, "{}"))?;
    Ok(())
}
