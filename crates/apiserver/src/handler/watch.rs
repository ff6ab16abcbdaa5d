//! Watch: a cursor into the collection's history, written out as lines of JSON.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use coxswain_api::schema;
use coxswain_meta::Status;
use coxswain_meta::json::{Value, json, to_value};
use coxswain_store::{Compacted, Event, EventKind, Object, Revision, Watch};
use futures::stream;
use http::Response;
use http::header::{CONTENT_TYPE, HeaderValue};
use rand::Rng;
use tokio::time::Instant;

use super::negotiate::{Encoding, Form, Shape};
use super::read::{Selection, parse_version};
use super::{Call, Stored, render};
use crate::body::Body;
use crate::object::Attributes;
use crate::resource::{DEFINITIONS, Resource};
use crate::respond::Outcome;

/// How often an idle watch that allows bookmarks gets one.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// What stands around an object in a line of JSON at the most.
const FRAME_BYTES: usize = 128;
/// Watches without a timeout of their own end after this at the least, and twice this at the most.
const SHORTEST_WATCH_SECONDS: u64 = 1800;
/// Nobody waits longer, whatever they ask for.
const LONGEST_WATCH_SECONDS: u64 = u32::MAX as u64;

impl Call {
    /// A watch of a collection (or, by name, of one object).
    pub async fn watch(&self) -> Outcome {
        let form = self.form()?;
        self.check_list_options(true)?;
        let selection = self.selection()?;
        let bookmarks = self.query.is_true("allowWatchBookmarks");
        let send_initial = self.query.is_true("sendInitialEvents");
        let seconds = self.query.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok());
        let usual = || rand::rng().random_range(SHORTEST_WATCH_SECONDS..2 * SHORTEST_WATCH_SECONDS);
        let seconds = seconds.filter(|seconds| *seconds > 0).unwrap_or_else(usual).min(LONGEST_WATCH_SECONDS);
        let from = parse_version(self.query.get("resourceVersion"));
        // Upstream's watch cache says so, and not as of a request.
        let from = from.map_err(|why| {
            Status::failure(500, "", why.message.trim_start_matches("invalid resource version: ").to_owned())
        });
        let from = from?.filter(|version| *version > 0);
        let mut stream = Stream {
            call: self.clone(),
            as_stored: render::is_storage(&self.kind),
            form,
            include: self.include_object().to_owned(),
            selection,
            bookmarks,
            headings: true,
            end: Instant::now() + Duration::from_secs(seconds),
            watch: None,
            definitions: self.definitions(),
            first: BytesMut::new(),
        };
        match from {
            Some(version) if !send_initial => stream.resume(Revision(version)),
            _ => stream.start(send_initial).await,
        }
        // Boxed, for it moves with every event.
        let body = Body::from_stream(stream::unfold(Box::new(stream), |mut stream| async move {
            stream.next().await.map(|bytes| (bytes, stream))
        }));
        let mut response = Response::new(body);
        let media = match form.encoding {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml;stream=watch",
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        };
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
        Ok(response)
    }
}

/// Waits for a change of a definition; forever where there is none to wait for.
async fn defined_anew(definitions: &mut Option<Watch<Attributes>>) {
    match definitions {
        Some(watch) => drop(watch.next().await),
        None => std::future::pending().await,
    }
}

impl Call {
    /// A watch of the definitions, for a custom resource.
    fn definitions(&self) -> Option<Watch<Attributes>> {
        self.kind.custom()?;
        let now = self.server.store.revision();
        self.server.store.collection(DEFINITIONS).watch("", now).ok()
    }
}

struct Stream {
    call: Call,
    /// Whether objects are served as they are stored.
    as_stored: bool,
    form: Form,
    include: String,
    selection: Selection,
    bookmarks: bool,
    /// Only the first Table of a watch carries the columns.
    headings: bool,
    end: Instant,
    /// None once the stream has said why it ends.
    watch: Option<Watch<Attributes>>,
    /// Of a custom resource: what tells that its definition changed.
    definitions: Option<Watch<Attributes>>,
    first: BytesMut,
}

impl Stream {
    fn resume(&mut self, from: Revision) {
        match self.call.collection().watch(&self.selection.prefix, from) {
            Ok(watch) => self.watch = Some(watch),
            Err(compacted) => self.expire(compacted),
        }
    }

