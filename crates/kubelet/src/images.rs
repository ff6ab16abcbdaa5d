//! Images on the node: pull policies, pull secrets, one pull at a time an image, and back-off after failures.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coxswain_client::EventType::{self, Normal, Warning};
use coxswain_cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};

use crate::backoff::Backoff;
use crate::kubelet::Kubelet;
use crate::model::PodId;
use crate::pod::Waiting;
use crate::pod::containers::spec;
use crate::pod::worker::Failure;

/// What is known of pulls.
pub struct Images {
    backoff: Mutex<Backoff>,
    pulls: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Default for Images {
    fn default() -> Self {
        Self { backoff: Mutex::new(Backoff::new(10, 300)), pulls: Mutex::default() }
    }
}

fn spec_of(image: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: image.to_owned(), user_specified_image: image.to_owned(), ..Default::default() }
}

impl Images {
    /// Makes sure that a container's image is on the node; returns it as the runtime knows it.
    pub async fn ensure(
        &self,
        kubelet: &Kubelet,
        pod: &Pod,
        container: &Container,
    ) -> Result<v1::Image, Failure> {
        let name = container.image.clone().unwrap_or_default();
        let tell = |kind: EventType, reason: &str, text: String| {
            kubelet.events.container(pod, &container.name, kind, reason, text);
        };
        let Some(image) = with_tag(&name) else {
            let text = format!(
                "Failed to apply default image tag \"{name}\": couldn't parse image name \"{name}\": invalid reference format"
            );
            tell(Warning, "InspectFailed", text.clone());
            tell(Warning, "Failed", "Error: InvalidImageName".to_owned());
            return Err(failed("InvalidImageName", text, None));
        };
        let policy = container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
        if policy != "Always" {
            match kubelet.cri.image(spec_of(&image)).await {
                Ok(Some(found)) => {
                    tell(Normal, "Pulled", format!("Container image \"{name}\" already present on machine"));
                    return Ok(identified(found, &image));
                }
                Ok(None) => {}
                Err(error) => {
                    let text = format!("Failed to inspect image \"{name}\": {}", crate::cri::text(&error));
                    tell(Warning, "InspectFailed", text.clone());
                    return Err(failed("ImageInspectError", text, None));
                }
            }
            if policy == "Never" {
                let text = format!("Container image \"{name}\" is not present with pull policy of Never");
                tell(Warning, "ErrImageNeverPull", text.clone());
                tell(Warning, "Failed", "Error: ErrImageNeverPull".to_owned());
                return Err(failed("ErrImageNeverPull", text, None));
            }
        }
        self.pull(kubelet, pod, container, &name, &image, policy == "Always").await
    }

