//! The decision, case by case. Times are seconds after the epoch.

use serde_json::{Value, json};

use super::*;
use crate::model::SandboxRecord;
use crate::pod::{EndReason, Health};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({ "metadata": { "name": "p", "namespace": "n", "uid": "u" }, "spec": spec }))
        .expect("a pod")
}

fn container(name: &str) -> Value {
    json!({ "name": name, "image": "i" })
}

/// The state of a pod in a test: everything the decision looks at.
struct Case {
    pod: Pod,
    runtime: PodRuntime,
    prepared: bool,
    ending: Option<Ending>,
    health: HealthById,
    crashes: Backoff,
    busy: BTreeSet<Work>,
    kills: BTreeMap<String, Timestamp>,
    stopped: BTreeSet<String>,
    now: i64,
}

impl Case {
    fn new(spec: Value) -> Self {
        Self {
            pod: pod(spec),
            runtime: PodRuntime::default(),
            prepared: true,
            ending: None,
            health: HealthById::new(),
            crashes: Backoff::new(10, 300),
            busy: BTreeSet::new(),
            kills: BTreeMap::new(),
            stopped: BTreeSet::new(),
            now: 100,
        }
    }

    fn sandbox(mut self, attempt: u32, ready: bool) -> Self {
        let id = format!("s{attempt}");
        let (created_at, ips) = (at(i64::from(attempt)), vec!["10.0.0.1".to_owned()]);
        self.runtime.sandboxes.push(SandboxRecord { id, attempt, ready, created_at, ips });
        self.runtime.sort();
        self
    }

    /// An instance in the newest sandbox; its id is `<name>-<restart count>`.
    fn instance(mut self, name: &str, restart_count: u32, state: State, exit_code: i32) -> Self {
        let spec = containers::find(&self.pod, name).expect("a container of the pod").1;
        let sandbox = self.runtime.sandboxes.first().expect("a sandbox").id.clone();
        self.runtime.containers.push(ContainerRecord {
            id: format!("{name}-{restart_count}"),
            name: name.to_owned(),
            restart_count,
            sandbox_id: sandbox,
            state,
            created_at: at(10),
            started_at: at(10),
            finished_at: at(90),
            exit_code,
            reason: String::new(),
            message: String::new(),
            image: "i".to_owned(),
            image_ref: "i".to_owned(),
            hash: containers::hash(&spec),
            log_path: String::new(),
            grace_seconds: None,
            last_words: None,
            user: None,
        });
        self.runtime.sort();
        self
    }

    fn healthy(mut self, id: &str) -> Self {
        self.health.insert(id.to_owned(), Health { started: true, ready: true, failed: None });
        self
    }

    fn ending(mut self, why: EndReason, since: i64, grace_seconds: i64) -> Self {
        self.ending = Some(Ending { why, since: at(since), grace_seconds });
        self
    }

    fn decide(&self) -> Plan {
        decide(&Input {
            pod: &self.pod,
            runtime: &self.runtime,
            prepared: self.prepared,
            resize: &Resize::default(),
            ending: self.ending.as_ref(),
            health: &self.health,
            crashes: &self.crashes,
            retries: &BTreeMap::new(),
            busy: &self.busy,
            kills: &self.kills,
            stopped: &self.stopped,
            now: at(self.now),
        })
    }

    /// The actions in a word each.
    fn acts(&self, expected: &[&str]) {
        let plan = self.decide();
        let words: Vec<String> = plan.actions.iter().map(word).collect();
        assert_eq!(words, expected, "{plan:?}");
    }
}

fn word(action: &Action) -> String {
    match action {
        Action::Prepare => "prepare".to_owned(),
        Action::CreateSandbox { attempt } => format!("sandbox {attempt}"),
        Action::Resize { .. } => "resize".to_owned(),
        Action::StopSandbox { id } => format!("stop {id}"),
        Action::StartContainer { name, restart_count, .. } => format!("start {name} {restart_count}"),
        Action::KillContainer { id, grace_seconds, .. } => format!("kill {id} {grace_seconds}"),
        Action::RemoveContainer { id, .. } => format!("remove {id}"),
        Action::RemoveSandbox { id } => format!("remove sandbox {id}"),
    }
}