    /// Begins with the current objects as ADDED events.
    async fn start(&mut self, initial_bookmark: bool) {
        let collection = self.call.collection();
        let at = self.call.server.store.revision();
        // The state may be newer than `at` by writes that the watch then delivers again: take the state as of `at`.
        let takes = |object: &Object<Attributes>| self.selection.may_take(object);
        let page = match collection.page(self.selection.range(), at, None, usize::MAX, takes) {
            Ok(page) => page,
            Err(compacted) => return self.expire(compacted),
        };
        let mut first =
            BytesMut::with_capacity(page.objects.iter().map(|object| object.bytes.len() + 32).sum());
        match self.call.server.served(&self.call.kind, page.objects).await {
            Ok(mut objects) => {
                objects.retain(|object| self.selection.takes(object));
                objects.iter().for_each(|object| self.write(&mut first, "ADDED", object));
            }
            Err(status) => {
                let status = to_value(&status).unwrap_or_default();
                let mut line = BytesMut::new();
                self.frame(&mut line, "ERROR", &status);
                self.first = line;
                return;
            }
        }
        if initial_bookmark {
            self.bookmark(&mut first, at, true);
        }
        self.first = first;
        self.resume(at);
    }

    /// Whether the definition went, or gives objects another form than this watch does: clients then begin anew.
    fn is_outdated(&self) -> bool {
        let Some(mine) = self.call.kind.custom() else { return false };
        let kind = &self.call.kind;
        let now = self.call.server.find(kind.group(), kind.version(), kind.plural());
        now.as_ref().and_then(Resource::custom).is_none_or(|now| {
            (&now.definition.uid, now.definition.since) != (&mine.definition.uid, mine.definition.since)
        })
    }

    fn expire(&mut self, compacted: Compacted) {
        let status = Status::too_old(compacted.asked.0, compacted.oldest.0);
        let status = to_value(&status).unwrap_or_default();
        let mut line = BytesMut::new();
        self.frame(&mut line, "ERROR", &status);
        self.first.extend_from_slice(&line);
    }

    async fn next(&mut self) -> Option<Bytes> {
        if !self.first.is_empty() {
            return Some(std::mem::take(&mut self.first).freeze());
        }
        let shutdown = self.call.server.shutdown.clone();
        loop {
            let mut watch = self.watch.take()?;
            let bookmark_at = if self.bookmarks { Instant::now() + BOOKMARK_PERIOD } else { self.end };
            let events = tokio::select! {
                // What is there already is told without asking for the rest.
                biased;
                events = watch.next() => Some(events),
                () = defined_anew(&mut self.definitions) => {
                    self.watch = Some(watch);
                    if self.is_outdated() {
                        return None;
                    }
                    continue;
                }
                () = tokio::time::sleep_until(bookmark_at.min(self.end)) => None,
                () = shutdown.cancelled() => return None,
            };
            let mut out = BytesMut::new();
            let behind = match events {
                Some(Ok(events)) => {
                    out.reserve(events.iter().map(|event| event.object.bytes.len() + FRAME_BYTES).sum());
                    for event in &events {
                        self.event(&mut out, event).await;
                    }
                    None
                }
                Some(Err(compacted)) => Some(compacted),
                None => self.catch_up(&mut watch, &mut out).await.err(),
            };
            match behind {
                Some(compacted) => {
                    self.expire(compacted);
                    out.unsplit(std::mem::take(&mut self.first));
                }
                None if Instant::now() < self.end => self.watch = Some(watch),
                None => {}
            }
            if !out.is_empty() {
                return Some(out.freeze());
            }
        }
    }

    /// Writes everything up to now, and the bookmark that promises it.
    async fn catch_up(&mut self, watch: &mut Watch<Attributes>, out: &mut BytesMut) -> Result<(), Compacted> {
        let at = self.call.server.store.revision();
        loop {
            let events = watch.ready()?;
            if events.is_empty() {
                break;
            }
            for event in &events {
                self.event(out, event).await;
            }
        }
        if self.bookmarks {
            self.bookmark(out, at, false);
        }
        Ok(())
    }

    async fn event(&mut self, out: &mut BytesMut, event: &Event<Attributes>) {
        let (object, previous) = match self.served(event).await {
            Ok(served) => served,
            Err(status) => {
                let status = to_value(&status).unwrap_or_default();
                return self.frame(out, "ERROR", &status);
            }
        };
        let before = previous.is_some_and(|previous| self.selection.takes(&previous));
        let after = event.kind == EventKind::Put && self.selection.takes(&object);
        match (before, after) {
            (false, true) => self.write(out, "ADDED", &object),
            (true, true) => self.write(out, "MODIFIED", &object),
            (true, false) => self.write(out, "DELETED", &object),
            (false, false) => {}
        }
    }

