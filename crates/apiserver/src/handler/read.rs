//! Get and list.

use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use base64::{DecodeError, Engine};
use coxswain_meta::{Status, fields, labels};
use coxswain_store::{Object, Range, Revision};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{Call, render};
use crate::object::{Attributes, Labels};
use crate::request::parse_fault;
use crate::resource::Resource;
use crate::respond::Outcome;

/// Which objects of a collection a request selects.
#[derive(Clone)]
pub struct Selection {
    kind: Resource,
    labels: labels::Selector,
    fields: fields::Selector,
    /// The one name in the collection that is meant.
    only: Option<String>,
    /// What the names in the collection start with: `namespace/`, or nothing.
    pub prefix: String,
    /// What all that is selected is found by.
    terms: Vec<String>,
}

impl Selection {
    /// Whether it selects by fields inside of objects, which are to be read in the form that is served.
    fn looks_inside(&self) -> bool {
        let inside =
            |term: &fields::Term| !matches!(term.field.as_str(), "metadata.name" | "metadata.namespace");
        self.kind.custom().is_some() && self.fields.terms().iter().any(inside)
    }

    /// The part of the collection to look through.
    pub fn range(&self) -> Range<'_> {
        Range { prefix: &self.prefix, terms: &self.terms }
    }

    /// Whether all that is found in the range is selected: one term is looked up, of several only the rarest.
    fn is_its_range(&self) -> bool {
        let found = self.labels.is_everything() || (self.labels.size() == 1 && self.terms.len() == 1);
        found && self.fields.is_everything() && self.only.is_none()
    }

    /// Whether an object may be selected, by what is known of it as it is stored.
    pub fn may_take(&self, object: &Object<Attributes>) -> bool {
        self.only.as_deref().is_none_or(|only| *only == *object.name)
            && self.labels.matches_with(&|key| object.attributes.labels.get(key))
            && (self.fields.is_everything() || self.looks_inside() || self.takes_fields(object))
    }

    /// Whether an object in the form that is served is selected.
    pub fn takes(&self, object: &Object<Attributes>) -> bool {
        self.may_take(object) && (!self.looks_inside() || self.takes_fields(object))
    }

    fn takes_fields(&self, object: &Object<Attributes>) -> bool {
        let attributes = &object.attributes;
        let (namespace, name) = object.name.split_once('/').unwrap_or(("", &object.name));
        let custom = self.kind.custom().map(|custom| custom.selectable_fields(&object.bytes));
        let custom = custom.unwrap_or_default();
        self.fields.matches(&|field| match field {
            "metadata.name" => Some(name),
            "metadata.namespace" => Some(namespace),
            _ => match &self.kind {
                Resource::BuiltIn(kind) => {
                    let stored = kind.stored_field(field);
                    attributes.fields.iter().find(|(key, _)| *key == stored).map(|(_, value)| &**value)
                }
                Resource::Custom(_) => {
                    custom.iter().find(|(key, _)| key == field).map(|(_, value)| value.as_str())
                }
            },
        })
    }
}

impl Call {
    /// The selection of a request, checked against the fields that the kind can be selected by.
    pub fn selection(&self) -> Result<Selection, Status> {
        let labels = labels::Selector::parse(self.query.get("labelSelector").unwrap_or_default())
            .map_err(|error| Status::bad_request(error.0))?;
        let fields = fields::Selector::parse(self.query.get("fieldSelector").unwrap_or_default())
            .map_err(|error| Status::bad_request(error.0))?;
        for term in fields.terms() {
            self.check_field(&term.field)?;
        }
        let namespace = &self.info.namespace;
        let prefix = match self.kind.namespaced() && !namespace.is_empty() {
            true => format!("{namespace}/"),
            false => String::new(),
        };
        // One name may stand for objects of many namespaces.
        let one = !self.info.name.is_empty() && (!prefix.is_empty() || !self.kind.namespaced());
        let only = one.then(|| format!("{prefix}{}", self.info.name));
        let terms = labels.equalities().map(|(key, value)| Labels::term(key, value)).collect();
        Ok(Selection { kind: self.kind.clone(), labels, fields, only, prefix, terms })
    }

    /// Refuses a field that the kind cannot be selected by, in the words of who reads the selectors of the kind.
    fn check_field(&self, field: &str) -> Result<(), Status> {
        let kind = &self.kind;
        // Addresses came last to have fields of their own.
        let own_words = kind.has_selectable_fields() && kind.plural() != "ipaddresses";
        let known = match field {
            "metadata.name" => true,
            "metadata.namespace" => kind.namespaced() || !own_words,
            field => kind.selects_by(field),
        };
        if known {
            return Ok(());
        }
        Err(Status::bad_request(match (kind.group(), own_words) {
            (_, false) => format!(
                "\"{field}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
            ),
            ("batch", _) => format!("field label \"{field}\" not supported for Job"),
            (group @ "resource.k8s.io", _) => {
                let gvk = format!("{group}/{}, Kind={}", kind.version(), kind.kind());
                format!("field label not supported for {gvk}: {field}")
            }
            _ => format!("field label not supported: {field}"),
        }))
    }

