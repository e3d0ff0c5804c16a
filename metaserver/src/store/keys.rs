//! Every key of the state machine, and its bytes.
//!
//! Numbers are big-endian, so keys sort as numbers do; what is read together sits together.
//!
//! | family | key | value ([`super::values`]) |
//! | --- | --- | --- |
//! | inode | ino 8 | [`Inode`](super::values::Inode) |
//! | dentry | parent ino 8, name | [`Dentry`](super::values::Dentry) |
//! | list | parent ino 8, cookie 8 | [`Listed`](super::values::Listed) |
//! | extent | data id 8, file offset 8 | [`ExtentRow`](super::values::ExtentRow) |
//! | xattr | ino 8, name | the value, as it is |
//! | chunk | chunk id 32 | [`ChunkRow`](super::values::ChunkRow) |
//! | degraded | placement group 4, chunk id 32 | [`Degraded`](super::values::Degraded) |
//! | session | session 16 | [`SessionRow`](super::values::SessionRow) |
//! | slot | session 16, slot 2 | [`SlotRow`](super::values::SlotRow) |
//! | ended | end time: seconds 8, nanoseconds 4; session 16 | empty |
//! | orphan | session 16, ino 8 | empty |
//! | holder | ino 8, session 16 | empty: the same as orphan |
//! | attend | session 16 | empty |
//! | lock | ino 8 | [`LockRow`](super::values::LockRow) |
//! | locked | session 16, owner 8, ino 8 | empty |
//! | purge | data id 8 | [`Purge`](super::values::Purge) |
//! | recount | data id 8 | [`Recount`](super::values::Recount) |
//! | horizon | bucket 2 | [`Horizon`](super::values::Horizon) |
//! | moved | placement group 4 | [`Moved`](super::values::Moved) |
//! | server | server 4 | [`ServerRow`](super::values::ServerRow) |
//! | instance | instance 16 | [`InstanceRow`](super::values::InstanceRow): finds a server that registers again |
//! | cluster | `config`, `counters`, `layout`, `fix`, `restored`, `moves`, `plan`, `plan-steps`, `away`, `left`, `trash` | [`Config`](super::values::Config), ... |
//! | event | number 8 | [`EventRow`](super::values::EventRow) |
//! | trash | `e`, ino 8 | [`TrashRow`](super::trash::TrashRow) |
//! | trash | `t`, when it was removed: seconds 8, nanoseconds 4; ino 8 | empty |
//! | trash | `p`, the directory it was in 8, ino 8 | empty |
//! | raft | the metaserver's own: last applied, membership | `raft/` |
//!
//! Families are told apart by name on disk; a new one goes last in [`FAMILIES`].

use common::id::{ChunkId, InodeId, PgId, ServerId, SessionId};
use common::kv::Family;
use common::name::Name;
use common::time::Time;

/// The names to open the store with, in the order of the constants below.
pub const FAMILIES: [&str; 25] = [
    "inode", "dentry", "list", "extent", "xattr", "chunk", "degraded", "session", "slot", "ended", "orphan", "purge",
    "horizon", "moved", "server", "instance", "cluster", "raft", "attend", "holder", "lock", "locked", "event",
    "trash", "recount",
];

/// Inodes.
pub const INODE: Family = Family(0);
/// Directory entries by name.
pub const DENTRY: Family = Family(1);
/// Directory entries by cookie.
pub const LIST: Family = Family(2);
/// What files hold.
pub const EXTENT: Family = Family(3);
/// Extended attributes.
pub const XATTR: Family = Family(4);
/// Referenced chunks.
pub const CHUNK: Family = Family(5);
/// Chunks with fewer copies than their target.
pub const DEGRADED: Family = Family(6);
/// Sessions.
pub const SESSION: Family = Family(7);
/// Reply slots of sessions.
pub const SLOT: Family = Family(8);
/// Sessions that ended, by time.
pub const ENDED: Family = Family(9);
/// Unlinked but open inodes.
pub const ORPHAN: Family = Family(10);
/// Extents of inodes that are gone, still to be taken apart.
pub const PURGE: Family = Family(11);
/// Deletion horizons.
pub const HORIZON: Family = Family(12);
/// The last finished move of each placement group.
pub const MOVED: Family = Family(13);
/// Chunkservers.
pub const SERVER: Family = Family(14);
/// Chunkservers by instance.
pub const INSTANCE: Family = Family(15);
/// Single values of the cluster.
pub const CLUSTER: Family = Family(16);
/// What the Raft layer keeps beside the namespace, written in the same batch. Not touched by `namespace`.
pub const RAFT: Family = Family(17);
/// Sessions that say what they have open when they are asked.
pub const ATTEND: Family = Family(18);
/// Unlinked but open inodes, by inode: the same as [`ORPHAN`].
pub const HOLDER: Family = Family(19);
/// Locks of files.
pub const LOCK: Family = Family(20);
/// Who holds or waits for locks.
pub const LOCKED: Family = Family(21);

