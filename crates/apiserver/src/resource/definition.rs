//! A CustomResourceDefinition as the handlers use it: parsed once a change, and its schemas where somebody first needs them.
//! Most definitions of a cluster are never used, and a schema takes ten times its text when it is parsed.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use coxswain_api::schema;
use coxswain_meta::golang;
use coxswain_meta::json::{Value, json};
use coxswain_meta::jsonpath::JsonPath;
use coxswain_meta::structural::{self, Structural};
use coxswain_meta::{ErrorKind, ErrorList, FieldError, Path, Status};
use coxswain_store::Revision;
use serde_json::value::RawValue;

use crate::cel::{self, schema::Rules};
use crate::object::Meta;

/// How objects get from one version to another.
#[derive(Clone, Debug, PartialEq)]
pub enum Conversion {
    /// Only the apiVersion changes.
    None,
    /// A webhook is asked: its client configuration and the review versions it takes.
    Webhook(Value, Vec<String>),
}

/// A definition.
pub struct Definition {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Objects written after this revision have been through the schemas as they are now.
    pub since: Revision,
    /// API group.
    pub group: String,
    /// Resource name in paths.
    pub plural: String,
    /// Lower-case name of one.
    pub singular: String,
    /// Kind of one object.
    pub kind: String,
    /// Kind of a list.
    pub list_kind: String,
    /// Abbreviations.
    pub short_names: Vec<String>,
    /// Groups of kinds.
    pub categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// The versions in their order.
    pub versions: Vec<Version>,
    /// How versions are converted.
    pub conversion: Conversion,
    /// Whether it is served.
    pub established: bool,
    /// Whether it is going away: nothing is created any more.
    pub terminating: bool,
    /// Of its versions and their conversion, to notice changes.
    pub digest: u64,
}

/// A version of a definition.
pub struct Version {
    /// Its name.
    pub name: String,
    /// Whether it is served.
    pub served: bool,
    /// Whether objects are stored in it.
    pub storage: bool,
    /// Whether its use is warned of.
    pub deprecated: bool,
    /// The words of that warning.
    pub deprecation_warning: Option<String>,
    /// The text of the schema, a part of what is stored; empty where there is none.
    pub source: Bytes,
    compiled: OnceLock<(Structural, Rules)>,
    /// Whether status is a subresource.
    pub status: bool,
    /// The paths of the scale subresource.
    pub scale: Option<Scale>,
    /// Printer columns.
    pub columns: Vec<Column>,
    /// Fields that selectors may use.
    pub selectable: Vec<Selectable>,
}

/// The paths of a scale.
pub struct Scale {
    spec_replicas: JsonPath,
    status_replicas: JsonPath,
    selector: Option<JsonPath>,
    /// Where numbers of replicas are, as it was written.
    number_paths: Vec<String>,
    selector_path: Option<String>,
}

/// A printer column.
pub struct Column {
    /// Heading.
    pub name: String,
    /// OpenAPI type.
    pub type_: String,
    /// OpenAPI format.
    pub format: String,
    /// What it shows.
    pub description: String,
    /// 0 is always shown.
    pub priority: i64,
    /// Where it is found.
    pub path: JsonPath,
}

/// A field for selectors.
pub struct Selectable {
    /// Its name in selectors, such as `spec.color`.
    pub name: String,
    /// Where it is found.
    pub path: JsonPath,
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// An object whose members are texts still.
type Members<'a> = BTreeMap<String, &'a RawValue>;

fn members(text: &RawValue) -> Members<'_> {
    serde_json::from_str(text.get()).unwrap_or_default()
}

fn parsed(members: Members<'_>) -> Value {
    let values =
        members.into_iter().map(|(name, text)| (name, serde_json::from_str(text.get()).unwrap_or_default()));
    Value::Object(values.collect())
}

