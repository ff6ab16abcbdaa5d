//! Scenarios of structured-merge-diff on a small schema.

use crate::json::{Map, Raw, Text, Value, json};

use super::*;

/// `kind` of place: a struct of named places, a map of values, lists.
#[derive(Clone, Copy)]
enum Place {
    Root,
    Spec,
    Metadata,
    Free,
    Ports,
    Port,
    Finalizers,
    Leaf,
}

impl Node for Place {
    fn relation(self, _: &Value) -> Relation {
        match self {
            Place::Root | Place::Spec | Place::Metadata | Place::Free | Place::Port => Relation::Map,
            Place::Ports => Relation::Keyed,
            Place::Finalizers => Relation::Set,
            Place::Leaf => Relation::Atomic,
        }
    }

    fn member(self, name: &str) -> Member<Self> {
        let node = match (self, name) {
            (Place::Root, "spec" | "plan") => Place::Spec,
            (Place::Root, "metadata") => Place::Metadata,
            (Place::Metadata, "labels") => Place::Free,
            (Place::Root, "labels") => Place::Free,
            (Place::Spec, "ports") => Place::Ports,
            (Place::Root, "finalizers") => Place::Finalizers,
            _ => Place::Leaf,
        };
        Member { node, declared: !matches!(self, Place::Free) }
    }

    fn item(self) -> Self {
        if matches!(self, Place::Ports) { Place::Port } else { Place::Leaf }
    }

    fn keys(self) -> Vec<(Text, Option<Value>)> {
        vec![("port".into(), None), ("protocol".into(), Some(json!("TCP")))]
    }
}

/// In v2 of the small kind `spec` is called `plan`; a plan without replicas cannot be v1. There is no other version.
struct Renamed;

impl Versions for Renamed {
    type Node = Place;

    fn root(&self, version: &str) -> Option<Place> {
        matches!(version, "v1" | "v2").then_some(Place::Root)
    }

    fn convert(&self, object: &Value, version: &str) -> Result<Value, String> {
        let (from, to) = if version == "v1" { ("plan", "spec") } else { ("spec", "plan") };
        let mut object = object.clone();
        if let Some(part) = object.as_object_mut().and_then(|object| object.remove(from)) {
            object[to] = part;
        }
        match version == "v1" && object["spec"]["replicas"] == 13 {
            true => Err("unlucky".into()),
            false => Ok(object),
        }
    }
}

fn manager(name: &str) -> Manager<'_> {
    Manager { name, api_version: "v1", subresource: "", now: "2026-01-01T00:00:00Z" }
}

struct Scenario {
    live: Value,
    entries: Vec<Value>,
    version: &'static str,
}

impl Scenario {
    fn new(live: Value) -> Self {
        let mut scenario = Scenario { live: json!({}), entries: Vec::new(), version: "v1" };
        scenario.update("creator", live);
        scenario
    }

    fn update(&mut self, name: &str, new: Value) {
        let made = changes(Place::Root, &self.live, &new);
        let who = self.manager(name);
        let in_version = |version: &str| Renamed.changes(&self.live, &new, version);
        update(&mut self.entries, made, &Set::default(), &who, in_version).expect("converts");
        self.live = new;
    }

    /// The object as clients of another version see it from now on.
    fn turn(&mut self, version: &'static str) {
        self.live = Renamed.convert(&self.live, version).expect("converts");
        self.version = version;
    }

    fn manager<'a>(&self, name: &'a str) -> Manager<'a> {
        Manager { api_version: self.version, ..manager(name) }
    }

    fn apply(&mut self, name: &str, configuration: Value, force: bool) -> Vec<String> {
        let who = self.manager(name);
        let entries = &mut self.entries;
        match apply(
            (Place::Root, &Renamed),
            (&self.live, &json!({})),
            &configuration,
            entries,
            &who,
            (&Set::default(), force),
        ) {
            Ok(new) => {
                self.live = new;
                Vec::new()
            }
            Err(Refusal::Conversion(why)) => vec![why],
            Err(Refusal::Conflicts(conflicts)) => {
                conflicts.into_iter().map(|c| format!("{} {}", c.manager, c.path)).collect()
            }
        }
    }

    fn fields(&self, name: &str) -> Value {
        let entry = self.entries.iter().find(|entry| entry["manager"] == name);
        entry.map_or(Value::Null, |entry| entry["fieldsV1"].clone())
    }
}

