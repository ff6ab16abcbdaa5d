//! The objects that every cluster has: namespaces, default roles, priority classes and the service `kubernetes`.

pub mod endpoints;
mod policy;

use std::sync::Arc;

use coxswain_api::catalogue::KINDS;
use coxswain_meta::Status;
use serde_json::{Value, json};

use crate::Server;
use crate::authn::UserInfo;
use crate::handler::{FieldManager, New};
use crate::resource::Resource;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Who the server itself is.
pub fn user() -> UserInfo {
    UserInfo::new("system:apiserver", &["system:masters"])
}

/// Makes what is missing; what is there stays as it is, but for the addresses of this server.
pub async fn ensure(server: &Arc<Server>) {
    let user = user();
    let create = |group: &'static str, plural: &'static str, object: Value| {
        let user = &user;
        async move {
            let Some(kind) = find(group, plural) else { return };
            report(plural, create(server, &kind, user, object).await);
        }
    };
    let namespaces = NAMESPACES.map(|name| create("", "namespaces", json!({ "metadata": { "name": name } })));
    futures::future::join_all(namespaces).await;
    let rbac = "rbac.authorization.k8s.io";
    futures::future::join_all(
        policy::objects().into_iter().map(|(plural, object)| create(rbac, plural, object)),
    )
    .await;
    for (name, value) in [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)]
    {
        let description = "Used for system critical pods.";
        create(
            "scheduling.k8s.io",
            "priorityclasses",
            json!({ "metadata": { "name": name }, "value": value, "description": description }),
        )
        .await;
    }
    let service = json!({ "metadata": { "name": "kubernetes", "namespace": "default", "labels": labels() },
        "spec": { "clusterIP": server.config.services.kubernetes().to_string(), "type": "ClusterIP",
            "ports": [{ "name": "https", "port": 443, "targetPort": server.config.advertise.1, "protocol": "TCP" }] } });
    create("", "services", service).await;
    let services = &server.config.services;
    let range = json!({ "metadata": { "name": "kubernetes" },
        "spec": { "cidrs": [format!("{}/{}", services.network, services.prefix_length)] } });
    create("networking.k8s.io", "servicecidrs", range).await;
    if let Some(proxy) = &server.config.front_proxy {
        let name = "extension-apiserver-authentication";
        let metadata = json!({ "name": name, "namespace": "kube-system" });
        let lists = |names: &[&str]| json!(names).to_string();
        let data = json!({ "client-ca-file": server.config.ca_pem, "requestheader-client-ca-file": proxy.ca_pem,
            "requestheader-allowed-names": lists(&["front-proxy-client"]),
            "requestheader-username-headers": lists(&["X-Remote-User"]),
            "requestheader-group-headers": lists(&["X-Remote-Group"]),
            "requestheader-extra-headers-prefix": lists(&["X-Remote-Extra-"]) });
        create("", "configmaps", json!({ "metadata": metadata, "data": data })).await;
    }
    report("endpoints", endpoints::write(server).await);
}

fn labels() -> Value {
    json!({ "component": "apiserver", "provider": "kubernetes" })
}

fn find(group: &str, plural: &str) -> Option<Resource> {
    KINDS.iter().find(|kind| kind.group == group && kind.plural == plural).map(Resource::BuiltIn)
}

fn report(plural: &str, outcome: Result<(), Status>) {
    if let Err(status) = outcome {
        tracing::error!(plural, %status, "a default object could not be made");
    }
}

/// Creates an object unless it is there.
async fn create(server: &Server, kind: &Resource, user: &UserInfo, mut object: Value) -> Result<(), Status> {
    object["kind"] = kind.kind().into();
    object["apiVersion"] = kind.api_version().into();
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    if server.read(kind.group(), kind.plural(), &text("namespace"), &text("name")).is_some() {
        return Ok(());
    }
    match server
        .create(New { kind, user, manager: Some(FieldManager::server()), dry_run: false }, object)
        .await
    {
        Err(status) if status.reason != "AlreadyExists" => Err(status),
        _ => Ok(()),
    }
}
