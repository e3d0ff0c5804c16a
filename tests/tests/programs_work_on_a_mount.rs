//! Programs that people run do on a mount what they do on a local disk: git, SQLite, rsync, tar, cp, sed, cargo. What one
//! made through one mount is whole on another.

#![allow(clippy::unwrap_used, reason = "a step that fails, fails the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tests::cluster::Cluster;
use tests::command::{Ended, run};
use tests::content::full;

const LIMIT: Duration = Duration::from_secs(120);
const FULL_LIMIT: Duration = Duration::from_secs(1500);

/// Runs a shell script in a directory; the first command that fails ends it.
#[track_caller]
fn script(dir: &Path, text: &str) -> Ended {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", text]).current_dir(dir).env("LC_ALL", "C");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO") || name.starts_with("GIT_")) {
        command.env_remove(name); // of the test run
    }
    run(&mut command, if full() { FULL_LIMIT } else { LIMIT }).must()
}

/// Two mounts of a new cluster.
fn two_mounts() -> (Cluster, PathBuf, PathBuf) {
    let mut cluster = Cluster::start();
    let (a, b) = (cluster.mount("a"), cluster.mount("b"));
    (cluster, a, b)
}

/// A repository with some history, made locally.
const HISTORY: &str = r#"
git init -q -b main origin; cd origin
git config user.name tester; git config user.email t@example.org; git config gc.auto 0
for commit in 1 2 3 4; do
    for file in $(seq 1 $FILES); do
        mkdir -p dir$((file % 7)); seq $commit $((file + commit * 50)) > dir$((file % 7))/file$file
    done
    git add -A; git commit -q -m "commit $commit"
done
"#;

/// Works in a clone, and cleans up; nothing is loose, damaged or changed afterwards.
const WORK: &str = r#"
git clone -q "file://$ORIGIN" clone; cd clone
git config user.name tester; git config user.email t@example.org
echo changed >> dir1/file1; git rm -q dir2/file2; git mv dir3/file3 dir4/moved; echo new > new
git add -A; git commit -q -m work
git checkout -q -b side HEAD~2; echo side > side; git add side; git commit -q -m side; git checkout -q main
git merge -q -m merged side
git stash list; git gc -q --prune=now; git fsck --full --strict --no-dangling
test -z "$(git status --porcelain)"; test -z "$(git count-objects | grep -v '^0 objects')"
"#;

#[test]
fn git_works_and_finds_no_damage() {
    tests::skip_if!(no_mount, no_git);
    let (mut cluster, a, b) = two_mounts();
    let files = if full() { 400 } else { 40 };
    script(cluster.dir(), &HISTORY.replace("$FILES", &files.to_string()));
    let origin = cluster.dir().join("origin");
    script(&a, &WORK.replace("$ORIGIN", &origin.to_string_lossy()));
    // Another mount sees a clean work tree and a whole repository, and what it commits is there on the first.
    let there = "cd clone; test -z \"$(git status --porcelain)\"; git fsck --full --strict --no-dangling; git log --oneline | wc -l";
    assert_eq!(script(&b, there).text().trim(), "7", "four commits, work, side, merged");
    script(&b, "cd clone; echo b > from-b; git add from-b; git commit -q -m b");
    script(&a, "cd clone; test -z \"$(git status --porcelain)\"; git log -1 --format=%s | grep -qx b; test -f from-b");
    let back = cluster.dir().join("back");
    script(&b, &format!("git clone -q clone {back}; cd {back}; git fsck --full", back = back.display()));
    tests::tree::assert_same(&a.join("clone/dir1"), &back.join("dir1"));
    cluster.unmount("a");
    cluster.unmount("b");
}

/// Adds rows one by one, each in a transaction with a counter that all increment.
const SQLITE: &str = r#"
import sqlite3, sys
path, who, rows, mode = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
db = sqlite3.connect(path, timeout=100, isolation_level=None)
assert db.execute(f"PRAGMA journal_mode={mode}").fetchone()[0] == mode
db.execute("PRAGMA synchronous=FULL")
for number in range(rows):
    db.execute("BEGIN IMMEDIATE")
    (last,) = db.execute("SELECT n FROM counter").fetchone()
    db.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", (last + 1, who, number, "x" * (number * 97 % 5000)))
    db.execute("UPDATE counter SET n = ?", (last + 1,))
    db.execute("COMMIT")
"#;
const SQLITE_NEW: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
assert db.execute(f"PRAGMA journal_mode={sys.argv[2]}").fetchone()[0] == sys.argv[2]
db.executescript("CREATE TABLE counter (n); INSERT INTO counter VALUES (0);"
                 "CREATE TABLE rows (id INTEGER PRIMARY KEY, who, number, filler); CREATE INDEX i ON rows (who, number);")
