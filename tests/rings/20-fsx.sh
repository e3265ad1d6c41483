#!/bin/bash
# File content: random reads, writes, mappings, truncations, holes and copies on one file, every
# read compared with what was written; the last state compared again after a remount.
#
# CI: 100,000 operations; LONG=1: 1,000,000. SEED=n chooses another first seed; BACKINGS chooses
# the file systems below, PROFILES the profiles. INJECT=n makes fsx forget its n-th step, which
# must end in a failure. KEEP=1 keeps the configuration a failure is repeated with.
. "$(dirname "$0")/lib.sh"
ring_start 20-fsx
need_crate fsx ^0.3
BACKINGS=${BACKINGS:-ext4 tmpfs}
SEED=${SEED:-1}
TOTAL=100000
[ -z "${LONG:-}" ] || TOTAL=1000000
# How many seeds share the operations of one profile on one backing.
SEEDS=${SEEDS:-1}

# profile NAME FLEN MAX MIN EXTRA: one configuration. Sizes: 262144 is the part of a file described
# by its header alone; a group behind it holds 524288; the hash tree grows a level at 64 MiB.
# No operation is empty: fsx would take the EINVAL of an empty posix_fallocate for a failure.
profile() {
    cat >"$WORK/$1.toml" <<TOML
flen = $2
nomsyncafterwrite = $5
[opsize]
max = $3
min = $4
[weights]
close_open = 2
invalidate = 1
read = 10
write = 10
mapread = 8
mapwrite = 8
truncate = 4
fsync = 1
fdatasync = 1
posix_fallocate = 3
punch_hole = 5
sendfile = 3
posix_fadvise = 2
copy_file_range = 4
TOML
}
profile header 262144 65536 1 false
profile border 300000 9000 1 false
profile group 1600000 131072 1 true
profile bytes 20000 300 1 false
profile nomsync 900000 65536 1 true
profile tree 70000000 262144 1 false

PROFILES=${PROFILES:-header border group bytes nomsync tree}
RUNS=$(($(wc -w <<<"$BACKINGS") * $(wc -w <<<"$PROFILES") * SEEDS))
OPS=$(((TOTAL + RUNS - 1) / RUNS))
mkdir "$WORK/artifacts"
total=0
for back in $BACKINGS; do
    backing "$back" 512
    vol_new "$back"
    vol_mount
    seed=$SEED
    for profile in $PROFILES; do
        for _ in $(seq "$SEEDS"); do
            file=$MNT/$profile.$seed
            check "fsx -f $profile.toml -N $OPS -S $seed on $back" \
                "$TOOLS/bin/fsx" -f "$WORK/$profile.toml" -N "$OPS" -S "$seed" \
                ${INJECT:+--inject "$INJECT"} -P "$WORK/artifacts" "$file"
            total=$((total + OPS))
            seed=$((seed + 1))
        done
    done
    manifest "$MNT" >"$WORK/before.$back"
    vol_remount
    manifest "$MNT" >"$WORK/after.$back"
    same_manifest "files survive a remount on $back" "$WORK/before.$back" "$WORK/after.$back"
    vol_umount
done
echo "  $total operations"
ring_end
