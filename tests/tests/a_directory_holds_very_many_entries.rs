//! One directory with 100,000 entries (1,000,000 with `DFS_TEST_FULL`): each is listed once, also while others come and go,
//! and found by name.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use client_fuse::{Client, ClientConfig};
use common::id::InodeId;
use common::name::Name;
use common::proto::meta::{Cred, NewNode};
use common::world::World;
use futures::StreamExt;
use std::collections::BTreeSet;
use std::fs;
use tests::cluster::Cluster;
use tests::content::full;

/// Clients that make entries, each with [`AT_ONCE`] requests under way: what a session has slots for.
const CLIENTS: u32 = 4;
const AT_ONCE: usize = 64;
/// Entries removed, and as many made, while the directory is listed.
const CHANGES: u32 = 100;

fn text(number: u32) -> String {
    format!("entry-{number:07}")
}

async fn fill(metaservers: Vec<String>, parent: InodeId, from: u32, count: u32) {
    let client = Client::connect(ClientConfig::new(metaservers), World::real()).await.unwrap();
    let make = |number| {
        let client = &client;
        async move {
            let name = Name::new(text(number).as_bytes()).unwrap();
            client.create(&Cred::default(), parent, &name, NewNode::File, 0o644).await.unwrap();
        }
    };
    futures::stream::iter((from..count).step_by(usize::try_from(CLIENTS).unwrap()).map(make))
        .buffer_unordered(AT_ONCE)
        .for_each(|()| async {})
        .await;
    client.shutdown().await.unwrap();
}

#[test]
fn each_entry_of_a_very_large_directory_is_found_and_listed_once() {
    tests::skip_if!(no_mount);
    let count: u32 = if full() { 1_000_000 } else { 100_000 };
    let mut cluster = Cluster::start_with(1, 1);
    let mnt = cluster.mount("m");
    let dir = mnt.join("large");
    fs::create_dir(&dir).unwrap();
    let parent = InodeId(std::os::unix::fs::MetadataExt::ino(&fs::metadata(&dir).unwrap()));
    let start = tokio::time::Instant::now();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let fills = (0..CLIENTS).map(|from| fill(cluster.metaservers(), parent, from, count));
        futures::future::join_all(fills).await;
    });
    eprintln!("{count} entries made in {:?}", start.elapsed());

    let start = tokio::time::Instant::now();
    let mut listed = BTreeSet::new();
    for entry in fs::read_dir(&dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(listed.insert(name.clone()), "{name} twice");
    }
    eprintln!("listed in {:?}", start.elapsed());
    assert!(listed.iter().eq((0..count).map(text).collect::<Vec<_>>().iter()), "{} listed", listed.len());
    for number in [0, 1, count / 2, count - 1] {
        assert!(fs::metadata(dir.join(text(number))).unwrap().is_file());
    }
    assert_eq!(fs::metadata(dir.join(text(count))).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    // While entries come and go, before and behind what is shown just then, those that stay are listed once.
    let (mut seen, mut gone) = (BTreeSet::new(), BTreeSet::new());
    for (step, entry) in (0_u32..).zip(fs::read_dir(&dir).unwrap()) {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(seen.insert(name.clone()), "{name} twice");
        if step < count && step.is_multiple_of(count / CHANGES) {
            let number = u64::from(step) * 7919 % u64::from(count);
            let number = u32::try_from(number).unwrap();
            fs::remove_file(dir.join(text(number))).unwrap();
            fs::File::create(dir.join(format!("new-{step}"))).unwrap();
            gone.insert(text(number));
        }
    }
    let stayed = listed.difference(&gone);
    assert_eq!(stayed.filter(|name| !seen.contains(*name)).collect::<Vec<_>>(), Vec::<&String>::new());
    let now: BTreeSet<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(now.len(), listed.len(), "as many came as went");
    assert!(gone.iter().all(|name| !now.contains(std::ffi::OsStr::new(name))));
}
