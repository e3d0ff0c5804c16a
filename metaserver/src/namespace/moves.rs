//! Moves of placement groups, and the plan they follow (DESIGN 7).
//!
//! A group moves in three commands, each proposed by the leader when it knows what the command says:
//!
//! | step | what changes | proposed when |
//! | --- | --- | --- |
//! | begin | its list is the new one, with the servers it was on behind it | the plan says so, or a server is gone |
//! | close | commits whose puts used an older layout are told to put again | every new replica has said that it holds all that was referred to at some index past the beginning |
//! | finish | the servers it was on go from its list | every new replica has said so of an index past the closing |
//!
//! Between beginning and closing a commit may still rely on copies at the old servers alone, so what was said then does
//! not suffice; after the closing none can. So at the finish every referenced chunk of the group is on every one of its
//! replicas. Nothing here deletes a copy: old ones go by drop rounds, each when all owners have confirmed it.
//!
//! Invariants:
//! 1. A group is in the row of moves from the change of its replicas on until its finish.
//! 2. `moved` of a group is the layout of its last closed move; `counters.last_move` is the highest.
//! 3. A group without a reference in the whole cluster arrives at once: nothing is there to be copied.
//!
//! Left out: moves of copies beyond the cluster's replica count (files that ask for more): they follow the layout, and
//! are looked for everywhere meanwhile.

use super::command::{Done, Fail, NewPlan, PlanChange, Step, refuse};
use super::rows::{Call, row};
use crate::store::keys::{self, CLUSTER, MOVED, SERVER};
use crate::store::moves::{AwayRow, LeftRow, MovesRow, Moving, PlanRow, PlanStep, StepsRow};
use crate::store::values::{LayoutRow, Moved, ServerRow, Value, damaged};
use common::fault::Kind;
use common::id::{LayoutVersion, PgId, ServerId};
use common::kv::{KvError, KvRead};
use common::layout::{Layout, with_was};
use common::proto::rebalance::PlanState;
use common::time::Time;
use common::units::{len_u64, len_usize};
use std::collections::BTreeMap;

/// Servers a group is said to have been on, at most: when its servers change again and again before it arrives.
const WAS_MAX: usize = 9;

/// The groups that are under way.
pub fn moves(read: &dyn KvRead) -> Result<BTreeMap<PgId, Moving>, KvError> {
    let row: Option<MovesRow> = row(read, CLUSTER, keys::MOVES)?;
    Ok(row.map(|row| row.0).unwrap_or_default())
}

/// The last plan.
pub fn plan(read: &dyn KvRead) -> Result<PlanRow, KvError> {
    Ok(row(read, CLUSTER, keys::PLAN)?.unwrap_or_default())
}

/// What the last plan has not begun yet, and what it does to each server.
pub fn steps(read: &dyn KvRead) -> Result<StepsRow, KvError> {
    Ok(row(read, CLUSTER, keys::STEPS)?.unwrap_or_default())
}

/// The groups of servers that went out, with the replicas they had then.
pub fn left(read: &dyn KvRead) -> Result<BTreeMap<ServerId, BTreeMap<PgId, Vec<ServerId>>>, KvError> {
    let row: Option<LeftRow> = row(read, CLUSTER, keys::LEFT)?;
    Ok(row.map(|row| row.0).unwrap_or_default())
}

/// Servers that are announced to be away, and until when.
pub fn away(read: &dyn KvRead) -> Result<BTreeMap<ServerId, Time>, KvError> {
    let row: Option<AwayRow> = row(read, CLUSTER, keys::AWAY)?;
    Ok(row.map(|row| row.0).unwrap_or_default())
}

fn put_moves(call: &mut Call<'_, '_>, moves: BTreeMap<PgId, Moving>) {
    match moves.is_empty() {
        true => call.txn.delete(CLUSTER, keys::MOVES),
        false => call.txn.put(CLUSTER, keys::MOVES, MovesRow(moves).encode()),
    }
}

fn put_plan(call: &mut Call<'_, '_>, plan: &PlanRow) {
    call.txn.put(CLUSTER, keys::PLAN, plan.encode());
}

