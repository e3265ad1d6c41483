#!/bin/bash
# Random trees compared with a picture in memory, with remounts in between: as root, and as an
# ordinary user through fusermount3.
#
# SEED=n another first seed. LONG=1: some six times as much.
. "$(dirname "$0")/lib.sh"
ring_start 50-tree
need_user "$TEST_USER"
SEED=${SEED:-1}
STEPS=700
ROUNDS=4
[ -z "${LONG:-}" ] || { STEPS=2000; ROUNDS=8; }
# Where an ordinary user can read it.
cp "$RING_DIR/tree.py" "$WORK/bin/tree.py"

# tree SEED: rounds of random steps, each compared before and after a remount.
tree() {
    local seed=$1 who=${AS:-root} state=$WORK/state.$1 round
    [ -z "$AS" ] || { install -d -o "$AS" "$WORK/states"; state=$WORK/states/$1; }
    for round in $(seq "$ROUNDS"); do
        check "$who, seed $seed, round $round: $STEPS steps" \
            as python3 "$WORK/bin/tree.py" run "$MNT" "$state" "$seed" "$STEPS" || return
        check "$who, seed $seed, round $round: as expected" \
            as python3 "$WORK/bin/tree.py" check "$MNT" "$state" || return
        as python3 "$RING_DIR/manifest.py" "$MNT" --no-dir-nlink >"$WORK/before" 2>"$WORK/log/before"
        vol_remount
        check "$who, seed $seed, round $round: as expected after a remount" \
            as python3 "$WORK/bin/tree.py" check "$MNT" "$state" || return
        [ -n "$AS" ] && continue        # cannot read what its modes forbid
        manifest "$MNT" --no-dir-nlink >"$WORK/after"
        same_manifest "$who, seed $seed, round $round: bit for bit" "$WORK/before" "$WORK/after"
    done
}

for kind in ext4 tmpfs; do
    backing "$kind"
    vol_new "root-$kind"
    vol_mount
    # tmpfs itself cannot zero a range; kmsfs must, whatever is below.
    [ "$FS" != raw ] || [ "$kind" != tmpfs ] || export NO_ZERO_RANGE=1
    tree "$SEED"
    unset NO_ZERO_RANGE
    vol_umount
    [ "$FS" != kmsfs ] || check "the volume verifies ($kind)" "$WORK/bin/kmsfsctl" verify "$SRC"
    SEED=$((SEED + 1))
done
backing ext4
vol_new plain $([ "$FS" != kmsfs ] || echo --names plain)
vol_mount
tree "$SEED"
vol_umount
AS=$TEST_USER
SEED=$((SEED + 1))
vol_new user
vol_mount
tree "$SEED"
vol_umount
ring_end
