#!/usr/bin/env bash
# Installs what is missing, builds kmsfs, makes a small encrypted folder and mounts it.
# Running it again shows the same folder; nothing is overwritten.
#
# usage: packaging/try.sh [DIRECTORY]     (default: kmsfs-demo in the current directory)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"

repo=$(dirname "$here")
demo=${1:-$PWD/kmsfs-demo}
mkdir -p "$demo"
demo=$(cd "$demo" && pwd)
key=$demo/volume.key cipher=$demo/encrypted plain=$demo/folder

say "1. What is needed"
install_missing fusermount3:fuse3 cc:gcc hexdump:bsdextrautils
find_cargo
need_fuse
(cd "$repo" && cargo build --release --locked)
bin=$repo/target/release

say "2. An encrypted volume, opened by a key file"
if [ -e "$cipher/kmsfs.volume" ]; then
    echo "$cipher is there already."
else
    "$bin/kmsfsctl" init "$cipher" --key "keyfile:$key"
fi

say "3. Mounted"
mkdir -p "$plain" 2>/dev/null || true
if "$bin/kmsfsctl" status "$plain" >/dev/null 2>&1; then
    echo "$plain is mounted already."
else
    # A daemon that died leaves a mount point that answers nothing; clear it.
    "$bin/kmsfsctl" umount "$plain" >/dev/null 2>&1 || true
    "$bin/kmsfs" "$cipher" "$plain"
fi
"$bin/kmsfsctl" status "$plain" | head -n 4

say "4. An ordinary file in the folder"
mkdir -p "$plain/letters"
echo "Dear Alice, the treasure is under the old oak." > "$plain/letters/to-alice.txt"
echo "$ cat folder/letters/to-alice.txt"
cat "$plain/letters/to-alice.txt"
"$bin/kmsfsctl" sync "$plain"

say "5. The same file in the backing directory"
echo "$ find encrypted"
(cd "$demo" && find encrypted | sort)
stored=$(find "$cipher" -type f -size +0 ! -name 'kmsfs.*' | sort | tail -n 1)
echo "$ hexdump -C encrypted/...   (the one block that holds the text)"
hexdump -C -s 4096 "$stored" | head -n 4
if grep -rqa 'treasure' "$cipher"; then die "The plaintext is in the backing directory!"; fi
echo "The word \"treasure\" is nowhere in it."

say "The folder stays mounted: $plain"
echo "Unmount it with: $bin/kmsfsctl umount $plain"
