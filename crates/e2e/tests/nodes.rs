//! Two nodes, the second joined by a token: pods on both reach each other by address, service and name; logs and exec reach
//! the second; its agent may go and come without its pods.
#![allow(missing_docs)]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use coxswain_testkit::{Agent, Cluster, NODE_NAME, Options, Request, eventually, is_root};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(120);
const NODE_PORT: u16 = 30080;

#[test]
fn two_nodes_are_one_cluster() {
    if !is_root() {
        return;
    }
    let options = Options { agents: 1, ..Options::default() };
    let cluster = Cluster::start(options).unwrap_or_else(|error| panic!("the cluster: {error:#}"));
    let agent = &cluster.agents()[0];
    pods_reach_each_other(&cluster, agent).unwrap_or_else(|error| panic!("{error:#}"));
    the_agent_comes_back(&cluster, agent).unwrap_or_else(|error| panic!("{error:#}"));
    strangers_are_refused(&cluster, agent).unwrap_or_else(|error| panic!("{error:#}"));
}

/// One pod on each node serves and asks.
fn pods_reach_each_other(cluster: &Cluster, agent: &Agent) -> anyhow::Result<()> {
    let api = cluster.api()?;
    let nodes = [NODE_NAME, &agent.name];
    for node in nodes {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": format!("on-{node}"), "labels": {"app": "pair", "on": node}},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {"name": "serve", "image": "coxswain.local/notepad:1", "imagePullPolicy": "Never"},
                    {"name": "ask", "image": "docker.io/library/busybox:test", "imagePullPolicy": "Never"},
                ],
            },
        });
        api.write("POST", "/api/v1/namespaces/default/pods", &pod)?;
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": format!("on-{node}")},
            "spec": {"selector": {"on": node}, "ports": [{"port": 80, "targetPort": 8083}]},
        });
        api.write("POST", "/api/v1/namespaces/default/services", &service)?;
    }
    let both = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "pair"},
        "spec": {
            "type": "NodePort",
            "selector": {"app": "pair"},
            "ports": [{"port": 80, "targetPort": 8083, "nodePort": NODE_PORT}],
        },
    });
    api.write("POST", "/api/v1/namespaces/default/services", &both)?;
    let pods = api.wait("both pods", "/api/v1/namespaces/default/pods", LONG, |pods| {
        let ready =
            |node: &&str| pods.get(&format!("default/on-{node}")).filter(|pod| is_ready(pod)).cloned();
        nodes.iter().map(ready).collect::<Option<Vec<Value>>>()
    })?;
    for (from, to) in [(0, 1), (1, 0)] {
        let address = pods[to]["status"]["podIP"].as_str().context("no address")?;
        let service = format!("on-{}", nodes[to]);
        for (host, port) in
            [(address, 8083), (&*service, 80), (&*format!("{service}.default.svc.cluster.local"), 80)]
        {
            let page = eventually(&format!("{host} from {}", nodes[from]), LONG, || {
                ask(cluster, &format!("on-{}", nodes[from]), host, port)
            })?;
            anyhow::ensure!(page.contains(&format!("host: on-{}", nodes[to])), "{host}: {page}");
        }
    }
    // Either node answers for both pods.
    for node in ["192.168.77.1", "192.168.77.2"] {
        let address = SocketAddr::new(node.parse()?, NODE_PORT);
        for wanted in nodes {
            eventually(&format!("{wanted} behind {address}"), LONG, || {
                let page = cluster.http(address, &Request::get("/"))?;
                anyhow::ensure!(page.text().contains(&format!("host: on-{wanted}")), "{}", page.text());
                Ok(())
            })?;
        }
    }
    let name = format!("on-{}", agent.name);
    cluster.kubectl(&["logs", &name, "-c", "serve"])?;
    Ok(())
}

/// Its pods do not notice that the agent was away, and it needs no token to come back.
fn the_agent_comes_back(cluster: &Cluster, agent: &Agent) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/default/pods/on-{}", agent.name);
    let api = cluster.api()?;
    let before = api.get(&path)?;
    agent.process.kill()?;
    cluster.kubectl(&[
        "delete",
        "secrets",
        "--namespace=kube-system",
        "--field-selector=type=bootstrap.kubernetes.io/token",
    ])?;
    cluster.restart_agent(agent)?;
    let name = format!("on-{}", agent.name);
    let says = eventually("exec through the new agent", LONG, || {
        cluster.kubectl(&["exec", &name, "-c", "ask", "--", "hostname"])
    })?;
    anyhow::ensure!(says.trim() == name, "{says}");
    let after = api.get(&path)?;
    let containers = |pod: &Value| {
        let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        statuses.iter().map(|status| status["containerID"].clone()).collect::<Vec<_>>()
    };
    anyhow::ensure!(containers(&before) == containers(&after), "containers were restarted: {after}");
    Ok(())
}

/// A token of another cluster, or one that is no more, lets nobody in.
fn strangers_are_refused(cluster: &Cluster, agent: &Agent) -> anyhow::Result<()> {
    let kubeconfig = cluster.kubeconfig();
    let kubeconfig = kubeconfig.to_str().context("path")?;
    let token = cluster.cox(&["token", "create", "--quiet", "--kubeconfig", kubeconfig])?;
    let id = token.split('.').next().context("no id")?;
    let listed = cluster.cox(&["token", "list", "--kubeconfig", kubeconfig])?;
    anyhow::ensure!(listed.contains(id), "{listed}");
    cluster.cox(&["token", "delete", id, "--kubeconfig", kubeconfig])?;
    let directory = cluster.directory().join("stranger");
    let server = "https://192.168.77.1:6443";
    let mut join = agent.isolation.command("timeout");
    join.args(["60", cluster.binary().to_str().context("path")?, "agent", "--server", server]);
    join.args(["--token", token.trim(), "--node-name", "stranger", "--data-dir"]).arg(&directory);
    let refused = join.output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    anyhow::ensure!(refused.status.code() == Some(1) && said.contains("Unauthorized"), "{said}");
    let (bootstrap, pin) = token.trim().split_once(":sha256:").context("no pin")?;
    let other: String = pin.chars().rev().collect();
    let mut join = agent.isolation.command("timeout");
    join.args(["5", cluster.binary().to_str().context("path")?, "agent", "--server", server]);
    join.args(["--token", &format!("{bootstrap}:sha256:{other}"), "--node-name", "stranger", "--data-dir"]);
    let refused = join.arg(&directory).output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    anyhow::ensure!(said.contains("does not show the authority that the token names"), "{said}");
    let nodes = cluster.kubectl(&["get", "nodes", "-o", "name"])?;
    anyhow::ensure!(!nodes.contains("stranger"), "{nodes}");
    Ok(())
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// A page, got by a pod.
fn ask(cluster: &Cluster, pod: &str, host: &str, port: u16) -> anyhow::Result<String> {
    let get =
        format!("(printf 'GET / HTTP/1.0\\r\\nHost: {host}\\r\\n\\r\\n'; sleep 1) | nc -w 5 {host} {port}");
    cluster.kubectl(&["exec", pod, "-c", "ask", "--", "sh", "-c", &get])
}
