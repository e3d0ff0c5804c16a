//! Carries plans out: makes them from the rows, takes groups a step further, hears what chunkservers say of them. What is
//! heard is in memory only; the plan and how far it is are rows, so the next leader goes on.

use crate::leading::Leading;
use crate::namespace::{self, Command, NewPlan, PlanChange};
use crate::node::Shared;
use crate::raft::Member;
use crate::rebalance::{self, Planned, Said, Sizes, View, bytes_done, make_plan, needed, next_step, waits_for};
use crate::servers::Servers;
use crate::store::keys::CHUNK;
use crate::store::moves::Moving;
use crate::store::values::{ChunkRow, ServerRow, Value, damaged};
use common::fault::{Fault, Kind};
use common::id::{ChunkId, PgId, ServerId};
use common::kv::{KvError, KvRead};
use common::layout::{Candidate, ClusterMap, Layout, with_was};
use common::proto::meta::ServerStatus;
use common::proto::rebalance::{
    GroupMoves, MOVES_PER_ANSWER, MOVING_SHOWN_MAX, MoveOrders, MovesReport, MovingGroup, Plan, PlanState, Rebalance,
    RebalanceAnswer, RebalanceAsk, ServerPlan,
};
use common::units::{len_u64, len_usize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// Chunk rows counted for a plan, at most; with more, every group is taken to be as large as the mean.
const COUNTED_MAX: u64 = 2_000_000;
/// Between two layouts of a plan, at least: everybody fetches each.
const BEGIN_PAUSE: Duration = Duration::from_secs(1);
/// Between two attempts to make a plan that is due.
const PLAN_PAUSE: Duration = Duration::from_secs(2);
/// ... and when it could not be carried out.
const OBSTACLE_PAUSE: Duration = Duration::from_secs(30);
/// The speed is that of the last so many seconds ...
const SPEED_OVER: Duration = Duration::from_secs(20);
/// ... in steps of this.
const SPEED_STEP: Duration = Duration::from_secs(1);

/// What the leader remembers of moves.
#[derive(Debug, Default)]
pub(crate) struct Movers {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    said: Said,
    /// When groups were last begun, and when a plan that was due was last tried.
    begun: Option<Instant>,
    /// Servers to which groups will still be moved, and from which none: what they have may be what they will get.
    takers: BTreeSet<ServerId>,
    tried: Option<Instant>,
    /// Why the plan that is due cannot be carried out.
    obstacle: Option<String>,
    /// How many bytes of the plan were copied when.
    copied: VecDeque<(Instant, u64)>,
}

impl Movers {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no panic holds this lock")
    }
}

impl Table {
    /// Bytes per second, of late.
    fn speed(&self) -> u64 {
        let (Some((from, before)), Some((to, after))) = (self.copied.front(), self.copied.back()) else { return 0 };
        let millis = u64::try_from(to.saturating_duration_since(*from).as_millis()).unwrap_or(u64::MAX);
        (after.saturating_sub(*before) * 1000).checked_div(millis).unwrap_or(0)
    }

    fn note_copied(&mut self, bytes: u64, now: Instant) {
        if self.copied.back().is_some_and(|(_, before)| bytes < *before) {
            self.copied.clear(); // another plan
        }
        if self.copied.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= SPEED_STEP) {
            self.copied.push_back((now, bytes));
        }
        while self.copied.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > SPEED_OVER) {
            self.copied.pop_front();
        }
    }
}

fn internal(error: KvError) -> Fault {
    Fault::new(Kind::Internal, error.to_string())
}

fn the_map(read: &dyn KvRead) -> Result<ClusterMap, Fault> {
    namespace::cluster_map(read).map_err(internal)?.ok_or_else(crate::leading::not_formatted)
}

/// All servers that are not out, with these weights instead of their own.
fn candidates(read: &dyn KvRead, weights: &[(ServerId, u32)]) -> Result<Vec<Candidate>, KvError> {
    let out = namespace::out(read)?;
    let servers = namespace::servers(read)?.into_iter().filter(|(server, _)| !out.contains(server));
    let candidate = |(server, row): (ServerId, ServerRow)| {
        let weight = weights.iter().find(|(other, _)| *other == server).map_or(row.weight, |(_, weight)| *weight);
        Candidate { server, domain: row.domain, weight }
    };
    Ok(servers.map(candidate).collect())
}

