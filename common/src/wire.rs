//! The data plane: frames on a connection behind a hello, and a pool of such connections.
//!
//! One request at a time on a connection: a control frame, then data frames; the answer the same way. Bulk bytes never
//! pass through serde: they go from the caller's buffers to the socket in vectored writes, and from the socket straight
//! into the buffer they are kept in. What a request and an answer mean is in [`crate::proto::chunk`].
//!
//! A frame is a head of 16 bytes and a payload; numbers are little-endian:
//!
//! | at | len | what |
//! | --- | --- | --- |
//! | 0 | 4 | length of the payload |
//! | 4 | 1 | kind: 1 control (a `postcard` value), 2 data |
//! | 5 | 3 | zero |
//! | 8 | 4 | number of the request on this connection; an answer repeats it |
//! | 12 | 4 | CRC32C of bytes 0 to 11 and, in a control frame, of the payload |
//!
//! Data carries no checksum here: whoever keeps or uses it checks it against the chunk's id.
//!
//! Promises:
//! 1. Nothing is allocated before its length was checked against [`CONTROL_MAX`] or against what was asked for.
//! 2. A connection that saw an error, a timeout or a cancelled call is closed, never used again.
//! 3. Every wait has a limit; the fault names server and address.
//!
//! Left out: several requests at a time on a connection; `sendfile`.

mod client;
mod frame;
mod pool;

pub use client::{Got, Target};
pub use frame::{CONTROL_MAX, DATA_MAX, HEAD_LEN, Wire};
pub use pool::{Lease, Pool};