/// From here on a commit to this group must have been put by this layout, or a later one.
fn close(call: &mut Call<'_, '_>, pg: PgId, since: LayoutVersion) {
    call.txn.put(MOVED, keys::moved(pg), Moved(since).encode());
    call.counters.last_move = call.counters.last_move.max(since);
}

/// A group goes from these servers to that list with this layout: it moves from now on. The list it gets.
fn begin(
    call: &mut Call<'_, '_>,
    moves: &mut BTreeMap<PgId, Moving>,
    (pg, was): (PgId, &[ServerId]),
    list: Vec<ServerId>,
    (since, step): (LayoutVersion, Option<&PlanStep>),
) -> Vec<ServerId> {
    let before = moves.remove(&pg).map(|before| before.was).unwrap_or_default();
    if was.is_empty() {
        return list; // nobody could put anything by the older layout
    }
    if call.counters.chunks == 0 {
        close(call, pg, since);
        return list;
    }
    let mut was = with_was(was.to_vec(), &before);
    was.truncate(WAS_MAX);
    let list_len = u16::try_from(list.len()).expect("a list is short");
    let list = with_was(list, &was);
    let (bytes, planned) = (step.map_or(0, |step| step.bytes), step.is_some());
    moves.insert(pg, Moving { was, since, begun: call.index, closed: None, list_len, bytes, planned });
    list
}

/// A whole new table: what was under way stays so, groups whose replicas are others now begin to move. The plan that was
/// there does not fit any more.
pub(super) fn relaid(call: &mut Call<'_, '_>, new: &mut Layout, replicas: u8) -> Result<(), Fail> {
    let old: LayoutRow = row(call.txn, CLUSTER, keys::LAYOUT)?.ok_or_else(|| damaged("layout", "missing"))?;
    let before = moves(call.txn)?;
    let (mut after, mut changed) = (before.clone(), false);
    for pg in (0..new.pg_count()).map(PgId) {
        let was = old.0.head(pg, replicas);
        let list = new.group(pg).to_vec();
        let list = if was == new.head(pg, replicas) {
            let Some(moving) = after.get_mut(&pg) else { continue };
            moving.list_len = u16::try_from(list.len()).expect("a list is short");
            with_was(list, &moving.was)
        } else {
            changed = true;
            begin(call, &mut after, (pg, was), list, (new.version, None))
        };
        new.groups[len_usize(pg.0.into())] = list;
    }
    if after != before {
        put_moves(call, after);
    }
    let mut plan = plan(call.txn)?;
    if changed && plan.steps_left > 0 {
        plan.wanted = true;
        put_plan(call, &plan);
    }
    Ok(())
}

