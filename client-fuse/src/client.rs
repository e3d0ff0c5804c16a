//! The public face: names and attributes, one method for each thing a front end asks for. Open files are in [`files`].
//!
//! [`files`]: crate::files

use crate::config::ClientConfig;
use crate::core::Core;
use crate::handle::Handle;
use crate::leases::{Entry, OnForget};
use crate::link::{RealServers, Servers};
use crate::meta::unexpected;
use crate::report::Reports;
use crate::stats::Stats;
use common::fault::{Fault, Kind};
use common::hello::{Hello, Me, Role};
use common::id::{DataVersion, Epoch, InodeId};
use common::layout::ClusterMap;
use common::name::Name;
use common::proto::lease::{LEASE_ATTRS_MAX, LeasedListing};
use common::proto::meta::{
    Admin, AdminReply, Answer, Attr, Cred, DirEntry, FsStat, LISTING_MAX, NewNode, Op, Outcome, Query, RenameMode,
    SetAttr, XattrMode,
};
use common::proto::trash::{TrashAsk, TrashList};
use common::rpc::Caller;
use common::task::Tasks;
use common::wire::Pool;
use common::world::World;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// How long the background tasks get to end.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// A connection to a cluster: sessions, caches, buffers and retries. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    pub(crate) core: Arc<Core>,
}

/// Data versions of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// From this one on nobody but this client has changed it.
    pub since: DataVersion,
    /// The one that it has now.
    pub now: DataVersion,
}

/// Some entries of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// In cookie order. `.` and `..` are not among them.
    pub entries: Vec<DirEntry>,
    /// True if nothing follows.
    pub end: bool,
    /// The parent of the directory, for `..`.
    pub parent: InodeId,
}

/// The permission bits of something new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewMode {
    /// `0o7777`.
    pub bits: u32,
    /// `0o777`: still to be taken away from `bits`, where the directory has no default ACL.
    pub umask: u32,
}

impl From<u32> for NewMode {
    /// Of bits from which the umask was taken.
    fn from(bits: u32) -> NewMode {
        NewMode { bits, umask: 0 }
    }
}

impl NewMode {
    /// The request that makes something.
    pub(crate) fn create(self, parent: InodeId, name: Name, node: NewNode, exclusive: bool, access: u8) -> Op {
        match self {
            NewMode { bits: mode, umask: 0 } => Op::Create { parent, name, node, mode, exclusive, access },
            NewMode { bits: mode, umask } => Op::CreateUnmasked { parent, name, node, mode, umask, exclusive, access },
        }
    }
}

/// A connection for administrators' questions, one after the other.
pub struct AdminLink {
    caller: Caller,
    tasks: Tasks,
    limit: Duration,
}

impl AdminLink {
    /// To these metaservers. Connects when first used.
    pub fn new(config: &ClientConfig, world: &World) -> AdminLink {
        let me = Me::new(Hello { role: Role::Admin, cluster: config.cluster, epoch: Epoch(0), id: 0 });
        let tasks = Tasks::new();
        let caller = Caller::new(world, &tasks, &me, &config.metaservers);
        AdminLink { caller, tasks, limit: config.op_timeout }
    }

    /// As [`Client::admin`].
    ///
    /// # Errors
    /// As there.
    pub async fn ask(&self, ask: &Admin) -> Result<AdminReply, Fault> {
        match ask {
            Admin::Format { .. } | Admin::NodeStatus => self.caller.admin_once(ask, self.limit).await,
            Admin::Status | Admin::Keep(_) | Admin::Order(_) | Admin::Members | Admin::Rebalance(_) | Admin::Trash => {
                self.caller.admin(ask, self.limit).await
            }
        }
    }

    /// Ends it.
    pub async fn close(self) {
        self.tasks.shutdown(STOP_GRACE).await;
    }
}

