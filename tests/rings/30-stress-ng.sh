#!/bin/bash
# stress-ng: every stressor of its file system class that verifies cleanly on the backing file
# system verifies cleanly on kmsfs. Each runs alone, for a number of operations; the time limits
# only end what would never end (stress-ng ends at its own limit without an error).
#
# STRESSORS="a b" runs only these. Exceptions with reasons: stress-ng.exclude.
. "$(dirname "$0")/lib.sh"
ring_start 30-stress-ng
need stress-ng:stress-ng
EXCLUDE=$RING_DIR/stress-ng.exclude
LIMIT=4
[ -z "${LONG:-}" ] || LIMIT=60

# Operations in the short form; whatever is not listed gets the default. They are cheap, so the
# rest are those of which one operation is a lot of work.
ops_of() {
    local n
    case $1 in
    hdd | iomix | copy-file | verity | sync-file) n=40 ;;
    dirmany | filename | dirdeep | bind-mount | xattr | fiemap) n=60 ;;
    *) n=400 ;;
    esac
    [ -z "${LONG:-}" ] || n=$((n * 50))
    echo "$n"
}

# run_on DIRECTORY STRESSOR LOG: the exit status of stress-ng (0 verified, 2 failed, 3 no
# resources, 4 not implemented).
run_on() {
    mkdir -p "$1/tmp"
    timeout -k 10 $((LIMIT * 5 + 60)) stress-ng "--$2" 1 "--$2-ops" "$(ops_of "$2")" --verify \
        --timeout "${LIMIT}s" --temp-path "$1/tmp" --seed 7 $(extra_of "$2") >"$3" 2>&1
}
extra_of() {
    case $1 in
    hdd) echo --hdd-bytes 8m ;;
    copy-file) echo --copy-file-bytes 128m ;;
    fallocate) echo --fallocate-bytes 16m ;;
    iomix) echo --iomix-bytes 16m ;;
    sync-file) echo --sync-file-bytes 16m ;;
    dirmany) echo --dirmany-bytes 0 ;;
    esac
}

stressors() {
    # 'stress-ng --class filesystem?' answers with one line that ends in the names.
    stress-ng --class 'filesystem?' 2>&1 | sed -n "s/.*stressors: //p"
}

backing
vol_new
mkdir "$BACK/plain"
vol_mount
for s in ${STRESSORS:-$(stressors)}; do
    run_on "$BACK/plain" "$s" "$WORK/log/plain"
    below=$?
    if [ "$below" != 0 ]; then skip "$s: exit $below on the backing file system"; continue; fi
    run_on "$MNT" "$s" "$WORK/log/$s"
    rc=$?
    if [ "$rc" = 0 ]; then
        ok "$s"
        ! excluded "$EXCLUDE" "$s" || not_ok "$s passes but is on the exclusion list"
    elif excluded "$EXCLUDE" "$s"; then
        echo "  excluded: $s (exit $rc)"
    else
        not_ok "$s (exit $rc; 0 on the backing file system)"
        grep -E 'fail|error|unexpected' "$WORK/log/$s" | head -5 | cut -c1-300 | sed 's/^/    | /' >&2
    fi
done
check "the mount still answers" ls "$MNT"
rm -rf "$MNT/tmp"
check "nothing is left behind" test -z "$(ls -A "$MNT")"
vol_remount
check "still empty after a remount" test -z "$(ls -A "$MNT")"
ring_end
