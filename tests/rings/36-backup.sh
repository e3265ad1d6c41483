#!/bin/bash
# Backups of the backing directory: copies made while programs write never show what was not there;
# quiet copies are exact; a second pass of rsync, tar and restic catches up with everything; a file
# put back from an older copy is not touched by a newer journal.
#
# SEED=n another run. LONG=1: some four times as much.
. "$(dirname "$0")/lib.sh"
ring_start 36-backup
[ "$FS" = kmsfs ] || { skip "about kmsfs only"; ok "nothing to do"; ring_end; }
need rsync:rsync tar:tar cmp:diffutils
SEED=${SEED:-1}
ROUNDS=2 PASSES=12 TAR_PASSES=3 RESTIC_PASSES=3
[ -z "${LONG:-}" ] || { ROUNDS=8 PASSES=80 TAR_PASSES=12 RESTIC_PASSES=10; }
CTL=$WORK/bin/kmsfsctl
PY=$RING_DIR/backup.py
CATCH=$RING_DIR/catchup.py

# Whatever runs in the background ends with the ring.
STARTED=()
end_started() {
    local pid
    for pid in "${STARTED[@]:-}"; do
        [ -z "$pid" ] || { kill -KILL "$pid" && wait "$pid"; } 2>/dev/null
    done
    STARTED=()
}
trap 'ended=$?; end_started; (exit $ended); ring_cleanup' EXIT

# The copies lie in memory: what is tested is not the disk.
backing tmpfs 1500
COPIES=$BACK
backing ext4 1500

# open_copy DIR: what verify, export and a mount say of a copy, beside it.
open_copy() {
    local dir=$1 at=$WORK/copy.mnt rc
    "$CTL" verify "$dir" --json >"$dir.verify" 2>>"$dir.log"
    rc=$?; [ $rc = 0 ] || [ $rc = 17 ] || return 1
    "$CTL" export "$dir" "$dir.out" --json >"$dir.export" 2>>"$dir.log"
    rc=$?; [ $rc = 0 ] || [ $rc = 17 ] || return 1
    mkdir -p "$at"
    timeout 60 "$WORK/bin/kmsfs" "$dir" "$at" -o allow_other >>"$dir.log" 2>&1 || return 1
    python3 "$PY" look "$at" >"$dir.mount"
    "$CTL" umount "$at" >>"$dir.log" 2>&1
}

# exact NAME COPY: nothing is damaged, and export and mount are what $WORK/manifest says.
exact() {
    local name=$1 dir=$2 at=$WORK/copy.mnt
    check "$name: verifies" "$CTL" verify "$dir"
    "$CTL" export "$dir" "$dir.out" >"$WORK/log/export" 2>&1
    manifest "$dir.out" >"$WORK/manifest.out"
    same_manifest "$name: export" "$WORK/manifest" "$WORK/manifest.out"
    mkdir -p "$at"
    check "$name: mounts" timeout 60 "$WORK/bin/kmsfs" "$dir" "$at" -o allow_other,dev,suid
    manifest "$at" >"$WORK/manifest.mnt"
    same_manifest "$name: mount" "$WORK/manifest" "$WORK/manifest.mnt"
    "$CTL" umount "$at" >"$WORK/log/umount" 2>&1 || not_ok "$name: unmounts"
    rm -rf "$dir" "$dir.out"
}

copy_with() {
    local tool=$1 to=$2
    mkdir "$to"
    case $tool in
    # Files that come and go while it runs are no trouble for a backup.
    cp) cp -a "$SRC/." "$to/" 2>"$to.log" ;;
    rsync) rsync -a "$SRC/" "$to/" 2>"$to.log" ;;
    tar) tar -C "$SRC" -cf - . 2>"$to.log" | tar -C "$to" -xpf - ;;
    slow) python3 "$PY" slow "$SRC" "$to" "$SEED" ;;
    esac
    [ -e "$to/kmsfs.volume" ]
}

