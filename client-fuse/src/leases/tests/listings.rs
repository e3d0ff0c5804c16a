//! Directories that are leased whole.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_listing_that_crossed_own_changes_does_not_deny_them() {
    let leases: Arc<Leases> = Arc::default();
    leases.inside().in_session(S);
    let (before, between, under_way) = (create("a"), create("b"), create("c"));
    let first = leases.change(&before, AT);
    assert!(leases.inside().lists(DIR, Instant::now()));
    let asking = leases.asking(AT);
    done(first, &before, &created(A));
    done(leases.change(&between, AT), &between, &created(B));
    let last = leases.change(&under_way, AT);
    leases.inside().listed(DIR, asking.mark, (AT, AT), listing(3, &[("z", InodeId(40))]));
    for text in ["a", "b", "c"] {
        assert_eq!(entry(&leases, text), Entry::Unknown, "{text}");
    }
    assert_eq!((entry(&leases, "d"), entry(&leases, "z")), (Entry::Absent, Entry::Leads(InodeId(40))));
    assert_eq!(mode(&leases, DIR), None);
    drop(last);
}

/// The leader would take the older one, which is believed in, for given back as well: others could change what is shown.
#[tokio::test(start_paused = true)]
async fn a_newer_lease_that_brings_nothing_does_not_end_an_older_one() {
    let newer = |leases: &Leases, mark: u64, number: u64| {
        let mut answer = listing(3, &[]);
        answer.as_mut().unwrap().listing.as_mut().unwrap().leases = vec![number];
        leases.inside().listed(DIR, mark, (AT, AT), answer);
    };
    let rename = Op::Rename {
        from: InodeId(8),
        from_name: name("x"),
        to: InodeId(8),
        to_name: name("y"),
        mode: RenameMode::Replace,
        keep: false,
    };

    // A change of nobody knows what makes the second listing useless.
    let leases = held(&[("a", A)]);
    assert!(leases.inside().lists(DIR, Instant::now()));
    let asking = leases.asking(AT);
    let change = leases.change(&rename, AT);
    newer(&leases, asking.mark, 50);
    change.undone();
    assert_eq!(entry(&leases, "b"), Entry::Absent, "still believed");
    assert_eq!(call(&leases).given_back, []);
    leases.inside().forget(DIR);
    assert_eq!(call(&leases).given_back, [(DIR, 50)]);

    // What came with a change of its own is useless, but not the listing that was asked for before.
    let leases: Arc<Leases> = Arc::default();
    leases.inside().in_session(S);
    assert!(leases.inside().lists(DIR, Instant::now()));
    let asking = leases.asking(AT);
    let op = create("a");
    let change = leases.change(&op, AT);
    leases.asking(AT).answered(S, AT, &[&attr(DIR, 0o700)], &Grants { term: 3, leases: vec![60] });
    newer(&leases, asking.mark, 50);
    assert_eq!(entry(&leases, "b"), Entry::Absent, "believed");
    assert_eq!(call(&leases).given_back, []);
    change.undone();
    leases.inside().forget(DIR);
    assert_eq!(call(&leases).given_back, [(DIR, 60)]);
}

/// Answers overtake each other.
#[tokio::test(start_paused = true)]
async fn an_answer_from_before_a_lease_was_given_back_is_not_kept() {
    let leases = held(&[("a", A)]);
    let early = leases.asking(AT);
    assert!(leases.inside().lists(DIR, Instant::now()));
    let listing_asked = leases.asking(AT);
    leases.inside().forget(DIR); // as for want of room
    leases.inside().forget(A);
    early.answered(S, AT, &[&attr(A, 0o644)], &Grants { term: 3, leases: vec![8] });
    leases.inside().listed(DIR, listing_asked.mark, (AT, AT), listing(3, &[("a", A)]));
    assert_eq!((mode(&leases, A), mode(&leases, DIR), entry(&leases, "b")), (None, None, Entry::Unknown));

    // What has run out is given back as well.
    let leases = held(&[("a", A)]);
    let early = leases.asking(AT);
    leases.inside().forget_run_out(AT + LEASE_TERM);
    assert!(call(&leases).given_back.contains(&(A, 12)));
    early.answered(S, AT, &[&attr(A, 0o644)], &Grants { term: 3, leases: vec![8] });
    assert_eq!(mode(&leases, A), None);
}

