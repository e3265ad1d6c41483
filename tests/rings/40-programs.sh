#!/bin/bash
# Real programs on a root mount, and everything they left still there after a remount.
. "$(dirname "$0")/lib.sh"
ring_start 40-programs
need git:git sqlite3:sqlite3 rsync:rsync tar:tar make:make gcc:gcc vi:vim-tiny setfacl:acl cmp:diffutils
backing
vol_new
vol_mount allow_other,dev,suid,acl
SEED_TREE=$WORK/tree
PY=$RING_DIR/programs.py

# ---- git ---------------------------------------------------------------------------------------
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@example.org \
    GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@example.org
git_origin() {
    git init -q -b main "$WORK/origin" && cd "$WORK/origin" || return 1
    local i j
    for i in $(seq 30); do
        for j in 1 2 3 4; do
            mkdir -p "d$((i % 5))/e$j"
            seq "$i" $((i * 40 + j)) >"d$((i % 5))/e$j/f$i"
        done
        echo "$i" >counter
        ln -sf "d$((i % 5))" latest
        git add -A && git commit -q -m "commit $i" || return 1
        [ $((i % 7)) != 0 ] || git tag "t$i"
    done
}
git_clone() { git clone -q --no-local "$WORK/origin" "$MNT/clone" && git -C "$MNT/clone" fsck --full; }
git_clean() { [ -z "$(git -C "$MNT/clone" status --porcelain)" ]; }
git_work() {
    cd "$MNT/clone" || return 1
    git checkout -q -b side HEAD~10 && seq 500 >new && git add new && git commit -q -m new &&
        git rebase -q main && git gc -q --aggressive && git fsck --full &&
        git stash list && git worktree add -q ../worktree main && git -C ../worktree status -s
}
git_out() {
    git clone -q "$MNT/clone" "$WORK/back" && git -C "$WORK/back" fsck --full &&
        [ "$(git -C "$WORK/back" rev-parse origin/main)" = "$(git -C "$WORK/origin" rev-parse main)" ]
}
check "git: a repository to clone" git_origin
check "git clone and fsck" git_clone
check "git status is clean" git_clean
check "git commit, rebase, gc, worktree" git_work
check "git clone within the mount (hard links)" git clone -q "$MNT/clone" "$MNT/clone2"
check "git fsck of that" git -C "$MNT/clone2" fsck --full
check "git clone out of the mount" git_out

# ---- sqlite ------------------------------------------------------------------------------------
mkdir "$MNT/sqlite"
for mode in delete truncate persist wal; do
    check "sqlite, two processes, journal mode $mode" python3 "$PY" sqlite "$MNT/sqlite/$mode.db" "$mode"
    check "sqlite integrity ($mode)" test "$(sqlite3 "$MNT/sqlite/$mode.db" 'pragma integrity_check')" = ok
done

# ---- copying programs --------------------------------------------------------------------------
check "a tree of every kind of thing" python3 "$RING_DIR/maketree.py" "$SEED_TREE"
manifest "$SEED_TREE" >"$WORK/m.seed"
check "rsync -aHAXS in" rsync -aHAXS --numeric-ids "$SEED_TREE/" "$MNT/rsync/"
manifest "$MNT/rsync" >"$WORK/m.in"
same_manifest "rsync in" "$WORK/m.seed" "$WORK/m.in"
rsync_same() {
    local diff
    diff=$(rsync -aHAXSni --checksum --delete --numeric-ids "$1/" "$2/") || return 1
    [ -z "$diff" ] || { echo "$diff" | head; return 1; }
}
check "rsync finds nothing to do" rsync_same "$SEED_TREE" "$MNT/rsync"
check "rsync -aHAXS out" rsync -aHAXS --numeric-ids "$MNT/rsync/" "$WORK/out/"
manifest "$WORK/out" >"$WORK/m.out"
same_manifest "rsync out" "$WORK/m.seed" "$WORK/m.out"
check "rsync within the mount" rsync -aHAXS --numeric-ids "$MNT/rsync/" "$MNT/rsync2/"
manifest "$MNT/rsync2" >"$WORK/m.two"
same_manifest "rsync within" "$WORK/m.seed" "$WORK/m.two"
# With --inplace and changed files: partial overwrites instead of rename-over.
rsync_inplace() {
    python3 "$PY" scribble "$SEED_TREE/sizes" && rsync -aHAXS --inplace --no-whole-file \
        --numeric-ids "$SEED_TREE/" "$MNT/rsync2/"
}
check "rsync --inplace of changes" rsync_inplace
manifest "$SEED_TREE" >"$WORK/m.seed2"
manifest "$MNT/rsync2" >"$WORK/m.two"
same_manifest "rsync --inplace" "$WORK/m.seed2" "$WORK/m.two"

