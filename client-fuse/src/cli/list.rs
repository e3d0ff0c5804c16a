//! `dfs ls`, `dfs du` and `dfs tree`: directories and what is in them.

use super::connect::Shell;
use super::failure::{Failure, Outcome};
use super::format::{Names, attr_json, mode_text, size_text, time_text};
use super::remote::Remote;
use clap::Args;
use common::id::InodeId;
use common::proto::meta::{Attr, FileKind, LISTING_MAX};
use std::collections::BTreeSet;
use std::ffi::OsString;

/// `dfs ls`.
#[derive(Args, Debug)]
pub(crate) struct LsArgs {
    /// Mode, links, owner, group, size and time (UTC) too
    #[arg(short, long)]
    long: bool,
    /// Everything below, too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// The directory itself, not what is in it
    #[arg(short, long)]
    directory: bool,
    /// A JSON array of objects
    #[arg(long)]
    json: bool,
    /// Which [default: /]
    paths: Vec<OsString>,
}

/// `dfs du`.
#[derive(Args, Debug)]
pub(crate) struct DuArgs {
    /// Only the sum of each path
    #[arg(short, long)]
    summarize: bool,
    /// In bytes
    #[arg(short, long)]
    bytes: bool,
    /// A JSON array of objects
    #[arg(long)]
    json: bool,
    /// Which [default: /]
    paths: Vec<OsString>,
}

/// `dfs tree`.
#[derive(Args, Debug)]
pub(crate) struct TreeArgs {
    /// How many levels [default: all]
    #[arg(short = 'L', long)]
    level: Option<u32>,
    /// Nested JSON objects
    #[arg(long)]
    json: bool,
    /// Where from [default: /]
    path: Option<OsString>,
}

/// An entry of a directory with its attributes.
pub(crate) struct Entry {
    /// Its name.
    pub(crate) name: Vec<u8>,
    /// Its attributes.
    pub(crate) attr: Attr,
}

impl Shell {
    /// All entries of a directory, sorted by name.
    pub(crate) async fn list(&self, path: &Remote, ino: InodeId) -> Outcome<Vec<Entry>> {
        let mut all = Vec::new();
        let mut after = 0;
        loop {
            let listed = self.client.readdir(&self.cred, ino, after, LISTING_MAX, true).await;
            let listing = listed.map_err(|fault| Failure::fault("list", path, &fault))?;
            for entry in listing.entries {
                after = entry.cookie;
                if let Some(attr) = entry.attr {
                    all.push(Entry { name: entry.name.into(), attr });
                }
            }
            if listing.end {
                break;
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }
}

fn chosen(paths: Vec<OsString>) -> Vec<Remote> {
    if paths.is_empty() { vec![Remote::new("/".as_ref())] } else { paths.iter().map(|p| Remote::new(p)).collect() }
}

/// Runs `dfs ls`. Returns how many paths failed.
pub(crate) async fn ls(shell: &Shell, args: LsArgs) -> Outcome<u64> {
    let mut ls = Ls { shell, args, names: Names::default(), json: Vec::new(), failed: 0 };
    let paths = chosen(std::mem::take(&mut ls.args.paths));
    let titles = paths.len() > 1 || ls.args.recursive;
    for path in paths {
        if let Err(failure) = ls.path(&path, titles).await {
            eprintln!("dfs: {failure}");
            ls.failed += 1;
        }
    }
    if ls.args.json {
        say!("{}", serde_json::Value::Array(ls.json));
    }
    Ok(ls.failed)
}

struct Ls<'a> {
    shell: &'a Shell,
    args: LsArgs,
    names: Names,
    json: Vec<serde_json::Value>,
    failed: u64,
}

impl Ls<'_> {
    async fn path(&mut self, path: &Remote, titles: bool) -> Outcome {
        let attr = self.shell.walk("list", path, !self.args.directory).await?;
        if attr.kind == FileKind::Dir && !self.args.directory {
            return self.dir(path, attr.ino, titles).await;
        }
        self.line(path, path.as_bytes(), &attr).await;
        Ok(())
    }

    async fn dir(&mut self, path: &Remote, ino: InodeId, titles: bool) -> Outcome {
        let entries = self.shell.list(path, ino).await?;
        if titles && !self.args.json {
            say!("{path}:");
        }
        for entry in &entries {
            self.line(&path.join(&entry.name), &entry.name, &entry.attr).await;
        }
        if titles && !self.args.json {
            say!("");
        }
        if !self.args.recursive {
            return Ok(());
        }
        for entry in entries.iter().filter(|e| e.attr.kind == FileKind::Dir) {
            let below = path.join(&entry.name);
            if let Err(failure) = Box::pin(self.dir(&below, entry.attr.ino, true)).await {
                eprintln!("dfs: {failure}");
                self.failed += 1;
            }
        }
        Ok(())
    }

    async fn line(&mut self, path: &Remote, name: &[u8], attr: &Attr) {
        if self.args.json {
            self.json.push(attr_json(&path.to_string(), attr));
            return;
        }
        let name = String::from_utf8_lossy(name).into_owned();
        if !self.args.long {
            say!("{name}");
            return;
        }
        let target = match attr.kind {
            FileKind::Symlink => self.shell.client.readlink(&self.shell.cred, attr.ino).await.ok(),
            _ => None,
        };
        let arrow = target.map(|t| format!(" -> {}", String::from_utf8_lossy(&t))).unwrap_or_default();
        let (user, group) = (self.names.user(attr.uid).to_owned(), self.names.group(attr.gid).to_owned());
        say!(
            "{} {:>3} {user:<8} {group:<8} {:>12} {} {name}{arrow}",
            mode_text(attr.kind, attr.mode),
            attr.nlink,
            attr.size,
            time_text(attr.mtime)
        );
    }
}

