#![no_main]
//! Decoding of JSON objects.

use coxswain_api::schema;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok((object, _)) = schema::parse_json_strict(bytes) else { return };
    for (group, kind) in [("", "Pod"), ("", "Service"), ("apps", "Deployment")] {
        let type_ref = schema::by_gvk(group, "v1", kind).expect("a built-in kind");
        if !schema::check(&object, type_ref).errors.is_empty() {
            continue;
        }
        let mut once = object.clone();
        schema::normalise(&mut once, type_ref);
        let mut twice = once.clone();
        schema::normalise(&mut twice, type_ref);
        assert_eq!(once, twice);
        let _ = schema::write_json(&once, type_ref);
    }
});
