//! Records what happened to objects as `Event`s; like events within ten minutes are counted instead of repeated.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const SAME_EVENT_WINDOW: Duration = Duration::from_secs(600);
const REMEMBERED: usize = 4096;

/// The two types of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Information only.
    Normal,
    /// Something a user may have to look at.
    Warning,
}

impl EventType {
    fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Occurrence {
    uid: String,
    field_path: Option<String>,
    kind: EventType,
    reason: String,
    message: String,
}

struct Queued {
    object: ObjectReference,
    occurrence: Occurrence,
}

/// A handle that takes events without waiting; they are written in the background, and dropped when the API server is away.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Queued>,
}

impl Recorder {
    /// Starts the writer of a component's events. `host` is empty for components that belong to no node.
    pub fn new(client: Client, component: &str, host: &str, cancel: CancellationToken) -> Self {
        let (sender, receiver) = mpsc::channel(1024);
        let source = EventSource {
            component: Some(component.to_owned()),
            host: (!host.is_empty()).then(|| host.to_owned()),
        };
        tokio::spawn(async move { cancel.run_until_cancelled(write(client, source, receiver)).await });
        Self { sender }
    }

    /// Records an event about an object.
    pub fn event<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.event_ref(object.object_ref(&()), kind, reason, message);
    }

    /// Records an event about the object (or the part of it, by `field_path`) that a reference names.
    pub fn event_ref(
        &self,
        object: ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let occurrence = Occurrence {
            uid: object.uid.clone().unwrap_or_default(),
            field_path: object.field_path.clone(),
            kind,
            reason: reason.to_owned(),
            message: message.into(),
        };
        if self.sender.try_send(Queued { object, occurrence }).is_err() {
            tracing::debug!(reason, "event dropped");
        }
    }
}

struct Written {
    namespace: String,
    name: String,
    count: i32,
    at: Instant,
}

async fn write(client: Client, source: EventSource, mut receiver: mpsc::Receiver<Queued>) {
    let mut written: HashMap<Occurrence, Written> = HashMap::new();
    while let Some(queued) = receiver.recv().await {
        if written.len() > REMEMBERED {
            written.retain(|_, event| event.at.elapsed() < SAME_EVENT_WINDOW);
        }
        if let Some(same) = written.get_mut(&queued.occurrence)
            && same.at.elapsed() < SAME_EVENT_WINDOW
        {
            let (count, now) = (same.count + 1, Time(Timestamp::now()));
            let patch = Patch::Merge(serde_json::json!({ "count": count, "lastTimestamp": now }));
            let events: Api<Event> = Api::namespaced(client.clone(), &same.namespace);
            if events.patch(&same.name, &PatchParams::default(), &patch).await.is_ok() {
                (same.count, same.at) = (count, Instant::now());
                continue;
            }
        }
        let event = first(&queued, &source);
        let (namespace, name) = (event.namespace().unwrap_or_default(), event.name_any());
        match Api::namespaced(client.clone(), &namespace).create(&PostParams::default(), &event).await {
            Ok(_) => {
                written.insert(queued.occurrence, Written { namespace, name, count: 1, at: Instant::now() });
            }
            Err(error) => tracing::debug!(%error, reason = queued.occurrence.reason, "event not written"),
        }
    }
}

fn first(queued: &Queued, source: &EventSource) -> Event {
    let now = Timestamp::now();
    let object = queued.object.clone();
    let namespace = object.namespace.clone().unwrap_or_else(|| "default".to_owned());
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:x}", object.name.as_deref().unwrap_or_default(), now.as_nanosecond())),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        involved_object: object,
        reason: Some(queued.occurrence.reason.clone()),
        message: Some(queued.occurrence.message.clone()),
        type_: Some(queued.occurrence.kind.name().to_owned()),
        source: Some(source.clone()),
        reporting_component: source.component.clone(),
        reporting_instance: source.host.clone(),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        ..Event::default()
    }
}
