//! Which form of an object or list a client asked for.

use coxswain_meta::Status;
use http::HeaderMap;
use http::header::ACCEPT;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The object itself.
    Object,
    /// A `Table` of printed columns.
    Table,
    /// Type and metadata only.
    Metadata,
}

const MEDIA_TYPES: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

impl Form {
    /// The first form of the `Accept` header that is served.
    ///
    /// # Errors
    /// 406 where none is.
    pub fn accepted(headers: &HeaderMap) -> Result<Self, Status> {
        let mut accept = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
        if accept.peek().is_none() {
            return Ok(Self::Object);
        }
        accept
            .flat_map(|value| value.split(','))
            .find_map(Self::of_range)
            .ok_or_else(|| Status::not_acceptable(MEDIA_TYPES))
    }

    fn of_range(range: &str) -> Option<Self> {
        let mut parts = range.split(';').map(str::trim);
        if !matches!(parts.next()?, "application/json" | "application/*" | "*/*") {
            return None;
        }
        let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
        let get = |name: &str| parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        match (get("as"), get("g"), get("v")) {
            (None, ..) => Some(Self::Object),
            (Some("Table"), Some("meta.k8s.io"), Some("v1")) => Some(Self::Table),
            (
                Some("PartialObjectMetadata" | "PartialObjectMetadataList"),
                Some("meta.k8s.io"),
                Some("v1"),
            ) => Some(Self::Metadata),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_served_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        for (accept, form) in [
            (kubectl, Some(Form::Table)),
            ("application/vnd.kubernetes.protobuf, application/json", Some(Form::Object)),
            ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Some(Form::Metadata)),
            ("*/*", Some(Form::Object)),
            ("text/html", None),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            assert_eq!(Form::accepted(&headers).ok(), form, "{accept}");
        }
    }
}
