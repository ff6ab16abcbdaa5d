//! The operations of a kind, in the terms both OpenAPI versions share.

use coxswain_meta::json::{Map, Value, json};

use super::custom::CustomKind;
use crate::catalogue::{ALL_VERBS, Kind, Subresource};
use crate::schema;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
const ANSWER_TYPES: [&str; 3] =
    ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// `(name, type, description)` of a query parameter.
type Parameter = (&'static str, &'static str, &'static str);

const DRY_RUN: Parameter = ("dryRun", "string", "`All` processes the request without persisting anything.");
const MANAGER: Parameter = ("fieldManager", "string", "Name of the actor that makes the change.");
const VALIDATION: Parameter =
    ("fieldValidation", "string", "What to do with unknown and duplicate fields: Ignore, Warn or Strict.");
const FORCE: Parameter =
    ("force", "boolean", "Take fields over from other managers; for apply patches only.");
const LABELS: Parameter = ("labelSelector", "string", "Restricts the objects by their labels.");
const FIELDS: Parameter = ("fieldSelector", "string", "Restricts the objects by their fields.");
const VERSION: Parameter = ("resourceVersion", "string", "Constrains which versions may be served.");
const MATCH: Parameter =
    ("resourceVersionMatch", "string", "How resourceVersion constrains: Exact or NotOlderThan.");
const LIMIT: Parameter = ("limit", "integer", "Largest number of objects in the answer.");
const CONTINUE: Parameter = ("continue", "string", "Token of the answer that this one continues.");
const TIMEOUT: Parameter = ("timeoutSeconds", "integer", "How long the request may take.");
const WATCH: Parameter = ("watch", "boolean", "Streams changes instead of listing.");
const BOOKMARKS: Parameter = ("allowWatchBookmarks", "boolean", "Asks for bookmark events.");
const INITIAL: Parameter = ("sendInitialEvents", "boolean", "Begins a watch with the present objects.");
const GRACE: Parameter = ("gracePeriodSeconds", "integer", "Seconds until the object is deleted.");
const PROPAGATION: Parameter =
    ("propagationPolicy", "string", "What happens to dependents: Orphan, Background or Foreground.");

const LIST: &[Parameter] =
    &[BOOKMARKS, CONTINUE, FIELDS, LABELS, LIMIT, VERSION, MATCH, INITIAL, TIMEOUT, WATCH];
const WRITE: &[Parameter] = &[DRY_RUN, MANAGER, VALIDATION];
const PATCH: &[Parameter] = &[DRY_RUN, MANAGER, VALIDATION, FORCE];
const DELETE: &[Parameter] = &[DRY_RUN, GRACE, PROPAGATION];

/// Makes the operation of a verb.
type Make = fn(&Builder<'_>) -> Operation;

/// A path and what can be done there.
pub(super) struct PathItem {
    pub(super) path: String,
    pub(super) operations: Vec<Operation>,
}

/// One operation.
pub(super) struct Operation {
    method: &'static str,
    action: &'static str,
    id: String,
    tag: String,
    gvk: [String; 3],
    query: &'static [Parameter],
    /// Definition of the body.
    body: Option<String>,
    /// Definition of the answer, none for plain text and streams.
    answer: Option<String>,
}

/// The names that paths and operations are made of.
pub(super) struct Served<'a> {
    group: &'a str,
    version: &'a str,
    kind: &'a str,
    list_kind: &'a str,
    plural: &'a str,
    namespaced: bool,
    verbs: &'a [&'static str],
    subresources: Vec<Sub<'a>>,
    /// What the names of a custom resource's definitions begin with.
    prefix: Option<String>,
}

struct Sub<'a> {
    name: &'a str,
    gvk: [&'a str; 3],
    verbs: &'a [&'static str],
}

impl<'a> From<&'a Kind> for Served<'a> {
    fn from(kind: &'a Kind) -> Self {
        let sub = |sub: &'a Subresource| Sub {
            name: sub.name,
            gvk: [sub.group, sub.version, sub.kind],
            verbs: sub.verbs,
        };
        Self {
            group: kind.group,
            version: kind.version,
            kind: kind.kind,
            list_kind: kind.list_kind,
            plural: kind.plural,
            namespaced: kind.namespaced,
            verbs: kind.verbs,
            subresources: kind.subresources.iter().map(sub).collect(),
            prefix: None,
        }
    }
}

impl<'a> From<&'a CustomKind> for Served<'a> {
    fn from(custom: &'a CustomKind) -> Self {
        let own = [custom.group.as_str(), &custom.version, &custom.kind];
        let gvk = |name: &str| if name == "scale" { ["autoscaling", "v1", "Scale"] } else { own };
        Self {
            group: &custom.group,
            version: &custom.version,
            kind: &custom.kind,
            list_kind: &custom.list_kind,
            plural: &custom.plural,
            namespaced: custom.namespaced,
            verbs: ALL_VERBS,
            subresources: custom
                .subresources
                .iter()
                .map(|name| Sub { name, gvk: gvk(name), verbs: &["get", "patch", "update"] })
                .collect(),
            prefix: Some(custom.prefix()),
        }
    }
}

