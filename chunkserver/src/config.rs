//! What a chunkserver is told at start: `chunkserver --config FILE`, or `DFS_CHUNKSERVER_<KEY>` in the environment.

use crate::store::{MissingDir, SetConfig};
use common::id::ClusterId;
use common::layout::Domain;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Settings of one chunkserver. Every key is optional but `metaservers` and `data_dirs`; unknown ones are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the data plane listens, `host:port`; port 0 picks a free one.
    pub listen: String,
    /// The address others reach it at, `host:port`. Default: the one it listens at, which must then not be `0.0.0.0`.
    pub advertise: Option<String>,
    /// Control-plane addresses of the metaservers.
    pub metaservers: Vec<String>,
    /// Data directories, one for each disk.
    pub data_dirs: Vec<PathBuf>,
    /// The room, site or power domain it stands in. Replicas go to different zones if they can,
    pub zone: String,
    /// else to different racks,
    pub rack: String,
    /// else to different hosts. Empty: a host of its own.
    pub host: String,
    /// Its share of the data relative to other servers. 0: its capacity in GiB.
    pub weight: u32,
    /// Bytes that puts leave free on each data directory's file system. Compaction copies into them: with less than a
    /// segment's length, 1 GiB, a full disk is not compacted.
    pub reserve_bytes: u64,
    /// Memory for the caches of the chunk indexes, in bytes.
    pub index_cache_bytes: u64,
    /// The cluster this server must belong to, 32 hex digits. Default: whatever cluster the metaservers form.
    pub cluster: Option<String>,
    /// What to do about a data directory that is empty or missing while others have data: `skip` it (what it held counts as lost
    /// and is made again), `create` a store in it (a new disk), or `refuse` to start. One that does not open is skipped, too,
    /// but for `refuse`.
    pub missing_dirs: MissingDirs,
    /// Threads that serve requests. 0: one for each four cores.
    pub threads: usize,
    /// Log filter: `info`, `debug`, `info,chunkserver=debug`. `DFS_LOG` wins over it.
    pub log: String,
}

/// See [`Config::missing_dirs`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MissingDirs {
    /// Do not start.
    Refuse,
    /// Start without it.
    #[default]
    Skip,
    /// Make a store in it.
    Create,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: "127.0.0.1:7440".into(),
            advertise: None,
            metaservers: Vec::new(),
            data_dirs: Vec::new(),
            zone: String::new(),
            rack: String::new(),
            host: String::new(),
            weight: 0,
            reserve_bytes: 1 << 30,
            index_cache_bytes: 64 << 20,
            cluster: None,
            missing_dirs: MissingDirs::Skip,
            threads: 0,
            log: "info".into(),
        }
    }
}

impl Config {
    /// Checks what can be checked before anything is opened: the error names the key and what to do.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.metaservers.is_empty() {
            return Err("metaservers: none is given; name at least one, as [\"host:port\"]".into());
        }
        if self.data_dirs.is_empty() {
            return Err("data_dirs: none is given; name at least one directory".into());
        }
        for addr in self.metaservers.iter().chain([&self.listen]).chain(&self.advertise) {
            let port = addr.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none() {
                return Err(format!("{addr:?} is not an address: write host:port"));
            }
        }
        self.cluster()?;
        Ok(())
    }

    /// The cluster it must belong to, if one is set.
    pub(crate) fn cluster(&self) -> Result<Option<ClusterId>, String> {
        let wrong = |_| "cluster: not 32 hex digits".to_owned();
        self.cluster.as_deref().map(|text| text.parse().map_err(wrong)).transpose()
    }

    /// The address to announce, given the one that was bound.
    pub(crate) fn announced(&self, bound: &str) -> Result<String, String> {
        match &self.advertise {
            Some(addr) => Ok(addr.clone()),
            None if bound.starts_with("0.0.0.0:") || bound.starts_with("[::]:") => {
                Err(format!("advertise: must be set, since {bound} is no address that others can reach"))
            }
            None => Ok(bound.to_owned()),
        }
    }

    pub(crate) fn domain(&self) -> Domain {
        Domain { zone: self.zone.clone(), rack: self.rack.clone(), host: self.host.clone() }
    }

    pub(crate) fn stores(&self) -> Result<SetConfig, String> {
        Ok(SetConfig {
            dirs: self.data_dirs.clone(),
            reserve_bytes: self.reserve_bytes,
            index_cache_bytes: self.index_cache_bytes,
            missing: match self.missing_dirs {
                MissingDirs::Refuse => MissingDir::Refuse,
                MissingDirs::Skip => MissingDir::Skip,
                MissingDirs::Create => MissingDir::Create,
            },
            cluster: self.cluster()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Config {
        Config { metaservers: vec!["a:1".into()], data_dirs: vec!["/d".into()], ..Config::default() }
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(good().check(), Ok(()));
        let wrong = [
            (Config { metaservers: vec![], ..good() }, "metaservers"),
            (Config { data_dirs: vec![], ..good() }, "data_dirs"),
            (Config { metaservers: vec!["nowhere".into()], ..good() }, "nowhere"),
            (Config { advertise: Some("here:x".into()), ..good() }, "here:x"),
            (Config { cluster: Some("xyz".into()), ..good() }, "cluster"),
        ];
        for (config, name) in wrong {
            assert!(config.check().unwrap_err().contains(name), "{config:?}");
        }
        assert!(good().announced("0.0.0.0:7").is_err());
        assert_eq!(good().announced("127.0.0.1:7"), Ok("127.0.0.1:7".into()));
    }

    #[test]
    fn the_keys_are_these() {
        let text = toml::to_string(&Config { advertise: Some("h:1".into()), cluster: Some("1".into()), ..good() });
        let keys: Vec<String> = toml::from_str::<toml::Table>(&text.unwrap()).unwrap().keys().cloned().collect();
        let wanted = "advertise cluster data_dirs host index_cache_bytes listen log metaservers missing_dirs rack \
                      reserve_bytes threads weight zone";
        assert_eq!(keys, wanted.split_whitespace().collect::<Vec<_>>());
    }
}
