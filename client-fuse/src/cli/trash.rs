//! `dfs trash` and `dfs undelete`: what was removed and can be brought back.
//!
//! A removed tree comes back from the top: each directory, then what was in it, of each name what was removed last. What
//! is in the way of a name stays; what should have come there is told, and stays in the trash.

use super::admin::{Orders, done};
use super::connect::{Shell, Target};
use super::failure::{Failure, Outcome};
use super::format::{size_text, time_text};
use super::keep;
use super::remote::Remote;
use clap::{Args, Subcommand};
use common::fault::{Fault, Kind};
use common::id::InodeId;
use common::name::Name;
use common::proto::admin::Order;
use common::proto::meta::{FileKind, NewNode};
use common::proto::trash::{TRASH_PER_ANSWER, TrashAsk, TrashEntry};
use common::time::Time;
use futures::stream::{self, StreamExt};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Entries of a directory that are brought back at once.
const AT_ONCE: usize = 32;
/// Permission bits of directories made on the way.
const PARENT_MODE: u32 = 0o700;

/// `dfs trash ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum TrashCommand {
    /// List what you removed and can bring back; as root, what anybody removed
    Ls {
        /// Only this path and what was below it
        path: Option<OsString>,
        /// A JSON array of objects
        #[arg(long)]
        json: bool,
    },
    /// Let everything go for good that is in the trash now. Without --yes only shows how much that is
    Empty {
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

/// `dfs undelete`.
#[derive(Args, Debug)]
pub(crate) struct UndeleteArgs {
    /// Its path, or its id as `dfs trash ls` shows it (i123). A directory comes back with all that was in it; of a
    /// directory that is there, what was removed from it
    #[arg(value_name = "PATH|ID")]
    what: OsString,
    /// Where to, if not where it was; into it if that is a directory
    #[arg(long, value_name = "PATH")]
    to: Option<OsString>,
    /// Make directories on the way that are missing
    #[arg(long)]
    parents: bool,
}

/// Everything in the trash that the caller may see, or what was directly in one directory.
async fn entries(shell: &Shell, parent: Option<InodeId>) -> Outcome<Vec<TrashEntry>> {
    Ok(window(shell, parent).await?.0)
}

/// The same, and the undelete window in seconds.
async fn window(shell: &Shell, parent: Option<InodeId>) -> Outcome<(Vec<TrashEntry>, u64)> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let ask = TrashAsk { parent, after, limit: TRASH_PER_ANSWER };
        let page = shell.client.trash(&shell.cred, ask).await;
        let page = page.map_err(|fault| Failure::fault("list", "the trash", &fault))?;
        all.extend(page.entries);
        after = page.next;
        if after.is_none() {
            return Ok((all, page.window_s));
        }
    }
}

/// Where it was. `None`: that directory is gone for good.
fn path_of(entry: &TrashEntry) -> Option<Remote> {
    let dir = entry.dir.as_ref()?;
    Some(Remote::new(OsStr::from_bytes(dir)).join(entry.name.as_bytes()))
}

/// The path, or as much as is known of it.
fn path_text(entry: &TrashEntry) -> String {
    path_of(entry).map_or_else(|| format!("({})/{}", entry.parent, entry.name), |path| path.to_string())
}

fn is_at_or_below(path: &Remote, top: &Remote) -> bool {
    let below = path.as_bytes().strip_prefix(top.as_bytes());
    below.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/") || top.as_bytes() == b"/")
}

fn json(entry: &TrashEntry, window_s: u64) -> serde_json::Value {
    let end = entry.at.secs.saturating_add(i64::try_from(window_s).unwrap_or(i64::MAX));
    serde_json::json!({
        "id": entry.ino.to_string(), "path": path_text(entry), "kind": format!("{:?}", entry.kind).to_lowercase(),
        "size": entry.size, "removed_by": entry.by, "removed": time_text(entry.at),
        "until": time_text(Time { secs: end, ..entry.at }),
    })
}

/// Runs `dfs trash ls`.
pub(crate) async fn ls(shell: &Shell, path: Option<OsString>, as_json: bool) -> Outcome<u64> {
    let (mut all, window_s) = window(shell, None).await?;
    if let Some(top) = path.map(|path| Remote::new(&path)) {
        all.retain(|entry| path_of(entry).is_some_and(|path| is_at_or_below(&path, &top)));
    }
    if as_json {
        say!("{}", serde_json::Value::from(all.iter().map(|entry| json(entry, window_s)).collect::<Vec<_>>()));
        return Ok(0);
    }
    if !all.is_empty() {
        say!("{:<10} {:<20} {:>8} {:>12}  PATH", "ID", "REMOVED", "BY", "SIZE");
    }
    for entry in &all {
        let slash = if entry.kind == FileKind::Dir { "/" } else { "" };
        let (id, at, size) = (entry.ino.to_string(), time_text(entry.at), size_text(entry.size));
        say!("{id:<10} {at:<20} {:>8} {size:>12}  {}{slash}", entry.by, path_text(entry));
    }
    Ok(0)
}

