//! CRI's `RuntimeService`.

use std::pin::Pin;
use std::sync::Arc;

use coxswain_cri::v1::runtime_service_server::RuntimeService;
use coxswain_cri::v1::*;
use futures::Stream;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status};

use super::{Service, labels_match};
use crate::container::Container;
use crate::error::{RuntimeError, during};
use crate::sandbox::Sandbox;
use crate::streaming::Ticket;
use crate::{exec, files, stats};

const API_VERSION: &str = "v1";

impl Service {
    /// A container with its sandbox.
    fn container(&self, id: &str) -> Result<(Arc<Container>, Arc<Sandbox>), RuntimeError> {
        let container = self.0.container(id)?;
        let sandbox = self.0.sandbox(&container.record.sandbox)?;
        Ok((container, sandbox))
    }

    /// A running container, for exec and attach.
    fn running(&self, id: &str) -> Result<Arc<Container>, RuntimeError> {
        let (container, _) = self.container(id)?;
        if container.pid().is_none() {
            let state = container.state().as_str_name();
            return Err(RuntimeError::Precondition(format!("container is in {state} state")));
        }
        Ok(container)
    }

    async fn container_stats_of(
        &self,
        wanted: Vec<Arc<Container>>,
    ) -> Result<Vec<ContainerStats>, RuntimeError> {
        let read = move || wanted.iter().map(|container| stats::container(container)).collect();
        let read = tokio::task::spawn_blocking(read).await.map_err(std::io::Error::from);
        read.map_err(during("reading statistics"))
    }

    async fn sandbox_stats_of(&self, sandbox: Arc<Sandbox>) -> Result<PodSandboxStats, RuntimeError> {
        let mut containers = self.0.containers_of(&sandbox.id);
        containers.retain(|container| container.pid().is_some());
        let containers = self.container_stats_of(containers).await?;
        Ok(stats::sandbox(&sandbox, containers))
    }
}

fn condition(r#type: &str, problem: Option<(&str, String)>) -> RuntimeCondition {
    let (reason, message) = problem.clone().unwrap_or_default();
    RuntimeCondition {
        r#type: r#type.to_owned(),
        status: problem.is_none(),
        reason: reason.to_owned(),
        message,
    }
}

