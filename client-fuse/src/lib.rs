//! `Client`: open, read, write, list. No FUSE in sight; the mount, the `dfs` command and gateways are front ends of it.
//!
//! Map of the library, in the order of a write (README, step 2) and a read:
//!
//! | file | answers |
//! | --- | --- |
//! | [`client`], [`files`], [`handle`] | what front ends call: names and attributes; open files |
//! | `dirty`, `inode` | which bytes are unsaved, and how far each is on its way |
//! | `write`, `plan`, `land`, `compact` | sealed, hashed, stored; committed; many small pieces made one chunk again |
//! | `read`, `extents`, `cache` | unsaved bytes, then extents, then chunks from memory or a replica |
//! | `chunks`, `pulse`, `report` | touch, put and get on replicas; what to do when one fails; telling a server of a wrong copy |
//! | `meta`, `session` | requests to the metaservers, exactly once; cluster map; witness |
//! | `locks` | `flock` and `fcntl` locks |
//! | `accessed` | access times, where they are asked for |
//! | `opens` | what is open here, for those who remove it elsewhere |
//! | `leases` | attributes, names and small files that are answered from memory, under leases; `leases/local`, `leases/journal`: changes that are decided here |
//! | `deferred` | what has to come before such a decision, and the telling of it |
//! | `core`, `link` | what all share; the seam to the servers |
//! | [`config`], [`stats`], [`holds`] | limits; counters; what is held at this moment |
//!
//! Promises:
//! 1. What `fsync` answered with success is durable on every replica that is up and committed, and so is every change before
//!    it. So is any change with [`ClientConfig::write_leases`] off. With it, one that was decided here is durable at most
//!    a second later, in order: a crash of this client loses the last of them.
//! 2. A read sees every earlier write through the same `Client`, through any handle. (But for appended bytes while others append
//!    as well and a commit that decides where they come takes long: they are at no place yet.)
//! 3. No byte is handed out whose BLAKE3 was not checked.
//! 4. An error of a write in the background is told once to every handle of the file; unsaved bytes are kept and tried
//!    again as long as that can succeed.
//! 5. Every call ends within the operation timeout, give or take one round trip.
//!
//! 6. With [`ClientConfig::leases`], every answer is what the metaservers would say now: what is answered from memory is
//!    under a lease. Without (a command, which ends soon), an open file is read as it was when it was opened.

mod accessed;
mod cache;
mod chunks;
pub mod client;
mod compact;
pub mod config;
mod core;
mod deferred;
mod dirty;
mod extents;
pub mod files;
pub mod handle;
pub mod holds;
mod inode;
mod land;
mod leases;
mod link;
mod locks;
mod meta;
mod opens;
mod plan;
mod pulse;
mod read;
mod report;
mod session;
pub mod stats;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod write;

pub use client::{AdminLink, Client, Listing, NewMode, Versions};
pub use config::ClientConfig;
pub use files::{Fallocate, Progress, Seek};
pub use handle::{Handle, OpenFlags};
pub use holds::{Holds, Unsaved};
pub use leases::OnForget;
pub use read::Around;
pub use stats::Stats;
