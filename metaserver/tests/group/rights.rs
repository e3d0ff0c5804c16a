//! Who may use what a file holds, asked around any mount.

use super::*;
use bytes::Bytes;
use common::auth::Attempt;
use common::id::{ChunkId, LayoutVersion};
use common::proto::meta::{ACCESS_WRITE, CloneRange, Commit, Edit, SetAttr, Source};

const ROOT: u32 = 0;
const ANN: u32 = 1000;
const BOB: u32 = 1001;

fn cred(uid: u32) -> Cred {
    Cred { uid, gid: uid, ..Cred::default() }
}

impl Client {
    async fn by(&mut self, uid: u32, op: Op) -> Result<Outcome, Fault> {
        let request = Request { cred: cred(uid), ..self.request(op) };
        let done = self.caller.submit(&request, LIMIT).await.map(|submitted| submitted.applied.outcome);
        self.seq -= u64::from(done.is_err()); // refused before it was proposed: the number is not used
        done
    }

    async fn asks(&self, uid: u32, query: Query) -> Result<Answer, Fault> {
        let ask = Ask { session: self.session, cred: cred(uid), query, lease: false };
        self.caller.query(&ask, LIMIT).await.map(|answered| answered.answer)
    }

    /// What becomes of each way to use a file: write, truncate, clone from it, clone to it, see its extents.
    async fn uses(&mut self, uid: u32, ino: InodeId, own: InodeId) -> Vec<Result<(), Kind>> {
        let bytes = Bytes::from_static(b"new");
        let data = Source::Inline { id: ChunkId::of(&bytes), offset: 0, bytes };
        let commit = Commit {
            ino,
            base: None,
            edits: vec![Edit { at: 0, len: 3, data }],
            append: false,
            grow: 3,
            chunks: Vec::new(),
            attempt: Attempt { session: self.session, witness: LogIndex(0), epoch: Epoch(1) },
            layout: LayoutVersion(0),
            mtime: None,
        };
        let cut = SetAttr { size: Some(2), opened: true, ..SetAttr::default() };
        let clone = |from, to| Op::Clone(CloneRange { from, from_at: 0, to, at: 10, len: 2 });
        let ops = [Op::Commit(commit), Op::SetAttr { ino, set: cut }, clone(ino, own), clone(own, ino)];
        let mut all = Vec::new();
        for op in ops {
            all.push(self.by(uid, op).await.map(drop).map_err(|fault| fault.kind));
        }
        let extents = self.asks(uid, Query::Extents { ino, from: 0, to: 10 }).await;
        all.push(extents.map(drop).map_err(|fault| fault.kind));
        all
    }

    async fn file(&mut self, uid: u32, name: &str, mode: u32) -> InodeId {
        let mut op = create(name);
        if let Op::Create { mode: of, .. } = &mut op {
            *of = mode;
        }
        match self.by(uid, op).await.unwrap() {
            Outcome::Created { attr, .. } => attr.ino,
            other => panic!("{other:?}"),
        }
    }

    async fn chmod(&mut self, ino: InodeId, mode: u32) {
        self.by(ROOT, Op::SetAttr { ino, set: SetAttr { mode: Some(mode), ..SetAttr::default() } }).await.unwrap();
    }
}

