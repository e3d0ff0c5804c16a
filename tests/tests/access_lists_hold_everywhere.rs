//! POSIX ACLs: set and shown by the usual tools, enforced for processes of other users, inherited, copied; and by the
//! metaservers, whatever a client says it has checked.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use client_fuse::{Client, ClientConfig, OpenFlags};
use common::fault::Kind;
use common::id::InodeId;
use common::proto::meta::{Cred, SetAttr, XattrMode};
use common::world::World;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tests::cluster::Cluster;
use tests::command::{Ended, as_user, run};
use tests::wait::wait_until;

const LIMIT: Duration = Duration::from_secs(60);
/// What one mount changed another one knows within this: attributes are believed for a second.
const SEEN_LIMIT: Duration = Duration::from_secs(5);
/// Users and groups that need not exist.
const ANN: u32 = 70_001;
const BOB: u32 = 70_002;
const TEAM: u32 = 70_100;

fn start() -> (Cluster, PathBuf) {
    let mut cluster = Cluster::start_with(1, 1);
    cluster.open_to_all();
    let mnt = cluster.mount("m");
    (cluster, mnt)
}

/// Runs a script as root.
fn sh(dir: &Path, script: &str) -> Ended {
    run(Command::new("sh").args(["-ec", script]).current_dir(dir), LIMIT)
}

/// Whether a user's script succeeds.
fn can(dir: &Path, uid: u32, groups: &[u32], script: &str) -> bool {
    let script = format!("cd {} && {script}", dir.display());
    let ended = run(&mut as_user(uid, groups, &script), LIMIT);
    assert!(ended.ok() || ended.err.contains("denied") || ended.err.contains("not permitted"), "{ended}");
    ended.ok()
}

/// `getfacl` without its header.
fn shown(dir: &Path, name: &str) -> String {
    sh(dir, &format!("getfacl -cn {name}")).must().text().trim().replace('\n', " ")
}

#[test]
fn named_users_and_groups_get_what_the_list_says() {
    tests::skip_if!(no_mount, no_root, no_acl_tools);
    let (_cluster, mnt) = start();
    sh(&mnt, "echo secret > f; chmod 600 f; mkdir d; chmod 700 d; echo deep > d/deep; chmod 644 d/deep").must();
    assert!(!can(&mnt, ANN, &[], "cat f"));
    sh(&mnt, &format!("setfacl -m u:{ANN}:rw,g:{TEAM}:r f; setfacl -m u:{ANN}:x d")).must();
    let expected = format!("user::rw- user:{ANN}:rw- group::--- group:{TEAM}:r-- mask::rw- other::---");
    assert_eq!(shown(&mnt, "f"), expected);
    assert!(sh(&mnt, "ls -l f").must().text().starts_with("-rw-rw----+"), "{}", sh(&mnt, "ls -l f"));
    assert!(can(&mnt, ANN, &[], "cat f && echo more >> f"));
    assert!(can(&mnt, BOB, &[TEAM], "cat f") && !can(&mnt, BOB, &[TEAM], "echo more >> f"));
    assert!(!can(&mnt, BOB, &[], "cat f"));
    // Also on a path that the kernel has just walked for somebody else.
    assert!(can(&mnt, ANN, &[], "cat d/deep") && !can(&mnt, ANN, &[], "ls d"));
    fs::read(mnt.join("d/deep")).unwrap();
    assert!(!can(&mnt, BOB, &[], "cat d/deep") && !can(&mnt, BOB, &[], "stat d/deep"));
    assert!(!can(&mnt, ANN, &[], &format!("setfacl -m u:{BOB}:rw f")), "only the owner changes it");

    // `chmod` changes the mask, and `stat` shows it.
    sh(&mnt, "chmod 640 f").must();
    assert!(can(&mnt, ANN, &[], "cat f") && !can(&mnt, ANN, &[], "echo more >> f"));
    assert!(shown(&mnt, "f").contains("mask::r--"), "{}", shown(&mnt, "f"));
    sh(&mnt, &format!("setfacl -x u:{ANN} f")).must();
    assert!(!can(&mnt, ANN, &[], "cat f"));
    sh(&mnt, "setfacl -b f").must();
    assert_eq!(fs::metadata(mnt.join("f")).unwrap().mode() & 0o777, 0o600, "the group's own entry again");
    assert!(sh(&mnt, "ls -l f").must().text().starts_with("-rw------- "));
    assert!(!can(&mnt, BOB, &[TEAM], "cat f"));
}

