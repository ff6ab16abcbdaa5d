//! A runtime of one's own in a temporary directory: real shims, real containers, a network that hands
//! out addresses and wires nothing.
#![allow(dead_code, missing_docs, reason = "each test binary uses its part")]

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use coxswain_cri::v1::image_service_client::ImageServiceClient;
use coxswain_cri::v1::runtime_service_client::RuntimeServiceClient;
use coxswain_cri::v1::*;
use coxswain_cri::{NetworkError, SandboxNetwork, SandboxRef};
use coxswain_runtime::image::{Content, ImageStore, ScratchConfig, ScratchFile};
use coxswain_runtime::{RuntimeConfig, serve};
use hyper_util::rt::TokioIo;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};

pub const IMAGE: &str = "docker.io/library/busybox:test";

const APPLETS: [&str; 19] = [
    "sh", "sleep", "cat", "echo", "hostname", "ip", "head", "yes", "id", "ls", "true", "stty", "mount",
    "touch", "dd", "nc", "tail", "grep", "wc",
];

/// Whether the tests can run: they make namespaces and mounts.
pub fn can_run() -> bool {
    let can = nix::unistd::geteuid().is_root();
    if !can {
        eprintln!("skipped: needs root");
    }
    can
}

#[derive(Default)]
pub struct FakeNetwork {
    pub attached: Mutex<Vec<String>>,
}

#[async_trait]
impl SandboxNetwork for FakeNetwork {
    async fn attach(&self, sandbox: &SandboxRef) -> Result<Vec<IpAddr>, NetworkError> {
        assert!(sandbox.netns.exists(), "attach sees the namespace");
        self.attached.lock().unwrap().push(sandbox.id.clone());
        if sandbox.name == "unlucky" {
            return Err(NetworkError::Exhausted("10.88.0.0/24".into()));
        }
        Ok(vec!["10.88.0.7".parse().unwrap()])
    }

    async fn detach(&self, sandbox: &SandboxRef) -> Result<(), NetworkError> {
        self.attached.lock().unwrap().retain(|id| *id != sandbox.id);
        Ok(())
    }

    async fn ready(&self) -> Result<(), NetworkError> {
        Ok(())
    }
}

pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub network: Arc<FakeNetwork>,
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
    pub cgroup: String,
    server: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Fixture {
    pub async fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("cox").tempdir().unwrap();
        // A user namespace's root must be able to pass through.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        let network = Arc::new(FakeNetwork::default());
        let channel = lazy_channel(dir.path().join("cri.sock"));
        let mut fixture = Self {
            network,
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel),
            cgroup: format!("/coxtest-{}", dir.path().file_name().unwrap().to_str().unwrap()),
            dir,
            server: None,
        };
        fixture.start_server().await;
        fixture
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub async fn start_server(&mut self) {
        let cancel = CancellationToken::new();
        let config = runtime_config(self.dir.path(), &self.cgroup, self.network.clone());
        let server = tokio::spawn({
            let cancel = cancel.clone();
            async move { serve(config, cancel).await.unwrap() }
        });
        self.server = Some((cancel, server));
        self.connect().await;
    }

    /// Waits for a server, whoever runs it.
    pub async fn connect(&mut self) {
        let socket = self.dir.path().join("cri.sock");
        eventually("the server listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
        let channel = lazy_channel(socket);
        self.runtime = RuntimeServiceClient::new(channel.clone());
        self.images = ImageServiceClient::new(channel);
    }

    pub async fn stop_server(&mut self) {
        let (cancel, server) = self.server.take().unwrap();
        cancel.cancel();
        server.await.unwrap();
        let _ = std::fs::remove_file(self.dir.path().join("cri.sock"));
    }

    pub fn store(&self) -> ImageStore {
        ImageStore::open(&self.root()).unwrap()
    }

    pub fn import_busybox(&self) {
        let source =
            ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists()).unwrap();
        let mut files: Vec<ScratchFile> = APPLETS
            .iter()
            .map(|applet| ScratchFile {
                path: format!("/bin/{applet}"),
                content: Content::HostFile(source.into()),
                mode: 0o755,
            })
            .collect();
        for (path, text) in [
            ("/etc/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/:/bin/sh\n"),
            ("/etc/group", "root:x:0:\nweb:x:34:\nlogs:x:50:web\n"),
            ("/tmp/.keep", ""),
        ] {
            files.push(ScratchFile { path: path.into(), content: Content::Bytes(text.into()), mode: 0o644 });
        }
        let config = ScratchConfig { cmd: vec!["sleep".into(), "1000".into()], ..Default::default() };
        self.store().import_scratch(IMAGE, &files, &config).unwrap();
    }

    pub fn sandbox_config(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: self.dir.path().join("logs").join(name).display().to_string(),
            dns_config: Some(DnsConfig { servers: vec!["10.43.0.10".into()], ..Default::default() }),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(private_pid()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub async fn run_sandbox(&mut self, config: PodSandboxConfig) -> String {
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        self.runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id
    }

    pub async fn create(&mut self, sandbox: &str, config: ContainerConfig) -> String {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: None,
        };
        self.runtime.create_container(request).await.unwrap().into_inner().container_id
    }

    pub async fn start(&mut self, container: &str) {
        let request = StartContainerRequest { container_id: container.into() };
        self.runtime.start_container(request).await.unwrap();
    }

    /// Creates and starts a container that runs a shell script.
    pub async fn shell(&mut self, sandbox: &str, name: &str, script: &str) -> String {
        let container = self.create(sandbox, shell(name, script)).await;
        self.start(&container).await;
        container
    }

    pub async fn status(&mut self, container: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: container.into(), verbose: false };
        self.runtime.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    /// Waits until a container has exited.
    pub async fn exited(&mut self, container: &str) -> ContainerStatus {
        for _ in 0..1500 {
            let status = self.status(container).await;
            if status.state() == ContainerState::ContainerExited {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("container {container} does not end");
    }

    pub async fn exec(&mut self, container: &str, script: &str) -> ExecSyncResponse {
        let request = ExecSyncRequest {
            container_id: container.into(),
            cmd: vec!["/bin/sh".into(), "-c".into(), script.into()],
            timeout: 10,
        };
        self.runtime.exec_sync(request).await.unwrap().into_inner()
    }

    pub async fn remove_sandbox(&mut self, sandbox: &str) {
        let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.into() };
        self.runtime.remove_pod_sandbox(request).await.unwrap();
    }

    /// A container's log without its timestamps.
    pub fn log(&self, pod: &str, container: &str) -> Vec<String> {
        let path = self.dir.path().join("logs").join(pod).join(format!("{container}.log"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    /// Removes everything, and checks that nothing stays.
    pub async fn finish(mut self) {
        let sandboxes = self.runtime.list_pod_sandbox(ListPodSandboxRequest { filter: None }).await.unwrap();
        for sandbox in sandboxes.into_inner().items {
            self.remove_sandbox(&sandbox.id).await;
        }
        self.stop_server().await;
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let dir = self.dir.path().to_str().unwrap();
        assert!(!mounts.contains(dir), "mounts stay: {mounts}");
        assert!(self.network.attached.lock().unwrap().is_empty(), "network attachments stay");
        for name in ["containers", "sandboxes"] {
            assert_eq!(std::fs::read_dir(self.root().join(name)).unwrap().count(), 0, "{name} stay");
        }
        for mount in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let left =
                std::fs::read_dir(mount.path().join(&self.cgroup[1..])).into_iter().flatten().flatten();
            let left: Vec<_> = left.filter(|entry| entry.path().is_dir()).collect();
            assert!(left.is_empty(), "cgroups stay: {left:?}");
        }
    }
}

impl Drop for Fixture {
    /// A failed test leaves shims: end those that listen in our directory.
    fn drop(&mut self) {
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let cmdline = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let ours = String::from_utf8_lossy(&cmdline).contains(self.dir.path().to_str().unwrap());
            if let (true, Some(pid)) = (ours, process.file_name().to_str().and_then(|name| name.parse().ok()))
            {
                kill_tree(pid);
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        for target in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if target.starts_with(self.dir.path().to_str().unwrap()) {
                let _ = nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH);
            }
        }
        remove_cgroups(&self.cgroup);
    }
}

/// The configuration of a runtime below `dir`.
pub fn runtime_config(dir: &Path, cgroup: &str, network: Arc<FakeNetwork>) -> RuntimeConfig {
    RuntimeConfig {
        root: dir.join("root"),
        run_dir: dir.join("run"),
        socket: dir.join("cri.sock"),
        shim_command: vec![env!("CARGO_BIN_EXE_cox-shim").into()],
        network,
        registries: Vec::new(),
        cgroup_parent: cgroup.to_owned(),
    }
}

fn kill_tree(pid: i32) {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
        kill_tree(child);
    }
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
}

fn remove_cgroups(cgroup: &str) {
    for mount in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let dir = mount.path().join(&cgroup[1..]);
        for child in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(child.path());
        }
        let _ = std::fs::remove_dir(dir);
    }
}

/// What the kubelet asks for by default: a PID namespace for each container (zero would be the pod's).
pub fn private_pid() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() }
}

pub fn shell(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(ImageSpec { image: IMAGE.into(), ..Default::default() }),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(private_pid()),
                ..Default::default()
            }),
            resources: None,
        }),
        ..Default::default()
    }
}

fn lazy_channel(socket: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { std::io::Result::Ok(TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
    });
    Endpoint::from_static("http://runtime").connect_with_connector_lazy(connector)
}

/// Waits for a condition.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
