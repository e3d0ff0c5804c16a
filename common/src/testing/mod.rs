//! The simulated outside world, and tests that both the real and the simulated one must pass.

mod disk_contract;
mod sim_disk;

pub use disk_contract::disk_contract;
pub use sim_disk::SimDisk;