impl Definition {
    /// Reads a stored definition; `previous` is the same one as it was before.
    pub fn parse(stored: &Bytes, revision: Revision, previous: Option<&Definition>) -> Self {
        let mut object: Members<'_> = serde_json::from_slice(stored).unwrap_or_default();
        let mut spec = object.remove("spec").map(members).unwrap_or_default();
        let (object, versions) = (parsed(object), spec.remove("versions"));
        let mut hasher = DefaultHasher::new();
        (versions.map(RawValue::get), spec.get("conversion").map(|text| text.get())).hash(&mut hasher);
        let digest = hasher.finish();
        let versions: Vec<Members<'_>> =
            versions.and_then(|text| serde_json::from_str(text.get()).ok()).unwrap_or_default();
        let spec = &parsed(spec);
        let names = match object["status"]["acceptedNames"]["plural"].as_str() {
            Some(plural) if !plural.is_empty() => &object["status"]["acceptedNames"],
            _ => &spec["names"],
        };
        let condition = |name: &str| {
            list(&object["status"], "conditions").any(|c| c["type"] == name && c["status"] == "True")
        };
        let uid = object.meta_str("uid").to_owned();
        let unchanged = previous.filter(|previous| previous.uid == uid && previous.digest == digest);
        Self {
            name: object.name().to_owned(),
            since: unchanged.map_or(revision, |previous| previous.since),
            group: text(spec, "group"),
            plural: text(&spec["names"], "plural"),
            singular: text(names, "singular"),
            kind: text(names, "kind"),
            list_kind: text(names, "listKind"),
            short_names: strings(&names["shortNames"]),
            categories: strings(&names["categories"]),
            namespaced: spec["scope"] == "Namespaced",
            versions: versions.into_iter().map(|version| Version::parse(version, stored)).collect(),
            conversion: match spec["conversion"]["strategy"].as_str() {
                Some("Webhook") => {
                    let webhook = &spec["conversion"]["webhook"];
                    Conversion::Webhook(
                        webhook["clientConfig"].clone(),
                        strings(&webhook["conversionReviewVersions"]),
                    )
                }
                _ => Conversion::None,
            },
            established: condition("Established"),
            terminating: object.is_deleting(),
            digest,
            uid,
        }
    }

    /// The version that objects are stored in.
    pub fn storage(&self) -> &str {
        self.versions.iter().find(|version| version.storage).map_or("", |version| &version.name)
    }
}

impl Version {
    fn parse(mut version: Members<'_>, stored: &Bytes) -> Self {
        let schema = version.remove("schema").map(members).unwrap_or_default();
        let source = schema.get("openAPIV3Schema");
        let version = &parsed(version);
        let path = |value: &Value, key: &str| JsonPath::parse(value[key].as_str().unwrap_or_default());
        let scale = &version["subresources"]["scale"];
        Self {
            name: text(version, "name"),
            served: version["served"] == true,
            storage: version["storage"] == true,
            deprecated: version["deprecated"] == true,
            deprecation_warning: version["deprecationWarning"].as_str().map(str::to_owned),
            source: source.map(|text| stored.slice_ref(text.get().as_bytes())).unwrap_or_default(),
            compiled: OnceLock::new(),
            status: version["subresources"]["status"].is_object(),
            scale: scale.is_object().then(|| Scale {
                number_paths: ["specReplicasPath", "statusReplicasPath"]
                    .iter()
                    .filter_map(|path| Some(scale[*path].as_str()?.to_owned()))
                    .collect(),
                selector_path: scale["labelSelectorPath"].as_str().map(str::to_owned),
                spec_replicas: path(scale, "specReplicasPath").unwrap_or_default(),
                status_replicas: path(scale, "statusReplicasPath").unwrap_or_default(),
                selector: scale["labelSelectorPath"].as_str().and_then(JsonPath::parse),
            }),
            columns: list(version, "additionalPrinterColumns")
                .map(|column| Column {
                    name: text(column, "name"),
                    type_: text(column, "type"),
                    format: text(column, "format"),
                    description: match text(column, "description") {
                        none if none.is_empty() => {
                            format!(
                                "Custom resource definition column (in JSONPath format): {}",
                                text(column, "jsonPath")
                            )
                        }
                        said => said,
                    },
                    priority: column["priority"].as_i64().unwrap_or(0),
                    path: path(column, "jsonPath").unwrap_or_default(),
                })
                .collect(),
            selectable: list(version, "selectableFields")
                .map(|field| Selectable {
                    name: text(field, "jsonPath").trim_start_matches('.').to_owned(),
                    path: path(field, "jsonPath").unwrap_or_default(),
                })
                .collect(),
        }
    }

