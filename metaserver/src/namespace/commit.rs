//! Commit: what a file holds changes, with the references, in one step. The end of every write.
//!
//! Access is not checked against the mode bits here: a descriptor stays valid over a later `chmod`. While root squash is on
//! the leader has done it (`crate::rights`); without it a caller may call itself root anyway.
//!
//! Receipts are *verified* by the leader before it proposes ([`validate`] and `common::auth`); here they are counted.

use super::access;
use super::command::{Fail, refuse};
use super::extents::{FileMap, forget_degraded, most_wanted};
use super::rows::{Call, inode, row};
use crate::store::keys::{self, CHUNK, DEGRADED, HORIZON, MOVED};
use crate::store::values::{Body, ChunkRow, Config, Data, Degraded, ExtentRow, Horizon, Inode, Moved, Value};
use common::fault::{Fault, Kind};
use common::id::{ChunkId, LayoutVersion, ServerId};
use common::proto::meta::{Commit, Edit, FileKind, Outcome, Source, StoredChunk};
use common::rules::{Rule, is_broken};
use common::units::{
    CHUNK_SIZE_MAX, COMMIT_EDITS_MAX, COMMIT_INLINE_MAX, FILE_SIZE_MAX, INLINE_LEN_MAX, REPLICAS_MAX, len_u64,
};
use std::collections::{BTreeMap, BTreeSet};

/// Receipts for one chunk, at most.
const RECEIPTS_MAX: usize = 16;
const _: () = assert!(RECEIPTS_MAX > 9 && REPLICAS_MAX == 9, "all replicas of a chunk fit");

/// Nanoseconds in a second.
pub(super) const NANOS: u32 = 1_000_000_000;

/// Checks what needs no state: sizes, ranges, inline ids, that edits and chunks name each other. The leader calls it
/// before it proposes, `apply` once more.
///
/// # Errors
/// `Invalid`; `TooBig` where a file would end beyond its limit.
pub fn validate(commit: &Commit) -> Result<(), Fault> {
    let invalid = |message: String| Fault::new(Kind::Invalid, message);
    if commit.edits.len() > COMMIT_EDITS_MAX || commit.chunks.len() > COMMIT_EDITS_MAX {
        return Err(invalid(format!("more than {COMMIT_EDITS_MAX} edits or chunks in a commit")));
    }
    if commit.mtime.is_some_and(|time| time.nanos >= NANOS) {
        return Err(invalid("nanoseconds above a second".into()));
    }
    let mut lens: BTreeMap<ChunkId, (u32, bool)> = BTreeMap::new();
    for chunk in &commit.chunks {
        validate_chunk(chunk)?;
        if lens.insert(chunk.id, (chunk.len, false)).is_some() {
            return Err(invalid(format!("chunk {} is there twice", chunk.id)));
        }
    }
    let mut inline = 0;
    for edit in &commit.edits {
        inline += validate_edit(edit, &mut lens)?;
    }
    if inline > COMMIT_INLINE_MAX {
        return Err(invalid(format!("{inline} inline bytes in a commit, at most {COMMIT_INLINE_MAX}")));
    }
    match lens.iter().find(|(_, (_, used))| !used) {
        Some((id, _)) => Err(invalid(format!("no edit names chunk {id}"))),
        None => Ok(()),
    }
}

fn validate_chunk(chunk: &StoredChunk) -> Result<(), Fault> {
    let servers: BTreeSet<ServerId> = chunk.receipts.iter().map(|receipt| receipt.server).collect();
    let fault = |what: &str| Err(Fault::new(Kind::Invalid, format!("chunk {}: {what}", chunk.id)));
    match chunk {
        _ if chunk.len == 0 || chunk.len > CHUNK_SIZE_MAX => fault("impossible length"),
        _ if chunk.receipts.len() > RECEIPTS_MAX => fault("too many receipts"),
        _ if servers.len() < chunk.receipts.len() => fault("two receipts of one server"),
        _ => Ok(()),
    }
}

