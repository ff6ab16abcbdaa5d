//! CustomResourceDefinition: names, versions and structural schemas of the kinds that users add.

use coxswain_meta::json::{Value, json};
use coxswain_meta::{ErrorList, FieldError, Path, names};

mod schema;

use crate::admission::webhooks;
use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::check::{required_one_of, texts};
use crate::objectmeta::immutable;
use crate::prepare;
use crate::table::{NAME, column, name};
use crate::value::{filled, flag, has, items, items_mut, present, set, set_default, text};

const GROUP: &str = "apiextensions.k8s.io";
const VERSION: &str =
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionVersion";

pub(crate) const DEFINITION: Kind = Kind {
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    namespaced: false,
    subresources: &[Subresource::status(GROUP, "v1", "CustomResourceDefinition")],
    status: true,
    columns: COLUMNS,
    hooks: Hooks {
        default,
        prepare_create: |v| {
            prepare::create_counted(v);
            let stored = items(&v["spec"], "versions").iter().find(|version| flag(version, "storage"));
            let stored = json!(stored.map(|version| text(version, "name")).into_iter().collect::<Vec<_>>());
            let names = json!({"plural": "", "kind": ""});
            let none = Value::Array(Vec::new());
            set(v, "status", json!({"conditions": none, "acceptedNames": names, "storedVersions": stored}));
        },
        prepare_update: |new, old| {
            prepare::update_counted(new, old);
            let storage = items(&new["spec"], "versions").iter().find(|version| flag(version, "storage"));
            let Some(storage) = storage.map(|version| version["name"].clone()) else { return };
            if let Some(Value::Array(stored)) =
                new.get_mut("status").and_then(|s| s.get_mut("storedVersions"))
                && !stored.contains(&storage)
            {
                stored.push(storage);
            }
        },
        validate,
        validate_new,
        validate_update,
        row: |v, _| vec![name(v), v["metadata"]["creationTimestamp"].clone()],
        ..Hooks::COUNTED
    },
    ..kind!(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        "customresourcedefinition"
    )
};

const COLUMNS: &[Column] =
    &[NAME, Column { type_: "date", ..column("Created At", "When the definition was created.") }];

fn default(definition: &mut Value) {
    let Some(spec) = present(definition, "spec") else { return };
    if let Some(names) = present(spec, "names") {
        let kind = text(names, "kind").to_owned();
        if !kind.is_empty() {
            set_default(names, "singular", kind.to_lowercase());
            set_default(names, "listKind", format!("{kind}List"));
        }
    }
    if !has(spec, "conversion") {
        set(spec, "conversion", json!({"strategy": "None"}));
    }
    if let Some(conversion) = present(spec, "conversion")
        && let Some(webhook) = present(conversion, "webhook")
        && let Some(client) = present(webhook, "clientConfig")
        && let Some(service) = present(client, "service")
    {
        set_default(service, "port", 443);
    }
    for version in items_mut(spec, "versions") {
        if let Some(Value::Array(columns)) = version.get("additionalPrinterColumns")
            && columns.is_empty()
            && let Some(map) = version.as_object_mut()
        {
            map.remove("additionalPrinterColumns");
        }
    }
}

fn validate(definition: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&definition["spec"], Path::new("spec"));
    validate_group(text(spec, "group"), &path.child("group"), &mut errors);
    required_one_of(&mut errors, spec, "scope", &["Cluster", "Namespaced"], &path);
    validate_versions(spec, &path, &mut errors);
    validate_names(&spec["names"], &path.child("names"), &mut errors);
    let shared = shared(spec);
    let first = &items(spec, "versions").first().unwrap_or(&Value::Null);
    if shared.contains(&"schema") && has(&first["schema"], "openAPIV3Schema") {
        let with_status = items(spec, "versions").iter().any(|v| has(&v["subresources"], "status"));
        schema::validate(
            &mut errors,
            &first["schema"]["openAPIV3Schema"],
            with_status,
            &path.child("validation"),
        );
    }
    if shared.contains(&"subresources") {
        validate_subresources(&first["subresources"], &path.child("subresources"), &mut errors);
    }
    if shared.contains(&"additionalPrinterColumns") {
        validate_columns(first, &path, &mut errors);
    }
    if shared.contains(&"selectableFields") {
        validate_selectable(first, &path, &mut errors);
    }
    validate_conversion(&spec["conversion"], &path.child("conversion"), &mut errors);
    validate_stored(definition, &mut errors);
    errors
}