    async fn pull(
        &self,
        kubelet: &Kubelet,
        pod: &Pod,
        container: &Container,
        name: &str,
        image: &str,
        always: bool,
    ) -> Result<v1::Image, Failure> {
        let tell = |kind: EventType, reason: &str, text: String| {
            kubelet.events.container(pod, &container.name, kind, reason, text);
        };
        tell(Normal, "Pulling", format!("Pulling image \"{name}\""));
        let asked = Instant::now();
        let turn = self.turn(image);
        let _turn = turn.lock().await;
        let begun = Instant::now();
        // Whoever had the turn before may have pulled it for us.
        let there = if asked.elapsed() > Duration::from_millis(1) && !always {
            kubelet.cri.image(spec_of(image)).await.ok().flatten().map(|found| identified(found, image))
        } else {
            None
        };
        let key = format!("{}/{image}", PodId::of(pod).uid);
        let result = match there {
            Some(found) => Ok(found),
            None => self.pull_as_allowed(kubelet, pod, image).await,
        };
        self.pulls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, turn| Arc::strong_count(turn) > 1);
        match result {
            Ok(found) => {
                self.backoff().forget(&key);
                let size = found.size;
                let took = |d: Duration| format!("{}s", (d.as_millis() as f64) / 1000.0);
                let text = format!(
                    "Successfully pulled image \"{name}\" in {} ({} including waiting). Image size: {size} bytes.",
                    took(begun.elapsed()),
                    took(asked.elapsed()),
                );
                tell(Normal, "Pulled", text);
                Ok(found)
            }
            Err(error) => {
                let now = Timestamp::now();
                let delay = self.backoff().next(&key, now, now);
                tell(Warning, "Failed", format!("Failed to pull image \"{name}\": {error}"));
                tell(Warning, "Failed", "Error: ErrImagePull".to_owned());
                Err(failed("ErrImagePull", error, Some(delay)))
            }
        }
    }

    fn backoff(&self) -> MutexGuard<'_, Backoff> {
        self.backoff.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, image: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner).entry(image.to_owned()).or_default().clone()
    }

    /// Pulls with each credential that fits the registry, the anonymous one last.
    async fn pull_as_allowed(&self, kubelet: &Kubelet, pod: &Pod, image: &str) -> Result<v1::Image, String> {
        let mut credentials: Vec<Option<v1::AuthConfig>> =
            credentials(kubelet, pod, image).await.into_iter().map(Some).collect();
        if credentials.is_empty() {
            credentials.push(None);
        }
        let mut last = String::new();
        for auth in credentials {
            match kubelet.cri.pull(spec_of(image), auth).await {
                Ok(reference) => {
                    let found = kubelet.cri.image(spec_of(&reference)).await;
                    let found = found.map_err(|error| crate::cri::text(&error))?;
                    return Ok(identified(found.unwrap_or_default(), &reference));
                }
                Err(error) => last = crate::cri::text(&error),
            }
        }
        Err(last)
    }

    /// Makes sure that an image that is mounted as a volume is on the node.
    pub async fn ensure_volume(
        &self,
        kubelet: &Kubelet,
        pod: &Pod,
        name: &str,
        policy: Option<&str>,
    ) -> Result<String, String> {
        let image = with_tag(name).ok_or_else(|| format!("invalid reference format: {name}"))?;
        if policy != Some("Always")
            && let Ok(Some(found)) = kubelet.cri.image(spec_of(&image)).await
        {
            return Ok(identified(found, &image).id);
        }
        if policy == Some("Never") {
            return Err(format!("Container image \"{name}\" is not present with pull policy of Never"));
        }
        self.pull_as_allowed(kubelet, pod, &image).await.map(|found| found.id)
    }
}

fn failed(reason: &str, message: String, delay: Option<jiff::SignedDuration>) -> Failure {
    Failure {
        waiting: Some(Waiting { reason: reason.to_owned(), message }),
        retry_after: Some(delay.unwrap_or(jiff::SignedDuration::from_secs(10))),
    }
}

/// An image by which containers can be created: one without an id goes by the name it was asked for.
fn identified(mut found: v1::Image, asked: &str) -> v1::Image {
    if found.id.is_empty() {
        asked.clone_into(&mut found.id);
    }
    found
}

/// The image name with `:latest` where it has neither tag nor digest; `None` when it is no image name.
fn with_tag(name: &str) -> Option<String> {
    let (path, digest) = name.split_once('@').map_or((name, None), |(path, digest)| (path, Some(digest)));
    let (repository, tag) = match path.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (path, None),
    };
    let tag_ok = tag.is_none_or(|tag| {
        !tag.is_empty()
            && tag.len() <= 128
            && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    });
    let digest_ok = digest.is_none_or(|digest| {
        digest.split_once(':').is_some_and(|(kind, hex)| {
            !kind.is_empty() && hex.len() >= 32 && hex.chars().all(|c| c.is_ascii_hexdigit())
        })
    });
    let mut parts = repository.split('/');
    let host = parts.next().unwrap_or_default();
    let is_host = repository.contains('/') && (host.contains(['.', ':']) || host == "localhost");
    let word = |part: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        !part.is_empty() && part.chars().all(inner) && part.starts_with(edge) && part.ends_with(edge)
    };
    let host_ok = if is_host {
        host.chars().all(|c| c.is_ascii_alphanumeric() || ".:-[]".contains(c))
    } else {
        word(host)
    };
    let valid = tag_ok && digest_ok && host_ok && parts.all(word);
    let latest = if tag.is_none() && digest.is_none() { ":latest" } else { "" };
    valid.then(|| format!("{name}{latest}"))
}

