//! The loops of a metaserver: each wakes up, does a little, and sleeps.
//!
//! | loop | who | does |
//! | --- | --- | --- |
//! | flush | every member | makes what is applied durable, so that a restart replays little |
//! | leader | the leader | ends silent sessions and unfinished changes of the members, asks who has removed files open, lets the trash go and takes files that are gone apart, takes servers out that were down for long, makes a layout for new servers, moves placement groups |
//! | return | a node without data, or not yet a voter | asks the others to take it back; every other one that does not lead: whether it was removed |
//! | space | every member | looks how full the disk is; the leader asks the others too |
//! | watch | every member | stops the process when openraft has stopped |

use crate::keep;
use crate::leading::Leading;
use crate::movers;
use crate::namespace::{self, Command, Done};
use crate::node::{Shared, is_outside};
use crate::opens::{Asked, Found};
use crate::raft::{Member, Message, Reply, decode, encode};
use crate::space::{LOOK_EVERY, Others};
use crate::trash::Space;
use common::fault::{Fault, Kind};
use common::kv::{KvError, KvRead};
use common::rpc::Caller;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between two looks of the flush loop.
const FLUSH_LOOK: Duration = Duration::from_secs(1);
/// What is applied is flushed at the latest after this many looks ...
const FLUSH_LOOKS: u32 = 10;
/// ... or when it is this many bytes.
const FLUSH_BYTES: u64 = 32 << 20;
/// Between two looks of the leader.
const LEADER_LOOK: Duration = Duration::from_millis(250);
/// Silent sessions ended in one look, at most.
const EXPIRE_MAX: usize = 64;
/// Files without a name that one round is about, and that sessions are noted to hold, at most.
const ORPHANS_MAX: usize = 512;
/// Extents taken apart by one command.
const PURGE_EXTENTS: u32 = 2048;
/// Such commands in one look, at most: sessions, servers and moves are looked after as well.
const PURGES_MAX: u32 = 64;
/// Pieces of the trash that go in one look, at most.
const TRASH_PIECES: u32 = 16;
/// How long another metaserver may take to say whether it has room.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two attempts to return.
const RETURN_PAUSE: Duration = Duration::from_secs(1);
/// A member that does not lead asks after so many of them whether it is still one.
const STANDING_LOOKS: u32 = 5;

/// Starts all loops. They find out by themselves what there is to do.
pub(crate) fn start(node: &Shared) {
    let own = node.clone();
    node.tasks.spawn("flush", |stop| flush(own, stop));
    let own = node.clone();
    node.tasks.spawn("leader", |stop| leader(own, stop));
    let own = node.clone();
    node.tasks.spawn("return", |stop| come_back(own, stop));
    if node.config.reserve_bytes > 0 {
        let own = node.clone();
        node.tasks.spawn("space", |stop| space(own, stop));
    }
}

/// Sleeps; false when it is time to stop.
async fn next(stop: &CancellationToken, pause: Duration) -> bool {
    tokio::select! {
        biased;
        () = stop.cancelled() => false,
        () = tokio::time::sleep(pause) => true,
    }
}

async fn flush(node: Shared, stop: CancellationToken) {
    let mut looks = 0;
    while next(&stop, FLUSH_LOOK).await {
        let Some(member) = node.try_member() else { continue };
        looks += 1;
        let unflushed = member.state.unflushed();
        if unflushed == 0 || (unflushed < FLUSH_BYTES && looks < FLUSH_LOOKS) {
            continue;
        }
        looks = 0;
        let (state, own) = (member.state.clone(), node.clone());
        let flushed = node.world.blocking(move || {
            crate::space::make_room(&*own.world.disk, &own.config.data_dir);
            state.flush()
        });
        if let Err(error) = flushed.await {
            tracing::error!(%error, "flush the metadata store");
            node.failed(&format!("flush the metadata store: {error}"));
        }
    }
}

/// Fences sessions that others have waited for long enough.
async fn fence(member: &Member, leading: &Leading) -> Result<(), Fault> {
    let sessions = leading.leases.unfenced();
    if !sessions.is_empty() {
        tracing::warn!(?sessions, "they have not told what they may have changed: others are let pass");
        member.propose(&Command::Fence { term: leading.term, sessions: sessions.clone() }).await?;
        leading.leases.fenced(&sessions);
    }
    Ok(())
}

