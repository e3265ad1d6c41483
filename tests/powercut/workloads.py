"""The workloads: each writes, syncs, goes on writing without a sync, and says what must be there.

A workload gets a Work. What it has made durable and what may be there instead it notes in Things
(judge.py). `settle` comes after the durable part, `hand` after every un-synced write, `step` after
every un-synced operation; the plan of the round says what happens there.
"""
import ctypes
import errno
import mmap
import os
import sqlite3
import time

from judge import Thing, Verdict

KEEP_SIZE, PUNCH_HOLE = 1, 2
GROUP0 = 64 * 4096  # kmsfs: the chunks whose tags stand in the header

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


class Unsupported(Exception):
    pass


class Work:
    """One run of a workload below `root`, in a process of its own."""

    def __init__(self, root, rng, plan, commit, settle):
        self.root, self.rng, self.plan = root, rng, plan
        self._commit, self._settle = commit, settle
        self.things, self.open_files = [], []
        self.steps = self.waits = 0

    # ---- what happens around the writes ----
    def settle(self):
        """The durable part is done. Sometimes the volume is unmounted cleanly and mounted again."""
        self._settle()

    def step(self):
        """One un-synced operation is done. At one of them the kernel commits by itself."""
        self.steps += 1
        if self.steps == self.plan.commit_at:
            self._commit()

    def hand(self, fd):
        """How far an un-synced write has got: still in the kernel's cache, with the daemon,
        written by a close, or (some of them) by the periodic commit."""
        if self.plan.hand == "daemon":
            libc.sync_file_range(fd, 0, 0, 7)
        elif self.plan.hand == "flush":
            os.close(os.dup(fd))
        elif self.plan.hand == "wait":
            libc.sync_file_range(fd, 0, 0, 7)
            self.waits += 1
            time.sleep(6 if self.waits in (1, 4) else 0)

    # ---- helpers ----
    def path(self, name):
        return f"{self.root}/{name}"

    def bytes(self, n):
        return self.rng.randbytes(n)

    def open(self, name, flags=os.O_RDWR):
        """Stays open until the power goes."""
        fd = os.open(self.path(name), flags, 0o644)
        self.open_files.append(fd)
        return fd

    def close(self, fd):
        self.open_files.remove(fd)
        os.close(fd)

    def long_name(self):
        """One that kmsfs has to keep in a file beside it, if the system under test takes it."""
        try:
            os.lstat(self.path("l" * 240))
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return "l" * 120
        return "l" * 240

    def long_target(self):
        """The longest for a symlink that the system under test takes, or nearly so."""
        for size in (4000, 3900, 2900, 2000):
            try:
                os.symlink(b"t" * size, self.path("probe").encode())
                os.unlink(self.path("probe"))
                return b"t" * size
            except OSError as error:
                if error.errno not in (errno.ENAMETOOLONG, errno.EINVAL):
                    raise
        return b"t" * 1000

    def sync(self, fd):
        (os.fsync if self.rng.random() < 0.5 else os.fdatasync)(fd)

    def sync_dir(self, name=""):
        fd = os.open(self.path(name), os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)

    def durable(self, name, data, directory=True):
        """A file that was written, fsynced and closed, its directory fsynced too."""
        fd = self.open(name, os.O_RDWR | os.O_CREAT)
        for at in range(0, len(data), 1 << 18):
            os.pwrite(fd, data[at:at + (1 << 18)], at)
        os.fsync(fd)
        self.close(fd)
        if directory:
            self.sync_dir(os.path.dirname(name))
        return self.note(Thing(name[:40], [name], [[data]]))

    def volatile(self, name, data, exact=True):
        """A new file that was never synced."""
        fd = self.open(name, os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, data, 0)
        self.hand(fd)
        self.step()
        return self.note(Thing(name[:40], [name], [[b"", data]], firm=False, exact=exact))

    def note(self, thing):
        self.things.append(thing)
        return thing

    def directory(self, name):
        return self.note(Thing(name[:40] + "/", [name], [], kind="dir"))


