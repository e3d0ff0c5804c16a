//! `dfs mv`, `mkdir`, `ln`, `chmod` and `chown`: changes of names and attributes.

use super::connect::Shell;
use super::failure::{Failure, Outcome};
use super::format::size_text;
use super::put::umask;
use super::remote::Remote;
use clap::Args;
use client_fuse::NewMode;
use common::fault::{Fault, Kind};
use common::id::InodeId;
use common::name::Name;
use common::proto::meta::{Attr, FileKind, NewNode, RenameMode, SetAttr};
use nix::unistd::{Group, User};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// `dfs mv`.
#[derive(Args, Debug)]
pub(crate) struct MvArgs {
    /// Fail if the new name is taken
    #[arg(short, long)]
    no_clobber: bool,
    /// What to move
    #[arg(required = true)]
    sources: Vec<OsString>,
    /// A directory that is there, or the new name
    #[arg(required = true)]
    destination: OsString,
}

/// `dfs mkdir`.
#[derive(Args, Debug)]
pub(crate) struct MkdirArgs {
    /// With all directories above it; no error if it is there
    #[arg(short, long)]
    parents: bool,
    /// Permission bits, octal [default: 777 less the umask]
    #[arg(short, long, value_parser = octal)]
    mode: Option<u32>,
    /// Which
    #[arg(required = true)]
    paths: Vec<OsString>,
}

/// `dfs ln`.
#[derive(Args, Debug)]
pub(crate) struct LnArgs {
    /// A symbolic link
    #[arg(short, long)]
    symbolic: bool,
    /// What it names
    target: OsString,
    /// The new name
    link: OsString,
}

/// `dfs chmod`.
#[derive(Args, Debug)]
pub(crate) struct ChmodArgs {
    /// Everything below, too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Octal (644) or symbolic (u+x,go-w)
    #[arg(allow_hyphen_values = true)]
    mode: String,
    /// Which
    #[arg(required = true)]
    paths: Vec<OsString>,
}

/// `dfs chown`.
#[derive(Args, Debug)]
pub(crate) struct ChownArgs {
    /// Everything below, too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// USER, USER:GROUP or :GROUP; names or numbers
    owner: String,
    /// Which
    #[arg(required = true)]
    paths: Vec<OsString>,
}

/// `dfs admin replicas`.
#[derive(Args, Debug)]
pub(crate) struct ReplicasArgs {
    /// Everything that is below already, too. Interrupted: do it again, what is done stays
    #[arg(short, long)]
    recursive: bool,
    /// Copies of each chunk
    #[arg(value_parser = clap::value_parser!(u8).range(1..=9))]
    replicas: u8,
    /// Files, and directories for what will be made in them
    #[arg(required = true)]
    paths: Vec<OsString>,
}

/// `dfs admin chunk-size`.
#[derive(Args, Debug)]
pub(crate) struct ChunkSizeArgs {
    /// Everything that is below already, too: what is written there from now on
    #[arg(short, long)]
    recursive: bool,
    /// In bytes, or as 512k or 8m: a power of two from 64k to 64m
    #[arg(value_parser = chunk_size)]
    size: u32,
    /// Files, and directories for what will be made in them
    #[arg(required = true)]
    paths: Vec<OsString>,
}

/// Tells and counts what failed.
fn count(results: impl IntoIterator<Item = Outcome>) -> u64 {
    let mut failed = 0;
    for failure in results.into_iter().filter_map(Result::err) {
        eprintln!("dfs: {failure}");
        failed += 1;
    }
    failed
}

/// Runs `dfs mv`. Returns how many paths failed.
pub(crate) async fn mv(shell: &Shell, args: MvArgs) -> Outcome<u64> {
    let destination = Remote::new(&args.destination);
    let walked = shell.client.walk(&shell.cred, InodeId::ROOT, destination.as_bytes(), true).await;
    let into = match walked {
        Ok((attr, _)) if attr.kind == FileKind::Dir => Some(attr.ino),
        Ok(_) | Err(Fault { kind: Kind::NotFound, .. }) => None,
        Err(fault) => return Err(Failure::fault("move to", destination, &fault)),
    };
    if args.sources.len() > 1 && into.is_none() {
        return Err(Failure::at("move to", destination, "not a directory"));
    }
    let mode = if args.no_clobber { RenameMode::NoReplace } else { RenameMode::Replace };
    let mut results = Vec::new();
    for source in &args.sources {
        results.push(move_one(shell, &Remote::new(source), &destination, into, mode).await);
    }
    Ok(count(results))
}

