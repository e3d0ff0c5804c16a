//! Every value of the state machine, and its bytes: a version byte, then the fields with `postcard`.
//!
//! `postcard` writes fields in order and enum variants by position, so within a version nothing is moved or removed. A
//! new version of a row gets a new version byte and keeps the old decoder. The golden-byte tests hold this.

use super::acl::Acls;
use bytes::Bytes;
use common::auth::Secret;
use common::fault::Fault;
use common::id::{ChunkId, ClusterId, DataVersion, Epoch, InodeId, LayoutVersion, LogIndex, NodeId, ServerId};
use common::kv::KvError;
use common::layout::{Domain, Layout};
use common::name::Name;
use common::proto::keep::KeepSettings;
use common::proto::lock::LockHolder;
use common::proto::meta::{Applied, Attr, FileKind, MODE_ACL, MODE_DEFAULT_ACL};
use common::proto::squash::Squash;
use common::time::Time;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A row's value.
pub trait Value: Serialize + DeserializeOwned {
    /// What it is, for errors.
    const WHAT: &'static str;
    /// The version byte it is written with.
    const VERSION: u8;

    /// Its bytes.
    fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![Self::VERSION]).expect("plain data has an encoding, and memory grows")
    }

    /// Reads it back. Bytes behind the end are an error too: they were written by something else.
    fn decode(bytes: &[u8]) -> Result<Self, KvError> {
        match bytes.split_first() {
            Some((version, body)) if *version == Self::VERSION => whole(Self::WHAT, body),
            Some((version, _)) => Err(damaged(Self::WHAT, &format!("unknown version {version}"))),
            None => Err(damaged(Self::WHAT, "empty")),
        }
    }
}

/// What these bytes are, all of them.
fn whole<T: DeserializeOwned>(what: &str, body: &[u8]) -> Result<T, KvError> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(damaged(what, "bytes left over")),
        Err(error) => Err(damaged(what, &error.to_string())),
    }
}

/// A row that cannot be what it should be: the store is damaged or from another program.
pub fn damaged(what: &str, why: &str) -> KvError {
    KvError { doing: "decode", message: format!("{what} row: {why}") }
}

/// An inode. What the fields of its `Attr` are is said in `proto::meta`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// Its kind.
    pub kind: FileKind,
    /// `0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names; 0: an orphan.
    pub nlink: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of contents.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Files and directories: see `Attr::chunk_size`.
    pub chunk_size: u32,
    /// Files and directories: see `Attr::replicas`. The references of a file are counted under it.
    pub replicas: u8,
    /// Bytes of all names of its extended attributes, each with a terminator.
    pub xattr_names: u32,
    /// Its access control lists, if it has any. See [`Inode::encode`].
    #[serde(skip)]
    pub acls: Option<Box<Acls>>,
    /// What only its kind has.
    pub body: Body,
}

/// What an inode has by its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// Sum of the lengths of its extents.
        allocated: u64,
        /// Number of its extents.
        extents: u64,
        /// Rises with each change of size or extents.
        version: DataVersion,
        /// Under which id its extents are. Another one after a large file was truncated to nothing.
        data: u64,
    },
    /// A directory.
    Dir {
        /// The directory that holds it; the root's is itself.
        parent: InodeId,
        /// Its entries.
        entries: u64,
        /// The cookie of the next entry; starts at 1.
        next_cookie: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
    },
    /// A device.
    Device {
        /// Its number, in Linux encoding.
        rdev: u32,
    },
    /// A pipe or socket.
    Plain,
}

