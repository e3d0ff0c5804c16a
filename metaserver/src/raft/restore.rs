//! The first state of a new life, from a backup (DESIGN 7).
//!
//! Each of the new metaservers gets the whole backup, checks every byte, and makes the same state of it: the backup's,
//! with [`Command::Restored`] applied behind its last entry. That is where the new group's log begins, for all of them, in
//! a term above every one that an earlier life has come to: so what those voted or wrote there compares as older, the
//! versions of cluster maps differ from all earlier ones, and indices go on from the backup's.
//!
//! A node is a member only with its identity, which is written last ([`super::Member::create`]). Until then a crash leaves
//! an empty metaserver, as before.

use super::snapshot::Receiving;
use super::state::{self, Applied, Dir};
use super::types::{Members, log_id, returned_id};
use crate::config::Config;
use crate::identity::Identity;
use crate::namespace::{self, Command};
use crate::store::Txn;
use crate::store::keys::RAFT;
use bytes::Bytes;
use common::fault::{Fault, Kind};
use common::id::{LogIndex, NodeId};
use common::proto::backup::RestorePlan;
use common::units::len_u64;
use common::world::World;
use openraft::{BasicNode, Membership};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Under the data directory: what is received.
const DIR: &str = "restore";
/// In it: the store.
const STORE: &str = "kv";

/// A restore under way on one node. Blocks.
#[derive(Debug)]
pub(crate) struct Incoming {
    plan: RestorePlan,
    root: PathBuf,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Receiving(Box<Receiving>),
    /// Checked, made the first state, and durable.
    Prepared(Dir),
}

impl Incoming {
    /// Begins; what an earlier one left goes.
    pub(crate) fn begin(world: &World, config: &Config, plan: RestorePlan) -> Result<Incoming, Fault> {
        check(&plan, NodeId(config.node_id))?;
        let root = config.data_dir.join(DIR);
        if world.disk.exists(&root) {
            world.disk.remove_dir_all(&root).map_err(failed)?;
        }
        let dir = Dir::new(world.disk.clone(), root.join(STORE));
        world.disk.create_dir_all(&dir.path).map_err(failed)?;
        dir.give_up(); // unless it becomes a member's
        let files = plan.head.files.clone();
        let receiving = Box::new(Receiving::begin_in(dir, plan.restore, Applied::default(), files)?);
        Ok(Incoming { plan, root, step: Step::Receiving(receiving) })
    }

    /// The plan that its steps belong to.
    pub(crate) fn plan(&self) -> &RestorePlan {
        &self.plan
    }

    /// Takes the next bytes.
    pub(crate) fn piece(&mut self, world: &World, file: u32, at: u64, bytes: &Bytes) -> Result<(), Fault> {
        match &mut self.step {
            Step::Receiving(receiving) if receiving.has(file, at, len_u64(bytes.len())) => Ok(()), // sent twice
            Step::Receiving(receiving) => receiving.piece(&*world.disk, file, at, bytes),
            Step::Prepared(_) => Ok(()), // sent twice
        }
    }

    /// Checks what has arrived, and makes the first state of it.
    pub(crate) fn prepare(self, world: &World, config: &Config) -> Result<Incoming, Fault> {
        let Incoming { plan, root, step } = self;
        let dir = match step {
            Step::Prepared(dir) => dir,
            Step::Receiving(receiving) => {
                let (_, dir) = receiving.end(&*world.disk, &plan.hashes)?;
                first_state(world, config, &root, &plan)?;
                dir
            }
        };
        Ok(Incoming { plan, root, step: Step::Prepared(dir) })
    }

    /// Makes the files of a member of it.
    pub(crate) fn become_member(&self, world: &World, config: &Config) -> Result<Identity, Fault> {
        let Step::Prepared(dir) = &self.step else {
            return Err(Fault::new(Kind::Busy, "this metaserver has not prepared the restore: begin again"));
        };
        let RestorePlan { head, epoch, term, .. } = &self.plan;
        let identity = Identity::new(head.cluster, *epoch, config.node_id);
        let made = super::Member::create(world, config, identity, Some((&dir.path, *term)));
        made.map_err(|error| Fault::new(Kind::Internal, error.to_string()))?;
        dir.keep(); // it is somewhere else now
        if let Err(error) = world.disk.remove_dir_all(&self.root) {
            tracing::warn!(dir = %self.root.display(), %error, "remove");
        }
        Ok(identity)
    }
}

