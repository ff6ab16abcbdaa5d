//! ConfigMap and Secret.

use coxswain_meta::json::{Map, Value};
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::base64;
use crate::catalogue::{Column, Hooks, Kind, kind};
use crate::objectmeta::immutable;
use crate::table::{AGE, NAME, age, column, name};
use crate::value::{entries, filled, flag, has, set_default, text};

/// Size limit of all values together.
const MAX_BYTES: usize = 1024 * 1024;

pub(crate) const CONFIG_MAP: Kind = Kind {
    short_names: &["cm"],
    columns: CONFIG_MAP_COLUMNS,
    hooks: Hooks {
        validate: validate_config_map,
        validate_update: |new, old| validate_immutable(new, old, &["data", "binaryData"]),
        row: |v, now| vec![name(v), (length(v, "data") + length(v, "binaryData")).into(), age(v, now)],
        ..Hooks::PLAIN
    },
    ..kind!("", "v1", "ConfigMap", "configmaps", "configmap")
};
const CONFIG_MAP_COLUMNS: &[Column] = &[NAME, column("Data", "Number of entries."), AGE];

pub(crate) const SECRET: Kind = Kind {
    columns: SECRET_COLUMNS,
    selectable: &["type"],
    hooks: Hooks {
        default: |v| {
            merge_string_data(v);
            set_default(v, "type", "Opaque");
        },
        validate: validate_secret,
        validate_update: validate_secret_update,
        selectable: |v| vec![("type", text(v, "type").to_owned())],
        row: |v, now| vec![name(v), text(v, "type").into(), length(v, "data").into(), age(v, now)],
        ..Hooks::PLAIN
    },
    ..kind!("", "v1", "Secret", "secrets", "secret")
};
const SECRET_COLUMNS: &[Column] =
    &[NAME, column("Type", "What the data is for."), column("Data", "Number of entries."), AGE];

fn length(object: &Value, key: &str) -> usize {
    object.get(key).and_then(Value::as_object).map_or(0, Map::len)
}

/// `stringData` is write-only: its entries become base64 entries of `data`.
fn merge_string_data(secret: &mut Value) {
    let Value::Object(map) = secret else { return };
    let Some(Value::Object(plain)) = map.remove("stringData") else { return };
    let data = map.entry("data").or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(data) = data {
        data.extend(
            plain
                .into_iter()
                .map(|(k, v)| (k, base64::encode(v.as_str().unwrap_or_default().as_bytes()).into())),
        );
    }
}

fn validate_config_map(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut size = 0;
    for (key, value) in entries(object, "data") {
        let path = Path::new("data").key(key);
        errors.invalid_each(&path, key, names::config_map_key(key));
        if has(&object["binaryData"], key) {
            errors.push(FieldError::invalid(&path, key, "duplicate of key present in binaryData"));
        }
        size += value.as_str().map_or(0, str::len);
    }
    for (key, value) in entries(object, "binaryData") {
        errors.invalid_each(&Path::new("binaryData").key(key), key, names::config_map_key(key));
        size += base64::decoded_length(value.as_str().unwrap_or_default());
    }
    if size > MAX_BYTES {
        // The whole object is too long, so there is no field to name.
        errors.push(FieldError::too_long(&Path::new(""), MAX_BYTES));
    }
    errors
}

/// An immutable object stays immutable and keeps its data.
fn validate_immutable(new: &Value, old: &Value, data: &[&str]) -> ErrorList {
    let mut errors = ErrorList::new();
    if flag(old, "immutable") {
        let rule = "field is immutable when `immutable` is set";
        if !flag(new, "immutable") {
            errors.push(FieldError::forbidden(&Path::new("immutable"), rule));
        }
        for key in data {
            let filled =
                |v: &Value| v.get(*key).filter(|d| d.as_object().is_some_and(|m| !m.is_empty())).cloned();
            if filled(new) != filled(old) {
                errors.push(FieldError::forbidden(&Path::new(key), rule));
            }
        }
    }
    errors
}

fn validate_secret(secret: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut size = 0;
    let data = Path::new("data");
    for (key, value) in entries(secret, "data") {
        errors.invalid_each(&data.key(key), key, names::config_map_key(key));
        size += base64::decoded_length(value.as_str().unwrap_or_default());
    }
    if size > MAX_BYTES {
        errors.push(FieldError::too_long(&data, MAX_BYTES));
    }
    let mut need = |key: &str| {
        if !has(&secret["data"], key) {
            errors.push(FieldError::required(&data.key(key), ""));
        }
    };
    match text(secret, "type") {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            if text(&secret["metadata"]["annotations"], key).is_empty() {
                errors.push(FieldError::required(&Path::new("metadata").child("annotations").key(key), ""));
            }
        }
        "kubernetes.io/dockercfg" => docker(&mut errors, secret, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => docker(&mut errors, secret, ".dockerconfigjson"),
        "kubernetes.io/ssh-auth" if !filled(&secret["data"], "ssh-privatekey") => {
            errors.push(FieldError::required(&data.key("ssh-privatekey"), ""));
        }
        "kubernetes.io/tls" => ["tls.crt", "tls.key"].into_iter().for_each(need),
        "kubernetes.io/basic-auth"
            if !has(&secret["data"], "username") && !has(&secret["data"], "password") =>
        {
            need("username");
            need("password");
        }
        _ => {}
    }
    errors
}

/// Credentials of registries are JSON; the messages are those of Go's parser, as far as it comes in most cases.
fn docker(errors: &mut ErrorList, secret: &Value, key: &str) {
    let at = Path::new("data").key(key);
    let Some(data) = secret["data"][key].as_str() else {
        return errors.push(FieldError::required(&at, ""));
    };
    let data = base64::decode(data);
    if serde_json::from_slice::<serde::de::IgnoredAny>(&data).is_err() {
        let why = match data.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(byte) if !br#"{["-0123456789tfn"#.contains(byte) => {
                format!("invalid character '{}' looking for beginning of value", char::from(*byte))
            }
            _ => "unexpected end of JSON input".to_owned(),
        };
        errors.push(FieldError::invalid(&at, "<secret contents redacted>", why));
    }
}

fn validate_secret_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    immutable(&mut errors, new, old, "type", &Path::root());
    errors.extend(validate_immutable(new, old, &["data"]));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_meta::json::json;

    #[test]
    fn string_data_becomes_data() {
        let mut secret = json!({"data": {"a": "eA=="}, "stringData": {"a": "hello", "b": "hi"}});
        merge_string_data(&mut secret);
        assert_eq!(secret, json!({"data": {"a": "aGVsbG8=", "b": "aGk="}}));
        assert_eq!(base64::encode(b"abc"), "YWJj");
    }

    #[test]
    fn rules() {
        let check = |errors: ErrorList, want: &str| assert!(errors.to_string().contains(want), "{errors}");
        check(
            validate_config_map(&json!({"data": {"a b": ""}})),
            "data[a b]: Invalid value: \"a b\": a valid config key",
        );
        check(validate_secret(&json!({"type": "kubernetes.io/tls"})), "data[tls.crt]: Required value, ");
        let old = json!({"immutable": true, "data": {"a": "1"}});
        let new = json!({"data": {"a": "2"}});
        check(
            validate_immutable(&new, &old, &["data"]),
            "[immutable: Forbidden: field is immutable when `immutable` is set, data: Forbidden: field is immutable",
        );
        check(
            validate_secret_update(&json!({"type": "a"}), &json!({"type": "b"})),
            "type: Invalid value: \"a\": field is immutable",
        );
    }
}
