//! What a person reads when a command fails: one line with the path, the cause, and what to do.

use common::fault::{Fault, Kind};
use std::fmt;

/// Why a command failed. Prints as one line, without `dfs: ` in front.
#[derive(Debug)]
pub(crate) struct Failure {
    line: String,
    advice: Option<String>,
    details: Option<String>,
}

/// What a command gives back.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A cause in words.
    pub(crate) fn new(line: impl Into<String>) -> Failure {
        Failure { line: line.into(), advice: None, details: None }
    }

    /// `doing` something to `what` failed because of `cause`.
    pub(crate) fn at(doing: impl fmt::Display, what: impl fmt::Display, cause: impl fmt::Display) -> Failure {
        Failure::new(format!("{doing} {what}: {}", one_line(&cause.to_string())))
    }

    /// The cluster refused: its words, and what to do about that kind of fault.
    pub(crate) fn fault(doing: impl fmt::Display, what: impl fmt::Display, fault: &Fault) -> Failure {
        let (first, rest) = fault.message.split_once('\n').unwrap_or((&fault.message, ""));
        let advice = advice_for(fault.kind).map(str::to_owned);
        let details = (!rest.is_empty()).then(|| rest.to_owned());
        Failure { advice, details, ..Failure::at(doing, what, first) }
    }

    /// What to do about it.
    pub(crate) fn advice(mut self, advice: impl Into<String>) -> Failure {
        self.advice = Some(advice.into());
        self
    }

    /// The line without advice.
    pub(crate) fn cause(&self) -> &str {
        &self.line
    }

    /// Further lines, such as the end of a log.
    pub(crate) fn details(mut self, details: impl Into<String>) -> Failure {
        self.details = Some(details.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)?;
        if let Some(advice) = &self.advice {
            write!(f, "; {advice}")?;
        }
        if let Some(details) = &self.details {
            write!(f, "\n{details}")?;
        }
        Ok(())
    }
}

/// What a person can do about a kind of fault. `None`: the cause says it all.
fn advice_for(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::NoSpace => Some("add space or servers, or remove files"),
        Kind::Denied => Some("check owner and mode with `dfs stat`"),
        Kind::NotPermitted => Some("only the owner or root may"),
        Kind::NotEmpty => Some("remove its entries first, or use -r"),
        Kind::IsDir => Some("use -r for directories"),
        Kind::Unavailable | Kind::NotLeader | Kind::Busy => {
            Some("see `dfs admin status`; a majority of the metaservers and enough chunkservers must run")
        }
        Kind::Unsure => Some("it may have happened: look before repeating"),
        Kind::Corrupt => Some("no replica is sound: restore the file from a copy"),
        Kind::NoSession => Some("the session expired: run the command again"),
        Kind::Internal => Some("this is a bug: keep the servers' logs"),
        Kind::Stale | Kind::TouchAgain | Kind::PutAgain => Some("somebody else changed it meanwhile: run it again"),
        Kind::NotFound
        | Kind::Exists
        | Kind::NotDir
        | Kind::Invalid
        | Kind::NameTooLong
        | Kind::TooManyLinks
        | Kind::TooBig
        | Kind::NoData
        | Kind::Range
        | Kind::Loop
        | Kind::Unsupported
        | Kind::Refused
        | Kind::Gone => None,
    }
}

fn one_line(text: &str) -> String {
    text.trim_end().replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_path_cause_and_what_to_do_in_one_line() {
        let fault = Fault::new(Kind::NoSpace, "no space left: 1 of 3 chunkservers is writable");
        let line = Failure::fault("put", "/a/b", &fault).to_string();
        let wanted = "put /a/b: no space left: 1 of 3 chunkservers is writable; add space or servers, or remove files";
        assert_eq!(line, wanted);
        assert_eq!(Failure::at("read", "x", "two\nlines\n").to_string(), "read x: two; lines");
        let fault = Fault::new(Kind::Refused, "it has the last copies of:\n  a\n  b");
        assert_eq!(
            Failure::fault("remove", "s1", &fault).to_string(),
            "remove s1: it has the last copies of:\n  a\n  b"
        );
    }
}
