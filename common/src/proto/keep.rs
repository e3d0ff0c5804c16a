//! How the cluster keeps itself whole: what chunkservers ask of the metadata service about the chunks they hold or
//! should hold, what they report, and what an administrator sees of it (DESIGN, section 7).

use crate::id::{ChunkId, Epoch, LayoutVersion, LogIndex, ServerId};
use crate::proto::admin::FileRange;
use crate::proto::backup::Held;
use crate::proto::rebalance::{MoveOrders, MovesReport};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// The most chunks in one [`Expected`], and in the lists of [`KeepAsk`].
pub const KEEP_BATCH_MAX: u32 = 4096;

/// What a chunkserver asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeepAsk {
    /// Chunks that should be on this server. Answer: `Expected`. `Stale`: the layout is another one by now.
    Expected {
        /// Who asks.
        server: ServerId,
        /// The layout it goes by.
        layout: LayoutVersion,
        /// From this id on.
        from: ChunkId,
        /// At most this many, at most [`KEEP_BATCH_MAX`].
        limit: u32,
        /// Only those with fewer known copies than their target, and not known to be here.
        degraded: bool,
    },
    /// These degraded chunks are on this server now, durable and verified. Answer: `Noted`.
    Holds {
        /// Who says so.
        server: ServerId,
        /// In this epoch.
        epoch: Epoch,
        /// Which, at most [`KEEP_BATCH_MAX`].
        chunks: Vec<ChunkId>,
    },
    /// May these be deleted here? Answer: `Granted`.
    Condemn {
        /// Who asks.
        server: ServerId,
        /// In this epoch.
        epoch: Epoch,
        /// Which, each with the nonce of the standing ask, at most [`KEEP_BATCH_MAX`].
        asks: Vec<Nonced>,
    },
    /// How far this server is. Answer: `Orders`.
    Report {
        /// Who.
        server: ServerId,
        /// What.
        report: KeepReport,
    },
    /// How far this server is with groups that move. Answer: `Moves`.
    Moves(MovesReport),
}

/// A chunk and the random number of one ask or round about it.
pub type Nonced = (ChunkId, u64);

/// What it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeepAnswer {
    /// Every chunk in `[from, upto)` that should be there, as of `index`.
    Expected(Expected),
    /// `Holds`.
    Noted,
    /// `Condemn`: those that nothing refers to; the horizon of each was raised before this was answered.
    Granted {
        /// In the epoch of the ask.
        epoch: Epoch,
        /// As they were asked.
        grants: Vec<Nonced>,
        /// Those that are referred to, and how many copies they should have.
        kept: Vec<(ChunkId, u8)>,
    },
    /// `Report`.
    Orders(KeepOrders),
    /// `Moves`.
    Moves(MoveOrders),
}

/// See [`KeepAnswer::Expected`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// In id order.
    pub chunks: Vec<ExpectedChunk>,
    /// Everything before this id is told; `None`: everything.
    pub upto: Option<ChunkId>,
    /// The applied index it was read at.
    pub index: LogIndex,
}

/// A chunk that should be on a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpectedChunk {
    /// Its id.
    pub id: ChunkId,
    /// Its length in bytes.
    pub len: u32,
    /// It is known to have fewer copies than its target, and not known to be here: say `Holds` when it is.
    pub degraded: bool,
}

/// How far a server is with what it has to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepReport {
    /// Chunks that should be here and are not.
    pub missing: u64,
    /// Their bytes.
    pub missing_bytes: u64,
    /// Of those, chunks that no server gave when they were last asked for.
    pub unavailable: u64,
    /// Since when the oldest of them waits, in seconds.
    pub oldest_s: u64,
    /// Bytes re-made here in the last ten seconds, per second.
    pub rate: u64,
    /// Chunks re-made here since the server's start.
    pub remade: u64,
    /// Their bytes.
    pub remade_bytes: u64,
    /// Chunks that are here and should not be, unreferenced or another server's, and were put a while ago.
    pub extra: u64,
    /// Chunks deleted since the server's start.
    pub deleted: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// The layout that the last whole comparison was made with.
    pub compared: LayoutVersion,
    /// The number of the last [`KeepOrders::gc`] that is carried out.
    pub gc_done: u64,
    /// Scrub: chunks verified in this round, in percent of all.
    pub scrub_percent: u8,
    /// Scrub: whole rounds since the server's start.
    pub scrub_rounds: u64,
    /// Scrub: damaged copies found since the server's start.
    pub scrub_damaged: u64,
    /// Whole comparisons made since the server's start.
    pub passes: u64,
}

/// What a server should do, or stop doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepOrders {
    /// Chunks of the cluster that are known to have fewer copies than their target: look for yours.
    pub degraded: u64,
    /// Rises with each order to collect garbage now.
    pub gc: u64,
    /// Rises with each order to scrub everything now.
    pub scrub: u64,
    /// Settings of the cluster.
    pub settings: KeepSettings,
}

/// Settings of repair, garbage collection and scrub, for the whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepSettings {
    /// Bytes per second that one server re-makes while clients use it; four times this of what has one copy left.
    pub repair_busy_rate: u64,
    /// Bytes per second that one server re-makes while no client does.
    pub repair_idle_rate: u64,
    /// An unreferenced chunk stays for so long after it was put, in seconds: its commit may be on the way.
    pub grace_s: u64,
    /// Every stored byte is verified within this many seconds.
    pub scrub_period_s: u64,
    /// Bytes per second that one server verifies, at most.
    pub scrub_rate: u64,
    /// No scrub.
    pub scrub_paused: bool,
    /// No deletion at all.
    pub delete_paused: bool,
}

