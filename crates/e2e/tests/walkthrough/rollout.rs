//! Step 4: rollouts under load. No request may fail, whatever the rollout does.

use anyhow::Context;
use coxswain_e2e::load::{Answers, Load};
use coxswain_e2e::pods::{is_ready, labelled};
use serde_json::{Value, json};

use crate::{LONG, Walk};

pub const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/notepad";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const LOAD_THREADS: usize = 3;

pub fn updates_without_loss(walk: &Walk) -> anyhow::Result<String> {
    let answers = under_load(walk, |walk| {
        set_image(walk, "2")?;
        finished(walk)
    })?;
    anyhow::ensure!(answers.by_version.len() == 2, "both versions answered: {:?}", answers.by_version);
    runs(walk, "2")?;
    Ok(format!("{} requests, {:?}, 0 failures", answers.total(), answers.by_version))
}

pub fn undoes(walk: &Walk) -> anyhow::Result<String> {
    let history = walk.cluster.kubectl(&["rollout", "history", "deployment/notepad"])?;
    let revisions: Vec<&str> = history.lines().filter_map(|line| line.split_whitespace().next()).collect();
    anyhow::ensure!(revisions.ends_with(&["1", "2"]), "{history}");
    let answers = under_load(walk, |walk| {
        walk.cluster.kubectl(&["rollout", "undo", "deployment/notepad"])?;
        finished(walk)
    })?;
    runs(walk, "1")?;
    let history = walk.cluster.kubectl(&["rollout", "history", "deployment/notepad"])?;
    let revisions: Vec<&str> = history.lines().filter_map(|line| line.split_whitespace().next()).collect();
    anyhow::ensure!(revisions.ends_with(&["2", "3"]), "{history}");
    Ok(format!("revision 3 is what 1 was; {} requests, 0 failures", answers.total()))
}

pub fn pauses_and_resumes(walk: &Walk) -> anyhow::Result<String> {
    walk.cluster.kubectl(&["rollout", "pause", "deployment/notepad"])?;
    let generation = set_image(walk, "2")?;
    walk.api.wait("the controller to see the paused change", DEPLOYMENTS, LONG, |deployments| {
        let status = &deployments.get("default/notepad")?["status"];
        let paused = status["conditions"].as_array()?.iter().any(|c| c["reason"] == "DeploymentPaused");
        (status["observedGeneration"].as_i64()? >= generation && paused).then_some(())
    })?;
    runs(walk, "1").context("while paused")?;
    walk.cluster.kubectl(&["rollout", "resume", "deployment/notepad"])?;
    finished(walk)?;
    runs(walk, "2").context("after resuming")?;
    Ok("the change waited for resume".to_owned())
}

pub fn stalls_and_is_undone(walk: &Walk) -> anyhow::Result<String> {
    walk.api.write("PATCH", DEPLOYMENT, &json!({"spec": {"progressDeadlineSeconds": 5}}))?;
    let mut seen = String::new();
    let answers = under_load(walk, |walk| {
        set_image(walk, "missing")?;
        seen = waits_for_its_image(walk)?;
        walk.api.wait("the deployment to say it is stuck", DEPLOYMENTS, LONG, |deployments| {
            let conditions = deployments.get("default/notepad")?["status"]["conditions"].as_array()?;
            conditions
                .iter()
                .find(|c| c["reason"] == "ProgressDeadlineExceeded" && c["status"] == "False")
                .map(drop)
        })?;
        let status = walk.cluster.try_kubectl(&["rollout", "status", "deployment/notepad"])?;
        anyhow::ensure!(!status.ok && status.stderr.contains("exceeded its progress deadline"), "{status:?}");
        let pods = walk.api.get(&labelled("notepad"))?;
        let ready = pods["items"].as_array().into_iter().flatten().filter(|pod| is_ready(pod)).count();
        anyhow::ensure!(ready == 3, "the old pods serve on: {ready} of 3");
        walk.cluster.kubectl(&["rollout", "undo", "deployment/notepad"])?;
        finished(walk)
    })?;
    anyhow::ensure!(answers.by_version.keys().all(|version| version == "2"), "{:?}", answers.by_version);
    runs(walk, "2")?;
    walk.api.write("PATCH", DEPLOYMENT, &json!({"spec": {"progressDeadlineSeconds": 600}}))?;
    Ok(format!("{seen}; {} requests, 0 failures", answers.total()))
}

/// Does something while requests are sent without pause; none may fail.
fn under_load(walk: &Walk, act: impl FnOnce(&Walk) -> anyhow::Result<()>) -> anyhow::Result<Answers> {
    let load = Load::start(&walk.cluster, walk.outside(), LOAD_THREADS);
    let acted = act(walk);
    let answers = load.stop();
    acted?;
    anyhow::ensure!(
        answers.failures.is_empty(),
        "{} of {} requests failed: {:?}",
        answers.failures.len(),
        answers.total(),
        answers.failures.iter().take(5).collect::<Vec<_>>()
    );
    Ok(answers)
}

/// Waits until a pod says why its image does not come.
pub fn waits_for_its_image(walk: &Walk) -> anyhow::Result<String> {
    walk.api.wait("a pod that says why it waits", &labelled("notepad"), LONG, |pods| {
        let waiting = |pod: &Value| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            let reason = waiting["reason"].as_str()?;
            ["ErrImagePull", "ImagePullBackOff"].contains(&reason).then(|| waiting.to_string())
        };
        pods.values().find_map(waiting)
    })
}

/// Sets the version; gives the deployment's generation.
pub fn set_image(walk: &Walk, version: &str) -> anyhow::Result<i64> {
    let image = format!("notepad=coxswain.local/notepad:{version}");
    walk.cluster.kubectl(&["set", "image", "deployment/notepad", &image])?;
    walk.api.get(DEPLOYMENT)?["metadata"]["generation"].as_i64().context("no generation")
}

fn finished(walk: &Walk) -> anyhow::Result<()> {
    let timeout = format!("--timeout={}s", LONG.as_secs());
    let status = walk.cluster.kubectl(&["rollout", "status", "deployment/notepad", &timeout])?;
    anyhow::ensure!(status.contains("successfully rolled out"), "{status}");
    Ok(())
}

/// Waits until the only pods are three ready ones of a version.
pub fn runs(walk: &Walk, version: &str) -> anyhow::Result<()> {
    let image = format!("coxswain.local/notepad:{version}");
    walk.api.wait(&format!("three ready pods of version {version}"), &labelled("notepad"), LONG, |pods| {
        let right = |pod: &Value| is_ready(pod) && pod["spec"]["containers"][0]["image"] == *image;
        (pods.len() == 3 && pods.values().all(right)).then_some(())
    })
}
