//! The namespace: what the cluster *is*, as a deterministic state machine over a key-value store.
//!
//! [`apply`] takes one committed command after the other; [`query`] reads. Neither has a clock, randomness or I/O beyond
//! the store: time and caller come with the command, so every metaserver computes the same bytes.
//!
//! Invariants ([`check()`] tests all of them that are about rows):
//! 1. A command takes effect once: a slot keeps its last (sequence, reply); an older sequence is refused. Replies that
//!    say "nothing happened, do something and ask again" are not kept (see [`Kind::is_kept`](common::fault::Kind::is_kept)).
//! 2. A command that fails changes nothing but its slot.
//! 3. Each entry has a `dentry` and a `list` row that say the same, and an inode. `nlink` counts entries; of a
//!    directory 2 + its subdirectories. A directory has one entry, and its `parent` names where.
//! 4. `nlink` 0 means: at least one `orphan` row names the inode; each has a `holder` row that says the same.
//! 5. A `chunk` row is there exactly while extents refer to the chunk, and counts them per replica target: that of the
//!    file, or, while that changes, the one that its `recount` row says.
//! 6. A new reference is accepted only with a witness not below the horizon of the chunk's bucket (DESIGN 7): so no
//!    commit revives a chunk whose deletion was granted.
//! 7. An inode is in the inode family or buried in the trash, never both.
//! 8. `allocated`, `extents`, `xattr_names`, a directory's `entries` and all counters equal what the rows add up to.
//!
//! One file an operation, the life of a write ends in `commit.rs`:
//!
//! | file | does |
//! | --- | --- |
//! | `command` | what stands in the log, what comes back |
//! | `session` | open, close, expire, reply slots |
//! | `access`, `acl` | permission bits, access control lists |
//! | `create`, `remove`, `rename`, `attr`, `xattr` | changes of the tree and of inodes |
//! | `batch` | changes that a session has made under write leases, many in one command |
//! | `commit`, `clone`, `extents` | changes of what a file holds; the extent map and the reference counts |
//! | `recount` | another number of copies for a file |
//! | `lock` | locks of programs, held and waited for |
//! | `trash` | what lost its last name and can be brought back |
//! | `query`, `walk` | reads |
//! | `cluster` | format, chunkservers, layout, map |
//! | `keep` | which chunks belong on a server, which may be deleted, who is out |
//! | `moves` | placement groups on their way from server to server, and the plan they follow |
//! | `event` | who did what, when |
//! | `restore` | a new life from a backup |
//! | `rows`, `check`, `fix` | single rows; the invariants above, checked over a whole store; mending what is wrong |
//!
//! Left out (with later issues): snapshots, quotas.

mod access;
mod acl;
mod attr;
mod batch;
mod check;
mod clone;
mod cluster;
mod command;
mod commit;
mod create;
mod event;
mod extents;
mod fix;
mod keep;
mod lock;
mod moves;
mod query;
mod recount;
mod remove;
mod rename;
mod restore;
mod rows;
mod session;
mod trash;
mod walk;
mod xattr;

#[cfg(test)]
mod tests;

pub use access::may_use;
pub use access::squash;
pub use batch::decides;
pub use check::{Problem, check, problems};
pub use cluster::{ServerEntry, cluster_map, layout_version, secret, servers};
pub use command::{COMMAND_VERSION, Command, Done, Fail, NewPlan, PlanChange, Reply, Step};
pub use commit::validate as validate_commit;
pub use event::{EVENTS_MAX, events};
pub use fix::{Counter, FIXES_MAX, Fix, LOST_AND_FOUND};
pub use keep::{EXPLAIN_MAX, Page, expected, explain, out, settings as keep_settings, targets};
pub use lock::waits as lock_waits;
pub use moves::{away, left, moves, plan, steps as plan_steps};
pub use query::{QueryCtx, attr, few_extents, lead_to, leased, query};
pub use remove::{Noted, UNASKED, attending, has_purge, orphans};
pub use restore::held;
pub use rows::{config, counters};
pub use session::{SESSION_TIMEOUT_MS, is_answered, is_open as session_is_open, sessions};
pub use trash::{has_due as has_due_trash, trash_now};

