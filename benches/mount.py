#!/usr/bin/env python3
"""What the choices of a mount cost: event-loop threads, cache time, writeback.

usage: benches/mount.py [--rounds N] [--lower DIR] [--axis threads|cache|writeback]...

Mounts the release build over a folder in memory (--lower) with each value of an axis in turn, the
values interleaved within a round, and prints medians and their ratio to the default. Needs root or
fusermount3, and `cargo build --release` before.
"""
import argparse, os, random, shutil, statistics, subprocess, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
BIN = os.path.join(os.path.dirname(HERE), "target", "release")
AXES = {
    "threads": ["threads=4", "threads=1", "threads=2", "threads=8"],
    "cache": ["cache-timeout=3600", "cache-timeout=1", "cache-timeout=0"],
    "writeback": ["writeback=yes", "writeback=no"],
}
FILES, SIZE, BIG = 2000, 4096, 256 << 20


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def create(m):
    block = os.urandom(SIZE)
    for n in range(FILES):
        folder = f"{m}/d{n // 100}"
        if n % 100 == 0:
            os.mkdir(folder)
        with open(f"{folder}/f{n}", "wb") as f:
            f.write(block)


def read_small(m):
    for folder, _, names in os.walk(m):
        for name in names:
            with open(f"{folder}/{name}", "rb") as f:
                f.read()


def stat_twice(m):
    for _ in range(2):
        for folder, _, names in os.walk(m):
            for name in names:
                os.stat(f"{folder}/{name}")


def parallel_read(m):
    cats = [subprocess.Popen(["sh", "-c", f"cat {m}/d{n}/* > /dev/null"]) for n in range(8)]
    for cat in cats:
        cat.wait()


def stream_write(m):
    block = os.urandom(1 << 20)
    with open(f"{m}/big", "wb") as f:
        for _ in range(BIG >> 20):
            f.write(block)
        os.fsync(f.fileno())


def stream_read(m):
    with open(f"{m}/big", "rb") as f:
        while f.read(1 << 20):
            pass


def append_small(m):
    with open(f"{m}/log", "ab", buffering=0) as f:
        for _ in range(5000):
            f.write(b"x" * 100)


def fsync_each(m):
    with open(f"{m}/db", "wb", buffering=0) as f:
        for n in range(1000):
            os.pwrite(f.fileno(), b"y" * 4096, n % 50 * 4096)
            os.fsync(f.fileno())


# (name, unit, amount, prepare, work): work runs on a fresh mount of what prepare made.
WORK = [
    ("create", "files/s", FILES, None, create),
    ("read small", "files/s", FILES, create, read_small),
    ("stat twice", "stats/s", 2 * FILES, create, stat_twice),
    ("8 readers", "files/s", 800, create, parallel_read),
    ("stream write", "MiB/s", BIG >> 20, None, stream_write),
    ("stream read", "MiB/s", BIG >> 20, stream_write, stream_read),
    ("append 100 B", "writes/s", 5000, None, append_small),
    ("write + fsync", "fsyncs/s", 1000, None, fsync_each),
]


def run(*words):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def measure(lower, options, prepare, work):
    base = tempfile.mkdtemp(dir=lower)
    cipher, plain, key = f"{base}/c", f"{base}/m", f"{base}/key"
    os.mkdir(plain)
    run(f"{BIN}/kmsfsctl", "init", cipher, "--key", f"keyfile:{key}")
    try:
        for step in [prepare, work] if prepare else [work]:
            run(f"{BIN}/kmsfs", cipher, plain, "-o", options)
            try:
                seconds = timed(lambda: step(plain))
            finally:
                run(f"{BIN}/kmsfsctl", "umount", plain)
        return seconds
    finally:
        shutil.rmtree(base, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lower", default="/dev/shm")
    parser.add_argument("--axis", action="append", choices=list(AXES))
    args = parser.parse_args()
    for axis in args.axis or AXES:
        values = AXES[axis]
        print(f"\n{axis}: median of {args.rounds} rounds (ratio to {values[0]})")
        print(f"{'':16}{'':10}" + "".join(f"{v:>26}" for v in values))
        for name, unit, amount, prepare, work in WORK:
            rates = {v: [] for v in values}
            for _ in range(args.rounds):
                for value in random.sample(values, len(values)):
                    rates[value].append(amount / measure(args.lower, value, prepare, work))
            median = {v: statistics.median(rates[v]) for v in values}
            cells = (f"{median[v]:.0f} ({median[v] / median[values[0]]:.2f})" for v in values)
            print(f"{name:16}{unit:10}" + "".join(f"{c:>26}" for c in cells), flush=True)


main()
