#!/usr/bin/env python3
"""The edges: names, link targets, attributes, huge sparse files. Says what does not hold.

usage: limits.py make|check DIR [--long]      `check` looks at what an earlier `make` left there
"""
import ctypes
import errno
import os
import random
import stat
import sys

FAILED = []


def expect(what, got, expected):
    if got != expected:
        FAILED.append(what)
        print(f"{what}: got {str(got)[:300]!r}, expected {str(expected)[:300]!r}", flush=True)


def expect_errno(what, codes, function, *args, **kwargs):
    try:
        result = function(*args, **kwargs)
    except OSError as e:
        expect(what, errno.errorcode[e.errno] in codes or errno.errorcode[e.errno], True)
        return
    expect(what, f"allowed ({result!r})", codes)


def write(path, data):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, data)
    os.close(fd)


def read(path):
    with open(path, "rb") as f:
        return f.read()


# ---- names ---------------------------------------------------------------------------------------
def names():
    rng = random.Random(4)
    found = {b"n" * k for k in range(1, 256)}
    found |= {bytes(rng.choice([c for c in range(1, 256) if c != 47]) for _ in range(k))
              for k in range(1, 256, 3)} - {b".", b".."}
    found |= {bytes([c]) for c in range(1, 256) if c not in (46, 47)}
    found |= {b"...", b".a", b"..a", b" ", b"-", b"~", b"kmsfs.dir", b"kmsfs.volume", b"kmsfs.esc.a",
              b"kmsfs.esc.kmsfs.dir", b"kmsfs.session", b"kmsfs.journal.0", b"kmsfs.", b"kmsfs",
              b"KMSFS.DIR", b"kmsfs.long." + b"A" * 43, b"kmsfs.long." + b"A" * 43 + b".name",
              b"kmsfs.link." + b"A" * 22, b".fuse_hidden0001", b"kmsfs." + b"k" * 239}
    return sorted(found)


def content(name):
    return b"<" + name + b">" * (sum(name) % 50)


def make_names(top):
    for kind in ("files", "dirs", "links"):
        os.mkdir(os.path.join(top, kind.encode()))
    for name in names():
        write(os.path.join(top, b"files", name), content(name))
        os.mkdir(os.path.join(top, b"dirs", name))
        os.symlink(name, os.path.join(top, b"links", name))
        expect_errno(f"{name!r} exists", {"EEXIST"}, os.mkdir, os.path.join(top, b"files", name))
    # The root of the volume has files of kmsfs's own beside them.
    for name in (b"kmsfs.volume", b"kmsfs.dir", b"kmsfs.session", b"kmsfs.journal.x"):
        write(os.path.join(top, b"..", name), content(name))
    # Through a rename, too: short to long, long to long, long to short, long over long.
    d = os.path.join(top, b"renamed")
    os.mkdir(d)
    write(os.path.join(d, b"a"), b"moved")
    for old, new in ((b"a", b"A" * 255), (b"A" * 255, b"B" * 254), (b"B" * 254, b"kmsfs.dir")):
        os.rename(os.path.join(d, old), os.path.join(d, new))
        expect(f"rename to {len(new)}", os.listdir(d), [new])
    write(os.path.join(d, b"C" * 255), b"over")
    write(os.path.join(d, b"D" * 255), b"gone")
    os.rename(os.path.join(d, b"C" * 255), os.path.join(d, b"D" * 255))
    os.link(os.path.join(d, b"D" * 255), os.path.join(d, b"E" * 255))
    os.unlink(os.path.join(d, b"D" * 255))
    # A directory with long names in it goes completely.
    os.mkdir(os.path.join(d, b"F" * 255))
    write(os.path.join(d, b"F" * 255, b"G" * 255), b"x")
    expect_errno("rmdir of it", {"ENOTEMPTY", "EEXIST"}, os.rmdir, os.path.join(d, b"F" * 255))
    os.unlink(os.path.join(d, b"F" * 255, b"G" * 255))
    os.rmdir(os.path.join(d, b"F" * 255))


