"""PostgreSQL through a loss of power or kill -9 of the daemon below it.

Two clients insert numbered rows and note which were acknowledged, pgbench moves money at the same
time. Afterwards: every acknowledged row is there, the books balance, every page and index is sound.
"""
import glob
import os
import pwd
import subprocess
import time

import machine
from judge import Verdict

MIB = 1024
CLIENTS = 2
PAD = 300
USER = "postgres"
SETTINGS = {
    "shared_buffers": "4MB",         # pages go out early
    "max_wal_size": "8MB",           # and checkpoints come often
    "min_wal_size": "4MB",
    "checkpoint_timeout": "30s",
    "dynamic_shared_memory_type": "sysv",  # Gone with the namespace, after kill -9 too.
    "listen_addresses": "",
    "logging_collector": "off",
}


class Postgres:
    def __init__(self, system, scratch):
        self.data, self.sockets = f"{system.mnt}/pg", f"{scratch}/sockets"
        self.scratch, self.log = scratch, f"{scratch}/postgres.log"
        places = sorted(glob.glob("/usr/lib/postgresql/*/bin"),
                        key=lambda p: int(p.split("/")[4]) if p.split("/")[4].isdigit() else 0)
        if not places:
            raise RuntimeError("PostgreSQL is not installed")
        self.bin = places[-1]
        self.server = None
        os.makedirs(self.sockets, exist_ok=True)
        os.chown(self.sockets, self.user().pw_uid, -1)

    @staticmethod
    def user():
        return pwd.getpwnam(USER)

    def start_program(self, name, *arguments, **options):
        return subprocess.Popen([f"{self.bin}/{name}", *arguments], user=USER, group=USER,
                                extra_groups=[], cwd="/", env=self.env(), **options)

    def env(self):
        return {"PATH": os.environ["PATH"], "LC_ALL": "C", "PGHOST": self.sockets,
                "PGDATABASE": "postgres", "PGUSER": USER, "HOME": "/"}

    def program(self, name, *arguments, timeout=180):
        process = self.start_program(name, *arguments, stdin=subprocess.DEVNULL,
                                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            output = process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            raise RuntimeError(f"{name} hangs") from None
        if process.returncode:
            raise RuntimeError(f"{name}: exit {process.returncode}: {output[-700:]}")
        return output

    def query(self, text):
        return self.program("psql", "-X", "-At", "-v", "ON_ERROR_STOP=1", "-c", text).strip()

    def make(self):
        os.mkdir(self.data)
        os.chown(self.data, self.user().pw_uid, self.user().pw_gid)
        self.program("initdb", "-D", self.data, "-A", "trust", "-U", USER, "--data-checksums",
                     "--wal-segsize=1", "--locale=C", "-E", "UTF8")
        self.start()
        self.program("pgbench", "-i", "-s", "1", "-q")
        self.query("create table acks (client int, n int, pad text, primary key (client, n))")
        self.stop()

    def start(self):
        settings = [w for k, v in SETTINGS.items() for w in ("-c", f"{k}={v}")]
        with open(self.log, "wb") as log:
            self.server = self.start_program("postgres", "-D", self.data, "-k", self.sockets,
                                             *settings, stdin=subprocess.DEVNULL, stdout=log,
                                             stderr=log)
        end = time.monotonic() + 90
        while time.monotonic() < end:
            if self.server.poll() is not None:
                break
            try:
                self.query("select 1")
                return
            except RuntimeError:
                time.sleep(0.1)
        with open(self.log, errors="replace") as log:
            lines = [line for line in log if any(w in line for w in ("FATAL", "PANIC", "ERROR"))
                     and "is starting up" not in line]
            raise RuntimeError(f"PostgreSQL does not start: {''.join(lines[-3:])}")

    def stop(self):
        self.program("pg_ctl", "stop", "-D", self.data, "-m", "fast", "-w")
        self.server.wait()

    # ---- work ----
    def client(self, number):
        """Inserts rows 1, 2, 3, …; a row is acknowledged when psql has printed its number."""
        path = f"{self.scratch}/acks.{number}"
        with open(path, "wb"):
            pass
        if os.fork():
            return
        try:
            psql = self.start_program("psql", "-X", "-At", "-q", stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            acks = os.open(path, os.O_WRONLY | os.O_APPEND)
            n = 0
            while True:
                n += 1
                psql.stdin.write(f"insert into acks values ({number}, {n}, repeat('{n},', {PAD}))"
                                 " returning n;\n".encode())
                psql.stdin.flush()
                if psql.stdout.readline().strip() != b"%d" % n:
                    break
                os.write(acks, b".")
        finally:
            os._exit(0)

    def work(self, seconds):
        for number in range(CLIENTS):
            self.client(number)
        with open(f"{self.scratch}/pgbench.log", "wb") as log:
            self.start_program("pgbench", "-n", "-c", "3", "-T", "600", stdin=subprocess.DEVNULL,
                               stdout=log, stderr=log)
        time.sleep(seconds)
        if self.server.poll() is not None:
            raise RuntimeError("PostgreSQL ended before the cut")

    def acknowledged(self, number):
        return os.path.getsize(f"{self.scratch}/acks.{number}")

    # ---- judgement ----
    def check(self):
        verdict = Verdict()
        try:
            self.start()
        except RuntimeError as error:
            return Verdict(unreadable=1, notes=[str(error)],
                           lost=PAD * sum(self.acknowledged(n) for n in range(CLIENTS)))
        try:
            for number in range(CLIENTS):
                acks = self.acknowledged(number)
                count, last, sound = self.query(
                    "select count(*), coalesce(max(n), 0), "
                    f"coalesce(bool_and(pad = repeat(n || ',', {PAD})), true) "
                    f"from acks where client = {number}").split("|")
                if int(last) < acks or int(count) != int(last):
                    verdict.lost += max(acks - int(count), 1) * PAD
                    verdict.notes.append(f"client {number}: {acks} acknowledged, {count} rows, "
                                         f"last {last}")
                if sound != "t":
                    verdict.wrong += PAD
                    verdict.notes.append(f"client {number}: wrong content")
                verdict.notes.append(f"client {number}: {acks} commits acknowledged, {count} rows")
            sums = self.query(
                "select (select count(*) from pgbench_accounts), "
                "(select coalesce(sum(abalance), 0) from pgbench_accounts), "
                "(select coalesce(sum(bbalance), 0) from pgbench_branches), "
                "(select coalesce(sum(tbalance), 0) from pgbench_tellers), "
                "(select coalesce(sum(delta), 0) from pgbench_history)").split("|")
            if sums[0] != "100000" or len(set(sums[1:])) != 1:
                verdict.wrong += 1
                verdict.notes.append(f"pgbench: the books do not balance: {sums}")
            self.program("pg_amcheck", "--all", "--install-missing", "--heapallindexed")
            self.stop()
            self.program("pg_checksums", "--check", "-D", self.data)
        except RuntimeError as error:
            verdict.unreadable += 1
            verdict.notes.append(str(error))
        return verdict


def postgres_round(rounds, system, disk, how, seed, power):
    """The system is mounted with an empty volume on a disk of its own."""
    rng = machine.generator("postgres", *seed)
    server = Postgres(system, rounds.scratch)
    saved = f"{system.name}.pg"
    if disk.has(saved):
        system.umount()
        disk.umount()
        disk.load(saved)
        disk.mount()
        system.mount()
    else:
        server.make()
        system.umount()
        disk.umount()
        disk.save(saved)
        disk.mount()
        system.mount()
    server.start()
    server.work(1 + rng.random() * 2)
    if power:
        rounds.cut(system, disk, how.push, how.log, ("postgres", *seed))
    else:
        system.kill()
    rounds.mount_again(system)
    verdict = server.check()
    if system.name == "kmsfs" and not verdict.bad(exact=True):
        system.umount()
        complaint = system.verify()
        if complaint:
            verdict.complaints += 1
            verdict.notes.append(complaint)
    return verdict


def postgres(rounds, system, disk, how, seed):
    return postgres_round(rounds, system, disk, how, seed, True)


def postgres_killed(rounds, system, disk, how, seed):
    return postgres_round(rounds, system, disk, how, seed, False)


POWER = {f.__name__: f for f in (postgres, postgres_killed)}
