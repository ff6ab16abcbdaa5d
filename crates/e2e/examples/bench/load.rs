//! The phases of the load: each asks from many clients, each on a connection of its own, and prints rate and latency.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use hyper::Method;
use rand::Rng;
use serde_json::json;

use crate::client::{Client, JSON, PROTOBUF, Target};
use crate::{Arguments, figure};

/// How long a phase goes on.
enum Until {
    /// Once for every pod.
    Pods,
    /// For the time asked for.
    Time,
    /// This often, one after the other.
    Times(usize),
}

/// One kind of request.
pub struct Phase {
    /// Its name.
    pub name: &'static str,
    until: Until,
    accept: &'static str,
    request: fn(&Load, usize) -> (Method, String, Bytes),
}

/// Applications that the pods are spread over: the label of each selects a hundredth of them.
const APPS: usize = 100;

/// All of them, in their order.
pub const PHASES: &[Phase] = &[
    Phase {
        name: "create",
        until: Until::Pods,
        accept: JSON,
        request: |load, at| (Method::POST, load.base.clone(), pod(at)),
    },
    Phase {
        name: "get",
        until: Until::Time,
        accept: JSON,
        request: |load, _| {
            (Method::GET, load.path(rand::rng().random_range(0..load.arguments.pods)), Bytes::new())
        },
    },
    Phase { name: "list_json", until: Until::Times(7), accept: JSON, request: Load::list },
    Phase { name: "list_protobuf_first", until: Until::Times(1), accept: PROTOBUF, request: Load::list },
    Phase { name: "list_protobuf", until: Until::Times(7), accept: PROTOBUF, request: Load::list },
    Phase {
        name: "selector_list",
        until: Until::Time,
        accept: JSON,
        request: |load, at| {
            let path = format!("{}?resourceVersion=0&labelSelector=app%3Dapp-{}", load.base, at % APPS);
            (Method::GET, path, Bytes::new())
        },
    },
    Phase {
        name: "patch",
        until: Until::Time,
        accept: JSON,
        request: |load, at| (Method::PATCH, load.path(at), annotate("n", at as u128)),
    },
    Phase {
        name: "delete",
        until: Until::Pods,
        accept: JSON,
        request: |load, at| (Method::DELETE, format!("{}?gracePeriodSeconds=0", load.path(at)), Bytes::new()),
    },
];

/// A merge patch that sets an annotation.
pub fn annotate(name: &str, value: u128) -> Bytes {
    json!({ "metadata": { "annotations": { name: value.to_string() } } }).to_string().into()
}

/// A pod that is stored in about 3.2 KB and that nobody schedules.
fn pod(at: usize) -> Bytes {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod_name(at),
            "labels": { "app": format!("app-{}", at % APPS), "tier": "backend", "release": "stable",
                "pod-template-hash": "5d4f8c7b9" },
            "annotations": { "description": "x".repeat(200), "checksum/config": "a".repeat(64) },
        },
        "spec": {
            "schedulerName": "nobody",
            "containers": [{
                "name": "main", "image": "registry.example/app:v1", "args": ["--port=8080", "--verbose"],
                "env": [{ "name": "A", "value": "1" }, { "name": "B", "value": "v".repeat(100) }],
                "ports": [{ "name": "http", "containerPort": 8080 }],
                "resources": { "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "memory": "256Mi" } },
                "readinessProbe": { "httpGet": { "path": "/healthz", "port": 8080 } },
                "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
            }],
            "volumes": [{ "name": "data", "emptyDir": {} }],
        },
    });
    pod.to_string().into()
}

/// The load on one server.
pub struct Load {
    arguments: Arc<Arguments>,
    target: Arc<Target>,
    base: String,
}

impl Load {
    /// Load as the arguments say.
    pub fn new(arguments: Arc<Arguments>, target: Arc<Target>) -> Arc<Self> {
        let base = pods(&arguments.namespace);
        Arc::new(Self { arguments, target, base })
    }

    fn path(&self, at: usize) -> String {
        format!("{}/{}", self.base, pod_name(at % self.arguments.pods))
    }

