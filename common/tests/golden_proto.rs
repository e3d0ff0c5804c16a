//! The bytes of the protocol, pinned. A line that changes here breaks every running cluster: raise
//! `proto::VERSION` and keep the old decoder, or undo the change. New lines (new variants) are fine.
//!
//! `DFS_WRITE_GOLDEN=1 cargo test -p common --test golden_proto` writes the file anew, to be reviewed as a diff.

use bytes::Bytes;
use common::auth::{Attempt, Mac, Receipt, Secret};
use common::fault::{Fault, Kind};
use common::id::*;
use common::layout::{ClusterMap, Domain, Layout, ServerInfo};
use common::name::Name;
use common::proto::admin::*;
use common::proto::backup::*;
use common::proto::batch::*;
use common::proto::chunk::*;
use common::proto::keep::*;
use common::proto::lease::*;
use common::proto::lock::*;
use common::proto::meta::*;
use common::proto::opens::*;
use common::proto::rebalance::*;
use common::proto::squash::*;
use common::proto::trash::*;
use common::time::Time;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fmt::{Debug, Write};

/// In the package, where tests run: a checkout elsewhere may share what was built.
const FILE: &str = "tests/golden/proto_v1.txt";

#[derive(Default)]
struct Golden(String);

impl Golden {
    fn line<T: Serialize + DeserializeOwned + PartialEq + Debug>(&mut self, name: &str, value: &T) {
        let bytes = postcard::to_stdvec(value).expect("plain data encodes");
        let back: T = postcard::from_bytes(&bytes).expect("what was encoded decodes");
        assert_eq!(&back, value, "{name} survives a round trip");
        let hex = bytes.iter().fold(String::new(), |mut out, b| {
            write!(out, "{b:02x}").expect("a string takes everything");
            out
        });
        writeln!(self.0, "{name} = {hex}").expect("a string takes everything");
    }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a good name")
}

fn attr() -> Attr {
    let time = |secs| Time { secs, nanos: 5 };
    Attr {
        ino: InodeId(300),
        kind: FileKind::File,
        mode: 0o644,
        uid: 1,
        gid: 2,
        nlink: 1,
        size: 70_000,
        allocated: 65_536,
        atime: time(-1),
        mtime: time(2),
        ctime: time(3),
        rdev: 0,
        chunk_size: 4 << 20,
        replicas: 3,
        version: DataVersion(9),
    }
}

fn attempt() -> Attempt {
    Attempt { session: SessionId(0xabcd), witness: LogIndex(77), epoch: Epoch(1) }
}

fn lock() -> Lock {
    Lock { space: LockSpace::Whole, owner: 7, kind: LockKind::Exclusive, start: 1, end: LOCK_END, pid: 300 }
}

