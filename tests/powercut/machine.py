"""The machine that loses power: namespaces, a loop-mounted disk, partial writeback, the cut.

Everything runs in a mount and process namespace of its own, so that no mount, loop device or process
outlives the run, however it ends.
"""
import ctypes
import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

PAGE = 4096
WAIT_BEFORE, WRITE = 1, 2  # of sync_file_range(2)
PR_SET_PDEATHSIG = 1
SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32): of ext4 and xfs; 1 = commit the log first, 2 = do not

libc = ctypes.CDLL(None, use_errno=True)
libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


# ---- namespaces ----------------------------------------------------------------------------------
def scratch_parent():
    """Memory if there is plenty, for a power cut needs no real disk; $TMPDIR otherwise."""
    if "TMPDIR" not in os.environ:
        try:
            if shutil.disk_usage("/dev/shm").free > 3 << 30:
                return "/dev/shm"
        except OSError:
            pass
    return tempfile.gettempdir()


def inside():
    """Returns the scratch directory within the namespaces; outside of them, runs this program again
    inside, cleans up after it and exits."""
    scratch = os.environ.get("POWERCUT_SCRATCH")
    if scratch and os.getpid() == 1:
        return scratch
    if os.getuid() != 0:
        raise SystemExit("powercut: needs root (loop devices, mounts)")
    scratch = tempfile.mkdtemp(prefix="kmsfs-powercut.", dir=scratch_parent())
    os.chmod(scratch, 0o755)
    child = None

    def stop(number, _frame):
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stop)
    try:
        child = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "--ipc", "--pid", "--fork",
             "--kill-child", "--mount-proc", sys.executable, "-u", *sys.argv],
            env={**os.environ, "POWERCUT_SCRATCH": scratch}, start_new_session=True,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
        raise SystemExit(child.wait())
    finally:
        if child and child.poll() is None:
            child.kill()
            child.wait()
        for _ in range(50):
            shutil.rmtree(scratch, ignore_errors=True)
            if not os.path.exists(scratch):
                break
            time.sleep(0.1)


def others():
    """Every other process of this namespace: all of them are ours."""
    if os.getpid() != 1:
        raise RuntimeError("not in a process namespace of our own")
    return [int(p) for p in os.listdir("/proc") if p.isdigit() and p != "1"]


def kill_others(mount):
    """kill -9 for all that runs here, and the mount that they work on is gone. Waits for their end."""
    for deadline in range(200):
        pids = others()
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        detach(mount)
        reap()
        if not pids:
            return
        time.sleep(0.002 if deadline < 50 else 0.05)
    raise RuntimeError(f"processes {pids} do not die")


