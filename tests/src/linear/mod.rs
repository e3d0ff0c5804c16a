//! Is what several mounts saw one file system? Histories of calls, and a search for one order that explains them.
//!
//! Each process (a thread on some mount) makes one call after the other; noted are the call, its answer, and the times
//! before and after, on one clock. The history is right if each call can be given a moment between its two times at
//! which it took effect, so that a file system in memory gives the same answers (Herlihy and Wing 1990). A call without
//! an answer (an error that does not say whether it happened) may have happened at any later moment, or never.
//!
//! | file | answers |
//! | --- | --- |
//! | [`model`] | the file system in memory, one atomic step at a time |
//! | [`search`] | is there such an order (Wing and Gong 1993; kept narrow as by Lowe 2017) |
//! | [`work`] | makes random calls on real mounts and notes them |
//!
//! What a call is: `open` + `pwrite` + `fsync` + `close` is one write, that takes effect once for all others between its
//! `open` and the end of its `fsync`. Its own mount may see it earlier, so a mount has one process that works with
//! contents; others there work with names, and their sizes are not compared. A path of two names is walked in two steps,
//! as everywhere: the directory may be moved between them, and a file that was opened may lose its name before it is read.
//!
//! Worlds (directories that no call leaves) are searched one by one: a history is linearizable if and only if it is so for
//! each object.

pub mod model;
pub mod search;
#[cfg(test)]
mod tests;
pub mod work;

/// A name in a world.
pub type Name = &'static str;

/// A path of one or two names inside a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Spot {
    /// The directory; `None`: the world itself.
    pub dir: Option<Name>,
    /// The name in it.
    pub name: Name,
}

/// What a process asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `open(O_CREAT | O_EXCL)`; the answer is its inode number.
    Create(Spot),
    /// `unlink`.
    Unlink(Spot),
    /// `mkdir` in the world itself.
    Mkdir(Name),
    /// `rmdir` in the world itself.
    Rmdir(Name),
    /// `rename`, of files or of directories, never mixed.
    Rename(Spot, Spot),
    /// `link`.
    Link(Spot, Spot),
    /// `lstat`.
    Stat(Spot),
    /// All names of a directory; `None`: of the world itself.
    List(Option<Name>),
    /// Opens, writes these bytes at that offset, syncs.
    Write(Spot, usize, Vec<u8>),
    /// Opens with `O_APPEND`, writes, syncs.
    Append(Spot, Vec<u8>),
    /// Opens and sets the length.
    Truncate(Spot, usize),
    /// Opens and reads everything.
    Read(Spot),
}

/// What it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Success.
    Done,
    /// Success, on the file with that inode number.
    On(u64),
    /// Attributes. `size`: `None` if it is not compared.
    Attr {
        /// Inode number.
        ino: u64,
        /// Of a file: how many names.
        links: Option<usize>,
        /// Of a file, in bytes.
        size: Option<usize>,
    },
    /// Names, sorted.
    Names(Vec<Name>),
    /// Contents of the file with that inode number.
    Bytes(u64, Vec<u8>),
    /// An error that says that nothing happened, and why.
    Refused(Refusal),
}

/// Errors that are answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `ENOENT`; `ESTALE` too, which says that what the path led to was removed meanwhile.
    Missing,
    /// `EEXIST`.
    Exists,
    /// `ENOTEMPTY`.
    NotEmpty,
}

/// One call of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who, for messages: mount and process.
    pub who: String,
    /// In which world.
    pub world: usize,
    /// What.
    pub call: Call,
    /// `None`: it may have happened, or may still.
    pub answer: Option<Answer>,
    /// Before the call, in nanoseconds on the history's clock.
    pub from: u64,
    /// After it.
    pub to: u64,
}

impl std::fmt::Display for Spot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.dir {
            Some(dir) => write!(f, "{dir}/{}", self.name),
            None => f.write_str(self.name),
        }
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (from, to) = (self.from / 1000, self.to / 1000);
        write!(f, "{from:>9}..{to:>9} us  w{} {:<6} {:?} -> ", self.world, self.who, self.call)?;
        match &self.answer {
            Some(answer) => write!(f, "{answer:?}"),
            None => f.write_str("unknown"),
        }
    }
}

impl Call {
    /// True if it changes nothing, whatever the answer.
    pub fn only_looks(&self) -> bool {
        matches!(self, Call::Stat(_) | Call::List(_) | Call::Read(_))
    }
}
