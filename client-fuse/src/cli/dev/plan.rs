//! What a development cluster consists of: chosen once, kept in `DIR/dev.toml`.
//!
//! Layout of `DIR`: `dev.toml` (this plan), `dfs.toml` (for clients), `admin.key` (the administrator's), `conf/NAME.toml`, `run/NAME.pid`,
//! `log/NAME.log`, `data/NAME/`. Ports are on 127.0.0.1 and stay the same for ever, so a restart is a real restart.
//! Configuration files are written when they are missing and then left alone: they may be edited by hand.

use super::process::{Process, write_atomically};
use crate::cli::admin::Shape;
use crate::cli::failure::{Failure, Outcome};
use common::net::free_port;
use common::world::World;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The most servers of one kind: this is one machine.
pub(crate) const SERVERS_MAX: u32 = 64;
/// Placement groups of a development cluster.
const PG_COUNT: u32 = 256;
/// Free space a chunkserver keeps for itself, in bytes: small, this is somebody's laptop.
const RESERVE_BYTES: u64 = 256 << 20;
/// And a metaserver: less, so that a full disk stops the data before the metadata.
const META_RESERVE_BYTES: u64 = 128 << 20;

/// What was asked for on the command line.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Where to mount; `None`: as before.
    pub(crate) mount: Option<PathBuf>,
    /// How many metaservers; `None`: as before, else 3.
    pub(crate) metaservers: Option<u32>,
    /// How many chunkservers; `None`: as before, else 3.
    pub(crate) chunkservers: Option<u32>,
    /// Data directories of each chunkserver.
    pub(crate) chunk_dirs: u32,
}

/// A server and its port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Member {
    /// `meta-1`, `chunk-2`.
    pub(crate) name: String,
    /// On 127.0.0.1.
    pub(crate) port: u16,
}

/// The whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// Placement groups.
    pub(crate) pg_count: u32,
    /// Default replica count.
    pub(crate) replicas: u8,
    /// Durable copies below which a write is not acknowledged.
    pub(crate) min_replicas: u8,
    /// Data directories of each chunkserver.
    pub(crate) chunk_dirs: u32,
    /// Where it is mounted, absolute.
    pub(crate) mount: Option<PathBuf>,
    /// Numbered from 1: the number is the node id.
    pub(crate) metaservers: Vec<Member>,
    /// Numbered from 1.
    pub(crate) chunkservers: Vec<Member>,
}

impl Plan {
    /// What the cluster is formatted with.
    pub(crate) fn shape(&self) -> Shape {
        Shape { pg_count: self.pg_count, replicas: self.replicas, min_replicas: self.min_replicas }
    }
}

/// A plan and the directory it lives in.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    /// Absolute.
    pub(crate) dir: PathBuf,
    /// What is in it.
    pub(crate) plan: Plan,
}

impl Cluster {
    /// Reads `DIR/dev.toml`.
    pub(crate) fn load(dir: &Path) -> Outcome<Cluster> {
        let path = dir.join("dev.toml");
        let text = fs::read_to_string(&path).map_err(|e| {
            Failure::at("read", path.display(), e).advice("make the cluster with `dfs dev up --dir DIR`")
        })?;
        let plan = toml::from_str(&text).map_err(|e| Failure::at("read", path.display(), e.message()))?;
        let dir = dir.canonicalize().map_err(|e| Failure::at("find", dir.display(), e))?;
        Ok(Cluster { dir, plan })
    }

