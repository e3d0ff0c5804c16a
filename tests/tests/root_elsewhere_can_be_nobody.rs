//! With root squash on, root of a client's machine has nobody's rights, on the mount and with `dfs`, but on machines that
//! are allowed. It is off at first, survives restarts, and is noted.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use tests::cluster::Cluster;
use tests::command::{as_user, run};

const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);
const ANN: u32 = 70_001;

#[test]
fn root_is_nobody_unless_its_machine_is_allowed() {
    tests::skip_if!(no_mount, no_root);
    let mut cluster = Cluster::start_with(1, 1);
    cluster.open_to_all();
    let mnt = cluster.mount("m");
    let (secret, open) = (mnt.join("secret"), mnt.join("open"));
    fs::write(&secret, "s").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let squash = |args: &[&str]| cluster.dfs(&[&["admin", "root-squash"], args].concat());
    assert!(squash(&["show"]).must().text().contains("off"));
    fs::read(&secret).unwrap();

    // A set-id bit that is set before what was written is saved stays, whoever it is saved for.
    let early =
        format!("exec 3> {0}/early; echo x >&3; chmod 4755 {0}/early; exec 3>&-; stat -c %a {0}/early", open.display());
    for _on_and_off in 0..2 {
        assert_eq!(run(&mut as_user(ANN, &[], &early), LIMIT).must().text().trim(), "4755");
        squash(&["on"]).must();
    }
    assert!(squash(&["show", "--json"]).must().text().contains("\"uid\":65534"));
    let denied = |result: std::io::Result<()>| assert_eq!(result.unwrap_err().raw_os_error(), Some(nix::libc::EACCES));
    denied(fs::read(&secret).map(|_| ()));
    denied(fs::create_dir(mnt.join("no")));
    let ended = cluster.dfs(&["cat", "/secret"]).must_fail_cleanly();
    assert!(ended.err.contains("denied"), "{ended}");
    let mine = open.join("mine");
    fs::write(&mine, "m").unwrap();
    let meta = fs::metadata(&mine).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (65_534, 65_534));
    let given = std::os::unix::fs::chown(&mine, Some(0), None).unwrap_err();
    assert_eq!(given.raw_os_error(), Some(nix::libc::EPERM));
    // Others are who they are; a write takes setuid away as ever.
    let script = format!("cd {} && echo x > a && chmod 4777 a", open.display());
    run(&mut as_user(ANN, &[], &script), LIMIT).must();
    assert_eq!(fs::metadata(open.join("a")).unwrap().uid(), ANN);
    run(&mut as_user(ANN + 1, &[], &format!("echo y >> {}/a", open.display())), LIMIT).must();
    assert_eq!(fs::metadata(open.join("a")).unwrap().mode() & 0o7777, 0o777);

    cluster.kill(&["meta-1"]);
    cluster.up();
    denied(fs::read(&secret).map(|_| ()));
    squash(&["on", "--uid", "70009", "--gid", "70009", "--allow", "10.1.2.3", "--allow", "127.0.0.1"]).must();
    fs::read(&secret).unwrap();
    squash(&["on", "--uid", "70009", "--gid", "70009"]).must();
    fs::write(open.join("theirs"), "t").unwrap();
    assert_eq!(fs::metadata(open.join("theirs")).unwrap().uid(), 70_009);
    squash(&["on", "--uid", "0"]).must_fail_cleanly();
    squash(&["off"]).must();
    fs::read(&secret).unwrap();
    let events = cluster.dfs(&["admin", "events"]).must();
    assert!(events.text().contains("root squash on: 70009") && events.text().contains("root squash off"), "{events}");
}
