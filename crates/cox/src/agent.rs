//! `cox agent`: a node of a cluster whose control plane is elsewhere. Everything here acts as the node's own user.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context;
use coxswain_client::InformerFactory;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::AgentArgs;
use crate::node::{self, NodeIdentity};
use crate::{files, join, server};

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: AgentArgs) -> anyhow::Result<()> {
    server::until_signal(async |cancel| serve(&args, cancel).await).await
}

async fn serve(args: &AgentArgs, cancel: CancellationToken) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let data_dir = &args.node.data_dir;
    files::private_dir(data_dir).with_context(|| format!("the data directory {}", data_dir.display()))?;
    let node = NodeIdentity::of(&args.node, IpAddr::V4(Ipv4Addr::UNSPECIFIED))?;
    let joining = join::join(args, &node);
    let Some(member) = cancel.run_until_cancelled(joining).await.transpose()? else { return Ok(()) };
    let tasks = TaskTracker::new();
    let informers = InformerFactory::new(member.client.clone(), cancel.child_token());
    let as_node = |_: &str, _: &[&str]| member.client.clone();
    let cluster = node::Cluster { informers: &informers, as_user: &as_node };
    node::start(&node, &args.node, member.node_api_tls(), &cluster, &tasks, &cancel)?;
    tracing::info!(node = node.name, server = %args.server, "a node of the cluster");
    let own = cancel.clone();
    tasks.spawn(async move { own.run_until_cancelled(member.renew(&informers)).await });
    cancel.cancelled().await;
    server::wind_up(&tasks).await;
    Ok(())
}
