//! Which cluster a command talks to, and the connection to it.
//!
//! First of these that is there: `--meta`, `--config`, `DFS_META`, `DFS_CONFIG`, `/etc/dfs/dfs.toml`,
//! `~/.config/dfs/dfs.toml`.

use super::failure::{Failure, Outcome};
use super::remote::Remote;
use clap::Args;
use client_fuse::{Client, ClientConfig};
use common::auth::AdminKey;
use common::fault::{Fault, Kind};
use common::id::{ClusterId, InodeId};
use common::proto::meta::{Attr, Cred};
use common::world::World;
use serde::Deserialize;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A command makes what it wrote durable before it ends, and nobody looks at it sooner: no chunk is cut short because its
/// input was slow, so that equal data becomes equal chunks.
const COMMAND_WRITE_BEHIND: Duration = Duration::from_secs(24 * 3600);
/// After this long without an answer a person is told what is waited for.
const SAY_WAITING_AFTER: Duration = Duration::from_secs(4);

/// A command that was given up waits this long for the end of its session; then the metaservers end it themselves.
const GIVEN_UP_LIMIT: Duration = Duration::from_secs(2);

/// The options every command has.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Which cluster")]
pub(crate) struct Target {
    /// Metaservers as host:port, separated by commas (or set DFS_META)
    #[arg(long, global = true, value_delimiter = ',', value_name = "HOST:PORT")]
    pub(crate) meta: Vec<String>,
    /// Client configuration (or set DFS_CONFIG) [default: /etc/dfs/dfs.toml, then ~/.config/dfs/dfs.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Seconds until an operation gives up [default: 30]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) op_timeout: Option<u64>,
}

/// The client's configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientFile {
    /// Control-plane addresses of metaservers, `host:port`.
    meta: Vec<String>,
    /// The cluster they must belong to, 32 hex digits. Default: whichever answers.
    cluster: Option<String>,
    /// When an operation gives up, in seconds. Default 30.
    op_timeout_s: Option<u64>,
    /// Memory for unsaved data, chunk cache and read-ahead together, in MiB.
    memory_mib: Option<usize>,
    /// The file with the administrator's key; only `dfs admin` reads it. `DFS_ADMIN_KEY_FILE` wins over it.
    admin_key_file: Option<PathBuf>,
}

/// What the environment says; a value of its own so that tests need not change the process.
#[derive(Debug, Default)]
struct Environment {
    meta: Option<String>,
    config: Option<PathBuf>,
    home: Option<PathBuf>,
    admin_key_file: Option<PathBuf>,
}

impl Environment {
    fn read() -> Environment {
        let path = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        Environment {
            meta: std::env::var("DFS_META").ok().filter(|v| !v.is_empty()),
            config: path("DFS_CONFIG"),
            home: path("HOME"),
            admin_key_file: path("DFS_ADMIN_KEY_FILE"),
        }
    }
}

