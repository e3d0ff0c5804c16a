//! Whose data a directory holds: the file `identity`, written whole by rename when it changes. Version 2:
//!
//! | at | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `DFSSTORE` |
//! | 8 | 2 | version, 2 |
//! | 10 | 1 | 1 if the server has an id, else 0 |
//! | 11 | 1 | zero |
//! | 12 | 4 | server id |
//! | 16 | 16 | cluster id; 0: not registered yet |
//! | 32 | 16 | instance: random, the same in all directories of a server |
//! | 48 | 16 | store: random, this directory's |
//! | 64 | 8 | cluster epoch: no metaserver of a lower one is listened to; 0: not known yet |
//! | 72 | 4 | CRC32C of bytes 0..72 |
//!
//! Numbers are little-endian. Version 1 had no epoch (so 0), and its CRC32C at 64.

use super::error::{OpenError, disk_error};
use common::disk::{Disk, Lock};
use common::id::{ClusterId, Epoch, ServerId};
use std::io::ErrorKind;
use std::path::Path;

const LOCK: &str = "lock";
const FILE: &str = "identity";
const FILE_TMP: &str = "identity.tmp";
const MAGIC: [u8; 8] = *b"DFSSTORE";
const VERSION: u16 = 2;
const LEN: usize = 76;
const LEN_V1: usize = 68;
/// No version is longer than this, in bytes.
const LEN_MAX: u64 = 4096;

/// Whose data it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster; zero until the server has registered for the first time.
    pub cluster: ClusterId,
    /// The server; `None` until it has registered for the first time.
    pub server: Option<ServerId>,
    /// Made at the server's first start: goes with its data, so that an id cannot come back with other data.
    pub instance: u128,
    /// This directory.
    pub store: u128,
    /// The highest cluster epoch that this directory was served in.
    pub epoch: Epoch,
}

/// Takes a data directory for this process. It must be there. Comes before its identity is read or written.
pub(super) fn lock(disk: &dyn Disk, dir: &Path) -> Result<Lock, OpenError> {
    let path = dir.join(LOCK);
    disk.lock(&path).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => OpenError::InUse { dir: dir.to_path_buf() },
        _ => disk_error("lock", &path)(error),
    })
}

/// Reads the identity of a data directory. `None`: it has none, so nothing was ever stored in it.
pub(super) fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>, OpenError> {
    let path = dir.join(FILE);
    if !disk.exists(&path) {
        return Ok(None);
    }
    let file = disk.open(&path).map_err(disk_error("open", &path))?;
    let len = file.len().map_err(disk_error("read", &path))?;
    let bad = |what: String| OpenError::Identity { path: path.clone(), what };
    let mut bytes = vec![0; common::units::len_usize(len.min(LEN_MAX))];
    file.read_exact_at(&mut bytes, 0).map_err(disk_error("read", &path))?;
    let known = |version: &u16| (1..=VERSION).contains(version);
    if let Some(version) = version_of(&bytes).filter(|version| !known(version)) {
        return Err(OpenError::Config {
            what: format!(
                "{}: written by another version of dfs (format {version}, this is {VERSION})",
                path.display()
            ),
        });
    }
    if ![LEN, LEN_V1].contains(&bytes.len()) {
        return Err(bad(format!("has {len} bytes, not {LEN}")));
    }
    decode(&bytes).map(Some).map_err(bad)
}

/// Writes it, durably: after a crash the old one or the new one is there.
pub(super) fn write(disk: &dyn Disk, dir: &Path, identity: &Identity) -> Result<(), OpenError> {
    let (path, tmp) = (dir.join(FILE), dir.join(FILE_TMP));
    if disk.exists(&tmp) {
        disk.remove(&tmp).map_err(disk_error("remove", &tmp))?;
    }
    let file = disk.create(&tmp).map_err(disk_error("create", &tmp))?;
    file.write_all_at(&[&encode(identity)], 0).map_err(disk_error("write", &tmp))?;
    file.sync().map_err(disk_error("sync", &tmp))?;
    disk.rename(&tmp, &path).map_err(disk_error("rename", &tmp))?;
    disk.sync_dir(dir).map_err(disk_error("sync", dir))
}

fn encode(identity: &Identity) -> [u8; LEN] {
    let mut out = [0; LEN];
    out[..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    out[10] = u8::from(identity.server.is_some());
    out[12..16].copy_from_slice(&identity.server.map_or(0, |server| server.0).to_le_bytes());
    out[16..32].copy_from_slice(&identity.cluster.0.to_le_bytes());
    out[32..48].copy_from_slice(&identity.instance.to_le_bytes());
    out[48..64].copy_from_slice(&identity.store.to_le_bytes());
    out[64..72].copy_from_slice(&identity.epoch.0.to_le_bytes());
    let crc = crc32c::crc32c(&out[..72]);
    out[72..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// The version of what begins as an identity does.
fn version_of(bytes: &[u8]) -> Option<u16> {
    bytes.strip_prefix(&MAGIC)?.first_chunk().map(|version| u16::from_le_bytes(*version))
}

/// `bytes` are as long as one version's.
fn decode(bytes: &[u8]) -> Result<Identity, String> {
    if !bytes.starts_with(&MAGIC) {
        return Err("is not an identity file of a chunk store".into());
    }
    let (body, crc) = bytes.split_at(bytes.len() - 4);
    if crc32c::crc32c(body).to_le_bytes() != crc {
        return Err("is damaged: its checksum is wrong".into());
    }
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    if (version, bytes.len()) != (VERSION, LEN) && (version, bytes.len()) != (1, LEN_V1) {
        return Err(format!("was written by another version (format {version}, this is {VERSION})"));
    }
    let u128_at = |at: usize| u128::from_le_bytes(bytes[at..at + 16].try_into().expect("16 bytes"));
    let server = u32::from_le_bytes(bytes[12..16].try_into().expect("4 bytes"));
    Ok(Identity {
        cluster: ClusterId(u128_at(16)),
        server: (bytes[10] != 0).then_some(ServerId(server)),
        instance: u128_at(32),
        store: u128_at(48),
        epoch: Epoch(body.get(64..72).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("8 bytes")))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let (cluster, server) = (ClusterId(2), Some(ServerId(0x0102)));
        let identity = Identity { cluster, server, instance: 3, store: 4, epoch: Epoch(5) };
        let bytes = encode(&identity);
        let mut expected = b"DFSSTORE\x02\0\x01\0\x02\x01\0\0".to_vec();
        for number in [2u128, 3, 4] {
            expected.extend(number.to_le_bytes());
        }
        let mut first = expected.clone();
        expected.extend(5u64.to_le_bytes());
        assert_eq!(bytes[..72], expected);
        assert_eq!(decode(&bytes), Ok(identity));
        first[8] = 1;
        first.extend(crc32c::crc32c(&first).to_le_bytes());
        assert_eq!(decode(&first), Ok(Identity { epoch: Epoch(0), ..identity }), "version 1");
        for at in 0..LEN {
            let mut bad = bytes;
            bad[at] ^= 1;
            assert!(decode(&bad).is_err(), "byte {at}");
        }
    }
}