impl Client {
    /// Connects, opens a session and starts the background tasks.
    ///
    /// # Errors
    /// `Unavailable` when no metaserver leads within the operation timeout, `Refused` for another cluster or version.
    pub async fn connect(config: ClientConfig, world: World) -> Result<Client, Fault> {
        let me = Me::new(Hello { role: Role::Client, cluster: config.cluster, epoch: Epoch(0), id: 0 });
        let tasks = Tasks::new();
        let link = Arc::new(RealServers::new(&world, &tasks, &me, &config.metaservers));
        let reports = Reports::new(Arc::new(Pool::new(&world, &me)), tasks.clone());
        let client = Client::over(link, reports, config, world, tasks).await?;
        let map = client.cluster_map();
        me.set_cluster(map.cluster, map.epoch);
        Ok(client)
    }

    /// A client of these servers.
    pub(crate) async fn over(
        link: Arc<dyn Servers>,
        reports: Reports,
        config: ClientConfig,
        world: World,
        tasks: Tasks,
    ) -> Result<Client, Fault> {
        Ok(Client { core: Core::start(link, reports, config, world, tasks).await? })
    }

    /// Saves everything, closes the session, ends the background tasks, all within the operation timeout (the tasks: 5 s later). A
    /// session that cannot be closed because no metaserver answers ends by itself; that is no error.
    ///
    /// # Errors
    /// The first: what could not be saved by then is lost.
    pub async fn shutdown(&self) -> Result<(), Fault> {
        let deadline = self.core.meta.deadline();
        let saved = self.sync_all_by(deadline).await;
        self.core.tell_accesses(deadline).await;
        let closed = self.core.meta.close(deadline).await.or_else(|fault| {
            warn!(error = %fault, "the session is not closed; it ends when it is not renewed");
            if fault.kind.is_transient() { Ok(()) } else { Err(fault) }
        });
        if !self.core.tasks.shutdown(STOP_GRACE).await {
            warn!("background tasks still ran after {STOP_GRACE:?}");
        }
        saved.and(closed)
    }

    /// Counters since `connect`.
    pub fn stats(&self) -> Stats {
        self.core.counters.read()
    }

    /// The cluster map this client works with now.
    pub fn cluster_map(&self) -> Arc<ClusterMap> {
        self.core.meta.map()
    }

    /// An administrator's question, without a session (so also to an unformatted cluster). Sent to the leader, except
    /// `Format` and `NodeStatus`: once, to the first of `metaservers`.
    pub async fn admin(config: &ClientConfig, world: &World, ask: Admin) -> Result<AdminReply, Fault> {
        let link = AdminLink::new(config, world);
        let reply = link.ask(&ask).await;
        link.close().await;
        reply
    }

    /// The cluster map, for an administrator, without a session.
    pub async fn map_for_admin(config: &ClientConfig, world: &World) -> Result<ClusterMap, Fault> {
        let me = Me::new(Hello { role: Role::Admin, cluster: config.cluster, epoch: Epoch(0), id: 0 });
        let tasks = Tasks::new();
        let map = Caller::new(world, &tasks, &me, &config.metaservers).cluster_map(config.op_timeout).await;
        tasks.shutdown(STOP_GRACE).await;
        map
    }

    async fn query(&self, cred: &Cred, query: Query) -> Result<Answer, Fault> {
        self.core.query(cred, query, self.core.meta.deadline()).await
    }

    pub(crate) async fn submit(&self, cred: &Cred, op: Op) -> Result<Outcome, Fault> {
        self.core.change(cred, op, self.core.meta.deadline()).await
    }

    /// Whom to tell of inodes that this client does not answer for any more without asking. Returns when nobody believes
    /// what it was told of them; until then nobody else changes them (for the term of a lease, at most). Once.
    pub fn on_forget(&self, tell: OnForget) {
        self.core.leases.on_forget(tell);
    }

    /// Attributes of an inode that may be believed without asking again, and for how long at most. `None`: somebody else
    /// may change them, or something of the file is unsaved here.
    pub fn certain(&self, ino: InodeId) -> Option<(Attr, Duration)> {
        if self.core.find(ino).is_some_and(|inode| inode.lock().is_unsaved()) {
            return None;
        }
        let (attr, left) = self.core.leases.attr(ino, self.core.world.uptime())?;
        Some((self.core.with_access(attr), left))
    }