fn ops() -> Vec<(&'static str, Op)> {
    let (ino, parent) = (InodeId(300), InodeId::ROOT);
    let set = SetAttr { mode: Some(0o600), size: Some(1), mtime: Some(SetTime::Now), ..SetAttr::default() };
    let edits = vec![
        Edit { at: 0, len: 8, data: Source::Hole },
        Edit { at: 8, len: 4, data: Source::Chunk { id: ChunkId([1; 32]), offset: 2 } },
        Edit {
            at: 12,
            len: 2,
            data: Source::Inline { id: ChunkId::of(b"ab"), offset: 0, bytes: Bytes::from_static(b"ab") },
        },
    ];
    let receipts = vec![Receipt { server: ServerId(4), mac: Mac([5; 16]) }];
    let commit = Commit {
        ino,
        base: Some(DataVersion(3)),
        edits,
        append: true,
        grow: 14,
        chunks: vec![StoredChunk { id: ChunkId([1; 32]), len: 6, receipts }],
        attempt: attempt(),
        layout: LayoutVersion(2),
        mtime: None,
    };
    vec![
        ("OpenSession", Op::OpenSession { label: "host".into(), slots: 16 }),
        ("CloseSession", Op::CloseSession),
        (
            "Create",
            Op::Create { parent, name: name("a"), node: NewNode::File, mode: 0o644, exclusive: true, access: 2 },
        ),
        ("Link", Op::Link { ino, parent, name: name("b") }),
        ("Unlink", Op::Unlink { parent, name: name("b"), keep: true }),
        ("Rmdir", Op::Rmdir { parent, name: name("d") }),
        (
            "Rename",
            Op::Rename {
                from: parent,
                from_name: name("a"),
                to: ino,
                to_name: name("c"),
                mode: RenameMode::Exchange,
                keep: false,
            },
        ),
        ("SetAttr", Op::SetAttr { ino, set }),
        ("SetXattr", Op::SetXattr { ino, name: b"user.x".into(), value: b"v".into(), mode: XattrMode::Create }),
        ("RemoveXattr", Op::RemoveXattr { ino, name: b"user.x".into() }),
        ("Release", Op::Release { ino }),
        ("Commit", Op::Commit(commit)),
        ("Clone", Op::Clone(CloneRange { from: ino, from_at: 4096, to: parent, at: 1, len: 70_000 })),
        ("OpenAttending", Op::OpenAttending { label: "host".into(), slots: 16 }),
        ("Lock", Op::Lock(LockAsk { ino, lock: lock(), wait: true, detect: false })),
        ("CancelLock", Op::CancelLock { ino, number: 500 }),
        (
            "CreateUnmasked",
            Op::CreateUnmasked {
                parent,
                name: name("a"),
                node: NewNode::File,
                mode: 0o666,
                umask: 0o22,
                exclusive: true,
                access: 2,
            },
        ),
    ]
}

fn control_plane(out: &mut Golden) {
    for (name, op) in ops() {
        let cred = Cred { uid: 1000, gid: 100, groups: vec![4, 27] };
        out.line(&format!("Request/{name}"), &Request { session: SessionId(0xabcd), slot: 3, seq: 9, cred, op });
    }
    let nodes = [
        NewNode::File,
        NewNode::Dir,
        NewNode::Symlink(b"t".into()),
        NewNode::Fifo,
        NewNode::Socket,
        NewNode::CharDevice(259),
        NewNode::BlockDevice(1),
    ];
    out.line("NewNode", &nodes.to_vec());
    let outcomes = vec![
        Outcome::Done,
        Outcome::Session { epoch: Epoch(1), write_token: Mac([2; 16]), timeout_ms: 60_000 },
        Outcome::Created { attr: attr(), new: true, parent: attr() },
        Outcome::Attr(attr()),
        Outcome::Removed { ino: InodeId(4), nlink: 0 },
        Outcome::Renamed { replaced: Some((InodeId(4), 1)) },
        Outcome::Committed { attr: attr(), offset: 4096 },
        Outcome::Cloned { attr: attr(), len: 4096 },
        Outcome::Locked(Locked::Queued(500)),
        Outcome::Locked(Locked::Full),
        Outcome::Locked(Locked::Alone),
    ];
    for outcome in outcomes {
        out.line("Applied", &Applied { outcome, index: LogIndex(500) });
    }
    let ino = InodeId(7);
    let queries = vec![
        Query::Lookup { parent: ino, name: name("x") },
        Query::Walk { from: ino, path: b"/a/b".into(), follow: true },
        Query::GetAttr { ino },
        Query::ReadLink { ino },
        Query::ReadDir { ino, after: 3, limit: 100, attrs: true },
        Query::Open { ino, access: ACCESS_READ | ACCESS_WRITE, ahead: vec![InodeId(6)] },
        Query::Extents { ino, from: 0, to: u64::MAX },
        Query::GetXattr { ino, name: b"user.x".into() },
        Query::ListXattr { ino },
        Query::StatFs,
        Query::LockHolder { ino, lock: lock() },
        Query::LockWaits { ino, number: 500 },
    ];
    for query in queries {
        out.line("Ask", &Ask { session: SessionId(1), cred: Cred::default(), query, lease: true });
    }
    answers(out);
    servers(out);
}

