#!/usr/bin/env python3
"""Writes a volume while it is being copied, and says of every file in a copy whether it is one of
the states the file may have there.

    backup.py write DIR STATE SEED     works below DIR until STATE/stop appears
    backup.py count STATE              prints how many operations are done, and how many are begun
    backup.py slow FROM TO SEED        copies a backing directory slowly, piece by piece, and in an
                                       order of its own
    backup.py look DIR                 prints name, size and hash of every file, or its error
    backup.py check STATE COPIES MODE  judges copies; MODE is `states` or `pages`

Every operation has a number, and what it writes says in every 512 bytes which file, operation and
block it belongs to. The log of operations gives the content of a file after each of them.

What is legal: the engine commits a file as a whole, and may do so between any two requests, so a
file in a copy must be exactly what it was after *one* operation: not before the last one that was
done when the `kmsfsctl sync` before the copy began, not after the last one begun when the copy
ended (`states`). With the kernel's writeback cache on, requests are pages that the kernel sends in
an order of its own: then every page must be what *that page* was at such a moment, and the size one
of those that the file had (`pages`). Never legal in either: another file's bytes, bytes from before
the sync, a page that is part of one version and part of another, anything but zeros in a hole.

A name must be in the copy if it existed all the while, and what it names must be a file that bore
the name at some moment of the copy. A file that cannot be read must be on verify's list, and must
be refused by a mount of the copy as well.
"""
import hashlib
import json
import mmap
import os
import random
import struct
import sys
import time

BLOCK = 512
PAGE = 4096
# One request of the kernel each: an operation is not torn.
WRITE_MAX = 64 << 10
STABLE = [f"d{n % 3}/s{n}" for n in range(18)]
COMING = [f"d{n % 3}/c{n}" for n in range(8)]
# Beyond 256 KiB a file has blocks of tags and a tree.
SIZES = [700, 3000, 5000, 20_000, 70_000, 300_000]


def block(fid, op, number):
    head = struct.pack("<8sIII", b"KMSFSBAK", fid, op, number)
    fill = (op * 31 + number * 7 + fid) % 251 + 1
    return head + bytes([fill]) * (BLOCK - len(head))


def content(fid, op, offset, size):
    first, last = offset // BLOCK, (offset + size + BLOCK - 1) // BLOCK
    data = b"".join(block(fid, op, n) for n in range(first, last))
    return data[offset - first * BLOCK:][:size]


class Counters:
    """Operations begun and done, for other processes to read."""

    def __init__(self, state, fresh=False):
        path = os.path.join(state, "count")
        if fresh:
            with open(path, "wb") as f:
                f.write(bytes(16))
        self.file = open(path, "r+b")
        self.map = mmap.mmap(self.file.fileno(), 16)

    def begin(self, op):
        self.map[0:8] = struct.pack("<Q", op)

    def done(self, op):
        self.map[8:16] = struct.pack("<Q", op)

    def read(self):
        done = struct.unpack("<Q", self.map[8:16])[0]
        return done, struct.unpack("<Q", self.map[0:8])[0]


# ---- the workload --------------------------------------------------------------------------------

