//! Every request the kernel can send, in the order of `fuser::Filesystem`: takes it apart and hands it on.

use super::attrs::{file_attr, ino, new_node, set_time};
use super::files::{Opened, Write, open_flags, reply_pieces};
use super::locks::Asked;
use super::requests::READ;
use super::serve::{Op, Refuse};
use super::{BACKGROUND_MAX, Shared, WRITE_MAX};
use bytes::Bytes;
use client_fuse::NewMode;
use common::fault::Fault;
use common::id::InodeId;
use common::name::Name;
use common::proto::meta::{Attr, Cred, NewNode, RenameMode, SetAttr, XattrMode};
use common::units::len_u32;
use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// The kernel's side of the mount.
pub(super) struct Kernel(pub(super) Arc<Shared>);

/// Capabilities used where the kernel offers them; what each is for stands at the top of the module.
const CAPABILITIES: [InitFlags; 14] = [
    InitFlags::FUSE_POSIX_LOCKS,
    InitFlags::FUSE_FLOCK_LOCKS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_SPLICE_WRITE,
    InitFlags::FUSE_SPLICE_MOVE,
];
/// An extended attribute that would promise what is not kept: file capabilities.
const REFUSED_XATTR: &[u8] = b"security.capability";
/// `setxattr(2)` flags.
const XATTR_CREATE: i32 = 1;
const XATTR_REPLACE: i32 = 2;

fn op(name: &'static str, request: &Request, number: INodeNo) -> Op {
    Op { name, ino: ino(number), asks: false, thread: request.pid(), saves: false }
}

/// A request that only asks the metadata service.
fn ask(name: &'static str, request: &Request, number: INodeNo) -> Op {
    Op { asks: true, ..op(name, request, number) }
}

/// A request that saves what others took.
fn save(name: &'static str, request: &Request, number: INodeNo) -> Op {
    Op { saves: true, ..op(name, request, number) }
}

/// What a program asked for: the kernel leaves the umask to us ([`InitFlags::FUSE_DONT_MASK`]).
fn new_mode(mode: u32, umask: u32) -> NewMode {
    NewMode { bits: mode & 0o7777, umask: umask & 0o777 }
}

/// The checked name, or the answer that it is none.
fn checked<R: Refuse>(name: &OsStr, reply: R) -> Option<(Name, R)> {
    match Name::new(name.as_bytes()) {
        Ok(name) => Some((name, reply)),
        Err(error) => {
            reply.refuse(super::errno::errno(Fault::from(error).kind));
            None
        }
    }
}

/// Answers with the inode that a name leads to.
fn done_entry(dir: INodeNo, name: Name) -> impl FnOnce(&Arc<Shared>, ReplyEntry, Attr) + Send + 'static {
    move |shared, reply, attr| {
        shared.show(&attr, Some((ino(dir), &name)), |attr, ttl| {
            shared.inodes.shown(attr); // before the kernel can ask about it
            reply.entry(&ttl, &file_attr(attr), Generation(0));
        });
    }
}

fn done_attr(shared: &Arc<Shared>, reply: ReplyAttr, attr: Attr) {
    shared.show(&attr, None, |attr, ttl| {
        shared.inodes.refreshed(attr);
        reply.attr(&ttl, &file_attr(attr));
    });
}

fn done_empty(_: &Arc<Shared>, reply: ReplyEmpty, (): ()) {
    reply.ok();
}

