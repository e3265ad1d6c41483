# Common part of the test rings. Source it; do not run it.
#
# A ring is a script that works on one mounted file system and says at its end in one line whether
# everything held. What it runs on is chosen by the environment, so that a ring can first be shown
# to pass on the plain file system below:
#
#   FS         kmsfs (default) | raw (the backing directory itself, bind-mounted) | other
#   BACKING    ext4 (default, a loop-mounted image) | tmpfs | dir (a directory under $TMPDIR)
#   KMSFS_BIN  directory of kmsfs and kmsfsctl (default target/release)
#   LONG=1     the long form of the rings that have one
#   KEEP=1     leave the scratch directory in place (everything is unmounted all the same)
#   RING_MOUNT, RING_UMOUNT   for FS=other: shell commands that see $SRC, $MNT and $OPTS
#
# All of it needs root. Every mount made here is gone when the script ends, however it ends.

set -u -o pipefail
export LC_ALL=C.UTF-8 PATH="$PATH:/usr/sbin:/sbin"
umask 022

export FS=${FS:-kmsfs}
BACKING=${BACKING:-ext4}
RING_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(cd "$RING_DIR/../.." && pwd)
KMSFS_BIN=${KMSFS_BIN:-$REPO/target/release}
TOOLS=$REPO/target/tools
TEST_USER=kmsfs-test
AS=                 # the user who mounts and works; empty = root
PASSED=0
FAILED=0
SKIPPED=0
FAILURES=()

die() { echo "ring: $*" >&2; exit 2; }

# ---- start and end ---------------------------------------------------------------------------

# ring_start NAME: scratch directory, clean-up on every exit, the binaries under test copied so that
# a rebuild cannot change them half-way.
ring_start() {
    RING=$1
    [ "$(id -u)" = 0 ] || die "$RING must run as root"
    WORK=$(mktemp -d "${TMPDIR:-/tmp}/kmsfs-ring.XXXXXX") || die "no scratch directory"
    chmod 755 "$WORK"
    trap ring_cleanup EXIT
    trap 'exit 130' INT TERM HUP
    mkdir "$WORK/bin" "$WORK/log"
    if [ "$FS" = kmsfs ]; then
        for b in kmsfs kmsfsctl; do
            [ -x "$KMSFS_BIN/$b" ] || die "$KMSFS_BIN/$b is missing: build it, or set KMSFS_BIN"
            cp "$KMSFS_BIN/$b" "$WORK/bin/"
        done
        need fusermount3:fuse3
    fi
    chmod -R a+rX "$WORK/bin"
    need getfattr:attr getfacl:acl python3:python3 losetup:mount mkfs.ext4:e2fsprogs \
        runuser:util-linux
    echo "== $RING on $FS over $BACKING"
}

ring_cleanup() {
    local status=$? points m
    # Nothing may keep it from its work, not even a reader of its output who has gone.
    trap - EXIT
    trap '' INT TERM HUP PIPE
    cd /
    # Newest first: a mount point may lie on another mount of ours.
    points=$(awk -v w="$WORK/" 'index($5, w) == 1 { print $5 }' /proc/self/mountinfo | tac)
    for m in $points; do
        umount "$m" 2>/dev/null || { sleep 1; umount "$m" 2>/dev/null; } || force_umount "$m"
    done
    if [ -z "${KEEP:-}" ]; then rm -rf --one-file-system "$WORK"; else echo "kept: $WORK"; fi
    exit "$status"
}

# A mount that does not let go: break its FUSE connection, then detach it.
force_umount() {
    local minor
    minor=$(awk -v m="$1" '$5 == m { split($3, d, ":"); print d[2] }' /proc/self/mountinfo | tail -1)
    if [ -n "$minor" ] && [ -w "/sys/fs/fuse/connections/$minor/abort" ]; then
        echo 1 > "/sys/fs/fuse/connections/$minor/abort"
    fi
    echo "ring: had to detach $1" >&2
    umount -l "$1"
}

# ring_end: the summary line and the exit status.
ring_end() {
    local f verdict=PASS
    [ "$FAILED" = 0 ] || verdict=FAIL
    [ "$((PASSED + FAILED))" != 0 ] || { verdict=FAIL; echo "ring: nothing was checked"; }
    for f in "${FAILURES[@]:-}"; do [ -z "$f" ] || echo "  failed: $f"; done
    echo "RING $RING: $verdict ($PASSED passed, $FAILED failed, $SKIPPED skipped; $FS over $BACKING)"
    [ "$verdict" = PASS ]
    exit
}

