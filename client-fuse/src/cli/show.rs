//! `dfs stat` and `dfs df`.

use super::connect::Shell;
use super::failure::{Failure, Outcome};
use super::format::{Names, attr_json, kind_word, mode_text, size_text, time_text};
use super::remote::Remote;
use clap::Args;
use common::proto::meta::{Attr, FileKind, FsStat};
use std::ffi::OsString;

/// `dfs stat`.
#[derive(Args, Debug)]
pub(crate) struct StatArgs {
    /// A JSON array of objects
    #[arg(long)]
    json: bool,
    /// What a symlink points to
    #[arg(short = 'L', long)]
    dereference: bool,
    /// Which
    #[arg(required = true)]
    paths: Vec<OsString>,
}

/// `dfs df`.
#[derive(Args, Debug)]
pub(crate) struct DfArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Runs `dfs stat`. Returns how many paths failed.
pub(crate) async fn stat(shell: &Shell, args: StatArgs) -> Outcome<u64> {
    let mut failed = 0;
    let mut json = Vec::new();
    let mut names = Names::default();
    for path in &args.paths {
        let path = Remote::new(path);
        match shell.walk("stat", &path, args.dereference).await {
            Ok(attr) if args.json => json.push(attr_json(&path.to_string(), &attr)),
            Ok(attr) => print_stat(shell, &path, &attr, &mut names).await,
            Err(failure) => {
                eprintln!("dfs: {failure}");
                failed += 1;
            }
        }
    }
    if args.json {
        say!("{}", serde_json::Value::Array(json));
    }
    Ok(failed)
}

async fn print_stat(shell: &Shell, path: &Remote, attr: &Attr, names: &mut Names) {
    let target = match attr.kind {
        FileKind::Symlink => shell.client.readlink(&shell.cred, attr.ino).await.ok(),
        _ => None,
    };
    let arrow = target.map(|t| format!(" -> {}", String::from_utf8_lossy(&t))).unwrap_or_default();
    say!("  path: {path}{arrow}");
    say!("  kind: {} ({}, {} links)", kind_word(attr.kind), attr.ino, attr.nlink);
    say!("  size: {} bytes, {} allocated", attr.size, attr.allocated);
    say!("  mode: {:04o} {}", attr.permissions(), mode_text(attr.kind, attr.mode));
    let (user, group) = (names.user(attr.uid).to_owned(), names.group(attr.gid).to_owned());
    say!("  owner: {user} ({}), group: {group} ({})", attr.uid, attr.gid);
    say!(
        "  chunks: {}, {} replicas; data version {}",
        size_text(u64::from(attr.chunk_size)),
        attr.replicas,
        attr.version
    );
    for (word, time) in [("access", attr.atime), ("modify", attr.mtime), ("change", attr.ctime)] {
        say!("  {word}: {}.{:09} UTC", time_text(time), time.nanos);
    }
}

/// What is left and in use, in bytes a user can store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    /// Used and free together.
    pub(crate) total: u64,
    /// Logical bytes of all files.
    pub(crate) used: u64,
    /// Free, divided by the replica count.
    pub(crate) free: u64,
}

/// The one place that says what `df` shows, here and on the mount: free is raw free space divided by the replica
/// count; used is logical (before deduplication, without replicas); the total is their sum.
pub(crate) fn space(stat: &FsStat) -> Space {
    let free = stat.raw_free / u64::from(stat.replicas.max(1));
    Space { total: stat.logical_bytes.saturating_add(free), used: stat.logical_bytes, free }
}

/// Runs `dfs df`.
pub(crate) async fn df(shell: &Shell, args: DfArgs) -> Outcome<u64> {
    let stat = shell.client.statfs().await.map_err(|fault| Failure::fault("df", "/", &fault))?;
    let Space { total, used, free } = space(&stat);
    if args.json {
        let object = serde_json::json!({
            "total": total, "used": used, "free": free,
            "inodes": stat.inodes, "chunks": stat.chunks,
            "logical_bytes": stat.logical_bytes, "chunk_bytes": stat.chunk_bytes,
            "raw_capacity": stat.raw_capacity, "raw_free": stat.raw_free, "replicas": stat.replicas,
        });
        say!("{object}");
        return Ok(0);
    }
    say!("{:>12} {:>12} {:>12} {:>5}  {:>10}", "SIZE", "USED", "FREE", "USE%", "INODES");
    let percent = if total == 0 { 0 } else { u128::from(used) * 100 / u128::from(total) };
    let (total, used, free) = (size_text(total), size_text(used), size_text(free));
    say!("{total:>12} {used:>12} {free:>12} {percent:>4}%  {:>10}", stat.inodes);
    say!(
        "stored once each: {} in {} chunks, {} replicas by default; raw: {} free of {}",
        size_text(stat.chunk_bytes),
        stat.chunks,
        stat.replicas,
        size_text(stat.raw_free),
        size_text(stat.raw_capacity)
    );
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_what_can_still_be_stored() {
        let stat = FsStat { logical_bytes: 50, raw_free: 300, raw_capacity: 900, replicas: 3, ..FsStat::default() };
        assert_eq!(space(&stat), Space { total: 150, used: 50, free: 100 });
        assert_eq!(space(&FsStat::default()), Space { total: 0, used: 0, free: 0 });
    }
}
