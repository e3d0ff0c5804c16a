//! Random interleavings of everything that may happen to two chunks of one horizon bucket, on the code itself.
//!
//! Every step is drawn: who acts, or which message arrives. A message may arrive late, more than once, or never. The
//! server's and the client's parts of the protocol between two messages are played here, as `chunkserver/src/keep` and
//! the client do them; what decides is theirs: [`Store`], [`wishes`], [`Meta`].
//!
//! After each step: a chunk that is referred to is held, sound, by a server ([`Lost`](Harm::Lost)), and each server that
//! an accepted commit relied on has it, or dropped it after the owners confirmed ([`Short`](Harm::Short)).
//!
//! `DFS_GC_SEED=17 cargo test -p tests --test no_live_chunk_is_deleted -- --nocapture one_seed` replays a seed.

use super::cluster::{Backup, Meta, Store, chunk_of, contents, name, order, server_id};
use super::plan::{About, Broken, Counts, Harm, Plan, Weakness};
use chunkserver::wishes::{Rounds, granted};
use common::auth::{Attempt, Mac, Receipt};
use common::fault::Kind;
use common::id::{ChunkId, Epoch, InodeId, LogIndex, ServerId, SessionId};
use common::layout::Layout;
use common::name::Name;
use common::proto::chunk::ChunkRef;
use common::proto::keep::Nonced;
use common::proto::meta::{Commit, Edit, Op, Request, Source, StoredChunk};
use common::rules::{Rule, break_rule, is_broken};
use metaserver::namespace::{Command, Done};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use std::collections::{BTreeMap, BTreeSet};

/// Clients, and files.
pub(super) const CLIENTS: usize = 2;
/// Kinds of messages.
const KINDS: u32 = 7;
/// The kind of a grant, and of what an owner confirms.
const GRANT: u32 = 2;
const CONFIRMED: u32 = 5;
/// Messages under way, at most: more push others out, which are lost.
const MESSAGES_MAX: usize = 20;
/// Lines of the trace that a failure shows.
const TRACE_SHOWN: usize = 60;

pub(super) struct Server {
    pub(super) store: Store,
    pub(super) layout: Layout,
    pub(super) epoch: Epoch,
    /// The newest ask and the newest round about a chunk, with its owners, as far as it remembers.
    pub(super) asks: BTreeMap<ChunkId, u64>,
    pub(super) rounds: BTreeMap<ChunkId, (Vec<ServerId>, Rounds)>,
    /// The wish that was last opened for a chunk, and whether it is a round.
    pub(super) last: BTreeMap<ChunkId, (u64, bool)>,
    /// Those of them that stand.
    pub(super) standing: BTreeSet<ChunkId>,
}

#[derive(Clone, Debug)]
pub(super) struct Try {
    pub(super) chunk: usize,
    pub(super) file: usize,
    pub(super) attempt: Attempt,
    /// Servers relied on: those that acknowledged, or the owners after a drop.
    pub(super) relied: BTreeSet<usize>,
    pub(super) receipts: BTreeSet<usize>,
    pub(super) was_live: bool,
}

pub(super) struct Client {
    pub(super) session: SessionId,
    /// The newest applied index it has heard of.
    pub(super) known: LogIndex,
    pub(super) attempt: Option<Try>,
}

#[derive(Clone, Debug)]
pub(super) enum Message {
    Commit {
        client: usize,
        request: Box<Request>,
        of: Try,
    },
    Ask {
        server: usize,
        ask: Nonced,
        epoch: Epoch,
    },
    Grant {
        server: usize,
        grant: Nonced,
        epoch: Epoch,
    },
    /// It is referred to, and should have so many copies.
    Kept {
        server: usize,
        id: ChunkId,
        target: u8,
    },
    Confirm {
        owner: usize,
        to: usize,
        round: Nonced,
        epoch: Epoch,
    },
    Confirmed {
        owner: usize,
        to: usize,
        round: Nonced,
    },
    RoundEnds {
        server: usize,
        id: ChunkId,
    },
}

