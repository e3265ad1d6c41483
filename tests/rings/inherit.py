#!/usr/bin/env python3
"""A user opens a file, a process of root works through the descriptor: what `sudo program > file`
does.

usage: inherit.py USER FILE append|overwrite|map|punch     as root

Truncating, chmod and the like are not here: the kernel itself refuses them to anyone but the one who
mounted, before it asks the file system.
"""
import mmap
import os
import pwd
import socket
import sys

from transcript import fallocate


def opened_by(user, path):
    """The descriptor of `path`, opened by a process of `user`."""
    entry = pwd.getpwnam(user)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
        socket.send_fds(theirs, [b"x"], [os.open(path, os.O_RDWR)])
        os._exit(0)
    theirs.close()
    fds = socket.recv_fds(ours, 1, 1)[1]
    os.waitpid(pid, 0)
    return fds[0]


def append(fd):
    os.lseek(fd, 0, os.SEEK_END)
    os.write(fd, b"from root\n")


def overwrite(fd):
    os.pwrite(fd, b"w" * 300_000, 50_000)
    os.fsync(fd)
    assert os.pread(fd, 4, 49_998) == b"\0\0ww"
    assert os.lseek(fd, 0, os.SEEK_END) == 350_000


def map_(fd):
    with mmap.mmap(fd, 350_000) as m:
        m[200_000:200_004] = b"root"
        m.flush()
    assert os.pread(fd, 4, 200_000) == b"root"
    os.fdatasync(fd)


def punch(fd):
    fallocate(fd, 3, 0, 4096)
    assert os.pread(fd, 10, 0) == bytes(10)
    fallocate(fd, 0, 350_000, 50_000)
    assert os.copy_file_range(fd, fd, 1000, 100_000, 60) == 1000
    assert os.lseek(fd, 0, os.SEEK_END) == 400_000


fd = opened_by(sys.argv[1], sys.argv[2])
{"append": append, "overwrite": overwrite, "map": map_, "punch": punch}[sys.argv[3]](fd)
os.close(fd)