/// Takes some groups a step further: see the module.
pub(super) fn step(call: &mut Call<'_, '_>, step: &Step) -> Result<Done, Fail> {
    let replicas = call.config()?.replicas;
    let mut layout = row::<LayoutRow>(call.txn, CLUSTER, keys::LAYOUT)?.ok_or_else(|| damaged("layout", "missing"))?.0;
    if layout.version != step.layout {
        return Err(refuse(Kind::Stale, format!("the layout is {} by now, not {}", layout.version, step.layout)));
    }
    let (mut moves, mut plan, groups) = (moves(call.txn)?, plan(call.txn)?, layout.groups.clone());
    for pg in &step.close {
        let Some(moving) = moves.get_mut(pg).filter(|moving| moving.closed.is_none()) else { continue };
        moving.closed = Some(call.index);
        let since = moving.since;
        close(call, *pg, since);
    }
    for pg in &step.finish {
        let Some(moving) = moves.remove(pg) else { continue };
        if moving.closed.is_none() {
            return Err(refuse(Kind::Invalid, format!("{pg} is not closed")));
        }
        layout.groups[len_usize(pg.0.into())].truncate(moving.list_len.into());
        plan.groups_done += u64::from(moving.planned);
        plan.bytes_done += moving.bytes;
    }
    layout.version.0 += 1;
    let may_begin = plan.state == PlanState::Running && !plan.wanted;
    let mut details = if step.begin.is_empty() { StepsRow::default() } else { steps(call.txn)? };
    for (pg, list) in &step.begin {
        let planned = details.steps.get(pg).filter(|planned| may_begin && list.starts_with(&planned.head)).cloned();
        let Some(planned) = planned.filter(|_| !moves.contains_key(pg)) else { continue };
        let was = layout.head(*pg, replicas).to_vec();
        let list = begin(call, &mut moves, (*pg, &was), list.clone(), (layout.version, Some(&planned)));
        layout.groups[len_usize(pg.0.into())] = list;
        details.steps.remove(pg);
        if !moves.contains_key(pg) {
            (plan.groups_done, plan.bytes_done) = (plan.groups_done + 1, plan.bytes_done + planned.bytes);
        }
    }
    if !step.begin.is_empty() {
        plan.steps_left = len_u64(details.steps.len());
        call.txn.put(CLUSTER, keys::STEPS, details.encode());
    }
    if layout.groups != groups {
        call.counters.layout = layout.version;
        call.counters.map_version += 1;
        call.txn.put(CLUSTER, keys::LAYOUT, LayoutRow(layout).encode());
    }
    settle(&mut plan, &moves, call.at);
    put_moves(call, moves);
    put_plan(call, &plan);
    Ok(Done::Noted)
}

/// A plan without anything left to do is done.
fn settle(plan: &mut PlanRow, moves: &BTreeMap<PgId, Moving>, at: Time) {
    let goes_on = matches!(plan.state, PlanState::Running | PlanState::Paused) && !plan.wanted;
    if goes_on && plan.steps_left == 0 && !moves.values().any(|moving| moving.planned) {
        (plan.state, plan.ended, plan.rate) = (PlanState::Done, Some(at), None);
    }
}

/// Starts, stops and changes the plan.
pub(super) fn change_plan(call: &mut Call<'_, '_>, change: &PlanChange) -> Result<Done, Fail> {
    let mut now = plan(call.txn)?;
    let is_active = matches!(now.state, PlanState::Running | PlanState::Paused);
    match change {
        PlanChange::Start(new) => now = start(call, now, new)?,
        _ if !is_active && !now.wanted => {
            return Err(refuse(Kind::NotFound, "nothing is being rebalanced: `dfs admin rebalance start`"));
        }
        PlanChange::Pause => now.state = PlanState::Paused,
        PlanChange::Resume => now.state = PlanState::Running,
        PlanChange::Rate(rate) => now.rate = *rate,
        PlanChange::Cancel => {
            let details = StepsRow { steps: BTreeMap::new(), ..steps(call.txn)? };
            call.txn.put(CLUSTER, keys::STEPS, details.encode());
            now.steps_left = 0;
            (now.state, now.ended, now.wanted) = (PlanState::Cancelled, Some(call.at), false);
            now.rate = None;
        }
    }
    put_plan(call, &now);
    Ok(Done::Noted)
}

/// The new plan takes the place of the one before. What is under way arrives, and counts for neither.
fn start(call: &mut Call<'_, '_>, before: PlanRow, new: &NewPlan) -> Result<PlanRow, Fail> {
    if new.layout != call.counters.layout {
        let text = format!("the layout is {} by now, not {}: plan again", call.counters.layout, new.layout);
        return Err(refuse(Kind::Stale, text));
    }
    let out = super::keep::out(call.txn)?;
    for (id, row) in super::cluster::servers(call.txn)? {
        let weight = if out.contains(&id) { 0 } else { row.weight };
        if new.servers.iter().find(|one| one.server == id).map(|one| one.weight) != Some(weight) {
            return Err(refuse(Kind::Stale, format!("{id} has another weight by now: plan again")));
        }
    }
    let mut moves = moves(call.txn)?;
    let keeps = new.by_itself && matches!(before.state, PlanState::Running | PlanState::Paused);
    for moving in moves.values_mut() {
        (moving.planned, moving.bytes) = (false, 0);
    }
    let steps: BTreeMap<PgId, PlanStep> = new.steps.iter().cloned().collect();
    let mut plan = PlanRow {
        state: if keeps { before.state } else { PlanState::Running },
        wanted: false,
        rate: if new.by_itself { before.rate } else { new.rate },
        started: call.at,
        ended: None,
        steps_left: len_u64(steps.len()),
        groups: len_u64(steps.len()),
        groups_done: 0,
        bytes: steps.values().map(|step| step.bytes).sum(),
        bytes_done: 0,
    };
    settle(&mut plan, &moves, call.at);
    forget_left(call)?;
    call.txn.put(CLUSTER, keys::STEPS, StepsRow { steps, servers: new.servers.clone() }.encode());
    put_moves(call, moves);
    Ok(plan)
}

