#!/usr/bin/env python3
"""Changes a volume around the passes of a backup tool, and compares the copy with the volume.

    catchup.py busy DIR SEED        changes files until it is killed; may be stopped at any moment
    catchup.py around DIR N         changes of the same size and in the same second; N is the round
    catchup.py same FROM TO HOW [NAME...]
                                    compares two backing directories but for the files named; HOW is
                                    `exact`, or `seconds` to let pass what differs by less than a
                                    second in time and not at all in size, which rsync takes for the
                                    same file unless it is called with --modify-window=-1
"""
import hashlib
import os
import random
import stat
import sys
import time

FILES = [f"t{n}" for n in range(12)]
SIZES = [100, 4096, 9000, 70_000, 300_000]
# Some time in 2001: all that `around` sets lies near it.
LONG_AGO = 1_000_000_000


def busy(top, seed):
    rng = random.Random(seed)
    held = {}
    while True:
        name = rng.choice(FILES)
        path, kind = os.path.join(top, name), rng.random()
        fd = held.get(name) or os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        held[name] = fd
        size = os.fstat(fd).st_size
        if not size or kind < 0.05:
            os.ftruncate(fd, 0)
            os.pwrite(fd, rng.randbytes(rng.choice(SIZES)), 0)
        elif kind < 0.5:
            os.pwrite(fd, rng.randbytes(8), rng.randrange(max(size - 8, 1)))
        elif kind < 0.7:
            # Larger than 64 KiB it goes to its place before it is committed.
            os.pwrite(fd, rng.randbytes(rng.choice([10, 5000, 100_000])), size)
        elif kind < 0.75:
            os.ftruncate(fd, rng.randrange(size + 1))
        elif kind < 0.8:
            os.utime(path, (LONG_AGO, LONG_AGO + rng.randrange(100_000)))
        elif kind < 0.86:
            with open(path + ".new", "wb") as f:
                f.write(rng.randbytes(size if rng.random() < 0.7 else rng.choice(SIZES)))
            os.rename(path + ".new", path)
            os.close(held.pop(name))
        elif kind < 0.9:
            os.unlink(path)
            os.close(held.pop(name))
        if rng.random() < 0.2:
            os.fsync(fd) if name in held else None
        if rng.random() < 0.4 and name in held or size > 900_000:
            os.close(held.pop(name))
        if size > 900_000:
            os.unlink(path)
        time.sleep(0.002)


def overwrite(top, name, number, fsync=False):
    """Eight bytes of a file of 9000, in place."""
    fd = os.open(os.path.join(top, name), os.O_RDWR | os.O_CREAT, 0o644)
    if os.fstat(fd).st_size == 0:
        os.pwrite(fd, bytes(9000), 0)
    os.pwrite(fd, number.to_bytes(8, "big"), 4090)
    if fsync:
        os.fsync(fd)
    os.close(fd)


def around(top, number):
    overwrite(top, "closed", number)
    overwrite(top, "fsynced", number, fsync=True)
    overwrite(top, "twice", number)
    overwrite(top, "twice", number + 1, fsync=True)
    # Time set back, forth, and to what it was in between: each differs from the round before.
    for name, seconds in (("earlier", LONG_AGO - number), ("later", LONG_AGO + number),
                          ("seesaw", LONG_AGO + number % 2)):
        overwrite(top, name, number)
        os.utime(os.path.join(top, name), (seconds, seconds))
    # By a thousandth of a second only: rsync sees that with --modify-window=-1.
    overwrite(top, "subsecond", number)
    ns = LONG_AGO * 10**9 + number % 900 * 10**6
    os.utime(os.path.join(top, "subsecond"), ns=(ns, ns))
    # To exactly what it was: size and time say nothing. Only the change time does.
    overwrite(top, "setback", number)
    os.utime(os.path.join(top, "setback"), (LONG_AGO, LONG_AGO))


def tree(top, but):
    found = {}
    for here, dirs, names in os.walk(top):
        for name in dirs + names:
            path = os.path.join(here, name)
            ours = name.startswith("kmsfs.journal.") or name == "kmsfs.session"
            if not ours and name not in but:
                found[os.path.relpath(path, top)] = path
    return found


def describe(path):
    s = os.lstat(path)
    told = [stat.filemode(s.st_mode), s.st_uid, s.st_gid]
    if stat.S_ISREG(s.st_mode):
        with open(path, "rb") as f:
            told += [s.st_size, s.st_mtime_ns, hashlib.sha256(f.read()).hexdigest()[:16]]
    elif stat.S_ISLNK(s.st_mode):
        told.append(os.readlink(path))
    return told


def same_to_rsync(a, b):
    """Size and whole second are equal, the rest of the time is not."""
    return (len(a) == len(b) == 6 and a[3] == b[3] and a[4] != b[4]
            and a[4] // 10**9 == b[4] // 10**9)


def same(source, target, how, *but):
    one, two = tree(source, but), tree(target, but)
    wrong, close = [], 0
    for name in sorted(one.keys() | two.keys()):
        if name not in one or name not in two:
            wrong.append(f"{name}: only in {'the copy' if name in two else 'the volume'}")
            continue
        a, b = describe(one[name]), describe(two[name])
        if a == b:
            continue
        if how == "seconds" and same_to_rsync(a, b):
            close += 1
            continue
        wrong.append(f"{name}: {a} is {b} in the copy")
    if len(one) < 3:
        wrong.append("nothing to compare")
    print(f"{len(one)} objects, {len(wrong)} differ, {close} within the same second")
    print("\n".join(wrong))
    return not wrong


def main():
    command, *args = sys.argv[1:]
    if command == "busy":
        busy(args[0], int(args[1]))
    elif command == "around":
        around(args[0], int(args[1]))
    elif command == "same":
        sys.exit(0 if same(*args) else 1)
    else:
        sys.exit(f"unknown command {command}")


main()
