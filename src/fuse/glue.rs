//! Requests of the kernel to calls of [`Volume`], one to one.
//!
//! Handlers run on the event-loop threads and answer there. What waits for a disk flush may occupy
//! half of them; more of it moves to the committer pool with its reply, so that slow flushes cannot
//! use up the loops. No handler waits for a KMS: what needs a key that is not at hand is run again,
//! with its reply, on a thread that has waited for the key.
//!
//! Locks (flock, POSIX, OFD) are left to the kernel, which keeps them right for the one mount
//! there is. O_TMPFILE, statx and syncfs do not reach a file system through this transport.

mod refresh;
mod reply;

use super::control::{self, Control};
use super::convert::{self, errno};
use super::guard::{Hook, guarded};
use super::init::{self, Wanted};
use super::ops::Op;
use super::pool::Pool;
use crate::fs::{FsResult, Opened, SetAttr, Volume, without_waiting};
use fuser::{
    CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use refresh::Refresher;
use reply::{answer, answer_bytes, answer_entry, done};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

/// Permission bits of a mode.
const PERMISSIONS: u32 = 0o7777;
/// Longest copy in one request, bytes: longer ones are continued by the caller, and meanwhile the
/// loop thread is free again.
const MAX_COPY: u64 = 16 << 20;
/// The root directory.
const ROOT: u64 = 1;
/// Threads that wait for flushes.
const COMMITTERS: usize = 4;
/// Most threads that wait for keys.
const KEY_WAITERS: usize = 64;

thread_local! {
    /// Plaintext on its way to the kernel; grows to the largest read of the thread.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The file system as the transport sees it.
pub struct Glue {
    volume: Arc<Volume>,
    control: Arc<Control>,
    wanted: Wanted,
    committers: Arc<Pool>,
    key_waiters: Pool,
    hook: Option<Hook>,
    /// Loop threads that wait for a flush now, and how many may.
    waiting: AtomicUsize,
    may_wait: usize,
}

impl Glue {
    /// Serves `volume`; `control` answers status and sync.
    pub fn new(volume: Arc<Volume>, control: Arc<Control>, wanted: Wanted) -> io::Result<Self> {
        let committers = Arc::new(Pool::start("kmsfs-commit", COMMITTERS, COMMITTERS)?);
        let key_waiters = Pool::start("kmsfs-key", 0, KEY_WAITERS)?;
        let (waiting, may_wait) = (AtomicUsize::new(0), wanted.threads / 2);
        Ok(Self { volume, control, wanted, committers, key_waiters, hook: None, waiting, may_wait })
    }

    /// Calls `hook` before every operation. For tests that inject faults.
    pub fn with_hook(mut self, hook: Hook) -> Self {
        self.hook = Some(hook);
        self
    }

    fn run(&self, op: Op, body: impl FnOnce()) {
        self.control.counters().count(op);
        guarded(op, self.hook.as_ref(), || without_waiting(body));
    }

    /// Runs a handler that may need a key: here if the key is at hand, else on a thread that may wait
    /// for it. `opens` is the file whose key that is.
    fn run_keyed<T: Send + 'static>(
        &self,
        op: Op,
        opens: Option<u64>,
        act: impl Fn(&Volume) -> FsResult<T> + Send + 'static,
        reply: impl FnOnce(FsResult<T>) + Send + 'static,
    ) {
        self.run(op, || match act(&self.volume) {
            Err(error) if error.need().is_some() => {
                if let Some(ino) = opens {
                    self.volume.note_opening(ino, true);
                }
                let volume = Arc::clone(&self.volume);
                self.key_waiters.run(move || {
                    guarded(op, None, || reply(volume.waiting_for_keys(opens, || act(&volume))));
                });
            }
            outcome => {
                if let Some(ino) = opens {
                    self.volume.note_opening(ino, false);
                }
                reply(outcome);
            }
        });
    }

    /// Runs a handler that waits for the disk: here while enough other loops are free to answer,
    /// else on the pool. A hop between threads costs more than a flush of memory-backed storage.
    fn run_flush(&self, op: Op, body: impl FnOnce(&Volume) + Send + 'static) {
        let waiting = self.waiting.fetch_add(1, Ordering::AcqRel);
        if waiting < self.may_wait {
            self.run(op, || body(&self.volume));
        } else {
            self.run_aside(op, body);
        }
        self.waiting.fetch_sub(1, Ordering::AcqRel);
    }

    /// Runs a handler that gives an object a name: it waits for the disk if the new name depends on
    /// something that is not on it yet.
    fn run_naming(&self, op: Op, body: impl FnOnce(&Volume) + Send + 'static) {
        if self.volume.naming_may_wait() {
            self.run_flush(op, body);
        } else {
            self.run(op, || body(&self.volume));
        }
    }

    fn refresh_modes(&self) {
        self.refresher().refresh();
    }

    fn refresher(&self) -> Refresher {
        let (volume, control) = (Arc::clone(&self.volume), Arc::clone(&self.control));
        Refresher { volume, control, committers: Arc::clone(&self.committers) }
    }

    /// Runs a handler that may wait long, on the pool.
    fn run_aside(&self, op: Op, body: impl FnOnce(&Volume) + Send + 'static) {
        self.control.counters().count(op);
        let (volume, hook) = (Arc::clone(&self.volume), self.hook.clone());
        self.committers.run(move || guarded(op, hook.as_ref(), move || body(&volume)));
    }
}

/// How the kernel shall treat an open file.
fn open_flags(opened: &Opened, flags: i32) -> FopenFlags {
    let mut answer = FopenFlags::empty();
    if opened.keep_cache {
        answer |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    // A handle that only reads has nothing to flush at close.
    if flags & (libc::O_ACCMODE | libc::O_TRUNC) == libc::O_RDONLY {
        answer |= FopenFlags::FOPEN_NOFLUSH;
    }
    answer
}

/// Whether a handle opened with these flags may have dirty pages.
fn writes(flags: i32) -> bool {
    OpenFlags(flags).acc_mode() != OpenAccMode::O_RDONLY
}

impl Filesystem for Glue {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        init::negotiate(config, self.wanted)
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.run(Op::Lookup, || match self.volume.lookup(parent.0, name.as_bytes()) {
            Ok(found) => reply.entry(
                &self.wanted.cache_for,
                &convert::attr(&found),
                Generation(found.generation),
            ),
            // Number 0 lets the kernel remember that the name is free.
            Err(e) if e.errno() == libc::ENOENT => {
                reply.entry(
                    &self.wanted.cache_for,
                    &convert::bare(0, crate::fs::FileKind::Regular),
                    Generation(0),
                );
            }
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, lookups: u64) {
        self.run(Op::Forget, || self.volume.forget(ino.0, lookups));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.run(Op::Getattr, || {
            let result = self.volume.getattr(ino.0, fh.map(|fh| fh.0));
            answer(reply, result, |reply, attr| {
                reply.attr(&self.wanted.cache_for, &convert::attr(&attr))
            });
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes = SetAttr {
            mode: mode.map(|mode| mode & PERMISSIONS),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
        };
        let (who, fh, cache_for) = (convert::caller(req), fh.map(|fh| fh.0), self.wanted.cache_for);
        self.run_keyed(
            Op::Setattr,
            None,
            move |volume| volume.setattr(who, ino.0, fh, changes),
            move |result| {
                answer(reply, result, |reply, attr| reply.attr(&cache_for, &convert::attr(&attr)));
            },
        );
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.run(Op::Readlink, || {
            answer(reply, self.volume.readlink(ino.0), |reply, target| reply.data(&target));
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.run(Op::Mknod, || {
            let (who, device) = (convert::caller(req), convert::device_number(rdev));
            let name = name.as_bytes();
            answer_entry(
                reply,
                self.wanted.cache_for,
                self.volume.mknod(who, parent.0, name, mode, umask, device),
            );
        });
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.run(Op::Mkdir, || {
            let (who, mode) = (convert::caller(req), mode & PERMISSIONS);
            answer_entry(
                reply,
                self.wanted.cache_for,
                self.volume.mkdir(who, parent.0, name.as_bytes(), mode, umask),
            );
        });
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.run(Op::Unlink, || done(reply, self.volume.unlink(parent.0, name.as_bytes())));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.run(Op::Rmdir, || done(reply, self.volume.rmdir(parent.0, name.as_bytes())));
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.run(Op::Symlink, || {
            let target = target.as_os_str().as_bytes();
            let who = convert::caller(req);
            answer_entry(
                reply,
                self.wanted.cache_for,
                self.volume.symlink(who, parent.0, name.as_bytes(), target),
            );
        });
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        self.run_naming(Op::Rename, move |volume| {
            done(reply, volume.rename(parent.0, &from, new_parent.0, &to, flags.bits()));
        });
    }

    fn link(&self, _req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (name, cache_for) = (name.as_bytes().to_vec(), self.wanted.cache_for);
        self.run_naming(Op::Link, move |volume| {
            answer_entry(reply, cache_for, volume.link(ino.0, parent.0, &name));
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (who, flags, ino) = (convert::caller(req), flags.0, ino.0);
        let (control, refresher) = (Arc::clone(&self.control), self.refresher());
        self.run_keyed(
            Op::Open,
            Some(ino),
            move |volume| volume.open_file(who, ino, flags),
            move |result| {
                refresher.refresh();
                if result.is_ok() && writes(flags) {
                    control.writer_opened(ino);
                }
                answer(reply, result, |reply, opened| {
                    reply.opened(FileHandle(opened.fh), open_flags(&opened, flags));
                });
            },
        );
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (who, name, mode) =
            (convert::caller(req), name.as_bytes().to_vec(), mode & PERMISSIONS);
        let (control, cache_for) = (Arc::clone(&self.control), self.wanted.cache_for);
        self.run_keyed(
            Op::Create,
            None,
            move |volume| volume.create(who, parent.0, &name, mode, umask, flags),
            move |result| {
                if let (Ok((attr, _)), true) = (&result, writes(flags)) {
                    control.writer_opened(attr.ino);
                }
                answer(reply, result, |reply, (attr, opened)| {
                    let (shown, generation) = (convert::attr(&attr), Generation(attr.generation));
                    let (fh, flags) = (FileHandle(opened.fh), open_flags(&opened, flags));
                    reply.created(&cache_for, &shown, generation, fh, flags);
                });
            },
        );
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.run(Op::Read, || {
            BUFFER.with_borrow_mut(|buffer| {
                let size = size as usize;
                if buffer.len() < size {
                    buffer.resize(size, 0);
                }
                let room = &mut buffer[..size];
                match self.volume.read(fh.0, offset, room) {
                    Ok(count) => reply.data(&room[..count.min(size)]),
                    Err(e) => reply.error(errno(&e)),
                }
            });
        });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.run(Op::Write, || {
            let result = self.volume.write(fh.0, offset, data, convert::write_how(write_flags));
            self.refresh_modes();
            // All or nothing; a request is far below 4 GiB.
            answer(reply, result, |reply, ()| reply.written(data.len() as u32));
        });
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.run(Op::Flush, || done(reply, self.volume.flush(fh.0)));
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.run(Op::Release, || {
            self.volume.release(fh.0);
            if writes(flags.0) {
                self.control.writer_released(ino.0);
            }
            reply.ok();
        });
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.run_flush(Op::Fsync, move |volume| done(reply, volume.fsync(fh.0, datasync)));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.run(Op::Opendir, || {
            let cache = match self.volume.may_cache_listings() {
                true => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
                false => FopenFlags::empty(),
            };
            answer(reply, self.volume.opendir(ino.0), |reply, fh| {
                reply.opened(FileHandle(fh), cache);
            });
        });
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.run(Op::Readdir, || reply::list(&self.volume, fh.0, offset, reply));
    }

    fn readdirplus(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.run(Op::Readdirplus, || {
            reply::list_plus(&self.volume, self.wanted.cache_for, fh.0, offset, reply)
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.run(Op::Releasedir, || {
            self.volume.releasedir(fh.0);
            reply.ok();
        });
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.run_flush(Op::Fsyncdir, move |volume| done(reply, volume.fsyncdir(fh.0, datasync)));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.run(Op::Statfs, || {
            answer(reply, self.volume.statfs(), |reply, s| {
                let (bsize, names) = (convert::BLKSIZE, s.namelen);
                reply.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, bsize, names, bsize);
            });
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (who, name, value) = (convert::caller(req), name.as_bytes().to_vec(), value.to_vec());
        if ino.0 == ROOT && control::is_request_name(&name) {
            return self.run(Op::Setxattr, || done(reply, self.control.leave(who, &name, &value)));
        }
        self.run_keyed(
            Op::Setxattr,
            None,
            move |volume| volume.setxattr(who, ino.0, &name, &value, flags),
            move |result| done(reply, result),
        );
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if ino.0 == ROOT && control::is_control_name(name.as_bytes()) {
            let (control, who) = (Arc::clone(&self.control), convert::caller(req));
            let name = name.as_bytes().to_vec();
            self.run_aside(Op::Getxattr, move |volume| {
                answer_bytes(reply, size, control.answer(volume, who, &name));
            });
            return;
        }
        self.run(Op::Getxattr, || {
            answer_bytes(reply, size, self.volume.getxattr(ino.0, name.as_bytes()));
        });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.run(Op::Listxattr, || {
            answer_bytes(reply, size, self.volume.listxattr(convert::caller(req), ino.0));
        });
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.run(Op::Removexattr, || {
            let who = convert::caller(req);
            done(reply, self.volume.removexattr(who, ino.0, name.as_bytes()));
        });
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.run(Op::Ioctl, || reply.error(Errno::ENOTTY));
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel then treats files as always ready and does not ask again.
        self.run(Op::Poll, || reply.error(Errno::ENOSYS));
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.run(Op::Fallocate, || {
            let who = convert::caller(req);
            done(reply, self.volume.fallocate(who, fh.0, offset, length, mode));
            self.refresh_modes();
        });
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let seek = move |volume: &Volume| {
            answer(reply, volume.lseek(fh.0, offset, whence), ReplyLseek::offset);
        };
        if !(self.wanted.writeback && self.control.has_writer(ino.0)) {
            return self.run(Op::Lseek, || seek(&self.volume));
        }
        // What was just written may still be in the kernel, where we see a hole.
        let control = Arc::clone(&self.control);
        self.run_aside(Op::Lseek, move |volume| {
            control.write_back(ino.0);
            seek(volume);
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.run(Op::CopyFileRange, || {
            let len = len.min(MAX_COPY);
            let who = convert::caller(req);
            let (from, to) = (fh_in.0, fh_out.0);
            let copied = self.volume.copy_file_range(who, from, offset_in, to, offset_out, len);
            self.refresh_modes();
            // At most MAX_COPY, so it fits.
            answer(reply, copied, |reply, count| reply.written(count.min(MAX_COPY) as u32));
        });
    }
}
