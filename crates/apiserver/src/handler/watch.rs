//! Watch: a cursor into the collection's history, written out as lines of JSON.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use coxswain_meta::Status;
use coxswain_store::{Compacted, Event, EventKind, Object, Revision, Watch};
use futures::stream;
use http::Response;
use http::header::{CONTENT_TYPE, HeaderValue};
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::read::{Selection, parse_version};
use super::{Call, Form, render};
use crate::object::Attributes;
use crate::respond::Outcome;

/// How often an idle watch that allows bookmarks gets one.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// Watches without a timeout of their own end after this at the least, and twice this at the most.
const SHORTEST_WATCH_SECONDS: u64 = 1800;

impl Call {
    /// A watch of a collection (or, by name, of one object).
    pub fn watch(&self) -> Outcome {
        let form = Form::accepted(&self.headers)?;
        let selection = self.selection()?;
        let bookmarks = self.query.is_true("allowWatchBookmarks");
        let send_initial = self.query.is_true("sendInitialEvents");
        let seconds = match self.query.get("timeoutSeconds").map(str::parse::<u64>) {
            Some(Ok(seconds)) if seconds > 0 => seconds,
            None | Some(Ok(_)) => {
                rand::rng().random_range(SHORTEST_WATCH_SECONDS..2 * SHORTEST_WATCH_SECONDS)
            }
            Some(Err(_)) => return Err(Status::bad_request("timeoutSeconds must be a non-negative integer")),
        };
        let from = parse_version(self.query.get("resourceVersion"))?.filter(|version| *version > 0);
        let mut stream = Stream {
            call: self.clone(),
            form,
            include: self.include_object().to_owned(),
            selection,
            bookmarks,
            headings: true,
            end: Instant::now() + Duration::from_secs(seconds),
            watch: None,
            first: BytesMut::new(),
        };
        match from {
            Some(version) if !send_initial => stream.resume(Revision(version)),
            _ => stream.start(send_initial),
        }
        let body = Body::from_stream(stream::unfold(stream, |mut stream| async move {
            stream.next().await.map(|bytes| (Ok::<Bytes, std::convert::Infallible>(bytes), stream))
        }));
        let mut response = Response::new(body);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }
}

struct Stream {
    call: Call,
    form: Form,
    include: String,
    selection: Selection,
    bookmarks: bool,
    /// Only the first Table of a watch carries the columns.
    headings: bool,
    end: Instant,
    /// None once the stream has said why it ends.
    watch: Option<Watch<Attributes>>,
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
    fn start(&mut self, initial_bookmark: bool) {
        let collection = self.call.collection();
        let at = self.call.server.store.revision();
        // The state may be newer than `at` by writes that the watch then delivers again: take the state as of `at`.
        let takes = |object: &Object<Attributes>| self.selection.takes(&object.name, &object.attributes);
        let page = match collection.page(&self.selection.prefix, at, None, usize::MAX, takes) {
            Ok(page) => page,
            Err(compacted) => return self.expire(compacted),
        };
        let mut first =
            BytesMut::with_capacity(page.objects.iter().map(|object| object.bytes.len() + 32).sum());
        for object in &page.objects {
            self.write(&mut first, "ADDED", &object.bytes);
        }
        if initial_bookmark {
            self.bookmark(&mut first, at, true);
        }
        self.first = first;
        self.resume(at);
    }

    fn expire(&mut self, compacted: Compacted) {
        let status = Status::too_old(compacted.asked.0, compacted.oldest.0);
        let line = json!({ "type": "ERROR", "object": status }).to_string();
        self.first.extend_from_slice(line.as_bytes());
        self.first.extend_from_slice(b"\n");
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
                events = watch.next() => Some(events),
                () = tokio::time::sleep_until(bookmark_at.min(self.end)) => None,
                () = shutdown.cancelled() => return None,
            };
            let mut out = BytesMut::new();
            let behind = match events {
                Some(Ok(events)) => {
                    events.iter().for_each(|event| self.event(&mut out, event));
                    None
                }
                Some(Err(compacted)) => Some(compacted),
                None => self.catch_up(&mut watch, &mut out).err(),
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
    fn catch_up(&mut self, watch: &mut Watch<Attributes>, out: &mut BytesMut) -> Result<(), Compacted> {
        let at = self.call.server.store.revision();
        loop {
            let events = watch.ready()?;
            if events.is_empty() {
                break;
            }
            events.iter().for_each(|event| self.event(out, event));
        }
        if self.bookmarks {
            self.bookmark(out, at, false);
        }
        Ok(())
    }

    fn event(&mut self, out: &mut BytesMut, event: &Event<Attributes>) {
        let takes = |attributes: &Attributes| self.selection.takes(&event.object.name, attributes);
        let before = event.previous.as_ref().is_some_and(|previous| takes(&previous.attributes));
        let after = event.kind == EventKind::Put && takes(&event.object.attributes);
        match (before, after) {
            (false, true) => self.write(out, "ADDED", &event.object.bytes),
            (true, true) => self.write(out, "MODIFIED", &event.object.bytes),
            (true, false) => self.write(out, "DELETED", &event.object.bytes),
            (false, false) => {}
        }
    }

    fn write(&mut self, out: &mut BytesMut, kind: &str, stored: &Bytes) {
        out.extend_from_slice(format!(r#"{{"type":"{kind}","object":"#).as_bytes());
        match self.form {
            Form::Object => out.extend_from_slice(&render::bytes(self.call.kind, stored)),
            Form::Metadata => {
                let object = render::metadata(&render::document(self.call.kind, stored));
                out.extend_from_slice(object.to_string().as_bytes());
            }
            Form::Table => {
                let object = render::document(self.call.kind, stored);
                let meta = json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
                let headings = std::mem::take(&mut self.headings);
                let table = render::table(self.call.kind, &[object], &self.include, meta, headings);
                out.extend_from_slice(table.to_string().as_bytes());
            }
        }
        out.extend_from_slice(b"}\n");
    }

    fn bookmark(&self, out: &mut BytesMut, at: Revision, initial_end: bool) {
        let mut metadata = json!({ "resourceVersion": at.to_string(), "creationTimestamp": null });
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let kind = self.call.kind;
        let object: Value = match self.form {
            Form::Object => {
                json!({ "kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata })
            }
            Form::Metadata => {
                json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata })
            }
            Form::Table => render::table(kind, &[], "None", metadata, false),
        };
        out.extend_from_slice(json!({ "type": "BOOKMARK", "object": object }).to_string().as_bytes());
        out.extend_from_slice(b"\n");
    }
}