ok() { PASSED=$((PASSED + 1)); [ -z "${VERBOSE:-}" ] || echo "  ok: $*"; }
not_ok() { FAILED=$((FAILED + 1)); FAILURES+=("$*"); echo "  FAILED: $*" >&2; }
skip() { SKIPPED=$((SKIPPED + 1)); echo "  skipped: $*"; }

# check NAME COMMAND...: the command succeeds; its output is shown only when it does not. Anything
# still running after ten minutes hangs, which is a failure, not a measurement.
check() {
    local name=$1 log=$WORK/log/check.$((PASSED + FAILED)) rc
    shift
    if [ "$(type -t "$1")" = function ]; then ("$@") >"$log" 2>&1; rc=$?
    else timeout -k 10 600 "$@" >"$log" 2>&1; rc=$?; fi
    if [ "$rc" = 0 ]; then ok "$name"; return 0; fi
    not_ok "$name (exit $rc: $*)"
    tail -n "${CHECK_LINES:-15}" "$log" | sed 's/^/    | /' >&2
    return 1
}

# refuse NAME COMMAND...: the command fails.
refuse() {
    local name=$1 log=$WORK/log/refuse.$((PASSED + FAILED))
    shift
    if timeout -k 10 600 "$@" >"$log" 2>&1; then not_ok "$name: was allowed ($*)"; return 1; fi
    ok "$name"
}

# ---- tools -----------------------------------------------------------------------------------

# need COMMAND:PACKAGE...: installs the Debian packages whose commands are missing.
need() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    [ "${#missing[@]}" = 0 ] && return
    echo "installing: ${missing[*]}"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends "${missing[@]}"; } >"$WORK/log/apt" 2>&1 ||
        { tail -5 "$WORK/log/apt" >&2; die "cannot install ${missing[*]}"; }
}

# need_crate NAME VERSION: a program from crates.io, built once into target/tools.
need_crate() {
    [ -x "$TOOLS/bin/$1" ] && return
    echo "building $1 $2"
    cargo install "$1@$2" --locked --root "$TOOLS" >"$WORK/log/cargo" 2>&1 ||
        { tail -5 "$WORK/log/cargo" >&2; die "cannot build $1"; }
}

need_user() {
    id "$1" >/dev/null 2>&1 || useradd --system --user-group --no-create-home \
        --home-dir /nonexistent --shell /usr/sbin/nologin "$1" || die "cannot create user $1"
}

# as COMMAND...: as the user of the ring.
as() {
    if [ -n "$AS" ]; then runuser -u "$AS" -- "$@"; else "$@"; fi
}

# ---- backing, volume, mount ------------------------------------------------------------------

# backing [KIND [MIB]]: an empty file system; its directory is then in $BACK.
backing() {
    local kind=${1:-$BACKING} mib=${2:-2048} n
    n=$(find "$WORK" -maxdepth 1 -name 'back*' -type d | wc -l)
    BACK=$WORK/back$n
    BACKING=$kind
    mkdir "$BACK"
    case $kind in
    ext4)
        truncate -s "${mib}M" "$BACK.img"
        # One inode per 4 KiB: the rings make many small files.
        mkfs.ext4 -q -F -i 4096 -E lazy_itable_init=1,nodiscard "$BACK.img" &&
            mount -o loop,acl,user_xattr "$BACK.img" "$BACK" || die "cannot loop-mount ext4" ;;
    tmpfs) mount -t tmpfs -o "size=${mib}m,nr_inodes=10m" tmpfs "$BACK" || die "no tmpfs" ;;
    dir) ;;
    *) die "unknown backing: $kind" ;;
    esac
}

# vol_new [NAME [INIT OPTIONS...]]: a new volume on $BACK, not mounted. Sets SRC, MNT, KEY.
vol_new() {
    local name=${1:-vol}
    shift
    SRC=$BACK/$name.src MNT=$WORK/$name.mnt KEY=$WORK/$name.key
    OPTS=
    mkdir "$SRC" "$MNT"
    [ -z "$AS" ] || { mkdir -p "$WORK/keys"; KEY=$WORK/keys/$name.key;
        chown "$AS:" "$SRC" "$MNT" "$WORK/keys"; }
    if [ "$FS" = kmsfs ]; then
        as "$WORK/bin/kmsfsctl" init "$SRC" --key "keyfile:$KEY" "$@" >"$WORK/log/init" 2>&1 ||
            { cat "$WORK/log/init" >&2; die "kmsfsctl init failed"; }
    fi
}

# mounted DIR: looks at the table of mounts, for root may not look into a user's.
mounted() { awk -v m="$1" '$5 == m { found = 1 } END { exit !found }' /proc/self/mountinfo; }

