#!/usr/bin/env python3
"""Small programs of ring 40, each run as `programs.py NAME ARGUMENTS`; exit 0 = all held."""
import ctypes
import fcntl
import mmap
import os
import random
import socket
import sqlite3
import struct
import sys


def same(got, expected, what):
    if got != expected:
        raise SystemExit(f"{what}: got {str(got)[:200]!r}, expected {str(expected)[:200]!r}")


def child(function, *args):
    """Runs `function` in another process; the caller waits for it with `wait`."""
    pid = os.fork()
    if pid == 0:
        try:
            function(*args)
            os._exit(0)
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
    return pid


def wait(*pids):
    for pid in pids:
        same(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0, "exit of the other process")


# ---- sqlite: two processes count in one table ----------------------------------------------------
def count(path, who, times):
    db = sqlite3.connect(path, timeout=300, isolation_level=None)
    for i in range(times):
        db.execute("begin immediate")
        (n,) = db.execute("select n from counter").fetchone()
        db.execute("update counter set n = ?", (n + 1,))
        db.execute("insert into log values (?, ?, ?)", (who, i, b"x" * (i * 37 % 5000)))
        db.execute("rollback" if i % 10 == 9 else "commit")
    db.close()


def run_sqlite(path, mode):
    db = sqlite3.connect(path, isolation_level=None)
    same(db.execute(f"pragma journal_mode={mode}").fetchone()[0], mode, "journal mode")
    db.execute("create table counter (n)")
    db.execute("create table log (who, i, pad)")
    db.execute("insert into counter values (0)")
    db.close()
    wait(*[child(count, path, who, 50) for who in range(2)])
    db = sqlite3.connect(path)
    same(db.execute("select n from counter").fetchone()[0], 90, "counter")
    same(db.execute("select count(*) from log").fetchone()[0], 90, "rows")
    same(db.execute("pragma integrity_check").fetchone()[0], "ok", "integrity")


# ---- files ---------------------------------------------------------------------------------------
def run_scribble(directory):
    rng = random.Random(5)
    for name in sorted(os.listdir(directory)):
        with open(os.path.join(directory, name), "r+b") as f:
            size = os.fstat(f.fileno()).st_size
            for _ in range(3):
                f.seek(rng.randrange(size + 1))
                f.write(rng.randbytes(rng.randrange(1, 6000)))


def run_project(top):
    os.mkdir(top)
    files = range(1, 21)
    for i in files:
        with open(f"{top}/f{i}.c", "w") as f:
            f.write(f'#include "all.h"\nint f{i}(void) {{ return {i}; }}\n')
    with open(f"{top}/all.h", "w") as f:
        f.writelines(f"int f{i}(void);\n" for i in files)
    with open(f"{top}/main.c", "w") as f:
        f.write('#include <stdio.h>\n#include "all.h"\nint main(void) { printf("sum %d\\n", '
                + " + ".join(f"f{i}()" for i in files) + "); return 0; }\n")
    objects = " ".join(f"f{i}.o" for i in files) + " main.o"
    with open(f"{top}/Makefile", "w") as f:
        f.write(f"prog: lib.a\n\tgcc -o $@ lib.a\nlib.a: {objects}\n\tar rcs $@ $^\n"
                "%.o: %.c all.h\n\tgcc -O1 -g -c -o $@ $<\n")


def run_rename_over(path):
    with open(path) as f:
        text = f.read()
    with open(path + ".tmp", "w") as f:
        os.fchmod(f.fileno(), os.stat(path).st_mode & 0o7777)
        f.write(text.replace("old", "new"))
        f.flush()
        os.fsync(f.fileno())
    os.rename(path + ".tmp", path)
    here = os.open(".", os.O_RDONLY)
    os.fsync(here)


def run_direct_mixed(path):
    """Cached and direct reads and writes of the same file see each other."""
    rng = random.Random(3)
    size = 1 << 20
    model = bytearray(size)
    cached = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(cached, size)
    direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, 1 << 16)
    for _ in range(400):
        length = rng.choice([4096, 8192, 65536])
        offset = rng.randrange((size - length) // 4096 + 1) * 4096
        match rng.randrange(4):
            case 0:
                buffer[:length] = data = rng.randbytes(length)
                same(os.pwritev(direct, [memoryview(buffer)[:length]], offset), length, "direct")
                model[offset:offset + length] = data
            case 1:
                cut = rng.randrange(length)
                data = rng.randbytes(length - cut)
                os.pwrite(cached, data, offset + cut)
                model[offset + cut:offset + length] = data
            case 2:
                same(os.preadv(direct, [memoryview(buffer)[:length]], offset), length, "direct")
                same(buffer[:length], bytes(model[offset:offset + length]), "direct read")
            case 3:
                same(os.pread(cached, length, offset), bytes(model[offset:offset + length]), "read")


def run_unlinked(path):
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, b"before" * 1000)
    os.unlink(path)
    same(os.path.exists(path), False, "name")
    same(os.fstat(fd).st_nlink, 0, "links")
    os.pwrite(fd, b"after", 300_000)
    os.ftruncate(fd, 300_003)
    os.fsync(fd)
    same(os.fstat(fd).st_size, 300_003, "size")
    same(os.pread(fd, 10, 299_998), b"\0\0aft", "content")
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    same(os.pread(again, 6, 0), b"before", "content through a second handle")
    with open(path, "wb") as other:
        other.write(b"a new file of that name")
    same(os.pread(fd, 6, 0), b"before", "content beside the new file")
    os.close(fd)
    same(os.pread(again, 6, 6), b"before", "content after the first close")
    os.unlink(path)


