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

/// Why `stress-ng` cannot run here, if so.
pub fn no_stress_ng() -> Option<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join("stress-ng").exists());
    (!found).then_some("not installed: deploy/install-deps.sh --tests")
}
