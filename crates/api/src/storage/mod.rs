//! The storage.k8s.io group.

mod validate;

use coxswain_meta::json::{Value, json};
use coxswain_meta::{ErrorList, FieldError, Path};

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::core::volume::protect;
use crate::objectmeta::{IMMUTABLE, immutable, immutable_struct};
use crate::prepare;
use crate::table::{AGE, CREATED_AT, NAME, age, boolean, column, count, joined, name, or};
pub(crate) use validate::driver_name;
use validate::{
    parameters, provisioner, validate_attachment, validate_capacity, validate_class, validate_driver,
    validate_node, validate_node_update,
};

use crate::value::{child, filled, flag, has, items, set, set_default, text};

pub(crate) const CLASS: Kind = Kind {
    short_names: &["sc"],
    namespaced: false,
    columns: CLASS_COLUMNS,
    hooks: Hooks {
        default: |v| {
            for (key, value) in [("reclaimPolicy", "Delete"), ("volumeBindingMode", "Immediate")] {
                if !has(v, key) {
                    set(v, key, value);
                }
            }
        },
        validate: validate_class,
        validate_update: validate_class_update,
        row: class_row,
        ..Hooks::PLAIN
    },
    ..kind!("storage.k8s.io", "v1", "StorageClass", "storageclasses", "storageclass")
};
const CLASS_COLUMNS: &[Column] = &[
    NAME,
    column("Provisioner", "Who makes the volumes."),
    column("ReclaimPolicy", "What happens to volumes that are given back."),
    column("VolumeBindingMode", "When volumes are made and bound."),
    column("AllowVolumeExpansion", "Whether volumes may grow."),
    AGE,
];

pub(crate) const CSI_DRIVER: Kind = Kind {
    namespaced: false,
    columns: DRIVER_COLUMNS,
    hooks: Hooks {
        default: default_driver,
        prepare_update: prepare::raise_generation,
        validate: |v| {
            let mut errors = ErrorList::new();
            validate_driver(&mut errors, &v["spec"], &Path::new("spec"));
            errors
        },
        validate_update: |new, old| {
            let (mut errors, path) = (ErrorList::new(), Path::new("spec"));
            let (new, old) = (&new["spec"], &old["spec"]);
            if new["attachRequired"] != old["attachRequired"] {
                let at = path.child("attachedRequired");
                errors.push(FieldError::invalid(&at, new["attachRequired"].clone(), IMMUTABLE));
            }
            immutable(&mut errors, new, old, "volumeLifecycleModes", &path);
            errors
        },
        row: driver_row,
        ..Hooks::PLAIN
    },
    ..kind!("storage.k8s.io", "v1", "CSIDriver", "csidrivers", "csidriver")
};
const DRIVER_COLUMNS: &[Column] = &[
    NAME,
    boolean("AttachRequired", "Whether volumes are attached to nodes."),
    boolean("PodInfoOnMount", "Whether the driver is told of the pod."),
    boolean("StorageCapacity", "Whether the driver reports capacity."),
    column("TokenRequests", "Audiences of the tokens it wants."),
    boolean("RequiresRepublish", "Whether mounts are repeated."),
    column("Modes", "Kinds of volumes it serves."),
    AGE,
];

pub(crate) const CSI_NODE: Kind = Kind {
    namespaced: false,
    columns: &[NAME, count("Drivers", "CSI drivers on the node."), AGE],
    hooks: Hooks {
        validate: validate_node,
        validate_update: validate_node_update,
        row: |v, now| vec![name(v), items(&v["spec"], "drivers").len().into(), age(v, now)],
        ..Hooks::PLAIN
    },
    ..kind!("storage.k8s.io", "v1", "CSINode", "csinodes", "csinode")
};

