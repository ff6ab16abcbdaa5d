//! Steps 1 to 3: pods run, the service answers, replicas come and go.

use std::net::SocketAddr;

use anyhow::Context;
use coxswain_e2e::load::Answers;
use coxswain_e2e::pods::{labelled, restarts, wait_ready};
use coxswain_testkit::{NODE_NAME, Request, eventually};

use crate::{LONG, Walk, example};

pub fn three_pods_run(walk: &Walk) -> anyhow::Result<String> {
    let nodes = walk.cluster.kubectl(&["get", "nodes"])?;
    let row: Vec<&str> = nodes.lines().nth(1).context("no node")?.split_whitespace().collect();
    anyhow::ensure!(row[..2] == [NODE_NAME, "Ready"], "{nodes}");
    let (deployment, service) = (example("deployment.yaml"), example("service.yaml"));
    let files = [deployment.to_str().context("path")?, service.to_str().context("path")?];
    walk.cluster.kubectl(&["apply", "-f", files[0], "-f", files[1]])?;
    let pods = wait_ready(&walk.api, "notepad", 3, LONG)?;
    for (name, pod) in &pods {
        anyhow::ensure!(pod["spec"]["nodeName"] == NODE_NAME, "{name} is on {}", pod["spec"]["nodeName"]);
        let pod_name = name.trim_start_matches("default/").to_owned();
        walk.api.wait(
            "the event of its scheduling",
            "/api/v1/namespaces/default/events",
            LONG,
            |events| {
                let scheduled = |event: &&serde_json::Value| {
                    event["reason"] == "Scheduled" && event["involvedObject"]["name"] == *pod_name
                };
                events.values().find(scheduled).map(drop)
            },
        )?;
    }
    let table = walk.cluster.kubectl(&["get", "pods", "-l", "app=notepad", "-o", "wide"])?;
    anyhow::ensure!(
        table.lines().skip(1).all(|line| line.contains("1/1") && line.contains("Running")),
        "{table}"
    );
    Ok(table.replace('\n', "\n    "))
}

pub fn answers_inside(walk: &Walk) -> anyhow::Result<String> {
    let address = walk.cluster.kubectl(&["get", "service", "notepad", "-o", "jsonpath={.spec.clusterIP}"])?;
    let names = ["notepad", "notepad.default", "notepad.default.svc.cluster.local", address.trim()];
    for name in names {
        let url = format!("http://{name}/");
        // Debian's static busybox has a `wget` that crashes. The pause keeps the connection whole until the answer.
        let get =
            format!("(printf 'GET / HTTP/1.0\\r\\nHost: {name}\\r\\n\\r\\n'; sleep 1) | nc -w 5 {name} 80");
        let page = eventually(&url, LONG, || walk.in_reader(&["sh", "-c", &get]))?;
        anyhow::ensure!(page.contains("host: notepad-"), "{url}: {page}");
    }
    let found = walk.in_reader(&["nslookup", "kubernetes.default.svc.cluster.local"])?;
    anyhow::ensure!(found.contains("10.43.0.1"), "{found}");
    Ok(format!("answers at {}", names.join(", ")))
}

pub fn answers_outside(walk: &Walk) -> anyhow::Result<String> {
    let mut answers = Answers::default();
    for _ in 0..300 {
        answers.count(walk.cluster.http(walk.outside(), &Request::get("/")));
    }
    anyhow::ensure!(answers.failures.is_empty(), "{:?}", answers.failures);
    anyhow::ensure!(answers.by_host.len() == 3, "every replica is hit: {:?}", answers.by_host);
    let note = Request::with_body("POST", "/notes", "text/plain", "remember the milk");
    let noted = walk.cluster.http(walk.outside(), &note)?;
    anyhow::ensure!(noted.code == 201, "{} {}", noted.code, noted.text());
    Ok(format!("{:?}", answers.by_host))
}

pub fn scales(walk: &Walk) -> anyhow::Result<String> {
    let before = wait_ready(&walk.api, "notepad", 3, LONG)?;
    for replicas in [10, 100, 3] {
        walk.cluster.kubectl(&["scale", "deployment/notepad", &format!("--replicas={replicas}")])?;
        let pods = wait_ready(&walk.api, "notepad", replicas, LONG)?;
        anyhow::ensure!(pods.values().all(|pod| restarts(pod) == 0), "no container restarts while scaling");
        if replicas == 100 {
            let addresses: std::collections::BTreeSet<&str> =
                pods.values().filter_map(|pod| pod["status"]["podIP"].as_str()).collect();
            anyhow::ensure!(
                addresses.len() == 100,
                "each pod has an address of its own: {}",
                addresses.len()
            );
            let one: SocketAddr =
                format!("{}:8083", addresses.iter().next_back().context("none")?).parse()?;
            let page = walk.cluster.http(one, &Request::get("/"))?;
            anyhow::ensure!(page.code == 200, "{}", page.code);
        }
        let ready = format!("{{.status.readyReplicas}}/{replicas}");
        let shown = eventually("the deployment's status", LONG, || {
            let shown = walk.cluster.kubectl(&[
                "get",
                "deployment",
                "notepad",
                "-o",
                &format!("jsonpath={ready}"),
            ])?;
            anyhow::ensure!(shown == format!("{replicas}/{replicas}"), "{shown}");
            Ok(shown)
        })?;
        anyhow::ensure!(!shown.is_empty());
    }
    let after = walk.api.get(&labelled("notepad"))?;
    let kept = after["items"].as_array().into_iter().flatten();
    let kept = kept.filter(|pod| before.values().any(|old| old["metadata"]["uid"] == pod["metadata"]["uid"]));
    Ok(format!("{} of the first three pods are among the last three", kept.count()))
}
