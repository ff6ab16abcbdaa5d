//! The members of a JSON object.

use std::collections::{BTreeMap, btree_map};
use std::ops::{Index, IndexMut};
use std::{fmt, slice, vec};

use compact_str::CompactString;

use super::Value;

/// A name or a text: short ones, as nearly all are, take no memory of their own.
pub type Text = CompactString;

/// The members of a JSON object in the order of their names.
#[derive(Clone)]
pub struct Map(Members);

/// Objects have few members nearly always, in texts they are in order mostly, and they are read more often than they are
/// changed: that is what a sorted vector is good at. What is changed in its middle at a cost that grows with its length becomes
/// a tree.
#[derive(Clone)]
#[expect(clippy::box_collection, reason = "a value is not to grow for what is rare")]
enum Members {
    Few(Vec<Member>),
    Many(Box<BTreeMap<Text, Value>>),
}

/// The most members that are moved to make room for one, or to close the gap of one.
const FEW: usize = 256;

/// A member; most comparisons of names are one of the numbers that stand beside them.
#[derive(Clone)]
struct Member {
    head: u64,
    name: Text,
    value: Value,
}

/// The first eight bytes of a name as a number that is in the order of names.
#[inline]
pub fn head(name: &str) -> u64 {
    let (bytes, len) = (name.as_bytes(), name.len());
    let byte = |at: usize| u64::from(bytes[at]) << (56 - 8 * at);
    match (bytes.first_chunk(), bytes.first_chunk(), bytes.last_chunk()) {
        (Some(first), ..) => u64::from_be_bytes(*first),
        (_, Some(first), Some(last)) => {
            let last = u64::from(u32::from_be_bytes(*last)) << (64 - 8 * len);
            u64::from(u32::from_be_bytes(*first)) << 32 | (last & u64::from(u32::MAX))
        }
        _ if len == 0 => 0,
        _ => byte(0) | byte(len / 2) | byte(len - 1),
    }
}

/// Where the member of a name is, or else would be.
fn find(members: &[Member], head: u64, name: &str) -> Result<usize, usize> {
    let at = members.partition_point(|member| member.head < head);
    match members.get(at) {
        Some(member) if member.head == head => find_alike(members, at, name),
        _ => Err(at),
    }
}

/// The same among those that begin like it, the first of which is known.
#[inline(never)]
fn find_alike(members: &[Member], mut at: usize, name: &str) -> Result<usize, usize> {
    let head = members[at].head;
    while let Some(member) = members.get(at).filter(|member| member.head == head) {
        let known = member.name.as_str();
        // What is no longer than a head is equal to what is as long.
        if known.len() == name.len() && (name.len() <= size_of_val(&head) || known == name) {
            return Ok(at);
        }
        if known > name {
            break;
        }
        at += 1;
    }
    Err(at)
}

impl Map {
    /// An object without members.
    pub const fn new() -> Self {
        Self(Members::Few(Vec::new()))
    }

    /// The member of a name.
    #[inline]
    pub fn get(&self, name: &str) -> Option<&Value> {
        match &self.0 {
            Members::Few(members) => find(members, head(name), name).ok().map(|at| &members[at].value),
            Members::Many(members) => members.get(name),
        }
    }

    /// The member of a name, to change.
    #[inline]
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Value> {
        match &mut self.0 {
            Members::Few(members) => find(members, head(name), name).ok().map(|at| &mut members[at].value),
            Members::Many(members) => members.get_mut(name),
        }
    }

    /// Whether there is a member of a name.
    #[inline]
    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Sets a member and returns what it was.
    pub fn insert(&mut self, name: impl Into<Text>, value: Value) -> Option<Value> {
        let name = name.into();
        if let Members::Few(members) = &mut self.0 {
            let head = head(&name);
            let found = match members.last() {
                Some(last) if (last.head, last.name.as_str()) >= (head, name.as_str()) => {
                    find(members, head, &name)
                }
                _ => Err(members.len()),
            };
            match found {
                Ok(at) => return Some(std::mem::replace(&mut members[at].value, value)),
                Err(at) if members.len() - at <= FEW => {
                    members.insert(at, Member { head, name, value });
                    return None;
                }
                Err(_) => {}
            }
        }
        self.many().insert(name, value)
    }

