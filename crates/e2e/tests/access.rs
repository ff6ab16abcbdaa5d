//! Who may come in, what he may and what is written down of it, as files say: a real server, and beside it a little service that
//! issues tokens, decides and takes audit events. `kubectl` asks.
#![allow(missing_docs)]

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use coxswain_testkit::{Cluster, NODE_IP, Options, is_root};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

const PORT: u16 = 7443;
const USER: &str = "sink:ann";

/// A key that tokens are signed with.
fn key() -> anyhow::Result<EcdsaKeyPair> {
    let (random, kind) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
    let made = EcdsaKeyPair::generate_pkcs8(kind, &random).map_err(|_| anyhow::anyhow!("no key"))?;
    EcdsaKeyPair::from_pkcs8(kind, made.as_ref(), &random).map_err(|_| anyhow::anyhow!("no key"))
}

/// A token of the service, good for ten minutes.
fn token(key: &EcdsaKeyPair) -> anyhow::Result<String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let claims = json!({"iss": format!("https://{NODE_IP}:{PORT}"), "aud": "cox", "sub": "ann", "roles": ["dev"],
        "iat": now.as_secs(), "exp": (now + Duration::from_secs(600)).as_secs()});
    let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(json!({"alg": "ES256", "kid": "k"})), part(claims));
    let signature =
        key.sign(&SystemRandom::new(), signed.as_bytes()).map_err(|_| anyhow::anyhow!("unsigned"))?;
    Ok(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
}

/// What the service answers: config maps may be read, and secrets may not, whatever others say.
fn answer(path: &str, asked: &Value, keys: &Value) -> Value {
    let issuer = format!("https://{NODE_IP}:{PORT}");
    match path {
        "/.well-known/openid-configuration" => {
            json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")})
        }
        "/keys" => keys.clone(),
        "/authorize" => {
            let resource = &asked["spec"]["resourceAttributes"]["resource"];
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "status": {
                "allowed": resource == "configmaps", "denied": resource == "secrets", "reason": "so says the service"}})
        }
        _ => Value::Null,
    }
}

/// The service, until it is dropped.
struct Service {
    certificate: String,
    /// The paths and bodies of what was asked.
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Service {
    fn start(cluster: &Cluster, key: &EcdsaKeyPair) -> anyhow::Result<Self> {
        let point = key.public_key().as_ref();
        let part = |part: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(part);
        let keys = json!({"keys": [{"kty": "EC", "crv": "P-256", "use": "sig", "kid": "k",
            "x": part(&point[1..33]), "y": part(&point[33..])}]});
        let made = rcgen::generate_simple_self_signed(vec![NODE_IP.to_owned()])?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![made.cert.der().clone()],
                PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into(),
            )?;
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = cluster.isolation().listen(format!("{NODE_IP}:{PORT}").parse()?)?;
        listener.set_nonblocking(true)?;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = asked.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let (heard, keys) = (heard.clone(), keys.clone());
            async move {
                let path = request.uri().path().to_owned();
                let body =
                    request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                let answer = answer(&path, &body, &keys).to_string();
                heard.lock().unwrap_or_else(PoisonError::into_inner).push((path, body));
                Ok::<_, Infallible>(Response::new(Full::new(bytes::Bytes::from(answer))))
            }
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service.clone()));
            }
        });
        Ok(Self { certificate: made.cert.pem(), asked, _runtime: runtime })
    }

    /// A file in the form of a kubeconfig that leads to one of its paths.
    fn kubeconfig(&self, path: &str) -> Value {
        json!({"current-context": "s", "contexts": [{"name": "s", "context": {"cluster": "s", "user": "s"}}],
            "clusters": [{"name": "s", "cluster": {"server": format!("https://{NODE_IP}:{PORT}{path}"),
                "certificate-authority-data": BASE64_STANDARD.encode(&self.certificate)}}],
            "users": [{"name": "s", "user": {}}]})
    }

    /// What it was asked at a path.
    fn asked(&self, path: &str) -> Vec<Value> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|(at, _)| at == path).map(|(_, body)| body.clone()).collect()
    }
}