# ---- while programs write, and quiet -----------------------------------------------------------
# live MODE OPTIONS
live() {
    local mode=$1 state=$WORK/$1.state round tool dir low start high copies=$WORK/$1.copies writer churn
    vol_new "$mode"
    vol_mount "allow_other,dev,suid,$2"
    mkdir "$state"
    python3 "$PY" write "$MNT" "$state" "$SEED" 2>"$WORK/log/writer" &
    writer=$!
    STARTED+=("$writer")
    for _ in $(seq 300); do [ -e "$state/ready" ] && break; sleep 0.1; done
    for round in $(seq "$ROUNDS"); do
        # Every second round with checkpoints all the time, which write in place.
        churn=
        if [ $((round % 2)) = 0 ]; then
            (while "$CTL" sync "$MNT"; do sleep 0.05; done) >/dev/null 2>&1 &
            churn=$!
            STARTED+=("$churn")
        fi
        for tool in cp rsync tar slow; do
            dir=$COPIES/$mode.$tool.$round
            low=$(python3 "$PY" count "$state" | cut -d' ' -f1)
            check "$mode, $tool $round: sync" "$CTL" sync "$MNT"
            start=$(python3 "$PY" count "$state" | cut -d' ' -f1)
            check "$mode, $tool $round: copied" copy_with "$tool" "$dir"
            high=$(python3 "$PY" count "$state" | cut -d' ' -f2)
            printf '{"out": "%s", "verify": "%s", "export": "%s", "mount": "%s", ' \
                "$dir.out" "$dir.verify" "$dir.export" "$dir.mount" >>"$copies"
            printf '"low": %d, "start": %d, "high": %d}\n' "$low" "$start" "$high" >>"$copies"
        done
        [ -z "$churn" ] || kill "$churn"
    done
    touch "$state/stop"
    if wait "$writer"; then ok "$mode: the writer wrote"; else
        not_ok "$mode: the writer failed: $(tail -1 "$WORK/log/writer")"
    fi
    end_started

    manifest "$MNT" >"$WORK/manifest"
    check "$mode: sync" "$CTL" sync "$MNT"
    check "$mode: quiet copy" cp -a "$SRC" "$COPIES/quiet"
    exact "$mode, quiet" "$COPIES/quiet"
    vol_umount
    check "$mode: copy after unmount" cp -a "$SRC" "$COPIES/clean"
    check "$mode: the unmounted volume holds no journal" \
        test -z "$(find "$SRC" -name 'kmsfs.journal.*' -o -name kmsfs.session)"
    exact "$mode, unmounted" "$COPIES/clean"

    for dir in "$COPIES/$mode".*.[0-9]; do
        check "$mode: $(basename "$dir") is opened" open_copy "$dir"
    done
    CHECK_LINES=25 check "$mode: every copy is what it may be" \
        python3 "$PY" check "$state" "$copies" "$mode"
    [ -z "${VERBOSE:-}" ] || python3 "$PY" check "$state" "$copies" "$mode"
    rm -rf "${COPIES:?}"/*
}
live states writeback=no
live pages writeback=yes

# ---- second passes -----------------------------------------------------------------------------
# pause, resume: the busy program, between two system calls, with files open.
pause() {
    kill -STOP "$BUSY"
    for _ in $(seq 500); do
        [ "$(awk '{ print $3 }' "/proc/$BUSY/stat")" = T ] && return
        sleep 0.01
    done
    not_ok "the busy program does not stop"
}
resume() { kill -CONT "$BUSY"; }
start_busy() {
    python3 "$CATCH" busy "$MNT" "$SEED" 2>"$WORK/log/busy" &
    BUSY=$!
    STARTED+=("$BUSY")
}
# The tools copy what a mount keeps for itself as well; they may find it gone.
# next_second: what is written from now on is not in the same second as what was.
next_second() {
    local now
    now=$(date +%s)
    while [ "$(date +%s)" = "$now" ]; do sleep 0.02; done
    sleep 0.02
}
pass() { rsync -a --delete "$@" "$SRC/" "$TO/" || [ $? = 24 ]; }

# rsync_passes OPTIONS: pairs of passes, the second of which must catch up.
rsync_passes() {
    local n
    vol_new "rsync-$1" --names plain
    vol_mount "allow_other,$1"
    TO=$COPIES/rsync
    mkdir "$TO"
    start_busy
    for n in $(seq "$PASSES"); do
        if [ $((n % 4)) = 0 ]; then
            # What waits for its place was written in another second than what is there, and than
            # the passes: then whole seconds are enough.
            pause
            check "$1, rsync $n: sync before" "$CTL" sync "$MNT"
            next_second
            python3 "$CATCH" around "$MNT" "$n"
            next_second
            check "$1, rsync $n: first pass" pass
            check "$1, rsync $n: sync" "$CTL" sync "$MNT"
            check "$1, rsync $n: second pass" pass
            check "$1, rsync $n: all of it" \
                python3 "$CATCH" same "$SRC" "$TO" exact setback subsecond twice
        else
            check "$1, rsync $n: first pass" pass
            pause
            [ $((n % 2)) = 0 ] || "$CTL" sync "$MNT"
            python3 "$CATCH" around "$MNT" "$n"
            check "$1, rsync $n: sync" "$CTL" sync "$MNT"
            check "$1, rsync $n: second pass" pass
            check "$1, rsync $n: all but what was written in the second of the first" \
                python3 "$CATCH" same "$SRC" "$TO" seconds setback
        fi
        check "$1, rsync $n: pass with fine times" pass --modify-window=-1
        check "$1, rsync $n: all of it, with fine times" \
            python3 "$CATCH" same "$SRC" "$TO" exact setback
        [ $((n % 4)) != 3 ] || next_second
        resume
        sleep "0.$((n % 3))5"
    done
    # The one thing that size and time cannot show, here as anywhere.
    pause
    "$CTL" sync "$MNT"
    pass
    python3 "$CATCH" around "$MNT" 77
    "$CTL" sync "$MNT"
    pass --modify-window=-1
    refuse "$1: a time set back to what it was hides a change" \
        python3 "$CATCH" same "$SRC" "$TO" exact
    pass -c
    check "$1: but not from rsync -c" python3 "$CATCH" same "$SRC" "$TO" exact
    check "$1: the copy verifies" "$CTL" verify "$TO"
    end_started
    vol_umount
    rm -rf "$TO"
}
rsync_passes writeback=no
rsync_passes writeback=yes

# What is written to its place before it is committed, and what waits in the journal.
waiting() {
    vol_new "waiting-$1" --names plain
    vol_mount "allow_other,$1"
    TO=$COPIES/waiting
    mkdir "$TO"
    python3 - "$MNT" "$WORK/waiting" <<'EOF' 2>"$WORK/log/waiting" &
import os, sys, time
top, flag = sys.argv[1:]
def write(name, offset, size, when=None):
    fd = os.open(os.path.join(top, name), os.O_RDWR | os.O_CREAT, 0o644)
    os.pwrite(fd, os.urandom(size), offset)
    return fd
for name in ("grown", "changed"):
    os.close(write(name, 0, 300000))
    os.utime(os.path.join(top, name), (10**9, 10**9))
fds = [write("grown", 300000, 200000), write("changed", 5000, 10), write("new", 0, 300000)]
for fd in fds[:2]:
    os.fsync(fd)
open(flag, "w").close()
while os.path.exists(flag):
    time.sleep(0.02)
EOF
    STARTED+=($!)
    for _ in $(seq 100); do [ -e "$WORK/waiting" ] && break; sleep 0.05; done
    next_second
    check "$1: first pass over what waits" pass
    rm "$WORK/waiting"
    wait "${STARTED[-1]}" || not_ok "$1: $(tail -1 "$WORK/log/waiting")"
    end_started
    check "$1: sync" "$CTL" sync "$MNT"
    check "$1: second pass" pass
    check "$1: what waited is there" python3 "$CATCH" same "$SRC" "$TO" exact
    vol_umount
    rm -rf "$TO"
}
waiting writeback=no
waiting writeback=yes

# tar keeps the time of its run and looks at change times as well.
vol_new tar --names plain
vol_mount
start_busy
for n in $(seq "$TAR_PASSES"); do
    TO=$COPIES/tar
    rm -rf "$TO" "$COPIES"/tar.*
    mkdir "$TO"
    tar_pass() { tar --format=posix -C "$SRC" --listed-incremental="$COPIES/tar.list" -cf "$COPIES/tar.$1" . || [ $? = 1 ]; }
    tar_back() { tar -C "$TO" --listed-incremental=/dev/null -xpf "$COPIES/tar.$1"; }
    check "tar $n: first" tar_pass 0
    pause
    python3 "$CATCH" around "$MNT" "$n"
    check "tar $n: sync" "$CTL" sync "$MNT"
    check "tar $n: second" tar_pass 1
    check "tar $n: restored" tar_back 0
    check "tar $n: restored from the second" tar_back 1
    check "tar $n: all of it" python3 "$CATCH" same "$SRC" "$TO" exact
    resume
    sleep 0.1
done
end_started
vol_umount
rm -rf "${COPIES:?}"/*

if command -v restic >/dev/null || (need restic:restic) 2>/dev/null; then
    export RESTIC_PASSWORD=ring RESTIC_REPOSITORY=$COPIES/repository RESTIC_CACHE_DIR=$COPIES/cache
    vol_new restic --names plain
    vol_mount
    start_busy
    check "restic: repository" restic -q init
    for n in $(seq "$RESTIC_PASSES"); do
        TO=$COPIES/restic
        # 3: some files could not be read whole, they are in the next one.
        back_up() { restic -q backup "$SRC" || [ $? = 3 ]; }
        check "restic $n: first" back_up
        pause
        python3 "$CATCH" around "$MNT" "$n"
        check "restic $n: sync" "$CTL" sync "$MNT"
        check "restic $n: second" restic -q backup "$SRC"
        check "restic $n: restored" restic -q restore latest --target "$TO"
        check "restic $n: all of it" python3 "$CATCH" same "$SRC" "$TO$SRC" exact
        rm -rf "$TO"
        resume
    done
    end_started
    vol_umount
    rm -rf "${COPIES:?}"/*
else
    skip "restic cannot be installed"
fi

# ---- copies put back under a journal -------------------------------------------------------------
# The daemon is killed with journal records for `put` and `left`; `put` is then replaced.
vol_new back --names plain
vol_mount writeback=no
say() { printf '%s' "$2" >"$MNT/$1"; }
change() { printf '%s' "$2" | dd of="$MNT/$1" conv=notrunc,fsync status=none; }
say put "first......"
say left "first......"
"$CTL" sync "$MNT"
cp -a "$SRC" "$COPIES/first"
change put "second"
change left "second"
"$CTL" sync "$MNT"
change put "third"
change left "third"
kill -KILL "$(vol_pid)"
for _ in $(seq 100); do umount "$MNT" 2>/dev/null && break; sleep 0.1; done
cp -a "$SRC" "$COPIES/third"
# What comes after, on a mount that recovers.
vol_mount
check "recovered by the mount" grep -q '^thirdd\.\.\.\.\.$' <(cat "$MNT/put"; echo)
change put "fourth"
change left "fourth"
vol_umount
cp -a "$SRC" "$COPIES/fourth"
content_is() { [ "$("$CTL" cat "$1" "$2")" = "$3" ]; }
recovers() { "$CTL" recover "$1" --json >"$1.json" 2>"$1.log"; }
fact() { python3 -c 'import json, sys; print(" ".join(json.load(open(sys.argv[1]))[sys.argv[2]]))' "$1.json" "$2"; }

# put_back NAME: $COPIES/back is the crashed volume with something replaced in it.
for how in over anew; do
    rm -rf "$COPIES/back"; cp -a "$COPIES/third" "$COPIES/back"
    [ $how = over ] || rm "$COPIES/back/put"
    cp -p "$COPIES/first/put" "$COPIES/back/put"
    check "older file ($how): verify tells" bash -c "'$CTL' verify '$COPIES/back' | grep -q 'older than its records.*put'"
    check "older file ($how): recovers" recovers "$COPIES/back"
    check "older file ($how): told" test "$(fact "$COPIES/back" older)" = put
    check "older file ($how): left alone" content_is "$COPIES/back" put "first......"
    check "older file ($how): the other is recovered" test "$(fact "$COPIES/back" recovered)" = left
    check "older file ($how): its content" content_is "$COPIES/back" left "thirdd....."
    check "older file ($how): nothing is damaged" "$CTL" verify "$COPIES/back"
done
rm -rf "$COPIES/back"; cp -a "$COPIES/third" "$COPIES/back"
cp -p "$COPIES/fourth/put" "$COPIES/back/put"
check "newer file: recovers" recovers "$COPIES/back"
check "newer file: nothing to tell" test -z "$(fact "$COPIES/back" older)"
check "newer file: left alone" content_is "$COPIES/back" put "fourth....."
check "newer file: the other is recovered" content_is "$COPIES/back" left "thirdd....."
check "newer file: nothing is damaged" "$CTL" verify "$COPIES/back"
for which in first fourth; do
    rm -rf "$COPIES/back"; cp -a "$COPIES/$which" "$COPIES/back"
    rm -f "$COPIES/back"/kmsfs.journal.*
    cp -p "$COPIES/third"/kmsfs.journal.* "$COPIES/back/"
    check "$which tree, journal of the third: recovers" recovers "$COPIES/back"
    check "$which tree, journal of the third: nothing is applied" test -z "$(fact "$COPIES/back" recovered)"
    [ $which = fourth ] || check "first tree, journal of the third: told" \
        test "$(fact "$COPIES/back" older | tr ' ' '\n' | sort | tr '\n' ' ')" = "left put "
    for name in put left; do
        expected="fourth....."; [ $which = fourth ] || expected="first......"
        check "$which tree, journal of the third: $name" content_is "$COPIES/back" $name "$expected"
    done
    check "$which tree, journal of the third: nothing is damaged" "$CTL" verify "$COPIES/back"
done
ring_end
