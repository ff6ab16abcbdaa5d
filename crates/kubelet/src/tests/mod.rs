//! The whole kubelet against a runtime and an API server of paper.

mod api;
mod cri;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{KubeletConfig, NodeApiTls};
use api::FakeApi;
use cri::FakeCri;

const POD: &str = "/api/v1/namespaces/n/pods/p";

/// A kubelet in a directory of its own.
struct Node {
    dir: TempDir,
    api: FakeApi,
    cri: FakeCri,
    cancel: CancellationToken,
    task: Option<JoinHandle<Result<(), crate::Error>>>,
}

fn tls() -> NodeApiTls {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["node".to_owned()]).expect("parameters");
    let pem = params.self_signed(&key).expect("a certificate").pem();
    let chain = vec![CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")];
    let signing =
        rustls::crypto::ring::sign::any_supported_type(&key.serialize_der().try_into().expect("a key"));
    let serving = SingleCertAndKey::from(CertifiedKey::new(chain, signing.expect("a usable key")));
    NodeApiTls { serving: Arc::new(serving), client_ca_pem: pem }
}

impl Node {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let cri = FakeCri::serve(&dir.path().join("cri.sock"));
        let mut node = Self { dir, api: FakeApi::new(), cri, cancel: CancellationToken::new(), task: None };
        node.run();
        node
    }

    fn run(&mut self) {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let config = KubeletConfig {
            node_name: "node".to_owned(),
            hostname: "node".to_owned(),
            node_ip: address,
            root_dir: self.dir.path().join("kubelet"),
            cri_socket: self.dir.path().join("cri.sock"),
            client: self.api.client(),
            tls: tls(),
            api_address: (address, 0).into(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            max_pods: 110,
            labels: Default::default(),
            taints: Vec::new(),
            cgroup_root: self.cgroup_root(),
        };
        self.cancel = CancellationToken::new();
        self.task = Some(tokio::spawn(crate::run(config, self.cancel.clone())));
    }

    fn cgroup_root(&self) -> String {
        self.dir.path().file_name().expect("a name").to_string_lossy().into_owned()
    }

    async fn stop(&mut self) {
        self.cancel.cancel();
        self.task.take().expect("it runs").await.expect("no panic").expect("no error");
    }

    /// Restarts the kubelet; runtime and API server go on.
    async fn restart(&mut self) {
        self.stop().await;
        self.run();
    }

    fn pod(&self, spec: Value) {
        let metadata = json!({ "name": "p", "namespace": "n", "uid": "u" });
        let mut spec = spec;
        spec["nodeName"] = json!("node");
        self.api.put(POD, json!({ "metadata": metadata, "spec": spec, "status": { "phase": "Pending" } }));
    }

    fn status(&self) -> Value {
        self.api.get(POD).map(|pod| pod["status"].clone()).unwrap_or_default()
    }

    async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        self.api.until(what, |_| so(self)).await;
    }

    async fn until_ready(&self) {
        self.until("the pod is ready", |node| ready(&node.status())).await;
    }

    fn delete(&self) {
        let mut pod = self.api.get(POD).expect("the pod");
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        self.api.put(POD, pod);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = crate::remove_cgroups(&self.cgroup_root());
    }
}

