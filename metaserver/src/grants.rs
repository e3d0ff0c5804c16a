//! Leases that come with answers (rule 3 of [`common::proto::lease`]): one is noted before what it covers is read, and what
//! is asked for again because of that is read from this node's own rows, where every change is known before its guard goes.

use crate::leases::{Changing, Leases, LockedNames};
use crate::namespace::{self, Done, Fail, QueryCtx};
use crate::raft::State;
use common::fault::{Fault, Kind};
use common::id::{InodeId, LogIndex, SessionId};
use common::proto::lease::{Grants, LEASE_ATTRS_MAX, LEASE_CONTENTS_MAX, LEASE_FILE_MAX, LeaseAsk, LeasedListing};
use common::proto::meta::{Answer, Answered, Ask, Attr, DirEntry, Extent, ExtentRun, FileKind, OPEN_AHEAD_MAX, Query};
use common::units::len_u64;
use std::sync::Arc;
use tokio::time::Instant;

/// What keeps others from believing in what a change makes untrue.
pub(crate) struct Guard {
    pub(crate) locked: Option<LockedNames>,
    pub(crate) changing: Changing,
    /// Who made the change, if it takes part, and when it asked.
    pub(crate) asked: Option<(SessionId, Instant)>,
}

impl Guard {
    /// The change is decided. The leases that its session gets: of what is as the outcome says. (An outcome that was kept
    /// for a repeated request may be old.)
    pub(crate) fn end(self, result: &Result<Done, Fault>, state: &State) -> Vec<u64> {
        let Guard { locked, changing, asked } = self;
        match (result, asked) {
            (Ok(Done::Applied(applied)), Some((session, arrived))) => {
                let mounted = state.mounted();
                let grant = |shown: &Attr| {
                    let noted = changing.grant(session, shown.ino, arrived);
                    let found = namespace::attr(mounted.kv(), shown.ino);
                    if found.is_ok_and(|found| found.as_ref() == Some(shown)) {
                        return noted.number;
                    }
                    changing.undo(noted);
                    0
                };
                applied.outcome.attrs().into_iter().map(grant).collect()
            }
            (Err(fault), _) if matches!(fault.kind, Kind::Unsure | Kind::Internal) => {
                changing.without_end();
                locked.into_iter().for_each(LockedNames::without_end);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }
}

/// Answers from what this node has applied, with leases for a session that takes some. A lease is noted before what it
/// covers is read.
pub(crate) struct Reading {
    pub(crate) state: Arc<State>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) ctx: QueryCtx,
    pub(crate) term: u64,
    pub(crate) session: SessionId,
    pub(crate) arrived: Instant,
}

impl Reading {
    fn plain(&self, ask: &Ask) -> Result<Answered, Fail> {
        let index = LogIndex(self.state.applied_index()); // before the view: never ahead of it
        let mounted = self.state.mounted();
        let view = mounted.kv().snapshot();
        namespace::query(&*view, index, ask, &self.ctx)
    }

    /// The answer to a question.
    pub(crate) fn query(&self, ask: &Ask) -> Result<Answered, Fail> {
        let ino = match &ask.query {
            _ if !ask.lease => return self.plain(ask),
            Query::GetAttr { ino } | Query::Open { ino, .. } | Query::Extents { ino, .. } => *ino,
            Query::Lookup { .. } | Query::Walk { .. } => match self.plain(ask)?.answer.attrs().first() {
                Some(attr) => attr.ino,
                None => return self.plain(ask),
            },
            Query::ReadDir { ino, after, limit, attrs: true } => {
                let query = Query::ReadDir { ino: *ino, after: *after, limit: *limit, attrs: false };
                let mut answered = self.plain(&Ask { query, ..ask.clone() })?;
                if let Answer::Listing { entries, .. } = &mut answered.answer {
                    let leases = self.fill(entries, None)?;
                    answered.grants = Grants { term: self.term, leases };
                }
                return Ok(answered);
            }
            Query::ReadDir { .. }
            | Query::ReadLink { .. }
            | Query::GetXattr { .. }
            | Query::ListXattr { .. }
            | Query::StatFs
            | Query::LockHolder { .. }
            | Query::LockWaits { .. }
            | Query::Trash(_) => return self.plain(ask),
        };
        let Some(lease) = self.leases.grant(self.session, ino, self.arrived) else { return self.plain(ask) };
        let answered = self.plain(ask);
        match answered {
            Ok(mut answered) if answered.answer.attrs().first().is_some_and(|attr| attr.ino == ino) => {
                let mut leases = vec![lease.number];
                if let (Query::Open { ahead, .. }, Answer::Opened { ahead: found, .. }) =
                    (&ask.query, &mut answered.answer)
                {
                    leases.extend(self.ahead(ahead, found)?);
                }
                Ok(Answered { grants: Grants { term: self.term, leases }, ..answered })
            }
            other => {
                self.leases.undo(lease);
                other
            }
        }
    }

