//! Admission webhooks: servers that may change or refuse writes.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use coxswain_meta::Status;
use coxswain_meta::json::{Value, from_value, json};
use coxswain_meta::patch::json_patch;
use coxswain_store::Revision;
use futures::future::join_all;

use super::asked::{Asked, Verb};
use crate::Server;
use crate::cel::{Conditions, Scope};
use crate::handler::Validation;
use crate::object::{self, Meta, read_managers};
use crate::resource::Repeated;
use crate::warnings;

const GROUP: &str = "admissionregistration.k8s.io";
const LONGEST_TIMEOUT_SECONDS: u64 = 30;

/// One webhook of a configuration.
struct Hook {
    name: String,
    client: Value,
    rules: Value,
    fails_closed: bool,
    equivalent: bool,
    namespaces: Value,
    objects: Value,
    has_side_effects: bool,
    timeout: Duration,
    version: Option<&'static str>,
    reinvoked: bool,
    conditions: Conditions,
}

impl Hook {
    fn parse(hook: &Value) -> Self {
        let versions = hook["admissionReviewVersions"].as_array().into_iter().flatten();
        let seconds = hook["timeoutSeconds"].as_u64().unwrap_or(10).clamp(1, LONGEST_TIMEOUT_SECONDS);
        Self {
            name: hook["name"].as_str().unwrap_or_default().to_owned(),
            client: hook["clientConfig"].clone(),
            rules: hook["rules"].clone(),
            fails_closed: hook["failurePolicy"] != "Ignore",
            equivalent: hook["matchPolicy"] != "Exact",
            namespaces: hook["namespaceSelector"].clone(),
            objects: hook["objectSelector"].clone(),
            has_side_effects: !matches!(hook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")),
            timeout: Duration::from_secs(seconds),
            version: versions.filter_map(Value::as_str).find_map(|version| match version {
                "v1" => Some("v1"),
                "v1beta1" => Some("v1beta1"),
                _ => None,
            }),
            reinvoked: hook["reinvocationPolicy"] == "IfNeeded",
            conditions: Conditions::parse(&hook["matchConditions"]),
        }
    }
}

/// The webhooks of one kind of configuration, read anew when one changed.
pub struct Hooks {
    plural: &'static str,
    known: RwLock<(Revision, Arc<Vec<Hook>>)>,
}

impl Hooks {
    /// The webhooks of a kind of configuration.
    pub fn of(plural: &'static str) -> Self {
        Self { plural, known: RwLock::default() }
    }

    fn current(&self, server: &Server) -> Arc<Vec<Hook>> {
        let newest = server.store.collection(&object::collection((GROUP, self.plural))).newest();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).clone();
        if known.0 == newest {
            return known.1;
        }
        let mut configurations = server.read_all(GROUP, self.plural, "");
        configurations.sort_by(|a, b| a.name().cmp(b.name()));
        let hooks = configurations.iter().flat_map(|c| c["webhooks"].as_array().into_iter().flatten());
        let hooks = Arc::new(hooks.map(Hook::parse).collect::<Vec<_>>());
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = (newest, hooks.clone());
        hooks
    }
}

/// What a webhook said.
enum Answer {
    /// It is not concerned, or let the write pass.
    Pass,
    /// It passes with this JSON patch.
    Patch(Value),
}

impl Hook {
    /// Asks about a write; an error is a refusal or a failure that counts as one.
    async fn ask(&self, asked: &Asked<'_>, object: &Value, old: &Value) -> Result<Answer, Status> {
        let Some(kind) = asked.matched(&self.rules, self.equivalent) else { return Ok(Answer::Pass) };
        if !asked.selected(&self.namespaces, &self.objects, object, old)? {
            return Ok(Answer::Pass);
        }
        let mut request = asked.request(&kind);
        request["object"] = asked.in_form_of(&kind, object.clone()).await?;
        request["oldObject"] = asked.in_form_of(&kind, old.clone()).await?;
        if !self.conditions.is_empty() {
            let scope = Scope::of(asked, &request);
            match self.conditions.hold(&scope) {
                Ok(true) => {}
                Ok(false) => return Ok(Answer::Pass),
                Err(why) if self.fails_closed => {
                    return Err(asked.refused(&why));
                }
                Err(_) => return Ok(Answer::Pass),
            }
        }
        if asked.dry_run && self.has_side_effects {
            return Err(Status::bad_request(format!(
                "admission webhook {:?} does not support dry run",
                self.name
            )));
        }
        match self.call(asked, &request).await {
            Ok(answer) => answer,
            Err(why) if self.fails_closed => {
                Err(Status::internal(&format!("failed calling webhook {:?}: {why}", self.name)))
            }
            Err(why) => {
                tracing::warn!(webhook = self.name, why, "failed calling webhook, failing open");
                Ok(Answer::Pass)
            }
        }
    }