/// Marks the chunk an edit names; the inline bytes it brings.
fn validate_edit(edit: &Edit, lens: &mut BTreeMap<ChunkId, (u32, bool)>) -> Result<usize, Fault> {
    let invalid =
        |what: &str| Err(Fault::new(Kind::Invalid, format!("edit of {} bytes at {}: {what}", edit.len, edit.at)));
    if edit.len == 0 {
        return invalid("is empty");
    }
    if edit.at.checked_add(edit.len).is_none_or(|end| end > FILE_SIZE_MAX) {
        return Err(Fault::new(Kind::TooBig, "beyond the largest file"));
    }
    match &edit.data {
        Source::Hole => Ok(0),
        Source::Chunk { id, offset } => match lens.get_mut(id) {
            None => invalid("its chunk has no receipts"),
            Some((len, _)) if u64::from(*offset) + edit.len > u64::from(*len) => invalid("beyond its chunk"),
            Some((_, used)) => {
                *used = true;
                Ok(0)
            }
        },
        Source::Inline { id, offset, bytes } => {
            let fits = *offset == 0 && len_u64(bytes.len()) == edit.len && bytes.len() <= INLINE_LEN_MAX;
            match fits {
                false => invalid("inline bytes of another length"),
                true if ChunkId::of(bytes) != *id => invalid("inline bytes do not match their id"),
                true => Ok(bytes.len()),
            }
        }
    }
}

/// Replaces ranges of a file.
///
/// # Errors
/// `Stale` if `base` is not the version; `TouchAgain`, `PutAgain` as in DESIGN 7; `Gone`, `IsDir`, `Invalid`, `TooBig`.
pub(super) fn commit(call: &mut Call<'_, '_>, commit: &Commit) -> Result<Outcome, Fail> {
    validate(commit)?;
    let mut file = inode(call.txn, commit.ino)?;
    let Body::File { size, version, .. } = file.body else {
        return Err(not_a_file(&file));
    };
    if commit.base.is_some_and(|base| base != version) {
        return Err(refuse(Kind::Stale, format!("{} changed: {version} now", commit.ino)));
    }
    let config = if commit.chunks.is_empty() { None } else { Some(call.config()?) };
    if let Some(config) = &config {
        check_attempt(call, commit, config)?;
        for chunk in &commit.chunks {
            check_chunk(call, commit, chunk, config, file.replicas)?;
        }
    }
    let offset = if commit.append { size } else { 0 };
    let new_size = final_size(commit, size, offset)?;
    replace(call, commit, &mut file, offset, new_size)?;
    if let Some(config) = &config {
        for chunk in &commit.chunks {
            note_copies(call, chunk, config, file.replicas)?;
        }
    }
    if commit.base.is_none() {
        file.mtime = commit.mtime.unwrap_or(call.at);
        file.ctime = call.at;
        file.mode = access::without_set_id(&file, call.cred, false);
    }
    call.put_inode(commit.ino, &file);
    Ok(Outcome::Committed { attr: file.attr(commit.ino), offset })
}

/// Why this is no place for data.
pub(super) fn not_a_file(inode: &Inode) -> Fail {
    match inode.kind {
        FileKind::Dir => refuse(Kind::IsDir, "is a directory"),
        _ => refuse(Kind::Invalid, "is no regular file"),
    }
}

/// Session, epoch, witness and layout of the attempt, as far as they are the same for all chunks.
fn check_attempt(call: &Call<'_, '_>, commit: &Commit, config: &Config) -> Result<(), Fail> {
    if commit.attempt.session != call.session {
        return Err(refuse(Kind::Invalid, "the chunks were put by another session"));
    }
    if commit.attempt.epoch != config.epoch && !is_broken(Rule::OldEpochsAreVoid) {
        return Err(refuse(Kind::PutAgain, format!("epoch {} is over", commit.attempt.epoch)));
    }
    if commit.attempt.witness > call.index && !is_broken(Rule::WitnessIsApplied) {
        return Err(refuse(Kind::Invalid, format!("witness {} is in the future", commit.attempt.witness)));
    }
    if commit.layout > call.counters.layout {
        return Err(refuse(Kind::Invalid, format!("there is no layout {} yet", commit.layout)));
    }
    Ok(())
}

/// May this chunk be referred to? See DESIGN 7: every new reference, also to a chunk that has some.
fn check_chunk(
    call: &Call<'_, '_>,
    commit: &Commit,
    chunk: &StoredChunk,
    config: &Config,
    replicas: u8,
) -> Result<(), Fail> {
    let horizon: Option<Horizon> = row(call.txn, HORIZON, &keys::horizon(chunk.id.bucket()))?;
    let below = horizon.is_some_and(|horizon| commit.attempt.witness < horizon.0);
    if below && !is_broken(Rule::CommitChecksTheHorizon) {
        return Err(refuse(Kind::TouchAgain, format!("chunk {} may have been deleted meanwhile", chunk.id)));
    }
    if commit.layout < call.counters.last_move {
        let moved: Option<Moved> = row(call.txn, MOVED, &keys::moved(chunk.id.pg(config.pg_count)))?;
        if commit.layout < moved.map_or(LayoutVersion(0), |moved| moved.0) {
            return Err(refuse(Kind::PutAgain, format!("chunk {} has moved to other servers", chunk.id)));
        }
    }
    let needed = usize::from(config.min_replicas.min(replicas));
    if chunk.receipts.len() < needed && !is_broken(Rule::CommitHasItsReceipts) {
        let have = chunk.receipts.len();
        return Err(refuse(Kind::PutAgain, format!("chunk {} has {have} of {needed} receipts", chunk.id)));
    }
    let there: Option<ChunkRow> = row(call.txn, CHUNK, &keys::chunk(&chunk.id))?;
    if there.is_some_and(|there| there.len != chunk.len) {
        return Err(refuse(Kind::Invalid, format!("chunk {} has another length", chunk.id)));
    }
    Ok(())
}

