//! A file system in memory that does a call in the atomic steps that it may be seen in.

use super::{Answer, Call, Name, Refusal, Spot};
use std::collections::BTreeMap;
use std::rc::Rc;

/// A file or directory: the number of the operation that made it, plus one. 0 is the world itself.
pub type Key = usize;

/// The world itself.
const ROOT: Key = 0;

/// A file or a directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Node {
    /// `ino`: as soon as a process was told it.
    File { ino: Option<u64>, data: Vec<u8> },
    /// Names and what they lead to.
    Dir { ino: Option<u64>, names: BTreeMap<Name, Key> },
}

/// Everything there is.
///
/// Invariants: every key in a directory is a node's; a file without a name is kept only while a call under way has found it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    nodes: BTreeMap<Key, Rc<Node>>,
}

/// How far a call is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Progress {
    /// Steps done.
    step: usize,
    /// Directories it walked into, for its first and its second path.
    dirs: [Key; 2],
    /// What it found there.
    found: [Option<Key>; 2],
    /// How long the file was before it was read.
    len: usize,
    /// A listing as it was read.
    listed: Vec<Name>,
}

/// What a step led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There are more.
    Goes,
    /// The call is done, with the answer that was noted.
    Ends,
    /// The call would have had another answer.
    Differs,
}

/// An atomic step of a call.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// Walk into the directory of a path.
    Enter(usize, Name),
    /// Look the last name of a path up; it must be there.
    Find(usize, Name),
    /// Look the last name up; it need not be there.
    Look(usize, Name),
    /// The kernel learns how long the file is.
    Measure,
    /// What the call is for.
    Act,
    /// The end of a listing.
    Close,
}

/// What a step says of the call's answer.
#[derive(Debug)]
enum Says {
    /// Nothing yet.
    More,
    /// As an answer.
    Is(Answer),
    /// Success, on this file.
    On(Key),
    /// Attributes of this node.
    Attr(Key),
    /// Contents of this file, which was that long a moment before.
    Bytes(Key, usize),
    /// Listing of a directory that was removed after it was opened: empty, or an error.
    GoneDir,
}

impl Default for State {
    /// The empty world.
    fn default() -> State {
        State { nodes: BTreeMap::from([(ROOT, Rc::new(Node::Dir { ino: None, names: BTreeMap::new() }))]) }
    }
}

impl Progress {
    /// True if all that is left is the change itself: what came before was the kernel's work, which ends with the call.
    pub fn is_walked(&self, call: &Call) -> bool {
        matches!(parts(call)[self.step], Part::Act)
    }
}

/// The steps of a call.
fn parts(call: &Call) -> Vec<Part> {
    let enter = |which: usize, spot: &Spot| spot.dir.map(|dir| Part::Enter(which, dir));
    let found = |spot: &Spot| enter(0, spot).into_iter().chain([Part::Find(0, spot.name), Part::Act]).collect();
    match call {
        Call::Create(spot) | Call::Unlink(spot) => enter(0, spot).into_iter().chain([Part::Act]).collect(),
        Call::Mkdir(_) | Call::Rmdir(_) => vec![Part::Act],
        // The kernel looks both names up before it asks: two names of one file are nothing to do.
        Call::Rename(from, to) => {
            let enters = enter(0, from).into_iter().chain(enter(1, to));
            enters.chain([Part::Find(0, from.name), Part::Look(1, to.name), Part::Act]).collect()
        }
        Call::Link(from, to) => {
            let first = enter(0, from).into_iter().chain([Part::Find(0, from.name)]);
            first.chain(enter(1, to)).chain([Part::Act]).collect()
        }
        Call::Read(spot) => {
            let found = enter(0, spot).into_iter().chain([Part::Find(0, spot.name)]);
            found.chain([Part::Measure, Part::Act]).collect()
        }
        Call::Stat(spot) => found(spot),
        Call::Write(spot, ..) | Call::Append(spot, _) | Call::Truncate(spot, _) => found(spot),
        Call::List(dir) => {
            let enter = dir.map(|dir| Part::Enter(0, dir));
            enter.into_iter().chain([Part::Act, Part::Close]).collect()
        }
    }
}

