//! What one client may see in a directory only it uses: a reference model with *possible worlds*.
//!
//! Each operation that got an answer must agree with at least one possible world; the others are dropped. An operation
//! whose outcome is unknown (timeout) may take effect now, later or never, so it stays pending in every world until it
//! does. No world left: the system broke a promise. The checker is itself tested with broken histories below.

use common::fault::Kind;
use std::collections::{BTreeMap, BTreeSet};

/// One operation of the workload, on names inside the client's directory (one level of subdirectories: `"d/a"`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Make an empty file; fails if the name is taken.
    Create(String),
    /// Make a directory.
    Mkdir(String),
    /// Overwrite `[at, at + data.len())` of a file and make it durable.
    Write(String, usize, Vec<u8>),
    /// Append and make it durable.
    Append(String, Vec<u8>),
    /// Set the length.
    Truncate(String, usize),
    /// Rename, replacing a file.
    Rename(String, String),
    /// Remove a file.
    Unlink(String),
    /// Remove an empty directory.
    Rmdir(String),
    /// Read a whole file.
    Read(String),
    /// List the names at the top.
    List,
}

/// What an operation answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Done.
    Done,
    /// `Read`.
    Bytes(Vec<u8>),
    /// `List`, sorted.
    Names(Vec<String>),
    /// Refused for good; nothing happened.
    Refused(Kind),
    /// Nobody knows.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    File(Vec<u8>),
    Dir,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Tree(BTreeMap<String, Node>);

/// Every state the directory can be in.
#[derive(Clone, Debug)]
pub struct Worlds {
    /// Each with the operations of unknown outcome that have not taken effect in it.
    possible: BTreeSet<(Tree, Vec<Step>)>,
}

/// More possible worlds than this: the run is too unsure to say anything, and fails.
const WORLDS_MAX: usize = 20_000;

impl Default for Worlds {
    fn default() -> Self {
        Worlds { possible: BTreeSet::from([(Tree::default(), Vec::new())]) }
    }
}

impl Worlds {
    /// Takes an operation and its answer. `Err` says what no possible world explains.
    pub fn observe(&mut self, step: &Step, seen: &Seen) -> Result<(), String> {
        self.let_pending_happen();
        if *seen == Seen::Unknown {
            if !matches!(step, Step::Read(_) | Step::List) {
                self.possible = std::mem::take(&mut self.possible)
                    .into_iter()
                    .map(|(tree, mut pending)| {
                        pending.push(step.clone());
                        (tree, pending)
                    })
                    .collect();
                self.let_pending_happen();
            }
            return Ok(());
        }
        let before = std::mem::take(&mut self.possible);
        let expected: BTreeSet<String> =
            before.iter().take(3).map(|(tree, _)| describe(&tree.clone().run(step))).collect();
        for (mut tree, pending) in before {
            if tree.run(step) == *seen {
                self.possible.insert((tree, pending));
            }
        }
        if self.possible.is_empty() {
            return Err(format!("{} answered {}, possible: {expected:?}", describe_step(step), describe(seen)));
        }
        Ok(())
    }

    /// Adds every world in which some pending operations have taken effect by now, in any order.
    fn let_pending_happen(&mut self) {
        let mut fresh: Vec<(Tree, Vec<Step>)> = self.possible.iter().filter(|w| !w.1.is_empty()).cloned().collect();
        while let Some((tree, pending)) = fresh.pop() {
            for at in 0..pending.len() {
                let (mut next, mut rest) = (tree.clone(), pending.clone());
                let step = rest.remove(at);
                let _ = next.run(&step);
                if self.possible.insert((next.clone(), rest.clone())) {
                    fresh.push((next, rest));
                }
            }
            assert!(self.possible.len() <= WORLDS_MAX, "too many operations of unknown outcome");
        }
    }
}

impl Tree {
    fn parent_is_dir(&self, path: &str) -> bool {
        path.rsplit_once('/').is_none_or(|(parent, _)| self.0.get(parent) == Some(&Node::Dir))
    }

    fn file(&mut self, path: &str) -> Result<&mut Vec<u8>, Seen> {
        match self.0.get_mut(path) {
            Some(Node::File(bytes)) => Ok(bytes),
            Some(Node::Dir) => Err(Seen::Refused(Kind::IsDir)),
            None => Err(Seen::Refused(Kind::NotFound)),
        }
    }

    fn run(&mut self, step: &Step) -> Seen {
        self.try_run(step).unwrap_or_else(|refused| refused)
    }