#[tonic::async_trait]
impl RuntimeService for Service {
    type GetContainerEventsStream =
        Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "coxswain".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: API_VERSION.to_owned(),
        }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let network = self.0.config.network.ready().await.err();
        let network =
            network.map(|error| ("NetworkPluginNotReady", format!("Network plugin returns error: {error}")));
        let handler = RuntimeHandler {
            name: String::new(),
            features: Some(RuntimeHandlerFeatures {
                recursive_read_only_mounts: true,
                user_namespaces: true,
            }),
        };
        Ok(Response::new(StatusResponse {
            status: Some(RuntimeStatus {
                conditions: vec![condition("RuntimeReady", None), condition("NetworkReady", network)],
            }),
            info: Default::default(),
            runtime_handlers: vec![handler],
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
            }),
        }))
    }

    async fn runtime_config(
        &self,
        _: Request<RuntimeConfigRequest>,
    ) -> Result<Response<RuntimeConfigResponse>, Status> {
        let linux = LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs.into() };
        Ok(Response::new(RuntimeConfigResponse { linux: Some(linux) }))
    }

    async fn update_runtime_config(
        &self,
        _: Request<UpdateRuntimeConfigRequest>,
    ) -> Result<Response<UpdateRuntimeConfigResponse>, Status> {
        // The pod CIDR is the network's business, which learns it from the API.
        Ok(Response::new(UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Result<Response<RunPodSandboxResponse>, Status> {
        let request = request.into_inner();
        let sandbox =
            Sandbox::run(&self.0, request.config.unwrap_or_default(), request.runtime_handler).await?;
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id: sandbox.id.clone() }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Result<Response<StopPodSandboxResponse>, Status> {
        if let Ok(sandbox) = self.0.sandbox(&request.into_inner().pod_sandbox_id) {
            sandbox.stop(&self.0).await?;
        }
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Result<Response<RemovePodSandboxResponse>, Status> {
        if let Ok(sandbox) = self.0.sandbox(&request.into_inner().pod_sandbox_id) {
            sandbox.remove(&self.0).await?;
        }
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Result<Response<PodSandboxStatusResponse>, Status> {
        let sandbox = self.0.sandbox(&request.into_inner().pod_sandbox_id)?;
        let containers = self.0.containers_of(&sandbox.id);
        Ok(Response::new(PodSandboxStatusResponse {
            status: Some(sandbox.status()),
            info: Default::default(),
            containers_statuses: containers.iter().map(|container| container.status()).collect(),
            timestamp: files::now_nanos(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let mut items: Vec<PodSandbox> = self.0.sandboxes().iter().map(|sandbox| sandbox.summary()).collect();
        items.retain(|item| {
            item.id.starts_with(&filter.id)
                && filter.state.is_none_or(|state| state.state == item.state)
                && labels_match(&item.labels, &filter.label_selector)
        });
        items.sort_by_key(|item| std::cmp::Reverse(item.created_at));
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<UpdatePodSandboxResourcesResponse>, Status> {
        // The pod's own cgroup is the kubelet's; there is nothing of it to adjust here.
        self.0.sandbox(&request.into_inner().pod_sandbox_id)?;
        Ok(Response::new(UpdatePodSandboxResourcesResponse {}))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        let request = request.into_inner();
        let sandbox = self.0.sandbox(&request.pod_sandbox_id)?;
        let container = Container::create(&self.0, &sandbox, request.config.unwrap_or_default()).await?;
        Ok(Response::new(CreateContainerResponse { container_id: container.id.clone() }))
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Result<Response<StartContainerResponse>, Status> {
        let (container, sandbox) = self.container(&request.into_inner().container_id)?;
        container.start(&self.0, &sandbox).await?;
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Result<Response<StopContainerResponse>, Status> {
        let request = request.into_inner();
        if let Ok((container, sandbox)) = self.container(&request.container_id) {
            container.stop(&self.0, &sandbox, request.timeout).await?;
        }
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Result<Response<RemoveContainerResponse>, Status> {
        if let Ok((container, sandbox)) = self.container(&request.into_inner().container_id) {
            container.remove(&self.0, &sandbox).await?;
        }
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let mut containers: Vec<_> =
            self.0.containers().iter().map(|container| container.summary()).collect();
        containers.retain(|item| {
            item.id.starts_with(&filter.id)
                && item.pod_sandbox_id.starts_with(&filter.pod_sandbox_id)
                && filter.state.is_none_or(|state| state.state == item.state)
                && labels_match(&item.labels, &filter.label_selector)
        });
        containers.sort_by_key(|item| std::cmp::Reverse(item.created_at));
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Result<Response<ContainerStatusResponse>, Status> {
        let container = self.0.container(&request.into_inner().container_id)?;
        Ok(Response::new(ContainerStatusResponse {
            status: Some(container.status()),
            info: Default::default(),
        }))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Result<Response<UpdateContainerResourcesResponse>, Status> {
        let request = request.into_inner();
        self.0.container(&request.container_id)?.update(request.linux.unwrap_or_default())?;
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Result<Response<ReopenContainerLogResponse>, Status> {
        let (container, sandbox) = self.container(&request.into_inner().container_id)?;
        if container.pid().is_none() {
            return Err(RuntimeError::Precondition("container is not running".to_owned()).into());
        }
        sandbox.shim.reopen_log(&container.id).await.map_err(RuntimeError::from)?;
        Ok(Response::new(ReopenContainerLogResponse {}))
    }

    async fn exec_sync(
        &self,
        request: Request<ExecSyncRequest>,
    ) -> Result<Response<ExecSyncResponse>, Status> {
        let request = request.into_inner();
        let (container, sandbox) = self.container(&request.container_id)?;
        let done = exec::run(&container, &sandbox, &request.cmd, request.timeout).await?;
        Ok(Response::new(ExecSyncResponse {
            stdout: done.stdout,
            stderr: done.stderr,
            exit_code: done.exit_code,
        }))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Result<Response<ExecResponse>, Status> {
        let request = request.into_inner();
        self.running(&request.container_id)?;
        if request.tty && request.stderr {
            return Err(RuntimeError::Invalid("tty and stderr cannot both be true".to_owned()).into());
        }
        Ok(Response::new(ExecResponse { url: self.0.streaming.issue(Ticket::Exec(request)) }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        let request = request.into_inner();
        self.running(&request.container_id)?;
        Ok(Response::new(AttachResponse { url: self.0.streaming.issue(Ticket::Attach(request)) }))
    }

    async fn port_forward(
        &self,
        request: Request<PortForwardRequest>,
    ) -> Result<Response<PortForwardResponse>, Status> {
        let request = request.into_inner();
        let sandbox = self.0.sandbox(&request.pod_sandbox_id)?;
        if !sandbox.is_ready() {
            return Err(RuntimeError::Precondition(format!("sandbox {:?} is not ready", sandbox.id)).into());
        }
        Ok(Response::new(PortForwardResponse { url: self.0.streaming.issue(Ticket::PortForward(request)) }))
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Result<Response<ContainerStatsResponse>, Status> {
        let container = self.0.container(&request.into_inner().container_id)?;
        let stats = self.container_stats_of(vec![container]).await?.pop();
        Ok(Response::new(ContainerStatsResponse { stats }))
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Result<Response<ListContainerStatsResponse>, Status> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let mut containers = self.0.containers();
        containers.retain(|container| {
            container.pid().is_some()
                && container.id.starts_with(&filter.id)
                && container.record.sandbox.starts_with(&filter.pod_sandbox_id)
                && labels_match(&container.config.labels, &filter.label_selector)
        });
        Ok(Response::new(ListContainerStatsResponse { stats: self.container_stats_of(containers).await? }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Result<Response<PodSandboxStatsResponse>, Status> {
        let sandbox = self.0.sandbox(&request.into_inner().pod_sandbox_id)?;
        Ok(Response::new(PodSandboxStatsResponse { stats: Some(self.sandbox_stats_of(sandbox).await?) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Result<Response<ListPodSandboxStatsResponse>, Status> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let mut stats = Vec::new();
        for sandbox in self.0.sandboxes() {
            let fits = sandbox.is_ready()
                && sandbox.id.starts_with(&filter.id)
                && labels_match(&sandbox.config.labels, &filter.label_selector);
            if fits {
                stats.push(self.sandbox_stats_of(sandbox).await?);
            }
        }
        Ok(Response::new(ListPodSandboxStatsResponse { stats }))
    }

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        let events = BroadcastStream::new(self.0.subscribe());
        // A listener that lagged must list anew: ending the stream tells it so.
        let events = events.map(|event| event.map_err(|lagged| Status::data_loss(lagged.to_string())));
        let cancel = self.0.cancel.clone();
        let events = futures::StreamExt::take_until(events, cancel.cancelled_owned());
        Ok(Response::new(Box::pin(events)))
    }
}
