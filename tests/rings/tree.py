#!/usr/bin/env python3
"""A random tree: thousands of random operations on files and directories, with a picture in memory
of what must be there. Everything is drawn from the seed, so a failure repeats.

usage: tree.py run DIR STATE SEED OPERATIONS    goes on from the picture in STATE if it exists
       tree.py check DIR STATE                  compares DIR with the picture

`run` compares whatever it meets on its way, `check` everything: names, types, modes, owners, sizes,
content, holes reading as zeros, targets, attributes, time stamps that were set, hard links.
"""
import errno
import hashlib
import os
import pickle
import random
import stat
import sys

FALLOC = {"keep": 1, "punch": 3, "zero": 0x10, "zero-keep": 0x11, "grow": 0}
BORDERS = [0, 1, 4095, 4096, 4097, 65536, 262143, 262144, 262145, 786432, 786433, 1310720]
MAX_SIZE = 1_500_000
MAX_OBJECTS = 1500


class Wrong(Exception):
    pass


class Object:
    """What one inode must look like."""

    def __init__(self, kind, mode):
        self.kind, self.mode = kind, mode
        self.data = bytearray()
        self.target = b""
        self.xattrs = {}
        self.owner = None
        self.mtime = None           # only when set, and nothing changed since
        self.entries = {}           # directories: name -> Object
        self.links = 1