/// Runs `dfs trash empty`.
pub(crate) async fn empty(target: &Target, yes: bool) -> Outcome {
    let now = keep::trash(target).await?;
    let what = format!("{} files and directories, {}", now.entries, size_text(now.bytes));
    if !yes {
        return Err(Failure::new(format!("trash: {what}: nothing was done yet: say --yes if you mean it")));
    }
    done(Orders::new(target)?.send("empty the trash", Order::EmptyTrash).await?)?;
    say!("let go: {what}");
    Ok(())
}

/// Runs `dfs undelete`. Returns how many entries did not come back.
pub(crate) async fn undelete(shell: &Shell, args: UndeleteArgs) -> Outcome<u64> {
    let back = Back { shell };
    let path = Remote::new(&args.what);
    let found = match id(&args.what) {
        Some(ino) => entries(shell, None).await?.into_iter().find(|entry| entry.ino == ino),
        None => back.newest_at(&path).await?,
    };
    let Some(entry) = found else {
        if id(&args.what).is_none()
            && args.to.is_none()
            && let Some(failed) = back.all_removed_from(&path).await?
        {
            return Ok(failed);
        }
        return Err(Failure::at("undelete", args.what.display(), "nothing of yours in the trash was there")
            .advice("`dfs trash ls` shows what is"));
    };
    let (to, parent, name) = back.place(&entry, &args).await?;
    let attr = shell.client.undelete(&shell.cred, entry.ino, parent, &name).await;
    let attr = attr.map_err(|fault| {
        let failure = Failure::fault("undelete", &to, &fault);
        if fault.kind == Kind::Exists { failure.advice("say where to with --to PATH") } else { failure }
    })?;
    let failed = if attr.kind == FileKind::Dir { back.inside(to.clone(), entry.ino).await? } else { 0 };
    say!("{to}");
    Ok(failed)
}

/// `i123`.
fn id(what: &OsStr) -> Option<InodeId> {
    what.to_str()?.strip_prefix('i')?.parse().ok().map(InodeId)
}

/// Of each name what was removed last.
fn newest(all: Vec<TrashEntry>) -> Vec<TrashEntry> {
    let mut by_name: BTreeMap<Name, TrashEntry> = BTreeMap::new();
    for entry in all {
        match by_name.get(&entry.name) {
            Some(other) if (other.at, other.ino) >= (entry.at, entry.ino) => {}
            _ => drop(by_name.insert(entry.name.clone(), entry)),
        }
    }
    by_name.into_values().collect()
}

/// Brings things back.
struct Back<'a> {
    shell: &'a Shell,
}

