//! `dfs admin fsck`: everything the leader can check, in one job.
//!
//! | step | file | checks |
//! | --- | --- | --- |
//! | namespace | `namespace/check.rs` | all invariants of the rows, in one view at one applied index |
//! | chunks | `chunks` | every referenced chunk against what the chunkservers list; with `data` every copy is read and hashed |
//! | files | `files` | which files, and where in them, lost chunks belong to |
//! | repair | here | corrections, as commands in batches; missing copies become degraded rows, which repair takes up |
//!
//! A job lives in the memory of the leader that began it, and ends when nobody looks at it for [`FORGOTTEN_AFTER`], or when
//! that leader does not lead any more. What it has corrected by then stays.

mod chunks;
mod files;

pub(crate) use files::{chunks_of, ranges_of};

use crate::leading::Leading;
use crate::leases::NOBODY;
use crate::namespace::{self, Command, FIXES_MAX, Fix};
use crate::node::Shared;
use crate::raft::Member;
use common::auth::Secret;
use common::fault::{Fault, Kind};
use common::id::{ChunkId, LogIndex};
use common::kv::KvError;
use common::proto::admin::{FINDINGS_PER_ANSWER, Finding, FindingKind, FsckAsk, FsckLook, FsckPhase};
use common::units::{len_u64, len_usize};
use common::wire::Pool;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// Findings of each kind that are kept; more are only counted: what is lost is told, however much is short.
const FINDINGS_MAX: u64 = 10_000;
/// A job nobody looks at ends after this long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// The job of this leader, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Jobs(Mutex<Option<Arc<Job>>>);

/// One check.
#[derive(Debug)]
pub(crate) struct Job {
    id: u64,
    state: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    look: FsckLook,
    seen: Instant,
}

/// What a job works with.
pub(super) struct Work {
    pub(super) node: Shared,
    pub(super) member: Member,
    pub(super) leading: Arc<Leading>,
    pub(super) pool: Pool,
    pub(super) secret: Secret,
    pub(super) ask: FsckAsk,
    job: Arc<Job>,
    /// Who ordered it.
    by: String,
}

impl Jobs {
    fn job(&self) -> MutexGuard<'_, Option<Arc<Job>>> {
        self.0.lock().expect("no panic holds this lock")
    }

    /// Starts one.
    ///
    /// # Errors
    /// `Busy`: another one runs.
    pub(crate) fn start(
        &self,
        node: &Shared,
        (member, leading): (Member, Arc<Leading>),
        pool: Pool,
        (ask, by): (FsckAsk, String),
    ) -> Result<u64, Fault> {
        let mut slot = self.job();
        if slot.as_ref().is_some_and(|job| job.is_running()) {
            return Err(Fault::new(Kind::Exists, "another check is running: wait for its end"));
        }
        let id = node.world.random_u64();
        let job = Arc::new(Job::new(id));
        *slot = Some(job.clone());
        let secret = leading.ctx.secret;
        let work = Work { node: node.clone(), member, leading, pool, secret, ask, job, by };
        node.tasks.spawn_until_stop(work.run());
        Ok(id)
    }

    /// How far it is.
    ///
    /// # Errors
    /// `NotFound`: not here.
    pub(crate) fn look(&self, id: u64, after: u32) -> Result<FsckLook, Fault> {
        let job = self.job().clone().filter(|job| job.id == id);
        let job = job.ok_or_else(|| Fault::new(Kind::NotFound, "the metaserver that ran this check leads no more"))?;
        let mut state = job.state();
        state.seen = Instant::now();
        let after = len_usize(after.into()).min(state.look.findings.len());
        let end = (after + len_usize(FINDINGS_PER_ANSWER.into())).min(state.look.findings.len());
        let findings = state.look.findings[after..end].to_vec();
        let FsckLook { phase, index, chunks, chunks_total, bytes, unmended, repaired, .. } = state.look;
        let (counts, failed) = (state.look.counts.clone(), state.look.failed.clone());
        Ok(FsckLook { phase, index, chunks, chunks_total, bytes, counts, unmended, findings, repaired, failed })
    }
}

impl Job {
    fn new(id: u64) -> Job {
        let look = FsckLook {
            phase: FsckPhase::Namespace,
            index: LogIndex(0),
            chunks: 0,
            chunks_total: 0,
            bytes: 0,
            counts: Vec::new(),
            unmended: 0,
            findings: Vec::new(),
            repaired: 0,
            failed: None,
        };
        Job { id, state: Mutex::new(Progress { look, seen: Instant::now() }) }
    }

    fn state(&self) -> MutexGuard<'_, Progress> {
        self.state.lock().expect("no panic holds this lock")
    }

    fn is_running(&self) -> bool {
        self.state().look.phase != FsckPhase::Done
    }

    fn is_forgotten(&self) -> bool {
        self.state().seen.elapsed() > FORGOTTEN_AFTER
    }

    fn found(&self, finding: Finding) {
        if self.counted(finding.kind, finding.mends) <= FINDINGS_MAX {
            self.state().look.findings.push(finding);
        }
    }

    /// Counts a finding; how many of its kind there are now.
    fn counted(&self, kind: FindingKind, mends: bool) -> u64 {
        let look = &mut self.state().look;
        look.unmended += u64::from(!mends);
        let at = look.counts.iter().position(|(other, _)| *other == kind).unwrap_or_else(|| {
            look.counts.push((kind, 0));
            look.counts.len() - 1
        });
        look.counts[at].1 += 1;
        look.counts[at].1
    }

    fn update(&self, change: impl FnOnce(&mut FsckLook)) {
        change(&mut self.state().look);
    }
}

