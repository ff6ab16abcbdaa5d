//! Leader election over a Lease, as upstream's components do it: of several servers one runs a component.
//! <https://kubernetes.io/docs/concepts/architecture/leases/#leader-election>
//!
//! Clocks of machines are not compared: a lease has run out when nobody has renewed it for its duration, as seen from here.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "kube-system";
/// Upstream's periods.
const LEASE: Duration = Duration::from_secs(15);
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// One candidate for one lease.
pub struct Candidate {
    leases: Api<Lease>,
    name: &'static str,
    identity: String,
    /// The lease as it was last seen, and since when it is like that.
    seen: Option<(String, Instant)>,
}

/// What a look at the lease leads to.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// There is none: make it.
    Create,
    /// It is ours, or free, or has run out.
    Write,
    /// Another holds it.
    Wait,
}

fn step(holder: Option<&str>, me: &str, unchanged_for: Duration, lease: Duration) -> Step {
    match holder {
        None => Step::Create,
        Some(holder) if holder.is_empty() || holder == me || unchanged_for > lease => Step::Write,
        Some(_) => Step::Wait,
    }
}

impl Candidate {
    /// A candidate by the lease's name and its own, which no other candidate has.
    pub fn new(client: Client, name: &'static str, identity: String) -> Self {
        Self { leases: Api::namespaced(client, NAMESPACE), name, identity, seen: None }
    }

    /// Runs `term` whenever the lease is this candidate's, until `cancel`. The token of a term is cancelled when the lease is
    /// lost; the lease is given back when the term has ended.
    pub async fn run<F: Future<Output = ()>>(
        mut self,
        cancel: CancellationToken,
        mut term: impl FnMut(CancellationToken) -> F,
    ) {
        while !cancel.is_cancelled() {
            if self.attempt().await {
                tracing::info!(lease = self.name, identity = self.identity, "leading");
                let running = cancel.child_token();
                let work = term(running.clone());
                tokio::join!(work, async {
                    self.renew(&running).await;
                    running.cancel();
                });
                tracing::info!(lease = self.name, "no longer leading");
                self.release().await;
            } else {
                let _ = cancel.run_until_cancelled(sleep(RETRY)).await;
            }
        }
    }

    /// Renews until that has failed for too long, or the term has ended.
    async fn renew(&mut self, running: &CancellationToken) {
        let mut renewed = Instant::now();
        while running.run_until_cancelled(sleep(RETRY)).await.is_some() {
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            match timeout(left, self.try_attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Err(error)) => tracing::debug!(lease = self.name, %error, "the lease was not renewed"),
                Ok(Ok(false)) | Err(_) => return,
            }
        }
    }

    /// Takes or renews the lease; whether it is ours now.
    async fn attempt(&mut self) -> bool {
        match self.try_attempt().await {
            Ok(ours) => ours,
            Err(error) => {
                tracing::debug!(lease = self.name, %error, "the lease was not written");
                false
            }
        }
    }

    async fn try_attempt(&mut self) -> kube::Result<bool> {
        let found = self.leases.get_opt(self.name).await?;
        let holder = found.as_ref().map(|lease| holder(lease).to_owned());
        let duration = found
            .as_ref()
            .and_then(|lease| u64::try_from(lease.spec.as_ref()?.lease_duration_seconds?).ok())
            .map_or(LEASE, Duration::from_secs);
        let since = self.unchanged_since(found.as_ref());
        match step(holder.as_deref(), &self.identity, since.elapsed(), duration) {
            Step::Wait => Ok(false),
            Step::Create => {
                let metadata = ObjectMeta { name: Some(self.name.to_owned()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(self.spec(None)) };
                self.leases.create(&PostParams::default(), &lease).await.map(|_| true)
            }
            Step::Write => {
                let Some(mut lease) = found else { return Ok(false) };
                lease.spec = Some(self.spec(lease.spec.as_ref()));
                // Its resourceVersion decides between candidates that find it free at once.
                self.leases.replace(self.name, &PostParams::default(), &lease).await.map(|_| true)
            }
        }
    }

    /// Since when the lease has been as it is, as far as was seen from here.
    fn unchanged_since(&mut self, lease: Option<&Lease>) -> Instant {
        let version = lease.and_then(ResourceExt::resource_version).unwrap_or_default();
        match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => {
                let now = Instant::now();
                self.seen = Some((version, now));
                now
            }
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let kept = before.filter(|spec| spec.holder_identity.as_deref() == Some(&self.identity));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
            acquire_time: kept.and_then(|spec| spec.acquire_time.clone()).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if kept.is_some() || before.is_none() {
                transitions
            } else {
                transitions + 1
            }),
            ..LeaseSpec::default()
        }
    }

    /// Gives the lease back, so that another need not wait until it has run out.
    async fn release(&mut self) {
        let given_back = async {
            let Some(mut lease) = self.leases.get_opt(self.name).await? else { return Ok(()) };
            if holder(&lease) != self.identity {
                return Ok(());
            }
            if let Some(spec) = &mut lease.spec {
                spec.holder_identity = Some(String::new());
                spec.lease_duration_seconds = Some(1);
            }
            self.leases.replace(self.name, &PostParams::default(), &lease).await.map(drop)
        };
        if let Ok(Err(error)) = timeout(RETRY, given_back).await {
            let error: kube::Error = error;
            tracing::debug!(lease = self.name, %error, "the lease was not given back");
        }
    }
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_it_is_free_or_has_run_out() {
        let second = Duration::from_secs(1);
        assert_eq!(step(None, "me", Duration::ZERO, LEASE), Step::Create);
        assert_eq!(step(Some(""), "me", Duration::ZERO, LEASE), Step::Write);
        assert_eq!(step(Some("me"), "me", Duration::ZERO, LEASE), Step::Write);
        assert_eq!(step(Some("other"), "me", LEASE, LEASE), Step::Wait);
        assert_eq!(step(Some("other"), "me", LEASE + second, LEASE), Step::Write);
        assert_eq!(step(Some("other"), "me", 2 * second, second), Step::Write, "by its own duration");
    }
}
