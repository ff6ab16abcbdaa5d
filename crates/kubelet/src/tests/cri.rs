//! A runtime of paper: sandboxes and containers are records, and a test says when a process ends.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coxswain_cri::v1::image_service_server::{ImageService, ImageServiceServer};
use coxswain_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use coxswain_cri::v1::*;
use tokio::net::UnixListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{BroadcastStream, UnixListenerStream};
use tonic::{Request, Response, Status};

#[derive(Default)]
struct State {
    sandboxes: Vec<(PodSandbox, PodSandboxConfig)>,
    containers: Vec<(Container, ContainerStatus)>,
    serial: u32,
    clock: i64,
}

/// The runtime; clones are the same one.
#[derive(Clone)]
pub struct FakeCri {
    state: Arc<Mutex<State>>,
    events: tokio::sync::broadcast::Sender<ContainerEventResponse>,
}

impl FakeCri {
    /// Serves the runtime at a socket until the test ends.
    pub fn serve(socket: &Path) -> Self {
        let fake = Self { state: Arc::default(), events: tokio::sync::broadcast::channel(256).0 };
        let listener = UnixListenerStream::new(UnixListener::bind(socket).expect("a socket"));
        let server = tonic::transport::Server::builder()
            .add_service(RuntimeServiceServer::new(fake.clone()))
            .add_service(ImageServiceServer::new(fake.clone()));
        tokio::spawn(async move { server.serve_with_incoming(listener).await });
        fake
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of running containers, sorted.
    pub fn running(&self) -> Vec<String> {
        let state = self.state();
        let running = state.containers.iter().filter(|(c, _)| c.state() == ContainerState::ContainerRunning);
        let mut names: Vec<String> =
            running.map(|(c, _)| c.metadata.clone().unwrap_or_default().name).collect();
        names.sort();
        names
    }

    /// How many sandboxes and containers there are.
    pub fn count(&self) -> (usize, usize) {
        let state = self.state();
        (state.sandboxes.len(), state.containers.len())
    }

    /// The process of a container ends.
    pub fn exit(&self, name: &str, code: i32) {
        let id = {
            let state = self.state();
            let running = |c: &Container| {
                c.state() == ContainerState::ContainerRunning
                    && c.metadata.as_ref().is_some_and(|m| m.name == name)
            };
            state.containers.iter().find(|(c, _)| running(c)).map(|(c, _)| c.id.clone())
        };
        self.set(&id.expect("a running container"), ContainerState::ContainerExited, code);
    }

    fn set(&self, id: &str, to: ContainerState, code: i32) {
        let mut state = self.state();
        state.clock += 1_000_000;
        let now = now() + state.clock;
        let Some((container, status)) = state.containers.iter_mut().find(|(c, _)| c.id == id) else { return };
        if container.state() == ContainerState::ContainerExited {
            return;
        }
        container.state = to.into();
        status.state = to.into();
        let kind = if to == ContainerState::ContainerRunning {
            status.started_at = now;
            ContainerEventType::ContainerStartedEvent
        } else {
            (status.finished_at, status.exit_code) = (now, code);
            ContainerEventType::ContainerStoppedEvent
        };
        let sandbox_id = container.pod_sandbox_id.clone();
        let sandbox = state.sandboxes.iter().find(|(s, _)| s.id == sandbox_id);
        let pod_sandbox_status =
            sandbox.map(|(s, _)| PodSandboxStatus { metadata: s.metadata.clone(), ..Default::default() });
        let _ = self.events.send(ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: now,
            pod_sandbox_status,
            containers_statuses: Vec::new(),
        });
    }
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).expect("before the year 2262")
}