def splice(data, at, new):
    return data[:at] + bytes(max(0, at - len(data))) + new + data[at + len(new):]


def overwrite_cases(w, cases):
    """[(size of the fsynced file, offset, length)]: one un-synced write into each."""
    files = [w.durable(f"f{i}", w.bytes(size)) for i, (size, _, _) in enumerate(cases)]
    w.settle()
    for f, (_, at, length) in zip(files, cases):
        fd = w.open(f.name)
        new = w.bytes(length)
        os.pwrite(fd, new, at)
        w.hand(fd)
        f.later(splice(f.data, at, new))
        w.step()


# ---- content -------------------------------------------------------------------------------------
def append(w):
    sizes = [(1808, 7), (4090, 13), (4096, 7), (GROUP0 - 4, 9000), (GROUP0 - 4096, 4096), (0, 700)]
    sizes += [(w.rng.randrange(1, 60000), w.rng.randrange(1, 9000)) for _ in range(2)]
    overwrite_cases(w, [(size, size, n) for size, n in sizes])


def overwrite(w):
    cases = [(20000, 5000, 100), (20000, 8192, 4096), (20000, 6000, 4096), (4096, 0, 100),
             (400000, GROUP0 - 50, 100), (400000, GROUP0 - 4096, 8192), (1808, 100, 100)]
    for _ in range(2):
        size = w.rng.randrange(5000, 700000)
        cases.append((size, w.rng.randrange(size - 4200), w.rng.choice([1, 100, 4096])))
    overwrite_cases(w, cases)


def shrink(w):
    cases = [(10000, 5000), (12288, 4096), (300000, 100), (300000, GROUP0), (9000, 0), (4096, 4095)]
    cases.append((w.rng.randrange(9000, 400000), w.rng.randrange(9000)))
    files = [w.durable(f"f{i}", w.bytes(size)) for i, (size, _) in enumerate(cases)]
    synced = w.durable("synced", w.bytes(30000))
    w.settle()
    for f, (_, size) in zip(files, cases):
        fd = w.open(f.name)
        os.ftruncate(fd, size)
        w.hand(fd)
        f.later(f.data[:size])
        w.step()
    # Cut and fsynced: what was cut off must not come back when the file grows again.
    fd = w.open("synced")
    os.ftruncate(fd, 9001)
    w.sync(fd)
    synced.synced(synced.data[:9001])
    os.ftruncate(fd, 25000)
    w.hand(fd)
    synced.later(synced.data + bytes(25000 - 9001))
    w.step()


def grow(w):
    """Truncate up."""
    cases = [(5000, 9000), (100, 300000), (0, 5000), (GROUP0, 1 << 20), (4096, 4097)]
    cases.append((w.rng.randrange(9000), w.rng.randrange(9000, 400000)))
    files = [w.durable(f"f{i}", w.bytes(size)) for i, (size, _) in enumerate(cases)]
    w.settle()
    for f, (old, size) in zip(files, cases):
        fd = w.open(f.name)
        os.ftruncate(fd, size)
        w.hand(fd)
        f.later(f.data + bytes(size - old))
        w.step()
    fd = w.open(files[0].name)
    os.ftruncate(fd, 70000)
    w.sync(fd)
    files[0].synced(files[0].families[0][0] + bytes(70000 - cases[0][0]))


def rewrite_small(w):
    """O_TRUNC and a small new content, closed or not."""
    cases = [(1808, 500), (20000, 30000), (300000, 100), (100, 0)]
    files = [w.durable(f"f{i}", w.bytes(size)) for i, (size, _) in enumerate(cases)]
    w.settle()
    for f, (_, size) in zip(files, cases):
        fd = w.open(f.name, os.O_RDWR | os.O_TRUNC)
        new = w.bytes(size)
        os.pwrite(fd, new, 0)
        w.hand(fd)
        # Two requests: empty is a state as well, and no mixture of old and new.
        f.families = [[f.data], [b"", new]]
        w.step()


