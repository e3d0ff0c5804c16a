//! The configuration of a metaserver: a TOML file, then environment variables `DFS_METASERVER_...`.

use common::kv::rocks::Tuning;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The prefix of the environment variables.
pub const ENV_PREFIX: &str = "DFS_METASERVER_";
/// Entries between two snapshots.
const SNAPSHOT_ENTRIES_DEFAULT: u64 = 100_000;
/// Entries kept behind a snapshot for followers that are a little late.
const KEEP_ENTRIES_DEFAULT: u64 = 20_000;

/// Bytes kept free: room for what is not flushed yet, for compaction, and for a while of removals.
const RESERVE_BYTES_DEFAULT: u64 = 512 << 20;

/// See the module. Unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// This node's number, 1 to 65,535. Never changes; never another node's.
    pub node_id: u64,
    /// Where the control plane listens, `host:port`. Port 0 picks a free one (tests).
    pub listen: String,
    /// Where others reach it, `host:port`. Empty: as `listen`.
    pub advertise: String,
    /// Where the data is. One metaserver a directory.
    pub data_dir: PathBuf,
    /// All metaservers of the cluster: number = address, this one among them.
    pub metaservers: BTreeMap<String, String>,
    /// Memory of the metadata store's caches, in MiB.
    pub cache_mib: u32,
    /// Memory of what the metadata store has not written to tables yet, in MiB. A part of `cache_mib`.
    pub memtable_mib: u32,
    /// How reads know that this is still the leader: `index` asks a majority (one round for all reads that wait), `lease`
    /// relies on a majority's answer of the last 0.6 s, which is sound while no clock runs twice as fast as another.
    pub read_policy: ReadPolicy,
    /// The log's length, in MiB, above which a snapshot is made and what it covers is purged, whatever the two below say. At
    /// least 192: it goes in whole segments of 64.
    pub log_mib: u32,
    /// Log entries between two snapshots.
    pub snapshot_entries: u64,
    /// Log entries kept behind a snapshot for followers that are a little late.
    pub keep_entries: u64,
    /// A chunkserver that is down for so long, in seconds, is taken out: others take over what it held. At least 10.
    pub down_out_s: u64,
    /// Free bytes under `data_dir` below which this disk counts as full: then only what frees space goes on, once fewer than a
    /// majority of the metaservers have room. 0: none is kept.
    pub reserve_bytes: u64,
    /// The file with the administrator's key, the same on all metaservers. Empty: no key is asked for, so whoever reaches
    /// the port can administer.
    pub admin_key_file: PathBuf,
    /// Threads that serve requests. 0: one for each four cores.
    pub threads: usize,
    /// What is logged, such as `info` or `info,metaserver=debug`.
    pub log_level: String,
}

/// See [`Config::read_policy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadPolicy {
    /// A majority is asked.
    Index,
    /// A recent answer will do.
    Lease,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            node_id: 0,
            listen: "127.0.0.1:7500".into(),
            advertise: String::new(),
            data_dir: PathBuf::new(),
            metaservers: BTreeMap::new(),
            cache_mib: 192,
            memtable_mib: 64,
            read_policy: ReadPolicy::Index,
            log_mib: 1024,
            snapshot_entries: SNAPSHOT_ENTRIES_DEFAULT,
            keep_entries: KEEP_ENTRIES_DEFAULT,
            down_out_s: 600,
            reserve_bytes: RESERVE_BYTES_DEFAULT,
            admin_key_file: PathBuf::new(),
            threads: 0,
            log_level: "info,openraft=error".into(), // it warns three times a second of a member that is down
        }
    }
}

impl Config {
    /// Refuses what cannot work, with one line for a person.
    pub fn check(&self) -> Result<(), String> {
        if self.node_id == 0 || self.node_id > crate::raft::NODE_MASK {
            return Err(format!("node_id = {}: must be 1 to {}", self.node_id, crate::raft::NODE_MASK));
        }
        if self.data_dir.as_os_str().is_empty() {
            return Err("data_dir is missing: name the directory of this metaserver's data".into());
        }
        for key in self.metaservers.keys() {
            if key.parse::<u64>().is_err() {
                return Err(format!("[metaservers] {key}: must be a node number, such as 1 = \"host:port\""));
            }
        }
        if self.memtable_mib >= self.cache_mib || self.memtable_mib == 0 {
            return Err(format!("memtable_mib = {}: must be 1 to less than cache_mib", self.memtable_mib));
        }
        if self.log_mib < 192 {
            return Err(format!("log_mib = {}: must be at least 192", self.log_mib));
        }
        if self.snapshot_entries == 0 {
            return Err("snapshot_entries = 0: must be at least 1".into());
        }
        Ok(())
    }

    /// Addresses of the other metaservers.
    pub fn others(&self) -> Vec<String> {
        let own = self.node_id.to_string();
        self.metaservers.iter().filter(|(node, _)| **node != own).map(|(_, addr)| addr.clone()).collect()
    }

    /// What the store may use.
    pub fn tuning(&self) -> Tuning {
        let mib = |n: u32| common::units::len_usize(u64::from(n) << 20);
        Tuning { cache_bytes: mib(self.cache_mib), memtable_bytes: mib(self.memtable_mib), ..Tuning::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let file = Some((std::path::Path::new("m.toml"), text));
        let config: Config = common::config::merge(file, ENV_PREFIX, &[], &[]).map_err(|e| e.to_string())?;
        config.check().map(|()| config)
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let good = "node_id = 2\ndata_dir = \"/x\"\n[metaservers]\n1 = \"a:1\"\n2 = \"b:2\"\n";
        assert_eq!(load(good).unwrap().others(), ["a:1"]);
        for (text, names) in [
            ("node_id = 0\ndata_dir = \"/x\"", "node_id"),
            ("node_id = 1", "data_dir"),
            ("node_id = 1\ndata_dir = \"/x\"\nnode = 3", "node"),
            ("node_id = 1\ndata_dir = \"/x\"\nread_policy = \"never\"", "read_policy"),
            ("node_id = 1\ndata_dir = \"/x\"\n[metaservers]\nx = \"a:1\"", "metaservers"),
            ("node_id = 1\ndata_dir = \"/x\"\nmemtable_mib = 500", "memtable_mib"),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.contains(names), "{text}: {error}");
        }
    }
}