def run_copies(top):
    rng = random.Random(9)
    data = rng.randbytes(900_001)
    source, target = f"{top}/copy.source", f"{top}/copy.target"
    with open(source, "wb") as f:
        f.write(data)
    a, b = os.open(source, os.O_RDONLY), os.open(target, os.O_RDWR | os.O_CREAT, 0o600)
    done = 0
    while n := os.copy_file_range(a, b, 1 << 20, done, done):
        done += n
    same(os.pread(b, 1 << 20, 0), data, "copy_file_range")
    same(os.copy_file_range(b, b, 5000, 100, 700_000), 5000, "copy within the file")
    same(os.pread(b, 5000, 700_000), data[100:5100], "copy within the file")
    os.lseek(b, 0, os.SEEK_SET)
    os.ftruncate(b, 0)
    done = 0
    while n := os.sendfile(b, a, done, 1 << 20):
        done += n
    same(os.pread(b, 1 << 20, 0), data, "sendfile")


# ---- two processes -------------------------------------------------------------------------------
OFD_SETLK = 37
KINDS = {
    "flock": lambda fd, how: fcntl.flock(fd, how | fcntl.LOCK_NB),
    "posix": lambda fd, how: fcntl.lockf(
        fd, how if how == fcntl.LOCK_UN else how | fcntl.LOCK_NB, 10, 5),
    "ofd": lambda fd, how: fcntl.fcntl(fd, OFD_SETLK, struct.pack(
        "hhqqi4x", {fcntl.LOCK_EX: fcntl.F_WRLCK, fcntl.LOCK_SH: fcntl.F_RDLCK,
                    fcntl.LOCK_UN: fcntl.F_UNLCK}[how], os.SEEK_SET, 5, 10, 0)),
}


def try_lock(path, kind, how):
    fd = os.open(path, os.O_RDWR)
    try:
        KINDS[kind](fd, how)
        return True
    except (BlockingIOError, PermissionError):
        return False
    finally:
        os.close(fd)


def run_lock(path, kind):
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def other(how, expected):
        wait(child(lambda: same(try_lock(path, kind, how), expected, f"{kind} lock {how}")))

    KINDS[kind](fd, fcntl.LOCK_EX)
    other(fcntl.LOCK_EX, False)
    other(fcntl.LOCK_SH, False)
    KINDS[kind](fd, fcntl.LOCK_SH)
    other(fcntl.LOCK_EX, False)
    other(fcntl.LOCK_SH, True)
    KINDS[kind](fd, fcntl.LOCK_UN)
    other(fcntl.LOCK_EX, True)
    KINDS[kind](fd, fcntl.LOCK_EX)
    os.close(fd)
    other(fcntl.LOCK_EX, True)


def map_writer(path, offset, data):
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 0) as m:
        m[offset:offset + len(data)] = data


def run_mmap(path):
    size = 700_001
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, size)
    shared = mmap.mmap(fd, 0)
    private = mmap.mmap(fd, 0, access=mmap.ACCESS_COPY)
    shared[262_140:262_150] = b"0123456789"
    same(os.pread(fd, 10, 262_140), b"0123456789", "read after a mapped write")
    os.pwrite(fd, b"written", 1000)
    same(shared[1000:1007], b"written", "mapping after a write")
    wait(child(map_writer, path, 500_000, b"from the other process"))
    same(shared[500_000:500_022], b"from the other process", "the other's mapped write")
    private[0:5] = b"local"
    same(os.pread(fd, 5, 0), b"\0" * 5, "file after a private write")
    shared.flush()
    os.ftruncate(fd, size + 5000)
    shared.resize(size + 5000)
    shared[size:size + 4] = b"tail"
    shared.close()
    private.close()
    os.close(fd)
    with open(path, "rb") as f:
        data = f.read()
    expected = bytearray(size + 5000)
    for offset, piece in ((1000, b"written"), (262_140, b"0123456789"), (size, b"tail"),
                          (500_000, b"from the other process")):
        expected[offset:offset + len(piece)] = piece
    same(data, bytes(expected), "content in the end")


def run_ipc(top):
    fifo, name = f"{top}/ipc.fifo", f"{top}/ipc.sock"
    os.mkfifo(fifo)

    def feed():
        with open(fifo, "wb") as f:
            f.write(b"through the fifo")

    pid = child(feed)
    with open(fifo, "rb") as f:
        same(f.read(), b"through the fifo", "fifo")
    wait(pid)
    server = socket.socket(socket.AF_UNIX)
    server.bind(name)
    server.listen()

    def speak():
        c = socket.socket(socket.AF_UNIX)
        c.connect(name)
        c.sendall(b"through the socket")

    pid = child(speak)
    same(server.accept()[0].makefile("rb").read(), b"through the socket", "socket")
    wait(pid)


def run_inotify(top):
    libc = ctypes.CDLL(None, use_errno=True)
    directory = f"{top}/watched"
    os.mkdir(directory)
    fd = libc.inotify_init()
    everything = 0x2 | 0x100 | 0x200 | 0x40 | 0x80      # modify create delete moved from, to
    assert libc.inotify_add_watch(fd, directory.encode(), everything) >= 0
    with open(f"{directory}/a", "w") as f:
        f.write("x")
    os.rename(f"{directory}/a", f"{directory}/b")
    os.unlink(f"{directory}/b")
    data, seen = os.read(fd, 65536), []
    while data:
        _, mask, _, length = struct.unpack("iIII", data[:16])
        seen.append((mask, data[16:16 + length].rstrip(b"\0").decode()))
        data = data[16 + length:]
    same(seen, [(0x100, "a"), (0x2, "a"), (0x40, "a"), (0x80, "b"), (0x200, "b")], "events")


globals()["run_" + sys.argv[1].replace("-", "_")](*sys.argv[2:])
