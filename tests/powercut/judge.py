"""What must be there after a crash, and what was lost.

A Thing is one file (symlink, directory, attribute) with every state it may legally be in. Its
states form families: within one family the bytes of several states may be mixed, because un-synced
writes reach the disk in any order; whole states only are what kmsfs promises on top (`exact`).
"""
import os
import stat
from dataclasses import dataclass, field

BLOCK = 4096
COLUMNS = ("lost", "unreadable", "unreachable", "wrong", "mixed", "complaints")


@dataclass
class Thing:
    name: str
    paths: list                # it must be at one of these
    families: list             # [[content, ...], ...]; of a symlink: [[target]], an xattr: [[value]]
    kind: str = "file"         # file | link | dir | xattr | sqlite
    firm: bool = True          # was durable: must exist
    exact: bool = True         # every state was one request: kmsfs shows no mixture
    attribute: str = ""
    rows: int = 0              # sqlite: acknowledged transactions
    past: list = field(default_factory=list)  # what it was before it was last synced

    @property
    def data(self):
        return self.families[-1][-1]

    def later(self, data):
        """It may be like this as well now."""
        self.families[-1].append(data)

    def synced(self, data=None):
        """It is like this, and acknowledged as durable."""
        self.past = [s for f in self.families for s in f]
        self.families = [[self.data if data is None else data]]
        self.firm = True


@dataclass
class Verdict:
    lost: int = 0              # fsynced bytes that are not there as they were
    unreadable: int = 0        # files that answer an error
    unreachable: int = 0       # names and directories that are missing or answer an error
    wrong: int = 0             # bytes that nobody ever wrote there, without any error
    mixed: int = 0             # files in none of their whole states (judged for kmsfs only)
    complaints: int = 0        # after all was found well, the system's own check finds damage
    notes: list = field(default_factory=list)

    def note(self, path, text):
        """A line for the reader of a failure; long names are cut."""
        self.notes.append("/".join(p if len(p) < 40 else f"{p[:12]}…({len(p)})"
                                   for p in path.split("/")[-4:]) + f": {text}")

    def add(self, other):
        for column in COLUMNS:
            setattr(self, column, getattr(self, column) + getattr(other, column))
        self.notes += other.notes

    def bad(self, exact):
        return bool(self.lost or self.unreadable or self.unreachable or self.wrong
                    or self.complaints or exact and self.mixed)

    def key(self):
        """The smaller, the better."""
        return (self.lost + self.wrong, self.unreadable, self.unreachable, self.mixed)


