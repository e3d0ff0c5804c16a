//! Random operations on the tree against a simple reference model: same outcomes, same tree.

use super::*;
use common::proto::meta::{FileKind, RenameMode};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Create { parent: usize, name: u8, dir: bool },
    Link { ino: usize, parent: usize, name: u8 },
    Unlink { parent: usize, name: u8, keep: bool },
    Rmdir { parent: usize, name: u8 },
    Rename { from: usize, from_name: u8, to: usize, to_name: u8, mode: RenameMode, keep: bool },
    Release { ino: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let ino = || 0usize..64;
    let name = || 0u8..4;
    let mode =
        prop_oneof![3 => Just(RenameMode::Replace), 1 => Just(RenameMode::NoReplace), 2 => Just(RenameMode::Exchange)];
    prop_oneof![
        8 => (ino(), name(), any::<bool>()).prop_map(|(parent, name, dir)| Step::Create { parent, name, dir }),
        2 => (ino(), ino(), name()).prop_map(|(ino, parent, name)| Step::Link { ino, parent, name }),
        2 => (ino(), name(), any::<bool>()).prop_map(|(parent, name, keep)| Step::Unlink { parent, name, keep }),
        2 => (ino(), name()).prop_map(|(parent, name)| Step::Rmdir { parent, name }),
        6 => (ino(), name(), ino(), name(), mode, any::<bool>()).prop_map(|(from, from_name, to, to_name, mode, keep)| {
            Step::Rename { from, from_name, to, to_name, mode, keep }
        }),
        1 => ino().prop_map(|ino| Step::Release { ino }),
    ]
}

/// What the model knows of an inode: a directory's entries, or a file.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    Dir(BTreeMap<u8, InodeId>),
    File { orphan: bool },
}

/// The tree, written down as simply as it goes.
struct Model {
    nodes: BTreeMap<InodeId, Node>,
    /// Every inode there ever was: steps pick from it, so some are gone.
    ever: Vec<InodeId>,
}

type Expected = Result<(), Kind>;

impl Model {
    fn pick(&self, at: usize) -> InodeId {
        self.ever[at % self.ever.len()]
    }

    fn dir(&self, ino: InodeId) -> Result<&BTreeMap<u8, InodeId>, Kind> {
        match self.nodes.get(&ino) {
            None => Err(Kind::Gone),
            Some(Node::Dir(entries)) => Ok(entries),
            Some(Node::File { .. }) => Err(Kind::NotDir),
        }
    }

    fn entries(&mut self, ino: InodeId) -> &mut BTreeMap<u8, InodeId> {
        match self.nodes.get_mut(&ino) {
            Some(Node::Dir(entries)) => entries,
            other => panic!("{other:?}"),
        }
    }

    fn is_dir(&self, ino: InodeId) -> bool {
        matches!(self.nodes[&ino], Node::Dir(_))
    }

    fn links(&self, ino: InodeId) -> usize {
        let dirs = self.nodes.values().filter_map(|node| if let Node::Dir(e) = node { Some(e) } else { None });
        dirs.flat_map(|entries| entries.values()).filter(|there| **there == ino).count()
    }

    fn below(&self, upper: InodeId, ino: InodeId) -> bool {
        upper == ino
            || match &self.nodes[&upper] {
                Node::Dir(entries) => entries.values().any(|child| self.below(*child, ino)),
                Node::File { .. } => false,
            }
    }

    fn name_gone(&mut self, ino: InodeId, keep: bool) {
        if self.links(ino) == 0 {
            if keep {
                self.nodes.insert(ino, Node::File { orphan: true });
            } else {
                self.nodes.remove(&ino);
            }
        }
    }

    fn unlink(&mut self, parent: InodeId, name: u8, keep: bool) -> Expected {
        let ino = *self.dir(parent)?.get(&name).ok_or(Kind::NotFound)?;
        if self.is_dir(ino) {
            return Err(Kind::IsDir);
        }
        self.entries(parent).remove(&name);
        self.name_gone(ino, keep);
        Ok(())
    }

    fn rmdir(&mut self, parent: InodeId, name: u8) -> Expected {
        let ino = *self.dir(parent)?.get(&name).ok_or(Kind::NotFound)?;
        if !self.dir(ino)?.is_empty() {
            return Err(Kind::NotEmpty);
        }
        self.entries(parent).remove(&name);
        self.nodes.remove(&ino);
        Ok(())
    }

    fn link(&mut self, ino: InodeId, parent: InodeId, name: u8) -> Expected {
        let node = self.nodes.get(&ino).ok_or(Kind::Gone)?.clone();
        if self.dir(parent)?.contains_key(&name) {
            return Err(Kind::Exists);
        }
        match node {
            Node::Dir(_) => Err(Kind::NotPermitted),
            Node::File { orphan: true } => Err(Kind::NotFound),
            Node::File { orphan: false } => {
                self.entries(parent).insert(name, ino);
                Ok(())
            }
        }
    }

