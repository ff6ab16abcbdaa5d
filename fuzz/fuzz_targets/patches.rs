#![no_main]
//! JSON patch, merge patch, strategic merge patch of a Pod.

use coxswain_api::schema;
use coxswain_meta::json::{Value, json};
use coxswain_meta::patch;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(patch) = serde_json::from_slice::<Value>(bytes) else { return };
    let pod = schema::by_gvk("", "v1", "Pod").expect("a built-in kind");
    let document = json!({
        "metadata": {"name": "p", "labels": {"a": "1"}, "finalizers": ["x", "y"]},
        "spec": {
            "containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 80}]}, {"name": "b", "image": "i"}],
            "tolerations": [{"key": "k"}],
        },
    });
    let mut patched = document.clone();
    let _ = patch::json_patch(&mut patched, &patch);
    let mut patched = document.clone();
    if patch::merge_patch(&mut patched, &patch).is_ok() {
        assert!(patched.is_object());
    }
    let mut patched = document;
    if patch::strategic::apply(&mut patched, &patch, pod).is_ok() {
        assert!(patched.is_object());
    }
});