pub(crate) const ATTACHMENT: Kind = Kind {
    namespaced: false,
    subresources: &[Subresource::status("storage.k8s.io", "v1", "VolumeAttachment")],
    status: true,
    columns: ATTACHMENT_COLUMNS,
    hooks: Hooks {
        prepare_create: |v| set(v, "status", json!({"attached": false})),
        validate: validate_attachment,
        validate_update: |new, old| {
            let mut errors = ErrorList::new();
            let definition = "io.k8s.api.storage.v1.VolumeAttachmentSpec";
            immutable_struct(&mut errors, new, old, "spec", definition, &Path::root());
            errors
        },
        row: |v, now| {
            vec![
                name(v),
                text(&v["spec"], "attacher").into(),
                text(&v["spec"]["source"], "persistentVolumeName").into(),
                text(&v["spec"], "nodeName").into(),
                flag(&v["status"], "attached").into(),
                age(v, now),
            ]
        },
        ..Hooks::STATUS
    },
    ..kind!("storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments", "volumeattachment")
};
const ATTACHMENT_COLUMNS: &[Column] = &[
    NAME,
    Column { format: "name", ..column("Attacher", "The CSI driver.") },
    column("PV", "The volume."),
    column("Node", "The node."),
    boolean("Attached", "Whether it is attached."),
    AGE,
];

pub(crate) const CAPACITY: Kind = Kind {
    columns: &[NAME, CREATED_AT],
    hooks: Hooks {
        validate: validate_capacity,
        validate_update: |new, old| {
            let mut errors = ErrorList::new();
            for key in ["nodeTopology", "storageClassName"] {
                immutable(&mut errors, new, old, key, &Path::root());
            }
            errors
        },
        row: |v, _| vec![name(v), v["metadata"]["creationTimestamp"].clone()],
        ..Hooks::PLAIN
    },
    ..kind!("storage.k8s.io", "v1", "CSIStorageCapacity", "csistoragecapacities", "csistoragecapacity")
};

pub(crate) const ATTRIBUTES: Kind = Kind {
    short_names: &["vac"],
    namespaced: false,
    columns: &[NAME, column("DriverName", "The CSI driver."), AGE],
    hooks: Hooks {
        prepare_create: |v| protect(v, "kubernetes.io/vac-protection"),
        validate: |v| {
            let mut errors = ErrorList::new();
            provisioner(&mut errors, v, "driverName");
            parameters(&mut errors, v, false);
            errors
        },
        validate_update: |new, old| {
            let mut errors = ErrorList::new();
            for key in ["driverName", "parameters"] {
                if new.get(key) != old.get(key) {
                    let rule = format!("updates to {key} are forbidden.");
                    errors.push(FieldError::forbidden(&Path::new(key), rule));
                }
            }
            errors
        },
        row: |v, now| vec![name(v), text(v, "driverName").into(), age(v, now)],
        ..Hooks::PLAIN
    },
    ..kind!(
        "storage.k8s.io",
        "v1",
        "VolumeAttributesClass",
        "volumeattributesclasses",
        "volumeattributesclass"
    )
};

fn validate_class_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    for key in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
        immutable(&mut errors, new, old, key, &Path::root());
    }
    errors
}

fn class_row(class: &Value, now: i64) -> Vec<Value> {
    let mut shown = crate::value::name(class).to_owned();
    let annotations = &class["metadata"]["annotations"];
    let default =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    if default.iter().any(|key| text(annotations, key) == "true") {
        shown.push_str(" (default)");
    }
    vec![
        shown.into(),
        text(class, "provisioner").into(),
        or(text(class, "reclaimPolicy"), "Delete").into(),
        or(text(class, "volumeBindingMode"), "Immediate").into(),
        flag(class, "allowVolumeExpansion").into(),
        age(class, now),
    ]
}

fn default_driver(driver: &mut Value) {
    let Some(spec) = child(driver, "spec") else { return };
    set_default(spec, "attachRequired", true);
    for key in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
        set_default(spec, key, false);
    }
    if !has(spec, "fsGroupPolicy") {
        set(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    }
    if !filled(spec, "volumeLifecycleModes") {
        set(spec, "volumeLifecycleModes", json!(["Persistent"]));
    }
}

fn driver_row(driver: &Value, now: i64) -> Vec<Value> {
    let spec = &driver["spec"];
    let tokens = match has(spec, "tokenRequests") {
        true => joined(items(spec, "tokenRequests"), "audience"),
        false => "<unset>".into(),
    };
    let modes: Vec<&str> = items(spec, "volumeLifecycleModes").iter().filter_map(Value::as_str).collect();
    vec![
        name(driver),
        spec["attachRequired"].as_bool().unwrap_or(true).into(),
        flag(spec, "podInfoOnMount").into(),
        flag(spec, "storageCapacity").into(),
        tokens.into(),
        flag(spec, "requiresRepublish").into(),
        or(&modes.join(","), "<none>").into(),
        age(driver, now),
    ]
}