fn failed(error: impl std::fmt::Display) -> Fault {
    Fault::new(Kind::Internal, format!("restore: {error}"))
}

/// The term from which cluster maps would get no versions any more.
const TERM_END: u64 = 1 << 32;

fn check(plan: &RestorePlan, own: NodeId) -> Result<(), Fault> {
    let invalid = |text: String| Err(Fault::new(Kind::Invalid, format!("restore: {text}")));
    let RestorePlan { head, epoch, term, metaservers, .. } = plan;
    let nodes: BTreeSet<NodeId> = metaservers.iter().map(|(node, _)| *node).collect();
    let addrs: BTreeSet<&String> = metaservers.iter().map(|(_, addr)| addr).collect();
    if !matches!(nodes.len(), 1 | 3 | 5) || nodes.len() != metaservers.len() || addrs.len() != nodes.len() {
        return invalid(format!("{} metaservers: must be 1, 3 or 5 different ones", metaservers.len()));
    }
    if nodes.iter().any(|node| node.0 == 0 || node.0 > super::NODE_MASK) {
        return invalid("a node number that is none".into());
    }
    if !nodes.contains(&own) {
        return invalid(format!(
            "this is metaserver {own}, which is not one of the list: check node_id and the addresses"
        ));
    }
    if *epoch <= head.epoch || *term <= head.term || *term >= TERM_END {
        return invalid(format!("epoch {epoch} and term {term} do not follow {} and {}", head.epoch, head.term));
    }
    if plan.hashes.len() != head.files.len() {
        return invalid("not a hash for each file".into());
    }
    Ok(())
}

/// Turns the backup's state, in `root`, into the first one of the new life. Durable when this returns.
fn first_state(world: &World, config: &Config, root: &std::path::Path, plan: &RestorePlan) -> Result<(), Fault> {
    let RestorePlan { head, term, metaservers, .. } = plan;
    let mounted = state::mount(world, root, STORE, &config.tuning()).map_err(failed)?;
    let kv = mounted.kv();
    let other =
        |what: &str| Fault::new(Kind::Corrupt, format!("restore: the backup holds another {what} than it says"));
    let before = state::applied_in(kv).map_err(failed)?;
    if before.last != Some(log_id(head.term, head.index.0)) {
        return Err(other("index"));
    }
    let found = namespace::config(kv).map_err(failed)?;
    if found.is_none_or(|found| (found.cluster, found.epoch) != (head.cluster, head.epoch)) {
        return Err(other("cluster or epoch"));
    }
    let index = LogIndex(head.index.0 + 1);
    let restored = Command::Restored { epoch: plan.epoch, metaservers: metaservers.clone(), at: plan.at };
    let what = format!("metadata restored from a backup of {} at index {}", head.epoch, head.index.0);
    let command = Command::Ordered { by: plan.by.clone(), what, at: plan.at, command: Some(Box::new(restored)) };
    let mut txn = Txn::new(kv);
    namespace::apply(&mut txn, index, &command).map_err(failed)??;
    let mut batch = txn.into_batch();
    let nodes: BTreeMap<u64, BasicNode> =
        metaservers.iter().map(|(node, addr)| (returned_id(*node, 0), BasicNode::new(addr))).collect();
    let voters: BTreeSet<u64> = nodes.keys().copied().collect();
    let last = log_id(*term, index.0);
    let members = Membership::new(vec![voters], nodes).map_err(failed)?;
    let applied = Applied { last: Some(last), members: Members::new(Some(last), members) };
    batch.put(RAFT, state::ROW_APPLIED, state::encode(&applied).map_err(failed)?);
    kv.write(batch).and_then(|()| kv.flush()).map_err(failed)
}
