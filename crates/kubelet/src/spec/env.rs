//! The environment of a container: `$(VAR)` references, every source of values, and the variables that tell of services.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use coxswain_client::ObjectKey;
use k8s_openapi::api::core::v1::{ConfigMap, EnvFromSource, EnvVarSource, Secret, Service};

use super::container::{ConfigError, ContainerInput};
use super::fields;
use crate::kubelet::Kubelet;
use crate::model::PodId;
use crate::objects::ObjectError;
use crate::pod::containers::spec;

/// Replaces `$(NAME)` by the variable's value; `$$` is a dollar; unknown names stay as they are.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => result.push_str(&value),
                None => result.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    result
}

/// Variables in the order in which they were set; a later value replaces an earlier one in place.
#[derive(Default)]
pub struct Environment {
    variables: Vec<(String, String)>,
    index: HashMap<String, usize>,
}

impl Environment {
    fn set(&mut self, name: &str, value: String) {
        match self.index.get(name) {
            Some(at) => self.variables[*at].1 = value,
            None => {
                self.index.insert(name.to_owned(), self.variables.len());
                self.variables.push((name.to_owned(), value));
            }
        }
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<String> {
        self.index.get(name).map(|at| self.variables[*at].1.clone())
    }

    /// All variables.
    pub fn into_vec(self) -> Vec<(String, String)> {
        self.variables
    }
}

/// The environment of a container.
pub async fn environment(kubelet: &Kubelet, input: &ContainerInput<'_>) -> Result<Environment, ConfigError> {
    let mut result = Environment::default();
    for from in input.container.env_from.iter().flatten() {
        for (name, value) in all_of(kubelet, input, from).await? {
            result.set(&name, value);
        }
    }
    kubelet.services.synced().await;
    let services = service_variables(kubelet, input);
    for variable in input.container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) if !value.is_empty() => {
                expand(value, |name| result.get(name).or_else(|| services.get(name).cloned()))
            }
            (_, Some(source)) => match one_of(kubelet, input, source).await? {
                Some(value) => value,
                None => continue,
            },
            _ => String::new(),
        };
        result.set(&variable.name, value);
    }
    for (name, value) in services {
        if !result.index.contains_key(&name) {
            result.set(&name, value);
        }
    }
    Ok(result)
}

async fn config_map(
    kubelet: &Kubelet,
    input: &ContainerInput<'_>,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<Arc<ConfigMap>>, ConfigError> {
    let id = PodId::of(input.pod);
    lenient(kubelet.config_maps.get(&id.uid, &id.namespace, name).await, optional)
}

async fn secret(
    kubelet: &Kubelet,
    input: &ContainerInput<'_>,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<Arc<Secret>>, ConfigError> {
    let id = PodId::of(input.pod);
    lenient(kubelet.secrets.get(&id.uid, &id.namespace, name).await, optional)
}

