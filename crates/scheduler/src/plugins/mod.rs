//! The plugins, a file each, named as upstream names them.

pub mod affinity;
pub mod fit;
pub mod node;
pub mod ports;
pub mod taints;

#[cfg(test)]
mod tests;