fn two() -> Value {
    json!({ "containers": [container("a"), container("b")] })
}

fn with_init() -> Value {
    let mut sidecar = container("side");
    sidecar["restartPolicy"] = json!("Always");
    json!({ "initContainers": [container("one"), sidecar, container("two")], "containers": [container("a")] })
}

#[test]
fn a_pod_comes_to_life_step_by_step() {
    let mut case = Case::new(two());
    case.prepared = false;
    case.acts(&["prepare"]);
    Case::new(two()).acts(&["sandbox 0"]);
    Case::new(two()).sandbox(0, true).acts(&["start a 0", "start b 0"]);
    let mut half = Case::new(two()).sandbox(0, true).instance("a", 0, State::Running, 0);
    half.acts(&["start b 0"]);
    half.busy.insert(Work::Container("b".to_owned()));
    half.acts(&[]);
}

#[test]
fn init_containers_run_in_order_and_sidecars_stay() {
    let up = || Case::new(with_init()).sandbox(0, true);
    up().acts(&["start one 0"]);
    let one = || up().instance("one", 0, State::Exited, 0);
    up().instance("one", 0, State::Running, 0).acts(&[]);
    one().acts(&["start side 0"]);
    let side = || one().instance("side", 0, State::Running, 0);
    side().acts(&[]);
    side().healthy("side-0").acts(&["start two 0"]);
    let done = || side().healthy("side-0").instance("two", 0, State::Exited, 0);
    done().acts(&["start a 0"]);
    let running = done().instance("a", 0, State::Running, 0);
    running.acts(&[]);
    // A sidecar that ends is started again without disturbing the others.
    let fallen = one().instance("side", 0, State::Exited, 0).instance("two", 0, State::Exited, 0);
    fallen.instance("a", 0, State::Running, 0).acts(&["start side 1"]);
}

#[test]
fn restart_policies_decide_whether_an_ended_container_runs_again() {
    let check = |policy: &str, code: i32, again: bool| {
        let mut spec = two();
        spec["restartPolicy"] = json!(policy);
        let case = Case::new(spec).sandbox(0, true).instance("a", 0, State::Exited, code).instance(
            "b",
            0,
            State::Running,
            0,
        );
        case.acts(if again { &["start a 1"] } else { &[] });
    };
    check("Always", 0, true);
    check("OnFailure", 0, false);
    check("OnFailure", 1, true);
    check("Never", 1, false);
}

#[test]
fn a_crashed_container_waits_out_its_back_off() {
    let mut case = Case::new(two()).sandbox(0, true).instance("a", 0, State::Exited, 1).instance(
        "b",
        0,
        State::Running,
        0,
    );
    case.acts(&["start a 1"]);
    let plan = case.decide();
    let Action::StartContainer { crashed: Some((since, key)), .. } = &plan.actions[0] else {
        panic!("{plan:?}")
    };
    case.crashes.next(key, *since, at(90));
    case.now = 95;
    let plan = case.decide();
    assert_eq!((plan.actions.len(), plan.wake_at), (0, Some(at(100))));
    let waiting = &plan.waiting["a"];
    assert_eq!(waiting.reason, "CrashLoopBackOff");
    assert_eq!(waiting.message, "back-off 10s restarting failed container=a pod=p_n(u)");
    case.busy.insert(Work::Container("a".to_owned()));
    assert!(case.decide().waiting.is_empty(), "what is being started does not wait");
    case.busy.clear();
    case.now = 100;
    case.acts(&["start a 1"]);
}

