//! The OpenAPI v3 document of a server that has a swagger document only, as upstream makes it.

use coxswain_meta::json::{Map, Value, json};

use super::merge::inline;

/// The v3 form of a swagger document. Parameters that it refers to stand in their places.
pub fn to_v3(swagger: &Value) -> Value {
    let mut paths = swagger["paths"].clone();
    inline(&mut paths, &swagger["parameters"]);
    let produces = &swagger["produces"];
    let mut components = Map::new();
    for (name, part, convert) in [
        ("schemas", "definitions", &schema as &dyn Fn(&Value) -> Value),
        ("securitySchemes", "securityDefinitions", &security_scheme),
        ("responses", "responses", &|value| response(value, produces)),
    ] {
        if let Some(all) = swagger[part].as_object() {
            components.insert(name, each(all, convert));
        }
    }
    let mut out = Map::new();
    out.insert("openapi", "3.0.0".into());
    copy(swagger, &["info", "externalDocs"], &mut out);
    if let Some(paths) = paths.as_object() {
        let extension = |name: &str| name.starts_with("x-");
        let converted = paths
            .iter()
            .map(|(path, item)| (path, if extension(path) { item.clone() } else { path_item(item) }));
        out.insert("paths", converted.collect::<Map>().into());
    }
    out.insert("components", components.into());
    out.into()
}

fn each(map: &Map, convert: impl Fn(&Value) -> Value) -> Value {
    map.iter().map(|(name, value)| (name, convert(value))).collect::<Map>().into()
}

/// Takes members over as they are, extensions too.
fn copy(from: &Value, names: &[&str], to: &mut Map) {
    let members = from.as_object().into_iter().flatten();
    let taken = members.filter(|(name, _)| names.contains(name) || name.starts_with("x-"));
    to.extend(taken.map(|(name, value)| (name, value.clone())));
}

fn path_item(item: &Value) -> Value {
    let mut out = Map::new();
    copy(item, &["$ref"], &mut out);
    for verb in ["get", "put", "post", "delete", "options", "head", "patch"] {
        if item[verb].is_object() {
            out.insert(verb, operation(&item[verb]));
        }
    }
    if let Some(parameters) = item["parameters"].as_array() {
        out.insert("parameters", parameters.iter().map(parameter).collect());
    }
    out.into()
}

fn operation(operation: &Value) -> Value {
    let mut out = Map::new();
    let same = ["description", "externalDocs", "tags", "summary", "deprecated", "operationId"];
    copy(operation, &same, &mut out);
    let mut parameters = Vec::new();
    for given in operation["parameters"].as_array().into_iter().flatten() {
        if given["name"] == "body" && given["schema"].is_object() {
            out.insert("requestBody", content(&operation["consumes"], &given["schema"]).into());
        } else {
            parameters.push(parameter(given));
        }
    }
    if !parameters.is_empty() {
        out.insert("parameters", parameters.into());
    }
    let responses = operation["responses"].as_object();
    let responses = responses.map(|all| each(all, |given| response(given, &operation["produces"])));
    out.insert("responses", responses.unwrap_or_else(|| json!({})));
    out.into()
}

/// A schema in each of some media types.
fn content(media: &Value, of: &Value) -> Map {
    let media = media.as_array().into_iter().flatten().filter_map(Value::as_str);
    let types: Map = media.map(|media| (media.to_owned(), json!({"schema": schema(of)}))).collect();
    let mut out = Map::new();
    if !types.is_empty() {
        out.insert("content", types.into());
    }
    out
}

fn response(response: &Value, produces: &Value) -> Value {
    let mut out = match response["schema"].is_object() {
        true => content(produces, &response["schema"]),
        false => Map::new(),
    };
    copy(response, &["description"], &mut out);
    if let Some(target) = response["$ref"].as_str() {
        let target = target.replacen("#/responses/", "#/components/responses/", 1);
        out.insert("$ref", target.into());
    }
    out.into()
}

fn parameter(parameter: &Value) -> Value {
    let mut out = Map::new();
    copy(parameter, &["name", "description", "in", "required", "allowEmptyValue"], &mut out);
    let own = &parameter["schema"];
    out.insert(
        "schema",
        match own.is_object() {
            true => schema(own),
            false => {
                let mut simple = Map::new();
                copy(parameter, &["type", "format", "uniqueItems"], &mut simple);
                simple.retain(|name, _| !name.starts_with("x-"));
                simple.into()
            }
        },
    );
    out.into()
}

fn schema(schema: &Value) -> Value {
    let Value::Object(map) = schema else { return schema.clone() };
    let mut out = Map::new();
    for (key, value) in map {
        match (key, value) {
            ("$ref", Value::String(target)) => {
                let target = target.replacen("#/definitions/", "#/components/schemas/", 1);
                // Beside a reference nothing else counts.
                match map.len() {
                    1 => out.insert(key, target.into()),
                    _ => out.insert("allOf", json!([{"$ref": target}])),
                };
            }
            ("properties", Value::Object(fields)) => {
                out.insert(key, each(fields, self::schema));
            }
            ("items" | "allOf" | "anyOf" | "oneOf", Value::Array(all)) => {
                out.insert(key, all.iter().map(self::schema).collect());
            }
            ("items" | "additionalProperties" | "additionalItems" | "not", inner) => {
                out.insert(key, self::schema(inner));
            }
            _ => {
                out.insert(key, value.clone());
            }
        }
    }
    out.into()
}

fn security_scheme(scheme: &Value) -> Value {
    let mut out = Map::new();
    copy(scheme, &["description", "type", "name", "in"], &mut out);
    if let Some(flow) = scheme["flow"].as_str() {
        let mut urls = Map::new();
        copy(scheme, &["authorizationUrl", "tokenUrl", "scopes"], &mut urls);
        urls.retain(|name, _| !name.starts_with("x-"));
        out.insert("flows", json!({flow: urls}));
    }
    out.into()
}
