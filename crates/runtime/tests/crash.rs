//! A server that is killed at any moment, again and again: what runs goes on, nothing is left over.
#![allow(missing_docs)]

mod support;

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use coxswain_cri::v1::*;
use coxswain_runtime::serve;
use support::{Fixture, can_run, runtime_config, shell};
use tokio_util::sync::CancellationToken;

const DIR: &str = "COXSWAIN_TEST_DIR";
const CGROUP: &str = "COXSWAIN_TEST_CGROUP";
const ROUNDS: u64 = 12;

/// The server as a process of its own: the test below runs this test by name.
#[tokio::test(flavor = "multi_thread")]
async fn server_process() {
    let (Ok(dir), Ok(cgroup)) = (std::env::var(DIR), std::env::var(CGROUP)) else { return };
    let config = runtime_config(&PathBuf::from(dir), &cgroup, Default::default());
    serve(config, CancellationToken::new()).await.unwrap();
}

fn spawn_server(fixture: &Fixture) -> Child {
    let _ = std::fs::remove_file(fixture.dir.path().join("cri.sock"));
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "server_process"])
        .env(DIR, fixture.dir.path())
        .env(CGROUP, &fixture.cgroup)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// Makes and removes pods until the server goes away.
async fn churn(
    mut runtime: runtime_service_client::RuntimeServiceClient<tonic::transport::Channel>,
    pod: PodSandboxConfig,
) {
    loop {
        let request = RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: String::new() };
        let Ok(sandbox) = runtime.run_pod_sandbox(request).await else { return };
        let id = sandbox.into_inner().pod_sandbox_id;
        let request = CreateContainerRequest {
            pod_sandbox_id: id.clone(),
            config: Some(shell("c", "exec sleep 1000")),
            sandbox_config: None,
        };
        let Ok(container) = runtime.create_container(request).await else { return };
        let request = StartContainerRequest { container_id: container.into_inner().container_id };
        if runtime.start_container(request).await.is_err() {
            return;
        }
        if runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id }).await.is_err() {
            return;
        }
    }
}

fn processes_of(fixture: &Fixture) -> usize {
    let dir = fixture.dir.path().to_str().unwrap().to_owned();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|process| {
            let cmdline = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&cmdline).contains(&dir)
        })
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_at_any_moment_loses_nothing_and_leaves_nothing() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    fixture.import_busybox();
    let sandbox = fixture.run_sandbox(fixture.sandbox_config("stays")).await;
    let container = fixture.shell(&sandbox, "stays", "exec sleep 1000").await;
    let before = fixture.status(&container).await;
    fixture.stop_server().await;

    for round in 0..ROUNDS {
        let mut server = spawn_server(&fixture);
        fixture.connect().await;
        assert_eq!(fixture.status(&container).await, before, "round {round}");
        let churners: Vec<_> = ["a", "b"]
            .map(|name| tokio::spawn(churn(fixture.runtime.clone(), fixture.sandbox_config(name))))
            .into();
        // Not a wait for something: the moment of death, different each round.
        tokio::time::sleep(Duration::from_millis(20 + 37 * round % 160)).await;
        server.kill().unwrap();
        server.wait().unwrap();
        for churner in churners {
            churner.await.unwrap();
        }
    }

    fixture.start_server().await;
    assert_eq!(fixture.status(&container).await, before);
    assert_eq!(fixture.exec(&container, "echo alive").await.stdout, b"alive\n");
    let sandboxes = fixture.runtime.list_pod_sandbox(ListPodSandboxRequest { filter: None }).await.unwrap();
    for sandbox in sandboxes.into_inner().items {
        fixture.remove_sandbox(&sandbox.id).await;
    }
    support::eventually("no process is left", || processes_of(&fixture) == 0).await;
    assert_eq!(std::fs::read_dir(fixture.dir.path().join("run")).unwrap().count(), 0, "sockets stay");
    fixture.finish().await;
}
