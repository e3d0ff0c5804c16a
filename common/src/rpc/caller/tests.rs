//! Callers and servers over real TCP on loopback.

use super::*;
use crate::hello::{Peer, Role};
use crate::id::{ClusterId, Epoch, LogIndex};
use crate::net::{Net, TcpNet};
use crate::proto::meta::{AdminReply, Meta, NodeStatus};
use crate::rpc::{FRAME_MAX, Handler, serve};
use std::sync::atomic::AtomicUsize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

const LIMIT: Duration = Duration::from_secs(20);

/// What the fake metaserver does with the next keep-alive.
#[derive(Clone, Debug)]
enum Plan {
    Answer,
    NotLeader(Option<String>),
    NoSession,
    Hang,
}

#[derive(Clone)]
struct Fake {
    plan: Arc<Mutex<Plan>>,
    asked: Arc<AtomicUsize>,
    dropped: Arc<Notify>,
    peer: Option<Arc<Peer>>,
}

struct TellDrop(Arc<Notify>);
impl Drop for TellDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

fn nothing<T>() -> Result<T, Fault> {
    Err(Fault::new(Kind::Unsupported, "not in this test"))
}

impl Meta for Fake {
    async fn submit(self, _: Context, _: Request) -> Result<Submitted, Fault> {
        let plan = self.plan.lock().unwrap().clone();
        match plan {
            Plan::Answer => Err(Fault::new(Kind::Exists, "taken")),
            Plan::NotLeader(leader) => Err(Fault::not_leader(leader)),
            Plan::NoSession => Err(Fault::new(Kind::NoSession, "unknown session")),
            Plan::Hang => std::future::pending().await,
        }
    }
    async fn query(self, _: Context, _: Ask) -> Result<Answered, Fault> {
        nothing()
    }
    async fn keep_alive(self, _: Context, session: SessionId) -> Result<Alive, Fault> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.peer.unwrap().require(&[Role::Client], "keep alive")?;
        let plan = self.plan.lock().unwrap().clone();
        match plan {
            Plan::Answer => {
                let index = LogIndex(u64::try_from(session.0).unwrap());
                Ok(Alive { index, map_version: 0, epoch: Epoch(1) })
            }
            Plan::NotLeader(leader) => Err(Fault::not_leader(leader)),
            Plan::NoSession => Err(Fault::new(Kind::NoSession, "unknown session")),
            Plan::Hang => {
                let _tell = TellDrop(self.dropped);
                std::future::pending().await
            }
        }
    }
    async fn cluster_map(self, _: Context) -> Result<ClusterMap, Fault> {
        nothing()
    }
    async fn register(self, _: Context, _: Register) -> Result<Registered, Fault> {
        nothing()
    }
    async fn heartbeat(self, _: Context, _: Heartbeat) -> Result<HeartbeatReply, Fault> {
        nothing()
    }
    async fn admin(self, _: Context, _: Admin) -> Result<AdminReply, Fault> {
        let zero = LogIndex(0);
        let state = self.peer.unwrap().to_string();
        let node = crate::id::NodeId(1);
        Ok(AdminReply::Node(NodeStatus { node, state, term: 0, leader: None, applied: zero, last_log: zero }))
    }
    async fn raft(self, _: Context, message: Bytes) -> Result<Bytes, Fault> {
        Ok(message)
    }

    async fn lease(self, _: Context, _: LeaseAsk) -> Result<Leased, Fault> {
        Ok(Leased { term: 1, listing: None })
    }

    async fn recalls(self, _: Context, call: RecallCall) -> Result<Recalls, Fault> {
        Ok(Recalls { term: call.term, last: 0, inodes: Vec::new(), renewed: true })
    }
    async fn claim(self, _: Context, claim: Claim) -> Result<Claimed, Fault> {
        Ok(Claimed { term: claim.term, leases: Vec::new(), announced: true, index: LogIndex(0) })
    }
    async fn opens(
        self,
        _: Context,
        _: crate::proto::opens::OpenReport,
    ) -> Result<crate::proto::opens::OpenAsk, Fault> {
        nothing()
    }
    async fn keep(self, _: Context, _: crate::proto::keep::KeepAsk) -> Result<crate::proto::keep::KeepAnswer, Fault> {
        nothing()
    }
}

