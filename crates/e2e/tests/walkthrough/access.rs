//! Step 2, continued: the ways into a pod that go through the API server to the node.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::Context;
use coxswain_testkit::{Request, eventually};

use crate::{LONG, Walk};

pub fn reaches_the_pods(walk: &Walk) -> anyhow::Result<String> {
    logs(walk)?;
    exec(walk)?;
    copy(walk)?;
    forward(walk)?;
    Ok("logs, follow, exec with input and exit code, cp there and back, port-forward".to_owned())
}

fn logs(walk: &Walk) -> anyhow::Result<()> {
    let said = eventually("the pod's log", LONG, || {
        let said = walk.cluster.kubectl(&["logs", "reader", "--tail=1"])?;
        anyhow::ensure!(said == "reader starts\n", "{said:?}");
        Ok(said)
    })?;
    let mut following =
        walk.cluster.kubectl_command(&["logs", "-f", "reader"]).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    let read = BufReader::new(following.stdout.take().context("no output")?).read_line(&mut line);
    following.kill()?;
    following.wait()?;
    read?;
    anyhow::ensure!(line == said, "{line:?}");
    Ok(())
}

fn exec(walk: &Walk) -> anyhow::Result<()> {
    let echoed =
        walk.cluster.kubectl_with_input(&["exec", "-i", "reader", "--", "cat"], "through and back\n")?;
    anyhow::ensure!(echoed.stdout == "through and back\n", "{echoed:?}");
    let failed =
        walk.cluster.try_kubectl(&["exec", "reader", "--", "sh", "-c", "echo out; echo err >&2; exit 7"])?;
    anyhow::ensure!(!failed.ok && failed.stdout == "out\n" && failed.stderr.contains("err\n"), "{failed:?}");
    anyhow::ensure!(failed.stderr.contains("exit code 7"), "{failed:?}");
    Ok(())
}

fn copy(walk: &Walk) -> anyhow::Result<()> {
    let (there, back) = (walk.cluster.directory().join("there"), walk.cluster.directory().join("back"));
    let content: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
    std::fs::write(&there, &content)?;
    walk.cluster.kubectl(&["cp", there.to_str().context("path")?, "reader:/scratch/copied"])?;
    walk.cluster.kubectl(&["cp", "reader:/scratch/copied", back.to_str().context("path")?])?;
    anyhow::ensure!(std::fs::read_to_string(&back)? == content, "the file came back changed");
    Ok(())
}

fn forward(walk: &Walk) -> anyhow::Result<()> {
    let mut forwarding = walk
        .cluster
        .kubectl_command(&["port-forward", "service/notepad", "18083:80"])
        .stdout(Stdio::piped())
        .spawn()?;
    let address: SocketAddr = "127.0.0.1:18083".parse()?;
    let page = eventually("an answer through port-forward", LONG, || {
        Ok(walk.cluster.http(address, &Request::get("/healthz"))?)
    });
    forwarding.kill()?;
    forwarding.wait()?;
    anyhow::ensure!(page?.code == 200);
    Ok(())
}