impl Message {
    /// A number below [`KINDS`].
    fn kind(&self) -> u32 {
        match self {
            Message::Commit { .. } => 0,
            Message::Ask { .. } => 1,
            Message::Grant { .. } => GRANT,
            Message::Kept { .. } => 3,
            Message::Confirm { .. } => 4,
            Message::Confirmed { .. } => CONFIRMED,
            Message::RoundEnds { .. } => 6,
        }
    }
}

pub(super) struct Run {
    pub(super) rng: StdRng,
    pub(super) weakness: Option<Weakness>,
    pub(super) meta: Meta,
    pub(super) servers: Vec<Server>,
    pub(super) clients: Vec<Client>,
    pub(super) files: Vec<InodeId>,
    pub(super) messages: Vec<Message>,
    /// Commits that were accepted, by session and slot.
    pub(super) accepted: BTreeSet<(SessionId, u16)>,
    /// Servers that must have each chunk, while it is referred to.
    pub(super) must: Vec<BTreeSet<usize>>,
    /// Of each chunk the servers that dropped it, in order, and who had it then for those that had relied on them.
    pub(super) drops: Vec<Vec<(usize, BTreeSet<usize>)>>,
    /// How many there were when a server confirmed a copy in a round.
    pub(super) confirmed_at: BTreeMap<(usize, Nonced), usize>,
    /// Copies a commit needs; with two, one disk may be lost.
    pub(super) min: u8,
    pub(super) replicas: u8,
    pub(super) lost_disk: Option<usize>,
    pub(super) backup: Option<(Backup, Vec<InodeId>)>,
    /// No deletion until fsck has passed, after a restore.
    pub(super) checked: bool,
    pub(super) weights: [u32; ACTIONS],
    /// A server that is drawn more often; whether the second chunk takes part.
    pub(super) favourite: usize,
    pub(super) twins: bool,
    /// Messages of this kind are late, mostly; [`KINDS`]: of none.
    pub(super) slow: u32,
    /// Of four wishes so many are rounds.
    pub(super) rounds: u32,
    pub(super) counts: Counts,
    pub(super) trace: Vec<String>,
}

/// Things that may happen next, each with how often.
const ACTIONS: usize = 16;
const PUNCH: usize = 3;
const CLONE: usize = 4;
const REMOVE: usize = 5;
const RESTART: usize = 6;
const MOVE: usize = 10;
const LEARN: usize = 11;
const LOSE: usize = 12;
const RESTORE: usize = 13;
const TELL: usize = 14;
const EXPIRE: usize = 15;
/// The first ones are in every mixture.
const ALWAYS: usize = 3;
const WEIGHTS: [u32; ACTIONS] = [24, 40, 12, 5, 3, 2, 1, 1, 3, 2, 2, 3, 2, 1, 2, 2];

pub(super) fn names() -> [Name; CLIENTS] {
    ["a", "b"].map(|name| Name::new(name).expect("a good name"))
}

/// Runs a plan.
///
/// # Errors
/// Something that must hold does not; with [`Plan::weakness`] only a loss counts.
pub fn run(plan: Plan) -> Result<Counts, Broken> {
    let rule = match plan.weakness {
        Some(Weakness::Code(rule)) => Some(rule),
        _ => None,
    };
    let _broken = break_rule(rule);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime is made").block_on(async {
        let mut run = Run::new(plan).await;
        for step in 0..plan.steps {
            run.step(step).await;
            if let Some((harm, what)) = run.harm().await {
                return Err(Broken { harm, text: run.explain(plan, &what) });
            }
        }
        if plan.weakness.is_none()
            && let Some(what) = run.collect().await
        {
            return Err(Broken { harm: Harm::Left, text: run.explain(plan, &what) });
        }
        let problems = run.meta.problems();
        assert!(problems.is_empty(), "seed {}: {problems:?}", plan.seed);
        Ok(run.counts)
    })
}