fn lenient<K>(
    found: Result<Arc<K>, ObjectError>,
    optional: Option<bool>,
) -> Result<Option<Arc<K>>, ConfigError> {
    match found {
        Ok(object) => Ok(Some(object)),
        Err(ObjectError::NotFound(..)) if optional == Some(true) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn text(bytes: &k8s_openapi::ByteString) -> String {
    String::from_utf8_lossy(&bytes.0).into_owned()
}

async fn all_of(
    kubelet: &Kubelet,
    input: &ContainerInput<'_>,
    from: &EnvFromSource,
) -> Result<Vec<(String, String)>, ConfigError> {
    let prefix = from.prefix.as_deref().unwrap_or_default();
    let mut variables = Vec::new();
    if let Some(source) = &from.config_map_ref
        && let Some(map) = config_map(kubelet, input, &source.name, source.optional).await?
    {
        variables
            .extend(map.data.iter().flatten().map(|(key, value)| (format!("{prefix}{key}"), value.clone())));
    }
    if let Some(source) = &from.secret_ref
        && let Some(secret) = secret(kubelet, input, &source.name, source.optional).await?
    {
        variables
            .extend(secret.data.iter().flatten().map(|(key, value)| (format!("{prefix}{key}"), text(value))));
    }
    variables.retain(|(name, _)| !name.is_empty() && !name.contains('='));
    Ok(variables)
}

async fn one_of(
    kubelet: &Kubelet,
    input: &ContainerInput<'_>,
    source: &EnvVarSource,
) -> Result<Option<String>, ConfigError> {
    let namespace = PodId::of(input.pod).namespace;
    let missing = |key: &str, kind: &str, name: &str| ConfigError::NoKey {
        key: key.to_owned(),
        kind: kind.to_owned(),
        object: format!("{namespace}/{name}"),
    };
    if let Some(selector) = &source.field_ref {
        let field = fields::field(input.pod, &selector.field_path, input.ips, &kubelet.host_ips)?;
        return Ok(Some(field));
    }
    if let Some(selector) = &source.resource_field_ref {
        let allocatable = kubelet.node.allocatable();
        return Ok(Some(fields::resource(input.pod, selector, Some(input.container), &allocatable)?));
    }
    if let Some(selector) = &source.config_map_key_ref {
        let optional = selector.optional;
        let Some(map) = config_map(kubelet, input, &selector.name, optional).await? else { return Ok(None) };
        let value = map.data.as_ref().and_then(|data| data.get(&selector.key)).cloned();
        return match value {
            None if optional != Some(true) => Err(missing(&selector.key, "ConfigMap", &selector.name)),
            value => Ok(value),
        };
    }
    if let Some(selector) = &source.secret_key_ref {
        let optional = selector.optional;
        let Some(secret) = secret(kubelet, input, &selector.name, optional).await? else { return Ok(None) };
        let value = secret.data.as_ref().and_then(|data| data.get(&selector.key)).map(text);
        return match value {
            None if optional != Some(true) => Err(missing(&selector.key, "Secret", &selector.name)),
            value => Ok(value),
        };
    }
    Ok(Some(String::new()))
}

fn service_variables(kubelet: &Kubelet, input: &ContainerInput<'_>) -> BTreeMap<String, String> {
    let namespace = PodId::of(input.pod).namespace;
    let kubernetes = kubelet.services.get(&ObjectKey::new("default", "kubernetes"));
    let mut services: Vec<Arc<Service>> = kubernetes.into_iter().collect();
    if spec(input.pod).enable_service_links.unwrap_or(true) {
        services.extend(kubelet.services.in_namespace(&namespace));
    }
    services.iter().flat_map(|service| variables_of(service)).collect()
}

/// The variables one service gives to pods; none without a cluster address.
fn variables_of(service: &Service) -> Vec<(String, String)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
        return Vec::new();
    };
    let Some(ports) = spec.ports.as_ref().filter(|ports| !ports.is_empty()) else { return Vec::new() };
    let upper = |name: &str| name.to_uppercase().replace('-', "_");
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let prefix = upper(service.metadata.name.as_deref().unwrap_or_default());
    let mut variables = vec![
        (format!("{prefix}_SERVICE_HOST"), ip.to_owned()),
        (format!("{prefix}_SERVICE_PORT"), ports[0].port.to_string()),
    ];
    for port in ports {
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            variables.push((format!("{prefix}_SERVICE_PORT_{}", upper(name)), port.port.to_string()));
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            variables.push((format!("{prefix}_PORT"), url.clone()));
        }
        let name = format!("{prefix}_PORT_{}_{protocol}", port.port);
        variables.extend([
            (name.clone(), url),
            (format!("{name}_PROTO"), protocol.to_lowercase()),
            (format!("{name}_PORT"), port.port.to_string()),
            (format!("{name}_ADDR"), ip.to_owned()),
        ]);
    }
    variables
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_are_expanded_once() {
        let lookup = |name: &str| (name == "A").then(|| "$(B)".to_owned());
        let check = |text: &str, expected: &str| assert_eq!(expand(text, lookup), expected, "{text}");
        check("x-$(A)-y", "x-$(B)-y");
        check("$(C)", "$(C)");
        check("$$(A)", "$(A)");
        check("$A $( $", "$A $( $");
        check("$$$(A)", "$$(B)");
    }

    #[test]
    fn a_service_is_told_in_docker_links_style() {
        let service: Service = serde_json::from_value(json!({
            "metadata": { "name": "my-db" },
            "spec": { "clusterIP": "10.43.0.7", "ports": [{ "name": "sql", "port": 5432 }] },
        }))
        .expect("a service");
        let variables: BTreeMap<_, _> = variables_of(&service).into_iter().collect();
        assert_eq!(variables["MY_DB_SERVICE_HOST"], "10.43.0.7");
        assert_eq!(variables["MY_DB_SERVICE_PORT_SQL"], "5432");
        assert_eq!(variables["MY_DB_PORT"], "tcp://10.43.0.7:5432");
        assert_eq!(variables["MY_DB_PORT_5432_TCP_ADDR"], "10.43.0.7");
        assert_eq!(variables.len(), 8);
    }
}
