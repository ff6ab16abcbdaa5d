//! The runtime's state: which sandboxes and containers there are, who hears of changes, and how a
//! server that starts takes over what an earlier one left.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coxswain_cri::SandboxNetwork;
use coxswain_cri::v1::{ContainerEventResponse, ContainerEventType};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::container::Container;
use crate::error::{RuntimeError, during};
use crate::files;
use crate::image::{ImageStore, Puller, RegistryConfig};
use crate::sandbox::Sandbox;
use crate::shim::client::Shim;
use crate::spec::HostFacts;
use crate::streaming::Streaming;

/// Events a slow listener may lag behind before it loses some.
const EVENT_BACKLOG: usize = 1024;

/// How the runtime is set up.
#[derive(Clone)]
pub struct RuntimeConfig {
    /// Images, snapshots, sandboxes and containers are kept here.
    pub root: PathBuf,
    /// Sockets of shims; its path must be short (unix sockets allow 108 bytes).
    pub run_dir: PathBuf,
    /// Where CRI is served.
    pub socket: PathBuf,
    /// Program and arguments that lead to [`crate::shim_main`], such as `/proc/self/exe shim`.
    pub shim_command: Vec<OsString>,
    /// The pod network.
    pub network: Arc<dyn SandboxNetwork>,
    /// Registries that need more than the defaults.
    pub registries: Vec<RegistryConfig>,
    /// Cgroup for pods whose configuration names none, such as `/coxswain`.
    pub cgroup_parent: String,
}

/// The runtime.
pub(crate) struct Runtime {
    pub config: RuntimeConfig,
    pub store: ImageStore,
    pub puller: Puller,
    pub host: HostFacts,
    pub streaming: Streaming,
    pub cancel: CancellationToken,
    pub tasks: TaskTracker,
    sandboxes: Mutex<HashMap<String, Arc<Sandbox>>>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    events: broadcast::Sender<ContainerEventResponse>,
}

impl Runtime {
    /// Opens the runtime's directories and takes over what is in them.
    pub async fn open(
        config: RuntimeConfig,
        streaming: Streaming,
        cancel: CancellationToken,
    ) -> Result<Arc<Self>, RuntimeError> {
        make_dirs(&config).map_err(during("making the runtime's directories"))?;
        let store = ImageStore::open(&config.root)?;
        let runtime = Arc::new(Self {
            puller: Puller::new(store.clone(), config.registries.clone()),
            store,
            host: HostFacts::detect(),
            streaming,
            cancel,
            tasks: TaskTracker::new(),
            sandboxes: Mutex::default(),
            containers: Mutex::default(),
            events: broadcast::channel(EVENT_BACKLOG).0,
            config,
        });
        runtime.adopt().await?;
        runtime.store.collect()?;
        Ok(runtime)
    }

    async fn adopt(self: &Arc<Self>) -> Result<(), RuntimeError> {
        // Containers first: their sandboxes' watches report on them.
        for dir in files::entries(&self.config.root.join("containers")) {
            if let Some(container) = Container::load(&dir)? {
                self.insert_container(container);
            }
        }
        for dir in files::entries(&self.config.root.join("sandboxes")) {
            if let Some(sandbox) = Sandbox::load(self, &dir).await? {
                let sandbox = self.insert_sandbox(sandbox);
                sandbox.adopt(self).await;
            }
        }
        for container in self.containers() {
            if self.sandbox(&container.record.sandbox).is_err() {
                tracing::info!(container = container.id, "removing a container without a sandbox");
                crate::container::discard(&container.dir);
                self.forget_container(&container.id);
            }
        }
        self.end_strays().await;
        Ok(())
    }

    /// Ends shims of sandboxes that are no more: a crash came between making one and writing it down.
    async fn end_strays(&self) {
        let known: Vec<_> = self.sandboxes().iter().map(|sandbox| sandbox.shim.socket().to_owned()).collect();
        for socket in files::entries(&self.config.run_dir) {
            if socket.extension().is_some_and(|extension| extension == "shim") && !known.contains(&socket) {
                // One that does not answer is only a file.
                let _ = Shim::at(socket.clone()).shutdown().await;
                let _ = std::fs::remove_file(socket);
            }
        }
    }

    /// A sandbox by id, or by a prefix that fits only one.
    pub fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, RuntimeError> {
        find(&lock(&self.sandboxes), id).ok_or_else(|| RuntimeError::not_found("sandbox", id))
    }

    /// A container by id, or by a prefix that fits only one.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, RuntimeError> {
        find(&lock(&self.containers), id).ok_or_else(|| RuntimeError::not_found("container", id))
    }

    pub fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        lock(&self.sandboxes).values().cloned().collect()
    }

    pub fn containers(&self) -> Vec<Arc<Container>> {
        lock(&self.containers).values().cloned().collect()
    }

    pub fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        lock(&self.containers).values().filter(|c| c.record.sandbox == sandbox).cloned().collect()
    }

    pub fn insert_sandbox(&self, sandbox: Sandbox) -> Arc<Sandbox> {
        let sandbox = Arc::new(sandbox);
        lock(&self.sandboxes).insert(sandbox.id.clone(), sandbox.clone());
        sandbox
    }

    pub fn insert_container(&self, container: Container) -> Arc<Container> {
        let container = Arc::new(container);
        lock(&self.containers).insert(container.id.clone(), container.clone());
        container
    }

    pub fn forget_sandbox(&self, id: &str) {
        lock(&self.sandboxes).remove(id);
    }

    pub fn forget_container(&self, id: &str) {
        lock(&self.containers).remove(id);
    }

    /// Hears of events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<ContainerEventResponse> {
        self.events.subscribe()
    }

    /// Tells of a change of the container (or sandbox) `id` in `sandbox`.
    pub fn publish(&self, id: &str, sandbox: &Sandbox, kind: ContainerEventType) {
        let statuses = self.containers_of(&sandbox.id).iter().map(|container| container.status()).collect();
        let event = ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: files::now_nanos(),
            pod_sandbox_status: Some(sandbox.status()),
            containers_statuses: statuses,
        };
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }
}

fn make_dirs(config: &RuntimeConfig) -> std::io::Result<()> {
    for dir in
        [&config.root, &config.run_dir, &config.root.join("sandboxes"), &config.root.join("containers")]
    {
        std::fs::create_dir_all(dir)?;
        // Passed through by roots of user namespaces, listed by nobody: images carry set-user-id programs.
        std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
    }
    Ok(())
}

fn find<T: Clone>(all: &HashMap<String, T>, id: &str) -> Option<T> {
    if let Some(found) = all.get(id) {
        return Some(found.clone());
    }
    let mut fitting = all.iter().filter(|(key, _)| !id.is_empty() && key.starts_with(id));
    match (fitting.next(), fitting.next()) {
        (Some((_, only)), None) => Some(only.clone()),
        _ => None,
    }
}

/// Locks; a panic elsewhere leaves maps that are whole, so poison is no reason to stop.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new id: 64 hexadecimal digits.
pub(crate) fn fresh_id() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}
