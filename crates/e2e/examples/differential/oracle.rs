//! The oracle: upstream's kube-apiserver on etcd, built from Go modules, in the network namespace of the cluster under test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use coxswain_testkit::{Api, Isolation, NODE_IP, Request, eventually};

const PORT: u16 = 7443;
const START: Duration = Duration::from_secs(90);
/// What tells kube-apiserver which version it is.
const LINK: &str = "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36";

/// kube-apiserver and etcd, running until this is dropped.
pub struct Oracle {
    children: Vec<Child>,
    /// A client of it.
    pub api: Api,
}

/// Builds both binaries into `target/oracle`, or takes those of `COX_ORACLE_DIR`; `None` without Go.
pub fn build() -> anyhow::Result<Option<PathBuf>> {
    if let Some(dir) = std::env::var_os("COX_ORACLE_DIR") {
        return Ok(Some(dir.into()));
    }
    if Command::new("go").arg("version").output().is_err() {
        return Ok(None);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let out = root.join("target/oracle");
    std::fs::create_dir_all(&out)?;
    eprintln!("building kube-apiserver and etcd (minutes, the first time)");
    let status = Command::new("go")
        .args(["build", "-trimpath", "-ldflags", LINK, "-o"])
        .arg(&out)
        .arg("tool")
        .env("CGO_ENABLED", "0")
        .current_dir(root.join("oracle"))
        .status()?;
    anyhow::ensure!(status.success(), "the oracle does not build");
    Ok(Some(out))
}

impl Oracle {
    /// Starts both with the keys of the cluster whose data is in `cluster`, and waits until they are ready.
    pub fn start(
        binaries: &Path,
        isolation: &Arc<Isolation>,
        scratch: &Path,
        cluster: &Path,
    ) -> anyhow::Result<Self> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let log = |name: &str| std::fs::File::create(scratch.join(name));
        let mut children = Vec::new();
        let mut spawn = |program: &str, arguments: Vec<String>| -> anyhow::Result<()> {
            let (out, err) = (log(program)?, log(&format!("{program}.err"))?);
            let mut command = isolation.command(&text(binaries.join(program)));
            let command = command.args(arguments).stdin(Stdio::null()).stdout(out).stderr(err);
            children.push(command.spawn().with_context(|| format!("{program} does not start"))?);
            Ok(())
        };
        let clients = format!("http://{NODE_IP}:2379");
        spawn(
            "server",
            vec![
                format!("--data-dir={}", text(scratch.join("etcd"))),
                format!("--listen-client-urls={clients}"),
                format!("--advertise-client-urls={clients}"),
                format!("--listen-peer-urls=http://{NODE_IP}:2380"),
                "--unsafe-no-fsync".into(),
            ],
        )?;
        let pki = cluster.join("server/pki");
        // The cluster's own key is none that upstream takes; this one is made before it is read.
        let account_key = text(scratch.join("certificates/apiserver.key"));
        spawn(
            "kube-apiserver",
            vec![
                format!("--etcd-servers={clients}"),
                format!("--secure-port={PORT}"),
                format!("--bind-address={NODE_IP}"),
                format!("--advertise-address={NODE_IP}"),
                format!("--cert-dir={}", text(scratch.join("certificates"))),
                format!("--client-ca-file={}", text(pki.join("ca.crt"))),
                format!("--service-account-key-file={account_key}"),
                format!("--service-account-signing-key-file={account_key}"),
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
                "--service-cluster-ip-range=10.43.0.0/16".into(),
                "--authorization-mode=Node,RBAC".into(),
                "--enable-admission-plugins=NodeRestriction".into(),
                "--allow-privileged=true".into(),
                "--endpoint-reconciler-type=none".into(),
                format!("--requestheader-client-ca-file={}", text(pki.join("front-proxy-ca.crt"))),
                "--requestheader-allowed-names=front-proxy-client".into(),
                "--requestheader-username-headers=X-Remote-User".into(),
                "--requestheader-uid-headers=X-Remote-Uid".into(),
                "--requestheader-group-headers=X-Remote-Group".into(),
                "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
            ],
        )?;
        let api = Self::connect(isolation, scratch, cluster);
        match api {
            Ok(api) => Ok(Self { children, api }),
            Err(error) => {
                children.iter_mut().for_each(|child| drop((child.kill(), child.wait())));
                let tail = std::fs::read_to_string(scratch.join("kube-apiserver.err")).unwrap_or_default();
                let lines: Vec<&str> = tail.lines().rev().take(20).collect();
                Err(error.context(lines.join("\n")))
            }
        }
    }

    /// The oracle's own certificate, with the administrator's of the cluster.
    fn connect(isolation: &Arc<Isolation>, scratch: &Path, cluster: &Path) -> anyhow::Result<Api> {
        eventually("the oracle's readiness", START, || {
            let certificate = std::fs::read(scratch.join("certificates/apiserver.crt"))?;
            let config = std::fs::read_to_string(cluster.join("admin.kubeconfig"))?;
            let replaced: Vec<String> = config
                .lines()
                .map(|line| match line.split_once(':') {
                    Some((key, _)) if key.trim() == "certificate-authority-data" => {
                        format!("{key}: {}", BASE64_STANDARD.encode(&certificate))
                    }
                    Some((key, _)) if key.trim() == "server" => format!("{key}: https://{NODE_IP}:{PORT}"),
                    _ => line.to_owned(),
                })
                .collect();
            let path = scratch.join("oracle.kubeconfig");
            std::fs::write(&path, replaced.join("\n"))?;
            let api = Api::from_kubeconfig(&path, isolation.clone())?;
            let response = api.send(&Request::get("/readyz"))?;
            anyhow::ensure!(response.code == 200, "/readyz: {} {}", response.code, response.text());
            Ok(api)
        })
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            // Best effort: the namespaces of the cluster end what is left.
            drop((child.kill(), child.wait()));
        }
    }
}