def read_file(path):
    """(size by stat, content, blocks that could not be read); OSError when it does not even open."""
    size = os.stat(path).st_size
    fd = os.open(path, os.O_RDONLY)
    try:
        pieces, holes, at = [], set(), 0
        while True:
            want = BLOCK - at % BLOCK if holes else 1 << 20
            try:
                piece = os.pread(fd, want, at)
            except OSError:
                if want > BLOCK:
                    # Block by block, so that only what is damaged counts.
                    piece = b""
                    for offset in range(at, at + want, BLOCK):
                        try:
                            part = os.pread(fd, BLOCK, offset)
                        except OSError:
                            if offset >= max(size, os.fstat(fd).st_size):
                                break
                            holes.add(offset // BLOCK)
                            part = bytes(BLOCK)
                        piece += part
                        if len(part) < BLOCK:
                            break
                    pieces.append(piece)
                    at += len(piece)
                    if len(piece) < want:
                        break
                    continue
                holes.add(at // BLOCK)
                piece = bytes(want)
                if at >= size:
                    break
            if not piece:
                break
            pieces.append(piece)
            at += len(piece)
        return size, b"".join(pieces), holes
    finally:
        os.close(fd)


NONZERO = bytes([0] + [1] * 255)


def misses(have, state):
    """An integer with one byte per byte of `have`: 1 where `state` does not say the same."""
    common = min(len(have), len(state))
    differ = int.from_bytes(have[:common], "little") ^ int.from_bytes(state[:common], "little")
    mask = differ.to_bytes(common, "little").translate(NONZERO) + b"\1" * (len(have) - common)
    return int.from_bytes(mask, "little")


def stable_mask(parts, n):
    """1 for each of the first `n` bytes that is the same in every state."""
    mask = int.from_bytes(b"\1" * n, "little")
    for part in parts[1:]:
        mask &= ~misses(parts[0][:n], part)
    return mask


def against(family, content, holes, firm):
    """(fsynced bytes lost, wrong bytes) of a content, measured against one family of states."""
    sizes = [len(s) for s in family]
    low, high = min(sizes), max(sizes)
    lost = wrong = 0
    for at in range(0, max(high, len(content)), BLOCK):
        have = content[at:at + BLOCK]
        unread = at // BLOCK in holes
        parts = [s[at:at + BLOCK] for s in family]
        n = min(max(0, low - at), BLOCK)
        # Bytes that are the same in every state must be there.
        if n and firm and (unread or any(have != p for p in parts)):
            stable = stable_mask(parts, n)
            if not unread:
                stable &= misses(parts[0][:n], have)
            lost += stable.bit_count()
        # Every byte must be from one of them; where a file may have grown, or was never durable, zero.
        if unread or have in parts:
            continue
        bad = int.from_bytes(b"\1" * len(have), "little")
        for part in parts:
            bad &= misses(have, part)
        zero_from = n if firm else 0
        zeros = b"\1" * min(zero_from, len(have)) + have[zero_from:].translate(NONZERO)
        wrong += (bad & int.from_bytes(zeros, "little")).bit_count()
    return lost, wrong


def judge_file(thing, path):
    verdict = Verdict()
    try:
        size, content, holes = read_file(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        verdict.note(path, f"{error.strerror}")
        if thing.firm:
            verdict.unreadable += 1
            verdict.lost += min(stable_size(f) for f in thing.families)
        return verdict
    results = [against(f, content, holes, thing.firm) for f in thing.families]
    verdict.lost, verdict.wrong = min(results, key=sum)
    if verdict.wrong and content in thing.past:
        # Nothing foreign, but what came after it is lost.
        verdict.lost, verdict.wrong = min(stable_size(f) for f in thing.families), 0
    if holes and thing.firm:
        verdict.unreadable += 1
        verdict.note(path, f"{len(holes)} blocks unreadable")
    again = os.stat(path).st_size
    # A file that was never synced may have been made empty after the first look at it.
    emptied = not thing.firm and len(content) == again == 0
    if not holes and not emptied and not (size == len(content) == again):
        verdict.wrong += max(abs(size - len(content)), abs(again - len(content)))
        verdict.note(path, f"stat said {size}, then {again}; {len(content)} bytes read")
    states = [s for f in thing.families for s in f]
    whole = content in states or not thing.firm and (content == b"" or holes)
    if thing.exact and not whole and not holes:
        verdict.mixed += 1
        verdict.note(path, f"{len(content)} bytes, none of the states "
                             f"{sorted({len(s) for s in states})}; {where(content, states)}")
    if verdict.lost or verdict.wrong:
        verdict.note(path, f"{verdict.lost} lost, {verdict.wrong} wrong of {len(content)}; "
                             f"{where(content, states)}")
    return verdict


def where(content, states):
    """Where a content leaves each state, for the reader of a failure."""
    def first(a, b):
        for at in range(0, max(len(a), len(b)), BLOCK):
            if a[at:at + BLOCK] != b[at:at + BLOCK]:
                x, y = a[at:at + BLOCK], b[at:at + BLOCK]
                return at + next((i for i, (p, q) in enumerate(zip(x, y)) if p != q),
                                 min(len(x), len(y)))
        return None
    return "differs first at " + ", ".join(str(first(content, s)) for s in states[-6:])


def stable_size(family):
    """How many bytes of a file cannot have changed."""
    low, count = min(len(s) for s in family), 0
    for at in range(0, low, BLOCK):
        n = min(low - at, BLOCK)
        count += stable_mask([s[at:at + n] for s in family], n).bit_count()
    return count


def judge_link(thing, path):
    try:
        target = os.readlink(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Verdict(unreachable=int(thing.firm), notes=[f"{path}: {error.strerror}"])
    states = [s for f in thing.families for s in f]
    if target.encode() in states:
        return Verdict()
    return Verdict(wrong=1, notes=[f"{path}: another target of {len(target)} bytes"])


def judge_dir(thing, path):
    try:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            return Verdict(unreachable=1, notes=[f"{path}: no directory"])
        os.listdir(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Verdict(unreachable=1, notes=[f"{path}/: {error.strerror}"])
    return Verdict()


def judge_xattr(thing, path):
    states = [s for f in thing.families for s in f]
    try:
        value = os.getxattr(path, thing.attribute)
    except OSError as error:
        if not thing.firm:
            return Verdict()
        return Verdict(lost=len(thing.data), notes=[f"{path}: {thing.attribute}: {error.strerror}"])
    if value in states:
        return Verdict()
    return Verdict(wrong=len(value), notes=[f"{path}: {thing.attribute}: another value"])


def judge_sqlite(thing, path):
    import workloads
    if not os.path.exists(path):
        return None
    return workloads.check_sqlite(path, thing.rows)


JUDGES = {"file": judge_file, "link": judge_link, "dir": judge_dir, "xattr": judge_xattr,
          "sqlite": judge_sqlite}


def judge(thing, root):
    """The best of the places where it may be."""
    verdicts = []
    for path in thing.paths:
        try:
            verdict = JUDGES[thing.kind](thing, f"{root}/{path}")
        except OSError as error:
            verdict = Verdict(unreachable=int(thing.firm), notes=[f"{path}: {error.strerror}"])
        if verdict is None:
            continue
        if thing.firm and not listed(f"{root}/{path}"):
            verdict.unreachable += 1
            verdict.note(path, "not listed in its directory")
        verdicts.append(verdict)
    if verdicts:
        return min(verdicts, key=Verdict.key)
    if not thing.firm:
        return Verdict()
    lost = 0
    if thing.kind == "file":
        lost = min(stable_size(f) for f in thing.families)
    return Verdict(unreachable=1, lost=lost, notes=[f"{thing.name}: missing ({reason(root, thing)})"])


def listed(path):
    """Being found is not enough; a directory that cannot be read at all counts by itself."""
    try:
        return os.path.basename(path) in os.listdir(os.path.dirname(path))
    except OSError:
        return True


def reason(root, thing):
    """Which part of the path is not there."""
    path = root
    for part in thing.paths[-1].split("/"):
        path = f"{path}/{part}"
        try:
            os.lstat(path)
        except OSError as error:
            return f"{part[:20]}: {error.strerror}"
    return "there"


def walk(root):
    """Every directory that there is must be listed, and every name in it found. Returns a verdict
    and the directories."""
    verdict, directories, todo = Verdict(), [], [root]
    while todo:
        directory = todo.pop()
        try:
            names = os.listdir(directory)
        except OSError as error:
            verdict.unreachable += 1
            verdict.note(directory, f"{error.strerror}")
            continue
        directories.append(directory)
        for name in names:
            path = f"{directory}/{name}"
            try:
                if stat.S_ISDIR(os.lstat(path).st_mode):
                    todo.append(path)
            except OSError as error:
                verdict.unreachable += 1
                verdict.note(path, f"listed, but {error.strerror}")
    return verdict, directories


def usable(directories):
    """Each directory takes a new file, a new directory and gives them away again."""
    verdict = Verdict()
    for directory in directories:
        try:
            path = f"{directory}/.new"
            with open(path, "wb") as f:
                f.write(b"new" * 2000)
                f.flush()
                os.fsync(f.fileno())
            with open(path, "rb") as f:
                if f.read() != b"new" * 2000:
                    raise OSError(5, "a new file reads wrong")
            os.unlink(path)
            os.mkdir(path)
            os.rmdir(path)
        except OSError as error:
            verdict.unreachable += 1
            verdict.note(directory, f"not usable: {error.strerror}")
    return verdict


def damaged(path):
    try:
        return bool(read_file(path)[2])
    except FileNotFoundError:
        return False
    except OSError:
        return True


def judge_all(things, root):
    verdict, directories = walk(root)
    for thing in things:
        verdict.add(judge(thing, root))
    verdict.add(usable(directories))
    # What was never durable may be damaged; it can be removed.
    for thing in things:
        if thing.kind == "file" and not thing.firm:
            for path in thing.paths:
                if not damaged(f"{root}/{path}"):
                    continue
                try:
                    os.unlink(f"{root}/{path}")
                except OSError as error:
                    verdict.unreachable += 1
                    verdict.note(path, f"cannot be removed: {error.strerror}")
    return verdict