    /// The object of an event, and what it was before, in the form that is served.
    async fn served(&self, event: &Event<Attributes>) -> Result<(Stored, Option<Stored>), Status> {
        let (server, kind) = (&self.call.server, &self.call.kind);
        let object = server.served_one(kind, event.object.clone()).await?;
        let previous = match &event.previous {
            Some(previous) => Some(server.served_one(kind, previous.clone()).await?),
            None => None,
        };
        Ok((object, previous))
    }

    fn write(&mut self, out: &mut BytesMut, event: &str, object: &Stored) {
        let kind = &self.call.kind;
        match (self.form.shape, self.form.encoding) {
            (Shape::Object, Encoding::Json) if self.as_stored => {
                json_frame(out, event, "", &object.bytes, "")
            }
            (Shape::Object, Encoding::Json) => {
                json_frame(out, event, "", &render::bytes(kind, &object.bytes), "");
            }
            (Shape::Metadata(_), Encoding::Json) => {
                let metadata = render::metadata_bytes(kind, &object.bytes);
                json_frame(out, event, render::OUTLINE, &metadata, "}");
            }
            (Shape::Object, Encoding::Protobuf) => {
                protobuf_frame(out, event, &render::protobuf(kind, object).unwrap_or_default());
            }
            (Shape::Object, Encoding::Yaml) => self.frame(out, event, &render::document(kind, &object.bytes)),
            (Shape::Metadata(_), _) => {
                self.frame(out, event, &render::metadata(kind, &render::document(kind, &object.bytes)));
            }
            (Shape::Table, _) => {
                let headings = std::mem::take(&mut self.headings);
                let kind = &self.call.kind;
                let object = render::document(kind, &object.bytes);
                let meta = json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
                let table = render::table(kind, &[object], &self.include, meta, headings);
                self.frame(out, event, &table);
            }
        }
    }

    /// Writes an event with a document.
    fn frame(&self, out: &mut BytesMut, event: &str, object: &Value) {
        match self.form.encoding {
            Encoding::Json => json_frame(out, event, "", object.to_string().as_bytes(), ""),
            Encoding::Yaml => {
                let text = schema::write_yaml(&json!({ "type": event, "object": object }));
                out.extend_from_slice(b"---\n");
                out.extend_from_slice(text.as_bytes());
            }
            Encoding::Protobuf => {
                protobuf_frame(out, event, &schema::encode_protobuf(object).unwrap_or_default());
            }
        }
    }

    fn bookmark(&self, out: &mut BytesMut, at: Revision, initial_end: bool) {
        let mut metadata = json!({ "resourceVersion": at.to_string(), "creationTimestamp": null });
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let kind = &self.call.kind;
        let object: Value = match self.form.shape {
            Shape::Object => {
                json!({ "kind": kind.kind(), "apiVersion": kind.api_version(), "metadata": metadata })
            }
            Shape::Metadata(_) => {
                json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata })
            }
            Shape::Table => render::table(kind, &[], "None", metadata, false),
        };
        self.frame(out, "BOOKMARK", &object);
    }
}

/// A line of JSON with an object between two texts.
fn json_frame(out: &mut BytesMut, event: &str, before: &str, object: &[u8], behind: &str) {
    out.reserve(object.len() + FRAME_BYTES);
    out.extend_from_slice(br#"{"type":""#);
    out.extend_from_slice(event.as_bytes());
    out.extend_from_slice(br#"","object":"#);
    out.extend_from_slice(before.as_bytes());
    out.extend_from_slice(object);
    out.extend_from_slice(behind.as_bytes());
    out.extend_from_slice(b"}\n");
}

/// A length of four bytes, and a `WatchEvent` whose raw object is an enveloped one.
fn protobuf_frame(out: &mut BytesMut, event: &str, object: &[u8]) {
    let (mut raw, mut message) =
        (Vec::with_capacity(object.len() + 8), Vec::with_capacity(object.len() + 32));
    schema::write_field(&mut raw, 1, object);
    schema::write_field(&mut message, 1, event.as_bytes());
    schema::write_field(&mut message, 2, &raw);
    out.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&message);
}
