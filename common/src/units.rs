//! Limits and sizes that more than one part must agree on.

/// The default chunk size of a new directory tree, in bytes.
pub const CHUNK_SIZE_DEFAULT: u32 = 4 << 20;
/// The smallest chunk size a directory may ask for, in bytes.
pub const CHUNK_SIZE_MIN: u32 = 64 << 10;
/// The largest chunk size a directory may ask for, in bytes; also the longest chunk there is.
pub const CHUNK_SIZE_MAX: u32 = 64 << 20;
/// Replicas of a chunk where nothing else was asked for.
pub const REPLICAS_DEFAULT: u8 = 3;
/// The most replicas a directory may ask for.
pub const REPLICAS_MAX: u8 = 9;
/// How many servers a placement group lists beyond its replicas, to fall through to.
pub const FALL_THROUGH: usize = 3;
/// Durable copies below which a write is not acknowledged.
pub const MIN_REPLICAS_DEFAULT: u8 = 2;
/// The longest name of a directory entry, in bytes.
pub const NAME_LEN_MAX: usize = 255;
/// The longest symlink target, in bytes (Linux `PATH_MAX` less the terminator).
pub const SYMLINK_LEN_MAX: usize = 4095;
/// The longest extended attribute value, in bytes.
pub const XATTR_LEN_MAX: usize = 64 << 10;
/// All names of an inode's extended attributes together, in bytes (what `listxattr` can return).
pub const XATTR_LIST_MAX: usize = 64 << 10;
/// The largest file, in bytes.
pub const FILE_SIZE_MAX: u64 = 1 << 60;
/// Hard links to one inode.
pub const LINK_MAX: u32 = 1_000_000;
/// What an entry adds to the size of its directory, in bytes.
pub const ENTRY_SIZE: u64 = 32;
/// The longest run of bytes kept inside the metadata instead of in a chunk, in bytes.
pub const INLINE_LEN_MAX: usize = 4 << 10;
/// Bytes covered by one leaf of a chunk's hash tree: the unit in which a range is verified.
pub const HASH_GROUP_LEN: u32 = 16 << 10;
/// Edits in one commit, at most.
pub const COMMIT_EDITS_MAX: usize = 1024;
/// Inline bytes in one commit, at most.
pub const COMMIT_INLINE_MAX: usize = 1 << 20;

/// Widens a length in memory to one on the wire or on disk. Lossless on every machine this runs on.
pub fn len_u64(len: usize) -> u64 {
    u64::try_from(len).expect("usize is at most 64 bits")
}

/// Narrows a length that was checked against a named limit below 4 GiB.
pub fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("lengths are checked against limits below 4 GiB")
}

/// Brings a length from the wire or the disk into memory: 64-bit machines only.
pub fn len_usize(len: u64) -> usize {
    usize::try_from(len).expect("usize is 64 bits")
}

const _: () = assert!(CHUNK_SIZE_MIN.is_multiple_of(HASH_GROUP_LEN), "a window holds whole hash groups");
const _: () = assert!(usize::BITS == 64, "64-bit machines only");