#[test]
fn what_is_new_inherits_and_the_umask_counts_only_without_a_default() {
    tests::skip_if!(no_mount, no_root, no_acl_tools);
    let (cluster, mnt) = start();
    let make = "umask 077; echo x > f; mkdir sub; mkfifo p; ln -s f l";
    sh(&mnt, &format!("mkdir plain; cd plain; {make}")).must();
    let modes =
        |dir: &str| ["f", "sub", "p"].map(|name| fs::metadata(mnt.join(dir).join(name)).unwrap().mode() & 0o7777);
    assert_eq!(modes("plain"), [0o600, 0o700, 0o600]);
    sh(&mnt, &format!("mkdir shared; setfacl -d -m u:{ANN}:rwX,g::r-X,o::- shared; cd shared; {make}")).must();
    assert_eq!(modes("shared"), [0o660, 0o770, 0o660], "mask, not umask");
    let file = format!("user::rw- user:{ANN}:rwx #effective:rw- group::r-x #effective:r-- mask::rw- other::---");
    assert_eq!(shown(&mnt, "shared/f").replace('\t', " ").split_whitespace().collect::<Vec<_>>().join(" "), file);
    let dir = shown(&mnt, "shared/sub");
    assert!(dir.contains(&format!("default:user:{ANN}:rwx")) && dir.contains(&format!("user:{ANN}:rwx")), "{dir}");
    fs::set_permissions(mnt.join("shared"), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(can(&mnt, ANN, &[], "cat shared/f && echo more >> shared/f && touch shared/sub/new"));
    assert!(!can(&mnt, BOB, &[], "cat shared/f"));
    assert!(shown(&mnt, "shared/sub/new").contains(&format!("user:{ANN}:rwx")));
    cluster.dfs(&["mkdir", "/shared/by-command"]).must();
    assert!(cluster.dfs(&["ls", "-l", "/shared"]).must().text().contains("drwxrwx---+"), "as any other program");
    sh(&mnt, "setfacl -k shared; umask 077; echo x > shared/after").must();
    assert_eq!(fs::metadata(mnt.join("shared/after")).unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn copies_take_the_lists_along() {
    tests::skip_if!(no_mount, no_root, no_acl_tools, no_rsync);
    let (_cluster, mnt) = start();
    sh(
        &mnt,
        &format!(
            "mkdir -p a/sub; echo x > a/f; echo y > a/plain; setfacl -m u:{ANN}:r a/f; setfacl -m g:{TEAM}:rx a/sub
             setfacl -d -m u:{BOB}:rwx a/sub; touch a/sub/inherits
             cp -a a by-cp; rsync -aA a/ by-rsync; cp -a a {local}; cp -a {local} back; tar --acls -cf - a | tar --acls -C .. -tf -",
            local = mnt.parent().unwrap().join("local-copy").display(),
        ),
    )
    .must();
    let lists = |dir: &str| sh(&mnt.join(dir), "find . | sort | getfacl -n -").must().text().to_owned();
    assert!(lists("a").contains(&format!("default:user:{BOB}:rwx")));
    for copy in ["by-cp", "by-rsync", "back", "../local-copy"] {
        assert_eq!(lists(copy), lists("a"), "{copy}");
    }
}

#[test]
fn the_metaservers_enforce_it_and_other_mounts_learn_of_it() {
    tests::skip_if!(no_mount, no_root, no_acl_tools);
    let (mut cluster, mnt) = start();
    let other = cluster.mount("other");
    sh(&mnt, "echo secret > f; chmod 600 f").must();
    assert!(!can(&other, ANN, &[], "cat f"));
    let cred = |uid| Cred { uid, gid: uid, groups: Vec::new() };
    let ino = InodeId(fs::metadata(mnt.join("f")).unwrap().ino());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // A client that checks nothing itself.
    let client = runtime.block_on(Client::connect(ClientConfig::new(cluster.metaservers()), World::real())).unwrap();
    let open = |uid, write| {
        let flags = OpenFlags { read: true, write, ..OpenFlags::default() };
        let opened = runtime.block_on(client.open(&cred(uid), ino, flags));
        opened.map(|handle| runtime.block_on(client.release(&handle)).unwrap()).map_err(|fault| fault.kind)
    };
    assert_eq!(open(ANN, false), Err(Kind::Denied));
    sh(&mnt, &format!("setfacl -m u:{ANN}:r f")).must();
    assert_eq!((open(ANN, false), open(ANN, true), open(BOB, false)), (Ok(()), Err(Kind::Denied), Err(Kind::Denied)));
    assert!(can(&other, ANN, &[], "cat f"), "what the kernel refuses it looks at again");
    let name = b"system.posix_acl_access";
    let list = runtime.block_on(client.getxattr(&cred(BOB), ino, name)).unwrap();
    for uid in [ANN, BOB] {
        let set = runtime.block_on(client.setxattr(&cred(uid), ino, name, &list, XattrMode::Any));
        assert_eq!(set.unwrap_err().kind, Kind::NotPermitted);
    }
    let bad = runtime.block_on(client.setxattr(&cred(0), ino, name, &list[..list.len() - 1], XattrMode::Any));
    assert_eq!(bad.unwrap_err().kind, Kind::Invalid);
    let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    runtime.block_on(client.setattr(&cred(0), ino, set)).unwrap();
    assert_eq!(open(ANN, false), Err(Kind::Denied), "the mask is empty");
    assert!(!can(&mnt, ANN, &[], "cat f") && !can(&other, ANN, &[], "cat f"), "an open is always decided there");
    runtime.block_on(client.setxattr(&cred(0), ino, name, &list, XattrMode::Any)).unwrap();
    for mount in [&mnt, &other] {
        wait_until("getfacl to show it", SEEN_LIMIT, || shown(mount, "f").contains(&format!("user:{ANN}:r--")));
    }
    runtime.block_on(client.removexattr(&cred(0), ino, name)).unwrap();
    for mount in [&mnt, &other] {
        wait_until("getfacl to show that it is gone", SEEN_LIMIT, || !shown(mount, "f").contains("mask"));
    }
    runtime.block_on(client.shutdown()).unwrap();
}
