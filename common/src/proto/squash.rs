//! Root squash: root of a client's machine is nobody here, unless that machine is on a list.
//!
//! It guards against mistakes of other machines' roots, not against malice: who is root there can act as any other user.

use super::meta::Cred;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The most machines on the list.
pub const SQUASH_ALLOWED_MAX: usize = 1024;
/// Who root becomes unless said otherwise: `nobody` and `nogroup`.
pub const NOBODY: u32 = 65_534;

/// Who root becomes, and who stays root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Squash {
    /// The user for user 0.
    pub uid: u32,
    /// The group for group 0.
    pub gid: u32,
    /// Machines whose root stays root, at most [`SQUASH_ALLOWED_MAX`].
    pub allowed: Vec<IpAddr>,
}

/// What an administrator asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SquashAsk {
    /// How is it?
    Show,
    /// From now on so; `None`: root is root everywhere.
    Set(Option<Squash>),
}

impl Squash {
    /// True if it would change this.
    pub fn concerns(cred: &Cred) -> bool {
        cred.uid == 0 || cred.gid == 0 || cred.groups.contains(&0)
    }

    /// On whose behalf something is that was asked `from` there (`None`: not known).
    pub fn apply(&self, cred: Cred, from: Option<IpAddr>) -> Cred {
        if from.is_some_and(|from| self.allowed.iter().any(|ip| ip.to_canonical() == from.to_canonical())) {
            return cred;
        }
        let group = |gid| if gid == 0 { self.gid } else { gid };
        Cred {
            uid: if cred.uid == 0 { self.uid } else { cred.uid },
            gid: group(cred.gid),
            groups: cred.groups.into_iter().map(group).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_group_zero_become_nobody_but_on_machines_that_are_allowed() {
        let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let squash = Squash { uid: 99, gid: 98, allowed: vec![ip("10.0.0.1").unwrap(), ip("::1").unwrap()] };
        let cred = |uid, gid, groups: &[u32]| Cred { uid, gid, groups: groups.to_vec() };
        let root = cred(0, 0, &[0, 5]);
        for (from, expected) in [
            (ip("10.0.0.1"), root.clone()),
            (ip("::ffff:10.0.0.1"), root.clone()),
            (ip("::1"), root.clone()),
            (ip("10.0.0.2"), cred(99, 98, &[98, 5])),
            (None, cred(99, 98, &[98, 5])),
        ] {
            assert_eq!(squash.apply(root.clone(), from), expected, "{from:?}");
        }
        for (before, after) in [
            (cred(7, 7, &[5]), cred(7, 7, &[5])),
            (cred(7, 0, &[]), cred(7, 98, &[])),
            (cred(7, 7, &[0]), cred(7, 7, &[98])),
        ] {
            assert_eq!(Squash::concerns(&before), before != after);
            assert_eq!(squash.apply(before, None), after);
        }
    }
}
