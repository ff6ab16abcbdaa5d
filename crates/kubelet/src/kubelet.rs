//! The kubelet as a whole: what its parts share, and the tasks it consists of.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use coxswain_client::{Change, EventType, InformerFactory, Recorder};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;

use crate::cgroups::Cgroups;
use crate::cri::Cri;
use crate::events::Events;
use crate::images::Images;
use crate::model::PodId;
use crate::node::NodeCell;
use crate::objects::Objects;
use crate::pod::table::{Message, Table};
use crate::volumes::token::Tokens;
use crate::{Error, KubeletConfig, logs, node, pleg, server};

/// Where pods' things are kept.
pub struct Dirs {
    root: PathBuf,
    logs: PathBuf,
}

impl Dirs {
    fn new(root: PathBuf) -> Self {
        let logs = root.parent().unwrap_or(&root).join("pod-logs");
        Self { root, logs }
    }

    /// Everything of all pods.
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// Everything of one pod.
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// Log files of one pod's containers.
    pub fn logs(&self, id: &PodId) -> PathBuf {
        self.logs.join(format!("{}_{}_{}", id.namespace, id.name, id.uid))
    }

    /// Log files of all pods.
    pub fn all_logs(&self) -> &PathBuf {
        &self.logs
    }
}

/// What the parts of the kubelet share.
pub struct Kubelet {
    /// What the kubelet was told.
    pub config: KubeletConfig,
    /// The runtime.
    pub cri: Cri,
    /// Writes events.
    pub events: Events,
    /// This node's object.
    pub node: NodeCell,
    /// All services, for the variables that tell pods of them.
    pub services: coxswain_client::Informer<Service>,
    /// ConfigMaps pods refer to.
    pub config_maps: Arc<Objects<ConfigMap>>,
    /// Secrets pods refer to.
    pub secrets: Arc<Objects<Secret>>,
    /// Images and their pulls.
    pub images: Images,
    /// Service account tokens of pods.
    pub tokens: Tokens,
    /// Directories.
    pub dirs: Dirs,
    /// Cgroups of pods.
    pub cgroups: Cgroups,
    /// How many pods are brought up at a time.
    pub slots: Arc<Semaphore>,
    /// The pods.
    pub table: Table,
    /// Addresses of the node as text.
    pub host_ips: Vec<String>,
    /// Ids of containers that have just ended.
    pub stopped: broadcast::Sender<String>,
    /// Ends everything.
    pub cancel: CancellationToken,
    runtime_name: OnceLock<String>,
}

impl Kubelet {
    fn new(config: KubeletConfig, factory: &InformerFactory, cancel: CancellationToken) -> Arc<Self> {
        let client = config.client.clone();
        let recorder = Recorder::new(client.clone(), "kubelet", &config.node_name, cancel.clone());
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Arc::new_cyclic(|kubelet: &std::sync::Weak<Self>| {
            let weak = kubelet.clone();
            let on_change: crate::objects::OnChange = Arc::new(move |uid: &str| {
                if let Some(kubelet) = weak.upgrade() {
                    kubelet.table.tell(uid, Message::Objects);
                }
            });
            Self {
                cri: Cri::new(&config.cri_socket),
                events: Events::new(recorder, &config.node_name),
                node: NodeCell::new(&config),
                services: factory.informer(),
                config_maps: Arc::new(Objects::new(client.clone(), on_change.clone())),
                secrets: Arc::new(Objects::new(client, on_change)),
                images: Images::default(),
                tokens: Tokens::default(),
                dirs: Dirs::new(config.root_dir.clone()),
                cgroups: Cgroups::detect(&config.cgroup_root),
                slots: Arc::new(Semaphore::new(cores + 1)),
                table: Table::new(kubelet.clone()),
                host_ips: vec![config.node_ip.to_string()],
                cancel,
                stopped: broadcast::channel(256).0,
                runtime_name: OnceLock::new(),
                config,
            }
        })
    }

    /// Name of the runtime, the scheme of container ids.
    pub fn runtime_name(&self) -> &str {
        self.runtime_name.get().map_or("cri", String::as_str)
    }

    /// Ends a pod's interest in ConfigMaps, Secrets and tokens.
    pub fn release_objects(&self, uid: &str) {
        self.config_maps.release(uid);
        self.secrets.release(uid);
        self.tokens.release(uid);
    }

    /// Waits until the runtime answers; its name is needed for every status.
    async fn meet_runtime(&self) {
        loop {
            match self.cri.version().await {
                Ok(version) => {
                    let _ = self.runtime_name.set(version.runtime_name);
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, "the container runtime does not answer yet");
                    // The socket cannot be watched before it exists: knock until it opens.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

/// Runs the kubelet until `cancel`. Pods keep running when it returns.
///
/// # Errors
/// When its directories cannot be made or the node API cannot be served.
pub async fn run(config: KubeletConfig, cancel: CancellationToken) -> Result<(), Error> {
    let cancel = cancel.child_token();
    let _end = cancel.clone().drop_guard();
    let factory = InformerFactory::new(config.client.clone(), cancel.clone());
    let kubelet = Kubelet::new(config, &factory, cancel.clone());
    for path in [kubelet.dirs.pods(), kubelet.dirs.all_logs().clone()] {
        std::fs::create_dir_all(&path).map_err(|source| Error::Directory { path, source })?;
    }
    let node_api = server::Server::bind(kubelet.clone()).await?;
    kubelet.events.node(EventType::Normal, "Starting", "Starting kubelet.");
    let work = async {
        tokio::join!(
            node::run(kubelet.clone(), &factory),
            pleg::run(kubelet.clone()),
            watch_pods(kubelet.clone(), &factory),
            logs::rotate(kubelet.clone()),
            node_api.serve(),
        )
    };
    cancel.run_until_cancelled(work).await;
    kubelet.table.closed().await;
    if kubelet.table.pods().is_empty()
        && let Err(error) = kubelet.cgroups.remove_all()
    {
        tracing::debug!(%error, "cgroups of a node without pods are left");
    }
    factory.closed().await;
    Ok(())
}

/// Gives every pod of the node its worker, and ends what the runtime has of pods that are gone.
async fn watch_pods(kubelet: Arc<Kubelet>, factory: &InformerFactory) {
    let selector = format!("spec.nodeName={}", kubelet.config.node_name);
    let pods = factory.informer_by_fields::<Pod>(&selector);
    tokio::join!(kubelet.meet_runtime(), pods.synced(), kubelet.node.known());
    let mut changes = pods.subscribe();
    for pod in pods.list() {
        take(&kubelet, &pod).await;
    }
    pleg::end_orphans(&kubelet).await;
    while let Some(change) = changes.recv().await {
        match change {
            Change::Added(pod) => take(&kubelet, &pod).await,
            Change::Updated { old, new } if PodId::of(&old) == PodId::of(&new) => kubelet.table.set(&new),
            Change::Updated { old, new } => {
                kubelet.table.tell(&PodId::of(&old).uid, Message::Gone);
                take(&kubelet, &new).await;
            }
            Change::Deleted(pod) => {
                kubelet.table.set(&pod);
                kubelet.table.tell(&PodId::of(&pod).uid, Message::Gone);
            }
        }
    }
}

/// Takes a pod. The scheduler may have seen a label of the node before its kubelet: nothing is rejected on old knowledge.
async fn take(kubelet: &Kubelet, pod: &Arc<Pod>) {
    if kubelet.table.rejects(pod) {
        node::refresh(kubelet).await;
    }
    kubelet.table.set(pod);
}