#[test]
fn an_instance_that_never_started_is_replaced_under_the_same_number() {
    let mut case = Case::new(two())
        .sandbox(0, true)
        .instance("a", 0, State::Exited, 1)
        .instance("a", 1, State::Created, 0)
        .instance("b", 0, State::Running, 0);
    case.busy.insert(Work::Container("a".to_owned()));
    case.acts(&[]);
    case.busy.clear();
    case.acts(&["remove a-1"]);
    case.runtime.containers.retain(|c| c.id != "a-1");
    case.acts(&["start a 1"]);
}

#[test]
fn unfit_containers_are_killed() {
    let mut case = Case::new(two()).sandbox(0, true).instance("a", 0, State::Running, 0).instance(
        "b",
        0,
        State::Running,
        0,
    );
    let failed = Some(("Container a failed liveness probe, will be restarted".to_owned(), Some(5)));
    case.health.insert("a-0".to_owned(), Health { started: true, ready: false, failed });
    case.acts(&["kill a-0 5"]);
    case.health.clear();
    let spec = case.pod.spec.as_mut().expect("a spec");
    spec.containers[1].image = Some("other".to_owned());
    case.acts(&["kill b-0 30"]);
}

#[test]
fn a_dead_sandbox_is_stopped_and_replaced() {
    let mut case = Case::new(two()).sandbox(0, false).instance("a", 0, State::Exited, 137);
    case.acts(&["stop s0"]);
    case.stopped.insert("s0".to_owned());
    case.acts(&["sandbox 1"]);
    // Init containers run again in the new sandbox.
    let mut again = Case::new(with_init()).sandbox(0, false).instance("one", 0, State::Exited, 0);
    again.stopped.insert("s0".to_owned());
    again.sandbox(1, true).acts(&["start one 1"]);
    // What ran once and must not run again ends the pod instead.
    let mut spec = two();
    spec["restartPolicy"] = json!("Never");
    let mut once = Case::new(spec).sandbox(0, false).instance("a", 0, State::Exited, 137);
    once.stopped.insert("s0".to_owned());
    once.acts(&[]);
    assert!(once.instance("b", 0, State::Exited, 137).decide().finished);
}

#[test]
fn an_ending_pod_stops_apps_then_sidecars_then_the_sandbox() {
    let up = || {
        let case = Case::new(with_init()).sandbox(0, true).instance("side", 0, State::Running, 0);
        case.ending(EndReason::Deleted, 100, 30)
    };
    up().instance("a", 0, State::Running, 0).acts(&["kill a-0 30"]);
    up().acts(&["kill side-0 30"]);
    let gone = |state| {
        let case = Case::new(two()).sandbox(0, true).instance("a", 0, state, 0);
        case.ending(EndReason::Deleted, 100, 30)
    };
    gone(State::Exited).acts(&["stop s0"]);
    let mut last = gone(State::Exited);
    last.stopped.insert("s0".to_owned());
    assert!(last.decide().ended);
    last.busy.insert(Work::Container("b".to_owned()));
    assert!(!last.decide().ended, "a start in progress may still bring a process");
}

#[test]
fn a_shorter_grace_period_overrides_a_stop_in_progress() {
    let mut case = Case::new(two()).sandbox(0, true).instance("a", 0, State::Running, 0);
    case.busy.insert(Work::Kill("a-0".to_owned()));
    case.kills.insert("a-0".to_owned(), at(130));
    case = case.ending(EndReason::Deleted, 100, 30);
    case.acts(&[]);
    case = case.ending(EndReason::Deleted, 100, 1);
    case.acts(&["kill a-0 2"]);
    // Once only, even when it is overdue.
    case.kills.insert("a-0".to_owned(), at(102));
    case.now = 103;
    case.acts(&[]);
}

#[test]
fn one_dead_instance_is_kept_besides_the_newest() {
    let mut case = Case::new(two()).sandbox(0, true).instance("b", 0, State::Running, 0);
    for count in 0..3 {
        case = case.instance("a", count, State::Exited, 1);
    }
    case = case.instance("a", 3, State::Running, 0);
    case.acts(&["remove a-1", "remove a-0"]);
}