    fn try_run(&mut self, step: &Step) -> Result<Seen, Seen> {
        let refused = |kind| Err(Seen::Refused(kind));
        match step {
            Step::Create(path) | Step::Mkdir(path) => {
                if !self.parent_is_dir(path) {
                    return refused(Kind::NotFound);
                }
                if self.0.contains_key(path) {
                    return refused(Kind::Exists);
                }
                let node = if matches!(step, Step::Create(_)) { Node::File(Vec::new()) } else { Node::Dir };
                self.0.insert(path.clone(), node);
            }
            Step::Write(path, at, data) => {
                let file = self.file(path)?;
                file.resize(file.len().max(at + data.len()), 0);
                file[*at..at + data.len()].copy_from_slice(data);
            }
            Step::Append(path, data) => self.file(path)?.extend_from_slice(data),
            Step::Truncate(path, len) => self.file(path)?.resize(*len, 0),
            Step::Rename(from, to) => return self.rename(from, to),
            Step::Unlink(path) => {
                self.file(path)?;
                self.0.remove(path);
            }
            Step::Rmdir(path) => match self.0.get(path) {
                Some(Node::Dir) if self.has_entries(path) => return refused(Kind::NotEmpty),
                Some(Node::Dir) => drop(self.0.remove(path)),
                Some(Node::File(_)) => return refused(Kind::NotDir),
                None => return refused(Kind::NotFound),
            },
            Step::Read(path) => return Ok(Seen::Bytes(self.file(path)?.clone())),
            Step::List => return Ok(Seen::Names(self.0.keys().filter(|k| !k.contains('/')).cloned().collect())),
        }
        Ok(Seen::Done)
    }

    fn has_entries(&self, dir: &str) -> bool {
        let prefix = format!("{dir}/");
        self.0.keys().any(|k| k.starts_with(&prefix))
    }

    /// Files only: the workload renames no directories.
    fn rename(&mut self, from: &str, to: &str) -> Result<Seen, Seen> {
        if !self.parent_is_dir(to) || !self.0.contains_key(from) {
            return Err(Seen::Refused(Kind::NotFound));
        }
        let moved = self.file(from)?.clone();
        if self.0.get(to) == Some(&Node::Dir) {
            return Err(Seen::Refused(Kind::IsDir));
        }
        self.0.remove(from);
        self.0.insert(to.to_string(), Node::File(moved));
        Ok(Seen::Done)
    }
}

pub(super) fn describe(seen: &Seen) -> String {
    match seen {
        Seen::Bytes(bytes) => format!("{} bytes {}", bytes.len(), common::id::ChunkId::of(bytes)),
        other => format!("{other:?}"),
    }
}

pub(super) fn describe_step(step: &Step) -> String {
    match step {
        Step::Write(path, at, data) => format!("write {path} [{at}, +{})", data.len()),
        Step::Append(path, data) => format!("append {path} +{}", data.len()),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(name: &str) -> Step {
        Step::Create(name.into())
    }

    fn bytes(text: &str) -> Seen {
        Seen::Bytes(text.as_bytes().to_vec())
    }

    #[test]
    fn a_lost_acknowledged_write_is_found() {
        let mut worlds = Worlds::default();
        worlds.observe(&create("a"), &Seen::Done).unwrap();
        worlds.observe(&Step::Write("a".into(), 0, b"x".to_vec()), &Seen::Done).unwrap();
        assert!(worlds.clone().observe(&Step::Read("a".into()), &bytes("x")).is_ok());
        assert!(worlds.observe(&Step::Read("a".into()), &bytes("")).is_err());
    }

    #[test]
    fn an_operation_done_twice_is_found() {
        let mut worlds = Worlds::default();
        worlds.observe(&create("a"), &Seen::Done).unwrap();
        worlds.observe(&Step::Append("a".into(), b"x".to_vec()), &Seen::Done).unwrap();
        assert!(worlds.clone().observe(&Step::Read("a".into()), &bytes("xx")).is_err());
        assert!(worlds.observe(&create("a"), &Seen::Done).is_err());
    }

    #[test]
    fn an_unknown_outcome_may_happen_later_but_only_once() {
        let mut worlds = Worlds::default();
        worlds.observe(&create("a"), &Seen::Done).unwrap();
        worlds.observe(&Step::Append("a".into(), b"x".to_vec()), &Seen::Unknown).unwrap();
        worlds.observe(&Step::Read("a".into()), &bytes("")).unwrap();
        worlds.observe(&Step::Read("a".into()), &bytes("x")).unwrap();
        assert!(worlds.clone().observe(&Step::Read("a".into()), &bytes("")).is_err(), "it cannot be undone");
        assert!(worlds.observe(&Step::Read("a".into()), &bytes("xx")).is_err(), "nor happen again");
    }

    #[test]
    fn a_name_that_came_back_is_found() {
        let mut worlds = Worlds::default();
        worlds.observe(&create("a"), &Seen::Done).unwrap();
        worlds.observe(&Step::Rename("a".into(), "b".into()), &Seen::Done).unwrap();
        assert!(worlds.observe(&Step::List, &Seen::Names(vec!["a".into(), "b".into()])).is_err());
    }
}
