#!/usr/bin/env python3
"""Power cuts and kill -9 for a whole file system; see README.md.

usage: powercut.py run|kill|compare [options]      (as root)
"""
import argparse
import itertools
import json
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass

sys.dont_write_bytecode = True

import databases
import judge
import load
import machine
import systems
import workloads
from judge import Verdict

HERE = os.path.dirname(os.path.abspath(__file__))


@dataclass
class Plan:
    """How a round goes: everything that is drawn from its seed."""
    push: str           # which pages of un-synced writes reach the disk (machine.PUSHES)
    log: bool           # whether the log of the file system below is committed at the cut
    hand: str           # how far un-synced writes have got: cache, daemon, flush (closed), wait
    commit_at: int      # after which un-synced operation the file system below commits; 0 = none
    mid_push: str       # what is written back just before that
    settle: bool        # a clean unmount and mount between the durable part and the rest
    killed: bool        # kill -9 of the daemon and another mount before the power goes
    again: str          # a second cut right after the first recovery, with this push; "" = none

    def __str__(self):
        words = [f"push={self.push}", f"hand={self.hand}"]
        words += ["log"] * self.log + ["settle"] * self.settle + ["killed"] * self.killed
        words += [f"commit@{self.commit_at}/{self.mid_push}"] * bool(self.commit_at)
        words += [f"again={self.again}"] * bool(self.again)
        return " ".join(words)


# The first rounds of a workload go through these; then everything is drawn.
FIRST = [("even", True, "flush"), ("even", False, "daemon"), ("odd", True, "daemon"),
         ("none", True, "flush"), ("all", False, "flush"), ("half", True, "flush"),
         ("odd", False, "flush"), ("none", False, "daemon")]


def plan(number, seed, waiting):
    rng = machine.generator("plan", number, seed)
    push, log, hand = FIRST[number % len(FIRST)]
    if number >= len(FIRST):
        push = rng.choice(list(machine.PUSHES))
        log = rng.random() < 0.5
        hand = rng.choice(["flush", "flush", "daemon", "daemon", "cache"] + ["wait"] * waiting)
    extra = number > 0
    return Plan(push, log, hand,
                rng.randrange(1, 9) if extra and rng.random() < 0.4 else 0,
                rng.choice(list(machine.PUSHES)),
                extra and rng.random() < 0.4, extra and rng.random() < 0.2,
                rng.choice(list(machine.PUSHES)) if extra and rng.random() < 0.25 else "")


# ---- another process, for what may hang ----------------------------------------------------------
class Child:
    """Runs `function(channel)` in a process of its own; messages are pickled objects."""

    def __init__(self, function):
        ours_r, theirs_w = os.pipe()
        theirs_r, ours_w = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(ours_r)
                os.close(ours_w)
                function(Channel(theirs_r, theirs_w))
            finally:
                os._exit(0)
        os.close(theirs_r)
        os.close(theirs_w)
        self.channel = Channel(ours_r, ours_w)

    def __enter__(self):
        return self.channel

    def __exit__(self, *_):
        self.channel.close()


class Channel:
    def __init__(self, r, w):
        self.r, self.w = r, w

    def send(self, message):
        data = pickle.dumps(message)
        data = struct.pack("<Q", len(data)) + data
        while data:
            data = data[os.write(self.w, data):]

    def receive(self, timeout=None):
        """None: the other side is gone, or too slow."""
        end = time.monotonic() + (timeout or 1e9)

        def read(n):
            data = b""
            while len(data) < n:
                if not select.select([self.r], [], [], max(0, end - time.monotonic()))[0]:
                    return None
                piece = os.read(self.r, n - len(data))
                if not piece:
                    return None
                data += piece
            return data

        head = read(8)
        if head is None:
            return None
        data = read(struct.unpack("<Q", head)[0])
        return None if data is None else pickle.loads(data)

    def close(self):
        os.close(self.r)
        os.close(self.w)