def check_names(top):
    for kind in (b"files", b"dirs", b"links"):
        expect(f"{kind!r} listed", sorted(os.listdir(os.path.join(top, kind))), names())
    for name in names():
        expect(f"content of {name!r}", read(os.path.join(top, b"files", name)), content(name))
        expect(f"target of {name!r}", os.readlink(os.path.join(top, b"links", name)), name)
        expect(f"dir {name!r}", os.listdir(os.path.join(top, b"dirs", name)), [])
    for name in (b"kmsfs.volume", b"kmsfs.dir", b"kmsfs.session", b"kmsfs.journal.x"):
        expect(f"{name!r} in the root", read(os.path.join(top, b"..", name)), content(name))
    d = os.path.join(top, b"renamed")
    expect("renamed", sorted(os.listdir(d)), [b"E" * 255, b"kmsfs.dir"])
    expect("its content", read(os.path.join(d, b"E" * 255)), b"over")


# ---- symbolic links --------------------------------------------------------------------------------
LENGTHS = [*range(1, 20), 100, *range(20, 2999, 97), *range(3030, 3080), 3500, 3999, 4000, 4079, 4080, 4090,
           4093, 4094, 4095]


def target(length):
    return bytes((i * 7 + length) % 255 + 1 for i in range(length))


def make_links(top):
    other = os.path.join(top, b"other")
    os.mkdir(other)
    for n in LENGTHS:
        path = os.path.join(top, b"s%d" % n)
        os.symlink(target(n), path)
        expect(f"target of {n}", os.readlink(path), target(n))
        expect(f"size of {n}", os.lstat(path).st_size, n)
    # A long one moved to another directory, linked there, removed here, replaced, exchanged.
    for n in (4095, 3500, 100):
        os.rename(os.path.join(top, b"s%d" % n), os.path.join(other, b"moved%d" % n))
        os.link(os.path.join(other, b"moved%d" % n), os.path.join(other, b"second%d" % n),
                follow_symlinks=False)
        os.link(os.path.join(other, b"moved%d" % n), os.path.join(top, b"back%d" % n),
                follow_symlinks=False)
        os.unlink(os.path.join(other, b"moved%d" % n))
        os.rename(os.path.join(other, b"second%d" % n), os.path.join(other, b"L" * 250 + b"%d" % n))
        os.symlink(target(n), os.path.join(top, b"s%d" % n))
    os.symlink(target(4000), os.path.join(other, b"replaced"))
    os.symlink(target(3999), os.path.join(top, b"replacing"))
    os.rename(os.path.join(top, b"replacing"), os.path.join(other, b"replaced"))
    doomed = os.path.join(top, b"doomed")
    os.mkdir(doomed)
    os.symlink(target(4095), os.path.join(doomed, b"x"))
    expect_errno("rmdir with a long link", {"ENOTEMPTY", "EEXIST"}, os.rmdir, doomed)
    os.unlink(os.path.join(doomed, b"x"))
    os.rmdir(doomed)


def check_links(top):
    for n in LENGTHS:
        path = os.path.join(top, b"s%d" % n)
        expect(f"target of {n}", os.readlink(path), target(n))
        expect(f"size of {n}", os.lstat(path).st_size, n)
    other = os.path.join(top, b"other")
    for n in (4095, 3500, 100):
        for path in (os.path.join(other, b"L" * 250 + b"%d" % n), os.path.join(top, b"back%d" % n)):
            expect(f"moved target of {n} at {path[-20:]!r}", os.readlink(path), target(n))
            expect(f"its links, {n}", os.lstat(path).st_nlink, 2)
    expect("replaced", os.readlink(os.path.join(other, b"replaced")), target(3999))
    expect("listed", len(os.listdir(other)), 4)


# ---- attributes ------------------------------------------------------------------------------------
FULL = {"E2BIG", "ENOSPC", "ERANGE", "EDQUOT"}


def value(n):
    return bytes((i * 13 + n) % 256 for i in range(n))


