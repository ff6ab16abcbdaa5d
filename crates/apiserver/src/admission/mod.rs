//! Admission: what the server changes in objects and refuses for reasons that lie outside of them.
//!
//! Each plugin is one function of the table below, named as upstream names it.

mod certificates;
mod classes;
mod escalation;
mod limits;
mod node_restriction;
mod pod_security;
pub mod quota;

use std::sync::LazyLock;

use coxswain_meta::Status;
use coxswain_meta::json::{Value, json};
use coxswain_meta::status::Cause;
use rand::Rng;

use crate::Server;
use crate::authn::UserInfo;
use crate::handler::display_name;
use crate::object::Meta;
use crate::resource::Resource;
use crate::warnings;

/// What is done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It is made.
    Create,
    /// It is changed.
    Update,
    /// It is deleted.
    Delete,
}

/// One write, as the plugins see it.
pub struct Admission<'a> {
    /// The server, for what plugins look up.
    pub server: &'a Server,
    /// The row of the object.
    pub kind: &'a Resource,
    /// Who writes.
    pub user: &'a UserInfo,
    /// What is done.
    pub operation: Operation,
    /// The subresource; empty for the object itself.
    pub subresource: &'a str,
    /// Namespace and name of the object, as the path names it.
    pub target: (&'a str, &'a str),
}

type Mutator = fn(&Admission, &mut Value) -> Result<(), Status>;
type Validator = fn(&Admission, &Value, Option<&Value>) -> Result<(), Status>;

/// Resource, operation and plugin. A row is about the object itself, or about a subresource that it names behind a slash.
const MUTATORS: &[(&str, Operation, Mutator)] = &[
    // Before anything else is said of the object; once more when webhooks have taken their time.
    ("*", Operation::Create, |admission, object| namespace_exists(admission, object, None)),
    ("pods", Operation::Create, fill_limits),
    ("pods", Operation::Create, service_account),
    ("pods", Operation::Create, priority),
    ("pods", Operation::Create, default_toleration_seconds),
    ("pods", Operation::Update, default_toleration_seconds),
    ("pods", Operation::Create, classes::runtime_class),
    ("persistentvolumeclaims", Operation::Create, classes::default_storage_class),
    ("ingresses.networking.k8s.io", Operation::Create, classes::default_ingress_class),
    ("certificatesigningrequests.certificates.k8s.io", Operation::Create, certificates::requestor),
    ("nodes", Operation::Create, taint_new_node),
    ("namespaces", Operation::Create, namespace_label),
    ("namespaces", Operation::Update, namespace_label),
];

const VALIDATORS: &[(&str, Operation, Validator)] = &[
    ("*", Operation::Create, namespace_exists),
    ("namespaces", Operation::Delete, namespace_is_needed),
    ("namespaces", Operation::Create, pod_security_labels),
    ("namespaces", Operation::Update, pod_security_labels),
    ("*/*", Operation::Create, node_restriction::check),
    ("*/*", Operation::Update, node_restriction::check),
    ("*/*", Operation::Delete, node_restriction::check),
    ("pods", Operation::Create, limited),
    ("persistentvolumeclaims", Operation::Create, limited),
    ("persistentvolumeclaims", Operation::Update, limited),
    ("persistentvolumeclaims", Operation::Update, classes::resize),
    ("certificatesigningrequests.certificates.k8s.io/status", Operation::Update, certificates::signing),
    ("certificatesigningrequests.certificates.k8s.io/approval", Operation::Update, certificates::approval),
    ("pods", Operation::Create, classes::overhead),
    ("roles.rbac.authorization.k8s.io", Operation::Create, escalation::role),
    ("roles.rbac.authorization.k8s.io", Operation::Update, escalation::role),
    ("clusterroles.rbac.authorization.k8s.io", Operation::Create, escalation::role),
    ("clusterroles.rbac.authorization.k8s.io", Operation::Update, escalation::role),
    ("rolebindings.rbac.authorization.k8s.io", Operation::Create, escalation::binding),
    ("rolebindings.rbac.authorization.k8s.io", Operation::Update, escalation::binding),
    ("clusterrolebindings.rbac.authorization.k8s.io", Operation::Create, escalation::binding),
    ("clusterrolebindings.rbac.authorization.k8s.io", Operation::Update, escalation::binding),
    ("*", Operation::Create, pod_security),
    ("*", Operation::Update, pod_security),
    ("pods/ephemeralcontainers", Operation::Update, pod_security),
    ("pods/resize", Operation::Update, pod_security),
];

