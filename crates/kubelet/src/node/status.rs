//! The node's status: what the machine and the runtime say now, compared with what they said before.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeRuntimeHandler,
    NodeRuntimeHandlerFeatures, NodeStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::machine;
use crate::kubelet::Kubelet;
use crate::model::seconds;

/// At most this many images are listed, the largest first.
const IMAGES: usize = 50;

/// Whether a status says that the node is ready.
pub fn ready(status: &NodeStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Whether two statuses differ in nothing but heartbeats.
pub fn alike(old: &NodeStatus, new: &NodeStatus) -> bool {
    let timeless = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    timeless(old) == timeless(new)
}

/// The status now.
pub async fn observe(kubelet: &Kubelet, old: Option<&NodeStatus>) -> NodeStatus {
    let config = &kubelet.config;
    let (version, runtime) = tokio::join!(kubelet.cri.version(), kubelet.cri.status());
    let version = version.map(|v| format!("{}://{}", v.runtime_name, v.runtime_version)).unwrap_or_default();
    let handlers = runtime.as_ref().map(|r| r.runtime_handlers.clone()).unwrap_or_default();
    let problem = problem(&runtime);
    let capacity = machine::capacity(&config.root_dir, config.max_pods);
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    NodeStatus {
        addresses: Some(vec![
            address("InternalIP", config.node_ip.to_string()),
            address("Hostname", config.hostname.clone()),
        ]),
        allocatable: Some(capacity.clone()),
        capacity: Some(capacity),
        conditions: Some(conditions(problem, old)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(config.api_address.port()) }),
        }),
        images: Some(images(kubelet).await),
        node_info: Some(machine::info(version)),
        runtime_handlers: Some(handlers)
            .filter(|handlers| !handlers.is_empty())
            .map(|handlers| handlers.into_iter().map(handler).collect()),
        ..NodeStatus::default()
    }
}

fn handler(handler: coxswain_cri::v1::RuntimeHandler) -> NodeRuntimeHandler {
    NodeRuntimeHandler {
        name: Some(handler.name),
        features: handler.features.map(|f| NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(f.recursive_read_only_mounts),
            user_namespaces: Some(f.user_namespaces),
        }),
    }
}

/// Why the node is not ready.
fn problem(runtime: &Result<coxswain_cri::v1::StatusResponse, tonic::Status>) -> Option<String> {
    let answer = match runtime {
        Ok(answer) => answer,
        Err(error) => return Some(format!("container runtime is down: {}", crate::cri::text(error))),
    };
    let conditions = answer.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let problems: Vec<String> = [
        ("RuntimeReady", "container runtime is not ready"),
        ("NetworkReady", "container runtime network not ready"),
    ]
    .into_iter()
    .filter_map(|(type_, sentence)| match conditions.iter().find(|c| c.r#type == type_) {
        None => Some(format!("container runtime status check may not have completed yet: no {type_}")),
        Some(c) if !c.status => {
            Some(format!("{sentence}: {type_}=false reason:{} message:{}", c.reason, c.message))
        }
        Some(_) => None,
    })
    .collect();
    (!problems.is_empty()).then(|| format!("[{}]", problems.join(", ")).trim_matches(['[', ']']).to_owned())
}

fn conditions(problem: Option<String>, old: Option<&NodeStatus>) -> Vec<NodeCondition> {
    let now = Some(Time(seconds(Timestamp::now())));
    let ready = match problem {
        None => (true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        Some(problem) => (false, "KubeletNotReady", problem),
    };
    let fine = |reason, message: &str| (false, reason, message.to_owned());
    let verdicts = [
        ("MemoryPressure", fine("KubeletHasSufficientMemory", "kubelet has sufficient memory available")),
        ("DiskPressure", fine("KubeletHasNoDiskPressure", "kubelet has no disk pressure")),
        ("PIDPressure", fine("KubeletHasSufficientPID", "kubelet has sufficient PID available")),
        ("Ready", ready),
    ];
    let condition = |(type_, (status, reason, message)): (&str, (bool, &str, String))| {
        let status = if status { "True" } else { "False" };
        let before = old.and_then(|old| old.conditions.iter().flatten().find(|c| c.type_ == type_));
        let since = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
        NodeCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: now.clone(),
            last_transition_time: since.or(now.clone()),
        }
    };
    verdicts.into_iter().map(condition).collect()
}

async fn images(kubelet: &Kubelet) -> Vec<ContainerImage> {
    let mut images = kubelet.cri.list_images().await.unwrap_or_default();
    images.sort_by_key(|image| std::cmp::Reverse(image.size));
    images
        .into_iter()
        .take(IMAGES)
        .map(|image| ContainerImage {
            names: Some(image.repo_digests.into_iter().chain(image.repo_tags).collect()),
            size_bytes: i64::try_from(image.size).ok(),
        })
        .collect()
}