"#;
const SQLITE_CHECK: &str = r#"
import sqlite3, sys
db, each = sqlite3.connect(sys.argv[1]), int(sys.argv[2])
assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
assert db.execute("SELECT n FROM counter").fetchone() == (4 * each,)
assert db.execute("SELECT count(*), max(id) FROM rows").fetchone() == (4 * each, 4 * each)
for who in "0123":
    got = db.execute("SELECT number FROM rows WHERE who = ? ORDER BY id", (who,)).fetchall()
    assert got == [(n,) for n in range(each)], (who, got)
"#;

/// Four processes on these directories, which show the same database.
fn sqlite(dirs: [&Path; 4], mode: &str, rows: usize) {
    let python = |code: &str, args: &[&str]| {
        run(Command::new("python3").args(["-c", code]).args(args), if full() { FULL_LIMIT } else { LIMIT }).must();
    };
    let path = |dir: &Path| dir.join(format!("{mode}.db")).to_str().unwrap().to_owned();
    python(SQLITE_NEW, &[&path(dirs[0]), mode]);
    std::thread::scope(|scope| {
        for (who, dir) in dirs.iter().enumerate() {
            scope.spawn(move || python(SQLITE, &[&path(dir), &who.to_string(), &rows.to_string(), mode]));
        }
    });
    for dir in dirs {
        python(SQLITE_CHECK, &[&path(dir), &rows.to_string()]);
    }
}

#[test]
fn sqlite_loses_nothing_with_four_writers() {
    tests::skip_if!(no_mount, no_python);
    let mut cluster = Cluster::start();
    let mounts: Vec<PathBuf> = ["a", "b", "c", "d"].iter().map(|name| cluster.mount(name)).collect();
    let rows = if full() { 250 } else { 6 };
    let [a, b, c, d] = [0, 1, 2, 3].map(|at: usize| mounts[at].as_path());
    sqlite([a, b, c, d], "delete", rows);
    // Its shared memory is a mapped file, which only one machine can share.
    sqlite([a, a, a, a], "wal", rows);
    for name in ["a", "b", "c", "d"] {
        cluster.unmount(name);
    }
}

/// Makes a tree with all that a backup has to keep.
const TREE: &str = r#"
mkdir tree; cd tree
for file in $(seq 1 $FILES); do mkdir -p d$((file % 9)); seq 1 $((file * 37 % 4000)) > d$((file % 9))/f$file; done
chmod 4755 d1/f1; chmod 2755 d2; chmod 1777 d3; chmod 000 d4/f4; chmod 640 d5/f5
chown 1234:5678 d1/f10 d2/f2; chown -h 11:22 d3
ln d1/f1 d2/hard; ln d1/f1 d3/hard; ln -s ../nowhere d4/dangling; ln -s ../d1/f1 d4/link; chown -h 7:8 d4/link
mkfifo d5/fifo; truncate -s 3M d6/sparse; echo end >> d6/sparse; : > d6/empty; mkdir -p d7/void
setfattr -n user.plain -v value d1/f1; setfattr -n user.binary -v 0x00ff10 d2; setfattr -n user.long -v "$(printf %2000d 7)" d5/f5
setfacl -m u:1234:rwx,g:5678:r-x d1/f19; setfacl -d -m u:99:r-x d6; setfacl -m m::r d6
find . -depth -exec touch -h -d '2011-11-11 11:11:11.111111111' {} + # rsync compares seconds: what is a second old may stay
touch -d '2001-02-03 04:05:06.123456789' d1/f1 d2/f2; touch -h -d '1999-01-01 00:00:00.5' d4/link
touch -d '2012-12-12 12:12:12.121212121' d1 d7/void .
"#;

/// One line for each entry, with everything that is kept; of hard links, which belong together.
const MANIFEST: &str = r#"
import hashlib, os, stat, sys
root, first = os.fsencode(sys.argv[1]), {}
def line(path):
    s = os.lstat(path)
    name = os.path.relpath(path, root)
    same = first.setdefault(s.st_ino, name)
    xattrs = {} if stat.S_ISLNK(s.st_mode) else {x: os.getxattr(path, x) for x in os.listxattr(path)}
    target = os.readlink(path) if stat.S_ISLNK(s.st_mode) else b""
    body = hashlib.sha256(open(path, "rb").read()).hexdigest() if stat.S_ISREG(s.st_mode) else ""
    size = s.st_size if stat.S_ISREG(s.st_mode) else 0
    links = s.st_nlink if not stat.S_ISDIR(s.st_mode) else 0
    print(name, oct(s.st_mode), s.st_uid, s.st_gid, s.st_mtime_ns, size, links, same, target, sorted(xattrs.items()), body)