impl Run {
    async fn new(plan: Plan) -> Run {
        let mut rng = StdRng::seed_from_u64(plan.seed);
        let count = rng.random_range(2..=3);
        let replicas = u8::try_from(rng.random_range(1..count)).expect("few");
        let min = rng.random_range(1..=replicas);
        let mut meta = Meta::new(rng.next_u64(), replicas, min);
        if rng.random_range(0..2) == 0 {
            meta.keep_what_is_removed();
        }
        let sessions: Vec<SessionId> = (1..=2).map(SessionId).collect();
        sessions.iter().for_each(|session| meta.open_session(*session));
        let files = names().iter().map(|name| meta.create(sessions[0], name)).collect();
        let mut servers = Vec::new();
        for _ in 0..count {
            // Each knows another layout: what moved there and back.
            let layout = meta.set_layout(&order(count, &mut rng));
            let (store, epoch) = (Store::new(rng.next_u64()).await, meta.epoch());
            let (asks, rounds, last, standing) = Default::default();
            servers.push(Server { store, layout, epoch, asks, rounds, last, standing });
        }
        let client = |session| Client { session, known: meta.index(), attempt: None };
        let clients = sessions.into_iter().map(client).collect();
        // Each run has its own mixture: what is rare in one is frequent in another.
        let mut weights = WEIGHTS.map(|weight| weight * [0, 1, 2, 4][rng.random_range(0..4)]);
        for always in 0..ALWAYS {
            weights[always] = WEIGHTS[always] * 2;
        }
        let (favourite, twins) = (rng.random_range(0..count), rng.random_range(0..2) == 0);
        let (mut slow, mut rounds) = (rng.random_range(0..=KINDS), [0, 2, 3][rng.random_range(0..3)]);
        let about = [About::All, About::All, About::All, About::Rounds, About::Restore][rng.random_range(0..5)];
        match plan.weakness.map_or(about, Weakness::about) {
            // The metadata goes back in one run of three; then everybody is to hear of it soon.
            About::All => (weights[RESTORE], weights[TELL]) = [(0, 0), (0, 0), (4, 16)][rng.random_range(0..3)],
            // What owners confirm is late, and they ask for their own copies meanwhile.
            About::Rounds => {
                (slow, rounds) = ([GRANT, CONFIRMED][rng.random_range(0..2)], 2);
                (weights[RESTORE], weights[TELL], weights[LOSE], weights[RESTART]) = (0, 0, 0, 0);
            }
            // Few references, so that most are gone before the metadata goes back.
            About::Restore => {
                (slow, rounds) = (GRANT, 0);
                (weights[RESTORE], weights[TELL], weights[PUNCH]) = (4, [4, 16][rng.random_range(0..2)], 8);
                for never in [CLONE, REMOVE, RESTART, MOVE, LEARN, LOSE] {
                    weights[never] = 0;
                }
            }
        }
        Run {
            weakness: plan.weakness,
            meta,
            servers,
            clients,
            files,
            messages: Vec::new(),
            accepted: BTreeSet::new(),
            must: vec![BTreeSet::new(); contents().len()],
            drops: vec![Vec::new(); contents().len()],
            confirmed_at: BTreeMap::new(),
            min,
            replicas,
            lost_disk: None,
            backup: None,
            checked: true,
            weights,
            favourite,
            twins,
            slow,
            rounds,
            counts: Counts::default(),
            trace: Vec::new(),
            rng,
        }
    }

    pub(super) fn is(&self, weakness: Weakness) -> bool {
        self.weakness == Some(weakness)
    }

    pub(super) fn note(&mut self, line: String) {
        if std::env::var_os("DFS_GC_SEED").is_some() {
            eprintln!("{line}");
        }
        self.trace.push(line);
    }

    fn explain(&self, plan: Plan, what: &str) -> String {
        let from = self.trace.len().saturating_sub(TRACE_SHOWN);
        let (seed, weakness) = (plan.seed, plan.weakness);
        let last = self.trace[from..].join("\n  ");
        format!(
            "seed {seed}, broken on purpose: {weakness:?}: {what}\nlast of the trace:\n  {last}\nreplay: DFS_GC_SEED={seed} \
             cargo test -p tests --test no_live_chunk_is_deleted -- --nocapture one_seed"
        )
    }