impl State {
    /// Does the next step of a call. `key` is for what it makes; `answer` is what was noted, `None` if unknown.
    pub fn step(&mut self, at: &mut Progress, call: &Call, key: Key, answer: Option<&Answer>) -> Step {
        let part = parts(call)[at.step];
        at.step += 1;
        let says = match part {
            Part::Enter(which, name) => self.find(ROOT, name).map_or(refused(Refusal::Missing), |found| {
                at.dirs[which] = found;
                Says::More
            }),
            Part::Find(which, name) => {
                at.found[which] = self.find(at.dirs[which], name);
                at.found[which].map_or(refused(Refusal::Missing), |_| Says::More)
            }
            Part::Look(which, name) => {
                at.found[which] = self.find(at.dirs[which], name);
                if at.found[0] == at.found[1] { Says::Is(Answer::Done) } else { Says::More }
            }
            Part::Measure => {
                at.len = self.data(at.found[0].expect("it was found")).len();
                Says::More
            }
            Part::Act => self.act(at, call, key),
            Part::Close => self.close(at, answer),
        };
        match says {
            Says::More => Step::Goes,
            says => {
                if answer.is_none_or(|answer| self.agrees(says, answer)) {
                    Step::Ends
                } else {
                    Step::Differs
                }
            }
        }
    }

    /// The step that a call is for.
    fn act(&mut self, at: &mut Progress, call: &Call, key: Key) -> Says {
        let missing = refused(Refusal::Missing);
        match call {
            Call::Create(spot) => {
                let file = Node::File { ino: None, data: Vec::new() };
                self.make(at.dirs[0], spot.name, key, file).map_or_else(refused, |()| Says::On(key))
            }
            Call::Mkdir(name) => {
                let dir = Node::Dir { ino: None, names: BTreeMap::new() };
                self.make(ROOT, name, key, dir).map_or_else(refused, |()| Says::Is(Answer::Done))
            }
            Call::Unlink(spot) => match self.find(at.dirs[0], spot.name) {
                Some(_) => self.cut(at.dirs[0], spot.name),
                None => missing,
            },
            Call::Rmdir(name) => match self.find(ROOT, name) {
                Some(found) if self.is_empty(found) => {
                    self.nodes.remove(&found);
                    self.cut(ROOT, name)
                }
                Some(_) => refused(Refusal::NotEmpty),
                None => missing,
            },
            Call::Rename(from, to) => self.rename((at.dirs[0], from.name), (at.dirs[1], to.name)),
            Call::Link(_, to) => {
                let found = at.found[0].expect("it was found");
                if self.find(at.dirs[1], to.name).is_some() {
                    return refused(Refusal::Exists);
                }
                if self.links(found) == 0 || !self.nodes.contains_key(&at.dirs[1]) {
                    return missing;
                }
                self.names(at.dirs[1]).insert(to.name, found);
                Says::Is(Answer::Done)
            }
            Call::List(_) => match self.nodes.get(&at.dirs[0]).map(|node| &**node) {
                Some(Node::Dir { names, .. }) => {
                    at.listed = names.keys().copied().collect();
                    Says::More
                }
                _ => Says::GoneDir,
            },
            Call::Stat(_) => Says::Attr(at.found[0].expect("it was found")),
            Call::Read(_) => Says::Bytes(at.found[0].expect("it was found"), at.len),
            Call::Write(..) | Call::Append(..) | Call::Truncate(..) => {
                let found = at.found[0].expect("it was found");
                change(self.data(found), call);
                Says::On(found)
            }
        }
    }

    /// A name that was there when the listing was read, and is gone before its end, may be left out.
    fn close(&self, at: &Progress, answer: Option<&Answer>) -> Says {
        let Some(Answer::Names(told)) = answer else { return Says::Is(Answer::Names(Vec::new())) };
        let left = at.listed.iter().filter(|name| told.contains(name) || self.find(at.dirs[0], name).is_some());
        Says::Is(Answer::Names(left.copied().collect()))
    }

