//! The next step of a rollout: which ReplicaSet gets which size. Sizes in, sizes out.

use std::cmp::{max, min};

/// How pods are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Old and new side by side, within bounds.
    Rolling {
        /// How many pods there may be above the number wanted.
        max_surge: i32,
        /// How many of the number wanted may be unavailable.
        max_unavailable: i32,
    },
    /// All old ones end first.
    Recreate,
}

/// What the plan knows of a ReplicaSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// `spec.replicas`.
    pub size: i32,
    /// `status.availableReplicas`.
    pub available: i32,
    /// The deployment's size when this one was last scaled (annotation `desired-replicas`).
    pub desired: Option<i32>,
    /// The bound on all pods at that time (annotation `max-replicas`).
    pub most: Option<i32>,
}

/// A deployment's ReplicaSets as they are.
#[derive(Clone, Debug)]
pub struct Rollout {
    /// `spec.replicas`.
    pub replicas: i32,
    /// How pods are replaced.
    pub strategy: Strategy,
    /// Whether the rollout is paused: only scaling goes on.
    pub paused: bool,
    /// The ReplicaSet of the current template, where there is one.
    pub new: Option<Set>,
    /// All others, oldest first.
    pub old: Vec<Set>,
    /// Whether pods of old ReplicaSets still run.
    pub old_pods_run: bool,
}

/// The sizes to set; unchanged ones are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Of the current template's ReplicaSet.
    pub new: Option<i32>,
    /// Of the others, by index.
    pub old: Vec<Option<i32>>,
}

impl Strategy {
    /// The bound on all pods.
    pub fn most(self, replicas: i32) -> i32 {
        match self {
            Self::Rolling { max_surge, .. } if replicas > 0 => replicas + max_surge,
            _ => replicas,
        }
    }

    /// The least that stay available.
    pub fn least_available(self, replicas: i32) -> i32 {
        match self {
            Self::Rolling { max_unavailable, .. } => max(0, replicas - max_unavailable),
            Self::Recreate => replicas,
        }
    }
}

/// The next step.
pub fn next(rollout: &Rollout) -> Sizes {
    if rollout.paused || is_scaling(rollout) {
        return scale(rollout);
    }
    match rollout.strategy {
        Strategy::Rolling { .. } => roll(rollout),
        Strategy::Recreate => recreate(rollout),
    }
}

fn is_scaling(rollout: &Rollout) -> bool {
    let sets = rollout.new.iter().chain(&rollout.old);
    sets.filter(|set| set.size > 0).any(|set| set.desired.is_some_and(|desired| desired != rollout.replicas))
}

fn total(rollout: &Rollout) -> i32 {
    rollout.new.iter().chain(&rollout.old).map(|set| set.size).sum()
}

fn untouched(rollout: &Rollout) -> Sizes {
    Sizes { new: None, old: vec![None; rollout.old.len()] }
}

/// How many pods the new ReplicaSet may have now.
pub fn new_size(rollout: &Rollout, current: i32) -> i32 {
    let wanted = rollout.replicas;
    if current >= wanted || rollout.strategy == Strategy::Recreate {
        return wanted;
    }
    let room = rollout.strategy.most(wanted) - total(rollout);
    current + min(max(room, 0), wanted - current)
}

fn roll(rollout: &Rollout) -> Sizes {
    let mut sizes = untouched(rollout);
    let current = rollout.new.as_ref().map_or(0, |new| new.size);
    let size = new_size(rollout, current);
    if size != current {
        sizes.new = Some(size);
        return sizes;
    }
    let least = rollout.strategy.least_available(rollout.replicas);
    let unavailable = rollout.new.as_ref().map_or(0, |new| new.size - new.available);
    let mut budget = total(rollout) - least - unavailable;
    let mut now: Vec<i32> = rollout.old.iter().map(|set| set.size).collect();
    // Pods that serve nobody go first: they cost no availability.
    for (set, size) in rollout.old.iter().zip(&mut now) {
        let unhealthy = max(0, set.size - set.available);
        let down = max(0, min(budget, unhealthy));
        *size -= down;
        budget -= down;
    }
    let available: i32 = rollout.new.iter().chain(&rollout.old).map(|set| set.available).sum();
    let mut budget = min(available - least, max(budget, 0));
    for size in &mut now {
        let down = max(0, min(budget, *size));
        *size -= down;
        budget -= down;
    }
    sizes.old = rollout.old.iter().zip(now).map(|(set, size)| (size != set.size).then_some(size)).collect();
    sizes
}

fn recreate(rollout: &Rollout) -> Sizes {
    let mut sizes = untouched(rollout);
    sizes.old = rollout.old.iter().map(|set| (set.size > 0).then_some(0)).collect();
    let waits = rollout.old_pods_run || sizes.old.iter().any(Option::is_some);
    if !waits && rollout.new.as_ref().is_some_and(|new| new.size != rollout.replicas) {
        sizes.new = Some(rollout.replicas);
    }
    sizes
}

