//! Pod sandboxes: made in steps of which the last, the record, makes them stand; taken down in steps
//! that may be repeated.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use coxswain_cri::v1::{
    self, ContainerEventType, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxState,
};
use coxswain_cri::{SandboxPort, SandboxRef, TransportProtocol};

use crate::error::{RuntimeError, during};
use crate::files;
use crate::records::{self, SandboxRecord};
use crate::runtime::{Runtime, fresh_id, lock};
use crate::shim::client::{HOLDER_FILE, Shim};
use crate::shim::protocol::{ShimConfig, UserMapping};
use crate::snapshot;
use crate::spec::{SandboxFiles, wants_user_namespace};

/// Cgroup of all shims: outside the server's, which a service manager may kill, and outside pods', whose
/// limits are for their containers.
const SHIM_CGROUP: &str = "/coxswain-shims";

/// A sandbox.
pub(crate) struct Sandbox {
    pub id: String,
    pub config: PodSandboxConfig,
    pub dir: PathBuf,
    pub shim: Shim,
    record: Mutex<SandboxRecord>,
    /// Held while it is taken down.
    ending: tokio::sync::Mutex<()>,
}

impl Sandbox {
    /// Makes a sandbox: directory, files, namespaces, network, record.
    pub async fn run(
        runtime: &Arc<Runtime>,
        config: PodSandboxConfig,
        runtime_handler: String,
    ) -> Result<Arc<Self>, RuntimeError> {
        if config.metadata.is_none() {
            return Err(RuntimeError::Invalid("sandbox config must include metadata".to_owned()));
        }
        if !runtime_handler.is_empty() {
            return Err(RuntimeError::Invalid(format!("no runtime for {runtime_handler:?} is configured")));
        }
        let id = fresh_id();
        let dir = runtime.config.root.join("sandboxes").join(&id);
        let record = SandboxRecord {
            created_at: files::now_nanos(),
            runtime_handler,
            ready: true,
            ips: Vec::new(),
            holder: 0,
        };
        let sandbox = Self {
            shim: Shim::at(shim_socket(runtime, &id)),
            id,
            config,
            dir,
            record: Mutex::new(record),
            ending: tokio::sync::Mutex::default(),
        };
        if let Err(error) = sandbox.build(runtime).await {
            sandbox.discard(runtime).await;
            return Err(error);
        }
        let sandbox = runtime.insert_sandbox(sandbox);
        sandbox.clone().watch(runtime).await?;
        runtime.publish(&sandbox.id, &sandbox, ContainerEventType::ContainerCreatedEvent);
        runtime.publish(&sandbox.id, &sandbox, ContainerEventType::ContainerStartedEvent);
        Ok(sandbox)
    }

    async fn build(&self, runtime: &Runtime) -> Result<(), RuntimeError> {
        std::fs::create_dir_all(&self.dir).map_err(during("making the sandbox's directory"))?;
        records::write_config(&self.dir, &self.config)
            .map_err(during("writing the sandbox's configuration"))?;
        self.write_files().map_err(during("writing the sandbox's files"))?;
        Shim::spawn(&runtime.config.shim_command, &self.shim_config(runtime)).await?;
        let holder =
            read_holder(&self.dir).ok_or_else(|| RuntimeError::Invalid("no namespaces".to_owned()))?;
        lock(&self.record).holder = holder;
        if self.has_network() {
            let attached = runtime.config.network.attach(&self.network_ref()).await;
            let ips =
                attached.map_err(|source| RuntimeError::Network { sandbox: self.id.clone(), source })?;
            lock(&self.record).ips = ips;
        }
        self.save()
    }

    fn save(&self) -> Result<(), RuntimeError> {
        let record = lock(&self.record).clone();
        records::write_record(&self.dir, &record).map_err(during("writing the sandbox's record"))
    }

    fn write_files(&self) -> std::io::Result<()> {
        let files = self.files();
        if self.options().ipc() != NamespaceMode::Node {
            snapshot::mount_shm(&files.shm())?;
        }
        std::fs::write(files.hostname(), format!("{}\n", self.hostname()))?;
        let hosts = std::fs::read("/etc/hosts").unwrap_or_else(|_| b"127.0.0.1\tlocalhost\n".to_vec());
        std::fs::write(files.hosts(), hosts)?;
        let resolv_conf = match &self.config.dns_config {
            Some(dns) => resolv_conf(dns),
            None => std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        };
        std::fs::write(files.resolv_conf(), resolv_conf)
    }

