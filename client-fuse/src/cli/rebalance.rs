//! `dfs admin rebalance`: what would move, have it moved, see how far it is, and stop it.
//!
//! A plan is carried out by the metaservers: ending a command, or its machine, changes nothing about it.

use super::admin::{Orders, ask, done};
use super::connect::Target;
use super::failure::{Failure, Outcome};
use super::format::{size_text, time_text};
use super::progress::Progress;
use clap::Subcommand;
use common::id::ServerId;
use common::proto::admin::Order;
use common::proto::meta::{Admin, AdminReply};
use common::proto::rebalance::{Plan, PlanState, Rebalance, RebalanceAnswer, RebalanceAsk, RebalanceOrder, ServerPlan};
use common::world::World;
use std::time::Duration;

/// How long making a plan may take: every chunk's row may be read for it.
const PLAN_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at one that is carried out.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks in a row that may fail while waiting: metaservers may change their leader meanwhile.
const LOOKS_FAILED_MAX: u32 = 20;
/// Groups under way that are shown.
const SHOWN_MAX: usize = 8;

/// What can be done about where data is.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum RebalanceCommand {
    /// What `start` would move: for each server what it holds now and then, and how long it takes. Changes nothing
    Plan {
        /// As if a server had another weight (0: drained); may be given several times
        #[arg(long = "weight", value_name = "SERVER=WEIGHT", value_parser = parse_weight)]
        weights: Vec<(ServerId, u32)>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Carry the plan out, step by step. Copies are made before others are dropped; reads and writes go on
    Start {
        /// Megabytes (10^6 bytes) per second that one server takes, at most
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        max_mbps: Option<u64>,
        /// Wait until it is done. Ctrl-C stops the waiting, not the plan
        #[arg(long)]
        wait: bool,
        /// As JSON: the plan
        #[arg(long)]
        json: bool,
    },
    /// How far it is, at what rate, and how long it will take
    Status {
        /// Wait until it is done
        #[arg(long)]
        wait: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Begin nothing more, and copy nothing more, until `resume`
    Pause,
    /// Go on
    Resume,
    /// Begin nothing more; what is under way arrives
    Cancel,
    /// Change the limit of what is being carried out
    Limit {
        /// Megabytes (10^6 bytes) per second that one server takes; 0: no limit but repair's
        max_mbps: u64,
    },
}

fn parse_weight(text: &str) -> Result<(ServerId, u32), String> {
    let wrong = || format!("{text}: write SERVER=WEIGHT, such as 3=0");
    let (server, weight) = text.split_once('=').ok_or_else(wrong)?;
    let server = server.trim_start_matches('s').parse().map_err(|_| wrong())?;
    Ok((ServerId(server), weight.parse().map_err(|_| wrong())?))
}

/// Megabytes to bytes.
pub(crate) fn bytes_per_s(max_mbps: Option<u64>) -> Option<u64> {
    max_mbps.map(|mb| mb.saturating_mul(1_000_000))
}

/// Runs `dfs admin rebalance`.
pub(crate) async fn run(target: &Target, command: RebalanceCommand) -> Outcome {
    match command {
        RebalanceCommand::Plan { weights, json } => {
            show_plan(&plan(target, weights).await?, json);
            Ok(())
        }
        RebalanceCommand::Start { max_mbps, wait, json } => start(target, max_mbps, wait, json).await,
        RebalanceCommand::Status { wait, json } => {
            if wait {
                self::wait(target).await?;
            }
            show_status(&status(target).await?, json);
            Ok(())
        }
        RebalanceCommand::Pause => order(target, RebalanceOrder::Pause, "paused: `resume` goes on").await,
        RebalanceCommand::Resume => order(target, RebalanceOrder::Resume, "it goes on").await,
        RebalanceCommand::Cancel => {
            order(target, RebalanceOrder::Cancel, "cancelled: what is under way arrives, the rest stays where it is")
                .await
        }
        RebalanceCommand::Limit { max_mbps } => {
            let rate = bytes_per_s(Some(max_mbps).filter(|mb| *mb > 0));
            order(target, RebalanceOrder::Rate(rate), "the limit is set").await
        }
    }
}

/// Shows the plan and starts it.
pub(crate) async fn start(target: &Target, max_mbps: Option<u64>, wait: bool, json: bool) -> Outcome {
    let rate = bytes_per_s(max_mbps);
    let plan = at_most(plan(target, Vec::new()).await?, rate);
    show_plan(&plan, json);
    let started = Order::Rebalance(RebalanceOrder::Start { rate, shown: Some(plan.digest) });
    done(Orders::new(target)?.send("rebalance", started).await?)?;
    if !json {
        say!("started: `dfs admin rebalance status`");
    }
    if wait { self::wait(target).await } else { Ok(()) }
}

/// The plan, if each server takes no more than this many bytes per second.
fn at_most(plan: Plan, rate: Option<u64>) -> Plan {
    let most = plan.servers.iter().map(|server| server.receives.max(server.sends)).max().unwrap_or(0);
    let seconds = rate.map_or(0, |rate| most.div_ceil(rate.max(1)));
    Plan { seconds: plan.seconds.max(seconds), ..plan }
}

async fn order(target: &Target, what: RebalanceOrder, said: &str) -> Outcome {
    done(Orders::new(target)?.send("rebalance", Order::Rebalance(what)).await?)?;
    say_done!("{said}");
    Ok(())
}

async fn answer(target: &Target, what: RebalanceAsk) -> Outcome<RebalanceAnswer> {
    let config = target.client_config("admin")?;
    let limit = PLAN_LIMIT.max(config.op_timeout);
    match ask(&World::real(), &config.metaservers, Admin::Rebalance(what), limit).await? {
        AdminReply::Rebalance(answer) => Ok(answer),
        other => Err(Failure::new(format!("rebalance: unexpected answer {other:?}"))),
    }
}

/// What a start would do, if these servers had these weights.
pub(crate) async fn plan(target: &Target, weights: Vec<(ServerId, u32)>) -> Outcome<Plan> {
    match answer(target, RebalanceAsk::Plan { weights }).await? {
        RebalanceAnswer::Plan(plan) => Ok(plan),
        other @ RebalanceAnswer::Status(_) => Err(Failure::new(format!("plan: unexpected answer {other:?}"))),
    }
}

/// How far it is.
pub(crate) async fn status(target: &Target) -> Outcome<Rebalance> {
    match answer(target, RebalanceAsk::Status).await? {
        RebalanceAnswer::Status(status) => Ok(status),
        other @ RebalanceAnswer::Plan(_) => Err(Failure::new(format!("status: unexpected answer {other:?}"))),
    }
}

/// Nothing moves, and nothing is about to.
pub(crate) fn is_over(status: &Rebalance) -> bool {
    let ended = matches!(status.state, PlanState::None | PlanState::Done | PlanState::Cancelled);
    ended && !status.wanted && status.moving == 0
}

/// Waits until all that was to move has arrived.
pub(crate) async fn wait(target: &Target) -> Outcome {
    let (bar, mut failed) = (Progress::new(false), 0);
    loop {
        match status(target).await {
            Ok(status) => {
                failed = 0;
                let groups = format!("{} of {} groups, {}", status.groups_done, status.groups, word(&status));
                bar.set(status.bytes_done, status.bytes, &groups);
                if let Some(text) = &status.obstacle {
                    return Err(Failure::new(format!("rebalance: {text}")).advice("add servers, or change weights"));
                }
                if is_over(&status) {
                    bar.finish();
                    return match status.state {
                        PlanState::Cancelled => Err(Failure::new("rebalance: it was cancelled")),
                        _ => Ok(()),
                    };
                }
            }
            Err(failure) if failed >= LOOKS_FAILED_MAX => return Err(failure),
            Err(_) => failed += 1,
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn word(status: &Rebalance) -> &'static str {
    match status.state {
        _ if status.wanted && status.obstacle.is_some() => "a plan is due and cannot be carried out",
        _ if status.wanted => "a plan is being made",
        PlanState::None => "nothing was ever moved",
        PlanState::Running => "running",
        PlanState::Paused => "paused",
        PlanState::Done => "done",
        PlanState::Cancelled => "cancelled",
    }
}

/// A line for people who look at the whole cluster; `None`: nothing moves.
pub(crate) fn brief(status: &Rebalance) -> Option<String> {
    let left = status.left_s.map_or_else(String::new, |left| format!(", {} left", duration_text(left)));
    let text = format!("rebalance: {}, {} of {} groups{left}", word(status), status.groups_done, status.groups);
    let why = status.obstacle.as_ref().map_or_else(String::new, |text| format!(": {text}"));
    (!is_over(status)).then(|| format!("{text}, {} under way{why}", status.moving))
}

/// The same for programs.
pub(crate) fn brief_json(status: &Rebalance) -> serde_json::Value {
    serde_json::json!({
        "state": state_word(status.state), "over": is_over(status), "groups": status.groups,
        "groups_done": status.groups_done, "moving": status.moving, "left_s": status.left_s,
    })
}

fn servers_json(servers: &[ServerPlan]) -> serde_json::Value {
    let one = |one: &ServerPlan| {
        serde_json::json!({
            "server": one.server.0, "weight": one.weight, "capacity": one.capacity, "free": one.free,
            "used": one.used, "used_after": one.used_after, "receives": one.receives, "sends": one.sends,
            "places": one.places, "places_after": one.places_after,
        })
    };
    servers.iter().map(one).collect::<Vec<_>>().into()
}

fn say_servers(servers: &[ServerPlan]) {
    say!(
        "{:<6} {:>7} {:>12} {:>12} {:>12} {:>12} {:>17}",
        "SERVER",
        "WEIGHT",
        "USED",
        "AFTER",
        "RECEIVES",
        "SENDS",
        "PLACES"
    );
    for one in servers {
        say!(
            "{:<6} {:>7} {:>12} {:>12} {:>12} {:>12} {:>17}",
            one.server.to_string(),
            one.weight,
            size_text(one.used),
            size_text(one.used_after),
            size_text(one.receives),
            size_text(one.sends),
            format!("{} -> {}", one.places, one.places_after)
        );
    }
}

/// Shows a plan.
pub(crate) fn show_plan(plan: &Plan, json: bool) {
    if json {
        return say!(
            "{}",
            serde_json::json!({
                "layout": plan.layout.0, "groups": plan.groups, "bytes": plan.bytes, "exact": plan.exact,
                "seconds": plan.seconds, "servers": servers_json(&plan.servers),
            })
        );
    }
    say_servers(&plan.servers);
    if plan.groups == 0 {
        return say!("nothing is to be moved: every server has its share");
    }
    let about = if plan.exact { "" } else { "about " };
    say!(
        "{} placement groups move, {about}{} are copied, in about {} at the rate of repair while clients are there",
        plan.groups,
        size_text(plan.bytes),
        duration_text(plan.seconds)
    );
}

fn show_status(status: &Rebalance, json: bool) {
    if json {
        let groups = status.groups_moving.iter().map(|group| {
            let ids = |of: &[ServerId]| of.iter().map(|server| server.0).collect::<Vec<u32>>();
            serde_json::json!({
                "pg": group.pg.0, "was": ids(&group.was), "now": ids(&group.now), "waits_for": ids(&group.waits_for),
                "closed": group.closed,
            })
        });
        let away =
            status.away.iter().map(|(server, until)| serde_json::json!({"server": server.0, "until": until.secs}));
        return say!(
            "{}",
            serde_json::json!({
                "state": state_word(status.state), "wanted": status.wanted, "over": is_over(status),
                "started": status.started.secs, "ended": status.ended.map(|at| at.secs), "rate": status.rate,
                "groups": status.groups, "groups_done": status.groups_done, "bytes": status.bytes,
                "bytes_done": status.bytes_done, "speed": status.speed, "left_s": status.left_s,
                "obstacle": status.obstacle, "moving": status.moving, "groups_moving": groups.collect::<Vec<_>>(),
                "away": away.collect::<Vec<_>>(), "servers": servers_json(&status.servers),
            })
        );
    }
    say!("rebalance: {}", word(status));
    if status.state != PlanState::None {
        say!("started {} UTC", time_text(status.started));
        say!(
            "{} of {} groups, {} of {} copied, {}/s{}",
            status.groups_done,
            status.groups,
            size_text(status.bytes_done),
            size_text(status.bytes),
            size_text(status.speed),
            status.left_s.map_or_else(String::new, |left| format!(", {} left", duration_text(left)))
        );
        if let Some(rate) = status.rate {
            say!("a server takes {}/s at most", size_text(rate));
        }
        say_servers(&status.servers);
    }
    if status.moving > 0 {
        say!("{} groups are under way:", status.moving);
    }
    for group in status.groups_moving.iter().take(SHOWN_MAX) {
        let names = |of: &[ServerId]| of.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let waits =
            if group.waits_for.is_empty() { String::new() } else { format!(", waits for {}", names(&group.waits_for)) };
        say!("  {}: {} -> {}{waits}", group.pg, names(&group.was), names(&group.now));
    }
    for (server, until) in &status.away {
        say!("{server} is announced to be away until {} UTC", time_text(*until));
    }
}

fn state_word(state: PlanState) -> &'static str {
    match state {
        PlanState::None => "none",
        PlanState::Running => "running",
        PlanState::Paused => "paused",
        PlanState::Done => "done",
        PlanState::Cancelled => "cancelled",
    }
}

/// `45 s`, `12 min`, `3 h 20 min`.
fn duration_text(secs: u64) -> String {
    match secs {
        0..120 => format!("{secs} s"),
        120..7200 => format!("{} min", secs / 60),
        _ => format!("{} h {} min", secs / 3600, secs / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_read_and_what_is_none_is_refused() {
        assert_eq!(parse_weight("3=0"), Ok((ServerId(3), 0)));
        assert_eq!(parse_weight("s12=7"), Ok((ServerId(12), 7)));
        for wrong in ["3", "x=1", "3=", "3=-1"] {
            assert!(parse_weight(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn it_is_over_when_nothing_moves_and_nothing_is_about_to() {
        let done = Rebalance { state: PlanState::Done, ..Rebalance::default() };
        assert!(is_over(&Rebalance::default()) && is_over(&done));
        assert!(!is_over(&Rebalance { moving: 1, ..done.clone() }));
        assert!(!is_over(&Rebalance { wanted: true, ..done.clone() }));
        assert_eq!(brief(&done), None);
        let running =
            Rebalance { state: PlanState::Running, groups: 5, groups_done: 2, moving: 3, ..Rebalance::default() };
        let text = brief(&Rebalance { left_s: Some(130), ..running });
        assert_eq!(text.as_deref(), Some("rebalance: running, 2 of 5 groups, 2 min left, 3 under way"));
        assert!(!is_over(&Rebalance { state: PlanState::Paused, ..done }));
    }
}
