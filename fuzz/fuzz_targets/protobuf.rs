#![no_main]
//! Decoding of protobuf objects: with their envelope, and the bare message of a Pod.

use coxswain_api::schema;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = schema::decode_protobuf(bytes);
    let pod = schema::by_gvk("", "v1", "Pod").expect("a built-in kind");
    let Ok(object) = schema::decode_protobuf_message(bytes, pod) else { return };
    let encoded = schema::encode_protobuf_message(&object, pod);
    let again = schema::decode_protobuf_message(&encoded, pod).expect("our own encoding");
    // What upstream always writes, such as an empty metadata, is there from then on.
    assert_eq!(encoded, schema::encode_protobuf_message(&again, pod));
});