/// What all versions have in common, which upstream reports at the spec.
fn shared(spec: &Value) -> Vec<&'static str> {
    let versions = items(spec, "versions");
    let same = |key: &&str| versions.windows(2).all(|pair| pair[0].get(*key) == pair[1].get(*key));
    ["schema", "subresources", "additionalPrinterColumns", "selectableFields"]
        .into_iter()
        .filter(same)
        .collect()
}

/// Groups of the community need its approval.
fn validate_new(definition: &Value) -> ErrorList {
    const APPROVED: &str = "api-approved.kubernetes.io";
    let mut errors = ErrorList::new();
    let wanted =
        format!("{}.{}", text(&definition["spec"]["names"], "plural"), text(&definition["spec"], "group"));
    let called = crate::value::name(definition);
    if !called.is_empty() && called != wanted {
        let why = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid(&Path::new("metadata").child("name"), called, why));
    }
    let group = text(&definition["spec"], "group");
    let at = Path::new("metadata").child("annotations").key(APPROVED);
    if ["k8s.io", "kubernetes.io"].iter().any(|own| group == *own || group.ends_with(&format!(".{own}"))) {
        let said = text(&definition["metadata"]["annotations"], APPROVED);
        let url = said
            .split_once("://")
            .is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty() && !rest.starts_with('/'));
        let see = "see https://github.com/kubernetes/enhancements/pull/1111";
        let rule = format!("protected groups must have approval annotation \"{APPROVED}\"");
        if said.is_empty() {
            errors.push(FieldError::required(&at, format!("{rule}, {see}")));
        } else if !said.starts_with("unapproved") && !url {
            let how = "with either a URL or a reason starting with \"unapproved\"";
            errors.push(FieldError::invalid(&at, said, format!("{rule} {how}, {see}")));
        }
    }
    if flag(&definition["spec"], "preserveUnknownFields") {
        let rule = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(FieldError::invalid(&Path::new("spec").child("preserveUnknownFields"), true, rule));
    }
    errors
}

fn validate_stored(definition: &Value, errors: &mut ErrorList) {
    let at = Path::new("status").child("storedVersions");
    let stored = texts(&definition["status"], "storedVersions");
    if stored.is_empty() {
        errors.push(FieldError::invalid(&at, Value::Null, "must have at least one stored version"));
        return;
    }
    let versions = items(&definition["spec"], "versions");
    for version in versions.iter().filter(|version| flag(version, "storage")) {
        if !stored.contains(&text(version, "name")) {
            let rule = format!("must have the storage version {}", text(version, "name"));
            errors.push(FieldError::invalid(&at, stored.clone(), rule));
        }
    }
    for (i, stored) in stored.iter().enumerate() {
        if !versions.iter().any(|version| text(version, "name") == *stored) {
            let why = format!(
                "missing from spec.versions; {stored} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {stored} and removes {stored} from status.storedVersions"
            );
            errors.push(FieldError::invalid(&at.index(i), *stored, why));
        }
    }
}

fn validate_group(group: &str, path: &Path, errors: &mut ErrorList) {
    if group.is_empty() {
        return errors.push(FieldError::required(path, ""));
    }
    let broken = names::dns1123_subdomain(group);
    if broken.is_empty() && !group.contains('.') {
        errors.push(FieldError::invalid(path, group, "should be a domain with at least one dot"));
    }
    errors.invalid_each(path, group, broken);
}

fn validate_names(own: &Value, path: &Path, errors: &mut ErrorList) {
    const NAMES: [&str; 4] = ["plural", "singular", "kind", "listKind"];
    for field in NAMES.into_iter().filter(|field| text(own, field).is_empty()) {
        errors.push(FieldError::required(&path.child(field), ""));
    }
    for field in NAMES.into_iter().filter(|field| !text(own, field).is_empty()) {
        let (value, path) = (text(own, field), path.child(field));
        let mixed = field == "kind" || field == "listKind";
        let why = names::dns1035_label(&if mixed { value.to_lowercase() } else { value.to_owned() });
        if !why.is_empty() {
            let lead = if mixed { "may have mixed case, but should otherwise match: " } else { "" };
            errors.push(FieldError::invalid(&path, value, format!("{lead}{}", why.join(","))));
        }
    }
    let labels = |field: &str, errors: &mut ErrorList| {
        for (at, value) in texts(own, field).into_iter().enumerate() {
            let why = names::dns1035_label(value);
            if !why.is_empty() {
                errors.push(FieldError::invalid(&path.child(field).index(at), value, why.join(",")));
            }
        }
    };
    labels("shortNames", errors);
    if filled(own, "kind") && text(own, "kind") == text(own, "listKind") {
        let why = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(&path.child("listKind"), text(own, "listKind"), why));
    }
    labels("categories", errors);
}