async fn move_one(
    shell: &Shell,
    source: &Remote,
    destination: &Remote,
    into: Option<InodeId>,
    mode: RenameMode,
) -> Outcome {
    let (from_dir, from_name) = source.split("move")?;
    let from = shell.walk("move", &from_dir, true).await?.ino;
    let (to, to_name) = match into {
        Some(dir) => (dir, from_name.clone()),
        None => {
            let (to_dir, to_name) = destination.split("move to")?;
            (shell.walk("move to", &to_dir, true).await?.ino, to_name)
        }
    };
    let renamed = shell.client.rename(&shell.cred, (from, &from_name), (to, &to_name), mode).await;
    renamed.map_err(|fault| Failure::fault("move", source, &fault))
}

/// Runs `dfs mkdir`. Returns how many paths failed.
pub(crate) async fn mkdir(shell: &Shell, args: MkdirArgs) -> Outcome<u64> {
    let mode = args.mode.map_or(NewMode { bits: 0o777, umask: umask() }, NewMode::from);
    let mut results = Vec::new();
    for path in &args.paths {
        let path = Remote::new(path);
        results.push(if args.parents {
            make_path(shell, &path, mode).await.map(|_| ())
        } else {
            make_one(shell, &path, mode).await
        });
    }
    Ok(count(results))
}

async fn make_one(shell: &Shell, path: &Remote, mode: NewMode) -> Outcome {
    let (parent, name) = path.split("make directory")?;
    let parent = match shell.client.walk(&shell.cred, InodeId::ROOT, parent.as_bytes(), true).await {
        Ok((attr, _)) => attr.ino,
        Err(fault) if fault.kind == Kind::NotFound => {
            return Err(Failure::fault("make directory", path, &fault).advice("-p makes what is missing above it"));
        }
        Err(fault) => return Err(Failure::fault("make directory", path, &fault)),
    };
    let made = shell.client.create(&shell.cred, parent, &name, NewNode::Dir, mode).await;
    made.map(|_| ()).map_err(|fault| Failure::fault("make directory", path, &fault))
}

/// The directory of that path, made with all above it where they are missing.
async fn make_path(shell: &Shell, path: &Remote, mode: NewMode) -> Outcome<InodeId> {
    let (client, cred) = (&shell.client, &shell.cred);
    match client.walk(cred, InodeId::ROOT, path.as_bytes(), true).await {
        Ok((attr, _)) if attr.kind == FileKind::Dir => return Ok(attr.ino),
        Ok(_) => return Err(Failure::at("make directory", path, "is there and not a directory")),
        Err(Fault { kind: Kind::NotFound, .. }) => {}
        Err(fault) => return Err(Failure::fault("make directory", path, &fault)),
    }
    let (above, name) = path.split("make directory")?;
    let passable = NewMode { bits: mode.bits | 0o300, umask: mode.umask & !0o300 };
    let parent = Box::pin(make_path(shell, &above, passable)).await?;
    match client.create(cred, parent, &name, NewNode::Dir, mode).await {
        Ok(attr) => Ok(attr.ino),
        Err(Fault { kind: Kind::Exists, .. }) => Ok(shell.walk("make directory", path, true).await?.ino),
        Err(fault) => Err(Failure::fault("make directory", path, &fault)),
    }
}

/// Runs `dfs ln`.
pub(crate) async fn ln(shell: &Shell, args: LnArgs) -> Outcome<u64> {
    let link = Remote::new(&args.link);
    let (client, cred) = (&shell.client, &shell.cred);
    let target = Remote::new(&args.target);
    let walked = client.walk(cred, InodeId::ROOT, link.as_bytes(), true).await;
    let (parent, name): (InodeId, Name) = match walked {
        Ok((attr, _)) if attr.kind == FileKind::Dir => (attr.ino, target.split("link")?.1),
        Ok(_) | Err(_) => {
            let (parent, name) = link.split("link")?;
            (shell.walk("link", &parent, true).await?.ino, name)
        }
    };
    let made = if args.symbolic {
        client.create(cred, parent, &name, NewNode::Symlink(args.target.into_vec()), 0o777).await
    } else {
        let attr = shell.walk("link", &target, false).await?;
        if attr.kind == FileKind::Dir {
            return Err(Failure::at("link", &target, "is a directory, which has one name").advice("use -s"));
        }
        client.link(cred, attr.ino, parent, &name).await
    };
    made.map_err(|fault| Failure::fault("link", link, &fault))?;
    Ok(0)
}

