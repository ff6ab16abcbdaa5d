//! Defaults of pods and pod templates.

use coxswain_meta::json::Value;

use crate::value::{child, flag, has, int, items_mut, present, set, set_default, text};

const CONTAINER_LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// A pod: what templates get, and what only pods get.
pub(crate) fn pod(pod: &mut Value) {
    let Some(spec) = child(pod, "spec") else { return };
    self::spec(spec);
    if int(spec, "terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0) {
        set(spec, "terminationGracePeriodSeconds", 1);
    }
    if flag(spec, "hostNetwork") {
        for list in CONTAINER_LISTS {
            items_mut(spec, list).iter_mut().for_each(host_ports);
        }
    }
    for list in ["containers", "initContainers"] {
        items_mut(spec, list).iter_mut().for_each(requests_from_limits);
    }
    if let Some(resources) = present(spec, "resources") {
        copy_missing(resources);
    }
    if !has(spec, "enableServiceLinks") {
        set(spec, "enableServiceLinks", true);
    }
}

/// A `PodTemplateSpec`.
pub(crate) fn template(template: &mut Value) {
    if let Some(spec) = child(template, "spec") {
        self::spec(spec);
    }
}

fn spec(spec: &mut Value) {
    for (key, value) in
        [("dnsPolicy", "ClusterFirst"), ("restartPolicy", "Always"), ("schedulerName", "default-scheduler")]
    {
        set_default(spec, key, value);
    }
    set_default(spec, "terminationGracePeriodSeconds", 30);
    child(spec, "securityContext");
    // The older name of the field is kept equal.
    let account = match text(spec, "serviceAccountName") {
        "" => text(spec, "serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    if !account.is_empty() {
        set(spec, "serviceAccountName", account.as_str());
        set(spec, "serviceAccount", account);
    }
    for list in CONTAINER_LISTS {
        items_mut(spec, list).iter_mut().for_each(container);
    }
    items_mut(spec, "volumes").iter_mut().for_each(volume);
}

/// On the host's network a container's port is the host's.
fn host_ports(container: &mut Value) {
    for port in items_mut(container, "ports") {
        if int(port, "hostPort").unwrap_or(0) == 0 {
            let number = port["containerPort"].clone();
            set(port, "hostPort", number);
        }
    }
}

fn container(container: &mut Value) {
    let policy = pull_policy(text(container, "image"));
    set_default(container, "imagePullPolicy", policy);
    set_default(container, "terminationMessagePath", "/dev/termination-log");
    set_default(container, "terminationMessagePolicy", "File");
    child(container, "resources");
    for port in items_mut(container, "ports") {
        set_default(port, "protocol", "TCP");
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = present(container, name) {
            self::probe(probe);
        }
    }
    if let Some(lifecycle) = present(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(action) = present(lifecycle, hook).and_then(|h| present(h, "httpGet")) {
                http_get(action);
            }
        }
    }
    for variable in items_mut(container, "env") {
        if let Some(field) = present(variable, "valueFrom").and_then(|v| present(v, "fieldRef")) {
            set_default(field, "apiVersion", "v1");
        }
        if let Some(resource) = present(variable, "valueFrom").and_then(|v| present(v, "resourceFieldRef")) {
            set_default(resource, "divisor", "0");
        }
    }
}

/// `Always` for the tag `latest`, also when it is implied; not for what is no image reference at all.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, false), |(name, _)| (name, true));
    let (path, last) = name.rsplit_once('/').map_or(("", name), |(path, last)| (path, last));
    let (repository, tag) = last.split_once(':').map_or((last, None), |(r, t)| (r, Some(t)));
    if !is_reference(path, repository, tag) {
        return "IfNotPresent";
    }
    match tag {
        Some("latest") => "Always",
        None if !digest => "Always",
        _ => "IfNotPresent",
    }
}

const LONGEST_REPOSITORY: usize = 255;

/// Whether the parts of an image reference are what registries take.
fn is_reference(path: &str, last: &str, tag: Option<&str>) -> bool {
    let component = |part: &str| {
        part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    let mut parts = path.split('/').filter(|_| !path.is_empty()).peekable();
    let host = parts.next_if(|first| first.contains(['.', ':']) || *first == "localhost");
    let host_is_fine = host.is_none_or(|host| {
        host.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-[]".contains(&b)) && !host.ends_with(':')
    });
    let tag_is_fine = tag.is_none_or(|tag| {
        (1..=128).contains(&tag.len())
            && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
            && !tag.starts_with(['.', '-'])
    });
    host_is_fine
        && tag_is_fine
        && parts.all(component)
        && component(last)
        && !path.starts_with('/')
        && path.len() + last.len() < LONGEST_REPOSITORY
}

fn probe(probe: &mut Value) {
    for (key, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if int(probe, key).unwrap_or(0) == 0 {
            set(probe, key, value);
        }
    }
    if let Some(action) = present(probe, "httpGet") {
        http_get(action);
    }
    if let Some(action) = present(probe, "grpc") {
        set_default(action, "service", "");
    }
}

fn http_get(action: &mut Value) {
    set_default(action, "path", "/");
    set_default(action, "scheme", "HTTP");
}

fn volume(volume: &mut Value) {
    if super::volume_kinds(volume).is_empty() {
        child(volume, "emptyDir");
    }
    for kind in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = present(volume, kind) {
            set_default(source, "defaultMode", 0o644);
            files(source);
            items_mut(source, "sources").iter_mut().for_each(projection);
        }
    }
    for kind in ["hostPath", "iscsi", "rbd", "azureDisk", "scaleIO"] {
        if let Some(source) = present(volume, kind) {
            super::sources::default(kind, source);
        }
    }
    if let Some(image) = present(volume, "image") {
        let policy = pull_policy(text(image, "reference"));
        set_default(image, "pullPolicy", policy);
    }
    if let Some(spec) = present(volume, "ephemeral")
        .and_then(|e| present(e, "volumeClaimTemplate"))
        .and_then(|t| present(t, "spec"))
    {
        set_default(spec, "volumeMode", "Filesystem");
    }
}

fn projection(source: &mut Value) {
    if let Some(token) = present(source, "serviceAccountToken") {
        set_default(token, "expirationSeconds", 3600);
    }
    if let Some(downward) = present(source, "downwardAPI") {
        files(downward);
    }
}

fn files(source: &mut Value) {
    for file in items_mut(source, "items") {
        if let Some(field) = present(file, "fieldRef") {
            set_default(field, "apiVersion", "v1");
        }
        if let Some(resource) = present(file, "resourceFieldRef") {
            set_default(resource, "divisor", "0");
        }
    }
}

fn requests_from_limits(container: &mut Value) {
    if let Some(resources) = present(container, "resources") {
        copy_missing(resources);
    }
}

/// A limit without a request is the request too.
fn copy_missing(resources: &mut Value) {
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    if let Some(Value::Object(requests)) = child(resources, "requests") {
        for (name, amount) in limits {
            requests.entry(name).or_insert(amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::pull_policy;

    #[test]
    fn pull_policies() {
        for (image, want) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), want, "{image}");
        }
    }
}