/// All paths of a kind.
pub(super) fn of<'a>(kind: impl Into<Served<'a>>) -> Vec<PathItem> {
    let kind = &kind.into();
    let root = match kind.group {
        "" => format!("/api/{}", kind.version),
        group => format!("/apis/{group}/{}", kind.version),
    };
    let mut items = Vec::new();
    let collection = if kind.namespaced {
        if kind.verbs.contains(&"list") {
            let all = Builder { kind, suffix: "ForAllNamespaces", scope: "" };
            let path = format!("{root}/{}", kind.plural);
            items.push(PathItem { path, operations: vec![all.list()] });
        }
        format!("{root}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("{root}/{}", kind.plural)
    };
    let build = Builder { kind, suffix: "", scope: if kind.namespaced { "Namespaced" } else { "" } };
    let pick = |verbs: &[(&str, Make)]| -> Vec<Operation> {
        verbs.iter().filter(|(verb, _)| kind.verbs.contains(verb)).map(|(_, make)| make(&build)).collect()
    };
    let many = pick(&[
        ("list", |b| b.list()),
        ("create", |b| b.write("post", "post", "create", kind_of(b.kind))),
        ("deletecollection", |b| b.delete_collection()),
    ]);
    let one = pick(&[
        ("get", |b| b.operation("get", "get", "read", &[], None, kind_of(b.kind))),
        ("update", |b| b.write("put", "put", "replace", kind_of(b.kind))),
        ("patch", |b| b.patch(kind_of(b.kind))),
        ("delete", |b| b.delete()),
    ]);
    items.push(PathItem { path: collection.clone(), operations: many });
    items.push(PathItem { path: format!("{collection}/{{name}}"), operations: one });
    items.extend(kind.subresources.iter().map(|sub| PathItem {
        path: format!("{collection}/{{name}}/{}", sub.name),
        operations: build.subresource(sub),
    }));
    items.retain(|item| !item.operations.is_empty());
    items
}

fn kind_of<'a>(kind: &Served<'a>) -> [&'a str; 3] {
    [kind.group, kind.version, kind.kind]
}

fn definition([group, version, kind]: [&str; 3]) -> Option<String> {
    // What is known from Go alone, the options of streams, has no definition.
    let described = kind == "DeleteOptions" || !kind.ends_with("Options");
    schema::by_gvk(group, version, kind).filter(|_| described).map(|t| t.name().to_owned())
}

fn title(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

struct Builder<'a> {
    kind: &'a Served<'a>,
    suffix: &'static str,
    scope: &'static str,
}

impl Builder<'_> {
    fn definition(&self, gvk: [&str; 3]) -> Option<String> {
        match &self.kind.prefix {
            Some(prefix) if gvk[0] == self.kind.group => Some(format!("{prefix}.{}", gvk[2])),
            _ => definition(gvk),
        }
    }

    fn operation(
        &self,
        method: &'static str,
        action: &'static str,
        verb: &str,
        query: &'static [Parameter],
        body: Option<String>,
        gvk: [&str; 3],
    ) -> Operation {
        let group = self.kind.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
        let version = title(self.kind.version);
        let id = format!("{verb}{}{version}{}{}{}", title(group), self.scope, self.kind.kind, self.suffix);
        Operation {
            method,
            action,
            id,
            tag: format!("{group}_{}", self.kind.version),
            gvk: gvk.map(str::to_owned),
            query,
            body,
            answer: self.definition(gvk),
        }
    }

    fn list(&self) -> Operation {
        let answer = self.definition([self.kind.group, self.kind.version, self.kind.list_kind]);
        Operation { answer, ..self.operation("get", "list", "list", LIST, None, kind_of(self.kind)) }
    }

    fn write(&self, method: &'static str, action: &'static str, verb: &str, gvk: [&str; 3]) -> Operation {
        self.operation(method, action, verb, WRITE, self.definition(gvk), gvk)
    }

    fn patch(&self, gvk: [&str; 3]) -> Operation {
        self.operation("patch", "patch", "patch", PATCH, Some(format!("{META}.Patch")), gvk)
    }

    fn delete(&self) -> Operation {
        let body = Some(format!("{META}.DeleteOptions"));
        let answer = Some(format!("{META}.Status"));
        Operation { answer, ..self.operation("delete", "delete", "delete", DELETE, body, kind_of(self.kind)) }
    }

    fn delete_collection(&self) -> Operation {
        Operation {
            action: "deletecollection",
            id: self.operation("delete", "", "deleteCollection", LIST, None, kind_of(self.kind)).id,
            query: LIST,
            ..self.delete()
        }
    }

    fn subresource(&self, sub: &Sub) -> Vec<Operation> {
        let gvk = sub.gvk;
        let connects = self.definition(gvk).is_none();
        let make = |verb: &&str| {
            let mut operation = match *verb {
                "create" if connects => self.operation("post", "connect", "connectPost", &[], None, gvk),
                "create" => self.write("post", "post", "create", gvk),
                "update" if connects => self.operation("put", "connect", "connectPut", &[], None, gvk),
                "update" => self.write("put", "put", "replace", gvk),
                "patch" if connects => self.operation("patch", "connect", "connectPatch", &[], None, gvk),
                "patch" => self.patch(gvk),
                "delete" => self.operation("delete", "connect", "connectDelete", &[], None, gvk),
                _ if connects => self.operation("get", "connect", "connectGet", &[], None, gvk),
                _ => self.operation("get", "get", "read", &[], None, gvk),
            };
            operation.id.push_str(&title(sub.name));
            operation
        };
        sub.verbs.iter().map(make).collect()
    }
}