    /// Sends the review; the outer error is a failure of the call, the inner one a refusal.
    async fn call(&self, asked: &Asked<'_>, request: &Value) -> Result<Result<Answer, Status>, String> {
        let version =
            self.version.ok_or("webhook does not accept known AdmissionReview versions (v1, v1beta1)")?;
        let api_version = format!("admission.k8s.io/{version}");
        let review = json!({ "kind": "AdmissionReview", "apiVersion": api_version, "request": request });
        let posted = asked.server.webhooks.post(asked.server, &self.client, &review, self.timeout).await;
        let answer = posted.map_err(|why| format!("failed to call webhook: {why}"))?;
        let response = &answer["response"];
        if !response.is_object() {
            return Err("received invalid webhook response: webhook response was absent".into());
        }
        if version == "v1" && response["uid"] != request["uid"] {
            return Err(format!(
                "received invalid webhook response: expected response.uid={}, got {}",
                request["uid"], response["uid"]
            ));
        }
        for warning in response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            warnings::add(warning.to_owned());
        }
        if response["allowed"] != true {
            return Ok(Err(self.denied(&response["status"])));
        }
        let Some(patch) = response["patch"].as_str().filter(|patch| !patch.is_empty()) else {
            return Ok(Ok(Answer::Pass));
        };
        let bytes = BASE64_STANDARD.decode(patch).map_err(|error| error.to_string())?;
        let patch = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        Ok(Ok(Answer::Patch(patch)))
    }

    fn denied(&self, status: &Value) -> Status {
        let denied = format!("admission webhook {:?} denied the request", self.name);
        let text = |key: &str| status[key].as_str().filter(|text| !text.is_empty());
        let message = match (text("message"), text("reason")) {
            (Some(message), _) => format!("{denied}: {message}"),
            (None, Some(reason)) => format!("{denied}: {reason}"),
            (None, None) => format!("{denied} without explanation"),
        };
        let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(0);
        let mut refused = Status::failure(code.max(400), text("reason").unwrap_or_default(), message);
        refused.details = from_value(status["details"].clone()).ok().flatten();
        refused
    }
}

impl Server {
    /// Lets the mutating webhooks change a new or changed object.
    pub async fn mutate_by_webhooks(
        &self,
        asked: &Asked<'_>,
        object: &mut Value,
        old: &Value,
    ) -> Result<(), Status> {
        let hooks = self.mutating.current(self);
        if hooks.is_empty() || asked.is_exempt() {
            return Ok(());
        }
        read_managers(object);
        let mut changed_after = vec![false; hooks.len()];
        for (at, hook) in hooks.iter().enumerate() {
            if Box::pin(self.mutate_by(hook, asked, object, old)).await? {
                changed_after[..at].fill(true);
            }
        }
        // Once more those that asked for it, where others changed the object after them.
        for (hook, _) in
            hooks.iter().zip(&changed_after).filter(|(hook, changed)| hook.reinvoked && **changed)
        {
            Box::pin(self.mutate_by(hook, asked, object, old)).await?;
        }
        Ok(())
    }

    /// Lets one webhook change an object; whether it did.
    async fn mutate_by(
        &self,
        hook: &Hook,
        asked: &Asked<'_>,
        object: &mut Value,
        old: &Value,
    ) -> Result<bool, Status> {
        let Answer::Patch(patch) = hook.ask(asked, object, old).await? else { return Ok(false) };
        if asked.verb == Verb::Delete {
            return Err(Status::internal(&format!(
                "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
                hook.name
            )));
        }
        let kind = asked.matched(&hook.rules, hook.equivalent).unwrap_or_else(|| asked.kind.clone());
        let mut patched = asked.in_form_of(&kind, object.clone()).await?;
        json_patch(&mut patched, &patch)?;
        if kind.api_version() != asked.kind.api_version() {
            let foreign = Asked { kind: &kind, ..*asked };
            patched = foreign.in_form_of(asked.kind, patched).await?;
        }
        if asked.own_kind.is_none() {
            asked.kind.decode(&mut patched, Repeated::default(), Validation::Ignore)?;
            asked.kind.default(&mut patched)?;
        }
        let changed = patched != *object;
        *object = patched;
        Ok(changed)
    }

    /// Asks the validating webhooks, all at once.
    pub async fn validate_by_webhooks(
        &self,
        asked: &Asked<'_>,
        object: &Value,
        old: &Value,
    ) -> Result<(), Status> {
        let hooks = self.validating.current(self);
        if hooks.is_empty() || asked.is_exempt() {
            return Ok(());
        }
        let answers = join_all(hooks.iter().map(|hook| hook.ask(asked, object, old))).await;
        answers.into_iter().try_for_each(|answer| answer.map(drop))
    }
}