fn validate_versions(spec: &Value, spec_path: &Path, errors: &mut ErrorList) {
    let (versions, path) = (items(spec, "versions"), spec_path.child("versions"));
    let shared = shared(spec);
    for (at, version) in versions.iter().enumerate() {
        if !has(&version["schema"], "openAPIV3Schema") {
            let at = path.index(at).child("schema").child("openAPIV3Schema");
            errors.push(FieldError::required(&at, ""));
        }
    }
    for (at, version) in versions.iter().enumerate() {
        let (path, called) = (path.index(at), text(version, "name"));
        let broken = names::dns1035_label(called);
        if !broken.is_empty() {
            errors.push(FieldError::invalid(&path.child("name"), called, broken.join(",")));
        }
        deprecation(version, &path.child("deprecationWarning"), errors);
        let schema = &version["schema"]["openAPIV3Schema"];
        if !shared.contains(&"schema") && schema.is_object() {
            let with_status = has(&version["subresources"], "status");
            schema::validate(errors, schema, with_status, &path.child("schema"));
        }
        if !shared.contains(&"subresources") {
            validate_subresources(&version["subresources"], &path.child("subresources"), errors);
        }
        if !shared.contains(&"additionalPrinterColumns") {
            validate_columns(version, &path, errors);
        }
        if !shared.contains(&"selectableFields") {
            validate_selectable(version, &path, errors);
        }
    }
    let called: Vec<&str> = versions.iter().map(|version| text(version, "name")).collect();
    let mut broken = Vec::new();
    if called.iter().enumerate().any(|(i, name)| called[..i].contains(name)) {
        broken.push("must contain unique version names");
    }
    if versions.iter().filter(|version| flag(version, "storage")).count() != 1 {
        broken.push("must have exactly one version marked as storage version");
    }
    for why in broken {
        let mut shown = versions.to_vec();
        for map in shown.iter_mut().filter_map(Value::as_object_mut) {
            shared.iter().for_each(|key| drop(map.remove(key)));
        }
        let shown = match spec["versions"].is_array() {
            true => crate::schema::internal_list(&shown, VERSION),
            false => "null".to_owned(),
        };
        errors.push(FieldError::invalid_without_value(&path, format!("{shown}: {why}")));
    }
    let first = called.first().copied().unwrap_or_default();
    let why = names::dns1035_label(first);
    if !first.is_empty() && !why.is_empty() {
        errors.push(FieldError::invalid(&spec_path.child("version"), first, why.join(",")));
    }
}

fn deprecation(version: &Value, path: &Path, errors: &mut ErrorList) {
    let Some(warning) = version["deprecationWarning"].as_str() else { return };
    let mut invalid = |why: &str| errors.push(FieldError::invalid(path, warning, why));
    if !flag(version, "deprecated") {
        return invalid("can only be set for deprecated versions");
    }
    if warning.len() > 256 {
        invalid("must be <= 256 characters long");
    }
    if warning.is_empty() {
        invalid("must not be an empty string");
    }
    if let Some((at, _)) = warning.char_indices().find(|(_, c)| c.is_control()) {
        let why = "must only contain printable UTF-8 characters; non-printable character found at index";
        invalid(&format!("{why} {at}"));
    }
}

fn validate_subresources(subresources: &Value, path: &Path, errors: &mut ErrorList) {
    let scale = &subresources["scale"];
    if !scale.is_object() {
        return;
    }
    for (field, under, rule, needed) in [
        ("specReplicasPath", &[".spec."][..], "should be a json path under .spec", true),
        ("statusReplicasPath", &[".status."], "should be a json path under .status", true),
        (
            "labelSelectorPath",
            &[".spec.", ".status."],
            "should be a json path under either .spec or .status",
            false,
        ),
    ] {
        let (value, path) = (text(scale, field), path.child(&format!("scale.{field}")));
        match value {
            "" if needed => errors.push(FieldError::required(&path, "")),
            "" => {}
            _ if !value.starts_with('.') => {
                errors.push(FieldError::invalid(&path, value, "must be a simple json path starting with ."));
            }
            _ if under.iter().any(|under| value.starts_with(under)) => {}
            _ => errors.push(FieldError::invalid(&path, value, rule)),
        }
    }
}

