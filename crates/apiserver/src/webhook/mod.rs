//! Webhooks: servers that are asked to convert objects and to admit writes.

mod admit;
mod asked;
mod client;
mod convert;
mod trust;

pub use admit::Hooks;
pub use asked::{Asked, Verb};
pub use client::Webhooks;
pub use trust::trusting;