/// Answers a value or, to a caller who asks with no buffer, its length.
fn done_value(reply: ReplyXattr, value: &[u8], size: u32) {
    let len = len_u32(value.len());
    match size {
        0 => reply.size(len),
        room if room < len => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

impl Kernel {
    /// Makes an entry that must not exist.
    fn make(&self, request: &Request, parent: INodeNo, name: &OsStr, node: NewNode, mode: NewMode, reply: ReplyEntry) {
        let Some((name, reply)) = checked(name, reply) else { return };
        let (shared, cred) = (Arc::clone(&self.0), self.0.creds.of(request));
        let new = name.clone();
        let work = async move {
            let made = shared.client.create(&cred, ino(parent), &new, node, mode).await;
            shared.inodes.changed(ino(parent));
            made
        };
        self.0.serve(op("create", request, parent), reply, work, done_entry(parent, name));
    }
}

/// `open`: the file as which it is open; who opened it had the right to truncate it, whoever does so now.
async fn set_attr(
    shared: &Shared,
    mut cred: Cred,
    number: InodeId,
    open: Option<u64>,
    set: SetAttr,
) -> Result<Attr, Fault> {
    if set.size.is_some() && cred.uid != 0 {
        shared.drop_privilege(number).await?;
    }
    if let (SetAttr { size: Some(_), mode: None, uid: None, gid: None, .. }, Some(open)) = (&set, open) {
        cred = shared.files.opener(open).unwrap_or(cred);
    }
    let _writing = if set.size.is_some() { Some(shared.warm.writing(number).await) } else { None };
    let changed = if set == SetAttr::default() {
        shared.client.getattr(&cred, number).await
    } else {
        shared.client.setattr(&cred, number, set).await
    };
    shared.inodes.changed(number);
    changed
}

impl Filesystem for Kernel {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            if config.add_capabilities(capability).is_err() {
                tracing::info!(?capability, "the kernel does not offer this");
            }
        }
        // Refusals give the nearest value the kernel takes.
        let _ = config.set_max_write(WRITE_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        if let Err(most) = config.set_max_readahead(WRITE_MAX) {
            let _ = config.set_max_readahead(most);
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some((name, reply)) = checked(name, reply) else { return };
        let (shared, cred) = (Arc::clone(&self.0), self.0.creds.of(request));
        let wanted = name.clone();
        let work = async move { shared.client.lookup(&cred, ino(parent), &wanted).await };
        self.0.serve(ask("lookup", request, parent), reply, work, done_entry(parent, name));
    }

    fn forget(&self, _: &Request, number: INodeNo, lookups: u64) {
        self.0.inodes.forget(ino(number), lookups);
    }

    fn getattr(&self, request: &Request, number: INodeNo, open: Option<FileHandle>, reply: ReplyAttr) {
        let (shared, cred) = (Arc::clone(&self.0), self.0.creds.of(request));
        let work = async move { shared.getattr(&cred, ino(number), open.map(|open| open.0)).await };
        self.0.serve(ask("getattr", request, number), reply, work, done_attr);
    }

    fn setattr(
        &self,
        request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            opened: handle.is_some(),
            ..SetAttr::default()
        };
        let (shared, cred) = (Arc::clone(&self.0), self.0.creds.of(request));
        let work = async move { set_attr(&shared, cred, ino(number), handle.map(|handle| handle.0), set).await };
        self.0.serve(op("setattr", request, number), reply, work, done_attr);
    }

    fn readlink(&self, request: &Request, number: INodeNo, reply: ReplyData) {
        let (shared, cred) = (Arc::clone(&self.0), self.0.creds.of(request));
        let work = async move { shared.client.readlink(&cred, ino(number)).await };
        self.0.serve(ask("readlink", request, number), reply, work, |_, reply, target| reply.data(&target));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        match new_node(mode, rdev) {
            Some(node) => self.make(request, parent, name, node, new_mode(mode, umask), reply),
            None => reply.error(Errno::EINVAL),
        }
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.make(request, parent, name, NewNode::Dir, new_mode(mode, umask), reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some((name, reply)) = checked(name, reply) else { return };
        let (shared, cred) = (Arc::clone(&self.0), self.0.creds.of(request));
        let work = async move {
            let removed = shared.client.unlink(&cred, ino(parent), &name).await;
            shared.inodes.changed(ino(parent));
            removed
        };
        self.0.serve(op("unlink", request, parent), reply, work, done_empty);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some((name, reply)) = checked(name, reply) else { return };
        let (shared, cred) = (Arc::clone(&self.0), self.0.creds.of(request));
        let work = async move {
            let removed = shared.client.rmdir(&cred, ino(parent), &name).await;
            shared.inodes.changed(ino(parent));
            removed
        };
        self.0.serve(op("rmdir", request, parent), reply, work, done_empty);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let node = NewNode::Symlink(target.as_os_str().as_bytes().to_vec());
        self.make(request, parent, name, node, new_mode(0o777, 0), reply);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some((name, reply)) = checked(name, reply) else { return };
        let Some((new_name, reply)) = checked(new_name, reply) else { return };
        let mode = match flags {
            f if f.is_empty() => RenameMode::Replace,
            f if f == RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            f if f == RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let (shared, cred) = (Arc::clone(&self.0), self.0.creds.of(request));
        let work = async move {
            let (from, to) = ((ino(parent), &name), (ino(new_parent), &new_name));
            let renamed = shared.client.rename(&cred, from, to, mode).await;
            shared.inodes.changed(ino(parent));
            shared.inodes.changed(ino(new_parent));
            renamed
        };
        self.0.serve(op("rename", request, parent), reply, work, done_empty);
    }

    fn link(&self, request: &Request, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some((name, reply)) = checked(name, reply) else { return };
        let (shared, cred) = (Arc::clone(&self.0), self.0.creds.of(request));
        let new = name.clone();
        let work = async move {
            let linked = shared.client.link(&cred, ino(number), ino(parent), &new).await;
            shared.inodes.changed(ino(parent));
            shared.inodes.changed(ino(number));
            linked
        };
        self.0.serve(op("link", request, number), reply, work, done_entry(parent, name));
    }

    fn open(&self, request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (shared, cred) = (Arc::clone(&self.0), self.0.creds.of(request));
        let work = async move { shared.open_file(cred, ino(number), flags.0).await };
        self.0.serve(op("open", request, number), reply, work, move |shared, reply, opened| {
            let (handle, answer) = shared.register(opened, flags.0);
            reply.opened(FileHandle(handle), answer);
        });
    }

    fn read(
        &self,
        request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let shared = Arc::clone(&self.0);
        let work = async move { shared.read_file(handle.0, offset, size).await };
        self.0.serve(op(READ, request, number), reply, work, |_, reply, pieces| reply_pieces(reply, &pieces));
    }

    fn write(
        &self,
        request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let shared = Arc::clone(&self.0);
        let bytes = Bytes::copy_from_slice(data); // the only copy: the kernel's buffer is used again at once
        let len = len_u32(data.len());
        let write = Write {
            offset,
            bytes,
            flags: flags.0,
            from_pages: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            kill: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        let work = async move { shared.write_file(handle.0, write).await };
        self.0.serve(op("write", request, number), reply, work, move |_, reply, ()| reply.written(len));
    }

    fn flush(&self, request: &Request, number: INodeNo, handle: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        let shared = Arc::clone(&self.0);
        let work = async move { shared.flush_file(handle.0, owner.0).await };
        self.0.serve(save("flush", request, number), reply, work, done_empty);
    }

    fn release(
        &self,
        request: &Request,
        number: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let shared = Arc::clone(&self.0);
        let work = async move { shared.release_file(handle.0).await };
        self.0.serve(save("release", request, number), reply, work, done_empty);
    }

    fn fsync(&self, request: &Request, number: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let shared = Arc::clone(&self.0);
        let work = async move { shared.sync_file(handle.0).await };
        self.0.serve(save("fsync", request, number), reply, work, done_empty);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(self.0.dirs.open(self.0.client.losses())), FopenFlags::empty());
    }

    fn readdir(&self, request: &Request, number: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        let (shared, cred) = (Arc::clone(&self.0), self.0.creds.of(request));
        let work = async move { shared.list(cred, ino(number), handle.0, offset, false).await };
        self.0
            .serve(ask("readdir", request, number), reply, work, |shared, reply, rows| shared.reply_rows(reply, &rows));
    }

    fn readdirplus(
        &self,
        request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let (shared, cred) = (Arc::clone(&self.0), self.0.creds.of(request));
        let work = async move { shared.list(cred, ino(number), handle.0, offset, true).await };
        let done = move |shared: &Arc<Shared>, reply, rows: Vec<_>| shared.reply_rows_plus(reply, ino(number), &rows);
        self.0.serve(ask("readdirplus", request, number), reply, work, done);
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.0.dirs.close(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, request: &Request, number: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let shared = Arc::clone(&self.0);
        let work = async move { shared.sync_dir(handle.0).await };
        self.0.serve(save("fsyncdir", request, number), reply, work, done_empty);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.0.statfs(reply);
    }

    fn setxattr(
        &self,
        request: &Request,
        number: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        if name.as_bytes() == REFUSED_XATTR {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let mode = match flags {
            0 => XattrMode::Any,
            XATTR_CREATE => XattrMode::Create,
            XATTR_REPLACE => XattrMode::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        let (shared, cred) = (Arc::clone(&self.0), self.0.creds.of(request));
        let work = async move {
            let set = shared.client.setxattr(&cred, ino(number), &name, &value, mode).await;
            shared.inodes.changed(ino(number));
            set
        };
        self.0.serve(op("setxattr", request, number), reply, work, done_empty);
    }

    fn getxattr(&self, request: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        // Never set, or known not to be there: the kernel asks about the ACL of every inode that it checks access to.
        if name.as_bytes() == REFUSED_XATTR || self.0.lacks_acl(ino(number), name.as_bytes()) {
            return reply.error(Errno::ENODATA);
        }
        let name = name.as_bytes().to_vec();
        let (shared, cred) = (Arc::clone(&self.0), self.0.creds.of(request));
        let work = async move { shared.client.getxattr(&cred, ino(number), &name).await };
        let done = move |_: &Arc<Shared>, reply, value: Vec<u8>| done_value(reply, &value, size);
        self.0.serve(ask("getxattr", request, number), reply, work, done);
    }

    fn listxattr(&self, request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        let (shared, cred) = (Arc::clone(&self.0), self.0.creds.of(request));
        let work = async move { shared.client.listxattr(&cred, ino(number)).await };
        self.0.serve(ask("listxattr", request, number), reply, work, move |_, reply, names: Vec<Vec<u8>>| {
            let mut list = Vec::new();
            for name in names {
                list.extend_from_slice(&name);
                list.push(0);
            }
            done_value(reply, &list, size);
        });
    }

    fn removexattr(&self, request: &Request, number: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        let (shared, cred) = (Arc::clone(&self.0), self.0.creds.of(request));
        let work = async move {
            let removed = shared.client.removexattr(&cred, ino(number), &name).await;
            shared.inodes.changed(ino(number));
            removed
        };
        self.0.serve(op("removexattr", request, number), reply, work, done_empty);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let Some((name, reply)) = checked(name, reply) else { return };
        let wanted = open_flags(flags);
        let exclusive = nix::fcntl::OFlag::from_bits_retain(flags).contains(nix::fcntl::OFlag::O_EXCL);
        let (shared, cred) = (Arc::clone(&self.0), self.0.creds.of(request));
        let new = name.clone();
        let work = async move {
            let (parent, mode) = (ino(parent), new_mode(mode, umask));
            let made = shared.client.create_open(&cred, parent, &new, mode, exclusive, wanted).await;
            shared.inodes.changed(parent);
            let (handle, _) = made?;
            shared.inodes.changed(handle.ino());
            let writing = if wanted.write { Some(shared.warm.writing(handle.ino()).await) } else { None };
            Ok(Opened { handle, flags: wanted, writing })
        };
        self.0.serve(op("create", request, parent), reply, work, move |shared, reply, opened| {
            let mut attr = opened.handle.attr();
            if wanted.truncate {
                (attr.size, attr.allocated) = (0, 0); // it was there, and was cut after these were read
            }
            shared.show(&attr, Some((ino(parent), &name)), |attr, ttl| {
                shared.inodes.shown(attr);
                let (handle, answer) = shared.register(opened, flags);
                reply.created(&ttl, &file_attr(attr), Generation(0), FileHandle(handle), answer);
            });
        });
    }

    fn getlk(
        &self,
        request: &Request,
        number: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let asked = Asked {
            ino: ino(number),
            handle: handle.0,
            owner: owner.0,
            start,
            end,
            kind,
            pid,
            wait: false,
            thread: request.pid(),
        };
        self.0.get_lock(self.0.creds.of(request), asked, reply);
    }

    fn setlk(
        &self,
        request: &Request,
        number: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        wait: bool,
        reply: ReplyEmpty,
    ) {
        let (handle, owner) = (handle.0, owner.0);
        let asked = Asked { ino: ino(number), handle, owner, start, end, kind, pid, wait, thread: request.pid() };
        self.0.set_lock(self.0.creds.of(request), asked, reply);
    }

    fn lseek(
        &self,
        request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let shared = Arc::clone(&self.0);
        let work = async move { shared.seek(handle.0, offset, whence).await };
        let done = |_: &Arc<Shared>, reply: ReplyLseek, found: Option<u64>| match found.map(i64::try_from) {
            Some(Ok(offset)) => reply.offset(offset),
            Some(Err(_)) | None => reply.error(Errno::ENXIO),
        };
        self.0.serve(op("lseek", request, number), reply, work, done);
    }

    fn fallocate(
        &self,
        request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let shared = Arc::clone(&self.0);
        let work = async move { shared.allocate(handle.0, offset, len, mode).await };
        self.0.serve(op("fallocate", request, number), reply, work, done_empty);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _: INodeNo,
        from: FileHandle,
        from_at: u64,
        number: INodeNo,
        to: FileHandle,
        at: u64,
        len: u64,
        _: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let shared = Arc::clone(&self.0);
        let work = async move { shared.copy_range((from.0, from_at), (to.0, at), len).await };
        self.0.serve(op("copy_file_range", request, number), reply, work, |_, reply, done| reply.written(done));
    }
}
