//! Aggregated cluster roles: their rules are those of the roles they select.

use coxswain_client::{Client, Informer, ObjectKey, Requeue, WorkQueue};
use coxswain_meta::json::to_value;
use coxswain_meta::labels::Selector;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::context::{Context, ignore};

struct Controller {
    client: Client,
    roles: Informer<ClusterRole>,
}

/// Runs the controller.
pub async fn run(context: &Context) {
    let controller = Controller { client: context.client(), roles: context.informer() };
    controller.roles.synced().await;
    let queue = WorkQueue::new();
    let roles = controller.roles.clone();
    // Any role may be selected by any aggregated one.
    controller.roles.feed(&queue, move |_| {
        let aggregated = roles.list().into_iter().filter(|role| role.aggregation_rule.is_some());
        aggregated.map(|role| role.name_any()).collect::<Vec<_>>()
    });
    context.drive("clusterrole-aggregation", queue, 1, |name| controller.reconcile(name)).await;
}

impl Controller {
    async fn reconcile(&self, name: String) -> Result<Requeue, kube::Error> {
        let Some(role) = self.roles.get(&ObjectKey::cluster(&name)) else { return Ok(Requeue::OnChange) };
        let Some(aggregation) = &role.aggregation_rule else { return Ok(Requeue::OnChange) };
        let selectors: Vec<Selector> = aggregation
            .cluster_role_selectors
            .iter()
            .flatten()
            .filter_map(|selector| Selector::from_label_selector(&to_value(selector).ok()?).ok())
            .collect();
        let mut rules: Vec<PolicyRule> = Vec::new();
        for other in self.roles.list() {
            if other.name_any() != name && selectors.iter().any(|selector| selector.matches(other.labels())) {
                for rule in other.rules.iter().flatten() {
                    if !rules.contains(rule) {
                        rules.push(rule.clone());
                    }
                }
            }
        }
        if role.rules.clone().unwrap_or_default() == rules {
            return Ok(Requeue::OnChange);
        }
        let api: Api<ClusterRole> = Api::all(self.client.clone());
        let patch = Patch::Merge(json!({ "rules": rules }));
        let patched = api.patch(&name, &PatchParams::default(), &patch).await;
        patched.map(|_| Requeue::OnChange).or_else(|error| ignore(error, &[404]).map(|()| Requeue::OnChange))
    }
}