/// Scaling of a deployment: one active ReplicaSet takes it all, several share the difference by their sizes.
fn scale(rollout: &Rollout) -> Sizes {
    let mut sizes = untouched(rollout);
    let active: Vec<usize> = (0..rollout.old.len()).filter(|at| rollout.old[*at].size > 0).collect();
    let new_is_active = rollout.new.as_ref().is_some_and(|new| new.size > 0);
    match (new_is_active, active.as_slice()) {
        (false, [only]) => {
            sizes.old[*only] = (rollout.old[*only].size != rollout.replicas).then_some(rollout.replicas);
            return sizes;
        }
        (true, []) | (false, []) => {
            let current = rollout.new.as_ref().map(|new| new.size);
            sizes.new = current.filter(|size| *size != rollout.replicas).map(|_| rollout.replicas);
            return sizes;
        }
        _ => {}
    }
    let saturated = rollout.new.as_ref().is_some_and(|new| {
        new.size == rollout.replicas
            && new.available == rollout.replicas
            && new.desired == Some(rollout.replicas)
    });
    if saturated {
        sizes.old = rollout.old.iter().map(|set| (set.size > 0).then_some(0)).collect();
        return sizes;
    }
    if let Strategy::Rolling { .. } = rollout.strategy {
        share(rollout, &mut sizes);
    }
    sizes
}

/// Shares the pods to add or to take among the active ReplicaSets in proportion to their sizes, largest first.
fn share(rollout: &Rollout, sizes: &mut Sizes) {
    let allowed = if rollout.replicas > 0 { rollout.strategy.most(rollout.replicas) } else { 0 };
    let to_add = allowed - total(rollout);
    // The new one is index `None`.
    let mut sets: Vec<(Option<usize>, &Set)> =
        rollout.old.iter().enumerate().map(|(at, set)| (Some(at), set)).collect();
    sets.extend(rollout.new.as_ref().map(|new| (None, new)));
    sets.retain(|(_, set)| set.size > 0);
    sets.sort_by_key(|(at, set)| (-set.size, at.is_some(), *at));
    let mut added = 0;
    let mut targets: Vec<(Option<usize>, i32, i32)> = Vec::new();
    for (at, set) in sets {
        let fraction =
            f64::from(set.size) * f64::from(allowed) / f64::from(set.most.unwrap_or(allowed).max(1));
        #[allow(clippy::cast_possible_truncation, reason = "replica counts are far below the limits of i32")]
        let difference = fraction.round() as i32 - set.size;
        let left = to_add - added;
        let own = if to_add > 0 { max(0, min(difference, left)) } else { min(0, max(difference, left)) };
        added += own;
        targets.push((at, set.size, set.size + own));
    }
    if let Some(largest) = targets.first_mut() {
        largest.2 = max(0, largest.2 + to_add - added);
    }
    for (at, size, target) in targets {
        let change = (target != size).then_some(target);
        match at {
            Some(at) => sizes.old[at] = change,
            None => sizes.new = change,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(size: i32, available: i32) -> Set {
        Set { size, available, desired: None, most: None }
    }

    fn rollout(replicas: i32, new: Set, old: Vec<Set>) -> Rollout {
        let strategy = Strategy::Rolling { max_surge: 1, max_unavailable: 0 };
        Rollout { replicas, strategy, paused: false, new: Some(new), old, old_pods_run: true }
    }

    #[test]
    fn a_rollout_never_leaves_its_bounds_and_ends() {
        for (surge, unavailable) in [(1, 0), (0, 1), (2, 1), (25, 25)] {
            let mut now = rollout(10, set(0, 0), vec![set(4, 4), set(6, 6)]);
            now.strategy = Strategy::Rolling { max_surge: surge, max_unavailable: unavailable };
            for _ in 0..100 {
                let sizes = next(&now);
                let new = now.new.as_mut().unwrap();
                new.size = sizes.new.unwrap_or(new.size);
                for (set, size) in now.old.iter_mut().zip(&sizes.old) {
                    set.size = size.unwrap_or(set.size);
                    set.available = set.available.min(set.size);
                }
                let available: i32 = now.new.iter().chain(&now.old).map(|set| set.available).sum();
                assert!(total(&now) <= 10 + surge && available >= 10 - unavailable, "{now:?}");
                // One pod gets ready at a time.
                let new = now.new.as_mut().unwrap();
                new.available = (new.available + 1).min(new.size);
            }
            assert_eq!((now.new.unwrap().size, now.old[0].size, now.old[1].size), (10, 0, 0));
        }
    }

    #[test]
    fn pods_that_never_get_ready_stall_the_rollout() {
        let mut now = rollout(3, set(1, 0), vec![set(3, 3)]);
        assert_eq!(next(&now), Sizes { new: None, old: vec![None] });
        now.old[0].available = 2;
        assert_eq!(
            next(&now),
            Sizes { new: None, old: vec![None] },
            "an unavailable new pod is no reason to lose an old one"
        );
    }

    #[test]
    fn recreate_waits_for_the_old_pods() {
        let mut now = rollout(2, set(0, 0), vec![set(2, 2)]);
        now.strategy = Strategy::Recreate;
        assert_eq!(next(&now), Sizes { new: None, old: vec![Some(0)] });
        now.old[0].size = 0;
        assert_eq!(next(&now), Sizes { new: None, old: vec![None] });
        now.old_pods_run = false;
        assert_eq!(next(&now).new, Some(2));
    }

    #[test]
    fn scaling_in_a_rollout_is_shared_in_proportion() {
        let of = |size| Set { size, available: size, desired: Some(10), most: Some(11) };
        let mut now = rollout(20, of(3), vec![of(8)]);
        now.paused = true;
        let sizes = next(&now);
        assert_eq!(sizes.new.unwrap() + sizes.old[0].unwrap(), 21);
        assert!(sizes.old[0].unwrap() > sizes.new.unwrap());
        let single = Rollout { old: vec![], ..now };
        assert_eq!(next(&single).new, Some(20));
    }
}
