"""Several writers at once, stopped at a random moment by kill -9 of the daemon or by a power cut.

What a writer does follows from its seed alone. It notes outside of the volume how many steps were
answered; afterwards the same steps are played through a model, which says what must be there.
"""
import errno
import os
import time

import machine
from judge import Thing

WRITERS = 4


def steps(seed, long_names):
    """An endless row of steps of one writer: (word, arguments). One file is open at a time."""
    rng = machine.generator("load", *seed)
    tail = 220 if long_names else 60
    files, serial, directories = {}, 0, [""]
    while True:
        action = rng.random()
        if action < 0.06 and len(directories) < 8:
            directories.append(f"d{serial}/")
            serial += 1
            yield "mkdir", directories[-1]
            continue
        if action < 0.12 and files:
            name = rng.choice(sorted(files))
            del files[name]
            yield "unlink", name
            continue
        if action < 0.3 and files:
            old = rng.choice(sorted(files))
            new = rng.choice(sorted(files)) if rng.random() < 0.4 else \
                f"{rng.choice(directories)}r{serial}" + "x" * rng.choice([0, 0, 0, tail])
            serial += 1
            if new != old:
                files[new] = files.pop(old)
                yield "rename", old, new
            continue
        if action < 0.36:
            yield "syncdirs", tuple(directories)
            continue
        if len(files) < 12 and rng.random() < 0.5:
            name = f"{rng.choice(directories)}f{serial}" + "y" * rng.choice([0, 0, 0, tail])
            serial += 1
            files[name] = 0
            yield "create", name
        elif files:
            name = rng.choice(sorted(files))
            if rng.random() < 0.2:
                files[name] = 0
                yield "open_trunc", name
            else:
                yield "open", name
        else:
            continue
        for _ in range(rng.randrange(1, 6)):
            size, action = files[name], rng.random()
            if action < 0.15:
                files[name] = rng.randrange(size + 5000)
                yield "truncate", files[name]
            elif action < 0.35:
                yield "fsync",
            else:
                at = size if rng.random() < 0.5 else rng.randrange(size + 1)
                at = min(at, 300000)
                data = rng.randbytes(rng.choice([1, 7, 100, 4096, 9000, 40000]))
                files[name] = max(size, at + len(data))
                yield "write", at, data
        if rng.random() < 0.5:
            yield "fsync",
        yield "close",


