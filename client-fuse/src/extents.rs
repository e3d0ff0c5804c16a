//! What a client knows of where a file's bytes are: extents of one data version, and which ranges it knows. Pure.
//!
//! Invariants:
//! 1. Extents lie inside known ranges, in order, without overlap, and all are of data version `version`.
//! 2. In a known range, what no extent covers is a hole.

use common::id::DataVersion;
use common::proto::meta::{EXTENTS_PER_ANSWER, Extent, ExtentRun, Source};
use std::collections::BTreeMap;
use std::ops::Range;

/// The most extents kept of one file; beyond that it starts anew with the last answer. (Few in tests, so that they see it.)
const EXTENTS_KEPT_MAX: usize = if cfg!(test) { 700 } else { 16_384 };

/// With so many extents, inline bytes of own commits are not kept but asked for when they are read: they take memory that no
/// budget counts, up to 16 KiB each.
const OWN_KEPT_MAX: usize = 64;

/// A range and the extent that covers it, cut to it; `None`: a hole.
pub(crate) type Part = (Range<u64>, Option<Extent>);

/// Extents of one version of a file.
#[derive(Clone, Debug)]
pub(crate) struct Extents {
    version: DataVersion,
    /// From this version on nobody but this client has changed the file, up to `version`.
    since: DataVersion,
    /// The most that are kept.
    most: usize,
    map: BTreeMap<u64, Extent>,
    /// Known ranges, start to end, not touching each other.
    known: BTreeMap<u64, u64>,
}

impl Extents {
    /// Nothing is known of this version, except that an empty file has no extents.
    pub(crate) fn new(version: DataVersion) -> Extents {
        Extents::keeping(version, EXTENTS_KEPT_MAX)
    }

    /// As [`Extents::new`], with another limit.
    pub(crate) fn keeping(version: DataVersion, most: usize) -> Extents {
        Extents { version, since: version, most, map: BTreeMap::new(), known: BTreeMap::new() }
    }

    /// The version they are of.
    pub(crate) fn version(&self) -> DataVersion {
        self.version
    }

    /// The version from which on nobody but this client has changed the file, as far as is known.
    pub(crate) fn since(&self) -> DataVersion {
        self.since
    }

    /// Forgets everything; what comes is of this version.
    pub(crate) fn reset(&mut self, version: DataVersion) {
        *self = Extents::keeping(version, self.most);
    }

    /// True if the next answer may make it start anew: who needs more uses what is known first.
    pub(crate) fn is_full(&self) -> bool {
        self.map.len() + EXTENTS_PER_ANSWER > self.most
    }

    /// Takes an answer about everything from `from` on. An older version is ignored, a newer one replaces all.
    pub(crate) fn learn(&mut self, version: DataVersion, from: u64, run: &ExtentRun) {
        if version < self.version || run.covered <= from {
            return;
        }
        if version > self.version || self.map.len() + run.extents.len() > self.most {
            let since = if version > self.version { version } else { self.since };
            *self = Extents { since, ..Extents::keeping(version, self.most) };
        }
        self.forget(from..run.covered);
        for extent in &run.extents {
            if let Some(extent) = clipped(extent, from..run.covered) {
                self.map.insert(extent.at, extent);
            }
        }
        self.add_known(from, run.covered);
    }

    /// Our own commit put this into these ranges and made `version`. Everything else stays known if nothing else happened
    /// in between, and holes and inline bytes are known as well; where chunks are read the metaservers say. `None`: they say
    /// what was put there.
    pub(crate) fn committed(
        &mut self,
        version: DataVersion,
        edits: impl Iterator<Item = (Range<u64>, Option<Source>)>,
    ) {
        if version <= self.version {
            return; // learnt from a later answer already
        }
        if version.0 != self.version.0 + 1 {
            self.reset(version);
            return;
        }
        self.version = version;
        for (range, data) in edits.filter(|(range, _)| !range.is_empty()) {
            self.forget(range.clone());
            match data {
                None | Some(Source::Chunk { .. }) => continue,
                Some(Source::Hole) => {}
                Some(Source::Inline { .. }) if self.map.len() >= OWN_KEPT_MAX.min(self.most) => continue,
                Some(data @ Source::Inline { .. }) => {
                    let (at, len) = (range.start, range.end - range.start);
                    let (token, holders) = Default::default();
                    self.map.insert(at, Extent { at, len, data, chunk_len: 0, token, holders });
                }
            }
            self.add_known(range.start, range.end);
        }
    }