    pub(super) fn a_server(&mut self) -> usize {
        // One of them more often: what matters happens to a chunk that is nowhere else.
        let drawn = self.rng.random_range(0..2 * self.servers.len());
        drawn.checked_sub(self.servers.len()).unwrap_or(self.favourite)
    }

    pub(super) fn a_chunk(&mut self) -> (usize, ChunkRef) {
        let chunk = usize::from(self.twins && self.rng.random_range(0..4) == 0);
        (chunk, name(chunk))
    }

    pub(super) fn send(&mut self, message: Message) {
        if self.messages.len() == MESSAGES_MAX {
            let lost = self.rng.random_range(0..self.messages.len());
            self.messages.swap_remove(lost);
        }
        self.messages.push(message);
    }

    /// One that is under way; each kind as likely as the others, so that the rare ones come late, too.
    fn a_message(&mut self) -> usize {
        let mut kinds: Vec<(_, Vec<usize>)> = Vec::new();
        for (at, message) in self.messages.iter().enumerate() {
            match kinds.iter_mut().find(|(known, _)| *known == message.kind()) {
                Some((_, places)) => places.push(at),
                None => kinds.push((message.kind(), vec![at])),
            }
        }
        let (_, places) = &kinds[self.rng.random_range(0..kinds.len())];
        places[self.rng.random_range(0..places.len())]
    }

    async fn step(&mut self, step: u32) {
        let mut draw = self.rng.random_range(0..self.weights.iter().sum());
        let mut action = 0;
        while draw >= self.weights[action] {
            draw -= self.weights[action];
            action += 1;
        }
        let before = self.trace.len();
        match action {
            0 => self.write().await,
            1 => self.deliver().await,
            2 => self.ask(),
            PUNCH => self.punch(),
            CLONE => self.clone_file(),
            REMOVE => self.remove_file(),
            RESTART => {
                let server = self.a_server();
                self.restart(server).await;
            }
            7 => {
                let (server, writes) = (self.a_server(), self.rng.random_range(0..4));
                self.servers[server].store.cut_after(writes);
                self.note(format!("s{server} loses power after {writes} writes"));
            }
            8 => self.pull().await,
            9 => self.verify().await,
            MOVE => self.move_group(),
            LEARN => self.learn(),
            LOSE => self.lose_disk().await,
            RESTORE => self.back_up_or_restore(),
            EXPIRE => self.expire_trash(),
            _ => self.tell_and_check().await,
        }
        for line in &mut self.trace[before..] {
            line.insert_str(0, &format!("{step:>3} "));
        }
        for server in 0..self.servers.len() {
            if self.servers[server].store.is_dark() {
                self.counts.torn += 1;
                self.restart(server).await;
            }
        }
    }

    /// A client goes on with its attempt, or begins one.
    async fn write(&mut self) {
        let client = self.rng.random_range(0..CLIENTS);
        let Some(mut of) = self.clients[client].attempt.take() else {
            return self.begin(client, None);
        };
        let needed = if is_broken(Rule::CommitHasItsReceipts) { 1 } else { usize::from(self.min) };
        let enough = of.receipts.len() >= needed && self.rng.random_range(0..3) > 0;
        let untouched = self.is(Weakness::NothingTouched) && of.was_live && self.rng.random_range(0..2) == 0;
        if !enough && !untouched {
            let at = self.a_server();
            if self.put_or_touch(client, at, of.chunk).await {
                of.receipts.insert(at);
                of.relied.insert(at);
            }
            self.clients[client].attempt = Some(of);
            return;
        }
        if untouched {
            of.receipts = (0..needed).collect();
        }
        if untouched || self.is(Weakness::WitnessAfterThePut) {
            of.attempt.witness = self.meta.index();
        }
        let request = self.commit(&of);
        let (file, witness) = (of.file, of.attempt.witness);
        self.note(format!("client {client} sends c{} for file {file}, {witness}, {:?}", of.chunk, of.receipts));
        if self.rng.random_range(0..2) == 0 {
            self.commit_arrives(client, request.clone(), of.clone());
        }
        self.send(Message::Commit { client, request: Box::new(request), of });
    }