/// What administrators did.
pub const EVENT: Family = Family(22);

/// What was removed and can be brought back.
pub const TRASH: Family = Family(23);

/// Files whose references are being counted for another replica target.
pub const RECOUNT: Family = Family(24);

/// In [`CLUSTER`]: what was fixed when the cluster was formatted.
pub const CONFIG: &[u8] = b"config";
/// In [`CLUSTER`]: numbers that change with every command.
pub const COUNTERS: &[u8] = b"counters";
/// In [`CLUSTER`]: the clock by which ended sessions are forgotten.
pub const SESSION_CLOCK: &[u8] = b"session-clock";
/// In [`CLUSTER`]: the last corrections.
pub const FIX: &[u8] = b"fix";
/// In [`CLUSTER`]: the layout table.
pub const LAYOUT: &[u8] = b"layout";
/// In [`CLUSTER`]: the restore that this life of the cluster began with.
pub const RESTORED: &[u8] = b"restored";
/// In [`CLUSTER`]: servers that are out.
pub const OUT: &[u8] = b"out";
/// In [`CLUSTER`]: settings of repair, garbage collection and scrub.
pub const KEEP: &[u8] = b"keep";
/// In [`CLUSTER`]: who root of clients' machines is, unless root.
pub const SQUASH: &[u8] = b"root-squash";
/// In [`CLUSTER`], followed by a session: the inode numbers that it has reserved.
pub const RESERVED: &[u8] = b"reserved/";
/// In [`CLUSTER`], followed by a session: batches made under older claims are refused.
pub const FENCE: &[u8] = b"fence/";
/// In [`CLUSTER`]: placement groups that are under way.
pub const MOVES: &[u8] = b"moves";
/// In [`CLUSTER`]: the last plan to move placement groups.
pub const PLAN: &[u8] = b"plan";
/// In [`CLUSTER`]: what that plan has not begun yet, and what it does to each server.
pub const STEPS: &[u8] = b"plan-steps";
/// In [`CLUSTER`]: servers that are announced to be away.
pub const AWAY: &[u8] = b"away";
/// In [`CLUSTER`]: chunkservers that were removed.
pub const REMOVED: &[u8] = b"removed";
/// In [`CLUSTER`]: the groups of servers that went out.
pub const LEFT: &[u8] = b"left";
/// In [`CLUSTER`]: how long what was removed stays, and how much there is of it.
pub const TRASH_STATE: &[u8] = b"trash";

/// Key of an inode; prefix of everything that starts with an inode number.
pub fn inode(ino: InodeId) -> [u8; 8] {
    ino.0.to_be_bytes()
}

/// Key of an entry by name.
pub fn dentry(parent: InodeId, name: &Name) -> Vec<u8> {
    [&parent.0.to_be_bytes(), name.as_bytes()].concat()
}

/// Key of an entry by cookie.
pub fn list(parent: InodeId, cookie: u64) -> [u8; 16] {
    two(parent.0, cookie)
}

/// Key of an extent.
pub fn extent(data: u64, at: u64) -> [u8; 16] {
    two(data, at)
}

/// Key of an extended attribute.
pub fn xattr(ino: InodeId, name: &[u8]) -> Vec<u8> {
    [&ino.0.to_be_bytes(), name].concat()
}

/// Key of a chunk's row.
pub fn chunk(id: &ChunkId) -> [u8; 32] {
    id.0
}

/// Key of a degraded chunk.
pub fn degraded(pg: PgId, id: &ChunkId) -> Vec<u8> {
    [&pg.0.to_be_bytes()[..], &id.0].concat()
}

/// Key of a session; prefix of its slots and orphans.
pub fn session(session: SessionId) -> [u8; 16] {
    session.0.to_be_bytes()
}

