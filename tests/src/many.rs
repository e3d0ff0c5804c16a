//! Very many files, and very many chunks, quickly.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Threads that make files, and files of chunks, at once.
const MAKERS: u64 = 8;
/// Files in one directory.
pub const FILES_PER_DIR: u64 = 1000;
/// Between two chunks of a file: a window of the default chunk size, so that each piece is a chunk of its own.
const WINDOW: u64 = 4 << 20;
/// Bytes of each piece: what is counted is rows, not bytes.
const PIECE: usize = 128;
/// Chunks between two syncs: more than are kept in the metadata, so that they are stored as chunks.
const CHUNKS_PER_SYNC: u64 = 1000;

/// Bytes at the end of each file of chunks.
const REST: usize = 64 << 10;

/// Bytes that no other (maker, number) has.
fn piece(maker: u64, number: u64) -> [u8; PIECE] {
    let mut bytes = [0; PIECE];
    for part in bytes.chunks_exact_mut(16) {
        part[..8].copy_from_slice(&maker.to_le_bytes());
        part[8..].copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

/// Runs `make` for each maker at once.
fn all(make: impl Fn(u64) -> io::Result<()> + Sync) -> io::Result<()> {
    let make = &make;
    std::thread::scope(|scope| {
        let makers: Vec<_> = (0..MAKERS).map(|maker| scope.spawn(move || make(maker))).collect();
        makers.into_iter().try_for_each(|maker| maker.join().expect("makers do not panic"))
    })
}

/// So many small files below `root`, [`FILES_PER_DIR`] in a directory (`d0`, `d1`, ...), each with other bytes.
///
/// # Errors
/// As the file system says.
pub fn make_files(root: &Path, count: u64) -> io::Result<()> {
    all(|maker| {
        for dir in (maker..count.div_ceil(FILES_PER_DIR)).step_by(usize::try_from(MAKERS).expect("few")) {
            let path = root.join(format!("d{dir}"));
            std::fs::create_dir(&path)?;
            for file in 0..FILES_PER_DIR.min(count - dir * FILES_PER_DIR) {
                File::create_new(path.join(format!("f{file}")))?.write_all(&piece(dir, file))?;
            }
        }
        Ok(())
    })
}

/// Reads one of the files again.
///
/// # Errors
/// As the file system says; or other bytes are in it.
pub fn check_file(root: &Path, dir: u64, file: u64) -> io::Result<()> {
    let bytes = std::fs::read(root.join(format!("d{dir}/f{file}")))?;
    if bytes == piece(dir, file) { Ok(()) } else { Err(io::Error::other(format!("d{dir}/f{file}: other bytes"))) }
}

/// Reads one of the chunks again: number `number` of all.
///
/// # Errors
/// As the file system says; or other bytes are in it.
pub fn check_chunk(root: &Path, number: u64) -> io::Result<()> {
    let (maker, its) = (number % MAKERS, number / MAKERS);
    let wanted = piece(u64::MAX - maker, its);
    let mut bytes = vec![0; wanted.len()];
    File::open(root.join(format!("chunks{maker}")))?.read_exact_at(&mut bytes, its * WINDOW)?;
    if bytes == wanted { Ok(()) } else { Err(io::Error::other(format!("chunk {its} of {maker}: other bytes"))) }
}

/// So many chunks of some bytes each, in a few sparse files below `root`; all synced.
///
/// # Errors
/// As the file system says.
pub fn make_chunks(root: &Path, count: u64) -> io::Result<()> {
    all(|maker| {
        let file = File::create_new(root.join(format!("chunks{maker}")))?;
        let its = count / MAKERS + u64::from(maker < count % MAKERS);
        for number in 0..its {
            file.write_all_at(&piece(u64::MAX - maker, number), number * WINDOW)?;
            if number % CHUNKS_PER_SYNC == CHUNKS_PER_SYNC - 1 {
                file.sync_all()?;
            }
        }
        // So that the rest is more than is kept in the metadata.
        file.write_all_at(&vec![1; REST], its * WINDOW)?;
        file.sync_all()
    })
}