    fn begin(&mut self, client: usize, chunk: Option<usize>) {
        if self.rng.random_range(0..2) == 0 {
            self.clients[client].known = self.meta.index();
        }
        let (drawn, _) = self.a_chunk();
        let chunk = chunk.unwrap_or(drawn);
        let mut witness = self.clients[client].known;
        if is_broken(Rule::WitnessIsApplied) {
            witness.0 += self.rng.random_range(0..4);
        }
        let attempt = Attempt { session: self.clients[client].session, witness, epoch: self.meta.epoch() };
        let was_live = self.target(chunk) > 0;
        let (file, none) = (self.rng.random_range(0..CLIENTS), BTreeSet::new());
        let of = Try { chunk, file, attempt, relied: none.clone(), receipts: none, was_live };
        self.note(format!("client {client} begins with c{chunk} for file {file}, witness {witness}"));
        self.clients[client].attempt = Some(of);
    }

    async fn put_or_touch(&mut self, client: usize, at: usize, chunk: usize) -> bool {
        let put = self.rng.random_range(0..2) == 0;
        let meeting = self.meet(at, chunk);
        let done = match put {
            true => self.servers[at].store.put(&contents()[chunk]).await,
            false => self.servers[at].store.touch(name(chunk)).await,
        };
        self.have_met(at, chunk, meeting);
        self.counts.puts += u64::from(done);
        self.note(format!("client {client} {} c{chunk} at s{at}: {done}", if put { "puts" } else { "touches" }));
        if done {
            self.vouched(at, chunk, self.is(Weakness::TouchKeepsRounds), false);
        }
        done
    }

    /// A copy was vouched for. Broken rules have its wish stand again: rounds, or both.
    pub(super) fn vouched(&mut self, at: usize, chunk: usize, keeps_rounds: bool, keeps_asks: bool) {
        let id = name(chunk).id;
        let server = &mut self.servers[at];
        let Some((nonce, is_round)) = server.last.get(&id).copied().filter(|_| server.standing.contains(&id)) else {
            return;
        };
        if keeps_asks || (keeps_rounds && is_round) {
            server.store.set().wish(id, nonce);
        } else {
            self.counts.voided += 1;
            server.standing.remove(&id);
        }
    }

    fn commit(&mut self, of: &Try) -> Request {
        let ChunkRef { id, len } = name(of.chunk);
        let receipt = |at: &usize| Receipt { server: server_id(*at), mac: Mac::default() };
        let commit = Commit {
            ino: self.files[of.file],
            base: None,
            edits: vec![Edit { at: 0, len: len.into(), data: Source::Chunk { id, offset: 0 } }],
            append: false,
            grow: len.into(),
            chunks: vec![StoredChunk { id, len, receipts: of.receipts.iter().map(receipt).collect() }],
            attempt: of.attempt,
            layout: self.meta.layout().version,
            mtime: None,
        };
        self.meta.request(of.attempt.session, Op::Commit(commit))
    }

    async fn deliver(&mut self) {
        if self.messages.is_empty() {
            return;
        }
        // The newest as often as all others together: else few exchanges come to an end.
        let newest = self.rng.random_range(0..2) == 0;
        let at = if newest { self.messages.len() - 1 } else { self.a_message() };
        if self.messages[at].kind() == self.slow && self.rng.random_range(0..8) > 0 {
            return;
        }
        let again = self.rng.random_range(0..if newest { 2 } else { 6 }) > 0;
        let message = if again { self.messages[at].clone() } else { self.messages.swap_remove(at) };
        match message {
            Message::Commit { client, request, of } => self.commit_arrives(client, *request, of),
            Message::Ask { server, ask, epoch } => self.ask_arrives(server, ask, epoch),
            Message::Grant { server, grant, epoch } => self.grant_arrives(server, grant, epoch).await,
            Message::Kept { server, id, target } => self.open_round(server, id, target),
            Message::Confirm { owner, to, round, epoch } => self.confirm(owner, to, round, epoch).await,
            Message::Confirmed { owner, to, round } => self.confirmed(owner, to, round).await,
            Message::RoundEnds { server, id } => self.end_round(server, id).await,
        }
    }