/// The layout that the servers ask for, if it is another one. As long as nothing is stored, all of it; later, what cannot
/// wait: the rest is a plan's. Pure but for the rows.
pub(crate) fn layout_now(read: &dyn KvRead) -> Result<Option<Layout>, Fault> {
    let map = the_map(read)?;
    let candidates = candidates(read, &[]).map_err(internal)?;
    let is_empty = namespace::counters(read).map_err(internal)?.chunks == 0;
    let mut new = match is_empty {
        true => map.layout.next(map.replicas, &candidates),
        false => map.layout.filled(map.replicas, &candidates),
    };
    let own = new.groups.clone();
    for (pg, moving) in namespace::moves(read).map_err(internal)? {
        let list = &mut new.groups[len_usize(pg.0.into())];
        *list = with_was(std::mem::take(list), &moving.was);
    }
    Ok((new.groups != map.layout.groups).then_some(Layout { groups: own, ..new }))
}

/// Bytes of each group, and whether they were counted.
fn sizes(read: &dyn KvRead, pg_count: u32, replicas: u8) -> Result<(Vec<Sizes>, bool), KvError> {
    let counters = namespace::counters(read)?;
    let mut sizes = vec![Sizes::default(); len_usize(pg_count.into())];
    if counters.chunks > COUNTED_MAX {
        let mean = counters.chunk_bytes / u64::from(pg_count);
        sizes.iter_mut().for_each(|places| places[..usize::from(replicas)].fill(mean));
        return Ok((sizes, false));
    }
    for found in read.scan(CHUNK, (Bound::Unbounded, Bound::Unbounded), false) {
        let (key, value) = found?;
        let id = key.as_ref().try_into().map(ChunkId).map_err(|_| damaged("chunk", "the key has another length"))?;
        let chunk = ChunkRow::decode(&value)?;
        let copies = chunk.refs.last_key_value().map_or(0, |(target, _)| *target);
        rebalance::count(&mut sizes, id.pg(pg_count), chunk.len, copies);
    }
    Ok((sizes, true))
}

/// Every server as it is, for a plan.
fn servers_now(map: &ClusterMap, status: &[ServerStatus], weights: &[Candidate]) -> Vec<ServerPlan> {
    let weight = |server: ServerId| weights.iter().find(|one| one.server == server).map_or(0, |one| one.weight);
    let one = |server: &ServerId| {
        let seen = status.iter().find(|one| one.server == *server);
        let of = |get: fn(&ServerStatus) -> u64| seen.map_or(0, get);
        ServerPlan {
            server: *server,
            weight: weight(*server),
            capacity: of(|s| s.capacity),
            free: of(|s| s.free),
            used: of(|s| s.chunk_bytes),
            ..ServerPlan::default()
        }
    };
    map.servers.keys().map(one).collect()
}

/// What a start would do now, if these servers had these weights.
pub(crate) async fn planned(
    node: &Shared,
    member: &Member,
    servers: &Servers,
    weights: Vec<(ServerId, u32)>,
    rate: Option<u64>,
) -> Result<Planned, Fault> {
    member.reads.wait().await?;
    let status = servers.status(&the_map(member.state.mounted().kv())?);
    if !servers.knows_all() && status.iter().any(|one| one.silent_ms.is_none()) {
        let text = "this leader has not led long enough to have heard of all chunkservers: try again in a few seconds";
        return Err(Fault::new(Kind::Unavailable, text));
    }
    let state = member.state.clone();
    let made = node.world.blocking(move || {
        let mounted = state.mounted();
        let view = mounted.kv().snapshot();
        let map = the_map(&*view)?;
        if let Some((server, _)) = weights.iter().find(|(server, _)| !map.servers.contains_key(server)) {
            return Err(Fault::new(Kind::NotFound, format!("there is no chunkserver {server}")));
        }
        let candidates = candidates(&*view, &weights).map_err(internal)?;
        let taking = candidates.iter().filter(|one| one.weight > 0).count();
        if taking < usize::from(map.replicas) {
            let text = format!("{taking} chunkservers would take data, and {} copies are kept: add one", map.replicas);
            return Err(Fault::new(Kind::Refused, text));
        }
        let (sizes, exact) = sizes(&*view, map.layout.pg_count(), map.replicas).map_err(internal)?;
        let busy = namespace::keep_settings(&*view).map_err(internal)?.repair_busy_rate;
        let now = servers_now(&map, &status, &candidates);
        let rate = rate.unwrap_or(u64::MAX).min(busy);
        let left = namespace::left(&*view).map_err(internal)?;
        Ok(make_plan(&map.layout, map.replicas, (&candidates, &left), now, (&sizes, exact), rate))
    });
    made.await
}

