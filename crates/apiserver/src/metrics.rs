//! `/metrics`: what the API server did, under upstream's names.
//! <https://kubernetes.io/docs/reference/instrumentation/metrics/>

use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hashbrown::{Equivalent, HashMap};
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

/// `Answered` as a request is looked for: its hash must be the same.
#[derive(Hash)]
struct Row<'a> {
    verb: &'static str,
    group: &'a str,
    version: &'a str,
    resource: &'a str,
    subresource: &'a str,
    scope: &'static str,
    code: u16,
}

impl<'a> Row<'a> {
    /// A resource that nobody serves is counted without its name: names are many.
    fn of(info: &'a RequestInfo, code: StatusCode) -> Self {
        let unnamed =
            matches!(code, StatusCode::NOT_FOUND | StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED);
        let known = |text: &'a str| if unnamed { "" } else { text };
        Self {
            verb: verb(info),
            group: known(&info.group),
            version: known(&info.version),
            resource: known(&info.resource),
            subresource: known(&info.subresource),
            scope: match () {
                () if unnamed || !info.is_resource => "",
                () if !info.name.is_empty() => "resource",
                () if !info.namespace.is_empty() => "namespace",
                () => "cluster",
            },
            code: code.as_u16(),
        }
    }

    fn owned(&self) -> Answered {
        let asked = Asked {
            verb: self.verb,
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            resource: self.resource.to_owned(),
            subresource: self.subresource.to_owned(),
            scope: self.scope,
        };
        Answered { asked, code: self.code }
    }
}

impl Equivalent<Answered> for Row<'_> {
    fn equivalent(&self, key: &Answered) -> bool {
        let Answered { asked, code } = key;
        self.code == *code
            && self.resource == asked.resource
            && self.verb == asked.verb
            && self.scope == asked.scope
            && self.subresource == asked.subresource
            && self.group == asked.group
            && self.version == asked.version
    }
}

/// Where a request is counted.
struct Counts {
    requests: Counter<u64, AtomicU64>,
    /// None of watches.
    durations: Option<Histogram>,
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
    inflight: [Gauge; 2],
    /// The members of the families, found without a copy of what is looked for.
    rows: RwLock<HashMap<Answered, Counts>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("apiserver");
        let requests = Family::default();
        let durations: Family<Asked, Histogram> = Family::new_with_constructor(|| Histogram::new(SECONDS));
        let inflight: Family<Class, Gauge> = Family::default();
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
        let inflight = ["readOnly", "mutating"]
            .map(|request_kind| inflight.get_or_create(&Class { request_kind }).clone());
        Self { registry, requests, durations, inflight, rows: RwLock::default() }
    }
}

/// A request that is being answered.
pub struct Running<'a> {
    metrics: &'a Metrics,
    info: Arc<RequestInfo>,
    inflight: Option<&'a Gauge>,
    since: Instant,
}

impl Metrics {
    /// Begins a request.
    pub fn begin(&self, info: &Arc<RequestInfo>) -> Running<'_> {
        let [reading, writing] = &self.inflight;
        let class = if matches!(info.verb, "get" | "list") { reading } else { writing };
        let inflight = (info.verb != "watch").then_some(class);
        if let Some(inflight) = inflight {
            inflight.inc();
        }
        Running { metrics: self, info: info.clone(), inflight, since: Instant::now() }
    }

    fn count(&self, row: &Row<'_>, took: Option<Duration>) {
        let count = |counts: &Counts| {
            counts.requests.inc();
            if let (Some(took), Some(durations)) = (took, &counts.durations) {
                durations.observe(took.as_secs_f64());
            }
        };
        if let Some(counts) = self.rows.read().unwrap_or_else(PoisonError::into_inner).get(row) {
            return count(counts);
        }
        let key = row.owned();
        let counts = Counts {
            requests: self.requests.get_or_create(&key).clone(),
            durations: took.map(|_| self.durations.get_or_create(&key.asked).clone()),
        };
        count(&counts);
        self.rows.write().unwrap_or_else(PoisonError::into_inner).insert(key, counts);
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
    /// Ends it with the code of its answer.
    pub fn end(self, code: StatusCode) {
        let took = self.inflight.is_some().then(|| self.since.elapsed());
        self.metrics.count(&Row::of(&self.info, code), took);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(inflight) = self.inflight {
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

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::request::Query;

    #[test]
    fn requests_are_counted_by_what_they_ask_and_are_answered() {
        let metrics = Metrics::default();
        for (path, code) in [
            ("/api/v1/namespaces/a/pods/b", 200),
            ("/api/v1/namespaces/a/pods/c", 200),
            ("/api/v1/namespaces/a/pods/b", 500),
            ("/api/v1/namespaces/a/secrets/b", 404),
            ("/api/v1/nodes?watch=1", 200),
        ] {
            let (path, query) = path.split_once('?').unwrap_or((path, ""));
            let info = Arc::new(RequestInfo::parse(&Method::GET, path, &Query::parse(query)));
            metrics.begin(&info).end(StatusCode::from_u16(code).unwrap());
        }
        let mut text = String::new();
        encode(&mut text, &metrics.registry).unwrap();
        let row = |verb: &str, version: &str, resource: &str, scope: &str| {
            format!(
                "verb=\"{verb}\",group=\"\",version=\"{version}\",resource=\"{resource}\",subresource=\"\",scope=\"{scope}\""
            )
        };
        let pods = row("GET", "v1", "pods", "resource");
        let nodes = row("WATCH", "v1", "nodes", "cluster");
        for line in [
            format!("apiserver_request_total{{{pods},code=\"200\"}} 2\n"),
            format!("apiserver_request_total{{{pods},code=\"500\"}} 1\n"),
            format!("apiserver_request_total{{{},code=\"404\"}} 1\n", row("GET", "", "", "")),
            format!("apiserver_request_total{{{nodes},code=\"200\"}} 1\n"),
            format!("apiserver_request_duration_seconds_count{{{pods}}} 3\n"),
            "apiserver_current_inflight_requests{request_kind=\"readOnly\"} 0\n".to_owned(),
        ] {
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
        assert!(!text.contains(&format!("apiserver_request_duration_seconds_count{{{nodes}}}")), "{text}");
    }
}