pub(super) fn store_failed(error: &KvError) -> Fault {
    Fault::new(Kind::Internal, format!("the metadata store: {error}"))
}

impl Work {
    async fn run(self) {
        let failed = self.steps().await.err().map(|fault| fault.message);
        if let Some(error) = &failed {
            tracing::warn!(op = "fsck", error, "a check ended early");
        }
        self.job.update(|look| {
            look.phase = FsckPhase::Done;
            look.failed = failed;
        });
    }

    async fn steps(&self) -> Result<(), Fault> {
        let (mut fixes, below) = self.namespace().await?;
        self.job.update(|look| look.phase = FsckPhase::Chunks);
        let (lost, short) = self.chunks(below.as_ref()).await?;
        self.job.update(|look| look.phase = FsckPhase::Files);
        self.files(lost).await?;
        fixes.extend(short);
        if self.ask.repair {
            self.job.update(|look| look.phase = FsckPhase::Repair);
            self.repair(fixes).await?;
        }
        self.release().await
    }

    /// Everything is there and sound: what a restore holds back may go on.
    async fn release(&self) -> Result<(), Fault> {
        let clean = self.job.state().look.counts.is_empty();
        let held = namespace::held(self.member.state.mounted().kv()).map_err(|e| store_failed(&e))?;
        let Some(held) = held.filter(|_| clean && self.ask.path.is_none()) else { return Ok(()) };
        self.go_on()?;
        let what = "fsck found nothing wrong after the restore: deletion goes on".to_owned();
        let (by, at, epoch) = (self.by.clone(), self.node.world.now(), held.epoch);
        let command = Some(Box::new(Command::Release { epoch }));
        self.member.propose(&Command::Ordered { by, what, at, command }).await.map(|_| ())
    }

    /// Ends the job when nobody wants it, or when what it reads may be old.
    pub(super) fn go_on(&self) -> Result<(), Fault> {
        if self.job.is_forgotten() {
            return Err(Fault::new(Kind::Unavailable, format!("nobody looked for {FORGOTTEN_AFTER:?}")));
        }
        if !self.node.leadership.is_still(&self.member, &self.leading) {
            return Err(Fault::new(Kind::Unavailable, "another metaserver leads now: run it again"));
        }
        Ok(())
    }

    /// Checks the rows; what mends them, and the chunks of the files below the path that was asked for.
    async fn namespace(&self) -> Result<(Vec<Fix>, Option<BTreeSet<ChunkId>>), Fault> {
        self.leading.leases.look(NOBODY, None).await; // what mounts have answered for is part of it
        self.member.reads.wait().await?;
        let (state, path) = (self.member.state.clone(), self.ask.path.clone());
        let index = LogIndex(state.applied_index()); // before the view: a correction since then makes it void
        let read = move || {
            let mounted = state.mounted();
            let view = mounted.kv().snapshot();
            let below = path.map(|path| files::chunks_below(&*view, &path)).transpose()?;
            let total = namespace::counters(&*view).map_err(|e| store_failed(&e))?.chunks;
            let total = below.as_ref().map_or(total, |below| len_u64(below.len()));
            Ok::<_, Fault>((namespace::problems(&*view).map_err(|e| store_failed(&e))?, below, total))
        };
        let (problems, below, total) = self.node.world.blocking(read).await?;
        self.job.update(|look| (look.index, look.chunks_total) = (index, total));
        let mut fixes = Vec::new();
        for problem in problems {
            let mends = !problem.fixes.is_empty();
            fixes.extend(problem.fixes);
            let (kind, text) = (FindingKind::Namespace, problem.text);
            self.job.found(Finding { kind, text, chunk: None, files: Vec::new(), mends });
        }
        Ok((fixes, below))
    }

    async fn repair(&self, fixes: Vec<Fix>) -> Result<(), Fault> {
        let scan = self.job.state().look.index;
        let leading = self.node.leadership.get(&self.member).await?;
        let changing = leading.leases.change_all().await;
        for (batch, fixes) in (1u32..).zip(fixes.chunks(FIXES_MAX)) {
            self.go_on()?;
            let at = self.node.world.now();
            let what = format!("fsck --repair: {} corrections", fixes.len());
            let command = Some(Box::new(Command::Fix { scan, batch, fixes: fixes.to_vec(), at }));
            let command = Command::Ordered { by: self.by.clone(), what, at, command };
            if let Err(fault) = self.member.propose(&command).await {
                if fault.kind == Kind::Unsure {
                    changing.without_end();
                }
                return Err(fault);
            }
            self.job.update(|look| look.repaired += len_u64(fixes.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many chunks are short, what is lost is told with its files, and that it is lost is not forgotten.
    #[test]
    fn what_is_lost_is_told_behind_any_number_of_other_findings() {
        let job = Job::new(1);
        let finding = |kind, mends| Finding { kind, text: String::new(), chunk: None, files: Vec::new(), mends };
        for _ in 0..=FINDINGS_MAX {
            job.found(finding(FindingKind::Short, true));
        }
        job.found(finding(FindingKind::Lost, false));
        let look = job.state().look.clone();
        assert_eq!(look.counts, [(FindingKind::Short, FINDINGS_MAX + 1), (FindingKind::Lost, 1)]);
        assert_eq!((look.unmended, len_u64(look.findings.len())), (1, FINDINGS_MAX + 1));
        assert_eq!(look.findings.last().map(|last| last.kind), Some(FindingKind::Lost));
    }
}