    fn shim_config(&self, runtime: &Runtime) -> ShimConfig {
        let options = self.options();
        let private_network = options.network() != NamespaceMode::Node;
        let private_ipc = options.ipc() != NamespaceMode::Node;
        let user_namespace = wants_user_namespace(&options)
            .map(|userns| UserMapping { uids: mapping(&userns.uids), gids: mapping(&userns.gids) });
        let linux = self.config.linux.clone().unwrap_or_default();
        let mut sysctls = BTreeMap::new();
        if private_network {
            // As containerd: low ports and ping need no privileges in a namespace of one's own.
            sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
            if user_namespace.is_none() {
                sysctls.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
            }
        }
        sysctls.extend(linux.sysctls);
        ShimConfig {
            socket: shim_socket(runtime, &self.id),
            dir: self.dir.clone(),
            hostname: private_network.then(|| self.hostname()),
            private_network,
            private_ipc,
            shared_pid: options.pid() == NamespaceMode::Pod,
            user_namespace,
            sysctls,
            cgroup: SHIM_CGROUP.to_owned(),
            open_files: crate::limits::given_open_files(),
        }
    }

    /// Reads a sandbox back; a half-made one is removed.
    pub async fn load(runtime: &Runtime, dir: &Path) -> Result<Option<Self>, RuntimeError> {
        let id = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let step = "reading a sandbox";
        let record: Option<SandboxRecord> = records::read_record(dir).map_err(during(step))?;
        let half_made = record.is_none();
        let record = record.unwrap_or_else(|| SandboxRecord {
            created_at: 0,
            runtime_handler: String::new(),
            ready: false,
            ips: Vec::new(),
            holder: read_holder(dir).unwrap_or(0),
        });
        let sandbox = Self {
            shim: Shim::at(shim_socket(runtime, &id)),
            // A crash may have come before the configuration.
            config: records::read_config(dir).unwrap_or_default(),
            id,
            dir: dir.to_owned(),
            record: Mutex::new(record),
            ending: tokio::sync::Mutex::default(),
        };
        if half_made {
            tracing::info!(sandbox = sandbox.id, "removing a half-made sandbox");
            sandbox.discard(runtime).await;
            return Ok(None);
        }
        Ok(Some(sandbox))
    }

    /// Takes up the watch of a sandbox an earlier server made.
    pub async fn adopt(self: Arc<Self>, runtime: &Arc<Runtime>) {
        if self.is_ready()
            && let Err(error) = self.clone().watch(runtime).await
        {
            tracing::warn!(sandbox = self.id, %error, "the sandbox is gone");
            self.lost(runtime);
        }
    }

    /// Follows the shim's reports for as long as it lives.
    async fn watch(self: Arc<Self>, runtime: &Arc<Runtime>) -> Result<(), RuntimeError> {
        let mut watch = self.shim.watch().await?;
        // From here on no change is missed; what came before is on disk.
        for container in runtime.containers_of(&self.id) {
            container.refresh();
        }
        let (runtime, cancel) = (runtime.clone(), runtime.cancel.clone());
        runtime.tasks.clone().spawn(async move {
            loop {
                let changed = tokio::select! {
                    changed = watch.next() => changed,
                    () = cancel.cancelled() => return,
                };
                let Some(id) = changed else { break };
                if let Ok(container) = runtime.container(&id) {
                    container.changed(&runtime, &self).await;
                }
            }
            if self.is_ready() {
                tracing::warn!(sandbox = self.id, "the sandbox's process is gone");
                self.lost(&runtime);
            }
        });
        Ok(())
    }

    /// The shim is gone, and all that ran in the sandbox with it.
    fn lost(&self, runtime: &Runtime) {
        self.mark_not_ready();
        for container in runtime.containers_of(&self.id) {
            container.lost();
            runtime.publish(&container.id, self, ContainerEventType::ContainerStoppedEvent);
        }
        runtime.publish(&self.id, self, ContainerEventType::ContainerStoppedEvent);
    }

    fn mark_not_ready(&self) {
        lock(&self.record).ready = false;
        if let Err(error) = self.save() {
            tracing::warn!(sandbox = self.id, %error, "cannot note that the sandbox ended");
        }
    }

    /// Stops its containers, takes it off the network and ends it. May be repeated.
    pub async fn stop(&self, runtime: &Arc<Runtime>) -> Result<(), RuntimeError> {
        let _ending = self.ending.lock().await;
        for container in runtime.containers_of(&self.id) {
            container.stop(runtime, self, 0).await?;
        }
        if !self.is_ready() && !self.dir.join(HOLDER_FILE).exists() {
            return Ok(());
        }
        self.detach(runtime).await?;
        lock(&self.record).ready = false;
        self.end_process().await;
        let _ = std::fs::remove_file(self.dir.join(HOLDER_FILE));
        snapshot::unmount(&self.files().shm()).map_err(during("unmounting /dev/shm"))?;
        self.mark_not_ready();
        runtime.publish(&self.id, self, ContainerEventType::ContainerStoppedEvent);
        Ok(())
    }