impl Operation {
    /// The definitions it refers to.
    pub(super) fn definitions(&self) -> impl Iterator<Item = &str> {
        self.body.iter().chain(&self.answer).map(String::as_str)
    }

    fn description(&self) -> String {
        format!("{} objects of kind {}", self.action, self.gvk[2])
    }

    fn common(&self) -> Map {
        let [group, version, kind] = &self.gvk;
        let mut out = Map::new();
        out.insert("description", self.description().into());
        out.insert("operationId", self.id.as_str().into());
        out.insert("tags", json!([self.tag]));
        out.insert("x-kubernetes-action", self.action.into());
        let gvk = json!({"group": group, "kind": kind, "version": version});
        out.insert("x-kubernetes-group-version-kind", gvk);
        out
    }

    /// The media types of the body.
    fn body_types(&self) -> &'static [&'static str] {
        if self.method == "patch" { &PATCH_TYPES } else { &["*/*"] }
    }

    fn v3(&self) -> Value {
        let mut out = self.common();
        let reference = |name: &String| json!({"schema": {"$ref": format!("#/components/schemas/{name}")}});
        let parameters: Vec<Value> = self.query.iter().map(query_v3).collect();
        out.insert("parameters", parameters.into());
        if let Some(body) = &self.body {
            let types = self.body_types().iter().map(|t| ((*t).to_owned(), reference(body)));
            let content: Map = types.collect();
            out.insert("requestBody", json!({"content": content, "required": self.method != "delete"}));
        }
        let answer = match &self.answer {
            Some(name) => {
                let types = ANSWER_TYPES.iter().map(|t| ((*t).to_owned(), reference(name)));
                json!({"description": "OK", "content": types.collect::<Map>()})
            }
            None => json!({"description": "OK", "content": {"*/*": {"schema": {"type": "string"}}}}),
        };
        out.insert("responses", json!({"200": answer, "401": {"description": "Unauthorized"}}));
        out.into()
    }

    fn v2(&self) -> Value {
        let mut out = self.common();
        let reference = |name: &String| json!({"$ref": format!("#/definitions/{name}")});
        let mut parameters: Vec<Value> = Vec::new();
        if let Some(body) = &self.body {
            let required = self.method != "delete";
            parameters
                .push(json!({"in": "body", "name": "body", "required": required, "schema": reference(body)}));
        }
        parameters.extend(self.query.iter().map(query_v2));
        out.insert("parameters", parameters.into());
        out.insert("consumes", json!(self.body_types()));
        out.insert("produces", json!(ANSWER_TYPES));
        let schema = self.answer.as_ref().map_or_else(|| json!({"type": "string"}), reference);
        let responses =
            json!({"200": {"description": "OK", "schema": schema}, "401": {"description": "Unauthorized"}});
        out.insert("responses", responses);
        out.into()
    }
}

fn query_v3((name, kind, description): &Parameter) -> Value {
    json!({"name": name, "in": "query", "description": description, "schema": {"type": kind, "uniqueItems": true}})
}

fn query_v2((name, kind, description): &Parameter) -> Value {
    json!({"name": name, "in": "query", "description": description, "type": kind, "uniqueItems": true})
}

impl PathItem {
    /// Parameters in the path itself.
    fn path_parameters(&self) -> impl Iterator<Item = &'static str> {
        ["name", "namespace"].into_iter().filter(|name| self.path.contains(&format!("{{{name}}}")))
    }

    pub(super) fn v3(&self) -> Value {
        let mut out: Map = self.operations.iter().map(|o| (o.method.to_owned(), o.v3())).collect();
        let parameters = self.path_parameters().map(|name| {
            json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}})
        });
        out.insert("parameters", parameters.collect());
        out.into()
    }

    pub(super) fn v2(&self) -> Value {
        let mut out: Map = self.operations.iter().map(|o| (o.method.to_owned(), o.v2())).collect();
        let parameters = self.path_parameters().map(|name| {
            json!({"name": name, "in": "path", "required": true, "type": "string", "uniqueItems": true})
        });
        out.insert("parameters", parameters.collect());
        out.into()
    }
}
