//! What is decided here under a write lease, and told later.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_only_this_client_may_change_it_decides() {
    let leases = held(&[("a", A)]);
    assert_eq!(
        decide(&leases, &unlink("a")),
        Decision::Reserve,
        "that tells the metaservers that it decides something"
    );
    leases.reserved(S, InodeId(500), 100);
    let Decision::Claim(wanted) = decide(&leases, &unlink("a")) else { panic!("its leases are shared") };
    assert_eq!(wanted.len(), 2, "the directory, and what is in it");
    let leases = written(&[("a", A)]);
    assert!(is_done(&decide(&leases, &create("new"))) && is_done(&decide(&leases, &unlink("a"))));
    assert_eq!((entry(&leases, "a"), entry(&leases, "new")), (Entry::Absent, Entry::Leads(InodeId(500))));
    assert_eq!(decide(&leases, &create("new")), Decision::Ask, "refusals are the metaservers'");
    let changes = tell(&leases).changes;
    assert_eq!(changes.iter().map(|change| change.op.clone()).collect::<Vec<_>>(), [create("new"), unlink("a")]);
    assert!(leases.untold().is_empty());
    assert_eq!(leases.inside().known[&InodeId(500)].lease, 901, "the lease of what it made has its number now");
}

#[tokio::test(start_paused = true)]
async fn a_write_lease_is_given_up_only_when_all_is_told() {
    let leases = written(&[("a", A)]);
    assert!(is_done(&decide(&leases, &create("new"))));
    let before = call(&leases);
    leases.recalled(&before, (AT, AT), &Recalls { term: 3, last: 4, inodes: vec![DIR], renewed: false });
    assert_eq!(decide(&leases, &create("more")), Decision::Ask);
    let Next { call: unsent, flush, tell: told, .. } = next(&leases);
    assert!(flush && unsent.forgot == 4 && told == [DIR]);
    leases.inside().not_called(unsent);
    assert!(next(&leases).flush, "it could not be told: it is still to be told first");
    tell(&leases);
    let Next { call, flush, .. } = next(&leases);
    assert!(!flush && call.forgot == 4);
}

#[tokio::test(start_paused = true)]
async fn before_a_new_leader_hears_anything_what_was_decided_is_told() {
    let leases = written(&[("a", A)]);
    assert!(is_done(&decide(&leases, &create("new"))));
    let before = call(&leases);
    leases.recalled(&before, (AT, AT), &Recalls { term: 4, last: 0, inodes: vec![], renewed: false });
    let ask = next(&leases);
    assert!(!ask.flush && ask.call.term == 0, "it asks who leads");
    leases.recalled(&ask.call, (AT, AT), &Recalls { term: 4, last: 0, inodes: vec![], renewed: false });
    let Next { call, flush, .. } = next(&leases);
    assert!(flush && call.term == 4, "then says that it holds nothing of others");
    leases.asking(AT).answered(S, AT, &[&attr(B, 0o600)], &Grants { term: 4, leases: vec![90] });
    assert_eq!(mode(&leases, B), None, "its leases are not taken before that");
    assert_eq!(leases.inside().journal.batch().unwrap().1.term, 3, "and it is told under whose leases it was decided");
    tell(&leases);
    leases.inside().calling(&call);
    leases.asking(AT).answered(S, AT, &[&attr(B, 0o600)], &Grants { term: 4, leases: vec![90] });
    assert_eq!(mode(&leases, B), Some(0o600));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_decided_of_what_a_change_under_way_may_change() {
    let leases = written(&[("a", A), ("b", B)]);
    let op = chmod(A);
    let change = leases.change(&op, AT);
    assert_eq!(decide(&leases, &unlink("a")), Decision::Ask);
    assert!(is_done(&decide(&leases, &create("new"))), "of others it is");
    change.undone();
    let op = unlink("b");
    let change = leases.change(&op, AT);
    assert_eq!(decide(&leases, &create("b2")), Decision::Ask, "the directory is being changed");
    change.undone();
    assert!(is_done(&decide(&leases, &create("b2"))));
}

#[tokio::test(start_paused = true)]
async fn an_answer_asked_for_before_a_decision_does_not_undo_it() {
    let leases = written(&[("a", A)]);
    let asking = leases.asking(AT);
    assert!(is_done(&decide(
        &leases,
        &Op::SetAttr { ino: A, set: SetAttr { mode: Some(0o640), ..SetAttr::default() } }
    )));
    asking.answered(S, AT, &[&attr(A, 0o777)], &Grants { term: 3, leases: vec![95] });
    assert_eq!(mode(&leases, A), Some(0o640));
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_is_not_believed_and_its_numbers_are_not_used_again() {
    let leases = written(&[("a", A)]);
    assert!(is_done(&decide(&leases, &create("new"))) && is_done(&decide(&leases, &create("more"))));
    let lost = leases.lose(Fault::new(Kind::Stale, "others came before")).unwrap();
    assert_eq!((lost.count, leases.losses(), !leases.untold().is_empty()), (2, 1, false));
    assert!(lost.inodes.contains(&InodeId(500)) && lost.inodes.contains(&DIR));
    assert_eq!((entry(&leases, "new"), entry(&leases, "a")), (Entry::Unknown, Entry::Unknown));
    assert!(leases.lose(Fault::new(Kind::Stale, "again")).is_none() && leases.losses() == 1);
    assert_eq!(leases.inside().journal.number(S), Some(InodeId(502)));
}