/// Key of the inode numbers that a session has reserved, in [`CLUSTER`].
pub fn reserved(session: SessionId) -> Vec<u8> {
    [RESERVED, &self::session(session)[..]].concat()
}

/// Key of the fence of a session, in [`CLUSTER`].
pub fn fence(session: SessionId) -> Vec<u8> {
    [FENCE, &self::session(session)[..]].concat()
}

/// Key of a reply slot.
pub fn slot(session: SessionId, slot: u16) -> Vec<u8> {
    [&session.0.to_be_bytes()[..], &slot.to_be_bytes()].concat()
}

/// Key of an ended session. Times before 1970 sort first too.
pub fn ended(at: Time, session: SessionId) -> Vec<u8> {
    let secs = u64::try_from(at.secs).unwrap_or(0);
    [&secs.to_be_bytes()[..], &at.nanos.to_be_bytes(), &session.0.to_be_bytes()].concat()
}

/// Key of an orphan.
pub fn orphan(session: SessionId, ino: InodeId) -> Vec<u8> {
    [&session.0.to_be_bytes()[..], &ino.0.to_be_bytes()].concat()
}

/// Key of an orphan, by inode.
pub fn holder(ino: InodeId, session: SessionId) -> Vec<u8> {
    [&ino.0.to_be_bytes()[..], &session.0.to_be_bytes()].concat()
}

/// Prefix of what an owner holds and waits for.
pub fn locks_of(session: SessionId, owner: u64) -> Vec<u8> {
    [&session.0.to_be_bytes()[..], &owner.to_be_bytes()].concat()
}

/// Key of an inode of which an owner holds or waits for locks.
pub fn locked(session: SessionId, owner: u64, ino: InodeId) -> Vec<u8> {
    [&locks_of(session, owner)[..], &ino.0.to_be_bytes()].concat()
}

/// Key of extents to take apart.
pub fn purge(data: u64) -> [u8; 8] {
    data.to_be_bytes()
}

/// Key of extents to count for another replica target.
pub fn recount(data: u64) -> [u8; 8] {
    data.to_be_bytes()
}

/// Key of a deletion horizon.
pub fn horizon(bucket: u16) -> [u8; 2] {
    bucket.to_be_bytes()
}

/// Key of a placement group's last finished move.
pub fn moved(pg: PgId) -> [u8; 4] {
    pg.0.to_be_bytes()
}

/// Key of a chunkserver.
pub fn server(server: ServerId) -> [u8; 4] {
    server.0.to_be_bytes()
}

/// Key of an event.
pub fn event(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// First byte of the keys of entries of the trash.
const TRASH_ENTRY: u8 = b'e';
/// The same for the order in which they were removed.
const TRASH_TIME: u8 = b't';
/// The same for the directories that they were in.
const TRASH_PARENT: u8 = b'p';

/// Key of an entry of the trash.
pub fn trash_entry(ino: InodeId) -> Vec<u8> {
    [&[TRASH_ENTRY][..], &ino.0.to_be_bytes()].concat()
}

/// Prefix of all entries of the trash.
pub fn trash_entries() -> [u8; 1] {
    [TRASH_ENTRY]
}

/// Key of an entry of the trash in the order of removal. Times before 1970 sort first too.
pub fn trash_time(at: Time, ino: InodeId) -> Vec<u8> {
    let secs = u64::try_from(at.secs).unwrap_or(0);
    [&[TRASH_TIME][..], &secs.to_be_bytes(), &at.nanos.to_be_bytes(), &ino.0.to_be_bytes()].concat()
}

/// Prefix of that order.
pub fn trash_times() -> [u8; 1] {
    [TRASH_TIME]
}

/// Prefix of what was in a directory.
pub fn trash_of(parent: InodeId) -> Vec<u8> {
    [&[TRASH_PARENT][..], &parent.0.to_be_bytes()].concat()
}

/// Key of an entry of the trash by the directory it was in.
pub fn trash_parent(parent: InodeId, ino: InodeId) -> Vec<u8> {
    [&trash_of(parent)[..], &ino.0.to_be_bytes()].concat()
}

/// Key of an instance.
pub fn instance(instance: u128) -> [u8; 16] {
    instance.to_be_bytes()
}

fn two(first: u64, second: u64) -> [u8; 16] {
    ((u128::from(first) << 64) | u128::from(second)).to_be_bytes()
}

/// The last 8 bytes of a key as a number: the cookie of [`list`], the offset of [`extent`], the inode of [`orphan`].
/// `None` if there are fewer.
pub fn last_u64(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*key.last_chunk::<8>()?))
}

