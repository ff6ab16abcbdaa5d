//! Probes of running containers: one light task a probe, which tells the pod's worker only when its mind changes.

pub mod check;
mod grpc;
pub mod http;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coxswain_client::EventType;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::kubelet::Kubelet;
use crate::model::{ContainerRecord, PodRuntime};
use crate::pod::containers::host_network;
use crate::pod::table::Message;

/// What a probe decides about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Whether the container has started.
    Startup,
    /// Whether it must be restarted.
    Liveness,
    /// Whether it takes traffic.
    Readiness,
}

impl ProbeKind {
    /// Its name in events.
    pub fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// A probe's new verdict.
#[derive(Debug)]
pub struct ProbeReport {
    /// The container.
    pub container_id: String,
    /// Its name.
    pub container_name: String,
    /// The probe.
    pub kind: ProbeKind,
    /// The verdict.
    pub success: bool,
    /// The probe's own termination grace period.
    pub grace_seconds: Option<i64>,
}

/// The outcome of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Fine.
    Success,
    /// Fine, with a remark.
    Warning(String),
    /// Not fine; the text is for the event.
    Failure(String),
    /// The attempt itself could not be made; counts for nothing but an event.
    Error(String),
}

/// A probe that should run.
pub type Wanted = (ContainerRecord, Container, ProbeKind, Probe, bool);

/// The probe tasks of one pod.
#[derive(Default)]
pub struct Probes {
    tasks: BTreeMap<(String, ProbeKind), AbortHandle>,
}

impl Probes {
    /// Starts the probes that should run and do not, and stops those that should not.
    pub fn sync(
        &mut self,
        kubelet: &Arc<Kubelet>,
        pod: &Arc<Pod>,
        runtime: &PodRuntime,
        wanted: Vec<Wanted>,
        sender: &mpsc::UnboundedSender<Message>,
    ) {
        self.tasks.retain(|(id, kind), task| {
            let keep = wanted.iter().any(|(record, _, k, ..)| &record.id == id && k == kind);
            if !keep {
                task.abort();
            }
            keep
        });
        for (record, container, kind, probe, ready) in wanted {
            let key = (record.id.clone(), kind);
            if self.tasks.contains_key(&key) {
                continue;
            }
            let ip = if host_network(pod) {
                kubelet.host_ips.first().cloned()
            } else {
                runtime.sandboxes.first().and_then(|s| s.ips.first().cloned())
            };
            let prober = Prober {
                kubelet: kubelet.clone(),
                pod: pod.clone(),
                pod_ip: ip.unwrap_or_default(),
                started_at: record.started_at,
                container_id: record.id,
                container,
                kind,
                probe,
                sender: sender.clone(),
            };
            self.tasks.insert(key, tokio::spawn(prober.run(ready)).abort_handle());
        }
    }

    /// Stops all probes.
    pub fn stop(&mut self) {
        for task in std::mem::take(&mut self.tasks).into_values() {
            task.abort();
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Counts outcomes in a row against the thresholds. Pure.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    current: Option<bool>,
    last: Option<bool>,
    in_a_row: u32,
    success_threshold: u32,
    failure_threshold: u32,
}

impl Verdict {
    fn new(kind: ProbeKind, probe: &Probe, ready: bool) -> Self {
        let count =
            |value: Option<i32>, default| value.and_then(|v| u32::try_from(v).ok()).unwrap_or(default).max(1);
        Self {
            current: match kind {
                ProbeKind::Startup => None,
                ProbeKind::Liveness => Some(true),
                ProbeKind::Readiness => Some(ready),
            },
            last: None,
            in_a_row: 0,
            success_threshold: count(probe.success_threshold, 1),
            failure_threshold: count(probe.failure_threshold, 3),
        }
    }

    /// Takes an outcome; the new verdict if it changed.
    fn note(&mut self, success: bool) -> Option<bool> {
        if self.last == Some(success) {
            self.in_a_row += 1;
        } else {
            (self.last, self.in_a_row) = (Some(success), 1);
        }
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        if self.in_a_row < threshold || self.current == Some(success) {
            return None;
        }
        self.current = Some(success);
        self.current
    }
}

struct Prober {
    kubelet: Arc<Kubelet>,
    pod: Arc<Pod>,
    pod_ip: String,
    started_at: Timestamp,
    container_id: String,
    container: Container,
    kind: ProbeKind,
    probe: Probe,
    sender: mpsc::UnboundedSender<Message>,
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default))
}

fn fine(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Success | Outcome::Warning(_))
}

/// The first extra attempt of a probe that the container's traffic waits for.
const FIRST_EXTRA: Duration = Duration::from_millis(100);

