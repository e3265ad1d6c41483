#!/bin/bash
# What backups of the backing directory notice of a rewrap: by times and sizes nothing (that is the
# promise, and the trap), by content, by change times, by the list of `key rewrap` and after --touch
# all of it. And that a backup which missed it needs the old key.
. "$(dirname "$0")/lib.sh"
ring_start 37-rewrap
[ "$FS" = kmsfs ] || { skip "about kmsfs only"; ok "nothing to do"; ring_end; }
need rsync:rsync curl:curl
CTL=$WORK/bin/kmsfsctl
FILES=40
(cd "$REPO" && cargo build -q --locked --example fake-aws) || die "cannot build the fake"

for name in $(compgen -e | grep '^AWS_'); do unset "$name"; done
export AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null AWS_EC2_METADATA_DISABLED=true
export AWS_ACCESS_KEY_ID=AKIAFAKEFAKEFAKEFAKE AWS_SECRET_ACCESS_KEY=fake
"$REPO/target/debug/examples/fake-aws" >"$WORK/fake" 2>"$WORK/log/fake" &
FAKE=$!
trap 'ended=$?; kill "$FAKE" 2>/dev/null; (exit $ended); ring_cleanup' EXIT
for _ in $(seq 100); do grep -q '^key store' "$WORK/fake" && break; sleep 0.1; done
URL=$(awk '/^endpoint/ { print $2 }' "$WORK/fake")
[ -n "$URL" ] || die "the fake does not start"
FIRST=$(awk '/^AWS_CLOUDHSM/ { print $2 }' "$WORK/fake")
SECOND=$(awk '/^AWS_KMS/ { print $2 }' "$WORK/fake")
key_state() { curl -sf -o /dev/null -d "{\"key\": {\"id\": \"$1\", \"state\": \"$2\"}}" "$URL/_control"; }

backing ext4 300
SRC=$BACK/volume
MNT=$WORK/mnt
mkdir "$MNT"
ctl() { local command=$1; shift; "$CTL" $command --kms-endpoint "$URL" "$@"; }
check "a volume" ctl init "$SRC" --key "aws-kms:$FIRST" --files-per-data-key 8
"$WORK/bin/kmsfs" "$SRC" "$MNT" -o "kms-endpoint=$URL" || die "cannot mount"
mkdir "$MNT/d"
for n in $(seq "$FILES"); do head -c $((n * 700)) /dev/urandom >"$MNT/d/file $n"; done
"$CTL" umount "$MNT" || die "cannot unmount"
find "$SRC" -type f -exec touch -d '2 days ago' {} +

# moved OPTIONS: backing files with content that rsync would transfer to $TO.
moved() { rsync -a --itemize-changes --dry-run "$@" "$SRC/" "$TO/" | grep -c '^>f.*/[^ ]*$' || true; }
TO=$WORK/copy
check "a first backup" rsync -a "$SRC/" "$TO/"
check "and a second" cp -a "$TO" "$WORK/old"
if command -v restic >/dev/null || (need restic:restic) 2>/dev/null; then
    export RESTIC_PASSWORD=ring RESTIC_REPOSITORY=$WORK/repository RESTIC_CACHE_DIR=$WORK/cache
    check "restic: repository" restic -q init
    check "restic: a first backup" restic -q backup "$SRC"
fi
# changed OPTIONS: files restic reads again.
changed() {
    restic backup "$@" --dry-run --json "$SRC" |
        python3 -c 'import json, sys
for line in sys.stdin:
    facts = json.loads(line)
    if facts.get("message_type") == "summary": print(facts["files_changed"])'
}
is() { [ "$1" = "$2" ] || { echo "$1 instead of $2"; return 1; }; }

# ---- as it is: times and sizes stay ---------------------------------------------------------------
check "rewrap" ctl "key rewrap" "$SRC" --to "aws-kms:$SECOND" --list "$WORK/list"
check "the list names every file" is "$(sort -u "$WORK/list" | wc -l)" "$FILES"
# kmsfs.volume itself is not below a directory of the user's.
check "rsync -a sees none of it" is "$(moved)" 0
check "rsync -c sees all of it" is "$(moved -c)" "$FILES"
check "rsync by the list sees all of it" is \
    "$(rsync -a -c --itemize-changes --dry-run --files-from="$WORK/list" "$SRC/" "$TO/" | grep -c '^>f')" "$FILES"
if [ -n "${RESTIC_REPOSITORY:-}" ]; then
    # And kmsfs.volume.
    check "restic sees all of it by change times" is "$(changed)" $((FILES + 1))
    check "restic without change times sees none of it" is "$(changed --ignore-ctime --ignore-inode)" 1
fi
check "rsync -a" rsync -a "$SRC/" "$TO/"
key_state "$FIRST" Disabled
refuse "a copy that missed it needs the old key" ctl verify "$TO"
refuse "and so key retire refuses" ctl "key retire" "$FIRST" --volume "$SRC" --backup "$TO" --yes
check "rsync -c" rsync -a -c "$SRC/" "$TO/"
check "a copy that did not miss it does not" ctl verify "$TO"
key_state "$FIRST" Enabled
refuse "the oldest backup needs the old key" ctl "key retire" "$FIRST" --volume "$SRC" --backup "$TO" --backup "$WORK/old" --yes
check "nobody else does" ctl "key retire" "$FIRST" --volume "$SRC" --backup "$TO" --yes

# ---- with --touch ----------------------------------------------------------------------------------
check "rewrap back and forth, touched" ctl "key rewrap" "$SRC" --renew "$SECOND" --touch --list "$WORK/list2"
check "rsync -a sees all of it" is "$(moved)" "$FILES"
check "rsync -a" rsync -a "$SRC/" "$TO/"
check "the copy verifies" ctl verify "$TO"
[ -z "${RESTIC_REPOSITORY:-}" ] ||
    check "restic sees all of it without change times" is "$(changed --ignore-ctime --ignore-inode)" $((FILES + 1))
ring_end