use crate::store::Txn;
use common::fault::{Fault, Kind};
use common::id::{LogIndex, SessionId};
use common::kv::KvError;
use common::proto::meta::{Cred, Op, Outcome};
use common::proto::trash::SettingsChange;
use common::time::Time;
use rows::Call;

/// Applies the committed command at `index`: changes `txn`, answers the caller.
///
/// A refusal is a reply like any other, and leaves only the slot changed.
///
/// # Errors
/// The store failed: `txn` is void and this replica must stop.
pub fn apply(txn: &mut Txn<'_>, index: LogIndex, command: &Command) -> Result<Reply, KvError> {
    match command {
        Command::Client { request, at } => {
            let reply = session::run(txn, index, *at, request)?;
            Ok(reply.map(Done::Applied))
        }
        Command::ExpireSession { session, at } => {
            system(txn, index, *at, |call| session::end(call, *session).map(|()| Done::Ended))
        }
        Command::Format { at, .. } => system(txn, index, *at, |call| cluster::format(call, command)),
        Command::Register(register) => system(txn, index, Time::default(), |call| cluster::register(call, register)),
        Command::SetLayout(layout) => system(txn, index, Time::default(), |call| cluster::set_layout(call, layout)),
        Command::SetServerWeight { server, weight } => {
            system(txn, index, Time::default(), |call| cluster::set_weight(call, *server, *weight))
        }
        Command::Fix { scan, batch, fixes, at } => system(txn, index, *at, |call| fix::fix(call, *scan, *batch, fixes)),
        Command::Ordered { by, what, at, command } => {
            let reply = match command.as_deref() {
                Some(Command::Ordered { .. }) => Err(Fault::new(Kind::Invalid, "an order within an order")),
                Some(command) => apply(txn, index, command)?,
                None => Ok(Done::Noted),
            };
            if reply.is_ok() {
                let _noted = system(txn, index, *at, |call| event::record(call, by, what))?;
            }
            Ok(reply)
        }
        Command::RemoveServer { server } => {
            system(txn, index, Time::default(), |call| cluster::remove_server(call, *server))
        }
        Command::Readmit { server } => system(txn, index, Time::default(), |call| cluster::readmit(call, *server)),
        Command::Purge { limit } => system(txn, index, Time::default(), |call| remove::purge(call, *limit)),
        Command::Settle { held, dropped, at } => system(txn, index, *at, |call| remove::settle(call, held, dropped)),
        Command::Condemn { epoch, chunks } => {
            system(txn, index, Time::default(), |call| keep::condemn(call, *epoch, chunks))
        }
        Command::Holds { server, epoch, chunks } => {
            system(txn, index, Time::default(), |call| keep::holds(call, *server, *epoch, chunks))
        }
        Command::SetOut { server, out } => {
            system(txn, index, Time::default(), |call| keep::set_out(call, *server, *out))
        }
        Command::SetSquash(squash) => {
            system(txn, index, Time::default(), |call| access::set_squash(call, squash.as_ref()))
        }
        Command::SetKeep(change) => system(txn, index, Time::default(), |call| keep::set_keep(call, change)),
        Command::Settings { keep, min_replicas } => {
            let change = SettingsChange { keep: *keep, min_replicas: *min_replicas, ..SettingsChange::default() };
            system(txn, index, Time::default(), |call| set(call, &change))
        }
        Command::Change(change) => system(txn, index, Time::default(), |call| set(call, change)),
        Command::Expire { bytes, at } => system(txn, index, *at, |call| trash::expire(call, *bytes)),
        Command::EmptyTrash { at } => system(txn, index, *at, |call| trash::empty(call, *at)),
        Command::Restored { epoch, metaservers, at } => {
            system(txn, index, *at, |call| restore::restored(call, *epoch, metaservers))
        }
        Command::Fence { term, sessions } => {
            system(txn, index, Time::default(), |call| batch::fence(call, *term, sessions).map(|()| Done::Noted))
        }
        Command::Release { epoch } => system(txn, index, Time::default(), |call| restore::release(call, *epoch)),
        Command::Step(step) => system(txn, index, step.at, |call| moves::step(call, step)),
        Command::Rebalance { change, at } => system(txn, index, *at, |call| moves::change_plan(call, change)),
        Command::Away { server, until } => {
            system(txn, index, Time::default(), |call| moves::set_away(call, *server, *until))
        }
    }
}

