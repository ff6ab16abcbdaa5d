//! What every namespace has: the account `default`, and the cluster's authority as a ConfigMap.

use std::collections::BTreeMap;

use coxswain_client::{Client, Informer, ObjectKey, Requeue, WorkQueue};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::context::{Context, ignore};

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";

struct Controller {
    client: Client,
    ca_pem: String,
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
    root_cas: Informer<ConfigMap>,
}

/// Runs the controller.
pub async fn run(context: &Context) {
    let controller = Controller {
        client: context.client(),
        ca_pem: context.config.ca_pem.clone(),
        namespaces: context.informer(),
        accounts: context.informer(),
        root_cas: context.factory.informer_by_fields(&format!("metadata.name={ROOT_CA}")),
    };
    controller.namespaces.synced().await;
    controller.accounts.synced().await;
    controller.root_cas.synced().await;
    let queue = WorkQueue::new();
    controller.namespaces.feed(&queue, |change| [change.object().name_any()]);
    controller.accounts.feed(&queue, |change| change.object().namespace());
    controller.root_cas.feed(&queue, |change| change.object().namespace());
    context.drive("serviceaccount", queue, 2, |namespace| controller.reconcile(namespace)).await;
}

impl Controller {
    async fn reconcile(&self, namespace: String) -> Result<Requeue, kube::Error> {
        let lives = self
            .namespaces
            .get(&ObjectKey::cluster(&namespace))
            .is_some_and(|of| of.metadata.deletion_timestamp.is_none());
        if !lives {
            return Ok(Requeue::OnChange);
        }
        let metadata = |name: &str| ObjectMeta {
            name: Some(name.into()),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        };
        if self.accounts.get(&ObjectKey::new(&namespace, ACCOUNT)).is_none() {
            let account = ServiceAccount { metadata: metadata(ACCOUNT), ..ServiceAccount::default() };
            let api = Api::namespaced(self.client.clone(), &namespace);
            api.create(&PostParams::default(), &account)
                .await
                .map(drop)
                .or_else(|error| ignore(error, &[403, 404, 409]))?;
        }
        let data = BTreeMap::from([("ca.crt".to_owned(), self.ca_pem.clone())]);
        let api = Api::namespaced(self.client.clone(), &namespace);
        match self.root_cas.get(&ObjectKey::new(&namespace, ROOT_CA)) {
            Some(map) if map.data.as_ref() == Some(&data) => {}
            Some(_) => {
                let patch = Patch::Merge(json!({ "data": data }));
                api.patch(ROOT_CA, &PatchParams::default(), &patch)
                    .await
                    .map(drop)
                    .or_else(|error| ignore(error, &[404]))?;
            }
            None => {
                let map = ConfigMap { metadata: metadata(ROOT_CA), data: Some(data), ..ConfigMap::default() };
                api.create(&PostParams::default(), &map)
                    .await
                    .map(drop)
                    .or_else(|error| ignore(error, &[403, 404, 409]))?;
            }
        }
        Ok(Requeue::OnChange)
    }
}