    fn commit_arrives(&mut self, client: usize, request: Request, of: Try) {
        let (before, first) = (self.meta.index(), (request.session, request.slot));
        let reply = self.meta.apply(request).map(|_| ());
        let index = self.meta.index();
        let said = reply.as_ref().map_err(ToString::to_string);
        self.note(format!("{index}: commit of c{} by {client}, witness {}: {said:?}", of.chunk, of.attempt.witness));
        match reply {
            Ok(()) if !self.accepted.insert(first) => {} // asked again: the same answer, and nothing happened
            Ok(()) => {
                self.counts.commits += 1;
                self.must[of.chunk].extend(&of.relied);
                self.forget_unreferenced();
            }
            Err(fault) if fault.kind == Kind::TouchAgain => {
                self.counts.told_to_touch_again += 1;
                if self.clients[client].attempt.is_none() {
                    self.clients[client].known = before;
                    self.begin(client, Some(of.chunk));
                    let keeps = self.is(Weakness::AcknowledgementsOfTwoAttempts);
                    if let Some(next) = self.clients[client].attempt.as_mut().filter(|_| keeps) {
                        (next.relied, next.receipts) = (of.relied, of.receipts);
                    }
                }
            }
            Err(_) => {}
        }
    }

    /// A server wishes to delete its copy, and asks the metaservers, or the owners.
    fn ask(&mut self) {
        let (server, (chunk, ChunkRef { id, .. })) = (self.a_server(), self.a_chunk());
        if self.rng.random_range(0..4) < self.rounds {
            return self.open_round(server, id, self.replicas); // it was told some time ago that the chunk is needed
        }
        let nonce = self.rng.next_u64();
        if self.servers[server].standing.contains(&id) && self.rng.random_range(0..4) > 0 {
            return; // an answer to the one before may be on its way
        }
        if self.wish(server, id, nonce, false) {
            let epoch = self.servers[server].epoch;
            self.servers[server].asks.insert(id, nonce);
            self.note(format!("s{server} asks about c{chunk}"));
            self.send(Message::Ask { server, ask: (id, nonce), epoch });
        }
    }

    pub(super) fn wish(&mut self, server: usize, id: ChunkId, nonce: u64, is_round: bool) -> bool {
        let server = &mut self.servers[server];
        let stands = server.store.set().wish(id, nonce);
        if stands {
            server.last.insert(id, (nonce, is_round));
            server.standing.insert(id);
        }
        stands
    }

    fn ask_arrives(&mut self, server: usize, ask: Nonced, epoch: Epoch) {
        let target = self.target(chunk_of(ask.0));
        let Ok(Done::Condemned { granted }) = self.meta.command(&Command::Condemn { epoch, chunks: vec![ask.0] })
        else {
            return;
        };
        let index = self.meta.index();
        self.note(format!("{index}: an ask of s{server} about c{}: {}", chunk_of(ask.0), !granted.is_empty()));
        if granted.is_empty() {
            self.send(Message::Kept { server, id: ask.0, target });
        } else {
            self.counts.grants += 1;
            self.send(Message::Grant { server, grant: ask, epoch });
        }
    }

    pub(super) async fn grant_arrives(&mut self, server: usize, grant: Nonced, epoch: Epoch) {
        let id = grant.0;
        if epoch != self.servers[server].epoch && !self.is(Weakness::WishesSurviveARestore) {
            return;
        }
        let ask = self.servers[server].asks.get(&id).map(|nonce| (id, *nonce));
        for (id, nonce) in granted(ask.as_slice(), &[grant]) {
            let gone = self.delete(server, id, nonce).await;
            self.counts.deleted += u64::from(gone);
            self.note(format!("a grant reaches s{server}: c{} goes: {gone}", chunk_of(id)));
        }
    }

    pub(super) async fn delete(&mut self, server: usize, id: ChunkId, nonce: u64) -> bool {
        let meeting = self.meet(server, chunk_of(id));
        let gone = self.servers[server].store.set().delete(id, nonce).await.is_ok();
        self.have_met(server, chunk_of(id), meeting);
        if gone {
            self.servers[server].standing.remove(&id);
        }
        gone
    }
}