/// A row of the tables, taken apart.
struct Row<P> {
    plural: &'static str,
    group: &'static str,
    subresource: &'static str,
    operation: Operation,
    plugin: P,
}

static MUTATING: LazyLock<Vec<Row<Mutator>>> = LazyLock::new(|| rows(MUTATORS));
static VALIDATING: LazyLock<Vec<Row<Validator>>> = LazyLock::new(|| rows(VALIDATORS));

fn rows<P: Copy>(table: &[(&'static str, Operation, P)]) -> Vec<Row<P>> {
    let row = |(resource, operation, plugin): &(&'static str, _, P)| {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
        Row { plural, group, subresource, operation: *operation, plugin: *plugin }
    };
    table.iter().map(row).collect()
}

impl Admission<'_> {
    /// The mutating plugins.
    pub fn mutate(&self, object: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        self.own(&MUTATING).try_for_each(|plugin| plugin(self, object))
    }

    /// The validating plugins.
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Result<(), Status> {
        self.own(&VALIDATING).try_for_each(|plugin| plugin(self, object, old))
    }

    /// The plugins of a table that this write is for.
    fn own<'a, P>(&self, table: &'a [Row<P>]) -> impl Iterator<Item = &'a P> {
        let (group, plural) = (self.kind.group(), self.kind.plural());
        let own = move |row: &&Row<P>| {
            row.operation == self.operation
                && (row.subresource == self.subresource || row.subresource == "*")
                && (row.plural == "*" || (row.plural == plural && row.group == group))
        };
        table.iter().filter(own).map(|row| &row.plugin)
    }

    fn forbidden(&self, object: &Value, why: &str) -> Status {
        Status::forbidden(self.kind.group(), self.kind.plural(), display_name(object), why)
    }
}

/// NamespaceLifecycle: nothing is made in a namespace that does not exist or is going away.
fn namespace_exists(admission: &Admission, object: &Value, _: Option<&Value>) -> Result<(), Status> {
    let name = object.namespace();
    if !admission.kind.namespaced() || name.is_empty() {
        return Ok(());
    }
    let Some(namespace) = admission.server.look_up("", "namespaces", "", name) else {
        return Err(Status::not_found("", "namespaces", name));
    };
    if !namespace.is_deleting() {
        return Ok(());
    }
    let mut status = admission.forbidden(
        object,
        &format!("unable to create new content in namespace {name} because it is being terminated"),
    );
    status.details.get_or_insert_default().causes.push(Cause {
        reason: "NamespaceTerminating".into(),
        message: format!("namespace {name} is being terminated"),
        field: "metadata.namespace".into(),
    });
    Err(status)
}

/// NamespaceLifecycle: these namespaces stay.
fn namespace_is_needed(admission: &Admission, object: &Value, _: Option<&Value>) -> Result<(), Status> {
    match object.name() {
        "default" | "kube-system" | "kube-public" => {
            Err(admission.forbidden(object, "this namespace may not be deleted"))
        }
        _ => Ok(()),
    }
}

/// PodSecurity: what a namespace says of its pods' security makes sense, or is as senseless as it was.
fn pod_security_labels(_: &Admission, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    let faults = pod_security::label_faults(object);
    if faults.is_empty() || old.is_some_and(|old| pod_security::label_faults(old) == faults) {
        return Ok(());
    }
    Err(Status::invalid("", "Namespace", object.name(), &faults))
}

