//! What the kinds are: the catalogue (one row a kind with its hooks), schema facts and OpenAPI documents.
//!
//! Nothing here does IO; objects are `serde_json::Value`.

pub mod catalogue;
pub mod openapi;
pub mod scale;
pub mod schema;
pub mod time;

pub use catalogue::{Column, Kind, Subresource};
