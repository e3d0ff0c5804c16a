//! `dfs admin gc`, `scrub`, `keep`: how far repair, garbage collection and scrub are, and what an administrator orders.

use super::admin::{Orders, REPORT_AGE_MAX_MS, ask, done};
use super::connect::Target;
use super::failure::{Failure, Outcome};
use super::format::{size_text, time_text};
use super::fsck::{range_json, range_text};
use super::is_json;
use super::progress::Progress;
use clap::Subcommand;
use common::id::ServerId;
use common::proto::admin::{Order, Ordered};
use common::proto::backup::Held;
use common::proto::keep::{Explained, KeepAdmin, KeepAdminReply, KeepChange, KeepReport, KeepStatus};
use common::proto::meta::{Admin, AdminReply, Status};
use common::proto::trash::TrashNow;
use common::units::len_u64;
use common::world::World;
use std::fmt::Write;
use std::time::Duration;
use tokio::time::Instant;

/// How long one question may take.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// How long an explanation may take: it reads many extents.
const EXPLAIN_LIMIT: Duration = Duration::from_secs(60);
/// How long `gc run` waits for all servers.
const RUN_LIMIT: Duration = Duration::from_secs(600);
/// Between two looks how far they are.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// `dfs admin gc ...`
#[derive(clap::Args, Debug)]
pub(crate) struct GcArgs {
    /// Say why a chunk is there: who refers to it, and where it should be. Its id, or at least the first 12 hex digits
    #[arg(long, value_name = "CHUNK")]
    explain: Option<String>,
    #[command(subcommand)]
    command: Option<GcCommand>,
}

#[derive(Debug, Subcommand)]
enum GcCommand {
    /// Delete now what nothing refers to, and wait until it is done
    Run,
    /// Delete nothing until `resume`
    Pause,
    /// Delete again what nothing refers to
    Resume {
        /// After a restore: although `dfs admin fsck` has not found everything sound. Data that the backup misses, and
        /// other copies of what is damaged, may be deleted
        #[arg(long)]
        unchecked: bool,
        /// With --unchecked: do it
        #[arg(long, requires = "unchecked")]
        yes: bool,
    },
}

