//! How a machine becomes a node of a cluster elsewhere: it knows the authority by the pin in its token, asks for a
//! certificate as the token's user (a CertificateSigningRequest, as kubelets do), and renews it in time.

mod certificate;
mod servers;
mod token;
mod trust;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use coxswain_client::{Client, InformerFactory};
use coxswain_kubelet::NodeApiTls;
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::ConfigExt;
use rustls::ClientConfig;
use rustls::client::ResolvesClientCert;
use tower::ServiceBuilder;

use crate::config::AgentArgs;
use crate::files;
use crate::node::NodeIdentity;

use certificate::{Certificate, Held};
use servers::Servers;
pub use token::JoinToken;
pub use trust::Pin;
use trust::Pinned;

/// Between attempts to reach the server.
const RETRY: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_secs(5);
/// A connection that does not answer within this time is given up, and with it all its watches.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What a node has of the cluster once it belongs to it.
pub struct Member {
    /// The cluster, as the node's user.
    pub client: Client,
    servers: Servers,
    authority: String,
    identity: Certificate,
    serving: Certificate,
}

impl Member {
    /// What the node's own API is served with: a certificate that comes once the node is registered.
    pub fn node_api_tls(&self) -> NodeApiTls {
        NodeApiTls { serving: self.serving.held(), client_ca_pem: self.authority.clone() }
    }

    /// Keeps both certificates valid and the servers known, for as long as it is polled.
    pub async fn renew(self, informers: &InformerFactory) {
        tokio::join!(
            self.identity.keep(&self.client),
            self.serving.keep(&self.client),
            self.servers.follow(informers)
        );
    }
}

/// Joins the cluster, or comes back to it where this node has joined before.
///
/// # Errors
/// The server refuses the node, or the token is missing.
pub async fn join(args: &AgentArgs, node: &NodeIdentity) -> anyhow::Result<Member> {
    let dir = args.node.data_dir.join("agent/pki");
    files::private_dir(&dir)?;
    let identity = Certificate::of_client(&dir, node)?;
    let authority = dir.join("ca.crt");
    let servers = Servers::new(&args.server, &args.node.data_dir.join("agent/servers"));
    if !identity.is_valid() || !authority.exists() {
        let token = args.token.as_ref().context("this node has not joined yet: --token is needed")?;
        bootstrap(&servers, token, &identity, &authority).await?;
    }
    let authority = std::fs::read_to_string(&authority)?;
    let held: Arc<Held> = identity.held();
    let tls = ClientConfig::builder()
        .with_root_certificates(trust::roots(&authority)?)
        .with_client_cert_resolver(held as Arc<dyn ResolvesClientCert>);
    let client = client(&servers, tls, None)?;
    Ok(Member { client, servers, authority, identity, serving: Certificate::of_server(&dir, node)? })
}

/// Gets the node's first certificate, and with it the authority's.
async fn bootstrap(
    servers: &Servers,
    token: &JoinToken,
    identity: &Certificate,
    authority: &Path,
) -> anyhow::Result<()> {
    let pinned = Arc::new(Pinned::new(token.pin));
    let tls = ClientConfig::builder()
        .dangerous() // The verifier trusts no more than the one authority that has the token's pin.
        .with_custom_certificate_verifier(pinned.clone())
        .with_no_client_auth();
    let client = client(servers, tls, Some(&token.bootstrap))?;
    let certificate = loop {
        match identity.ask(&client).await {
            Ok(certificate) => break certificate,
            Err(error) if is_refusal(&error) => return Err(error).context("the server refuses this node"),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "not joined yet"),
        }
        tokio::time::sleep(RETRY).await;
    };
    // The certificate last: with it the node has joined.
    let pem = pinned.authority_pem().context("the server has shown no authority")?;
    files::write_private(authority, pem.as_bytes())?;
    identity.take(&certificate)
}

/// Whether the server has answered, and trying again will not change its mind.
fn is_refusal(error: &anyhow::Error) -> bool {
    let answer = error.downcast_ref::<kube::Error>();
    answer.is_some_and(|error| matches!(error, kube::Error::Api(status) if (400..429).contains(&status.code)))
}

/// A client over HTTP/2: all watches of the node share one connection.
fn client(servers: &Servers, tls: ClientConfig, token: Option<&str>) -> anyhow::Result<Client> {
    let mut config = kube::Config::new(Uri::from_static(servers::NAME));
    config.auth_info.token = token.map(|token| token.to_owned().into());
    let mut tcp = HttpConnector::new_with_resolver(servers.clone());
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    let https = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_http2()
        .wrap_connector(tcp);
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_only(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .http2_keep_alive_timeout(KEEP_ALIVE)
        .build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(tower::BoxError::from)
        .service(http);
    Ok(Client::new(service, "default"))
}
