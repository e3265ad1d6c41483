#!/bin/bash
# Operations through handles on things that were removed or renamed: the same answers as those of the
# plain file system below.
. "$(dirname "$0")/lib.sh"
ring_start 80-handles
backing
vol_new
vol_mount

compare handles handles.py
vol_remount
ring_end
