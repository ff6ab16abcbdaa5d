//! Pure algorithms over Kubernetes objects: names, selectors, quantities, field errors, patches and `Status`.
//!
//! Nothing here does IO and nothing here knows a kind; objects are [`json::Value`].

pub mod apply;
pub mod field;
pub mod fields;
pub mod golang;
pub mod json;
pub mod jsonpath;
pub mod labels;
pub mod names;
pub mod patch;
pub mod quantity;
pub mod regexp;
pub mod status;
pub mod structural;

pub use field::{ErrorKind, ErrorList, FieldError, Path};
pub use quantity::Quantity;
pub use status::Status;

/// A JSON object, the unit every algorithm here works on.
pub type Object = json::Map;