/// Runs `dfs chmod`. Returns how many paths failed.
pub(crate) async fn chmod(shell: &Shell, args: ChmodArgs) -> Outcome<u64> {
    let umask = umask();
    new_mode(&args.mode, 0, false, umask).map_err(Failure::new)?;
    let change = |attr: &Attr| SetAttr {
        mode: new_mode(&args.mode, attr.permissions(), attr.kind == FileKind::Dir, umask).ok(),
        ..SetAttr::default()
    };
    change_each(shell, "chmod", &args.paths, args.recursive, true, &change).await
}

/// Runs `dfs chown`. Returns how many paths failed.
pub(crate) async fn chown(shell: &Shell, args: ChownArgs) -> Outcome<u64> {
    let (uid, gid) = owner(&args.owner)?;
    let change = |_: &Attr| SetAttr { uid, gid, ..SetAttr::default() };
    change_each(shell, "chown", &args.paths, args.recursive, false, &change).await
}

/// Runs `dfs admin replicas`. Returns how many paths failed.
pub(crate) async fn replicas(shell: &Shell, args: ReplicasArgs) -> Outcome<u64> {
    let change = |attr: &Attr| match attr.kind {
        FileKind::File | FileKind::Dir if attr.replicas != args.replicas => {
            SetAttr { replicas: Some(args.replicas), ..SetAttr::default() }
        }
        _ => SetAttr::default(),
    };
    let failed = change_each(shell, "set the replica count", &args.paths, args.recursive, true, &change).await?;
    if failed == 0 {
        let what = if args.recursive { ", and all below" } else { "" };
        let new = if args.recursive { "" } else { " (what is made in directories from now on)" };
        say_done!("{} copies: {}{what}{new}", args.replicas, shown(&args.paths));
    }
    Ok(failed)
}

/// Runs `dfs admin chunk-size`. Returns how many paths failed.
pub(crate) async fn set_chunk_size(shell: &Shell, args: ChunkSizeArgs) -> Outcome<u64> {
    let change = |attr: &Attr| match attr.kind {
        FileKind::File | FileKind::Dir if attr.chunk_size != args.size => {
            SetAttr { chunk_size: Some(args.size), ..SetAttr::default() }
        }
        _ => SetAttr::default(),
    };
    let failed = change_each(shell, "set the chunk size", &args.paths, args.recursive, true, &change).await?;
    if failed == 0 {
        let what = if args.recursive { ", and all below" } else { "" };
        say_done!("chunks of {} from now on in {}{what}", size_text(args.size.into()), shown(&args.paths));
    }
    Ok(failed)
}

/// For people.
fn shown(paths: &[OsString]) -> String {
    paths.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn chunk_size(text: &str) -> Result<u32, String> {
    let (digits, shift) = match text.to_ascii_lowercase().strip_suffix(['k', 'm']) {
        Some(digits) => (digits.to_owned(), if text.ends_with(['k', 'K']) { 10 } else { 20 }),
        None => (text.to_owned(), 0),
    };
    let size = digits.parse::<u32>().ok().and_then(|size| size.checked_mul(1 << shift));
    size.ok_or_else(|| format!("{text} is no size such as 512k or 8m"))
}

/// Changes each path and, if `recursive`, all below. Symlinks found below are left alone if `skip_links`.
async fn change_each(
    shell: &Shell,
    doing: &str,
    paths: &[OsString],
    recursive: bool,
    skip_links: bool,
    change: &(impl Fn(&Attr) -> SetAttr + Sync),
) -> Outcome<u64> {
    let mut failed = 0;
    let mut waiting: Vec<(Remote, Option<Attr>)> = paths.iter().rev().map(|p| (Remote::new(p), None)).collect();
    while let Some((path, known)) = waiting.pop() {
        let done = async {
            let below = known.is_some();
            let attr = match known {
                Some(attr) => attr,
                None => shell.walk(doing, &path, true).await?,
            };
            if !(below && skip_links && attr.kind == FileKind::Symlink) {
                let wanted = change(&attr);
                if wanted != SetAttr::default() {
                    let set = shell.client.setattr(&shell.cred, attr.ino, wanted).await;
                    set.map_err(|fault| Failure::fault(doing, &path, &fault))?;
                }
            }
            if recursive && attr.kind == FileKind::Dir {
                return shell.list(&path, attr.ino).await;
            }
            Ok(Vec::new())
        };
        match done.await {
            Ok(entries) => waiting.extend(entries.into_iter().map(|e| (path.join(&e.name), Some(e.attr)))),
            Err(failure) => failed += count([Err(failure)]),
        }
    }
    Ok(failed)
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err(format!("{text} is no octal mode up to 7777")),
    }
}

