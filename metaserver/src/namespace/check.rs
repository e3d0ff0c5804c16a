//! The invariants of the namespace, checked over a whole store: for tests after every sequence, and for fsck.
//!
//! Each [`Problem`] brings the [`Fix`]es that mend it, if something does. A fix never deletes data: it re-makes a row that
//! other rows prove, re-counts, or gives what has no name one in `/lost+found`. If any row cannot be read, nothing is
//! fixed: what it said is missing from every count.
//!
//! Memory: about 200 bytes an inode and 150 a chunk.

mod contents;
mod names;

use super::fix::{Counter, Fix};
use super::lock;
use super::remove::UNASKED;
use super::rows::{config, counters};
use super::trash;
use crate::store::keys::{self, ATTEND, CLUSTER, HOLDER, INODE, LOCK, LOCKED, ORPHAN, SESSION, TRASH, XATTR};
use crate::store::trash::{TrashRow, ino_of};
use crate::store::values::{Body, Counters, Inode, LockRow, Reserved, SessionRow, Value, damaged};
use bytes::Bytes;
use common::id::{ChunkId, InodeId, SessionId};
use common::kv::{Family, KvError, KvRead};
use common::proto::meta::FileKind;
use common::units::{len_u32, len_u64};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Numbers of inodes stay far below this: one above is damage, and counting on from there would not end well.
const INO_SANE: u64 = 1 << 62;
/// Problems that are kept; more are only counted.
const PROBLEMS_MAX: usize = 100_000;

/// Something that is not as the invariants say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What, in one line.
    pub text: String,
    /// What mends it, in order. Empty: nothing here can.
    pub fixes: Vec<Fix>,
}

/// Everything that is wrong, one line each. Empty: all invariants hold. Reads the whole store into memory.
pub fn check(read: &dyn KvRead) -> Result<Vec<String>, KvError> {
    Ok(problems(read)?.into_iter().map(|problem| problem.text).collect())
}

/// As [`check`], with what mends each.
pub fn problems(read: &dyn KvRead) -> Result<Vec<Problem>, KvError> {
    let Some(config) = config(read)? else {
        let is_empty = read.scan(INODE, (Bound::Unbounded, Bound::Unbounded), false).next().is_none();
        let text = "what the cluster was formatted with is not there: restore the metadata from a backup".to_owned();
        return Ok(if is_empty { Vec::new() } else { vec![Problem { text, fixes: Vec::new() }] });
    };
    let mut check = Check {
        read,
        replicas: config.replicas,
        pg_count: config.pg_count,
        highest: 0,
        inodes: BTreeMap::new(),
        open: BTreeSet::new(),
        wrong: Vec::new(),
        more: 0,
        unreadable: false,
        named: BTreeSet::new(),
        mended: BTreeMap::new(),
        held: BTreeSet::new(),
        buried: BTreeSet::new(),
        buried_bytes: 0,
        found: Counters::default(),
    };
    check.inodes =
        check.all(INODE, |key, value| Ok((first(key), sound(Inode::decode(value)?)?)))?.into_iter().collect();
    let orphans = check.held_orphans()?;
    check.entries()?;
    check.orphans(&orphans);
    check.holders(&orphans)?;
    check.locks()?;
    check.trash(&orphans)?;
    check.xattrs()?;
    let references = check.extents()?;
    check.chunks(references)?;
    // Numbers and counters are corrected before all else: other corrections take the next number, and count down.
    let before = check.wrong.len();
    check.totals()?;
    check.wrong.rotate_left(before);
    if check.unreadable {
        check.wrong.iter_mut().for_each(|problem| problem.fixes.clear());
    }
    if check.more > 0 {
        check.wrong.push(Problem { text: format!("and {} more", check.more), fixes: Vec::new() });
    }
    Ok(check.wrong)
}

struct Check<'a> {
    read: &'a dyn KvRead,
    /// Of what belongs to nobody.
    replicas: u8,
    pg_count: u32,
    /// The highest number that an inode, its data or a reservation has.
    highest: u64,
    inodes: BTreeMap<u64, Inode>,
    /// Sessions that are open.
    open: BTreeSet<SessionId>,
    wrong: Vec<Problem>,
    /// Problems that were not kept.
    more: u64,
    /// Some row could not be read.
    unreadable: bool,
    /// Inodes with entries.
    named: BTreeSet<u64>,
    /// Directories that a correction hangs elsewhere, and where.
    mended: BTreeMap<u64, InodeId>,
    /// Inodes that an open session holds without a name, or whose entry is made again.
    held: BTreeSet<u64>,
    /// Inodes in the trash: from [`Check::trash`] on they are among `inodes`.
    buried: BTreeSet<u64>,
    buried_bytes: u64,
    found: Counters,
}

