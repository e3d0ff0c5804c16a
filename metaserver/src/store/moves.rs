//! Rows about placement groups that move; how values are encoded is said in [`super::values`].

use super::values::Value;
use common::id::{LayoutVersion, LogIndex, PgId, ServerId};
use common::proto::rebalance::{PlanState, ServerPlan};
use common::time::Time;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The groups that are under way: on their new servers by the layout, and not known to have arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovesRow(pub BTreeMap<PgId, Moving>);

/// A group under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    /// The servers it was on: they stand behind its list until it has arrived.
    pub was: Vec<ServerId>,
    /// The layout that put it where it is now.
    pub since: LayoutVersion,
    /// Where that stands in the log.
    pub begun: LogIndex,
    /// From this index on no commit goes by an older layout.
    pub closed: Option<LogIndex>,
    /// Servers in its list without those it was on.
    pub list_len: u16,
    /// Bytes to be copied, as planned; 0 if it belongs to no plan.
    pub bytes: u64,
    /// It belongs to the plan.
    pub planned: bool,
}

impl Value for MovesRow {
    const WHAT: &'static str = "moves";
    const VERSION: u8 = 1;
}

/// The last plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanRow {
    /// What it is at.
    pub state: PlanState,
    /// Another one is to be made: weights or servers changed.
    pub wanted: bool,
    /// Bytes per second that one server takes, at most.
    pub rate: Option<u64>,
    /// When it was begun.
    pub started: Time,
    /// When it ended.
    pub ended: Option<Time>,
    /// Groups that are not begun yet: the length of [`StepsRow::steps`].
    pub steps_left: u64,
    /// Groups it moves, and those of them that have arrived.
    pub groups: u64,
    /// See `groups`.
    pub groups_done: u64,
    /// Bytes it copies, and those of groups that have arrived.
    pub bytes: u64,
    /// See `bytes`.
    pub bytes_done: u64,
}

/// The part of the last plan that may be long, and that is looked at only where groups begin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepsRow {
    /// Groups that are not begun yet.
    pub steps: BTreeMap<PgId, PlanStep>,
    /// What the whole plan does to each server.
    pub servers: Vec<ServerPlan>,
}

impl Value for StepsRow {
    const WHAT: &'static str = "plan steps";
    const VERSION: u8 = 1;
}

/// A group that is to move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanStep {
    /// Where its replicas go.
    pub head: Vec<ServerId>,
    /// Bytes to be copied.
    pub bytes: u64,
}

impl Value for PlanRow {
    const WHAT: &'static str = "plan";
    const VERSION: u8 = 1;
}

/// Servers that are announced to be away, and until when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwayRow(pub BTreeMap<ServerId, Time>);

impl Value for AwayRow {
    const WHAT: &'static str = "away";
    const VERSION: u8 = 1;
}

/// The groups of servers that went out, with the replicas they had then: who comes back gets the same ones, as it still
/// holds them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftRow(pub BTreeMap<ServerId, BTreeMap<PgId, Vec<ServerId>>>);

impl Value for LeftRow {
    const WHAT: &'static str = "left";
    const VERSION: u8 = 1;
}