TAR=(tar --format=posix --xattrs --xattrs-include='*' --acls --numeric-owner --sparse)
tar_in() { mkdir "$2" && "${TAR[@]}" -C "$1" -cf - . | "${TAR[@]}" -C "$2" -xpf -; }
no_sockets() { grep -av "^b'[^ ]*' sock " "$1"; }
check "tar in" tar_in "$SEED_TREE" "$MNT/tar"
check "tar out" tar_in "$MNT/tar" "$WORK/tar-out"
no_sockets "$WORK/m.seed2" >"$WORK/m.tar"
manifest "$MNT/tar" >"$WORK/m.tar-in"
manifest "$WORK/tar-out" >"$WORK/m.tar-out"
same_manifest "tar in" "$WORK/m.tar" "$WORK/m.tar-in"
same_manifest "tar out" "$WORK/m.tar" "$WORK/m.tar-out"
cp_archive() { cp -a "$SEED_TREE" "$MNT/cp" && diff -r --no-dereference "$SEED_TREE/sizes" "$MNT/cp/sizes"; }
check "cp -a" cp_archive
manifest "$MNT/cp" >"$WORK/m.cp"
same_manifest "cp -a" "$WORK/m.seed2" "$WORK/m.cp"

# ---- sparse files ------------------------------------------------------------------------------
truncate -s 40M "$WORK/sparse"
printf island | dd of="$WORK/sparse" bs=1 seek=20000000 conv=notrunc status=none
sparse_cp() {
    cp "$1" "$2" "$3" && cmp "$2" "$3" && [ "$(($(stat -c %b "$3") * 512))" -lt 4000000 ]
}
check "cp --sparse=always" sparse_cp --sparse=always "$WORK/sparse" "$MNT/sparse"
check "cp --sparse=auto within" sparse_cp --sparse=auto "$MNT/sparse" "$MNT/sparse2"
check "cp --sparse=always out" sparse_cp --sparse=always "$MNT/sparse" "$WORK/sparse2"
sparse_never() { cp --sparse=never "$MNT/sparse" "$MNT/full" && cmp "$MNT/sparse" "$MNT/full"; }
check "cp --sparse=never" sparse_never
dug() { fallocate -d "$MNT/full" && cmp "$MNT/sparse" "$MNT/full"; }
check "fallocate --dig-holes" dug

# ---- a build -----------------------------------------------------------------------------------
check "a C project" python3 "$PY" project "$MNT/build"
check "make" make -s -C "$MNT/build" -j2
check "its program runs" test "$("$MNT/build/prog")" = "sum 210"
check "make finds nothing to do" make -q -C "$MNT/build"
touch -d 'now + 10 seconds' "$MNT/build/f3.c"
refuse "make sees a changed file" make -q -C "$MNT/build"
check "make rebuilds" make -s -C "$MNT/build"

# ---- editors -----------------------------------------------------------------------------------
# save NAME COMMAND...: it turns "old" into "new" in the file "edited".
save() {
    printf 'first\nold line\nlast\n' >"$MNT/edited" && chmod 640 "$MNT/edited" &&
        (cd "$MNT" && "$@") && [ "$(sed -n 2p "$MNT/edited")" = "new line" ] &&
        [ "$(wc -l <"$MNT/edited")" = 3 ] && [ "$(stat -c %a "$MNT/edited")" = 640 ]
}
VI=$(command -v vim || command -v vi)
for copy in yes no; do
    check "vi, backupcopy=$copy" save "$VI" -es -u NONE -c "set backupcopy=$copy" -c '%s/old/new/' \
        -c wq edited
done
check "sed -i" save sed -i s/old/new/ edited
check "write beside, fsync, rename over" save python3 "$PY" rename-over edited
check "the editors left nothing" test -z "$(ls -A "$MNT" | grep -E 'sw[pox]$|~$|^sed')"

# ---- odd block sizes, direct I/O ---------------------------------------------------------------
head -c 3000017 /dev/urandom >"$WORK/random"
for bs in 1 7 777 4095 4097 65535 1048577; do
    count=$(((bs < 100 ? 20000 : 3000017) / bs))
    dd if="$WORK/random" of="$MNT/dd" bs=$bs count=$count seek=3 skip=1 conv=notrunc status=none
    dd if="$WORK/random" of="$WORK/dd" bs=$bs count=$count seek=3 skip=1 conv=notrunc status=none
    check "dd with blocks of $bs" cmp "$MNT/dd" "$WORK/dd"
done
dd_sync() {
    dd if="$WORK/random" of="$MNT/dd" bs=10007 oflag="$1" status=none && cmp "$WORK/random" "$MNT/dd"
}
check "dd oflag=dsync" dd_sync dsync
check "dd oflag=append" dd_sync append,sync
direct() {
    head -c 3145728 "$WORK/random" >"$WORK/direct"
    truncate -s 3145728 "$WORK/direct"
    dd if="$WORK/direct" of="$MNT/direct" bs=64k oflag=direct status=none &&
        dd if="$MNT/direct" of="$WORK/direct2" bs="$1" iflag=direct status=none &&
        cmp "$WORK/direct" "$WORK/direct2" && cmp "$WORK/direct" "$MNT/direct"
}
for bs in 4k 64k 1M; do check "O_DIRECT, reads of $bs" direct $bs; done
check "O_DIRECT and cached, mixed" python3 "$PY" direct-mixed "$MNT/mixed"

