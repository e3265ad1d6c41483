"""What the comparing rings share: steps whose results are printed, one line each, so that the same
script can run on two file systems and the lines be compared."""
import ctypes
import errno
import os
import stat

LIBC = ctypes.CDLL(None, use_errno=True)


def call(name, *args):
    """A C library call that returns -1 and errno."""
    result = getattr(LIBC, name)(*args)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def fallocate(fd, mode, offset, length):
    return call("fallocate", fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length))


def renameat2(old_dir, old, new_dir, new, flags):
    return call("renameat2", old_dir, old, new_dir, new, flags)


def kind(mode):
    return stat.filemode(mode)


def facts(s):
    """What of a stat result does not depend on the file system."""
    size = s.st_size if stat.S_ISREG(s.st_mode) or stat.S_ISLNK(s.st_mode) else "-"
    links = s.st_nlink if not stat.S_ISDIR(s.st_mode) else f"dir{min(s.st_nlink, 1)}"
    return f"{kind(s.st_mode)} {s.st_uid}:{s.st_gid} links={links} size={size}"


def show(value):
    if isinstance(value, os.stat_result):
        return facts(value)
    if isinstance(value, bytes) and len(value) > 60:
        return f"{len(value)} bytes {value[:20]!r}...{value[-20:]!r}"
    return repr(value)


class Transcript:
    def __init__(self):
        self.part = ""

    def begin(self, part):
        self.part = part

    def step(self, name, function, *args, **kwargs):
        """Runs one call and prints its result or its errno; returns the result or None."""
        try:
            result = function(*args, **kwargs)
        except OSError as e:
            print(f"{self.part}: {name}: {errno.errorcode.get(e.errno, e.errno)}", flush=True)
            return None
        except ValueError as e:
            print(f"{self.part}: {name}: ValueError {e}", flush=True)
            return None
        print(f"{self.part}: {name}: {show(result)}", flush=True)
        return result

    def note(self, name, value):
        print(f"{self.part}: {name}: {show(value)}", flush=True)