    /// An inode's mode, with the bits that tell of ACLs, if it is certain, also while something of the file is unsaved.
    pub fn certain_mode(&self, ino: InodeId) -> Option<u32> {
        let uptime = self.core.world.uptime();
        let attr = self.core.leases.attr(ino, uptime).map(|(attr, _)| attr);
        attr.or_else(|| self.core.leases.attr_before_saves(ino, uptime)).map(|attr| attr.mode)
    }

    /// As [`Client::certain`], and that this name leads to it.
    pub fn certain_as(&self, dir: InodeId, name: &Name, ino: InodeId) -> Option<(Attr, Duration)> {
        let entry = self.core.leases.entry(dir, name, self.core.world.uptime());
        if entry == Entry::Leads(ino) { self.certain(ino) } else { None }
    }

    /// True if nobody else changes the inode now.
    pub fn is_leased(&self, ino: InodeId) -> bool {
        self.core.leases.holds(ino, self.core.world.uptime())
    }

    /// True if the file is open here.
    pub fn is_open(&self, ino: InodeId) -> bool {
        self.core.find(ino).is_some_and(|inode| inode.lock().handles > 0)
    }

    /// The data versions of a file that is open here, as far as is known.
    pub fn versions(&self, ino: InodeId) -> Option<Versions> {
        let inode = self.core.find(ino)?;
        let leased = self.core.leases.attr(ino, self.core.world.uptime());
        let mut state = inode.lock();
        leased.iter().for_each(|(attr, _)| state.adopt(attr)); // heard of before the file was noted as open
        Some(state.versions())
    }

    /// As [`Client::versions`], cheaper, and perhaps not of what was heard a moment ago.
    pub fn versions_of(&self, handle: &Handle) -> Versions {
        handle.0.inode.lock().versions()
    }

    /// One name in a directory.
    pub async fn lookup(&self, cred: &Cred, parent: InodeId, name: &Name) -> Result<Attr, Fault> {
        let known = match self.core.leases.entry(parent, name, self.core.world.uptime()) {
            Entry::Absent => return Err(Fault::new(Kind::NotFound, format!("no entry {name} in {parent}"))),
            Entry::Leads(ino) => self.core.known_attr(ino),
            Entry::Unknown => None,
        };
        if let Some(attr) = known {
            return Ok(attr);
        }
        let found = self.query(cred, Query::Lookup { parent, name: name.clone() }).await;
        if found.as_ref().err().is_none_or(|fault| fault.kind == Kind::NotFound) {
            self.core.looked(cred, parent);
        }
        match found? {
            Answer::Attr(attr) => Ok(self.core.seen(attr)),
            other => Err(unexpected("lookup", &other)),
        }
    }

    /// A whole path in one round trip: attributes of its end, and the directory that holds it. Symlinks on the way are
    /// followed, one at the end only if `follow`.
    pub async fn walk(&self, cred: &Cred, from: InodeId, path: &[u8], follow: bool) -> Result<(Attr, InodeId), Fault> {
        match self.query(cred, Query::Walk { from, path: path.to_vec(), follow }).await? {
            Answer::Walked { attr, parent } => Ok((self.core.seen(attr), parent)),
            other => Err(unexpected("walk", &other)),
        }
    }

    /// Attributes, with the size and time of unsaved writes of this client.
    pub async fn getattr(&self, cred: &Cred, ino: InodeId) -> Result<Attr, Fault> {
        if let Some(attr) = self.core.known_attr(ino) {
            return Ok(attr);
        }
        match self.query(cred, Query::GetAttr { ino }).await? {
            Answer::Attr(attr) => Ok(self.core.seen(attr)),
            other => Err(unexpected("getattr", &other)),
        }
    }

    /// Changes attributes. A new size or time first saves what is unsaved of the file; so does a new mode or owner, or what was
    /// written before would be saved after it: without the right, or taking set-id bits away.
    pub async fn setattr(&self, cred: &Cred, ino: InodeId, set: SetAttr) -> Result<Attr, Fault> {
        let shapes = set.size.is_some() || set.mtime.is_some() || set.atime.is_some();
        let rights = set.mode.is_some() || set.uid.is_some() || set.gid.is_some();
        if let Some(inode) = self.core.find(ino)
            && (shapes || (rights && inode.lock().is_unsaved()))
        {
            return self.core.set_attr_saved(&inode, cred, set).await;
        }
        match self.submit(cred, Op::SetAttr { ino, set }).await? {
            Outcome::Attr(attr) => Ok(self.core.seen(attr)),
            other => Err(unexpected("setattr", &other)),
        }
    }

