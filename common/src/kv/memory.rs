//! The in-memory twin of [`super::Kv`]: sorted maps, saved whole through the [`Disk`] seam.
//!
//! For simulations and tests: everything is in memory, a flush writes all of it. After a crash the store is exactly as
//! it was at the last flush that returned (or at one that was under way).
//!
//! The file (`kv`, written as `kv.tmp`, synced, renamed), little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | magic `dfskv\0\0\x01`, the last byte is the version |
//! | 4 | number of families, then for each: |
//! | 4 + n | length of its name, the name |
//! | 8 | number of entries, then for each: |
//! | 4 + 4 + k + v | length of key, length of value, key, value |
//! | 4 | CRC-32C of all before |

use super::{Batch, Entry, Family, KeyRange, Kv, KvError, KvRead};
use crate::disk::Disk;
use crate::units::{len_u32, len_u64, len_usize};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

/// Magic and version of the file.
const MAGIC: [u8; 8] = *b"dfskv\0\0\x01";
/// The saved state.
const FILE: &str = "kv";
/// The next one, while it is written.
const FILE_TMP: &str = "kv.tmp";

type Map = BTreeMap<Bytes, Bytes>;

/// A store in memory. Snapshots share the maps; the first write after one copies the family it touches.
pub struct MemoryKv {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    names: Vec<String>,
    maps: RwLock<Vec<Arc<Map>>>,
    /// Held over a flush: two at once would write the same temporary file.
    flushing: Mutex<()>,
}

impl MemoryKv {
    /// Opens what the last flush left in `dir`, or an empty store. A family that the file does not know starts empty;
    /// one that the file has and `families` does not is an error.
    ///
    /// # Errors
    /// The disk failed, or the file is damaged.
    pub fn open(disk: Arc<dyn Disk>, dir: impl Into<PathBuf>, families: &[&str]) -> Result<MemoryKv, KvError> {
        let dir = dir.into();
        disk.create_dir_all(&dir).map_err(|e| io_error("open", &e))?;
        let names: Vec<String> = families.iter().map(|name| (*name).to_owned()).collect();
        let maps = match read_file(disk.as_ref(), &dir.join(FILE)).map_err(|e| io_error("open", &e))? {
            Some(bytes) => decode(&bytes, &names).map_err(|what| KvError { doing: "open", message: what.into() })?,
            None => names.iter().map(|_| Arc::default()).collect(),
        };
        Ok(MemoryKv { disk, dir, names, maps: RwLock::new(maps), flushing: Mutex::new(()) })
    }

    fn map(&self, family: Family) -> Arc<Map> {
        Arc::clone(&self.maps.read().expect("no panic holds this lock")[usize::from(family.0)])
    }

    fn all(&self) -> Vec<Arc<Map>> {
        self.maps.read().expect("no panic holds this lock").clone()
    }

    fn save(&self, dir: &Path) -> io::Result<()> {
        let bytes = encode(&self.names, &self.all());
        let tmp = dir.join(FILE_TMP);
        if self.disk.exists(&tmp) {
            self.disk.remove(&tmp)?;
        }
        let file = self.disk.create(&tmp)?;
        file.write_all_at(&[&bytes], 0)?;
        file.sync()?;
        self.disk.rename(&tmp, &dir.join(FILE))?;
        self.disk.sync_dir(dir)
    }
}

impl KvRead for MemoryKv {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let maps = self.maps.read().expect("no panic holds this lock");
        Ok(maps[usize::from(family.0)].get(key).cloned())
    }

    fn scan<'a>(
        &'a self,
        family: Family,
        range: KeyRange,
        reverse: bool,
    ) -> Box<dyn Iterator<Item = Result<Entry, KvError>> + 'a> {
        Box::new(Scan { map: self.map(family), range, reverse })
    }
}

impl Kv for MemoryKv {
    fn write(&self, batch: Batch) -> Result<(), KvError> {
        let mut maps = self.maps.write().expect("no panic holds this lock");
        for (family, key, value) in batch.changes {
            let map = Arc::make_mut(&mut maps[usize::from(family.0)]);
            match value {
                Some(value) => drop(map.insert(key.into(), value.into())),
                None => drop(map.remove(key.as_slice())),
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), KvError> {
        let _one_at_a_time = self.flushing.lock().expect("no panic holds this lock");
        self.save(&self.dir).map_err(|e| io_error("flush", &e))
    }

    fn snapshot(&self) -> Box<dyn KvRead + '_> {
        Box::new(MemorySnapshot { maps: self.all() })
    }

    fn checkpoint(&self, dir: &Path) -> Result<(), KvError> {
        self.flush()?;
        if self.disk.exists(dir) {
            return Err(KvError { doing: "checkpoint", message: format!("{} exists", dir.display()) });
        }
        let _one_at_a_time = self.flushing.lock().expect("no panic holds this lock");
        self.disk.create_dir_all(dir).and_then(|()| self.save(dir)).map_err(|e| io_error("checkpoint", &e))
    }
}

impl fmt::Debug for MemoryKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryKv({})", self.dir.display())
    }
}

struct MemorySnapshot {
    maps: Vec<Arc<Map>>,
}

