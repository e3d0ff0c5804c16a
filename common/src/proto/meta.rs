//! The metadata service: what clients change, and the service itself; what they read is in [`super::query`], what servers and
//! administrators ask in [`super::servers`], both handed on from here.
//!
//! Changes of the namespace are [`Request`]s: they carry a session, a slot and a sequence number, go through the Raft
//! log and take effect exactly once. [`Query`]s are linearizable reads.

use crate::auth::{Attempt, Mac, Receipt};
use crate::fault::Fault;
use crate::id::{ChunkId, DataVersion, Epoch, InodeId, LayoutVersion, LogIndex, SessionId};
use crate::layout::ClusterMap;
use crate::name::Name;
use crate::proto::batch::{Batch, BatchDone};
use crate::proto::keep::{KeepAnswer, KeepAsk};
use crate::proto::lease::{Claim, Claimed, Grants, LeaseAsk, Leased, RecallCall, Recalls};
use crate::proto::lock::{Lock, LockAsk, Locked};
use crate::proto::opens::{OpenAsk, OpenReport};
use crate::time::Time;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use super::query::{
    Answer, Answered, Ask, DirEntry, EXTENTS_PER_ANSWER, Extent, ExtentRun, FsStat, LISTING_MAX, OPEN_AHEAD_MAX, Query,
};
pub use super::servers::{
    Admin, AdminReply, FREE_MIN, Heartbeat, HeartbeatReply, NodeStatus, Register, Registered, ServerStatus, Status,
};

/// On whose behalf.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cred {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Supplementary groups, at most 65,536 (the kernel's own limit).
    pub groups: Vec<u32>,
}

/// What kind of inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

/// What `stat` shows of an inode, and what a client needs to know to use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// Inode number.
    pub ino: InodeId,
    /// Its kind.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: `0o7777`. Above them [`MODE_ACL`] and [`MODE_DEFAULT_ACL`].
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links; for a directory 2 + its subdirectories.
    pub nlink: u32,
    /// Length in bytes; of a symlink its target's; of a directory its entries times 32.
    pub size: u64,
    /// Bytes that extents cover (holes do not count).
    pub allocated: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of contents.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Device number, of devices (Linux encoding).
    pub rdev: u32,
    /// Chunk size, in bytes: a power of two. Of a directory: what new entries inherit.
    pub chunk_size: u32,
    /// Replicas of each chunk. Of a directory: what new entries inherit.
    pub replicas: u8,
    /// Rises with each change of size or extents.
    pub version: DataVersion,
}

/// In [`Attr::mode`]: there is an access ACL, and the group's bits are its mask. (Replies are kept in the state machine, so
/// their encoding has no room for a field of its own.)
pub const MODE_ACL: u32 = 1 << 16;
/// In [`Attr::mode`]: there is a default ACL, which new entries inherit.
pub const MODE_DEFAULT_ACL: u32 = 1 << 17;

/// A day, in seconds.
const DAY_S: i64 = 24 * 60 * 60;

impl Attr {
    /// The permission bits alone: `0o7777`.
    pub fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }

    /// Whether a read at `now` changes the access time, as with `relatime` (Linux, `relatime_need_update`): it is not after the
    /// last change, or a day old.
    pub fn is_access_due(&self, now: Time) -> bool {
        let old = self.atime.secs.saturating_add(DAY_S) <= now.secs;
        now > self.atime && (old || self.atime <= self.mtime || self.atime <= self.ctime)
    }
}

/// What [`Op::Create`] makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewNode {
    /// A regular file, empty.
    File,
    /// A directory, empty.
    Dir,
    /// A symbolic link to this target (1 to 4095 bytes).
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device with this number.
    CharDevice(u32),
    /// A block device with this number.
    BlockDevice(u32),
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// The metaserver's time of the command.
    Now,
    /// This time.
    At(Time),
}

/// What [`Op::SetAttr`] changes: what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttr {
    /// New permission bits, `0o7777`.
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New length: what lies behind is gone, what is new reads as zeros.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
    /// The file is open for writing here, so `size` needs no write permission now (`ftruncate`).
    pub opened: bool,
    /// Directories and files: chunk size of what is written from now on.
    pub chunk_size: Option<u32>,
    /// Directories: what new entries inherit. Files: how many copies their chunks have; chunkservers make those that are
    /// missing then, and drop those that are too many.
    pub replicas: Option<u8>,
}

/// How [`Op::Rename`] treats the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameMode {
    /// Replace it if POSIX allows.
    Replace,
    /// Fail with `Exists` if there is one (`RENAME_NOREPLACE`).
    NoReplace,
    /// Swap the two; both must exist (`RENAME_EXCHANGE`).
    Exchange,
}

