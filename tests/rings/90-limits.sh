#!/bin/bash
# The edges: names, link targets, attributes, modes, ACLs, times, huge sparse files. What has a plain
# answer is compared with the file system below; the rest says itself what it expects.
. "$(dirname "$0")/lib.sh"
ring_start 90-limits
for kind in ext4 tmpfs; do
    backing "$kind"
    vol_new "$kind"
    vol_mount allow_other,dev,suid,acl
    chmod 755 "$MNT"
    CHECK_LINES=40 check "limits on $kind" \
        python3 "$RING_DIR/limits.py" make "$MNT" ${LONG:+--long}
    vol_remount
    check "limits on $kind after a remount" python3 "$RING_DIR/limits.py" check "$MNT"
    [ "$kind" = tmpfs ] || compare modes modes.py
    vol_umount
    [ "$FS" != kmsfs ] || check "the volume verifies" "$WORK/bin/kmsfsctl" verify "$SRC"
done
# Without -o acl the kernel must be told that there are no ACLs: anything else would be a promise.
if [ "$FS" = kmsfs ]; then
    vol_new no-acl
    vol_mount allow_other
    touch "$MNT/f"
    refuse "no ACLs without the option" setfacl -m u:1:r "$MNT/f"
    vol_umount
    vol_new names-plain --names plain
    vol_mount
    CHECK_LINES=40 check "limits with plain names" python3 "$RING_DIR/limits.py" make "$MNT"
    vol_remount
    check "limits with plain names after a remount" python3 "$RING_DIR/limits.py" check "$MNT"
fi
ring_end
