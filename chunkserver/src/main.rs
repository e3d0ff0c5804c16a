//! `chunkserver --config FILE`: one storage server.

use anyhow::{Context, anyhow};
use chunkserver::{Config, start};
use clap::Parser;
use common::config::{abort_on_panic, load, show, start_logging};
use common::world::World;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

/// Stores chunks of a dfs cluster on this machine's disks.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// Configuration file (TOML); its keys are described in chunkserver/src/config.rs
    #[arg(long)]
    config: Option<PathBuf>,
    /// Overrides a key of the configuration
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

fn main() -> ExitCode {
    let Err(error) = run(&Flags::parse()) else { return ExitCode::SUCCESS };
    eprintln!("chunkserver: {error:#}");
    ExitCode::FAILURE
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    let pair = |text: &String| text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    let set = flags.set.iter().map(|text| pair(text).with_context(|| format!("--set {text}: write KEY=VALUE")));
    let set = set.collect::<anyhow::Result<Vec<_>>>()?;
    let config: Config = load(flags.config.as_deref(), "DFS_CHUNKSERVER_", &set).map_err(|e| anyhow!("{e}"))?;
    start_logging(&config.log);
    abort_on_panic();
    info!(config = show(&config), "chunkserver {}", env!("CARGO_PKG_VERSION"));
    let runtime = common::task::runtime(config.threads).context("start threads")?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let server = start(config, World::real()).await.map_err(|e| anyhow!("{e}"))?;
    let outcome = tokio::select! {
        error = server.failed() => Err(anyhow!("{error}")),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    info!("stopping");
    if !server.shutdown().await {
        error!("stopped with requests under way");
        // A thread waits for a disk that does not answer: the runtime would wait for it.
        let failed = outcome.inspect_err(|error| eprintln!("chunkserver: {error:#}")).is_err();
        std::process::exit(i32::from(failed));
    }
    outcome
}
