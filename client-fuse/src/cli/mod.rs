//! The `dfs` command: one file for each thing it does, all front ends of one `Client`.
//!
//! Exit codes: 0 all done, 1 something failed (one line on standard error for each path), 2 the command line is wrong.
//! With several paths the others are still done when one fails.

/// A line on standard output. Ends the program quietly when nobody reads any more (`dfs ls | head`).
macro_rules! say {
    ($($words:tt)*) => {
        $crate::cli::say(format_args!($($words)*))
    };
}

/// What a command has done, in a line; with `--json` as `{"done": "..."}`.
macro_rules! say_done {
    ($($words:tt)*) => {
        $crate::cli::say_done(&format!($($words)*))
    };
}

mod admin;
mod backup;
mod change;
mod connect;
mod copy;
mod dev;
mod failure;
mod format;
mod fsck;
mod get;
mod health;
mod helper;
mod keep;
mod list;
mod manifest;
mod meta;
mod mount;
mod mount_status;
pub(crate) mod mounts;
mod progress;
mod put;
mod rebalance;
mod remote;
mod remove;
mod restore;
mod servers;
mod settings;
pub(crate) mod show;
mod squash;
mod systemd;
mod trash;
mod umount;

use clap::{CommandFactory, Parser, Subcommand};
use connect::Target;
use failure::Outcome;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// dfs: a distributed file system. Put, get and manage files; mount it; run a cluster.
#[derive(Debug, Parser)]
#[command(name = "dfs", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Copy local files into dfs (`-`: standard input)
    Put(put::PutArgs),
    /// Copy files out of dfs (`-`: standard output)
    Get(get::GetArgs),
    /// List directories
    Ls(list::LsArgs),
    /// Write files to standard output
    Cat(get::CatArgs),
    /// Remove files, with -r directories
    Rm(remove::RmArgs),
    /// Bring back what was removed
    Undelete(trash::UndeleteArgs),
    /// What was removed and can be brought back
    #[command(subcommand)]
    Trash(trash::TrashCommand),
    /// Move or rename
    Mv(change::MvArgs),
    /// Make directories
    Mkdir(change::MkdirArgs),
    /// Make hard links, with -s symbolic links
    Ln(change::LnArgs),
    /// Show all attributes
    Stat(show::StatArgs),
    /// Space used by files and directories
    Du(list::DuArgs),
    /// Space of the whole file system
    Df(show::DfArgs),
    /// Show a directory tree
    Tree(list::TreeArgs),
    /// Change permission bits
    Chmod(change::ChmodArgs),
    /// Change owner and group
    Chown(change::ChownArgs),
    /// Mount the file system; with `status`: what a mount is doing
    Mount(mount::MountArgs),
    /// Unmount it and wait until everything is saved
    Umount(umount::UmountArgs),
    /// Administer a cluster
    Admin {
        /// What it says is JSON
        #[arg(long, global = true)]
        json: bool,
        #[command(subcommand)]
        command: admin::AdminCommand,
    },
    /// A whole cluster of real processes on this machine
    #[command(subcommand)]
    Dev(dev::DevCommand),
}

/// See `say!`.
fn say(line: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_fmt(line).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        if error.kind() != std::io::ErrorKind::BrokenPipe {
            eprintln!("dfs: write standard output: {error}");
        }
        std::process::exit(1);
    }
}

/// `dfs admin --json` was asked for.
static AS_JSON: AtomicBool = AtomicBool::new(false);

/// Whether what is said is to be JSON.
fn is_json() -> bool {
    AS_JSON.load(Ordering::Relaxed)
}

/// See `say_done!`.
fn say_done(line: &str) {
    match is_json() {
        true => say!("{}", serde_json::json!({ "done": line })),
        false => say!("{line}"),
    }
}

/// Runs the program.
pub(crate) fn run() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let known = Cli::command();
    let asked = helper::asked(&args, |word| word == "help" || known.find_subcommand(word).is_some());
    let result = match asked {
        Some(helper::Asked::Remount(point, options)) => {
            helper::remount(point.as_ref(), &options).map(|()| ExitCode::SUCCESS)
        }
        Some(helper::Asked::Mount(line)) => dispatch(Cli::parse_from(line)),
        None => dispatch(Cli::parse_from(args)),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("dfs: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> Outcome<ExitCode> {
    if let Command::Mount(args) = cli.command {
        return mount::run(&cli.target, args).map(|()| ExitCode::SUCCESS); // makes its own runtime
    }
    let runtime = common::task::runtime(0).map_err(|e| failure::Failure::at("start", "threads", e))?;
    runtime.block_on(dispatch_async(cli))
}

async fn dispatch_async(cli: Cli) -> Outcome<ExitCode> {
    let target = &cli.target;
    let failures = match cli.command {
        Command::Put(args) => target.with_client(async move |shell| put::run(shell, args).await).await?,
        Command::Get(args) => target.with_client(async move |shell| get::run(shell, args).await).await?,
        Command::Ls(args) => target.with_client(async move |shell| list::ls(shell, args).await).await?,
        Command::Cat(args) => target.with_client(async move |shell| get::cat(shell, args).await).await?,
        Command::Rm(args) => target.with_client(async move |shell| remove::run(shell, args).await).await?,
        Command::Undelete(args) => target.with_client(async move |shell| trash::undelete(shell, args).await).await?,
        Command::Trash(trash::TrashCommand::Ls { path, json }) => {
            target.with_client(async move |shell| trash::ls(shell, path, json).await).await?
        }
        Command::Trash(trash::TrashCommand::Empty { yes }) => trash::empty(target, yes).await.map(|()| 0)?,
        Command::Mv(args) => target.with_client(async move |shell| change::mv(shell, args).await).await?,
        Command::Mkdir(args) => target.with_client(async move |shell| change::mkdir(shell, args).await).await?,
        Command::Ln(args) => target.with_client(async move |shell| change::ln(shell, args).await).await?,
        Command::Stat(args) => target.with_client(async move |shell| show::stat(shell, args).await).await?,
        Command::Du(args) => target.with_client(async move |shell| list::du(shell, args).await).await?,
        Command::Df(args) => target.with_client(async move |shell| show::df(shell, args).await).await?,
        Command::Tree(args) => target.with_client(async move |shell| list::tree(shell, args).await).await?,
        Command::Chmod(args) => target.with_client(async move |shell| change::chmod(shell, args).await).await?,
        Command::Chown(args) => target.with_client(async move |shell| change::chown(shell, args).await).await?,
        Command::Mount(_) => unreachable!("handled before the runtime was made"),
        Command::Umount(args) => umount::run(args).await.map(|()| 0)?,
        Command::Admin { json, command } => {
            AS_JSON.store(json, Ordering::Relaxed);
            match admin::goes_on(&command) {
                None => admin::run(target, command).await?,
                Some(text) => {
                    let interrupted = copy::interrupted()?;
                    tokio::select! {
                        biased;
                        () = interrupted => return Err(failure::Failure::new("interrupted").advice(text)),
                        ended = admin::run(target, command) => ended?,
                    }
                }
            }
        }
        Command::Dev(command) => dev::run(command).await.map(|()| 0)?,
    };
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_wrong_command_line_is_told_apart_from_a_failed_command() {
        let error = Cli::try_parse_from(["dfs", "put"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(Cli::try_parse_from(["dfs", "ls", "--meta", "a:1,b:2", "/x"]).is_ok());
    }
}
