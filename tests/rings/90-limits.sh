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
    vol_umount
fi
# A full disk: what does not fit is an error, what was removed makes room, the rest is as it was.
backing tmpfs 8
vol_new full
vol_mount
head -c 5000000 /dev/urandom >"$WORK/fits"
echo kept >"$MNT/kept"
refuse "more than fits" dd if=/dev/urandom of="$MNT/big" bs=64k count=200 conv=fsync status=none
check "another file on a full disk" grep -qx kept "$MNT/kept"
rm "$MNT/big"
check "room after a removal" dd if="$WORK/fits" of="$MNT/next" bs=64k conv=fsync status=none
exec 9>"$MNT/open"
refuse "more than fits, again" dd if=/dev/urandom of=/dev/fd/9 bs=64k count=200 conv=fsync status=none
rm "$MNT/open"
exec 9>&-
check "room after the last close of a removed file" \
    dd if="$WORK/fits" of="$MNT/next" bs=64k conv=fsync status=none
vol_remount
check "what fitted is there" cmp "$WORK/fits" "$MNT/next"
check "and what was before" grep -qx kept "$MNT/kept"
vol_umount
ring_end
