//! The trash: what lost its last name and can be brought back.
//!
//! What is here has no inode row, so nobody finds it by number; its extents and attributes stay under its number, so its
//! chunks are referred to as before. Directories come here too: the path of what was in them is found through them, and a
//! tree comes back directory by directory. What is open when its last name goes is an orphan first; its entry says only
//! where it was until nobody has it open any more.
//!
//! Invariants ([`check`](super::check()) tests them):
//! 1. An inode is in the inode family or buried here, never both.
//! 2. Each buried entry has one key in the order of removal and one by its directory; the others have none.
//! 3. An entry that is not buried is an orphan's.
//! 4. The counts of [`TrashState`] are what the buried entries add up to; the counters of the cluster leave them out.
//!
//! How long things stay is decided when they go, by the window as it is then, with the leaders' clocks: one that jumps
//! ahead makes things go early.

use super::access;
use super::command::{Done, Fail, refuse};
use super::create::one_more;
use super::lock;
use super::remove::{drop_contents, free};
use super::rows::{Call, directory, entry, find_inode, row};
use crate::store::keys::{self, CLUSTER, INODE, LIST, TRASH};
use crate::store::trash::{TrashRow, TrashState, ino_of};
use crate::store::values::{Body, Inode, Listed, Value};
use bytes::Bytes;
use common::fault::Kind;
use common::id::InodeId;
use common::kv::{KvError, KvRead, prefix_range};
use common::name::Name;
use common::proto::meta::{ACCESS_EXEC, Cred, FileKind, Outcome};
use common::proto::trash::{TRASH_PER_ANSWER, TrashAsk, TrashEntry, TrashList, TrashNow, TrashPlace};
use common::time::Time;
use common::units::len_usize;
use std::collections::BTreeMap;
use std::ops::Bound;

/// An empty file that was not changed for less than this before it is removed was only ever a temporary one: it is not
/// kept. In seconds.
const TEMP_S: i64 = 10;
/// Extents that go at once with each entry that goes; a file with more is purged in steps.
const EXTENTS_AT_ONCE: u64 = 64;
/// Entries that one command lets go, at most.
const EXPIRE_MAX: u32 = 256;
/// Entries looked at for one answer, at most.
const LOOKED_AT_MAX: usize = 16_384;
/// Names looked at to find those of directories for one answer, at most.
const NAMES_MAX: usize = 100_000;
/// Directories between the root and an entry, at most.
const DEPTH_MAX: usize = 4096;
/// Bytes of a path that is told, at most: an answer has very many.
const PATH_LEN_MAX: usize = 4096;

fn state(read: &dyn KvRead) -> Result<TrashState, KvError> {
    Ok(row(read, CLUSTER, keys::TRASH_STATE)?.unwrap_or_default())
}

fn put_state(call: &mut Call<'_, '_>, state: TrashState) {
    call.txn.put(CLUSTER, keys::TRASH_STATE, state.encode());
}

pub(super) fn find(read: &dyn KvRead, ino: InodeId) -> Result<Option<TrashRow>, KvError> {
    row(read, TRASH, &keys::trash_entry(ino))
}

fn allocated(inode: &Inode) -> u64 {
    match inode.body {
        Body::File { allocated, .. } => allocated,
        _ => 0,
    }
}

/// The keys by which a buried entry is found.
pub(super) fn index_keys(ino: InodeId, row: &TrashRow) -> [Vec<u8>; 2] {
    [keys::trash_time(row.at, ino), keys::trash_parent(row.parent, ino)]
}

/// True if this is worth keeping.
fn is_worth(call: &Call<'_, '_>, inode: &Inode) -> bool {
    let is_plain = inode.xattr_names == 0 && inode.acls.is_none();
    match inode.body {
        Body::File { size: 0, .. } if is_plain => call.now.secs.saturating_sub(inode.mtime.secs) >= TEMP_S,
        _ => true,
    }
}