fn first(key: &Bytes) -> u64 {
    keys::first_u64(key).unwrap_or(0)
}

fn last(key: &Bytes) -> u64 {
    keys::last_u64(key).unwrap_or(0)
}

/// An inode whose body is of its kind: else its row says nothing that could be relied on.
fn sound(inode: Inode) -> Result<Inode, KvError> {
    let fits = match &inode.body {
        Body::File { .. } => inode.kind == FileKind::File,
        Body::Dir { .. } => inode.kind == FileKind::Dir,
        Body::Symlink { .. } => inode.kind == FileKind::Symlink,
        Body::Plain | Body::Device { .. } => !matches!(inode.kind, FileKind::File | FileKind::Dir | FileKind::Symlink),
    };
    if fits { Ok(inode) } else { Err(damaged("inode", "its kind and what it holds do not fit")) }
}

/// What is to be added to `from` to make it `to`.
fn change(from: u64, to: u64) -> i64 {
    let wide = i128::from(to) - i128::from(from);
    i64::try_from(wide).unwrap_or(0) // counts stay far below 2^63
}

impl Check<'_> {
    /// All rows of a family. One that cannot be read is a problem and left out.
    fn all<T>(
        &mut self,
        family: Family,
        each: impl Fn(&Bytes, &Bytes) -> Result<T, KvError>,
    ) -> Result<Vec<T>, KvError> {
        let mut rows = Vec::new();
        for found in self.read.scan(family, (Bound::Unbounded, Bound::Unbounded), false) {
            let (key, value) = found?;
            match each(&key, &value) {
                Ok(row) => rows.push(row),
                Err(error) => {
                    self.unreadable = true;
                    let family = keys::FAMILIES[usize::from(family.0)];
                    let text = format!("{family} {}: the row cannot be read: {}", hex(&key), error.message);
                    self.expect(false, || text);
                }
            }
        }
        Ok(rows)
    }

    fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        self.expect_or(holds, what, Vec::new);
    }

    /// As `expect`, with what mends it.
    fn expect_or(&mut self, holds: bool, what: impl FnOnce() -> String, fixes: impl FnOnce() -> Vec<Fix>) {
        if holds {
            return;
        }
        match self.wrong.len() < PROBLEMS_MAX {
            true => self.wrong.push(Problem { text: what(), fixes: fixes() }),
            false => self.more += 1,
        }
    }

    /// The highest number that a session has reserved.
    fn reserved(&mut self) -> Result<u64, KvError> {
        let ends = self.all(CLUSTER, |key, value| match key.starts_with(keys::RESERVED) {
            true => Ok(Reserved::decode(value)?.0.into_iter().map(|(_, end)| end.saturating_sub(1)).max()),
            false => Ok(None),
        })?;
        Ok(ends.into_iter().flatten().max().unwrap_or(0))
    }

    /// All orphan rows, and whether their session is open (or is nobody asked yet).
    fn held_orphans(&mut self) -> Result<Vec<(SessionId, u64, bool)>, KvError> {
        let open: BTreeSet<_> = self
            .all(SESSION, |key, value| Ok((keys::first_session(key), SessionRow::decode(value)?.ended)))?
            .into_iter()
            .filter_map(|(session, ended)| session.filter(|_| !ended))
            .collect();
        self.found.sessions = len_u64(open.len());
        for session in self.all(ATTEND, |key, _| Ok(keys::first_session(key).unwrap_or(UNASKED)))? {
            let fix = || vec![Fix::NotAttending { session }];
            self.expect_or(open.contains(&session), || format!("{session} takes leases, but is not open"), fix);
        }
        let rows = self.all(ORPHAN, |key, _| Ok((keys::first_session(key).unwrap_or(SessionId(0)), last(key))))?;
        let rows = rows
            .into_iter()
            .map(|(session, ino)| (session, ino, session == UNASKED || open.contains(&session)))
            .collect::<Vec<_>>();
        self.open = open;
        self.held = rows.iter().filter(|(_, _, is_open)| *is_open).map(|(_, ino, _)| *ino).collect();
        Ok(rows)
    }

    /// Exactly the inodes without a name are orphans, of open sessions or of nobody asked yet.
    fn orphans(&mut self, rows: &[(SessionId, u64, bool)]) {
        let is_nameless = |ino: &u64, inode: &Inode| inode.kind != FileKind::Dir && !self.named.contains(ino);
        let nameless: BTreeSet<u64> =
            self.inodes.iter().filter(|(ino, inode)| is_nameless(ino, inode)).map(|(ino, _)| *ino).collect();
        let mut found = BTreeSet::new();
        for (session, ino, is_open) in rows {
            let id = InodeId(*ino);
            let drop_row = || Fix::NoOrphan { session: *session, ino: id };
            let was_nameless = nameless.contains(ino);
            let is_held = self.held.contains(ino); // by another session: it stays without a name for that one
            let found_again = || if is_held { vec![drop_row()] } else { vec![drop_row(), Fix::Nameless { ino: id }] };
            found.insert(*ino);
            self.expect_or(
                *is_open,
                || format!("i{ino}: orphan of a session not open"),
                || if was_nameless { found_again() } else { Vec::new() },
            );
            self.expect_or(was_nameless, || format!("i{ino}: an orphan with names, or not there"), || vec![drop_row()]);
        }
        for ino in nameless.difference(&found).copied() {
            let counts_none = self.inodes.get(&ino).is_some_and(|inode| inode.nlink == 0); // else its links were noticed
            let fixes = || vec![Fix::Nameless { ino: InodeId(ino) }];
            self.expect_or(!counts_none, || format!("i{ino}: has no name and is nobody's orphan"), fixes);
        }
    }

    /// The orphans by inode are the orphans by session.
    fn holders(&mut self, rows: &[(SessionId, u64, bool)]) -> Result<(), KvError> {
        let mut by_session: BTreeSet<_> = rows.iter().map(|(session, ino, _)| (*session, *ino)).collect();
        let by_inode = self.all(HOLDER, |key, _| Ok((keys::last_session(key).unwrap_or(UNASKED), first(key))))?;
        for twin in by_inode {
            let (session, ino) = (twin.0, InodeId(twin.1));
            let there = by_session.remove(&twin);
            self.expect_or(
                there,
                || format!("{ino}: held by {session}, but no orphan"),
                || vec![Fix::Holder { session, ino }],
            );
        }
        for (session, ino) in by_session {
            let fix = || vec![Fix::Holder { session, ino: InodeId(ino) }];
            self.expect_or(false, || format!("i{ino}: an orphan of {session} without a holder row"), fix);
        }
        Ok(())
    }

    /// Locks do not contradict each other, who waits has somebody in the way, sessions with locks are open, and both families
    /// agree.
    fn locks(&mut self) -> Result<(), KvError> {
        let mut owners: BTreeSet<_> = self.all(LOCKED, |key, _| Ok(key.to_vec()))?.into_iter().collect();
        let mut seen = BTreeSet::new();
        for (ino, row) in self.all(LOCK, |key, value| Ok((InodeId(first(key)), LockRow::decode(value)?)))? {
            self.expect(lock::is_sound(&row), || format!("{ino}: impossible locks {row:?}"));
            let fixes = || vec![Fix::Locks { ino }];
            let there = self.inodes.contains_key(&ino.0);
            self.expect_or(there, || format!("{ino}: locks of what is not there"), fixes);
            for holder in lock::all(&row) {
                let (key, session) = (keys::locked(holder.session, holder.lock.owner, ino), holder.session);
                let known = owners.remove(&key) || seen.contains(&key);
                let is_open = self.open.contains(&session);
                self.expect_or(is_open, || format!("{ino}: a lock of {session}, which is not open"), fixes);
                self.expect_or(known, || format!("{ino}: a lock that its owner {session} is not known to have"), fixes);
                seen.insert(key);
            }
        }
        for key in owners {
            let ino = InodeId(keys::last_u64(&key).unwrap_or(0));
            let fixes = || vec![Fix::NoLockOwner { key }];
            self.expect_or(false, || format!("{ino}: the owner of a lock that is not there"), fixes);
        }
        Ok(())
    }

    /// Each buried entry is found by its keys, the others are orphans', and nothing buried has an inode row.
    fn trash(&mut self, orphans: &[(SessionId, u64, bool)]) -> Result<(), KvError> {
        let open: BTreeSet<u64> = orphans.iter().map(|(_, ino, _)| *ino).collect();
        let rows = self.all(TRASH, |key, value| {
            let row = key.starts_with(&keys::trash_entries()).then(|| TrashRow::decode(value)).transpose()?;
            let inode = row.as_ref().map(TrashRow::inode).transpose()?.flatten();
            Ok((key.to_vec(), ino_of(key)?, row, inode))
        })?;
        let is_index = |(key, _, row, _): &(Vec<u8>, _, Option<TrashRow>, _)| row.is_none().then(|| key.clone());
        let mut index: BTreeSet<Vec<u8>> = rows.iter().filter_map(is_index).collect();
        for (_, ino, row, inode) in rows {
            let Some(row) = row else { continue };
            let Some(inode) = inode else {
                let fix = || vec![Fix::NoTrashNote { ino }];
                self.expect_or(open.contains(&ino.0), || format!("{ino}: noted as open, but no orphan"), fix);
                continue;
            };
            for key in trash::index_keys(ino, &row) {
                let there = index.remove(&key);
                let text = || format!("{ino}: in the trash, but not found there");
                self.expect_or(there, text, || vec![Fix::TrashKey { key: key.clone() }]);
            }
            let twice = self.inodes.contains_key(&ino.0);
            let text = || format!("{ino}: there, and in the trash");
            self.expect_or(!twice, text, || vec![Fix::NotBuried { ino }]);
            if !twice {
                self.buried.insert(ino.0);
                self.inodes.insert(ino.0, inode);
            }
        }
        for key in index {
            let fixes = vec![Fix::TrashKey { key }];
            self.expect_or(false, || "the trash has a key of no entry".into(), || fixes);
        }
        Ok(())
    }

    fn xattrs(&mut self) -> Result<(), KvError> {
        let mut names: BTreeMap<u64, u32> = BTreeMap::new();
        for (ino, len) in self.all(XATTR, |key, _| Ok((first(key), len_u32(key.len().saturating_sub(8) + 1))))? {
            *names.entry(ino).or_default() += len;
        }
        for (ino, inode) in self.inodes.clone() {
            let have = names.remove(&ino).unwrap_or(0);
            let delta = change(inode.xattr_names.into(), have.into());
            self.expect_or(
                inode.xattr_names == have,
                || format!("i{ino}: {} bytes of names, has {have}", inode.xattr_names),
                || vec![Fix::XattrNames { ino: InodeId(ino), delta }],
            );
        }
        self.expect(names.is_empty(), || format!("attributes without an inode: {:?}", names.keys()));
        Ok(())
    }

    fn totals(&mut self) -> Result<(), KvError> {
        let counted = counters(self.read)?;
        self.found.inodes = len_u64(self.inodes.len() - self.buried.len());
        let (entries, bytes) = trash::counts(self.read)?;
        let (have, have_bytes) = (len_u64(self.buried.len()), self.buried_bytes);
        self.expect_or(
            (entries, bytes) == (have, have_bytes),
            || format!("the trash counts {entries} entries of {bytes} bytes, it has {have} of {have_bytes}"),
            || vec![Fix::TrashCounts { entries: change(entries, have), bytes: change(bytes, have_bytes) }],
        );
        let highest = self.inodes.last_key_value().map_or(0, |(ino, _)| *ino).max(self.highest).max(self.reserved()?);
        self.expect_or(
            highest < counted.next_ino,
            || format!("number {highest} is in use, the next is {}", counted.next_ino),
            || if highest < INO_SANE { vec![Fix::NextIno { at_least: highest + 1 }] } else { Vec::new() },
        );
        for (counter, have) in [
            (Counter::Inodes, self.found.inodes),
            (Counter::LogicalBytes, self.found.logical_bytes),
            (Counter::Chunks, self.found.chunks),
            (Counter::ChunkBytes, self.found.chunk_bytes),
            (Counter::Degraded, self.found.degraded),
            (Counter::Sessions, self.found.sessions),
        ] {
            let counts = *counter.of(&mut counted.clone());
            self.expect_or(
                counts == have,
                || format!("the cluster counts {counts} {counter}, the rows add up to {have}"),
                || vec![Fix::Count { counter, delta: change(counts, have) }],
            );
        }
        let root = self.inodes.get(&InodeId::ROOT.0).map(|root| root.kind);
        self.expect(root == Some(FileKind::Dir), || "no root directory".into());
        Ok(())
    }
}

fn hex(key: &Bytes) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn id_of(key: &Bytes) -> ChunkId {
    ChunkId(key.last_chunk::<32>().copied().unwrap_or_default())
}
