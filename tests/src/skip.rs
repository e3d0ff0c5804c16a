//! Tests that this machine cannot run: skipped by name, never silently. `tests/run.sh` names a file in
//! `DFS_TEST_SKIPPED`, lists it at its end, and fails if `DFS_TEST_NO_SKIP` is set.

pub use crate::tools::{
    no_acl_tools, no_attr_tools, no_fsx, no_git, no_pjdfstest, no_postgres, no_python, no_rsync, no_stress_ng,
};
use std::io::Write;

/// Why nothing can be mounted here, if so.
pub fn no_mount() -> Option<&'static str> {
    let usable = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    (!usable).then_some("no usable /dev/fuse")
}

/// Why no loop device or tmpfs can be mounted here, if so.
pub fn no_root() -> Option<&'static str> {
    (!nix::unistd::geteuid().is_root()).then_some("needs root")
}

/// Notes that `test` cannot run.
///
/// # Panics
/// If the list cannot be written: a skip must not be silent.
pub fn note(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    if let Some(list) = std::env::var_os("DFS_TEST_SKIPPED") {
        let mut list = std::fs::OpenOptions::new().append(true).create(true).open(list).expect("the list opens");
        writeln!(list, "{test}: {reason}").expect("the list can be written");
    }
}

/// The path of the function it stands in.
#[macro_export]
macro_rules! test_name {
    () => {{
        fn here() {}
        let name = std::any::type_name_of_val(&here);
        name.strip_suffix("::here").unwrap_or(name)
    }};
}

/// Leaves the test, noted as skipped, if one of these checks (`no_mount`, `no_root`) names a reason.
#[macro_export]
macro_rules! skip_if {
    ($($check:ident),+) => {
        $(if let Some(reason) = $crate::skip::$check() {
            $crate::skip::note($crate::test_name!(), reason);
            return;
        })+
    };
}
