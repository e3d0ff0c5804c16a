//! The leader's part in keeping the cluster whole: it hears how far each chunkserver is, answers what belongs where and
//! what may go, and takes servers out that were down for long. What it hears is in memory only: every server tells the
//! next leader within seconds.

use crate::leading::Leading;
use crate::namespace::{self, Command, Done, Page};
use crate::raft::Member;
use crate::servers::{DOWN_AFTER, Silence};
use common::fault::{Fault, Kind};
use common::id::{ChunkId, Epoch, LogIndex, ServerId};
use common::proto::keep::{KeepAnswer, KeepOrders, KeepReport, KeepSettings, Nonced};
use common::time::Time;
use common::world::World;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// How long an order to collect garbage waits for files that are being taken apart.
const PURGE_WAIT: Duration = Duration::from_secs(5);
/// Between two looks at them.
const PURGE_LOOK: Duration = Duration::from_millis(50);

/// Who did what nobody ordered, in the list of events.
const BY_ITSELF: &str = "the cluster";
/// What is counted of the time between two looks, at most.
const COUNT_MAX: Duration = Duration::from_secs(1);

/// A client's request counts as use of the cluster for so long: longer than between two reports of a server.
const IN_USE_FOR: Duration = Duration::from_secs(3);

/// What the leader has heard, and has ordered.
#[derive(Debug)]
pub(crate) struct Keep {
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    reports: BTreeMap<ServerId, (Instant, KeepReport)>,
    orders: u64,
    gc: u64,
    scrub: u64,
    /// When a client last asked for something.
    used: Option<Instant>,
    /// For how long each server was silent while enough others were up; and when that was counted.
    silent: BTreeMap<ServerId, Duration>,
    counted: Option<Instant>,
}

impl Keep {
    /// Nothing was heard or ordered yet. Orders of a later term have higher numbers.
    pub(crate) fn new(term: u64) -> Keep {
        let table = Table {
            reports: BTreeMap::new(),
            orders: term << 32,
            gc: 0,
            scrub: 0,
            used: None,
            silent: BTreeMap::new(),
            counted: None,
        };
        Keep { table: Mutex::new(table) }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no panic holds this lock")
    }

    /// A server reports. What it is to do: counts and settings are filled in by the caller.
    pub(crate) fn heard(&self, server: ServerId, report: KeepReport) -> KeepOrders {
        let mut table = self.table();
        table.reports.insert(server, (Instant::now(), report));
        KeepOrders { gc: table.gc, scrub: table.scrub, ..KeepOrders::default() }
    }

    /// A client asks for something.
    pub(crate) fn note_use(&self) {
        self.table().used = Some(Instant::now());
    }

    /// The settings as they count now: while clients use the cluster, no server repairs faster than it may while they use
    /// *it*. A new server, which is asked for nothing yet, would else take what the others need for their clients.
    pub(crate) fn settings_now(&self, settings: KeepSettings) -> KeepSettings {
        let in_use = self.table().used.is_some_and(|used| used.elapsed() < IN_USE_FOR);
        match in_use {
            true => {
                KeepSettings { repair_idle_rate: settings.repair_idle_rate.min(settings.repair_busy_rate), ..settings }
            }
            false => settings,
        }
    }

    /// For how long each of these has been silent while enough others were up, now that they are (`enough`) or are not.
    fn count_silence(&self, silence: &BTreeMap<ServerId, Silence>, enough: bool) -> BTreeMap<ServerId, Duration> {
        let (now, mut table) = (Instant::now(), self.table());
        let since = table.counted.replace(now).map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        let more = since.min(COUNT_MAX); // when nobody looked nobody knows
        let count = |(id, silence): (&ServerId, &Silence)| {
            let before = table.silent.get(id).copied().unwrap_or_default();
            let was_heard = silence.lasts <= since;
            (*id, if was_heard { Duration::ZERO } else { before + if enough { more } else { Duration::ZERO } })
        };
        let counted: BTreeMap<ServerId, Duration> = silence.iter().map(count).collect();
        table.silent.clone_from(&counted);
        counted
    }

    /// Orders a collection of garbage; its number.
    pub(crate) fn order_gc(&self) -> u64 {
        let mut table = self.table();
        table.orders += 1;
        table.gc = table.orders;
        table.gc
    }

    /// Orders a scrub; its number.
    pub(crate) fn order_scrub(&self) -> u64 {
        let mut table = self.table();
        table.orders += 1;
        table.scrub = table.orders;
        table.scrub
    }

    /// All reports and how old they are, in milliseconds.
    pub(crate) fn reports(&self) -> Vec<(ServerId, u64, KeepReport)> {
        let now = Instant::now();
        let age = |at: &Instant| u64::try_from(now.saturating_duration_since(*at).as_millis()).unwrap_or(u64::MAX);
        self.table().reports.iter().map(|(id, (at, report))| (*id, age(at), report.clone())).collect()
    }
}