/// Every namespace carries its name as a label.
fn namespace_label(_: &Admission, object: &mut Value) -> Result<(), Status> {
    let name = object.name().to_owned();
    if !name.is_empty() {
        let labels = object.meta_mut().entry("labels").or_insert_with(|| json!({}));
        labels["kubernetes.io/metadata.name"] = name.into();
    }
    Ok(())
}

/// TaintNodesByCondition: a new node takes pods only once it is found ready.
fn taint_new_node(_: &Admission, node: &mut Value) -> Result<(), Status> {
    const NOT_READY: &str = "node.kubernetes.io/not-ready";
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    if !node["spec"]["taints"].is_array() {
        node["spec"]["taints"] = json!([]);
    }
    if let Some(taints) = node["spec"]["taints"].as_array_mut()
        && !taints.iter().any(|taint| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule")
    {
        taints.push(json!({ "key": NOT_READY, "effect": "NoSchedule" }));
    }
    Ok(())
}

/// ServiceAccount: every pod runs as an account that exists and finds its token mounted.
fn service_account(admission: &Admission, pod: &mut Value) -> Result<(), Status> {
    if pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() || !pod["spec"].is_object() {
        return Ok(());
    }
    let name = match pod["spec"]["serviceAccountName"].as_str() {
        None | Some("") => "default".to_owned(),
        Some(name) => name.to_owned(),
    };
    pod["spec"]["serviceAccountName"] = name.as_str().into();
    pod["spec"]["serviceAccount"] = name.as_str().into();
    let Some(account) = admission.server.look_up("", "serviceaccounts", pod.namespace(), &name) else {
        let why = format!(
            "error looking up service account {}/{name}: serviceaccount \"{name}\" not found",
            pod.namespace()
        );
        return Err(admission.forbidden(pod, &why));
    };
    let own = pod["spec"]["imagePullSecrets"].as_array().is_some_and(|list| !list.is_empty());
    if !own && let Some(secrets) = account["imagePullSecrets"].as_array() {
        pod["spec"]["imagePullSecrets"] = secrets.clone().into();
    }
    let automount = pod["spec"]["automountServiceAccountToken"].as_bool();
    if automount.or(account["automountServiceAccountToken"].as_bool()).unwrap_or(true) {
        mount_token(&mut pod["spec"]);
    }
    Ok(())
}

/// The items of a list; unlike indexing, this makes no empty member where there is none.
fn members<'a>(object: &'a mut Value, list: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten()
}

const TOKEN_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

