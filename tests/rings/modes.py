#!/usr/bin/env python3
"""Modes, owners, ACLs, times and plain errors. Prints a transcript; ring 90 compares those of two
file systems. Needs root.

usage: modes.py DIR [--no-acl]
"""
import os
import socket
import stat
import struct
import sys

from transcript import Transcript, call, fallocate, renameat2

T = Transcript()
USER, GROUP, OTHER = 12001, 12002, 12003
MODES = [0o000, 0o400, 0o644, 0o666, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o6777, 0o7777]
UMASKS = [0o000, 0o002, 0o022, 0o027, 0o077, 0o777]
NOBODY = 0xFFFFFFFF


def acl(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)


def acl_text(value):
    if value is None:
        return None
    return [(t, oct(p), i if i != NOBODY else "-") for t, p, i in struct.iter_unpack("<HHI", value[4:])]


def get_acl(path, which="access"):
    try:
        return acl_text(os.getxattr(path, f"system.posix_acl_{which}"))
    except OSError as e:
        return e.errno


def as_user(function, uid=USER, gid=GROUP, groups=()):
    """Runs `function` in a child with another identity; its printed steps appear as usual."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.setgroups(list(groups))
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        try:
            function()
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(pid, 0)


def made(path):
    s = os.lstat(path)
    return f"{stat.filemode(s.st_mode)} {s.st_uid}:{s.st_gid}"


def matrix(place, acls):
    """Every way to make something under every umask with every mode: the mode it then has."""
    makers = {
        "open": lambda p, m: os.close(os.open(p, os.O_CREAT | os.O_EXCL | os.O_WRONLY, m)),
        "mkdir": os.mkdir,
        "mknod": lambda p, m: os.mknod(p, stat.S_IFREG | m),
        "mkfifo": os.mkfifo,
        "socket": lambda p, m: os.mknod(p, stat.S_IFSOCK | m),
    }
    number = 0
    for mask in UMASKS:
        os.umask(mask)
        for how, make in makers.items():
            row = []
            for mode in MODES:
                path = f"{place}/{how}{number}"
                number += 1
                make(path, mode)
                row.append(made(path) + (f" {get_acl(path)}" if acls else ""))
            T.note(f"umask {mask:03o} {how}", row)
    os.umask(0o022)
    os.symlink("x", f"{place}/sym")
    T.note("symlink", made(f"{place}/sym"))


def places(acls):
    os.umask(0)
    for name, mode, uid, gid in (("plain", 0o777, 0, 0), ("setgid", 0o2777, 0, 777),
                                 ("sticky", 0o1777, 0, 0), ("groups", 0o2775, 5, GROUP)):
        for who in ("root", "user"):
            path = f"{name}-{who}"
            os.mkdir(path)
            os.chown(path, uid, gid)
            os.chmod(path, mode)
            T.begin(path)
            (lambda f: f() if who == "root" else as_user(f))(lambda: matrix(path, False))
    if acls:
        default = acl((1, 7, NOBODY), (2, 6, OTHER), (4, 5, NOBODY), (8, 3, 888), (16, 7, NOBODY),
                      (32, 4, NOBODY))
        for who in ("root", "user"):
            path = f"default-acl-{who}"
            os.mkdir(path)
            os.chmod(path, 0o2777)
            os.setxattr(path, "system.posix_acl_default", default)
            T.begin(path)
            (lambda f: f() if who == "root" else as_user(f))(lambda: matrix(path, True))
            os.mkdir(f"{path}/below")
            T.note("a directory inherits both", (get_acl(f"{path}/below"),
                                                 get_acl(f"{path}/below", "default")))


def new(path, data=b"content", mode=0o644, owner=None):
    fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.write(fd, data)
    os.close(fd)
    if owner:
        os.chown(path, *owner)
    os.chmod(path, mode)


def privileges():
    """What happens to set-user-ID and set-group-ID."""
    changes = {
        "write": lambda p: write_to(p, b"x"),
        "write of nothing": lambda p: write_to(p, b""),
        "append": lambda p: write_to(p, b"x", os.O_APPEND),
        "truncate": lambda p: os.truncate(p, 3),
        "truncate to the same": lambda p: os.truncate(p, 7),
        "O_TRUNC": lambda p: os.close(os.open(p, os.O_WRONLY | os.O_TRUNC)),
        "fallocate": lambda p: on_fd(p, lambda fd: fallocate(fd, 0, 0, 100)),
        "punch": lambda p: on_fd(p, lambda fd: fallocate(fd, 3, 0, 5)),
        "utime": lambda p: os.utime(p, (1, 2)),
        "chmod": lambda p: os.chmod(p, 0o6711),
        "chown to itself": lambda p: os.chown(p, USER, GROUP),
        "chown of nothing": lambda p: os.chown(p, -1, -1),
        "chgrp": lambda p: os.chown(p, -1, 12009),
        "setxattr": lambda p: os.setxattr(p, "user.x", b"1"),
        "rename": lambda p: os.rename(p, p + "r") or os.rename(p + "r", p),
        "link": lambda p: os.link(p, p + "l"),
    }
    os.mkdir("privileges")
    os.chmod("privileges", 0o777)
    for mode in (0o6777, 0o6767, 0o4755, 0o2755, 0o2745):
        for n, (name, change) in enumerate(changes.items()):
            for who in ("root", "owner"):
                path = f"privileges/{mode:o}-{n}-{who}"
                new(path, mode=mode, owner=(USER, GROUP))
                os.chmod(path, mode)

                def go():
                    T.begin(f"{mode:04o} {who} {name}")
                    T.step("done", change, path)

                go() if who == "root" else as_user(go, groups=(12009,))
                T.begin(f"{mode:04o} {who} {name}")
                T.note("mode", made(path))
    T.begin("capabilities")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    for name, change in changes.items():
        if name not in ("write", "truncate", "O_TRUNC", "chown to itself", "chmod", "append"):
            continue
        path = f"privileges/capability-{name}"
        new(path, mode=0o755, owner=(USER, GROUP))
        T.step("set", os.setxattr, path, "security.capability", capability)
        T.step(name, change, path)
        T.step("capability after it", os.getxattr, path, "security.capability")


def write_to(path, data, flags=0):
    fd = os.open(path, os.O_WRONLY | flags)
    os.write(fd, data)
    os.close(fd)


def on_fd(path, function):
    fd = os.open(path, os.O_RDWR)
    try:
        return function(fd)
    finally:
        os.close(fd)


def permissions(acls):
    """Who may do what."""
    os.mkdir("permissions")
    os.chmod("permissions", 0o1777)
    new("permissions/roots", mode=0o640)
    new("permissions/users", mode=0o600, owner=(USER, GROUP))
    new("permissions/groups", mode=0o060, owner=(0, GROUP))
    os.mkdir("permissions/closed", 0o700)
    new("permissions/closed/in")
    os.mkdir("permissions/no-list", 0o711)
    os.chmod("permissions/no-list", 0o711)
    new("permissions/no-list/in", mode=0o666)
    os.mkdir("permissions/no-search", 0o744)
    os.chmod("permissions/no-search", 0o744)
    new("permissions/no-search/in", mode=0o666)

    def tries():
        s = T.step
        p = "permissions/"
        for name in ("roots", "users", "groups", "closed/in", "no-list/in", "no-search/in"):
            s(f"read {name}", lambda: os.close(os.open(p + name, os.O_RDONLY)))
            s(f"write {name}", lambda: os.close(os.open(p + name, os.O_WRONLY)))
            s(f"stat {name}", os.stat, p + name)
            s(f"access {name}", lambda: [os.access(p + name, a) for a in (os.R_OK, os.W_OK, os.X_OK)])
        for name in ("closed", "no-list", "no-search"):
            s(f"list {name}", lambda: os.listdir(p + name))
            s(f"create in {name}", lambda: os.open(p + name + "/x", os.O_CREAT | os.O_WRONLY))
        s("chmod another's", os.chmod, p + "roots", 0o777)
        s("chown one's own away", os.chown, p + "users", 0, -1)
        s("chown another's", os.chown, p + "roots", USER, -1)
        s("utime now, another's", os.utime, p + "roots")
        s("utime, another's", os.utime, p + "roots", (1, 1))
        s("utime now, writable", os.utime, p + "groups")
        s("utime, writable", os.utime, p + "groups", (1, 1))
        s("remove another's from a sticky directory", os.unlink, p + "roots")
        s("rename another's in it", os.rename, p + "roots", p + "mine")
        s("truncate another's", os.truncate, p + "roots", 0)
        s("setxattr another's", os.setxattr, p + "roots", "user.x", b"1")
        s("getxattr another's", os.getxattr, p + "roots", "user.x")
        s("trusted by a user", os.setxattr, p + "users", "trusted.x", b"1")
        s("list of attributes", lambda: os.listxattr(p + "users"))
        s("mknod of a device", os.mknod, p + "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        s("setgid to a group not one's own", lambda: os.chmod(p + "users", 0o2755) or made(p + "users"))

    os.setxattr("permissions/users", "trusted.hidden", b"1")
    for name, uid, gid in (("owner", USER, GROUP), ("group", OTHER, GROUP), ("other", OTHER, OTHER)):
        T.begin(f"as {name}")
        as_user(tries, uid, gid)
    if acls:
        acl_permissions()


def acl_permissions():
    os.mkdir("acl")
    os.chmod("acl", 0o755)
    entries = {
        "user rw, mask r": acl((1, 6, NOBODY), (2, 6, OTHER), (4, 0, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY)),
        "user none": acl((1, 6, NOBODY), (2, 0, OTHER), (4, 4, NOBODY), (16, 7, NOBODY), (32, 7, NOBODY)),
        "group w": acl((1, 6, NOBODY), (4, 4, NOBODY), (8, 2, OTHER), (16, 6, NOBODY), (32, 4, NOBODY)),
        "minimal": acl((1, 6, NOBODY), (4, 4, NOBODY), (32, 0, NOBODY)),
        "malformed": b"\2\0\0\0\1\0\7",
        "without mask": acl((1, 6, NOBODY), (2, 6, OTHER), (4, 0, NOBODY), (32, 0, NOBODY)),
    }
    for n, (name, value) in enumerate(entries.items()):
        T.begin(f"ACL {name}")
        path = f"acl/f{n}"
        new(path, mode=0o664, owner=(USER, GROUP))
        T.step("set", os.setxattr, path, "system.posix_acl_access", value)
        T.note("mode and ACL", (made(path), get_acl(path)))

        def tries():
            T.step("read", lambda: os.close(os.open(path, os.O_RDONLY)))
            T.step("write", lambda: os.close(os.open(path, os.O_WRONLY)))
            T.step("change", os.setxattr, path, "system.posix_acl_access", value)

        as_user(tries, OTHER, OTHER)
        T.step("chmod", os.chmod, path, 0o611)
        T.note("mode and ACL after chmod", (made(path), get_acl(path)))
        T.step("remove", os.removexattr, path, "system.posix_acl_access")
        T.note("mode and ACL after removal", (made(path), get_acl(path)))
    T.begin("ACL elsewhere")
    new("acl/default")
    T.step("default on a file", os.setxattr, "acl/default", "system.posix_acl_default", entries["minimal"])
    os.symlink("default", "acl/sym")
    T.step("on a symlink", os.setxattr, "acl/sym", "system.posix_acl_access", entries["minimal"],
           follow_symlinks=False)
    T.step("in the list", lambda: sorted(os.listxattr("acl/f0")))


def times():
    T.begin("times")
    new("times")
    for ns in (0, 1, 999_999_999, 1_234_567_890_123_456_789, -1, -1_500_000_000, -(2**31) * 10**9,
               (2**31 - 1) * 10**9 + 999_999_999, 2**31 * 10**9, (2**32 + 5) * 10**9 + 7,
               (2**34 - 2**31 - 1) * 10**9):
        T.step(f"utime {ns}", os.utime, "times", ns=(ns, ns + 3 if ns % 10**9 < 10 else ns))
        s = os.stat("times")
        T.note(f"times of {ns}", (s.st_atime_ns, s.st_mtime_ns))
    os.utime("times", ns=(5, 6))
    before = os.stat("times")
    write_to("times", b"x")
    T.note("a write moves mtime and ctime", (os.stat("times").st_mtime_ns > 10**18,
                                             os.stat("times").st_ctime_ns >= before.st_ctime_ns))
    os.utime("times", ns=(5, 6))
    os.chmod("times", 0o600)
    T.note("chmod leaves mtime", os.stat("times").st_mtime_ns)
    fd = os.open("times", os.O_RDWR)
    os.write(fd, b"cached data")
    os.utime(fd, ns=(7, 8))
    T.note("utime after a cached write", os.fstat(fd).st_mtime_ns)
    os.fsync(fd)
    T.note("and after fsync", os.fstat(fd).st_mtime_ns)
    os.close(fd)
    T.note("and after close", os.stat("times").st_mtime_ns)
    os.mkdir("dir-times")
    for name, change in (
            ("create", lambda: new("dir-times/a")), ("rename", lambda: os.rename("dir-times/a", "dir-times/b")),
            ("link", lambda: os.link("dir-times/b", "dir-times/c")), ("unlink", lambda: os.unlink("dir-times/c")),
            ("mkdir", lambda: os.mkdir("dir-times/d")), ("rmdir", lambda: os.rmdir("dir-times/d")),
            ("symlink", lambda: os.symlink("x", "dir-times/e")),
            ("write below", lambda: write_to("dir-times/b", b"y")),
            ("setxattr", lambda: os.setxattr("dir-times", "user.x", b"1"))):
        os.utime("dir-times", ns=(5, 6))
        change()
        T.note(f"{name} moves the directory's mtime", os.stat("dir-times").st_mtime_ns > 10**18)
    os.symlink("x", "sym-times")
    os.utime("sym-times", ns=(3, 4), follow_symlinks=False)
    T.note("times of a symlink", os.lstat("sym-times").st_mtime_ns)


def attributes_elsewhere():
    T.begin("attributes")
    os.symlink("nowhere", "xa-sym")
    os.mkfifo("xa-fifo")
    os.mknod("xa-null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod("xa-sock", stat.S_IFSOCK | 0o600)
    new("xa-file")
    os.mkdir("xa-dir")
    for name in ("xa-sym", "xa-fifo", "xa-null", "xa-sock", "xa-file", "xa-dir"):
        for attribute in ("user.a", "trusted.a", "security.a", "system.a", "nothing", "odd.a", "user."):
            T.step(f"{name} set {attribute}", os.setxattr, name, attribute, b"value", follow_symlinks=False)
            T.step(f"{name} get {attribute}", os.getxattr, name, attribute, follow_symlinks=False)
        T.step(f"{name} list", lambda: sorted(os.listxattr(name, follow_symlinks=False)))
    T.step("create existing", os.setxattr, "xa-file", "user.a", b"2", os.XATTR_CREATE)
    T.step("replace missing", os.setxattr, "xa-file", "user.zz", b"2", os.XATTR_REPLACE)
    T.step("replace", os.setxattr, "xa-file", "user.a", b"replaced", os.XATTR_REPLACE)
    T.step("get", os.getxattr, "xa-file", "user.a")
    T.step("empty value", os.setxattr, "xa-file", "user.e", b"")
    T.step("get empty", os.getxattr, "xa-file", "user.e")
    T.step("remove", os.removexattr, "xa-file", "user.a")
    T.step("remove again", os.removexattr, "xa-file", "user.a")
    T.step("get removed", os.getxattr, "xa-file", "user.a")
    import ctypes
    buffer = ctypes.create_string_buffer(4)
    T.step("get into a short buffer", lambda: call("getxattr", b"xa-file", b"trusted.a", buffer, 4))
    T.step("size of it", lambda: call("getxattr", b"xa-file", b"trusted.a", None, 0))
    T.step("list into a short buffer", lambda: call("listxattr", b"xa-file", buffer, 4))
    T.step("too large", os.setxattr, "xa-file", "user.large", b"x" * 65537)
    T.step("name too long", os.setxattr, "xa-file", "user." + "n" * 251, b"x")


def errors():
    s = T.step
    T.begin("errors")
    new("e-file")
    os.mkdir("e-dir")
    os.mkdir("e-full")
    new("e-full/x")
    os.symlink("e-loop", "e-loop")
    os.symlink("e-file", "e-link")
    s("unlink a directory", os.unlink, "e-dir")
    s("rmdir a file", os.rmdir, "e-file")
    s("rmdir a full directory", os.rmdir, "e-full")
    s("rmdir .", os.rmdir, "e-dir/.")
    s("rmdir ..", os.rmdir, "e-dir/..")
    s("open a directory for writing", os.open, "e-dir", os.O_WRONLY)
    s("O_DIRECTORY on a file", os.open, "e-file", os.O_DIRECTORY)
    s("O_NOFOLLOW on a symlink", os.open, "e-link", os.O_NOFOLLOW)
    s("O_EXCL on a symlink", os.open, "e-link", os.O_CREAT | os.O_EXCL)
    s("a loop", os.open, "e-loop", os.O_RDONLY)
    s("below a file", os.stat, "e-file/x")
    s("trailing slash on a file", os.stat, "e-file/")
    s("missing", os.stat, "e-missing")
    s("name of 256", os.mkdir, "x" * 256)
    s("create of 256", os.open, "x" * 256, os.O_CREAT)
    s("stat of 256", os.stat, "x" * 256)
    s("symlink of 256", os.symlink, "a", "x" * 256)
    s("rename to 256", os.rename, "e-file", "x" * 256)
    s("link to 256", os.link, "e-file", "x" * 256)
    s("path of 4096", os.stat, "x/" * 2048)
    s("symlink target of 4096", os.symlink, "x" * 4096, "e-long")
    s("symlink to nothing", os.symlink, "", "e-empty")
    s("rename below itself", os.rename, "e-dir", "e-dir/x")
    s("rename dir over file", os.rename, "e-dir", "e-file")
    s("rename file over dir", os.rename, "e-file", "e-dir")
    s("rename over full dir", os.rename, "e-dir", "e-full")
    s("rename to itself", os.rename, "e-file", "e-file")
    os.link("e-file", "e-file2")
    s("rename over the same inode", lambda: os.rename("e-file", "e-file2") or sorted(
        n for n in os.listdir(".") if n.startswith("e-file")))
    s("link a directory", os.link, "e-dir", "e-dir2")
    s("link over existing", os.link, "e-file", "e-full")
    s("mkdir existing", os.mkdir, "e-dir")
    for flags in (0, 1, 2, 3, 4, 8):
        s(f"renameat2 flags {flags} on existing", renameat2, -100, b"e-file", -100, b"e-file2", flags)
        s(f"renameat2 flags {flags} on missing", renameat2, -100, b"e-missing", -100, b"e-m2", flags)
    s("exchange file and dir", renameat2, -100, b"e-file", -100, b"e-full", 2)
    s("what they are now", lambda: (made("e-file"), made("e-full")))
    s("exchange with below itself", renameat2, -100, b"e-file", -100, b"e-file/x", 2)
    fd = os.open("e-file2", os.O_RDWR)
    s("negative seek", os.lseek, fd, -1, os.SEEK_SET)
    s("seek data at the end", os.lseek, fd, 7, os.SEEK_DATA)
    s("seek hole at the end", os.lseek, fd, 7, os.SEEK_HOLE)
    s("seek hole", os.lseek, fd, 0, os.SEEK_HOLE)
    s("seek data", os.lseek, fd, 0, os.SEEK_DATA)
    s("fallocate of nothing", fallocate, fd, 0, 0, 0)
    s("fallocate negative", fallocate, fd, 0, -1, 5)
    s("punch without keep", fallocate, fd, 2, 0, 5)
    s("collapse and zero at once", fallocate, fd, 0x18, 0, 4096)
    s("write to read-only", lambda: os.write(os.open("e-file2", os.O_RDONLY), b"x"))
    s("read from write-only", lambda: os.read(os.open("e-file2", os.O_WRONLY), 1))
    s("read of a directory", lambda: os.read(os.open("e-dir", os.O_RDONLY), 1))
    s("truncate a directory", os.truncate, "e-dir", 0)
    s("truncate negative", os.truncate, "e-file2", -1)
    s("fsync a directory", lambda: os.fsync(os.open("e-dir", os.O_RDONLY)))
    s("connect to a file", lambda: socket.socket(socket.AF_UNIX).connect("e-file2"))
    s("open a socket", lambda: os.open("xa-sock", os.O_RDONLY))
    s("open a fifo without a reader", lambda: os.open("xa-fifo", os.O_WRONLY | os.O_NONBLOCK))
    s("readlink of a file", os.readlink, "e-file2")


def running():
    """ETXTBSY both ways."""
    T.begin("a running program")
    with open("/bin/sleep", "rb") as f:
        new("program", f.read(), 0o755)
    pid = os.fork()
    ready, started = os.pipe()
    if pid == 0:
        os.set_inheritable(started, False)
        os.execv("./program", ["program", "1000"])
    os.close(started)
    os.read(ready, 1)       # ends when the new program runs
    T.step("open for writing", lambda: os.close(os.open("program", os.O_WRONLY)))
    T.step("truncate", os.truncate, "program", 0)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    fd = os.open("program", os.O_WRONLY)
    T.step("run while open for writing", lambda: os.posix_spawn("./program", ["program", "0"], {}))
    os.close(fd)


def main():
    os.chdir(sys.argv[1])
    acls = "--no-acl" not in sys.argv
    os.setgroups([])
    for part in (places, privileges, permissions, times, attributes_elsewhere, errors, running):
        os.umask(0o022)
        part(acls) if part in (places, permissions) else part()


main()
