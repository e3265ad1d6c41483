#!/usr/bin/env python3
"""A user opens a file, a process of root works through the descriptor: what `sudo program > file`
does.

usage: inherit.py USER FILE append|truncate|map|times     as root
"""
import mmap
import os
import pwd
import socket
import sys


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


def truncate(fd):
    os.ftruncate(fd, 3)
    assert os.fstat(fd).st_size == 3
    os.ftruncate(fd, 400_000)
    assert os.pread(fd, 10, 399_990) == bytes(10)
    os.pwrite(fd, b"w" * 300_000, 50_000)
    os.fsync(fd)
    assert os.fstat(fd).st_size == 400_000
    assert os.pread(fd, 4, 49_998) == b"\0\0ww"


def map_(fd):
    os.ftruncate(fd, 400_000)
    with mmap.mmap(fd, 0) as m:
        m[200_000:200_004] = b"root"
        m.flush()
    assert os.pread(fd, 4, 200_000) == b"root"


def times(fd):
    os.pwrite(fd, b"cached", 0)
    os.utime(fd, ns=(1_000_000_001, 2_000_000_002))
    assert os.fstat(fd).st_mtime_ns == 2_000_000_002
    os.fchmod(fd, 0o640)
    os.setxattr(fd, "user.root", b"was here")
    assert os.getxattr(fd, "user.root") == b"was here"
    os.fsync(fd)
    assert os.fstat(fd).st_mtime_ns == 2_000_000_002


fd = opened_by(sys.argv[1], sys.argv[2])
{"append": append, "truncate": truncate, "map": map_, "times": times}[sys.argv[3]](fd)
os.close(fd)