fn answers(out: &mut Golden) {
    let extent = Extent {
        at: 0,
        len: 10,
        data: Source::Chunk { id: ChunkId([3; 32]), offset: 0 },
        chunk_len: 10,
        token: Mac([4; 16]),
        holders: vec![ServerId(2)],
    };
    let run = ExtentRun { extents: vec![extent], covered: 4096 };
    let entry = DirEntry { name: name("x"), ino: InodeId(5), kind: FileKind::Dir, cookie: 2, attr: Some(attr()) };
    let answers = vec![
        Answer::Attr(attr()),
        Answer::Walked { attr: attr(), parent: InodeId::ROOT },
        Answer::Target(b"t".into()),
        Answer::Listing { entries: vec![entry], end: true, parent: InodeId::ROOT },
        Answer::Opened { attr: attr(), run: run.clone(), ahead: vec![(attr(), run.clone())] },
        Answer::Extents { attr: attr(), run },
        Answer::Value(b"v".into()),
        Answer::Names(vec![b"user.x".into()]),
        Answer::StatFs(FsStat { logical_bytes: 1, inodes: 2, replicas: 3, ..FsStat::default() }),
        Answer::LockHolder(Some(LockHolder { session: SessionId(1), lock: lock() })),
        Answer::LockWaits(true),
    ];
    for answer in answers {
        out.line("Answered", &Answered { answer, index: LogIndex(6), grants: grants() });
    }
    out.line("Fault", &Fault::new(Kind::NotFound, "no such file"));
    out.line("Fault/leader", &Fault::not_leader(Some("127.0.0.1:1".into())));
    out.line("Kind/last", &Kind::Internal);
}

fn servers(out: &mut Golden) {
    let domain = Domain { zone: "z".into(), rack: "r".into(), host: "h".into() };
    let info = ServerInfo { addr: "h:1".into(), domain: domain.clone(), weight: 7, up: true, writable: false };
    let map = ClusterMap {
        cluster: ClusterId(1),
        epoch: Epoch(1),
        version: 3,
        replicas: 3,
        min_replicas: 2,
        metaservers: BTreeMap::from([(NodeId(1), "m:1".to_string())]),
        servers: BTreeMap::from([(ServerId(1), info)]),
        layout: Layout { version: LayoutVersion(2), groups: vec![vec![ServerId(1)]; 2] },
    };
    out.line("ClusterMap", &map);
    let register =
        Register { server: None, instance: 9, addr: "h:1".into(), domain, weight: 7, capacity: 1 << 40, free: 1 << 39 };
    out.line("Register", &register);
    out.line("Registered", &Registered { server: ServerId(1), secret: Secret([8; 32]), map });
    let heartbeat = Heartbeat {
        full_dirs: 300,
        server: ServerId(1),
        instance: 9,
        capacity: 1,
        free: 2,
        chunks: 3,
        chunk_bytes: 4,
        corrupt: 5,
        fenced_dirs: 6,
        map_version: 7,
        segment_bytes: 8,
    };
    out.line("Heartbeat", &heartbeat);
    let format = Admin::Format {
        cluster: ClusterId(1),
        metaservers: vec![(NodeId(1), "m:1".into())],
        pg_count: 1024,
        replicas: 3,
        min_replicas: 2,
    };
    for admin in [format, Admin::Status, Admin::NodeStatus] {
        out.line("Admin", &admin);
    }
}