class Writer:
    def __init__(self, top, state, seed):
        self.top, self.state, self.rng = top, state, random.Random(seed)
        self.count = Counters(state, fresh=True)
        self.log = open(os.path.join(state, "log"), "w")
        self.op, self.fid = 0, 0
        self.names, self.sizes, self.held = {}, {}, {}
        for n in range(3):
            os.makedirs(os.path.join(top, f"d{n}"), exist_ok=True)

    def path(self, name):
        return os.path.join(self.top, name)

    def step(self, kind, *args, do):
        """One operation: numbered, noted, done."""
        self.op += 1
        self.log.write(" ".join(map(str, (self.op, kind, *args))) + "\n")
        self.count.begin(self.op)
        do(self.op)
        self.count.done(self.op)

    def create(self, name):
        self.fid += 1
        fid, made = self.fid, []
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        self.step("C", name, fid, do=lambda op: made.append(os.open(self.path(name), flags, 0o644)))
        self.names[name], self.sizes[fid] = fid, 0
        return fid, made[0]

    def write(self, fid, fd, offset, size):
        self.step("W", fid, offset, size,
                  do=lambda op: os.pwrite(fd, content(fid, op, offset, size), offset))
        self.sizes[fid] = max(self.sizes[fid], offset + size)

    def truncate(self, fid, fd, size):
        self.step("T", fid, size, do=lambda op: os.ftruncate(fd, size))
        self.sizes[fid] = size

    def fill(self, fid, fd, size):
        piece = self.rng.choice([4096, 30_000, WRITE_MAX])
        for offset in range(0, size, piece):
            self.write(fid, fd, offset, min(piece, size - offset))

    def open(self, name):
        """A descriptor, and what to do with it afterwards."""
        if name in self.held:
            return self.held[name], lambda: None
        fd = os.open(self.path(name), os.O_RDWR)
        if self.rng.random() < 0.2:
            self.held[name] = fd
            return fd, lambda: None
        return fd, lambda: os.close(fd)

    def let_go(self, name):
        if name in self.held:
            os.close(self.held.pop(name))

    def replace(self, name):
        """A new file beside the old one, and then over it."""
        rng, fresh = self.rng, name + ".new"
        fid, fd = self.create(fresh)
        self.fill(fid, fd, rng.choice(SIZES))
        if rng.random() < 0.5:
            os.fsync(fd)
        os.close(fd)
        self.step("R", fresh, name, do=lambda op: os.rename(self.path(fresh), self.path(name)))
        self.let_go(name)
        self.names[name] = self.names.pop(fresh)

    def remove(self, name):
        self.step("U", name, do=lambda op: os.unlink(self.path(name)))
        self.let_go(name)
        del self.names[name]

    def change(self, name):
        rng, fid = self.rng, self.names[name]
        fd, close = self.open(name)
        size, kind = self.sizes[fid], rng.random()
        if kind < 0.45 and size:
            offset = rng.randrange(size)
            self.write(fid, fd, offset, min(size - offset, rng.choice([1, 16, 512, 4096, 9000])))
        elif kind < 0.65:
            self.write(fid, fd, size, rng.choice([1, 100, 4096, 20_000, WRITE_MAX]))
        elif kind < 0.75:
            self.truncate(fid, fd, rng.randrange(size + 1))
        elif kind < 0.8:
            self.truncate(fid, fd, size + rng.randrange(20_000))
        else:
            self.truncate(fid, fd, 0)
            self.fill(fid, fd, rng.choice(SIZES))
        if rng.random() < 0.3:
            os.fsync(fd)
        close()

    def run(self):
        for name in STABLE:
            fid, fd = self.create(name)
            self.fill(fid, fd, self.rng.choice(SIZES))
            os.close(fd)
        open(os.path.join(self.state, "ready"), "w").close()
        while not os.path.exists(os.path.join(self.state, "stop")):
            name = self.rng.choice(STABLE + COMING)
            if name not in self.names:
                os.close(self.create(name)[1])
                self.change(name)
            elif self.rng.random() < 0.12:
                self.replace(name)
            elif name in COMING and self.rng.random() < 0.3:
                self.remove(name)
            else:
                self.change(name)
            if self.sizes[self.names.get(name, 1)] > 1_000_000:
                self.replace(name)
            time.sleep(0.003)
        for name in list(self.held):
            self.let_go(name)
        self.log.close()


# ---- what a file may be --------------------------------------------------------------------------