/// Answers somebody who wants to know.
pub(crate) async fn answer(
    node: &Shared,
    member: &Member,
    leading: &Leading,
    ask: RebalanceAsk,
) -> Result<RebalanceAnswer, Fault> {
    match ask {
        RebalanceAsk::Plan { weights } => {
            let planned = planned(node, member, &leading.servers, weights, None).await?;
            Ok(RebalanceAnswer::Plan(planned.plan))
        }
        RebalanceAsk::Status => status(member, leading).await.map(RebalanceAnswer::Status),
    }
}

/// The command that starts a plan.
pub(crate) fn start(planned: Planned, rate: Option<u64>, by_itself: bool) -> PlanChange {
    let Planned { plan: Plan { layout, servers, .. }, steps } = planned;
    PlanChange::Start(NewPlan { layout, by_itself, rate, steps, servers })
}

/// Makes the plan that is due, and takes groups a step further.
pub(crate) async fn work(node: &Shared, member: &Member, leading: &Leading) -> Result<(), Fault> {
    let (moves, plan) = {
        let mounted = member.state.mounted();
        (namespace::moves(mounted.kv()).map_err(internal)?, namespace::plan(mounted.kv()).map_err(internal)?)
    };
    let now = Instant::now();
    if plan.wanted {
        return follow(node, member, leading, now).await;
    }
    let is_running = plan.state == PlanState::Running && plan.steps_left > 0;
    if moves.is_empty() && !is_running {
        leading.movers.table().said.clear();
        return Ok(());
    }
    let map = leading.map(member)?;
    let candidates = candidates(member.state.mounted().kv(), &[]).map_err(internal)?;
    let up: BTreeSet<ServerId> = map.servers.iter().filter(|(_, info)| info.up).map(|(id, _)| *id).collect();
    let step = {
        let mut table = leading.movers.table();
        let copied = bytes_done((&map.layout, map.replicas), &plan, &moves, &table.said);
        table.note_copied(copied, now);
        let may_begin = table.begun.is_none_or(|at| now.saturating_duration_since(at) >= BEGIN_PAUSE);
        let mut steps = BTreeMap::new();
        if is_running && may_begin {
            let details = namespace::plan_steps(member.state.mounted().kv()).map_err(internal)?;
            table.takers = takers(&details.servers);
            steps = details.steps;
        }
        let step = next_step(
            &View {
                layout: &map.layout,
                replicas: map.replicas,
                moves: &moves,
                plan: &plan,
                steps: &steps,
                said: &table.said,
                up: &up,
                candidates: &candidates,
            },
            node.world.now(),
        );
        if step.as_ref().is_some_and(|step| !step.begin.is_empty()) {
            table.begun = Some(now);
        }
        step
    };
    let Some(step) = step else { return Ok(()) };
    let (close, finish, begin) = (step.close.len(), step.finish.len(), step.begin.len());
    let done = member.propose(&Command::Step(step)).await;
    leading.servers.rows_changed(false);
    done?;
    tracing::info!(close, finish, begin, "placement groups move");
    Ok(())
}

/// Servers to which groups are moved, and from which none.
fn takers(servers: &[ServerPlan]) -> BTreeSet<ServerId> {
    let takes = servers.iter().filter(|one| one.places_after > one.places && one.sends == 0);
    takes.map(|one| one.server).collect()
}

/// Makes the plan that changed weights or servers ask for.
async fn follow(node: &Shared, member: &Member, leading: &Leading, now: Instant) -> Result<(), Fault> {
    {
        let mut table = leading.movers.table();
        if table.tried.is_some_and(|at| now.saturating_duration_since(at) < PLAN_PAUSE) {
            return Ok(());
        }
        table.tried = Some(now);
    }
    let planned = planned(node, member, &leading.servers, Vec::new(), None).await;
    let obstacle = match &planned {
        Ok(planned) => rebalance::obstacle(&planned.plan),
        Err(fault) if fault.kind == Kind::Refused => Some(fault.message.clone()),
        Err(_) => None,
    };
    leading.movers.table().obstacle.clone_from(&obstacle);
    if let Some(text) = obstacle {
        tracing::warn!(text, "data should follow the weights, and cannot: add servers, or change weights");
        leading.movers.table().tried = Some(now + OBSTACLE_PAUSE);
        return Ok(());
    }
    let planned = planned?;
    let (groups, bytes) = (planned.plan.groups, planned.plan.bytes);
    leading.movers.table().takers = takers(&planned.plan.servers);
    let (change, at) = (start(planned, None, true), node.world.now());
    let what = format!("data follows the weights: {groups} groups, {bytes} bytes");
    tracing::info!(what, "a plan was made");
    member.propose(&crate::keep::by_itself(what, at, Command::Rebalance { change, at })).await?;
    Ok(())
}

