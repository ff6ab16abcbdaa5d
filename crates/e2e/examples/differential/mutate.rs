//! Seeded mutations of a manifest: wrong types, fields that are missing, unknown, out of range or there twice.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

/// Marks a key that is written without the mark, beside the same key.
const TWICE: &str = "\u{1}twice";

/// A mutated manifest as it is sent, and what was done to it.
pub struct Mutation {
    pub what: String,
    pub body: String,
}

/// Places in a document, as JSON pointers, without the type members and the name.
fn places(value: &Value, at: &str, out: &mut Vec<String>) {
    if !at.is_empty()
        && !matches!(at, "/apiVersion" | "/kind" | "/metadata" | "/metadata/name" | "/metadata/namespace")
    {
        out.push(at.to_owned());
    }
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                places(inner, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), out);
            }
        }
        Value::Array(items) => {
            for (i, inner) in items.iter().enumerate() {
                places(inner, &format!("{at}/{i}"), out);
            }
        }
        _ => {}
    }
}

/// Some mutations of a manifest, the same for the same seed.
pub fn mutations(document: &Value, seed: u64, count: usize) -> Vec<Mutation> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut at = Vec::new();
    places(document, "", &mut at);
    let mut out = Vec::new();
    for _ in 0..count * 4 {
        let Some(place) = at.choose(&mut rng) else { break };
        let mut mutated = document.clone();
        let Some(what) = mutate(&mut mutated, place, &mut rng) else { continue };
        let body = mutated.to_string().replace("\\u0001twice", "");
        out.push(Mutation { what: format!("{what} {place}"), body });
        if out.len() == count {
            break;
        }
    }
    out
}

fn mutate(document: &mut Value, place: &str, rng: &mut StdRng) -> Option<&'static str> {
    let (parent, key) = place.rsplit_once('/')?;
    let key = key.replace("~1", "/").replace("~0", "~");
    match rng.random_range(0..10) {
        0 | 1 => {
            let value = document.pointer_mut(place)?;
            *value = other_type(value, rng);
            Some("wrong type at")
        }
        2 | 3 => {
            match document.pointer_mut(parent)? {
                Value::Object(map) => drop(map.remove(&key)),
                Value::Array(items) => drop(items.remove(key.parse().ok()?)),
                _ => return None,
            }
            Some("without")
        }
        4 => {
            let map = document.pointer_mut(parent)?.as_object_mut()?;
            let value = map.remove(&key)?;
            map.insert(format!("{key}X"), value);
            Some("renamed")
        }
        5 => {
            document.pointer_mut(place)?.as_object_mut()?.insert("unknownField".into(), json!("x"));
            Some("unknown field in")
        }
        6 => {
            match document.pointer_mut(parent)? {
                Value::Object(map) => {
                    let value = map.get(&key)?.clone();
                    map.insert(format!("{key}{TWICE}"), value);
                }
                Value::Array(items) => {
                    let item = items.get(key.parse::<usize>().ok()?)?.clone();
                    items.push(item);
                }
                _ => return None,
            }
            Some("twice")
        }
        _ => {
            let value = document.pointer_mut(place)?;
            *value = out_of_range(value, rng)?;
            Some("out of range at")
        }
    }
}

fn other_type(value: &Value, rng: &mut StdRng) -> Value {
    let mut choices =
        vec![json!("text"), json!(7), json!(true), json!([]), json!({}), json!(null), json!(1.5)];
    choices.retain(|other| std::mem::discriminant(other) != std::mem::discriminant(value));
    choices.choose(rng).cloned().unwrap_or_default()
}

fn out_of_range(value: &Value, rng: &mut StdRng) -> Option<Value> {
    let choices = match value {
        Value::Number(_) => vec![json!(-1), json!(0), json!(70000), json!(2_147_483_648_i64), json!(101)],
        Value::String(_) => {
            let long = "x".repeat(300);
            ["", "Not_Valid!", "Bogus", "-a", "a b", "UPPER", "/", "-5", "1.5.x", &long]
                .map(|s| json!(s))
                .to_vec()
        }
        Value::Object(_) => vec![Map::new().into()],
        Value::Array(_) => vec![json!([])],
        Value::Bool(value) => vec![json!(!value)],
        Value::Null => return None,
    };
    choices.choose(rng).cloned()
}
