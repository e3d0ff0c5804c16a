//! What the three parts of `dfs` share: words, wire, layout, and the seams to the outside world.
//!
//! Map of the crate, in the order a newcomer may read it:
//!
//! | file | answers |
//! | --- | --- |
//! | [`id`], [`units`], [`name`] | what things are called and counted in |
//! | [`fault`] | the one error that crosses the wire, and what a caller does about it |
//! | [`proto`] | the requests and answers of the metadata service and of the chunk service |
//! | [`layout`] | chunk id -> placement group -> servers |
//! | [`hash`] | BLAKE3 of a chunk and of any range of it |
//! | [`perm`] | permission bits: what clients and metaservers must agree on |
//! | [`auth`] | receipts and tokens: keyed BLAKE3 |
//! | [`hello`], [`rpc`], [`wire`] | the first bytes of a connection; control plane; data plane |
//! | [`segment`] | durable append: under the Raft log and under the chunk store |
//! | [`kv`] | the ordered key-value store behind metadata and chunk index, and its in-memory twin |
//! | [`world`], [`net`], [`disk`], [`time`], [`task`] | everything that is not ours: network, disk, clock, randomness, threads |
//! | [`rules`] | breaks one rule of deletion at a time, in tests |
//! | [`config`] | defaults < file < environment < flags |
//!
//! The write path (README) enters here at step 3: `layout.rs`.

pub mod auth;
pub mod config;
pub mod disk;
pub mod fault;
pub mod hash;
pub mod hello;
pub mod id;
pub mod kv;
pub mod layout;
pub mod name;
pub mod net;
pub mod perm;
pub mod proto;
pub mod rpc;
pub mod rules;
pub mod segment;
pub mod task;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod time;
pub mod units;
pub mod wire;
pub mod world;
