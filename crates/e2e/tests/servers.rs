//! Several servers on one etcd: they are one cluster, and survive the loss of etcd's members and of each other.
#![allow(missing_docs)]

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use coxswain_testkit::{
    Api, Cluster, Etcd, EtcdOptions, Isolation, NODE_IP, Options, Request, eventually, is_root,
};
use serde_json::{Value, json};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const LONG: Duration = Duration::from_secs(60);
const TOKEN: &str = "--token=a-token-of-the-test";

/// A further server of the cluster.
struct Server {
    child: Child,
    data_dir: PathBuf,
}

impl Server {
    fn start(cluster: &Cluster, name: &str, port: u16, arguments: &[String]) -> anyhow::Result<Self> {
        let data_dir = cluster.directory().join(name);
        let log = File::create(cluster.directory().join(format!("{name}.log")))?;
        let mut command = cluster.isolation().command(cluster.binary().to_str().context("the binary")?);
        command.args(["server", "--no-node", "--bind-address", NODE_IP, "--node-ip", NODE_IP]);
        command.args(["--node-name", name, "--secure-port", &port.to_string(), "--data-dir"]).arg(&data_dir);
        command.args(arguments).env("NO_COLOR", "1").stdin(Stdio::null());
        Ok(Self { child: command.stdout(log.try_clone()?).stderr(log).spawn()?, data_dir })
    }

