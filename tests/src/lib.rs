//! Clusters of real processes for the tests in `tests/`, one guarantee a file.
//!
//! | file | answers |
//! | --- | --- |
//! | [`cluster`] | starts a `dfs dev` cluster, kills and starts its servers, mounts it; leaves nothing behind |
//! | [`command`] | runs a program with a limit |
//! | [`content`] | bytes that follow from (seed, file, version, offset), so that any read can be checked |
//! | [`data`], [`json`] | files to put and get back; what commands say |
//! | [`load`], [`ledger`] | writers that note what was acknowledged; what must be there afterwards |
//! | [`tree`] | a real directory tree to store, and whether two trees are equal |
//! | [`chaos`] | which fault comes next, and which must wait |
//! | [`damage`] | flips stored bytes |
//! | [`garbage`] | the rules of deletion: searched whole as a model, and driven at random in the code itself |
//! | [`linear`] | is there an order of all calls on several mounts that explains what each was told |
//! | [`many`] | very many files and chunks |
//! | [`records`] | records that many append to one file: none lost, torn or doubled |
//! | [`sim`] | the same servers and clients in one thread, with simulated network and disks |
//! | [`skip`] | tests that this machine cannot run, by name |
//! | [`tools`] | other people's test suites |
//! | [`wait`] | waits with a limit and a name |
//!
//! The programs are taken from the target directory of the running test: `cargo build --workspace --bins` first, as
//! `tests/run.sh` does.

pub mod chaos;
pub mod cluster;
pub mod command;
pub mod content;
pub mod damage;
pub mod data;
pub mod garbage;
pub mod json;
pub mod ledger;
pub mod linear;
pub mod load;
pub mod many;
pub mod records;
pub mod sim;
pub mod skip;
pub mod tools;
pub mod tree;
pub mod wait;