fn internal(error: impl std::fmt::Display) -> Fault {
    Fault::new(Kind::Internal, error.to_string())
}

/// A page of what belongs on a server, not older than this call.
pub(crate) async fn expected(world: &World, member: &Member, page: Page) -> Result<KeepAnswer, Fault> {
    member.reads.wait().await?;
    let state = member.state.clone();
    let read = move || {
        let index = LogIndex(state.applied_index()); // before the view: never ahead of it
        let mounted = state.mounted();
        let view = mounted.kv().snapshot();
        namespace::expected(&*view, index, &page)
    };
    world.blocking(read).await.map(KeepAnswer::Expected).map_err(Fault::from)
}

/// Lets go of those of these chunks that nothing refers to. DESIGN 7 has the leader gather asks by placement group for a minute.
/// Here each server gathers its own: one comparison in 45 s, one ask for 4096 chunks. Servers are fewer than groups, so
/// the log has no more entries and writers are not told to touch again more often, and no ask waits in the leader.
/// The horizon is raised, and applied here, before this returns.
pub(crate) async fn condemn(
    world: &World,
    member: &Member,
    epoch: Epoch,
    asks: Vec<Nonced>,
) -> Result<KeepAnswer, Fault> {
    let (state, ids) = (member.state.clone(), asks.iter().map(|(id, _)| *id).collect::<Vec<_>>());
    // Most of what servers ask about after a move is referred to: that needs no entry in the log.
    let look = move || namespace::targets(state.mounted().kv(), &ids);
    let targets = world.blocking(look).await.map_err(internal)?;
    let (free, kept): (Vec<_>, Vec<_>) = targets.into_iter().partition(|(_, target)| *target == 0);
    let mut granted = BTreeSet::new();
    if !free.is_empty() {
        let chunks = free.into_iter().map(|(id, _)| id).collect();
        match member.propose(&Command::Condemn { epoch, chunks }).await? {
            Done::Condemned { granted: all } => granted.extend(all),
            other => return Err(internal(format!("condemn: answered {other:?}"))),
        }
    }
    let grants = asks.into_iter().filter(|(id, _): &(ChunkId, u64)| granted.contains(id)).collect();
    Ok(KeepAnswer::Granted { epoch, grants, kept })
}

/// Waits, for a while, until files that are gone are taken apart.
pub(crate) async fn nothing_to_purge(member: &Member) {
    let end = Instant::now() + PURGE_WAIT;
    while namespace::has_purge(member.state.mounted().kv()).unwrap_or(false) && Instant::now() < end {
        tokio::time::sleep(PURGE_LOOK).await;
    }
}

/// Takes servers out that were down for long, unless they are announced to be away, and in again that came back.
pub(crate) async fn take_out(member: &Member, leading: &Leading, down_out: Duration, now: Time) -> Result<(), Fault> {
    let (map, out, mut away) = {
        let mounted = member.state.mounted();
        let map = namespace::cluster_map(mounted.kv()).map_err(internal)?;
        let (out, away) = (namespace::out(mounted.kv()), namespace::away(mounted.kv()));
        (map.ok_or_else(crate::leading::not_formatted)?, out.map_err(internal)?, away.map_err(internal)?)
    };
    away.retain(|_, until| *until > now);
    let silence = leading.servers.silence(map.servers.keys().copied());
    let counted = leading.keep.count_silence(&silence, enough_are_up(&silence, &out, map.replicas));
    let planned = plan_out(&silence, &out, down_out, &counted);
    for (server, out) in planned.into_iter().filter(|(server, out)| !(*out && away.contains_key(server))) {
        let what = match out {
            true => format!("chunkserver {server} was down for {} s: others take over its share", down_out.as_secs()),
            false => format!("chunkserver {server} is back: it takes its share again"),
        };
        tracing::warn!(what, "the layout follows");
        member.propose(&by_itself(what, now, Command::SetOut { server, out })).await?;
        leading.servers.rows_changed(true);
    }
    Ok(())
}

/// A command of the leader's own, noted among the events.
pub(crate) fn by_itself(what: String, at: Time, command: Command) -> Command {
    Command::Ordered { by: BY_ITSELF.into(), what, at, command: Some(Box::new(command)) }
}

fn is_up(silence: &Silence) -> bool {
    silence.heard && silence.lasts < DOWN_AFTER
}