/// Runs a command that is no client's: all or nothing.
fn system(
    txn: &mut Txn<'_>,
    index: LogIndex,
    at: Time,
    body: impl FnOnce(&mut Call<'_, '_>) -> Result<Done, Fail>,
) -> Result<Reply, KvError> {
    let root = Cred::default();
    let savepoint = txn.savepoint();
    let mut call = Call::new(txn, index, at, SessionId(0), &root)?;
    match body(&mut call) {
        Ok(done) => {
            call.finish();
            Ok(Ok(done))
        }
        Err(Fail::Fault(fault)) => {
            txn.rollback(savepoint);
            Ok(Err(fault))
        }
        Err(Fail::Kv(error)) => Err(error),
    }
}

/// Changes settings of the cluster.
fn set(call: &mut Call<'_, '_>, change: &SettingsChange) -> Result<Done, Fail> {
    if let Some(min_replicas) = change.min_replicas {
        cluster::set_min_replicas(call, min_replicas)?;
    }
    if let Some(window_s) = change.undelete_window_s {
        trash::set_window(call, window_s)?;
    }
    keep::set_keep(call, &change.keep).map(|_| Done::Noted)
}

/// Carries out one operation of an open session.
fn run(call: &mut Call<'_, '_>, op: &Op) -> Result<Outcome, Fail> {
    match op {
        Op::OpenSession { .. } | Op::OpenAttending { .. } => unreachable!("handled before slots are looked at"),
        Op::Batch(_) => unreachable!("each of its changes is carried out on its own"),
        Op::HaveLocks { ino, locks } if locks.is_empty() => lock::have(call, *ino, &[]), // that harms nobody
        Op::HaveLocks { .. } => Err(command::refuse(common::fault::Kind::Invalid, "locks are said in a batch")),
        Op::Reserve { count } => batch::reserve(call, *count),
        Op::CloseSession => session::end(call, call.session).map(|()| Outcome::Done),
        Op::Create { parent, name, node, mode, exclusive, access } => create::create(
            call,
            *parent,
            name,
            &create::New { node, mode: *mode, umask: 0, exclusive: *exclusive, access: *access },
        ),
        Op::CreateUnmasked { parent, name, node, mode, umask, exclusive, access } => create::create(
            call,
            *parent,
            name,
            &create::New { node, mode: *mode, umask: *umask, exclusive: *exclusive, access: *access },
        ),
        Op::Link { ino, parent, name } => create::link(call, *ino, *parent, name),
        Op::Unlink { parent, name, keep } => remove::unlink(call, *parent, name, *keep),
        Op::Rmdir { parent, name } => remove::rmdir(call, *parent, name),
        Op::Rename { from, from_name, to, to_name, mode, keep } => {
            rename::rename(call, (*from, from_name), (*to, to_name), *mode, *keep)
        }
        Op::SetAttr { ino, set } => attr::set(call, *ino, set),
        Op::SetXattr { ino, name, value, mode } => xattr::set(call, *ino, name, value, *mode),
        Op::RemoveXattr { ino, name } => xattr::remove(call, *ino, name),
        Op::Release { ino } => remove::release(call, *ino),
        Op::Commit(commit) => commit::commit(call, commit),
        Op::Clone(range) => clone::clone_range(call, range),
        Op::Lock(ask) => lock::lock(call, ask),
        Op::CancelLock { ino, number } => lock::cancel(call, *ino, *number),
        Op::Accessed { files } => attr::accessed(call, files),
        Op::Undelete { ino, parent, name } => trash::undelete(call, *ino, *parent, name),
    }
}