#[test]
fn a_creator_owns_everything_with_its_parents() {
    let scenario = Scenario::new(
        json!({"kind": "K", "metadata": {"name": "x"}, "labels": {"a": "b"}, "finalizers": ["f"],
        "spec": {"replicas": 1, "ports": [{"port": 80, "name": "http"}]}}),
    );
    assert_eq!(
        scenario.fields("creator"),
        json!({"f:labels": {".": {}, "f:a": {}}, "f:finalizers": {".": {}, "v:\"f\"": {}},
            "f:spec": {".": {}, "f:replicas": {}, "f:ports": {".": {},
                "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:port": {}}}}})
    );
}

#[test]
fn conflicts_are_named_and_forced() {
    let mut scenario = Scenario::new(json!({"spec": {"replicas": 1}, "labels": {"a": "b"}}));
    let wanted = json!({"spec": {"replicas": 2}, "labels": {"c": "d"}});
    assert_eq!(scenario.apply("me", wanted.clone(), false), ["\"creator\" using v1 .spec.replicas"]);
    assert!(scenario.apply("me", wanted, true).is_empty());
    assert_eq!(scenario.live, json!({"spec": {"replicas": 2}, "labels": {"a": "b", "c": "d"}}));
    assert_eq!(scenario.fields("me"), json!({"f:labels": {"f:c": {}}, "f:spec": {"f:replicas": {}}}));
    assert_eq!(scenario.fields("creator"), json!({"f:labels": {".": {}, "f:a": {}}, "f:spec": {}}));
    assert_eq!(scenario.entries[0]["operation"], "Apply", "applied entries come first");
    // Equal values are shared, not fought over.
    assert!(scenario.apply("other", json!({"spec": {"replicas": 2}}), false).is_empty());
    assert_eq!(scenario.apply("me", json!({"spec": {"replicas": 3}}), false), ["\"other\" .spec.replicas"]);
}

#[test]
fn what_is_no_longer_applied_goes_unless_others_own_it() {
    let mut scenario = Scenario::new(json!({}));
    let ports = |list: &[i64]| json!({"spec": {"ports": list.iter().map(|port| json!({"port": port})).collect::<Vec<_>>()}});
    scenario.apply("a", ports(&[1, 2, 3]), false);
    scenario.apply("b", ports(&[3]), false);
    scenario.apply("a", ports(&[2]), false);
    assert_eq!(scenario.live, ports(&[2, 3]));
    let mut labelled = scenario.live.clone();
    labelled["labels"] = json!({"x": "y"});
    scenario.update("c", labelled);
    scenario.apply("b", json!({"labels": {"z": "1"}}), false);
    assert_eq!(scenario.live, json!({"labels": {"x": "y", "z": "1"}, "spec": {"ports": [{"port": 2}]}}));
    scenario.apply("a", json!({}), false);
    assert_eq!(scenario.live, json!({"labels": {"x": "y", "z": "1"}}));
    assert_eq!(scenario.fields("a"), Value::Null);
}

#[test]
fn updates_take_fields_over_and_lists_keep_their_order() {
    let mut scenario = Scenario::new(json!({}));
    scenario.apply("a", json!({"spec": {"ports": [{"port": 1}, {"port": 2, "name": "x"}]}}), false);
    scenario.update("b", json!({"spec": {"ports": [{"port": 9}, {"port": 1}, {"port": 2, "name": "y"}]}}));
    assert_eq!(
        scenario.apply("a", json!({"spec": {"ports": [{"port": 1}, {"port": 2, "name": "x"}]}}), false),
        ["\"b\" using v1 .spec.ports[port=2,protocol=\"TCP\"].name"]
    );
    scenario.apply("a", json!({"spec": {"ports": [{"port": 2}, {"port": 1}]}}), false);
    assert_eq!(
        scenario.live,
        json!({"spec": {"ports": [{"port": 9}, {"port": 2, "name": "y"}, {"port": 1}]}})
    );
}

#[test]
fn what_only_the_live_list_has_precedes_what_is_new() {
    let mut scenario = Scenario::new(json!({}));
    scenario.apply("a", json!({"spec": {"ports": [{"port": 1}, {"port": 2}, {"port": 3}]}}), false);
    scenario.apply("b", json!({"spec": {"ports": [{"port": 1}, {"port": 9}, {"port": 3}]}}), false);
    assert_eq!(
        scenario.live,
        json!({"spec": {"ports": [{"port": 1}, {"port": 2}, {"port": 9}, {"port": 3}]}})
    );
}

