//! [`super::Kv`] on RocksDB, without a write-ahead log.
//!
//! Whoever uses it has a log of its own (the Raft log, the chunk segments), so a second one would only cost syncs. A
//! flush is atomic over all families: after a crash the store is as it was at the last flush, RocksDB's own (a full
//! memtable) or ours.
//!
//! Invariants:
//! 1. After the first error of RocksDB, in a call or in its background work, every later call fails: a store that lost
//!    a write must not go on as if it had not. Restart it; it comes back at its last flush.
//! 2. Memory is bounded by [`Tuning`]: one block cache holds blocks, index and filters, and pays for the memtables.
//!    (The limit is not RocksDB's "strict" one: under that a read *fails* when the cache is full of pinned blocks.)
//!
//! Left out: compression dictionaries, several disks, tuning per family.

use super::{Batch, Entry, Family, KeyRange, Kv, KvError, KvRead};
use crate::disk::{Disk, RealDisk};
use bytes::Bytes;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    FlushOptions, IteratorMode, Options, ReadOptions, WriteBatch, WriteBufferManager, WriteOptions, properties,
};
use std::fmt;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What a store may use.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Blocks, index, filters and memtables together, in bytes.
    pub cache_bytes: usize,
    /// Memtables of all families together, in bytes; when they reach it they are flushed. A part of `cache_bytes`.
    pub memtable_bytes: usize,
    /// Threads for flushes and compactions.
    pub background_jobs: u8,
    /// Table files open at once.
    pub open_files: u16,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning { cache_bytes: 192 << 20, memtable_bytes: 64 << 20, background_jobs: 2, open_files: 512 }
    }
}

/// Bits per key of the bloom filters: about 1 % false positives.
const BLOOM_BITS: f64 = 10.0;
/// Size of a data block, in bytes, before compression.
const BLOCK_LEN: usize = 8 << 10;
/// RocksDB's own log files: how many are kept, and the size of each in bytes.
const INFO_LOGS: usize = 4;
const INFO_LOG_LEN: usize = 4 << 20;

/// A store in a directory of the real file system. RocksDB's lock keeps a second process, or a second store, out.
pub struct RocksKv {
    db: DB,
    dir: PathBuf,
    names: Vec<String>,
    /// Made once: a get is short enough to notice.
    reads: ReadOptions,
    /// The first error, for all that come after.
    failed: OnceLock<String>,
}

impl RocksKv {
    /// Opens or makes the store in `dir`. New families start empty; families that are there must be named.
    ///
    /// # Errors
    /// Damaged files, a store that is open elsewhere, or a disk that fails.
    pub fn open(dir: &Path, families: &[&str], tuning: &Tuning) -> Result<RocksKv, KvError> {
        RealDisk.create_dir_all(dir).map_err(|e| KvError { doing: "open", message: e.to_string() })?;
        let cache = Cache::new_lru_cache(tuning.cache_bytes);
        let options = options(tuning, &cache);
        let descriptors = families.iter().map(|name| ColumnFamilyDescriptor::new(*name, options.clone()));
        let db = DB::open_cf_descriptors(&options, dir, descriptors)
            .map_err(|e| KvError { doing: "open", message: e.to_string() })?;
        let names = families.iter().map(|name| (*name).to_owned()).collect();
        Ok(RocksKv { db, dir: dir.to_owned(), names, reads: read_options(), failed: OnceLock::new() })
    }

    fn family(&self, family: Family) -> &ColumnFamily {
        self.db.cf_handle(&self.names[usize::from(family.0)]).expect("all named families were opened")
    }

    fn families(&self) -> Vec<&ColumnFamily> {
        (0..).map(Family).take(self.names.len()).map(|family| self.family(family)).collect()
    }

    fn check(&self, doing: &'static str) -> Result<(), KvError> {
        match self.failed.get() {
            Some(first) => Err(KvError { doing, message: format!("the store failed before: {first}") }),
            None => Ok(()),
        }
    }

    fn check_background(&self, doing: &'static str) -> Result<(), KvError> {
        self.check(doing)?;
        let errors = self.db.property_int_value(properties::BACKGROUND_ERRORS).map_err(|e| self.fail(doing, &e))?;
        if errors.unwrap_or(0) > 0 {
            let message = "a flush or compaction failed in the background; see LOG in the store's directory";
            let _ = self.failed.set(message.to_owned());
        }
        self.check(doing)
    }

    fn fail(&self, doing: &'static str, error: &rocksdb::Error) -> KvError {
        let message = error.to_string();
        let _ = self.failed.set(format!("{doing}: {message}"));
        KvError { doing, message }
    }