fn mount_token(spec: &mut Value) {
    let suffix: String =
        (0..5).map(|_| char::from(b"bcdfghjklmnpqrstvwxz2456789"[rand::rng().random_range(0..27)])).collect();
    let mut volume = format!("kube-api-access-{suffix}");
    let existing = spec["volumes"].as_array().into_iter().flatten().find_map(|volume| {
        volume["name"].as_str().filter(|name| name.starts_with("kube-api-access-")).map(str::to_owned)
    });
    let missing = existing.is_none();
    volume = existing.unwrap_or(volume);
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in members(spec, list).filter(|container| container.is_object()) {
            let mounts = container["volumeMounts"].as_array().map_or(&[][..], Vec::as_slice);
            if mounts.iter().any(|mount| mount["mountPath"] == TOKEN_DIR) {
                continue;
            }
            let own = json!({ "name": volume, "readOnly": true, "mountPath": TOKEN_DIR });
            push(&mut container["volumeMounts"], own);
            used = true;
        }
    }
    if !(used && missing) {
        return;
    }
    let own = json!({ "name": volume, "projected": { "defaultMode": 0o644, "sources": [
        { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
        { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
        { "downwardAPI": { "items": [{ "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } }] } },
    ] } });
    push(&mut spec["volumes"], own);
}

/// Adds an item to a list, which is made where there is none.
fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        other => *other = vec![item].into(),
    }
}

/// Priority: the class a pod names, or the cluster's default, becomes a number.
fn priority(admission: &Admission, pod: &mut Value) -> Result<(), Status> {
    if !pod["spec"].is_object() {
        return Ok(());
    }
    let named = pod["spec"]["priorityClassName"].as_str().filter(|name| !name.is_empty()).map(str::to_owned);
    let class = match &named {
        Some(name) => match admission.server.look_up("scheduling.k8s.io", "priorityclasses", "", name) {
            Some(class) => Some(class),
            None => {
                return Err(admission.forbidden(pod, &format!("no PriorityClass with name {name} was found")));
            }
        },
        None => {
            let classes = admission.server.look_up_all("scheduling.k8s.io", "priorityclasses", "");
            classes
                .into_iter()
                .filter(|class| class["globalDefault"] == true)
                .min_by_key(|class| class["value"].as_i64())
        }
    };
    let value = class.as_ref().and_then(|class| class["value"].as_i64()).unwrap_or(0);
    if pod["spec"]["priority"].as_i64().is_some_and(|set| set != value) {
        let set = &pod["spec"]["priority"];
        let why = format!(
            "the integer value of priority ({set}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(admission.forbidden(pod, &why));
    }
    if let (None, Some(class)) = (&named, &class) {
        pod["spec"]["priorityClassName"] = class.name().into();
    }
    pod["spec"]["priority"] = value.into();
    let policy =
        class.as_ref().and_then(|class| class["preemptionPolicy"].as_str()).unwrap_or("PreemptLowerPriority");
    pod["spec"]["preemptionPolicy"] = policy.into();
    Ok(())
}

/// DefaultTolerationSeconds: pods stay five minutes on a node that fails.
fn default_toleration_seconds(_: &Admission, pod: &mut Value) -> Result<(), Status> {
    if !pod["spec"].is_object() {
        return Ok(());
    }
    let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = tolerations.iter().any(|toleration| {
            let of = |field: &str| toleration[field].as_str().unwrap_or_default();
            (of("key") == key || of("key").is_empty()) && matches!(of("effect"), "" | "NoExecute")
        });
        if !tolerated {
            tolerations.push(
                json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 }),
            );
        }
    }
    pod["spec"]["tolerations"] = tolerations.into();
    Ok(())
}

/// LimitRanger: containers get what they leave out.
fn fill_limits(admission: &Admission, pod: &mut Value) -> Result<(), Status> {
    let ranges = admission.server.look_up_all("", "limitranges", pod.namespace());
    ranges.iter().for_each(|range| limits::fill(range, pod));
    Ok(())
}

/// LimitRanger: pods and claims keep the bounds of their namespace.
fn limited(admission: &Admission, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    if old.is_some_and(Meta::is_deleting) {
        return Ok(());
    }
    for range in admission.server.look_up_all("", "limitranges", object.namespace()) {
        let found = limits::violations(&range, admission.kind.plural(), object);
        match found.as_slice() {
            [] => {}
            [one] => return Err(admission.forbidden(object, one)),
            many => return Err(admission.forbidden(object, &format!("[{}]", many.join(", ")))),
        }
    }
    Ok(())
}

/// PodSecurity: pods keep the standard that their namespace's labels name; authors of templates are warned.
fn pod_security(admission: &Admission, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    let is_pod = admission.kind.kind() == "Pod" && admission.kind.group().is_empty();
    let judged = match is_pod {
        true => Some((&object["metadata"], &object["spec"])),
        false => pod_security::template(admission.kind.kind(), object),
    };
    let Some((metadata, spec)) = judged else { return Ok(()) };
    let namespace = admission.server.look_up("", "namespaces", "", object.namespace());
    let Some(namespace) = namespace.filter(|namespace| pod_security::has_standards(namespace)) else {
        return Ok(());
    };
    if is_pod && old.is_some_and(|old| !pod_security::is_significant(object, old)) {
        return Ok(());
    }
    let verdict = pod_security::judge(&namespace, metadata, spec, is_pod);
    verdict.warning.into_iter().for_each(warnings::add);
    verdict.refused.map_or(Ok(()), |why| Err(admission.forbidden(object, &why)))
}
