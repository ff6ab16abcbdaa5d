//! The container runtime behind its socket: one lazily connected channel, the calls the kubelet makes, and their time limits.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use coxswain_cri::v1;
use coxswain_cri::v1::image_service_client::ImageServiceClient;
use coxswain_cri::v1::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use crate::model::{self, ContainerRecord, POD_UID, PodRuntime};

const CALL: Duration = Duration::from_secs(120);
const SANDBOX: Duration = Duration::from_secs(240);
const LARGEST_MESSAGE: usize = 16 << 20;

/// A handle on the runtime.
#[derive(Clone)]
pub struct Cri {
    channel: Channel,
}

fn within<T>(limit: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

/// What a runtime's error says, without the code.
pub fn text(status: &Status) -> String {
    if status.message().is_empty() {
        status.code().description().to_owned()
    } else {
        status.message().to_owned()
    }
}

impl Cri {
    /// A handle on the runtime at a unix socket; connects when first used, and again whenever the connection broke.
    pub fn new(socket: &Path) -> Self {
        let socket = socket.to_owned();
        let channel = Endpoint::from_static("http://cri.localhost").connect_with_connector_lazy(
            tower::service_fn(move |_: http::Uri| {
                let socket = socket.clone();
                async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
            }),
        );
        Self { channel }
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_MESSAGE)
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_MESSAGE)
    }

    /// Name and version of the runtime.
    pub async fn version(&self) -> Result<v1::VersionResponse, Status> {
        let request = v1::VersionRequest { version: "v1".to_owned() };
        Ok(self.runtime().version(within(CALL, request)).await?.into_inner())
    }

    /// Conditions of the runtime (`RuntimeReady`, `NetworkReady`).
    pub async fn status(&self) -> Result<v1::StatusResponse, Status> {
        Ok(self.runtime().status(within(CALL, v1::StatusRequest { verbose: false })).await?.into_inner())
    }

    /// The stream of container events.
    pub async fn events(&self) -> Result<Streaming<v1::ContainerEventResponse>, Status> {
        Ok(self.runtime().get_container_events(v1::GetEventsRequest {}).await?.into_inner())
    }

    /// Sandboxes, all or those of one pod.
    pub async fn sandboxes(&self, pod_uid: Option<&str>) -> Result<Vec<v1::PodSandbox>, Status> {
        let filter =
            pod_uid.map(|uid| v1::PodSandboxFilter { label_selector: by_uid(uid), ..Default::default() });
        let request = v1::ListPodSandboxRequest { filter };
        Ok(self.runtime().list_pod_sandbox(within(CALL, request)).await?.into_inner().items)
    }

    /// Containers, all or those of one pod.
    pub async fn containers(&self, pod_uid: Option<&str>) -> Result<Vec<v1::Container>, Status> {
        let filter =
            pod_uid.map(|uid| v1::ContainerFilter { label_selector: by_uid(uid), ..Default::default() });
        let request = v1::ListContainersRequest { filter };
        Ok(self.runtime().list_containers(within(CALL, request)).await?.into_inner().containers)
    }

    /// The status of one container; `None` when it is gone.
    pub async fn container_status(&self, id: &str) -> Result<Option<v1::ContainerStatus>, Status> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        gone(self.runtime().container_status(within(CALL, request)).await.map(|r| r.into_inner().status))
    }

    async fn sandbox_status(&self, id: &str) -> Result<Option<v1::PodSandboxStatus>, Status> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        gone(self.runtime().pod_sandbox_status(within(CALL, request)).await.map(|r| r.into_inner().status))
    }

    /// All of a pod. What `known` already tells (addresses, ended containers) is not asked again.
    pub async fn pod(&self, uid: &str, known: &PodRuntime) -> Result<PodRuntime, Status> {
        let (sandboxes, containers) =
            futures::future::try_join(self.sandboxes(Some(uid)), self.containers(Some(uid))).await?;
        let mut pod = PodRuntime::default();
        for listed in &sandboxes {
            let old = known.sandboxes.iter().find(|s| s.id == listed.id && !s.ips.is_empty());
            let ips = match old {
                Some(old) => old.ips.clone(),
                None => {
                    self.sandbox_status(&listed.id).await?.map(|s| model::sandbox_ips(&s)).unwrap_or_default()
                }
            };
            pod.sandboxes.push(model::sandbox_record(listed, ips));
        }
        for listed in &containers {
            let old = known.containers.iter().find(|c| c.id == listed.id && same_state(c, listed));
            match old {
                Some(old) => pod.containers.push(old.clone()),
                None => {
                    if let Some(status) = self.container_status(&listed.id).await? {
                        pod.containers.push(model::container_record(listed, status));
                    }
                }
            }
        }
        pod.sort();
        Ok(pod)
    }

    /// Makes a sandbox and returns its id.
    pub async fn run_sandbox(&self, config: v1::PodSandboxConfig, handler: String) -> Result<String, Status> {
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: handler };
        Ok(self.runtime().run_pod_sandbox(within(SANDBOX, request)).await?.into_inner().pod_sandbox_id)
    }

    /// Stops a sandbox and everything in it; a gone one is stopped.
    pub async fn stop_sandbox(&self, id: &str) -> Result<(), Status> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone(self.runtime().stop_pod_sandbox(within(SANDBOX, request)).await.map(|_| Some(()))).map(|_| ())
    }

    /// Removes a sandbox and everything in it; a gone one is removed.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), Status> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone(self.runtime().remove_pod_sandbox(within(SANDBOX, request)).await.map(|_| Some(()))).map(|_| ())
    }

    /// Makes a container and returns its id.
    pub async fn create_container(
        &self,
        sandbox_id: &str,
        config: v1::ContainerConfig,
        sandbox: v1::PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox),
        };
        Ok(self.runtime().create_container(within(SANDBOX, request)).await?.into_inner().container_id)
    }

    /// Changes what a running container may use.
    pub async fn update_resources(
        &self,
        id: &str,
        resources: v1::LinuxContainerResources,
    ) -> Result<(), Status> {
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(resources),
            ..Default::default()
        };
        self.runtime().update_container_resources(within(CALL, request)).await.map(|_| ())
    }

    /// Starts a container's process.
    pub async fn start_container(&self, id: &str) -> Result<(), Status> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        self.runtime().start_container(within(SANDBOX, request)).await.map(|_| ())
    }

    /// Stops a container: its stop signal, and SIGKILL after `grace_seconds`. A gone one is stopped.
    pub async fn stop_container(&self, id: &str, grace_seconds: i64) -> Result<(), Status> {
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout: grace_seconds };
        let limit = CALL + Duration::from_secs(grace_seconds.max(0).unsigned_abs());
        gone(self.runtime().stop_container(within(limit, request)).await.map(|_| Some(()))).map(|_| ())
    }

    /// Removes a container; a gone one is removed.
    pub async fn remove_container(&self, id: &str) -> Result<(), Status> {
        let request = v1::RemoveContainerRequest { container_id: id.to_owned() };
        gone(self.runtime().remove_container(within(CALL, request)).await.map(|_| Some(()))).map(|_| ())
    }

    /// Runs a command in a container and returns its exit code and output.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        limit: Duration,
    ) -> Result<v1::ExecSyncResponse, Status> {
        let timeout = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
        let request = v1::ExecSyncRequest { container_id: id.to_owned(), cmd: command, timeout };
        // The runtime enforces the limit; ours only guards against a runtime that does not.
        let guard = limit.saturating_add(Duration::from_secs(10)).min(Duration::from_secs(86_400));
        Ok(self.runtime().exec_sync(within(guard, request)).await?.into_inner())
    }

    /// Where to stream an exec session.
    pub async fn exec(&self, request: v1::ExecRequest) -> Result<String, Status> {
        Ok(self.runtime().exec(within(CALL, request)).await?.into_inner().url)
    }

    /// Where to stream an attached session.
    pub async fn attach(&self, request: v1::AttachRequest) -> Result<String, Status> {
        Ok(self.runtime().attach(within(CALL, request)).await?.into_inner().url)
    }

    /// Where to stream forwarded ports.
    pub async fn port_forward(&self, request: v1::PortForwardRequest) -> Result<String, Status> {
        Ok(self.runtime().port_forward(within(CALL, request)).await?.into_inner().url)
    }

    /// Opens a container's log file anew after it was moved away.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Status> {
        let request = v1::ReopenContainerLogRequest { container_id: id.to_owned() };
        self.runtime().reopen_container_log(within(CALL, request)).await.map(|_| ())
    }

    /// Statistics of all sandboxes with their containers.
    pub async fn sandbox_stats(&self) -> Result<Vec<v1::PodSandboxStats>, Status> {
        let request = v1::ListPodSandboxStatsRequest { filter: None };
        Ok(self.runtime().list_pod_sandbox_stats(within(CALL, request)).await?.into_inner().stats)
    }

    /// Tells the runtime the node's pod subnet.
    pub async fn set_pod_cidr(&self, pod_cidr: &str) -> Result<(), Status> {
        let network_config = Some(v1::NetworkConfig { pod_cidr: pod_cidr.to_owned() });
        let request =
            v1::UpdateRuntimeConfigRequest { runtime_config: Some(v1::RuntimeConfig { network_config }) };
        self.runtime().update_runtime_config(within(CALL, request)).await.map(|_| ())
    }

    /// The image, if the node has it.
    pub async fn image(&self, image: v1::ImageSpec) -> Result<Option<v1::Image>, Status> {
        let request = v1::ImageStatusRequest { image: Some(image), verbose: false };
        gone(self.images().image_status(within(CALL, request)).await.map(|r| r.into_inner().image))
    }

    /// All images of the node.
    pub async fn list_images(&self) -> Result<Vec<v1::Image>, Status> {
        let request = v1::ListImagesRequest { filter: None };
        Ok(self.images().list_images(within(CALL, request)).await?.into_inner().images)
    }

    /// Pulls an image and returns the reference to create containers with. Pulls have no time limit.
    pub async fn pull(&self, image: v1::ImageSpec, auth: Option<v1::AuthConfig>) -> Result<String, Status> {
        let request = v1::PullImageRequest { image: Some(image), auth, sandbox_config: None };
        Ok(self.images().pull_image(request).await?.into_inner().image_ref)
    }
}

fn by_uid(uid: &str) -> HashMap<String, String> {
    HashMap::from([(POD_UID.to_owned(), uid.to_owned())])
}

fn gone<T>(answer: Result<Option<T>, Status>) -> Result<Option<T>, Status> {
    match answer {
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        other => other,
    }
}

fn same_state(record: &ContainerRecord, listed: &v1::Container) -> bool {
    use crate::model::State;
    use coxswain_cri::v1::ContainerState::{ContainerExited, ContainerRunning};
    matches!(
        (record.state, listed.state()),
        (State::Exited, ContainerExited) | (State::Running, ContainerRunning)
    )
}
