//! Clone: a range of a file comes to hold what a range of another one holds (or of itself), without moving a byte.
//!
//! The references are taken here, from the rows of the source, and need no witness: a chunk that is referred to at this
//! index was not condemned, and cannot be before it has lost its last reference.
//!
//! Access is not checked against the mode bits here, as in [`super::commit`].

use super::access;
use super::command::{Fail, refuse};
use super::commit::not_a_file;
use super::extents::{FileMap, Placed, overlapping, piece};
use super::rows::{Call, inode};
use crate::store::values::{Body, Inode};
use common::fault::Kind;
use common::proto::meta::{CloneRange, Outcome};
use common::units::FILE_SIZE_MAX;

/// Extents taken over by one command, at most: who asks for more gets fewer bytes, and asks again.
pub(super) const CLONE_EXTENTS_MAX: usize = if cfg!(test) { 8 } else { 4096 };

/// Clones as much of the range as lies within the source and one command.
///
/// # Errors
/// `Gone`, `IsDir`; `Invalid` for ranges that are empty or overlap in one file; `TooBig`; `Unsupported` if the target
/// wants more copies of its chunks than the source.
pub(super) fn clone_range(call: &mut Call<'_, '_>, range: &CloneRange) -> Result<Outcome, Fail> {
    let CloneRange { from, from_at, to, at, len } = *range;
    let source = inode(call.txn, from)?;
    let mut target = inode(call.txn, to)?;
    let (Body::File { size, data, .. }, Body::File { .. }) = (&source.body, &target.body) else {
        return Err(not_a_file(if matches!(source.body, Body::File { .. }) { &target } else { &source }));
    };
    let too_big = || refuse(Kind::TooBig, "beyond the largest file");
    let within = |at: u64| at.checked_add(len).filter(|end| *end <= FILE_SIZE_MAX).ok_or_else(too_big);
    let (from_end, end) = (within(from_at)?, within(at)?);
    if len == 0 || (from == to && from_at < end && at < from_end) {
        return Err(refuse(Kind::Invalid, "an empty range, or one that overlaps itself"));
    }
    if target.replicas > source.replicas {
        return Err(refuse(Kind::Unsupported, "the target wants more copies than the source has"));
    }
    let mut from_end = from_end.min(*size);
    if from_at >= from_end {
        return Ok(Outcome::Cloned { attr: target.attr(to), len: 0 });
    }
    let mut rows = overlapping(call.txn, *data, from_at, from_end, CLONE_EXTENTS_MAX + 1)?;
    if rows.len() > CLONE_EXTENTS_MAX {
        from_end = rows.pop().map_or(from_end, |(at, _)| at);
    }
    let len = from_end - from_at;
    let moved = rows.into_iter().map(|row| shifted(row, (from_at, from_end), at));
    take_over(call, &mut target, (at, at + len), moved)?;
    target.mtime = call.at;
    target.ctime = call.at;
    target.mode = access::without_set_id(&target, call.cred, false);
    call.put_inode(to, &target);
    Ok(Outcome::Cloned { attr: target.attr(to), len })
}

/// The part of an extent inside `[from, end)`, as if that range began at `at`.
fn shifted((start, row): Placed, (from, end): (u64, u64), at: u64) -> Placed {
    let (first, last) = (start.max(from), (start + row.len).min(end));
    (at + (first - from), piece(&row, first - start, last - first))
}

fn take_over(
    call: &mut Call<'_, '_>,
    file: &mut Inode,
    (at, end): (u64, u64),
    rows: impl Iterator<Item = Placed>,
) -> Result<(), Fail> {
    let replicas = file.replicas;
    let Body::File { size, allocated, extents, version, data } = &mut file.body else {
        unreachable!("the caller has checked that it is a file")
    };
    let mut map = FileMap::open(call.txn, *data, replicas)?;
    let mut left = if at < *size { map.punch(call.txn, at, end)? } else { None };
    for (at, row) in rows {
        map.insert(call.txn, at, row, left.take().filter(|(start, row)| start + row.len == at));
    }
    version.0 += 1;
    *size = (*size).max(end);
    map.settle_into(call, extents, allocated)
}
