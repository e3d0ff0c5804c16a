//! Files that a cluster is given, and has to give back.

use crate::cluster::Cluster;
use crate::content::Content;
use std::path::Path;

/// Files of equal length, whose contents follow from a seed, below `/data`.
#[derive(Clone, Copy, Debug)]
pub struct Data {
    /// All else follows from it.
    pub seed: u64,
    /// How many.
    pub files: u64,
    /// Of how many bytes each.
    pub len: u64,
}

impl Data {
    /// Puts them all with one command.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn put(&self, cluster: &Cluster, local: &Path) {
        let source = local.join("data");
        std::fs::create_dir(&source).expect("an empty directory");
        for file in 0..self.files {
            let written = Content::new(self.seed, file, 1).write_file(&source.join(format!("f{file}")), self.len);
            written.expect("a file is written");
        }
        cluster.dfs(&["put", "-r", source.to_str().expect("a plain path"), "/data"]).must();
    }

    /// Gets them all, and compares every byte.
    ///
    /// # Panics
    /// Something is missing or wrong.
    #[track_caller]
    pub fn check(&self, cluster: &Cluster, local: &Path) {
        let back = local.join("back");
        let _not_there = std::fs::remove_dir_all(&back);
        cluster.dfs(&["get", "-r", "/data", back.to_str().expect("a plain path")]).must();
        for file in 0..self.files {
            let checked = Content::new(self.seed, file, 1).check_file(&back.join(format!("f{file}")), self.len);
            checked.unwrap_or_else(|wrong| panic!("f{file}: {wrong}"));
        }
    }

    /// Puts one, as `/fN`.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn put_one(&self, cluster: &Cluster, local: &Path, file: u64) {
        let source = local.join("source");
        Content::new(self.seed, file, 1).write_file(&source, self.len).expect("a file is written");
        cluster.dfs(&["put", source.to_str().expect("a plain path"), &format!("/f{file}")]).must();
    }

    /// Gets some that were put one by one, and compares every byte.
    ///
    /// # Panics
    /// Something is missing or wrong.
    #[track_caller]
    pub fn check_some(&self, cluster: &Cluster, local: &Path, files: impl IntoIterator<Item = u64>) {
        for file in files {
            let back = local.join("back");
            let _not_there = std::fs::remove_file(&back);
            cluster.dfs(&["get", &format!("/f{file}"), back.to_str().expect("a plain path")]).must();
            let checked = Content::new(self.seed, file, 1).check_file(&back, self.len);
            checked.unwrap_or_else(|wrong| panic!("f{file}: {wrong}"));
        }
    }
}
