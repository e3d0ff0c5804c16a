//! What sessions have opened: a descriptor stays valid over a later `chmod`, `chown` or change of the ACL.
//!
//! A commit, a clone, a truncation of what is open, a look at extents, and a listing that goes on are let through if mode and ACL
//! allow them now, if the owner asks (who could allow them to himself), or if the session was let open or use the file so before. The last is
//! here: in the leader's memory only, and bounded. So after a change of leader, or behind [`RIGHTS_MAX`] other opens, a
//! descriptor of somebody who is neither owner nor root ends with a `chmod` or `chown` that takes the right away.
//!
//! All this only while root of some machines is nobody ([`common::proto::squash`]): else who goes round a mount may as well say
//! that it is root, and there is nothing to guard. Then mounts also ask for every open.

use common::id::{InodeId, SessionId};
use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

/// Opens that are remembered, at most; the oldest go first.
const RIGHTS_MAX: usize = if cfg!(test) { 3 } else { 1 << 16 };

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Rights {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Bits of `ACCESS_*`.
    of: HashMap<(SessionId, InodeId), u8>,
    /// The keys of `of`, as they came.
    order: VecDeque<(SessionId, InodeId)>,
}

impl Rights {
    /// A session was let open this.
    pub(crate) fn note(&self, session: SessionId, ino: InodeId, access: u8) {
        let mut table = self.table.lock().expect("no panic holds this lock");
        if let Some(known) = table.of.get_mut(&(session, ino)) {
            *known |= access;
            return;
        }
        if table.order.len() == RIGHTS_MAX
            && let Some(oldest) = table.order.pop_front()
        {
            table.of.remove(&oldest);
        }
        table.of.insert((session, ino), access);
        table.order.push_back((session, ino));
    }

    /// Whether it was, with some of these rights.
    pub(crate) fn has(&self, session: SessionId, ino: InodeId, access: u8) -> bool {
        let table = self.table.lock().expect("no panic holds this lock");
        table.of.get(&(session, ino)).is_some_and(|known| known & access != 0)
    }

    /// The session is over.
    pub(crate) fn ended(&self, session: SessionId) {
        let mut table = self.table.lock().expect("no panic holds this lock");
        table.order.retain(|(of, _)| *of != session);
        table.of.retain(|(of, _), _| *of != session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::proto::meta::{ACCESS_READ, ACCESS_WRITE};

    #[test]
    fn the_newest_opens_of_sessions_that_live_are_remembered() {
        let (rights, one, two) = (Rights::default(), SessionId(1), SessionId(2));
        rights.note(one, InodeId(1), ACCESS_READ);
        assert!(rights.has(one, InodeId(1), ACCESS_READ) && !rights.has(one, InodeId(1), ACCESS_WRITE));
        assert!(!rights.has(two, InodeId(1), ACCESS_READ) && !rights.has(one, InodeId(2), ACCESS_READ));
        rights.note(one, InodeId(1), ACCESS_WRITE);
        rights.note(two, InodeId(1), ACCESS_WRITE);
        rights.note(one, InodeId(2), ACCESS_READ);
        assert!(rights.has(one, InodeId(1), ACCESS_WRITE));
        rights.note(two, InodeId(2), ACCESS_READ);
        assert!(!rights.has(one, InodeId(1), ACCESS_WRITE), "the oldest went");
        rights.ended(two);
        assert!(!rights.has(two, InodeId(1), ACCESS_WRITE) && rights.has(one, InodeId(2), ACCESS_READ));
        let table = rights.table.lock().unwrap();
        assert_eq!((table.of.len(), table.order.len()), (1, 1));
    }
}
