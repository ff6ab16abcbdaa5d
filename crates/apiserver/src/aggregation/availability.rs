//! What the server does for APIServices: lists its own group versions among them, and finds out whether others answer.

use std::sync::Arc;
use std::time::Duration;

use coxswain_api::catalogue::KINDS;
use coxswain_meta::Status;
use coxswain_meta::json::{Value, json};
use http::Request;
use http_body_util::{BodyExt, Limited};

use super::{COLLECTION, GROUP, openapi};
use crate::Server;
use crate::authn::UserInfo;
use crate::body::Body;
use crate::definitions::set_condition;
use crate::handler::{Change, FieldManager, New, Options, Part};
use crate::object::Meta;
use crate::resource::{DEFINITIONS, Resource};

/// Other servers are asked this often whether they answer.
const PERIOD: Duration = Duration::from_secs(10);
const LARGEST_LIST_BYTES: usize = 4 << 20;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Keeps the APIServices true, until the server stops.
pub async fn run(server: Arc<Server>) {
    let collections = [COLLECTION, DEFINITIONS, "endpointslices.discovery.k8s.io"];
    let collections = collections.map(|name| server.store.collection(name));
    loop {
        let at = server.store.revision();
        if let Err(status) = settle(&server).await {
            tracing::warn!(%status, "the APIServices were not settled");
        }
        let remote = !server.backends.current(&server).is_empty();
        let mut watches: Vec<_> =
            collections.iter().filter_map(|collection| collection.watch("", at).ok()).collect();
        // Without services elsewhere the endpoints do not matter.
        watches.truncate(if remote { 3 } else { 2 });
        let changed = watches.iter_mut().map(|watch| Box::pin(watch.next()));
        tokio::select! {
            _ = futures::future::select_all(changed) => {}
            () = tokio::time::sleep(PERIOD), if remote => {}
            () = server.shutdown.cancelled() => return,
        }
    }
}

/// The rank of a group among all groups, and of a version among those of its group.
fn priorities(group: &str, version: &str) -> (u32, u32) {
    let of_group = match group {
        "" => return (18000, 1),
        "events.k8s.io" => 17750,
        "authentication.k8s.io" => 17700,
        "authorization.k8s.io" => 17600,
        "autoscaling" => 17500,
        "batch" => 17400,
        "certificates.k8s.io" => 17300,
        "networking.k8s.io" => 17200,
        "policy" => 17100,
        "rbac.authorization.k8s.io" => 17000,
        "storage.k8s.io" => 16800,
        "admissionregistration.k8s.io" | "apiextensions.k8s.io" => 16700,
        "scheduling.k8s.io" => 16600,
        "coordination.k8s.io" => 16500,
        "node.k8s.io" => 16300,
        "discovery.k8s.io" | "resource.k8s.io" => 16200,
        "flowcontrol.apiserver.k8s.io" => 16100,
        "storagemigration.k8s.io" => 15800,
        _ => 17800,
    };
    let of_version = match (group, version) {
        ("autoscaling", "v2") => 30,
        ("resource.k8s.io" | "flowcontrol.apiserver.k8s.io", "v1") => 21,
        _ => 15,
    };
    (of_group, of_version)
}

fn kind() -> Option<Resource> {
    Resource::built_in(GROUP, "v1", "apiservices")
}

