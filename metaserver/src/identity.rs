//! Who this metaserver is: the file `identity` in its data directory.
//!
//! It is written once, when the node becomes a member, after the Raft log and its marker were made. So a node with an
//! identity and without a marker lost data; a node without an identity has promised nothing to anybody.

use crate::raft::node_of;
use common::disk::{Disk, read_checked, write_checked};
use common::id::{ClusterId, Epoch, NodeId};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

const NAME: &str = "identity";
const VERSION: u8 = 2;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    version: u8,
    /// The cluster whose data this is.
    pub cluster: ClusterId,
    /// The member of its Raft group; the low 16 bits are the node's number.
    pub raft_id: u64,
    /// The life of the cluster that it is of. A metaserver of a lower one is refused by everybody (`common::hello`).
    pub epoch: Epoch,
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
    pub(crate) fn new(cluster: ClusterId, epoch: Epoch, raft_id: u64) -> Identity {
        Identity { version: VERSION, cluster, raft_id, epoch }
    }

    fn decode(bytes: &[u8]) -> Result<Identity, String> {
        match bytes.first() {
            // From before a cluster could be restored.
            Some(1) => {
                let first: (u8, ClusterId, u64) = postcard::from_bytes(bytes).map_err(|e| e.to_string())?;
                Ok(Identity::new(first.1, Epoch::FIRST, first.2))
            }
            Some(&VERSION) => postcard::from_bytes(bytes).map_err(|e| e.to_string()),
            Some(other) => Err(format!("version {other} is not known here")),
            None => Err("it is empty".into()),
        }
    }

    /// Reads the one in `dir`. `None`: this node is not a member of anything yet.
    pub(crate) fn load(disk: &dyn Disk, dir: &Path, node: NodeId) -> Result<Option<Identity>, IdentityError> {
        let failed = |source| IdentityError::Disk { dir: dir.display().to_string(), source };
        let Some(bytes) = read_checked(disk, &dir.join(NAME)).map_err(failed)? else { return Ok(None) };
        let identity = Identity::decode(&bytes).map_err(|e| failed(io::Error::other(e)))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_back_also_one_of_the_first_version() {
        let identity = Identity::new(ClusterId(5), Epoch(300), 3);
        let bytes = postcard::to_stdvec(&identity).unwrap();
        assert_eq!(bytes, [2, 5, 3, 0xac, 2]);
        assert_eq!(Identity::decode(&bytes), Ok(identity));
        assert_eq!(Identity::decode(&[1, 5, 3]), Ok(Identity::new(ClusterId(5), Epoch(1), 3)));
        assert!(Identity::decode(&[3, 5, 3]).is_err() && Identity::decode(&[]).is_err());
    }
}
