//! Pods for real: sandboxes, containers, logs, exits, exec, stopping, and servers that come and go.
#![allow(missing_docs)]

mod support;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use coxswain_cri::v1::*;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::{Fixture, IMAGE, can_run, eventually, shell};

fn context(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

fn resources(config: &mut ContainerConfig, resources: LinuxContainerResources) {
    config.linux.as_mut().unwrap().resources = Some(resources);
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_share_the_sandbox_and_their_fate_is_reported() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    fixture.import_busybox();
    let sandbox = fixture.run_sandbox(fixture.sandbox_config("pod")).await;
    let first = fixture.shell(&sandbox, "first", "hostname; echo oops >&2; exec sleep 1000").await;
    let second = fixture.shell(&sandbox, "second", "cat /etc/resolv.conf; exit 3").await;

    let status = fixture.exited(&second).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    assert!(status.started_at > 0 && status.finished_at >= status.started_at);
    assert_eq!(fixture.log("pod", "second"), ["stdout F nameserver 10.43.0.10"]);
    let mut log = fixture.log("pod", "first");
    log.sort();
    assert_eq!(log, ["stderr F oops", "stdout F pod"]);

    for namespace in ["net", "ipc", "uts"] {
        let third = fixture.shell(&sandbox, namespace, &format!("ls -l /proc/self/ns/{namespace}")).await;
        fixture.exited(&third).await;
        let inside = fixture.exec(&first, &format!("ls -l /proc/self/ns/{namespace}")).await;
        let there = String::from_utf8(inside.stdout).unwrap();
        let here = fixture.log("pod", namespace).join("");
        let inode = |text: &str| text.split_once('[').map(|(_, rest)| rest.trim().to_owned());
        assert!(inode(&there).is_some());
        assert_eq!(inode(&there), inode(&here), "{namespace}");
    }
    fixture.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_may_open_as_many_files_as_the_server_was_given() {
    if !can_run() {
        return;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 1234, hard).unwrap();
    coxswain_runtime::raise_open_files().unwrap();
    assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    let mut fixture = Fixture::new().await;
    fixture.import_busybox();
    let sandbox = fixture.run_sandbox(fixture.sandbox_config("pod")).await;
    let container = fixture.shell(&sandbox, "c", "ulimit -n; ulimit -Hn; exec sleep 1000").await;
    let inside = fixture.exec(&container, "ulimit -n; ulimit -Hn").await;
    assert_eq!(String::from_utf8_lossy(&inside.stdout), format!("1234\n{hard}\n"));
    assert_eq!(fixture.log("pod", "c"), ["stdout F 1234".to_owned(), format!("stdout F {hard}")]);
    fixture.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_not_there_fails_the_start() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    fixture.import_busybox();
    let sandbox = fixture.run_sandbox(fixture.sandbox_config("pod")).await;
    let mut config = shell("broken", "");
    config.command = vec!["/no/such/program".into()];
    let container = fixture.create(&sandbox, config).await;
    let request = StartContainerRequest { container_id: container.clone() };
    let error = fixture.runtime.start_container(request).await.unwrap_err();
    assert!(error.message().contains("/no/such/program"), "{error}");
    let status = fixture.status(&container).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    assert!(status.message.contains("/no/such/program"));
    fixture.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_is_patient_for_as_long_as_asked() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    fixture.import_busybox();
    let sandbox = fixture.run_sandbox(fixture.sandbox_config("pod")).await;
    let wait = "while true; do sleep 0.05; done";
    let polite = fixture.shell(&sandbox, "polite", &format!("trap 'exit 7' TERM; echo ready; {wait}")).await;
    let deaf = fixture.shell(&sandbox, "deaf", &format!("trap '' TERM; echo ready; {wait}")).await;
    for name in ["polite", "deaf"] {
        eventually("it traps", || fixture.log("pod", name) == ["stdout F ready"]).await;
    }
    let begin = Instant::now();
    fixture
        .runtime
        .stop_container(StopContainerRequest { container_id: polite.clone(), timeout: 30 })
        .await
        .unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(fixture.status(&polite).await.exit_code, 7);
    let begin = Instant::now();
    fixture
        .runtime
        .stop_container(StopContainerRequest { container_id: deaf.clone(), timeout: 1 })
        .await
        .unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(1));
    assert_eq!(fixture.status(&deaf).await.exit_code, 137);
    fixture.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn running_out_of_memory_is_named() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    fixture.import_busybox();
    let sandbox = fixture.run_sandbox(fixture.sandbox_config("pod")).await;
    let mut config = shell("greedy", "exec tail /dev/zero");
    let limit = LinuxContainerResources {
        memory_limit_in_bytes: 16 << 20,
        oom_score_adj: -997,
        ..Default::default()
    };
    resources(&mut config, limit);
    let container = fixture.create(&sandbox, config).await;
    fixture.start(&container).await;
    let status = fixture.exited(&container).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    fixture.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_server_takes_over_what_runs() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    fixture.import_busybox();
    let sandbox = fixture.run_sandbox(fixture.sandbox_config("pod")).await;
    let stays = fixture.shell(&sandbox, "stays", "echo $$ > /tmp/pid; exec sleep 1000").await;
    let go = fixture.dir.path().join("go");
    std::fs::create_dir(&go).unwrap();
    let mut config = shell("ends", "while [ ! -e /go/now ]; do sleep 0.02; done; echo bye; exit 5");
    config.mounts.push(Mount {
        container_path: "/go".into(),
        host_path: go.display().to_string(),
        ..Default::default()
    });
    let ends = fixture.create(&sandbox, config).await;
    fixture.start(&ends).await;
    let before = fixture.status(&stays).await;

    fixture.stop_server().await;
    std::fs::write(go.join("now"), "").unwrap();
    let status_file = fixture.root().join("containers").join(&ends).join("status.json");
    eventually("the exit is on disk", || {
        std::fs::read_to_string(&status_file).is_ok_and(|text| text.contains("exit_code"))
    })
    .await;
    // What a crash in the middle of making leaves.
    for half in ["sandboxes/half", "containers/half"] {
        std::fs::create_dir_all(fixture.root().join(half).join("rootfs")).unwrap();
    }
    fixture.start_server().await;

    let status = fixture.status(&ends).await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 5));
    assert_eq!(fixture.log("pod", "ends"), ["stdout F bye"]);
    assert_eq!(fixture.status(&stays).await, before);
    assert_eq!(fixture.exec(&stays, "echo hello").await.stdout, b"hello\n");
    assert!(
        !fixture.root().join("sandboxes/half").exists() && !fixture.root().join("containers/half").exists()
    );

    // Exits are heard of again.
    fixture
        .runtime
        .stop_container(StopContainerRequest { container_id: stays.clone(), timeout: 0 })
        .await
        .unwrap();
    assert_eq!(fixture.status(&stays).await.exit_code, 137);
    fixture.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_whose_process_dies_is_not_ready() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    fixture.import_busybox();
    let sandbox = fixture.run_sandbox(fixture.sandbox_config("pod")).await;
    let container = fixture.shell(&sandbox, "c", "exec sleep 1000").await;
    let holder =
        std::fs::read_to_string(fixture.root().join("sandboxes").join(&sandbox).join("holder")).unwrap();
    let shim = nix::unistd::Pid::from_raw(holder.parse().unwrap());
    nix::sys::signal::kill(shim, nix::sys::signal::SIGKILL).unwrap();
    let status = fixture.exited(&container).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox, verbose: false };
    let status = fixture.runtime.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    fixture.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_without_a_network_leaves_no_trace() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    let config = fixture.sandbox_config("unlucky");
    let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    let error = fixture.runtime.run_pod_sandbox(request).await.unwrap_err();
    assert!(error.message().contains("no pod address is left"), "{error}");
    assert_eq!(std::fs::read_dir(fixture.dir.path().join("run")).unwrap().count(), 0, "the shim is gone");
    fixture.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_security_context_reaches_the_process() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    fixture.import_busybox();
    let mut pod = fixture.sandbox_config("pod");
    let sysctls = HashMap::from([("net.ipv4.ip_local_port_range".to_owned(), "40000 41000".to_owned())]);
    pod.linux.as_mut().unwrap().sysctls = sysctls;
    let sandbox = fixture.run_sandbox(pod).await;

    let script = "id; cat /proc/sys/net/ipv4/ip_local_port_range; grep -E 'Cap(Eff|Bnd)|NoNew|Seccomp:' /proc/self/status; \
                  touch /file || echo read-only; touch /ro/x || echo ro-mount; cat /proc/kcore | head -c 1 | wc -c";
    let mut config = shell("locked", script);
    config.command[0] = "/bin/sh".into();
    config.mounts.push(Mount {
        container_path: "/ro".into(),
        host_path: fixture.dir.path().join("made").display().to_string(),
        readonly: true,
        ..Default::default()
    });
    let security = context(&mut config);
    security.run_as_username = "web".into();
    security.supplemental_groups = vec![2000];
    security.readonly_rootfs = true;
    security.no_new_privs = true;
    security.masked_paths = vec!["/proc/kcore".into()];
    security.capabilities = Some(Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
    security.seccomp = Some(SecurityProfile {
        profile_type: security_profile::ProfileType::RuntimeDefault.into(),
        ..Default::default()
    });
    let container = fixture.create(&sandbox, config).await;
    fixture.start(&container).await;
    fixture.exited(&container).await;
    let log = fixture.log("pod", "locked").join("\n");
    for expected in [
        "uid=33(web) gid=34(web) groups=34(web),50(logs),2000",
        "40000\t41000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "CapBnd:\t0000000000000000",
        "read-only",
        "ro-mount",
    ] {
        assert!(log.contains(expected), "{expected:?} in\n{log}");
    }
    let user = fixture.status(&container).await.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (33, 34, vec![34, 50, 2000]));

    let mut config =
        shell("mighty", "grep Seccomp: /proc/self/status; ls /dev/null /dev/random; touch /sys/x 2>&1; true");
    context(&mut config).privileged = true;
    let container = fixture.create(&sandbox, config).await;
    fixture.start(&container).await;
    assert_eq!(fixture.exited(&container).await.exit_code, 0);
    assert!(fixture.log("pod", "mighty").join("\n").contains("Seccomp:\t0"));
    fixture.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_may_share_a_pid_namespace() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    fixture.import_busybox();
    let options = |pid: NamespaceMode| NamespaceOption { pid: pid.into(), ..Default::default() };
    let mut pod = fixture.sandbox_config("shared");
    let context_of_pod = LinuxSandboxSecurityContext {
        namespace_options: Some(options(NamespaceMode::Pod)),
        ..Default::default()
    };
    pod.linux.as_mut().unwrap().security_context = Some(context_of_pod);
    let sandbox = fixture.run_sandbox(pod).await;
    let mut first = shell("first", "exec sleep 7777");
    context(&mut first).namespace_options = Some(options(NamespaceMode::Pod));
    let mut second = shell("second", "grep -c 7777 /proc/[0-9]*/cmdline | grep -v :0; exit 4");
    context(&mut second).namespace_options = Some(options(NamespaceMode::Pod));
    let first = fixture.create(&sandbox, first).await;
    fixture.start(&first).await;
    let second = fixture.create(&sandbox, second).await;
    fixture.start(&second).await;
    assert_eq!(fixture.exited(&second).await.exit_code, 4);
    assert!(fixture.log("shared", "second").len() >= 2, "it sees the other's process");

    fixture.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_reports_output_exit_and_timeout() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    fixture.import_busybox();
    let sandbox = fixture.run_sandbox(fixture.sandbox_config("pod")).await;
    let container = fixture.shell(&sandbox, "c", "exec sleep 1000").await;
    let done = fixture.exec(&container, "echo out; echo err >&2; exit 9").await;
    assert_eq!((done.stdout, done.stderr, done.exit_code), (b"out\n".to_vec(), b"err\n".to_vec(), 9));
    let large = fixture.exec(&container, "yes | head -c 3000000").await;
    assert_eq!(large.stdout.len(), 3_000_000);
    let request = |cmd: &[&str], timeout| ExecSyncRequest {
        container_id: container.clone(),
        cmd: cmd.iter().map(ToString::to_string).collect(),
        timeout,
    };
    let error = fixture.runtime.exec_sync(request(&["/bin/sleep", "100"], 1)).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
    let error = fixture.runtime.exec_sync(request(&["/no/program"], 1)).await.unwrap_err();
    assert!(error.message().contains("/no/program"), "{error}");
    fixture.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_statistics_limits_and_rotated_logs() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    fixture.import_busybox();
    let mut events = fixture.runtime.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
    let sandbox = fixture.run_sandbox(fixture.sandbox_config("pod")).await;
    let container = fixture
        .shell(
            &sandbox,
            "c",
            "echo one; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo two; exec sleep 1000",
        )
        .await;
    let id = container.clone();

    let stats =
        fixture.runtime.container_stats(ContainerStatsRequest { container_id: id.clone() }).await.unwrap();
    let stats = stats.into_inner().stats.unwrap();
    assert!(stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);
    assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
    let pod =
        fixture.runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest { filter: None }).await.unwrap();
    assert_eq!(pod.into_inner().stats[0].linux.as_ref().unwrap().containers.len(), 1);

    let linux =
        LinuxContainerResources { memory_limit_in_bytes: 64 << 20, cpu_shares: 512, ..Default::default() };
    let request = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(linux),
        ..Default::default()
    };
    fixture.runtime.update_container_resources(request).await.unwrap();
    let set = fixture.status(&id).await.resources.unwrap().linux.unwrap();
    assert_eq!((set.memory_limit_in_bytes, set.cpu_shares), (64 << 20, 512));

    let log = fixture.dir.path().join("logs/pod/c.log");
    eventually("the first line is there", || fixture.log("pod", "c") == ["stdout F one"]).await;
    std::fs::rename(&log, log.with_extension("old")).unwrap();
    fixture
        .runtime
        .reopen_container_log(ReopenContainerLogRequest { container_id: id.clone() })
        .await
        .unwrap();
    fixture.exec(&id, "touch /tmp/go").await;
    eventually("the second line is in the new file", || fixture.log("pod", "c") == ["stdout F two"]).await;

    fixture.remove_sandbox(&sandbox).await;
    let mut seen = Vec::new();
    while seen.len() < 8 {
        let event = events.message().await.unwrap().unwrap();
        let which = if event.container_id == sandbox { "sandbox" } else { "container" };
        let kind = event.container_event_type().as_str_name();
        seen.push(format!("{which} {}", kind.trim_start_matches("CONTAINER_").trim_end_matches("_EVENT")));
    }
    let expected = [
        "sandbox CREATED",
        "sandbox STARTED",
        "container CREATED",
        "container STARTED",
        "container STOPPED",
        "sandbox STOPPED",
        "container DELETED",
        "sandbox DELETED",
    ];
    assert_eq!(seen, expected);
    fixture.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_can_be_a_volume() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    fixture.import_busybox();
    let sandbox = fixture.run_sandbox(fixture.sandbox_config("pod")).await;
    let mut config = shell("c", "cat /volume/passwd | head -n 1; touch /volume/x || exit 6");
    config.mounts.push(Mount {
        container_path: "/volume".into(),
        image: Some(ImageSpec { image: IMAGE.into(), ..Default::default() }),
        image_sub_path: "etc".into(),
        ..Default::default()
    });
    let container = fixture.create(&sandbox, config).await;
    fixture.start(&container).await;
    assert_eq!(fixture.exited(&container).await.exit_code, 6);
    assert!(fixture.log("pod", "c")[0].contains("root:x:0"), "{:?}", fixture.log("pod", "c"));
    fixture.finish().await;
}