/// How [`Op::SetXattr`] treats an existing value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrMode {
    /// Set it either way.
    Any,
    /// Fail with `Exists` if it is there (`XATTR_CREATE`).
    Create,
    /// Fail with `NoData` if it is not (`XATTR_REPLACE`).
    Replace,
}

/// A change of the namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Makes the session of this request. Repeating it is fine. `slots` at most [`SLOTS_MAX`].
    OpenSession {
        /// Host name and purpose, for people.
        label: String,
        /// How many requests may be under way at once.
        slots: u16,
    },
    /// Ends the session: its orphans and locks go. Replies that were kept for it are gone.
    CloseSession,
    /// Makes a new entry and inode. With `exclusive` false an existing *regular file* is opened instead
    /// (`O_CREAT` without `O_EXCL`): access is checked for reading and writing as `mode` of [`Query::Open`] would.
    Create {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: Name,
        /// What to make.
        node: NewNode,
        /// Permission bits, umask already applied.
        mode: u32,
        /// Fail with `Exists` if the name is taken.
        exclusive: bool,
        /// Access wanted on an existing file when not `exclusive`: bits of [`ACCESS_READ`], [`ACCESS_WRITE`].
        access: u8,
    },
    /// A further name for an inode that is no directory.
    Link {
        /// The inode.
        ino: InodeId,
        /// Directory of the new name.
        parent: InodeId,
        /// The new name.
        name: Name,
    },
    /// Removes a name of something that is no directory.
    Unlink {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: Name,
        /// The caller's session has it open: keep the inode as an orphan of this session if this was the last name.
        keep: bool,
    },
    /// Removes an empty directory.
    Rmdir {
        /// Directory that holds it.
        parent: InodeId,
        /// Name in it.
        name: Name,
    },
    /// Moves an entry.
    Rename {
        /// From this directory,
        from: InodeId,
        /// this name,
        from_name: Name,
        /// to this directory,
        to: InodeId,
        /// under this name.
        to_name: Name,
        /// What to do about an existing target.
        mode: RenameMode,
        /// The caller's session has the *replaced* target open: keep it as an orphan of this session.
        keep: bool,
    },
    /// Changes attributes.
    SetAttr {
        /// The inode.
        ino: InodeId,
        /// What to change.
        set: SetAttr,
    },
    /// Sets an extended attribute. An ACL (`system.posix_acl_access`, `system.posix_acl_default`, in Linux' version 2)
    /// that says no more than the mode becomes the mode.
    SetXattr {
        /// The inode.
        ino: InodeId,
        /// Name with its namespace (`user.x`), 1 to 255 bytes.
        name: Vec<u8>,
        /// Value, at most 64 KiB.
        value: Vec<u8>,
        /// What to do about an existing one.
        mode: XattrMode,
    },
    /// Removes an extended attribute.
    RemoveXattr {
        /// The inode.
        ino: InodeId,
        /// Name with its namespace.
        name: Vec<u8>,
    },
    /// This session has no descriptor on this inode any more: if it is its orphan, it goes.
    Release {
        /// The inode.
        ino: InodeId,
    },
    /// Changes what a file holds.
    Commit(Commit),
    /// Makes a range of a file hold what a range of another one holds.
    Clone(CloneRange),
    /// As `OpenSession`; the session also says what it has open whenever it is asked ([`Meta::opens`]), so that files
    /// which others remove stay until it has closed them.
    OpenAttending {
        /// Host name and purpose, for people.
        label: String,
        /// How many requests may be under way at once.
        slots: u16,
    },
    /// Takes a lock, queues for it, or lets go.
    Lock(LockAsk),
    /// Stops waiting for a lock.
    CancelLock {
        /// The file.
        ino: InodeId,
        /// The number it waits under.
        number: u64,
    },
    /// As `Create`, but the umask is still to be applied: it does not count where the directory has a default ACL.
    CreateUnmasked {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: Name,
        /// What to make.
        node: NewNode,
        /// Permission bits as the program gave them.
        mode: u32,
        /// The program's umask, `0o777`.
        umask: u32,
        /// Fail with `Exists` if the name is taken.
        exclusive: bool,
        /// Access wanted on an existing file when not `exclusive`.
        access: u8,
    },
    /// Changes that the session has made under write leases ([`super::batch`]). Each is on behalf of its own `cred`.
    Batch(Batch),
    /// Numbers for inodes that the session will make in batches.
    Reserve {
        /// How many, at most [`super::batch::RESERVE_MAX`].
        count: u32,
    },
    /// These are all locks of a file that this session has: it has decided about them itself. Only in a batch, unless there
    /// are none; nothing if the file is gone.
    HaveLocks {
        /// The file.
        ino: InodeId,
        /// At most [`super::lock::LOCKS_MAX`], none of them `Unlock`.
        locks: Vec<Lock>,
    },
    /// These files were read at these times: their access times follow where [`Attr::is_access_due`] says so. Nothing else
    /// changes. What is gone, or no file, is passed over. At most [`ACCESSED_MAX`].
    Accessed {
        /// Inodes and when each was read last, by the session's clock; not believed if it is in the future.
        files: Vec<(InodeId, Time)>,
    },
    /// Gives something in the trash a name again: by who removed it, or root. What was in a directory comes back after it,
    /// with commands of its own. `Outcome::Attr`.
    Undelete {
        /// What.
        ino: InodeId,
        /// Directory of the new name.
        parent: InodeId,
        /// The new name.
        name: Name,
    },
}

