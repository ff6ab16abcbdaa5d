//! What a request asks for, read from its method, path and query.

use std::borrow::Cow;
use std::num::{IntErrorKind, ParseIntError};
use std::time::Duration;

use coxswain_meta::Status;
use http::Method;

/// The parts of a request that authorization and dispatch read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// The path as it was sent, without query.
    pub path: String,
    /// Whether the path names a resource.
    pub is_resource: bool,
    /// `get`, `list`, `create`… for resources, the lower-case method otherwise.
    pub verb: &'static str,
    /// API group; empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace; empty for the cluster scope.
    pub namespace: String,
    /// Plural of the resource.
    pub resource: String,
    /// Object name; empty for collections.
    pub name: String,
    /// Subresource; empty for the object itself.
    pub subresource: String,
    /// What follows the subresource (`proxy` has paths of its own), with its leading slash.
    pub tail: String,
    /// The field selector of a list, watch or deletion of many.
    pub field_selector: String,
}

/// The query of a request.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses the text behind `?`.
    pub fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The first value of a parameter; empty values count as missing.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// Every parameter with its value, in their order.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Every value of a parameter.
    pub fn all(&self, name: &'static str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A parameter that is a number.
    ///
    /// # Errors
    /// It is set, and none that fits.
    pub fn integer(&self, name: &'static str) -> Result<Option<i64>, Status> {
        let Some(text) = self.all(name).next() else { return Ok(None) };
        text.parse().map(Some).map_err(|error: ParseIntError| {
            Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: {}", parse_fault(&error)))
        })
    }

    /// Whether a boolean parameter is set and not false.
    pub fn is_true(&self, name: &'static str) -> bool {
        self.all(name).next().is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }
}

impl RequestInfo {
    /// Reads a request.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let written = path.split('/').filter(|part| !part.is_empty());
        let decoded: Vec<_> =
            if path.contains('%') { written.clone().map(decode).collect() } else { Vec::new() };
        let mut parts: Vec<&str> = Vec::with_capacity(8);
        match decoded.is_empty() {
            true => parts.extend(written),
            false => parts.extend(decoded.iter().map(|part| &**part)),
        }
        let plain = || Self { path: path.to_owned(), verb: plain_verb(method), ..Self::default() };
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return plain(),
        };
        let (rest, watch) = match rest {
            ["watch", rest @ ..] if !rest.is_empty() => (rest, true),
            rest => (rest, false),
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, sub] if matches!(*sub, "status" | "finalize") => (*namespace, rest),
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            ["namespaces", namespace] => (*namespace, rest),
            rest => ("", rest),
        };
        let part = |at: usize| rest.get(at).copied().unwrap_or_default().to_owned();
        let (mut name, watch) = (part(1), watch || query.is_true("watch"));
        let verb = resource_verb(method, name.is_empty(), watch);
        let mut field_selector = String::new();
        if name.is_empty() && matches!(verb, "list" | "watch" | "deletecollection") {
            field_selector = query.get("fieldSelector").unwrap_or_default().to_owned();
            // A list of one is allowed to those who may see that one.
            if verb != "deletecollection" {
                name = only_name(&field_selector).unwrap_or_default().to_owned();
            }
        }
        Self {
            path: path.to_owned(),
            is_resource: true,
            verb,
            group: group.to_owned(),
            version: version.to_owned(),
            namespace: namespace.to_owned(),
            resource: part(0),
            name,
            subresource: part(2),
            tail: rest
                .get(3..)
                .filter(|tail| !tail.is_empty())
                .map(|tail| format!("/{}", tail.join("/")))
                .unwrap_or_default(),
            field_selector,
        }
    }

    /// Whether the answer may take as long as the client likes.
    pub fn is_long_running(&self) -> bool {
        self.is_resource
            && (matches!(self.verb, "watch" | "proxy")
                || matches!(self.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward"))
    }

    /// How long the request may take: what it says itself, within the server's bound.
    pub fn time_limit(&self, query: &Query, most: Duration) -> Result<Option<Duration>, Status> {
        if self.is_long_running() {
            return Ok(None);
        }
        let Some(asked) = query.get("timeout") else { return Ok(Some(most)) };
        let asked = go_duration(asked).ok_or_else(|| {
            Status::bad_request(format!(
                "invalid timeout specified in the request URL - time: invalid duration {asked:?}"
            ))
        })?;
        Ok(Some(if asked.is_zero() { most } else { asked.min(most) }))
    }
}

/// What Go says of a text that is no number.
pub fn parse_fault(error: &ParseIntError) -> &'static str {
    match error.kind() {
        IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
        _ => "invalid syntax",
    }
}

