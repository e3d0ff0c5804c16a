//! `dfs admin fsck`: starts a check on the leader, shows how far it is, and what it found.
//!
//! Ctrl-C ends the command; the check ends by itself when nobody looks at it. Corrections are whole or not made.

use super::admin::Orders;
use super::failure::{Failure, Outcome};
use super::format::size_text;
use super::progress::Progress;
use super::remote::Remote;
use common::proto::admin::{FileRange, Finding, FindingKind, FsckAsk, FsckLook, FsckPhase, Order, Ordered};
use common::units::{len_u32, len_u64};
use std::ffi::OsString;
use std::time::Duration;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Findings of one kind that are shown to a person.
const SHOWN_MAX: usize = 50;

/// What to check.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct FsckArgs {
    /// Only chunks of files at or below this path (the namespace is always checked as a whole)
    path: Option<OsString>,
    /// Have every copy read and hashed by its server
    #[arg(long)]
    data: bool,
    /// Correct counts, make rows again, hand missing copies to repair. Never deletes data
    #[arg(long)]
    repair: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Runs the check; how many things are wrong and not mended.
pub(crate) async fn run(orders: &Orders, args: FsckArgs) -> Outcome<u64> {
    let path = args.path.as_ref().map(|path| Remote::new(path).as_bytes().to_vec());
    let ask = FsckAsk { path, data: args.data, repair: args.repair };
    let Ordered::FsckStarted { job } = orders.send("fsck", Order::Fsck(ask)).await? else {
        return Err(Failure::new("fsck: an answer that does not fit"));
    };
    let bar = Progress::counts();
    let mut findings: Vec<Finding> = Vec::new();
    let look = loop {
        let order = Order::FsckLook { job, after: len_u32(findings.len()) };
        let Ordered::Fsck(mut look) = orders.send("fsck", order).await? else {
            return Err(Failure::new("fsck: an answer that does not fit"));
        };
        bar.set(look.chunks, look.chunks_total, phase_text(look.phase));
        let news = std::mem::take(&mut look.findings);
        let is_all = news.is_empty();
        findings.extend(news);
        if look.phase == FsckPhase::Done && is_all {
            break look;
        }
        if is_all {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    bar.finish();
    if args.json {
        say!("{}", json(&look, &findings));
    } else {
        show(&look, &findings, args.repair);
    }
    match &look.failed {
        Some(error) => Err(Failure::new(format!("fsck: it ended early: {error}"))),
        None => Ok(left(&look, args.repair)),
    }
}

/// How many things are wrong and not mended; all are counted, whether or not they are shown.
fn left(look: &FsckLook, repair: bool) -> u64 {
    if repair { look.unmended } else { look.counts.iter().map(|(_, count)| count).sum() }
}

fn phase_text(phase: FsckPhase) -> &'static str {
    match phase {
        FsckPhase::Namespace => "reading the namespace",
        FsckPhase::Chunks => "looking for chunks",
        FsckPhase::Files => "finding files",
        FsckPhase::Repair => "repairing",
        FsckPhase::Done => "done",
    }
}

fn kind_text(kind: FindingKind) -> &'static str {
    match kind {
        FindingKind::Namespace => "namespace",
        FindingKind::Lost => "lost",
        FindingKind::Unreachable => "unreachable",
        FindingKind::Corrupt => "corrupt",
        FindingKind::Short => "short",
        FindingKind::Server => "server",
    }
}

fn show(look: &FsckLook, findings: &[Finding], repair: bool) {
    for (kind, count) in &look.counts {
        let shown = findings.iter().filter(|finding| finding.kind == *kind).take(SHOWN_MAX);
        let mut lines = 0u64;
        for finding in shown {
            let is_stuck = finding.kind == FindingKind::Namespace && !finding.mends;
            let advice = if is_stuck { "  (--repair cannot mend it)" } else { "" };
            say!("{:<12} {}{advice}", kind_text(*kind), finding.text);
            for range in &finding.files {
                say!("{:<12}   {}", "", range_text(range));
            }
            lines += 1;
        }
        if *count > lines {
            say!("{:<12} and {} more", kind_text(*kind), count - lines);
        }
    }
    let read = if look.bytes > 0 { format!(", {} of copies read", size_text(look.bytes)) } else { String::new() };
    let repaired = if repair { format!(", {} corrections made", look.repaired) } else { String::new() };
    let verdict = if look.counts.is_empty() { "clean" } else { "not clean" };
    say!("{verdict}: namespace at index {}, {} chunks{read}{repaired}", look.index.0, look.chunks);
}

/// Where in a file, for people.
pub(crate) fn range_text(range: &FileRange) -> String {
    format!("{} bytes {} to {}", String::from_utf8_lossy(&range.path), range.from, range.to)
}

/// The same for programs.
pub(crate) fn range_json(range: &FileRange) -> serde_json::Value {
    serde_json::json!({ "path": String::from_utf8_lossy(&range.path), "from": range.from, "to": range.to })
}

fn json(look: &FsckLook, findings: &[Finding]) -> serde_json::Value {
    let finding = |finding: &Finding| {
        serde_json::json!({
            "kind": kind_text(finding.kind),
            "text": finding.text,
            "chunk": finding.chunk.map(|chunk| chunk.hex()),
            "mends": finding.mends,
            "files": finding.files.iter().map(range_json).collect::<Vec<_>>(),
        })
    };
    let counts: serde_json::Map<String, serde_json::Value> =
        look.counts.iter().map(|(kind, count)| (kind_text(*kind).to_owned(), (*count).into())).collect();
    serde_json::json!({
        "clean": look.counts.is_empty(),
        "index": look.index.0,
        "chunks": look.chunks,
        "bytes_read": look.bytes,
        "repaired": look.repaired,
        "counts": counts,
        "unmended": look.unmended,
        "failed": look.failed,
        "findings": findings.iter().map(finding).collect::<Vec<_>>(),
        "findings_shown": len_u64(findings.len()),
    })
}