    fn get_with(&self, family: Family, key: &[u8], options: &ReadOptions) -> Result<Option<Bytes>, KvError> {
        self.check("get")?;
        let found = self.db.get_pinned_cf_opt(self.family(family), key, options);
        Ok(found.map_err(|e| self.fail("get", &e))?.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan_with<'a>(
        &'a self,
        family: Family,
        range: KeyRange,
        reverse: bool,
        mut options: ReadOptions,
    ) -> Box<dyn Iterator<Item = Result<Entry, KvError>> + 'a> {
        if let Err(error) = self.check("scan") {
            return Box::new(std::iter::once(Err(error)));
        }
        // RocksDB's bounds: the lower one included, the upper one excluded. `key\0` is the next key after `key`.
        let lower = match range.0 {
            Bound::Unbounded => Vec::new(),
            Bound::Included(key) => key,
            Bound::Excluded(key) => after(key),
        };
        let upper = match range.1 {
            Bound::Unbounded => None,
            Bound::Included(key) => Some(after(key)),
            Bound::Excluded(key) => Some(key),
        };
        if upper.as_ref().is_some_and(|upper| *upper <= lower) {
            return Box::new(std::iter::empty());
        }
        if let Some(upper) = upper {
            options.set_iterate_upper_bound(upper);
        }
        options.set_iterate_lower_bound(lower);
        let mode = if reverse { IteratorMode::End } else { IteratorMode::Start };
        let found = self.db.iterator_cf_opt(self.family(family), options, mode);
        Box::new(found.map(move |entry| match entry {
            Ok((key, value)) => Ok((key.into(), value.into())),
            Err(error) => Err(self.fail("scan", &error)),
        }))
    }
}

fn after(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

fn options(tuning: &Tuning, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(BLOCK_LEN);
    table.set_format_version(6);
    table.set_bloom_filter(BLOOM_BITS, false);
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);

    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_atomic_flush(true);
    options.set_paranoid_checks(true);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    let memtables =
        WriteBufferManager::new_write_buffer_manager_with_cache(tuning.memtable_bytes, false, cache.clone());
    options.set_write_buffer_manager(&memtables);
    options.set_write_buffer_size(tuning.memtable_bytes);
    options.set_max_write_buffer_number(4);
    options.set_max_background_jobs(i32::from(tuning.background_jobs.max(2)));
    options.set_max_open_files(i32::from(tuning.open_files));
    options.set_keep_log_file_num(INFO_LOGS);
    options.set_max_log_file_size(INFO_LOG_LEN);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

fn read_options() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_verify_checksums(true);
    options
}

impl KvRead for RocksKv {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.get_with(family, key, &self.reads)
    }

    fn scan<'a>(
        &'a self,
        family: Family,
        range: KeyRange,
        reverse: bool,
    ) -> Box<dyn Iterator<Item = Result<Entry, KvError>> + 'a> {
        self.scan_with(family, range, reverse, read_options())
    }
}

impl Kv for RocksKv {
    fn write(&self, batch: Batch) -> Result<(), KvError> {
        self.check_background("write")?;
        let mut changes = WriteBatch::default();
        for (family, key, value) in &batch.changes {
            match value {
                Some(value) => changes.put_cf(self.family(*family), key, value),
                None => changes.delete_cf(self.family(*family), key),
            }
        }
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.db.write_opt(changes, &options).map_err(|e| self.fail("write", &e))
    }

    fn flush(&self) -> Result<(), KvError> {
        self.check_background("flush")?;
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db.flush_cfs_opt(&self.families(), &options).map_err(|e| self.fail("flush", &e))?;
        self.check_background("flush")
    }

    fn snapshot(&self) -> Box<dyn KvRead + '_> {
        Box::new(RocksSnapshot { store: self, snapshot: self.db.snapshot() })
    }

    fn checkpoint(&self, dir: &Path) -> Result<(), KvError> {
        self.flush()?;
        let made = Checkpoint::new(&self.db).and_then(|checkpoint| checkpoint.create_checkpoint(dir));
        // Not fatal for the store: the directory may exist, its file system may be full.
        made.map_err(|e| KvError { doing: "checkpoint", message: e.to_string() })?;
        sync_all_of(dir).map_err(|e| KvError { doing: "checkpoint", message: e.to_string() })
    }
}

