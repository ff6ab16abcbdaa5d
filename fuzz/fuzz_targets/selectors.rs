#![no_main]
//! Label selectors, field selectors, JSON paths.

use std::collections::BTreeMap;

use coxswain_meta::json::json;
use coxswain_meta::jsonpath::JsonPath;
use coxswain_meta::{fields, labels};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let known = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
    if let Ok(selector) = labels::Selector::parse(text) {
        let _ = selector.matches(&known);
    }
    if let Ok(selector) = fields::Selector::parse(text) {
        let _ = selector.matches(&|name| known.get(name).map(String::as_str));
    }
    if let Some(path) = JsonPath::parse(text) {
        let _ = path.find(&json!({"a": [{"b": 1}, {"b": "2"}]}));
    }
});
