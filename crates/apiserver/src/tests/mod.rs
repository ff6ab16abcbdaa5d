//! The API server in process, over its memory store: what clients see of features that many layers share.

mod access;
mod aggregation;
mod apply;
mod audit;
mod bounds;
mod custom;
mod flow;
mod nodes;
mod policy;
mod review;
mod scale;
mod versions;
mod webhook;
mod wording;

use std::net::{IpAddr, Ipv4Addr};

use coxswain_meta::json::Value;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;

use crate::body::Body;
use crate::{
    Access, AccessConfig, ApiServer, Config, Datastore, InProcess, Peer, ServiceRange, TokenAuthority,
    UserInfo,
};

/// A server and its client; both end with the test.
struct Fixture {
    server: ApiServer,
    client: InProcess,
    _stop: DropGuard,
}

/// An answer: its code and its document.
type Answer = (u16, Value);

impl Fixture {
    async fn start() -> Self {
        Self::start_with(AccessConfig::default()).await
    }

    async fn start_with(access: AccessConfig) -> Self {
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        let tokens = TokenAuthority::new("https://test", key.expect("a key").as_ref()).expect("tokens");
        let config = Config {
            settles_policies: true,
            version: "v1.37.0".into(),
            advertise: (IpAddr::V4(Ipv4Addr::LOCALHOST), 6443),
            services: ServiceRange::default(),
            ca_pem: String::new(),
            kubelet_tls: None,
            front_proxy: None,
            access: Access::new(access).expect("layers"),
        };
        let stop = CancellationToken::new();
        let server =
            ApiServer::open(config, Datastore::Memory, tokens, stop.clone()).await.expect("a server");
        let client = server.as_user(UserInfo::new("tester", &["system:masters"]));
        let background = server.clone();
        tokio::spawn(async move { background.run_background().await });
        Self { server, client, _stop: stop.drop_guard() }
    }

    async fn send(&self, method: Method, path: &str, media: &str, body: impl ToString) -> Answer {
        self.send_for(method, path, media, "application/json", body).await
    }

    /// Sends a request for an answer of a media type.
    async fn send_for(
        &self,
        method: Method,
        path: &str,
        media: &str,
        accept: &str,
        body: impl ToString,
    ) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", media)
            .header("accept", accept)
            .body(body.to_string())
            .expect("a request");
        read(self.client.clone().oneshot(request).await.expect("an answer")).await
    }

    /// A client of the same server.
    fn of(&self, name: &str, groups: &[&str]) -> Self {
        let client = self.server.as_user(UserInfo::new(name, groups));
        Self { server: self.server.clone(), client, _stop: CancellationToken::new().drop_guard() }
    }

    /// Sends a request of nobody, but for what its headers say.
    async fn as_stranger(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: Value,
    ) -> Answer {
        let mut request =
            Request::builder().method(method).uri(path).header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(Body::from(body.to_string())).expect("a request");
        read(self.server.handle(&Peer::default(), request).await).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, "", "").await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, "application/json", body).await
    }

    async fn merge(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PATCH, path, "application/merge-patch+json", body).await
    }

    /// Applies a configuration as a manager.
    async fn apply(&self, path: &str, manager: &str, body: Value) -> Answer {
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}fieldManager={manager}");
        self.send(Method::PATCH, &path, "application/apply-patch+yaml", body).await
    }

    /// Asks until the answer is as wanted; each question lets the server's own tasks run.
    async fn until(&self, path: &str, wanted: impl Fn(&Answer) -> bool) -> Answer {
        for _ in 0..10_000 {
            let answer = self.get(path).await;
            if wanted(&answer) {
                return answer;
            }
            tokio::task::yield_now().await;
        }
        panic!("{path} does not become as wanted: {:?}", self.get(path).await)
    }
}

async fn read<B>(response: Response<B>) -> Answer
where
    B: http_body::Body<Error: std::fmt::Debug>,
{
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    (code, serde_json::from_slice(&body).unwrap_or_default())
}