fn selected(labels: &HashMap<String, String>, selector: Option<&HashMap<String, String>>) -> bool {
    selector.is_none_or(|selector| selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

type Answer<T> = Result<Response<T>, Status>;

macro_rules! absent {
    ($($name:ident($request:ty) -> $response:ty;)*) => {
        // Spelled out as `async_trait` would, which does not look into macros.
        $(fn $name<'a, 'f>(
            &'a self,
            _: Request<$request>,
        ) -> std::pin::Pin<Box<dyn Future<Output = Answer<$response>> + Send + 'f>>
        where
            'a: 'f,
            Self: 'f,
        {
            Box::pin(std::future::ready(Err(Status::unimplemented(stringify!($name)))))
        })*
    };
}

#[tonic::async_trait]
impl RuntimeService for FakeCri {
    type GetContainerEventsStream =
        std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(VersionResponse {
            runtime_name: "fake".to_owned(),
            runtime_version: "1".to_owned(),
            ..Default::default()
        }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
        let condition =
            |type_: &str| RuntimeCondition { r#type: type_.to_owned(), status: true, ..Default::default() };
        let conditions = vec![condition("RuntimeReady"), condition("NetworkReady")];
        Ok(Response::new(StatusResponse { status: Some(RuntimeStatus { conditions }), ..Default::default() }))
    }

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let events = BroadcastStream::new(self.events.subscribe()).filter_map(Result::ok).map(Ok);
        Ok(Response::new(Box::pin(events)))
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let config = request.into_inner().config.unwrap_or_default();
        let mut state = self.state();
        state.serial += 1;
        let id = format!("sandbox{}", state.serial);
        let sandbox = PodSandbox {
            id: id.clone(),
            metadata: config.metadata.clone(),
            created_at: now(),
            labels: config.labels.clone(),
            ..Default::default()
        };
        state.sandboxes.push((sandbox, config));
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id: id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        for (sandbox, _) in self.state().sandboxes.iter_mut().filter(|(s, _)| s.id == id) {
            sandbox.state = PodSandboxState::SandboxNotready.into();
        }
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let mut state = self.state();
        state.sandboxes.retain(|(s, _)| s.id != id);
        state.containers.retain(|(c, _)| c.pod_sandbox_id != id);
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let state = self.state();
        let found = state.sandboxes.iter().find(|(s, _)| s.id == id);
        let (sandbox, _) = found.ok_or_else(|| Status::not_found("no such sandbox"))?;
        let network =
            Some(PodSandboxNetworkStatus { ip: "10.42.0.9".to_owned(), additional_ips: Vec::new() });
        let status =
            PodSandboxStatus { id, metadata: sandbox.metadata.clone(), network, ..Default::default() };
        Ok(Response::new(PodSandboxStatusResponse { status: Some(status), ..Default::default() }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        let filter = request.into_inner().filter;
        let selector = filter.as_ref().map(|f| &f.label_selector);
        let state = self.state();
        let items = state.sandboxes.iter().map(|(s, _)| s).filter(|s| selected(&s.labels, selector));
        Ok(Response::new(ListPodSandboxResponse { items: items.cloned().collect() }))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.unwrap_or_default();
        let mut state = self.state();
        state.serial += 1;
        let id = format!("container{}", state.serial);
        let container = Container {
            id: id.clone(),
            pod_sandbox_id: request.pod_sandbox_id,
            metadata: config.metadata.clone(),
            created_at: now(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            ..Default::default()
        };
        let status = ContainerStatus {
            id: id.clone(),
            metadata: config.metadata,
            created_at: container.created_at,
            image: config.image,
            image_ref: "sha256:image".to_owned(),
            labels: config.labels,
            annotations: config.annotations,
            mounts: config.mounts,
            ..Default::default()
        };
        state.containers.push((container, status));
        Ok(Response::new(CreateContainerResponse { container_id: id }))
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        self.set(&request.into_inner().container_id, ContainerState::ContainerRunning, 0);
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        self.set(&request.into_inner().container_id, ContainerState::ContainerExited, 143);
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        self.state().containers.retain(|(c, _)| c.id != id);
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        let filter = request.into_inner().filter;
        let selector = filter.as_ref().map(|f| &f.label_selector);
        let state = self.state();
        let containers = state.containers.iter().map(|(c, _)| c).filter(|c| selected(&c.labels, selector));
        Ok(Response::new(ListContainersResponse { containers: containers.cloned().collect() }))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        let id = request.into_inner().container_id;
        let state = self.state();
        let found = state.containers.iter().find(|(c, _)| c.id == id);
        let (_, status) = found.ok_or_else(|| Status::not_found("no such container"))?;
        Ok(Response::new(ContainerStatusResponse { status: Some(status.clone()), ..Default::default() }))
    }

    /// A command's exit code is its first argument.
    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let exit_code = request.into_inner().cmd.get(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Ok(Response::new(ExecSyncResponse { exit_code, ..Default::default() }))
    }

    absent! {
        update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        exec(ExecRequest) -> ExecResponse;
        attach(AttachRequest) -> AttachResponse;
        port_forward(PortForwardRequest) -> PortForwardResponse;
        container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
        update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
    }
}

#[tonic::async_trait]
impl ImageService for FakeCri {
    async fn list_images(&self, _: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        Ok(Response::new(ListImagesResponse { images: Vec::new() }))
    }

    /// Every image is there, but those named `missing`.
    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let image = (!name.starts_with("missing")).then(|| Image { id: name, ..Default::default() });
        Ok(Response::new(ImageStatusResponse { image, ..Default::default() }))
    }

    async fn pull_image(&self, _: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        Err(Status::not_found("no such image"))
    }

    absent! {
        remove_image(RemoveImageRequest) -> RemoveImageResponse;
        image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
    }
}
