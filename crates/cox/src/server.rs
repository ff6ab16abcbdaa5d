//! `cox server`: opens the store, starts the API server, and wires the roles to it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use coxswain_apiserver::{ApiServer, Config, Datastore, ServiceRange, TokenAuthority};
use coxswain_client::{Client, InformerFactory};
use coxswain_controllers::Authority;
use coxswain_kubelet::NodeApiTls;
use coxswain_store::{Etcd, Sealer};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::in_process;
use crate::config::ServerArgs;
use crate::node::{self, NodeIdentity};
use crate::pki::{self, Leaf, Pki, Subject};
use crate::{datastore, election, files, secrets};

/// What takes longer than this to stop is left.
const LONGEST_STOP: Duration = Duration::from_secs(30);
const VERSION: &str = concat!("v1.37.0+cox", env!("CARGO_PKG_VERSION"));
/// Who the controllers are.
pub const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";
/// Who the scheduler is.
pub const SCHEDULER: &str = "system:kube-scheduler";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: ServerArgs) -> anyhow::Result<()> {
    until_signal(async |cancel| serve(&args, cancel, None).await).await
}

/// Runs a role, which SIGTERM or SIGINT cancels.
pub async fn until_signal(
    role: impl AsyncFnOnce(CancellationToken) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let cancel = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = cancel.clone();
    let signals = tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping");
        stop.cancel();
    });
    let outcome = role(cancel).await;
    signals.abort();
    outcome
}

/// Waits for the end of what was cancelled.
pub async fn wind_up(tasks: &TaskTracker) {
    tasks.close();
    if tokio::time::timeout(LONGEST_STOP, tasks.wait()).await.is_err() {
        // What is acknowledged is on disk: nothing is lost by leaving.
        tracing::warn!(tasks = tasks.len(), "leaving what does not end");
    }
}

/// Runs until `cancel`; `ready` gets an administrator's client once the API server answers.
pub async fn serve(
    args: &ServerArgs,
    cancel: CancellationToken,
    ready: Option<oneshot::Sender<Client>>,
) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    files::private_dir(&args.node.data_dir)
        .with_context(|| format!("the data directory {}", args.node.data_dir.display()))?;
    let node = NodeIdentity::of(&args.node, args.bind_address)?;
    let etcd = args.datastore.etcd()?;
    let keys = datastore::keys_dir(&args.node.data_dir);
    let shared = match &etcd {
        Some((etcd, token)) => {
            Some(datastore::share_keys(etcd, token, &keys).await.context("the cluster's keys in etcd")?)
        }
        None => None,
    };
    let etcd = etcd.map(|(etcd, _)| etcd);
    let mut pki = Pki::open(&keys).context("the cluster's keys")?;
    pki.sealing_key = shared.unwrap_or(pki.sealing_key);
    let listener = TcpListener::bind(SocketAddr::new(args.bind_address, args.secure_port))
        .await
        .with_context(|| format!("listening on {}:{}", args.bind_address, args.secure_port))?;
    let port = listener.local_addr()?.port();
    let stopping = CancellationToken::new();
    let api = open_api_server(args, etcd.as_ref(), &pki, &node, port, stopping.clone()).await?;
    if etcd.is_none() {
        secrets::forget_older(&keys, &pki.sealing_key).context("the older keys of Secrets")?;
    }
    let leaf = serving_certificate(&pki, &node, args.bind_address)?;
    let tasks = TaskTracker::new();
    let proxies = args.access.proxy_authorities(pki.front_proxy_ca())?;
    let tls = pki.server_tls(&leaf, &proxies)?;
    tasks.spawn(coxswain_apiserver::serve(api.clone(), listener, tls, stopping.clone()));
    let background = api.clone();
    tasks.spawn(async move { background.run_background().await });
    // Components end before the API server does: their last words still reach it.
    let components = cancel.child_token();
    let informers = InformerFactory::new(in_process(&api, CONTROLLER_MANAGER, &[]), components.clone());
    if !args.no_controllers {
        let config = coxswain_controllers::Config {
            ca_pem: pki.ca_pem.clone(),
            pod_cidr: node::POD_CIDR,
            node_prefix_length: 24,
            authority: Some(Arc::new(Authority::new(&pki.ca_pem, &pki.authority_key())?)),
        };
        if etcd.is_some() {
            election::spawn(&tasks, &api, &node, config, &components);
        } else {
            tasks.spawn(coxswain_controllers::run(informers.clone(), config, components.clone()));
            let scheduler = informers.for_client(in_process(&api, SCHEDULER, &[]));
            tasks.spawn(coxswain_scheduler::run(scheduler, components.clone()));
        }
    }
    if !args.no_node {
        let tls = NodeApiTls { serving: pki.node_serving(&node)?, client_ca_pem: pki.ca_pem.clone() };
        let as_user = |user: &str, groups: &[&str]| in_process(&api, user, groups);
        let cluster = node::Cluster { informers: &informers, as_user: &as_user };
        node::start(&node, &args.node, tls, &cluster, &tasks, &cancel)?;
    }
    write_kubeconfig(args, &pki, port)?;
    api.set_ready();
    if let Some(ready) = ready {
        let _ = ready.send(in_process(&api, "kubernetes-admin", &["system:masters"]));
    }
    tracing::info!(port, "the API server is ready");
    cancel.cancelled().await;
    stopping.cancel();
    wind_up(&tasks).await;
    Ok(())
}