/// At least `replicas` servers, and half of those that are in, are up. With fewer, more is wrong than a server, and moving
/// data would not help.
fn enough_are_up(silence: &BTreeMap<ServerId, Silence>, out: &BTreeSet<ServerId>, replicas: u8) -> bool {
    let inside = || silence.iter().filter(|(id, _)| !out.contains(id));
    let up = inside().filter(|(_, silence)| is_up(silence)).count();
    up >= usize::from(replicas) && up * 2 >= inside().count()
}

/// Who is to be taken out (true) or in again. Only time in which enough servers were up counts (`counted`) against one that is
/// silent: after a power cut the last ones to come back are not taken out because half of the others took long.
fn plan_out(
    silence: &BTreeMap<ServerId, Silence>,
    out: &BTreeSet<ServerId>,
    down_out: Duration,
    counted: &BTreeMap<ServerId, Duration>,
) -> Vec<(ServerId, bool)> {
    let back = silence.iter().filter(|(id, silence)| out.contains(id) && is_up(silence)).map(|(id, _)| (*id, false));
    let limit = down_out.max(DOWN_AFTER);
    let gone = counted.iter().filter(|(id, silent)| !out.contains(id) && **silent >= limit);
    back.chain(gone.map(|(id, _)| (*id, true))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silence(of: &[(u32, bool, u64)]) -> BTreeMap<ServerId, Silence> {
        let one = |(id, heard, secs): &(u32, bool, u64)| {
            (ServerId(*id), Silence { heard: *heard, lasts: Duration::from_secs(*secs) })
        };
        of.iter().map(one).collect()
    }

    #[test]
    fn who_is_down_for_long_goes_out_if_enough_stay() {
        let long = Duration::from_secs(600);
        let plan = |of: &[(u32, bool, u64)], out: &[u32]| {
            let (silence, out) = (silence(of), out.iter().map(|id| ServerId(*id)).collect());
            let enough = enough_are_up(&silence, &out, 3);
            let counted =
                silence.iter().map(|(id, its)| (*id, if enough { its.lasts } else { Duration::ZERO })).collect();
            let planned = plan_out(&silence, &out, long, &counted).into_iter();
            planned.map(|(id, out)| (id.0, out)).collect::<Vec<_>>()
        };
        let (up, down) = (|id| (id, true, 0), |id| (id, true, 600));
        assert_eq!(plan(&[up(1), up(2), up(3), down(4)], &[]), [(4, true)]);
        assert_eq!(plan(&[up(1), up(2), up(3), (4, true, 599)], &[]), [], "not yet");
        assert_eq!(plan(&[up(1), up(2), up(3), (4, false, 600)], &[]), [(4, true)], "never heard of by this leader");
        assert_eq!(plan(&[up(1), up(2), down(3)], &[]), [], "nobody could take over");
        assert_eq!(plan(&[up(1), up(2), up(3), down(4), down(5), down(6), down(7)], &[]), [], "most are down");
        assert_eq!(plan(&[up(1), up(2), up(3), down(4)], &[4]), []);
        assert_eq!(plan(&[up(1), up(2), up(3), up(4)], &[4]), [(4, false)], "it came back");
        assert_eq!(plan(&[up(1), up(2), up(3), (4, false, 1)], &[4]), [], "a new leader has not heard of it");
    }

    #[tokio::test(start_paused = true)]
    async fn only_time_in_which_enough_are_up_counts_and_none_of_it_is_forgotten() {
        let (keep, second) = (Keep::new(1), Duration::from_secs(1));
        let look = async |lasts: u64, enough| {
            tokio::time::advance(second).await;
            keep.count_silence(&silence(&[(1, true, 0), (4, true, lasts)]), enough)[&ServerId(4)]
        };
        assert_eq!(look(100, false).await, Duration::ZERO);
        assert_eq!(look(101, true).await, second);
        assert_eq!(look(102, true).await, 2 * second);
        assert_eq!(look(103, false).await, 2 * second, "another one is away for a moment");
        assert_eq!(look(104, true).await, 3 * second);
        tokio::time::advance(100 * second).await;
        assert_eq!(look(205, true).await, 4 * second, "nobody has looked for long");
        assert_eq!(look(0, true).await, Duration::ZERO, "it was heard of");
        assert_eq!(keep.count_silence(&silence(&[(1, true, 0)]), true).len(), 1, "it was removed");
    }

    #[tokio::test(start_paused = true)]
    async fn repair_is_slow_everywhere_while_clients_use_the_cluster() {
        let keep = Keep::new(1);
        let settings = KeepSettings { repair_busy_rate: 10, repair_idle_rate: 100, ..KeepSettings::default() };
        let rate = || keep.settings_now(settings).repair_idle_rate;
        assert_eq!(rate(), 100);
        keep.note_use();
        assert_eq!(rate(), 10);
        tokio::time::advance(IN_USE_FOR).await;
        assert_eq!(rate(), 100);
    }
}