struct Server {
    addr: String,
    fake: Fake,
    tasks: Tasks,
}

impl Server {
    async fn start_at(at: &str, plan: Plan) -> Server {
        let listener = TcpNet.bind(at).await.unwrap();
        let addr = listener.local_addr();
        let (plan, tasks) = (Arc::new(Mutex::new(plan)), Tasks::new());
        let fake = Fake { plan, asked: Arc::default(), dropped: Arc::default(), peer: None };
        let service = fake.clone();
        let handler: Handler = Arc::new(move |peer, context, request| {
            let service = Fake { peer: Some(peer), ..service.clone() };
            Box::pin(async move { tarpc::server::Serve::serve(service.serve(), context, request).await })
        });
        let me = Me::new(Hello { role: Role::Metaserver, cluster: ClusterId(7), epoch: Epoch(1), id: 2 });
        serve(&tasks, listener, me, handler);
        Server { addr, fake, tasks }
    }

    async fn start(plan: Plan) -> Server {
        Server::start_at("127.0.0.1:0", plan).await
    }

    fn asked(&self) -> usize {
        self.fake.asked.load(Ordering::SeqCst)
    }
}

fn caller(addrs: &[&String]) -> Caller {
    let addrs: Vec<String> = addrs.iter().map(|a| (*a).clone()).collect();
    Caller::new(&World::real(), &Tasks::new(), &Me::unknown(Role::Client), &addrs)
}

async fn unused_addr() -> String {
    TcpNet.bind("127.0.0.1:0").await.unwrap().local_addr()
}

#[tokio::test(start_paused = true)]
async fn who_was_put_off_until_the_end_is_told_why() {
    let gone_by = |faults: &[(&str, Kind, &str)]| {
        let mut route = Route::new("submit", true, Instant::now() + LIMIT);
        faults.iter().for_each(|(addr, kind, text)| route.missed(addr, &Fault::new(*kind, *text), 3).unwrap());
        route.give_up().message
    };
    let away = ("a:1", Kind::Unavailable, "connect: refused");
    assert_eq!(gone_by(&[away]), "submit: no metaserver answered within 20.0s: a:1: connect: refused");
    let busy = ("b:1", Kind::Busy, "the copies of this file are being changed");
    let text = "submit: put off, and not done within 20.0s: a:1: connect: refused; b:1: the copies of this file are being changed";
    assert_eq!(gone_by(&[away, busy]), text);
}

#[tokio::test]
async fn many_calls_at_once_get_their_own_answers() {
    let server = Server::start(Plan::Answer).await;
    let caller = caller(&[&server.addr]);
    let calls =
        (1..=200u128).map(|n| {
            let caller = caller.clone();
            async move {
                assert_eq!(caller.keep_alive(SessionId(n), LIMIT).await.unwrap().index.0, u64::try_from(n).unwrap())
            }
        });
    futures::future::join_all(calls).await;
    let message = Bytes::from(vec![3; RAFT_MESSAGE_MAX]);
    assert_eq!(caller.raft(message.clone(), LIMIT).await.unwrap(), message);
    assert_eq!(caller.raft(Bytes::from(vec![3; FRAME_MAX]), LIMIT).await.unwrap_err().kind, Kind::Invalid);
    assert_eq!(caller.peer(LIMIT).await.unwrap().id, 2);
}

#[tokio::test]
async fn the_leader_is_followed_and_remembered_also_one_that_was_not_known() {
    let leader = Server::start(Plan::Answer).await;
    let follower = Server::start(Plan::NotLeader(Some(leader.addr.clone()))).await;
    let caller = caller(&[&follower.addr]);
    for _ in 0..5 {
        caller.keep_alive(SessionId(1), LIMIT).await.unwrap();
    }
    assert_eq!((follower.asked(), leader.asked()), (1, 5));
}