async fn open_api_server(
    args: &ServerArgs,
    etcd: Option<&Etcd>,
    pki: &Pki,
    node: &NodeIdentity,
    port: u16,
    cancel: CancellationToken,
) -> anyhow::Result<ApiServer> {
    let to_kubelets = pki.sign(Subject {
        name: "kube-apiserver-kubelet-client",
        group: "system:masters",
        served_as: Vec::new(),
    })?;
    let access = args.access.layers(&pki.ca_pem, pki.front_proxy_ca())?;
    let config = Config {
        settles_policies: !args.no_controllers,
        version: VERSION.to_owned(),
        advertise: (node.ip, port),
        services: ServiceRange::default(),
        ca_pem: pki.ca_pem.clone(),
        kubelet_tls: Some(pki.client_tls(&to_kubelets)?),
        front_proxy: Some(pki.front_proxy()?),
        access,
    };
    let dir = datastore::store_dir(&args.node.data_dir);
    let sealer = Box::new(Sealer::new(&pki.sealing_key, &["secrets"])?);
    let tokens = TokenAuthority::new(ISSUER, &pki.service_account_key)?;
    let (datastore, place) = match etcd {
        Some(etcd) => (Datastore::Etcd(etcd, sealer), "etcd".to_owned()),
        None => {
            files::private_dir(&dir)?;
            (Datastore::Embedded(&dir, sealer), dir.display().to_string())
        }
    };
    ApiServer::open(config, datastore, tokens, cancel).await.with_context(|| format!("the store in {place}"))
}

fn serving_certificate(pki: &Pki, node: &NodeIdentity, bound: IpAddr) -> anyhow::Result<Leaf> {
    let mut addresses =
        vec![IpAddr::V4(Ipv4Addr::LOCALHOST), node.ip, ServiceRange::default().kubernetes().into()];
    addresses.extend((!bound.is_unspecified()).then_some(bound));
    addresses.sort();
    addresses.dedup();
    pki.sign(Subject {
        name: "kube-apiserver",
        group: "",
        served_as: pki::api_server_names(&addresses, &node.name)?,
    })
}

/// Writes `admin.kubeconfig`; clients on this machine reach the server by it.
fn write_kubeconfig(args: &ServerArgs, pki: &Pki, port: u16) -> anyhow::Result<()> {
    let admin =
        pki.sign(Subject { name: "kubernetes-admin", group: "system:masters", served_as: Vec::new() })?;
    let host =
        if args.bind_address.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { args.bind_address };
    let server = format!("https://{}", SocketAddr::new(host, port));
    let path: &Path = &args.node.data_dir.join("admin.kubeconfig");
    files::write_private(path, pki.kubeconfig(&server, "admin", &admin).as_bytes())?;
    Ok(())
}
