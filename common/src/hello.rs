//! The first bytes of every connection, on both planes: who speaks, which protocol, which cluster.
//!
//! The side that connects sends a [`Hello`] and reads an answer before anything else. A stranger, another cluster,
//! another plane or another version is refused: both sides get a [`Kind::Refused`] fault that says why. The layout of
//! the first six bytes (magic, version) is the same for all versions, so that even a very different version can be
//! named in the message. All numbers little-endian.
//!
//! | hello: at | len | what |
//! | --- | --- | --- |
//! | 0 | 4 | `DFS1` |
//! | 4 | 2 | protocol version |
//! | 6 | 1 | plane: 1 control, 2 data |
//! | 7 | 1 | role: 1 client, 2 chunkserver, 3 metaserver, 4 administrator |
//! | 8 | 16 | cluster id, 0 if not known yet |
//! | 24 | 8 | cluster epoch, 0 if not known yet |
//! | 32 | 8 | id of the speaker: node, server, or the low half of the session |
//! | 40 | 4 | zero |
//! | 44 | 4 | CRC32C of bytes 0 to 43 |
//!
//! The answer has the same layout, with a verdict (1 accepted, 0 refused) in the place of the plane and the length of
//! a reason in bytes 40 to 43; the CRC32C is over bytes 0 to 43 and the reason, which follows at 48.
//!
//! The epoch is judged where a metaserver is a side: one whose epoch is lower than the other side's is left over from
//! before the metadata was restored, and is refused by everybody. Everybody else may be behind: requests carry their own
//! epoch, and those are judged.
//!
//! Left out: proof of identity (TLS, keys). Until then the network of a cluster is trusted to keep strangers out.

use crate::fault::{Fault, Kind};
use crate::id::{ClusterId, Epoch};
use crate::net::Conn;
use crate::proto::VERSION;
use crate::units::{len_u32, len_usize};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Both sides give the whole exchange this long.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest reason in a refusal, in bytes.
const REASON_MAX: usize = 512;
/// Length of the fixed part, in bytes.
const LEN: usize = 48;
const MAGIC: [u8; 4] = *b"DFS1";

/// Which protocol follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// [`crate::rpc`].
    Control,
    /// [`crate::wire`].
    Data,
}

/// What the speaker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A mount or a command.
    Client,
    /// A chunkserver.
    Chunkserver,
    /// A metaserver.
    Metaserver,
    /// An administrator's command.
    Admin,
}

/// One side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What it is.
    pub role: Role,
    /// Its cluster; zero if it does not know yet.
    pub cluster: ClusterId,
    /// Its cluster epoch; zero if it does not know yet.
    pub epoch: Epoch,
    /// Node id, server id, or the low half of a session id; zero if it has none yet.
    pub id: u64,
}

/// The other side of an accepted connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What it said of itself.
    pub hello: Hello,
    /// Where it is, `ip:port`.
    pub addr: String,
}

/// This process as it introduces itself: shared by its servers and its clients, and updated as it learns who it is.
#[derive(Clone, Debug)]
pub struct Me(Arc<Mutex<Hello>>);

impl Me {
    /// A speaker that starts as this.
    pub fn new(hello: Hello) -> Me {
        Me(Arc::new(Mutex::new(hello)))
    }

    /// A speaker of this role that knows nothing else of itself yet.
    pub fn unknown(role: Role) -> Me {
        Me::new(Hello { role, cluster: ClusterId(0), epoch: Epoch(0), id: 0 })
    }

    /// What it says now.
    pub fn hello(&self) -> Hello {
        *self.0.lock().expect("no panic holds this lock")
    }

    /// From now on it belongs to this cluster.
    pub fn set_cluster(&self, cluster: ClusterId, epoch: Epoch) {
        let mut me = self.0.lock().expect("no panic holds this lock");
        (me.cluster, me.epoch) = (cluster, epoch);
    }

    /// From now on it has this id.
    pub fn set_id(&self, id: u64) {
        self.0.lock().expect("no panic holds this lock").id = id;
    }
}