def rewrite_large(w):
    size = 9 << 20
    f = w.durable("f", w.bytes(size))
    w.settle()
    new = w.bytes(size)
    fd = w.open("f", os.O_RDWR | os.O_TRUNC)
    for at in range(0, size, 1 << 20):
        os.pwrite(fd, new[at:at + (1 << 20)], at)
        w.step()
    w.hand(fd)
    f.families, f.exact = [[f.data], [b"", new]], False


def punch(w):
    cases = [(100000, 8192, 16384), (100000, 5000, 3000), (9000, 0, 9000), (400000, 100, 399000),
             (400000, GROUP0 - 4096, 8192)]
    files = [w.durable(f"f{i}", w.bytes(size)) for i, (size, _, _) in enumerate(cases)]
    w.settle()
    for f, (_, at, length) in zip(files, cases):
        fd = w.open(f.name)
        if libc.fallocate(fd, KEEP_SIZE | PUNCH_HOLE, at, length):
            code = ctypes.get_errno()
            if code in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise Unsupported("fallocate")
            raise OSError(code, os.strerror(code))
        w.hand(fd)
        f.later(splice(f.data, at, bytes(length)))
        w.step()


def dsync(w):
    f = w.durable("f", w.bytes(20000))
    g = w.durable("g", w.bytes(1808))
    w.settle()
    fd = w.open("f", os.O_RDWR | os.O_DSYNC)
    for at, length in [(5000, 100), (20000, 7), (20007, 9000), (4096, 4096)]:
        new = w.bytes(length)
        os.pwrite(fd, new, at)
        f.synced(splice(f.data, at, new))
    other = w.open("g", os.O_RDWR | os.O_SYNC)
    new = w.bytes(300)
    os.pwrite(other, new, 1700)
    g.synced(splice(g.data, 1700, new))
    # The same files without it.
    for thing, at in [(f, 6000), (g, 100)]:
        plain = w.open(thing.name)
        new = w.bytes(100)
        os.pwrite(plain, new, at)
        w.hand(plain)
        thing.later(splice(thing.data, at, new))
        w.step()


def msync(w):
    f = w.durable("f", w.bytes(40000))
    w.settle()
    fd = w.open("f")
    memory = mmap.mmap(fd, 40000)
    for at in (100, 9000, 39000):
        memory[at:at + 500] = new = w.bytes(500)
        f.synced(splice(f.data, at, new))
    memory.flush()  # msync(MS_SYNC)
    memory[20000:20100] = new = w.bytes(100)
    w.hand(fd)
    f.later(splice(f.data, 20000, new))
    w.step()
    w.open_files.append(memory)  # Not unmapped before the cut.


def growth(w):
    """Growth that was never synced: stat and read agree afterwards."""
    files = [w.durable(f"f{i}", w.bytes(size)) for i, size in enumerate([1808, 0, GROUP0 + 10])]
    w.settle()
    for f, more in zip(files, [100000, 50000, 600000]):
        fd = w.open(f.name)
        new = w.bytes(more)
        os.pwrite(fd, new, len(f.data))
        w.hand(fd)
        f.later(f.data + new)
        w.step()
    for i, size in enumerate([10, 5000, 300000]):
        w.volatile(f"new{i}", w.bytes(size))


def sequence(w):
    """Writes, cuts and syncs in random order, each handed on before the next."""
    for i in range(3):
        f = w.durable(f"f{i}", w.bytes(w.rng.choice([100, 5000, 90000, 300000])))
        w.settle() if i == 0 else None
        fd = w.open(f.name)
        for _ in range(w.rng.randrange(3, 12)):
            size, action = len(f.data), w.rng.random()
            if action < 0.2:
                w.sync(fd)
                f.synced()
                continue
            if action < 0.35:
                new_size = w.rng.randrange(size + 5000)
                os.ftruncate(fd, new_size)
                data = f.data[:new_size] + bytes(max(0, new_size - size))
            else:
                at = size if action < 0.6 else w.rng.randrange(size + 1)
                new = w.bytes(w.rng.choice([1, 7, 100, 4096, 20000]))
                os.pwrite(fd, new, at)
                data = splice(f.data, at, new)
            w.hand(fd)
            f.later(data)
            # In the kernel's cache they may change places.
            f.exact = w.plan.hand != "cache"
            w.step()