async fn settle(server: &Arc<Server>) -> Result<(), Status> {
    let Some(kind) = kind() else { return Ok(()) };
    let user = UserInfo::new("system:apiserver", &["system:masters"]);
    let mut own: Vec<(String, String, &str)> = Vec::new();
    for row in KINDS {
        own.push((row.group.to_owned(), row.version.to_owned(), "onstart"));
    }
    for custom in server.customs.current(&server.store).served() {
        own.push((custom.group().to_owned(), custom.version().to_owned(), "true"));
    }
    own.sort();
    own.dedup();
    for (group, version, managed) in &own {
        let name = format!("{version}.{group}");
        if server.read(GROUP, "apiservices", "", &name).is_none() {
            let (of_group, of_version) =
                if *managed == "true" { (1000, 100) } else { priorities(group, version) };
            let mut object = json!({ "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": { "name": name, "labels": { MANAGED: managed } },
                "spec": { "version": version, "groupPriorityMinimum": of_group, "versionPriority": of_version } });
            if !group.is_empty() {
                object["spec"]["group"] = group.as_str().into();
            }
            let new = New { kind: &kind, user: &user, manager: Some(FieldManager::server()), dry_run: false };
            server.create(new, object).await?;
        }
    }
    for service in server.read_all(GROUP, "apiservices", "") {
        let spec = &service["spec"];
        let text = |key: &str| spec[key].as_str().unwrap_or_default();
        let listed =
            own.iter().any(|(group, version, _)| group == text("group") && version == text("version"));
        let managed = service.meta()["labels"][MANAGED].is_string() && !spec["service"].is_object();
        if managed && !listed {
            server.delete(&kind, &user, "", service.name(), &Options::default()).await?;
            continue;
        }
        let (holds, reason, message) = match spec["service"].is_object() {
            false => (true, "Local", "Local APIServices are always available".to_owned()),
            true => probe(server, &user, text("group"), text("version"), &spec["service"]).await,
        };
        let status = if holds { "True" } else { "False" };
        let known = service["status"]["conditions"].as_array().into_iter().flatten().any(|c| {
            c["type"] == "Available"
                && c["status"] == status
                && c["reason"] == reason
                && c["message"] == message
        });
        if !known {
            mark(server, &kind, &user, service.name(), (holds, reason, &message)).await?;
        }
    }
    Ok(())
}

async fn mark(
    server: &Arc<Server>,
    kind: &Resource,
    user: &UserInfo,
    name: &str,
    (holds, reason, message): (bool, &str, &str),
) -> Result<(), Status> {
    let manager = FieldManager { subresource: "status".into(), ..FieldManager::server() };
    let change = Change {
        kind,
        user,
        namespace: "",
        name,
        part: Part::Verbatim,
        dry_run: false,
        manager: Some(manager),
    };
    let marked = server.update(&change, |old| {
        let mut new: Value = old.clone();
        new.meta_mut().remove("resourceVersion");
        set_condition(&mut new, "Available", holds, reason, message);
        Ok(new)
    });
    match marked.await {
        Err(status) if status.code != 404 => Err(status),
        _ => Ok(()),
    }
}

/// Whether another server answers for a group version.
async fn probe(
    server: &Arc<Server>,
    user: &UserInfo,
    group: &str,
    version: &str,
    service: &Value,
) -> (bool, &'static str, String) {
    let text = |key: &str| service[key].as_str().unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    if server.read("", "services", namespace, name).is_none() {
        return (false, "ServiceNotFound", format!("service/{name} in {namespace:?} is not present"));
    }
    let backends = server.backends.current(server);
    let Some(backend) = backends.get(&(group.to_owned(), version.to_owned())) else {
        return (false, "FailedDiscoveryCheck", "the service is not known yet".into());
    };
    if crate::subresource::endpoint(server, namespace, name, &backend.port.to_string()).is_err() {
        let message =
            format!("endpoints for service/{name} in {namespace:?} have no addresses with port name \"\"");
        return (false, "MissingEndpoints", message);
    }
    let path = format!("/apis/{group}/{version}");
    let Ok(request) = Request::get(&path).body(Body::empty()) else {
        return (false, "FailedDiscoveryCheck", "no request can be made of it".into());
    };
    let asked = async {
        let response = backend.pass(server, user, &path, request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_LIST_BYTES).collect().await;
        let list: Value =
            body.ok().and_then(|body| serde_json::from_slice(&body.to_bytes()).ok()).unwrap_or_default();
        if let (true, Some(resources)) = (status.is_success(), list["resources"].as_array()) {
            server.backends.set_resources(group, version, resources.clone());
        }
        Ok::<_, Status>(status)
    };
    let asked = async {
        let status = asked.await?;
        if status.is_success() {
            openapi::fetch(server, user, backend).await;
        }
        Ok::<_, Status>(status)
    };
    let failed = |why: String| {
        let message = format!("failing or missing response from https://{name}.{namespace}.svc{path}: {why}");
        (false, "FailedDiscoveryCheck", message)
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(Ok(status)) if status.is_success() || status.is_redirection() => {
            (true, "Passed", "all checks passed".to_owned())
        }
        Ok(Ok(status)) => {
            failed(format!("bad status from https://{name}.{namespace}.svc{path}: {}", status.as_u16()))
        }
        Ok(Err(status)) => failed(status.message.clone()),
        Err(_) => failed("context deadline exceeded".into()),
    }
}