impl Inode {
    /// As a client sees it.
    pub fn attr(&self, ino: InodeId) -> Attr {
        let (size, allocated, version, rdev) = match &self.body {
            Body::File { size, allocated, version, .. } => (*size, *allocated, *version, 0),
            Body::Dir { entries, .. } => (entries * common::units::ENTRY_SIZE, 0, DataVersion(0), 0),
            Body::Symlink { target } => (common::units::len_u64(target.len()), 0, DataVersion(0), 0),
            Body::Device { rdev } => (0, 0, DataVersion(0), *rdev),
            Body::Plain => (0, 0, DataVersion(0), 0),
        };
        let access = if self.access_acl().is_some() { MODE_ACL } else { 0 };
        let default = if self.default_acl().is_some() { MODE_DEFAULT_ACL } else { 0 };
        Attr {
            ino,
            kind: self.kind,
            mode: self.mode | access | default,
            uid: self.uid,
            gid: self.gid,
            nlink: self.nlink,
            size,
            allocated,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            rdev,
            chunk_size: self.chunk_size,
            replicas: self.replicas,
            version,
        }
    }
}

/// The version byte of inodes with access control lists.
const INODE_WITH_ACLS: u8 = 2;

/// Version 1 is an inode without access control lists, version 2 the same with [`Acls`] behind it: who has none pays
/// nothing.
impl Value for Inode {
    const WHAT: &'static str = "inode";
    const VERSION: u8 = 1;

    fn encode(&self) -> Vec<u8> {
        let bytes = match &self.acls {
            None => postcard::to_extend(self, vec![Self::VERSION]),
            Some(acls) => postcard::to_extend(&(self, acls), vec![INODE_WITH_ACLS]),
        };
        bytes.expect("plain data has an encoding, and memory grows")
    }

    fn decode(bytes: &[u8]) -> Result<Inode, KvError> {
        match bytes.split_first() {
            Some((&Self::VERSION, body)) => whole(Self::WHAT, body),
            Some((&INODE_WITH_ACLS, body)) => {
                let (inode, acls): (Inode, Box<Acls>) = whole(Self::WHAT, body)?;
                Ok(Inode { acls: Some(acls), ..inode })
            }
            Some((version, _)) => Err(damaged(Self::WHAT, &format!("unknown version {version}"))),
            None => Err(damaged(Self::WHAT, "empty")),
        }
    }
}

/// A directory entry, found by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dentry {
    /// Where it leads.
    pub ino: InodeId,
    /// What that is.
    pub kind: FileKind,
    /// Its place in listings: key of its [`Listed`] row.
    pub cookie: u64,
}

impl Value for Dentry {
    const WHAT: &'static str = "dentry";
    const VERSION: u8 = 1;
}

/// A directory entry, found by cookie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Where it leads.
    pub ino: InodeId,
    /// What that is.
    pub kind: FileKind,
    /// Its name.
    pub name: Name,
}

impl Value for Listed {
    const WHAT: &'static str = "list";
    const VERSION: u8 = 1;
}

/// A run of a file's bytes; the key has its offset in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtentRow {
    /// How many bytes, at least 1.
    pub len: u64,
    /// Where they are.
    pub data: Data,
}

/// Where the bytes of an extent are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Data {
    /// In a chunk, from `offset` on.
    Chunk {
        /// The chunk.
        id: ChunkId,
        /// First byte in it.
        offset: u32,
        /// The whole chunk's length: a reader needs it, and this saves reading the chunk's row.
        chunk_len: u32,
    },
    /// Here, from `offset` on; all that was written is kept, so that the id verifies.
    Inline {
        /// BLAKE3 of `bytes`.
        id: ChunkId,
        /// First byte used.
        offset: u32,
        /// All bytes that were written.
        bytes: Bytes,
    },
}

impl Value for ExtentRow {
    const WHAT: &'static str = "extent";
    const VERSION: u8 = 1;
}

/// A referenced chunk. The row is there exactly while there are references.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRow {
    /// Its length in bytes.
    pub len: u32,
    /// For each replica target the extents that refer to it, never 0. Its own target is the largest.
    pub refs: BTreeMap<u8, u64>,
}

impl Value for ChunkRow {
    const WHAT: &'static str = "chunk";
    const VERSION: u8 = 1;
}

