//! Records that several writers append to one file, and whether each is there once, whole, and in its writer's order.
//!
//! A record is a line: writer, number, filler, checksum of all before it. Lengths differ, so that a torn or overlapping one
//! cannot look whole.

use std::collections::BTreeMap;

/// The longest filler, in bytes.
const FILLER_MAX: u64 = 240;

/// Record `number` of `writer`, with its end of line.
pub fn record(writer: usize, number: u64) -> Vec<u8> {
    let len = usize::try_from((number * 37 + common::units::len_u64(writer) * 11) % FILLER_MAX).expect("below a page");
    let mut line = format!("{writer} {number} {} ", "x".repeat(len)).into_bytes();
    let check = blake3::hash(&line).to_hex();
    line.extend_from_slice(&check.as_bytes()[..16]);
    line.push(b'\n');
    line
}

/// Checks that the bytes are records, each writer's in order from 0 on and without a gap. Returns how many each has.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(bytes: &[u8]) -> Result<BTreeMap<usize, u64>, String> {
    let mut next: BTreeMap<usize, u64> = BTreeMap::new();
    let mut at = 0;
    while at < bytes.len() {
        let end = bytes[at..].iter().position(|byte| *byte == b'\n');
        let end = at + end.ok_or_else(|| format!("at {at}: no end of line"))? + 1;
        let line = String::from_utf8_lossy(&bytes[at..end]);
        let mut words = line.split(' ');
        let writer = words.next().and_then(|word| word.parse().ok());
        let number = words.next().and_then(|word| word.parse().ok());
        let (Some(writer), Some(number)) = (writer, number) else { return Err(format!("at {at}: {line:?}")) };
        if bytes[at..end] != record(writer, number) {
            return Err(format!("at {at}: torn: {line:?}"));
        }
        let wanted = next.entry(writer).or_default();
        if *wanted != number {
            return Err(format!("at {at}: record {number} of writer {writer}, not {wanted}"));
        }
        *wanted += 1;
        at = end;
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(records: &[(usize, u64)]) -> Vec<u8> {
        records.iter().flat_map(|(writer, number)| record(*writer, *number)).collect()
    }

    #[test]
    fn a_lost_doubled_swapped_or_torn_record_is_found() {
        let whole = file(&[(0, 0), (1, 0), (1, 1), (0, 1)]);
        assert_eq!(check(&whole), Ok(BTreeMap::from([(0, 2), (1, 2)])));
        for wrong in [[(0, 0), (1, 1)], [(0, 0), (0, 0)], [(0, 1), (0, 0)], [(0, 0), (0, 2)]] {
            check(&file(&wrong)).unwrap_err();
        }
        let mut torn = whole.clone();
        torn.drain(3..9);
        check(&torn).unwrap_err();
        let mut zeros = whole.clone();
        zeros[12..20].fill(0);
        check(&zeros).unwrap_err();
        check(&whole[..whole.len() - 1]).unwrap_err();
    }
}