fn data_plane(out: &mut Golden) {
    let auth = WriteAuth { attempt: attempt(), token: Mac([6; 16]) };
    let chunk = ChunkRef { id: ChunkId([7; 32]), len: 4096 };
    let requests = vec![
        ChunkRequest::Put { auth, chunk, chain: vec![(ServerId(2), "h:2".into())] },
        ChunkRequest::PutSmall { auth, chunks: vec![chunk] },
        ChunkRequest::Touch { auth, chunks: vec![chunk] },
        ChunkRequest::Get { session: SessionId(1), token: Mac([6; 16]), chunk: chunk.id, offset: 1, len: 2 },
        ChunkRequest::List { pg: PgId(3), after: Some(chunk.id), limit: 10 },
        ChunkRequest::Ping,
        ChunkRequest::Verify { session: SessionId(1), token: Mac([6; 16]), chunk: chunk.id },
    ];
    for request in requests {
        out.line("ChunkRequest", &request);
    }
    let receipt = Receipt { server: ServerId(2), mac: Mac([1; 16]) };
    let answers = vec![
        ChunkAnswer::Put(vec![(ServerId(2), Ok(receipt)), (ServerId(3), Err(Fault::new(Kind::NoSpace, "full")))]),
        ChunkAnswer::PutSmall(vec![Ok(receipt)]),
        ChunkAnswer::Touched(vec![None, Some(receipt)]),
        ChunkAnswer::Got { chunk_len: 20_000, start: 16_384, len: 3_616, proof: vec![[9; 32]] },
        ChunkAnswer::Listed { chunks: vec![chunk], more: true },
        ChunkAnswer::Pong { server: ServerId(2) },
        ChunkAnswer::Failed(Fault::new(Kind::Corrupt, "bad")),
        ChunkAnswer::Verified { sound: false },
    ];
    for answer in answers {
        out.line("ChunkAnswer", &answer);
    }
}

fn grants() -> Grants {
    Grants { term: 3, leases: vec![300, 0] }
}

fn leases(out: &mut Golden) {
    let (session, dir) = (SessionId(7), InodeId(300));
    let cred = Cred { uid: 1000, gid: 100, groups: vec![4] };
    out.line("LeaseAsk", &LeaseAsk { session, cred, dir, contents: true });
    let entry = DirEntry { name: name("a"), ino: InodeId(301), kind: FileKind::File, cookie: 4, attr: Some(attr()) };
    let contents = vec![(InodeId(301), ExtentRun { extents: Vec::new(), covered: u64::MAX })];
    let listing =
        LeasedListing { attr: attr(), parent: InodeId::ROOT, entries: vec![entry], leases: vec![9, 0], contents };
    out.line("Leased", &Leased { term: 3, listing: Some(listing) });
    out.line("Leased", &Leased { term: 3, listing: None });
    let applied = Applied { outcome: Outcome::Attr(attr()), index: LogIndex(6) };
    out.line("Submitted", &Submitted { applied, grants: grants() });
    out.line("RecallCall", &RecallCall { session, term: 3, forgot: 5, given_back: vec![(dir, 9)] });
    out.line("Recalls", &Recalls { term: 3, last: 6, inodes: vec![dir], renewed: true });
    out.line("Claim", &Claim { session, term: 3, leases: vec![(dir, 8)] });
    out.line("Claimed", &Claimed { term: 3, leases: vec![9, 0], announced: true, index: LogIndex(7) });
    let makes =
        Op::Create { parent: dir, name: name("a"), node: NewNode::Dir, mode: 0o755, exclusive: true, access: 0 };
    let at = Time { secs: 5, nanos: 6 };
    let changes = vec![Deferred { cred: Cred::default(), at, op: makes, leads: vec![InodeId(302)] }];
    out.line("Op Batch", &Op::Batch(Batch { term: 3, since: LogIndex(7), checked: 0, changes }));
    out.line("Op Reserve", &Op::Reserve { count: 4096 });
    out.line("Op HaveLocks", &Op::HaveLocks { ino: InodeId(302), locks: vec![lock()] });
    out.line("Op Accessed", &Op::Accessed { files: vec![(InodeId(4096), Time { secs: 1, nanos: 2 })] });
    let mut digest = Digest::default();
    digest.add(&Outcome::Attr(attr()));
    let fault = Some(Fault::new(Kind::Exists, "there"));
    out.line("Outcome", &Outcome::Batch(BatchDone { done: 1, fault, digest: digest.value() }));
    out.line("Outcome", &Outcome::Reserved(InodeId(4096)));
    out.line("OpenReport", &OpenReport { session, term: 3, round: 6, open: vec![dir] });
    out.line("OpenAsk", &OpenAsk { term: 3, round: 6 });
}

