//! An API server in memory, which all inputs of a run meet.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use axum::body::Body;
use coxswain_apiserver::{Access, AccessConfig, ApiServer, Config, Datastore, InProcess, ServiceRange, TokenAuthority, UserInfo};
use http::Request;
use http_body_util::{BodyExt, Limited};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

static SERVER: LazyLock<(Runtime, InProcess)> = LazyLock::new(|| {
    let runtime = Runtime::new().expect("a runtime");
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
    let tokens = TokenAuthority::new("https://fuzz", key.expect("a key").as_ref()).expect("tokens");
    let config = Config {
        version: "v1.37.0".into(),
        advertise: (IpAddr::V4(Ipv4Addr::LOCALHOST), 6443),
        services: ServiceRange::default(),
        ca_pem: String::new(),
        kubelet_tls: None,
        front_proxy: None,
        settles_policies: false,
        access: Access::new(AccessConfig::default()).expect("layers"),
    };
    let opened = ApiServer::open(config, Datastore::Memory, tokens, CancellationToken::new());
    let server = runtime.block_on(opened).expect("a server");
    let client = server.as_user(UserInfo::new("fuzz", &["system:masters"]));
    runtime.spawn(async move { server.run_background().await });
    (runtime, client)
});

/// Mistakes of clients that upstream calls errors of its own, and we as upstream does.
const UPSTREAMS: [&str; 6] = [
    "does not contain declared merge key",
    "failed to convert new object",
    "failed to create typed patch object",
    "list element types are not identical",
    "resourceVersion should not be set on objects to be created",
    // A resourceVersion that is no number, of a watch and in a document.
    "strconv.ParseUint: parsing ",
];

/// Whether an answer blames the server for what it should not.
pub fn is_fault(code: u16, answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    code >= 500 && !UPSTREAMS.iter().any(|known| text.contains(known))
}

/// Sends what can be sent; gives the code and the answer's beginning. Watches are not waited for.
pub fn send(method: &str, target: &str, media: &str, body: &[u8]) -> Option<(u16, Vec<u8>)> {
    let request = Request::builder().method(method).uri(target).header("content-type", media);
    let request = request.body(Body::from(body.to_vec())).ok()?;
    let (runtime, client) = &*SERVER;
    runtime.block_on(async {
        let response = client.clone().oneshot(request).await.expect("an answer");
        let code = response.status().as_u16();
        let reading = Limited::new(response.into_body(), 1 << 22).collect();
        let read = tokio::time::timeout(std::time::Duration::from_millis(200), reading).await;
        let body = read.ok().and_then(Result::ok).map(|body| body.to_bytes().to_vec()).unwrap_or_default();
        Some((code, body))
    })
}
