//! Who this metaserver is: the file `identity` in its data directory.
//!
//! It is written once, when the node becomes a member, after the Raft log and its marker were made. So a node with an
//! identity and without a marker lost data; a node without an identity has promised nothing to anybody.

use crate::raft::{node_of, read_checked, write_checked};
use common::disk::Disk;
use common::id::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

const NAME: &str = "identity";
const VERSION: u8 = 1;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    version: u8,
    /// The cluster whose data this is.
    pub cluster: ClusterId,
    /// The member of its Raft group; the low 16 bits are the node's number.
    pub raft_id: u64,
}

/// Why a data directory is not this node's.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another node's.
    #[error(
        "{dir} holds the data of metaserver {found}, this one is configured as {wanted}: check node_id and data_dir"
    )]
    OtherNode {
        /// The data directory.
        dir: String,
        /// Whose it is.
        found: NodeId,
        /// Who we are.
        wanted: NodeId,
    },
    /// Unreadable.
    #[error("read the identity in {dir}: {source}")]
    Disk {
        /// The data directory.
        dir: String,
        /// Why.
        source: io::Error,
    },
}

impl Identity {
    /// A new one.
    pub(crate) fn new(cluster: ClusterId, raft_id: u64) -> Identity {
        Identity { version: VERSION, cluster, raft_id }
    }

    /// Reads the one in `dir`. `None`: this node is not a member of anything yet.
    pub(crate) fn load(disk: &dyn Disk, dir: &Path, node: NodeId) -> Result<Option<Identity>, IdentityError> {
        let failed = |source| IdentityError::Disk { dir: dir.display().to_string(), source };
        let Some(bytes) = read_checked(disk, &dir.join(NAME)).map_err(failed)? else { return Ok(None) };
        let identity: Identity = postcard::from_bytes(&bytes).map_err(|e| failed(io::Error::other(e)))?;
        if identity.version != VERSION {
            return Err(failed(io::Error::other(format!("version {} is not known here", identity.version))));
        }
        if node_of(identity.raft_id) != node {
            let found = node_of(identity.raft_id);
            return Err(IdentityError::OtherNode { dir: dir.display().to_string(), found, wanted: node });
        }
        Ok(Some(identity))
    }

    /// Writes it. Durable when this returns.
    pub(crate) fn save(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        write_checked(disk, dir, NAME, &postcard::to_stdvec(self).map_err(io::Error::other)?)
    }
}
