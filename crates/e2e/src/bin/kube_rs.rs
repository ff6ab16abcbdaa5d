//! A controller on kube-rs, as its users write them: a finalizer, server-side apply, waiting for deletion.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::finalizer::{Event, finalizer};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde_json::json;

const FINALIZER: &str = "example.com/tidy";
const OBJECTS: usize = 20;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_default().await?;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let mine = watcher::Config::default().labels("of=kube-rs");
    let controller = Controller::new(maps.clone(), mine).run(reconcile, retry, Arc::new(client));
    let running = tokio::spawn(controller.for_each(async |_| {}));
    tokio::time::timeout(Duration::from_secs(120), objects(&maps)).await??;
    running.abort();
    println!("ok");
    Ok(())
}

async fn objects(maps: &Api<ConfigMap>) -> anyhow::Result<()> {
    for number in 0..OBJECTS {
        let name = format!("kube-rs-{number}");
        let made = serde_json::from_value(json!({"metadata": {"name": name, "labels": {"of": "kube-rs"}}}))?;
        maps.create(&PostParams::default(), &made).await?;
    }
    for number in 0..OBJECTS {
        let name = format!("kube-rs-{number}");
        let seen = |map: Option<&ConfigMap>| map.is_some_and(|map| map.annotations().contains_key("seen"));
        await_condition(maps.clone(), &name, seen).await?;
        let map = maps.get(&name).await?;
        maps.delete(&name, &DeleteParams::default()).await?;
        await_condition(maps.clone(), &name, conditions::is_deleted(&map.uid().unwrap_or_default())).await?;
    }
    let left = maps.list(&ListParams::default().labels("of=kube-rs")).await?;
    anyhow::ensure!(left.items.is_empty(), "{} are left", left.items.len());
    Ok(())
}

async fn reconcile(
    map: Arc<ConfigMap>,
    client: Arc<Client>,
) -> Result<Action, kube::runtime::finalizer::Error<kube::Error>> {
    let maps: Api<ConfigMap> = Api::default_namespaced((*client).clone());
    finalizer(&maps.clone(), FINALIZER, map, async |event| {
        if let Event::Apply(map) = event {
            let seen = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"annotations": {"seen": "true"}},
            });
            maps.patch(&map.name_any(), &PatchParams::apply("kube-rs"), &Patch::Apply(seen)).await?;
        }
        Ok(Action::await_change())
    })
    .await
}

fn retry(_: Arc<ConfigMap>, _: &kube::runtime::finalizer::Error<kube::Error>, _: Arc<Client>) -> Action {
    Action::requeue(Duration::from_millis(100))
}