fn trash(out: &mut Golden) {
    let (ino, parent, at) = (InodeId(5), InodeId(2), Time { secs: 5, nanos: 6 });
    out.line("Op", &Op::Undelete { ino, parent, name: name("a") });
    let place = TrashPlace { at, ino };
    out.line("Query", &Query::Trash(TrashAsk { parent: Some(parent), after: Some(place), limit: 9 }));
    let dir = Some(b"/d".to_vec());
    let entry = TrashEntry { ino, kind: FileKind::File, parent, name: name("a"), dir, size: 7, by: 8, at };
    out.line("Answer", &Answer::Trash(TrashList { entries: vec![entry], next: Some(place), window_s: 3600 }));
    out.line("Admin", &Admin::Trash);
    let now = TrashNow { window_s: 3600, entries: 1, bytes: 2, oldest: Some(at) };
    out.line("AdminReply", &AdminReply::Trash(now));
    let keep = KeepChange { grace_s: Some(5), ..KeepChange::default() };
    let change = SettingsChange { keep, min_replicas: Some(1), undelete_window_s: Some(0) };
    out.line("Order", &Order::Change(change));
    out.line("Order", &Order::EmptyTrash);
    out.line("Order", &Order::Readmit { server: ServerId(2) });
}

fn keeping(out: &mut Golden) {
    let (server, layout, epoch, id) = (ServerId(2), LayoutVersion(3), Epoch(1), ChunkId([7; 32]));
    out.line("ChunkRequest", &ChunkRequest::Confirm { epoch, rounds: vec![(ChunkRef { id, len: 10 }, 9)] });
    out.line("ChunkAnswer", &ChunkAnswer::Confirmed { rounds: vec![(id, 9)] });
    let report = KeepReport { missing: 1, oldest_s: 2, gc_done: 3, passes: 4, ..KeepReport::default() };
    for ask in [
        KeepAsk::Expected { server, layout, from: id, limit: 5, degraded: true },
        KeepAsk::Holds { server, epoch, chunks: vec![id] },
        KeepAsk::Condemn { server, epoch, asks: vec![(id, 9)] },
        KeepAsk::Report { server, report: report.clone() },
    ] {
        out.line("KeepAsk", &ask);
    }
    let chunks = vec![ExpectedChunk { id, len: 10, degraded: true }];
    let settings = KeepSettings { repair_busy_rate: 64 << 20, ..KeepSettings::default() };
    for answer in [
        KeepAnswer::Expected(Expected { chunks, upto: Some(id), index: LogIndex(8) }),
        KeepAnswer::Noted,
        KeepAnswer::Granted { epoch, grants: vec![(id, 9)], kept: vec![(id, 3)] },
        KeepAnswer::Orders(KeepOrders { degraded: 1, gc: 2, scrub: 3, settings }),
    ] {
        out.line("KeepAnswer", &answer);
    }
    let change = KeepChange { grace_s: Some(5), ..KeepChange::default() };
    let explain = KeepAdmin::Explain { prefix: vec![1; 6] };
    for ask in [KeepAdmin::Status, KeepAdmin::Gc, KeepAdmin::Scrub, KeepAdmin::Set(change), explain] {
        out.line("Admin", &Admin::Keep(ask));
    }
    let status = KeepStatus { layout, degraded: 1, out: vec![server], reports: vec![(server, 5, report)], settings };
    let explained = Explained {
        id,
        len: 10,
        refs: vec![(3, 2)],
        files: vec![FileRange { path: b"/f".to_vec(), from: 1, to: 300 }],
        owners: vec![server],
        degraded: Some(vec![server]),
    };
    for reply in [
        KeepAdminReply::Status(status),
        KeepAdminReply::Ordered(6),
        KeepAdminReply::Set(settings),
        KeepAdminReply::Explained(vec![explained]),
    ] {
        out.line("AdminReply", &AdminReply::Keep(reply));
    }
}

