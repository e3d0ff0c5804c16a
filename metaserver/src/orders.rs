//! What administrators order: is it theirs to order, and who carries it out.

use crate::fsck::Jobs;
use crate::leading::Leading;
use crate::node::Shared;
use crate::raft::Member;
use common::auth::AdminKey;
use common::fault::{Fault, Kind};
use common::hello::{Peer, Role};
use common::proto::admin::{ORDER_AGE_MAX_S, Order, Ordered, Signed};
use common::wire::Pool;
use std::sync::Arc;

/// The longest name of who ordered something, in bytes.
const BY_LEN_MAX: usize = 255;

/// See the module.
pub(crate) struct Orders {
    node: Shared,
    pool: Pool,
    jobs: Jobs,
}

impl Orders {
    /// For this node; asks chunkservers through this pool.
    pub(crate) fn new(node: Shared, pool: Pool) -> Orders {
        Orders { node, pool, jobs: Jobs::default() }
    }

    /// Refuses what no administrator signed.
    pub(crate) fn check(&self, peer: &Peer, signed: &Signed) -> Result<(), Fault> {
        peer.require(&[Role::Admin], "this order")?;
        check(self.node.admin_key.as_ref(), signed, self.node.world.now().secs)
    }

    /// Carries an order out, as the leader.
    pub(crate) async fn carry_out(
        &self,
        member: Member,
        leading: Arc<Leading>,
        signed: Signed,
    ) -> Result<Ordered, Fault> {
        match signed.order {
            Order::Fsck(ask) => {
                let job = self.jobs.start(&self.node, (member, leading), self.pool.clone(), ask)?;
                Ok(Ordered::FsckStarted { job })
            }
            Order::FsckLook { job, after } => Ok(Ordered::Fsck(self.jobs.look(job, after)?)),
        }
    }
}

/// True to the key, if there is one, and not too old.
fn check(key: Option<&AdminKey>, signed: &Signed, now: i64) -> Result<(), Fault> {
    if signed.by.len() > BY_LEN_MAX {
        return Err(Fault::new(Kind::Invalid, "the name of who orders this is too long"));
    }
    let Some(key) = key else { return Ok(()) };
    if !key.has_signed(signed) {
        let text = "this order is not signed with the administrator's key: set admin_key_file in the client's \
                    configuration, or DFS_ADMIN_KEY_FILE, to a copy of the metaservers'";
        return Err(Fault::new(Kind::Refused, text));
    }
    if now.abs_diff(signed.at.secs) > ORDER_AGE_MAX_S.unsigned_abs() {
        let text = format!("this order was signed {} s from now: set the clocks right", signed.at.secs - now);
        return Err(Fault::new(Kind::Refused, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::time::Time;

    #[test]
    fn only_fresh_orders_with_the_right_key_are_taken() {
        let key = |text| AdminKey::from_text(text).unwrap();
        let (ours, theirs) = (key("the key of this cluster"), key("the key of another one"));
        let signed = |key: &AdminKey| {
            key.sign(Order::FsckLook { job: 1, after: 0 }, Time { secs: 1000, nanos: 0 }, "root@host".into())
        };
        assert_eq!(check(Some(&ours), &signed(&ours), 1000), Ok(()));
        assert_eq!(check(Some(&ours), &signed(&ours), 1000 + ORDER_AGE_MAX_S), Ok(()));
        for (signed, now) in
            [(signed(&theirs), 1000), (signed(&ours), 1001 + ORDER_AGE_MAX_S), (signed(&ours), 999 - ORDER_AGE_MAX_S)]
        {
            assert_eq!(check(Some(&ours), &signed, now).unwrap_err().kind, Kind::Refused, "{now}");
        }
        assert_eq!(check(None, &signed(&theirs), 1000), Ok(()), "no key is asked for");
    }
}
