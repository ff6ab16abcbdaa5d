//! Which objects the pods of each node name.
//!
//! The graph follows the pods of the store when it is asked, never in between: a node that asks sees every pod that is
//! bound to it by then, and a server without kubelets pays nothing.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coxswain_store::{Collection, EventKind, Object, Store, Watch};

use super::references::{Kind, Reference, of_pod};
use crate::object::{Attributes, ObjectView};

/// Catching up is given up after this many histories that were cut off meanwhile; the next question goes on.
const ATTEMPTS: usize = 8;

/// The graph; it starts when it is first asked.
#[derive(Default)]
pub struct Graph(Mutex<State>);

#[derive(Default)]
struct State {
    watch: Option<Watch<Attributes>>,
    pods: HashMap<Arc<str>, Bound>,
    /// Node, what its pods name, and how many of them do.
    named: HashMap<String, HashMap<Reference, usize>>,
}

struct Bound {
    node: String,
    references: HashSet<Reference>,
}

impl Graph {
    /// Whether a pod on the node names the object.
    pub fn holds(&self, store: &Store<ObjectView>, node: &str, object: &Reference) -> bool {
        self.current(store).named.get(node).is_some_and(|named| named.contains_key(object))
    }

    /// The claims that pods on the node name.
    pub fn claims(&self, store: &Store<ObjectView>, node: &str) -> Vec<Reference> {
        let state = self.current(store);
        let named = state.named.get(node).into_iter().flat_map(HashMap::keys);
        named.filter(|reference| reference.kind == Kind::Claim).cloned().collect()
    }

    fn current(&self, store: &Store<ObjectView>) -> MutexGuard<'_, State> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.catch_up(&store.collection("pods"));
        state
    }
}

impl State {
    fn catch_up(&mut self, pods: &Arc<Collection<Attributes>>) {
        for _ in 0..ATTEMPTS {
            let Some(watch) = &mut self.watch else {
                // What is written in between is seen twice, and last as it is.
                self.watch = pods.watch("", pods.newest()).ok();
                self.pods.clear();
                self.named.clear();
                pods.list("").iter().for_each(|pod| self.put(pod));
                continue;
            };
            match watch.ready() {
                Ok(events) if events.is_empty() => return,
                Ok(events) => events.iter().for_each(|event| match event.kind {
                    EventKind::Put => self.put(&event.object),
                    EventKind::Delete => self.remove(&event.object.name),
                }),
                Err(_) => self.watch = None,
            }
        }
    }

    fn put(&mut self, pod: &Object<Attributes>) {
        let node = pod.attributes.fields.iter().find(|(field, _)| *field == "spec.nodeName");
        let node = node.map(|(_, node)| &**node).unwrap_or_default();
        let known = self.pods.get(&pod.name).is_some_and(|bound| bound.node == node);
        // Of a bound pod, only these come later.
        if known && !has(&pod.bytes, b"\"ephemeralContainers\"") && !has(&pod.bytes, b"esourceClaim") {
            return;
        }
        self.remove(&pod.name);
        if node.is_empty() {
            return;
        }
        let references: HashSet<Reference> = serde_json::from_slice(&pod.bytes)
            .map(|pod| of_pod(&pod))
            .unwrap_or_default()
            .into_iter()
            .collect();
        let named = self.named.entry(node.to_owned()).or_default();
        for reference in &references {
            *named.entry(reference.clone()).or_default() += 1;
        }
        self.pods.insert(pod.name.clone(), Bound { node: node.to_owned(), references });
    }

    fn remove(&mut self, pod: &str) {
        let Some(bound) = self.pods.remove(pod) else { return };
        let Some(named) = self.named.get_mut(&bound.node) else { return };
        for reference in &bound.references {
            if let Some(count) = named.get_mut(reference) {
                *count -= 1;
                if *count == 0 {
                    named.remove(reference);
                }
            }
        }
        if named.is_empty() {
            self.named.remove(&bound.node);
        }
    }
}

fn has(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}
