//! `cox server --no-node`: an API server that real `kubectl` understands, and that keeps what it said it has.
#![allow(missing_docs)]

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use coxswain_testkit::{Api, Cluster, Options, Request, is_root};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::json;

const LONG: Duration = Duration::from_secs(60);

type Step = fn(&Cluster) -> anyhow::Result<()>;

#[test]
fn an_api_server_without_a_node() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cluster = Cluster::start(Options { no_node: true, ..Options::default() })?;
    // A failed step panics, so that the log is shown.
    let steps: [(&str, Step); 9] = [
        ("kubectl creates, applies, patches and explains", kubectl_works),
        ("a watch tells of every change", watches),
        ("strangers and service accounts are refused", rbac_refuses),
        ("a machine with a bootstrap token gets its certificate", joins),
        ("quotas, limits and pod security of a namespace hold", namespace_policies_hold),
        ("what was acknowledged survives SIGKILL", acknowledged_survives),
        ("Secrets are sealed anew by a new key, also when that is cut short", keys_are_renewed),
        ("default roles get back what they lack", defaults_come_back),
        ("SIGTERM ends it cleanly", ends_cleanly),
    ];
    for (name, step) in steps {
        step(&cluster).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        eprintln!("ok: {name}");
    }
    Ok(())
}

fn kubectl_works(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.kubectl(&["create", "configmap", "settings", "--from-literal=colour=blue"])?;
    let manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: applied}\ndata: {a: \"1\", b: \"2\"}\n";
    let applied = cluster.kubectl_with_input(&["apply", "-f", "-"], manifest)?;
    anyhow::ensure!(applied.stdout.contains("configmap/applied created"), "{applied:?}");
    let manifest = manifest.replace(", b: \"2\"", "");
    let applied = cluster.kubectl_with_input(&["apply", "-f", "-"], &manifest)?;
    anyhow::ensure!(applied.stdout.contains("configmap/applied configured"), "{applied:?}");
    let data = cluster.kubectl(&["get", "configmap", "applied", "-o", "jsonpath={.data}"])?;
    anyhow::ensure!(data == r#"{"a":"1"}"#, "apply removes what the manifest no longer has: {data}");
    cluster.kubectl(&["patch", "configmap", "applied", "--type=merge", "-p", r#"{"data":{"c":"3"}}"#])?;
    cluster.kubectl(&[
        "patch",
        "configmap",
        "applied",
        "--type=json",
        "-p",
        r#"[{"op":"replace","path":"/data/a","value":"9"}]"#,
    ])?;
    let data = cluster.kubectl(&["get", "configmap", "applied", "-o", "jsonpath={.data.a}{.data.c}"])?;
    anyhow::ensure!(data == "93", "{data}");
    cluster.kubectl(&["label", "configmap", "applied", "tier=web"])?;
    let table = cluster.kubectl(&["get", "configmaps", "-l", "tier=web"])?;
    let row: Vec<&str> = table.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    anyhow::ensure!(
        table.starts_with("NAME") && row.first() == Some(&"applied") && row.get(1) == Some(&"2"),
        "{table}"
    );
    let explained = cluster.kubectl(&["explain", "deployment.spec.strategy"])?;
    anyhow::ensure!(explained.contains("rollingUpdate"), "{explained}");
    cluster.kubectl(&["delete", "configmap", "settings", "applied"])?;
    anyhow::ensure!(!cluster.try_kubectl(&["get", "configmap", "applied"])?.ok, "a deleted object is gone");
    Ok(())
}

fn watches(cluster: &Cluster) -> anyhow::Result<()> {
    let (api, path) = (cluster.api()?, "/api/v1/namespaces/default/configmaps");
    let writer = cluster.api()?;
    let create = |name: &str| {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        writer.write("POST", path, &object)
    };
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            api.wait("ten new objects", path, LONG, |objects| {
                let new = objects.keys().filter(|key| key.starts_with("default/watched-")).count();
                (new == 10).then_some(())
            })
        });
        (0..10).try_for_each(|number| create(&format!("watched-{number}")).map(drop))?;
        watcher.join().unwrap_or_else(|_| panic!("the watcher panicked"))
    })
}

