//! Who asks, and what he may: from the headers of a request to its answer.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use coxswain_meta::json::{Value, json};
use http::{Method, Request};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

use super::webhook::start;
use super::{Answer, Fixture, read};
use crate::authn::epoch_seconds;
use crate::body::Body;
use crate::{
    Access, AccessConfig, AuthorizationWebhookConfig, Mode, OidcConfig, Peer, RequestHeaderConfig,
    TokenWebhookConfig,
};

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

#[tokio::test]
async fn a_front_proxy_names_users_and_nobody_else_does() {
    let made = rcgen::generate_simple_self_signed(vec!["proxy".to_owned()]).expect("a certificate");
    let access = AccessConfig {
        request_header: Some(RequestHeaderConfig::standard(&made.cert.pem())),
        client_ca_pem: made.cert.pem(),
        ..AccessConfig::default()
    };
    let server = Fixture::start_with(access).await;
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let named = async |is_proxy: bool| {
        let request = Request::post(path)
            .header("content-type", "application/json")
            .header("x-remote-user", "ann")
            .header("x-remote-group", "dev")
            .body(Body::from("{}"));
        let peer = Peer { is_proxy, ..Peer::default() };
        read(server.server.handle(&peer, request.expect("a request")).await).await
    };
    let (code, review) = named(true).await;
    assert_eq!((code, &review["status"]["userInfo"]["username"]), (201, &json!("ann")));
    assert_eq!(review["status"]["userInfo"]["groups"], json!(["dev", "system:authenticated"]));
    assert_eq!(named(false).await.0, 403, "a stranger's headers mean nothing");
}

/// An issuer's key: its set, and tokens signed with it.
struct Issuer(EcdsaKeyPair, String);

impl Issuer {
    fn new(id: &str) -> Self {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.as_ref(), &random);
        Self(key.expect("a key"), id.to_owned())
    }

    fn key(&self) -> Value {
        let point = self.0.public_key().as_ref();
        json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": self.1,
            "x": BASE64_URL_SAFE_NO_PAD.encode(&point[1..33]), "y": BASE64_URL_SAFE_NO_PAD.encode(&point[33..])})
    }

    fn token(&self, claims: &Value) -> String {
        let header = json!({"alg": "ES256", "kid": self.1}).to_string();
        let encode = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        let signed = format!("{}.{}", encode(&header), encode(&claims.to_string()));
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

#[tokio::test]
async fn an_issuers_tokens_are_taken_and_its_new_keys_found() {
    let (old, new) = (Issuer::new("old"), Issuer::new("new"));
    let keys = Arc::new(Mutex::new(vec![old.key()]));
    let (url, shown) = (Arc::new(OnceLock::<String>::new()), keys.clone());
    let issuer = url.clone();
    let (address, bundle) = start(move |path, _| match path {
        "/.well-known/openid-configuration" => {
            let issuer = issuer.get().cloned().unwrap_or_default();
            json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")})
        }
        _ => json!({"keys": *shown.lock().expect("the keys")}),
    })
    .await;
    let issuer = url.get_or_init(|| format!("https://localhost:{}", address.port())).clone();
    let oidc = OidcConfig {
        issuer_url: issuer.clone(),
        client_id: "cox".into(),
        username_claim: "sub".into(),
        username_prefix: "oidc:".into(),
        ca_pem: BASE64_STANDARD.decode(bundle).ok(),
        signing_algs: vec!["ES256".into()],
        ..OidcConfig::default()
    };
    let server = Fixture::start_with(AccessConfig { oidc: Some(oidc), ..AccessConfig::default() }).await;
    let claims =
        |audience: &str| json!({"iss": issuer, "aud": audience, "sub": "ann", "exp": epoch_seconds() + 60});
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let asked = async |token: &str| server.with_token(token, Method::POST, path, json!({})).await;
    let (code, review) = asked(&old.token(&claims("cox"))).await;
    assert_eq!((code, &review["status"]["userInfo"]["username"]), (201, &json!("oidc:ann")));
    assert_eq!(asked(&old.token(&claims("other"))).await.0, 401);
    let forged = Issuer::new("old");
    assert_eq!(asked(&forged.token(&claims("cox"))).await.0, 401);
    keys.lock().expect("the keys").push(new.key());
    assert_eq!(asked(&new.token(&claims("cox"))).await.0, 201, "an unknown key is asked for");
}

/// A file that leads to a webhook.
pub fn kubeconfig(address: SocketAddr, bundle: &str) -> tempfile::NamedTempFile {
    let text = json!({"current-context": "w", "contexts": [{"name": "w", "context": {"cluster": "w", "user": "w"}}],
        "clusters": [{"name": "w", "cluster": {"server": format!("https://localhost:{}/ask", address.port()),
            "certificate-authority-data": bundle}}], "users": [{"name": "w", "user": {}}]});
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text.to_string()).expect("a file");
    file
}

