//! The pods of a job, made from its template.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use kube::ResourceExt;

use super::facts::{INDEX, INDEX_FAILURES, INDEX_IGNORED, TRACKING, Terms, failures_of};
use super::policy;
use crate::owner;
use crate::podcontrol::pod_of;

const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// The server adds five characters to a name that it generates.
const LONGEST_PREFIX: usize = 58;

/// A pod for each index (or for none). A pod that follows a failed one of its index inherits the count of failures.
pub fn pods<'a>(
    job: &'a Job,
    terms: &'a Terms<'a>,
    indexes: Vec<Option<u32>>,
    kept: &'a HashMap<u32, Arc<Pod>>,
) -> impl Iterator<Item = Pod> + 'a {
    let mut base = pod_of(job, terms.spec.template.clone());
    base.metadata.finalizers = Some(owner::with_finalizer(&base.metadata, TRACKING, true));
    base.metadata.generate_name = Some(format!("{}-", job.name_any()));
    if let Some(spec) = base.spec.as_mut().filter(|_| terms.indexed) {
        spec.init_containers.iter_mut().flatten().for_each(add_variable);
        spec.containers.iter_mut().for_each(add_variable);
    }
    indexes.into_iter().map(move |index| {
        let mut pod = base.clone();
        if let Some(index) = index {
            number(&mut pod, terms, index, kept.get(&index).map(|pod| &**pod));
        }
        pod
    })
}

fn number(pod: &mut Pod, terms: &Terms<'_>, index: u32, before: Option<&Pod>) {
    let metadata = &mut pod.metadata;
    metadata.generate_name = Some(prefix(terms.name, index));
    metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.into(), index.to_string());
    if terms.spec.backoff_limit_per_index.is_some() {
        let (mut counting, mut ignored) = before.map(failures_of).unwrap_or_default();
        if let Some(before) = before {
            let counts = policy::meaning(terms.spec.pod_failure_policy.as_ref(), before).counts();
            *(if counts { &mut counting } else { &mut ignored }) += 1;
        }
        annotations.insert(INDEX_FAILURES.into(), counting.to_string());
        if ignored > 0 {
            annotations.insert(INDEX_IGNORED.into(), ignored.to_string());
        }
    }
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(format!("{}-{index}", terms.name));
    }
}

fn prefix(name: &str, index: u32) -> String {
    let end = format!("-{index}-");
    // Names of jobs are ASCII.
    let name = name.get(..LONGEST_PREFIX - end.len()).unwrap_or(name);
    format!("{name}{end}")
}

fn add_variable(container: &mut Container) {
    let variables = container.env.get_or_insert_default();
    if variables.iter().any(|variable| variable.name == INDEX_VARIABLE) {
        return;
    }
    let field = ObjectFieldSelector {
        field_path: format!("metadata.labels['{INDEX}']"),
        ..ObjectFieldSelector::default()
    };
    variables.push(EnvVar {
        name: INDEX_VARIABLE.into(),
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
        ..EnvVar::default()
    });
}
