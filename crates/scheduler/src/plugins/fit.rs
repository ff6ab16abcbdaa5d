//! NodeResourcesFit and NodeResourcesBalancedAllocation.

use crate::framework::MAX_SCORE;
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// Filter of NodeResourcesFit: what the pod asks for is free.
pub fn filter(pod: &PodInfo, node: &NodeInfo) -> Vec<String> {
    let mut short = Vec::new();
    if node.pods + 1 > node.most_pods {
        short.push("Too many pods".to_owned());
    }
    let (asked, taken, has) = (&pod.requests, &node.requested, &node.allocatable);
    let mut check = |name: &str, asked: i64, taken: i64, has: i64| {
        if asked > 0 && asked > has - taken {
            short.push(format!("Insufficient {name}"));
        }
    };
    check("cpu", asked.milli_cpu, taken.milli_cpu, has.milli_cpu);
    check("memory", asked.memory_bytes, taken.memory_bytes, has.memory_bytes);
    check("ephemeral-storage", asked.ephemeral_bytes, taken.ephemeral_bytes, has.ephemeral_bytes);
    for (name, amount) in &asked.extended {
        let of = |resources: &crate::resources::Resources| resources.extended.get(name).copied().unwrap_or(0);
        check(name, *amount, of(taken), of(has));
    }
    short
}

/// CPU and memory: what would be taken with the pod, and what there is.
fn shares(pod: &PodInfo, node: &NodeInfo) -> [(i64, i64); 2] {
    let (with, taken, has) = (&pod.counted, &node.counted, &node.allocatable);
    [
        (taken.milli_cpu + with.milli_cpu, has.milli_cpu),
        (taken.memory_bytes + with.memory_bytes, has.memory_bytes),
    ]
}

/// Score of NodeResourcesFit (LeastAllocated): the share that stays free.
pub fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let free =
        |(taken, has): (i64, i64)| if has <= 0 || taken > has { 0 } else { (has - taken) * MAX_SCORE / has };
    shares(pod, node).into_iter().map(free).sum::<i64>() / 2
}

/// Score of NodeResourcesBalancedAllocation: CPU and memory are taken alike.
pub fn balanced(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let (requests, taken, has) = (&pod.requests, &node.requested, &node.allocatable);
    if requests.milli_cpu == 0 && requests.memory_bytes == 0 {
        return 0;
    }
    // In millionths: exact enough, and the same on every machine.
    let share = |taken: i64, has: i64| {
        if has <= 0 { 1_000_000 } else { (i128::from(taken) * 1_000_000 / i128::from(has)).min(1_000_000) }
    };
    let cpu = share(taken.milli_cpu + requests.milli_cpu, has.milli_cpu);
    let memory = share(taken.memory_bytes + requests.memory_bytes, has.memory_bytes);
    let deviation = (cpu - memory).abs() / 2;
    i64::try_from((1_000_000 - deviation) * i128::from(MAX_SCORE) / 1_000_000).unwrap_or(0)
}
