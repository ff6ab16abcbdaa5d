//! Containers: created (snapshot and specification), started by the sandbox's shim, stopped with grace,
//! removed. Their fate is what the shim wrote on disk; memory only remembers it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coxswain_cri::v1::{
    self, ContainerConfig, ContainerEventType, ContainerState, LinuxContainerResources, NamespaceMode,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::sync::watch;

use crate::error::{RuntimeError, during};
use crate::files;
use crate::image::ImageRecord;
use crate::records::{self, ContainerRecord};
use crate::runtime::{Runtime, fresh_id, lock};
use crate::sandbox::Sandbox;
use crate::shim::client::{STATUS_FILE, ShimError};
use crate::shim::protocol::{ExitStatus, ProcessStatus, StartRequest};
use crate::snapshot::{self, Snapshot};
use crate::spec::{self, Accounts, SpecInput};

/// How long SIGKILL may take.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// What a start that failed counts as, as with containerd.
const START_ERROR_CODE: i32 = 128;

/// Exit code of a container whose end nobody saw.
const UNKNOWN_EXIT_CODE: i32 = 255;

/// A container.
pub(crate) struct Container {
    pub id: String,
    pub config: ContainerConfig,
    pub record: ContainerRecord,
    pub dir: PathBuf,
    /// `None` until it was started.
    process: watch::Sender<Option<ProcessStatus>>,
    /// Limits as they were last set.
    resources: Mutex<Option<LinuxContainerResources>>,
    /// Held while it changes from one state to another, so that events come in order.
    lifecycle: tokio::sync::Mutex<()>,
}

impl Container {
    /// Creates a container: directory, root file system, specification, record.
    pub async fn create(
        runtime: &Arc<Runtime>,
        sandbox: &Sandbox,
        config: ContainerConfig,
    ) -> Result<Arc<Self>, RuntimeError> {
        if !sandbox.is_ready() {
            return Err(RuntimeError::Precondition(format!(
                "sandbox container {:?} is not running",
                sandbox.id
            )));
        }
        if config.metadata.is_none() {
            return Err(RuntimeError::Invalid("container config must include metadata".to_owned()));
        }
        let id = fresh_id();
        let dir = runtime.config.root.join("containers").join(&id);
        let plan = Plan {
            runtime: runtime.clone(),
            sandbox: SandboxFacts::of(sandbox),
            target: target_pid(runtime, &config)?,
            id: id.clone(),
            dir: dir.clone(),
            config,
        };
        let made = tokio::task::spawn_blocking(move || plan.carry_out()).await;
        let made =
            made.map_err(|error| RuntimeError::Io { step: "creating a container", source: error.into() })?;
        let (config, record) = match made {
            Ok(made) => made,
            Err(error) => {
                discard(&dir);
                return Err(error);
            }
        };
        let container = runtime.insert_container(Self::new(id, dir, config, record, None));
        runtime.publish(&container.id, sandbox, ContainerEventType::ContainerCreatedEvent);
        Ok(container)
    }

    fn new(
        id: String,
        dir: PathBuf,
        config: ContainerConfig,
        record: ContainerRecord,
        process: Option<ProcessStatus>,
    ) -> Self {
        let resources = config.linux.as_ref().and_then(|linux| linux.resources.clone());
        Self {
            id,
            dir,
            config,
            record,
            process: watch::Sender::new(process),
            resources: Mutex::new(resources),
            lifecycle: tokio::sync::Mutex::default(),
        }
    }

    /// Reads a container back; a half-made one is removed.
    pub fn load(dir: &Path) -> Result<Option<Self>, RuntimeError> {
        let step = "reading a container";
        let record = records::read_record(dir).map_err(during(step))?;
        let (Some(record), Ok(config)) = (record, records::read_config(dir)) else {
            tracing::info!(dir = %dir.display(), "removing a half-made container");
            discard(dir);
            return Ok(None);
        };
        let process = files::read_json(&dir.join(STATUS_FILE)).map_err(during(step))?;
        let id = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        Ok(Some(Self::new(id, dir.to_owned(), config, record, process)))
    }

