//! The downward API: fields of the pod and resources of its containers as text. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use crate::model::PodId;
use crate::pod::containers::{self, spec};
use crate::quantities::{self, Resources};

/// Why a field has no text.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FieldError {
    /// No such field.
    #[error("unsupported fieldPath: {0}")]
    Unsupported(String),
    /// No such container.
    #[error("container {0} not found")]
    NoContainer(String),
    /// No such resource.
    #[error("unsupported container resource : {0}")]
    NoResource(String),
}

fn escape(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 2);
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c => text.push(c),
        }
    }
    text
}

/// Labels or annotations, one `key="value"` a line.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> =
        map.into_iter().flatten().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
    lines.join("\n")
}

/// A field of the pod; `ips` are the pod's addresses, `host_ips` the node's.
pub fn field(pod: &Pod, path: &str, ips: &[String], host_ips: &[String]) -> Result<String, FieldError> {
    let id = PodId::of(pod);
    let keyed = |map: Option<&BTreeMap<String, String>>, rest: &str| {
        let key = rest.strip_suffix("']")?;
        Some(map.and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    let (labels, annotations) = (pod.metadata.labels.as_ref(), pod.metadata.annotations.as_ref());
    let subscript = |prefix: &str, map| path.strip_prefix(prefix).and_then(|rest| keyed(map, rest));
    if let Some(value) =
        subscript("metadata.labels['", labels).or_else(|| subscript("metadata.annotations['", annotations))
    {
        return Ok(value);
    }
    Ok(match path {
        "metadata.name" => id.name,
        "metadata.namespace" => id.namespace,
        "metadata.uid" => id.uid,
        "metadata.labels" => lines(labels),
        "metadata.annotations" => lines(annotations),
        "spec.nodeName" => spec(pod).node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec(pod).service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => host_ips.join(","),
        "status.podIP" => ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => ips.join(","),
        _ => return Err(FieldError::Unsupported(path.to_owned())),
    })
}

/// A resource of a container; `of` is the container that asks, `allocatable` the node's, which unset limits mean.
pub fn resource(
    pod: &Pod,
    selector: &ResourceFieldSelector,
    of: Option<&Container>,
    allocatable: &Resources,
) -> Result<String, FieldError> {
    let named = selector.container_name.as_deref().filter(|name| !name.is_empty());
    let found = named.map(|name| containers::find(pod, name).map(|(_, c)| c));
    let container = match found {
        Some(None) => return Err(FieldError::NoContainer(named.unwrap_or_default().to_owned())),
        Some(Some(container)) => container,
        None => of.cloned().ok_or_else(|| FieldError::NoContainer(String::new()))?,
    };
    let (side, name) = selector
        .resource
        .split_once('.')
        .filter(|(side, _)| matches!(*side, "limits" | "requests"))
        .ok_or_else(|| FieldError::NoResource(selector.resource.clone()))?;
    let resources = container.resources.as_ref();
    let quantity = match side {
        "limits" => quantities::limit(resources, name).or_else(|| allocatable.get(name)),
        _ => quantities::request(resources, name),
    };
    let nanos =
        |q| if name == "cpu" { quantities::milli(q) } else { quantities::units(q).saturating_mul(1000) };
    let amount = quantity.map_or(0, nanos);
    let divisor = selector.divisor.as_ref().map_or(0, quantities::milli);
    let divisor = if divisor <= 0 { 1000 } else { divisor };
    // Rounded up, as upstream.
    Ok(((i128::from(amount) + i128::from(divisor) - 1) / i128::from(divisor)).to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "p", "namespace": "n", "uid": "u",
                "labels": { "a": "1", "b/c": "two \"words\"" } },
            "spec": { "nodeName": "node", "containers": [{ "name": "c",
                "resources": { "limits": { "memory": "64Mi" }, "requests": { "cpu": "250m" } } }] },
        }))
        .expect("a pod")
    }

    #[test]
    fn fields_read_as_text() {
        let ips = ["10.0.0.1".to_owned(), "fd00::1".to_owned()];
        let read = |path| field(&pod(), path, &ips, &[]);
        assert_eq!(read("metadata.labels['b/c']"), Ok("two \"words\"".to_owned()));
        assert_eq!(read("metadata.labels"), Ok("a=\"1\"\nb/c=\"two \\\"words\\\"\"".to_owned()));
        assert_eq!(read("status.podIPs"), Ok("10.0.0.1,fd00::1".to_owned()));
        assert_eq!(read("spec.volumes"), Err(FieldError::Unsupported("spec.volumes".to_owned())));
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let allocatable: Resources =
            serde_json::from_value(json!({ "cpu": "2", "memory": "1Gi" })).expect("resources");
        let check = |name: &str, divisor: &str, expected: &str| {
            let selector: ResourceFieldSelector =
                serde_json::from_value(json!({ "containerName": "c", "resource": name, "divisor": divisor }))
                    .expect("a selector");
            assert_eq!(resource(&pod(), &selector, None, &allocatable).as_deref(), Ok(expected), "{name}");
        };
        check("requests.cpu", "0", "1");
        check("requests.cpu", "1m", "250");
        check("limits.memory", "1Mi", "64");
        check("limits.cpu", "1", "2");
        check("requests.memory", "1", "67108864");
    }
}
