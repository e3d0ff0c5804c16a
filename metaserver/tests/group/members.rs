//! Metaservers come and go while clients work: nothing acknowledged is lost, and no majority is given away.

use super::*;
use common::proto::backup::{MemberChange, Members};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::task::JoinSet;

impl Group {
    async fn change(&self, change: MemberChange) -> Result<Members, Fault> {
        match self.order(Order::Members(change)).await? {
            Ordered::Members { members, .. } => Ok(members),
            other => panic!("{other:?}"),
        }
    }

    async fn add(&self, i: usize) -> Result<Members, Fault> {
        self.change(MemberChange::Add { addr: self.addrs[i].clone() }).await
    }

    async fn promote(&self, node: u64) -> Result<Members, Fault> {
        self.change(MemberChange::Promote { node: NodeId(node) }).await
    }

    async fn remove(&self, node: u64) -> Result<Members, Fault> {
        self.change(MemberChange::Remove { node: NodeId(node) }).await
    }

    /// The addresses in the cluster map.
    async fn in_map(&self) -> BTreeSet<String> {
        let map = self.caller(Role::Client, &self.addrs).cluster_map(LIMIT).await.unwrap();
        map.metaservers.into_values().collect()
    }

    async fn wait_state(&self, i: usize, state: &str) {
        let end = Instant::now() + 3 * LIMIT;
        loop {
            let now = self.node_status(i).await.map(|status| status.state);
            if now.as_ref().is_ok_and(|now| now == state) {
                return;
            }
            assert!(Instant::now() < end, "node {i} never said that it is {state}: {now:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn nodes(of: &[u64]) -> Vec<NodeId> {
    of.iter().copied().map(NodeId).collect()
}

/// Creates files until it is told to stop; how many were acknowledged.
async fn create_until(mut client: Client, stop: Arc<AtomicBool>) -> (Client, u64) {
    let mut made = 0;
    while !stop.load(Ordering::Relaxed) {
        client.create(&format!("w{made}")).await;
        made += 1;
    }
    (client, made)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_metaservers_are_replaced_one_by_one_under_load() {
    let mut group = Group::empty(6, 200).await;
    group.format_first(3).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    load.spawn(create_until(group.client().await, stop.clone()));
    for (old, new) in [(1, 3), (2, 4), (3, 5)] {
        let node = u64::try_from(new).unwrap() + 1;
        let members = group.add(new).await.unwrap();
        assert_eq!(members.learners, nodes(&[node]), "it learns at first");
        assert_eq!(group.node_status(new).await.unwrap().state, "learner");
        let members = group.promote(node).await.unwrap();
        assert!(members.voters.len() == 4 && members.learners.is_empty(), "{members:?}");
        assert_eq!(group.promote(node).await, Ok(members), "asked again");
        // One of the four may be down meanwhile.
        let away = if old == 1 { 1 } else { new - 1 };
        group.stop(away).await;
        let index = group.client().await.create(&format!("while {old} is about to go")).await.index.0;
        group.start(away).await.unwrap();
        group.wait_applied(away, index).await;
        let members = group.remove(old).await.unwrap();
        assert!(members.voters.len() == 3 && !members.voters.contains(&NodeId(old)), "{members:?}");
        let removed = usize::try_from(old).unwrap() - 1;
        group.wait_state(removed, "removed").await;
        if old == 1 {
            group.stop(removed).await;
            group.start(removed).await.unwrap();
            assert_eq!(group.node_status(removed).await.unwrap().state, "removed", "also after a restart");
            let asked = group.caller(Role::Client, &group.addrs[..1]).cluster_map(Duration::from_secs(1)).await;
            assert!(asked.unwrap_err().message.contains("was removed from its cluster"));
        }
    }
    stop.store(true, Ordering::Relaxed);
    let (client, made) = load.join_next().await.unwrap().unwrap();
    for i in 0..3 {
        group.stop(i).await; // the old ones are of no use any more
    }
    assert_eq!(group.in_map().await, group.addrs[3..].iter().cloned().collect());
    assert!(made > 100, "only {made}");
    for i in 0..made {
        assert!(client.look_up(&format!("w{i}")).await.is_ok(), "w{i} of {made}");
    }
    // The new ones stand on their own: one of them may be down, and a restart of all is fine.
    for i in 3..6 {
        group.stop(i).await;
    }
    for i in 3..5 {
        group.start(i).await.unwrap();
    }
    assert!(client.look_up("w0").await.is_ok());
    group.client().await.create("after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_gives_a_majority_away_or_makes_no_sense_is_refused() {
    let mut group = Group::empty(5, 1000).await;
    group.format_first(3).await.unwrap();
    let other = Group::formatted(1, 1000).await;
    let refused = |change: Result<Members, Fault>, kind: Kind, says: &str| {
        let fault = change.unwrap_err();
        assert!(fault.kind == kind && fault.message.contains(says), "{fault:?}");
    };
    refused(group.add(1).await, Kind::Exists, "is metaserver m2 of this cluster already");
    let foreign = MemberChange::Add { addr: other.addrs[0].clone() };
    refused(group.change(foreign).await, Kind::Refused, "this is cluster");
    refused(group.promote(4).await, Kind::NotFound, "add it first");
    refused(group.remove(4).await, Kind::NotFound, "no metaserver m4");
    let nobody = MemberChange::Add { addr: "127.0.0.1:1".into() };
    refused(group.change(nobody).await, Kind::Unavailable, "127.0.0.1:1");
    let leader = group.wait_for_leader().await;
    let down = (leader + 1) % 3;
    group.stop(down).await;
    let gone = u64::try_from(down).unwrap() + 1;
    let notices = |status: &Status| {
        status.metaservers.iter().any(|(node, _, matched)| *node == NodeId(gone) && matched.is_none())
    };
    let end = Instant::now() + LIMIT;
    while !notices(&group.status().await) {
        assert!(Instant::now() < end, "it is never seen to be down");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let third = u64::try_from((leader + 2) % 3).unwrap() + 1;
    refused(group.remove(third).await, Kind::Refused, "only 1 of 2");
    // The one that is down can go, and another takes its place.
    assert_eq!(group.remove(gone).await.unwrap().voters.len(), 2);
    group.add(3).await.unwrap();
    assert_eq!(group.promote(4).await.unwrap().voters.len(), 3);
    refused(group.add(3).await, Kind::Exists, "is metaserver m4 of this cluster already");
    // It may come back with an empty disk, as any voter.
    group.stop(3).await;
    group.dirs[3] = tempfile::tempdir().unwrap();
    group.start(3).await.unwrap();
    group.wait_state(3, "follower").await;
    group.start(down).await.unwrap();
    group.wait_state(down, "removed").await;
}