    /// Starts it. A failure is final: the container has then exited, and says why.
    pub async fn start(&self, runtime: &Arc<Runtime>, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        let _lifecycle = self.lifecycle.lock().await;
        if self.state() != ContainerState::ContainerCreated {
            let state = self.state().as_str_name();
            return Err(RuntimeError::Precondition(format!("container {:?} is in {state} state", self.id)));
        }
        let request = StartRequest {
            id: self.id.clone(),
            bundle: self.dir.clone(),
            log_path: self.record.log_path.clone(),
            tty: self.config.tty,
            stdin: self.config.stdin,
            stdin_once: self.config.stdin_once,
            cgroup: self.record.cgroup.clone(),
        };
        match sandbox.shim.start(request).await {
            Ok(_) => {
                self.publish_changes(runtime, sandbox);
                Ok(())
            }
            Err(error) => {
                self.end(START_ERROR_CODE, "StartError", &error.to_string());
                runtime.publish(&self.id, sandbox, ContainerEventType::ContainerStoppedEvent);
                Err(match error {
                    ShimError::Refused(message) => RuntimeError::Shim(ShimError::Refused(format!(
                        "failed to create containerd task: failed to start container {:?}: {message}",
                        self.id
                    ))),
                    other => other.into(),
                })
            }
        }
    }

    /// Takes up what the shim wrote.
    pub fn refresh(&self) {
        match files::read_json::<ProcessStatus>(&self.dir.join(STATUS_FILE)) {
            Ok(Some(status)) => drop(self.process.send_replace(Some(status))),
            Ok(None) => {}
            Err(error) => tracing::warn!(container = self.id, %error, "cannot read the container's status"),
        }
    }

    /// The shim reported a change.
    pub async fn changed(&self, runtime: &Runtime, sandbox: &Sandbox) {
        let _lifecycle = self.lifecycle.lock().await;
        self.publish_changes(runtime, sandbox);
    }

    /// Takes up what the shim wrote, and tells of each state it went through since.
    fn publish_changes(&self, runtime: &Runtime, sandbox: &Sandbox) {
        let before = self.state();
        self.refresh();
        let after = self.state();
        if before == ContainerState::ContainerCreated && after != before {
            runtime.publish(&self.id, sandbox, ContainerEventType::ContainerStartedEvent);
        }
        if after == ContainerState::ContainerExited && after != before {
            runtime.publish(&self.id, sandbox, ContainerEventType::ContainerStoppedEvent);
        }
    }

    /// The shim is gone: what it last wrote counts, and what still ran is over.
    pub fn lost(&self) {
        self.refresh();
        if self.state() == ContainerState::ContainerRunning {
            crate::cgroup::kill_all(&self.record.cgroup);
            self.end(UNKNOWN_EXIT_CODE, "Unknown", "");
        }
    }

    fn end(&self, exit_code: i32, reason: &str, message: &str) {
        let mut status = self.process.borrow().clone().unwrap_or_default();
        status.exit = Some(ExitStatus {
            exit_code,
            finished_at: files::now_nanos(),
            reason: reason.to_owned(),
            message: message.to_owned(),
        });
        if let Err(error) = files::write_json(&self.dir.join(STATUS_FILE), &status) {
            tracing::warn!(container = self.id, %error, "cannot write the container's status");
        }
        self.process.send_replace(Some(status));
    }

    /// Stops it: its stop signal, `grace_seconds` of patience, SIGKILL. May be repeated.
    pub async fn stop(
        &self,
        runtime: &Arc<Runtime>,
        sandbox: &Sandbox,
        grace_seconds: i64,
    ) -> Result<(), RuntimeError> {
        if grace_seconds > 0 && self.state() == ContainerState::ContainerRunning {
            self.signal(sandbox, self.record.stop_signal, false).await?;
            let grace = Duration::from_secs(grace_seconds.unsigned_abs());
            if tokio::time::timeout(grace, self.ended()).await.is_ok() {
                return Ok(());
            }
        }
        if self.state() != ContainerState::ContainerRunning {
            return Ok(());
        }
        self.signal(sandbox, Signal::SIGKILL as i32, true).await?;
        match tokio::time::timeout(KILL_PATIENCE, self.ended()).await {
            Ok(()) => Ok(()),
            Err(_) if runtime.cancel.is_cancelled() => Ok(()),
            Err(_) => Err(RuntimeError::TimedOut(format!("container {:?} does not die", self.id))),
        }
    }