# vol_mount [OPTIONS]: mounts $SRC at $MNT. Root mounts with allow_other,dev,suid unless told.
vol_mount() {
    [ $# = 0 ] || OPTS=$1
    [ -n "$OPTS" ] || { [ -n "$AS" ] || OPTS=allow_other,dev,suid; }
    case $FS in
    raw) mount --bind "$SRC" "$MNT" || die "bind mount failed" ;;
    kmsfs)
        as timeout -k 10 120 "$WORK/bin/kmsfs" "$SRC" "$MNT" ${OPTS:+-o "$OPTS"} \
            >"$WORK/log/mount" 2>&1 || { cat "$WORK/log/mount" >&2; die "mount failed"; } ;;
    other)
        export SRC MNT OPTS
        bash -c "$RING_MOUNT" || die "mount command failed"
        for _ in $(seq 100); do mounted "$MNT" && break; sleep 0.1; done ;;
    *) die "unknown FS: $FS" ;;
    esac
    mounted "$MNT" || die "$MNT is not mounted"
}

# vol_umount: a clean unmount; failing to is a failed check and ends the ring.
vol_umount() {
    local n
    case $FS in
    kmsfs) as timeout -k 10 120 "$WORK/bin/kmsfsctl" umount "$MNT" >"$WORK/log/umount" 2>&1 ||
        { cat "$WORK/log/umount" >&2; fuser -vm "$MNT" >&2 2>/dev/null; not_ok "unmount"; ring_end; } ;;
    other) export MNT; bash -c "${RING_UMOUNT:-umount \$MNT}" || die "unmount failed" ;;
    raw) for n in 1 2 3; do umount "$MNT" && break; sleep 1; done ;;
    esac
    ! mounted "$MNT" || { not_ok "unmount left the mount"; ring_end; }
}

# vol_remount [OPTIONS]: through a clean unmount and with cold caches.
vol_remount() {
    vol_umount
    echo 3 > /proc/sys/vm/drop_caches
    vol_mount "$@"
}

# The daemon behind $MNT: prints its process id.
vol_pid() { pgrep -f -x "$WORK/bin/kmsfs $SRC $MNT.*" | head -1; }

# manifest DIR [OPTIONS]: everything user-visible in a tree, one line per object.
manifest() { python3 "$RING_DIR/manifest.py" "$@"; }

# same_manifest NAME A B: two manifests are equal.
same_manifest() {
    # A listing that broke off proves nothing.
    if [ "$(tail -1 "$2")" != "# end" ]; then not_ok "$1: no listing of the first tree"; return; fi
    if cmp -s "$2" "$3"; then ok "$1 ($(($(wc -l <"$2") - 1)) objects)"; return; fi
    not_ok "$1: the trees differ"
    diff -a "$2" "$3" | head -12 | cut -c1-400 | sed 's/^/    | /' >&2
}

# excluded FILE NAME: NAME stands in a list of exceptions, one per line with its reason.
excluded() { grep -v '^ *#' "$1" | awk -v t="$2" '$1 == t { f = 1 } END { exit !f }'; }

# compare NAME SCRIPT [ARGUMENTS...]: a script prints the same lines when it runs below $MNT and when
# it runs on the file system that holds the volume.
compare() {
    local name=$1 script=$2 lines
    shift 2
    mkdir -p "$BACK/plain/$name" "$MNT/$name"
    chmod 755 "$BACK/plain/$name" "$MNT/$name"
    timeout -k 10 600 python3 "$RING_DIR/$script" "$BACK/plain/$name" "$@" \
        >"$WORK/$name.plain" 2>"$WORK/$name.plain.err" ||
        { not_ok "$name on the plain file system"; tail -5 "$WORK/$name.plain.err" >&2; }
    timeout -k 10 600 python3 "$RING_DIR/$script" "$MNT/$name" "$@" \
        >"$WORK/$name.here" 2>"$WORK/$name.here.err" ||
        { not_ok "$name ran to its end"; tail -5 "$WORK/$name.here.err" >&2; }
    lines=$(diff -a "$WORK/$name.plain" "$WORK/$name.here" | grep -ac '^<')
    PASSED=$((PASSED + $(wc -l <"$WORK/$name.plain") - lines))
    # "<" is the plain file system, ">" this one.
    diff -a "$WORK/$name.plain" "$WORK/$name.here" | grep -a '^[<>]' >"$WORK/$name.diff"
    while IFS= read -r line; do not_ok "${line:0:200}"; done <"$WORK/$name.diff"
}