def libc_fallocate(fd, mode, offset, length):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def libc_rename(old, new, flags):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, old, -100, new, flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Tree:
    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.root = Object("dir", 0o755)
        self.count = 0
        self.steps = 0
        self.done = {}

    # ---- choosing ----------------------------------------------------------------------------
    def directories(self):
        found, pending = [], [(b"", self.root)]
        while pending:
            path, d = pending.pop()
            found.append((path, d))
            pending.extend((path + b"/" + n, o) for n, o in d.entries.items() if o.kind == "dir")
        return found

    def some_dir(self):
        return self.rng.choice(self.directories())

    def some(self, *kinds):
        """(directory path, directory, name, object) or None"""
        dirs = self.directories()
        self.rng.shuffle(dirs)
        for path, d in dirs[:8]:
            names = sorted(n for n, o in d.entries.items() if not kinds or o.kind in kinds)
            if names:
                name = self.rng.choice(names)
                return path, d, name, d.entries[name]
        return None

    def new_name(self, d):
        r = self.rng
        while True:
            style = r.randrange(12)
            length = {0: 255, 1: r.randrange(160, 256), 2: 1}.get(style, r.randrange(1, 30))
            if style == 3:
                name = b"kmsfs." + bytes(r.choice(b"abcdirvolume.") for _ in range(5))
            elif style == 4:
                name = bytes(r.choice([c for c in range(1, 256) if c != 47]) for _ in range(length))
            else:
                name = bytes(r.choice(b"abcdefghijklmnopqrstuvwxyz0123456789._-") for _ in range(length))
            if name not in (b".", b"..") and name not in d.entries:
                return name

    def spot(self):
        r = self.rng
        if r.random() < 0.5:
            return max(0, r.choice(BORDERS) + r.randrange(-2, 3))
        return r.randrange(r.choice([300, 10_000, 300_000, MAX_SIZE]))

    def length(self):
        return self.rng.choice([1, 10, 300, 4096, 5000, 70_000]) + self.rng.randrange(200)

    # ---- operations: each changes the picture and the file system alike ----------------------
    def op_create(self, top):
        path, d = self.some_dir()
        name, mode = self.new_name(d), self.rng.choice([0o644, 0o600, 0o755, 0o664, 0o4755, 0o400])
        fd = os.open(top + path + b"/" + name, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
        d.entries[name] = Object("file", mode)
        d.mtime = None
        if self.rng.random() < 0.8:
            self.write(fd, d.entries[name])
        os.close(fd)

    def op_mkdir(self, top):
        path, d = self.some_dir()
        if path.count(b"/") > 7:
            return
        name, mode = self.new_name(d), self.rng.choice([0o755, 0o700, 0o1777])
        os.mkdir(top + path + b"/" + name, mode)
        d.entries[name] = Object("dir", mode)
        d.mtime = None

    def op_symlink(self, top):
        path, d = self.some_dir()
        name = self.new_name(d)
        o = Object("link", 0o777)
        size = self.rng.choice([1, 20, 300, 2990, 3000, 3100, 4000, 4095])
        o.target = bytes(self.rng.choice(b"abc/.\xff") for _ in range(size))
        os.symlink(o.target, top + path + b"/" + name)
        d.entries[name] = o
        d.mtime = None

    def op_fifo(self, top):
        path, d = self.some_dir()
        name = self.new_name(d)
        os.mkfifo(top + path + b"/" + name, 0o640)
        d.entries[name] = Object("fifo", 0o640)
        d.mtime = None

    def op_link(self, top):
        if not (source := self.some("file", "link")):
            return
        path, d = self.some_dir()
        name = self.new_name(d)
        os.link(top + source[0] + b"/" + source[2], top + path + b"/" + name, follow_symlinks=False)
        d.entries[name] = source[3]
        d.mtime = None
        source[3].links += 1

    def op_rename(self, top):
        if not (source := self.some()):
            return
        path, d = self.some_dir()
        old, o = source[0] + b"/" + source[2], source[3]
        if o.kind == "dir" and (path + b"/").startswith(old + b"/"):
            return
        name = self.new_name(d)
        replaced = None
        if self.rng.random() < 0.4 and (victim := self.some()):
            if (victim[0] + b"/").startswith(old + b"/") or victim[3] is o:
                return
            path, d, name, replaced = victim
            if (old + b"/").startswith(path + b"/" + name + b"/"):
                return
        new = path + b"/" + name
        exchange = replaced is not None and self.rng.random() < 0.3
        try:
            libc_rename(top + old, top + new, 2 if exchange else 0)
        except OSError as e:
            expected = self.rename_error(o, replaced, exchange)
            if e.errno not in expected:
                raise
            return
        if not exchange and self.rename_error(o, replaced, exchange):
            raise Wrong(f"rename {old!r} over {new!r} was allowed")
        if exchange:
            source[1].entries[source[2]], d.entries[name] = replaced, o
        else:
            del source[1].entries[source[2]]
            d.entries[name] = o
            if replaced is not None:
                replaced.links -= 1
        source[1].mtime = d.mtime = None

    @staticmethod
    def rename_error(o, replaced, exchange):
        if replaced is None or exchange:
            return ()
        if o.kind == "dir" and replaced.kind != "dir":
            return (errno.ENOTDIR,)
        if o.kind != "dir" and replaced.kind == "dir":
            return (errno.EISDIR,)
        if replaced.kind == "dir" and replaced.entries:
            return (errno.ENOTEMPTY, errno.EEXIST)
        return ()

    def op_remove(self, top):
        if not (it := self.some()):
            return
        path, d, name, o = it
        full = top + path + b"/" + name
        if o.kind == "dir":
            try:
                os.rmdir(full)
            except OSError as e:
                if not o.entries or e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                return
            if o.entries:
                raise Wrong(f"rmdir of {full!r} with entries was allowed")
        elif o.kind == "file" and self.rng.random() < 0.3 and self.allows(o):
            fd = os.open(full, os.O_RDWR)
            os.unlink(full)
            o.links -= 1
            self.write(fd, o)
            self.compare_content(fd, o, full)
            os.close(fd)
        else:
            os.unlink(full)
            o.links -= 1
        del d.entries[name]
        d.mtime = None

    def write(self, fd, o):
        offset, data = self.spot(), self.rng.randbytes(self.length())
        data = data[:MAX_SIZE + 100_000 - offset]
        os.pwrite(fd, data, offset)
        if len(o.data) < offset:
            o.data.extend(bytes(offset - len(o.data)))
        o.data[offset:offset + len(data)] = data
        self.changed(o)

    @staticmethod
    def allows(o):
        return os.geteuid() == 0 or o.mode & 0o600 == 0o600

    @staticmethod
    def changed(o):
        """Content changed: the time as well, and a set-user-ID bit goes unless root did it."""
        o.mtime = None
        if os.geteuid() != 0:
            o.mode &= ~0o4000

    def opened(self, top, flags=os.O_RDWR):
        """Opens some file; its mode may forbid that to an ordinary user."""
        if not (it := self.some("file")):
            return None
        try:
            return os.open(top + it[0] + b"/" + it[2], flags), it[3], it[0] + b"/" + it[2]
        except PermissionError:
            if os.geteuid() == 0 or it[3].mode & 0o200:
                raise
            return None

    def op_write(self, top):
        if f := self.opened(top):
            for _ in range(self.rng.randrange(1, 4)):
                self.write(f[0], f[1])
            if self.rng.random() < 0.2:
                os.fsync(f[0])
            os.close(f[0])

    def op_append(self, top):
        if f := self.opened(top, os.O_WRONLY | os.O_APPEND):
            data = self.rng.randbytes(self.length())
            if len(f[1].data) + len(data) < MAX_SIZE:
                os.write(f[0], data)
                f[1].data.extend(data)
                self.changed(f[1])
            os.close(f[0])

    def op_rewrite(self, top):
        if f := self.opened(top, os.O_WRONLY | os.O_TRUNC):
            f[1].data = bytearray()
            self.changed(f[1])
            if self.rng.random() < 0.7:
                self.write(f[0], f[1])
            os.close(f[0])

    def op_truncate(self, top):
        if f := self.opened(top):
            size = min(self.spot(), MAX_SIZE)
            os.ftruncate(f[0], size)
            o = f[1]
            o.data = o.data[:size] + bytes(max(0, size - len(o.data)))
            self.changed(o)
            os.close(f[0])

    def op_fallocate(self, top):
        if f := self.opened(top):
            fd, o, _ = f
            how = self.rng.choice(sorted(FALLOC))
            if "NO_ZERO_RANGE" in os.environ:
                how = how.replace("zero-keep", "punch").replace("zero", "grow")
            offset, length = self.spot(), self.length()
            libc_fallocate(fd, FALLOC[how], offset, length)
            end = offset + length
            if how in ("grow", "zero") and end > len(o.data):
                o.data.extend(bytes(end - len(o.data)))
            if how in ("punch", "zero", "zero-keep"):
                stop = min(end, len(o.data))
                if stop > offset:
                    o.data[offset:stop] = bytes(stop - offset)
            self.changed(o)
            os.close(fd)

    def op_read(self, top):
        if f := self.opened(top, os.O_RDONLY):
            fd, o, path = f
            offset, length = self.spot(), self.length()
            if os.pread(fd, length, offset) != bytes(o.data[offset:offset + length]):
                raise Wrong(f"read of {path!r} at {offset}+{length}")
            os.close(fd)

    def op_chmod(self, top):
        if it := self.some("file", "dir", "fifo"):
            mode = self.rng.choice([0o755, 0o700, 0o775] if it[3].kind == "dir" else
                                   [0o644, 0o600, 0o444, 0o640, 0o4711, 0o666])
            os.chmod(top + it[0] + b"/" + it[2], mode)
            it[3].mode = mode

    def op_chown(self, top):
        if os.geteuid() == 0 and (it := self.some()):
            owner = self.rng.randrange(100), self.rng.randrange(100)
            os.chown(top + it[0] + b"/" + it[2], *owner, follow_symlinks=False)
            it[3].owner = owner
            if it[3].kind in ("file", "fifo"):  # set-user-ID goes, and set-group-ID with x
                it[3].mode &= ~0o4000
                if it[3].mode & 0o10:
                    it[3].mode &= ~0o2000

    def op_utime(self, top):
        if it := self.some():
            ns = self.rng.randrange(0, 2**32) * 10**9 + self.rng.randrange(10**9)
            os.utime(top + it[0] + b"/" + it[2], ns=(ns, ns), follow_symlinks=False)
            it[3].mtime = ns

    def op_setxattr(self, top):
        if it := self.some("file", "dir"):
            name = b"user.n%d" % self.rng.randrange(6)
            value = self.rng.randbytes(self.rng.choice([0, 1, 30, 200]))
            try:
                os.setxattr(top + it[0] + b"/" + it[2], name, value)
            except PermissionError:
                if os.geteuid() == 0 or it[3].mode & 0o200:
                    raise
                return
            it[3].xattrs[name] = value

    def op_removexattr(self, top):
        if (it := self.some("file", "dir")) and it[3].xattrs:
            name = self.rng.choice(sorted(it[3].xattrs))
            try:
                os.removexattr(top + it[0] + b"/" + it[2], name)
            except PermissionError:
                if os.geteuid() == 0 or it[3].mode & 0o200:
                    raise
                return
            del it[3].xattrs[name]

    WEIGHTS = {
        "create": 14, "mkdir": 4, "symlink": 4, "fifo": 1, "link": 5, "rename": 12, "remove": 9,
        "write": 12, "append": 5, "rewrite": 4, "truncate": 6, "fallocate": 8, "read": 6, "chmod": 4,
        "chown": 3, "utime": 4, "setxattr": 6, "removexattr": 2,
    }

    def step(self, top):
        names = list(self.WEIGHTS)
        name = self.rng.choices(names, [self.WEIGHTS[n] for n in names])[0]
        if self.steps % 50 == 0:
            self.count = sum(len(d.entries) for _, d in self.directories())
        if self.count > MAX_OBJECTS and name in ("create", "mkdir", "symlink", "fifo", "link"):
            name = "remove"
        self.steps += 1
        self.done[name] = self.done.get(name, 0) + 1
        try:
            getattr(self, "op_" + name)(top)
        except (OSError, Wrong) as e:
            raise Wrong(f"step {self.steps} ({name}): {e}") from e

    # ---- comparing ---------------------------------------------------------------------------
    def compare_content(self, fd, o, path):
        got = bytearray()
        while piece := os.pread(fd, 1 << 20, len(got)):
            got += piece
        if got != o.data:
            at = next((i for i, (a, b) in enumerate(zip(got, o.data)) if a != b),
                      min(len(got), len(o.data)))
            raise Wrong(f"{path!r}: content differs from byte {at} on (size {len(got)}, expected "
                        f"{len(o.data)}), {hashlib.sha256(got).hexdigest()[:12]}")

    def compare(self, path, o, inodes):
        s = os.lstat(path)
        kind = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link",
                stat.S_IFIFO: "fifo"}[stat.S_IFMT(s.st_mode)]

        def same(what, got, expected):
            if got != expected:
                raise Wrong(f"{path!r}: {what} is {got!r:.200}, expected {expected!r:.200}")

        same("type", kind, o.kind)
        same("mode", oct(stat.S_IMODE(s.st_mode)), oct(o.mode))
        if o.owner:
            same("owner", (s.st_uid, s.st_gid), o.owner)
        if o.mtime is not None:
            same("mtime", s.st_mtime_ns, o.mtime)
        if kind == "dir":
            same("names", sorted(os.listdir(path)), sorted(o.entries))
        else:
            same("links", s.st_nlink, o.links)
            same("inode of its links", inodes.setdefault(id(o), s.st_ino), s.st_ino)
        if kind == "link":
            same("target", os.readlink(path), o.target)
            same("size", s.st_size, len(o.target))
        if kind in ("file", "dir") and (os.geteuid() == 0 or s.st_mode & 0o400):
            names = {n for n in os.listxattr(path) if n.startswith("user.")}
            same("attributes", {os.fsencode(n): os.getxattr(path, n) for n in names}, o.xattrs)
        if kind == "file":
            same("size", s.st_size, len(o.data))
            if os.geteuid() == 0 or s.st_mode & 0o400:
                fd = os.open(path, os.O_RDONLY)
                self.compare_content(fd, o, path)
                os.close(fd)

    def check(self, top):
        inodes, objects = {}, 0
        for path, d in self.directories():
            if path:        # the root itself has been made by others
                self.compare(top + path, d, inodes)
            elif sorted(os.listdir(top)) != sorted(d.entries):
                raise Wrong(f"names in the root: {sorted(os.listdir(top))!r:.300}")
            for name, o in sorted(d.entries.items()):
                objects += 1
                if o.kind != "dir":
                    self.compare(top + path + b"/" + name, o, inodes)
        return objects


def main():
    command, top, state = sys.argv[1], os.fsencode(sys.argv[2]), sys.argv[3]
    os.umask(0)
    if os.path.exists(state):
        with open(state, "rb") as f:
            tree = pickle.load(f)
    else:
        tree = Tree(int(sys.argv[4]))
    try:
        if command == "run":
            for _ in range(int(sys.argv[5])):
                tree.step(top)
            with open(state, "wb") as f:
                pickle.dump(tree, f)
            print(f"step {tree.steps}: {tree.done}")
        else:
            print(f"{tree.check(top)} objects as they must be after step {tree.steps}")
    except Wrong as e:
        print(f"WRONG: {e}")
        sys.exit(1)


main()
