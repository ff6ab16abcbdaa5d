//! `cox demo`: a throwaway cluster with the demo app, and its removal without a trace.

use std::fmt::Display;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use coxswain_client::Client;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, PostParams};
use kube::runtime::wait::await_condition;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::access::AccessArgs;
use crate::config::{NodeArgs, ServerArgs};
use crate::datastore::DatastoreArgs;
use crate::node::NodeIdentity;
use crate::{files, image, removal, server};

const DEPLOYMENT: &str = include_str!("../../../examples/notepad/deployment.yaml");
const SERVICE: &str = include_str!("../../../examples/notepad/service.yaml");
const PORT: u16 = 30036;
const PATIENCE: Duration = Duration::from_secs(60);

/// Flags of `cox demo`.
#[derive(Args)]
pub struct DemoArgs {
    /// The directory the cluster lives in; it is removed in the end. One below the temporary directory where none is given.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// The port the API server listens on; a free one where none is given.
    #[arg(long, value_name = "PORT")]
    secure_port: Option<u16>,

    /// The address of the node; found by the default route where it is not given.
    #[arg(long, value_name = "IP")]
    node_ip: Option<IpAddr>,
}

/// Runs the demo until Ctrl-C.
pub async fn run(args: DemoArgs) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let data_dir = match args.data_dir.clone() {
        Some(dir) => dir,
        None => std::env::temp_dir().join(format!("cox-demo-{}", std::process::id())),
    };
    anyhow::ensure!(
        !data_dir.exists(),
        "{} exists: the demo makes a directory of its own",
        data_dir.display()
    );
    let cancel = CancellationToken::new();
    let mut running = tokio::spawn(cluster(args, data_dir.clone(), cancel.clone()));
    let ended = tokio::select! {
        ended = &mut running => Some(ended),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    println!("\nRemoving the cluster …");
    let still_running = ended.is_none().then_some(running);
    let removed = removal::remove(&data_dir, &cancel, still_running).await;
    let outcome = ended.map_or(Ok(()), |ended| ended.context("the cluster")?);
    if removed.is_ok() {
        println!("Nothing is left of it.");
    }
    outcome.and(removed)
}

/// The cluster, from nothing to a URL, and on until it is cancelled.
async fn cluster(args: DemoArgs, data_dir: PathBuf, cancel: CancellationToken) -> anyhow::Result<()> {
    let begin = Instant::now();
    let step = |text: &dyn Display| {
        println!("{:>6.2} s  {text}", begin.elapsed().as_secs_f64());
        let _ = std::io::stdout().flush();
    };
    files::private_dir(&data_dir)?;
    let server_args = ServerArgs {
        node: NodeArgs {
            config: None,
            data_dir: data_dir.clone(),
            node_ip: args.node_ip,
            node_name: None,
            node_labels: Vec::new(),
            register_with_taints: Vec::new(),
            registry_config: None,
        },
        bind_address: Ipv4Addr::UNSPECIFIED.into(),
        secure_port: args.secure_port.map_or_else(free_port, Ok)?,
        no_node: false,
        no_controllers: false,
        datastore: DatastoreArgs::default(),
        access: AccessArgs::of_environment()?,
    };
    let images = {
        let data_dir = data_dir.clone();
        tokio::task::spawn_blocking(move || image::make_notepads(&data_dir))
    };
    let (ready, is_ready) = oneshot::channel();
    let serving = server::serve(&server_args, cancel, Some(ready));
    let showing = async {
        let Ok(client) = is_ready.await else { return Ok(()) };
        step(&"the API server is ready");
        images.await??;
        step(&format!("the images {0}:1 and {0}:2 are made", image::NOTEPAD));
        show(&client, &server_args, &data_dir, &step).await
    };
    let (served, shown) = tokio::join!(serving, showing);
    served.and(shown)
}

async fn show(
    client: &Client,
    args: &ServerArgs,
    data_dir: &Path,
    step: &(dyn Fn(&dyn Display) + Sync),
) -> anyhow::Result<()> {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    services.create(&PostParams::default(), &serde_yaml::from_str(SERVICE)?).await?;
    deployments.create(&PostParams::default(), &serde_yaml::from_str(DEPLOYMENT)?).await?;
    step(&"the demo app is deployed: 3 replicas behind a NodePort service");
    let all_ready = |deployment: Option<&Deployment>| {
        deployment.and_then(|deployment| deployment.status.as_ref()).and_then(|status| status.ready_replicas)
            == Some(3)
    };
    let waiting = await_condition(deployments, "notepad", all_ready);
    tokio::time::timeout(PATIENCE, waiting).await.context("the demo app did not get ready")??;
    step(&"its pods are ready");
    let node = SocketAddr::new(NodeIdentity::of(&args.node, args.bind_address)?.ip, PORT);
    tokio::time::timeout(PATIENCE, answers(node)).await.context("the demo app does not answer")?;
    step(&"it answers");
    println!(
        "\n  URL:         http://{node}\n  Look around: export KUBECONFIG={}",
        data_dir.join("admin.kubeconfig").display()
    );
    println!(
        "               kubectl get pods -o wide\n               kubectl set image deployment/notepad notepad={}:2",
        image::NOTEPAD
    );
    println!("\nCtrl-C removes it all.");
    Ok(())
}

/// Connects until somebody accepts: the service's rules follow its endpoints by a moment.
async fn answers(address: SocketAddr) {
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    loop {
        pause.tick().await;
        if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(address)).await {
            return;
        }
    }
}

/// The usual port, or a free one where it is taken.
fn free_port() -> anyhow::Result<u16> {
    let probe = |port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
    let listener = probe(6443).or_else(|_| probe(0)).context("finding a free port")?;
    Ok(listener.local_addr()?.port())
}