impl Peer {
    /// Refuses unless the peer has one of these roles. `what` is what it asked for.
    pub fn require(&self, roles: &[Role], what: &str) -> Result<(), Fault> {
        if roles.contains(&self.hello.role) {
            return Ok(());
        }
        Err(Fault::new(Kind::Refused, format!("{what} is not for {}s", self.hello.role)))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:x} at {}", self.hello.role, self.hello.id, self.addr)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Client => "client",
            Role::Chunkserver => "chunkserver",
            Role::Metaserver => "metaserver",
            Role::Admin => "administrator",
        })
    }
}

impl fmt::Display for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Plane::Control => "control",
            Plane::Data => "data",
        })
    }
}

impl Plane {
    fn code(self) -> u8 {
        match self {
            Plane::Control => 1,
            Plane::Data => 2,
        }
    }
}

impl Role {
    fn code(self) -> u8 {
        match self {
            Role::Client => 1,
            Role::Chunkserver => 2,
            Role::Metaserver => 3,
            Role::Admin => 4,
        }
    }

    fn from_code(code: u8) -> Option<Role> {
        [Role::Client, Role::Chunkserver, Role::Metaserver, Role::Admin].into_iter().find(|r| r.code() == code)
    }
}

/// Introduces this side on a new connection and waits to be let in.
///
/// # Errors
/// `Refused`: the other side did not want us, or is not what we look for; its reason is in the message.
/// `Unavailable`: the connection broke or [`HELLO_TIMEOUT`] passed.
pub async fn introduce(conn: &mut Conn, me: &Me, plane: Plane, to: &str) -> Result<Hello, Fault> {
    let mine = me.hello();
    let exchange = async {
        conn.write_all(&encode(&mine, plane.code(), 0, &[])).await.map_err(|e| broken(to, &e))?;
        conn.flush().await.map_err(|e| broken(to, &e))?;
        read_answer(conn, to).await
    };
    let theirs = match tokio::time::timeout(HELLO_TIMEOUT, exchange).await {
        Ok(answer) => answer?,
        Err(_) => return Err(Fault::new(Kind::Unavailable, format!("{to}: no answer to hello in {HELLO_TIMEOUT:?}"))),
    };
    if !same_cluster(mine.cluster, theirs.cluster) {
        let text = format!("{to} belongs to cluster {}, not to ours, {}", theirs.cluster, mine.cluster);
        return Err(Fault::new(Kind::Refused, text));
    }
    if let Some(why) = left_over(&mine, &theirs) {
        return Err(Fault::new(Kind::Refused, format!("{to}: {why}")));
    }
    Ok(theirs)
}

async fn read_answer(conn: &mut Conn, to: &str) -> Result<Hello, Fault> {
    let mut head = [0; LEN];
    read_head(conn, &mut head, to).await?;
    let reason_len = len_usize(u64::from(u32_at(&head, 40)));
    if reason_len > REASON_MAX {
        return Err(refused(format!("{to} does not speak this protocol: its answer to hello is damaged")));
    }
    let mut reason = vec![0; reason_len];
    conn.read_exact(&mut reason).await.map_err(|e| broken(to, &e))?;
    if crc32c::crc32c_append(crc32c::crc32c(&head[..44]), &reason) != u32_at(&head, 44) {
        return Err(refused(format!("{to}: its answer to hello is damaged")));
    }
    if head[6] != 1 {
        return Err(refused(format!("{to} refused: {}", String::from_utf8_lossy(&reason))));
    }
    decode(&head).ok_or_else(|| refused(format!("{to}: its answer to hello names an unknown role")))
}