fn joins(cluster: &Cluster) -> anyhow::Result<()> {
    const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let api = cluster.api()?;
    let token = "abcdef.0123456789abcdef";
    let data = json!({ "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true" });
    let secret = json!({ "metadata": { "name": "bootstrap-token-abcdef" }, "stringData": data,
        "type": "bootstrap.kubernetes.io/token" });
    api.write("POST", "/api/v1/namespaces/kube-system/secrets", &secret)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "system:node:joining");
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    let body = params.serialize_request(&KeyPair::generate()?)?.pem()?;
    let ask = |name: &str, signer: &str| {
        let request = json!({ "metadata": { "name": name }, "spec": { "request": BASE64_STANDARD.encode(&body),
            "signerName": signer, "usages": ["digital signature", "client auth"] } });
        let request = Request::with_body("POST", PATH, "application/json", request.to_string());
        api.send_anonymously(&request.header("Authorization", &format!("Bearer {token}")))
    };
    let asked = ask("joining", "kubernetes.io/kube-apiserver-client-kubelet")?;
    anyhow::ensure!(asked.code == 201, "{} {}", asked.code, asked.text());
    let certificate = api.wait("a certificate", PATH, LONG, |requests| {
        requests.get("/joining")?["status"]["certificate"].as_str().map(str::to_owned)
    })?;
    anyhow::ensure!(BASE64_STANDARD.decode(certificate)?.starts_with(b"-----BEGIN CERTIFICATE-----"));
    let other = ask("other", "kubernetes.io/kube-apiserver-client")?;
    anyhow::ensure!(other.code == 201, "{} {}", other.code, other.text());
    api.write("DELETE", "/api/v1/namespaces/kube-system/secrets/bootstrap-token-abcdef", &json!({}))?;
    let late = ask("late", "kubernetes.io/kube-apiserver-client-kubelet")?;
    anyhow::ensure!(late.code == 401, "a deleted token is nothing: {} {}", late.code, late.text());
    let other = api.get(&format!("{PATH}/other"))?;
    anyhow::ensure!(other["status"].get("conditions").is_none(), "only kubelets are approved: {other}");
    Ok(())
}

fn rbac_refuses(cluster: &Cluster) -> anyhow::Result<()> {
    let api = cluster.api()?;
    let stranger = api.send_anonymously(&Request::get("/api/v1/namespaces/default/secrets"))?;
    anyhow::ensure!(stranger.code == 403 || stranger.code == 401, "{} {}", stranger.code, stranger.text());
    let health = api.send_anonymously(&Request::get("/readyz"))?;
    anyhow::ensure!(health.code == 200, "health is public: {}", health.code);
    api.wait(
        "the default service account",
        "/api/v1/namespaces/default/serviceaccounts",
        LONG,
        |accounts| accounts.contains_key("default/default").then_some(()),
    )?;
    let refused = with_token(&api, "/api/v1/namespaces/default/secrets")?;
    anyhow::ensure!(refused.0 == 403, "{refused:?}");
    anyhow::ensure!(refused.1.contains("system:serviceaccount:default:default"), "{refused:?}");
    cluster.kubectl(&[
        "create",
        "rolebinding",
        "readers",
        "--clusterrole=view",
        "--serviceaccount=default:default",
    ])?;
    let allowed = with_token(&api, "/api/v1/namespaces/default/configmaps")?;
    anyhow::ensure!(allowed.0 == 200, "{allowed:?}");
    let secrets = with_token(&api, "/api/v1/namespaces/default/secrets")?;
    anyhow::ensure!(secrets.0 == 403, "view leaves secrets out: {secrets:?}");
    let answer = cluster.try_kubectl(&[
        "auth",
        "can-i",
        "delete",
        "pods",
        "--as=system:serviceaccount:default:default",
    ])?;
    anyhow::ensure!(answer.stdout.trim() == "no", "{answer:?}");
    let author = "--as=system:serviceaccount:default:author";
    cluster.kubectl(&[
        "create",
        "rolebinding",
        "authors",
        "--clusterrole=admin",
        "--serviceaccount=default:author",
    ])?;
    cluster.kubectl(&["create", "role", "held", "--verb=get", "--resource=secrets", author])?;
    let granted =
        cluster.try_kubectl(&["create", "role", "beyond", "--verb=get", "--resource=nodes", author])?;
    anyhow::ensure!(
        !granted.ok && granted.stderr.contains("attempting to grant RBAC permissions"),
        "{granted:?}"
    );
    Ok(())
}