def stop(pids):
    """Stops processes, and waits until every thread of them stands still."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            pass
    end = time.monotonic() + 30
    while any(not still(pid) for pid in pids):
        if time.monotonic() > end:
            raise RuntimeError("a process does not stop")
        time.sleep(0.001)


def still(pid):
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/stat") as f:
                if f.read().rsplit(")", 1)[1].split()[0] in "TtZX":
                    continue
            # A daemon may ask its own mount, and be stopped before it can answer itself.
            with open(f"/proc/{pid}/task/{thread}/wchan") as f:
                if "request_wait_answer" not in f.read():
                    return False
    except (FileNotFoundError, ProcessLookupError):
        pass
    return True


def reap():
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def run(*command, env=None, timeout=120, check=True, stdin=None):
    """A command with its output; an error says both."""
    done = subprocess.run(command, stdin=stdin or subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env=env, timeout=timeout, text=True,
                          errors="replace")
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stdout[-800:]}")
    return done


def mounted(point):
    with open("/proc/self/mountinfo") as table:
        return any(line.split()[4] == point for line in table)


def detach(point):
    """umount -l -f: nobody waits for an answer from there any more, not even a daemon for its own."""
    while mounted(point):
        if libc.umount2(point.encode(), 1 | 2):  # MNT_FORCE, MNT_DETACH
            raise OSError(ctypes.get_errno(), "umount -l", point)


# ---- the disk ------------------------------------------------------------------------------------
class Disk:
    """A file system in an image, loop-mounted at `back`."""

    # Large folios would be written whole: with them no single page could be pushed out. ext4 does
    # without them where it might have to encrypt. The log is committed only when somebody asks.
    KINDS = {
        "ext4": (["mkfs.ext4", "-q", "-F", "-O", "encrypt", "-E", "lazy_itable_init=1,nodiscard"],
                 "commit=300"),
        "xfs": (["mkfs.xfs", "-q", "-f", "-K"], "nouuid"),
    }

    def __init__(self, scratch, kind, mib=512):
        self.kind, self.mib = kind, mib
        self.image = f"{scratch}/disk.img"
        self.back = f"{scratch}/disk"
        self.template = f"{scratch}/template.{kind}"
        os.makedirs(self.back, exist_ok=True)

    def make(self):
        with open(self.image, "wb") as image:
            image.truncate(self.mib << 20)
        run(*self.KINDS[self.kind][0], self.image)

    def save(self, name):
        self.copy_to(f"{self.template}.{name}")

    def copy_to(self, path):
        run("cp", "--sparse=always", self.image, path)

    def has(self, name):
        return os.path.exists(f"{self.template}.{name}")

    def load(self, name):
        if not self.has(name):
            return False
        run("cp", "--sparse=always", f"{self.template}.{name}", self.image)
        return True

    def mount(self):
        run("mount", "-t", self.kind, "-o", f"loop,{self.KINDS[self.kind][1]}", self.image, self.back)

    def umount(self):
        for _ in range(200):
            if not mounted(self.back):
                return
            if libc.umount2(self.back.encode(), 0):
                time.sleep(0.05)
        raise RuntimeError(f"{self.back} stays busy")

    def commit(self):
        """Somebody syncs something else: the log of the file system is committed up to here."""
        fd = os.open(f"{self.back}/.else", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"x")
        os.fsync(fd)
        os.close(fd)

    def shutdown(self, log):
        """The power is gone: no byte goes to the disk from here on (after the log, if `log`)."""
        # What `xfs_io -x -c shutdown` does; that one would first ask every mounted file system for
        # its size, and hang at the stopped daemon.
        fd = os.open(self.back, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", 1 if log else 2))
        finally:
            os.close(fd)


# ---- partial writeback ---------------------------------------------------------------------------
# Which pages of a file the kernel happened to write back: (pages, generator) -> chosen pages.
PUSHES = {
    "none": lambda n, rng: range(0),
    "all": lambda n, rng: range(n),
    "even": lambda n, rng: range(0, n, 2),
    "odd": lambda n, rng: range(1, n, 2),
    "half": lambda n, rng: [p for p in range(n) if rng.random() < 0.5],
    "few": lambda n, rng: [p for p in range(n) if rng.random() < 0.125],
    "files": lambda n, rng: range(n if rng.random() < 0.5 else 0),
}


def push_out(top, push, rng):
    """Writes back the chosen pages of every file below `top`, and none of the others."""
    if push == "none":
        return
    for directory, subdirectories, files in os.walk(top):
        subdirectories.sort()
        for name in sorted(files):
            path = os.path.join(directory, name)
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            fd = os.open(path, os.O_RDONLY)
            try:
                size = os.fstat(fd).st_size
                for page in PUSHES[push](-(-size // PAGE), rng):
                    if libc.sync_file_range(fd, page * PAGE, PAGE, WRITE):
                        raise OSError(ctypes.get_errno(), "sync_file_range", path)
                libc.sync_file_range(fd, 0, 0, WAIT_BEFORE)
            finally:
                os.close(fd)


def selftest(scratch, kind):
    """Shows that the cut cuts: un-synced data is lost, and just the pushed pages are there."""
    disk = Disk(scratch, kind)
    disk.make()
    for log in (False, True):
        disk.mount()
        files = {name: os.open(f"{disk.back}/{name}{log}", os.O_RDWR | os.O_CREAT)
                 for name in ("synced", "lost")}
        for offset in range(0, 16 * PAGE, PAGE):
            os.pwrite(files["synced"], b"1" * PAGE, offset)
        os.fsync(files["synced"])
        for offset in range(0, 16 * PAGE, PAGE):
            os.pwrite(files["synced"], b"2" * PAGE, offset)
        os.pwrite(files["lost"], b"3" * PAGE, 0)
        for page in (3, 5):
            libc.sync_file_range(files["synced"], page * PAGE, PAGE, WRITE | WAIT_BEFORE | 4)
        disk.shutdown(log)
        for fd in files.values():
            os.close(fd)
        disk.umount()
        disk.mount()
        with open(f"{disk.back}/synced{log}", "rb") as f:
            content = f.read()
        new = [p for p in range(len(content) // PAGE) if content[p * PAGE] == ord("2")]
        lost = f"{disk.back}/lost{log}"
        gone = not os.path.exists(lost) or os.path.getsize(lost) == 0
        disk.umount()
        # xfs writes whole folios; here they are single pages on every kernel so far, but need not be.
        if len(content) != 16 * PAGE or not gone or not {3, 5} <= set(new) or \
                (kind == "ext4" and new != [3, 5]):
            raise SystemExit(f"powercut: this machine does not cut power on {kind}: "
                             f"{len(content)} bytes, pages {new} new, un-synced file gone: {gone}")


def generator(*seed):
    return random.Random(repr(seed))
