#![no_main]
//! Server-side apply to a Deployment and a ConfigMap.

use libfuzzer_sys::fuzz_target;
use serde_json::Value;

#[path = "../server.rs"]
mod server;

fuzz_target!(|bytes: &[u8]| {
    for path in ["/apis/apps/v1/namespaces/default/deployments/d", "/api/v1/namespaces/default/configmaps/c"] {
        let target = format!("{path}?fieldManager=fuzz&force=true");
        let apply = || server::send("PATCH", &target, "application/apply-patch+yaml", bytes).expect("a request");
        let (code, answer) = apply();
        assert!(!server::is_fault(code, &answer), "{code} {}", String::from_utf8_lossy(&answer));
        if code >= 300 {
            continue;
        }
        let (_, again) = apply();
        let version = |answer: &[u8]| {
            let answer: Value = serde_json::from_slice(answer).expect("an object");
            answer["metadata"]["resourceVersion"].clone()
        };
        assert_eq!(version(&answer), version(&again), "applying the same again changes nothing");
        // What finalizers keep would be gone with the next configuration, which does not have them.
        server::send("DELETE", path, "", b"");
        server::send("PATCH", path, "application/merge-patch+json", br#"{"metadata":{"finalizers":null}}"#);
    }
});