    fn compiled(&self) -> &(Structural, Rules) {
        self.compiled.get_or_init(|| {
            let source = serde_json::from_slice(&self.source).unwrap_or_default();
            let schema = Structural::parse(&source, &Path::root(), &mut ErrorList::new());
            let rules = Rules::compile(&schema);
            (schema, rules)
        })
    }

    /// The schema.
    pub fn schema(&self) -> &Structural {
        &self.compiled().0
    }

    /// The schema's CEL rules.
    pub fn rules(&self) -> &Rules {
        &self.compiled().1
    }
}

/// What upstream says of rules that a broken object keeps from being tried.
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const UNCHECKED: &str = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";

/// What is wrong with the rules of a definition; `old` is what it was before.
pub fn check_schemas(definition: &Value, old: Option<&Value>) -> ErrorList {
    let versions: Vec<&Value> = list(&definition["spec"], "versions").collect();
    let same = versions.windows(2).all(|pair| pair[0]["schema"] == pair[1]["schema"]);
    let mut errors = ErrorList::new();
    for (at, version) in versions.iter().enumerate() {
        let source = &version["schema"]["openAPIV3Schema"];
        // Where all versions have one schema, that is where upstream finds it.
        let path = match same {
            true if at > 0 => break,
            true => Path::new("spec").child("validation"),
            false => Path::new("spec").child("versions").index(at).child("schema"),
        };
        let path = path.child("openAPIV3Schema");
        if source.is_object() {
            // What keeps it from being structural is said by the kind itself.
            let mut broken = ErrorList::new();
            let schema = Structural::parse(source, &path, &mut broken);
            if broken.is_empty() && schema.has_known_types() {
                let before = old.into_iter().flat_map(|old| list(&old["spec"], "versions"));
                let unchanged = before
                    .filter(|old| old["name"] == version["name"])
                    .any(|old| old["schema"]["openAPIV3Schema"] == *source);
                cel::definition::check_rules(&schema, &path, unchanged, &mut errors);
            }
        }
    }
    errors
}

/// One version of a definition: what a custom [`super::Resource`] holds.
pub struct Custom {
    /// The definition.
    pub definition: Arc<Definition>,
    version: usize,
}

impl Custom {
    /// A version of a definition, where it is served.
    pub fn of(definition: &Arc<Definition>, version: &str) -> Option<Arc<Self>> {
        let found = Self::any(definition, version)?;
        let served = definition.established && found.version().served;
        served.then(|| Arc::new(found))
    }

    /// A version of a definition, served or not.
    pub fn any(definition: &Arc<Definition>, version: &str) -> Option<Self> {
        let version = definition.versions.iter().position(|known| known.name == version)?;
        Some(Self { definition: definition.clone(), version })
    }

    /// The version that objects are stored in, served or not.
    pub fn stored(definition: &Arc<Definition>) -> Option<Self> {
        let version = definition.versions.iter().position(|version| version.storage)?;
        Some(Self { definition: definition.clone(), version })
    }

    /// The version.
    pub fn version(&self) -> &Version {
        &self.definition.versions[self.version]
    }

    /// The schema of the version.
    pub fn schema(&self) -> &Structural {
        self.version().schema()
    }

    /// Drops what the schema does not know; returns `unknown field "…"` for each.
    pub fn prune(&self, object: &mut Value) -> Result<Vec<String>, Status> {
        let unknown = structural::prune(object, self.schema());
        Ok(unknown.into_iter().map(|path| format!("unknown field \"{path}\"")).collect())
    }

    /// All that an object has that does not fit the schema, in one message.
    pub fn typed_error(&self, object: &Value) -> Option<String> {
        schema::in_one(&self.typed_errors(object))
    }

    /// What an applied configuration has that does not fit the schema, or the type of metadata.
    pub fn typed_errors(&self, configuration: &Value) -> Vec<String> {
        let meta = schema::by_name(OBJECT_META);
        let of_metadata = meta.map(|meta| schema::typed_errors(&configuration["metadata"], meta));
        let mut errors = structural::typed_errors(configuration, self.schema());
        errors.extend(of_metadata.into_iter().flatten().map(|error| format!(".metadata{error}")));
        errors
    }

