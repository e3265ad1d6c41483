#!/usr/bin/env bash
# Makes the volumes that a released format must open for ever, and what they hold.
#
# usage: tests/volumes/make.sh OUT          (KMSFS_BIN: folder of the programs, default target/release)
#
# OUT gets: encrypted/ and plain/ (backing directories), volume.key, passphrase, identity (their
# keys), and MANIFEST, a line per object: kind, size, mode, SHA-256 of content or target, path; then
# crashed/, a volume with a journal, its crashed.key and MANIFEST.crashed.
# tests/volumes.rs makes such a set and reads it back, and does the same with the set of each released
# format, which was packed by tests/volumes/pack.sh and is never made again.
set -euo pipefail

out=${1:?usage: make.sh OUT}
here=$(cd "$(dirname "$0")" && pwd)
bin=${KMSFS_BIN:-$here/../../target/release}
mkdir -p "$out"
out=$(cd "$out" && pwd)
point=$(mktemp -d)
trap '"$bin/kmsfsctl" umount "$point" 2>/dev/null || true; rmdir "$point"' EXIT

# bytes N: N bytes that anybody can make again.
bytes() { yes "kmsfs frozen volume" | head -c "$1" || true; }

fill() {
    cd "$point"
    local n
    for n in 0 1 4095 4096 4097 262143 262144 262145 786432 786437; do
        bytes "$n" >"size-$n"
    done
    # Islands in a sparse file: beyond 128 groups the tree has a level more.
    truncate -s 70000001 sparse
    for n in 0 300000 68000000 70000000; do
        bytes 1 | dd of=sparse bs=1 seek="$n" conv=notrunc status=none
    done
    bytes 600000 >cut-and-grown
    truncate -s 5000 cut-and-grown
    truncate -s 300000 cut-and-grown
    mkdir -p deep/er/still
    bytes 10 >"deep/er/still/$(printf 'long-%.0s' {1..51})"
    bytes 10 >$'deep/not \xff\xfe text'
    ln deep/er/still/long-* deep/hard-link
    ln -s ../size-1 deep/short-link
    ln -s "$(printf 'x/%.0s' {1..2000})" deep/long-link
    mkfifo deep/fifo
    mkdir empty
    bytes 5 >mode-0640
    chmod 640 mode-0640
    setfattr -n user.short -v value size-1
    setfattr -n "user.$(printf 'n%.0s' {1..200})" -v long size-1
    setfattr -n user.dir -v on-a-directory deep
    cd "$here"
}

manifest() {
    (
        cd "$point"
        find . -mindepth 1 | LC_ALL=C sort | while IFS= read -r path; do
            case $(stat -c %F "$path") in
                regular*) sum=$(sha256sum <"$path") ;;
                symbolic*) sum=$(readlink -n "$path" | sha256sum) ;;
                *) sum=- ;;
            esac
            printf '%s %s %s %s %s\n' "$(stat -c %F "$path" | tr ' ' _)" \
                "$(if [ -f "$path" ] && [ ! -L "$path" ]; then stat -c %s "$path"; else echo -; fi)" \
                "$(stat -c %a "$path")" "${sum%% *}" "$path"
        done
    )
}

printf 'a frozen passphrase' >"$out/passphrase"
chmod 600 "$out/passphrase"
public=$("$bin/kmsfsctl" key generate --out "$out/identity" | grep -o 'x25519:[0-9a-f]*' | head -n 1)
for names in encrypted plain; do
    "$bin/kmsfsctl" init "$out/$names" --key "keyfile:$out/volume.key" --names "$names" \
        --recipient "$public" >/dev/null
    "$bin/kmsfsctl" key add "$out/$names" passphrase --keyfile "$out/volume.key" \
        --new-passphrase-file "$out/passphrase" >/dev/null
    "$bin/kmsfs" "$out/$names" "$point" -o "keyfile=$out/volume.key"
    fill
    manifest >"$out/MANIFEST.$names"
    "$bin/kmsfsctl" umount "$point"
done
cmp "$out/MANIFEST.encrypted" "$out/MANIFEST.plain"
mv "$out/MANIFEST.encrypted" "$out/MANIFEST"
rm "$out/MANIFEST.plain"
# One whose daemon was killed: what was written last stands in its journal.
"$bin/kmsfsctl" init "$out/crashed" --key "keyfile:$out/crashed.key" >/dev/null
"$bin/kmsfs" "$out/crashed" "$point" -o "keyfile=$out/crashed.key"
pid=$("$bin/kmsfsctl" status "$point" --json | sed -n 's/.*"pid": \([0-9]*\).*/\1/p')
fill
sync "$point"/*
"$bin/kmsfsctl" sync "$point"
(
    cd "$point"
    for n in 4095 262145 786437; do
        bytes 100 | tac | dd of="size-$n" bs=1 seek=3000 conv=notrunc,fsync status=none
    done
    truncate -s 1000 cut-and-grown
    bytes 70000 | dd of=size-1 bs=70000 seek=0 conv=notrunc,fsync status=none
    sync cut-and-grown
)
manifest >"$out/MANIFEST.crashed"
kill -9 "$pid"
umount -l "$point" 2>/dev/null || fusermount3 -uz "$point"
echo "made $(wc -l <"$out/MANIFEST") objects in each of two volumes in $out"