    /// True if the answer can mean that. Learns inode numbers.
    fn agrees(&mut self, says: Says, answer: &Answer) -> bool {
        match (says, answer) {
            (Says::Is(says), answer) => says == *answer,
            (Says::On(key), Answer::On(ino)) => self.is(key, *ino),
            (Says::Bytes(key, before), Answer::Bytes(ino, bytes)) => {
                // Cut between the two: the kernel's page has zeros there, on a local disk too.
                let mut longer = self.data(key).clone();
                longer.resize(longer.len().max(before), 0);
                self.is(key, *ino) && (self.data(key) == bytes || longer == *bytes)
            }
            (Says::Attr(key), Answer::Attr { ino, links, size }) => {
                // A directory that was removed meanwhile has no attributes left to compare.
                let Some(node) = self.nodes.get(&key) else { return false };
                let right = match &**node {
                    Node::File { data, .. } => {
                        *links == Some(self.links(key)) && size.is_none_or(|size| size == data.len())
                    }
                    Node::Dir { .. } => links.is_none(),
                };
                right && self.is(key, *ino)
            }
            // It was removed after its name was looked up.
            (Says::Attr(key), Answer::Refused(Refusal::Missing)) => !self.nodes.contains_key(&key),
            (Says::GoneDir, Answer::Refused(Refusal::Missing)) => true,
            (Says::GoneDir, Answer::Names(names)) => names.is_empty(),
            _ => false,
        }
    }

    /// Notes a node's inode number. False if it has another one, or another node has it.
    fn is(&mut self, key: Key, number: u64) -> bool {
        let ino_of = |node: &Node| match node {
            Node::File { ino, .. } | Node::Dir { ino, .. } => *ino,
        };
        match ino_of(&self.nodes[&key]) {
            Some(ino) => ino == number,
            None if self.nodes.values().any(|node| ino_of(node) == Some(number)) => false,
            None => {
                match Rc::make_mut(self.nodes.get_mut(&key).expect("just looked at")) {
                    Node::File { ino, .. } | Node::Dir { ino, .. } => *ino = Some(number),
                }
                true
            }
        }
    }

    fn find(&self, dir: Key, name: Name) -> Option<Key> {
        match self.nodes.get(&dir).map(|node| &**node) {
            Some(Node::Dir { names, .. }) => names.get(name).copied(),
            _ => None,
        }
    }

    fn names(&mut self, dir: Key) -> &mut BTreeMap<Name, Key> {
        match Rc::make_mut(self.nodes.get_mut(&dir).expect("a directory that is there")) {
            Node::Dir { names, .. } => names,
            Node::File { .. } => unreachable!("names of files and of directories are not mixed"),
        }
    }

    fn data(&mut self, file: Key) -> &mut Vec<u8> {
        match Rc::make_mut(self.nodes.get_mut(&file).expect("open files are kept")) {
            Node::File { data, .. } => data,
            Node::Dir { .. } => unreachable!("names of files and of directories are not mixed"),
        }
    }

    fn is_empty(&self, dir: Key) -> bool {
        matches!(self.nodes.get(&dir).map(|node| &**node), Some(Node::Dir { names, .. }) if names.is_empty())
    }

    /// How many names lead to it.
    fn links(&self, key: Key) -> usize {
        let dirs = self.nodes.values().filter_map(|node| match &**node {
            Node::Dir { names, .. } => Some(names),
            Node::File { .. } => None,
        });
        dirs.flat_map(BTreeMap::values).filter(|other| **other == key).count()
    }

    fn make(&mut self, dir: Key, name: Name, key: Key, node: Node) -> Result<(), Refusal> {
        if !self.nodes.contains_key(&dir) {
            return Err(Refusal::Missing);
        }
        if self.find(dir, name).is_some() {
            return Err(Refusal::Exists);
        }
        self.names(dir).insert(name, key);
        self.nodes.insert(key, Rc::new(node));
        Ok(())
    }

    fn cut(&mut self, dir: Key, name: Name) -> Says {
        self.names(dir).remove(name);
        Says::Is(Answer::Done)
    }