# ---- names ---------------------------------------------------------------------------------------
def new_directories(w):
    w.durable("old", w.bytes(100))
    w.settle()
    # Three new directories and a file; only the file is fsynced.
    os.makedirs(w.path("a/b/c"))
    w.step()
    w.durable("a/b/c/f", w.bytes(5000), directory=False)
    w.step()
    for name in ("a", "a/b", "a/b/c"):
        w.directory(name)
    # A new directory, and only its parent is fsynced.
    os.mkdir(w.path("d"))
    w.sync_dir()
    w.directory("d")
    os.mkdir(w.path("d/e"))
    w.sync_dir("d/e")
    w.step()
    w.volatile("d/x", w.bytes(3000))
    os.makedirs(w.path("u/v"))
    w.step()


def long_names(w):
    name, other, third = "n" * 255, "o" * 255, "p" * 230
    w.settle()
    w.durable(name, w.bytes(5000), directory=w.rng.random() < 0.3)
    w.step()
    os.mkdir(w.path(other))
    w.durable(f"{other}/f", w.bytes(600), directory=False)
    w.step()
    # A rename to a long name, not synced.
    f = w.durable("short", w.bytes(700))
    os.rename(w.path("short"), w.path(third))
    f.paths.append(third)
    w.step()
    g = w.durable("short2", w.bytes(800))
    os.rename(w.path("short2"), w.path("q" * 255))
    w.sync_dir()
    g.paths = ["q" * 255]
    w.step()
    # Removed and made anew.
    os.unlink(w.path(name))
    f = w.things[0]
    w.step()
    fd = w.open(name, os.O_RDWR | os.O_CREAT)
    new = w.bytes(6000)
    os.pwrite(fd, new, 0)
    w.sync(fd)
    f.synced(new)


def save(w):
    """What an editor does: write another file, fsync it, rename it over the first."""
    names = ["f0", "f1", "f2", w.long_name(), "f4"]
    files = [w.durable(name, w.bytes(w.rng.choice([500, 5000, 300000]))) for name in names]
    w.settle()
    for i, f in enumerate(files):
        new = w.bytes(w.rng.choice([501, 5001, 300001]))
        fd = w.open(f"tmp{i}", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, new, 0)
        os.fsync(fd)
        w.close(fd)
        os.rename(w.path(f"tmp{i}"), w.path(f.paths[0]))
        if i % 2 == 0:
            w.sync_dir()
            f.synced(new)
        else:
            f.families.append([new])
            w.note(Thing(f"tmp{i}", [f"tmp{i}", f.paths[0]], [[new]]))
        w.step()


def rename_into(w):
    """Into a new directory; then something else is fsynced."""
    f = w.durable("f", w.bytes(5000))
    g = w.durable("g", w.bytes(1000))
    h = w.durable("h", w.bytes(2000))
    os.mkdir(w.path("tree"))
    t = w.durable("tree/t", w.bytes(3000))
    w.sync_dir()
    w.settle()
    os.makedirs(w.path("new/deep"))
    os.rename(w.path("f"), w.path("new/f"))
    f.paths.append("new/f")
    w.step()
    os.rename(w.path("g"), w.path("new/deep/g"))
    g.paths.append("new/deep/g")
    w.step()
    os.rename(w.path("tree"), w.path("new/tree"))
    t.paths.append("new/tree/t")
    w.step()
    w.durable("else", w.bytes(100), directory=False)
    # And once with everything synced.
    os.mkdir(w.path("new2"))
    os.rename(w.path("h"), w.path("new2/h"))
    w.sync_dir("new2")
    w.sync_dir()
    h.paths = ["new2/h"]
    w.directory("new2")
    w.step()


