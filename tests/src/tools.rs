//! Other people's test suites, which `deploy/install-deps.sh --tests` installs outside the checkout.

use std::path::PathBuf;

/// Where the suites that are crates lie: `DFS_TEST_TOOLS`, else the user's cache.
fn directory() -> PathBuf {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")));
    var("DFS_TEST_TOOLS").or_else(|| Some(cache()?.join("dfs/tools"))).unwrap_or_default()
}

/// A suite's program.
pub fn tool(name: &str) -> PathBuf {
    directory().join("bin").join(name)
}

fn missing(name: &str) -> Option<&'static str> {
    (!tool(name).exists()).then_some("not installed: deploy/install-deps.sh --tests")
}

/// Why `pjdfstest` cannot run here, if so.
pub fn no_pjdfstest() -> Option<&'static str> {
    missing("pjdfstest")
}

/// Why `fsx` cannot run here, if so.
pub fn no_fsx() -> Option<&'static str> {
    missing("fsx")
}

/// Why a program that is a package of the system cannot run here, if so.
fn not_in_path(name: &str) -> Option<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(name).exists());
    (!found).then_some("not installed: deploy/install-deps.sh --tests")
}

/// Why `stress-ng` cannot run here, if so.
pub fn no_stress_ng() -> Option<&'static str> {
    not_in_path("stress-ng")
}

/// Why ACLs cannot be set and shown here, if so.
pub fn no_acl_tools() -> Option<&'static str> {
    not_in_path("setfacl").or_else(|| not_in_path("setpriv"))
}

/// Why extended attributes cannot be set and shown here, if so.
pub fn no_attr_tools() -> Option<&'static str> {
    not_in_path("setfattr").or_else(|| not_in_path("getfattr"))
}

/// Why `rsync` cannot run here, if so.
pub fn no_rsync() -> Option<&'static str> {
    not_in_path("rsync")
}

/// Why `git` cannot run here, if so.
pub fn no_git() -> Option<&'static str> {
    not_in_path("git")
}

/// Where PostgreSQL's programs lie: the newest that is installed.
pub fn postgres() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |dir: &PathBuf| dir.file_name()?.to_str()?.parse::<u32>().ok();
    let found = versions.map(|entry| entry.path()).filter(|dir| dir.join("bin/pgbench").exists());
    Some(found.max_by_key(version)?.join("bin"))
}

/// Why PostgreSQL cannot run here, if so.
pub fn no_postgres() -> Option<&'static str> {
    match postgres() {
        Some(_) => not_in_path("setpriv"),
        None => Some("not installed: deploy/install-deps.sh --tests"),
    }
}

/// Why Python cannot run here, if so.
pub fn no_python() -> Option<&'static str> {
    not_in_path("python3")
}
