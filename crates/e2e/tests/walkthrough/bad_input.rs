//! Step 8: what is wrong is refused with a 4xx `Status` that says where and why, as upstream words it.

use coxswain_testkit::Request;
use serde_json::{Value, json};

use crate::Walk;

const PODS: &str = "/api/v1/namespaces/default/pods";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const STRICT: &str = "?fieldValidation=Strict";
const YAML: &str = "application/yaml";

/// What is sent, and what the answer must have.
struct Case {
    name: &'static str,
    request: Request,
    code: u16,
    fragments: &'static [&'static str],
}

pub fn is_refused(walk: &Walk) -> anyhow::Result<String> {
    let cases: Vec<Case> = [malformed(), fields(), values(), changes()].into_iter().flatten().collect();
    let count = cases.len();
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| check(walk, case).err().map(|error| format!("{}: {error:#}", case.name)))
        .collect();
    anyhow::ensure!(wrong.is_empty(), "{} of {count} answers are wrong:\n{}", wrong.len(), wrong.join("\n"));
    let unknown = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndatum: {a: b}\n";
    let refused = walk.cluster.kubectl_with_input(&["apply", "-f", "-"], unknown)?;
    anyhow::ensure!(!refused.ok && refused.stderr.contains("unknown field"), "{refused:?}");
    let malformed = walk.cluster.kubectl_with_input(&["apply", "-f", "-"], "kind: [ConfigMap\n")?;
    anyhow::ensure!(!malformed.ok && malformed.stderr.contains("error"), "{malformed:?}");
    Ok(format!("{count} wrong requests, each refused in words; kubectl shows them"))
}

pub fn bad_bodies_are_refused(walk: &Walk) -> anyhow::Result<String> {
    let huge = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "huge"},
        "data": {"a": "x".repeat(4 << 20)}});
    let case = Case {
        name: "a huge body",
        request: Request::with_body("POST", CONFIG_MAPS, "application/json", huge.to_string()),
        code: 413,
        fragments: &["RequestEntityTooLarge", "limit is 3145728"],
    };
    check(walk, &case)?;
    let body = br#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cut"#;
    let mut cut = Request::with_body("POST", CONFIG_MAPS, "application/json", *body);
    check(
        walk,
        &Case { name: "half a document", request: cut.clone(), code: 400, fragments: &["BadRequest"] },
    )?;
    // The connection ends before the announced length: whatever is answered, nothing may be written or break.
    cut.announced_length = Some(body.len() + 100);
    if let Ok(response) = walk.api.send(&cut) {
        anyhow::ensure!((400..500).contains(&response.code), "{} {}", response.code, response.text());
    }
    let list = walk.api.get(CONFIG_MAPS)?;
    let names: Vec<&Value> =
        list["items"].as_array().into_iter().flatten().map(|o| &o["metadata"]["name"]).collect();
    anyhow::ensure!(!names.iter().any(|name| **name == "cut" || **name == "huge"), "{names:?}");
    let ready = walk.api.send(&Request::get("/readyz"))?;
    anyhow::ensure!(ready.code == 200, "{}", ready.code);
    let log = std::fs::read_to_string(walk.cluster.log_file())?;
    anyhow::ensure!(!log.contains("panicked at"), "the server panicked:\n{}", walk.cluster.log_tail());
    Ok("413 for 4 MiB, 400 for half a document; the server is well, and never panicked".to_owned())
}

fn check(walk: &Walk, case: &Case) -> anyhow::Result<()> {
    let response = walk.api.send(&case.request)?;
    let text = response.text();
    anyhow::ensure!(response.code == case.code, "{} instead of {}: {text}", response.code, case.code);
    let status: Value = serde_json::from_str(&text)?;
    anyhow::ensure!(status["kind"] == "Status" && status["code"] == case.code, "{text}");
    for fragment in case.fragments {
        let unescaped = text.replace("\\\"", "\"");
        anyhow::ensure!(unescaped.contains(fragment), "no {fragment:?} in {text}");
    }
    Ok(())
}

fn post(path: &str, object: &Value) -> Request {
    Request::with_body("POST", path, "application/json", object.to_string())
}

fn malformed() -> Vec<Case> {
    let raw = |path: &str, media_type: &str, body: &str| Request::with_body("POST", path, media_type, body);
    vec![
        Case {
            name: "malformed YAML",
            request: raw(CONFIG_MAPS, YAML, "kind: [ConfigMap\nmetadata: {"),
            code: 400,
            fragments: &["BadRequest"],
        },
        Case {
            name: "malformed JSON",
            request: raw(CONFIG_MAPS, "application/json", "{\"kind\": }"),
            code: 400,
            fragments: &["BadRequest"],
        },
        Case {
            name: "not an object",
            request: raw(CONFIG_MAPS, "application/json", "[1, 2]"),
            code: 400,
            fragments: &["BadRequest"],
        },
        Case {
            name: "another kind",
            request: post(PODS, &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}})),
            code: 400,
            fragments: &["BadRequest"],
        },
        Case {
            name: "a media type nobody knows",
            request: raw(CONFIG_MAPS, "text/csv", "a,b"),
            code: 415,
            fragments: &["UnsupportedMediaType"],
        },
    ]
}