async fn leader(node: Shared, stop: CancellationToken) {
    let mut members = None;
    while next(&stop, LEADER_LOOK).await {
        let Some(member) = node.try_member() else { continue };
        if let Err(fatal) = &member.metrics().running_state {
            node.failed(&format!("consensus stopped: {fatal}"));
        }
        if !member.is_leader() {
            continue;
        }
        let leading = match node.leadership.get(&member).await {
            Ok(leading) => leading,
            Err(fault) => {
                if fault.kind == Kind::Unavailable {
                    node.leadership.alone();
                }
                continue;
            }
        };
        let now = *member.metrics().membership_config.log_id();
        if std::mem::replace(&mut members, now) != now {
            leading.servers.rows_changed(false); // the cluster map names the metaservers
        }
        let work = async {
            node.end_change(&member).await?;
            fence(&member, &leading).await?;
            expire(&node, &member, &leading).await?;
            keep::take_out(&member, &leading, Duration::from_secs(node.config.down_out_s), node.world.now()).await?;
            layout(&node, &member, &leading).await?;
            orphans(&node, &member, &leading).await?;
            expire_trash(&node, &member, &leading).await?;
            purge(&member, &stop).await?;
            movers::work(&node, &member, &leading).await
        };
        if let Err(fault) = work.await
            && !fault.kind.is_transient()
        {
            tracing::warn!(error = %fault, "work of the leader");
        }
    }
}

async fn expire(node: &Shared, member: &Member, leading: &Leading) -> Result<(), Fault> {
    for session in leading.sessions.silent(tokio::time::Instant::now(), EXPIRE_MAX) {
        member.propose(&Command::ExpireSession { session, at: node.world.now() }).await?;
        leading.sessions.ended(session);
        leading.rights.ended(session);
        leading.leases.ended(session);
        leading.lock_news.notify_waiters();
        tracing::info!(%session, "a silent session was ended");
    }
    Ok(())
}

/// Makes a layout if the present one is not what the servers ask for.
async fn layout(node: &Shared, member: &Member, leading: &Leading) -> Result<(), Fault> {
    if !leading.servers.layout_is_due() {
        return Ok(());
    }
    let state = member.state.clone();
    let made = node.world.blocking(move || movers::layout_now(&*state.mounted().kv().snapshot()));
    let set = match made.await {
        Ok(Some(layout)) => member.propose(&Command::SetLayout(layout)).await,
        Ok(None) => return Ok(()),
        Err(fault) => Err(fault),
    };
    leading.servers.rows_changed(false);
    match set {
        Ok(_) => {
            tracing::info!("a new layout was set");
            Ok(())
        }
        Err(fault) => {
            leading.servers.layout_again();
            Err(fault)
        }
    }
}

/// Finds out who has files without a name open, and lets go of those that nobody has.
async fn orphans(node: &Shared, member: &Member, leading: &Leading) -> Result<(), Fault> {
    let failed = |error: common::kv::KvError| Fault::new(Kind::Internal, error.to_string());
    let mounted = member.state.mounted();
    let (unasked, noted) = namespace::orphans(mounted.kv(), leading.opens.noted_to(), ORPHANS_MAX).map_err(failed)?;
    if unasked.is_empty() && noted.is_empty() {
        leading.opens.nothing();
        return Ok(());
    }
    let attending = namespace::attending(mounted.kv()).map_err(failed)?;
    drop(mounted);
    if !leading.opens.is_running(&attending) {
        leading.opens.begin(Asked { unasked, noted, attending }, tokio::time::Instant::now());
    }
    let Some(Found { held, dropped }) = leading.opens.finished(tokio::time::Instant::now()) else { return Ok(()) };
    if !held.is_empty() || !dropped.is_empty() {
        member.propose(&Command::Settle { held, dropped, at: node.world.now() }).await?;
    }
    Ok(())
}

/// Lets go what was removed too long ago to be brought back; while room runs out, also what was removed later.
async fn expire_trash(node: &Shared, member: &Member, leading: &Leading) -> Result<(), Fault> {
    let failed = |error: common::kv::KvError| Fault::new(Kind::Internal, error.to_string());
    let copies = leading.ctx.replicas;
    for _ in 0..TRASH_PIECES {
        let (at, now) = (node.world.now(), tokio::time::Instant::now());
        let mounted = member.state.mounted();
        let kv = mounted.kv();
        let before = namespace::trash_now(kv).map_err(failed)?;
        let is_due = namespace::has_due_trash(kv, at).map_err(failed)?;
        let space = space_now(node, leading, kv).map_err(failed)?;
        drop(mounted);
        let bytes = if before.entries == 0 { 0 } else { leading.trash.wanted(now, space, copies) };
        if bytes == 0 && !is_due {
            break;
        }
        let done = member.propose(&Command::Expire { bytes, at }).await?;
        let after = namespace::trash_now(member.state.mounted().kv()).map_err(failed)?;
        leading.trash.gone(now, before.bytes.saturating_sub(after.bytes), copies);
        if !matches!(done, Done::Purged { more: true }) {
            break;
        }
    }
    Ok(())
}