class File:
    """All states of one file: sizes and pages, each with the operation that made it."""

    def __init__(self, op):
        self.sizes, self.pages, self.now = [(op, 0)], {}, bytearray()

    def changed(self, op, start, end):
        for page in range(start // PAGE, (end + PAGE - 1) // PAGE):
            bytes_now = bytes(self.now[page * PAGE:(page + 1) * PAGE])
            self.pages.setdefault(page, []).append((op, bytes_now))

    def write(self, op, fid, offset, size):
        old = len(self.now)
        if offset + size > old:
            self.now.extend(bytes(offset + size - old))
        self.now[offset:offset + size] = content(fid, op, offset, size)
        self.sizes.append((op, len(self.now)))
        self.changed(op, min(offset, old), offset + size)

    def truncate(self, op, size):
        old = len(self.now)
        del self.now[size:]
        self.now.extend(bytes(size - len(self.now)))
        self.sizes.append((op, size))
        self.changed(op, min(old, size), max(old, size))

    @staticmethod
    def spans(history, low, high, matches):
        """Operations after which a value of this history was in force, as ranges within bounds."""
        ends = [op for op, _ in history[1:]] + [high + 1]
        found = []
        for (op, value), end in zip(history, ends):
            first, last = max(op, low), min(end - 1, high)
            if first <= last and matches(value):
                found.append((first, last))
        return found

    def legal(self, data, low, high, by_page):
        """None, or why `data` was never this file between two operations."""
        low = max(low, self.sizes[0][0])
        within = self.spans(self.sizes, low, high, lambda size: True)
        sizes = [size for op, size in self.sizes if op <= high][-len(within):] if within else []
        if by_page:
            if not sizes or not min(sizes) <= len(data) <= max(sizes):
                return f"size {len(data)} of {sorted(set(sizes))[:9]}"
            alive = [(low, high)]
        else:
            alive = self.spans(self.sizes, low, high, lambda size: size == len(data))
            if not alive:
                return f"size {len(data)}, which is none of {sorted(set(sizes))[:9]}"
        for page in range((len(data) + PAGE - 1) // PAGE):
            part = data[page * PAGE:(page + 1) * PAGE]
            history = [(0, b"")] + self.pages.get(page, [])
            # In `states` the size says how long the page is; here it may be shorter than it was.
            same = (lambda v: v.ljust(PAGE, b"\0")[:len(part)] == part)
            here = self.spans(history, low, high, same)
            if not here:
                return f"page {page} was never so: {tell(part)}"
            if not by_page:
                alive = meet(alive, here)
                if not alive:
                    return f"page {page} does not go with the pages before it: {tell(part)}"
        return None

    def newer_than(self, data, low):
        """Is this surely not the state after `low` any more?"""
        return self.legal(data, low, low, False) is not None


def meet(a, b):
    both = ((max(x, u), min(y, v)) for x, y in a for u, v in b)
    return [(first, last) for first, last in both if first <= last]


def tell(part):
    """What a page says of itself."""
    said = set()
    for at in range(0, len(part) - 19, BLOCK):
        magic, fid, op, number = struct.unpack("<8sIII", part[at:at + 20])
        said.add(f"file {fid} op {op} block {number}" if magic == b"KMSFSBAK" else part[at:at + 8].hex())
    return ", ".join(sorted(said)[:4])


class History:
    def __init__(self, state):
        self.files, self.names = {}, {}
        with open(os.path.join(state, "log")) as log:
            for line in log:
                op, kind, *args = line.split()
                self.apply(int(op), kind, args)

    def name(self, op, name, fid):
        self.names.setdefault(name, [(0, None)]).append((op, fid))

    def apply(self, op, kind, args):
        if kind == "C":
            self.files[int(args[1])] = File(op)
            self.name(op, args[0], int(args[1]))
        elif kind == "W":
            self.files[int(args[0])].write(op, *map(int, args))
        elif kind == "T":
            self.files[int(args[0])].truncate(op, int(args[1]))
        elif kind == "R":
            self.name(op, args[1], self.names[args[0]][-1][1])
            self.name(op, args[0], None)
        elif kind == "U":
            self.name(op, args[0], None)

    def bearers(self, name, start, high):
        """Files that bore a name at some moment; None among them: it was free."""
        history = self.names.get(name, [(0, None)])
        before = [fid for op, fid in history if op <= start][-1:]
        return before + [fid for op, fid in history if start < op <= high]


class Judge:
    def __init__(self, history, by_page):
        self.history, self.by_page = history, by_page
        self.readable, self.refused, self.newer, self.errors = 0, 0, 0, []

    def copy(self, spec):
        """One copy: its number of operations done before sync, at its start, begun at its end."""
        out, low, start, high = spec["out"], spec["low"], spec["start"], spec["high"]
        with open(spec["verify"]) as f:
            damaged = {d["path"] for d in json.load(f)["damaged"]}
        with open(spec["export"]) as f:
            problems = {d["path"] for d in json.load(f)["problems"]}
        with open(spec["mount"]) as f:
            mounted = dict(line.rstrip("\n").split("\t", 1) for line in f)
        where = os.path.basename(out)
        if damaged != problems:
            self.errors.append(f"{where}: verify and export disagree on {damaged ^ problems}")
        found = set()
        for here, _, names in os.walk(out):
            for entry in names:
                name = os.path.relpath(os.path.join(here, entry), out)
                found.add(name)
                with open(os.path.join(here, entry), "rb") as f:
                    self.file(where, name, f.read(), low, start, high, mounted)
        for path in damaged:
            self.refused += 1
            # Its content, or its attributes: either way a mount must refuse to read it.
            if mounted.get(path.lstrip("/"), "error") != "error":
                self.errors.append(f"{where}: {path} is damaged, but a mount of the copy reads it")
        for name in self.history.names:
            always = None not in self.history.bearers(name, start, high)
            if always and name not in found and "/" + name not in damaged:
                self.errors.append(f"{where}: {name} is not there and not reported")

    def file(self, where, name, data, low, start, high, mounted):
        self.readable += 1
        shown = f"{len(data)} {hashlib.sha256(data).hexdigest()}"
        if mounted.get(name) != shown:
            self.errors.append(f"{where}: {name} is {shown} in the export, {mounted.get(name)} mounted")
        bearers = [fid for fid in self.history.bearers(name, start, high) if fid is not None]
        reasons = []
        for fid in bearers:
            file = self.history.files[fid]
            reason = file.legal(data, low, high, self.by_page)
            if reason is None:
                # A file that is not as it was at the sync: the copy did meet a writer.
                self.newer += file.newer_than(data, max(low, file.sizes[0][0]))
                return
            reasons.append(f"file {fid}: {reason}")
        self.errors.append(f"{where}: {name} ({len(data)} bytes, ops {low}..{high}): "
                           f"{'; '.join(reasons) or 'nothing of that name'}")


def check(state, copies, mode):
    judge = Judge(History(state), mode == "pages")
    with open(copies) as f:
        specs = [json.loads(line) for line in f]
    for spec in specs:
        judge.copy(spec)
    print(f"{len(specs)} copies, {judge.readable} files right, {judge.newer} of them newer than the "
          f"sync, {judge.refused} refused")
    for error in judge.errors[:20]:
        print("wrong:", error)
    if not judge.readable or not judge.newer:
        sys.exit("the copies met no writer: nothing was tested")
    sys.exit(1 if judge.errors else 0)


# ---- copies --------------------------------------------------------------------------------------

def slow(source, target, seed):
    """Every file in small pieces with pauses, the files in any order: what a slow disk does."""
    rng = random.Random(seed)
    files = []
    for here, dirs, names in os.walk(source):
        for name in dirs:
            os.makedirs(os.path.join(target, os.path.relpath(os.path.join(here, name), source)))
        files += [os.path.relpath(os.path.join(here, name), source) for name in names]
    rng.shuffle(files)
    for name in files:
        try:
            with open(os.path.join(source, name), "rb", buffering=0) as a, \
                    open(os.path.join(target, name), "wb", buffering=0) as b:
                while data := a.read(1 << 20 if "journal" in name else 16 << 10):
                    b.write(data)
                    time.sleep(0.002)
        except FileNotFoundError:
            pass


def look(top):
    for here, _, names in os.walk(top):
        for entry in names:
            path = os.path.join(here, entry)
            try:
                with open(path, "rb", buffering=0) as f:
                    data = b"".join(iter(lambda: f.read(1 << 20), b""))
                shown = f"{len(data)} {hashlib.sha256(data).hexdigest()}"
            except OSError as error:
                shown = "error" if error.errno == 5 else f"errno {error.errno}"
            print(f"{os.path.relpath(path, top)}\t{shown}")


def main():
    command, *args = sys.argv[1:]
    if command == "write":
        Writer(args[0], args[1], int(args[2])).run()
    elif command == "count":
        print(*Counters(args[0]).read())
    elif command == "slow":
        slow(args[0], args[1], int(args[2]))
    elif command == "look":
        look(args[0])
    elif command == "check":
        check(*args)


main()