fn ready(status: &Value) -> bool {
    let conditions = status["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

fn container(name: &str) -> Value {
    json!({ "name": name, "image": "image", "imagePullPolicy": "IfNotPresent" })
}

#[tokio::test]
async fn the_node_registers_and_becomes_ready() {
    let mut node = Node::start();
    node.until("the node is ready", |node| {
        node.api.get("/api/v1/nodes/node").is_some_and(|found| ready(&found["status"]))
    })
    .await;
    let found = node.api.get("/api/v1/nodes/node").expect("the node");
    assert_eq!(found["metadata"]["labels"]["kubernetes.io/os"], "linux");
    assert_eq!(found["status"]["nodeInfo"]["containerRuntimeVersion"], "fake://1");
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node";
    node.until("the lease is there", |node| node.api.get(lease).is_some()).await;
    node.stop().await;
}

#[tokio::test]
async fn a_pod_is_judged_by_the_node_as_it_is_now() {
    let mut node = Node::start();
    let path = "/api/v1/nodes/node";
    node.until("the node is ready", |node| node.api.get(path).is_some_and(|found| ready(&found["status"])))
        .await;
    node.api.label_behind(path, "disk", "fast");
    node.pod(json!({ "containers": [container("main")], "nodeSelector": { "disk": "fast" } }));
    node.until_ready().await;
    node.stop().await;
}

#[tokio::test]
async fn a_pod_runs_heals_and_leaves_without_a_trace() {
    let mut node = Node::start();
    let mut main = container("main");
    main["volumeMounts"] = json!([{ "name": "scratch", "mountPath": "/scratch" }]);
    main["readinessProbe"] = json!({ "exec": { "command": ["true", "0"] } });
    let spec = json!({ "containers": [main, container("side")], "volumes": [{ "name": "scratch", "emptyDir": {} }] });
    node.pod(spec);
    node.until_ready().await;
    assert_eq!(node.status()["phase"], "Running");
    assert_eq!(node.status()["podIP"], "10.42.0.9");
    assert_eq!(node.cri.running(), ["main", "side"]);
    node.until("events are written", |node| node.api.has_event("Started", "Container started")).await;
    node.cri.exit("side", 1);
    node.until("it was restarted", |node| {
        node.status()["containerStatuses"][1]["restartCount"] == 1 && node.cri.running().len() == 2
    })
    .await;
    node.cri.exit("side", 1);
    node.until("it backs off", |node| {
        node.status()["containerStatuses"][1]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    })
    .await;
    node.delete();
    node.until("the object is gone", |node| node.api.get(POD).is_none()).await;
    node.until("the runtime is empty", |node| node.cri.count() == (0, 0)).await;
    let kubelet = node.dir.path().join("kubelet/pods/u");
    node.until("the directory is gone", |_| !kubelet.exists()).await;
    node.stop().await;
}

#[tokio::test]
async fn a_restarted_kubelet_restarts_nothing_and_ends_orphans() {
    let mut node = Node::start();
    node.pod(json!({ "containers": [container("main")] }));
    node.until_ready().await;
    let before = node.status();
    node.restart().await;
    node.until("the node looks again", |node| node.cri.running() == ["main"]).await;
    node.stop().await;
    assert_eq!(node.status(), before, "nothing changed, so nothing was written");
    assert_eq!(node.cri.count(), (1, 1));
    // Deleted while nobody looked.
    node.api.forget(POD);
    node.run();
    node.until("the orphan is gone", |node| node.cri.count() == (0, 0)).await;
    node.stop().await;
}

#[tokio::test]
async fn a_job_like_pod_succeeds_and_a_missing_image_backs_off() {
    let mut node = Node::start();
    node.pod(json!({ "restartPolicy": "Never", "containers": [container("main")] }));
    node.until_ready().await;
    node.cri.exit("main", 0);
    node.until("it succeeded", |node| node.status()["phase"] == "Succeeded").await;
    node.api.forget(POD);
    node.stop().await;
    node.run();
    let mut missing = container("main");
    missing["image"] = json!("missing");
    node.pod(json!({ "containers": [missing] }));
    let reason = |node: &Node| node.status()["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    node.until("the pull fails", |node| reason(node) == "ErrImagePull").await;
    node.until("it backs off", |node| reason(node) == "ImagePullBackOff").await;
    assert!(node.api.has_event("Failed", "Failed to pull image \"missing\": no such image"));
    node.until("an event says so", |n| n.api.has_event("BackOff", "Back-off pulling image \"missing\""))
        .await;
    node.stop().await;
}

#[tokio::test]
async fn a_config_map_is_waited_for_and_its_changes_arrive() {
    let mut node = Node::start();
    let mut main = container("main");
    main["volumeMounts"] = json!([{ "name": "config", "mountPath": "/config" }]);
    let volumes = json!([{ "name": "config", "configMap": { "name": "settings" } }]);
    node.pod(json!({ "containers": [main], "volumes": volumes }));
    let text = "MountVolume.SetUp failed for volume \"config\" : configmap \"settings\" not found";
    node.until("an event says what is missing", |n| n.api.has_event("FailedMount", text)).await;
    let put = |value: &str| {
        let metadata = json!({ "name": "settings", "namespace": "n" });
        let object = json!({ "metadata": metadata, "data": { "key": value } });
        node.api.put("/api/v1/namespaces/n/configmaps/settings", object);
    };
    put("one");
    node.until_ready().await;
    let file = node.dir.path().join("kubelet/pods/u/volumes/kubernetes.io~configmap/config/key");
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "one");
    put("two");
    node.until("the change is in the file", |_| std::fs::read_to_string(&file).is_ok_and(|t| t == "two"))
        .await;
    node.stop().await;
}
