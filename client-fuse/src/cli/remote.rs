//! A path in dfs, as bytes: it need not be UTF-8.

use super::failure::{Failure, Outcome};
use common::name::Name;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

/// An absolute path in dfs, without a slash at the end (except `/` itself). Prints with what is not UTF-8 replaced.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Remote(Vec<u8>);

impl Remote {
    /// Takes what was typed; a path without a slash in front starts at the root.
    pub(crate) fn new(typed: &OsStr) -> Remote {
        let mut bytes = Vec::with_capacity(typed.len() + 1);
        if !typed.as_bytes().starts_with(b"/") {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(typed.as_bytes());
        while bytes.len() > 1 && bytes.last() == Some(&b'/') {
            bytes.pop();
        }
        Remote(bytes)
    }

    /// For `Client::walk`.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path of an entry of this directory.
    pub(crate) fn join(&self, name: &[u8]) -> Remote {
        let mut bytes = self.0.clone();
        if bytes.last() != Some(&b'/') {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Remote(bytes)
    }

    /// The directory part and the last name. `doing` is for the error: `/`, `.` and `..` have no name.
    pub(crate) fn split(&self, doing: &str) -> Outcome<(Remote, Name)> {
        if self.0 == b"/" {
            return Err(Failure::at(doing, self, "that is the root of the file system").advice("name something in it"));
        }
        let slash = self.0.iter().rposition(|b| *b == b'/').expect("absolute");
        let name = Name::new(&self.0[slash + 1..]).map_err(|e| Failure::at(doing, self, e))?;
        let parent = if slash == 0 { b"/".to_vec() } else { self.0[..slash].to_vec() };
        Ok((Remote(parent), name))
    }

    /// The last name, if it has one.
    pub(crate) fn name(&self) -> Option<Name> {
        self.split("").ok().map(|(_, name)| name)
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(text: &str) -> Remote {
        Remote::new(OsStr::new(text))
    }

    #[test]
    fn paths_are_absolute_and_end_without_a_slash() {
        for (typed, path) in [("", "/"), ("/", "/"), ("a", "/a"), ("/a/b//", "/a/b"), ("//", "/")] {
            assert_eq!(remote(typed).to_string(), path);
        }
        assert_eq!(remote("/").join(b"x").to_string(), "/x");
        assert_eq!(remote("/a").join(b"x").to_string(), "/a/x");
    }

    #[test]
    fn the_last_name_is_checked() {
        let (parent, name) = remote("/a/b").split("make").unwrap();
        assert_eq!((parent.to_string(), name.as_bytes()), ("/a".into(), &b"b"[..]));
        assert_eq!(remote("/b").split("make").unwrap().0.to_string(), "/");
        for bad in ["/", "/a/..", "/."] {
            assert!(remote(bad).split("make").is_err(), "{bad}");
        }
    }
}