    /// The extents that overlap a range, cut to it, and `None`s for holes; all if the whole range is known, else the
    /// first byte that is not: before it, everything is.
    pub(crate) fn find(&self, range: Range<u64>) -> Result<Vec<Part>, u64> {
        let known_to = match self.known.range(..=range.start).next_back() {
            Some((_, end)) if *end > range.start => *end,
            _ => return Err(range.start),
        };
        if known_to < range.end {
            return Err(known_to);
        }
        let mut out = Vec::new();
        let mut at = range.start;
        let first = self.map.range(..range.start).next_back().map_or(range.start, |(start, _)| *start);
        for extent in self.map.range(first..range.end).map(|(_, extent)| extent) {
            let Some(part) = clipped(extent, range.clone()) else { continue };
            if part.at > at {
                out.push((at..part.at, None));
            }
            at = part.at + part.len;
            out.push((part.at..at, Some(part)));
        }
        if at < range.end {
            out.push((at..range.end, None));
        }
        Ok(out)
    }

    /// The range of the extent that covers this byte, if one is known to.
    pub(crate) fn around(&self, at: u64) -> Option<Range<u64>> {
        let (_, extent) = self.map.range(..=at).next_back()?;
        Some(extent.at..extent.at + extent.len).filter(|range| range.contains(&at))
    }

    fn add_known(&mut self, mut from: u64, mut to: u64) {
        let touching: Vec<u64> =
            self.known.range(..=to).filter(|(_, end)| **end >= from).map(|(start, _)| *start).collect();
        for start in touching {
            let end = self.known.remove(&start).expect("just listed");
            (from, to) = (from.min(start), to.max(end));
        }
        self.known.insert(from, to);
    }

    fn forget(&mut self, range: Range<u64>) {
        let first = self.map.range(..range.start).next_back().map_or(range.start, |(start, _)| *start);
        let hit: Vec<u64> = self.map.range(first..range.end).map(|(at, _)| *at).collect();
        for at in hit {
            let extent = self.map.remove(&at).expect("just listed");
            let end = extent.at + extent.len;
            for kept in [extent.at..range.start.min(end), range.end.max(extent.at)..end] {
                if let Some(part) = clipped(&extent, kept) {
                    self.map.insert(part.at, part);
                }
            }
        }
        let hit: Vec<(u64, u64)> = self.known.range(..range.end).map(|(a, b)| (*a, *b)).collect();
        for (start, end) in hit.into_iter().rev().take_while(|(_, end)| *end > range.start) {
            self.known.remove(&start);
            if start < range.start {
                self.known.insert(start, range.start);
            }
            if end > range.end {
                self.known.insert(range.end, end);
            }
        }
    }
}

/// The part of an extent inside a range.
fn clipped(extent: &Extent, range: Range<u64>) -> Option<Extent> {
    let (from, to) = (extent.at.max(range.start), (extent.at + extent.len).min(range.end));
    if from >= to {
        return None;
    }
    let skip = u32::try_from(from - extent.at).expect("an extent is shorter than 4 GiB");
    let mut part = extent.clone();
    match &mut part.data {
        Source::Hole => {}
        Source::Chunk { offset, .. } | Source::Inline { offset, .. } => *offset += skip,
    }
    (part.at, part.len) = (from, to - from);
    Some(part)
}

#[cfg(test)]
#[expect(clippy::as_conversions, reason = "small numbers in tests")]
mod tests {
    use super::*;
    use common::auth::Mac;
    use common::id::ChunkId;
    use proptest::prelude::*;

    const LEN: u64 = 400;

    /// Byte `i` of the chunk with tag `t` is told apart by (t, i).
    type Cell = Option<(u8, u32)>;

