#!/bin/bash
# A mount made by an ordinary user through fusermount3: his programs work, root's requests on his
# behalf are served, everybody else stays out.
. "$(dirname "$0")/lib.sh"
ring_start 70-unprivileged
need git:git rsync:rsync tar:tar sqlite3:sqlite3 cmp:diffutils
need_user "$TEST_USER"
need_user tests
cp "$RING_DIR"/*.py "$WORK/bin/"
# What the user may read and write outside the mount.
install -d -o "$TEST_USER" "$WORK/home"
HERE=$WORK/home
export HOME=$HERE

backing
AS=$TEST_USER
vol_new
vol_mount
check "mounted, and he may write" as test -w "$MNT"
if [ "$FS" = kmsfs ]; then
    check "owned by him" test "$(as stat -c %U "$MNT")" = "$TEST_USER"
    check "nosuid and nodev" bash -c "grep ' $MNT ' /proc/mounts | grep nosuid | grep -q nodev"
    check "the daemon runs as him" test "$(ps -o user:32= "$(vol_pid)" | tr -d ' ')" = "$TEST_USER"
fi

# ---- his programs ------------------------------------------------------------------------------
in_mount() { as bash -c "cd '$MNT' && $1"; }
check "write and read" in_mount 'echo hello >a && [ "$(cat a)" = hello ] && rm a'
check "modes as asked" in_mount 'umask 0; for m in 600 640 444 755 1777; do mkdir d$m -m $m &&
    [ "$(stat -c %a d$m)" = $m ] && install -m $m /dev/null f$m && [ "$(stat -c %a f$m)" = $m ] || exit 1; done'
check "a file without any permission" in_mount 'umask 0; : >none && echo kept >none && chmod 0 none &&
    [ "$(stat -c %a,%s none)" = 0,5 ] && ! cat none && chmod 600 none && [ "$(cat none)" = kept ]'
check "create read-only and write through the handle" in_mount \
    'python3 -c "
import os
fd = os.open(\"ro\", os.O_CREAT | os.O_RDWR, 0o400)
os.write(fd, b\"x\" * 300000)
os.fsync(fd)
os.ftruncate(fd, 100000)
assert os.fstat(fd).st_size == 100000
os.close(fd)
assert len(open(\"ro\", \"rb\").read()) == 100000
" && ! touch -c ro/x && rm -f ro'
check "write-only and search-only" in_mount 'umask 0; : >wo; chmod 200 wo; echo blind >>wo; ! cat wo;
    chmod 600 wo; [ "$(cat wo)" = blind ] && mkdir x && echo 1 >x/f && chmod 100 x && [ "$(cat x/f)" = 1 ] &&
    ! ls x && chmod 700 x && rm -r x'
check "cannot give files away" in_mount ': >own && ! chown root own && ! chown :0 own'
check "a directory one may list but not enter" in_mount 'mkdir rr && : >rr/f && chmod 444 rr &&
    [ "$(ls rr 2>/dev/null)" = f ] && ! cat rr/f && chmod 700 rr && [ "$(ls rr)" = f ]'
check "set-user-ID stays with an attribute" in_mount ': >sx && chmod 4755 sx &&
    setfattr -n user.a -v b sx && [ "$(stat -c %a sx)" = 4755 ]'
check "set-user-ID goes with a write" in_mount ': >s && chmod 4755 s && echo x >>s && [ "$(stat -c %a s)" = 755 ]'
check "attributes" in_mount 'setfattr -n user.k -v v own && [ "$(getfattr --only-values -n user.k own)" = v ] &&
    ! setfattr -n trusted.k -v v own'
check "hard and symbolic links" in_mount 'ln own own2 && ln -s own sym && [ "$(stat -c %h own)" = 2 ] &&
    [ -e sym ] && mv own2 own3 && [ "$(stat -c %h own)" = 2 ]'
check "git" in_mount 'git init -q g && cd g && seq 1000 >f && git add f && git -c user.name=t \
    -c user.email=t@e commit -qm m && git gc -q && git fsck --full && [ -z "$(git status --porcelain)" ] &&
    git clone -q . ../g2'
for mode in delete wal; do
    check "sqlite, two processes, $mode" as python3 "$WORK/bin/programs.py" sqlite "$MNT/$mode.db" $mode
done
for kind in flock posix ofd; do
    check "$kind locks" as python3 "$WORK/bin/programs.py" lock "$MNT/locked" $kind
done
check "mappings" as python3 "$WORK/bin/programs.py" mmap "$MNT/mapped"
check "unlinked open file" as python3 "$WORK/bin/programs.py" unlinked "$MNT/gone"
check "copies" as python3 "$WORK/bin/programs.py" copies "$MNT"
check "fifo and socket" as python3 "$WORK/bin/programs.py" ipc "$MNT"
check "O_DIRECT and cached" as python3 "$WORK/bin/programs.py" direct-mixed "$MNT/mixed"
as bash -c "mkdir -p '$HERE/t/sub' && cd '$HERE/t' && seq 100000 >big && ln big sub/hard && ln -s big sub/sym &&
    printf x >'sub/odd
name' && truncate -s 3M sparse && setfattr -n user.k -v v big && chmod 400 sub/hard &&
    find . -depth -exec touch -h -d @1500000000.123456789 {} +"
check "rsync in and out" as bash -c "rsync -aHXS '$HERE/t/' '$MNT/t/' && rsync -aHXS '$MNT/t/' '$HERE/t2/'"
as python3 "$WORK/bin/manifest.py" "$HERE/t" >"$WORK/m.1"
as python3 "$WORK/bin/manifest.py" "$MNT/t" >"$WORK/m.2"
as python3 "$WORK/bin/manifest.py" "$HERE/t2" >"$WORK/m.3"
same_manifest "rsync in" "$WORK/m.1" "$WORK/m.2"
same_manifest "rsync out" "$WORK/m.1" "$WORK/m.3"

# ---- root on his behalf --------------------------------------------------------------------------
# The descriptor is opened by the user and inherited by a process of root.
in_mount ': >inherited && echo start >inherited'
inherit() {
    # runuser opens nothing: the user's shell does, and hands the descriptor on through a socket.
    python3 "$WORK/bin/inherit.py" "$TEST_USER" "$MNT/inherited" "$1"
}
check "root writes through an inherited descriptor" inherit append
check "its content" test "$(as cat "$MNT/inherited")" = "$(printf 'start\nfrom root')"
check "root overwrites and syncs through it" inherit overwrite
check "and maps it" inherit map
check "and punches, allocates, copies" inherit punch

# ---- the others ------------------------------------------------------------------------------------
if [ "$FS" = kmsfs ]; then
    refuse "another user cannot look in" runuser -u tests -- ls "$MNT"
    refuse "nor read a file" runuser -u tests -- cat "$MNT/locked"
    refuse "root neither" ls "$MNT"
    as chmod 777 "$MNT"
    refuse "whatever the modes say" runuser -u tests -- ls "$MNT"
    refuse "another user cannot unmount" runuser -u tests -- "$WORK/bin/kmsfsctl" umount "$MNT"
    check "it is still mounted" mounted "$MNT"
    if ! grep -q '^ *user_allow_other' /etc/fuse.conf 2>/dev/null; then
        install -d -o "$TEST_USER" "$WORK/other.mnt" "$BACK/other.src"
        as "$WORK/bin/kmsfsctl" init "$BACK/other.src" --key "keyfile:$WORK/keys/other.key" >/dev/null
        refuse "allow_other needs root's consent" \
            as timeout 60 "$WORK/bin/kmsfs" "$BACK/other.src" "$WORK/other.mnt" -o allow_other
    fi
    refuse "the key file is his alone" runuser -u tests -- cat "$KEY"
fi
as python3 "$WORK/bin/manifest.py" "$MNT" >"$WORK/m.before" 2>/dev/null
vol_remount
as python3 "$WORK/bin/manifest.py" "$MNT" >"$WORK/m.after" 2>/dev/null
same_manifest "everything survives a remount" "$WORK/m.before" "$WORK/m.after"
# `verify` looks into the backing directories as their owner, whose modes must let him.
as chmod -R u+rwX "$MNT"
vol_umount
[ "$FS" != kmsfs ] || check "the volume verifies" as "$WORK/bin/kmsfsctl" verify "$SRC"
ring_end