/// Something loses its last name and nobody has it open: it goes to the trash, or for good if nothing is kept.
pub(super) fn bury_or_free(
    call: &mut Call<'_, '_>,
    ino: InodeId,
    inode: &Inode,
    (parent, name): (InodeId, &Name),
    at_once: u64,
) -> Result<(), Fail> {
    let state = state(call.txn)?;
    if state.window_s == 0 || !is_worth(call, inode) {
        return free(call, ino, inode, at_once);
    }
    let row = TrashRow { parent, name: name.clone(), by: call.cred.uid, at: call.now, inode: inode.encode() };
    bury(call, ino, inode, row, state)
}

/// Something loses its last name while somebody may have it open: notes where it was.
pub(super) fn note(
    call: &mut Call<'_, '_>,
    ino: InodeId,
    inode: &Inode,
    (parent, name): (InodeId, &Name),
) -> Result<(), Fail> {
    if state(call.txn)?.window_s > 0 && is_worth(call, inode) {
        let row = TrashRow { parent, name: name.clone(), by: call.cred.uid, at: call.now, inode: Vec::new() };
        call.txn.put(TRASH, keys::trash_entry(ino), row.encode());
    }
    Ok(())
}

/// Nobody has an inode without a name open any more: it goes to the trash if that was noted, else for good.
pub(super) fn closed(call: &mut Call<'_, '_>, ino: InodeId, inode: &Inode, at_once: u64) -> Result<(), Fail> {
    let state = state(call.txn)?;
    match find(call.txn, ino)? {
        Some(row) if state.window_s > 0 => {
            let row = TrashRow { at: call.now, inode: inode.encode(), ..row };
            bury(call, ino, inode, row, state)
        }
        noted => {
            if noted.is_some() {
                call.txn.delete(TRASH, keys::trash_entry(ino));
            }
            free(call, ino, inode, at_once)
        }
    }
}

fn bury(
    call: &mut Call<'_, '_>,
    ino: InodeId,
    inode: &Inode,
    row: TrashRow,
    mut state: TrashState,
) -> Result<(), Fail> {
    lock::forget(call, ino)?;
    call.txn.delete(INODE, keys::inode(ino));
    call.txn.put(TRASH, keys::trash_entry(ino), row.encode());
    for key in index_keys(ino, &row) {
        call.txn.put(TRASH, key, Vec::new());
    }
    let bytes = allocated(inode);
    call.counters.inodes -= 1;
    call.counters.logical_bytes -= bytes;
    state.entries += 1;
    state.bytes += bytes;
    put_state(call, state);
    Ok(())
}

/// Takes a buried entry out, with its keys and its counts.
fn dig_out(call: &mut Call<'_, '_>, ino: InodeId, row: &TrashRow, inode: &Inode) -> Result<(), KvError> {
    call.txn.delete(TRASH, keys::trash_entry(ino));
    for key in index_keys(ino, row) {
        call.txn.delete(TRASH, key);
    }
    let mut state = state(call.txn)?;
    state.entries = state.entries.saturating_sub(1); // fsck tells if they are off
    state.bytes = state.bytes.saturating_sub(allocated(inode));
    put_state(call, state);
    Ok(())
}

