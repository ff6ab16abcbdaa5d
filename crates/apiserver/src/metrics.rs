//! `/metrics`: what the API server did, under upstream's names.
//! <https://kubernetes.io/docs/reference/instrumentation/metrics/>

use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::Server;
use crate::body::Body;
use crate::request::RequestInfo;
use crate::respond;

const FORM: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
/// Upstream's bounds of `apiserver_request_duration_seconds`.
const SECONDS: [f64; 24] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0, 120.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    #[prometheus(flatten)]
    asked: Asked,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Class {
    request_kind: &'static str,
}

/// The figures of a server.
pub struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter<u64, AtomicU64>>,
    durations: Family<Asked, Histogram>,
    inflight: Family<Class, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("apiserver");
        let requests = Family::default();
        let durations: Family<Asked, Histogram> = Family::new_with_constructor(|| Histogram::new(SECONDS));
        let inflight = Family::default();
        registry.register(
            "request",
            "Requests by what was asked and the code of the answer",
            requests.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "Time to the head of the answer, by what was asked; watches are left out",
            Unit::Seconds,
            durations.clone(),
        );
        registry.register(
            "current_inflight_requests",
            "Requests that are being answered, watches left out",
            inflight.clone(),
        );
        Self { registry, requests, durations, inflight }
    }
}

/// A request that is being answered.
pub struct Running<'a> {
    metrics: &'a Metrics,
    asked: Asked,
    inflight: Option<Gauge>,
    since: Instant,
}

impl Metrics {
    /// Begins a request.
    pub fn begin(&self, info: &RequestInfo) -> Running<'_> {
        let asked = Asked {
            verb: verb(info),
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            scope: match () {
                () if !info.is_resource => "",
                () if !info.name.is_empty() => "resource",
                () if !info.namespace.is_empty() => "namespace",
                () => "cluster",
            },
        };
        let reads = matches!(info.verb, "get" | "list");
        let class = Class { request_kind: if reads { "readOnly" } else { "mutating" } };
        let inflight = (info.verb != "watch").then(|| self.inflight.get_or_create(&class).clone());
        if let Some(inflight) = &inflight {
            inflight.inc();
        }
        Running { metrics: self, asked, inflight, since: Instant::now() }
    }
}

/// Upstream's names of verbs; a path that is no resource has the method's.
fn verb(info: &RequestInfo) -> &'static str {
    match info.verb {
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        "list" => "LIST",
        "watch" => "WATCH",
        "get" => "GET",
        _ => "other",
    }
}

impl Running<'_> {
    /// Ends it with the code of its answer. A resource that nobody serves is counted without its name: names are many.
    pub fn end(mut self, code: StatusCode) {
        if code == StatusCode::NOT_FOUND || code == StatusCode::FORBIDDEN || code == StatusCode::UNAUTHORIZED
        {
            self.asked = Asked {
                verb: self.asked.verb,
                group: String::new(),
                version: String::new(),
                resource: String::new(),
                subresource: String::new(),
                scope: "",
            };
        }
        if self.inflight.is_some() {
            self.metrics.durations.get_or_create(&self.asked).observe(self.since.elapsed().as_secs_f64());
        }
        let answered = Answered { asked: self.asked.clone(), code: code.as_u16() };
        self.metrics.requests.get_or_create(&answered).inc();
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(inflight) = &self.inflight {
            inflight.dec();
        }
    }
}

/// Answers `/metrics`.
pub fn answer(server: &Server) -> Response<Body> {
    let mut text = String::new();
    if encode(&mut text, &server.metrics.registry).is_err() {
        return respond::text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n");
    }
    let end = text.rfind("# EOF").unwrap_or(text.len());
    text.truncate(end);
    objects(server, &mut text);
    if let Some(flow) = &server.flow {
        flow.write_metrics(&mut text);
    }
    if let Some(auditor) = &server.config.access.audit {
        auditor.write_metrics(&mut text);
    }
    process(&mut text);
    text.push_str("# EOF\n");
    let mut response = respond::text(StatusCode::OK, text);
    response.headers_mut().insert(CONTENT_TYPE, FORM);
    response
}

/// What is known without counting along: objects by resource.
fn objects(server: &Server, text: &mut String) {
    text.push_str("# HELP apiserver_resource_objects Stored objects by resource.\n");
    text.push_str("# TYPE apiserver_resource_objects gauge\n");
    for (collection, count) in server.store.sizes() {
        let (resource, group) = collection.split_once('.').unwrap_or((&collection, ""));
        let _ =
            writeln!(text, "apiserver_resource_objects{{group=\"{group}\",resource=\"{resource}\"}} {count}");
    }
}

/// The process: memory and processor time.
fn process(text: &mut String) {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let statm = read("/proc/self/statm");
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    let stat = read("/proc/self/stat");
    // The name of the process may hold blanks; what follows its parenthesis does not.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|&at| fields.get(at)?.parse::<u64>().ok()).sum();
    let spent = Duration::from_millis(ticks * 10).as_secs_f64();
    let resident = pages * 4096;
    let _ = write!(
        text,
        "# HELP process_resident_memory_bytes Resident memory size in bytes.\n\
         # TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {resident}\n\
         # HELP process_cpu_seconds Total user and system CPU time spent in seconds.\n\
         # TYPE process_cpu_seconds counter\nprocess_cpu_seconds_total {spent}\n"
    );
}