/// A server says how far it is, and learns what else it should look at.
pub(crate) fn heard(member: &Member, leading: &Leading, report: MovesReport) -> Result<MoveOrders, Fault> {
    let MovesReport { server, epoch, here } = report;
    if epoch != leading.ctx.epoch {
        return Err(Fault::new(Kind::Stale, format!("epoch {epoch} is over: it is {} now", leading.ctx.epoch)));
    }
    let mounted = member.state.mounted();
    let moves = namespace::moves(mounted.kv()).map_err(internal)?;
    let plan = namespace::plan(mounted.kv()).map_err(internal)?;
    drop(mounted);
    let is_due = plan.wanted && leading.movers.table().obstacle.is_none();
    let keeps = is_due || (plan.steps_left > 0 && leading.movers.table().takers.contains(&server));
    let paused = plan.state == PlanState::Paused;
    let mut orders = MoveOrders { rate: plan.rate, paused, keeps, ..MoveOrders::default() };
    if !matches!(plan.state, PlanState::Running | PlanState::Paused) {
        orders.rate = None;
    }
    if moves.is_empty() {
        return Ok(orders);
    }
    let map = leading.map(member)?;
    let mut table = leading.movers.table();
    let said = table.said.entry(server).or_default();
    said.extend(here.into_iter().take(MOVES_PER_ANSWER).map(|here| (here.pg, here)));
    said.retain(|pg, _| moves.contains_key(pg));
    let open = moves.iter().filter(|(pg, moving)| {
        let has_all = said.get(pg).is_some_and(|here| here.missing == 0 && here.index >= needed(moving));
        !has_all && map.layout.head(**pg, map.replicas).contains(&server)
    });
    let group = |(pg, moving): (&PgId, &Moving)| MovingGroup { pg: *pg, from: needed(moving) };
    orders.groups = open.map(group).take(MOVES_PER_ANSWER).collect();
    Ok(orders)
}

/// How far it is.
pub(crate) async fn status(member: &Member, leading: &Leading) -> Result<Rebalance, Fault> {
    member.reads.wait().await?;
    let map = leading.map(member)?;
    let mounted = member.state.mounted();
    let read = || {
        Ok::<_, KvError>((
            namespace::moves(mounted.kv())?,
            namespace::plan(mounted.kv())?,
            namespace::away(mounted.kv())?,
            namespace::plan_steps(mounted.kv())?.servers,
        ))
    };
    let (moves, plan, away, servers) = read().map_err(internal)?;
    drop(mounted);
    let table = leading.movers.table();
    let (up, none) = (BTreeSet::new(), BTreeMap::new());
    let view = View {
        layout: &map.layout,
        replicas: map.replicas,
        moves: &moves,
        plan: &plan,
        steps: &none,
        said: &table.said,
        up: &up,
        candidates: &[],
    };
    let shown = moves.iter().take(MOVING_SHOWN_MAX).map(|(pg, moving)| GroupMoves {
        pg: *pg,
        was: moving.was.clone(),
        now: map.layout.head(*pg, map.replicas).to_vec(),
        waits_for: waits_for(&view, *pg, moving),
        closed: moving.closed.is_some(),
    });
    let is_running = plan.state == PlanState::Running;
    let copied = match plan.state {
        PlanState::Done => plan.bytes,
        _ => bytes_done((&map.layout, map.replicas), &plan, &moves, &table.said).min(plan.bytes),
    };
    let speed = if is_running { table.speed() } else { 0 };
    Ok(Rebalance {
        state: plan.state,
        wanted: plan.wanted,
        started: plan.started,
        ended: plan.ended,
        rate: plan.rate,
        groups: plan.groups,
        groups_done: plan.groups_done,
        bytes: plan.bytes,
        bytes_done: copied,
        speed,
        left_s: if is_running { (plan.bytes - copied).checked_div(speed) } else { None },
        moving: len_u64(moves.len()),
        groups_moving: shown.collect(),
        servers,
        away: away.into_iter().collect(),
        obstacle: table.obstacle.clone().filter(|_| plan.wanted),
    })
}