/// Gives something in the trash a name again.
pub(super) fn undelete(call: &mut Call<'_, '_>, ino: InodeId, parent: InodeId, name: &Name) -> Result<Outcome, Fail> {
    let not_here = || refuse(Kind::NotFound, format!("{ino} is not in the trash"));
    let row = find(call.txn, ino)?.ok_or_else(not_here)?;
    let mut inode = row.inode()?.ok_or_else(not_here)?; // an open one has not come here yet
    if !may_see(call.cred, &row) {
        return Err(refuse(Kind::NotPermitted, "somebody else removed it"));
    }
    let mut dir = directory(call.txn, parent)?;
    access::need(&dir, call.cred, ACCESS_EXEC)?;
    if entry(call.txn, parent, name)?.is_some() {
        return Err(refuse(Kind::Exists, "the name is taken"));
    }
    access::need_add(&dir, call.cred)?;
    dig_out(call, ino, &row, &inode)?;
    inode.nlink = 1;
    inode.ctime = call.at;
    if let Body::Dir { parent: back, .. } = &mut inode.body {
        *back = parent;
        inode.nlink = 2;
        dir.nlink = one_more(dir.nlink)?;
    }
    call.counters.inodes += 1;
    call.counters.logical_bytes += allocated(&inode);
    call.put_inode(ino, &inode);
    call.add_entry(parent, &mut dir, name, ino, inode.kind);
    call.put_inode(parent, &dir);
    Ok(Outcome::Attr(inode.attr(ino)))
}

/// True for who removed it, and root.
fn may_see(cred: &Cred, row: &TrashRow) -> bool {
    access::is_root(cred) || cred.uid == row.by
}

/// True if what was removed at `removed` goes at `now`.
fn is_due(state: &TrashState, removed: Time, now: Time) -> bool {
    let window = i64::try_from(state.window_s).unwrap_or(i64::MAX);
    let end = Time { secs: removed.secs.saturating_add(window), ..removed };
    end <= now || state.emptied.is_some_and(|emptied| removed <= emptied)
}

/// The keys of the first entries in the order of removal.
fn oldest(read: &dyn KvRead, limit: usize) -> Result<Vec<Bytes>, KvError> {
    let rows = read.scan(TRASH, prefix_range(&keys::trash_times()), false).take(limit);
    rows.map(|found| Ok(found?.0)).collect()
}

/// What was removed first.
fn first(read: &dyn KvRead) -> Result<Option<TrashRow>, KvError> {
    match oldest(read, 1)?.first() {
        Some(key) => find(read, ino_of(key)?),
        None => Ok(None),
    }
}

/// True if there is work for [`super::Command::Expire`].
///
/// # Errors
/// The store failed.
pub fn has_due(read: &dyn KvRead, now: Time) -> Result<bool, KvError> {
    let Some(key) = oldest(read, 1)?.pop() else { return Ok(false) };
    let state = state(read)?;
    // A key of nothing goes as well.
    Ok(find(read, ino_of(&key)?)?.is_none_or(|row| is_due(&state, row.at, now)))
}

/// Lets up to `EXPIRE_MAX` entries go for good, oldest first: those that are due, and others until what has gone is
/// this many bytes.
pub(super) fn expire(call: &mut Call<'_, '_>, bytes: u64) -> Result<Done, Fail> {
    let (limits, mut gone) = (state(call.txn)?, 0);
    let oldest = oldest(call.txn, len_usize(EXPIRE_MAX.into()))?;
    for key in &oldest {
        let ino = ino_of(key)?;
        let row = find(call.txn, ino)?;
        let inode = row.as_ref().map(TrashRow::inode).transpose()?.flatten();
        let (Some(row), Some(inode)) = (row, inode) else {
            call.txn.delete(TRASH, key.to_vec()); // of nothing: it would be the oldest for ever
            continue;
        };
        if gone >= bytes && !is_due(&limits, row.at, call.at) {
            return Ok(Done::Purged { more: false });
        }
        gone = gone.saturating_add(allocated(&inode));
        dig_out(call, ino, &row, &inode)?;
        drop_contents(call, ino, &inode, EXTENTS_AT_ONCE)?;
    }
    Ok(Done::Purged { more: oldest.len() == len_usize(EXPIRE_MAX.into()) })
}