fn validate_columns(version: &Value, path: &Path, errors: &mut ErrorList) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    const FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
    for (i, column) in items(version, "additionalPrinterColumns").iter().enumerate() {
        let path = path.child("additionalPrinterColumns").index(i);
        let rule = |known: &[&str]| format!("must be one of {}", known.join(","));
        if !filled(column, "name") {
            errors.push(FieldError::required(&path.child("name"), ""));
        }
        match text(column, "type") {
            "" => errors.push(FieldError::required(&path.child("type"), rule(&TYPES))),
            known if TYPES.contains(&known) => {}
            other => errors.push(FieldError::invalid(&path.child("type"), other, rule(&TYPES))),
        }
        let format = text(column, "format");
        if !format.is_empty() && !FORMATS.contains(&format) {
            errors.push(FieldError::invalid(&path.child("format"), format, rule(&FORMATS)));
        }
        let (at, value) = (path.child("JSONPath"), text(column, "jsonPath"));
        if value.is_empty() {
            errors.push(FieldError::required(&at, ""));
        } else if !value.starts_with('.') {
            errors.push(FieldError::invalid(&at, value, "must be a simple json path starting with ."));
        }
    }
}

fn validate_selectable(version: &Value, path: &Path, errors: &mut ErrorList) {
    let (fields, path) = (items(version, "selectableFields"), path.child("selectableFields"));
    let mut seen: Vec<&str> = Vec::new();
    for (i, field) in fields.iter().enumerate() {
        let (at, value) = (path.index(i).child("jsonPath"), text(field, "jsonPath"));
        if value.is_empty() {
            errors.push(FieldError::required(&at, ""));
            continue;
        }
        if value.starts_with(".metadata") {
            let rule = "must not point to fields in metadata";
            errors.push(FieldError::invalid(&at, value, rule));
        }
        if seen.contains(&value) {
            errors.push(FieldError::duplicate(&at, value));
        } else {
            seen.push(value);
        }
    }
    if seen.len() > 8 {
        errors.push(FieldError::too_many(&path, seen.len(), 8));
    }
}

fn validate_conversion(conversion: &Value, path: &Path, errors: &mut ErrorList) {
    if !conversion.is_object() {
        return;
    }
    required_one_of(errors, conversion, "strategy", &["None", "Webhook"], path);
    let (client, client_at) = (&conversion["webhook"]["clientConfig"], path.child("webhookClientConfig"));
    let known = texts(&conversion["webhook"], "conversionReviewVersions");
    let known_at = path.child("conversionReviewVersions");
    if text(conversion, "strategy") != "Webhook" {
        let why = "should not be set when strategy is not set to Webhook";
        if client.is_object() {
            errors.push(FieldError::forbidden(&client_at, why));
        }
        if !known.is_empty() {
            errors.push(FieldError::forbidden(&known_at, why));
        }
        return;
    }
    if !client.is_object() {
        errors.push(FieldError::required(&client_at, "required when strategy is set to Webhook"));
    } else if has(client, "url") == has(client, "service") {
        errors.push(FieldError::required(&client_at, "exactly one of url or service is required"));
    } else if has(client, "url") {
        webhooks::url(errors, text(client, "url"), &client_at.child("url"));
    } else {
        webhooks::service(errors, &client["service"], &client_at.child("service"));
    }
    if known.is_empty() {
        return errors.push(FieldError::required(&known_at, ""));
    }
    for (i, version) in known.iter().enumerate() {
        if known[..i].contains(version) {
            errors.push(FieldError::invalid(&known_at.index(i), *version, "duplicate version"));
        } else {
            errors.invalid_each(&known_at.index(i), version, names::dns1035_label(version));
        }
    }
    if !known.contains(&"v1") && !known.contains(&"v1beta1") {
        errors.push(FieldError::invalid(&known_at, known, "must include at least one of v1, v1beta1"));
    }
}

fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("spec");
    let established = items(&old["status"], "conditions")
        .iter()
        .any(|condition| text(condition, "type") == "Established" && text(condition, "status") == "True");
    if established {
        immutable(&mut errors, &new["spec"], &old["spec"], "scope", &path);
        immutable(&mut errors, &new["spec"]["names"], &old["spec"]["names"], "kind", &path.child("names"));
    }
    immutable(&mut errors, &new["spec"], &old["spec"], "group", &path);
    immutable(&mut errors, &new["spec"]["names"], &old["spec"]["names"], "plural", &path.child("names"));
    errors
}