/// Numbers rise: one that is granted later does not end with one that is given back.
#[tokio::test(start_paused = true)]
async fn a_newer_lease_is_kept_though_an_older_one_was_given_back() {
    let leases = held(&[]);
    let op = chmod(A);
    let change = leases.change(&op, AT);
    let (first, second) = (leases.asking(AT), leases.asking(AT));
    change.undone();
    let (third, fourth) = (leases.asking(AT), leases.asking(AT));
    let answer = |asking: Asking, lease| {
        asking.answered(S, AT, &[&attr(A, 0o644)], &Grants { term: 3, leases: vec![lease] });
    };
    answer(first, 40);
    answer(second, 42);
    assert_eq!(mode(&leases, A), None, "asked for before the change was over");
    answer(third, 41);
    assert_eq!(mode(&leases, A), None, "it went with the newer one");
    answer(fourth, 44);
    assert_eq!(mode(&leases, A), Some(0o644));
}

/// It was answered before another session made the name, which the listing shows.
#[tokio::test(start_paused = true)]
async fn a_lookup_from_before_a_listing_says_nothing_of_it() {
    let leases: Arc<Leases> = Arc::default();
    leases.inside().in_session(S);
    let op = create("a");
    let change = leases.change(&op, AT);
    assert!(leases.inside().lists(DIR, Instant::now()));
    let listing_asked = leases.asking(AT);
    done(change, &op, &Err(Fault::new(Kind::Exists, "a")));
    let lookup = leases.asking(AT);
    leases.inside().listed(DIR, listing_asked.mark, (AT, AT), listing(3, &[("a", A)]));
    leases.inside().found(DIR, &name("a"), lookup.mark, None);
    assert_eq!(entry(&leases, "a"), Entry::Unknown);
    let lookup = leases.asking(AT);
    leases.inside().found(DIR, &name("a"), lookup.mark, Some(A));
    assert_eq!(entry(&leases, "a"), Entry::Leads(A), "one that was asked for later does");
}

/// Its answer came so late that the directory was known already, with what others of this machine had made in it.
#[tokio::test(start_paused = true)]
async fn a_late_answer_does_not_empty_a_new_directory() {
    let leases: Arc<Leases> = Arc::default();
    leases.inside().in_session(S);
    let node = NewNode::Dir;
    let op = Op::Create { parent: InodeId(8), name: name("d"), node, mode: 0o700, exclusive: true, access: 0 };
    let change = leases.change(&op, AT);
    assert!(leases.inside().lists(DIR, Instant::now()));
    let asking = leases.asking(AT);
    leases.inside().listed(DIR, asking.mark, (AT, AT), listing(3, &[("a", A)]));
    let made = Outcome::Created { attr: attr(DIR, 0o700), new: true, parent: attr(DIR, 0o700) };
    done(change, &op, &submitted(made, vec![30, 0]));
    assert_eq!(entry(&leases, "a"), Entry::Leads(A));
}

/// The answer to the first would be taken for that of the second, with what this session changed since *that* was asked.
#[tokio::test(start_paused = true)]
async fn a_directory_is_asked_for_once_at_a_time() {
    let leases: Arc<Leases> = Arc::default();
    leases.inside().in_session(S);
    assert!(leases.inside().lists(DIR, Instant::now()));
    let asking = leases.asking(AT);
    let (remove, make) = (unlink("z"), create("z"));
    let (first, second) = (leases.change(&remove, AT), leases.change(&make, AT)); // in which order, nobody knows
    done(second, &make, &created(B));
    done(first, &remove, &submitted(Outcome::Removed { ino: B, nlink: 0 }, vec![]));
    assert!(!leases.inside().lists(DIR, Instant::now()) && !leases.inside().looked(DIR, Instant::now()));
    leases.inside().listed(DIR, asking.mark, (AT, AT), listing(3, &[("z", B)]));
    assert_eq!(entry(&leases, "z"), Entry::Unknown);
    assert!(leases.inside().lists(DIR, Instant::now()), "now it may be asked for again");
}
