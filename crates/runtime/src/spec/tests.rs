//! Specifications from containers, and that libcontainer's types read them.

use coxswain_cri::v1::{
    KeyValue, LinuxContainerConfig, Mount, SecurityProfile, security_profile::ProfileType,
};

use super::*;

fn build_with(config: ContainerConfig, context: LinuxContainerSecurityContext) -> Value {
    let image = ImageSettings {
        entrypoint: vec!["/entry".into()],
        cmd: vec!["default".into()],
        env: vec!["PATH=/bin".into(), "A=image".into()],
        working_dir: "/srv".into(),
        ..Default::default()
    };
    let files = SandboxFiles { dir: "/run/sandbox".into() };
    let namespaces = NamespaceOption { pid: NamespaceMode::Container as i32, ..Default::default() };
    let host = HostFacts {
        capabilities: capabilities::from_mask(u64::MAX),
        oom_score_floor: Some(0),
        unified_cgroups: false,
        hugetlb_limits: false,
        swap_limits: false,
    };
    let spec = build(&SpecInput {
        config: &config,
        context: &context,
        namespaces,
        user_namespace: false,
        hostname: "pod",
        image: &image,
        identity: &Identity { uid: 1, gid: 2, groups: vec![2] },
        rootfs: Path::new("/rootfs"),
        files: &files,
        holder: 42,
        target: None,
        cgroup: "/kubepods/c",
        host: &host,
    })
    .unwrap();
    serde_json::from_value::<oci_spec::runtime::Spec>(spec.clone()).expect("an OCI specification");
    spec
}

#[test]
fn command_and_environment_combine_pod_and_image() {
    let check = |command: &[&str], args: &[&str], expected: &[&str]| {
        let owned = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        let config = ContainerConfig { command: owned(command), args: owned(args), ..Default::default() };
        let spec = build_with(config, LinuxContainerSecurityContext::default());
        assert_eq!(spec["process"]["args"], json!(expected));
    };
    check(&[], &[], &["/entry", "default"]);
    check(&[], &["x"], &["/entry", "x"]);
    check(&["/cmd"], &[], &["/cmd"]);

    let envs = vec![KeyValue { key: "A".into(), value: b"pod".to_vec() }];
    let config = ContainerConfig { envs, ..Default::default() };
    let spec = build_with(config, LinuxContainerSecurityContext::default());
    assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "A=pod", "HOSTNAME=pod"]));
    assert_eq!(spec["process"]["cwd"], "/srv");
}

#[test]
fn a_requested_mount_replaces_the_default_one_and_parents_come_first() {
    let mount = |target: &str| Mount {
        container_path: target.into(),
        host_path: "/tmp".into(),
        readonly: true,
        ..Default::default()
    };
    let config = ContainerConfig {
        mounts: vec![mount("/data/in/deep"), mount("/etc/hosts"), mount("/data")],
        ..Default::default()
    };
    let spec = build_with(config, LinuxContainerSecurityContext::default());
    let targets: Vec<&str> =
        spec["mounts"].as_array().unwrap().iter().filter_map(|m| m["destination"].as_str()).collect();
    assert_eq!(targets.iter().filter(|target| **target == "/etc/hosts").count(), 1);
    let place = |path: &str| targets.iter().position(|target| *target == path).unwrap();
    assert!(place("/data") < place("/data/in/deep"));
}

#[test]
fn what_the_host_would_refuse_is_clamped_or_dropped() {
    let resources = LinuxContainerResources {
        oom_score_adj: -997,
        cpu_shares: 2,
        // The host of this test can limit neither.
        memory_swap_limit_in_bytes: 1,
        hugepage_limits: vec![Default::default()],
        ..Default::default()
    };
    let linux = LinuxContainerConfig { resources: Some(resources), security_context: None };
    let config = ContainerConfig { linux: Some(linux), ..Default::default() };
    let spec = build_with(config, LinuxContainerSecurityContext::default());
    assert_eq!(spec["process"]["oomScoreAdj"], 0);
    assert_eq!(spec["linux"]["resources"]["cpu"], json!({"shares": 2}));
    assert!(spec["linux"]["resources"].get("memory").is_none());
    assert!(spec["linux"]["resources"].get("hugepageLimits").is_none());
}

#[test]
fn the_default_seccomp_profile_is_one_libcontainer_reads() {
    let profile = SecurityProfile { profile_type: ProfileType::RuntimeDefault as i32, ..Default::default() };
    let context = LinuxContainerSecurityContext { seccomp: Some(profile), ..Default::default() };
    let spec = build_with(ContainerConfig::default(), context);
    assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
}