/// Reads who connected and lets it in, or says why not. `from` is the address it came from.
///
/// # Errors
/// As [`introduce`]; the peer was told the same. The caller logs it and drops the connection.
pub async fn welcome(conn: &mut Conn, me: &Me, plane: Plane, from: &str) -> Result<Peer, Fault> {
    let mine = me.hello();
    let exchange = async {
        let judged = judge(conn, &mine, plane, from).await?;
        let (verdict, reason) = match &judged {
            Ok(_) => (1, ""),
            Err(reason) => (0, cut(reason)),
        };
        let answer = encode(&mine, verdict, len_u32(reason.len()), reason.as_bytes());
        conn.write_all(&answer).await.map_err(|e| broken(from, &e))?;
        conn.flush().await.map_err(|e| broken(from, &e))?;
        judged.map_err(|reason| refused(format!("{from}: {reason}")))
    };
    match tokio::time::timeout(HELLO_TIMEOUT, exchange).await {
        Ok(hello) => Ok(Peer { hello: hello?, addr: from.to_owned() }),
        Err(_) => Err(Fault::new(Kind::Unavailable, format!("{from}: said no hello in {HELLO_TIMEOUT:?}"))),
    }
}

/// The inner error is for the peer too; the outer one means that it would not understand any answer.
async fn judge(conn: &mut Conn, mine: &Hello, plane: Plane, from: &str) -> Result<Result<Hello, String>, Fault> {
    let mut head = [0; LEN];
    conn.read_exact(&mut head[..6]).await.map_err(|e| broken(from, &e))?;
    if head[..4] != MAGIC {
        return Err(refused(format!("{from} does not speak this protocol: it began with {:02x?}", &head[..4])));
    }
    let version = u16::from_le_bytes([head[4], head[5]]);
    if version != VERSION {
        return Ok(Err(format!("protocol version {version} is not spoken here, {VERSION} is: update the older side")));
    }
    conn.read_exact(&mut head[6..]).await.map_err(|e| broken(from, &e))?;
    if crc32c::crc32c(&head[..44]) != u32_at(&head, 44) {
        return Ok(Err("the hello is damaged".into()));
    }
    if head[6] != plane.code() {
        return Ok(Err(format!("this is a port of the {plane} plane: check which address is meant")));
    }
    let Some(theirs) = decode(&head) else {
        return Ok(Err(format!("role {} is unknown", head[7])));
    };
    if !same_cluster(mine.cluster, theirs.cluster) {
        let text = format!("this is cluster {}, the {} belongs to {}", mine.cluster, theirs.role, theirs.cluster);
        return Ok(Err(text));
    }
    if let Some(why) = left_over(mine, &theirs) {
        return Ok(Err(why));
    }
    Ok(Ok(theirs))
}

/// Why one of two sides must not be listened to: it is a metaserver of an epoch that is over.
fn left_over(a: &Hello, b: &Hello) -> Option<String> {
    let is_over = |one: &Hello, other: &Hello| {
        one.role == Role::Metaserver && one.epoch != Epoch(0) && one.epoch < other.epoch && one.cluster == other.cluster
    };
    let (old, new) = match (is_over(a, b), is_over(b, a)) {
        (true, _) => (a, b),
        (_, true) => (b, a),
        (false, false) => return None,
    };
    Some(format!(
        "metaserver m{} is left over from epoch {}: the metadata was restored since, in epoch {}; stop it and empty its \
         data_dir",
        old.id, old.epoch, new.epoch
    ))
}

fn same_cluster(a: ClusterId, b: ClusterId) -> bool {
    a == b || a == ClusterId(0) || b == ClusterId(0)
}

/// Reads the answer's fixed part; magic and version first, for another version's answer may be shorter.
async fn read_head(conn: &mut Conn, head: &mut [u8; LEN], to: &str) -> Result<(), Fault> {
    conn.read_exact(&mut head[..6]).await.map_err(|e| broken(to, &e))?;
    if head[..4] != MAGIC {
        return Err(refused(format!("{to} does not speak this protocol: it began with {:02x?}", &head[..4])));
    }
    let version = u16::from_le_bytes([head[4], head[5]]);
    if version != VERSION {
        return Err(refused(format!("{to} speaks protocol version {version}, we speak {VERSION}: update one of us")));
    }
    conn.read_exact(&mut head[6..]).await.map_err(|e| broken(to, &e))?;
    Ok(())
}