    pub(super) fn include_object(&self) -> &str {
        self.query.get("includeObject").unwrap_or("Metadata")
    }

    /// GET of one object.
    pub async fn get(&self) -> Outcome {
        let form = self.form()?;
        let stored = self.server.served_one(&self.kind, self.stored()?).await?;
        Ok(render::object(&self.kind, form, StatusCode::OK, &stored.bytes, self.include_object()))
    }

    /// GET of a collection.
    pub async fn list(&self) -> Outcome {
        let form = self.form()?;
        self.check_list_options(false)?;
        let selection = self.selection()?;
        let now = self.server.store.revision();
        let window = Window::of(self, now)?;
        let collection = self.collection();
        let whole = window.limit == usize::MAX && window.at == now && window.after.is_none();
        // Writes that come in meanwhile belong to a later revision than the one the list names.
        if let Some(mut objects) = whole.then(|| collection.list_at(selection.range(), now)).flatten() {
            if !selection.is_its_range() {
                objects.retain(|object| selection.may_take(object));
            }
            let mut objects = self.server.served(&self.kind, objects).await?;
            if self.kind.custom().is_some() {
                objects.retain(|object| selection.takes(object));
            }
            let meta = render::list_meta(now, None);
            return Ok(render::list(&self.kind, form, &objects, meta, self.include_object()));
        }
        let oldest = self.server.pages.oldest();
        if window.after.is_some() && window.at < oldest {
            return Err(window.expired(oldest, now));
        }
        let limit = if selection.looks_inside() { usize::MAX } else { window.limit };
        let mut page = collection
            .page(selection.range(), window.at, window.after.as_deref(), limit, |object| {
                selection.may_take(object)
            })
            .map_err(|compacted| window.expired(compacted.oldest, now))?;
        page.objects = self.server.served(&self.kind, page.objects).await?;
        if selection.looks_inside() {
            page.objects.retain(|object| selection.takes(object));
            page.more = page.objects.len() > window.limit;
            page.objects.truncate(window.limit);
        }
        let next = page.more.then(|| page.objects.last()).flatten().map(|last| {
            let token = Token { v: "meta.k8s.io/v1".into(), rv: window.at.0, start: last.name.to_string() };
            let exact =
                self.query.get("labelSelector").is_none() && self.query.get("fieldSelector").is_none();
            (token.encode(), if exact { page.remaining } else { 0 })
        });
        let meta = render::list_meta(window.at, next);
        Ok(render::list(&self.kind, form, &page.objects, meta, self.include_object()))
    }
}

#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    rv: u64,
    start: String,
}

impl Token {
    fn encode(&self) -> String {
        BASE64.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn decode(text: &str) -> Result<Self, String> {
        let bytes = BASE64.decode(text).map_err(|error| {
            let at = match error {
                DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
                DecodeError::InvalidLength(length) => length.saturating_sub(1),
                DecodeError::InvalidPadding => text.len(),
            };
            format!("illegal base64 data at input byte {at}")
        })?;
        serde_json::from_slice(&bytes).map_err(|error| error.to_string())
    }
}

/// The part of a list's history and range that a request asks for.
struct Window {
    at: Revision,
    after: Option<String>,
    limit: usize,
}

impl Window {
    fn of(call: &Call, now: Revision) -> Result<Self, Status> {
        let limit = call.query.get("limit").and_then(|limit| limit.parse().ok());
        let limit = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let version = parse_version(call.query.get("resourceVersion"))?;
        if let Some(token) = call.query.get("continue") {
            if version.is_some_and(|version| version != 0) {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let token = Token::decode(token).map_err(|why| {
                Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
            })?;
            return Ok(Self { at: Revision(token.rv), after: Some(token.start), limit });
        }
        let exact = call.query.get("resourceVersionMatch") == Some("Exact");
        let at = match version {
            Some(version) if version > now.0 => {
                return Err(Status::too_large_resource_version(version, now.0));
            }
            Some(version) if exact && version > 0 => Revision(version),
            _ => now,
        };
        Ok(Self { at, after: None, limit })
    }

    fn expired(&self, oldest: Revision, now: Revision) -> Status {
        let Some(after) = &self.after else { return Status::too_old(self.at.0, oldest.0) };
        let mut status = Status::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list \
             without the continue parameter, or use the continue token in this response to retrieve the remainder of \
             the results. Continuing with the provided token results in an inconsistent list - objects that were \
             created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
        );
        let token = Token { v: "meta.k8s.io/v1".into(), rv: now.0, start: after.clone() };
        status.metadata.insert("continue", token.encode().into());
        status
    }
}

/// A resourceVersion parameter.
pub fn parse_version(text: Option<&str>) -> Result<Option<u64>, Status> {
    let parse = |text: &str| {
        text.parse().map_err(|error| {
            let why = parse_fault(&error);
            Status::bad_request(format!(
                "invalid resource version: resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": {why}"
            ))
        })
    };
    text.map(parse).transpose()
}