/// What is in the trash by `at` goes, as fast as it can.
pub(super) fn empty(call: &mut Call<'_, '_>, at: Time) -> Result<Done, Fail> {
    let state = state(call.txn)?;
    // Not beyond the newest: a clock that is ahead would empty it for as long.
    let newest = call.txn.scan(TRASH, prefix_range(&keys::trash_times()), true).next().transpose()?;
    let Some(newest) = newest.map(|(key, _)| ino_of(&key)).transpose()? else { return Ok(Done::Noted) };
    let removed = find(call.txn, newest)?.map_or(at, |row| row.at);
    put_state(call, TrashState { emptied: state.emptied.max(Some(at.min(removed))), ..state });
    Ok(Done::Noted)
}

/// Sets the undelete window.
pub(super) fn set_window(call: &mut Call<'_, '_>, window_s: u64) -> Result<(), Fail> {
    let state = state(call.txn)?;
    put_state(call, TrashState { window_s, ..state });
    Ok(())
}

/// Mends the keys of an entry: `key` is there exactly if an entry says so.
pub(super) fn fix_key(call: &mut Call<'_, '_>, key: &[u8]) -> Result<(), Fail> {
    let Ok(ino) = ino_of(key) else { return Ok(()) };
    let row = find(call.txn, ino)?.filter(|row| !row.inode.is_empty());
    if row.is_some_and(|row| index_keys(ino, &row).iter().any(|own| own == key)) {
        call.txn.put(TRASH, key, Vec::new());
    } else if !key.starts_with(&keys::trash_entries()) {
        call.txn.delete(TRASH, key);
    }
    Ok(())
}

/// A note of something that is no orphan goes.
pub(super) fn fix_note(call: &mut Call<'_, '_>, ino: InodeId) -> Result<(), Fail> {
    if find(call.txn, ino)?.is_some_and(|row| row.inode.is_empty()) {
        call.txn.delete(TRASH, keys::trash_entry(ino));
    }
    Ok(())
}

/// An entry of what is there goes, with its keys: nothing that it holds does. What is open without a name (`open`) comes to the
/// trash later. The counts are mended by what is left.
pub(super) fn fix_twice(call: &mut Call<'_, '_>, ino: InodeId, open: bool) -> Result<(), Fail> {
    let Some(row) = find(call.txn, ino)?.filter(|row| !row.inode.is_empty()) else { return Ok(()) };
    for key in index_keys(ino, &row) {
        call.txn.delete(TRASH, key);
    }
    match open {
        true => call.txn.put(TRASH, keys::trash_entry(ino), TrashRow { inode: Vec::new(), ..row }.encode()),
        false => call.txn.delete(TRASH, keys::trash_entry(ino)),
    }
    Ok(())
}

/// Corrects the counts by what they are off.
pub(super) fn fix_counts(call: &mut Call<'_, '_>, entries: i64, bytes: i64) -> Result<(), Fail> {
    let mut state = state(call.txn)?;
    state.entries = state.entries.saturating_add_signed(entries);
    state.bytes = state.bytes.saturating_add_signed(bytes);
    put_state(call, state);
    Ok(())
}

/// Changes what a buried entry was; fine if there is none. The counts are mended by what the extents add up to
/// ([`fix_counts`]).
pub(super) fn fix_buried(
    call: &mut Call<'_, '_>,
    ino: InodeId,
    change: impl FnOnce(&mut Inode),
) -> Result<(), KvError> {
    let Some(row) = find(call.txn, ino)? else { return Ok(()) };
    if let Some(mut inode) = row.inode()? {
        change(&mut inode);
        call.txn.put(TRASH, keys::trash_entry(ino), TrashRow { inode: inode.encode(), ..row }.encode());
    }
    Ok(())
}

/// The counts, as the store has them.
///
/// # Errors
/// The store failed.
pub(super) fn counts(read: &dyn KvRead) -> Result<(u64, u64), KvError> {
    let state = state(read)?;
    Ok((state.entries, state.bytes))
}