    fn api(&self, cluster: &Cluster) -> anyhow::Result<Api> {
        eventually("the other server", LONG, || {
            let api = Api::from_kubeconfig(&self.data_dir.join("admin.kubeconfig"), cluster.isolation())?;
            anyhow::ensure!(api.send(&Request::get("/readyz"))?.code == 200, "it is not ready");
            Ok(api)
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What it started ends with the namespaces of the cluster.
        drop((self.child.kill(), self.child.wait()));
    }
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
}

fn start_etcd(cluster: &Cluster) -> anyhow::Result<Option<Etcd>> {
    let isolation = cluster.isolation();
    let directory = cluster.directory().join("etcd");
    Etcd::start(EtcdOptions {
        directory: &directory,
        members: 3,
        addresses: &[NODE_IP],
        arguments: &["--unsafe-no-fsync"],
        command: Box::new(move |program, _| isolation.network_command(program)),
    })
}

fn flags(etcd: &Etcd) -> Vec<String> {
    let [ca, certificate, key] = etcd.certificates().map(|path| path.display().to_string());
    vec![
        format!("--datastore-endpoint={}", etcd.endpoints().join(",")),
        format!("--datastore-cafile={ca}"),
        format!("--datastore-certfile={certificate}"),
        format!("--datastore-keyfile={key}"),
    ]
}

type Step = fn(&Cluster, &Etcd, &Api, &Api) -> anyhow::Result<()>;

#[test]
fn servers_on_one_etcd_are_one_cluster() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut cluster = Cluster::new(Options { no_node: true, ..Options::default() })?;
    let Some(etcd) = start_etcd(&cluster)? else { return Ok(()) };
    let flags = flags(&etcd);
    let mut arguments = flags.clone();
    arguments.push(TOKEN.to_owned());
    cluster.add_arguments(&arguments);
    cluster.start_server()?;
    cluster.wait_until_ready()?;
    let mut other = Server::start(&cluster, "other", 6444, &arguments)?;
    let (here, there) = (cluster.api()?, other.api(&cluster)?);
    let steps: [(&str, Step); 8] = [
        ("what one acknowledged the other shows", seen_at_once),
        ("certificates and tokens of one are good for the other", trusted),
        ("addresses are given out once", addresses),
        ("the service kubernetes leads to both", both_lead),
        ("a member of etcd may be lost", member_lost),
        ("a wrong token is refused", wrong_token),
        ("the key of Secrets is not renewed without its etcd, and that is said", key_stays),
        ("a backup of it is an embedded cluster", backed_up),
    ];
    for (name, step) in steps {
        step(&cluster, &etcd, &here, &there).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        eprintln!("ok: {name}");
    }
    handed_over(&cluster, &there).unwrap_or_else(|error| panic!("the work is handed over: {error:#}"));
    other.child.kill()?;
    Ok(())
}

/// The address of an etcd that can be cut off, and the server's own address there.
const FAR: [&str; 2] = ["192.168.78.1", "192.168.78.2"];
const FAR_PORT: u8 = 8;

#[test]
fn a_server_without_its_etcd_says_so_in_time_and_recovers() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut cluster = Cluster::new(Options { no_node: true, ..Options::default() })?;
    let machine = Arc::new(Isolation::beside(FAR[0], &cluster.isolation(), FAR[1], FAR_PORT)?);
    let started = Etcd::start(EtcdOptions {
        directory: &cluster.directory().join("etcd"),
        members: 1,
        addresses: &FAR[..1],
        arguments: &["--unsafe-no-fsync"],
        command: Box::new(move |program, _| machine.network_command(program)),
    })?;
    let Some(etcd) = started else { return Ok(()) };
    cluster.add_arguments(&flags(&etcd));
    cluster.add_arguments(&[TOKEN.to_owned()]);
    cluster.start_server()?;
    cluster.wait_until_ready()?;
    let api = cluster.api()?;
    let code = |path: &str| Ok::<_, anyhow::Error>(api.send(&Request::get(path))?.code);
    let before = api.get(CONFIG_MAPS)?["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    let verbose = api.send(&Request::get("/readyz?verbose"))?.text();
    anyhow::ensure!(verbose.contains("[+]etcd ok\n[+]etcd-readiness ok\n"), "{verbose}");
    cluster.isolation().set_port(FAR_PORT, false)?;
    let unready = api.send(&Request::get("/readyz"))?;
    anyhow::ensure!(unready.code == 500, "{}", unready.text());
    anyhow::ensure!(unready.text().contains("[-]etcd failed: reason withheld\n"), "{}", unready.text());
    anyhow::ensure!(api.send(&Request::get("/readyz/etcd"))?.text().contains("error getting data from etcd"));
    anyhow::ensure!(code("/livez")? == 200 && code("/readyz?exclude=etcd&exclude=etcd-readiness")? == 200);
    let one = format!("{CONFIG_MAPS}/kube-root-ca.crt");
    let any = format!("{CONFIG_MAPS}?resourceVersion=0");
    anyhow::ensure!(code(&any)? == 200, "who takes any version is answered from memory");
    std::thread::scope(|scope| {
        let asking = [
            ("GET", one.as_str(), LONG),
            ("GET", CONFIG_MAPS, LONG),
            ("GET", &format!("{CONFIG_MAPS}?timeout=1s"), Duration::from_secs(5)),
            ("POST", CONFIG_MAPS, LONG),
            ("DELETE", &one, LONG),
        ];
        let asked = asking.map(|(method, path, limit)| {
            let api = api.clone();
            let body = if method == "POST" { config_map("never").to_string() } else { String::new() };
            let request = Request::with_body(method, path, "application/json", body);
            (
                scope.spawn(move || (Instant::now(), api.send(&request), Instant::now())),
                path.to_owned(),
                limit,
            )
        });
        for (answer, path, limit) in asked {
            let (began, answer, ended) = answer.join().unwrap_or_else(|_| panic!("a panic"));
            let (answer, took) = (answer?, ended - began);
            let status: Value = serde_json::from_slice(&answer.body).context(answer.text())?;
            eprintln!("    {path}: {} after {took:?}: {}", answer.code, status["message"]);
            anyhow::ensure!(answer.code >= 500 && status["kind"] == "Status", "{path}: {}", answer.text());
            anyhow::ensure!(status["code"] == answer.code && took < limit, "{path}: {took:?} {status}");
        }
        Ok(())
    })?;
    cluster.isolation().set_port(FAR_PORT, true)?;
    cluster.wait_until_ready()?;
    api.write("POST", CONFIG_MAPS, &config_map("after"))?;
    let mut seen = Vec::new();
    api.watch(CONFIG_MAPS, &before, |event| {
        seen.push(event["object"]["metadata"]["name"].clone());
        Ok(event["object"]["metadata"]["name"] == "after")
    })?;
    anyhow::ensure!(seen.iter().filter(|name| **name == "after").count() == 1, "{seen:?}");
    Ok(())
}

fn seen_at_once(_: &Cluster, _: &Etcd, here: &Api, there: &Api) -> anyhow::Result<()> {
    let before =
        here.get(CONFIG_MAPS)?["metadata"]["resourceVersion"].as_str().context("no revision")?.to_owned();
    for round in 0..50 {
        let name = format!("n{round}");
        let (writer, reader) = if round % 2 == 0 { (here, there) } else { (there, here) };
        writer.write("POST", CONFIG_MAPS, &config_map(&name))?;
        let path = format!("{CONFIG_MAPS}/{name}");
        reader.get(&path)?;
        let list = reader.get(CONFIG_MAPS)?;
        let names =
            list["items"].as_array().context("no list")?.iter().map(|object| &object["metadata"]["name"]);
        anyhow::ensure!(names.clone().any(|listed| *listed == *name), "{name} is not in the list");
        reader.write("PATCH", &path, &json!({"data": {"by": "the other"}}))?;
        anyhow::ensure!(writer.get(&path)?["data"]["by"] == "the other", "{name} is not as it was changed");
        if round % 5 == 0 {
            reader.send(&Request::with_body("DELETE", &path, "application/json", "{}".to_owned()))?;
            anyhow::ensure!(writer.send(&Request::get(&path))?.code == 404, "{name} is not gone");
        }
    }
    // Both tell the same story.
    let story = |api: &Api| {
        let mut events = Vec::new();
        api.watch(CONFIG_MAPS, &before, |event| {
            let metadata = &event["object"]["metadata"];
            let name = metadata["name"].as_str().unwrap_or_default();
            let ends = name == "n49" && event["type"] == "MODIFIED";
            events.push(format!("{} {name} {}", event["type"], metadata["resourceVersion"]));
            Ok(ends)
        })?;
        anyhow::Ok(events)
    };
    let stories = (story(here)?, story(there)?);
    anyhow::ensure!(stories.0 == stories.1 && stories.0.len() >= 100, "{stories:#?}");
    Ok(())
}

fn trusted(_: &Cluster, _: &Etcd, here: &Api, there: &Api) -> anyhow::Result<()> {
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let answer = eventually("the service account", LONG, || here.write("POST", path, &request))?;
    let token = answer["status"]["token"].as_str().context("no token")?;
    let asked = Request::get("/api/v1/namespaces/default/secrets")
        .header("Authorization", &format!("Bearer {token}"));
    let response = there.send_anonymously(&asked)?;
    anyhow::ensure!(response.code == 403, "known, and not allowed: {} {}", response.code, response.text());
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "b"}});
    here.write("POST", "/api/v1/namespaces/default/secrets", &secret)?;
    anyhow::ensure!(
        there.get("/api/v1/namespaces/default/secrets/s")?["data"]["a"] == "Yg==",
        "one sealing key"
    );
    Ok(())
}