    async fn signal(&self, sandbox: &Sandbox, signal: i32, all: bool) -> Result<(), RuntimeError> {
        match sandbox.shim.kill(&self.id, None, signal, all).await {
            // It ended in between, and its report is on the way.
            Err(ShimError::Refused(_)) => Ok(()),
            Err(ShimError::Gone(_)) => {
                self.lost();
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Resolves once it is no longer running.
    async fn ended(&self) {
        let mut process = self.process.subscribe();
        // The sender lives as long as `self`.
        let _ = process.wait_for(|process| process.as_ref().is_none_or(|p| p.exit.is_some())).await;
    }

    /// Removes it and every trace; a running one is killed first. May be repeated.
    pub async fn remove(&self, runtime: &Arc<Runtime>, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        self.stop(runtime, sandbox, 0).await?;
        let _lifecycle = self.lifecycle.lock().await;
        let (dir, cgroup) = (self.dir.clone(), self.record.cgroup.clone());
        let removed = tokio::task::spawn_blocking(move || {
            // A start that nobody saw the end of may have left something.
            crate::cgroup::kill_all(&cgroup);
            unmount_all(&dir)?;
            records::remove_with_record(&dir)?;
            crate::cgroup::remove(&cgroup);
            std::io::Result::Ok(())
        });
        let removed = removed.await.map_err(std::io::Error::from).and_then(|outcome| outcome);
        removed.map_err(during("removing the container's files"))?;
        runtime.forget_container(&self.id);
        runtime.publish(&self.id, sandbox, ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    /// Sets limits of a container that was created.
    pub fn update(&self, wanted: LinuxContainerResources) -> Result<(), RuntimeError> {
        if self.state() == ContainerState::ContainerRunning {
            crate::stats::apply_limits(&self.record.cgroup, &wanted).map_err(during("changing limits"))?;
        }
        let mut resources = lock(&self.resources);
        *resources = Some(match resources.take() {
            Some(current) => merge(current, wanted),
            None => wanted,
        });
        Ok(())
    }

    /// Its OCI `process` object, as the start of an exec's.
    pub fn process_spec(&self) -> Result<Value, RuntimeError> {
        let spec: Option<Value> = files::read_json(&self.dir.join("config.json"))
            .map_err(during("reading the container's specification"))?;
        Ok(spec.map_or(Value::Null, |mut spec| spec["process"].take()))
    }

    /// Pid of its first process while that runs.
    pub fn pid(&self) -> Option<i32> {
        self.process.borrow().as_ref().filter(|process| process.exit.is_none()).map(|process| process.pid)
    }

    pub fn state(&self) -> ContainerState {
        match self.process.borrow().as_ref() {
            None => ContainerState::ContainerCreated,
            Some(ProcessStatus { exit: None, .. }) => ContainerState::ContainerRunning,
            Some(_) => ContainerState::ContainerExited,
        }
    }

    /// Where its writes go.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::in_dir(&self.dir)
    }

    fn image_spec(&self) -> Option<v1::ImageSpec> {
        self.config.image.clone()
    }

    /// The list entry.
    pub fn summary(&self) -> v1::Container {
        v1::Container {
            id: self.id.clone(),
            pod_sandbox_id: self.record.sandbox.clone(),
            metadata: self.config.metadata.clone(),
            image: self.image_spec(),
            image_ref: self.record.image_ref.clone(),
            state: self.state().into(),
            created_at: self.record.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            image_id: self.record.image_id.clone(),
        }
    }

    /// The full status.
    pub fn status(&self) -> v1::ContainerStatus {
        let process = self.process.borrow().clone().unwrap_or_default();
        let exit = process.exit.unwrap_or_default();
        let record = &self.record;
        let user = v1::LinuxContainerUser {
            uid: record.uid.into(),
            gid: record.gid.into(),
            supplemental_groups: record.groups.iter().map(|&gid| gid.into()).collect(),
        };
        v1::ContainerStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state().into(),
            created_at: record.created_at,
            started_at: process.started_at,
            finished_at: exit.finished_at,
            exit_code: exit.exit_code,
            image: self.image_spec(),
            image_ref: record.image_ref.clone(),
            reason: exit.reason,
            message: exit.message,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            mounts: self.config.mounts.clone(),
            log_path: record.log_path.as_ref().map_or_else(String::new, |path| path.display().to_string()),
            resources: Some(v1::ContainerResources { linux: lock(&self.resources).clone() }),
            image_id: record.image_id.clone(),
            user: Some(v1::ContainerUser { linux: Some(user) }),
            stop_signal: self.config.stop_signal,
        }
    }
}

/// What creating needs of the sandbox.
struct SandboxFacts {
    id: String,
    holder: i32,
    hostname: String,
    files: spec::SandboxFiles,
    user_namespace: bool,
    log_directory: String,
    cgroup_parent: String,
}

impl SandboxFacts {
    fn of(sandbox: &Sandbox) -> Self {
        let linux = sandbox.config.linux.clone().unwrap_or_default();
        Self {
            id: sandbox.id.clone(),
            holder: sandbox.holder(),
            hostname: sandbox.hostname(),
            files: sandbox.files(),
            user_namespace: spec::wants_user_namespace(&sandbox.options()).is_some(),
            log_directory: sandbox.config.log_directory.clone(),
            cgroup_parent: linux.cgroup_parent,
        }
    }
}

/// The blocking part of creating a container.
struct Plan {
    runtime: Arc<Runtime>,
    sandbox: SandboxFacts,
    target: Option<i32>,
    id: String,
    dir: PathBuf,
    config: ContainerConfig,
}

impl Plan {
    fn carry_out(mut self) -> Result<(ContainerConfig, ContainerRecord), RuntimeError> {
        let name = self.config.image.clone().unwrap_or_default().image;
        let store = &self.runtime.store;
        // Held until the record keeps the layers.
        let _ingest = store.ingest().map_err(during("locking the image store"))?;
        let image = store.find(&name)?.ok_or_else(|| RuntimeError::not_found("image", &name))?;
        std::fs::create_dir_all(&self.dir).map_err(during("making the container's directory"))?;
        records::write_config(&self.dir, &self.config)
            .map_err(during("writing the container's configuration"))?;
        let snapshot = Snapshot::in_dir(&self.dir);
        snapshot
            .mount(&store.layers_dir(), &image.layers)
            .map_err(during("mounting the container's root"))?;
        self.mount_image_volumes()?;
        let record = self.write_spec(&image, &snapshot)?;
        records::write_record(&self.dir, &record).map_err(during("writing the container's record"))?;
        Ok((self.config, record))
    }

    /// Image volumes become read-only host paths.
    fn mount_image_volumes(&mut self) -> Result<(), RuntimeError> {
        let store = &self.runtime.store;
        for (index, mount) in self.config.mounts.iter_mut().enumerate() {
            let Some(name) = mount.image.as_ref().map(|image| &image.image).filter(|name| !name.is_empty())
            else {
                continue;
            };
            let image = store.find(name)?.ok_or_else(|| RuntimeError::not_found("image", name))?;
            let target = self.dir.join(format!("image{index}"));
            let step = "mounting an image volume";
            snapshot::mount_read_only(&target, &store.layers_dir(), &image.layers).map_err(during(step))?;
            let inside = Path::new(&mount.image_sub_path)
                .strip_prefix("/")
                .unwrap_or(Path::new(&mount.image_sub_path));
            mount.host_path = target.join(inside).display().to_string();
            mount.readonly = true;
        }
        Ok(())
    }

    fn write_spec(&self, image: &ImageRecord, snapshot: &Snapshot) -> Result<ContainerRecord, RuntimeError> {
        let config = &self.config;
        let context =
            config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default();
        let namespaces = context.namespace_options.clone().unwrap_or_default();
        let settings = image.settings();
        let identity = spec::resolve_user(&context, &settings.user, &Accounts::read(&snapshot.rootfs))?;
        let parent = match self.sandbox.cgroup_parent.as_str() {
            "" => &self.runtime.config.cgroup_parent,
            parent => parent,
        };
        let cgroup = format!("/{}/{}", parent.trim_matches('/'), self.id);
        let document = spec::build(&SpecInput {
            config,
            context: &context,
            user_namespace: self.sandbox.user_namespace,
            hostname: if namespaces.network() == NamespaceMode::Node { "" } else { &self.sandbox.hostname },
            namespaces,
            image: &settings,
            identity: &identity,
            rootfs: &snapshot.rootfs,
            files: &self.sandbox.files,
            holder: self.sandbox.holder,
            target: self.target,
            cgroup: &cgroup,
            host: &self.runtime.host,
        })?;
        let cwd = document["process"]["cwd"].as_str().unwrap_or("/");
        snapshot::create_dir_in(&snapshot.rootfs, Path::new(cwd))
            .map_err(during("making the working directory"))?;
        files::write_json(&self.dir.join("config.json"), &document)
            .map_err(during("writing the specification"))?;
        let log_path = (!config.log_path.is_empty() && !self.sandbox.log_directory.is_empty())
            .then(|| Path::new(&self.sandbox.log_directory).join(&config.log_path));
        Ok(ContainerRecord {
            sandbox: self.sandbox.id.clone(),
            created_at: files::now_nanos(),
            image_id: image.id.clone(),
            image_ref: image.repo_digests.first().unwrap_or(&image.id).clone(),
            layers: image.layers.clone(),
            uid: identity.uid,
            gid: identity.gid,
            groups: identity.groups,
            log_path,
            stop_signal: stop_signal(config.stop_signal(), &settings.stop_signal),
            cgroup,
        })
    }
}

/// The process whose PID namespace an ephemeral container joins.
fn target_pid(runtime: &Runtime, config: &ContainerConfig) -> Result<Option<i32>, RuntimeError> {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = context.and_then(|context| context.namespace_options.as_ref());
    match options.filter(|options| options.pid() == NamespaceMode::Target) {
        None => Ok(None),
        Some(options) => {
            let target = runtime.container(&options.target_id)?;
            let gone =
                || RuntimeError::Precondition(format!("target container {:?} is not running", target.id));
            target.pid().map(Some).ok_or_else(gone)
        }
    }
}

/// The pod's signal, else the image's (`SIGQUIT`, `QUIT` or `3`), else SIGTERM.
fn stop_signal(asked: v1::Signal, image: &str) -> i32 {
    let named = match asked {
        v1::Signal::RuntimeDefault => image,
        signal => signal.as_str_name(),
    };
    if let Ok(number) = named.parse() {
        return number;
    }
    let bare = named.trim_start_matches("SIG");
    if let Some(offset) = bare.strip_prefix("RTMINPLUS").or_else(|| bare.strip_prefix("RTMIN+")) {
        return libc::SIGRTMIN() + offset.parse::<i32>().unwrap_or(0);
    }
    if let Some(offset) = bare.strip_prefix("RTMAXMINUS").or_else(|| bare.strip_prefix("RTMAX-")) {
        return libc::SIGRTMAX() - offset.parse::<i32>().unwrap_or(0);
    }
    match bare {
        "RTMIN" => libc::SIGRTMIN(),
        "RTMAX" => libc::SIGRTMAX(),
        "CLD" => libc::SIGCHLD,
        "POLL" => libc::SIGPOLL,
        _ => format!("SIG{bare}").parse::<Signal>().map_or(libc::SIGTERM, |signal| signal as i32),
    }
}

/// New limits over old ones; zero and empty leave what was.
fn merge(current: LinuxContainerResources, new: LinuxContainerResources) -> LinuxContainerResources {
    let number = |new: i64, old: i64| if new == 0 { old } else { new };
    let text = |new: String, old: String| if new.is_empty() { old } else { new };
    LinuxContainerResources {
        cpu_period: number(new.cpu_period, current.cpu_period),
        cpu_quota: number(new.cpu_quota, current.cpu_quota),
        cpu_shares: number(new.cpu_shares, current.cpu_shares),
        memory_limit_in_bytes: number(new.memory_limit_in_bytes, current.memory_limit_in_bytes),
        oom_score_adj: number(new.oom_score_adj, current.oom_score_adj),
        cpuset_cpus: text(new.cpuset_cpus, current.cpuset_cpus),
        cpuset_mems: text(new.cpuset_mems, current.cpuset_mems),
        memory_swap_limit_in_bytes: number(
            new.memory_swap_limit_in_bytes,
            current.memory_swap_limit_in_bytes,
        ),
        hugepage_limits: current.hugepage_limits,
        unified: current.unified.into_iter().chain(new.unified).collect(),
    }
}

fn unmount_all(dir: &Path) -> std::io::Result<()> {
    Snapshot::in_dir(dir).unmount()?;
    for path in files::entries(dir) {
        let is_volume =
            path.file_name().and_then(|name| name.to_str()).is_some_and(|n| n.starts_with("image"));
        if is_volume {
            snapshot::unmount(&path)?;
        }
    }
    Ok(())
}

/// Removes what never became, or no longer is, a container.
pub(crate) fn discard(dir: &Path) {
    if let Err(error) = unmount_all(dir).and_then(|()| records::remove_with_record(dir)) {
        tracing::warn!(dir = %dir.display(), %error, "cannot remove a half-made container");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_spellings() {
        let default = v1::Signal::RuntimeDefault;
        assert_eq!(stop_signal(default, ""), libc::SIGTERM);
        assert_eq!(stop_signal(default, "SIGQUIT"), libc::SIGQUIT);
        assert_eq!(stop_signal(default, "9"), 9);
        assert_eq!(stop_signal(v1::Signal::Sigusr1, "SIGQUIT"), libc::SIGUSR1);
        assert_eq!(stop_signal(v1::Signal::Sigrtminplus3, ""), libc::SIGRTMIN() + 3);
        assert_eq!(stop_signal(default, "SIGRTMAX-1"), libc::SIGRTMAX() - 1);
    }
}