fn final_size(commit: &Commit, size: u64, offset: u64) -> Result<u64, Fail> {
    let too_big = || refuse(Kind::TooBig, "beyond the largest file");
    let grown = offset.checked_add(commit.grow).filter(|grown| *grown <= FILE_SIZE_MAX).ok_or_else(too_big)?;
    let new_size = size.max(grown);
    for edit in &commit.edits {
        let end = offset.checked_add(edit.at + edit.len).filter(|end| *end <= FILE_SIZE_MAX).ok_or_else(too_big)?;
        if edit.data != Source::Hole && end > new_size {
            return Err(refuse(Kind::Invalid, format!("an edit ends at {end}, the file at {new_size}")));
        }
    }
    Ok(new_size)
}

/// Carries out the edits and updates the file's body (and the counters that follow).
fn replace(call: &mut Call<'_, '_>, commit: &Commit, file: &mut Inode, offset: u64, new_size: u64) -> Result<(), Fail> {
    let replicas = file.replicas;
    let Body::File { size, allocated, extents, version, data } = &mut file.body else {
        unreachable!("the caller has checked that it is a file")
    };
    let lens: BTreeMap<ChunkId, u32> = commit.chunks.iter().map(|chunk| (chunk.id, chunk.len)).collect();
    let mut map = FileMap::open(call.txn, *data, replicas)?;
    let mut end_of_data = *size; // no extent reaches beyond: what is appended needs no look at what is there
    for edit in &commit.edits {
        let (from, to) = (offset + edit.at, offset + edit.at + edit.len);
        let left = if from < end_of_data { map.punch(call.txn, from, to)? } else { None };
        if let Some(data) = stored(&edit.data, &lens) {
            map.insert(call.txn, from, ExtentRow { len: edit.len, data }, left);
            end_of_data = end_of_data.max(to);
        }
    }
    if !commit.edits.is_empty() || new_size != *size {
        version.0 += 1;
    }
    *size = new_size;
    map.settle_into(call, extents, allocated)
}

fn stored(source: &Source, lens: &BTreeMap<ChunkId, u32>) -> Option<Data> {
    match source {
        Source::Hole => None,
        Source::Chunk { id, offset } => Some(Data::Chunk { id: *id, offset: *offset, chunk_len: lens[id] }),
        Source::Inline { id, offset, bytes } => Some(Data::Inline { id: *id, offset: *offset, bytes: bytes.clone() }),
    }
}

/// Remembers who holds a chunk that has fewer copies than its file wants; forgets it when all are there.
fn note_copies(call: &mut Call<'_, '_>, chunk: &StoredChunk, config: &Config, replicas: u8) -> Result<(), Fail> {
    let full = chunk.receipts.len() >= usize::from(replicas);
    if full && call.counters.degraded == 0 {
        return Ok(());
    }
    let Some(there) = row::<ChunkRow>(call.txn, CHUNK, &keys::chunk(&chunk.id))? else {
        return Ok(()); // a later edit of the same commit has overwritten it
    };
    let target = most_wanted(&there);
    if chunk.receipts.len() >= usize::from(target) {
        return Ok(forget_degraded(call, &chunk.id, config.pg_count)?);
    }
    if full {
        return Ok(()); // enough for this file; for the one that wants more there is a row if it is needed
    }
    let key = keys::degraded(chunk.id.pg(config.pg_count), &chunk.id);
    let known: Option<Degraded> = row(call.txn, DEGRADED, &key)?;
    call.counters.degraded += u64::from(known.is_none());
    let mut servers: BTreeSet<ServerId> = known.unwrap_or_default().servers.into_iter().collect();
    servers.extend(chunk.receipts.iter().map(|receipt| receipt.server));
    call.txn.put(DEGRADED, key, Degraded { servers: servers.into_iter().collect() }.encode());
    Ok(())
}