    fn list(&self, _: usize) -> (Method, String, Bytes) {
        (Method::GET, format!("{}?resourceVersion=0", self.base), Bytes::new())
    }

    /// Makes the namespace and the account of its pods, unless they are there.
    pub async fn prepare(&self) -> anyhow::Result<()> {
        let mut client = self.target.connect().await?;
        let namespace = &self.arguments.namespace;
        let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        for (path, kind, name) in [
            ("/api/v1/namespaces", "Namespace", namespace.as_str()),
            (&accounts, "ServiceAccount", "default"),
        ] {
            let object = json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name } });
            match client.json(Method::POST, path, object.to_string().into()).await {
                Err(error) if !error.to_string().contains("409") => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes some ConfigMaps, unless they are there.
    pub async fn fill_small(&self, count: usize) -> anyhow::Result<()> {
        let mut client = self.target.connect().await?;
        for at in 0..count {
            let object = json!({ "metadata": { "name": small(at) }, "data": { "key": "value" } });
            let path = small_objects(&self.arguments.namespace);
            match client.json(Method::POST, &path, object.to_string().into()).await {
                Err(error) if !error.to_string().contains("409") => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Runs a phase and prints its figures.
    pub async fn run(self: &Arc<Self>, phase: &'static Phase) -> anyhow::Result<()> {
        let clients = if matches!(phase.until, Until::Times(_)) { 1 } else { self.arguments.clients };
        let mut connections = Vec::with_capacity(clients);
        for _ in 0..clients {
            connections.push(self.target.connect().await?);
        }
        let next = Arc::new(AtomicUsize::new(0));
        let (begin, before) = (Instant::now(), self.arguments.processes.cpu());
        let end = begin + Duration::from_secs(self.arguments.seconds);
        let work = connections
            .into_iter()
            .map(|client| tokio::spawn(self.clone().work(phase, client, next.clone(), end)));
        let work: Vec<_> = work.collect();
        let mut all = Vec::new();
        let mut length = 0;
        for worker in work {
            let (took, longest) = worker.await??;
            all.extend(took);
            length = length.max(longest);
        }
        let seconds = begin.elapsed().as_secs_f64();
        all.sort_unstable();
        let median = all.get(all.len() / 2).context("nothing was asked")?;
        if let Until::Times(_) = phase.until {
            figure(&format!("{}_ms", phase.name), format!("{:.1}", ms(*median)));
            figure(&format!("{}_mb", phase.name), format!("{:.1}", length as f64 / 1e6));
        } else {
            figure(&format!("{}_per_s", phase.name), format!("{:.0}", all.len() as f64 / seconds));
            figure(&format!("{}_p50_ms", phase.name), format!("{:.2}", ms(*median)));
            figure(&format!("{}_p99_ms", phase.name), format!("{:.2}", ms(all[all.len() * 99 / 100])));
        }
        self.arguments.processes.cost(phase.name, &before, all.len());
        Ok(())
    }

    /// What one client does: its times, and the length of the longest answer.
    async fn work(
        self: Arc<Self>,
        phase: &'static Phase,
        mut client: Client,
        next: Arc<AtomicUsize>,
        end: Instant,
    ) -> anyhow::Result<(Vec<Duration>, usize)> {
        let (mut took, mut longest) = (Vec::new(), 0);
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let over = match phase.until {
                Until::Pods => at >= self.arguments.pods,
                Until::Time => Instant::now() >= end,
                Until::Times(times) => at >= times,
            };
            if over {
                return Ok((took, longest));
            }
            let (method, path, body) = (phase.request)(&self, at);
            let begin = Instant::now();
            let length = client.ask(method, &path, phase.accept, body).await?;
            took.push(begin.elapsed());
            longest = longest.max(length);
        }
    }
}

/// The name of a pod.
pub fn pod_name(at: usize) -> String {
    format!("pod-{at:06}")
}

/// The pods of a namespace.
pub fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

/// The ConfigMaps of a namespace.
pub fn small_objects(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps")
}

/// The name of a ConfigMap.
pub fn small(at: usize) -> String {
    format!("small-{at:04}")
}

/// Milliseconds.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
