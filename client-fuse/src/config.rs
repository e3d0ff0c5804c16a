//! What a client is told at start, and every limit it keeps.

use common::id::ClusterId;
use std::time::Duration;

/// How to reach a cluster, and what the client may use. Every field has a default except `metaservers`.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Control-plane addresses of metaservers, `host:port`, at least one. The others are learnt from the cluster map.
    pub metaservers: Vec<String>,
    /// The cluster these must belong to; `ClusterId(0)`: whichever answers.
    pub cluster: ClusterId,
    /// Host name and purpose, shown to administrators: `"host7 mount /data"`.
    pub label: String,
    /// An operation that has not succeeded after this long fails with `Unavailable` (or what kept it).
    pub op_timeout: Duration,
    /// Memory for unsaved data, chunk cache and read-ahead together, in bytes. At least [`MEMORY_MIN`].
    pub memory_bytes: usize,
    /// Keep names of directories under leases, as a mount does. Who leaves soon has no use for it.
    pub leases: bool,
    /// Decide changes under write leases and tell the metaservers later, if nobody else is about what they touch. (Needs
    /// `leases`.) Without, every change is durable when its call returns (`mount -o sync_metadata`).
    pub write_leases: bool,
    /// Reads change access times, as with `relatime`: the metaservers hear of it some seconds later. Without, as with `noatime`.
    pub relatime: bool,
    /// Small pieces that are written together share chunks. Without, each is one of its own, which the same bytes elsewhere are,
    /// too.
    pub pack: bool,
    /// Unsaved data is written back at the latest this long after it was written.
    pub write_behind: Duration,
}

impl ClientConfig {
    /// Defaults for the cluster behind these metaservers.
    pub fn new(metaservers: Vec<String>) -> ClientConfig {
        ClientConfig {
            metaservers,
            cluster: ClusterId(0),
            label: "client".into(),
            op_timeout: Duration::from_secs(30),
            memory_bytes: 256 << 20,
            leases: false,
            write_leases: false,
            relatime: false,
            pack: false,
            write_behind: Duration::from_secs(1),
        }
    }
}

/// The least [`ClientConfig::memory_bytes`]: less is raised to it.
pub const MEMORY_MIN: usize = 32 << 20;
