//! Which wishes may be carried out (DESIGN 7): grants that name their ask, rounds that every owner has confirmed. Plain.
//!
//! That a wish still *stands* is not known here: the store looks, in one step with the delete.

use common::id::ServerId;
use common::proto::keep::Nonced;
use common::rules::{Rule, is_broken};
use std::collections::{BTreeMap, BTreeSet};

/// Those of these asks that were granted. A grant names chunk and nonce of its ask; one that matches none is ignored.
pub fn granted(asks: &[Nonced], grants: &[Nonced]) -> Vec<Nonced> {
    let told: BTreeSet<&Nonced> = grants.iter().collect();
    let by_chunk = |ask: &Nonced| is_broken(Rule::GrantNamesItsAsk) && grants.iter().any(|grant| grant.0 == ask.0);
    asks.iter().filter(|ask| told.contains(ask) || by_chunk(ask)).copied().collect()
}

/// Drop rounds that this server has opened, all with the same owners.
#[derive(Clone, Debug)]
pub struct Rounds {
    owners: BTreeSet<ServerId>,
    /// Who has confirmed each.
    confirmed: BTreeMap<Nonced, BTreeSet<ServerId>>,
}

impl Rounds {
    /// Nobody has confirmed anything yet. `owners`: at least one.
    pub fn open(owners: &[ServerId], rounds: impl IntoIterator<Item = Nonced>) -> Rounds {
        let confirmed = rounds.into_iter().map(|round| (round, BTreeSet::new())).collect();
        Rounds { owners: owners.iter().copied().collect(), confirmed }
    }

    /// An owner vouches for its copies in answer to these rounds. What is no round of ours is ignored.
    pub fn confirm(&mut self, owner: ServerId, rounds: &[Nonced]) {
        let told: BTreeSet<&Nonced> = rounds.iter().collect();
        let by_chunk =
            |round: &Nonced| is_broken(Rule::ConfirmationNamesItsRound) && rounds.iter().any(|told| told.0 == round.0);
        for (round, by) in &mut self.confirmed {
            if told.contains(round) || by_chunk(round) {
                by.insert(owner);
            }
        }
    }

    /// The rounds that every owner has confirmed, and the others.
    pub fn split(&self) -> (Vec<Nonced>, Vec<Nonced>) {
        let complete = |by: &BTreeSet<ServerId>| {
            is_broken(Rule::EveryOwnerConfirms) || (!self.owners.is_empty() && self.owners.is_subset(by))
        };
        let (done, open): (Vec<_>, Vec<_>) = self.confirmed.iter().partition(|(_, by)| complete(by));
        let rounds = |of: Vec<(&Nonced, _)>| of.into_iter().map(|(round, _)| *round).collect();
        (rounds(done), rounds(open))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::id::ChunkId;

    #[test]
    fn a_round_is_done_when_every_owner_has_confirmed_this_one() {
        let (a, b) = ((ChunkId([1; 32]), 1), (ChunkId([2; 32]), 2));
        let mut rounds = Rounds::open(&[ServerId(1), ServerId(2)], [a, b]);
        rounds.confirm(ServerId(1), &[a, (b.0, 9)]);
        rounds.confirm(ServerId(1), &[a]);
        rounds.confirm(ServerId(3), &[a, b]);
        assert_eq!(rounds.split(), (vec![], vec![a, b]));
        rounds.confirm(ServerId(2), &[a, b, (ChunkId([3; 32]), 3)]);
        assert_eq!(rounds.split(), (vec![a], vec![b]), "one owner confirmed another round of b");
        assert_eq!(granted(&[a, b], &[(a.0, 7), b]), [b]);
    }
}
