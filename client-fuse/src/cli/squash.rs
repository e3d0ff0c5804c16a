//! `dfs admin root-squash`: who root of other machines is.

use super::admin::Orders;
use super::connect::Target;
use super::failure::{Failure, Outcome};
use super::is_json;
use clap::{Args, Subcommand};
use common::proto::admin::{Order, Ordered};
use common::proto::squash::{NOBODY, Squash, SquashAsk};
use std::net::IpAddr;

/// What can be said about it.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum SquashCommand {
    /// Is it on, and who stays root
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Root of a client's machine is nobody from now on, but on the machines that are allowed
    On(OnArgs),
    /// Root is root everywhere (the default)
    Off,
}

/// `dfs admin root-squash on`.
#[derive(Args, Clone, Debug)]
pub(crate) struct OnArgs {
    /// The user that root becomes
    #[arg(long, default_value_t = NOBODY, value_parser = clap::value_parser!(u32).range(1..))]
    uid: u32,
    /// The group that group 0 becomes
    #[arg(long, default_value_t = NOBODY, value_parser = clap::value_parser!(u32).range(1..))]
    gid: u32,
    /// A machine whose root stays root; may be given many times. What is not named again is not allowed any more
    #[arg(long = "allow", value_name = "ADDRESS")]
    allowed: Vec<IpAddr>,
}

/// Runs `dfs admin root-squash ...`.
pub(crate) async fn run(target: &Target, command: SquashCommand) -> Outcome {
    let (ask, json) = match command {
        SquashCommand::Show { json } => (SquashAsk::Show, json),
        SquashCommand::On(OnArgs { uid, gid, allowed }) => (SquashAsk::Set(Some(Squash { uid, gid, allowed })), false),
        SquashCommand::Off => (SquashAsk::Set(None), false),
    };
    match Orders::new(target)?.send("root-squash", Order::RootSquash(ask)).await? {
        Ordered::RootSquash(now) if json || is_json() => say!("{}", json_of(now.as_ref())),
        Ordered::RootSquash(None) => say!("root squash is off: root of every client is root"),
        Ordered::RootSquash(Some(now)) => {
            let names: Vec<String> = now.allowed.iter().map(ToString::to_string).collect();
            let but = if names.is_empty() { String::new() } else { format!(", but on {}", names.join(" ")) };
            say!("root squash is on: root becomes {}:{}{but}", now.uid, now.gid);
        }
        other => return Err(Failure::new(format!("root-squash: unexpected answer {other:?}"))),
    }
    Ok(())
}

fn json_of(now: Option<&Squash>) -> serde_json::Value {
    serde_json::json!({
        "on": now.is_some(),
        "uid": now.map(|squash| squash.uid),
        "gid": now.map(|squash| squash.gid),
        "allowed": now.map(|squash| squash.allowed.iter().map(ToString::to_string).collect::<Vec<_>>()),
    })
}
