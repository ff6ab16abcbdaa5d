//! What the kinds are: the catalogue (one row a kind with its hooks), schema facts and OpenAPI documents.
//!
//! Nothing here does IO; objects are `coxswain_meta::json::Value`.

mod admission;
mod apiextensions;
mod apiregistration;
mod apps;
mod autoscaling;
mod base64;
mod batch;
pub mod catalogue;
pub mod certificates;
mod check;
mod coordination;
mod core;
mod discovery;
mod flowcontrol;
mod net;
mod networking;
mod node;
pub mod objectmeta;
pub mod openapi;
mod policy;
mod prepare;
pub mod quota;
mod rbac;
mod resource;
pub mod resources;
pub mod scale;
mod scheduling;
pub mod schema;
mod storage;
mod table;
pub mod time;
mod value;

pub use batch::cron;
pub use catalogue::{Column, Kind, Subresource};
pub use core::pod::{QosClass, qos_class, validate_ephemeral_containers};
