//! A server of the bench's own, on an engine of choice: it can be started again, and etcd be seen beside it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use coxswain_testkit::{Cluster, Etcd, EtcdOptions, Isolation, NODE_IP, Options};

use crate::figure;
use crate::load::ms;

/// A bare API server in namespaces of its own; it goes with this.
pub struct Own {
    cluster: Cluster,
    etcd: Option<Etcd>,
}

impl Own {
    /// Starts it: `embedded`, or `etcd` for one with an etcd of one member; none where that cannot be built.
    pub fn start(engine: &str) -> anyhow::Result<Option<Self>> {
        let arguments = vec!["--no-controllers".to_owned()];
        let options = Options { no_node: true, log: Some("warn".into()), arguments, ..Options::default() };
        let mut cluster = Cluster::new(options)?;
        let etcd = match engine {
            "embedded" => None,
            "etcd" => {
                let isolation = cluster.isolation();
                let started = Etcd::start(EtcdOptions {
                    directory: &cluster.directory().join("etcd"),
                    members: 1,
                    addresses: &[NODE_IP],
                    arguments: &["--quota-backend-bytes=8589934592"],
                    command: Box::new(move |program, _| isolation.network_command(program)),
                })?;
                let Some(etcd) = started else { return Ok(None) };
                let [ca, certificate, key] = etcd.certificates().map(|path| path.display().to_string());
                cluster.add_arguments(&[
                    "--token=a-token-of-the-bench".to_owned(),
                    format!("--datastore-endpoint={}", etcd.endpoints().join(",")),
                    format!("--datastore-cafile={ca}"),
                    format!("--datastore-certfile={certificate}"),
                    format!("--datastore-keyfile={key}"),
                ]);
                Some(etcd)
            }
            other => bail!("{other:?} is no engine: embedded, etcd"),
        };
        cluster.start_server()?;
        cluster.wait_until_ready()?;
        Ok(Some(Self { cluster, etcd }))
    }

    /// Where its administrator's credentials are.
    pub fn kubeconfig(&self) -> PathBuf {
        self.cluster.kubeconfig()
    }

    /// Where it is reached.
    pub fn isolation(&self) -> Arc<Isolation> {
        self.cluster.isolation()
    }

    /// Its process, and etcd's.
    pub fn processes(&self) -> anyhow::Result<Vec<u32>> {
        let server = u32::try_from(self.cluster.server_pid()?).context("a process has no such id")?;
        let etcd = self.etcd.as_ref().and_then(|etcd| etcd.pid(0));
        Ok([server].into_iter().chain(etcd).collect())
    }

    /// Ends it, and starts it again on what it has stored.
    pub fn restart(&self) -> anyhow::Result<()> {
        self.cluster.stop_server()?;
        let begin = Instant::now();
        self.cluster.start_server()?;
        self.cluster.wait_until_ready()?;
        figure("start_to_readyz_ms", format!("{:.0}", ms(begin.elapsed())));
        Ok(())
    }
}