fn addresses(_: &Cluster, _: &Etcd, here: &Api, there: &Api) -> anyhow::Result<()> {
    let path = "/api/v1/namespaces/default/services";
    let create = |api: &Api, name: String| {
        let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
        let service =
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
        api.write("POST", path, &service).map(drop)
    };
    // One of many addresses is hardly ever chosen twice: ask for the same.
    let wanted = |api: &Api, name: &str, address: &str| {
        let spec = json!({"clusterIP": address, "ports": [{"port": 80}]});
        let service =
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
        api.send(&Request::with_body("POST", path, "application/json", service.to_string()))
            .map(|answer| answer.code)
    };
    for round in 0..20 {
        let address = format!("10.43.7.{}", round + 1);
        let codes = std::thread::scope(|scope| {
            let one = scope.spawn(|| wanted(here, &format!("a{round}"), &address));
            let two = wanted(there, &format!("b{round}"), &address);
            Ok::<_, anyhow::Error>([one.join().unwrap_or_else(|_| panic!("it panicked"))?, two?])
        })?;
        anyhow::ensure!(codes.iter().filter(|code| **code == 201).count() == 1, "{address}: {codes:?}");
    }
    create(here, "any".to_owned())
}

fn both_lead(_: &Cluster, _: &Etcd, here: &Api, there: &Api) -> anyhow::Result<()> {
    for api in [here, there] {
        let endpoints = api.get("/api/v1/namespaces/default/endpoints/kubernetes")?;
        let ports = [0, 1].map(|subset| endpoints["subsets"][subset]["ports"][0]["port"].as_u64());
        anyhow::ensure!(ports == [Some(6443), Some(6444)], "{}", endpoints["subsets"]);
    }
    Ok(())
}