    fn rename(&mut self, from: (InodeId, u8), to: (InodeId, u8), mode: RenameMode, keep: bool) -> Expected {
        self.dir(from.0)?;
        self.dir(to.0)?;
        let source = *self.dir(from.0)?.get(&from.1).ok_or(Kind::NotFound)?;
        let target = self.dir(to.0)?.get(&to.1).copied();
        match (target, mode) {
            (Some(_), RenameMode::NoReplace) => return Err(Kind::Exists),
            (None, RenameMode::Exchange) => return Err(Kind::NotFound),
            _ => {}
        }
        if self.below(source, to.0) {
            return Err(Kind::Invalid);
        }
        if let Some(target) = target.filter(|target| self.below(*target, from.0)) {
            assert!(self.is_dir(target));
            return Err(if mode == RenameMode::Exchange { Kind::Invalid } else { Kind::NotEmpty });
        }
        match target {
            Some(target) if target == source => return Ok(()),
            Some(target) if mode == RenameMode::Exchange => {
                self.entries(from.0).insert(from.1, target);
            }
            Some(target) => {
                match (self.is_dir(source), self.dir(target)) {
                    (true, Err(_)) => return Err(Kind::NotDir),
                    (false, Ok(_)) => return Err(Kind::IsDir),
                    (true, Ok(entries)) if !entries.is_empty() => return Err(Kind::NotEmpty),
                    _ => {}
                }
                self.entries(from.0).remove(&from.1);
            }
            None => drop(self.entries(from.0).remove(&from.1)),
        }
        self.entries(to.0).insert(to.1, source);
        if let Some(target) = target.filter(|_| mode != RenameMode::Exchange) {
            if self.is_dir(target) { drop(self.nodes.remove(&target)) } else { self.name_gone(target, keep) }
        }
        Ok(())
    }
}

fn text(n: u8) -> Name {
    name(&format!("n{n}"))
}

/// Runs a step on both; the kind of failure must be the same.
fn run(world: &mut World, model: &mut Model, step: &Step) {
    let (op, expected) = match *step {
        Step::Create { parent, name: n, dir } => {
            let parent = model.pick(parent);
            let node = if dir { NewNode::Dir } else { NewNode::File };
            let made = world.make(0, parent, &format!("n{n}"), node, 0o755).map(|attr| attr.ino).map_err(|f| f.kind);
            let expected = match model.dir(parent) {
                Ok(entries) if entries.contains_key(&n) => Err(Kind::Exists),
                Ok(_) => Ok(()),
                Err(kind) => Err(kind),
            };
            assert_eq!(made.map(|_| ()), expected, "{step:?}");
            if let Ok(ino) = made {
                model.entries(parent).insert(n, ino);
                model.nodes.insert(ino, if dir { Node::Dir(BTreeMap::new()) } else { Node::File { orphan: false } });
                model.ever.push(ino);
            }
            return;
        }
        Step::Link { ino, parent, name } => {
            let (ino, parent) = (model.pick(ino), model.pick(parent));
            (Op::Link { ino, parent, name: text(name) }, model.link(ino, parent, name))
        }
        Step::Unlink { parent, name, keep } => {
            let parent = model.pick(parent);
            (Op::Unlink { parent, name: text(name), keep }, model.unlink(parent, name, keep))
        }
        Step::Rmdir { parent, name } => {
            let parent = model.pick(parent);
            (Op::Rmdir { parent, name: text(name) }, model.rmdir(parent, name))
        }
        Step::Rename { from, from_name, to, to_name, mode, keep } => {
            let (from, to) = (model.pick(from), model.pick(to));
            let op = Op::Rename { from, from_name: text(from_name), to, to_name: text(to_name), mode, keep };
            (op, model.rename((from, from_name), (to, to_name), mode, keep))
        }
        Step::Release { ino } => {
            let ino = model.pick(ino);
            if model.nodes.get(&ino) == Some(&Node::File { orphan: true }) {
                model.nodes.remove(&ino);
            }
            (Op::Release { ino }, Ok(()))
        }
    };
    let outcome = world.op(0, op);
    assert_eq!(outcome.map(|_| ()).map_err(|fault| fault.kind), expected, "{step:?}");
}

fn compare(world: &World, model: &Model) {
    world.check();
    for (ino, node) in &model.nodes {
        let attr = world.attr(*ino);
        match node {
            Node::File { orphan } => {
                assert_eq!((attr.kind, attr.nlink as usize), (FileKind::File, model.links(*ino)));
                assert_eq!(*orphan, attr.nlink == 0);
            }
            Node::Dir(entries) => {
                let subdirs = entries.values().filter(|child| model.is_dir(**child)).count();
                assert_eq!(attr.nlink as usize, 2 + subdirs);
                let listed: BTreeMap<Name, InodeId> =
                    world.list(*ino, 0, 4096).0.into_iter().map(|entry| (entry.name, entry.ino)).collect();
                let expected: BTreeMap<Name, InodeId> = entries.iter().map(|(n, ino)| (text(*n), *ino)).collect();
                assert_eq!(listed, expected);
            }
        }
    }
    let counters = super::super::counters(&*world.kv).unwrap();
    assert_eq!(counters.inodes as usize, model.nodes.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_tree_does_what_the_model_does(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        let mut model = Model { nodes: [(ROOT, Node::Dir(BTreeMap::new()))].into(), ever: vec![ROOT] };
        for step in &steps {
            run(&mut world, &mut model, step);
        }
        compare(&world, &model);
        let at = world.now();
        world.command(&Command::ExpireSession { session: S1, at }).unwrap();
        model.nodes.retain(|_, node| *node != Node::File { orphan: true });
        world.check();
        let counters = super::super::counters(&*world.kv).unwrap();
        prop_assert_eq!(counters.inodes as usize, model.nodes.len());
    }
}
