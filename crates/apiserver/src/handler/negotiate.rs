//! Which form of an object or list a client asked for.

use coxswain_meta::Status;
use http::HeaderMap;
use http::header::ACCEPT;

/// What an answer shows of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The object itself.
    Object,
    /// A `Table` of printed columns.
    Table,
    /// Type and metadata only; `true` where the client named the list of it.
    Metadata(bool),
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Kubernetes' protobuf form; built-in kinds only.
    Protobuf,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// What is shown.
    pub shape: Shape,
    /// How it is written.
    pub encoding: Encoding,
}

/// The media types of objects.
const MEDIA_TYPES: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// What lists and watches produce besides.
const STREAM_MEDIA_TYPES: &[&str] =
    &["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];

/// Refuses what upstream's router finds no route for: built-in kinds are served for exact media types only, whatever parameters
/// they carry.
///
/// # Errors
/// 406 where the client takes none of them.
pub fn routed(headers: &HeaderMap, streams: bool) -> Result<(), Status> {
    let mut accept = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    // The router reads the first header alone.
    let Some(first) = accept.next().filter(|first| !first.is_empty()) else { return Ok(()) };
    let mut ranges = first.split(',').map(|range| range.split(';').next().unwrap_or_default().trim());
    if ranges.any(|media| media == "*/*" || MEDIA_TYPES.contains(&media)) {
        return Ok(());
    }
    let produced = if streams { [MEDIA_TYPES, STREAM_MEDIA_TYPES].concat() } else { MEDIA_TYPES.to_vec() };
    Err(Status::not_routed(
        406,
        &format!("Not Acceptable\n\nAvailable representations: {}", produced.join(", ")),
    ))
}

impl Form {
    /// The object as JSON.
    pub const JSON: Form = Form { shape: Shape::Object, encoding: Encoding::Json };

    /// The first form of the `Accept` header that is served; protobuf only where there is a message type.
    ///
    /// # Errors
    /// 406 where none is.
    pub fn accepted(headers: &HeaderMap, has_message: bool) -> Result<Self, Status> {
        let mut accept = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
        if accept.peek().is_none() {
            return Ok(Self::JSON);
        }
        accept
            .flat_map(|value| value.split(','))
            .filter_map(Self::of_range)
            .find(|form| has_message || form.encoding != Encoding::Protobuf)
            .ok_or_else(|| Status::not_acceptable(MEDIA_TYPES))
    }

    fn of_range(range: &str) -> Option<Self> {
        let mut parts = range.split(';').map(str::trim);
        let encoding = match parts.next()? {
            "application/json" | "application/*" | "*/*" => Encoding::Json,
            "application/yaml" => Encoding::Yaml,
            "application/vnd.kubernetes.protobuf" => Encoding::Protobuf,
            _ => return None,
        };
        let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
        let get = |name: &str| parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let shape = match (get("as"), get("g"), get("v")) {
            (None, ..) => Shape::Object,
            (Some("Table"), Some("meta.k8s.io"), Some("v1")) if encoding != Encoding::Protobuf => {
                Shape::Table
            }
            (Some("PartialObjectMetadata"), Some("meta.k8s.io"), Some("v1")) => Shape::Metadata(false),
            (Some("PartialObjectMetadataList"), Some("meta.k8s.io"), Some("v1")) => Shape::Metadata(true),
            _ => return None,
        };
        Some(Self { shape, encoding })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_served_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let form = |shape, encoding| Some(Form { shape, encoding });
        let protobuf = "application/vnd.kubernetes.protobuf, application/json";
        for (accept, has_message, expected) in [
            (kubectl, true, form(Shape::Table, Encoding::Json)),
            (protobuf, true, form(Shape::Object, Encoding::Protobuf)),
            (protobuf, false, form(Shape::Object, Encoding::Json)),
            ("application/vnd.kubernetes.protobuf", false, None),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                true,
                form(Shape::Metadata(true), Encoding::Protobuf),
            ),
            ("application/yaml", true, form(Shape::Object, Encoding::Yaml)),
            ("*/*", true, form(Shape::Object, Encoding::Json)),
            ("text/html", true, None),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            assert_eq!(Form::accepted(&headers, has_message).ok(), expected, "{accept}");
        }
    }

    #[test]
    fn the_router_takes_exact_types_only() {
        for (accept, message) in [
            ("application/json;as=Bogus", None),
            ("text/html, */*;q=0.8", None),
            (
                "application/*",
                Some(
                    "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, application/vnd.kubernetes.protobuf",
                ),
            ),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            let refused = routed(&headers, false).err();
            assert_eq!(refused.map(|status| status.message.clone()).as_deref(), message, "{accept}");
        }
    }
}
