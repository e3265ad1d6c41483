#!/bin/bash
# Access times: every option moves them when the plain file system below moves them under the same
# option, whether the content is in the kernel's cache or not.
. "$(dirname "$0")/lib.sh"
ring_start 95-atime
[ "$BACKING" != dir ] || die "needs a backing file system of its own"
backing
for option in relatime strictatime noatime; do
    mount -o "remount,$option" "$BACK" || die "cannot remount with $option"
    vol_new "$option"
    vol_mount "allow_other,$option"
    compare "$option" atime.py
    vol_umount
done
# Told to leave them alone, kmsfs does, whatever the file system below would do.
if [ "$FS" = kmsfs ]; then
    mount -o remount,strictatime "$BACK" || die "cannot remount"
    vol_new over
    vol_mount allow_other,noatime
    check "noatime over strictatime" bash -c \
        "python3 '$RING_DIR/atime.py' '$MNT' >'$WORK/over' && grep -q 'read again: (False' '$WORK/over'"
    refuse "nothing moved" grep -q '(True' "$WORK/over"
    vol_umount
fi
ring_end
