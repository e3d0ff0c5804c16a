//! `dfs admin meta`: the metaservers, who of them leads, who comes and goes; backup and restore of what they hold.

use super::admin::{Orders, cluster_status, done, members};
use super::connect::Target;
use super::failure::{Failure, Outcome};
use super::health::{Seen, metaserver_json, status_text};
use super::{backup, restore};
use clap::Subcommand;
use common::id::NodeId;
use common::proto::admin::{Order, Ordered};
use common::proto::backup::{MemberChange, Members};
use std::path::PathBuf;
use std::time::Duration;

/// Between two looks for the new leader.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks for the new leader.
const TRANSFER_LOOKS: u32 = 20;
/// How long a change of the metaservers may take: a leader may hand over first, a learner may have to catch up.
const CHANGE_LIMIT: Duration = Duration::from_secs(120);

/// What can be done with metaservers.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum MetaCommand {
    /// All metaservers and how far they are
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Let another metaserver lead
    TransferLeader {
        /// Its node id
        to: u64,
    },
    /// Add a metaserver that runs and is empty: it gets the data, and votes once it is promoted
    Add {
        /// Its address, as the others reach it
        #[arg(value_name = "HOST:PORT")]
        addr: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a metaserver that was added vote; waits until it has caught up
    Promote {
        /// Its node id
        node: u64,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a metaserver out for good; one that leads hands that over first
    Remove {
        /// Its node id
        node: u64,
        /// Really
        #[arg(long)]
        yes: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Write the metadata, as of now, into a new directory. It names every file; the data of the files stays where it is
    Backup {
        /// The directory; must not be there
        dir: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Begin a new life of a cluster from a backup, with the empty metaservers named by --meta (1, 3 or 5). Without --yes
    /// the backup is checked and the plan is shown
    Restore {
        /// The directory of the backup
        dir: PathBuf,
        /// Really
        #[arg(long)]
        yes: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// See [`super::admin::goes_on`].
pub(crate) fn goes_on(command: &MetaCommand) -> Option<&'static str> {
    match command {
        MetaCommand::Add { .. } | MetaCommand::Promote { .. } | MetaCommand::Remove { .. } => {
            Some("the change may go on: see `dfs admin meta list`, and run it again if it did not happen")
        }
        MetaCommand::List { .. }
        | MetaCommand::TransferLeader { .. }
        | MetaCommand::Backup { .. }
        | MetaCommand::Restore { .. } => None,
    }
}

/// Runs `dfs admin meta`.
pub(crate) async fn run(target: &Target, command: MetaCommand) -> Outcome {
    match command {
        MetaCommand::List { json } => list(target, json).await,
        MetaCommand::TransferLeader { to } => transfer(target, to).await,
        MetaCommand::Add { addr, json } => {
            let (node, members) = change(target, MemberChange::Add { addr }).await?;
            told(&members, json, &format!("{node} learns; `dfs admin meta promote {}` lets it vote", node.0));
            Ok(())
        }
        MetaCommand::Promote { node, json } => {
            let (node, members) = change(target, MemberChange::Promote { node: NodeId(node) }).await?;
            told(&members, json, &format!("{node} votes"));
            Ok(())
        }
        MetaCommand::Remove { node, yes: false, json } => {
            let left: Vec<NodeId> = members(target).await?.voters.into_iter().filter(|other| other.0 != node).collect();
            let words = || left.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            let ids = || left.iter().map(|node| node.0).collect::<Vec<_>>();
            match json || super::is_json() {
                true => say!("{}", serde_json::json!({ "would_remove": node, "would_vote": ids() })),
                false => say!("m{node} would be taken out for good; these would vote: {}", words()),
            }
            Err(Failure::new(format!("remove m{node}: nothing was done yet: say --yes if you mean it")))
        }
        MetaCommand::Remove { node, yes: true, json } => {
            let (node, members) = change(target, MemberChange::Remove { node: NodeId(node) }).await?;
            told(&members, json, &format!("{node} is out: stop its process; its data_dir is of no use any more"));
            Ok(())
        }
        MetaCommand::Backup { dir, json } => backup::run(&Orders::new(target)?, &dir, json).await,
        MetaCommand::Restore { dir, yes, json } => restore::run(target, &dir, yes, json).await,
    }
}

async fn list(target: &Target, json: bool) -> Outcome {
    let (status, members) = (cluster_status(target).await?, members(target).await?);
    match json {
        true => say!("{}", serde_json::Value::from(metaserver_json(&status, &members))),
        false => {
            let text = status_text(Seen::only(&status, &members));
            let table = text.split("\n\n").find(|part| part.starts_with("META")).unwrap_or_default();
            say!("{}", table.trim_end());
        }
    }
    Ok(())
}

async fn transfer(target: &Target, to: u64) -> Outcome {
    let orders = Orders::new(target)?;
    done(orders.send("transfer", Order::TransferLeader { to: NodeId(to) }).await?)?;
    for _ in 0..TRANSFER_LOOKS {
        if cluster_status(target).await.is_ok_and(|status| status.leader.node == NodeId(to)) {
            say_done!("m{to} leads");
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Err(Failure::new(format!("m{to} was asked to lead, and does not yet")).advice("see `dfs admin meta list`"))
}

async fn change(target: &Target, change: MemberChange) -> Outcome<(NodeId, Members)> {
    let orders = Orders::new(target)?;
    let link = orders.link(None, CHANGE_LIMIT);
    let answer = orders.send_on(&link, "change", "the metaservers", Order::Members(change)).await;
    link.close().await;
    match answer? {
        Ordered::Members { node, members } => Ok((node, members)),
        other => Err(Failure::new(format!("meta: unexpected answer {other:?}"))),
    }
}

/// Tells how the group is now.
fn told(members: &Members, json: bool, line: &str) {
    let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect::<Vec<_>>();
    if json {
        let told = serde_json::json!({"voters": ids(&members.voters), "learners": ids(&members.learners)});
        return say!("{told}");
    }
    say!("{line}");
    if members.voters.len().is_multiple_of(2) {
        say!("{} metaservers vote: one more or one less stands as many failures", members.voters.len());
    }
}