# ---- one round -----------------------------------------------------------------------------------
class Rounds:
    def __init__(self, scratch, options):
        self.scratch, self.options = scratch, options
        self.systems, self.tested, self.cuts = {}, set(), 0

    def system(self, name):
        if name not in self.systems:
            self.systems[name] = systems.System(name, self.scratch, self.options.bin)
        return self.systems[name]

    def disk(self, kind, system, mib=512):
        """A disk with an empty volume of the system, mounted."""
        if kind not in self.tested:
            machine.selftest(self.scratch, kind)
            self.tested.add(kind)
        disk = machine.Disk(self.scratch, kind, mib)
        system.place(disk.back)
        if disk.load(f"{system.name}.{mib}"):
            disk.mount()
            return disk
        disk.make()
        disk.mount()
        system.make()
        system.mount()
        os.chmod(system.mnt, 0o755)
        system.umount()
        disk.umount()
        disk.save(f"{system.name}.{mib}")
        disk.mount()
        return disk

    def clean_up(self, disk, system):
        """Whatever happened: nothing runs, nothing is mounted."""
        system.kill()
        if disk:
            disk.umount()

    def power(self, name, kind, workload, number, seed):
        """One round with a loss of power; returns (plan, verdict or None if unsupported). An error
        says that the round could not be held."""
        system = self.system(name)
        how = plan(number, f"{seed}/{workload}", self.options.wait)
        disk = things = None
        try:
            mib = databases.MIB if workload in databases.POWER else 512
            disk = self.disk(kind, system, mib)
            system.mount()
            if workload in databases.POWER:
                return how, databases.POWER[workload](self, system, disk, how, (seed, number))
            function = load.POWER.get(workload) or workloads.POWER.get(workload) or \
                workloads.KILL_ONLY[workload]
            things = self.work(function, system, disk, how, (seed, workload, number))
            if things is None:
                return how, None
            power, pushed = workload not in workloads.KILL_ONLY, (seed, workload, number)
            if how.killed or not power:
                system.kill()
            else:
                self.cut(system, disk, how.push, how.log, pushed)
            if isinstance(things, load.Late):
                things = things.resolve()
            if how.killed and power:
                self.mount_again(system)
                self.cut(system, disk, how.push, how.log, pushed)
            self.mount_again(system)
            if how.again and power:
                self.cut(system, disk, how.again, not how.log, (*pushed, "again"))
                self.mount_again(system)
            return how, self.check(system, things)
        except systems.CannotMount as error:
            if things is None:
                raise
            return how, Verdict(unreachable=1, lost=self.all_bytes(things), notes=[str(error)])
        finally:
            self.clean_up(disk, system)

    def mount_again(self, system):
        system.tidy()
        system.mount()

    @staticmethod
    def all_bytes(things):
        return sum(min(judge.stable_size(f) for f in t.families)
                   for t in things if t.kind == "file" and t.firm)

    def cut(self, system, disk, push, log, seed):
        """The loss of power."""
        system.freeze()
        machine.push_out(system.src, push, machine.generator("push", *seed))
        disk.shutdown(log)
        system.kill()
        disk.umount()
        if self.options.keep:
            self.cuts += 1
            disk.copy_to(f"{self.scratch}/cut.{self.cuts}.img")
        disk.mount()

    def begin_to_keep(self, name):
        """A round begins: what an earlier one left goes."""
        self.system(name).drop_logs()
        for number in range(1, self.cuts + 1):
            os.unlink(f"{self.scratch}/cut.{number}.img")
        self.cuts = 0

    def keep(self, name, title, text):
        """Puts by what shows why a round failed: the disk after each cut and at the end, and what
        the daemons said."""
        place = f"{self.options.keep}/{title.replace(' ', '_').replace('#', '')}"
        os.makedirs(place, exist_ok=True)
        with open(f"{place}/notes", "w") as f:
            f.write(text)
        log = self.system(name).log
        cuts = [f"{self.scratch}/cut.{number}.img" for number in range(1, self.cuts + 1)]
        for path in [f"{self.scratch}/disk.img", f"{log}.before", log, *cuts]:
            if os.path.exists(path):
                machine.run("cp", "--sparse=always", path, place)

    def work(self, function, system, disk, how, seed):
        """Runs a workload in a process that keeps its files open until it is killed."""
        rng = machine.generator("work", *seed)

        def body(channel):
            def settle():
                channel.send("settle")
                channel.receive()

            def commit():
                machine.push_out(system.src, how.mid_push, machine.generator("mid", *seed))
                disk.commit()

            work = workloads.Work(system.mnt, rng, how, commit, settle)
            work.scratch = self.scratch
            work.channel = channel
            try:
                function(work)
                channel.send(work.things)
            except workloads.Unsupported as error:
                channel.send(f"unsupported: {error}")
            except OSError as error:
                if error.errno in (36,):  # ENAMETOOLONG
                    channel.send(f"unsupported: {error}")
                else:
                    import traceback
                    channel.send(f"failed: {traceback.format_exc()}")
            except BaseException:
                import traceback
                channel.send(f"failed: {traceback.format_exc()}")
            while True:
                signal.pause()

        with Child(body) as channel:
            while True:
                message = channel.receive(timeout=120)
                if message == "settle":
                    if how.settle:
                        system.umount()
                        system.mount()
                    channel.send("go on")
                elif isinstance(message, list):
                    return message
                elif message is None:
                    raise RuntimeError(f"the workload hangs: {system.log_tail()}")
                elif message.startswith("unsupported"):
                    return None
                else:
                    raise RuntimeError(f"the workload {message}\n{system.log_tail()}")

    def check(self, system, things):
        """Judges the mounted volume. If all is well, the system's own check must agree, and once
        more after a clean unmount and mount everything must be there."""
        verdict = self.judge(system, things)
        if system.name != "kmsfs" or verdict.bad(exact=True):
            return verdict
        try:
            system.umount()
            complaints = system.verify()
            verdict.complaints += bool(complaints)
            verdict.notes += complaints
            system.mount()
            verdict.add(self.judge(system, things))
            system.umount()
        except (RuntimeError, OSError, subprocess.SubprocessError, systems.CannotMount) as error:
            verdict.unreachable += 1
            verdict.notes.append(f"a clean unmount and mount after the check: {error}")
        return verdict

    def judge(self, system, things):
        def body(channel):
            try:
                channel.send(judge.judge_all(things, system.mnt))
            except BaseException:
                import traceback
                channel.send(traceback.format_exc())

        with Child(body) as channel:
            verdict = channel.receive(timeout=120)
        if verdict is None:
            return Verdict(unreachable=1, notes=["the check hangs"])
        if isinstance(verdict, str):
            raise RuntimeError(verdict)
        return verdict