    /// Reads the plan, or makes a new one, extended by what was asked for; writes it and every missing file.
    pub(crate) fn prepare(dir: &Path, wanted: &Wanted) -> Outcome<Cluster> {
        for sub in ["conf", "run", "log", "data"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).map_err(|e| Failure::at("make directory", path.display(), e))?;
        }
        let old = if dir.join("dev.toml").exists() { Some(Cluster::load(dir)?.plan) } else { None };
        let plan = extend(old, wanted)?;
        let dir = dir.canonicalize().map_err(|e| Failure::at("find", dir.display(), e))?;
        let cluster = Cluster { dir, plan };
        let text = toml::to_string(&cluster.plan).map_err(|e| Failure::at("write", "dev.toml", e))?;
        write_atomically(&cluster.dir.join("dev.toml"), &text)?;
        cluster.write_configs()?;
        Ok(cluster)
    }

    /// Control-plane addresses of the metaservers, in order of node id.
    pub(crate) fn meta_addresses(&self) -> Vec<String> {
        self.plan.metaservers.iter().map(|m| format!("127.0.0.1:{}", m.port)).collect()
    }

    /// Everything that should run, in the order it is started.
    pub(crate) fn processes(&self) -> Outcome<Vec<Process>> {
        let mut all: Vec<Process> = Vec::new();
        for member in &self.plan.metaservers {
            all.push(self.server(&member.name, "metaserver")?);
        }
        for member in &self.plan.chunkservers {
            all.push(self.server(&member.name, "chunkserver")?);
        }
        all.extend(self.mount_process()?);
        Ok(all)
    }

    /// The port of a server; `None` for the mount.
    pub(crate) fn port(&self, name: &str) -> Option<u16> {
        let mut members = self.plan.metaservers.iter().chain(&self.plan.chunkservers);
        members.find(|m| m.name == name).map(|m| m.port)
    }

    /// The mount, if there is one.
    pub(crate) fn mount_process(&self) -> Outcome<Option<Process>> {
        let Some(point) = &self.plan.mount else { return Ok(None) };
        let point = point.display().to_string();
        let config = self.dir.join("dfs.toml").display().to_string();
        let args = vec!["mount".into(), "--foreground".into(), "--config".into(), config, point.clone()];
        Ok(Some(self.process("mount", super::own_program()?, args, point)))
    }

    fn server(&self, name: &str, program: &str) -> Outcome<Process> {
        let config = self.dir.join("conf").join(format!("{name}.toml")).display().to_string();
        let program = super::own_program()?.with_file_name(program);
        Ok(self.process(name, program, vec!["--config".into(), config.clone()], config))
    }

    fn process(&self, name: &str, program: PathBuf, args: Vec<String>, mark: String) -> Process {
        Process {
            name: name.into(),
            program,
            args,
            mark,
            pid_file: self.dir.join("run").join(format!("{name}.pid")),
            log_file: self.dir.join("log").join(format!("{name}.log")),
        }
    }

    fn write_configs(&self) -> Outcome {
        let peers = self.meta_addresses();
        let key = self.dir.join("admin.key");
        if !key.exists() {
            let world = World::real();
            write_atomically(&key, &format!("{:032x}{:032x}\n", world.random_u128(), world.random_u128()))?;
            fs::set_permissions(&key, fs::Permissions::from_mode(0o600))
                .map_err(|e| Failure::at("protect", key.display(), e))?;
        }
        let key = toml_string(&key.display().to_string());
        let quoted = toml_strings(&peers);
        for (index, member) in self.plan.metaservers.iter().enumerate() {
            let text = meta_config(index + 1, member, &peers, &self.dir.join("data").join(&member.name), &key);
            self.write_missing(&format!("conf/{}.toml", member.name), &text)?;
        }
        for member in &self.plan.chunkservers {
            let data = self.dir.join("data").join(&member.name);
            let dirs: Vec<PathBuf> = match self.plan.chunk_dirs {
                1 => vec![data],
                count => (1..=count).map(|n| data.join(format!("disk-{n}"))).collect(),
            };
            for dir in &dirs {
                fs::create_dir_all(dir).map_err(|e| Failure::at("make directory", dir.display(), e))?;
            }
            self.write_missing(&format!("conf/{}.toml", member.name), &chunk_config(member, &quoted, &dirs))?;
        }
        let text =
            format!("# A client of this cluster: dfs --config THIS ...\nmeta = {quoted}\nadmin_key_file = {key}\n");
        self.write_missing("dfs.toml", &text)
    }

    fn write_missing(&self, name: &str, text: &str) -> Outcome {
        let path = self.dir.join(name);
        if path.exists() { Ok(()) } else { write_atomically(&path, text) }
    }
}

/// The configuration of a metaserver; its format is `metaserver/src/config.rs`.
fn meta_config(node: usize, member: &Member, peers: &[String], data: &Path, key: &str) -> String {
    let port = member.port;
    let mut text = format!(
        "node_id = {node}\nlisten = \"127.0.0.1:{port}\"\nadvertise = \"127.0.0.1:{port}\"\ndata_dir = {}\n\
         reserve_bytes = {META_RESERVE_BYTES}\n\
         admin_key_file = {key}\n\n\
         [metaservers]\n",
        toml_string(&data.display().to_string())
    );
    for (index, peer) in peers.iter().enumerate() {
        text.push_str(&format!("{} = {}\n", index + 1, toml_string(peer)));
    }
    text
}

/// The configuration of a chunkserver; its format is `chunkserver/src/config.rs`.
fn chunk_config(member: &Member, metaservers: &str, dirs: &[PathBuf]) -> String {
    let dirs: Vec<String> = dirs.iter().map(|d| d.display().to_string()).collect();
    let (name, port) = (&member.name, member.port);
    format!(
        "listen = \"127.0.0.1:{port}\"\nadvertise = \"127.0.0.1:{port}\"\nmetaservers = {metaservers}\n\
         data_dirs = {}\nhost = \"{name}\"\nreserve_bytes = {RESERVE_BYTES}\n",
        toml_strings(&dirs)
    )
}