fn member_lost(_: &Cluster, etcd: &Etcd, here: &Api, there: &Api) -> anyhow::Result<()> {
    // The first one of these is asked first; one of them leads the others.
    for member in 0..2 {
        etcd.kill_member(member)?;
        for (number, api) in [here, there].into_iter().enumerate() {
            let name = format!("without-{member}-{number}");
            api.write("POST", CONFIG_MAPS, &config_map(&name))?;
            for api in [here, there] {
                api.get(&format!("{CONFIG_MAPS}/{name}"))?;
            }
        }
        etcd.start_member(member)?;
    }
    Ok(())
}

fn wrong_token(cluster: &Cluster, etcd: &Etcd, _: &Api, _: &Api) -> anyhow::Result<()> {
    let mut arguments = flags(etcd);
    arguments.push("--token=another".to_owned());
    let mut server = Server::start(cluster, "stranger", 6445, &arguments)?;
    let status = eventually("its end", LONG, || server.child.try_wait()?.context("it runs"))?;
    let said = std::fs::read_to_string(cluster.directory().join("stranger.log"))?;
    anyhow::ensure!(
        !status.success() && said.contains("token is not the one of the cluster"),
        "{status}: {said}"
    );
    Ok(())
}

fn key_stays(cluster: &Cluster, _: &Etcd, _: &Api, _: &Api) -> anyhow::Result<()> {
    let data_dir = cluster.data_dir();
    let key = || std::fs::read(data_dir.join("server/pki/sealing.key"));
    let (before, directory) = (key()?, data_dir.display().to_string());
    let refused = cluster.cox(&["secrets", "rotate-key", "--data-dir", &directory]).err();
    let refused = format!("{:#}", refused.context("it is refused")?);
    anyhow::ensure!(refused.contains("is kept in an etcd"), "{refused}");
    anyhow::ensure!(key()? == before, "nothing has changed");
    Ok(())
}

fn backed_up(cluster: &Cluster, etcd: &Etcd, here: &Api, _: &Api) -> anyhow::Result<()> {
    let [file, data] = ["backup", "moved"].map(|name| cluster.directory().join(name).display().to_string());
    let mut arguments = vec!["backup", &file, TOKEN];
    let flags = flags(etcd);
    arguments.extend(flags.iter().map(String::as_str));
    cluster.cox(&arguments)?;
    cluster.cox(&["restore", &file, "--data-dir", &data])?;
    let moved = Server::start(cluster, "moved", 6446, &["--no-controllers".to_owned()])?;
    let secret = |api: &Api| api.get("/api/v1/namespaces/default/secrets/s");
    anyhow::ensure!(secret(&moved.api(cluster)?)? == secret(here)?, "the secret is the same");
    Ok(())
}

/// The leader's server is killed: the other one goes on with its work.
fn handed_over(cluster: &Cluster, there: &Api) -> anyhow::Result<()> {
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-controller-manager";
    let holder = |api: &Api| {
        Ok::<_, anyhow::Error>(
            api.get(lease)?["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let before = holder(there)?;
    anyhow::ensure!(before.starts_with("node-1_"), "the first server leads: {before}");
    cluster.kill_server()?;
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "none"}]}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    there.write("POST", "/apis/apps/v1/namespaces/default/deployments", &deployment)?;
    there.wait("a pod of the deployment", "/api/v1/namespaces/default/pods", LONG, |pods| {
        (!pods.is_empty()).then_some(())
    })?;
    anyhow::ensure!(holder(there)? != before, "the lease has a new holder");
    Ok(())
}