fn namespace_policies_hold(cluster: &Cluster) -> anyhow::Result<()> {
    let refused = |arguments: &[&str], why: &str| {
        let ran = cluster.try_kubectl(&[arguments, &["-n", "ruled"]].concat())?;
        anyhow::ensure!(!ran.ok && ran.stderr.contains(why), "{arguments:?}: {ran:?}");
        Ok(())
    };
    cluster.kubectl(&["create", "namespace", "ruled"])?;
    let api = cluster.api()?;
    api.wait("the account of the namespace", "/api/v1/namespaces/ruled/serviceaccounts", LONG, |accounts| {
        accounts.contains_key("ruled/default").then_some(())
    })?;
    let limits = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "limits"},
        "spec": {"limits": [{"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}}]}});
    api.write("POST", "/api/v1/namespaces/ruled/limitranges", &limits)?;
    cluster.kubectl(&["create", "quota", "few", "--hard=pods=1,requests.cpu=1", "-n", "ruled"])?;
    let counted = |pods: &'static str| {
        api.wait(&format!("{pods} counted pods"), "/api/v1/namespaces/ruled/resourcequotas", LONG, |quotas| {
            (quotas.get("ruled/few")?["status"]["used"]["pods"] == pods).then_some(())
        })
    };
    counted("0")?;
    cluster.kubectl(&["run", "first", "--image=none", "-n", "ruled"])?;
    let set = cluster.kubectl(&[
        "get",
        "pod",
        "first",
        "-n",
        "ruled",
        "-o",
        "jsonpath={.spec.containers[0].resources.requests.cpu}",
    ])?;
    anyhow::ensure!(set == "100m", "the limit range fills in: {set}");
    refused(
        &["run", "second", "--image=none"],
        "exceeded quota: few, requested: pods=1, used: pods=1, limited: pods=1",
    )?;
    cluster.kubectl(&["delete", "pod", "first", "-n", "ruled", "--force", "--grace-period=0"])?;
    counted("0")?;
    cluster.kubectl(&["label", "namespace", "ruled", "pod-security.kubernetes.io/enforce=baseline"])?;
    let host = r#"--overrides={"spec":{"hostNetwork":true}}"#;
    refused(
        &["run", "third", "--image=none", host],
        "violates PodSecurity \"baseline:latest\": host namespaces",
    )?;
    // What was refused was never charged.
    cluster.kubectl(&["run", "fourth", "--image=none", "-n", "ruled"])?;
    cluster.kubectl(&["delete", "namespace", "ruled", "--wait=false"])?;
    Ok(())
}

fn with_token(api: &Api, path: &str) -> anyhow::Result<(u16, String)> {
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let answer = api.write("POST", "/api/v1/namespaces/default/serviceaccounts/default/token", &request)?;
    let token = answer["status"]["token"].as_str().unwrap_or_default();
    let response =
        api.send_anonymously(&Request::get(path).header("Authorization", &format!("Bearer {token}")))?;
    Ok((response.code, response.text()))
}

fn acknowledged_survives(cluster: &Cluster) -> anyhow::Result<()> {
    let path = "/api/v1/namespaces/default/configmaps";
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let writer = cluster.api()?;
        let writing = std::thread::spawn(move || {
            let mut names = Vec::new();
            loop {
                let name = format!("kept-{round}-{}", names.len());
                let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
                match writer.write("POST", path, &object) {
                    Ok(_) => names.push(name),
                    Err(_) => return names,
                }
            }
        });
        let first = format!("default/kept-{round}-20");
        cluster
            .api()?
            .wait("writes in full swing", path, LONG, |found| found.contains_key(&first).then_some(()))?;
        cluster.kill_server()?;
        acknowledged.extend(writing.join().unwrap_or_else(|_| panic!("the writer panicked")));
        cluster.start_server()?;
        cluster.wait_until_ready()?;
    }
    let list = cluster.api()?.get(path)?;
    let names: Vec<&str> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|object| object["metadata"]["name"].as_str())
        .collect();
    let lost: Vec<&String> = acknowledged.iter().filter(|name| !names.contains(&name.as_str())).collect();
    anyhow::ensure!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), acknowledged.len());
    eprintln!("    {} acknowledged objects are there after 3 kills", acknowledged.len());
    Ok(())
}

