//! Small files that are there whole, or not at all.

use super::Disk;
use crate::units::len_usize;
use std::io;
use std::path::Path;

/// The longest such file, in bytes.
const LEN_MAX: u64 = 1 << 20;

/// Replaces a small file: its bytes, then their CRC32C. Durable when this returns; a crash leaves the old or the new.
pub fn write_checked(disk: &dyn Disk, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = dir.join(format!("{name}.new"));
    if disk.exists(&new) {
        disk.remove(&new)?;
    }
    let file = disk.create(&new)?;
    file.write_all_at(&[bytes, &crc32c::crc32c(bytes).to_le_bytes()], 0)?;
    file.sync()?;
    disk.rename(&new, &dir.join(name))?;
    disk.sync_dir(dir)
}

/// Reads what [`write_checked`] wrote. `None`: there is no such file.
pub fn read_checked(disk: &dyn Disk, path: &Path) -> io::Result<Option<Vec<u8>>> {
    if !disk.exists(path) {
        return Ok(None);
    }
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged", path.display()));
    let file = disk.open(path)?;
    let len = file.len()?;
    if !(4..=LEN_MAX).contains(&len) {
        return Err(damaged());
    }
    let mut bytes = vec![0; len_usize(len)];
    file.read_exact_at(&mut bytes, 0)?;
    let crc = bytes.split_off(bytes.len() - 4);
    if crc32c::crc32c(&bytes).to_le_bytes()[..] != crc {
        return Err(damaged());
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SimDisk;

    #[test]
    fn a_small_file_is_there_whole_or_as_it_was() {
        let whole = SimDisk::new(1);
        write_checked(&whole, Path::new("/"), "f", b"old").unwrap();
        let before = whole.writes();
        write_checked(&whole, Path::new("/"), "f", b"new and longer").unwrap();
        for cut in before..=whole.writes() {
            let disk = SimDisk::new(1).cut_after(cut);
            let written =
                ["old", "new and longer"].map(|bytes| write_checked(&disk, Path::new("/"), "f", bytes.as_bytes()));
            let found = read_checked(&disk.after_crash(), Path::new("/f")).unwrap().unwrap();
            let allowed: &[&[u8]] =
                if written[1].is_ok() { &[b"new and longer"] } else { &[b"old", b"new and longer"] };
            assert!(allowed.contains(&&found[..]), "cut after {cut}: {found:?}");
        }
        assert_eq!(read_checked(&whole, Path::new("/other")).unwrap(), None);
        whole.flip(Path::new("/f"), 3);
        assert_eq!(read_checked(&whole, Path::new("/f")).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
