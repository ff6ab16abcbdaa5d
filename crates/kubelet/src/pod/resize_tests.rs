//! A pod of two containers is resized.

use serde_json::{Value, json};

use super::*;
use crate::model::State;

fn pod(a: Value, b: Value) -> Arc<Pod> {
    let container =
        |name: &str, resources: Value| json!({ "name": name, "image": "i", "resources": resources });
    let mut b = container("b", b);
    b["resizePolicy"] = json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" }]);
    Arc::new(
        serde_json::from_value(json!({ "spec": { "containers": [container("a", a), b] } })).expect("a pod"),
    )
}

fn resources(cpu: &str, memory: &str) -> Value {
    json!({ "requests": { "cpu": cpu, "memory": memory }, "limits": { "cpu": cpu, "memory": memory } })
}

fn running() -> PodRuntime {
    let record = |name: &str| ContainerRecord {
        id: format!("{name}-0"),
        name: name.to_owned(),
        state: State::Running,
        ..ContainerRecord::default()
    };
    PodRuntime { containers: vec![record("a"), record("b")], ..PodRuntime::default() }
}

/// A pod that runs as it was wanted at first.
fn started() -> Resize {
    let mut resize = Resize::default();
    let pod = resize.grant(&pod(resources("100m", "10Mi"), resources("100m", "10Mi")), || Ok(()));
    resize.note(&pod, &running(), &PodStatus::default());
    assert!(resize.steps(&pod, &running()).is_empty());
    let cgroup = resize.cgroup(&pod, &running());
    resize.applied(cgroup);
    resize
}

#[test]
fn the_cgroup_holds_old_and_new_until_every_container_is_there() {
    let (mut resize, runtime) = (started(), running());
    let pod = resize.grant(&pod(resources("0.2", "10Mi"), resources("0.05", "20Mi")), || Ok(()));
    let steps = resize.steps(&pod, &runtime);
    assert_eq!(steps, [("a".to_owned(), Step::Update), ("b".to_owned(), Step::Restart)].into());
    let between = resize.cgroup(&pod, &runtime);
    assert_eq!((between.cpu_quota, between.memory_bytes), (Some(25_000), Some(30 << 20)));
    assert!(resize.cgroup_differs(&between));
    resize.updated(&pod, &runtime, &["a-0".to_owned()]);
    assert_eq!(resize.steps(&pod, &runtime), [("b".to_owned(), Step::Restart)].into());
    assert_eq!(resize.conditions(true), [("PodResizeInProgress", "", String::new())]);
    // The new instance starts with what was granted.
    let mut restarted = running();
    restarted.containers[1].id = "b-1".to_owned();
    resize.start(&pod, "b");
    resize.note(&pod, &restarted, &PodStatus::default());
    assert!(resize.steps(&pod, &restarted).is_empty());
}

#[test]
fn equal_amounts_written_otherwise_are_no_resize() {
    let mut resize = started();
    let room = || panic!("nobody has to ask for room");
    resize.grant(&pod(resources("0.1", "10240Ki"), resources("100m", "10Mi")), room);
}

#[test]
fn without_room_the_pod_keeps_what_it_has() {
    let (mut resize, runtime) = (started(), running());
    let wanted = pod(resources("9", "10Mi"), resources("100m", "10Mi"));
    let granted = resize.grant(&wanted, || Err(NoRoom::Ever("too much".to_owned())));
    assert!(resize.steps(&granted, &runtime).is_empty());
    assert_eq!(resize.conditions(false), [("PodResizePending", "Infeasible", "too much".to_owned())]);
    let granted = resize.grant(&wanted, || Ok(()));
    assert_eq!(resize.steps(&granted, &runtime).len(), 1);
}

#[test]
fn a_restarted_kubelet_goes_on_where_it_was() {
    let mut found = Pod::clone(&pod(resources("200m", "10Mi"), resources("100m", "10Mi")));
    found.status = serde_json::from_value(json!({ "containerStatuses": [
        { "name": "a", "containerID": "cox://a-0", "allocatedResources": { "cpu": "200m", "memory": "10Mi" },
          "resources": resources("100m", "10Mi"), "image": "", "imageID": "", "ready": true, "restartCount": 0 }] }))
    .expect("a status");
    let mut resize = Resize::default();
    let found = Arc::new(found);
    let pod = resize.grant(&found, || Err(NoRoom::Now("full".to_owned())));
    resize.note(&pod, &running(), found.status.as_ref().expect("a status"));
    assert_eq!(resize.steps(&pod, &running()), [("a".to_owned(), Step::Update)].into());
}