def walk(path):
    line(path)
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for name in sorted(os.listdir(path)):
            walk(os.path.join(path, name))
walk(root)
"#;

fn manifest(dir: &Path) -> String {
    run(Command::new("python3").args(["-c", MANIFEST]).arg(dir), LIMIT).must().text().to_owned()
}

#[test]
fn copies_by_rsync_tar_and_cp_keep_everything() {
    tests::skip_if!(no_mount, no_root, no_acl_tools, no_rsync, no_python);
    let (mut cluster, a, b) = two_mounts();
    let files = if full() { 3000 } else { 60 };
    script(cluster.dir(), &TREE.replace("$FILES", &files.to_string()));
    let local = cluster.dir().join("tree");
    let wanted = manifest(&local);
    let tar = "tar --acls --xattrs --xattrs-include='*' -p";
    let from = local.display();
    script(&a, &format!("rsync -aHAX {from}/ by-rsync"));
    script(&a, &format!("mkdir by-tar; {tar} -C {from} -cf - . | {tar} -C by-tar -xf -"));
    script(&a, &format!("cp -a {from} by-cp"));
    for way in ["by-rsync", "by-tar", "by-cp"] {
        for mnt in [&b, &a] {
            let is = manifest(&mnt.join(way));
            let other = is.lines().zip(wanted.lines()).find(|(is, wanted)| is != wanted);
            assert!(is == wanted, "{way} through {}: (is, should be) {other:#?}", mnt.display());
        }
        // And back, from the other mount.
        let again = script(&b, &format!("rsync -aHAX --itemize-changes --dry-run --checksum {from}/ {way}/"));
        assert_eq!(again.text(), "", "{way}: rsync would change something");
        script(
            &b,
            &format!(
                "{tar} -C {way} -cf {0}/{way}.tar .; mkdir {0}/{way}; {tar} -C {0}/{way} -xf {0}/{way}.tar",
                cluster.dir().display()
            ),
        );
        assert!(manifest(&cluster.dir().join(way)) == wanted, "{way}: not the same after the way back");
    }
    // sed replaces the files it changes, and keeps their modes and owners.
    let sed = "find . -type f -perm -400 -name 'f*' -print0 | xargs -0 sed -i -e 's/7/seven/g'";
    script(&a.join("by-cp"), sed);
    script(&local, sed);
    let (is, wanted) = (without_times(&manifest(&b.join("by-cp"))), without_times(&manifest(&local)));
    let other = is.iter().zip(&wanted).find(|(is, wanted)| is != wanted);
    assert!(is == wanted, "after sed: (is, should be) {other:#?}");
    cluster.unmount("a");
    cluster.unmount("b");
}

/// Of a manifest: the fifth word is the time.
fn without_times(manifest: &str) -> Vec<String> {
    let cut = |line: &str| {
        line.split(' ').enumerate().filter(|(at, _)| *at != 4).map(|(_, word)| format!("{word} ")).collect()
    };
    manifest.lines().map(cut).collect()
}

/// A library and a program that uses it, without any other.
const CRATES: &str = r#"
mkdir -p work/lib/src work/app/src; cd work
echo '[workspace]
resolver = "2"
members = ["lib", "app"]' > Cargo.toml
printf '[package]\nname = "some-lib"\nversion = "0.1.0"\nedition = "2021"\n' > lib/Cargo.toml
printf '[package]\nname = "some-app"\nversion = "0.1.0"\nedition = "2021"\n[dependencies]\nsome-lib = { path = "../lib" }\n' > app/Cargo.toml
echo 'pub fn number() -> u32 { 41 }' > lib/src/lib.rs
echo 'fn main() { println!("{}", some_lib::number()); }' > app/src/main.rs
cargo build --quiet --offline
test "$(target/debug/some-app)" = 41
"#;

#[test]
fn cargo_builds_and_knows_what_is_fresh() {
    tests::skip_if!(no_mount);
    let (mut cluster, a, b) = two_mounts();
    script(&a, CRATES);
    let build = "cd work; cargo build --offline 2>&1 >/dev/null | grep -c Compiling || true";
    assert_eq!(script(&a, build).text().trim(), "0", "nothing has changed");
    assert_eq!(script(&b, "work/target/debug/some-app").text().trim(), "41", "another mount runs it");
    fs::write(b.join("work/lib/src/lib.rs"), "pub fn number() -> u32 { 42 }\n").unwrap();
    assert_eq!(script(&a, build).text().trim(), "2", "both depend on what another mount has changed");
    assert_eq!(script(&b, "work/target/debug/some-app").text().trim(), "42");
    cluster.unmount("a");
    cluster.unmount("b");
}
