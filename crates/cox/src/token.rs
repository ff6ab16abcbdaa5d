//! `cox token`: the bootstrap tokens that nodes join with.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Endpoints, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::config::Kubeconfig;
use kube::{Client, Config};
use rand::Rng;
use rustls::pki_types::CertificateDer;

use crate::join::{JoinToken, Pin};

const NAMESPACE: &str = "kube-system";
const PREFIX: &str = "bootstrap-token-";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// What `cox token` can do.
#[derive(Subcommand)]
pub enum TokenCommand {
    /// Make a token, and print how a node joins with it.
    Create {
        /// Where the cluster's administrator's kubeconfig is.
        #[arg(long, env = "KUBECONFIG", default_value = "/var/lib/coxswain/admin.kubeconfig")]
        kubeconfig: PathBuf,
        /// How long it is good for, such as 30m or 48h; 0s for ever.
        #[arg(long, default_value = "24h")]
        ttl: SignedDuration,
        /// Print the token alone.
        #[arg(long)]
        quiet: bool,
    },
    /// List the tokens, without their secrets.
    List {
        /// Where the cluster's administrator's kubeconfig is.
        #[arg(long, env = "KUBECONFIG", default_value = "/var/lib/coxswain/admin.kubeconfig")]
        kubeconfig: PathBuf,
    },
    /// Remove tokens: nodes that have joined with them stay.
    Delete {
        /// Where the cluster's administrator's kubeconfig is.
        #[arg(long, env = "KUBECONFIG", default_value = "/var/lib/coxswain/admin.kubeconfig")]
        kubeconfig: PathBuf,
        /// The tokens' ids: their first six characters.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// Runs the command.
pub async fn run(command: TokenCommand) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    match command {
        TokenCommand::Create { kubeconfig, ttl, quiet } => create(&kubeconfig, ttl, quiet).await,
        TokenCommand::List { kubeconfig } => list(&kubeconfig).await,
        TokenCommand::Delete { kubeconfig, ids } => {
            let (client, _) = connect(&kubeconfig).await?;
            for id in ids {
                let id = id.split('.').next().unwrap_or_default();
                secrets(client.clone()).delete(&format!("{PREFIX}{id}"), &DeleteParams::default()).await?;
            }
            Ok(())
        }
    }
}

async fn create(kubeconfig: &Path, ttl: SignedDuration, quiet: bool) -> anyhow::Result<()> {
    let (client, authority) = connect(kubeconfig).await?;
    let (id, secret) = (random(6), random(16));
    let mut data = vec![
        ("token-id", id.clone()),
        ("token-secret", secret.clone()),
        ("usage-bootstrap-authentication", "true".to_owned()),
    ];
    if !ttl.is_zero() {
        let until = Timestamp::now() + ttl;
        data.push(("expiration", until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()));
    }
    let made = Secret {
        metadata: ObjectMeta { name: Some(format!("{PREFIX}{id}")), ..ObjectMeta::default() },
        type_: Some(TYPE.to_owned()),
        string_data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ..Secret::default()
    };
    secrets(client.clone()).create(&PostParams::default(), &made).await?;
    let token = JoinToken { bootstrap: format!("{id}.{secret}"), pin: Pin::of(&authority)? };
    if quiet {
        println!("{token}");
    } else {
        println!("cox agent --server https://{} --token {token}", address(client).await?);
    }
    Ok(())
}

async fn list(kubeconfig: &Path) -> anyhow::Result<()> {
    let (client, _) = connect(kubeconfig).await?;
    let only = ListParams::default().fields(&format!("type={TYPE}"));
    println!("{:<8} EXPIRES", "ID");
    for secret in secrets(client).list(&only).await? {
        let text = |key: &str| Some(String::from_utf8_lossy(&secret.data.as_ref()?.get(key)?.0).into_owned());
        let expires = text("expiration").unwrap_or_else(|| "never".to_owned());
        println!("{:<8} {expires}", text("token-id").unwrap_or_default());
    }
    Ok(())
}

fn secrets(client: Client) -> Api<Secret> {
    Api::namespaced(client, NAMESPACE)
}

/// A client of the cluster, and the cluster's authority.
async fn connect(kubeconfig: &Path) -> anyhow::Result<(Client, CertificateDer<'static>)> {
    let read = Kubeconfig::read_from(kubeconfig).with_context(|| kubeconfig.display().to_string())?;
    let config = Config::from_custom_kubeconfig(read, &Default::default()).await?;
    let authority = config.root_cert.as_ref().and_then(|chain| chain.first()).cloned();
    let authority = authority.context("the kubeconfig names no authority")?;
    Ok((Client::try_from(config)?, authority.into()))
}

/// Where nodes reach the API server: what it says of itself.
async fn address(client: Client) -> anyhow::Result<SocketAddr> {
    let endpoints = Api::<Endpoints>::namespaced(client, "default").get("kubernetes").await?;
    let subset = endpoints.subsets.iter().flatten().next().context("the API server has no address")?;
    let ip: IpAddr = subset.addresses.iter().flatten().next().context("no address")?.ip.parse()?;
    let port = subset.ports.iter().flatten().next().context("the API server has no port")?.port;
    Ok(SocketAddr::new(ip, port.try_into()?))
}

fn random(length: usize) -> String {
    let mut random = rand::rng();
    (0..length).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
}