fn fields() -> Vec<Case> {
    let with_typo = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"},
        "spec": {"replcas": 3, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let mut wrong_type = with_typo.clone();
    wrong_type["spec"] = json!({"replicas": "three"});
    vec![
        Case {
            name: "an unknown field",
            request: post(&format!("{DEPLOYMENTS}{STRICT}"), &with_typo),
            code: 400,
            fragments: &["strict decoding error", "unknown field \"spec.replcas\""],
        },
        Case {
            name: "a field repeated in JSON",
            request: Request::with_body(
                "POST",
                &format!("{CONFIG_MAPS}{STRICT}"),
                "application/json",
                r#"{"metadata": {"name": "x"}, "data": {"a": "b", "a": "c"}}"#,
            ),
            code: 400,
            fragments: &["strict decoding error", "duplicate field \"data.a\""],
        },
        Case {
            name: "a field repeated in YAML",
            request: Request::with_body(
                "POST",
                &format!("{CONFIG_MAPS}{STRICT}"),
                YAML,
                "metadata:\n  name: x\ndata:\n  a: b\n  a: c\n",
            ),
            code: 400,
            fragments: &["strict decoding error", "line 5: key \"a\" already set in map"],
        },
        Case {
            name: "a wrong type",
            request: post(DEPLOYMENTS, &wrong_type),
            code: 400,
            fragments: &["BadRequest", "replicas"],
        },
    ]
}

fn pod(name: &str, container: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container]}})
}

fn values() -> Vec<Case> {
    let service = |port: i64| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"ports": [{"port": port}]}});
    let limits = json!({"name": "c", "image": "i", "resources": {"limits": {"memory": "1 gig"}}});
    let invalid = |name, request, fragments| Case { name, request, code: 422, fragments };
    vec![
        Case {
            name: "a bad quantity",
            request: post(PODS, &pod("x", limits)),
            code: 400,
            fragments: &["BadRequest", "quantities must match the regular expression"],
        },
        invalid(
            "a name that is no DNS label",
            post(PODS, &pod("Not_A_Name", json!({"name": "c", "image": "i"}))),
            &["Invalid", "metadata.name", "lowercase RFC 1123 subdomain"],
        ),
        invalid(
            "no image",
            post(PODS, &pod("x", json!({"name": "c"}))),
            &["spec.containers[0].image", "Required value"],
        ),
        invalid(
            "two errors at once",
            post(PODS, &pod("x", json!({"name": "C!", "image": "i", "ports": [{"containerPort": 99999}]}))),
            &["spec.containers[0].name", "spec.containers[0].ports[0].containerPort", "between 1 and 65535"],
        ),
        invalid(
            "a port out of range",
            post(SERVICES, &service(70000)),
            &["spec.ports[0].port", "Invalid value: 70000", "between 1 and 65535"],
        ),
        invalid(
            "a data key that is no file name",
            post(
                CONFIG_MAPS,
                &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a/b": "c"}}),
            ),
            &["data[a/b]", "Invalid value"],
        ),
    ]
}

fn changes() -> Vec<Case> {
    let patch = |path: &str, document: &Value| {
        Request::with_body("PATCH", path, "application/merge-patch+json", document.to_string())
    };
    let notepad = format!("{DEPLOYMENTS}/notepad");
    vec![
        Case {
            name: "an immutable field changed",
            request: patch(
                &notepad,
                &json!({"spec": {"selector": {"matchLabels": {"app": "other"}},
                "template": {"metadata": {"labels": {"app": "other"}}}}}),
            ),
            code: 422,
            fragments: &["spec.selector", "field is immutable"],
        },
        Case {
            name: "a pod's command changed",
            request: patch(&format!("{PODS}/reader"), &json!({"spec": {"hostNetwork": true}})),
            code: 422,
            fragments: &["pod updates may not change fields other than"],
        },
        Case {
            name: "negative replicas",
            request: patch(&notepad, &json!({"spec": {"replicas": -1}})),
            code: 422,
            fragments: &["spec.replicas", "must be greater than or equal to 0"],
        },
        Case {
            name: "an object that is there",
            request: post(
                SERVICES,
                &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "notepad"},
                "spec": {"ports": [{"port": 80}]}}),
            ),
            code: 409,
            fragments: &["AlreadyExists", "services \"notepad\" already exists"],
        },
        Case {
            name: "a stale resourceVersion",
            request: patch(&notepad, &json!({"metadata": {"resourceVersion": "1"}})),
            code: 409,
            fragments: &["Conflict", "the object has been modified"],
        },
        Case {
            name: "an object that is not there",
            request: Request::get(&format!("{PODS}/nobody")),
            code: 404,
            fragments: &["NotFound", "pods \"nobody\" not found"],
        },
    ]
}