/// The first 8 bytes of a key as a number. `None` if there are fewer.
pub fn first_u64(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*key.first_chunk::<8>()?))
}

/// The first 16 bytes of a key as a session. `None` if there are fewer.
pub fn first_session(key: &[u8]) -> Option<SessionId> {
    Some(SessionId(u128::from_be_bytes(*key.first_chunk::<16>()?)))
}

/// The last 16 bytes of a key as a session: of [`ended`] and [`holder`]. `None` if there are fewer.
pub fn last_session(key: &[u8]) -> Option<SessionId> {
    Some(SessionId(u128::from_be_bytes(*key.last_chunk::<16>()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let name = Name::new("ab").unwrap();
        let id = ChunkId([9; 32]);
        let s = SessionId(3);
        assert_eq!(inode(InodeId(0x0102)), [0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(dentry(InodeId(1), &name), b"\0\0\0\0\0\0\0\x01ab");
        assert_eq!(list(InodeId(1), 2), [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(extent(1, 256), [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(xattr(InodeId(1), b"user.x"), b"\0\0\0\0\0\0\0\x01user.x");
        assert_eq!(chunk(&id), [9; 32]);
        assert_eq!(degraded(PgId(5), &id), [&[0, 0, 0, 5][..], &[9; 32]].concat());
        assert_eq!(session(s)[15], 3);
        assert_eq!(slot(s, 0x0102)[14..], [0, 3, 1, 2]);
        let at = Time { secs: 1, nanos: 2 };
        assert_eq!(ended(at, s)[..12], [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!(last_session(&ended(at, s)), Some(s));
        assert_eq!(orphan(s, InodeId(4))[15..], [3, 0, 0, 0, 0, 0, 0, 0, 4]);
        assert_eq!(locked(s, 5, InodeId(4))[15..], [3, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 4]);
        assert_eq!((first_u64(&holder(InodeId(4), s)), last_session(&holder(InodeId(4), s))), (Some(4), Some(s)));
        assert_eq!((first_session(&orphan(s, InodeId(4))), last_u64(&orphan(s, InodeId(4)))), (Some(s), Some(4)));
        assert_eq!((purge(7), recount(7)), ([0, 0, 0, 0, 0, 0, 0, 7], [0, 0, 0, 0, 0, 0, 0, 7]));
        assert_eq!((horizon(258), moved(PgId(1)), server(ServerId(2))), ([1, 2], [0, 0, 0, 1], [0, 0, 0, 2]));
        assert_eq!((instance(1)[15], event(2)[7]), (1, 2));
        assert_eq!((last_u64(b"short"), first_u64(b"short")), (None, None));
        let (ino, parent) = (InodeId(4), InodeId(5));
        assert_eq!(trash_entry(ino), b"e\0\0\0\0\0\0\0\x04");
        assert_eq!(trash_time(at, ino), b"t\0\0\0\0\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\x04");
        assert_eq!(trash_parent(parent, ino), b"p\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x04");
    }

    #[test]
    fn the_constants_follow_the_names() {
        let pairs = [
            (INODE, "inode"),
            (DENTRY, "dentry"),
            (LIST, "list"),
            (EXTENT, "extent"),
            (XATTR, "xattr"),
            (CHUNK, "chunk"),
            (DEGRADED, "degraded"),
            (SESSION, "session"),
            (SLOT, "slot"),
            (ENDED, "ended"),
            (ORPHAN, "orphan"),
            (PURGE, "purge"),
            (HORIZON, "horizon"),
            (MOVED, "moved"),
            (SERVER, "server"),
            (INSTANCE, "instance"),
            (CLUSTER, "cluster"),
            (RAFT, "raft"),
            (ATTEND, "attend"),
            (HOLDER, "holder"),
            (LOCK, "lock"),
            (LOCKED, "locked"),
            (EVENT, "event"),
            (TRASH, "trash"),
            (RECOUNT, "recount"),
        ];
        assert_eq!(pairs.len(), FAMILIES.len());
        for (family, name) in pairs {
            assert_eq!(FAMILIES[usize::from(family.0)], name);
        }
    }
}