    /// Removes a member and returns it.
    pub fn remove(&mut self, name: &str) -> Option<Value> {
        if let Members::Few(members) = &mut self.0 {
            let at = find(members, head(name), name).ok()?;
            if members.len() - at <= FEW {
                return Some(members.remove(at).value);
            }
        }
        self.many().remove(name)
    }

    /// The members as a tree, made where they are none yet.
    fn many(&mut self) -> &mut BTreeMap<Text, Value> {
        if let Members::Few(members) = &mut self.0 {
            let members = std::mem::take(members).into_iter();
            self.0 = Members::Many(Box::new(members.map(|member| (member.name, member.value)).collect()));
        }
        match &mut self.0 {
            Members::Many(members) => members,
            Members::Few(_) => unreachable!("made a tree above"),
        }
    }

    /// The place of a member that is there or is to be.
    pub fn entry(&mut self, name: impl Into<Text>) -> Entry<'_> {
        Entry { map: self, name: name.into() }
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Members::Few(members) => members.len(),
            Members::Many(members) => members.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps the members that a test holds for.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &mut Value) -> bool) {
        match &mut self.0 {
            Members::Few(members) => members.retain_mut(|member| keep(&member.name, &mut member.value)),
            Members::Many(members) => members.retain(|name, value| keep(name, value)),
        }
    }

    /// The members in the order of names.
    #[inline]
    pub fn iter(&self) -> Iter<'_> {
        match &self.0 {
            Members::Few(members) => Iter(Run::Few(members.iter())),
            Members::Many(members) => Iter(Run::Many(members.iter())),
        }
    }

    /// The members in the order of names, their values to change.
    pub fn iter_mut(&mut self) -> IterMut<'_> {
        match &mut self.0 {
            Members::Few(members) => IterMut(Run::Few(members.iter_mut())),
            Members::Many(members) => IterMut(Run::Many(members.iter_mut())),
        }
    }

    /// The names in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(name, _)| name)
    }

    /// The values in the order of names.
    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.iter().map(|(_, value)| value)
    }

    /// The values in the order of names, to change.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Value> {
        self.iter_mut().map(|(_, value)| value)
    }
}

impl Default for Map {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for Map {
    fn eq(&self, other: &Self) -> bool {
        let is_same = |(one, other): (&Member, &Member)| {
            one.head == other.head && one.name == other.name && one.value == other.value
        };
        match (&self.0, &other.0) {
            (Members::Few(one), Members::Few(other)) => {
                one.len() == other.len() && one.iter().zip(other).all(is_same)
            }
            _ => self.iter().eq(other),
        }
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

/// A missing member reads as null.
impl Index<&str> for Map {
    type Output = Value;
    fn index(&self, name: &str) -> &Value {
        self.get(name).unwrap_or(&Value::Null)
    }
}

/// A missing member is made, as null.
impl IndexMut<&str> for Map {
    fn index_mut(&mut self, name: &str) -> &mut Value {
        self.entry(name).or_insert(Value::Null)
    }
}

/// The place of a member that is there or is to be.
pub struct Entry<'a> {
    map: &'a mut Map,
    name: Text,
}

impl<'a> Entry<'a> {
    /// The member's value, made where it is missing.
    pub fn or_insert(self, value: Value) -> &'a mut Value {
        self.or_insert_with(|| value)
    }

    /// The member's value, made where it is missing.
    pub fn or_insert_with(self, value: impl FnOnce() -> Value) -> &'a mut Value {
        if !self.map.contains_key(&self.name) {
            self.map.insert(self.name.clone(), value());
        }
        self.map.get_mut(&self.name).expect("made above")
    }
}

#[derive(Clone)]
enum Run<F, M> {
    Few(F),
    Many(M),
}

impl<F: Iterator, M: Iterator> Run<F, M> {
    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            Self::Few(members) => members.size_hint(),
            Self::Many(members) => members.size_hint(),
        }
    }
}

/// The members of an object.
#[derive(Clone)]
pub struct Iter<'a>(Run<slice::Iter<'a, Member>, btree_map::Iter<'a, Text, Value>>);

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a str, &'a Value);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Run::Few(members) => members.next().map(|member| (member.name.as_str(), &member.value)),
            Run::Many(members) => members.next().map(|(name, value)| (name.as_str(), value)),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