impl Prober {
    async fn run(self, ready: bool) {
        let period = seconds(self.probe.period_seconds, 10).max(Duration::from_secs(1));
        let limit = seconds(self.probe.timeout_seconds, 1).max(Duration::from_secs(1));
        tokio::time::sleep(self.first_delay(period)).await;
        let mut verdict = Verdict::new(self.kind, &self.probe, ready);
        let mut next = Instant::now();
        loop {
            let mut outcome = self.attempt(limit).await;
            next += period;
            // Between its periods a probe that traffic waits for tries again soon, which upstream allows for readiness.
            // These attempts can only help: a failure of theirs counts for nothing.
            let mut extra = FIRST_EXTRA;
            while self.waits(&verdict) && !fine(&outcome) && Instant::now() + extra < next {
                tokio::time::sleep(extra).await;
                extra *= 2;
                let again = self.attempt(limit).await;
                if fine(&again) {
                    outcome = again;
                }
            }
            let success = self.judge(&outcome);
            if let Some(changed) = success.and_then(|success| verdict.note(success))
                && !self.report(changed)
            {
                return;
            }
            tokio::time::sleep_until(next).await;
            next = next.max(Instant::now());
        }
    }

    /// How long the first attempt waits. Liveness is asked a period after the start, as upstream does; the probes of
    /// containers that have been running for long (we were restarted) are spread over their period.
    fn first_delay(&self, period: Duration) -> Duration {
        let age = Duration::try_from(Timestamp::now().duration_since(self.started_at)).unwrap_or_default();
        let mut delay = seconds(self.probe.initial_delay_seconds, 0);
        if self.kind == ProbeKind::Liveness {
            delay = delay.max(period);
        }
        match delay.checked_sub(age) {
            Some(left) => left,
            None if age > period && self.kind != ProbeKind::Startup => period.mul_f64(rand::random()),
            None => Duration::ZERO,
        }
    }

    fn waits(&self, verdict: &Verdict) -> bool {
        self.kind != ProbeKind::Liveness && verdict.current != Some(true) && verdict.success_threshold == 1
    }

    async fn attempt(&self, limit: Duration) -> Outcome {
        check::check(&self.kubelet.cri, &self.probe, &self.container, &self.container_id, &self.pod_ip, limit)
            .await
    }

    /// Records what went wrong; `None` for an attempt that counts for nothing.
    fn judge(&self, outcome: &Outcome) -> Option<bool> {
        let word = self.kind.word();
        let tell = |reason: &str, text: String| {
            self.kubelet.events.container(&self.pod, &self.container.name, EventType::Warning, reason, text);
        };
        match outcome {
            Outcome::Success => Some(true),
            Outcome::Warning(text) => {
                tell("ProbeWarning", format!("{word} probe warning: {text}"));
                Some(true)
            }
            Outcome::Failure(text) => {
                tell("Unhealthy", format!("{word} probe failed: {text}"));
                Some(false)
            }
            Outcome::Error(text) => {
                tell("Unhealthy", format!("{word} probe errored and resulted in unknown state: {text}"));
                None
            }
        }
    }

    /// Tells the worker; `false` when this probe has nothing more to say about this container.
    fn report(&self, success: bool) -> bool {
        let report = ProbeReport {
            container_id: self.container_id.clone(),
            container_name: self.container.name.clone(),
            kind: self.kind,
            success,
            grace_seconds: self.probe.termination_grace_period_seconds,
        };
        let heard = self.sender.send(Message::Probe(report)).is_ok();
        let done = match self.kind {
            ProbeKind::Startup => true,
            ProbeKind::Liveness => !success,
            ProbeKind::Readiness => false,
        };
        heard && !done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_outcomes_in_a_row() {
        let probe = Probe { failure_threshold: Some(2), success_threshold: Some(2), ..Probe::default() };
        let mut readiness = Verdict::new(ProbeKind::Readiness, &probe, false);
        let verdicts: Vec<_> =
            [true, false, true, true, false, true, false, false].map(|o| readiness.note(o)).into();
        assert_eq!(verdicts, [None, None, None, Some(true), None, None, None, Some(false)]);
        let mut liveness = Verdict::new(ProbeKind::Liveness, &Probe::default(), false);
        assert_eq!([true, false, false, false].map(|o| liveness.note(o)), [None, None, None, Some(false)]);
        let mut startup = Verdict::new(ProbeKind::Startup, &Probe::default(), false);
        assert_eq!(startup.note(true), Some(true), "a startup probe begins undecided");
    }
}