/// Who holds a chunk that has fewer copies than its target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degraded {
    /// In order, none twice.
    pub servers: Vec<ServerId>,
}

impl Value for Degraded {
    const WHAT: &'static str = "degraded";
    const VERSION: u8 = 1;
}

/// A client's session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// Host name and purpose, for people.
    pub label: String,
    /// How many slots it has.
    pub slots: u16,
    /// When it began.
    pub opened: Time,
    /// It is over. The row stays for a while, so that a delayed copy of its first request cannot bring it back.
    pub ended: bool,
}

impl Value for SessionRow {
    const WHAT: &'static str = "session";
    const VERSION: u8 = 1;
}

/// A clock that goes with the leaders' wall clocks but does not jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionClock {
    /// What it shows.
    pub now: Time,
    /// The leader's time when it was last looked at.
    pub seen: Time,
}

impl Value for SessionClock {
    const WHAT: &'static str = "session clock";
    const VERSION: u8 = 1;
}

/// The last request of a slot that took effect, and what it was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRow {
    /// Its sequence number; 0: none yet.
    pub seq: u64,
    /// Its reply; `None` where the slot was only set up.
    pub reply: Option<Result<Applied, Fault>>,
}

impl Value for SlotRow {
    const WHAT: &'static str = "slot";
    const VERSION: u8 = 1;
}

/// The locks of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRow {
    /// Those that are held.
    pub held: Vec<LockHolder>,
    /// Those that are waited for, in the order they came.
    pub queue: Vec<WaitingLock>,
}

/// A lock that is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingLock {
    /// The index at which it was asked for: its number.
    pub number: u64,
    /// Who wants what.
    pub holder: LockHolder,
}

impl Value for LockRow {
    const WHAT: &'static str = "lock";
    const VERSION: u8 = 1;
}

/// Extents of a file that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    /// The target their references are counted under.
    pub replicas: u8,
}

impl Value for Purge {
    const WHAT: &'static str = "purge";
    const VERSION: u8 = 1;
}

/// The replica target of a file changes: extents that start before `at` count for `to` already, the others for `from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recount {
    /// The target it had.
    pub from: u8,
    /// The one it has now.
    pub to: u8,
    /// Offset in the file, in bytes.
    pub at: u64,
}

impl Recount {
    /// The target that an extent counts for which starts at this offset.
    pub fn target(&self, at: u64) -> u8 {
        if at < self.at { self.to } else { self.from }
    }
}

impl Value for Recount {
    const WHAT: &'static str = "recount";
    const VERSION: u8 = 1;
}

/// The index of the last condemnation in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Horizon(pub LogIndex);

impl Value for Horizon {
    const WHAT: &'static str = "horizon";
    const VERSION: u8 = 1;
}

/// The layout version with which the last move of a placement group was finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved(pub LayoutVersion);

impl Value for Moved {
    const WHAT: &'static str = "moved";
    const VERSION: u8 = 1;
}

/// A chunkserver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRow {
    /// Random, made with its data.
    pub instance: u128,
    /// Its data-plane address.
    pub addr: String,
    /// Where it stands.
    pub domain: Domain,
    /// Its share; 0: out.
    pub weight: u32,
    /// An administrator set the weight: registering again does not change it.
    pub weight_fixed: bool,
}

impl Value for ServerRow {
    const WHAT: &'static str = "server";
    const VERSION: u8 = 1;
}

/// The server that an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRow(pub ServerId);

impl Value for InstanceRow {
    const WHAT: &'static str = "instance";
    const VERSION: u8 = 1;
}

/// What was fixed when the cluster was formatted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Signs receipts and tokens.
    pub secret: Secret,
    /// Placement groups.
    pub pg_count: u32,
    /// Default replica count.
    pub replicas: u8,
    /// Durable copies below which a write is not acknowledged.
    pub min_replicas: u8,
    /// Metaservers and their addresses.
    pub metaservers: Vec<(NodeId, String)>,
}