fn write(cluster: &Cluster, name: &str, document: &Value) -> anyhow::Result<PathBuf> {
    let path = cluster.directory().join(name);
    std::fs::write(&path, document.to_string())?;
    Ok(path)
}

/// The flags of the server, with their files.
fn flags(cluster: &Cluster, service: &Service) -> anyhow::Result<Vec<String>> {
    let issuer = json!({"url": format!("https://{NODE_IP}:{PORT}"), "audiences": ["cox"],
        "certificateAuthority": service.certificate});
    let claims =
        json!({"username": {"claim": "sub", "prefix": "sink:"}, "groups": {"claim": "roles", "prefix": ""}});
    let authentication = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
        "jwt": [{"issuer": issuer, "claimMappings": claims}],
        "anonymous": {"enabled": true, "conditions": [{"path": "/readyz"}]}});
    let decides = write(cluster, "authorize.kubeconfig", &service.kubeconfig("/authorize"))?;
    let webhook = json!({"timeout": "10s", "subjectAccessReviewVersion": "v1", "failurePolicy": "Deny",
        "matchConditionSubjectAccessReviewVersion": "v1",
        "matchConditions": [{"expression": "request.user.startsWith('sink:')"}],
        "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": decides}});
    let authorization = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",
        "authorizers": [{"type": "Webhook", "name": "service", "webhook": webhook},
            {"type": "Node", "name": "node"}, {"type": "RBAC", "name": "rbac"}]});
    let policy = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy",
        "rules": [{"level": "Metadata", "users": [USER], "resources": [{"group": ""}]}]});
    let files = [
        ("authentication-config", authentication),
        ("authorization-config", authorization),
        ("audit-policy-file", policy),
        ("audit-webhook-config-file", service.kubeconfig("/audit")),
    ];
    let mut flags = vec!["--audit-webhook-mode=blocking".to_owned()];
    for (flag, document) in files {
        flags.push(format!("--{flag}={}", write(cluster, flag, &document)?.display()));
    }
    Ok(flags)
}

/// The kubeconfig of who has a token.
fn bearing(cluster: &Cluster, name: &str, token: &str) -> anyhow::Result<String> {
    let mut config: Value = serde_yaml::from_str(&std::fs::read_to_string(cluster.kubeconfig())?)?;
    config["users"][0]["user"] = json!({"token": token});
    Ok(write(cluster, name, &config)?.display().to_string())
}

#[test]
fn files_say_who_comes_in_who_decides_and_who_is_told() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut cluster = Cluster::new(Options { no_node: true, ..Options::default() })?;
    let key = key()?;
    let service = Service::start(&cluster, &key)?;
    let flags = flags(&cluster, &service)?;
    let data_dir = cluster.directory().join("never").display().to_string();
    let both = ["server", "--no-node", "--anonymous-auth=false", "--data-dir", &data_dir, &flags[1]];
    let refused = format!("{:#}", cluster.cox(&both).err().context("both say who comes")?);
    let why = "--anonymous-auth flag cannot be set when anonymous field is configured";
    anyhow::ensure!(refused.contains(why), "{refused}");
    cluster.add_arguments(&flags);
    cluster.start_server()?;
    cluster.wait_until_ready()?;
    let ann = bearing(&cluster, "ann.kubeconfig", &token(&key)?)?;
    let ann = |arguments: &[&str]| cluster.try_kubectl(&[&["--kubeconfig", &ann], arguments].concat());
    token_is_taken(&cluster, &ann).context("the issuer's tokens")?;
    service_decides(&cluster, &service, &ann).context("the webhook")?;
    events_are_sent(&service).context("the audit sink")?;
    flow_is_told(&cluster, &ann).context("priority and fairness")
}

type Kubectl<'a> = &'a dyn Fn(&[&str]) -> anyhow::Result<coxswain_testkit::Ran>;

