//! What else happens in a run: references go, servers restart and copy from each other, layouts change, a disk is lost,
//! the metadata goes back to a backup. And what must hold.

use super::chance::{CLIENTS, Run, Server, names};
use super::cluster::{Store, contents, name, order};
use super::plan::{Harm, Weakness};
use common::auth::Attempt;
use common::id::{LogIndex, SessionId};
use common::proto::meta::{CloneRange, Commit, Edit, Op, Source};
use metaserver::namespace::{Command, Done};
use rand::{Rng, RngExt};
use std::collections::BTreeSet;

impl Run {
    /// Copies wanted of a chunk; 0: nothing refers to it.
    pub(super) fn target(&self, chunk: usize) -> u8 {
        self.meta.targets(&[name(chunk).id])[0].1
    }

    /// Nobody relies any more on copies of what nothing refers to.
    pub(super) fn forget_unreferenced(&mut self) {
        for chunk in 0..contents().len() {
            if self.target(chunk) == 0 {
                self.must[chunk].clear();
            }
        }
    }

    fn a_session(&mut self) -> SessionId {
        self.clients[self.rng.random_range(0..CLIENTS)].session
    }

    /// The data of a file, or of all, becomes a hole.
    pub(super) fn punch(&mut self) {
        let one = self.rng.random_range(0..=CLIENTS);
        for file in (0..CLIENTS).filter(|file| one == CLIENTS || one == *file) {
            self.punch_file(file);
            self.note(format!("{}: file {file} is punched", self.meta.index()));
        }
    }

    fn punch_file(&mut self, file: usize) {
        let session = self.a_session();
        let commit = Commit {
            ino: self.files[file],
            base: None,
            edits: vec![Edit { at: 0, len: name(0).len.into(), data: Source::Hole }],
            append: false,
            grow: 0,
            chunks: Vec::new(),
            attempt: Attempt { session, witness: LogIndex(0), epoch: self.meta.epoch() },
            layout: self.meta.layout().version,
            mtime: None,
        };
        self.meta.now(session, Op::Commit(commit));
        self.forget_unreferenced();
    }

    pub(super) fn clone_file(&mut self) {
        let (from, session) = (self.rng.random_range(0..CLIENTS), self.a_session());
        let (source, target) = (self.files[from], self.files[1 - from]);
        let range = CloneRange { from: source, from_at: 0, to: target, at: 0, len: name(0).len.into() };
        self.meta.now(session, Op::Clone(range));
        self.forget_unreferenced();
        self.note(format!("{}: file {from} is cloned", self.meta.index()));
    }

    pub(super) fn remove_file(&mut self) {
        let (file, session) = (self.rng.random_range(0..CLIENTS), self.a_session());
        self.meta.remove(session, &names()[file]);
        self.files[file] = self.meta.create(session, &names()[file]);
        self.forget_unreferenced();
        self.note(format!("{}: file {file} is removed, and made again", self.meta.index()));
    }

    /// What is in the trash goes for good.
    pub(super) fn expire_trash(&mut self) {
        self.meta.expire_trash();
        self.forget_unreferenced();
        self.note(format!("{}: the trash is emptied", self.meta.index()));
    }

    pub(super) async fn restart(&mut self, at: usize) {
        self.counts.restarts += 1;
        self.note(format!("s{at} restarts"));
        let keeps = self.is(Weakness::WishesSurviveARestart);
        let server = &mut self.servers[at];
        server.store.restart().await;
        server.standing.clear();
        if keeps {
            for (id, (nonce, _)) in &server.last {
                if server.store.set().wish(*id, *nonce) {
                    server.standing.insert(*id);
                }
            }
        } else {
            server.forget();
        }
    }

    /// A server fetches a copy from another one, as repair does; or a late put comes in.
    pub(super) async fn pull(&mut self) {
        let (to, from, (chunk, wanted)) = (self.a_server(), self.a_server(), self.a_chunk());
        let Some(bytes) = self.servers[from].store.read(wanted).await else { return };
        if self.servers[to].store.put(&bytes).await {
            self.vouched(to, chunk, self.is(Weakness::TouchKeepsRounds), false);
            self.note(format!("s{to} has a copy of c{chunk} from s{from}"));
        }
    }

    /// Scrub reads a copy.
    pub(super) async fn verify(&mut self) {
        let (at, (chunk, wanted)) = (self.a_server(), self.a_chunk());
        if self.servers[at].store.set().verify(wanted.id).await.is_ok() {
            self.vouched(at, chunk, false, false);
        }
    }

    pub(super) fn move_group(&mut self) {
        let order = order(self.servers.len(), &mut self.rng);
        let layout = self.meta.set_layout(&order);
        // Some moves are closed at once, some arrive, some are still under way when the next one begins.
        (0..layout.version.0 % 3).for_each(|_| self.meta.moves_go_on());
        self.note(format!("{}: layout {}: {order:?}", self.meta.index(), layout.version));
    }

    /// A server hears of the layout.
    pub(super) fn learn(&mut self) {
        let (at, layout) = (self.a_server(), self.meta.layout());
        self.servers[at].layout = layout;
    }

