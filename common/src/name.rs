//! A checked name of a directory entry.

use crate::units::NAME_LEN_MAX;
use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

/// The name of a directory entry: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`. Any other bytes go.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Name(Vec<u8>);

/// Why bytes are no [`Name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Longer than 255 bytes (`ENAMETOOLONG`).
    #[error("name is longer than 255 bytes")]
    TooLong,
    /// Empty, `.`, `..`, or with `/` or NUL inside (`EINVAL`).
    #[error("name is empty, \".\", \"..\", or holds '/' or NUL")]
    Invalid,
}

impl Name {
    /// Checks and takes a name.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Name, NameError> {
        let bytes = bytes.into();
        if bytes.len() > NAME_LEN_MAX {
            return Err(NameError::TooLong);
        }
        let forbidden =
            bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|b| *b == b'/' || *b == 0);
        if forbidden { Err(NameError::Invalid) } else { Ok(Name(bytes)) }
    }

    /// The bytes as they were given.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for Name {
    type Error = NameError;
    fn try_from(bytes: Vec<u8>) -> Result<Name, NameError> {
        Name::new(bytes)
    }
}

impl From<Name> for Vec<u8> {
    fn from(name: Name) -> Vec<u8> {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_posix_names_pass() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert_eq!(Name::new(bad), Err(NameError::Invalid));
        }
        assert_eq!(Name::new([b'x'; 256]), Err(NameError::TooLong));
        for good in [&b"a"[..], b"...", b"\xff\xfe", &[b'x'; 255]] {
            assert!(Name::new(good).is_ok());
        }
    }
}
