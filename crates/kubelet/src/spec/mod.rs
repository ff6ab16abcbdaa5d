//! From the API's words to the runtime's: sandbox and container configuration. Nothing here changes the node.

pub mod container;
pub mod dns;
pub mod env;
pub mod fields;
pub mod resources;
pub mod sandbox;
pub mod security;
