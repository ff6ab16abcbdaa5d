//! Webhooks: servers that are asked to convert objects and to admit writes.

mod client;
mod convert;

pub use client::{Webhooks, trusting};
