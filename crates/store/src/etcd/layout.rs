//! How the store lies in etcd: pure translations between records and keys, values and transactions.
//!
//! - `<prefix>head`: the newest revision, and which append of which writer wrote it. Every append compares it and writes
//!   it last, so appends of all servers stand in one order.
//! - `<prefix>objects/<collection>/<name>`: the object's revision, a line feed, and its bytes, sealed where they are to be.
//! - `<prefix>history`: revisions of etcd from which a server that starts can read on.
//! - `<prefix>cluster/<name>`: what the servers of a cluster share beside its objects.

use bytes::{BufMut, Bytes, BytesMut};

use super::proto::{
    Compare, DeleteRangeRequest, KeyValue, PutRequest, RequestOp, TxnRequest, compare, request_op,
};
use crate::{Key, LogError, Record, Revision, Sealer};

/// What the newest append was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The revision of its last record.
    pub revision: Revision,
    /// Which process wrote it.
    pub writer: u64,
    /// Which of that process's appends it was.
    pub append: u64,
}

impl Head {
    pub fn encode(&self) -> Bytes {
        format!("{} {:016x} {}", self.revision, self.writer, self.append).into()
    }

    pub fn decode(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let mut parts = text.split(' ');
        let revision = Revision(parts.next()?.parse().ok()?);
        let writer = u64::from_str_radix(parts.next()?, 16).ok()?;
        Some(Self { revision, writer, append: parts.next()?.parse().ok()? })
    }
}

/// A point from which history can be read: our revision and etcd's at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub revision: Revision,
    pub etcd: i64,
}

/// The value of `history`: the oldest mark first.
pub fn encode_marks(marks: &[Mark]) -> Bytes {
    let lines: Vec<String> = marks.iter().map(|mark| format!("{} {}", mark.revision, mark.etcd)).collect();
    lines.join("\n").into()
}

pub fn decode_marks(value: &[u8]) -> Vec<Mark> {
    let mark = |line: &str| {
        let (revision, etcd) = line.split_once(' ')?;
        Some(Mark { revision: Revision(revision.parse().ok()?), etcd: etcd.parse().ok()? })
    };
    std::str::from_utf8(value).unwrap_or_default().lines().filter_map(mark).collect()
}

/// Where everything is.
pub struct Layout {
    prefix: String,
    sealer: Option<Sealer>,
}

impl Layout {
    pub fn new(prefix: &str, sealer: Option<Sealer>) -> Self {
        Self { prefix: prefix.to_owned(), sealer }
    }

    pub fn head(&self) -> Bytes {
        format!("{}head", self.prefix).into()
    }

    pub fn history(&self) -> Bytes {
        format!("{}history", self.prefix).into()
    }

    /// Everything of ours, as a range.
    pub fn everything(&self) -> (Bytes, Bytes) {
        range_of(&self.prefix)
    }

    /// All objects, as a range.
    pub fn objects(&self) -> (Bytes, Bytes) {
        range_of(&format!("{}objects/", self.prefix))
    }

    /// The key of an object; none where a key of etcd is not one of an object.
    pub fn key(&self, key: &[u8]) -> Option<Key> {
        let text = std::str::from_utf8(key).ok()?;
        let (collection, name) =
            text.strip_prefix(&*self.prefix)?.strip_prefix("objects/")?.split_once('/')?;
        Some(Key::new(collection, name))
    }

    /// What is kept under a name beside the objects.
    pub fn shared(&self, name: &str) -> Bytes {
        format!("{}cluster/{name}", self.prefix).into()
    }

    /// What seals the values that are to be sealed.
    pub fn sealer(&self) -> Option<&Sealer> {
        self.sealer.as_ref()
    }

    /// The objects of a collection, as a range.
    pub fn collection(&self, name: &str) -> (Bytes, Bytes) {
        range_of(&format!("{}objects/{name}/", self.prefix))
    }

    /// The value of a key of etcd sealed by the newest key; none where that has sealed it, or where it is not to be sealed.
    pub fn renewed(&self, kv: &KeyValue) -> Result<Option<Bytes>, LogError> {
        let (Some(sealer), Some(key)) = (&self.sealer, self.key(&kv.key)) else { return Ok(None) };
        let Some(line) = kv.value.iter().position(|byte| *byte == b'\n').filter(|_| sealer.covers(&key))
        else {
            return Ok(None);
        };
        let (revision, body) = kv.value.split_at(line + 1);
        Ok(sealer.renew(&key, body)?.map(|renewed| [revision, &renewed].concat().into()))
    }

    fn etcd_key(&self, key: &Key) -> Bytes {
        format!("{}objects/{}/{}", self.prefix, key.collection, key.name).into()
    }

    fn value(&self, key: &Key, revision: Revision, value: &[u8]) -> Result<Bytes, LogError> {
        let sealed = match &self.sealer {
            Some(sealer) if sealer.covers(key) => Some(sealer.seal(key, value)?),
            _ => None,
        };
        let value = sealed.as_deref().unwrap_or(value);
        let mut bytes = BytesMut::with_capacity(value.len() + 21);
        bytes.put_slice(revision.to_string().as_bytes());
        bytes.put_u8(b'\n');
        bytes.put_slice(value);
        Ok(bytes.freeze())
    }

    /// The record that a key and its value are.
    pub fn record(&self, key: Key, value: &Bytes) -> Result<Record, LogError> {
        let damaged =
            || LogError::Etcd(format!("the value of {}/{} is not one of ours", key.collection, key.name));
        let line = value.iter().position(|byte| *byte == b'\n').ok_or_else(damaged)?;
        let revision = std::str::from_utf8(&value[..line]).ok().and_then(|text| text.parse().ok());
        let revision = Revision(revision.ok_or_else(damaged)?);
        let body = value.slice(line + 1..);
        let value = match &self.sealer {
            Some(sealer) if sealer.covers(&key) => sealer.open(&key, &body)?.into(),
            _ => body,
        };
        Ok(Record { revision, key, value: Some(value) })
    }