    /// Stops it if need be and removes every trace. May be repeated.
    pub async fn remove(&self, runtime: &Arc<Runtime>) -> Result<(), RuntimeError> {
        self.stop(runtime).await?;
        for container in runtime.containers_of(&self.id) {
            container.remove(runtime, self).await?;
        }
        records::remove_with_record(&self.dir).map_err(during("removing the sandbox's directory"))?;
        runtime.forget_sandbox(&self.id);
        crate::cgroup::remove(SHIM_CGROUP);
        runtime.publish(&self.id, self, ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    /// Undoes whatever was done of a sandbox that never stood; each step may find nothing to undo.
    async fn discard(&self, runtime: &Runtime) {
        if let Err(error) = self.detach(runtime).await {
            tracing::warn!(sandbox = self.id, %error, "cannot detach a failed sandbox");
        }
        self.end_process().await;
        let unmounted = snapshot::unmount(&self.files().shm());
        if let Err(error) = unmounted.and_then(|()| records::remove_with_record(&self.dir)) {
            tracing::warn!(sandbox = self.id, %error, "cannot remove a failed sandbox");
        }
    }

    async fn detach(&self, runtime: &Runtime) -> Result<(), RuntimeError> {
        if self.has_network() && self.config.metadata.is_some() {
            let detached = runtime.config.network.detach(&self.network_ref()).await;
            detached.map_err(|source| RuntimeError::Network { sandbox: self.id.clone(), source })?;
        }
        Ok(())
    }

    /// Ends the shim; one that does not answer leaves at most its pause process.
    async fn end_process(&self) {
        if self.shim.shutdown().await.is_err() && self.holder_lives() {
            let pid = nix::unistd::Pid::from_raw(self.holder());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        }
    }

    /// Whether the holder's pid is still the holder's: after a crash or a reboot it may be anybody's.
    fn holder_lives(&self) -> bool {
        let command = std::fs::read(format!("/proc/{}/cmdline", self.holder())).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(&self.id)
    }

    pub fn is_ready(&self) -> bool {
        lock(&self.record).ready
    }

    /// Process that holds the namespaces.
    pub fn holder(&self) -> i32 {
        lock(&self.record).holder
    }

    pub fn files(&self) -> SandboxFiles {
        SandboxFiles { dir: self.dir.clone() }
    }

    pub fn options(&self) -> NamespaceOption {
        let context = self.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        context.and_then(|context| context.namespace_options.clone()).unwrap_or_default()
    }

    pub fn has_network(&self) -> bool {
        self.options().network() != NamespaceMode::Node
    }

    /// The pod's host name; the host's own on its network.
    pub fn hostname(&self) -> String {
        if !self.config.hostname.is_empty() {
            return self.config.hostname.clone();
        }
        nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
    }

    /// The network namespace, as a path; one that leads nowhere when the namespace is gone.
    pub fn netns(&self) -> PathBuf {
        if self.holder_lives() {
            format!("/proc/{}/ns/net", self.holder()).into()
        } else {
            self.dir.join("netns-gone")
        }
    }

    fn network_ref(&self) -> SandboxRef {
        let metadata = self.config.metadata.clone().unwrap_or_default();
        SandboxRef {
            id: self.id.clone(),
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            netns: self.netns(),
            port_mappings: self.config.port_mappings.iter().filter_map(port).collect(),
            annotations: self.config.annotations.clone().into_iter().collect(),
        }
    }

    pub fn state(&self) -> PodSandboxState {
        if self.is_ready() { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready }
    }

    /// The list entry.
    pub fn summary(&self) -> v1::PodSandbox {
        let record = lock(&self.record).clone();
        v1::PodSandbox {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state().into(),
            created_at: record.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: record.runtime_handler,
        }
    }

    /// The full status.
    pub fn status(&self) -> v1::PodSandboxStatus {
        let record = lock(&self.record).clone();
        let mut ips = record.ips.iter().map(ToString::to_string);
        let network = v1::PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
        };
        v1::PodSandboxStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state().into(),
            created_at: record.created_at,
            network: Some(network),
            linux: Some(v1::LinuxPodSandboxStatus {
                namespaces: Some(v1::Namespace { options: Some(self.options()) }),
            }),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: record.runtime_handler,
        }
    }
}

fn read_holder(dir: &Path) -> Option<i32> {
    std::fs::read_to_string(dir.join(HOLDER_FILE)).ok()?.parse().ok()
}

/// Short, for the limit on socket paths.
fn shim_socket(runtime: &Runtime, id: &str) -> PathBuf {
    runtime.config.run_dir.join(format!("{:.16}.shim", id))
}

fn mapping(ranges: &[v1::IdMapping]) -> String {
    ranges.iter().map(|r| format!("{} {} {}\n", r.container_id, r.host_id, r.length)).collect()
}

fn port(mapping: &v1::PortMapping) -> Option<SandboxPort> {
    let host_port = u16::try_from(mapping.host_port).ok().filter(|port| *port > 0)?;
    Some(SandboxPort {
        protocol: match mapping.protocol() {
            v1::Protocol::Tcp => TransportProtocol::Tcp,
            v1::Protocol::Udp => TransportProtocol::Udp,
            v1::Protocol::Sctp => TransportProtocol::Sctp,
        },
        container_port: u16::try_from(mapping.container_port).ok()?,
        host_port,
        host_ip: mapping.host_ip.parse().ok(),
    })
}

fn resolv_conf(dns: &v1::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}
