//! Names of things, one type each, so that none is passed for another.
//!
//! They print with a letter (`i3`, `s2`, `pg17`) so that a log can be searched; chunk ids print as 12 hex digits.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

number_id!(
    /// An inode number. Never reused; the top 16 bits are reserved for a shard and are zero today.
    InodeId(u64), "i"
);
number_id!(
    /// A chunkserver, numbered by the metaservers when it first registers. Never reused.
    ServerId(u32), "s"
);
number_id!(
    /// A metaserver: its node id in the Raft group, from its configuration. Never reused with other data.
    NodeId(u64), "m"
);
number_id!(
    /// A placement group: the first `log2(pg_count)` bits of a chunk id.
    PgId(u32), "pg"
);
number_id!(
    /// The cluster epoch: rises with each metadata restore; what carries an older one is void.
    Epoch(u64), "e"
);
number_id!(
    /// The index of an applied Raft entry. As a *witness* it orders a commit against condemnations.
    LogIndex(u64), "x"
);
number_id!(
    /// The version of the layout table; rises with every change of it.
    LayoutVersion(u64), "l"
);
number_id!(
    /// The data version of an inode: rises with each applied change of its size or extents.
    DataVersion(u64), "v"
);

impl Epoch {
    /// That of a cluster which was never restored.
    pub const FIRST: Epoch = Epoch(1);
}

impl InodeId {
    /// The root directory.
    pub const ROOT: InodeId = InodeId(1);
}

impl PgId {
    /// The first chunk id of this group. `pg_count` as in [`ChunkId::pg`], and above this group's number.
    pub fn first(self, pg_count: u32) -> ChunkId {
        debug_assert!(self.0 < pg_count, "{self} of {pg_count}");
        let prefix = self.0 << (16 - pg_count.trailing_zeros());
        let mut id = ChunkId([0; 32]);
        id.0[..2].copy_from_slice(&u16::try_from(prefix).expect("a group below pg_count").to_be_bytes());
        id
    }
}

/// The name of a chunk: BLAKE3-256 of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkId(pub [u8; 32]);

impl ChunkId {
    /// The id of these bytes.
    pub fn of(bytes: &[u8]) -> ChunkId {
        ChunkId(*blake3::hash(bytes).as_bytes())
    }

    /// The placement group of this chunk. `pg_count` is a power of two from 1 to 65,536.
    pub fn pg(&self, pg_count: u32) -> PgId {
        debug_assert!(pg_count.is_power_of_two() && pg_count <= 1 << 16, "pg_count {pg_count}");
        let prefix = u32::from(u16::from_be_bytes([self.0[0], self.0[1]]));
        PgId(prefix >> (16 - pg_count.trailing_zeros()))
    }

    /// The deletion-horizon bucket of this chunk: its first 16 bits.
    pub fn bucket(&self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }

    /// All 64 hex digits.
    pub fn hex(&self) -> String {
        blake3::Hash::from(self.0).to_hex().to_string()
    }

    /// Reads back [`ChunkId::hex`]. `None` if it is not 64 hex digits.
    pub fn from_hex(text: &str) -> Option<ChunkId> {
        Some(ChunkId(*blake3::Hash::from_hex(text).ok()?.as_bytes()))
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..6] {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:08x}", self.0 >> 96)
            }
        }

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                u128::from_str_radix(text, 16).map($name)
            }
        }
    };
}

random_id!(
    /// A client's session with the metaservers, chosen at random by the client.
    SessionId
);
random_id!(
    /// A cluster, chosen at random when it is formatted. Zero: not known yet.
    ClusterId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_placement_group_is_the_leading_bits() {
        let mut id = ChunkId([0; 32]);
        id.0[0] = 0b1010_0000;
        id.0[1] = 0xff;
        assert_eq!(id.pg(1), PgId(0));
        assert_eq!(id.pg(8), PgId(0b101));
        assert_eq!(id.pg(65_536), PgId(0xa0ff));
        assert_eq!(id.bucket(), 0xa0ff);
        for (pg, pg_count) in [(0, 16), (5, 8), (15, 16), (65_535, 65_536)] {
            let first = PgId(pg).first(pg_count);
            assert_eq!((first.pg(pg_count), &first.0[2..]), (PgId(pg), &[0; 30][..]));
        }
    }

    #[test]
    fn ids_read_back_what_they_print() {
        let id = ChunkId::of(b"x");
        assert_eq!(ChunkId::from_hex(&id.hex()), Some(id));
        assert_eq!(ChunkId::from_hex("zz"), None);
        let session = SessionId(0x1234);
        assert_eq!(session.to_string().parse::<SessionId>(), Ok(session));
    }
}