/// The registry of an image, as credentials name it.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

async fn credentials(kubelet: &Kubelet, pod: &Pod, image: &str) -> Vec<v1::AuthConfig> {
    let id = PodId::of(pod);
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for reference in spec(pod).image_pull_secrets.iter().flatten() {
        match kubelet.secrets.get(&id.uid, &id.namespace, &reference.name).await {
            Ok(secret) => found.extend(of_secret(&secret, image)),
            Err(_) => missing.push(reference.name.clone()),
        }
    }
    if !missing.is_empty() {
        let text = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        kubelet.events.warning(pod, "FailedToRetrieveImagePullSecret", text);
    }
    found
}

/// The credentials of a pull secret that fit an image's registry.
fn of_secret(secret: &Secret, image: &str) -> Vec<v1::AuthConfig> {
    let data = |key: &str| {
        let bytes = secret.data.as_ref()?.get(key)?;
        serde_json::from_slice::<serde_json::Value>(&bytes.0).ok()
    };
    let entries =
        data(".dockerconfigjson").and_then(|json| json.get("auths").cloned()).or_else(|| data(".dockercfg"));
    let Some(serde_json::Value::Object(entries)) = entries else { return Vec::new() };
    entries
        .iter()
        .filter(|(server, _)| fits(server, image))
        .map(|(server, entry)| auth(server, entry))
        .collect()
}

fn fits(server: &str, image: &str) -> bool {
    let bare = server.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let bare = bare.trim_end_matches("/v1").trim_end_matches("/v2");
    let (host, path) = bare.split_once('/').map_or((bare, ""), |(host, path)| (host, path));
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let wanted = registry(image);
    let same = host == wanted
        || host.strip_prefix("*.").is_some_and(|rest| wanted.split_once('.').is_some_and(|(_, r)| r == rest));
    let rest = image.strip_prefix(wanted).unwrap_or(image).trim_start_matches('/');
    same && (path.is_empty() || rest.starts_with(path))
}

fn auth(server: &str, entry: &serde_json::Value) -> v1::AuthConfig {
    use base64::Engine;
    let text = |key: &str| entry.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    let (mut username, mut password) = (text("username"), text("password"));
    let decoded = base64::engine::general_purpose::STANDARD.decode(text("auth")).ok();
    if let Some((user, pass)) = decoded
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .as_deref()
        .and_then(|pair| pair.split_once(':'))
        && username.is_empty()
    {
        (username, password) = (user.to_owned(), pass.trim_matches('\0').to_owned());
    }
    v1::AuthConfig {
        username,
        password,
        server_address: server.to_owned(),
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_a_tag_or_are_refused() {
        let check =
            |name: &str, expected: Option<&str>| assert_eq!(with_tag(name).as_deref(), expected, "{name}");
        check("nginx", Some("nginx:latest"));
        check("127.0.0.1:5000/a/b", Some("127.0.0.1:5000/a/b:latest"));
        check("a/b:v1.2", Some("a/b:v1.2"));
        let digest = format!("a@sha256:{}", "0".repeat(64));
        check(&digest, Some(&digest));
        check("Upper/Case", None);
        check("a b", None);
        check("", None);
        check("a:", None);
    }

    #[test]
    fn credentials_fit_their_registry_only() {
        let check =
            |server: &str, image: &str, fit: bool| assert_eq!(fits(server, image), fit, "{server} {image}");
        check("https://index.docker.io/v1/", "nginx:latest", true);
        check("reg.example.com", "reg.example.com/a:1", true);
        check("reg.example.com/team", "reg.example.com/other/a:1", false);
        check("*.example.com", "reg.example.com/a:1", true);
        check("reg.example.com", "docker.io/a:1", false);
    }
}