fn orders(out: &mut Golden) {
    let chunk = Some(ChunkId([7; 32]));
    let order = Order::Fsck(FsckAsk { path: Some(b"/d".to_vec()), data: true, repair: false });
    let at = Time { secs: 5, nanos: 6 };
    let signed = Signed { order, at, by: "root@h".into(), mac: Mac([6; 16]) };
    out.line("Admin", &Admin::Order(Box::new(signed)));
    out.line("Order", &Order::FsckLook { job: 7, after: 300 });
    out.line("AdminReply", &AdminReply::Ordered(Box::new(Ordered::Done)));
    out.line("Ordered", &Ordered::FsckStarted { job: 7 });
    let files = vec![FileRange { path: b"/a".to_vec(), from: 1, to: 300 }];
    let finding = Finding { kind: FindingKind::Lost, text: "t".into(), chunk, files, mends: false };
    let look = FsckLook {
        phase: FsckPhase::Done,
        index: LogIndex(300),
        chunks: 1,
        chunks_total: 2,
        bytes: 3,
        counts: vec![(FindingKind::Server, 4)],
        unmended: 300,
        findings: vec![finding],
        repaired: 5,
        failed: Some("f".into()),
    };
    out.line("Ordered", &Ordered::Fsck(look));
    let squash = Squash { uid: 300, gid: 2, allowed: vec!["10.0.0.1".parse().expect("an address")] };
    for order in [
        Order::Keep(KeepAdmin::Gc),
        Order::SetWeight { server: ServerId(2), weight: 300 },
        Order::RemoveServer { server: ServerId(2) },
        Order::TransferLeader { to: NodeId(3) },
        Order::Events { limit: 300 },
        Order::Chunks { path: b"/a".to_vec() },
        Order::RootSquash(SquashAsk::Set(Some(squash.clone()))),
    ] {
        out.line("Order", &order);
    }
    let event = Event { number: 1, index: LogIndex(300), at, by: "b".into(), what: "w".into() };
    let part = FileChunk { at: 0, len: 300, chunk, replicas: 3 };
    for answer in [
        Ordered::Keep(KeepAdminReply::Ordered(5)),
        Ordered::Events(vec![event]),
        Ordered::Chunks(vec![part]),
        Ordered::RootSquash(Some(squash)),
    ] {
        out.line("Ordered", &answer);
    }
}

fn metaservers(out: &mut Golden) {
    let at = Time { secs: 5, nanos: 6 };
    let head = BackupHead {
        cluster: ClusterId(1),
        epoch: Epoch(2),
        term: 3,
        index: LogIndex(300),
        inodes: 4,
        chunks: 5,
        files: vec![("f".into(), 6)],
    };
    let (plan_head, hashes, metaservers) = (head.clone(), vec![[7; 32]], vec![(NodeId(1), "a:1".to_owned())]);
    let plan =
        RestorePlan { restore: 8, head: plan_head, hashes, epoch: Epoch(9), term: 10, metaservers, at, by: "b".into() };
    for ask in [BackupAsk::Begin, BackupAsk::Piece { backup: 8, file: 1, at: 2 }, BackupAsk::End { backup: 8 }] {
        out.line("Order", &Order::Backup(ask));
    }
    let bytes = Bytes::from_static(b"xy");
    for step in [
        RestoreStep::Begin(plan),
        RestoreStep::Piece { restore: 8, file: 1, at: 2, bytes: bytes.clone() },
        RestoreStep::Prepare { restore: 8 },
        RestoreStep::Activate { restore: 8 },
    ] {
        out.line("Order", &Order::Restore(Box::new(step)));
    }
    let node = NodeId(4);
    for change in
        [MemberChange::Add { addr: "a:1".into() }, MemberChange::Promote { node }, MemberChange::Remove { node }]
    {
        out.line("Order", &Order::Members(change));
    }
    let keep = KeepChange { grace_s: Some(5), ..KeepChange::default() };
    out.line("Order", &Order::Settings { keep, min_replicas: Some(1) });
    out.line("Order", &Order::Release);
    for answer in
        [BackupAnswer::Begun { backup: 8, head }, BackupAnswer::Piece { bytes, hash: [7; 32] }, BackupAnswer::Ended]
    {
        out.line("Ordered", &Ordered::Backup(answer));
    }
    let members = Members { voters: vec![NodeId(1)], learners: vec![node] };
    out.line("Ordered", &Ordered::Members { node, members: members.clone() });
    out.line("Admin", &Admin::Members);
    out.line("AdminReply", &AdminReply::Members(members));
    out.line("Admin", &Admin::Keep(KeepAdmin::Held));
    let held = Held { epoch: Epoch(9), index: LogIndex(300), at };
    out.line("AdminReply", &AdminReply::Keep(KeepAdminReply::Held(Some(held))));
}

