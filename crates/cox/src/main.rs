//! cox
fn main() {}
