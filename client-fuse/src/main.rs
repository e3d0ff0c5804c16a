//! `dfs`: one program for the shell commands, the mount, administration and development clusters.
//!
//! The commands (`cli/`) and the mount (`fuse/`) are two front ends of the library's `Client`.

mod cli;
mod fuse;

fn main() -> std::process::ExitCode {
    cli::run()
}
