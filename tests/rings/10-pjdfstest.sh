#!/bin/bash
# POSIX semantics: every test of pjdfstest passes, or stands in pjdfstest.exclude with the reason.
#
# usage: 10-pjdfstest.sh [TEST PATTERN...]
. "$(dirname "$0")/lib.sh"
ring_start 10-pjdfstest
# The crate links to libacl.
[ -e /usr/include/sys/acl.h ] || need acl-headers:libacl1-dev
need_crate pjdfstest ^0.2
need_user tests
EXCLUDE=$RING_DIR/pjdfstest.exclude

backing
mkdir "$WORK/second"
mount -t tmpfs -o size=16m tmpfs "$WORK/second" || die "no second file system"
vol_new
vol_mount
# The tests run as several users below this directory.
chmod 755 "$MNT"

# Root's search path may lie where the test users cannot go, and they must be able to run it.
cp "$TOOLS/bin/pjdfstest" "$WORK/bin/"

# The suite remounts with mount(8), which for FUSE would hand the request to a helper; what is to
# be tested is the kernel's own read-only remount.
printf '#!/bin/sh\nexec %s -i "$@"\n' "$(command -v mount)" >"$WORK/bin/mount"
chmod +x "$WORK/bin/mount"

# run_suite REMOUNT PATTERN...: naptime only has to exceed the granularity of time stamps.
run_suite() {
    local remount=$1 log=$WORK/log/suite rc
    shift
    cat >"$WORK/pjdfstest.toml" <<TOML
[features]
secondary_fs = "$WORK/second"
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = $remount
[dummy_auth]
entries = [["nobody", "nogroup"], ["tests", "tests"]]
TOML
    (cd "$MNT" && PATH=$WORK/bin:$PATH timeout -k 10 1800 "$WORK/bin/pjdfstest" -c "$WORK/pjdfstest.toml" \
        -p "$MNT" "$@") >"$log" 2>&1
    rc=$?
    sed -i 's/\x1b\[[0-9;]*m//g' "$log"
    cat "$log" >>"$WORK/log/pjdfstest"
    grep -q '^Summary:' "$log" || { tail -20 "$log" >&2
        not_ok "pjdfstest did not finish (exit $rc)"; ring_end; }
}

# Some tests leave files open, which forbids a read-only remount afterwards: the tests that need
# one run in a process of their own.
run_suite false "$@"
run_suite true erofs

# A result line is "<test> ok|FAILED|skipped".
results() { awk -v want="$1" 'NF == 2 && $2 == want { print $1 }' "$WORK/log/pjdfstest"; }
PASSED=$(results ok | wc -l)
# Those of the first run that wait for the second are not counted.
SKIPPED=$(results skipped | grep -vc erofs)
for t in $(results FAILED); do
    if excluded "$EXCLUDE" "$t"; then
        echo "  excluded: $t"
    else
        not_ok "$t"
        awk -v t="$t" '$1 == t { on = 1; next } NF == 2 && on && $2 ~ /^(ok|FAILED|skipped)$/ { exit }
            on && n++ < 6' "$WORK/log/pjdfstest" | sed 's/^/    | /' >&2
    fi
done
# An exclusion that has become needless must go.
for t in $(results ok); do
    ! excluded "$EXCLUDE" "$t" || not_ok "$t passes but is on the exclusion list"
done
# Few may be skipped, and only for what this system has not: file flags, NFSv4 ACLs, and a
# LINK_MAX that the C library knows (90-limits looks for that limit itself).
awk '$2 == "skipped" { t = $1; next } t != "" { print t ": " $0; t = "" }' "$WORK/log/pjdfstest" \
    >"$WORK/log/skipped"
grep -Ev 'chflags|nfsv4_acls|st_birthtime|file_flags|allow_remount|LINK_MAX' "$WORK/log/skipped" >"$WORK/log/odd" &&
    { head -20 "$WORK/log/odd" >&2; not_ok "$(wc -l <"$WORK/log/odd") tests skipped without need"; }
[ -z "${PJD_LOG:-}" ] || cp "$WORK/log/pjdfstest" "$PJD_LOG"
ring_end