fn token_is_taken(cluster: &Cluster, ann: Kubectl<'_>) -> anyhow::Result<()> {
    let ran =
        ann(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}"])?;
    anyhow::ensure!(ran.stdout == format!("{USER} [\"dev\",\"system:authenticated\"]"), "{ran:?}");
    let forged = bearing(cluster, "forged.kubeconfig", &token(&key()?)?)?;
    let ran = cluster.try_kubectl(&["--kubeconfig", &forged, "get", "configmaps"])?;
    anyhow::ensure!(!ran.ok && ran.stderr.contains("must be logged in"), "{ran:?}");
    let api = cluster.api()?;
    let stranger = |path: &str| api.send_anonymously(&coxswain_testkit::Request::get(path));
    anyhow::ensure!(stranger("/readyz")?.code == 200 && stranger("/livez")?.code == 401);
    Ok(())
}

fn service_decides(cluster: &Cluster, service: &Service, ann: Kubectl<'_>) -> anyhow::Result<()> {
    cluster.kubectl(&["create", "configmap", "shown"])?;
    let bound = "--user=sink:ann";
    cluster.kubectl(&["create", "clusterrolebinding", "all", "--clusterrole=cluster-admin", bound])?;
    let ran = ann(&["get", "configmap", "shown", "-o", "name"])?;
    anyhow::ensure!(ran.stdout == "configmap/shown\n", "{ran:?}");
    let ran = ann(&["get", "secrets"])?;
    anyhow::ensure!(
        !ran.ok && ran.stderr.contains("(Forbidden)") && ran.stderr.contains("so says the service"),
        "{ran:?}"
    );
    let ran = ann(&["get", "services", "-o", "name"])?;
    anyhow::ensure!(ran.stdout == "service/kubernetes\n", "who has no opinion leaves it to RBAC: {ran:?}");
    let asked = service.asked("/authorize");
    let attributes = json!({"namespace": "default", "verb": "get", "version": "v1", "resource": "configmaps", "name": "shown"});
    let about = |asked: &&Value| asked["spec"]["resourceAttributes"] == attributes;
    let review = asked.iter().find(about).with_context(|| format!("{asked:#?}"))?;
    anyhow::ensure!(review["spec"]["user"] == USER && review["spec"]["groups"][0] == "dev", "{review}");
    anyhow::ensure!(
        asked.iter().all(|review| review["spec"]["user"] == USER),
        "the condition holds: {asked:#?}"
    );
    Ok(())
}

fn events_are_sent(service: &Service) -> anyhow::Result<()> {
    let lists = service.asked("/audit");
    let events = lists.iter().flat_map(|list| list["items"].as_array().cloned().unwrap_or_default());
    let events: Vec<Value> = events.filter(|event| event["stage"] == "ResponseComplete").collect();
    for (resource, code, decision) in
        [("configmaps", 200, "allow"), ("secrets", 403, "forbid"), ("services", 200, "allow")]
    {
        let told = events.iter().find(|event| event["objectRef"]["resource"] == resource);
        let event = told.with_context(|| format!("{resource}: {lists:#?}"))?;
        anyhow::ensure!(
            event["user"]["username"] == USER && event["responseStatus"]["code"] == code,
            "{event}"
        );
        anyhow::ensure!(event["annotations"]["authorization.k8s.io/decision"] == decision, "{event}");
    }
    Ok(())
}

fn flow_is_told(cluster: &Cluster, ann: Kubectl<'_>) -> anyhow::Result<()> {
    let uid =
        |kind: &str| cluster.kubectl(&["get", kind, "global-default", "-o", "jsonpath={.metadata.uid}"]);
    let loud = ann(&["get", "configmap", "shown", "-v=8"])?.stderr.to_lowercase();
    for (header, kind) in [("flowschema", "flowschema"), ("prioritylevel", "prioritylevelconfiguration")] {
        let line = format!("x-kubernetes-pf-{header}-uid: {}", uid(kind)?);
        anyhow::ensure!(loud.contains(&line), "{line}: {loud}");
    }
    let page = "/debug/api_priority_and_fairness/dump_priority_levels";
    let levels = cluster.kubectl(&["get", "--raw", page])?;
    anyhow::ensure!(levels.lines().any(|line| line.starts_with("global-default,")), "{levels}");
    Ok(())
}