def make_xattrs(top):
    for n in (0, 1, 100, 1000, 3000):
        path = os.path.join(top, b"v%d" % n)
        write(path, b"x")
        os.setxattr(path, "user.v", value(n))
    # Larger ones work as far as the file system below can hold them, and fail cleanly beyond.
    path = os.path.join(top, b"large")
    write(path, b"x")
    os.setxattr(path, "user.v", b"old")
    for n in (4000, 8000, 16000, 32000, 60000, 65519, 65520, 65536):
        try:
            os.setxattr(path, "user.v", value(n))
            now = value(n)
        except OSError as e:
            expect(f"value of {n}", errno.errorcode[e.errno] in FULL or errno.errorcode[e.errno], True)
            now = os.getxattr(path, "user.v")
        expect(f"value after trying {n}", os.getxattr(path, "user.v"), now)
    os.setxattr(path, "user.v", b"small again")
    for length in range(6, 256):
        path = os.path.join(top, b"name%d" % length)
        write(path, b"")
        try:
            os.setxattr(path, "user." + "n" * (length - 5), b"%d" % length)
        except OSError as e:
            expect(f"name of {length}", (length > 150, errno.errorcode[e.errno] in
                                         FULL | {"ENAMETOOLONG"} or errno.errorcode[e.errno]), (True, True))
            os.unlink(path)
    path = os.path.join(top, b"many")
    write(path, b"x")
    count = 0
    try:
        for count in range(500):
            os.setxattr(path, "user.k%d" % count, b"v%d" % count)
        count += 1
    except OSError as e:
        expect("many", errno.errorcode[e.errno] in FULL or errno.errorcode[e.errno], True)
    expect("many: at least 20", count >= 20, True)
    expect("many: names", sorted(os.listxattr(path)), sorted("user.k%d" % i for i in range(count)))
    for i in range(0, count, 2):
        os.removexattr(path, "user.k%d" % i)
    os.setxattr(path, "user.count", b"%d" % count)
    path = os.path.join(top, b"classes")
    write(path, b"")
    for name in ("user.a", "trusted.a", "security.a", "user.kmsfs.a", "trusted.kmsfs.a", "user.KMSFS.a"):
        os.setxattr(path, name, name.encode())


def check_xattrs(top):
    for n in (0, 1, 100, 1000, 3000):
        expect(f"value of {n}", os.getxattr(os.path.join(top, b"v%d" % n), "user.v"), value(n))
    expect("value at last", os.getxattr(os.path.join(top, b"large"), "user.v"), b"small again")
    for name in os.listdir(top):
        if name.startswith(b"name"):
            length = int(name[4:])
            expect(f"name of {length}", os.listxattr(os.path.join(top, name)),
                   ["user." + "n" * (length - 5)])
    path = os.path.join(top, b"many")
    count = int(os.getxattr(path, "user.count"))
    expect("many", {n: os.getxattr(path, n) for n in os.listxattr(path) if n != "user.count"},
           {"user.k%d" % i: b"v%d" % i for i in range(1, count, 2)})
    path = os.path.join(top, b"classes")
    for name in os.listxattr(path):
        expect(f"value of {name}", os.getxattr(path, name), name.encode())
    expect("classes", sorted(os.listxattr(path)), sorted(
        ["user.a", "trusted.a", "security.a", "user.kmsfs.a", "trusted.kmsfs.a", "user.KMSFS.a"]))


# ---- huge and sparse -------------------------------------------------------------------------------
TIB = 1 << 40
ISLANDS = {0: b"first", 4096 * 64: b"behind the header's part", 64 << 20: b"next level",
           (8 << 30) + 262144 - 2: b"across a level", TIB - 21: b"the end of a tebibyte"}


def make_sparse(top):
    path = os.path.join(top, b"tebibyte")
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, TIB)
    for offset, data in ISLANDS.items():
        os.pwrite(fd, data, offset)
    os.fsync(fd)
    if os.environ.get("FS") != "raw":       # tmpfs itself has no limit
        expect_errno("beyond every limit", {"EFBIG", "EINVAL"}, os.ftruncate, fd, (1 << 63) - 1)
    expect("size after that", os.fstat(fd).st_size, TIB)
    os.close(fd)
    write(os.path.join(top, b"cut"), b"x" * 300_000)
    os.truncate(os.path.join(top, b"cut"), TIB)
    os.truncate(os.path.join(top, b"cut"), 100_000)
    os.truncate(os.path.join(top, b"cut"), 10 << 30)
    fd = os.open(os.path.join(top, b"walk"), os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, 4 << 20)
    for k in (0, 3, 4, 100, 500, 1023):
        os.pwrite(fd, b"d" * 4096, k * 4096)
    os.fsync(fd)
    os.close(fd)


def segments(path):
    fd, found, at = os.open(path, os.O_RDONLY), [], 0
    size = os.fstat(fd).st_size
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as e:
            expect("no more data", e.errno, errno.ENXIO)
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, at))
    os.close(fd)
    return found