fn space_now(node: &Shared, leading: &Leading, kv: &dyn KvRead) -> Result<Space, KvError> {
    // Of a few servers, which happen to be full, nothing follows for all.
    let (capacity, free) = if leading.servers.knows_all() { leading.servers.room() } else { (0, 0) };
    Ok(Space {
        capacity,
        free,
        delete_paused: namespace::keep_settings(kv)?.delete_paused || namespace::held(kv)?.is_some(),
        tight: !node.space.has_room() || node.space.refusal().is_some(),
    })
}

/// Takes files that are gone apart, a piece at a time.
async fn purge(member: &Member, stop: &CancellationToken) -> Result<(), Fault> {
    let mounted = member.state.mounted();
    let failed = |error: common::kv::KvError| Fault::new(Kind::Internal, error.to_string());
    if !namespace::has_purge(mounted.kv()).map_err(failed)? {
        return Ok(());
    }
    drop(mounted);
    for _ in 0..PURGES_MAX {
        if stop.is_cancelled() {
            break;
        }
        match member.propose(&Command::Purge { limit: PURGE_EXTENTS }).await? {
            Done::Purged { more: true } => {}
            _ => break,
        }
    }
    Ok(())
}

async fn space(node: Shared, stop: CancellationToken) {
    let mut callers = BTreeMap::new();
    loop {
        let (own, reserve) = (node.clone(), node.config.reserve_bytes);
        let looked = node.world.blocking(move || own.space.look(&*own.world.disk, &own.config.data_dir, reserve)).await;
        let (dir, free) = (node.config.data_dir.display(), node.space.free());
        match looked {
            Ok(false) => {}
            Ok(true) if node.space.has_room() => tracing::info!(%dir, free, "the disk has room again"),
            Ok(true) => tracing::error!(%dir, free, reserve, "the disk is nearly full: add space, or remove files"),
            Err(error) => tracing::warn!(%dir, %error, "look how full the disk is"),
        }
        match node.try_member().filter(Member::is_leader) {
            Some(member) => ask_for_room(&node, &member, &mut callers).await,
            None => node.space.forget_others(),
        }
        if !next(&stop, LOOK_EVERY).await {
            return;
        }
    }
}

/// Asks the other voters whether they have room. `callers` are kept from one time to the next.
async fn ask_for_room(node: &Shared, member: &Member, callers: &mut BTreeMap<String, Caller>) {
    let members = member.metrics().membership_config.clone();
    let voters: BTreeSet<u64> = members.voter_ids().collect();
    let others = voters.iter().filter(|id| **id != member.identity.raft_id).filter_map(|id| members.get_node(id));
    let addrs: BTreeSet<String> = others.map(|other| other.addr.clone()).collect();
    callers.retain(|addr, _| addrs.contains(addr));
    for addr in addrs {
        callers.entry(addr).or_insert_with_key(|addr| node.caller(addr));
    }
    let Ok(ask) = encode(&Message::Room) else { return };
    let asked = callers.values().map(|caller| caller.raft(ask.clone(), ROOM_TIMEOUT));
    let answers = futures::future::join_all(asked).await;
    let said: Vec<bool> = answers
        .iter()
        .flatten()
        .filter_map(|bytes| match decode::<Reply>(bytes) {
            Ok(Reply::Room(has_room)) => Some(has_room),
            _ => None,
        })
        .collect();
    let with_room = said.iter().filter(|has_room| **has_room).count();
    node.space.heard(Others { with_room, tight: said.len() - with_room, voters: voters.len() });
}

async fn come_back(node: Shared, stop: CancellationToken) {
    let mut looks = 0u32;
    while next(&stop, RETURN_PAUSE).await {
        looks = looks.wrapping_add(1);
        let result = match node.try_member() {
            None if node.is_removed() => Ok(()),
            None => node.try_return().await,
            // Only a node that came back asks to be let in: at format all are members from the start.
            Some(member) if member.identity.raft_id > crate::raft::NODE_MASK && is_outside(&member) => {
                match node.try_enter(&member).await {
                    Err(fault) if looks.is_multiple_of(STANDING_LOOKS) => {
                        node.check_standing(&member).await.and(Err(fault))
                    }
                    entered => entered,
                }
            }
            Some(member) if looks.is_multiple_of(STANDING_LOOKS) => node.check_standing(&member).await,
            Some(_) => Ok(()),
        };
        if let Err(fault) = result {
            tracing::debug!(error = %fault, "come back");
        }
    }
}