/// All of the trash in numbers.
///
/// # Errors
/// The store failed.
pub fn trash_now(read: &dyn KvRead) -> Result<TrashNow, KvError> {
    let state = state(read)?;
    let oldest = first(read)?.map(|row| row.at);
    Ok(TrashNow { window_s: state.window_s, entries: state.entries, bytes: state.bytes, oldest })
}

/// What the caller may bring back.
pub(super) fn list(read: &dyn KvRead, cred: &Cred, ask: &TrashAsk) -> Result<TrashList, Fail> {
    let prefix = match ask.parent {
        Some(parent) => keys::trash_of(parent),
        None => keys::trash_times().to_vec(),
    };
    let (mut from, end) = prefix_range(&prefix);
    if let Some(TrashPlace { at, ino }) = ask.after {
        from = Bound::Excluded(match ask.parent {
            Some(parent) => keys::trash_parent(parent, ino),
            None => keys::trash_time(at, ino),
        });
    }
    let limit = len_usize(ask.limit.clamp(1, TRASH_PER_ANSWER).into());
    let (mut entries, mut next, mut paths) = (Vec::new(), None, Paths::default());
    for (count, found) in read.scan(TRASH, (from, end), false).enumerate() {
        if entries.len() == limit || count == LOOKED_AT_MAX {
            let window_s = state(read)?.window_s;
            return Ok(TrashList { entries, next, window_s });
        }
        let ino = ino_of(&found?.0)?;
        let Some(row) = find(read, ino)? else { continue };
        next = Some(TrashPlace { at: row.at, ino });
        let Some(inode) = row.inode()?.filter(|_| may_see(cred, &row)) else { continue };
        let (dir, attr) = (paths.of(read, row.parent)?, inode.attr(ino));
        let TrashRow { parent, name, by, at, .. } = row;
        entries.push(TrashEntry { ino, kind: inode.kind, parent, name, dir, size: attr.size, by, at });
    }
    Ok(TrashList { entries, next: None, window_s: state(read)?.window_s })
}

/// Paths of directories, there or in the trash.
#[derive(Default)]
struct Paths {
    known: BTreeMap<InodeId, Option<Vec<u8>>>,
    looked_at: usize,
}

impl Paths {
    /// `None`: it is gone for good, or there is too much to look through.
    fn of(&mut self, read: &dyn KvRead, dir: InodeId) -> Result<Option<Vec<u8>>, KvError> {
        let (mut at, mut above) = (dir, Vec::new());
        let mut path = loop {
            if at == InodeId::ROOT {
                break Some(Vec::new());
            }
            if let Some(known) = self.known.get(&at) {
                break known.clone();
            }
            let Some((parent, name)) = self.place(read, at)?.filter(|_| above.len() < DEPTH_MAX) else {
                self.known.insert(at, None);
                break None;
            };
            above.push((at, name));
            at = parent;
        };
        for (ino, name) in above.into_iter().rev() {
            let below = |path: Vec<u8>| [&path[..], b"/", name.as_bytes()].concat();
            path = path.map(below).filter(|path| path.len() <= PATH_LEN_MAX);
            self.known.insert(ino, path.clone());
        }
        Ok(path)
    }

    /// In which directory this one is or was, and its name there.
    fn place(&mut self, read: &dyn KvRead, dir: InodeId) -> Result<Option<(InodeId, Name)>, KvError> {
        if let Some(row) = find(read, dir)? {
            return Ok(Some((row.parent, row.name)));
        }
        let Some(Inode { kind: FileKind::Dir, body: Body::Dir { parent, .. }, .. }) = find_inode(read, dir)? else {
            return Ok(None);
        };
        for found in read.scan(LIST, prefix_range(&keys::inode(parent)), false) {
            self.looked_at += 1;
            let listed = Listed::decode(&found?.1)?;
            if listed.ino == dir {
                return Ok(Some((parent, listed.name)));
            }
            if self.looked_at >= NAMES_MAX {
                break;
            }
        }
        Ok(None)
    }
}
