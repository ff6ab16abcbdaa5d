//! Who asks, and what he may: from the headers of a request to its answer.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::Method;
use serde_json::{Value, json};

use super::{Answer, Fixture};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

impl Fixture {
    /// Sends a request with a bearer token.
    async fn with_token(&self, token: &str, method: Method, path: &str, body: Value) -> Answer {
        let headers = [("authorization", format!("Bearer {token}"))];
        self.as_stranger(method, path, &headers, body).await
    }
}

#[tokio::test]
async fn a_bootstrap_token_asks_for_certificates_and_nothing_else() {
    let server = Fixture::start().await;
    let token = "abcdef.0123456789abcdef";
    let data = [
        ("token-id", "abcdef"),
        ("token-secret", "0123456789abcdef"),
        ("usage-bootstrap-authentication", "true"),
    ];
    let data = data.map(|(key, value)| (key, BASE64_STANDARD.encode(value)));
    let data = std::collections::BTreeMap::from(data);
    let secret = json!({"metadata": {"name": "bootstrap-token-abcdef"}, "data": data,
        "type": "bootstrap.kubernetes.io/token"});
    assert_eq!(server.with_token(token, Method::GET, REQUESTS, Value::Null).await.0, 401);
    server.post("/api/v1/namespaces/kube-system/secrets", secret).await;
    assert_eq!(server.with_token(token, Method::GET, REQUESTS, Value::Null).await.0, 200);
    let (code, refused) = server.with_token(token, Method::GET, "/api/v1/nodes", Value::Null).await;
    assert_eq!(code, 403);
    assert!(refused["message"].as_str().unwrap_or_default().contains("\"system:bootstrap:abcdef\""));
    assert_eq!(server.with_token("abcdef.0123456789abcdeX", Method::GET, REQUESTS, Value::Null).await.0, 401);
}