# ---- locks, mappings, links, open and unlinked ---------------------------------------------------
for kind in flock posix ofd; do
    check "$kind locks between two processes" python3 "$PY" lock "$MNT/locked" $kind
done
flock_program() {
    : >"$MNT/flocked"
    flock -x "$MNT/flocked" bash -c "! flock -n -x '$MNT/flocked' true && ! flock -n -s '$MNT/flocked' true" &&
        flock -n -x "$MNT/flocked" true
}
check "flock(1)" flock_program
check "shared and private mappings, two processes" python3 "$PY" mmap "$MNT/mapped"
links() {
    mkdir "$MNT/l" && echo x >"$MNT/l/a" && ln "$MNT/l/a" "$MNT/l/b" && mkdir "$MNT/l/d" &&
        ln "$MNT/l/b" "$MNT/l/d/c" &&
        [ "$(find "$MNT/l" -inum "$(stat -c %i "$MNT/l/a")" | wc -l)" = 3 ] &&
        [ "$(find "$MNT/l" -samefile "$MNT/l/d/c" | wc -l)" = 3 ] &&
        echo more >>"$MNT/l/b" && cmp "$MNT/l/a" "$MNT/l/d/c" && [ "$(stat -c %h "$MNT/l/a")" = 3 ] &&
        rm "$MNT/l/a" && [ "$(stat -c %h "$MNT/l/d/c")" = 2 ]
}
check "hard links by inode number" links
check "an unlinked open file" python3 "$PY" unlinked "$MNT/gone"
check "copy_file_range and sendfile" python3 "$PY" copies "$MNT"
check "fifo and socket" python3 "$PY" ipc "$MNT"
check "inotify sees changes" python3 "$PY" inotify "$MNT"
run_suid() {
    cp "$(command -v id)" "$MNT/id" && chown nobody "$MNT/id" && chmod 4755 "$MNT/id" &&
        [ "$("$MNT/id" -u)" = "$(id -u nobody)" ]
}
check "a set-user-ID program (-o suid)" run_suid
device() { mknod "$MNT/null" c 1 3 && echo gone >"$MNT/null" && [ ! -s "$MNT/null" ]; }
check "a device node works (-o dev)" device
crowd() {
    mkdir "$MNT/crowd" && (cd "$MNT/crowd" && seq 5000 | xargs touch) &&
        [ "$(ls "$MNT/crowd" | wc -l)" = 5000 ] && [ "$(find "$MNT/crowd" -type f | sort -u | wc -l)" = 5000 ] &&
        (cd "$MNT/crowd" && seq 1 2 5000 | xargs rm) && [ "$(ls "$MNT/crowd" | wc -l)" = 2500 ]
}
check "a directory of 5000" crowd

# ---- nothing in clear below, all of it back after a remount ---------------------------------------
if [ "$FS" = kmsfs ]; then
    M=marker-of-the-ring-40
    mkdir "$MNT/$M"
    echo "$M" >"$MNT/$M/$M.txt"
    ln -s "$M" "$MNT/$M/$M.link"
    setfattr -n "user.$M" -v "$M" "$MNT/$M/$M.txt"
    sync -f "$MNT/$M/$M.txt"
fi
manifest "$MNT" >"$WORK/m.before"
vol_remount
manifest "$MNT" >"$WORK/m.after"
same_manifest "everything survives a remount" "$WORK/m.before" "$WORK/m.after"
manifest "$MNT/rsync" >"$WORK/m.in"
same_manifest "rsync's copy after a remount" "$WORK/m.seed" "$WORK/m.in"
manifest "$MNT/tar" >"$WORK/m.tar-in"
same_manifest "tar's copy after a remount" "$WORK/m.tar" "$WORK/m.tar-in"
check "sqlite still sound" test "$(sqlite3 "$MNT/sqlite/wal.db" 'pragma integrity_check')" = ok
check "git still sound" git -C "$MNT/clone" fsck --full
check "git status still clean" git_clean
vol_umount
if [ "$FS" = kmsfs ]; then
    refuse "no file below holds the marker" grep -raq "$M" "$SRC"
    check "no name below holds it" test -z "$(find "$SRC" -name '*marker*' -o -lname '*marker*')"
    refuse "no attribute below holds it" bash -c "getfattr -R -P -d -m- '$SRC' 2>/dev/null | grep -q '$M'"
    check "the volume verifies" "$WORK/bin/kmsfsctl" verify "$SRC"
    vol_mount
    check "all of it can be removed" find "$MNT" -mindepth 1 -delete
    vol_umount
    check "and leaves only kmsfs's own files" test -z "$(find "$SRC" -mindepth 1 ! -name 'kmsfs.*')"
fi
ring_end