/// Files of one [`Op::Accessed`], at most.
pub const ACCESSED_MAX: usize = 1024;

/// Which bytes come to be where, without being moved: both files refer to the same chunks afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneRange {
    /// The file that has them.
    pub from: InodeId,
    /// The first of them in it.
    pub from_at: u64,
    /// The file that gets them; may be the same one, if the ranges do not overlap.
    pub to: InodeId,
    /// Where the first goes.
    pub at: u64,
    /// How many, at least 1. What lies beyond the end of `from` is left out.
    pub len: u64,
}

/// Read access, as in `R_OK`.
pub const ACCESS_READ: u8 = 4;
/// Write access, as in `W_OK`.
pub const ACCESS_WRITE: u8 = 2;
/// Execute or search access, as in `X_OK`.
pub const ACCESS_EXEC: u8 = 1;
/// The most slots a session may have.
pub const SLOTS_MAX: u16 = 256;

/// Replaces ranges of a file, atomically: extents, chunk references, size and times in one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The file.
    pub ino: InodeId,
    /// If given, refuse with `Stale` unless this is still the file's data version. The commit is then a compaction: the
    /// same bytes in other chunks, so the file's times and mode stay as they are.
    pub base: Option<DataVersion>,
    /// What to replace, at most 1024 edits, applied in order. With `append`, offsets count from the end of the file
    /// as `apply` finds it.
    pub edits: Vec<Edit>,
    /// `O_APPEND`: the state machine assigns the offset.
    pub append: bool,
    /// The file's size becomes at least this (with `append`: counted from the old end). Edits beyond the final size
    /// are refused, except holes (`KEEP_SIZE` is a hole without `grow`).
    pub grow: u64,
    /// Every chunk that `edits` name, once each, with proof that it is stored.
    pub chunks: Vec<StoredChunk>,
    /// Under what the chunks were put or touched.
    pub attempt: Attempt,
    /// The layout the puts used.
    pub layout: LayoutVersion,
    /// Modification time; `None`: the metaserver's time of the command. Not looked at with `base`.
    pub mtime: Option<Time>,
}

/// One replaced range of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// First byte.
    pub at: u64,
    /// How many bytes, at least 1.
    pub len: u64,
    /// What they are from now on.
    pub data: Source,
}

/// Where bytes of a file come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Zeros.
    Hole,
    /// `len` bytes of this chunk from `offset` on. Inside the chunk.
    Chunk {
        /// The chunk.
        id: ChunkId,
        /// First byte in the chunk.
        offset: u32,
    },
    /// These bytes, kept in the metadata: at most 4096, exactly the range's length when committed. A later
    /// overwrite may leave a part of the range: `offset` says where in `bytes` it starts, so the id still verifies.
    Inline {
        /// BLAKE3 of `bytes`, made by the writer, checked by `apply` and by the reader.
        id: ChunkId,
        /// First byte used.
        offset: u32,
        /// All the bytes that were written.
        bytes: Bytes,
    },
}

/// A chunk with proof of where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredChunk {
    /// The chunk.
    pub id: ChunkId,
    /// Its length in bytes.
    pub len: u32,
    /// One for each server that holds it durably.
    pub receipts: Vec<Receipt>,
}

/// A change, with all that makes it take effect once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The client's session.
    pub session: SessionId,
    /// One request at a time on each slot.
    pub slot: u16,
    /// Rises by one with each new request on the slot; a retry repeats it. The first is 1.
    pub seq: u64,
    /// On whose behalf.
    pub cred: Cred,
    /// What to do.
    pub op: Op,
}