    /// A server loses its disk and comes back with an empty one: once, and only if each commit needs two copies.
    pub(super) async fn lose_disk(&mut self) {
        if self.min < 2 || self.lost_disk.is_some() {
            return;
        }
        let (at, seed) = (self.a_server(), self.rng.next_u64());
        self.servers[at].store = Store::new(seed).await;
        self.servers[at].forget();
        self.lost_disk = Some(at);
        self.counts.disks_lost += 1;
        self.note(format!("s{at} loses its disk"));
    }

    pub(super) fn back_up_or_restore(&mut self) {
        if self.counts.restores > 0 {
            return;
        }
        let Some((backup, files)) = self.backup.take() else {
            self.backup = Some((self.meta.back_up(), self.files.clone()));
            return self.note(format!("{}: the metadata is backed up", self.meta.index()));
        };
        self.meta.restore(&backup);
        self.files = files;
        self.counts.restores += 1;
        self.checked = false;
        self.must.iter_mut().for_each(BTreeSet::clear);
        for at in 0..CLIENTS {
            let session = SessionId(self.clients[at].session.0 + 100);
            self.meta.open_session(session);
            let client = &mut self.clients[at];
            (client.session, client.known) = (session, self.meta.index()); // what it has begun, goes on
        }
        self.note(format!("{}: the metadata is restored, epoch {}", self.meta.index(), self.meta.epoch()));
    }

    /// After a restore: a server hears of the epoch; when all have, fsck may pass.
    pub(super) async fn tell_and_check(&mut self) {
        let epoch = self.meta.epoch();
        let passes_early = self.is(Weakness::FsckDoesNotWait) && self.rng.random_range(0..2) == 0;
        let unaware = |server: &Server| server.epoch != epoch;
        if let Some(at) = self.servers.iter().position(unaware).filter(|_| self.checked || !passes_early) {
            let keeps = self.is(Weakness::WishesSurviveARestore);
            let server = &mut self.servers[at];
            server.epoch = epoch;
            if !keeps {
                server.store.set().void_wishes();
                server.forget();
            }
            return self.note(format!("s{at} hears of epoch {epoch}"));
        }
        if self.checked {
            return;
        }
        for chunk in 0..contents().len() {
            if self.target(chunk) > 0 {
                self.must[chunk] = self.holders(chunk).await;
            }
            if self.target(chunk) > 0 && self.must[chunk].is_empty() {
                (0..CLIENTS).for_each(|file| self.punch_file(file)); // fsck says so; what it names is gone for good
                self.meta.expire_trash();
            }
        }
        self.checked = true;
        self.meta.release();
        self.note(format!("{}: fsck has passed", self.meta.index()));
    }

    /// All is well again: everybody hears of everything, and asks once more about what it has. What nothing refers to is
    /// gone then, whoever put it, and whether or not a commit ever came. What is left if not.
    pub(super) async fn collect(&mut self) -> Option<String> {
        self.expire_trash();
        for at in 0..self.servers.len() {
            self.restart(at).await;
        }
        for _ in 0..=self.servers.len() {
            self.tell_and_check().await;
        }
        for chunk in (0..contents().len()).filter(|chunk| self.target(*chunk) == 0).collect::<Vec<_>>() {
            let id = name(chunk).id;
            for at in 0..self.servers.len() {
                let (nonce, epoch) = (self.rng.next_u64(), self.meta.epoch());
                if self.wish(at, id, nonce, false) {
                    self.servers[at].asks.insert(id, nonce);
                    let condemned = self.meta.command(&Command::Condemn { epoch, chunks: vec![id] });
                    assert_eq!(condemned, Ok(Done::Condemned { granted: vec![id] }), "nothing refers to it");
                    self.grant_arrives(at, (id, nonce), epoch).await;
                }
            }
            let left = self.holders(chunk).await;
            if !left.is_empty() {
                return Some(format!("nothing refers to c{chunk}, and it is still on {left:?}"));
            }
        }
        None
    }

    async fn holders(&self, chunk: usize) -> BTreeSet<usize> {
        let mut holders = BTreeSet::new();
        for (at, server) in self.servers.iter().enumerate() {
            if server.store.read(name(chunk)).await.is_some_and(|bytes| bytes == contents()[chunk]) {
                holders.insert(at);
            }
        }
        holders
    }

    /// What does not hold, if anything.
    pub(super) async fn harm(&self) -> Option<(Harm, String)> {
        for chunk in (0..contents().len()).filter(|_| self.checked) {
            if self.target(chunk) == 0 {
                continue;
            }
            let holders = self.holders(chunk).await;
            let relied = || self.must[chunk].iter().filter(|at| self.lost_disk != Some(**at));
            if holders.is_empty() {
                return Some((Harm::Lost, format!("c{chunk} is referred to, and nobody has it")));
            }
            if self.weakness.is_none() && !relied().all(|at| holders.contains(at)) {
                let relied: Vec<_> = relied().collect();
                return Some((Harm::Short, format!("c{chunk} was committed with {relied:?}, and is on {holders:?}")));
            }
        }
        None
    }
}

impl Server {
    /// What was in memory is gone.
    fn forget(&mut self) {
        self.asks.clear();
        self.rounds.clear();
        self.last.clear();
        self.standing.clear();
    }
}
