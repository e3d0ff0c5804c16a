//! A file is to have another number of copies: its references count for another replica target. Few of them change with
//! the command, many in steps, which the leader proposes as long as there are any left.
//!
//! Until they are through the file has two targets, and an extent counts for the one or the other by where it starts
//! ([`Recount`]): so edits, cuts, clones and the removal of the file go on meanwhile, and after every step the rows of
//! chunks are what the extents add up to. (What is written behind that offset has the new number of copies and counts
//! for the old one for a moment: a copy too many may go and be made again.)

use super::command::{Fail, refuse};
use super::extents::{refer, starting_in};
use super::rows::{Call, row};
use crate::store::keys::{self, RECOUNT};
use crate::store::values::{Data, Recount, Value};
use common::fault::Kind;
use common::id::ChunkId;
use common::kv::{KvError, KvRead};
use std::collections::BTreeMap;
use std::ops::Bound;

/// Extents that are counted anew with the command that wants it; a file with more is counted in steps.
const AT_ONCE: u64 = if cfg!(test) { 8 } else { 4096 };

/// The references of a file with so many extents count for the target `to` from now on, or soon.
///
/// # Errors
/// `Busy` while they are being counted anew already: the caller tries again.
pub(super) fn begin(call: &mut Call<'_, '_>, data: u64, extents: u64, from: u8, to: u8) -> Result<(), Fail> {
    if from == to {
        return Ok(());
    }
    if let Some(Recount { to, .. }) = under_way(call.txn, data)? {
        return Err(refuse(Kind::Busy, format!("its chunks are being counted for {to} copies: that ends by itself")));
    }
    let recount = Recount { from, to, at: 0 };
    if extents > AT_ONCE {
        call.txn.put(RECOUNT, keys::recount(data), recount.encode());
        return Ok(());
    }
    some(call, data, recount, usize::MAX).map(|_| ())
}

/// What is under way of the extents under this data id.
pub(super) fn under_way(read: &dyn KvRead, data: u64) -> Result<Option<Recount>, KvError> {
    row(read, RECOUNT, &keys::recount(data))
}

/// Goes on with the first file: how many of up to `limit` steps (at least 1) that took. `None`: there is nothing to do.
pub(super) fn step(call: &mut Call<'_, '_>, limit: usize) -> Result<Option<usize>, Fail> {
    let Some(data) = first(call.txn)? else { return Ok(None) };
    let recount = under_way(call.txn, data)?.expect("just found");
    let (counted, at) = some(call, data, recount, limit)?;
    match counted < limit {
        true => call.txn.delete(RECOUNT, keys::recount(data)),
        false => call.txn.put(RECOUNT, keys::recount(data), Recount { at, ..recount }.encode()),
    }
    Ok(Some(counted.max(1)))
}

/// True if there is something left to do.
pub(super) fn is_left(read: &dyn KvRead) -> Result<bool, KvError> {
    Ok(first(read)?.is_some())
}

fn first(read: &dyn KvRead) -> Result<Option<u64>, KvError> {
    let found = read.scan(RECOUNT, (Bound::Unbounded, Bound::Unbounded), false).next().transpose()?;
    Ok(found.and_then(|(key, _)| keys::first_u64(&key)))
}

/// Counts up to `limit` extents anew: how many there were, and where the next one can start. A chunk keeps its row.
fn some(call: &mut Call<'_, '_>, data: u64, recount: Recount, limit: usize) -> Result<(usize, u64), Fail> {
    let rows = starting_in(call.txn, data, recount.at, u64::MAX, limit)?;
    let behind = rows.last().map_or(recount.at, |(at, _)| at + 1);
    let count = rows.len();
    let mut references: BTreeMap<ChunkId, (u32, i64)> = BTreeMap::new();
    for (_, row) in rows {
        if let Data::Chunk { id, chunk_len, .. } = row.data {
            references.entry(id).or_insert((chunk_len, 0)).1 += 1;
        }
    }
    for (id, (len, count)) in references {
        refer(call, &id, len, [Some((recount.to, count)), Some((recount.from, -count))])?;
    }
    Ok((count, behind))
}