/// The members of an object, their values to change.
pub struct IterMut<'a>(Run<slice::IterMut<'a, Member>, btree_map::IterMut<'a, Text, Value>>);

impl<'a> Iterator for IterMut<'a> {
    type Item = (&'a str, &'a mut Value);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Run::Few(members) => members.next().map(|member| (member.name.as_str(), &mut member.value)),
            Run::Many(members) => members.next().map(|(name, value)| (name.as_str(), value)),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

/// The members of what was an object.
pub struct IntoIter(Run<vec::IntoIter<Member>, btree_map::IntoIter<Text, Value>>);

impl Iterator for IntoIter {
    type Item = (Text, Value);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Run::Few(members) => members.next().map(|member| (member.name, member.value)),
            Run::Many(members) => members.next(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<'a> IntoIterator for &'a Map {
    type Item = (&'a str, &'a Value);
    type IntoIter = Iter<'a>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a> IntoIterator for &'a mut Map {
    type Item = (&'a str, &'a mut Value);
    type IntoIter = IterMut<'a>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

impl IntoIterator for Map {
    type Item = (Text, Value);
    type IntoIter = IntoIter;
    fn into_iter(self) -> Self::IntoIter {
        IntoIter(match self.0 {
            Members::Few(members) => Run::Few(members.into_iter()),
            Members::Many(members) => Run::Many(members.into_iter()),
        })
    }
}

impl<N: Into<Text>> Extend<(N, Value)> for Map {
    fn extend<I: IntoIterator<Item = (N, Value)>>(&mut self, members: I) {
        for (name, value) in members {
            self.insert(name, value);
        }
    }
}

impl<N: Into<Text>> FromIterator<(N, Value)> for Map {
    fn from_iter<I: IntoIterator<Item = (N, Value)>>(members: I) -> Self {
        let mut map = Self::new();
        map.extend(members);
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does the same to a map and to a tree of the library's.
    fn compare(names: &[String], changes: &[(usize, bool)]) -> Map {
        let (mut map, mut model) = (Map::new(), BTreeMap::new());
        for (at, (name, removes)) in changes.iter().enumerate() {
            let name = names[name % names.len()].as_str();
            match removes {
                true => assert_eq!(map.remove(name), model.remove(name), "{name:?}"),
                false => {
                    assert_eq!(map.insert(name, at.into()), model.insert(name, Value::from(at)), "{name:?}")
                }
            }
        }
        assert!(map.iter().eq(model.iter().map(|(name, value)| (*name, value))));
        assert!(names.iter().all(|name| map.get(name) == model.get(name.as_str())));
        assert_eq!((map.len(), &model.into_iter().collect::<Map>()), (map.len(), &map));
        map
    }

    #[test]
    fn it_is_in_the_order_of_names() {
        let parts = ["", "a", "b", "\0", "\u{e9}", "\u{10ffff}", "abcdefgh", "aaaaaaa"];
        let pairs: Vec<String> = parts.iter().flat_map(|a| parts.map(|b| format!("{a}{b}"))).collect();
        let names: Vec<String> = pairs.iter().flat_map(|pair| parts.map(|c| format!("{pair}{c}"))).collect();
        for step in [1, 5, 37, 511] {
            let changes: Vec<_> = (0..1000).map(|at| (at * step, at % 7 > 4)).collect();
            compare(&names, &changes);
        }
    }

    #[test]
    fn what_moves_too_much_becomes_a_tree() {
        let names: Vec<String> = (0..2000).map(|at| format!("{at:04}")).collect();
        let kinds = |order: &mut dyn Iterator<Item = usize>| {
            let map = compare(&names, &order.map(|at| (at, false)).collect::<Vec<_>>());
            matches!(map.0, Members::Many(_))
        };
        assert!(!kinds(&mut (0..2000)));
        assert!(!kinds(&mut (0..200).rev()));
        assert!(kinds(&mut (0..2000).rev()));
        let removed: Vec<_> = (0..2000).map(|at| (at, false)).chain((0..1999).map(|at| (at, true))).collect();
        assert_eq!(compare(&names, &removed).len(), 1);
    }
}
