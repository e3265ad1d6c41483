#!/usr/bin/env python3
"""When reading moves access times. Prints a transcript; ring 95 compares those of two file
systems. Needs root.

usage: atime.py DIR
"""
import mmap
import os
import sys
import time

from transcript import Transcript

T = Transcript()
# Long ago, and an hour ago: relatime goes by the modification time and by a day.
OLD = 1_500_000_000 * 10**9
HOUR = time.time_ns() - 3600 * 10**9


def moved(path, act):
    """Whether `act` moves the access time; and that the modification time stays."""
    before = os.stat(path)
    time.sleep(0.02)        # more than the grain of the kernel's clock
    act(path)
    after = os.stat(path)
    return after.st_atime_ns > before.st_atime_ns, after.st_mtime_ns == before.st_mtime_ns


def read(path, flags=0):
    fd = os.open(path, os.O_RDONLY | flags)
    while os.read(fd, 100_000):
        pass
    os.close(fd)


def look_only(path):
    fd = os.open(path, os.O_RDONLY)
    os.fstat(fd)
    os.lseek(fd, 1, os.SEEK_SET)
    os.close(fd)


def map_and_read(path):
    fd = os.open(path, os.O_RDONLY)
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        mapped[:]
    os.close(fd)


def new(path, size):
    with open(path, "wb") as f:
        f.write(os.urandom(size))


def files():
    for size in (1, 300_000):
        T.begin(f"a file of {size}")
        new("f", size)
        # All of these find the content in the kernel's cache.
        T.note("opened and not read", moved("f", look_only))
        T.note("read with O_NOATIME", moved("f", lambda p: read(p, os.O_NOATIME)))
        T.note("read after writing", moved("f", read))
        T.note("read again", moved("f", read))
        with open("f", "ab") as f:
            f.write(b"more")
        T.note("read after appending", moved("f", read))
        os.utime("f", ns=(OLD, HOUR))
        T.note("read while older than the content", moved("f", read))
        os.utime("f", ns=(OLD, OLD - 1))
        T.note("read while a day old", moved("f", read))
        new("f", size)
        T.note("mapped", moved("f", map_and_read))
        os.unlink("f")


def change_time():
    T.begin("change time")
    new("c", 5000)
    # Forgotten by the kernel, whose own record of it may be some milliseconds older than the disk's.
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as drop:
        drop.write("3")
    before = os.stat("c")
    time.sleep(0.02)
    read("c")
    after = os.stat("c")
    T.note("atime, and not ctime", (after.st_atime_ns > before.st_atime_ns,
                                    after.st_ctime_ns == before.st_ctime_ns))


def directories():
    T.begin("a directory")
    os.mkdir("d")
    new("d/a", 1)
    T.note("listed after a change", moved("d", os.listdir))
    T.note("listed again", moved("d", os.listdir))
    os.utime("d", ns=(OLD, HOUR))
    T.note("listed while older than its content", moved("d", os.listdir))
    new("d/b", 1)
    T.note("listed after another change", moved("d", os.listdir))
    T.note("entered", moved("d", lambda p: os.stat(p + "/a")))


def main():
    os.chdir(sys.argv[1])
    files()
    change_time()
    directories()


main()
