//! `dfs admin settings`: what the whole cluster goes by, in one place.

use super::admin::{Orders, cluster_map, done};
use super::connect::Target;
use super::failure::{Failure, Outcome};
use super::format::size_text;
use super::keep;
use clap::Subcommand;
use common::layout::ClusterMap;
use common::proto::admin::Order;
use common::proto::keep::{KeepChange, KeepSettings};
use common::proto::trash::{SettingsChange, TrashNow};

/// What can be done with settings.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum SettingsCommand {
    /// Show all settings, or one
    Get {
        /// Which
        key: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Change settings, all of those named or none. Rates are in MiB per second
    Set {
        /// Such as grace_s=60 scrub_paused=true
        #[arg(required = true, value_name = "KEY=VALUE")]
        changes: Vec<String>,
        /// Also if the trash holds what a shorter undelete window lets go for good
        #[arg(long)]
        yes: bool,
    },
}

/// One setting: name, what it is, what it says now.
type Row = (&'static str, &'static str, serde_json::Value);

fn rows(map: &ClusterMap, keep: &KeepSettings, trash: &TrashNow) -> Vec<Row> {
    let mib = |rate: u64| (rate >> 20).into();
    vec![
        ("replicas", "copies of each chunk, by default; fixed", map.replicas.into()),
        ("min_replicas", "durable copies below which a write is not acknowledged", map.min_replicas.into()),
        (
            "repair_busy_mib_s",
            "MiB/s that one server re-makes while clients use it; four times as many of what has one copy left",
            mib(keep.repair_busy_rate),
        ),
        ("repair_idle_mib_s", "MiB/s that one server re-makes while no client does", mib(keep.repair_idle_rate)),
        ("grace_s", "seconds that an unreferenced chunk stays after it was put", keep.grace_s.into()),
        ("scrub_period_s", "seconds within which every stored byte is verified", keep.scrub_period_s.into()),
        ("scrub_mib_s", "MiB/s that one server verifies, at most", mib(keep.scrub_rate)),
        ("scrub_paused", "no stored byte is verified", keep.scrub_paused.into()),
        ("delete_paused", "nothing is deleted", keep.delete_paused.into()),
        ("undelete_window_s", "seconds for which what was removed can be brought back", trash.window_s.into()),
    ]
}

fn unknown(key: &str) -> Failure {
    Failure::new(format!("settings: there is no {key}")).advice("`dfs admin settings get` shows all")
}

/// Runs `dfs admin settings`.
pub(crate) async fn run(target: &Target, command: SettingsCommand) -> Outcome {
    match command {
        SettingsCommand::Get { key, json } => {
            let (map, settings) = (cluster_map(target).await?, keep::status(target).await?.settings);
            let mut rows = rows(&map, &settings, &keep::trash(target).await?);
            if let Some(key) = &key {
                rows.retain(|(name, ..)| name == key);
                if rows.is_empty() {
                    return Err(unknown(key));
                }
            }
            if json {
                let all: serde_json::Map<_, _> =
                    rows.into_iter().map(|(name, _, value)| (name.to_owned(), value)).collect();
                say!("{}", serde_json::Value::from(all));
            } else {
                rows.iter().for_each(|(name, what, value)| say!("{name:<18} {:>10}  {what}", value.to_string()));
            }
            Ok(())
        }
        SettingsCommand::Set { changes, yes } => {
            let change = parse(&changes)?;
            if let (Some(window), false) = (change.undelete_window_s, yes) {
                refuse_loss(&keep::trash(target).await?, window)?;
            }
            done(Orders::new(target)?.send("set", Order::Change(change)).await?)?;
            say_done!("set: {}", changes.join(" "));
            Ok(())
        }
    }
}

/// A shorter window goes for what is in the trash already.
fn refuse_loss(trash: &TrashNow, window_s: u64) -> Outcome {
    if window_s >= trash.window_s || trash.entries == 0 {
        return Ok(());
    }
    let holds = format!("the trash holds {} entries, {}", trash.entries, size_text(trash.bytes));
    let goes = format!("what was removed more than {window_s} s ago would go for good");
    Err(Failure::new(format!("settings: {holds}: {goes}: nothing was done yet: say --yes if you mean it")))
}

fn parse(changes: &[String]) -> Outcome<SettingsChange> {
    let (mut all, mut keep) = (SettingsChange::default(), KeepChange::default());
    let mut seen = std::collections::BTreeSet::new();
    for change in changes {
        let Some((key, value)) = change.split_once('=') else {
            return Err(Failure::new(format!("settings: {change}: write KEY=VALUE")));
        };
        if !seen.insert(key) {
            return Err(Failure::new(format!("settings: {key} is named twice")));
        }
        let number = || value.parse().map_err(|_| Failure::at(format!("settings: {key}"), value, "it is no number"));
        let rate = || number().map(|mib: u64| mib.saturating_mul(1 << 20));
        let switch = || value.parse().map_err(|_| Failure::at(format!("settings: {key}"), value, "say true or false"));
        match key {
            "min_replicas" => all.min_replicas = Some(u8::try_from(number()?).unwrap_or(u8::MAX)),
            "repair_busy_mib_s" => keep.repair_busy_rate = Some(rate()?),
            "repair_idle_mib_s" => keep.repair_idle_rate = Some(rate()?),
            "grace_s" => keep.grace_s = Some(number()?),
            "scrub_period_s" => keep.scrub_period_s = Some(number()?),
            "scrub_mib_s" => keep.scrub_rate = Some(rate()?),
            "scrub_paused" => keep.scrub_paused = Some(switch()?),
            "delete_paused" => keep.delete_paused = Some(switch()?),
            "undelete_window_s" => all.undelete_window_s = Some(number()?),
            "replicas" => return Err(Failure::new("settings: replicas is fixed when a cluster is made")),
            _ => return Err(unknown(key)),
        }
    }
    let all = SettingsChange { keep, ..all };
    all.check().map_err(|text| Failure::new(format!("settings: {text}")))?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &str) -> Result<SettingsChange, String> {
        let changes: Vec<String> = words.split(' ').map(str::to_owned).collect();
        parse(&changes).map_err(|failure| failure.to_string())
    }

    #[test]
    fn settings_are_read_with_their_units_and_what_makes_no_sense_is_refused_by_name() {
        let words = "grace_s=0 scrub_mib_s=3 delete_paused=true min_replicas=1 undelete_window_s=0";
        let keep = KeepChange {
            grace_s: Some(0),
            scrub_rate: Some(3 << 20),
            delete_paused: Some(true),
            ..KeepChange::default()
        };
        let wanted = SettingsChange { keep, min_replicas: Some(1), undelete_window_s: Some(0) };
        assert_eq!(parse_words(words), Ok(wanted));
        for (words, names) in [
            ("grace=5", "there is no grace"),
            ("grace_s", "KEY=VALUE"),
            ("grace_s=x", "grace_s"),
            ("grace_s=1 grace_s=2", "twice"),
            ("grace_s=99999999", "grace_s = 99999999: must be from 0"),
            ("scrub_mib_s=0", "scrub_rate = 0: must be from"),
            ("repair_busy_mib_s=18446744073709551615", "repair_busy_rate"),
            ("scrub_period_s=1", "scrub_period_s"),
            ("delete_paused=1", "say true or false"),
            ("replicas=2", "fixed"),
            ("undelete_window_s=99999999", "undelete_window_s = 99999999: must be from 0"),
        ] {
            let error = parse_words(words).unwrap_err();
            assert!(error.contains(names), "{words}: {error}");
        }
    }
}