#[tokio::test]
async fn what_the_map_names_is_learnt_and_what_it_names_no_more_makes_room() {
    let named = |from: usize, count: usize| (from..from + count).map(|n| format!("h:{n}")).collect::<Vec<_>>();
    let caller = caller(&[&named(0, 1)[0]]);
    caller.learn(&named(1, 3));
    assert_eq!(caller.addrs(), named(0, 4));
    caller.learn(&named(2, 2));
    assert_eq!(caller.addrs(), named(0, 4), "nothing new");
    caller.learn(&named(3, 2));
    assert_eq!(caller.addrs(), ["h:0", "h:3", "h:4"], "what was given stays");
    caller.learn(&named(100, 2 * super::ADDRESSES_MAX));
    assert_eq!(caller.addrs().len(), super::ADDRESSES_MAX);
    assert_eq!(caller.addrs()[..2], ["h:0", "h:100"]);
}

#[tokio::test]
async fn a_lost_leader_is_left_for_another_and_a_restarted_one_is_found_again() {
    let (one, two) = (Server::start(Plan::Answer).await, Server::start(Plan::NotLeader(None)).await);
    let caller = caller(&[&one.addr, &two.addr]);
    caller.keep_alive(SessionId(1), LIMIT).await.unwrap();
    *two.fake.plan.lock().unwrap() = Plan::NotLeader(Some(one.addr.clone()));
    assert!(one.tasks.shutdown(LIMIT).await);
    // Nobody leads now; the election ends while the call is under way.
    let elect = async {
        while two.asked() < 3 {
            tokio::task::yield_now().await;
        }
        *two.fake.plan.lock().unwrap() = Plan::Answer;
    };
    let (answer, ()) = tokio::join!(caller.keep_alive(SessionId(2), LIMIT), elect);
    answer.unwrap();
    *two.fake.plan.lock().unwrap() = Plan::NotLeader(Some(one.addr.clone()));
    let _again = Server::start_at(&one.addr, Plan::Answer).await;
    caller.keep_alive(SessionId(3), LIMIT).await.unwrap();
}

#[tokio::test]
async fn when_time_is_up_the_error_names_every_address_and_why() {
    let (gone, other) = (unused_addr().await, unused_addr().await);
    let lost = Server::start(Plan::NotLeader(Some(gone.clone()))).await;
    let fault = caller(&[&gone, &lost.addr, &other]).keep_alive(SessionId(1), Duration::from_millis(300)).await;
    let fault = fault.unwrap_err();
    assert_eq!(fault.kind, Kind::Unavailable, "{fault}");
    for text in [&gone, &other, &lost.addr, "refused", "not the leader", "keep alive"] {
        assert!(fault.message.contains(text), "{fault} lacks {text}");
    }
    assert!(lost.asked() < 40, "asked {} times in 300 ms", lost.asked());
}

#[tokio::test]
async fn an_answer_that_is_missing_is_unsure_for_changes_only() {
    let server = Server::start(Plan::Hang).await;
    let caller = caller(&[&server.addr]);
    let short = Duration::from_millis(200);
    assert_eq!(caller.keep_alive(SessionId(1), short).await.unwrap_err().kind, Kind::Unavailable);
    server.fake.dropped.notified().await; // the server was told that nobody waits any more
    let request = Request {
        session: SessionId(1),
        slot: 0,
        seq: 1,
        cred: crate::proto::meta::Cred::default(),
        op: crate::proto::meta::Op::CloseSession,
    };
    assert_eq!(caller.submit(&request, short).await.unwrap_err().kind, Kind::Unsure);
    *server.fake.plan.lock().unwrap() = Plan::Answer;
    assert_eq!(caller.submit(&request, LIMIT).await.unwrap_err(), Fault::new(Kind::Exists, "taken"));
}