/// RocksDB promises little about what a checkpoint has synced: sync its files (links to tables that were synced long
/// ago cost nothing), its directory and the directory that holds it.
fn sync_all_of(dir: &Path) -> std::io::Result<()> {
    for name in RealDisk.list(dir)? {
        RealDisk.open(&dir.join(name))?.sync()?;
    }
    RealDisk.sync_dir(dir)?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => RealDisk.sync_dir(parent),
        _ => RealDisk.sync_dir(Path::new(".")),
    }
}

impl fmt::Debug for RocksKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RocksKv({})", self.dir.display())
    }
}

struct RocksSnapshot<'a> {
    store: &'a RocksKv,
    snapshot: rocksdb::Snapshot<'a>,
}

impl RocksSnapshot<'_> {
    fn options(&self) -> ReadOptions {
        let mut options = read_options();
        options.set_snapshot(&self.snapshot);
        options
    }
}

impl KvRead for RocksSnapshot<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.store.get_with(family, key, &self.options())
    }

    fn scan<'a>(
        &'a self,
        family: Family,
        range: KeyRange,
        reverse: bool,
    ) -> Box<dyn Iterator<Item = Result<Entry, KvError>> + 'a> {
        self.store.scan_with(family, range, reverse, self.options())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::contract;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    const ONE: Family = Family(0);
    const TWO: Family = Family(1);
    const CHILD_DIR: &str = "DFS_ROCKS_CRASH_DIR";

    fn small() -> Tuning {
        Tuning { cache_bytes: 8 << 20, memtable_bytes: 1 << 20, background_jobs: 2, open_files: 64 }
    }

    fn open(dir: &Path) -> Box<dyn Kv> {
        Box::new(RocksKv::open(dir, &contract::FAMILIES, &small()).unwrap())
    }

    #[test]
    fn it_keeps_the_contract() {
        contract::run(&open);
    }

    /// Not a test by itself: the process that `a_killed_store_reopens_at_a_flush` kills.
    #[test]
    #[ignore = "run by another test, as a process to be killed"]
    fn writes_until_killed() {
        let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
        let kv = open(Path::new(&dir));
        for i in 0u64.. {
            let mut batch = Batch::default();
            batch.put(ONE, i.to_be_bytes(), vec![7; 500]);
            batch.put(TWO, b"last".to_vec(), i.to_be_bytes());
            kv.write(batch).unwrap();
            if i % 100 == 0 {
                kv.flush().unwrap();
                println!("flushed {i}");
            }
        }
    }

    #[test]
    fn a_killed_store_reopens_at_a_flush() {
        for flushes in [1, 3, 17] {
            let dir = tempfile::tempdir().unwrap();
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "kv::rocks::tests::writes_until_killed", "--ignored", "--nocapture"])
                .env(CHILD_DIR, dir.path())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
            let reported = lines.filter_map(|line| Some(line.split_once("flushed ")?.1.parse::<u64>().unwrap()));
            let promised = reported.take(flushes).last().unwrap();
            child.kill().unwrap(); // SIGKILL
            child.wait().unwrap();

            let kv = open(dir.path());
            let last = kv.get(TWO, b"last").unwrap().unwrap();
            let last = u64::from_be_bytes(last.as_ref().try_into().unwrap());
            assert!(last >= promised, "flushed {promised}, found {last}");
            let rows = kv.scan(ONE, (Bound::Unbounded, Bound::Unbounded), false).count();
            assert_eq!(crate::units::len_u64(rows), last + 1, "both families are at the same batch");
        }
    }

    #[test]
    fn a_flipped_byte_in_a_table_is_an_error_and_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        {
            let kv = open(dir.path());
            let mut batch = Batch::default();
            for i in 0..2000u32 {
                batch.put(ONE, i.to_be_bytes(), blake3::hash(&i.to_be_bytes()).as_bytes().to_vec());
            }
            kv.write(batch).unwrap();
            kv.flush().unwrap();
        }
        let tables =
            RealDisk.list(dir.path()).unwrap().into_iter().filter(|n| n.extension().is_some_and(|e| e == "sst"));
        for name in tables {
            let path = dir.path().join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[20_000] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
        let kv = open(dir.path());
        let bad = kv.scan(ONE, (Bound::Unbounded, Bound::Unbounded), false).find_map(Result::err);
        assert!(bad.is_some(), "the scan met the damaged block");
        assert!(kv.get(ONE, &0u32.to_be_bytes()).is_err(), "later calls fail too");
        assert!(kv.write(Batch::default()).is_err() && kv.flush().is_err());
    }

    #[test]
    fn a_store_opens_once_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let _first = open(dir.path());
        assert!(RocksKv::open(dir.path(), &contract::FAMILIES, &small()).is_err());
    }
}
