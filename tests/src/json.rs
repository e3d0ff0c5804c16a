//! What commands say with `--json`.

use crate::cluster::Cluster;
use serde_json::Value;

/// A number below a key.
///
/// # Panics
/// There is none.
#[track_caller]
pub fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} in {value}"))
}

impl Cluster {
    /// What a command says, which must succeed.
    ///
    /// # Panics
    /// It fails, or that is no JSON.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let ended = self.dfs(args).must();
        serde_json::from_slice(&ended.out).unwrap_or_else(|error| panic!("{error}: {ended}"))
    }

    /// All chunkservers, as `dfs admin server list` has them.
    ///
    /// # Panics
    /// As [`Cluster::json`].
    #[track_caller]
    pub fn server_list(&self) -> Vec<Value> {
        self.json(&["admin", "server", "list", "--json"]).as_array().expect("a list").clone()
    }

    /// How far the rebalance is.
    ///
    /// # Panics
    /// As [`Cluster::json`].
    #[track_caller]
    pub fn rebalance(&self) -> Value {
        self.json(&["admin", "rebalance", "status", "--json"])
    }

    /// The id that the cluster gave a chunkserver, as its log has it.
    ///
    /// # Panics
    /// It has not registered.
    #[track_caller]
    pub fn server_id(&self, name: &str) -> u64 {
        let log = self.log(name);
        let (_, rest) = log.rsplit_once("registered server=s").unwrap_or_else(|| panic!("{name} has not registered"));
        rest.split(' ').next().and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("no id of {name}"))
    }
}
