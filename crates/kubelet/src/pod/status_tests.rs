//! The status, case by case.

use serde_json::{Value, json};

use super::*;
use crate::model::SandboxRecord;
use crate::pod::Health;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn record(name: &str, state: State, exit_code: i32) -> ContainerRecord {
    ContainerRecord {
        id: format!("id-{name}"),
        name: name.to_owned(),
        restart_count: 0,
        sandbox_id: "s".to_owned(),
        state,
        created_at: at(1),
        started_at: at(1),
        finished_at: at(2),
        exit_code,
        reason: String::new(),
        message: String::new(),
        image: "i".to_owned(),
        image_ref: "sha256:i".to_owned(),
        hash: String::new(),
        log_path: String::new(),
        grace_seconds: None,
        last_words: None,
        user: None,
    }
}

struct Case {
    pod: Pod,
    runtime: PodRuntime,
    health: HealthById,
    waiting: BTreeMap<String, Waiting>,
    ending: Option<Ending>,
    starting: BTreeSet<String>,
}

impl Case {
    fn new(spec: Value, containers: Vec<ContainerRecord>) -> Self {
        let sandbox = SandboxRecord {
            id: "s".to_owned(),
            attempt: 0,
            ready: true,
            created_at: at(1),
            ips: vec!["10.42.0.5".to_owned()],
        };
        let pod = json!({ "metadata": { "name": "p", "namespace": "n", "generation": 3 }, "spec": spec });
        let running = containers.iter().filter(|c| c.state == State::Running);
        let health = Health { started: true, ready: true, failed: None };
        Self {
            pod: serde_json::from_value(pod).expect("a pod"),
            health: running.map(|c| (c.id.clone(), health.clone())).collect(),
            runtime: PodRuntime { sandboxes: vec![sandbox], containers },
            waiting: BTreeMap::new(),
            ending: None,
            starting: BTreeSet::new(),
        }
    }

    fn status(&self) -> PodStatus {
        self.seen(generate)
    }

