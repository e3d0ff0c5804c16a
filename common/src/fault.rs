//! The one error that crosses the wire: `kind` is for the caller, `message` for a person.

use crate::name::NameError;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What went wrong on the other side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What the caller does about it.
    pub kind: Kind,
    /// For a person: what was attempted, on what, why it failed. No trailing full stop.
    pub message: String,
    /// With [`Kind::NotLeader`]: the address of the leader, `host:port`, if known.
    pub leader: Option<String>,
}

/// What a caller does. Part of the protocol: new kinds go last, old ones keep their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// There is no such thing. Nothing happened; do not retry. (`ENOENT`)
    NotFound,
    /// The name is taken. (`EEXIST`)
    Exists,
    /// The directory has entries. (`ENOTEMPTY`)
    NotEmpty,
    /// A directory was needed. (`ENOTDIR`)
    NotDir,
    /// A directory was not wanted. (`EISDIR`)
    IsDir,
    /// The request makes no sense. (`EINVAL`)
    Invalid,
    /// No room, or too few writable servers for the replica count. (`ENOSPC`)
    NoSpace,
    /// Permission bits refuse. (`EACCES`)
    Denied,
    /// Only the owner or root may. (`EPERM`)
    NotPermitted,
    /// A name or a path is too long. (`ENAMETOOLONG`)
    NameTooLong,
    /// Too many hard links. (`EMLINK`)
    TooManyLinks,
    /// The file would be larger than the limit. (`EFBIG`)
    TooBig,
    /// No such extended attribute. (`ENODATA`)
    NoData,
    /// A value does not fit the buffer or the limit. (`ERANGE`)
    Range,
    /// Too many symlinks on the way. (`ELOOP`)
    Loop,
    /// Not supported for this object. (`EOPNOTSUPP`)
    Unsupported,
    /// The inode is gone. (`ESTALE`)
    Gone,
    /// Nothing happened: what was assumed is out of date. Look up again, then retry. A sequence number that does not
    /// fit its slot is this, too: see [`Kind::is_kept`].
    Stale,
    /// Nothing happened: this metaserver does not lead. Ask the one in `leader`, or another.
    NotLeader,
    /// Nothing happened; retry after a pause.
    Busy,
    /// It may have happened (timeout, lost reply, failed disk): repeat with the same request id only.
    Unsure,
    /// This replica is bad; use another. If no other is left: `EIO`.
    Corrupt,
    /// The witness is below the deletion horizon: touch or put the chunks again, with a new witness.
    TouchAgain,
    /// The layout moved on or receipts are missing: fetch the layout, put again.
    PutAgain,
    /// The session is unknown or expired: open a new one. Unsaved data of the old one is lost. (`EIO`)
    NoSession,
    /// The peer refused the connection: other cluster, other version, or a role that may not do this.
    Refused,
    /// No majority, or no server, within the deadline. (`ETIMEDOUT`)
    Unavailable,
    /// A broken invariant on the other side. (`EIO`)
    Internal,
}

impl Fault {
    /// A fault with a message for a person.
    pub fn new(kind: Kind, message: impl Into<String>) -> Fault {
        Fault { kind, message: message.into(), leader: None }
    }

    /// This node does not lead; `leader` may.
    pub fn not_leader(leader: Option<String>) -> Fault {
        Fault { kind: Kind::NotLeader, message: "this metaserver is not the leader".into(), leader }
    }

    /// The same fault with what was being done in front: `"put /a/b: no space"`.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Fault {
        self.message = format!("{doing}: {}", self.message);
        self
    }
}

impl From<NameError> for Fault {
    fn from(error: NameError) -> Fault {
        let kind = match error {
            NameError::TooLong => Kind::NameTooLong,
            NameError::Invalid => Kind::Invalid,
        };
        Fault::new(kind, error.to_string())
    }
}

impl Kind {
    /// True if a session's slot keeps a reply of this kind, so that a repetition gets it again. The others say that
    /// nothing happened and that the caller should do something first; the same sequence number then runs again.
    pub fn is_kept(self) -> bool {
        match self {
            Kind::Stale
            | Kind::Busy
            | Kind::TouchAgain
            | Kind::PutAgain
            | Kind::NoSession
            | Kind::NotLeader
            | Kind::Unsure
            | Kind::Unavailable => false,
            Kind::NotFound
            | Kind::Exists
            | Kind::NotEmpty
            | Kind::NotDir
            | Kind::IsDir
            | Kind::Invalid
            | Kind::NoSpace
            | Kind::Denied
            | Kind::NotPermitted
            | Kind::NameTooLong
            | Kind::TooManyLinks
            | Kind::TooBig
            | Kind::NoData
            | Kind::Range
            | Kind::Loop
            | Kind::Unsupported
            | Kind::Gone
            | Kind::Corrupt
            | Kind::Refused
            | Kind::Internal => true,
        }
    }

    /// True if the request may be sent again, unchanged and with the same request id, and might then succeed.
    pub fn is_transient(self) -> bool {
        match self {
            Kind::NotLeader | Kind::Busy | Kind::Unsure | Kind::Unavailable => true,
            Kind::NotFound
            | Kind::Exists
            | Kind::NotEmpty
            | Kind::NotDir
            | Kind::IsDir
            | Kind::Invalid
            | Kind::NoSpace
            | Kind::Denied
            | Kind::NotPermitted
            | Kind::NameTooLong
            | Kind::TooManyLinks
            | Kind::TooBig
            | Kind::NoData
            | Kind::Range
            | Kind::Loop
            | Kind::Unsupported
            | Kind::Gone
            | Kind::Stale
            | Kind::Corrupt
            | Kind::TouchAgain
            | Kind::PutAgain
            | Kind::NoSession
            | Kind::Refused
            | Kind::Internal => false,
        }
    }
}
