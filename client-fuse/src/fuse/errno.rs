//! What a program sees: one `match` from the fault's kind to the errno. No `_`: a new kind must be decided here.

use common::fault::Kind;
use fuser::Errno;

/// The errno of a kind of fault.
pub(crate) fn errno(kind: Kind) -> Errno {
    match kind {
        Kind::NotFound => Errno::ENOENT,
        Kind::Exists => Errno::EEXIST,
        Kind::NotEmpty => Errno::ENOTEMPTY,
        Kind::NotDir => Errno::ENOTDIR,
        Kind::IsDir => Errno::EISDIR,
        Kind::Invalid => Errno::EINVAL,
        Kind::NoSpace => Errno::ENOSPC,
        Kind::Denied => Errno::EACCES,
        Kind::NotPermitted => Errno::EPERM,
        Kind::NameTooLong => Errno::ENAMETOOLONG,
        Kind::TooManyLinks => Errno::EMLINK,
        Kind::TooBig => Errno::EFBIG,
        Kind::NoData => Errno::ENODATA,
        Kind::Range => Errno::ERANGE,
        Kind::Loop => Errno::ELOOP,
        Kind::Unsupported => Errno::EOPNOTSUPP,
        // The kernel looks the path up again, once, and then tells the program.
        Kind::Gone | Kind::Stale => Errno::ESTALE,
        // The client retried until the deadline: the cluster does not serve.
        Kind::NotLeader | Kind::Busy | Kind::Unavailable => Errno::ETIMEDOUT,
        // Lost, damaged, refused or unknown: nothing a program could do about it.
        Kind::Unsure
        | Kind::Corrupt
        | Kind::TouchAgain
        | Kind::PutAgain
        | Kind::NoSession
        | Kind::Refused
        | Kind::Internal => Errno::EIO,
    }
}

/// True if a program asked for something that cannot be: nothing for the log.
pub(crate) fn is_ordinary(kind: Kind) -> bool {
    match kind {
        Kind::NotFound
        | Kind::Exists
        | Kind::NotEmpty
        | Kind::NotDir
        | Kind::IsDir
        | Kind::Invalid
        | Kind::Denied
        | Kind::NotPermitted
        | Kind::NameTooLong
        | Kind::TooManyLinks
        | Kind::TooBig
        | Kind::NoData
        | Kind::Range
        | Kind::Loop
        | Kind::Unsupported
        | Kind::Gone => true,
        Kind::NoSpace
        | Kind::Stale
        | Kind::NotLeader
        | Kind::Busy
        | Kind::Unsure
        | Kind::Corrupt
        | Kind::TouchAgain
        | Kind::PutAgain
        | Kind::NoSession
        | Kind::Refused
        | Kind::Unavailable
        | Kind::Internal => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_being_away_is_told_apart_from_damage() {
        assert_eq!(i32::from(errno(Kind::Unavailable)), nix::libc::ETIMEDOUT);
        assert_eq!(i32::from(errno(Kind::Corrupt)), nix::libc::EIO);
        assert_eq!(i32::from(errno(Kind::NotFound)), nix::libc::ENOENT);
    }
}