    fn seen<T>(&self, look: impl FnOnce(&View<'_>) -> T) -> T {
        look(&View {
            pod: &self.pod,
            base: &self.pod.status.clone().unwrap_or_default(),
            runtime: &self.runtime,
            health: &self.health,
            waiting: &self.waiting,
            resize: &Resize::default(),
            resizing: false,
            starting: &self.starting,
            ending: self.ending.as_ref(),
            runtime_name: "cox",
            host_ips: &["192.0.2.1".to_owned()],
            now: at(5),
        })
    }
}

fn one(policy: &str) -> Value {
    json!({ "restartPolicy": policy, "containers": [{ "name": "a", "image": "i" }] })
}

fn condition(status: &PodStatus, type_: &str) -> (String, Option<String>, Option<String>) {
    let condition = status.conditions.iter().flatten().find(|c| c.type_ == type_).expect(type_);
    (condition.status.clone(), condition.reason.clone(), condition.message.clone())
}

#[test]
fn a_running_pod_is_ready_and_has_its_addresses() {
    let case = Case::new(one("Always"), vec![record("a", State::Running, 0)]);
    let status = case.status();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(condition(&status, "Ready"), ("True".to_owned(), None, None));
    assert_eq!(status.pod_ip.as_deref(), Some("10.42.0.5"));
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(status.observed_generation, Some(3));
    let container = &status.container_statuses.expect("statuses")[0];
    assert_eq!(container.container_id.as_deref(), Some("cox://id-a"));
    assert!(container.ready && container.started == Some(true));
}

#[test]
fn phases_follow_containers_and_policy() {
    let check = |policy: &str, state: State, code: i32, ended: bool, phase: &str| {
        let mut case = Case::new(one(policy), vec![record("a", state, code)]);
        let end = Ending { why: EndReason::Finished, since: at(3), grace_seconds: 30 };
        case.ending = ended.then_some(end);
        let status = case.status();
        assert_eq!(status.phase.as_deref(), Some(phase), "{policy} {state:?} {code}");
    };
    check("Never", State::Exited, 0, true, "Succeeded");
    check("Never", State::Exited, 1, true, "Failed");
    check("OnFailure", State::Exited, 1, false, "Running");
    check("Always", State::Exited, 0, false, "Running");
    check("Always", State::Created, 0, false, "Pending");
}

#[test]
fn a_crash_loop_shows_the_wait_and_the_last_end() {
    let mut case = Case::new(one("Always"), vec![record("a", State::Exited, 2)]);
    let waiting = Waiting { reason: "CrashLoopBackOff".to_owned(), message: "m".to_owned() };
    case.waiting.insert("a".to_owned(), waiting);
    let status = case.status();
    let container = &status.container_statuses.as_ref().expect("statuses")[0];
    let state = container.state.as_ref().and_then(|s| s.waiting.as_ref()).expect("waiting");
    assert_eq!(state.reason.as_deref(), Some("CrashLoopBackOff"));
    let last = container.last_state.as_ref().and_then(|s| s.terminated.as_ref()).expect("an end");
    assert_eq!((last.exit_code, last.reason.as_deref()), (2, Some("Error")));
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let unready = "containers with unready status: [a]".to_owned();
    let expected = ("False".to_owned(), Some("ContainersNotReady".to_owned()), Some(unready));
    assert_eq!(condition(&status, "Ready"), expected);
}

#[test]
fn a_replaced_container_may_take_a_second() {
    let mut case = Case::new(one("Always"), vec![record("a", State::Exited, 0)]);
    assert_eq!(case.seen(replaced_until), None, "nothing is being started");
    case.starting.insert("a".to_owned());
    assert_eq!(case.seen(replaced_until), Some(at(3)));
    case.runtime.containers[0].hash = containers::hash(&spec(&case.pod).containers[0]);
    assert_eq!(case.seen(replaced_until), None, "it ended by itself");
}

#[test]
fn initialization_is_told() {
    let spec = json!({ "initContainers": [{ "name": "i" }], "containers": [{ "name": "a" }] });
    let status = Case::new(spec, vec![record("i", State::Running, 0)]).status();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    let message = "containers with incomplete status: [i]".to_owned();
    let expected = ("False".to_owned(), Some("ContainersNotInitialized".to_owned()), Some(message));
    assert_eq!(condition(&status, "Initialized"), expected);
    let app = &status.container_statuses.as_ref().expect("statuses")[0];
    let waiting = app.state.as_ref().and_then(|s| s.waiting.as_ref()).expect("waiting");
    assert_eq!(waiting.reason.as_deref(), Some("PodInitializing"));
}

#[test]
fn readiness_gates_and_foreign_conditions_are_respected() {
    let mut spec = one("Always");
    spec["readinessGates"] = json!([{ "conditionType": "example.com/gate" }]);
    let mut case = Case::new(spec, vec![record("a", State::Running, 0)]);
    let ready = condition(&case.status(), "Ready");
    assert_eq!(ready.1.as_deref(), Some("ReadinessGatesNotReady"));
    case.pod.status = serde_json::from_value(json!({ "conditions": [
        { "type": "example.com/gate", "status": "True" }, { "type": "PodScheduled", "status": "True", "reason": "kept" }] }))
    .expect("a status");
    let status = case.status();
    assert_eq!(condition(&status, "Ready").0, "True");
    assert_eq!(condition(&status, "example.com/gate").0, "True");
    assert_eq!(condition(&status, "PodScheduled").1.as_deref(), Some("kept"));
}

#[test]
fn what_the_kubelet_gave_up_on_has_failed() {
    let mut case = Case::new(one("Always"), vec![record("a", State::Running, 0)]);
    let why = EndReason::Failed("DeadlineExceeded".to_owned(), "too long".to_owned());
    case.ending = Some(Ending { why, since: at(3), grace_seconds: 30 });
    assert_eq!(case.status().phase.as_deref(), Some("Running"), "not before its containers have ended");
    case.runtime.containers[0].state = State::Exited;
    let status = case.status();
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );
    assert_eq!(condition(&status, "Ready").1.as_deref(), Some("PodFailed"));
}