impl Value for Config {
    const WHAT: &'static str = "config";
    const VERSION: u8 = 1;
}

/// Numbers that change with every command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// The next inode number, or data id.
    pub next_ino: u64,
    /// The next chunkserver.
    pub next_server: u32,
    /// Inodes.
    pub inodes: u64,
    /// Sum of `allocated` of all files.
    pub logical_bytes: u64,
    /// Lengths of all chunk rows.
    pub chunk_bytes: u64,
    /// Chunk rows.
    pub chunks: u64,
    /// Degraded rows.
    pub degraded: u64,
    /// Sessions that are open.
    pub sessions: u64,
    /// Rises with every change of servers or layout: the part of `ClusterMap::version` that is in the state machine.
    pub map_version: u64,
    /// The layout table's version.
    pub layout: LayoutVersion,
    /// The highest version in the moved rows.
    pub last_move: LayoutVersion,
}

impl Value for Counters {
    const WHAT: &'static str = "counters";
    const VERSION: u8 = 1;
}

/// The layout table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutRow(pub Layout);

impl Value for LayoutRow {
    const WHAT: &'static str = "layout";
    const VERSION: u8 = 1;
}

/// Servers whose share others have taken over because they were down for long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutRow(pub BTreeSet<ServerId>);

impl Value for OutRow {
    const WHAT: &'static str = "out";
    const VERSION: u8 = 1;
}

/// Chunkservers that were removed, and whether they may register again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedRow(pub BTreeMap<ServerId, bool>);

impl Value for RemovedRow {
    const WHAT: &'static str = "removed";
    const VERSION: u8 = 1;
}

/// Numbers of inodes that a session has reserved and not used: ranges of the next one and the end, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved(pub Vec<(u64, u64)>);

impl Value for Reserved {
    const WHAT: &'static str = "reserved";
    const VERSION: u8 = 1;
}

/// Batches of a session that were made under a claim before an index are refused, unless one leader lets them through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// The index.
    pub index: LogIndex,
    /// The leader's term.
    pub term: u64,
    /// The session has reserved numbers since: it may decide something again.
    pub over: bool,
}

impl Value for Fence {
    const WHAT: &'static str = "fence";
    const VERSION: u8 = 1;
}

/// Settings of repair, garbage collection and scrub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepRow(pub KeepSettings);

impl Value for KeepRow {
    const WHAT: &'static str = "keep";
    const VERSION: u8 = 1;
}

/// Who root of clients' machines is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SquashRow(pub Squash);

impl Value for SquashRow {
    const WHAT: &'static str = "root squash";
    const VERSION: u8 = 1;
}

/// The last corrections that fsck made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FixRow {
    /// The index of the state that was looked at.
    pub scan: LogIndex,
    /// Commands of that look so far.
    pub batch: u32,
    /// Where the last one stands in the log.
    pub at: LogIndex,
}

impl Value for FixRow {
    const WHAT: &'static str = "fix";
    const VERSION: u8 = 1;
}

/// Something an administrator did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRow {
    /// Where it stands in the log.
    pub index: LogIndex,
    /// When.
    pub at: Time,
    /// Who.
    pub by: String,
    /// What.
    pub what: String,
}

impl Value for EventRow {
    const WHAT: &'static str = "event";
    const VERSION: u8 = 1;
}

/// The restore that this life of the cluster began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredRow {
    /// The epoch it began.
    pub epoch: Epoch,
    /// The first index of it.
    pub index: LogIndex,
    /// When.
    pub at: Time,
    /// Nothing may be deleted yet.
    pub held: bool,
    /// Numbers from here on may belong to chunkservers that joined an earlier life after the backup was made.
    pub servers_from: ServerId,
}

impl Value for RestoredRow {
    const WHAT: &'static str = "restored";
    const VERSION: u8 = 1;
}