/// Runs `dfs du`. Returns how many paths failed.
pub(crate) async fn du(shell: &Shell, args: DuArgs) -> Outcome<u64> {
    let mut du = Du { shell, args, counted: BTreeSet::new(), json: Vec::new(), failed: 0 };
    for path in chosen(std::mem::take(&mut du.args.paths)) {
        let sum = match shell.walk("measure", &path, false).await {
            Ok(attr) => du.measure(&path, &attr).await,
            Err(failure) => Err(failure),
        };
        match sum {
            Ok(sum) => du.show(&path, sum),
            Err(failure) => {
                eprintln!("dfs: {failure}");
                du.failed += 1;
            }
        }
    }
    if du.args.json {
        say!("{}", serde_json::Value::Array(du.json));
    }
    Ok(du.failed)
}

/// Sums over everything below a path.
#[derive(Clone, Copy, Default)]
struct Sum {
    allocated: u64,
    size: u64,
    entries: u64,
}

struct Du<'a> {
    shell: &'a Shell,
    args: DuArgs,
    /// Files with several names count once.
    counted: BTreeSet<InodeId>,
    json: Vec<serde_json::Value>,
    failed: u64,
}

impl Du<'_> {
    async fn measure(&mut self, path: &Remote, attr: &Attr) -> Outcome<Sum> {
        if attr.kind != FileKind::Dir {
            let again = attr.nlink > 1 && !self.counted.insert(attr.ino);
            let (allocated, size) = if again { (0, 0) } else { (attr.allocated, attr.size) };
            return Ok(Sum { allocated, size, entries: 1 });
        }
        let mut sum = Sum { entries: 1, ..Sum::default() };
        for entry in self.shell.list(path, attr.ino).await? {
            let below = path.join(&entry.name);
            match Box::pin(self.measure(&below, &entry.attr)).await {
                Ok(part) => {
                    if entry.attr.kind == FileKind::Dir && !self.args.summarize {
                        self.show(&below, part);
                    }
                    sum.allocated += part.allocated;
                    sum.size += part.size;
                    sum.entries += part.entries;
                }
                Err(failure) => {
                    eprintln!("dfs: {failure}");
                    self.failed += 1;
                }
            }
        }
        Ok(sum)
    }

    fn show(&mut self, path: &Remote, sum: Sum) {
        let Sum { allocated, size, entries } = sum;
        if self.args.json {
            let path = path.to_string();
            let object = serde_json::json!({"path": path, "allocated": allocated, "size": size, "entries": entries});
            self.json.push(object);
        } else if self.args.bytes {
            say!("{allocated}\t{path}");
        } else {
            say!("{}\t{path}", size_text(allocated));
        }
    }
}

/// Runs `dfs tree`. Returns how many paths failed.
pub(crate) async fn tree(shell: &Shell, args: TreeArgs) -> Outcome<u64> {
    let path = Remote::new(args.path.as_deref().unwrap_or("/".as_ref()));
    let attr = shell.walk("list", &path, true).await?;
    let mut tree = Tree { shell, args, dirs: 0, others: 0, failed: 0 };
    if tree.args.json {
        let nested = tree.nested(&path, &attr, 0).await;
        say!("{nested}");
        return Ok(tree.failed);
    }
    say!("{path}");
    if attr.kind == FileKind::Dir {
        tree.branch(&path, attr.ino, "", 0).await;
    }
    say!("\n{} directories, {} files", tree.dirs, tree.others);
    Ok(tree.failed)
}

struct Tree<'a> {
    shell: &'a Shell,
    args: TreeArgs,
    dirs: u64,
    others: u64,
    failed: u64,
}

impl Tree<'_> {
    async fn entries(&mut self, path: &Remote, ino: InodeId) -> Vec<Entry> {
        match self.shell.list(path, ino).await {
            Ok(entries) => entries,
            Err(failure) => {
                eprintln!("dfs: {failure}");
                self.failed += 1;
                Vec::new()
            }
        }
    }

    async fn branch(&mut self, path: &Remote, ino: InodeId, indent: &str, level: u32) {
        if self.args.level.is_some_and(|most| level >= most) {
            return;
        }
        let entries = self.entries(path, ino).await;
        for (index, entry) in entries.iter().enumerate() {
            let last = index + 1 == entries.len();
            let (fork, bar) = if last { ("└── ", "    ") } else { ("├── ", "│   ") };
            say!("{indent}{fork}{}", String::from_utf8_lossy(&entry.name));
            if entry.attr.kind == FileKind::Dir {
                self.dirs += 1;
                let deeper = format!("{indent}{bar}");
                Box::pin(self.branch(&path.join(&entry.name), entry.attr.ino, &deeper, level + 1)).await;
            } else {
                self.others += 1;
            }
        }
    }

    async fn nested(&mut self, path: &Remote, attr: &Attr, level: u32) -> serde_json::Value {
        let mut object = attr_json(&path.to_string(), attr);
        if attr.kind == FileKind::Dir && self.args.level.is_none_or(|most| level < most) {
            let mut children = Vec::new();
            for entry in self.entries(path, attr.ino).await {
                children.push(Box::pin(self.nested(&path.join(&entry.name), &entry.attr, level + 1)).await);
            }
            object["children"] = serde_json::Value::Array(children);
        }
        object
    }
}
