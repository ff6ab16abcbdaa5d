//! The fields of a new object, written down as the text they are stored as: it is most of what a creation says of managers.

use crate::json::{Map, Raw, Value};

use super::set::{SELF, Set};
use super::walk::{element, is_bare, is_leaf};
use super::{Node, Relation};
use crate::json;

/// The FieldsV1 document of what a new object has beyond a `blank` one, but for the fields of the sets `without` and all
/// below them; none where nothing is left. The same as the difference between the two, without the trees.
pub(super) fn document<N: Node>(node: N, (blank, new): (&Value, &Value), without: [&Set; 2]) -> Option<Raw> {
    let (blank, new) = (blank.as_object()?, new.as_object()?);
    let mut out = Writer(String::with_capacity(2048));
    out.0.push('{');
    out.beyond(node, blank, new, without.map(|set| Some(&set.0)));
    out.0.push('}');
    Some(out.0).filter(|text| text != "{}").map(Raw::written)
}

/// What is left out below a node, of either set.
type Without<'a> = [Option<&'a Map>; 2];

fn below<'a>(without: Without<'a>, name: &str) -> Without<'a> {
    if without == [None, None] {
        return without;
    }
    let key = ["f:", name].concat();
    without.map(|set| set.and_then(|set| set.get(&key)).and_then(Value::as_object))
}

struct Writer(String);

impl Writer {
    /// The members of a map that differ from those of a blank one.
    fn beyond<N: Node>(&mut self, node: N, blank: &Map, new: &Map, without: Without) {
        for (name, value) in new {
            let (place, without, key) = (node.member(name).node, below(without, name), ("f:", name));
            match (blank.get(name), value) {
                (Some(before), value) if before == value => {}
                (Some(Value::Object(before)), Value::Object(after)) if !is_leaf(place, value) => {
                    self.node(key, false, without, |out| out.beyond(place, before, after, without));
                }
                (before, _) => self.whole(key, before.is_none(), (place, value), without),
            }
        }
    }

    /// Every path below a path element, and itself where it is new or there are none.
    fn whole<N: Node>(
        &mut self,
        key: (&str, &str),
        is_new: bool,
        (node, value): (N, &Value),
        without: Without,
    ) {
        let has_parts = !is_leaf(node, value) && !is_bare(value);
        self.node(key, is_new || !has_parts, without, |out| {
            if has_parts {
                out.all(node, value, without);
            }
        });
    }

    /// Every path below a value that is no leaf.
    fn all<N: Node>(&mut self, node: N, value: &Value, without: Without) {
        match (node.relation(value), value) {
            (Relation::Map, Value::Object(map)) => {
                for (name, value) in map {
                    let place = (node.member(name).node, value);
                    self.whole(("f:", name), true, place, below(without, name));
                }
            }
            (relation @ (Relation::Set | Relation::Keyed), Value::Array(items)) => {
                let mut items: Vec<_> =
                    items.iter().map(|item| (element(node, relation, item), item)).collect();
                items.sort_by(|(a, _), (b, _)| a.cmp(b));
                // Of items with the same keys the last counts.
                for (at, (key, item)) in items.iter().enumerate() {
                    if items.get(at + 1).is_none_or(|(next, _)| next != key) {
                        self.whole(("", key), true, (node.item(), item), [None, None]);
                    }
                }
            }
            _ => {}
        }
    }

    /// A path element and what is below it; nothing where neither it nor anything below is in the set.
    fn node(&mut self, key: (&str, &str), itself: bool, without: Without, inner: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        let is_out = |named: fn(&Map) -> bool| without.iter().flatten().any(|set| named(set));
        if is_out(Map::is_empty) {
            return;
        }
        let itself = itself && !is_out(|set| set.contains_key(SELF));
        if !self.0.ends_with('{') {
            self.0.push(',');
        }
        self.0.push('"');
        self.0.push_str(key.0);
        json::write_escaped(&mut self.0, key.1);
        self.0.push_str("\":{");
        let open = self.0.len();
        if itself {
            self.0.push_str(r#"".":{}"#);
        }
        let before = self.0.len();
        inner(self);
        match self.0.len() > before {
            true => {}
            false if itself => self.0.truncate(open),
            false => return self.0.truncate(start),
        }
        self.0.push('}');
    }
}
