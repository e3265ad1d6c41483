#!/usr/bin/env python3
"""Prints what a user can see of a tree, one line per object, in an order that does not depend on
the file system: type, mode, owner, link count, size, time stamps, content, target, attributes,
hard links.

usage: manifest.py DIR [--no-times] [--no-dir-times] [--no-dir-nlink] [--no-owner] [--no-nlink]

How a file's holes are laid out is not part of it: a file system may store them as it likes.
"""
import hashlib
import os
import stat
import sys

KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "sock", stat.S_IFCHR: "char", stat.S_IFBLK: "block",
}


def content_hash(path):
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as f:
        while data := f.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def attributes(path):
    found = {}
    for name in os.listxattr(path, follow_symlinks=False):
        found[name] = os.getxattr(path, name, follow_symlinks=False)
    return ",".join(f"{n!r}={hashlib.sha256(v).hexdigest()[:16]}/{len(v)}"
                    for n, v in sorted(found.items()))


def describe(path, shown, options, first_names):
    s = os.lstat(path)
    kind = KINDS[stat.S_IFMT(s.st_mode)]
    is_dir = kind == "dir"
    fields = [repr(shown), kind, oct(stat.S_IMODE(s.st_mode))]
    if "--no-owner" not in options:
        fields.append(f"{s.st_uid}:{s.st_gid}")
    if "--no-nlink" not in options and not (is_dir and "--no-dir-nlink" in options):
        fields.append(f"nlink={s.st_nlink}")
    if not is_dir:
        fields.append(f"size={s.st_size}")
    if "--no-times" not in options and not (is_dir and "--no-dir-times" in options):
        fields.append(f"mtime={s.st_mtime_ns}")
    if kind in ("char", "block"):
        fields.append(f"rdev={os.major(s.st_rdev)}:{os.minor(s.st_rdev)}")
    if kind == "link":
        fields.append(f"-> {os.readlink(path)!r}")
    if kind == "file":
        fields.append(content_hash(path))
    if not is_dir and s.st_nlink > 1:
        fields.append(f"same={first_names.setdefault((s.st_dev, s.st_ino), shown)!r}")
    fields.append(attributes(path))
    return " ".join(fields)


def walk(top):
    """Paths relative to `top`, sorted by bytes; the top itself first."""
    yield b"."
    pending = [b""]
    while pending:
        here = pending.pop()
        entries = sorted(e.name for e in os.scandir(os.path.join(top, here)))
        below = []
        for name in entries:
            rel = os.path.join(here, name)
            yield rel
            if stat.S_ISDIR(os.lstat(os.path.join(top, rel)).st_mode):
                below.append(rel)
        pending.extend(reversed(below))


def main():
    top, options = os.fsencode(sys.argv[1]), set(sys.argv[2:])
    first_names = {}
    for rel in walk(top):
        print(describe(os.path.join(top, rel), rel, options, first_names))
    print("# end")


main()
