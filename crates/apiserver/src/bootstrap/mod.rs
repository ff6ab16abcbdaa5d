//! The objects that every cluster has: namespaces, default roles, priority classes and the service `kubernetes`.

pub mod endpoints;
mod flow;
mod policy;
mod reconcile;

use std::sync::Arc;

use coxswain_api::catalogue::KINDS;
use coxswain_meta::Status;
use coxswain_meta::json::{Value, json};

use crate::Server;
use crate::authn::{RequestHeaderConfig, UserInfo};
use crate::handler::{Change, FieldManager, New, Options, Part};
use crate::object::{Meta, now};
use crate::resource::Resource;
use reconcile::Step;

pub use policy::rules_of_role;

const RBAC: &str = "rbac.authorization.k8s.io";
const FLOW: &str = "flowcontrol.apiserver.k8s.io";
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
    let roles = policy::objects().into_iter();
    futures::future::join_all(roles.map(|(plural, object)| reconcile(server, &user, plural, object))).await;
    let movable = "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.";
    let fixed = "Used for system critical pods that must not be moved from their current node.";
    for (name, value, description) in
        [("system-cluster-critical", 2_000_000_000, movable), ("system-node-critical", 2_000_001_000, fixed)]
    {
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
    let keep = |plural: &'static str, object: Value| maintain(server, &user, FLOW, plural, object, "spec");
    futures::future::join_all(
        flow::levels().into_iter().map(|level| keep("prioritylevelconfigurations", level)),
    )
    .await;
    futures::future::join_all(flow::schemas().into_iter().map(|schema| keep("flowschemas", schema))).await;
    authentication(server, &user).await;
    // Since when it would be known of every token in a Secret that it is used.
    let today: String = now().chars().take_while(|c| *c != 'T').collect();
    let tracking = json!({ "metadata": { "name": "kube-apiserver-legacy-service-account-token-tracking",
        "namespace": "kube-system" }, "data": { "since": today } });
    create("", "configmaps", tracking).await;
    report("endpoints", endpoints::write(server).await);
}

/// What aggregated servers read to know whom to trust with users.
async fn authentication(server: &Arc<Server>, user: &UserInfo) {
    let own = server.config.front_proxy.as_ref();
    let trusted = server.config.access.proxies.as_ref().map(|(proxies, ..)| proxies.clone());
    // Without proxies of others, the server's own is the one.
    let trusted = trusted.or_else(|| own.map(|own| RequestHeaderConfig::standard(&own.ca_pem)));
    let Some(proxies) = trusted else { return };
    let name = "extension-apiserver-authentication";
    let metadata = json!({ "name": name, "namespace": "kube-system" });
    let list = |names: &[String]| json!(names).to_string();
    let data = json!({ "client-ca-file": server.config.ca_pem, "requestheader-client-ca-file": proxies.ca_pem,
            "requestheader-allowed-names": list(&proxies.allowed_names),
            "requestheader-username-headers": list(&proxies.username_headers),
            "requestheader-uid-headers": list(&proxies.uid_headers),
            "requestheader-group-headers": list(&proxies.group_headers),
            "requestheader-extra-headers-prefix": list(&proxies.extra_headers_prefixes) });
    let object = json!({ "metadata": metadata, "data": data });
    maintain(server, user, "", "configmaps", object, "data").await;
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

/// Creates a default role or binding, or gives it back what it lacks.
async fn reconcile(server: &Arc<Server>, user: &UserInfo, plural: &'static str, object: Value) {
    let Some(kind) = find(RBAC, plural) else { return };
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text("namespace"), text("name"));
    let step = |known: &Value| reconcile::step(known, &object);
    let outcome = match server.read(RBAC, plural, &namespace, &name).as_ref().map(step) {
        Some(Step::Keep) => Ok(()),
        None => create(server, &kind, user, object).await,
        Some(Step::Recreate) => {
            let gone = server.delete(&kind, user, &namespace, &name, &Options::default()).await;
            match gone {
                Ok(_) => create(server, &kind, user, object).await,
                Err(status) => Err(status),
            }
        }
        Some(Step::Update(_)) => {
            let edit = |old: &Value| match step(old) {
                Step::Update(new) => new,
                Step::Keep | Step::Recreate => old.clone(),
            };
            edited(server, &kind, user, &object, edit).await
        }
    };
    report(plural, outcome);
}

/// Creates an object, or brings one part of it up to date, unless somebody took it over.
async fn maintain(
    server: &Arc<Server>,
    user: &UserInfo,
    group: &'static str,
    plural: &'static str,
    object: Value,
    part: &'static str,
) {
    const AUTO: &str = "apf.kubernetes.io/autoupdate-spec";
    let Some(kind) = find(group, plural) else { return };
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text("namespace"), text("name"));
    let known = server.read(group, plural, &namespace, &name);
    let Some(known) = known else { return report(plural, create(server, &kind, user, object).await) };
    let taken_over = known["metadata"]["annotations"][AUTO] == "false" && !flow::is_mandatory(&name);
    if taken_over || known[part] == object[part] {
        return;
    }
    let edit = |old: &Value| {
        let mut new = old.clone();
        new[part] = object[part].clone();
        new
    };
    report(plural, edited(server, &kind, user, &object, edit).await);
}

/// Changes the object that has the name of a default, as it is now.
async fn edited(
    server: &Server,
    kind: &Resource,
    user: &UserInfo,
    default: &Value,
    edit: impl Fn(&Value) -> Value,
) -> Result<(), Status> {
    let text = |field: &str| default["metadata"][field].as_str().unwrap_or_default();
    let change = Change {
        kind,
        user,
        namespace: text("namespace"),
        name: text("name"),
        part: Part::Main,
        dry_run: false,
        manager: Some(FieldManager::server()),
    };
    let current = |old: &Value| {
        let mut new = edit(old);
        new.meta_mut().remove("resourceVersion");
        Ok(new)
    };
    server.update(&change, current).await.map(drop)
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