    /// Makes an entry that must not exist: a file, directory, symlink or node.
    pub async fn create(
        &self,
        cred: &Cred,
        parent: InodeId,
        name: &Name,
        node: NewNode,
        mode: impl Into<NewMode> + Send,
    ) -> Result<Attr, Fault> {
        let op = mode.into().create(parent, name.clone(), node, true, 0);
        match self.submit(cred, op).await? {
            Outcome::Created { attr, .. } => Ok(attr),
            other => Err(unexpected("create", &other)),
        }
    }

    /// Where a symlink points.
    pub async fn readlink(&self, cred: &Cred, ino: InodeId) -> Result<Vec<u8>, Fault> {
        match self.query(cred, Query::ReadLink { ino }).await? {
            Answer::Target(target) => Ok(target),
            other => Err(unexpected("readlink", &other)),
        }
    }

    /// A further name for an inode.
    pub async fn link(&self, cred: &Cred, ino: InodeId, parent: InodeId, name: &Name) -> Result<Attr, Fault> {
        let op = Op::Link { ino, parent, name: name.clone() };
        match self.submit(cred, op).await? {
            Outcome::Attr(attr) => Ok(self.core.seen(attr)),
            other => Err(unexpected("link", &other)),
        }
    }

    /// Removes a name. What is open here stays readable and writable until its last `release`.
    pub async fn unlink(&self, cred: &Cred, parent: InodeId, name: &Name) -> Result<(), Fault> {
        let deadline = self.core.meta.deadline();
        let closed = Op::Unlink { parent, name: name.clone(), keep: false };
        if self.core.decide(cred, &closed, deadline).await?.is_some() {
            return Ok(());
        }
        let removal = self.core.removal();
        let keep = removal.keep;
        let op = Op::Unlink { parent, name: name.clone(), keep };
        match self.core.ask(cred, op, deadline).await? {
            Outcome::Removed { ino, nlink } => {
                self.removed(keep, ino, nlink);
                Ok(())
            }
            other => Err(unexpected("unlink", &other)),
        }
    }

    fn removed(&self, keep: bool, ino: InodeId, nlink: u32) {
        if keep && nlink == 0 {
            self.core.orphaned(ino);
        }
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, cred: &Cred, parent: InodeId, name: &Name) -> Result<(), Fault> {
        let op = Op::Rmdir { parent, name: name.clone() };
        match self.submit(cred, op).await? {
            Outcome::Removed { .. } | Outcome::Done => Ok(()),
            other => Err(unexpected("rmdir", &other)),
        }
    }

    /// What was removed and can be brought back.
    pub async fn trash(&self, cred: &Cred, ask: TrashAsk) -> Result<TrashList, Fault> {
        match self.query(cred, Query::Trash(ask)).await? {
            Answer::Trash(list) => Ok(list),
            other => Err(unexpected("trash", &other)),
        }
    }

    /// Gives something in the trash a name again. What was in a directory comes back after it, one by one.
    pub async fn undelete(&self, cred: &Cred, ino: InodeId, parent: InodeId, name: &Name) -> Result<Attr, Fault> {
        match self.submit(cred, Op::Undelete { ino, parent, name: name.clone() }).await? {
            Outcome::Attr(attr) => Ok(self.core.seen(attr)),
            other => Err(unexpected("undelete", &other)),
        }
    }

    /// Moves an entry.
    pub async fn rename(
        &self,
        cred: &Cred,
        from: (InodeId, &Name),
        to: (InodeId, &Name),
        mode: RenameMode,
    ) -> Result<(), Fault> {
        let deadline = self.core.meta.deadline();
        let op = |keep| {
            let (from_name, to_name) = (from.1.clone(), to.1.clone());
            Op::Rename { from: from.0, from_name, to: to.0, to_name, mode, keep }
        };
        if self.core.decide(cred, &op(false), deadline).await?.is_some() {
            return Ok(());
        }
        let removal = self.core.removal();
        let keep = removal.keep;
        match self.core.ask(cred, op(keep), deadline).await? {
            Outcome::Renamed { replaced } => {
                if let Some((ino, nlink)) = replaced {
                    self.removed(keep, ino, nlink);
                }
                Ok(())
            }
            other => Err(unexpected("rename", &other)),
        }
    }

