//! The requests and answers of the two services. Types only: transport is [`crate::rpc`] and [`crate::wire`].
//!
//! Everything here is encoded with `postcard`: fields in order, enum variants by position. So within a protocol
//! version a field or variant is never moved or removed, and new variants go last; any other change raises
//! [`VERSION`]. The golden-byte tests hold this.

pub mod admin;
pub mod backup;
pub mod batch;
pub mod chunk;
pub mod keep;
pub mod lease;
pub mod lock;
pub mod meta;
pub mod opens;
pub mod query;
pub mod rebalance;
pub mod servers;
pub mod squash;
pub mod trash;

/// The protocol version both planes speak. Another one is refused in the hello.
pub const VERSION: u16 = 8;