#[tokio::test]
async fn once_does_not_try_again_and_does_not_wait_for_what_just_failed() {
    let gone = unused_addr().await;
    let caller = caller(&[&gone]);
    let first = caller.raft(Bytes::new(), LIMIT).await.unwrap_err();
    assert!(first.kind == Kind::Unavailable && first.message.contains(&gone), "{first}");
    for _ in 0..50 {
        assert_eq!(caller.raft(Bytes::new(), LIMIT).await.unwrap_err().kind, Kind::Unavailable);
    }
}

#[tokio::test]
async fn strangers_are_refused_at_once() {
    let server = Server::start(Plan::Answer).await;
    let hello = Hello { role: Role::Client, cluster: ClusterId(8), epoch: Epoch(0), id: 0 };
    let caller = Caller::new(&World::real(), &Tasks::new(), &Me::new(hello), std::slice::from_ref(&server.addr));
    let fault = caller.keep_alive(SessionId(1), LIMIT).await.unwrap_err();
    assert!(fault.kind == Kind::Refused && fault.message.contains("cluster"), "{fault}");
    let admin =
        Caller::new(&World::real(), &Tasks::new(), &Me::unknown(Role::Admin), std::slice::from_ref(&server.addr));
    let fault = admin.keep_alive(SessionId(1), LIMIT).await.unwrap_err();
    assert!(fault.kind == Kind::Refused && fault.message.contains("not for administrators"), "{fault}");
}

#[tokio::test]
async fn a_peer_that_sends_garbage_loses_its_connection_and_nothing_else() {
    let server = Server::start(Plan::Answer).await;
    let caller = caller(&[&server.addr]);
    caller.keep_alive(SessionId(1), LIMIT).await.unwrap();
    for garbage in [&[0xff; 64][..], &[0, 0, 0, 2, 9, 9], &u32::try_from(FRAME_MAX + 1).unwrap().to_be_bytes()] {
        let mut conn = TcpNet.connect(&server.addr).await.unwrap();
        hello::introduce(&mut conn, &Me::unknown(Role::Client), Plane::Control, "server").await.unwrap();
        conn.write_all(garbage).await.unwrap();
        let mut rest = Vec::new();
        let ended = conn.read_to_end(&mut rest).await; // closed or reset
        assert!(rest.is_empty(), "{ended:?}");
    }
    caller.keep_alive(SessionId(1), LIMIT).await.unwrap();
}

/// Not a test of a promise: prints what a call costs. `cargo nextest run -p common --run-ignored only calls_cost`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn calls_cost() {
    const CALLS: u32 = 20_000;
    let server = Server::start(Plan::Answer).await;
    let caller = caller(&[&server.addr]);
    for callers in [1u32, 8, 64] {
        let start = Instant::now();
        let all = (0..callers).map(|_| {
            let caller = caller.clone();
            async move {
                for n in 0..CALLS / callers {
                    caller.keep_alive(SessionId(n.into()), LIMIT).await.unwrap();
                }
            }
        });
        futures::future::join_all(all).await;
        let took = start.elapsed();
        println!("{callers} callers: {:.0} calls/s, {:?} each", f64::from(CALLS) / took.as_secs_f64(), took / CALLS);
    }
}

/// Whoever hears `NoSession` of a change repeats it in a new session: so no copy of it may have been run in the old one.
#[tokio::test]
async fn an_unknown_session_is_no_answer_to_a_change_that_may_have_been_made() {
    let (silent, other) = (Server::start(Plan::Hang).await, Server::start(Plan::NoSession).await);
    let op = crate::proto::meta::Op::CloseSession;
    let request = Request { session: SessionId(1), slot: 0, seq: 1, cred: Default::default(), op };
    let change = caller(&[&silent.addr, &other.addr]).submit(&request, LIMIT).await.unwrap_err();
    assert_eq!(change.kind, Kind::Unsure, "{change}");
    let question = caller(&[&silent.addr, &other.addr]).keep_alive(SessionId(1), LIMIT).await.unwrap_err();
    assert_eq!(question.kind, Kind::NoSession, "{question}");
    let alone = caller(&[&other.addr]).submit(&request, LIMIT).await.unwrap_err();
    assert_eq!(alone.kind, Kind::NoSession, "{alone}");
}