/// What a change answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done, nothing to tell.
    Done,
    /// `OpenSession`: rights and rules of the session.
    Session {
        /// The cluster epoch now.
        epoch: Epoch,
        /// The right to put and touch chunks.
        write_token: Mac,
        /// The session ends when no request or keep-alive came for this long, in milliseconds.
        timeout_ms: u64,
    },
    /// `Create`.
    Created {
        /// The inode.
        attr: Attr,
        /// False: it was there and was opened.
        new: bool,
        /// The directory afterwards.
        parent: Attr,
    },
    /// `Link`, `SetAttr`, `Undelete`, xattr changes: the inode afterwards.
    Attr(Attr),
    /// `Unlink`, `Rmdir`: the inode it named, and its remaining links (0: gone, or an orphan of this session).
    Removed {
        /// The inode.
        ino: InodeId,
        /// Remaining links.
        nlink: u32,
    },
    /// `Rename`: the inode it replaced and its remaining links, if any.
    Renamed {
        /// What was replaced.
        replaced: Option<(InodeId, u32)>,
    },
    /// `Commit`: the inode afterwards, and where the edits went (0 unless `append`).
    Committed {
        /// The inode.
        attr: Attr,
        /// What was added to every edit's offset.
        offset: u64,
    },
    /// `Clone`: the inode that got the bytes, and how many: fewer than asked for where the source ends, or has more
    /// extents there than go into one command; 0 behind its end.
    Cloned {
        /// The inode.
        attr: Attr,
        /// Bytes.
        len: u64,
    },
    /// `Lock`. `CancelLock`: `Yes` if it was granted before that, else `No`.
    Locked(Locked),
    /// `Batch`.
    Batch(BatchDone),
    /// `Reserve`: as many numbers as were asked for, from this one on.
    Reserved(InodeId),
}

/// A change's outcome and where in the order of all changes it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// What happened.
    pub outcome: Outcome,
    /// The Raft index at which it took effect. Also a valid witness from now on.
    pub index: LogIndex,
}

/// A change that was applied, and leases that came with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// What happened.
    pub applied: Applied,
    /// Leases of what [`Outcome::attrs`] has, if the session takes leases. Of a batch: of the inodes that it made.
    pub grants: Grants,
}

impl From<Applied> for Submitted {
    fn from(applied: Applied) -> Submitted {
        Submitted { applied, grants: Grants::default() }
    }
}

impl Outcome {
    /// Attributes in it, in order, as they are after the change.
    pub fn attrs(&self) -> Vec<&Attr> {
        match self {
            Outcome::Created { attr, parent, .. } => vec![attr, parent],
            Outcome::Attr(attr) | Outcome::Committed { attr, .. } | Outcome::Cloned { attr, .. } => vec![attr],
            Outcome::Done
            | Outcome::Session { .. }
            | Outcome::Removed { .. }
            | Outcome::Renamed { .. }
            | Outcome::Locked(_)
            | Outcome::Batch(_)
            | Outcome::Reserved(_) => Vec::new(),
        }
    }
}

/// The answer to a keep-alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// A valid witness.
    pub index: LogIndex,
    /// The version of the cluster map now; fetch it if it is not the one you have.
    pub map_version: u64,
    /// The cluster epoch.
    pub epoch: Epoch,
}

/// The control plane of a metaserver. Which role may call what is one match in the metaserver's `service.rs`.
#[tarpc::service]
pub trait Meta {
    /// A change of the namespace. Clients.
    async fn submit(request: Request) -> Result<Submitted, Fault>;
    /// A linearizable read. Clients.
    async fn query(ask: Ask) -> Result<Answered, Fault>;
    /// Keeps a session alive. Clients.
    async fn keep_alive(session: SessionId) -> Result<Alive, Fault>;
    /// The cluster map. Clients, chunkservers, administrators.
    async fn cluster_map() -> Result<ClusterMap, Fault>;
    /// Chunkservers.
    async fn register(register: Register) -> Result<Registered, Fault>;
    /// Chunkservers.
    async fn heartbeat(heartbeat: Heartbeat) -> Result<HeartbeatReply, Fault>;
    /// Administrators.
    async fn admin(request: Admin) -> Result<AdminReply, Fault>;
    /// Other metaservers: one Raft message, encoded by the metaserver's `raft/network.rs`.
    async fn raft(message: Bytes) -> Result<Bytes, Fault>;
    /// A lease of a directory and what is in it. Clients.
    async fn lease(ask: LeaseAsk) -> Result<Leased, Fault>;
    /// What to forget; waits for up to [`super::lease::RECALL_HOLD`]. Clients.
    async fn recalls(call: RecallCall) -> Result<Recalls, Fault>;
    /// Repair, garbage, scrub. Chunkservers.
    async fn keep(ask: KeepAsk) -> Result<KeepAnswer, Fault>;
    /// What a session has open, and when to say it again; waits for up to [`super::opens::OPENS_HOLD`]. Clients.
    async fn opens(report: OpenReport) -> Result<OpenAsk, Fault>;
    /// Makes leases write leases. Clients.
    async fn claim(claim: Claim) -> Result<Claimed, Fault>;
}