# ---- the output ----------------------------------------------------------------------------------
class Results:
    """Sums per workload and system, and the failures of the systems that must not fail."""

    def __init__(self, options):
        self.cells, self.options = {}, options
        self.rounds, self.failed, self.started = 0, [], time.monotonic()
        if options.json and os.path.exists(options.json):
            with open(options.json) as f:
                for cell in json.load(f):
                    self.cells[cell.pop("workload"), cell.pop("system")] = cell

    def record(self, system, kind, workload, number, how, verdict, seconds):
        """Returns whether the round failed."""
        self.rounds += 1
        cell = self.cells.setdefault((workload, system), {"rounds": 0, "unsupported": 0,
                                                          **{c: 0 for c in judge.COLUMNS}})
        cell["rounds"] += 1
        title = f"{system} {kind} {workload} #{number}"
        if verdict is None or isinstance(verdict, Exception):
            # Of no account in the table, but kmsfs and raw have no excuse.
            cell["unsupported"] += 1
            print(f"  {title}: {verdict or 'not supported'}"[:400], flush=True)
            if system in ("kmsfs", "raw"):
                self.failed.append(title)
            return isinstance(verdict, Exception)
        for column in judge.COLUMNS:
            cell[column] += getattr(verdict, column)
        bad = verdict.bad(exact=system == "kmsfs")
        if bad and system in ("kmsfs", "raw"):
            self.failed.append(title)
        if bad or self.options.verbose:
            text = " ".join(f"{c}={getattr(verdict, c)}" for c in judge.COLUMNS
                            if getattr(verdict, c)) or "ok"
            print(f"  {title} [{how}] {seconds:.1f}s: {text}", flush=True)
            if system in ("kmsfs", "raw") or self.options.verbose:
                for note in verdict.notes[:self.options.notes]:
                    print(f"    | {note[:300]}", flush=True)
        return bad

    def table(self):
        names = sorted({s for _, s in self.cells}, key=list(systems.TABLE).index)
        rows = [w for w in [*all_workloads(), "kill"] if any(w == x for x, _ in self.cells)]
        lines = ["| workload | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for row in rows:
            lines.append(f"| {row.replace('_', ' ')} | " + " | ".join(
                self.text(self.cells.get((row, n)), n) for n in names) + " |")
        return "\n".join(lines)

    @staticmethod
    def text(cell, system):
        if cell is None or cell["unsupported"] == cell["rounds"]:
            return "–"
        if not any(cell[c] for c in judge.COLUMNS[:4]) and not (system == "kmsfs" and cell["mixed"]):
            return "0"
        text = " / ".join(f"{cell[c]:,}" for c in judge.COLUMNS[:4])
        return text + (f" / {cell['mixed']} mixed" if system == "kmsfs" and cell["mixed"] else "")

    def end(self):
        if self.options.json:
            with open(self.options.json, "w") as f:
                json.dump([{"workload": w, "system": s, **c} for (w, s), c in self.cells.items()],
                          f, indent=1)
        for title in self.failed:
            print(f"FAILED: {title}")
        print(f"{self.rounds} rounds, {len(self.failed)} failed, "
              f"{time.monotonic() - self.started:.0f} s")
        return 1 if self.failed or not self.rounds else 0


# ---- modes ---------------------------------------------------------------------------------------
def all_workloads():
    return [*workloads.POWER, *workloads.KILL_ONLY, *load.POWER, *databases.POWER]


def run_power(rounds, options, results):
    names = options.workloads or [w for w in all_workloads()
                                  if w not in databases.POWER or options.mode == "compare"]
    unknown = set(names) - set(all_workloads())
    if unknown:
        raise SystemExit(f"powercut: unknown workloads {sorted(unknown)}")
    count = options.rounds or options.times * len(names) * len(options.fs)
    # Round by round through every workload and file system, every system with the same seed.
    order = itertools.islice(
        ((number, kind, w) for number in itertools.count(options.first) for kind in options.fs
         for w in names), count)
    for number, kind, workload in order:
        for name in options.systems:
            if name not in systems.SLOW or number == options.first:
                one_round(rounds, results, name, kind, workload, number, options.seed)


def one_round(rounds, results, name, kind, workload, number, seed):
    started = time.monotonic()
    rounds.begin_to_keep(name)
    try:
        how, verdict = rounds.power(name, kind, workload, number, seed)
    except (RuntimeError, OSError, subprocess.SubprocessError, systems.CannotMount) as error:
        how, verdict = None, error
    failed = results.record(name, kind, workload, number, how, verdict, time.monotonic() - started)
    if failed and rounds.options.keep:
        notes = verdict.notes if isinstance(verdict, Verdict) else [str(verdict)]
        rounds.keep(name, f"{name} {kind} {workload} #{number}", "\n".join([str(how), *notes, ""]))


def run_kill(rounds, options, results):
    for number in range(options.first, options.first + (options.rounds or 5)):
        for name in options.systems:
            if name in systems.SLOW and number > options.first:
                continue
            started = time.monotonic()
            try:
                verdict = load.kill_round(rounds, rounds.system(name), options.seed, number)
            except (RuntimeError, OSError, subprocess.SubprocessError, systems.CannotMount) as error:
                verdict = error
            results.record(name, "plain", "kill", number, "kill -9 under load", verdict,
                           time.monotonic() - started)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=["run", "kill", "compare"])
    parser.add_argument("--systems", type=lambda s: s.split(","), default=["kmsfs"],
                        help=f"of {', '.join(systems.TABLE)}")
    parser.add_argument("--fs", type=lambda s: s.split(","), default=["ext4"], help="ext4, xfs")
    parser.add_argument("--workloads", type=lambda s: s.split(","), default=None)
    parser.add_argument("--rounds", type=int, default=0, help="instead of --times")
    parser.add_argument("--times", type=int, default=1, help="rounds of every workload on each fs")
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--load-seconds", type=float, default=1.5, help="of a kill round, at most")
    parser.add_argument("--wait", action="store_true", help="some rounds wait for periodic commits")
    parser.add_argument("--bin", default=os.environ.get(
        "KMSFS_BIN", os.path.normpath(f"{HERE}/../../target/release")))
    parser.add_argument("--json", help="file for the sums; those of earlier runs in it are added to")
    parser.add_argument("--notes", type=int, default=6, help="lines per failed round")
    parser.add_argument("--keep", help="directory for the disks and logs of rounds that failed")
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args()
    options.bin = os.path.abspath(options.bin)
    options.keep = options.keep and os.path.abspath(options.keep)
    scratch = machine.inside()
    os.umask(0o022)
    if options.mode == "compare" and options.systems == ["kmsfs"]:
        options.systems = ["raw", "kmsfs", *systems.RIVALS]
    rounds = Rounds(scratch, options)
    for name in list(options.systems):
        if rounds.system(name).missing():
            if name in ("kmsfs", "raw"):
                raise SystemExit(f"powercut: {rounds.system(name).program} is missing")
            print(f"  {name}: not installed (Debian package {rounds.system(name).package})")
            options.systems.remove(name)
    results = Results(options)
    if options.mode == "kill":
        run_kill(rounds, options, results)
    else:
        run_power(rounds, options, results)
    if options.mode == "compare":
        options.rounds = options.times
        run_kill(rounds, options, results)
    if options.mode == "compare" or len(options.systems) > 1:
        print("\nfsynced bytes lost / files unreadable / directories or names unreachable / "
              "wrong bytes\n\n" + results.table() + "\n")
    sys.exit(results.end())


if __name__ == "__main__":
    main()