def link_into(w):
    f = w.durable("f", w.bytes(5000))
    g = w.durable("g", w.bytes(700))
    w.settle()
    os.mkdir(w.path("new"))
    try:
        os.link(w.path("f"), w.path("new/f"))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK):
            raise Unsupported("link") from error
        raise
    w.note(Thing("new/f", ["new/f"], [[f.data]], firm=False))
    w.step()
    os.link(w.path("g"), w.path("new/g"))
    w.step()
    os.unlink(w.path("g"))
    g.paths.append("new/g")
    w.step()
    w.durable("else", w.bytes(100), directory=False)


def symlinks(w):
    w.settle()
    targets = [b"short", b"x" * 100, w.long_target()]
    os.mkdir(w.path("d"))
    for i, target in enumerate(targets):
        for directory in ("", "d/"):
            os.symlink(target, w.path(f"{directory}s{i}").encode())
            w.step()
            w.note(Thing(f"{directory}s{i}", [f"{directory}s{i}"], [[target]], kind="link"))
    w.sync_dir("d")
    w.sync_dir()
    w.directory("d")
    os.symlink(b"later", w.path("s9").encode())
    w.note(Thing("s9", ["s9"], [[b"later"]], kind="link", firm=False))
    w.step()


def xattrs(w):
    f = w.durable("f", w.bytes(3000))
    w.settle()
    values = [w.bytes(50), w.bytes(1000), w.bytes(60)]
    fd = w.open("f")
    try:
        os.setxattr(w.path("f"), "user.first", values[0])
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise Unsupported("xattr") from error
        raise
    os.setxattr(w.path("f"), "user.second", values[1])
    os.fsync(fd)
    for name, value in zip(("user.first", "user.second"), values):
        w.note(Thing(f"f {name}", ["f"], [[value]], kind="xattr", attribute=name))
    os.setxattr(w.path("f"), "user.first", values[2])
    w.things[-2].later(values[2])
    w.step()
    new = w.bytes(100)
    os.pwrite(fd, new, 1000)
    w.hand(fd)
    f.later(splice(f.data, 1000, new))
    os.setxattr(w.path("f"), "user.third", b"3")
    w.step()


def never_synced(w):
    """New things of all kinds, none of them synced: nothing was promised, but what is there
    afterwards must be in nobody's way."""
    w.settle()
    long = w.long_name()[1:]
    for directory in ("", "d", f"d{long}", "e"):
        if directory:
            os.mkdir(w.path(directory))
            w.step()
            directory += "/"
        w.volatile(f"{directory}f", w.bytes(w.rng.choice([100, 9000, 40000])))
        w.volatile(f"{directory}f{long}", w.bytes(w.rng.choice([9000, 40000, 300000])))
        for name in (f"{directory}s", f"{directory}s{long}"):
            target = w.long_target()
            os.symlink(target, w.path(name).encode())
            w.note(Thing(name[:40], [name], [[target]], kind="link", firm=False))
            w.step()
        for path in (f"{directory}f", directory or "."):
            value = w.bytes(50)
            try:
                os.setxattr(w.path(path), "user.new", value)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                continue
            w.note(Thing(f"{path} user.new", [path], [[value]], kind="xattr", firm=False,
                         attribute="user.new"))
            w.step()


# ---- closed, then only the daemon dies -----------------------------------------------------------
def closed(w):
    """No fsync at all: after a close, kill -9 of the daemon loses nothing."""
    files = [w.durable(f"old{i}", w.bytes(size)) for i, size in enumerate([1808, 20000, 300000])]
    w.settle()

    def write(name, at, data):
        fd = os.open(w.path(name), os.O_RDWR | os.O_CREAT, 0o644)
        for piece in range(0, len(data), 1 << 17):
            os.pwrite(fd, data[piece:piece + (1 << 17)], at + piece)
        os.close(fd)

    for i, size in enumerate([0, 10, 5000, 300000, 2 << 20]):
        data = w.bytes(size)
        write(f"new{i}", 0, data)
        w.note(Thing(f"new{i}", [f"new{i}"], [[data]]))
    for f, at in zip(files, [1808, 5000, 299000]):
        new = w.bytes(9000)
        write(f.name, at, new)
        f.synced(splice(f.data, at, new))
    for f, size in zip(files, [100, 40000, 8192]):
        fd = os.open(w.path(f.name), os.O_RDWR)
        os.ftruncate(fd, size)
        os.close(fd)
        f.synced(f.data[:size] + bytes(max(0, size - len(f.data))))
    data = w.bytes(700)
    write("tmp", 0, data)
    os.rename(w.path("tmp"), w.path("old0"))
    files[0].synced(data)
    os.makedirs(w.path("a/b"))
    write("a/b/" + "n" * 120, 0, data)
    w.note(Thing("a/b/nnn", ["a/b/" + "n" * 120], [[data]]))


