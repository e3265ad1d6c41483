#!/usr/bin/env python3
"""Makes a tree of everything a copying program must bring over unharmed.

usage: maketree.py DIR [SEED]     needs root (owners, device nodes, trusted and security attributes)
"""
import os
import random
import socket
import stat
import struct
import sys

# Around the borders at which the layout of a stored file changes.
SIZES = [0, 1, 100, 4095, 4096, 4097, 8192, 262143, 262144, 262145, 266240, 786431, 786432,
         786433, 790528, 1310720, 1500000]
NAMES = [b"plain", b".hidden", b"..two", b"with space", b"line\nbreak", b"tab\there", b"-dash",
         b"quote'\"", b"back\\slash", b"\xff\xfe invalid", b"caf\xc3\xa9", b"\x01control",
         b"kmsfs.dir", b"kmsfs.volume", b"kmsfs.long.x", b"kmsfs.", b"*?[a]", b"L" * 255,
         "längé".encode() * 35, b"=", b"a.b.c~", b"%41", b"con", b"UPPER", b"upper", b"x" * 191,
         b"y" * 176, b"z" * 175]


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def acl(*entries):
    """The binary form of a POSIX ACL: (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)


NOBODY = 0xFFFFFFFF
ACCESS = acl((1, 6, NOBODY), (2, 4, 12345), (4, 4, NOBODY), (8, 2, 54321), (16, 6, NOBODY),
             (32, 0, NOBODY))
DEFAULT = acl((1, 7, NOBODY), (2, 5, 12345), (4, 5, NOBODY), (16, 5, NOBODY), (32, 1, NOBODY))


def sparse_files(top):
    path = os.path.join(top, b"sparse")
    with open(path, "wb") as f:
        for offset in (0, 70000, 1 << 20, 5 << 20, (8 << 20) - 10):
            f.seek(offset)
            f.write(b"island" * 10)
        f.truncate((8 << 20) + 12345)
    with open(os.path.join(top, b"all-hole"), "wb") as f:
        f.truncate(3 << 20)


def links(top):
    a, b = os.path.join(top, b"links"), os.path.join(top, b"links", b"below")
    os.makedirs(b)
    write(os.path.join(a, b"one"), b"linked content")
    os.link(os.path.join(a, b"one"), os.path.join(a, b"two"))
    os.link(os.path.join(a, b"one"), os.path.join(b, b"three"))
    os.link(os.path.join(a, b"one"), os.path.join(b, b"N" * 255))
    targets = [b"one", b"../nowhere", b"/absolute/path", b"x" * 4000, b"\xff\xfe", b".", b"a\nb",
               b"d/" * 2000 + b"end"]
    for i, target in enumerate(targets):
        os.symlink(target, os.path.join(a, b"sym%d" % i))
    os.symlink(b"short", os.path.join(a, b"S" * 255))
    os.link(os.path.join(a, b"sym3"), os.path.join(a, b"sym3-again"), follow_symlinks=False)


def special_files(top):
    d = os.path.join(top, b"special")
    os.mkdir(d)
    os.mkfifo(os.path.join(d, b"fifo"), 0o640)
    os.mknod(os.path.join(d, b"null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(os.path.join(d, b"block"), stat.S_IFBLK | 0o660, os.makedev(7, 200))
    s = socket.socket(socket.AF_UNIX)
    here = os.open(d, os.O_PATH)
    s.bind(b"/proc/self/fd/%d/sock" % here)
    os.close(here)
    s.close()


def attributes(top):
    d = os.path.join(top, b"attributes")
    os.mkdir(d)
    for i in range(6):
        path = os.path.join(d, b"f%d" % i)
        write(path, b"with attributes" * i)
        for k in range(i):
            os.setxattr(path, b"user.name%d" % k, os.urandom(0) + b"value" * k)
    path = os.path.join(d, b"many")
    write(path, b"")
    os.setxattr(path, "user.empty", b"")
    os.setxattr(path, b"user.\xc3\xa9\xff", bytes(range(256)))
    os.setxattr(path, "user.large", b"v" * 2000)
    os.setxattr(path, "trusted.thing", b"for root")
    os.setxattr(path, "security.thing", b"labels")
    os.setxattr(path, "system.posix_acl_access", ACCESS)
    os.chown(path, 1234, 4321)
    os.setxattr(d, "user.on a directory", b"yes")
    os.setxattr(d, "system.posix_acl_access", ACCESS)
    os.setxattr(d, "system.posix_acl_default", DEFAULT)
    below = os.path.join(d, b"inherits")
    os.mkdir(below)
    write(os.path.join(below, b"file"), b"x")


def modes(top):
    d = os.path.join(top, b"modes")
    os.mkdir(d)
    for mode in (0o000, 0o400, 0o644, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o6711, 0o7000):
        path = os.path.join(d, b"f%04o" % mode)
        write(path, b"mode")
        os.chown(path, 1000 + mode % 7, 2000 + mode % 5)
        os.chmod(path, mode)
        sub = os.path.join(d, b"d%04o" % mode)
        os.mkdir(sub)
        os.chown(sub, 77, 88)
        os.chmod(sub, mode)


def times(top, rng):
    """Last: an odd time stamp on everything, children before their directories."""
    for here, dirs, files in os.walk(top, topdown=False):
        for name in sorted(dirs) + sorted(files) + [b""]:
            ns = rng.randrange(0, 2_000_000_000) * 10**9 + rng.randrange(10**9)
            path = os.path.join(here, name) if name else here
            os.utime(path, ns=(ns, ns), follow_symlinks=False)


def main():
    top = os.fsencode(sys.argv[1])
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    os.makedirs(top, exist_ok=True)
    os.umask(0o022)
    for d in (b"names", b"sizes", b"deep", b"empty"):
        os.mkdir(os.path.join(top, d))
    for name in NAMES:
        write(os.path.join(top, b"names", name), b"content of " + name)
        os.mkdir(os.path.join(top, b"names", b"d" + name[:254]))
    for size in SIZES:
        write(os.path.join(top, b"sizes", b"s%d" % size), rng.randbytes(size))
    path = os.path.join(top, b"deep")
    for i in range(40):
        path = os.path.join(path, b"level%d" % i)
        os.mkdir(path)
        write(os.path.join(path, b"f"), b"%d" % i)
    sparse_files(top)
    links(top)
    special_files(top)
    attributes(top)
    modes(top)
    times(top, rng)


main()