    /// Checks the metadata of an object against its type and drops what that does not know; wrong types are refused.
    pub fn check_metadata(&self, object: &mut Value) -> Result<Vec<String>, Status> {
        let Some(meta) = schema::by_name(OBJECT_META) else {
            return Ok(Vec::new());
        };
        let mut unknown = Vec::new();
        check_metadata(object, self.schema(), true, "", meta, &mut unknown).map_err(Status::bad_request)?;
        unknown.sort();
        Ok(unknown)
    }

    /// Fills the schema's defaults in.
    pub fn default(&self, object: &mut Value) {
        structural::default(object, self.schema());
        structural::drop_nulls(object, self.schema());
    }

    /// A new object is of generation 1 and, where status is a subresource, has none.
    pub fn prepare_create(&self, object: &mut Value) {
        if let (true, Some(map)) = (self.version().status, object.as_object_mut()) {
            map.remove("status");
        }
        let metadata = object.meta_mut();
        metadata.insert("generation", 1.into());
    }

    /// Status stays where it is a subresource; other changes than of metadata count as generations.
    pub fn prepare_update(&self, new: &mut Value, old: &Value) {
        let status = self.version().status;
        if let (true, Some(map)) = (status, new.as_object_mut()) {
            match old.get("status") {
                Some(kept) => map.insert("status", kept.clone()),
                None => map.remove("status"),
            };
        }
        let generation = old.meta()["generation"].as_i64().unwrap_or(0);
        let raised = differs(new, old, status) as i64;
        new.meta_mut().insert("generation", (generation + raised).into());
    }

    /// Only status changes, and of the metadata only what is not the system's.
    pub fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        let status = new.get("status").cloned();
        let sent = new.meta().clone();
        *new = old.clone();
        if let Some(map) = new.as_object_mut() {
            match status {
                Some(status) => map.insert("status", status),
                None => map.remove("status"),
            };
        }
        for field in ["resourceVersion", "managedFields"] {
            let metadata = new.meta_mut();
            match sent.get(field) {
                Some(value) => metadata.insert(field, value.clone()),
                None => metadata.remove(field),
            };
        }
    }

    /// All that is wrong with an object by its schema and rules; `old` is what it was before.
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> ErrorList {
        let root = Path::root();
        let mut errors = structural::validate(object, self.schema(), &root);
        errors.extend(self.check_scale(object));
        errors.extend(structural::validate_embedded_members(object, self.schema()));
        if !self.schema().has_rules {
            return errors;
        }
        let blocks = |kind: ErrorKind| {
            use ErrorKind::{NotSupported, Required, TooLong, TooMany, TypeInvalid};
            matches!(kind, NotSupported | Required | TooLong | TooMany | TypeInvalid)
        };
        if errors.iter().any(|error| blocks(error.kind)) {
            errors.push(FieldError::invalid(&Path::root(), Value::Null, UNCHECKED));
        } else {
            errors.extend(self.version().rules().check(self.schema(), object, old));
        }
        errors
    }

    /// The values of the selectable fields in stored bytes.
    pub fn selectable_fields(&self, stored: &[u8]) -> Vec<(String, String)> {
        let fields = &self.version().selectable;
        if fields.is_empty() {
            return Vec::new();
        }
        let object: Value = serde_json::from_slice(stored).unwrap_or_default();
        let value = |field: &Selectable| match field.path.find(&object).first() {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.as_str().to_owned(),
            Some(other) => other.to_string(),
        };
        fields.iter().map(|field| (field.name.clone(), value(field))).collect()
    }

    /// What stands where the scale is read from and is no number of replicas, or no selector.
    fn check_scale(&self, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let Some(scale) = &self.version().scale else { return errors };
        for at in &scale.number_paths {
            let path = Path::new(at);
            match nested(object, at, "int64", Value::as_i64) {
                Err(why) => errors.push(FieldError::invalid(&path, 0, why)),
                Ok(Some(count)) if count < 0 => {
                    errors.push(FieldError::invalid(&path, count, "should be a non-negative integer"));
                }
                Ok(Some(count)) if count > i64::from(i32::MAX) => {
                    let rule = format!("should be less than or equal to {}", i32::MAX);
                    errors.push(FieldError::invalid(&path, count, rule));
                }
                Ok(_) => {}
            }
        }
        if let Some(at) = &scale.selector_path
            && let Err(why) = nested(object, at, "string", |value| value.as_str().map(drop))
        {
            errors.push(FieldError::invalid(&Path::new(at), "", why));
        }
        errors
    }

    /// The scale of an object.
    pub fn scale_of(&self, object: &Value) -> Value {
        let mut out = json!({ "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {}, "spec": {}, "status": {} });
        for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
            if let Some(value) = object.meta().get(key) {
                out["metadata"][key] = value.clone();
            }
        }
        let Some(scale) = &self.version().scale else { return out };
        let number = |path: &JsonPath| path.find(object).first().and_then(|v| v.as_i64()).unwrap_or(0);
        if number(&scale.spec_replicas) != 0 {
            out["spec"]["replicas"] = number(&scale.spec_replicas).into();
        }
        out["status"]["replicas"] = number(&scale.status_replicas).into();
        let selector = scale.selector.as_ref().and_then(|path| path.find(object).first()?.as_str());
        if let Some(selector) = selector.filter(|text| !text.is_empty()) {
            out["status"]["selector"] = selector.into();
        }
        out
    }

    /// Writes the replicas of a scale into an object.
    pub fn set_scale(&self, object: &mut Value, scale: &Value) {
        if let Some(slot) = self.version().scale.as_ref().and_then(|paths| paths.spec_replicas.slot(object)) {
            *slot = scale["spec"]["replicas"].as_i64().unwrap_or(0).into();
        }
        if let Some(version) = scale.meta().get("resourceVersion") {
            object.meta_mut().insert("resourceVersion", version.clone());
        }
    }
}