/// Root of some machines is nobody; else who goes round a mount may say that it is root.
async fn squash(group: &Group) {
    let here = vec!["127.0.0.1".parse().unwrap()];
    let nobody = Squash { uid: 65_534, gid: 65_534, allowed: here };
    group.order(Order::RootSquash(SquashAsk::Set(Some(nobody)))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_may_use_a_file_changes_it_or_sees_where_its_bytes_are() {
    let group = Group::formatted(1, 10_000).await;
    let (mut client, mut bob) = (group.client().await, group.client().await);
    client.chmod(InodeId::ROOT, 0o777).await;
    squash(&group).await;
    let (secret, own) = (client.file(ANN, "secret", 0o600).await, client.file(BOB, "own", 0o600).await);
    let fine = |uses: Vec<Result<(), Kind>>| assert!(uses.iter().all(Result::is_ok), "{uses:?}");
    assert_eq!(bob.uses(BOB, secret, own).await, vec![Err(Kind::Denied); 5]);
    fine(client.uses(ROOT, secret, own).await);
    let anns = client.file(ANN, "anns", 0o600).await;
    fine(client.uses(ANN, secret, anns).await);
    client.chmod(secret, 0o400).await;
    fine(client.uses(ANN, secret, anns).await); // the owner could allow it to himself

    client.chmod(secret, 0o604).await;
    let denied = Err(Kind::Denied);
    assert_eq!(bob.uses(BOB, secret, own).await, [denied, denied, Ok(()), denied, Ok(())]);
    client.chmod(secret, 0o601).await;
    assert_eq!(bob.uses(BOB, secret, own).await[4], Ok(()), "who may execute a file reads it");

    // What was opened stays open.
    client.chmod(secret, 0o606).await;
    let query = Query::Open { ino: secret, access: ACCESS_READ | ACCESS_WRITE, ahead: Vec::new() };
    bob.asks(BOB, query).await.unwrap();
    client.chmod(secret, 0o600).await;
    fine(bob.uses(BOB, secret, own).await);
    let mut another = group.client().await;
    assert_eq!(another.uses(BOB, secret, own).await, vec![denied; 5], "for who opened it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_goes_on_only_for_who_may_read_the_directory_or_began_it() {
    let group = Group::formatted(1, 10_000).await;
    let (mut client, bob) = (group.client().await, group.client().await);
    squash(&group).await;
    client.file(ROOT, "a", 0o600).await;
    client.file(ROOT, "b", 0o600).await;
    client.chmod(InodeId::ROOT, 0o711).await;
    let list = |after| Query::ReadDir { ino: InodeId::ROOT, after, limit: 1, attrs: false };
    for after in [0, 1, u64::MAX] {
        assert_eq!(
            bob.asks(BOB, list(after)).await.map(drop).map_err(|fault| fault.kind),
            Err(Kind::Denied),
            "{after}"
        );
    }
    client.chmod(InodeId::ROOT, 0o755).await;
    bob.asks(BOB, list(0)).await.unwrap();
    client.chmod(InodeId::ROOT, 0o711).await;
    bob.asks(BOB, list(1)).await.unwrap(); // it is open
    assert_eq!(bob.asks(BOB, list(0)).await.map(drop).map_err(|fault| fault.kind), Err(Kind::Denied), "but not anew");
}

/// The leader of then let it be done; the leader of now knows nothing of that, and would not.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_carried_out_is_answered_again_under_another_leader() {
    let group = Group::formatted(3, 10_000).await;
    let (mut client, mut bob) = (group.client().await, group.client().await);
    client.chmod(InodeId::ROOT, 0o777).await;
    squash(&group).await;
    let file = client.file(ANN, "file", 0o602).await;
    let cut = |size| Op::SetAttr { ino: file, set: SetAttr { size: Some(size), opened: true, ..SetAttr::default() } };
    let request = Request { cred: cred(BOB), ..bob.request(cut(7)) };
    let first = bob.caller.submit(&request, LIMIT).await.unwrap();
    client.chmod(file, 0o600).await;
    let before = group.status().await.leader.node;
    group.order(Order::TransferLeader { to: NodeId(before.0 % 3 + 1) }).await.unwrap();
    let end = tokio::time::Instant::now() + LIMIT;
    while group.status().await.leader.node == before {
        assert!(tokio::time::Instant::now() < end, "another one leads");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let again = bob.caller.submit(&request, LIMIT).await.unwrap();
    assert_eq!(again.applied, first.applied);
    assert_eq!(bob.by(BOB, cut(3)).await.map(drop).map_err(|fault| fault.kind), Err(Kind::Denied), "nothing new");
}