/// `dfs admin keep ...`
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct KeepFlags {
    /// MiB per second that one server re-makes while clients use it (four times as many of what has one copy left)
    #[arg(long)]
    repair_busy_mib: Option<u64>,
    /// MiB per second that one server re-makes while no client does
    #[arg(long)]
    repair_idle_mib: Option<u64>,
    /// Seconds that an unreferenced chunk stays after it was put
    #[arg(long)]
    grace_s: Option<u64>,
    /// Seconds within which every stored byte is verified
    #[arg(long)]
    scrub_period_s: Option<u64>,
    /// MiB per second that one server verifies, at most
    #[arg(long)]
    scrub_mib: Option<u64>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

async fn keep(target: &Target, what: KeepAdmin, limit: Duration) -> Outcome<KeepAdminReply> {
    if !matches!(what, KeepAdmin::Status | KeepAdmin::Held) {
        let orders = Orders::new(target)?;
        let link = orders.link(None, limit);
        let answer = orders.send_on(&link, "admin", "the cluster", Order::Keep(what)).await;
        link.close().await;
        return match answer? {
            Ordered::Keep(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        };
    }
    let config = target.client_config("admin")?;
    match ask(&World::real(), &config.metaservers, Admin::Keep(what), limit).await? {
        AdminReply::Keep(reply) => Ok(reply),
        other => Err(unexpected(&other)),
    }
}

/// What is in the trash.
pub(crate) async fn trash(target: &Target) -> Outcome<TrashNow> {
    let config = target.client_config("admin")?;
    match ask(&World::real(), &config.metaservers, Admin::Trash, ASK_LIMIT).await? {
        AdminReply::Trash(now) => Ok(now),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(reply: &dyn std::fmt::Debug) -> Failure {
    Failure::new(format!("admin: unexpected answer {reply:?}"))
}

/// How far all servers are.
pub(crate) async fn status(target: &Target) -> Outcome<KeepStatus> {
    match keep(target, KeepAdmin::Status, ASK_LIMIT).await? {
        KeepAdminReply::Status(status) => Ok(status),
        other => Err(unexpected(&other)),
    }
}

/// Since which restore deletion is held. `None`: it is not.
pub(crate) async fn held(target: &Target) -> Outcome<Option<Held>> {
    match keep(target, KeepAdmin::Held, ASK_LIMIT).await? {
        KeepAdminReply::Held(held) => Ok(held),
        other => Err(unexpected(&other)),
    }
}

/// For people.
pub(crate) fn held_text(held: &Held) -> String {
    format!(
        "deletion is held: the metadata was restored at {}, in epoch {}; `dfs admin fsck` lifts that when it finds \
         nothing wrong",
        time_text(held.at),
        held.epoch.0
    )
}

async fn set(target: &Target, keep: KeepChange) -> Outcome {
    done(Orders::new(target)?.send("set", Order::Settings { keep, min_replicas: None }).await?)
}

/// Runs `dfs admin gc ...`.
pub(crate) async fn gc(target: &Target, what: GcArgs) -> Outcome {
    match (what.command, what.explain) {
        (None, Some(chunk)) => explain(target, &chunk).await,
        (Some(GcCommand::Run), None) => run(target).await,
        (Some(GcCommand::Pause), None) => pause(target, true).await,
        (Some(GcCommand::Resume { unchecked: true, yes: false }), None) => {
            let harm = "what the backup misses, and other copies of what is damaged, may be deleted";
            Err(Failure::new(format!("gc: {harm}: nothing was done yet: say --yes if you mean it")))
        }
        (Some(GcCommand::Resume { unchecked, .. }), None) => resume(target, unchecked).await,
        (None, None) | (Some(_), Some(_)) => Err(Failure::new("gc: say run, pause, resume, or --explain CHUNK")),
    }
}

/// `dfs admin scrub ...`
#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum ScrubCommand {
    /// Verify everything now, as fast as the limit allows; `dfs admin status` shows how far it is
    Run,
    /// Verify nothing until `resume`
    Pause,
    /// Verify again
    Resume,
}

/// Runs `dfs admin scrub ...`.
pub(crate) async fn scrub(target: &Target, command: ScrubCommand) -> Outcome {
    let paused = match command {
        ScrubCommand::Run => {
            keep(target, KeepAdmin::Scrub, ASK_LIMIT).await?;
            say_done!("scrub begins");
            return Ok(());
        }
        ScrubCommand::Pause => true,
        ScrubCommand::Resume => false,
    };
    set(target, KeepChange { scrub_paused: Some(paused), ..KeepChange::default() }).await?;
    say_done!("scrub is {}", if paused { "paused" } else { "on" });
    Ok(())
}

async fn pause(target: &Target, paused: bool) -> Outcome {
    set(target, KeepChange { delete_paused: Some(paused), ..KeepChange::default() }).await?;
    say_done!("deletion is {}", if paused { "paused" } else { "on" });
    Ok(())
}

async fn resume(target: &Target, unchecked: bool) -> Outcome {
    if unchecked {
        done(Orders::new(target)?.send("resume", Order::Release).await?)?;
    }
    pause(target, false).await?;
    if let Some(held) = held(target).await? {
        say_done!("but {}", held_text(&held));
    }
    Ok(())
}

async fn run(target: &Target) -> Outcome {
    let order = match keep(target, KeepAdmin::Gc, ASK_LIMIT).await? {
        KeepAdminReply::Ordered(order) => order,
        other => return Err(unexpected(&other)),
    };
    let before = status(target).await?;
    if before.settings.delete_paused {
        return Err(Failure::new("gc: deletion is paused: `dfs admin gc resume` first"));
    }
    if let Some(held) = held(target).await? {
        return Err(Failure::new(format!("gc: {}", held_text(&held))));
    }
    let deleted = |status: &KeepStatus| -> (u64, u64) {
        status.reports.iter().fold((0, 0), |sum, (_, _, r)| (sum.0 + r.deleted, sum.1 + r.deleted_bytes))
    };
    let (bar, end) = (Progress::counts(), Instant::now() + RUN_LIMIT);
    loop {
        let now = status(target).await?;
        let waiting =
            now.reports.iter().filter(|(_, age, report)| *age < REPORT_AGE_MAX_MS && report.gc_done < order).count();
        let asked = len_u64(now.reports.len());
        bar.set(asked.saturating_sub(len_u64(waiting)), asked, "chunkservers have looked");
        if waiting == 0 && !now.reports.is_empty() {
            bar.finish();
            let (was, is) = (deleted(&before), deleted(&now));
            let (copies, bytes) = (is.0.saturating_sub(was.0), is.1.saturating_sub(was.1));
            say_done!("{copies} copies deleted, {}", size_text(bytes));
            let trash = trash(target).await?;
            if trash.entries > 0 {
                let (entries, bytes) = (trash.entries, size_text(trash.bytes));
                say_done!("not touched: {entries} entries of the trash, {bytes}; `dfs trash empty` lets them go");
            }
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(Failure::new(format!(
                "gc: {waiting} chunkservers are not through yet; they go on by themselves"
            )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn explain(target: &Target, chunk: &str) -> Outcome {
    let bytes: Option<Vec<u8>> = (0..chunk.len() / 2)
        .map(|at| chunk.get(2 * at..2 * at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok()))
        .collect();
    let prefix = bytes.filter(|bytes| (6..=32).contains(&bytes.len()) && chunk.len().is_multiple_of(2));
    let prefix =
        prefix.ok_or_else(|| Failure::new(format!("gc: {chunk}: write 12 to 64 hex digits, an even number")))?;
    let all = match keep(target, KeepAdmin::Explain { prefix }, EXPLAIN_LIMIT).await? {
        KeepAdminReply::Explained(all) => all,
        other => return Err(unexpected(&other)),
    };
    if is_json() {
        say!("{}", serde_json::Value::from(all.iter().map(explained_json).collect::<Vec<_>>()));
        return Ok(());
    }
    if all.is_empty() {
        let status = status(target).await?;
        let held = held(target).await?.map(|held| held_text(&held));
        let held = held.or_else(|| status.settings.delete_paused.then(|| "deletion is paused".to_owned()));
        let when = held.map_or_else(|| "go when their servers next ask".to_owned(), |why| format!("stay: {why}"));
        say!("no file refers to {chunk}: if there are copies, they {when}");
    }
    for one in &all {
        say!("{}", explained(one).trim_end());
    }
    Ok(())
}

fn explained_json(one: &Explained) -> serde_json::Value {
    let ids = |servers: &[ServerId]| servers.iter().map(|server| server.0).collect::<Vec<_>>();
    let refs = one.refs.iter().map(|(replicas, extents)| serde_json::json!({"replicas": replicas, "extents": extents}));
    serde_json::json!({
        "chunk": one.id.hex(),
        "len": one.len,
        "refs": refs.collect::<Vec<_>>(),
        "files": one.files.iter().map(range_json).collect::<Vec<_>>(),
        "owners": ids(&one.owners),
        "degraded_on": one.degraded.as_deref().map(ids),
    })
}

fn explained(one: &Explained) -> String {
    let mut text = String::new();
    // writing to a string cannot fail
    let _ = writeln!(text, "{}: {} bytes", one.id.hex(), one.len);
    for (target, refs) in &one.refs {
        let _ = writeln!(text, "  {refs} extents of files with {target} copies refer to it");
    }
    for range in &one.files {
        let _ = writeln!(text, "  in {}", range_text(range));
    }
    let owners: Vec<String> = one.owners.iter().map(ToString::to_string).collect();
    let _ = writeln!(text, "  belongs on {}", owners.join(" "));
    if let Some(holders) = &one.degraded {
        let holders: Vec<String> = holders.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "  has fewer copies than it should: known on {}", holders.join(" "));
    }
    text
}

/// Runs `dfs admin keep`: changes settings if any are given, and shows them.
pub(crate) async fn settings(target: &Target, flags: KeepFlags) -> Outcome {
    let mib = |rate: Option<u64>| rate.map(|mib| mib.saturating_mul(1 << 20));
    let change = KeepChange {
        repair_busy_rate: mib(flags.repair_busy_mib),
        repair_idle_rate: mib(flags.repair_idle_mib),
        grace_s: flags.grace_s,
        scrub_period_s: flags.scrub_period_s,
        scrub_rate: mib(flags.scrub_mib),
        ..KeepChange::default()
    };
    if change != KeepChange::default() {
        set(target, change).await?;
    }
    let status = status(target).await?;
    if flags.json {
        say!("{}", json(&status));
    } else {
        let s = &status.settings;
        say!("{}", text(&status).trim_end());
        say!(
            "repair {}/s while in use, {}/s while not; grace {} s; scrub within {} s at up to {}/s{}{}",
            size_text(s.repair_busy_rate),
            size_text(s.repair_idle_rate),
            s.grace_s,
            s.scrub_period_s,
            size_text(s.scrub_rate),
            if s.scrub_paused { ", paused" } else { "" },
            if s.delete_paused { "; deletion is paused" } else { "" }
        );
    }
    Ok(())
}

/// What all servers report, added up; those that do not report any more are left out.
fn sum(status: &KeepStatus) -> KeepReport {
    let mut sum = KeepReport::default();
    for (_, _, report) in status.reports.iter().filter(|(_, age, _)| *age < REPORT_AGE_MAX_MS) {
        sum.missing += report.missing;
        sum.missing_bytes += report.missing_bytes;
        sum.unavailable += report.unavailable;
        sum.oldest_s = sum.oldest_s.max(report.oldest_s);
        sum.rate += report.rate;
        sum.remade += report.remade;
        sum.remade_bytes += report.remade_bytes;
        sum.extra += report.extra;
        sum.deleted += report.deleted;
        sum.deleted_bytes += report.deleted_bytes;
        sum.scrub_damaged += report.scrub_damaged;
    }
    sum
}

/// What is missing, and of which servers that is not known: reasons not to take a disk or a server away now. Pure.
pub(crate) fn lacks(keeping: &KeepStatus, status: &Status) -> Vec<String> {
    let (mut why, all) = (Vec::new(), sum(keeping));
    if all.missing > 0 {
        why.push(format!("{} copies are still to be made", all.missing));
    }
    if all.unavailable > 0 {
        why.push(format!("no server that is up has a sound copy of {} that are missing", all.unavailable));
    }
    let has_said = |server: ServerId| {
        let mut fresh = keeping.reports.iter().filter(|(_, age, _)| *age < REPORT_AGE_MAX_MS);
        fresh.any(|(id, _, its)| *id == server && its.compared == keeping.layout)
    };
    let silent = status.servers.iter().filter(|server| server.up && !has_said(server.server));
    let silent: Vec<String> = silent.map(|server| server.server.to_string()).collect();
    if !silent.is_empty() {
        why.push(format!("not known yet what is missing on {}", silent.join(" ")));
    }
    why
}

/// Seconds that what is missing takes at the present rate. `None`: nothing moves.
fn left_s(sum: &KeepReport) -> Option<u64> {
    if sum.missing_bytes == 0 { Some(0) } else { sum.missing_bytes.checked_div(sum.rate) }
}

/// For people.
pub(crate) fn text(status: &KeepStatus) -> String {
    let mut text = String::new();
    let all = sum(status);
    // writing to a string cannot fail
    let compared =
        |(_, age, its): &&(ServerId, u64, KeepReport)| *age < REPORT_AGE_MAX_MS && its.compared == status.layout;
    let asked = status.reports.iter().filter(|(server, ..)| !status.out.contains(server));
    let (known, all_known) = (asked.clone().filter(compared).count(), asked.count());
    let unknown = known < all_known || all_known == 0;
    if unknown {
        let _ =
            writeln!(text, "repair: {known} of {all_known} servers have compared what they have with what they should");
    }
    if all.missing == 0 && unknown {
        // Nobody knows.
    } else if all.missing == 0 {
        let _ = writeln!(
            text,
            "repair: nothing is missing; {} chunks re-made, {}",
            all.remade,
            size_text(all.remade_bytes)
        );
    } else {
        let left = left_s(&all).map_or("unknown".into(), |left| format!("{left} s"));
        let _ = writeln!(
            text,
            "repair: {} copies missing, {} ({} without a source), {}/s, time left {left}, oldest waits {} s",
            all.missing,
            size_text(all.missing_bytes),
            all.unavailable,
            size_text(all.rate),
            all.oldest_s
        );
    }
    let _ = writeln!(
        text,
        "garbage: {} copies that should not be there; {} deleted, {}",
        all.extra,
        all.deleted,
        size_text(all.deleted_bytes)
    );
    let rounds: Vec<String> = status
        .reports
        .iter()
        .map(|(id, _, r)| format!("{id} {} rounds and {} %", r.scrub_rounds, r.scrub_percent))
        .collect();
    let _ = writeln!(text, "scrub: {} damaged copies found; {}", all.scrub_damaged, rounds.join(", "));
    if !status.out.is_empty() {
        let out: Vec<String> = status.out.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "out, their share taken over by others: {}", out.join(" "));
    }
    text
}

/// For programs.
pub(crate) fn json(status: &KeepStatus) -> serde_json::Value {
    let all = sum(status);
    let servers: Vec<serde_json::Value> = status
        .reports
        .iter()
        .map(|(server, age_ms, r)| {
            serde_json::json!({
                "server": server.0,
                "age_ms": age_ms,
                "missing": r.missing,
                "missing_bytes": r.missing_bytes,
                "unavailable": r.unavailable,
                "oldest_s": r.oldest_s,
                "rate": r.rate,
                "remade": r.remade,
                "remade_bytes": r.remade_bytes,
                "extra": r.extra,
                "deleted": r.deleted,
                "deleted_bytes": r.deleted_bytes,
                "compared": r.compared.0,
                "passes": r.passes,
                "gc_done": r.gc_done,
                "scrub_percent": r.scrub_percent,
                "scrub_rounds": r.scrub_rounds,
                "scrub_damaged": r.scrub_damaged,
            })
        })
        .collect();
    serde_json::json!({
        "layout": status.layout.0,
        "degraded": status.degraded,
        "out": status.out.iter().map(|server| server.0).collect::<Vec<_>>(),
        "missing": all.missing,
        "missing_bytes": all.missing_bytes,
        "unavailable": all.unavailable,
        "rate": all.rate,
        "left_s": left_s(&all),
        "oldest_s": all.oldest_s,
        "extra": all.extra,
        "deleted": all.deleted,
        "deleted_bytes": all.deleted_bytes,
        "servers": servers,
    })
}
