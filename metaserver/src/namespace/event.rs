//! Who did what, when: a list of the newest [`EVENTS_MAX`] orders of administrators, and of what the cluster began by
//! itself, in the state machine.

use super::command::{Done, Fail};
use super::rows::Call;
use crate::store::keys::{self, EVENT};
use crate::store::values::{EventRow, Value};
use common::kv::{KvError, KvRead};
use common::proto::admin::Event;
use std::ops::Bound;

/// Events that are kept.
pub const EVENTS_MAX: u64 = 10_000;

/// Adds one; the oldest goes.
pub(super) fn record(call: &mut Call<'_, '_>, by: &str, what: &str) -> Result<Done, Fail> {
    let number = newest(call.txn)? + 1;
    let row = EventRow { index: call.index, at: call.at, by: by.to_owned(), what: what.to_owned() };
    call.txn.put(EVENT, keys::event(number), row.encode());
    if number > EVENTS_MAX {
        call.txn.delete(EVENT, keys::event(number - EVENTS_MAX));
    }
    Ok(Done::Noted)
}

fn newest(read: &dyn KvRead) -> Result<u64, KvError> {
    let last = read.scan(EVENT, (Bound::Unbounded, Bound::Unbounded), true).next().transpose()?;
    Ok(last.and_then(|(key, _)| keys::first_u64(&key)).unwrap_or(0))
}

/// The newest events, newest first: at most `limit`.
///
/// # Errors
/// The store failed.
pub fn events(read: &dyn KvRead, limit: usize) -> Result<Vec<Event>, KvError> {
    let rows = read.scan(EVENT, (Bound::Unbounded, Bound::Unbounded), true).take(limit);
    rows.map(|found| {
        let (key, value) = found?;
        let EventRow { index, at, by, what } = EventRow::decode(&value)?;
        Ok(Event { number: keys::first_u64(&key).unwrap_or(0), index, at, by, what })
    })
    .collect()
}