/// The data shall follow a change of weights or servers: the leader makes a plan.
pub(super) fn want_plan(call: &mut Call<'_, '_>) -> Result<(), Fail> {
    let mut plan = plan(call.txn)?;
    if !plan.wanted {
        plan.wanted = true;
        put_plan(call, &plan);
    }
    Ok(())
}

/// A server goes out: what it had is remembered until a plan has given it that again.
pub(super) fn leaves(call: &mut Call<'_, '_>, server: ServerId) -> Result<(), Fail> {
    let replicas = call.config()?.replicas;
    let layout = row::<LayoutRow>(call.txn, CLUSTER, keys::LAYOUT)?.ok_or_else(|| damaged("layout", "missing"))?.0;
    let heads = (0..layout.pg_count()).map(PgId).map(|pg| (pg, layout.head(pg, replicas)));
    let its = heads.filter(|(_, head)| head.contains(&server)).map(|(pg, head)| (pg, head.to_vec())).collect();
    let mut left = left(call.txn)?;
    left.insert(server, its);
    call.txn.put(CLUSTER, keys::LEFT, LeftRow(left).encode());
    if plan(call.txn)?.steps_left > 0 {
        want_plan(call)?; // what was to go to it goes elsewhere
    }
    Ok(())
}

/// A plan was made: who is in has what it is to have.
fn forget_left(call: &mut Call<'_, '_>) -> Result<(), Fail> {
    let mut left = left(call.txn)?;
    if left.is_empty() {
        return Ok(());
    }
    let out = super::keep::out(call.txn)?;
    left.retain(|server, _| out.contains(server));
    call.txn.put(CLUSTER, keys::LEFT, LeftRow(left).encode());
    Ok(())
}

/// A server is removed: it will not get again what it had.
pub(super) fn forget_left_of(call: &mut Call<'_, '_>, server: ServerId) -> Result<(), Fail> {
    let mut left = left(call.txn)?;
    if left.remove(&server).is_some() {
        call.txn.put(CLUSTER, keys::LEFT, LeftRow(left).encode());
    }
    Ok(())
}

/// A server will be away until then, and stays in meanwhile.
pub(super) fn set_away(call: &mut Call<'_, '_>, server: ServerId, until: Option<Time>) -> Result<Done, Fail> {
    if row::<ServerRow>(call.txn, SERVER, &keys::server(server))?.is_none() {
        return Err(refuse(Kind::NotFound, format!("no server {server}")));
    }
    let mut away = away(call.txn)?;
    match until {
        Some(until) => away.insert(server, until),
        None => away.remove(&server),
    };
    call.txn.put(CLUSTER, keys::AWAY, AwayRow(away).encode());
    Ok(Done::Noted)
}

/// A new life: its log begins anew, so no index of the old one means anything; and nothing moves unless somebody says so.
pub(super) fn restored(call: &mut Call<'_, '_>) -> Result<(), Fail> {
    let mut moves = moves(call.txn)?;
    for moving in moves.values_mut() {
        (moving.begun, moving.closed) = (call.index, None);
    }
    put_moves(call, moves);
    let mut plan = plan(call.txn)?;
    if plan.state == PlanState::Running {
        plan.state = PlanState::Paused;
        put_plan(call, &plan);
    }
    Ok(())
}
