//! `metaserver --config FILE`: starts, serves until SIGTERM or SIGINT, stops.

use anyhow::{Context, anyhow};
use clap::Parser;
use metaserver::config::{Config, ENV_PREFIX};
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// A metadata server of a dfs cluster.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The configuration file; the keys are in `metaserver/src/config.rs`.
    #[arg(long)]
    config: PathBuf,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("metaserver: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let config: Config = common::config::load(Some(&args.config), ENV_PREFIX, &[]).map_err(|e| anyhow!("{e}"))?;
    common::config::abort_on_panic();
    common::config::start_logging(&config.log_level);
    tracing::info!(config = common::config::show(&config), "starting");
    let runtime = common::task::runtime(config.threads).context("start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let server = metaserver::start(config, common::world::World::real()).await.map_err(|e| anyhow!("{e}"))?;
        let failed = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            why = server.failure() => Some(why),
        };
        server.shutdown().await;
        match failed {
            None => Ok(()),
            Some(why) => Err(anyhow!(why)),
        }
    })
}