    /// Files that will probably be opened next, and the numbers of their leases: those of them that can be told in few bytes, and
    /// are leased. Where root may be nobody there are none: who has them opens them without asking.
    fn ahead(&self, wanted: &[InodeId], found: &mut Vec<(Attr, ExtentRun)>) -> Result<Vec<u64>, Fail> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let wanted = wanted.iter().copied().take(OPEN_AHEAD_MAX);
        let granted = self.leases.grant_all(self.session, wanted, self.arrived);
        let mounted = self.state.mounted();
        let view = mounted.kv().snapshot();
        if namespace::squash(&*view)?.is_some() {
            granted.into_iter().for_each(|lease| self.leases.undo(lease));
            return Ok(Vec::new());
        }
        let degraded = namespace::counters(&*view)?.degraded > 0;
        let (mut contents, mut leases) = (Contents::default(), Vec::with_capacity(granted.len()));
        for lease in granted {
            let attr = if lease.number == 0 { None } else { namespace::attr(&*view, lease.ino)? };
            let run = match attr.as_ref().filter(|attr| contents.may_take(attr)) {
                Some(attr) => namespace::few_extents(&*view, &self.ctx, self.session, degraded, attr.ino)?,
                None => None,
            };
            match (attr, run) {
                (Some(attr), Some(run)) if contents.has_room(&run) => {
                    leases.push(lease.number);
                    found.push((attr, run));
                }
                _ => self.leases.undo(lease),
            }
        }
        Ok(leases)
    }

    /// Attributes of what the first entries lead to, and the numbers of their leases. What is gone by now goes. `contents`:
    /// those of small files as well.
    fn fill(&self, entries: &mut Vec<DirEntry>, mut contents: Option<&mut Contents>) -> Result<Vec<u64>, Fail> {
        let first = entries.iter().take(LEASE_ATTRS_MAX).map(|entry| entry.ino);
        let mut granted = self.leases.grant_all(self.session, first, self.arrived).into_iter();
        let mounted = self.state.mounted();
        let view = mounted.kv().snapshot();
        let mut leases = Vec::with_capacity(granted.len());
        let degraded = namespace::counters(&*view)?.degraded > 0;
        let mut kept = Vec::with_capacity(entries.len());
        for mut entry in std::mem::take(entries) {
            if let Some(lease) = granted.next() {
                entry.attr = namespace::attr(&*view, entry.ino)?;
                if entry.attr.is_none() {
                    self.leases.undo(lease);
                    continue;
                }
                leases.push(lease.number);
                if let (Some(contents), Some(attr), true) = (&mut contents, &entry.attr, lease.number != 0)
                    && contents.may_take(attr)
                    && let Some(run) = namespace::few_extents(&*view, &self.ctx, self.session, degraded, attr.ino)?
                    && contents.has_room(&run)
                {
                    contents.runs.push((attr.ino, run));
                }
            }
            kept.push(entry);
        }
        *entries = kept;
        Ok(leases)
    }

    /// A directory and all in it; the directory's lease is `lease`. `None`: too many names.
    pub(crate) fn listing(&self, ask: &LeaseAsk, lease: u64) -> Result<Option<LeasedListing>, Fail> {
        let found = namespace::leased(&*self.state.mounted().kv().snapshot(), ask, &self.ctx)?;
        let Some((attr, parent, mut entries)) = found else { return Ok(None) };
        let mut contents = Contents::default();
        // Who has contents opens files without asking: where root may be nobody, it asks.
        let squashing = namespace::squash(self.state.mounted().kv())?.is_some();
        let leases = self.fill(&mut entries, Some(&mut contents).filter(|_| ask.contents && !squashing))?;
        let leases = std::iter::once(lease).chain(leases).collect();
        Ok(Some(LeasedListing { attr, parent, entries, leases, contents: contents.runs }))
    }
}

/// An extent's length in an answer beside its bytes, about, in bytes.
const EXTENT_COST: u64 = 96;

/// What small files hold, and where others' chunks are, up to a limit.
#[derive(Default)]
struct Contents {
    runs: Vec<(InodeId, ExtentRun)>,
    bytes: u64,
    /// Also of those that were not taken: reading is what takes time.
    read: u64,
}

impl Contents {
    /// A cheap look, before extents are read.
    fn may_take(&self, attr: &Attr) -> bool {
        attr.kind == FileKind::File && self.read < LEASE_CONTENTS_MAX
    }

    /// Whether this goes along, too; if so, its room is taken.
    fn has_room(&mut self, run: &ExtentRun) -> bool {
        let inline: u64 = run.extents.iter().map(Extent::inline_len).sum();
        let bytes = inline + EXTENT_COST * len_u64(run.extents.len());
        self.read += bytes;
        let has_room = inline <= LEASE_FILE_MAX && self.bytes + bytes <= LEASE_CONTENTS_MAX;
        self.bytes += if has_room { bytes } else { 0 };
        has_room
    }
}