    fn extent(at: u64, len: u64, tag: u8, offset: u32) -> Extent {
        let data = Source::Chunk { id: ChunkId([tag; 32]), offset };
        Extent { at, len, data, chunk_len: 4096, token: Mac::default(), holders: Vec::new() }
    }

    fn run_of(model: &[Cell], from: u64, to: u64) -> ExtentRun {
        let mut extents = Vec::new();
        let mut at = from;
        while at < to {
            let Some((tag, offset)) = model[at as usize] else {
                at += 1;
                continue;
            };
            let start = at;
            while at < to && model[at as usize] == Some((tag, offset + (at - start) as u32)) {
                at += 1;
            }
            extents.push(extent(start, at - start, tag, offset));
        }
        ExtentRun { extents, covered: to }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn what_it_knows_is_right(
            steps in prop::collection::vec((0u8..3, 0..LEN, 1u64..90, any::<u8>(), 0u32..50), 1..60),
        ) {
            let mut model: Vec<Cell> = vec![None; LEN as usize];
            let mut version = DataVersion(1);
            let mut cache = Extents::new(version);
            for (kind, at, len, tag, offset) in steps {
                let end = (at + len).min(LEN);
                match kind {
                    0 => cache.learn(version, at, &run_of(&model, at, end)),
                    1 => {
                        let id = ChunkId([tag; 32]);
                        let data = match tag % 4 {
                            0 => None,
                            1 => Some(Source::Chunk { id, offset }),
                            2 => Some(Source::Inline { id, offset, bytes: Default::default() }),
                            _ => Some(Source::Hole),
                        };
                        for i in at..end {
                            let cell = (tag, offset + (i - at) as u32);
                            model[i as usize] = Some(cell).filter(|_| data != Some(Source::Hole));
                        }
                        version = DataVersion(version.0 + 1);
                        let known = cache.version().0 + 1 == version.0 && tag % 4 >= 2 && cache.map.len() < OWN_KEPT_MAX - 2;
                        cache.committed(version, std::iter::once((at..end, data)));
                        prop_assert!(cache.find(at..end).is_ok() || !known);
                    }
                    _ => {
                        // Another client's change, noticed through a newer answer only.
                        let other = run_of(&model, at, end);
                        version = DataVersion(version.0 + 1);
                        cache.learn(version, at, &other);
                    }
                }
                for from in (0..LEN).step_by(37) {
                    let to = (from + 60).min(LEN);
                    if let Ok(parts) = cache.find(from..to) {
                        let mut at = from;
                        for (range, part) in parts {
                            prop_assert_eq!(range.start, at);
                            for i in range.clone() {
                                let cell = part.as_ref().map(|e| match &e.data {
                                    Source::Chunk { id, offset } | Source::Inline { id, offset, .. } => {
                                        (id.0[0], offset + (i - e.at) as u32)
                                    }
                                    _ => unreachable!(),
                                });
                                prop_assert_eq!(cell, model[i as usize]);
                            }
                            at = range.end;
                        }
                        prop_assert_eq!(at, to);
                    }
                }
            }
        }
    }

    #[test]
    fn an_answer_makes_its_range_known() {
        let mut cache = Extents::new(DataVersion(3));
        assert_eq!(cache.find(0..10).unwrap_err(), 0);
        cache.learn(DataVersion(3), 0, &ExtentRun { extents: vec![extent(5, 10, 1, 0)], covered: 20 });
        cache.learn(DataVersion(3), 20, &ExtentRun { extents: Vec::new(), covered: u64::MAX });
        assert_eq!(cache.find(0..1 << 40).unwrap().len(), 3);
        cache.learn(DataVersion(2), 0, &ExtentRun { extents: Vec::new(), covered: 20 });
        assert_eq!(cache.find(0..20).unwrap().len(), 3, "an older answer changes nothing");
        cache.committed(DataVersion(4), std::iter::once((7..8, None)));
        assert_eq!(cache.find(0..20).unwrap_err(), 7);
        assert!(cache.find(8..20).is_ok());
        cache.committed(DataVersion(6), std::iter::once((0..1, None)));
        assert!(cache.find(8..20).is_err(), "somebody else committed in between");
    }
}