#[tokio::test]
async fn webhooks_know_tokens_and_decide_after_the_roles() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let (address, bundle) = start(move |_, review| {
        count.fetch_add(1, Ordering::Relaxed);
        if review["kind"] == "TokenReview" {
            let known = review["spec"]["token"] == "opened";
            return json!({"status": {"authenticated": known, "user": {"username": "ann", "groups": ["dev"]}}});
        }
        let attributes = &review["spec"]["resourceAttributes"];
        json!({"status": {"allowed": attributes["resource"] == "secrets" && review["spec"]["groups"][0] == "dev",
            "denied": attributes["resource"] == "pods", "reason": "so it is"}})
    })
    .await;
    let file = kubeconfig(address, &bundle);
    let token_webhook = TokenWebhookConfig {
        file: file.path().to_owned(),
        version: "v1".into(),
        cache_ttl: Duration::from_secs(60),
    };
    let minute = Duration::from_secs(60);
    let authorization_webhook =
        AuthorizationWebhookConfig::new(file.path().to_owned(), "v1".into(), minute, minute);
    let server = Fixture::start_with(AccessConfig {
        token_webhook: Some(token_webhook),
        modes: vec![Mode::Node, Mode::Rbac, Mode::Webhook],
        authorization_webhook: Some(authorization_webhook),
        ..AccessConfig::default()
    })
    .await;
    let get = async |token: &str, path: &str| server.with_token(token, Method::GET, path, Value::Null).await;
    assert_eq!(get("closed", "/api/v1/secrets").await.0, 401);
    assert_eq!(get("opened", "/api/v1/secrets").await.0, 200);
    let before = asked.load(Ordering::Relaxed);
    assert_eq!(get("opened", "/api/v1/secrets").await.0, 200);
    assert_eq!(asked.load(Ordering::Relaxed), before, "answers are remembered");
    let (code, refused) = get("opened", "/api/v1/pods").await;
    assert_eq!(code, 403);
    assert!(refused["message"].as_str().unwrap_or_default().ends_with(": so it is"), "{refused}");
    assert_eq!(get("opened", "/version").await.0, 200, "the roles are asked first");
    let alone = AccessConfig { modes: vec![Mode::Webhook], ..AccessConfig::default() };
    assert!(Access::new(alone).is_err(), "a mode without its webhook");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_chain_is_asked_by_admission_and_by_expressions() {
    let (address, bundle) = start(|_, review| {
        let spec = &review["spec"];
        let verb = spec["resourceAttributes"]["verb"].as_str().unwrap_or_default();
        json!({"status": {"allowed": spec["user"] == "ann" && verb != "bless", "reason": "so it is"}})
    })
    .await;
    let file = kubeconfig(address, &bundle);
    let minute = Duration::from_secs(60);
    let webhook = AuthorizationWebhookConfig::new(file.path().to_owned(), "v1".into(), minute, minute);
    let server = Fixture::start_with(AccessConfig {
        modes: vec![Mode::Rbac, Mode::Webhook],
        authorization_webhook: Some(webhook),
        ..AccessConfig::default()
    })
    .await;
    let ann = server.of("ann", &[]);
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let rules = json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]);
    let (code, made) = ann.post(roles, json!({"metadata": {"name": "all"}, "rules": rules})).await;
    assert_eq!(code, 201, "the webhook lets ann escalate: {made}");
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    let binding = json!({"metadata": {"name": "all"}, "subjects": [{"kind": "User", "name": "bob"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}});
    let (code, made) = ann.post(bindings, binding).await;
    assert_eq!(code, 201, "and bind: {made}");

    let group = "/apis/admissionregistration.k8s.io/v1";
    let check = |verb: &str| format!("authorizer.group('').resource('configmaps').check('{verb}').allowed()");
    let policy = json!({"metadata": {"name": "p"}, "spec": {
        "matchConstraints": {"resourceRules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]},
        "validations": [{"expression": format!("{} && !{}", check("praise"), check("bless")), "message": "not ann"}]}});
    assert_eq!(server.post(&format!("{group}/validatingadmissionpolicies"), policy).await.0, 201);
    let binding =
        json!({"metadata": {"name": "p"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}});
    assert_eq!(server.post(&format!("{group}/validatingadmissionpolicybindings"), binding).await.0, 201);
    let maps = "/api/v1/namespaces/default/configmaps";
    let (code, made) = ann.post(maps, json!({"metadata": {"name": "a"}})).await;
    assert_eq!(code, 201, "{made}");
    let (code, refused) = server.of("bob", &[]).post(maps, json!({"metadata": {"name": "b"}})).await;
    assert_eq!(code, 422, "bob may do all by his role, also bless: {refused}");
}

fn authorizers(file: &std::path::Path, more: Value) -> String {
    let mut webhook = json!({"timeout": "5s", "subjectAccessReviewVersion": "v1", "failurePolicy": "Deny",
        "matchConditionSubjectAccessReviewVersion": "v1", "connectionInfo": {
            "type": "KubeConfigFile", "kubeConfigFile": file}});
    for (field, value) in more.as_object().into_iter().flatten() {
        webhook[field] = value.clone();
    }
    json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration", "authorizers": [
        {"type": "Webhook", "name": "hook.example.org", "webhook": webhook}, {"type": "RBAC", "name": "rbac"}]})
    .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_a_file_has_conditions_fails_closed_and_is_read_again() {
    let (address, bundle) = start(|_, review| {
        let name = &review["spec"]["resourceAttributes"]["resource"];
        json!({"status": {"denied": name == "secrets", "reason": "the hook says no"}})
    })
    .await;
    let webhook = kubeconfig(address, &bundle);
    let nobody = kubeconfig("127.0.0.1:1".parse().expect("an address"), &bundle);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let write = |text: String| std::fs::write(file.path(), text).expect("a file");
    let only = json!({"matchConditions": [{"expression":
        "has(request.resourceAttributes) && request.resourceAttributes.namespace == 'default' && !('free' in request.groups)"}]});
    write(authorizers(webhook.path(), only.clone()));
    let access = AccessConfig { authorization_file: Some(file.path().to_owned()), ..AccessConfig::default() };
    let server = Fixture::start_with(access).await;
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    let binding = json!({"metadata": {"name": "all"}, "subjects": [{"kind": "User", "name": "ann"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}});
    assert_eq!(server.post(bindings, binding).await.0, 201);
    let (ann, free) = (server.of("ann", &[]), server.of("ann", &["free"]));
    let secrets = "/api/v1/namespaces/default/secrets";
    let (code, refused) = ann.get(secrets).await;
    assert!(
        code == 403 && refused["message"].as_str().is_some_and(|text| text.ends_with(": the hook says no")),
        "{refused}"
    );
    assert_eq!(
        ann.get("/api/v1/namespaces/default/configmaps").await.0,
        200,
        "it has no opinion: the roles decide"
    );
    assert_eq!(ann.get("/api/v1/namespaces/kube-system/secrets").await.0, 200, "no condition holds");
    assert_eq!(free.get(secrets).await.0, 200);

    let follow = async |wanted: u16, path: &str| {
        tokio::time::timeout(Duration::from_secs(60), async {
            while ann.get(path).await.0 != wanted {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await
        .expect("the file is followed");
    };
    write("{}".to_owned());
    write(authorizers(nobody.path(), only));
    follow(403, "/api/v1/namespaces/default/configmaps").await;
    write(authorizers(nobody.path(), json!({"failurePolicy": "NoOpinion"})));
    follow(200, secrets).await;
}
