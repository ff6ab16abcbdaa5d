//! Admission webhooks: a server on the loopback interface is asked, and its answers count.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use coxswain_meta::json::{Value, json};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::Fixture;
use crate::body::Body;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Adds what it saw, and refuses what is bad.
fn judge(_: &str, mut review: Value) -> Value {
    let asked = review["request"].take();
    let mut response = json!({"uid": asked["uid"], "allowed": asked["object"]["data"]["bad"].is_null(),
        "status": {"message": "it is bad", "code": 403}});
    if asked["operation"] == "CREATE" {
        let patch = json!([{"op": "add", "path": "/data", "value": {"by": asked["userInfo"]["username"]}}]);
        let bad = !asked["object"]["data"].is_null();
        if !bad {
            response["patch"] = BASE64_STANDARD.encode(patch.to_string()).into();
            response["patchType"] = "JSONPatch".into();
        }
    }
    json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response})
}

/// Starts a server of documents on loopback, told of a request's path and body, 404 for none; returns its address and its
/// certificate, PEM in base64.
pub async fn start(answer: impl Fn(&str, Value) -> Value + Send + Sync + 'static) -> (SocketAddr, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let tls = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("TLS");
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let answer = Arc::new(answer);
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let answer = answer.clone();
        async move {
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            let answer = answer(&path, body);
            let mut response = Response::new(Body::from(answer.to_string()));
            if answer == 404 {
                *response.status_mut() = http::StatusCode::NOT_FOUND;
            }
            Ok::<_, Infallible>(response)
        }
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service.clone());
            tokio::spawn(connection);
        }
    });
    (address, BASE64_STANDARD.encode(made.cert.pem()))
}

fn configuration(kind: &str, url: &str, bundle: &str) -> Value {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "w"}, "webhooks": [{
        "name": "w.e.io", "clientConfig": {"url": url, "caBundle": bundle}, "admissionReviewVersions": ["v1"],
        "sideEffects": "None", "timeoutSeconds": 5,
        "matchConditions": [{"name": "free", "expression": "!object.metadata.name.startsWith('free')"}],
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]}]})
}

#[tokio::test]
async fn webhooks_change_refuse_and_fail() {
    let server = Fixture::start().await;
    let (address, bundle) = start(judge).await;
    let url = format!("https://localhost:{}/", address.port());
    let group = "/apis/admissionregistration.k8s.io/v1";
    let mutating = configuration("MutatingWebhookConfiguration", &url, &bundle);
    let (code, made) = server.post(&format!("{group}/mutatingwebhookconfigurations"), mutating).await;
    assert_eq!(code, 201, "{made}");
    let named = |name: &str, data: Value| json!({"metadata": {"name": name}, "data": data});
    assert_eq!(server.post(MAPS, named("a", Value::Null)).await.1["data"], json!({"by": "tester"}));
    assert_eq!(server.post(MAPS, named("free", Value::Null)).await.1.get("data"), None);
    let (code, refused) = server.post(MAPS, named("b", json!({"bad": "1"}))).await;
    let message = "admission webhook \"w.e.io\" denied the request: it is bad";
    assert_eq!((code, refused["message"].as_str()), (403, Some(message)));

    let elsewhere = configuration("ValidatingWebhookConfiguration", "https://localhost:1/", &bundle);
    server.post(&format!("{group}/validatingwebhookconfigurations"), elsewhere).await;
    let (code, failed) = server.post(MAPS, named("c", Value::Null)).await;
    let message = failed["message"].as_str().unwrap_or_default();
    assert_eq!(code, 500);
    assert!(
        message.starts_with(
            "Internal error occurred: failed calling webhook \"w.e.io\": failed to call webhook: Post"
        ),
        "{message}"
    );
}