fn encode(hello: &Hello, code: u8, reason_len: u32, reason: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(LEN + reason.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[code, hello.role.code()]);
    out.extend_from_slice(&hello.cluster.0.to_le_bytes());
    out.extend_from_slice(&hello.epoch.0.to_le_bytes());
    out.extend_from_slice(&hello.id.to_le_bytes());
    out.extend_from_slice(&reason_len.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out), reason);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(reason);
    out
}

fn decode(head: &[u8; LEN]) -> Option<Hello> {
    let role = Role::from_code(head[7])?;
    let cluster = ClusterId(u128::from_le_bytes(head[8..24].try_into().expect("16 bytes")));
    let epoch = Epoch(u64::from_le_bytes(head[24..32].try_into().expect("8 bytes")));
    let id = u64::from_le_bytes(head[32..40].try_into().expect("8 bytes"));
    Some(Hello { role, cluster, epoch, id })
}

fn u32_at(bytes: &[u8; LEN], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn cut(reason: &str) -> &str {
    let end = (0..=REASON_MAX.min(reason.len())).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
    &reason[..end]
}

fn refused(text: String) -> Fault {
    Fault::new(Kind::Refused, text)
}

fn broken(at: &str, error: &std::io::Error) -> Fault {
    Fault::new(Kind::Unavailable, format!("{at}: hello: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me(role: Role, cluster: u128, id: u64) -> Me {
        Me::new(Hello { role, cluster: ClusterId(cluster), epoch: Epoch(3), id })
    }

    async fn meet(a: &Me, a_plane: Plane, b: &Me, b_plane: Plane) -> (Result<Hello, Fault>, Result<Peer, Fault>) {
        let (left, right) = tokio::io::duplex(1024);
        let (mut left, mut right): (Conn, Conn) = (Box::new(left), Box::new(right));
        tokio::join!(introduce(&mut left, a, a_plane, "b"), welcome(&mut right, b, b_plane, "a"))
    }

    #[tokio::test]
    async fn both_learn_who_the_other_is() {
        let (client, server) = (me(Role::Client, 0, 5), me(Role::Metaserver, 9, 2));
        let (there, here) = meet(&client, Plane::Control, &server, Plane::Control).await;
        assert_eq!(there, Ok(server.hello()));
        assert_eq!(here.unwrap().hello, client.hello());
    }

    #[tokio::test]
    async fn another_cluster_or_plane_is_refused_and_both_know_why() {
        let (there, here) = meet(&me(Role::Client, 7, 5), Plane::Data, &me(Role::Chunkserver, 9, 2), Plane::Data).await;
        for fault in [there.unwrap_err(), here.unwrap_err()] {
            assert_eq!(fault.kind, Kind::Refused);
            assert!(fault.message.contains("cluster 00000000000000000000000000000009"), "{fault}");
        }
        let (there, here) =
            meet(&me(Role::Client, 9, 5), Plane::Control, &me(Role::Chunkserver, 9, 2), Plane::Data).await;
        for fault in [there.unwrap_err(), here.unwrap_err()] {
            assert_eq!(fault.kind, Kind::Refused);
            assert!(fault.message.contains("port of the data plane"), "{fault}");
        }
    }

    #[tokio::test]
    async fn an_answer_from_another_cluster_is_refused_here_too() {
        for theirs in [7, 9] {
            let (left, mut right) = tokio::io::duplex(1024);
            let mut left: Conn = Box::new(left);
            let answer = me(Role::Metaserver, theirs, 2).hello();
            right.write_all(&encode(&answer, 1, 0, &[])).await.unwrap();
            let outcome = introduce(&mut left, &me(Role::Client, 7, 1), Plane::Control, "b").await;
            assert_eq!(outcome.map_err(|fault| fault.kind), if theirs == 7 { Ok(answer) } else { Err(Kind::Refused) });
        }
    }

    #[tokio::test]
    async fn a_metaserver_of_an_epoch_that_is_over_is_refused_by_everybody() {
        let of = |role, epoch| Me::new(Hello { role, cluster: ClusterId(9), epoch: Epoch(epoch), id: 2 });
        let (meta, chunk, client) = (Role::Metaserver, Role::Chunkserver, Role::Client);
        for (a, b, accepted) in [
            ((meta, 1), (meta, 2), false),
            ((meta, 2), (meta, 1), false),
            ((meta, 2), (meta, 2), true),
            ((meta, 0), (meta, 2), true), // it has no data yet
            ((chunk, 2), (meta, 1), false),
            ((client, 2), (meta, 1), false),
            ((meta, 1), (chunk, 2), false),
            ((chunk, 1), (meta, 2), true), // it is about to learn
            ((client, 0), (meta, 2), true),
            ((client, 1), (chunk, 2), true), // its requests are judged
            ((client, 2), (chunk, 1), true),
        ] {
            let (there, here) = meet(&of(a.0, a.1), Plane::Control, &of(b.0, b.1), Plane::Control).await;
            assert_eq!((there.is_ok(), here.is_ok()), (accepted, accepted), "{a:?} {b:?}");
            if let Err(fault) = there {
                assert!(fault.kind == Kind::Refused && fault.message.contains("epoch e1"), "{fault}");
            }
        }
    }

    async fn send_raw(bytes: &[u8]) -> (Fault, Vec<u8>) {
        let (mut left, right) = tokio::io::duplex(4096);
        let mut right: Conn = Box::new(right);
        left.write_all(bytes).await.unwrap();
        left.shutdown().await.unwrap();
        let fault = welcome(&mut right, &me(Role::Metaserver, 9, 1), Plane::Control, "a").await.unwrap_err();
        drop(right);
        let mut answer = Vec::new();
        left.read_to_end(&mut answer).await.unwrap();
        (fault, answer)
    }

    #[tokio::test]
    async fn another_version_damage_and_strangers_are_refused() {
        let good = encode(&me(Role::Client, 9, 1).hello(), Plane::Control.code(), 0, &[]);
        let mut other = good.clone();
        other[4] = 77;
        let (fault, answer) = send_raw(&other).await;
        assert!(fault.kind == Kind::Refused && fault.message.contains("version 77"), "{fault}");
        assert!(String::from_utf8_lossy(&answer).contains("version 77"));
        for at in 6..LEN {
            let mut damaged = good.clone();
            damaged[at] ^= 0x40;
            assert_eq!(send_raw(&damaged).await.0.kind, Kind::Refused, "byte {at}");
        }
        let (fault, answer) = send_raw(b"GET / HTTP/1.1\r\n").await;
        assert!(fault.kind == Kind::Refused && answer.is_empty(), "{fault}");
        for len in 0..LEN {
            assert_eq!(send_raw(&good[..len]).await.0.kind, Kind::Unavailable, "cut at {len}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_at_the_deadline() {
        let (left, right) = tokio::io::duplex(1024);
        let (mut left, mut right): (Conn, Conn) = (Box::new(left), Box::new(right));
        let someone = me(Role::Client, 0, 1);
        let fault = welcome(&mut right, &someone, Plane::Data, "a").await.unwrap_err();
        assert_eq!(fault.kind, Kind::Unavailable);
        assert_eq!(introduce(&mut left, &someone, Plane::Data, "b").await.unwrap_err().kind, Kind::Unavailable);
    }

    #[test]
    fn the_bytes_are_these() {
        let hello = Hello { role: Role::Chunkserver, cluster: ClusterId(0x0102), epoch: Epoch(3), id: 4 };
        let bytes = encode(&hello, Plane::Data.code(), 0, &[]);
        let mut golden = b"DFS1\x08\x00\x02\x02\x02\x01".to_vec();
        golden.resize(24, 0);
        golden.extend_from_slice(b"\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(&bytes[..44], &golden[..]);
        assert_eq!(&bytes[44..], crc32c::crc32c(&golden).to_le_bytes());
        let refusal = encode(&hello, 0, 2, b"no");
        assert_eq!((refusal[6], u32_at(refusal[..LEN].try_into().unwrap(), 40), &refusal[48..]), (0, 2, &b"no"[..]));
    }
}