/// The mode that `text` makes of `old`: octal, or symbolic as POSIX `chmod` has it (`u=rwx,g+s,o-w,a+X`).
fn new_mode(text: &str, old: u32, is_dir: bool, umask: u32) -> Result<u32, String> {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return octal(text);
    }
    text.split(',')
        .try_fold(old, |mode, clause| apply_clause(clause, mode, is_dir, umask))
        .map_err(|clause| format!("chmod: {clause} is no mode such as 644 or u+x,go-w"))
}

fn apply_clause(clause: &str, mut mode: u32, is_dir: bool, umask: u32) -> Result<u32, &str> {
    let at = clause.find(['+', '-', '=']).ok_or(clause)?;
    let (who, mut rest) = clause.split_at(at);
    let mut mask = 0;
    for letter in who.chars() {
        mask |= match letter {
            'u' => 0o4700,
            'g' => 0o2070,
            'o' => 0o1007,
            'a' => 0o7777,
            _ => return Err(clause),
        };
    }
    let mask = if who.is_empty() { 0o7777 & !umask } else { mask };
    while let Some(action) = rest.chars().next() {
        let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |next| next + 1);
        let bits = permission_bits(&rest[1..end], mode, is_dir).ok_or(clause)? & mask;
        mode = match action {
            '+' => mode | bits,
            '-' => mode & !bits,
            _ => (mode & !(mask & 0o777 | if who.is_empty() { 0 } else { mask & 0o6000 })) | bits,
        };
        rest = &rest[end..];
    }
    Ok(mode)
}

/// The bits of `rwxXst`, or of one of `ugo` copied to all classes.
fn permission_bits(letters: &str, mode: u32, is_dir: bool) -> Option<u32> {
    let copied = match letters {
        "u" => Some(mode >> 6 & 7),
        "g" => Some(mode >> 3 & 7),
        "o" => Some(mode & 7),
        _ => None,
    };
    if let Some(class) = copied {
        return Some(class * 0o111);
    }
    letters.chars().try_fold(0, |bits, letter| {
        Some(
            bits | match letter {
                'r' => 0o444,
                'w' => 0o222,
                'x' => 0o111,
                'X' if is_dir || mode & 0o111 != 0 => 0o111,
                'X' => 0,
                's' => 0o6000,
                't' => 0o1000,
                _ => return None,
            },
        )
    })
}

fn owner(text: &str) -> Outcome<(Option<u32>, Option<u32>)> {
    let (user, group) = text.split_once(':').map_or((text, ""), |(user, group)| (user, group));
    let unknown = |what: &str, name: &str| Failure::new(format!("chown: no {what} is named {name}"));
    let uid = match user {
        "" => None,
        name => Some(match name.parse() {
            Ok(uid) => uid,
            Err(_) => User::from_name(name).ok().flatten().ok_or_else(|| unknown("user", name))?.uid.as_raw(),
        }),
    };
    let gid = match group {
        "" => None,
        name => Some(match name.parse() {
            Ok(gid) => gid,
            Err(_) => Group::from_name(name).ok().flatten().ok_or_else(|| unknown("group", name))?.gid.as_raw(),
        }),
    };
    if uid.is_none() && gid.is_none() {
        return Err(Failure::new("chown: name a user, a group, or both: USER:GROUP"));
    }
    Ok((uid, gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_chmod_reads_them() {
        for (text, old, new) in [
            ("644", 0o777, 0o644),
            ("u+x", 0o644, 0o744),
            ("go-w", 0o666, 0o644),
            ("u=rw,go=r", 0o777, 0o644),
            ("a+X", 0o600, 0o600),
            ("a+X", 0o700, 0o711),
            ("+x", 0o644, 0o755),
            ("g+s,o+t", 0o755, 0o3755),
            ("g=u", 0o740, 0o770),
            ("u-s", 0o4755, 0o755),
            ("u=rwx+s", 0o600, 0o4700),
        ] {
            assert_eq!(new_mode(text, old, false, 0o022), Ok(new), "{text} on {old:o}");
        }
        assert_eq!(new_mode("a+X", 0o600, true, 0), Ok(0o711));
        for bad in ["", "8", "77777", "u", "u+q", "z+x", "u+x,"] {
            assert!(new_mode(bad, 0o644, false, 0).is_err(), "{bad}");
        }
    }

    #[test]
    fn owners_are_names_or_numbers() {
        assert_eq!(owner("12:34").unwrap(), (Some(12), Some(34)));
        assert_eq!(owner(":34").unwrap(), (None, Some(34)));
        assert_eq!(owner("root").unwrap(), (Some(0), None));
        assert!(owner(":").is_err() && owner("no such user").is_err());
    }
}