fn keys_are_renewed(cluster: &Cluster) -> anyhow::Result<()> {
    let path = "/api/v1/namespaces/default/secrets";
    let api = cluster.api()?;
    let before = api.get(path)?["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    let make = |name: String| {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"a": name}});
        api.write("POST", path, &secret).map(drop)
    };
    (0..50).try_for_each(|number| make(format!("sealed-{number}")))?;
    let key = cluster.data_dir().join("server/pki/sealing.key");
    let old = std::fs::read(&key)?;
    let data_dir = cluster.data_dir().display().to_string();
    let rotate = || cluster.cox(&["secrets", "rotate-key", "--data-dir", &data_dir]);
    rotate()?;
    // The server that runs does not notice, and seals on with the old key.
    make("sealed-meanwhile".to_owned())?;
    let list = || Ok::<_, anyhow::Error>(cluster.api()?.get(path)?["items"].clone());
    let secrets = list()?;
    for round in 0..8 {
        cluster.kill_server()?;
        rotate()?;
        cluster.start_server()?;
        // Somewhere between the start of the process and its end of work.
        std::thread::sleep(Duration::from_millis(round * 40));
    }
    // The second start has but the newest key.
    for _ in 0..2 {
        cluster.wait_until_ready()?;
        anyhow::ensure!(list()? == secrets, "the Secrets are what they were");
        let now = std::fs::read(&key)?;
        anyhow::ensure!(now.len() == 32 && now != old, "{} bytes of keys are left", now.len());
        cluster.kill_server()?;
        cluster.start_server()?;
    }
    cluster.wait_until_ready()?;
    let mut first = None;
    cluster.api()?.watch(path, &before, |event| {
        first = event["object"]["metadata"]["name"].as_str().map(str::to_owned);
        Ok(true)
    })?;
    anyhow::ensure!(first.as_deref() == Some("sealed-0"), "the history is sealed anew too: {first:?}");
    Ok(())
}

fn defaults_come_back(cluster: &Cluster) -> anyhow::Result<()> {
    let rules = |role| cluster.kubectl(&["get", "clusterrole", role, "-o", "jsonpath={.rules}"]);
    let (kept, left_alone) = ("system:basic-user", "system:discovery");
    for role in [kept, left_alone] {
        cluster.kubectl(&["patch", "clusterrole", role, "--type=merge", "-p", r#"{"rules":[]}"#])?;
    }
    let nobodys = "rbac.authorization.kubernetes.io/autoupdate=false";
    cluster.kubectl(&["annotate", "clusterrole", left_alone, "--overwrite", nobodys])?;
    cluster.kill_server()?;
    cluster.start_server()?;
    cluster.wait_until_ready()?;
    let now = rules(kept)?;
    let all = ["selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"];
    anyhow::ensure!(all.iter().all(|one| now.contains(one)), "what was taken away is there again: {now}");
    let now = rules(left_alone)?;
    anyhow::ensure!(!now.contains("nonResourceURLs"), "what is no default any more stays: {now}");
    Ok(())
}

fn ends_cleanly(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.stop_server()?;
    let left = cluster.processes().len();
    // The shell that is process 1 and what it waits for.
    anyhow::ensure!(left <= 2, "{left} processes are left");
    Ok(())
}
