//! metaserver

pub mod namespace;
pub mod store;
