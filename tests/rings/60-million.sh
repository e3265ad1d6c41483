#!/bin/bash
# A tree of a million files, created, listed with find and removed: without running out of
# descriptors or memory. Reports what the daemon used. Too long for every run: needs LONG=1.
#
# FILES=n another number, PER_DIR=n in each directory; MAX_RSS_MIB, MAX_FDS the bounds.
. "$(dirname "$0")/lib.sh"
if [ -z "${LONG:-}" ] && [ -z "${FILES:-}" ]; then
    echo "RING 60-million: not run without LONG=1"
    exit 0
fi
ring_start 60-million
FILES=${FILES:-1000000}
MAX_RSS_MIB=${MAX_RSS_MIB:-1500}
# kmsfs keeps up to 4096 directories open, and the tree has more than that.
MAX_FDS=${MAX_FDS:-4200}
PER_DIR=${PER_DIR:-100}
# A header of 4 KiB and an inode for each file, two blocks for each directory.
backing "$BACKING" $((FILES * 9 / 1024 + 1024))
vol_new
vol_mount

usage() {
    local pid rss fds
    pid=$(vol_pid)
    [ -n "$pid" ] || { skip "no daemon to look at"; return; }
    rss=$(($(awk '/^VmRSS/ { print $2 }' "/proc/$pid/status") / 1024))
    fds=$(ls "/proc/$pid/fd" | wc -l)
    echo "  $1: RSS $rss MiB, $fds descriptors"
    check "$1: at most $MAX_RSS_MIB MiB (has $rss)" test "$rss" -le "$MAX_RSS_MIB"
    check "$1: at most $MAX_FDS descriptors (has $fds)" test "$fds" -le "$MAX_FDS"
}
found() { find "$MNT/tree" -type f | wc -l; }
stated() { find "$MNT/tree" -type f -printf '%s\n' | awk '{ n += $1 } END { print n }'; }

usage "empty"
cat >"$WORK/make.py" <<'PYTHON'
import os, sys
top, files, per_dir = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for i in range(files):
    if i % per_dir == 0:
        d = f"{top}/{i // (per_dir * 100)}/{i // per_dir}"
        os.makedirs(d)
    fd = os.open(f"{d}/file-number-{i}", os.O_CREAT | os.O_WRONLY, 0o644)
    # Every tenth has content: that makes it a header and a data key.
    if i % 10 == 0:
        os.write(fd, b"%d" % i)
    os.close(fd)
PYTHON
mkdir "$MNT/tree"
# No limit of time: it ends when it ends.
if python3 "$WORK/make.py" "$MNT/tree" "$FILES" "$PER_DIR"; then ok created; else not_ok created; fi
usage "created"
check "find finds $FILES" test "$(found)" = "$FILES"
usage "listed"
vol_remount
check "find finds $FILES after a remount" test "$(found)" = "$FILES"
sum=$(python3 -c "print(sum(len(str(i)) for i in range(0, $FILES, 10)))")
check "and all the right sizes" test "$(stated)" = "$sum"
usage "listed after a remount"
if rm -rf "$MNT/tree"; then ok removed; else not_ok removed; fi
usage "removed"
check "empty again" test -z "$(ls -A "$MNT")"
ring_end