    /// The transaction that appends records behind the append that wrote `head` at a revision of etcd.
    pub fn append(&self, records: &[Record], head: &Head, behind: i64) -> Result<TxnRequest, LogError> {
        let mut success = Vec::with_capacity(records.len() + 1);
        for Record { revision, key, value } in records {
            let at = self.etcd_key(key);
            success.push(match value {
                Some(value) => put(at, self.value(key, *revision, value)?),
                None => delete(at),
            });
        }
        success.push(put(self.head(), head.encode()));
        Ok(TxnRequest { compare: vec![written_at(self.head(), behind)], success })
    }

    /// The transaction that puts objects in while there is no head yet.
    pub fn fill(&self, records: &[Record]) -> Result<TxnRequest, LogError> {
        let puts = records.iter().filter_map(|record| Some((record, record.value.as_ref()?)));
        let puts = puts.map(|(record, value)| {
            Ok(put(self.etcd_key(&record.key), self.value(&record.key, record.revision, value)?))
        });
        let success = puts.collect::<Result<_, LogError>>()?;
        Ok(TxnRequest { compare: vec![written_at(self.head(), 0)], success })
    }
}

/// All keys that begin with a text.
pub fn range_of(prefix: &str) -> (Bytes, Bytes) {
    let mut end = prefix.as_bytes().to_vec();
    // Prefixes end in a slash, which has a successor.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    (prefix.to_owned().into(), end.into())
}

pub fn put(key: Bytes, value: Bytes) -> RequestOp {
    RequestOp { request: Some(request_op::Request::RequestPut(PutRequest { key, value })) }
}

fn delete(key: Bytes) -> RequestOp {
    RequestOp { request: Some(request_op::Request::RequestDeleteRange(DeleteRangeRequest { key })) }
}

/// Requires that a key was last written at a revision of etcd; `0` that it is not there.
pub fn written_at(key: Bytes, mod_revision: i64) -> Compare {
    Compare {
        result: compare::CompareResult::Equal.into(),
        target: compare::CompareTarget::Mod.into(),
        key,
        mod_revision,
    }
}

/// What one append of any writer did.
#[derive(Debug)]
pub struct Appended {
    pub head: Head,
    /// The revision of etcd that has it.
    pub etcd: i64,
    /// In order; the last has the head's revision.
    pub records: Vec<Record>,
}

/// Collects the events of a watch into appends: the head is written last. Objects that are written without a head are as they
/// were, sealed anew.
#[derive(Default)]
pub struct Assembly {
    changes: Vec<(Key, Option<Bytes>)>,
    /// The revision of etcd that wrote them.
    etcd: i64,
}

impl Assembly {
    /// Takes one event; gives the append that it completes.
    pub fn take(
        &mut self,
        layout: &Layout,
        deleted: bool,
        kv: KeyValue,
    ) -> Result<Option<Appended>, LogError> {
        if kv.mod_revision != self.etcd {
            self.changes.clear();
            self.etcd = kv.mod_revision;
        }
        if let Some(key) = layout.key(&kv.key) {
            self.changes.push((key, (!deleted).then_some(kv.value)));
            return Ok(None);
        }
        if deleted || kv.key != layout.head() {
            return Ok(None);
        }
        let head =
            Head::decode(&kv.value).ok_or_else(|| LogError::Etcd("the head is not one of ours".into()))?;
        let changes = std::mem::take(&mut self.changes);
        let before = head.revision.0.saturating_sub(changes.len() as u64);
        let records = changes.into_iter().zip(before + 1..).map(|((key, value), revision)| match value {
            Some(value) => layout.record(key, &value),
            None => Ok(Record { revision: Revision(revision), key, value: None }),
        });
        let records = records.collect::<Result<_, _>>()?;
        Ok(Some(Appended { head, etcd: kv.mod_revision, records }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_append_comes_back_from_its_events_in_order() {
        let layout = Layout::new("/x/", Some(Sealer::new(&[7; 32], &["secrets"]).unwrap()));
        let record = |revision, name: &str, value: Option<&'static [u8]>| Record {
            revision: Revision(revision),
            key: Key::new("secrets", name),
            value: value.map(Bytes::from_static),
        };
        let records = [record(8, "a/b", Some(b"one\ntwo")), record(9, "gone", None)];
        let head = Head { revision: Revision(9), writer: 77, append: 3 };
        let txn = layout.append(&records, &head, 5).unwrap();
        let mut assembly = Assembly::default();
        let mut appended = None;
        for operation in txn.success {
            let (deleted, key, value) = match operation.request.unwrap() {
                request_op::Request::RequestPut(put) => (false, put.key, put.value),
                request_op::Request::RequestDeleteRange(delete) => (true, delete.key, Bytes::new()),
                request_op::Request::RequestRange(_) => panic!(),
            };
            assert!(!value.windows(3).any(|window| window == b"two"), "secrets are sealed");
            let kv = KeyValue { key, value, mod_revision: 6 };
            appended = assembly.take(&layout, deleted, kv).unwrap();
        }
        let appended = appended.unwrap();
        assert_eq!((appended.head, appended.etcd), (head, 6));
        assert_eq!(appended.records, records);
    }

    #[test]
    fn marks_are_kept_as_text() {
        let marks = [Mark { revision: Revision(4), etcd: 9 }, Mark { revision: Revision(40), etcd: 90 }];
        assert_eq!(decode_marks(&encode_marks(&marks)), marks);
    }
}
