"""Takes the first wrapped copy of the data key out of a backing file, by the description of the format
and with no code of kmsfs: wrapped.py FILE OUT writes the copy to OUT and prints the volume's id, the
data key's id and the name of the wrapping key."""

import struct
import sys

SLOT = 2144

with open(sys.argv[1], "rb") as file:
    header = file.read(4 * 4096)
assert header[:8] == b"KMSFSHDR", "no header"
slot = header[SLOT:]
state, copies = slot[0], slot[1]
assert state == 1 and copies >= 1, "no data key"
record = slot[56:]
kind, zero, name_len, wrapped_len = struct.unpack_from("<BBHH", record)
assert (kind, zero) == (3, 0), "not wrapped by a KMS first"
name = record[12 : 12 + name_len]
wrapped = record[12 + name_len : 12 + name_len + wrapped_len]
with open(sys.argv[2], "wb") as out:
    out.write(wrapped)
print(header[16:32].hex(), slot[8:24].hex(), name.decode())
