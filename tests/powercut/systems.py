"""The file systems under test: how each makes a volume, mounts it and unmounts it. One table.

{src} backing directory, {mnt} mount point, {home} a home directory on the same disk, {bin} the
programs of kmsfs. Every daemon stays in the foreground, so that its process id is known.
"""
import os
import shutil
import subprocess
import time

import machine

PASSWORD = "powercut"
ASK = ["-extpass", f"echo {PASSWORD}"]
SECUREFS = ["securefs", "mount", "--pass", PASSWORD, "-o", "allow_other", "{src}", "{mnt}"]

# go-fuse opens a file on its own mount before it serves: nobody may be faster.
READY = {"gocryptfs": "ready."}

# name: (program, package, make a volume, mount it)
TABLE = {
    "raw": ("mount", "mount", None, None),
    "kmsfs": ("{bin}/kmsfs", "", ["{bin}/kmsfsctl", "init", "{src}", "--key", "keyfile:{home}/key"],
              ["{bin}/kmsfs", "{src}", "{mnt}", "-f", "-o", "allow_other"]),
    "gocryptfs": ("gocryptfs", "gocryptfs",
                  ["gocryptfs", "-init", "-q", "-scryptn", "10", *ASK, "{src}"],
                  ["gocryptfs", "-fg", "-allow_other", *ASK, "{src}", "{mnt}"]),
    "securefs": ("securefs", "securefs",  # its default format, "lite"
                 ["securefs", "create", "--pass", PASSWORD, "-r", "1", "{src}"], SECUREFS),
    "securefs-full": ("securefs", "securefs",
                      ["securefs", "create", "--pass", PASSWORD, "-r", "1", "--format", "2",
                       "{src}"], SECUREFS),
    "cryfs": ("cryfs", "cryfs",
              # Made at its first mount.
              None, ["cryfs", "-f", "{src}", "{mnt}", "--", "-o", "allow_other"]),
    "encfs": ("encfs", "encfs", None,
              ["encfs", "-f", "--standard", "--public", "--extpass", f"echo {PASSWORD}", "{src}",
               "{mnt}"]),
}
SLOW = {"cryfs"}  # Half a minute of key derivation per mount: only the first round of each workload.
RIVALS = ["gocryptfs", "securefs", "securefs-full", "cryfs", "encfs"]


class CannotMount(Exception):
    pass


class System:
    def __init__(self, name, scratch, bin_directory):
        self.name, self.bin = name, bin_directory
        self.program, self.package, self.make_words, self.mount_words = TABLE[name]
        self.mnt = f"{scratch}/mnt"
        self.log = f"{scratch}/{name}.log"
        self.daemon = None
        os.makedirs(self.mnt, exist_ok=True)
        self.place(f"{scratch}/none")

    def place(self, back):
        """The volume lies below `back` from now on."""
        self.src, self.home = f"{back}/volume", f"{back}/home"

    def missing(self):
        return shutil.which(self.program.format(bin=self.bin)) is None

    def words(self, words):
        return [w.format(src=self.src, mnt=self.mnt, home=self.home, bin=self.bin) for w in words]

    def env(self):
        return {**os.environ, "HOME": self.home, "CRYFS_FRONTEND": "noninteractive",
                "CRYFS_NO_UPDATE_CHECK": "true"}

    def make(self):
        os.makedirs(self.src)
        os.makedirs(self.home)
        if self.make_words:
            machine.run(*self.words(self.make_words), env=self.env())

    def mount(self, timeout=60):
        if not self.mount_words:
            machine.run("mount", "--bind", self.src, self.mnt)
            return
        self.keep_log()
        with open(self.log, "wb") as log:
            self.daemon = subprocess.Popen(self.words(self.mount_words), env=self.env(), stdout=log,
                                           stderr=log, stdin=subprocess.PIPE)
        try:
            self.daemon.stdin.write(f"{PASSWORD}\n".encode())
            self.daemon.stdin.close()
        except BrokenPipeError:
            pass
        end = time.monotonic() + timeout
        while not (machine.mounted(self.mnt) and READY.get(self.name, "") in self.log_tail()):
            if self.daemon.poll() is not None or time.monotonic() > end:
                raise CannotMount(f"{self.name} does not mount: {self.log_tail()}")
            time.sleep(0.01)

    def keep_log(self):
        """What the daemons of a round said, one after another, is in `<log>.before` and the log."""
        if os.path.exists(self.log):
            with open(self.log, "rb") as log, open(f"{self.log}.before", "ab") as before:
                before.write(log.read() + b"----\n")

    def drop_logs(self):
        for path in (self.log, f"{self.log}.before"):
            if os.path.exists(path):
                os.unlink(path)

    def log_tail(self):
        try:
            with open(self.log, errors="replace") as log:
                return log.read()[-600:].strip()
        except OSError:
            return ""

    def umount(self):
        """A clean unmount."""
        if self.name == "kmsfs":
            machine.run(f"{self.bin}/kmsfsctl", "umount", self.mnt)
        else:
            for _ in range(100):
                if machine.run("umount", self.mnt, check=False).returncode == 0:
                    break
                time.sleep(0.05)
            else:
                raise RuntimeError(f"{self.mnt} stays busy")
        if self.daemon:
            self.daemon.wait(timeout=60)
            self.daemon = None

    def freeze(self):
        """Nobody writes to the disk any more, and no call to it is under way: an fsync that the
        shutdown overtakes could be answered with success, which no loss of power does. Whoever
        works on the mount gets no more answers from a stopped daemon."""
        machine.stop([self.daemon.pid] if self.daemon else machine.others())

    def kill(self):
        """kill -9 of the daemon first, then of those who work on its mount."""
        if self.daemon:
            self.daemon.kill()
            self.daemon = None
        machine.kill_others(self.mnt)

    def tidy(self):
        """What its user has to do by hand after a crash."""
        if self.name == "securefs-full":
            try:
                os.unlink(f"{self.src}/.securefs.lock")
            except FileNotFoundError:
                pass

    def verify(self):
        """What the system itself says about the unmounted volume: its complaints, a line each."""
        if self.name != "kmsfs":
            return []
        done = machine.run(f"{self.bin}/kmsfsctl", "verify", self.src, env=self.env(), check=False)
        if done.returncode == 0:
            return []
        # A long name and its backing path fill a line; the reason stands at its end.
        return [f"verify: {line if len(line) < 220 else f'{line[:60]}…{line[-150:]}'}"
                for line in done.stdout.splitlines()]
