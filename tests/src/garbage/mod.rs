//! Why no live chunk is deleted (DESIGN 7), twice: as a model that is searched whole, and with the code itself under
//! random interleavings.
//!
//! | file | answers |
//! | --- | --- |
//! | [`model`], `steps` | the rules, and each of them left out (`stateright` searches) |
//! | [`cluster`] | real stores over simulated disks and the real state machine, plainly called |
//! | [`plan`] | what a run is told, and what it says |
//! | [`chance`] | who does what next, and what is under way |
//! | `meeting` | two at one chunk at a time |
//! | `rounds` | a server drops what others own |
//! | `upheaval` | references that go, restarts, moves, a lost disk, a restore; what must hold after each step |

pub mod chance;
pub mod cluster;
mod meeting;
pub mod model;
pub mod plan;
mod rounds;
mod steps;
mod upheaval;