impl KvRead for MemorySnapshot {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.maps[usize::from(family.0)].get(key).cloned())
    }

    fn scan<'a>(
        &'a self,
        family: Family,
        range: KeyRange,
        reverse: bool,
    ) -> Box<dyn Iterator<Item = Result<Entry, KvError>> + 'a> {
        Box::new(Scan { map: Arc::clone(&self.maps[usize::from(family.0)]), range, reverse })
    }
}

/// Finds the next entry anew each time: it owns its map and what is left of the range, so it borrows nothing.
struct Scan {
    map: Arc<Map>,
    range: KeyRange,
    reverse: bool,
}

impl Iterator for Scan {
    type Item = Result<Entry, KvError>;

    fn next(&mut self) -> Option<Self::Item> {
        if is_empty(&self.range) {
            return None; // BTreeMap::range panics on these
        }
        let bounds = (as_slice(&self.range.0), as_slice(&self.range.1));
        let mut found = self.map.range::<[u8], _>(bounds);
        let (key, value) = if self.reverse { found.next_back()? } else { found.next()? };
        let entry = (key.clone(), value.clone());
        let passed = Bound::Excluded(key.to_vec());
        if self.reverse {
            self.range.1 = passed;
        } else {
            self.range.0 = passed;
        }
        Some(Ok(entry))
    }
}

fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}

fn is_empty(range: &KeyRange) -> bool {
    match (&range.0, &range.1) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => from >= to,
    }
}

fn io_error(doing: &'static str, error: &io::Error) -> KvError {
    KvError { doing, message: error.to_string() }
}

fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Option<Vec<u8>>> {
    if !disk.exists(path) {
        return Ok(None);
    }
    let file = disk.open(path)?;
    let mut bytes = vec![0; len_usize(file.len()?)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(Some(bytes))
}

fn encode(names: &[String], maps: &[Arc<Map>]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(len_u32(names.len()).to_le_bytes());
    for (name, map) in names.iter().zip(maps) {
        out.extend(len_u32(name.len()).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(len_u64(map.len()).to_le_bytes());
        for (key, value) in map.iter() {
            out.extend(len_u32(key.len()).to_le_bytes());
            out.extend(len_u32(value.len()).to_le_bytes());
            out.extend_from_slice(key);
            out.extend_from_slice(value);
        }
    }
    let sum = crc32c::crc32c(&out);
    out.extend(sum.to_le_bytes());
    out
}

/// Cuts fields off the front; `None` where the bytes end too early.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<usize> {
        let bytes = self.take(4)?.try_into().expect("4 bytes were taken");
        Some(len_usize(u32::from_le_bytes(bytes).into()))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().expect("8 bytes were taken")))
    }
}

fn decode(bytes: &[u8], names: &[String]) -> Result<Vec<Arc<Map>>, &'static str> {
    let (body, sum) = bytes.split_last_chunk::<4>().ok_or("the saved state is too short")?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
        return Err("the saved state is damaged: its checksum is wrong");
    }
    let rest = body.strip_prefix(&MAGIC).ok_or("the saved state has another format or version")?;
    let mut maps = vec![Map::new(); names.len()];
    let mut reader = Reader(rest);
    let short = "the saved state ends too early";
    for _ in 0..reader.u32().ok_or(short)? {
        let name_len = reader.u32().ok_or(short)?;
        let name = reader.take(name_len).ok_or(short)?;
        let at = names.iter().position(|n| n.as_bytes() == name).ok_or("the saved state has an unknown family")?;
        for _ in 0..reader.u64().ok_or(short)? {
            let (key_len, value_len) = (reader.u32().ok_or(short)?, reader.u32().ok_or(short)?);
            let key = Bytes::copy_from_slice(reader.take(key_len).ok_or(short)?);
            let value = Bytes::copy_from_slice(reader.take(value_len).ok_or(short)?);
            maps[at].insert(key, value);
        }
    }
    Ok(maps.into_iter().map(Arc::new).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;
    use crate::kv::contract;

    fn open(dir: &Path) -> Box<dyn Kv> {
        Box::new(MemoryKv::open(Arc::new(RealDisk), dir, &contract::FAMILIES).unwrap())
    }

    #[test]
    fn it_keeps_the_contract() {
        contract::run(&open);
    }

    #[test]
    fn a_damaged_file_is_an_error_at_any_byte() {
        let dir = tempfile::tempdir().unwrap();
        let kv = open(dir.path());
        let mut batch = Batch::default();
        batch.put(Family(0), b"key".to_vec(), b"value".to_vec());
        kv.write(batch).unwrap();
        kv.flush().unwrap();
        let path = dir.path().join(FILE);
        let sound = std::fs::read(&path).unwrap();
        for at in 0..sound.len() {
            let mut bad = sound.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, &bad).unwrap();
            let opened = MemoryKv::open(Arc::new(RealDisk), dir.path(), &contract::FAMILIES);
            assert!(opened.is_err(), "byte {at}");
        }
    }

    #[test]
    fn golden_bytes() {
        let map: Map = [(Bytes::from_static(b"k"), Bytes::from_static(b"vw"))].into();
        let bytes = encode(&["fam".to_owned()], &[Arc::new(map)]);
        let body = b"dfskv\0\0\x01\x01\0\0\0\x03\0\0\0fam\x01\0\0\0\0\0\0\0\x01\0\0\0\x02\0\0\0kvw";
        assert_eq!(&bytes[..bytes.len() - 4], body);
        assert_eq!(bytes[bytes.len() - 4..], crc32c::crc32c(body).to_le_bytes());
    }
}
