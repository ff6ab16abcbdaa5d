//! Which resources the server has now: the built-in ones, and those that users add and remove (KEP-3352).

use coxswain_client::Client;
use kube::api::ApiResource;
use serde_json::Value;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A resource in the version that the server prefers.
#[derive(Clone, Debug, PartialEq)]
pub struct Discovered {
    /// Its names.
    pub resource: ApiResource,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    verbs: Vec<String>,
}

impl Discovered {
    /// Whether it serves all of these verbs.
    pub fn serves(&self, verbs: &[&str]) -> bool {
        verbs.iter().all(|verb| self.verbs.iter().any(|served| served == verb))
    }
}

/// Asks the server for its resources.
///
/// # Errors
/// It does not answer.
pub async fn discover(client: &Client) -> Result<Vec<Discovered>, kube::Error> {
    let mut found: Vec<Discovered> = Vec::new();
    for path in ["/api", "/apis"] {
        let request = http::Request::get(path)
            .header(http::header::ACCEPT, AGGREGATED)
            .body(Vec::new())
            .map_err(kube::Error::HttpError)?;
        let groups: Value = client.request(request).await?;
        for group in list(&groups, "items") {
            for resource in of_group(group) {
                let same = |known: &Discovered| {
                    (&known.resource.group, &known.resource.plural)
                        == (&resource.resource.group, &resource.resource.plural)
                };
                // Versions come with the preferred one first.
                if !found.iter().any(same) {
                    found.push(resource);
                }
            }
        }
    }
    Ok(found)
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn of_group(group: &Value) -> Vec<Discovered> {
    let name = text(&group["metadata"], "name");
    let of_version = |version: &Value| {
        let (group, number) = (name.clone(), text(version, "version"));
        let resources: Vec<Discovered> = list(version, "resources")
            .map(|resource| Discovered {
                resource: ApiResource {
                    api_version: if group.is_empty() { number.clone() } else { format!("{group}/{number}") },
                    group: group.clone(),
                    version: number.clone(),
                    kind: text(&resource["responseKind"], "kind"),
                    plural: text(resource, "resource"),
                },
                namespaced: resource["scope"] == "Namespaced",
                verbs: list(resource, "verbs").filter_map(Value::as_str).map(str::to_owned).collect(),
            })
            .collect();
        resources
    };
    list(group, "versions").flat_map(of_version).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn resources_of_a_group_are_read() {
        let group = json!({ "metadata": { "name": "e.io" }, "versions": [{ "version": "v1", "resources": [
            { "resource": "tabs", "responseKind": { "kind": "Tab" }, "scope": "Namespaced", "verbs": ["list", "watch"] }] }] });
        let found = of_group(&group);
        assert_eq!(
            (found[0].resource.api_version.as_str(), found[0].resource.kind.as_str()),
            ("e.io/v1", "Tab")
        );
        assert!(found[0].namespaced && found[0].serves(&["list"]) && !found[0].serves(&["delete"]));
    }
}