impl Default for KeepSettings {
    fn default() -> KeepSettings {
        KeepSettings {
            repair_busy_rate: 16 << 20,
            repair_idle_rate: 2 << 30,
            grace_s: 60,
            scrub_period_s: 14 * 24 * 3600,
            scrub_rate: 64 << 20,
            scrub_paused: false,
            delete_paused: false,
        }
    }
}

/// What an administrator asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeepAdmin {
    /// How far all servers are. Answer: `Status`.
    Status,
    /// Collect garbage now. Answer: `Ordered`.
    Gc,
    /// Verify everything now. Answer: `Ordered`.
    Scrub,
    /// Change settings: fields that are `Some`. Answer: `Set`.
    Set(KeepChange),
    /// Why is this chunk there? Answer: `Explained`.
    Explain {
        /// The first bytes of its id, 6 at least.
        prefix: Vec<u8>,
    },
    /// Is deletion held since a restore? Answer: `Held`.
    Held,
}

/// Changes of [`KeepSettings`]; `None` leaves a field as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepChange {
    /// See there.
    pub repair_busy_rate: Option<u64>,
    /// See there.
    pub repair_idle_rate: Option<u64>,
    /// See there.
    pub grace_s: Option<u64>,
    /// See there.
    pub scrub_period_s: Option<u64>,
    /// See there.
    pub scrub_rate: Option<u64>,
    /// See there.
    pub scrub_paused: Option<bool>,
    /// See there.
    pub delete_paused: Option<bool>,
}

impl KeepSettings {
    /// These with the changes made.
    pub fn with(mut self, change: &KeepChange) -> KeepSettings {
        fn set<T: Copy>(field: &mut T, new: Option<T>) {
            if let Some(new) = new {
                *field = new;
            }
        }
        set(&mut self.repair_busy_rate, change.repair_busy_rate);
        set(&mut self.repair_idle_rate, change.repair_idle_rate);
        set(&mut self.grace_s, change.grace_s);
        set(&mut self.scrub_period_s, change.scrub_period_s);
        set(&mut self.scrub_rate, change.scrub_rate);
        set(&mut self.scrub_paused, change.scrub_paused);
        set(&mut self.delete_paused, change.delete_paused);
        self
    }
}

/// Rates that make sense, in bytes per second: below, repair never ends; above, there is no such disk.
pub const RATES: RangeInclusive<u64> = 1 << 20..=1 << 40;
/// The longest grace, in seconds: a month.
pub const GRACE_S_MAX: u64 = 31 * 24 * 3600;
/// Periods of scrub that make sense, in seconds: a minute to ten years.
pub const SCRUB_PERIODS_S: RangeInclusive<u64> = 60..=3650 * 24 * 3600;

impl KeepChange {
    fn numbers(&self) -> [(&'static str, Option<u64>, RangeInclusive<u64>); 5] {
        [
            ("repair_busy_rate", self.repair_busy_rate, RATES),
            ("repair_idle_rate", self.repair_idle_rate, RATES),
            ("grace_s", self.grace_s, 0..=GRACE_S_MAX),
            ("scrub_period_s", self.scrub_period_s, SCRUB_PERIODS_S),
            ("scrub_rate", self.scrub_rate, RATES),
        ]
    }

    /// Refuses what makes no sense, with one line for a person.
    ///
    /// # Errors
    /// Names the setting and its range.
    pub fn check(&self) -> Result<(), String> {
        let wrong = self.numbers().into_iter().find(|(_, new, range)| new.is_some_and(|new| !range.contains(&new)));
        let Some((name, new, range)) = wrong else { return Ok(()) };
        let (from, to) = range.into_inner();
        Err(format!("{name} = {}: must be from {from} to {to}", new.unwrap_or_default()))
    }

    /// What changes, in words: `grace_s = 5`, with rates in bytes per second.
    pub fn words(&self) -> Vec<String> {
        let numbers = self.numbers().into_iter().filter_map(|(name, new, _)| Some(format!("{name} = {}", new?)));
        let switches = [("scrub_paused", self.scrub_paused), ("delete_paused", self.delete_paused)];
        numbers.chain(switches.into_iter().filter_map(|(name, new)| Some(format!("{name} = {}", new?)))).collect()
    }
}

/// What they are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeepAdminReply {
    /// `Status`.
    Status(KeepStatus),
    /// `Gc`, `Scrub`: the number of the order; see [`KeepReport::gc_done`].
    Ordered(u64),
    /// `Set`: the settings now.
    Set(KeepSettings),
    /// `Explain`: every referenced chunk whose id begins so, at most 16.
    Explained(Vec<Explained>),
    /// `Held`: until a check of everything has found nothing wrong. `None`: it is not held.
    Held(Option<Held>),
}

/// The state of repair and the like, as the leader has heard it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepStatus {
    /// The layout now.
    pub layout: LayoutVersion,
    /// Chunks known to have fewer copies than their target.
    pub degraded: u64,
    /// Servers that were down for so long that others took over what they held.
    pub out: Vec<ServerId>,
    /// For each server that reported to this leader: how many milliseconds ago, and what.
    pub reports: Vec<(ServerId, u64, KeepReport)>,
    /// The settings.
    pub settings: KeepSettings,
}

/// Why a chunk is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// Which.
    pub id: ChunkId,
    /// Its length in bytes.
    pub len: u32,
    /// Extents that refer to it, for each replica target.
    pub refs: Vec<(u8, u64)>,
    /// Where in files it is: the first found, at most 16. Files in the trash, open ones without a name, and those that are
    /// being taken apart are among them.
    pub files: Vec<FileRange>,
    /// The servers that should hold it, in order.
    pub owners: Vec<ServerId>,
    /// If it is known to have fewer copies than its target: who holds it.
    pub degraded: Option<Vec<ServerId>>,
}
