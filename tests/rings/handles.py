#!/usr/bin/env python3
"""Every operation through a handle on a file or directory that has been removed or renamed, or whose
parent has. Prints a transcript; ring 80 compares those of two file systems.

usage: handles.py DIR
"""
import fcntl
import mmap
import os
import sys

from transcript import Transcript, call, fallocate, renameat2

T = Transcript()
KEEP, PUNCH, ZERO = 1, 3, 0x10


def file_operations(fd, other):
    """Everything that can be done with a file's descriptor. `other` is a directory descriptor of a
    place that still exists."""
    s = T.step
    s("fstat", os.fstat, fd)
    s("pread", os.pread, fd, 100, 0)
    s("pwrite", os.pwrite, fd, b"written late", 5)
    s("pread again", os.pread, fd, 100, 0)
    s("pwrite far", os.pwrite, fd, b"far", 400_000)
    s("fstat after it", os.fstat, fd)
    s("ftruncate down", os.ftruncate, fd, 300_001)
    s("ftruncate up", os.ftruncate, fd, 900_000)
    s("fstat after those", os.fstat, fd)
    s("pread over the old end", os.pread, fd, 20, 299_990)
    s("fchmod", os.fchmod, fd, 0o640)
    s("fchown", os.fchown, fd, 11, 22)
    s("fstat owner", os.fstat, fd)
    s("futimens", os.utime, fd, ns=(1_000_000_001, 2_000_000_002))
    s("mtime", lambda: os.fstat(fd).st_mtime_ns)
    s("fsetxattr", os.setxattr, fd, "user.late", b"attribute")
    s("fgetxattr", os.getxattr, fd, "user.late")
    s("fgetxattr from before", os.getxattr, fd, "user.early")
    s("flistxattr", lambda: sorted(os.listxattr(fd)))
    s("fremovexattr", os.removexattr, fd, "user.early")
    s("fremovexattr again", os.removexattr, fd, "user.early")
    s("fallocate", fallocate, fd, 0, 950_000, 1000)
    s("fallocate keep", fallocate, fd, KEEP, 2_000_000, 1000)
    s("fallocate punch", fallocate, fd, PUNCH, 0, 4096)
    s("fallocate zero", fallocate, fd, ZERO, 4096, 4096)
    s("size after those", lambda: os.fstat(fd).st_size)
    s("read of the hole", os.pread, fd, 30, 0)
    # Whether allocated zeros are data is up to the file system; what was written is.
    s("pwrite for seeking", os.pwrite, fd, b"data" * 1024, 602_112)
    s("seek data", lambda: os.lseek(fd, 602_112, os.SEEK_DATA))
    s("seek hole", lambda: 606_208 <= os.lseek(fd, 602_112, os.SEEK_HOLE) <= 951_000)
    s("seek end", os.lseek, fd, -10, os.SEEK_END)
    s("read at the end", os.read, fd, 100)
    s("fsync", os.fsync, fd)
    s("fdatasync", os.fdatasync, fd)
    s("flock", fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    s("lockf", fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
    s("mmap write", mapped_write, fd)
    s("read of it", os.pread, fd, 6, 500_000)
    s("copy_file_range", os.copy_file_range, fd, fd, 1000, 500_000, 0)
    s("read of the copy", os.pread, fd, 6, 0)
    s("open through /proc", reopen, fd)
    s("link through /proc", os.link, f"/proc/self/fd/{fd}", "revived", dst_dir_fd=other,
      follow_symlinks=True)
    s("fstatvfs", lambda: os.fstatvfs(fd).f_namemax)
    s("fstat at last", os.fstat, fd)


def mapped_write(fd):
    with mmap.mmap(fd, 0) as m:
        m[500_000:500_006] = b"mapped"
        m.flush()
    return "done"


def reopen(fd):
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    try:
        os.pwrite(again, b"reopened", 10_000)
        return os.pread(fd, 8, 10_000)
    finally:
        os.close(again)


def directory_operations(d, gone):
    """Everything that can be done with a directory's descriptor; `gone`: it has no name any more."""
    s = T.step
    s("fstat", os.fstat, d)
    s("names", lambda: sorted(os.listdir(d)))
    s("openat create", lambda: os.close(os.open("new", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=d)))
    s("openat old", lambda: os.close(os.open("inside", os.O_RDONLY, dir_fd=d)))
    s("openat missing", os.open, "missing", os.O_RDONLY, dir_fd=d)
    s("mkdirat", os.mkdir, "sub", 0o755, dir_fd=d)
    s("mknodat", os.mknod, "node", 0o100600, dir_fd=d)
    s("mkfifoat", os.mkfifo, "fifo", 0o600, dir_fd=d)
    s("symlinkat", os.symlink, "target", "sym", dir_fd=d)
    s("readlinkat", os.readlink, "sym", dir_fd=d)
    s("linkat", os.link, "inside", "linked", src_dir_fd=d, dst_dir_fd=d)
    s("fstatat", lambda: os.stat("inside", dir_fd=d))
    s("faccessat", lambda: os.access("inside", os.R_OK, dir_fd=d))
    s("renameat within", os.rename, "new", "newer", src_dir_fd=d, dst_dir_fd=d)
    s("renameat exchange", renameat2, d, b"newer", d, b"inside", 2)
    s("renameat noreplace", renameat2, d, b"newer", d, b"inside", 1)
    s("unlinkat", os.unlink, "newer", dir_fd=d)
    s("rmdirat", os.rmdir, "sub", dir_fd=d)
    s("fchmod", os.fchmod, d, 0o711)
    s("fchown", os.fchown, d, 33, 44)
    s("futimens", os.utime, d, ns=(5_000_000_005, 6_000_000_006))
    s("mtime", lambda: os.fstat(d).st_mtime_ns)
    s("fsetxattr", os.setxattr, d, "user.late", b"on a directory")
    s("fgetxattr", os.getxattr, d, "user.late")
    s("fgetxattr from before", os.getxattr, d, "user.early")
    s("flistxattr", lambda: sorted(os.listxattr(d)))
    s("fsync", os.fsync, d)
    s("flock", fcntl.flock, d, fcntl.LOCK_EX | fcntl.LOCK_NB)
    s("names in the end", lambda: sorted(os.listdir(d)))
    s("fstat at last", os.fstat, d)
    inside_directory(d, gone)


def inside_directory(d, gone):
    """The same place as a current directory."""
    s = T.step
    before = os.open(".", os.O_RDONLY)
    s("fchdir", os.fchdir, d)
    s("getcwd", lambda: os.path.basename(os.getcwd()))
    s("stat .", os.stat, ".")
    s("stat ..", lambda: "some directory" if os.stat("..") else None)
    s("create here", lambda: os.close(os.open("here", os.O_CREAT | os.O_WRONLY)))
    s("list here", lambda: sorted(os.listdir(".")))
    s("chdir .", os.chdir, ".")
    if not gone:
        s("chdir .. and back by name", lambda: os.chdir("..") or len(os.listdir(".")) > 0)
    os.fchdir(before)
    os.close(before)


def new_file(name, d):
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=d)
    os.write(fd, b"early content " * 100)
    os.setxattr(fd, "user.early", b"there before")
    return fd


def new_dir(name, d, filled=False):
    os.mkdir(name, 0o755, dir_fd=d)
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=d)
    os.setxattr(fd, "user.early", b"there before")
    if filled:
        os.close(os.open("inside", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    return fd


def files(top):
    T.begin("removed file")
    fd = new_file("a", top)
    os.unlink("a", dir_fd=top)
    file_operations(fd, top)

    T.begin("removed file with a second name")
    fd = new_file("b", top)
    os.link("b", "b2", src_dir_fd=top, dst_dir_fd=top)
    os.unlink("b", dir_fd=top)
    file_operations(fd, top)
    T.step("the second name", os.stat, "b2", dir_fd=top)

    T.begin("renamed file")
    fd = new_file("c", top)
    os.rename("c", "c2", src_dir_fd=top, dst_dir_fd=top)
    file_operations(fd, top)
    T.step("by its new name", os.stat, "c2", dir_fd=top)

    T.begin("file replaced by a rename")
    fd = new_file("d", top)
    os.close(new_file("d2", top))
    os.rename("d2", "d", src_dir_fd=top, dst_dir_fd=top)
    file_operations(fd, top)
    T.step("the one that replaced it", os.stat, "d", dir_fd=top)

    T.begin("removed file whose name was taken again")
    fd = new_file("e", top)
    os.unlink("e", dir_fd=top)
    os.close(new_file("e", top))
    file_operations(fd, top)
    T.step("the new one", os.stat, "e", dir_fd=top)

    T.begin("file whose parent was renamed")
    d = new_dir("p", top)
    fd = new_file("f", d)
    os.rename("p", "p2", src_dir_fd=top, dst_dir_fd=top)
    file_operations(fd, d)
    T.step("by its new path", os.stat, "p2/f", dir_fd=top)

    T.begin("file exchanged with another")
    fd = new_file("x", top)
    os.close(os.open("y", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=top))
    renameat2(top, b"x", top, b"y", 2)
    file_operations(fd, top)
    T.step("x", os.stat, "x", dir_fd=top)
    T.step("y", os.stat, "y", dir_fd=top)

    T.begin("removed file and its removed parent")
    d = new_dir("q", top)
    fd = new_file("g", d)
    os.unlink("g", dir_fd=d)
    os.rmdir("q", dir_fd=top)
    file_operations(fd, d)

    T.begin("file moved to another directory, its old parent removed")
    d = new_dir("r", top)
    fd = new_file("h", d)
    os.rename("h", "h-moved", src_dir_fd=d, dst_dir_fd=top)
    os.rmdir("r", dir_fd=top)
    file_operations(fd, top)
    T.step("by its new name", os.stat, "h-moved", dir_fd=top)

    T.begin("O_PATH handle on a removed file")
    os.close(new_file("i", top))
    fd = os.open("i", os.O_PATH, dir_fd=top)
    os.unlink("i", dir_fd=top)
    T.step("fstat", os.fstat, fd)
    T.step("chmod through /proc", os.chmod, f"/proc/self/fd/{fd}", 0o600)
    T.step("truncate through /proc", os.truncate, f"/proc/self/fd/{fd}", 5)
    T.step("setxattr through /proc", os.setxattr, f"/proc/self/fd/{fd}", "user.x", b"1")
    T.step("getxattr through /proc", os.getxattr, f"/proc/self/fd/{fd}", "user.early")
    T.step("open through /proc", lambda: os.pread(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY), 9, 0))
    T.step("fstat", os.fstat, fd)

    T.begin("read-only and write-only handles on a removed file")
    os.close(new_file("j", top))
    r = os.open("j", os.O_RDONLY, dir_fd=top)
    w = os.open("j", os.O_WRONLY | os.O_APPEND, dir_fd=top)
    os.unlink("j", dir_fd=top)
    T.step("append", os.write, w, b"appended")
    T.step("read it", os.pread, r, 20, 1390)
    T.step("write to the reading one", os.write, r, b"x")
    T.step("truncate the reading one", os.ftruncate, r, 0)
    T.step("fstat", os.fstat, r)


def directories(top):
    T.begin("removed directory")
    d = new_dir("ra", top)
    os.rmdir("ra", dir_fd=top)
    directory_operations(d, True)

    T.begin("removed directory whose name was taken again")
    d = new_dir("rb", top)
    os.rmdir("rb", dir_fd=top)
    os.close(new_dir("rb", top, filled=True))
    directory_operations(d, True)
    T.step("the new one", lambda: sorted(os.listdir("rb")))

    T.begin("renamed directory")
    d = new_dir("rc", top, filled=True)
    os.rename("rc", "rc2", src_dir_fd=top, dst_dir_fd=top)
    directory_operations(d, False)
    T.step("by its new name", lambda: sorted(os.listdir("rc2")))

    T.begin("directory whose parent was renamed")
    p = new_dir("rp", top)
    d = new_dir("rd", p, filled=True)
    os.rename("rp", "rp2", src_dir_fd=top, dst_dir_fd=top)
    directory_operations(d, False)
    T.step("by its new path", lambda: sorted(os.listdir("rp2/rd")))

    T.begin("directory moved below another")
    d = new_dir("re", top, filled=True)
    p = new_dir("re-parent", top)
    os.rename("re", "moved", src_dir_fd=top, dst_dir_fd=p)
    directory_operations(d, False)
    T.step("by its new path", lambda: sorted(os.listdir("re-parent/moved")))

    T.begin("directory replaced by a rename")
    d = new_dir("rf", top)
    os.close(new_dir("rf2", top, filled=True))
    os.rename("rf2", "rf", src_dir_fd=top, dst_dir_fd=top)
    directory_operations(d, True)
    T.step("the one that replaced it", lambda: sorted(os.listdir("rf")))

    T.begin("directories exchanged")
    d = new_dir("rg", top, filled=True)
    other = new_dir("rh", top)
    renameat2(top, b"rg", top, b"rh", 2)
    directory_operations(d, False)
    directory_operations(other, False)
    T.step("rg", lambda: sorted(os.listdir("rg")))
    T.step("rh", lambda: sorted(os.listdir("rh")))

    T.begin("long names, the parent renamed")
    long, longer = "L" * 255, "M" * 255
    d = new_dir(long, top, filled=True)
    fd = new_file("N" * 255, d)
    os.rename(long, longer, src_dir_fd=top, dst_dir_fd=top)
    file_operations(fd, d)
    directory_operations(d, False)


def reading(top):
    """A listing that goes on while the directory changes: what stays must come, once."""
    T.begin("listing while removing")
    d = new_dir("big", top)
    for i in range(2000):
        os.close(os.open(f"file-with-a-name-{i}", os.O_CREAT | os.O_WRONLY, dir_fd=d))
    seen = []
    with os.scandir("big") as entries:
        for entry in entries:
            seen.append(entry.name)
            number = int(entry.name.rsplit("-", 1)[1])
            if number % 2:
                os.unlink(entry.name, dir_fd=d)
    T.note("every even name seen", sum(1 for n in range(0, 2000, 2) if f"file-with-a-name-{n}" in set(seen)))
    T.note("none twice", len(seen) == len(set(seen)))
    T.note("left", len(os.listdir("big")))

    T.begin("rewinding")
    names = lambda: sorted(os.listdir(d))
    before = names()
    os.unlink(before[0], dir_fd=d)
    os.close(os.open("made-later", os.O_CREAT | os.O_WRONLY, dir_fd=d))
    after = names()
    T.note("a second listing sees the changes", (before[0] in after, "made-later" in after, len(after)))

    T.begin("removing a tree from inside")
    p = new_dir("outer", top)
    c = new_dir("inner", p)
    os.fchdir(c)
    os.rmdir("inner", dir_fd=p)
    T.step("rmdir of the parent", os.rmdir, "outer", dir_fd=top)
    T.step("stat ..", lambda: "some directory" if os.stat("..") else None)
    T.step("create in ..", os.open, "../x", os.O_CREAT | os.O_WRONLY)
    T.step("getcwd", os.getcwd)
    os.fchdir(top)


def main():
    os.chdir(sys.argv[1])
    os.umask(0o022)
    top = os.open(".", os.O_RDONLY)
    call("sync")
    files(top)
    directories(top)
    reading(top)


main()