    /// Entries behind `after` (0: from the start), at most `limit` (at most 4096; what is leased whole comes whole).
    pub async fn readdir(
        &self,
        cred: &Cred,
        ino: InodeId,
        after: u64,
        limit: u32,
        attrs: bool,
    ) -> Result<Listing, Fault> {
        let limit = limit.clamp(1, LISTING_MAX);
        if after == 0
            && attrs
            && let Some(LeasedListing { mut entries, parent, .. }) = self.core.listed(cred, ino).await
        {
            let whole = entries.len();
            entries.truncate(LEASE_ATTRS_MAX);
            for entry in &mut entries {
                entry.attr = entry.attr.take().map(|attr| self.core.seen(attr));
            }
            return Ok(Listing { end: entries.len() == whole, entries, parent });
        }
        match self.query(cred, Query::ReadDir { ino, after, limit, attrs }).await? {
            Answer::Listing { mut entries, end, parent } => {
                for entry in &mut entries {
                    entry.attr = entry.attr.take().map(|attr| self.core.seen(attr));
                }
                Ok(Listing { entries, end, parent })
            }
            other => Err(unexpected("readdir", &other)),
        }
    }

    /// An extended attribute's value.
    pub async fn getxattr(&self, cred: &Cred, ino: InodeId, name: &[u8]) -> Result<Vec<u8>, Fault> {
        match self.query(cred, Query::GetXattr { ino, name: name.to_vec() }).await? {
            Answer::Value(value) => Ok(value),
            other => Err(unexpected("getxattr", &other)),
        }
    }

    /// Names of all extended attributes, sorted.
    pub async fn listxattr(&self, cred: &Cred, ino: InodeId) -> Result<Vec<Vec<u8>>, Fault> {
        match self.query(cred, Query::ListXattr { ino }).await? {
            Answer::Names(names) => Ok(names),
            other => Err(unexpected("listxattr", &other)),
        }
    }

    /// Sets an extended attribute.
    pub async fn setxattr(
        &self,
        cred: &Cred,
        ino: InodeId,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<(), Fault> {
        let op = Op::SetXattr { ino, name: name.to_vec(), value: value.to_vec(), mode };
        self.submit(cred, op).await.map(|_| ())
    }

    /// Removes an extended attribute.
    pub async fn removexattr(&self, cred: &Cred, ino: InodeId, name: &[u8]) -> Result<(), Fault> {
        self.submit(cred, Op::RemoveXattr { ino, name: name.to_vec() }).await.map(|_| ())
    }

    /// Use of the file system.
    pub async fn statfs(&self) -> Result<FsStat, Fault> {
        match self.query(&Cred::default(), Query::StatFs).await? {
            Answer::StatFs(stat) => Ok(stat),
            other => Err(unexpected("statfs", &other)),
        }
    }

    /// Makes everything written through this client before this call durable (`syncfs`).
    pub async fn sync_all(&self) -> Result<(), Fault> {
        self.sync_all_by(self.core.meta.deadline()).await
    }

    async fn sync_all_by(&self, deadline: Instant) -> Result<(), Fault> {
        let unsaved = self.core.files().into_iter().filter(|inode| inode.lock().is_unsaved());
        let saves = unsaved.map(|inode| {
            let core = self.core.clone();
            async move { core.save(&inode, deadline).await }
        });
        let results = futures::future::join_all(saves).await;
        let told = self.sync_changes_by(&AtomicU64::new(self.losses()), deadline).await;
        results.into_iter().find(Result::is_err).unwrap_or(told)
    }
}

/// A request for something that is not a regular file.
pub(crate) fn not_a_file(attr: &Attr) -> Fault {
    match attr.kind {
        common::proto::meta::FileKind::Dir => Fault::new(Kind::IsDir, format!("{} is a directory", attr.ino)),
        _ => Fault::new(Kind::Invalid, format!("{} is not a regular file", attr.ino)),
    }
}