/// What stands at a path such as `.spec.replicas`; an error where that, or what it is in, is of another type.
fn nested<T>(
    object: &Value,
    at: &str,
    want: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>, String> {
    let mut value = object;
    let mut place = String::new();
    let wrong = |place: &str, value: &Value, want: &str| {
        let (shown, found) = (golang::shown(value), golang::type_of(value));
        format!("{place} accessor error: {shown} is of the type {found}, expected {want}")
    };
    for name in at.trim_start_matches('.').split('.') {
        place.push('.');
        place.push_str(name);
        value = match value {
            Value::Null => return Ok(None),
            Value::Object(map) => match map.get(name) {
                Some(inner) => inner,
                None => return Ok(None),
            },
            other => return Err(wrong(&place, other, "map[string]interface {}")),
        };
    }
    read(value).map(Some).ok_or_else(|| wrong(&place, value, want))
}

/// Checks the metadata of a whole resource and of those embedded in it.
fn check_metadata(
    value: &mut Value,
    schema: &Structural,
    whole: bool,
    path: &str,
    meta: schema::TypeRef,
    unknown: &mut Vec<String>,
) -> Result<(), String> {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    if let (true, Some(metadata)) = (whole, value.get_mut("metadata")) {
        let decoded = schema::check(metadata, meta);
        if let Some(error) = decoded.errors.first() {
            return Err(error.clone());
        }
        let at = below("metadata");
        unknown.extend(
            decoded.unknown.iter().map(|field| field.replacen("field \"", &format!("field \"{at}."), 1)),
        );
        if metadata.is_object() {
            schema::normalise(metadata, meta);
        }
    }
    match value {
        Value::Object(map) => map.iter_mut().try_for_each(|(name, value)| {
            let skipped = whole && matches!(name, "metadata" | "apiVersion" | "kind");
            match schema.member(name).filter(|_| !skipped) {
                Some(inner) => check_metadata(value, inner, inner.embedded, &below(name), meta, unknown),
                None => Ok(()),
            }
        }),
        Value::Array(items) => items.iter_mut().enumerate().try_for_each(|(at, item)| match &schema.items {
            Some(inner) => {
                check_metadata(item, inner, inner.embedded, &format!("{path}[{at}]"), meta, unknown)
            }
            None => Ok(()),
        }),
        _ => Ok(()),
    }
}

/// Whether two objects differ outside of their metadata (and status, where that is a subresource).
fn differs(new: &Value, old: &Value, status: bool) -> bool {
    let counts = |key: &str| key != "metadata" && !(status && key == "status");
    let content = |value| Value::as_object(value).into_iter().flatten().filter(|(key, _)| counts(key));
    content(new).ne(content(old))
}