#[test]
fn identity_is_never_taken_away() {
    let mut scenario = Scenario::new(json!({}));
    scenario.apply("a", json!({"metadata": {"name": "x", "labels": {"l": "1"}}}), false);
    scenario.apply("a", json!({"metadata": {"name": "x"}, "spec": {"replicas": 1}}), false);
    assert_eq!(scenario.live, json!({"metadata": {"name": "x"}, "spec": {"replicas": 1}}));
}

#[test]
fn updaters_are_capped() {
    let mut scenario = Scenario::new(json!({}));
    for n in 0..14 {
        let mut new = scenario.live.clone();
        new["labels"][format!("l{n}")] = json!("x");
        scenario.update(&format!("m{n}"), new);
    }
    assert_eq!(scenario.entries.len(), 10);
    assert_eq!(
        scenario.fields("ancient-changes").as_object().map(|f| f["f:labels"].as_object().map(Map::len)),
        Some(Some(6))
    );
}

#[test]
fn fields_that_are_text_are_edited_as_their_trees_are() {
    let objects = [
        json!({}),
        json!({"spec": {"replicas": 1, "ports": [{"port": 1, "name": "a\"b"}]}, "labels": {"a": "1"}}),
        json!({"spec": {"replicas": 2, "ports": [{"port": 1, "name": "c"}, {"port": 2}]}, "labels": {"a": "1"}}),
        json!({"spec": {"ports": [{"port": 2}]}, "labels": {}}),
        json!({"spec": {"replicas": 2}, "labels": {"a": "2", "b": "3"}, "finalizers": ["x", "y"]}),
    ];
    let texts = |entries: &[Value]| -> Vec<Value> {
        let text = |entry: &Value| {
            let mut entry = entry.clone();
            entry[FIELDS] = Raw::written(entry[FIELDS].to_string()).into();
            entry
        };
        entries.iter().map(text).collect()
    };
    for order in 0..5usize.pow(4) {
        let step = |at: u32| &objects[order / 5usize.pow(at) % 5];
        let (mut trees, mut old) = (Vec::new(), &objects[0]);
        for (at, writer) in ["a", "b", "a", "c"].into_iter().enumerate() {
            let new = step(u32::try_from(at).unwrap());
            let mut unread = texts(&trees);
            let write = |entries: &mut Vec<Value>| {
                let made = changes(Place::Root, old, new);
                update(entries, made, &Set::default(), &manager(writer), |_| Ok(None)).expect("one version");
            };
            write(&mut trees);
            write(&mut unread);
            assert!(same(&trees, &unread), "{order}: {trees:?} {unread:?}");
            thaw(&mut unread);
            assert_eq!(trees, unread, "{order}");
            old = new;
        }
    }
    let text = r#"{"f:spec": {"f:replicas": {}}}"#;
    let mut settled = vec![json!({"manager": "a", "operation": "Update", "apiVersion": "v1"})];
    settled[0][FIELDS] = Raw::written(text.to_owned()).into();
    let again = changes(Place::Root, &json!({"spec": {"replicas": 1}}), &json!({"spec": {"replicas": 2}}));
    update(&mut settled, again, &Set::default(), &manager("a"), |_| Ok(None)).expect("one version");
    let left = settled[0][FIELDS].as_raw().map(Raw::text);
    assert_eq!(left, Some(text), "what an edit leaves alone stays text");
}

#[test]
fn a_creator_owns_what_differs_from_a_blank_object() {
    let blank = json!({"metadata": {"uid": null, "labels": null}, "spec": {"strategy": {}}, "status": {}});
    let metadata = json!({"name": "x", "uid": "1", "labels": {"a/b": "1", "c\"": ""}, "annotations": {}});
    let specs = [
        json!({}),
        json!({"strategy": {}}),
        json!({"strategy": {"type": "x"}, "replicas": null}),
        json!({"replicas": 1, "ports": [{"port": 2, "name": "b"}, {"port": 1, "protocol": "UDP"}, {"port": 2}]}),
    ];
    for spec in specs {
        for status in [json!({}), json!({"phase": "x"})] {
            let new =
                json!({"metadata": metadata, "spec": spec, "status": status, "finalizers": ["b", "a", "b"]});
            for reset in [json!({}), json!({"f:status": {}}), json!({"f:spec": {}, "f:labels": {}})] {
                let reset = Set::from_json(&reset);
                let mut general = Vec::new();
                let made = changes(Place::Root, &blank, &new);
                update(&mut general, made, &reset, &manager("m"), |_| Ok(None)).expect("one version");
                let mut fresh = create(Place::Root, (&blank, &new), &reset, &manager("m"));
                assert!(fresh[0][FIELDS].as_raw().is_some());
                thaw(&mut fresh);
                assert_eq!(fresh, general);
            }
        }
    }
    assert!(create(Place::Root, (&blank, &blank), &Set::default(), &manager("m")).is_empty());
}