impl Back<'_> {
    /// What was removed last at this path.
    async fn newest_at(&self, path: &Remote) -> Outcome<Option<TrashEntry>> {
        let (dir, name) = path.split("undelete")?;
        let all = match self.shell.client.walk(&self.shell.cred, InodeId::ROOT, dir.as_bytes(), true).await {
            Ok((dir, _)) => entries(self.shell, Some(dir.ino)).await?.into_iter().filter(|e| e.name == name).collect(),
            Err(Fault { kind: Kind::NotFound, .. }) => {
                let all = entries(self.shell, None).await?.into_iter();
                all.filter(|entry| path_of(entry).is_some_and(|found| found == *path)).collect()
            }
            Err(fault) => return Err(Failure::fault("undelete", path, &fault)),
        };
        Ok(newest(all).pop())
    }

    /// Where it goes: the path, the directory and the name in it.
    async fn place(&self, entry: &TrashEntry, args: &UndeleteArgs) -> Outcome<(Remote, InodeId, Name)> {
        let (client, cred) = (&self.shell.client, &self.shell.cred);
        let was = path_of(entry);
        let mut to = match (&args.to, was) {
            (Some(to), _) => Remote::new(to),
            (None, Some(was)) => was,
            (None, None) => {
                return Err(Failure::at("undelete", entry.ino, "the directory it was in is gone for good")
                    .advice("say where to with --to PATH"));
            }
        };
        if args.to.is_some()
            && let Ok((there, _)) = client.walk(cred, InodeId::ROOT, to.as_bytes(), true).await
            && there.kind == FileKind::Dir
        {
            to = to.join(entry.name.as_bytes());
            return Ok((to, there.ino, entry.name.clone()));
        }
        let (dir, name) = to.split("undelete")?;
        let parent = match client.walk(cred, InodeId::ROOT, dir.as_bytes(), true).await {
            Ok((dir, _)) => dir.ino,
            Err(Fault { kind: Kind::NotFound, .. }) if args.parents => self.make(&dir).await?,
            Err(fault) if fault.kind == Kind::NotFound => {
                return Err(Failure::fault("undelete", &to, &fault).advice(format!(
                    "{dir} is not there: `dfs undelete {dir}` brings it back with all that was in it, --parents makes it \
                     anew, --to PATH puts this elsewhere"
                )));
            }
            Err(fault) => return Err(Failure::fault("undelete", &to, &fault)),
        };
        Ok((to, parent, name))
    }

    /// Makes a directory with those on the way to it.
    async fn make(&self, path: &Remote) -> Outcome<InodeId> {
        let (client, cred) = (&self.shell.client, &self.shell.cred);
        let mut missing = Vec::new();
        let mut at = path.clone();
        let mut parent = loop {
            match client.walk(cred, InodeId::ROOT, at.as_bytes(), true).await {
                Ok((attr, _)) => break attr.ino,
                Err(Fault { kind: Kind::NotFound, .. }) => {
                    let (above, name) = at.split("make")?;
                    missing.push(name);
                    at = above;
                }
                Err(fault) => return Err(Failure::fault("make", &at, &fault)),
            }
        };
        for name in missing.into_iter().rev() {
            let made = client.create(cred, parent, &name, NewNode::Dir, PARENT_MODE).await;
            parent = made.map_err(|fault| Failure::fault("make", path, &fault))?.ino;
        }
        Ok(parent)
    }

    /// What was removed from a directory that is there. `None`: there is none, or nothing was removed from it.
    async fn all_removed_from(&self, path: &Remote) -> Outcome<Option<u64>> {
        let Ok((dir, _)) = self.shell.client.walk(&self.shell.cred, InodeId::ROOT, path.as_bytes(), true).await else {
            return Ok(None);
        };
        if entries(self.shell, Some(dir.ino)).await?.is_empty() {
            return Ok(None);
        }
        let failed = self.inside(path.clone(), dir.ino).await?;
        say!("{path}");
        Ok(Some(failed))
    }

    /// Brings back what was in a directory, down to the bottom. Returns how many did not come.
    async fn inside(&self, path: Remote, dir: InodeId) -> Outcome<u64> {
        let (mut todo, mut failed) = (vec![(path, dir)], 0);
        while let Some((path, dir)) = todo.pop() {
            let all = newest(entries(self.shell, Some(dir)).await?);
            let one = async |entry: TrashEntry| {
                let path = path.join(entry.name.as_bytes());
                let back = self.shell.client.undelete(&self.shell.cred, entry.ino, dir, &entry.name).await;
                (path, entry.ino, back)
            };
            let mut back = stream::iter(all).map(one).buffer_unordered(AT_ONCE);
            while let Some((path, ino, back)) = back.next().await {
                match back {
                    Ok(attr) if attr.kind == FileKind::Dir => todo.push((path, ino)),
                    Ok(_) => {}
                    Err(fault) => {
                        eprintln!("dfs: {}", Failure::fault("undelete", format!("{ino} as {path}"), &fault));
                        failed += 1;
                    }
                }
            }
        }
        Ok(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str, secs: i64, ino: u64) -> TrashEntry {
        TrashEntry {
            ino: InodeId(ino),
            kind: FileKind::File,
            parent: InodeId::ROOT,
            name: Name::new(text).unwrap(),
            dir: Some(b"/d".to_vec()),
            size: 0,
            by: 0,
            at: Time { secs, nanos: 0 },
        }
    }

    #[test]
    fn of_each_name_the_last_removal_counts() {
        let all = vec![entry("a", 5, 1), entry("a", 9, 2), entry("b", 1, 3), entry("a", 7, 4)];
        let inos: Vec<u64> = newest(all).into_iter().map(|entry| entry.ino.0).collect();
        assert_eq!(inos, [2, 3]);
    }

    #[test]
    fn a_path_is_below_directories_only() {
        let remote = |text: &str| Remote::new(OsStr::new(text));
        for (path, top, is) in
            [("/a/b", "/a", true), ("/a", "/a", true), ("/ab", "/a", false), ("/a", "/", true), ("/a", "/a/b", false)]
        {
            assert_eq!(is_at_or_below(&remote(path), &remote(top)), is, "{path} {top}");
        }
        assert_eq!(path_of(&entry("x", 1, 1)).unwrap().to_string(), "/d/x");
        assert_eq!(
            (id(OsStr::new("i12")), id(OsStr::new("/i12")), id(OsStr::new("ix"))),
            (Some(InodeId(12)), None, None)
        );
    }
}