fn toml_string(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn toml_strings(texts: &[String]) -> String {
    let quoted: Vec<String> = texts.iter().map(|t| toml_string(t)).collect();
    format!("[{}]", quoted.join(", "))
}

/// The plan with what was asked for. Metaservers are fixed for ever; chunkservers may be added.
fn extend(old: Option<Plan>, wanted: &Wanted) -> Outcome<Plan> {
    let fresh = old.is_none();
    let mut plan = old.unwrap_or(Plan {
        pg_count: PG_COUNT,
        replicas: 0,
        min_replicas: 0,
        chunk_dirs: wanted.chunk_dirs,
        mount: None,
        metaservers: Vec::new(),
        chunkservers: Vec::new(),
    });
    let have = |members: &[Member]| if fresh { 3 } else { u32::try_from(members.len()).unwrap_or(u32::MAX) };
    let metaservers = wanted.metaservers.unwrap_or(have(&plan.metaservers));
    let chunkservers = wanted.chunkservers.unwrap_or(have(&plan.chunkservers));
    if !matches!(metaservers, 1 | 3 | 5) {
        return Err(Failure::new(format!("--metaservers {metaservers}: must be 1, 3 or 5")));
    }
    if chunkservers == 0 || chunkservers > SERVERS_MAX {
        return Err(Failure::new(format!("--chunkservers {chunkservers}: must be 1 to {SERVERS_MAX}")));
    }
    if !fresh && metaservers != have(&plan.metaservers) {
        return Err(Failure::new(format!(
            "--metaservers {metaservers}: this cluster was made with {}, which cannot change here",
            plan.metaservers.len()
        ))
        .advice("use another --dir"));
    }
    let mut taken: BTreeSet<u16> = plan.metaservers.iter().chain(&plan.chunkservers).map(|m| m.port).collect();
    add_members(&mut plan.metaservers, "meta", metaservers, &mut taken)?;
    add_members(&mut plan.chunkservers, "chunk", chunkservers, &mut taken)?;
    if fresh {
        plan.replicas = u8::try_from(chunkservers.min(3)).expect("at most 3");
        plan.min_replicas = plan.replicas.min(2);
    }
    if let Some(mount) = &wanted.mount {
        plan.mount = Some(std::path::absolute(mount).map_err(|e| Failure::at("find", mount.display(), e))?);
    }
    Ok(plan)
}

fn add_members(members: &mut Vec<Member>, kind: &str, wanted: u32, taken: &mut BTreeSet<u16>) -> Outcome {
    let world = World::real();
    while members.len() < usize::try_from(wanted).expect("64-bit") {
        let port = free_port(taken, || world.random_u64()).map_err(|error| Failure::new(error.to_string()))?;
        taken.insert(port);
        members.push(Member { name: format!("{kind}-{}", members.len() + 1), port });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(metaservers: Option<u32>, chunkservers: Option<u32>) -> Wanted {
        Wanted { mount: None, metaservers, chunkservers, chunk_dirs: 1 }
    }

    #[test]
    fn a_second_up_keeps_ports_and_adds_only_what_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let first = Cluster::prepare(dir.path(), &wanted(None, None)).unwrap().plan;
        assert_eq!((first.metaservers.len(), first.chunkservers.len(), first.replicas), (3, 3, 3));
        let again = Cluster::prepare(dir.path(), &wanted(None, None)).unwrap().plan;
        assert_eq!(again, first);
        let grown = Cluster::prepare(dir.path(), &wanted(Some(3), Some(5))).unwrap().plan;
        assert_eq!(grown.chunkservers[..3], first.chunkservers[..]);
        assert_eq!(grown.chunkservers.len(), 5);
        assert!(Cluster::prepare(dir.path(), &wanted(Some(5), None)).is_err());
    }

    #[test]
    fn edited_configs_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        Cluster::prepare(dir.path(), &wanted(Some(1), Some(1))).unwrap();
        let path = dir.path().join("conf/chunk-1.toml");
        fs::write(&path, "# mine\n").unwrap();
        Cluster::prepare(dir.path(), &wanted(None, None)).unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "# mine\n");
    }

    #[test]
    fn impossible_counts_are_refused() {
        assert!(extend(None, &wanted(Some(2), None)).is_err());
        assert!(extend(None, &wanted(None, Some(0))).is_err());
    }
}