def check_sparse(top):
    path = os.path.join(top, b"tebibyte")
    s = os.stat(path)
    expect("size", s.st_size, TIB)
    # Islands of a block each, and what describes them: far below a megabyte.
    expect("blocks used", s.st_blocks * 512 < 1 << 20 or s.st_blocks, True)
    with open(path, "rb") as f:
        for offset, data in ISLANDS.items():
            f.seek(max(0, offset - 10))
            expect(f"island at {offset}", f.read(len(data) + 20)[min(10, offset):][:len(data)], data)
        f.seek(300 << 30)
        expect("a hole", f.read(100_000), bytes(100_000))
    data = segments(path)
    for offset in ISLANDS:
        expect(f"data found at {offset}", any(a <= offset < b for a, b in data), True)
    expect("little else is data", sum(b - a for a, b in data) <= 64 * 4096 or data, True)
    path = os.path.join(top, b"cut")
    with open(path, "rb") as f:
        expect("kept", f.read(100_000), b"x" * 100_000)
        expect("cut and grown reads zero", f.read(300_000), bytes(300_000))
    expect("walk", segments(os.path.join(top, b"walk")),
           [(0, 4096), (3 * 4096, 5 * 4096), (100 * 4096, 101 * 4096), (500 * 4096, 501 * 4096),
            (1023 * 4096, 1024 * 4096)])


# ---- the rest --------------------------------------------------------------------------------------
def make_rest(top):
    try:
        fd = os.open(top, os.O_TMPFILE | os.O_RDWR, 0o600)
        os.write(fd, b"temporary")
        expect("O_TMPFILE", os.pread(fd, 20, 0), b"temporary")
        os.close(fd)
    except OSError as e:
        expect("O_TMPFILE", e.errno, errno.EOPNOTSUPP)
    s = os.statvfs(top)
    expect("longest name", s.f_namemax, 255)
    expect("space", 0 < s.f_bavail <= s.f_bfree <= s.f_blocks, True)
    expect("inodes", s.f_ffree > 0, True)
    before = os.statvfs(top).f_bfree * s.f_frsize
    write(os.path.join(top, b"space"), b"s" * (8 << 20))
    fd = os.open(os.path.join(top, b"space"), os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    used = before - os.statvfs(top).f_bfree * s.f_frsize
    expect("space used by 8 MiB", 7 << 20 < used < 10 << 20 or used, True)
    s = os.stat(os.path.join(top, b"space"))
    expect("blocks of 8 MiB", 8 << 20 <= s.st_blocks * 512 < 9 << 20 or s.st_blocks, True)
    # Deep: paths longer than PATH_MAX, by steps.
    os.mkdir(os.path.join(top, b"deep"))
    here = os.open(os.path.join(top, b"deep"), os.O_RDONLY)
    for i in range(60):
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    fd = os.open("bottom", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=here)
    os.write(fd, b"very deep")
    os.close(fd)
    os.close(here)
    if "--long" in sys.argv:
        path = os.path.join(top, b"linked")
        write(path, b"")
        count = 1
        try:
            while count < 70_000:
                os.link(path, os.path.join(top, b"deep", b"l%d" % count))
                count += 1
        except OSError as e:
            expect("most links", errno.errorcode[e.errno], "EMLINK")
        expect("links", os.stat(path).st_nlink, count)


def check_rest(top):
    here = os.open(os.path.join(top, b"deep"), os.O_RDONLY)
    for _ in range(60):
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    fd = os.open("bottom", os.O_RDONLY, dir_fd=here)
    expect("at the bottom", os.read(fd, 100), b"very deep")


PARTS = {"names": (make_names, check_names), "links": (make_links, check_links),
         "xattrs": (make_xattrs, check_xattrs), "sparse": (make_sparse, check_sparse),
         "rest": (make_rest, check_rest)}


def main():
    command, top = sys.argv[1], os.fsencode(sys.argv[2])
    os.umask(0o022)
    for name, (make, check) in PARTS.items():
        place = os.path.join(top, name.encode())
        try:
            if command == "make":
                os.mkdir(place)
                make(place)
            check(place)
        except OSError as e:
            FAILED.append(name)
            print(f"{name}: {e!r}", flush=True)
    sys.exit(1 if FAILED else 0)


main()