#[test]
fn entries_keep_the_version_that_they_were_written_in() {
    let mut scenario = Scenario::new(json!({}));
    let ports = json!([{"port": 1}, {"port": 2}]);
    scenario.apply("a", json!({"spec": {"replicas": 1, "ports": ports}}), false);
    scenario.update("b", {
        let mut new = scenario.live.clone();
        new["labels"] = json!({"x": "1"});
        new
    });
    scenario.turn("v2");
    let conflicts = scenario.apply("c", json!({"plan": {"replicas": 2}, "labels": {"x": "2"}}), false);
    assert_eq!(
        conflicts,
        ["\"a\" .spec.replicas", "\"b\" using v1 .labels.x"],
        "in the words of the entries' version"
    );
    // What is no longer applied goes, though it is called otherwise now.
    assert!(scenario.apply("a", json!({"plan": {"ports": [{"port": 2}]}}), false).is_empty());
    assert_eq!(scenario.live, json!({"labels": {"x": "1"}, "plan": {"ports": [{"port": 2}]}}));
    let versions: Vec<&Value> = scenario.entries.iter().map(|entry| &entry["apiVersion"]).collect();
    assert_eq!(versions, ["v2", "v1"]);
    // An update of another version takes the same field from an entry of the older one.
    scenario.update("d", json!({"labels": {"x": "3"}, "plan": {"ports": [{"port": 2}]}}));
    assert_eq!(
        (scenario.fields("b"), scenario.fields("d")),
        (json!({"f:labels": {}}), json!({"f:labels": {"f:x": {}}}))
    );
}

#[test]
fn what_others_own_of_another_version_is_not_taken_away() {
    let mut scenario = Scenario::new(json!({}));
    scenario.apply("a", json!({"spec": {"ports": [{"port": 1}, {"port": 2}]}}), false);
    scenario.apply("b", json!({"spec": {"ports": [{"port": 1}]}}), false);
    scenario.turn("v2");
    scenario.apply("a", json!({"labels": {"x": "1"}}), false);
    assert_eq!(scenario.live, json!({"labels": {"x": "1"}, "plan": {"ports": [{"port": 1}]}}));
}

#[test]
fn entries_of_versions_that_are_gone_go_and_what_does_not_convert_is_refused() {
    let mut scenario = Scenario::new(json!({"spec": {"replicas": 1}}));
    scenario.entries[0]["apiVersion"] = "v0".into();
    scenario.update("b", json!({"spec": {"replicas": 2}}));
    assert_eq!((scenario.entries.len(), scenario.fields("creator")), (1, Value::Null));
    scenario.turn("v2");
    let unlucky = json!({"plan": {"replicas": 13}});
    assert_eq!(scenario.apply("c", unlucky.clone(), true), ["failed to convert new object: unlucky"]);
    let (old, mut entries) = (scenario.live.clone(), scenario.entries.clone());
    let made = changes(Place::Root, &old, &unlucky);
    let in_version = |version: &str| Renamed.changes(&old, &unlucky, version);
    let refused = update(&mut entries, made, &Set::default(), &scenario.manager("d"), in_version);
    assert_eq!((refused.is_err(), entries), (true, scenario.entries));
}

#[test]
fn items_are_ordered_by_what_their_keys_hold() {
    let key = |port: u16| format!("k:{{\"port\":{port},\"protocol\":\"TCP\"}}");
    let mut keys = [key(8080), key(443), "f:b".to_owned(), key(80), "v:10".to_owned(), "v:9".to_owned()];
    keys.sort_by(|a, b| order(a, b));
    assert_eq!(keys, ["f:b".to_owned(), key(80), key(443), key(8080), "v:9".to_owned(), "v:10".to_owned()]);
}