impl Target {
    /// The client configuration for this cluster.
    pub(crate) fn client_config(&self, purpose: &str) -> Outcome<ClientConfig> {
        let file = self.find(&Environment::read())?;
        let mut config = ClientConfig::new(file.meta);
        if let Some(hex) = file.cluster {
            let parsed: Result<ClusterId, _> = hex.parse();
            config.cluster = parsed.map_err(|e| Failure::at("read", "cluster id", e))?;
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        config.label = format!("{} {purpose}", host.trim_end());
        if let Some(seconds) = self.op_timeout.or(file.op_timeout_s) {
            config.op_timeout = Duration::from_secs(seconds);
        }
        if let Some(mib) = file.memory_mib {
            config.memory_bytes = mib << 20;
        }
        Ok(config)
    }

    /// The administrator's key, if one is configured.
    pub(crate) fn admin_key(&self) -> Outcome<Option<AdminKey>> {
        let environment = Environment::read();
        let file = match environment.admin_key_file.clone() {
            Some(path) => Some(path),
            None => self.find(&environment)?.admin_key_file,
        };
        let key = file.map(|path| AdminKey::read(&path)).transpose();
        key.map_err(|error| Failure::new(format!("the administrator's key: {error}")))
    }

    fn find(&self, environment: &Environment) -> Outcome<ClientFile> {
        if !self.meta.is_empty() {
            return with_addresses(self.meta.clone(), "--meta");
        }
        if let Some(path) = &self.config {
            return read_file(path);
        }
        if let Some(meta) = &environment.meta {
            return with_addresses(meta.split(',').map(str::to_owned).collect(), "DFS_META");
        }
        if let Some(path) = &environment.config {
            return read_file(path);
        }
        let mut usual = vec![PathBuf::from("/etc/dfs/dfs.toml")];
        usual.extend(environment.home.as_ref().map(|home| home.join(".config/dfs/dfs.toml")));
        match usual.iter().find(|path| path.exists()) {
            Some(path) => read_file(path),
            None => Err(Failure::new("no cluster is named").advice(
                "use --meta host:port,... or --config FILE, set DFS_META or DFS_CONFIG, or write /etc/dfs/dfs.toml",
            )),
        }
    }

    /// Connects, runs a command with the caller's identity, and closes the session. Returns the command's number of
    /// failed paths.
    pub(crate) async fn with_client(&self, command: impl AsyncFnOnce(&Shell) -> Outcome<u64>) -> Outcome<u64> {
        let config = ClientConfig { write_behind: COMMAND_WRITE_BEHIND, ..self.client_config("command line")? };
        let servers = config.metaservers.join(",");
        let connected = connect(config).await;
        let client = connected.map_err(|fault| cannot_connect(&servers, &fault))?;
        let shell = Shell { client, cred: own_cred() };
        let done = command(&shell).await;
        let close =
            async { shell.client.shutdown().await.map_err(|fault| Failure::fault("close", "the session", &fault)) };
        match done {
            Ok(0) => close.await.map(|()| 0),
            Ok(failures) => {
                let _ = close.await; // each was told already, and the end of the session fails for the same reasons
                Ok(failures)
            }
            Err(failure) => {
                let _ = tokio::time::timeout(GIVEN_UP_LIMIT, close).await; // nothing unsaved is wanted any more
                Err(failure)
            }
        }
    }
}

/// Connects; says so if that takes long.
async fn connect(config: ClientConfig) -> Result<Client, Fault> {
    let (servers, limit) = (config.metaservers.join(","), config.op_timeout);
    let mut connecting = std::pin::pin!(Client::connect(config, World::real()));
    tokio::select! {
        connected = &mut connecting => return connected,
        () = tokio::time::sleep(SAY_WAITING_AFTER) => {}
    }
    // A program that calls this wants one line, at the end.
    if std::io::stderr().is_terminal() {
        eprintln!("dfs: no answer from {servers} yet; trying for {} s (--op-timeout)", limit.as_secs());
    }
    connecting.await
}

/// The failure to reach a cluster.
pub(crate) fn cannot_connect(servers: &str, fault: &Fault) -> Failure {
    let failure = Failure::fault("connect to", servers, fault);
    match fault.kind {
        Kind::Unavailable | Kind::NotLeader | Kind::Busy | Kind::Unsure => {
            failure.advice("check the addresses, and that a majority of the metaservers run")
        }
        _ => failure,
    }
}

/// What a command works with.
#[derive(Clone)]
pub(crate) struct Shell {
    /// The connection.
    pub(crate) client: Client,
    /// Who runs the command.
    pub(crate) cred: Cred,
}

impl Shell {
    /// Attributes of a path's end; `doing` is for the error.
    pub(crate) async fn walk(&self, doing: &str, path: &Remote, follow: bool) -> Outcome<Attr> {
        let found = self.client.walk(&self.cred, InodeId::ROOT, path.as_bytes(), follow).await;
        found.map(|(attr, _)| attr).map_err(|fault| Failure::fault(doing, path, &fault))
    }
}

/// The user who runs this program.
fn own_cred() -> Cred {
    let groups = nix::unistd::getgroups().unwrap_or_default();
    Cred {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
    }
}

fn with_addresses(addresses: Vec<String>, source: &str) -> Outcome<ClientFile> {
    let meta: Vec<String> = addresses.iter().map(|a| a.trim().to_owned()).filter(|a| !a.is_empty()).collect();
    for address in &meta {
        let port = address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(1..))) {
            return Err(Failure::new(format!("{source}: {address} is not host:port")));
        }
    }
    if meta.is_empty() {
        return Err(Failure::new(format!("{source}: no address")));
    }
    Ok(ClientFile { meta, ..ClientFile::default() })
}

fn read_file(path: &Path) -> Outcome<ClientFile> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::at("read", path.display(), e))?;
    let file: ClientFile = toml::from_str(&text).map_err(|e| {
        let line = e.span().map(|span| text[..span.start].lines().count().max(1));
        let at = line.map_or_else(String::new, |line| format!("line {line}: "));
        Failure::at("read", path.display(), format!("{at}{}", e.message()))
    })?;
    let checked = with_addresses(file.meta.clone(), &path.display().to_string())?;
    Ok(ClientFile { meta: checked.meta, ..file })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(meta: &str) -> Environment {
        Environment { meta: Some(meta.into()), ..Environment::default() }
    }

    #[test]
    fn flags_win_over_the_environment() {
        let flags = Target { meta: vec!["a:1".into(), "b:2".into()], ..Target::default() };
        assert_eq!(flags.find(&environment("c:3")).unwrap().meta, ["a:1", "b:2"]);
        assert_eq!(Target::default().find(&environment("c:3, d:4")).unwrap().meta, ["c:3", "d:4"]);
    }

    #[test]
    fn a_config_flag_wins_over_dfs_meta_and_unknown_keys_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dfs.toml");
        std::fs::write(&path, "meta = [\"x:9\"]\n").unwrap();
        let target = Target { config: Some(path.clone()), ..Target::default() };
        assert_eq!(target.find(&environment("c:3")).unwrap().meta, ["x:9"]);
        std::fs::write(&path, "meta = [\"x:9\"]\nmeat = 1\n").unwrap();
        let line = target.find(&Environment::default()).unwrap_err().to_string();
        assert!(line.contains("meat") && line.contains("dfs.toml"), "{line}");
    }

    #[test]
    fn addresses_without_a_port_are_refused() {
        for bad in ["host", "host:", "host:x", "host:0", ""] {
            assert!(with_addresses(vec![bad.into()], "--meta").is_err(), "{bad}");
        }
        assert!(with_addresses(vec!["[::1]:80".into()], "--meta").is_ok());
    }
}