fn moves(out: &mut Golden) {
    let (pg, server, time) = (PgId(300), ServerId(2), Time { secs: 5, nanos: 6 });
    let here = vec![GroupHere { pg, index: LogIndex(9), missing: 1, missing_bytes: 300 }];
    out.line("KeepAsk", &KeepAsk::Moves(MovesReport { server, epoch: Epoch(1), here }));
    let groups = vec![MovingGroup { pg, from: LogIndex(9) }];
    out.line("KeepAnswer", &KeepAnswer::Moves(MoveOrders { groups, rate: Some(300), paused: true, keeps: true }));
    for ask in [RebalanceAsk::Plan { weights: vec![(server, 0)] }, RebalanceAsk::Status] {
        out.line("Admin", &Admin::Rebalance(ask));
    }
    let servers = vec![ServerPlan {
        server,
        weight: 1,
        capacity: 2,
        free: 3,
        used: 4,
        used_after: 5,
        receives: 6,
        sends: 7,
        places: 8,
        places_after: 9,
    }];
    let plan = Plan {
        layout: LayoutVersion(1),
        servers: servers.clone(),
        groups: 2,
        bytes: 300,
        exact: true,
        seconds: 3,
        digest: 300,
    };
    let status = Rebalance {
        state: PlanState::Cancelled,
        wanted: true,
        started: time,
        ended: Some(time),
        rate: Some(1),
        servers,
        groups: 2,
        groups_done: 3,
        bytes: 4,
        bytes_done: 5,
        speed: 6,
        left_s: Some(7),
        moving: 8,
        groups_moving: vec![GroupMoves { pg, was: vec![server], now: vec![], waits_for: vec![server], closed: true }],
        away: vec![(server, time)],
        obstacle: Some("s1 is full".into()),
    };
    for answer in [RebalanceAnswer::Plan(plan), RebalanceAnswer::Status(status)] {
        out.line("AdminReply", &AdminReply::Rebalance(answer));
    }
    for order in [
        RebalanceOrder::Start { rate: Some(300), shown: Some(300) },
        RebalanceOrder::Pause,
        RebalanceOrder::Resume,
        RebalanceOrder::Cancel,
        RebalanceOrder::Rate(None),
    ] {
        out.line("Order", &Order::Rebalance(order));
    }
    out.line("Order", &Order::Away { server, until: Some(time) });
}

#[test]
fn the_protocol_bytes_are_what_they_were() {
    let mut golden = Golden::default();
    control_plane(&mut golden);
    data_plane(&mut golden);
    leases(&mut golden);
    keeping(&mut golden);
    trash(&mut golden);
    orders(&mut golden);
    metaservers(&mut golden);
    moves(&mut golden);
    if std::env::var_os("DFS_WRITE_GOLDEN").is_some() {
        std::fs::write(FILE, &golden.0).expect("the golden file can be written");
    }
    let want = std::fs::read_to_string(FILE).expect("the golden file is there");
    for (now, then) in golden.0.lines().zip(want.lines()) {
        assert_eq!(now, then);
    }
    assert_eq!(golden.0, want);
}