def write(root, seed, long_names, progress):
    """The writer. Ends when the file system below it is gone."""
    fd = None
    log = os.open(progress, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.mkdir(root)
    os.write(log, b".")
    for step in steps(seed, long_names):
        word, arguments = step[0], step[1:]
        if word == "mkdir":
            os.mkdir(f"{root}/{arguments[0]}")
        elif word == "unlink":
            os.unlink(f"{root}/{arguments[0]}")
        elif word == "rename":
            os.rename(*(f"{root}/{a}" for a in arguments))
        elif word == "syncdirs":
            for name in arguments[0]:
                directory = os.open(f"{root}/{name}", os.O_RDONLY)
                os.fsync(directory)
                os.close(directory)
        elif word == "create":
            fd = os.open(f"{root}/{arguments[0]}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        elif word == "open":
            fd = os.open(f"{root}/{arguments[0]}", os.O_RDWR)
        elif word == "open_trunc":
            fd = os.open(f"{root}/{arguments[0]}", os.O_RDWR | os.O_TRUNC)
        elif word == "truncate":
            os.ftruncate(fd, *arguments)
        elif word == "write":
            os.pwrite(fd, arguments[1], arguments[0])
        elif word == "fsync":
            os.fsync(fd)
        elif word == "close":
            os.close(fd)
        os.write(log, b".")


class Model:
    """Plays the answered steps. `power`: only a sync makes firm. Otherwise a close makes content
    firm as well, and names are where the last answer put them."""

    def __init__(self, top, power):
        self.top, self.power = top, power
        self.at = {}          # name -> Thing there now
        self.things = []      # all that must still be somewhere
        self.seen = {}        # name -> every Thing that may be found under it
        self.open = None

    def put(self, name, thing):
        self.at[name] = thing
        thing.paths.append(name)
        self.seen.setdefault(name, []).append(thing)

    def play(self, step, answered):
        word, arguments = step[0], step[1:]
        thing = self.at.get(self.open)
        if word == "create":
            self.put(arguments[0], Thing(arguments[0][:30], [], [[b""]], firm=False, exact=False))
            self.things.append(self.at[arguments[0]])
            self.open = arguments[0]
        elif word in ("open", "open_trunc"):
            self.open = arguments[0]
            if word == "open_trunc":
                # Bytes from before do not mix with those from after it.
                self.at[self.open].families.append([b""])
        elif word == "write":
            data = thing.data
            at, new = arguments
            thing.later(data[:at] + bytes(max(0, at - len(data))) + new + data[at + len(new):])
        elif word == "truncate":
            data = thing.data
            thing.later(data[:arguments[0]] + bytes(max(0, arguments[0] - len(data))))
        elif word == "fsync" and answered:
            thing.synced()
        elif word == "close":
            if answered and not self.power:
                thing.synced()
            if answered:
                self.open = None
        elif word == "unlink":
            gone = self.at.pop(arguments[0])
            gone.firm = False
            if answered and not self.power:
                self.forget(gone, arguments[0])
        elif word == "rename":
            old, new = arguments
            moved, replaced = self.at.pop(old), self.at.pop(new, None)
            if replaced:
                # One of the two is there; which one, the next sync of the directory says.
                replaced.firm = False
            self.put(new, moved)
            if answered and not self.power:
                moved.paths = [new]
                self.seen[old].remove(moved)
                if replaced:
                    self.forget(replaced, new)
        elif word == "syncdirs" and answered and self.power:
            for name, now in self.at.items():
                now.paths = [name]
            self.things = list(self.at.values())
            self.seen = {name: [now] for name, now in self.at.items()}

    def forget(self, thing, name):
        self.things.remove(thing)
        self.seen[name].remove(thing)

    def expected(self):
        """Things for the judge."""
        out = []
        for thing in self.things:
            if thing.firm:
                # At the places where another file may be as well, this one is looked for by content.
                out.append(Thing(thing.name, [f"{self.top}/{p}" for p in dict.fromkeys(thing.paths)],
                                 thing.families, exact=len(thing.families) == 1 == len(thing.families[0])))
        for name, candidates in self.seen.items():
            if candidates and not (len(candidates) == 1 and candidates[0].firm
                                   and candidates[0].paths == [name]):
                # Whatever is found under a name must be one of those that have been there.
                out.append(Thing(f"{name[:30]}?", [f"{self.top}/{name}"],
                                 [f for c in candidates for f in c.families], firm=False,
                                 exact=False))
        return out


def takes_long_names(mnt):
    try:
        os.mkdir(f"{mnt}/" + "n" * 250)
        os.rmdir(f"{mnt}/" + "n" * 250)
        return True
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def expected(scratch, seed, number, long_names, power):
    things = []
    for i in range(WRITERS):
        try:
            answered = os.path.getsize(f"{scratch}/progress.{i}")
        except FileNotFoundError:
            answered = 0
        if not answered:
            continue
        model = Model(f"w{i}", power)
        for n, step in enumerate(steps((*seed, number, i), long_names), 1):
            model.play(step, n < answered)
            if n >= answered:
                break
        things += model.expected()
    return things


def start(mnt, scratch, seed, number, long_names):
    """Starts the writers; they end by themselves when their files are gone."""
    for i in range(WRITERS):
        for path in (f"{scratch}/progress.{i}", f"{scratch}/progress.{i}.end"):
            if os.path.exists(path):
                os.unlink(path)
        if os.fork() == 0:
            try:
                write(f"{mnt}/w{i}", (*seed, number, i), long_names, f"{scratch}/progress.{i}")
            except BaseException as error:
                with open(f"{scratch}/progress.{i}.end", "w") as f:
                    f.write(f"{error!r}\n")
            finally:
                os._exit(0)


def all_at_work(scratch):
    """None of the writers has met an error yet."""
    for i in range(WRITERS):
        try:
            with open(f"{scratch}/progress.{i}.end") as f:
                raise RuntimeError(f"writer {i} failed before the cut: {f.read()}")
        except FileNotFoundError:
            pass


def kill_round(rounds, system, seed, number):
    """On a plain directory: writers at work, kill -9 of the daemon, another mount, every file."""
    rng = machine.generator("kill", seed, number)
    plain = f"{rounds.scratch}/plain"
    os.makedirs(plain)
    system.place(plain)
    try:
        system.make()
        system.mount()
        long_names = takes_long_names(system.mnt)
        start(system.mnt, rounds.scratch, (seed,), number, long_names)
        time.sleep(0.2 + rng.random() * rounds.options.load_seconds)
        all_at_work(rounds.scratch)
        system.kill()
        things = expected(rounds.scratch, (seed,), number, long_names, power=False)
        rounds.mount_again(system)
        verdict = rounds.check(system, things)
        verdict.notes.append(progress(rounds.scratch))
        return verdict
    finally:
        rounds.clean_up(None, system)
        machine.run("rm", "-rf", plain)


def progress(scratch):
    sizes = []
    for i in range(WRITERS):
        path = f"{scratch}/progress.{i}"
        sizes.append(os.path.getsize(path) if os.path.exists(path) else 0)
    return f"steps answered: {sizes}"


def power_load(work):
    """The same under a power cut: only what was fsynced must be there."""
    seed, long_names = (work.rng.random(),), takes_long_names(work.root)
    start(work.root, work.scratch, seed, 0, long_names)
    time.sleep(0.2 + work.rng.random() * 1.5)
    all_at_work(work.scratch)
    work.things = Late((work.scratch, seed, 0, long_names, True))


class Late(list):
    """The writers go on until the cut: what must be there is known only afterwards."""

    def resolve(self):
        return expected(*self)


POWER = {"load": power_load}
