//! What a client holds at this moment, for who looks after a mount: asks no server, waits for nothing but short locks.

use crate::client::Client;
use crate::inode::State;
use crate::stats::Stats;
use common::units::len_u64;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;

/// Files with unsaved data that are named.
const NAMED_MAX: usize = 16;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holds {
    /// The session with the metaservers.
    pub session: String,
    /// The metaservers it was told of.
    pub metaservers: Vec<String>,
    /// Files that are open, or closed with unsaved data.
    pub open_files: usize,
    /// Bytes that were written and are not committed.
    pub unsaved_bytes: u64,
    /// In how many files.
    pub unsaved_files: usize,
    /// Those with the most of it.
    pub unsaved: Vec<Unsaved>,
    /// Chunks in memory, in bytes.
    pub cached_bytes: u64,
    /// Inodes whose attributes may be answered from memory.
    pub leased_inodes: usize,
    /// Names in directories that are leased whole.
    pub leased_names: usize,
    /// How long all this is good without hearing from the metaservers, in milliseconds. 0: nothing is answered from memory.
    pub leases_good_ms: u64,
    /// What was counted since the mount was made.
    pub counters: Stats,
}

/// Unsaved data of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsaved {
    /// Inode number.
    pub inode: u64,
    /// In bytes.
    pub bytes: u64,
    /// Of these, bytes that are on their way to the servers.
    pub sending_bytes: u64,
    /// For how long the oldest of the others wait, in milliseconds.
    pub waiting_ms: Option<u64>,
    /// Attempts to save that failed, since the file was opened.
    pub failures: u64,
    /// Why the last one did.
    pub last_error: Option<String>,
}

impl Client {
    /// What is held now.
    pub fn holds(&self) -> Holds {
        let core = &self.core;
        let (files, now) = (core.files(), Instant::now());
        let mut unsaved: Vec<Unsaved> = files
            .iter()
            .filter_map(|inode| {
                let state = inode.lock();
                state.is_unsaved().then(|| unsaved(&state, now))
            })
            .collect();
        unsaved.sort_by_key(|file| std::cmp::Reverse(file.bytes));
        let (leased_inodes, leased_names, good) = core.leases.count(core.world.uptime());
        Holds {
            session: core.meta.session().id.to_string(),
            metaservers: core.config.metaservers.clone(),
            open_files: files.len(),
            unsaved_bytes: unsaved.iter().map(|file| file.bytes).sum(),
            unsaved_files: unsaved.len(),
            unsaved: unsaved.into_iter().take(NAMED_MAX).collect(),
            cached_bytes: core.cache.bytes(),
            leased_inodes,
            leased_names,
            leases_good_ms: millis(good),
            counters: self.stats(),
        }
    }
}

fn unsaved(state: &State, now: Instant) -> Unsaved {
    let sending_bytes = state.flights.iter().flat_map(|flight| &flight.pieces).map(|(_, b)| len_u64(b.len())).sum();
    Unsaved {
        inode: state.attr.ino.0,
        bytes: state.dirty.bytes() + sending_bytes,
        sending_bytes,
        waiting_ms: state.dirty_since.map(|since| millis(now.saturating_duration_since(since))),
        failures: state.errors,
        last_error: state.last_error.as_ref().map(ToString::to_string),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).expect("less than 500 million years")
}