    fn rename(&mut self, from: (Key, Name), to: (Key, Name)) -> Says {
        let Some(moved) = self.find(from.0, from.1) else { return refused(Refusal::Missing) };
        if !self.nodes.contains_key(&to.0) {
            return refused(Refusal::Missing);
        }
        match self.find(to.0, to.1) {
            Some(there) if there == moved => return Says::Is(Answer::Done),
            Some(there) if matches!(&*self.nodes[&there], Node::Dir { .. }) => {
                if !self.is_empty(there) {
                    return refused(Refusal::NotEmpty);
                }
                self.nodes.remove(&there);
            }
            _ => {}
        }
        self.names(from.0).remove(from.1);
        self.names(to.0).insert(to.1, moved);
        Says::Is(Answer::Done)
    }

    /// Drops files that have no name, except what calls under way have found.
    pub fn sweep<'a>(&mut self, under_way: impl Iterator<Item = &'a Progress>) {
        let mut keep: Vec<Key> = under_way.flat_map(|at| at.found).flatten().collect();
        for node in self.nodes.values() {
            if let Node::Dir { names, .. } = &**node {
                keep.extend(names.values());
            }
        }
        self.nodes.retain(|key, node| matches!(&**node, Node::Dir { .. }) || keep.contains(key));
    }

    /// The answer that this call would have now, had it begun and ended alone: for histories made from the model. `ino` is for
    /// what it makes.
    pub fn answer(&mut self, at: &mut Progress, call: &Call, key: Key) -> Option<Answer> {
        let part = parts(call)[at.step];
        if matches!(part, Part::Close) {
            at.step += 1;
            return Some(Answer::Names(at.listed.clone()));
        }
        // With no answer noted, every answer ends it; what it was follows from where it ended.
        let mut probe = (self.clone(), at.clone());
        if probe.0.step(&mut probe.1, call, key, None) == Step::Goes {
            (*self, *at) = probe;
            return None;
        }
        let told = self.candidates(at, call, key);
        let fits = |answer: &Answer| {
            let (mut state, mut at) = (self.clone(), at.clone());
            state.step(&mut at, call, key, Some(answer)) == Step::Ends
        };
        let answer = told.into_iter().find(fits).expect("one of them is what the model says");
        let ended = self.step(at, call, key, Some(&answer));
        assert_eq!(ended, Step::Ends, "{answer:?}");
        Some(answer)
    }

    /// Answers among which the right one is.
    fn candidates(&mut self, at: &Progress, call: &Call, key: Key) -> Vec<Answer> {
        let number = |key: Key| 1000 + u64::try_from(key).expect("few operations");
        let refusals = [Refusal::Missing, Refusal::Exists, Refusal::NotEmpty].map(Answer::Refused);
        let mut told = vec![Answer::Done, Answer::On(number(key)), Answer::Names(Vec::new())];
        told.extend(refusals);
        if let (Some(found), false) = (at.found[0], matches!(call, Call::Rename(..) | Call::Link(..))) {
            told.push(Answer::On(number(found)));
            let (ino, links) = (number(found), self.links(found));
            if self.nodes.get(&found).is_some_and(|node| matches!(&**node, Node::File { .. })) {
                let data = self.data(found).clone();
                told.push(Answer::Attr { ino, links: Some(links), size: Some(data.len()) });
                told.push(Answer::Bytes(ino, data));
            } else {
                told.push(Answer::Attr { ino, links: None, size: None });
            }
        }
        told
    }
}

/// What a call does to a file's bytes.
fn change(data: &mut Vec<u8>, call: &Call) {
    match call {
        Call::Write(_, offset, bytes) => {
            let end = offset + bytes.len();
            data.resize(data.len().max(end), 0);
            data[*offset..end].copy_from_slice(bytes);
        }
        Call::Append(_, bytes) => data.extend_from_slice(bytes),
        Call::Truncate(_, len) => data.resize(*len, 0),
        _ => unreachable!("the others do not change bytes"),
    }
}

fn refused(refusal: Refusal) -> Says {
    Says::Is(Answer::Refused(refusal))
}