/// A span as Go writes it: numbers with units, such as `1m30s`.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(digits);
        let unit = behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit);
        let scale = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * scale;
        rest = behind;
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(seconds).ok())?
}

/// The name that a field selector asks for.
fn only_name(selector: &str) -> Option<&str> {
    let mut terms = selector.split(',').filter_map(|term| term.trim().strip_prefix("metadata.name="));
    let name = terms.next()?.trim_start_matches('=');
    (!name.is_empty() && !name.contains(['/', '%', '\\', ' ']) && name != "." && name != "..").then_some(name)
}

fn decode(part: &str) -> Cow<'_, str> {
    percent_encoding::percent_decode_str(part).decode_utf8_lossy()
}

fn plain_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "options",
    }
}

fn resource_verb(method: &Method, collection: bool, watch: bool) -> &'static str {
    match *method {
        Method::GET | Method::HEAD if watch => "watch",
        Method::GET | Method::HEAD if collection => "list",
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if collection => "deletecollection",
        Method::DELETE => "delete",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_resources() {
        let cases = [
            ("GET /api/v1/namespaces/a/pods/b/log", "get  v1 a pods b log "),
            ("GET /apis/apps/v1/deployments?watch=true", "watch apps v1  deployments   "),
            ("DELETE /api/v1/namespaces/a/pods", "deletecollection  v1 a pods   "),
            ("PUT /api/v1/namespaces/a/finalize", "update  v1 a namespaces a finalize "),
            ("GET /api/v1/pods?fieldSelector=spec.nodeName=n,metadata.name=b", "list  v1  pods b  "),
            ("GET /api/v1/namespaces/a", "get  v1 a namespaces a  "),
            ("GET /api/v1/namespaces", "list  v1  namespaces   "),
            ("GET /api/v1/nodes/n/proxy/logs/x", "get  v1  nodes n proxy /logs/x"),
            ("POST /apis", "post       "),
        ];
        for (request, want) in cases {
            let (method, url) = request.split_once(' ').unwrap();
            let (path, query) = url.split_once('?').unwrap_or((url, ""));
            let got = RequestInfo::parse(&method.parse().unwrap(), path, &Query::parse(query));
            let got = [
                got.verb,
                &got.group,
                &got.version,
                &got.namespace,
                &got.resource,
                &got.name,
                &got.subresource,
                &got.tail,
            ];
            assert_eq!(got.join(" "), want, "{request}");
        }
    }

    #[test]
    fn requests_say_how_long_they_may_take() {
        let limit = |url: &str| {
            let (path, query) = url.split_once('?').unwrap_or((url, ""));
            let query = Query::parse(query);
            RequestInfo::parse(&Method::GET, path, &query).time_limit(&query, Duration::from_secs(60))
        };
        assert_eq!(limit("/api/v1/pods").unwrap(), Some(Duration::from_secs(60)));
        assert_eq!(limit("/api/v1/pods?timeout=1m30s").unwrap(), Some(Duration::from_secs(60)));
        assert_eq!(limit("/api/v1/pods?timeout=1.5s").unwrap(), Some(Duration::from_millis(1500)));
        assert_eq!(limit("/api/v1/pods?timeout=0").unwrap(), Some(Duration::from_secs(60)));
        assert_eq!(limit("/api/v1/pods?watch=1&timeout=1s").unwrap(), None);
        assert_eq!(limit("/api/v1/namespaces/a/pods/b/log").unwrap(), None);
        for wrong in ["x", "5", "-1s", "1y"] {
            assert_eq!(limit(&format!("/api/v1/pods?timeout={wrong}")).unwrap_err().code, 400, "{wrong}");
        }
    }
}
