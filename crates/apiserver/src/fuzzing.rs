//! What fuzz targets need of this crate and nobody else does.

use crate::cel::{Expression, Scope};

/// Compiles and evaluates an expression without variables.
pub fn evaluate(source: &str) {
    let _ = Expression::compile(source, &[]).eval(&Scope::empty());
}