# ---- sqlite --------------------------------------------------------------------------------------
def row(n):
    return (b"%d." % n) * (1 + n * 37 % 900)


def sqlite(w, mode):
    def connect():
        db = sqlite3.connect(w.path("db"), isolation_level=None)
        got = db.execute(f"pragma journal_mode={mode}").fetchone()[0]
        if got != mode:
            raise Unsupported(f"journal_mode={mode}")
        db.execute("pragma synchronous=EXTRA")
        db.execute("pragma cache_size=4")  # Spills before the commit.
        return db

    db = connect()
    db.execute("create table t (n integer primary key, data blob)")
    db.execute("create table sums (n integer, bytes integer)")
    db.execute("insert into sums values (0, 0)")
    db.close()
    w.sync_dir()
    thing = w.note(Thing("db", ["db"], [[b""]], kind="sqlite"))
    w.settle()
    db = connect()
    w.open_files.append(db)
    for n in range(1, w.rng.randrange(8, 30)):
        db.execute("begin immediate")
        db.execute("insert into t values (?, ?)", (n, row(n)))
        db.execute("update sums set n = ?, bytes = bytes + ?", (n, len(row(n))))
        db.execute("commit")
        thing.rows = n
        w.step()
    # Never committed.
    db.execute("begin immediate")
    db.execute("update t set data = zeroblob(3000)")
    db.execute("update sums set n = -1")
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith(w.root):
                w.hand(int(fd))
        except OSError:
            pass


def check_sqlite(path, rows):
    """Every acknowledged transaction is there, whole, and at most one that was not."""
    verdict = Verdict()
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=20)
        state = db.execute("pragma integrity_check").fetchone()[0]
        if state != "ok":
            return Verdict(unreadable=1, notes=[f"{path}: {state[:200]}"])
        have = dict(db.execute("select n, data from t"))
        (n, total), = db.execute("select n, bytes from sums").fetchall()
        db.close()
    except sqlite3.Error as error:
        return Verdict(unreadable=1, lost=sum(len(row(i)) for i in range(1, rows + 1)),
                       notes=[f"{path}: {error}"])
    for i in range(1, rows + 1):
        if have.get(i) is None:
            verdict.lost += len(row(i))
            verdict.notes.append(f"{path}: transaction {i} of {rows} is lost")
    last = len(have)
    verdict.wrong += sum(data != row(i) for i, data in have.items())
    if sorted(have) != list(range(1, last + 1)) or last > rows + 1 or n != last or \
            total != sum(len(row(i)) for i in range(1, last + 1)):
        verdict.wrong += 1
        verdict.notes.append(f"{path}: {last} rows, {rows} acknowledged, sums {n}, {total}")
    return verdict


def sqlite_delete(w):
    sqlite(w, "delete")


def sqlite_wal(w):
    sqlite(w, "wal")


def sqlite_killed(w):
    sqlite(w, w.rng.choice(["wal", "delete"]))


POWER = {f.__name__: f for f in (
    append, overwrite, shrink, grow, rewrite_small, rewrite_large, punch, dsync, msync, growth,
    sequence, new_directories, long_names, save, rename_into, link_into, symlinks, xattrs,
    never_synced, sqlite_delete, sqlite_wal)}
KILL_ONLY = {f.__name__: f for f in (closed, sqlite_killed)}
