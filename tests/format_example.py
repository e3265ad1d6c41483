#!/usr/bin/env python3
"""Computes the worked example of FORMAT.md without any code of kmsfs, from the text alone.

Needs the `cryptography` package (43 or later). Usage: format_example.py src/format/FORMAT.md
replaces everything after the example's heading. `tests/format_example.rs` checks the numbers against
the library.
"""
import base64, hashlib, hmac, struct, sys, zlib
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

B = 4096
u16 = lambda n: struct.pack("<H", n)
u32 = lambda n: struct.pack("<I", n)
u64 = lambda n: struct.pack("<Q", n)
mac = lambda k, m: hmac.new(k, m, hashlib.sha256).digest()
b64 = lambda x: base64.urlsafe_b64encode(x).rstrip(b"=")
siv = lambda k, ads, p: AESSIV(k).encrypt(p, ads)


def expand(prk, info, n):
    out, t, i = b"", b"", 1
    while len(out) < n:
        t = mac(prk, t + info + bytes([i]))
        out, i = out + t, i + 1
    return out[:n]


def hkdf(ikm, salt, info, n):
    return expand(mac(salt, ikm), info, n)


def hpke_seal(public, ephemeral, info, aad, plain):
    """RFC 9180 base mode with a given ephemeral key."""
    raw = lambda k: k.public_bytes(Encoding.Raw, PublicFormat.Raw)
    key = X25519PrivateKey.from_private_bytes(ephemeral)
    enc, shared = raw(key.public_key()), key.exchange(X25519PublicKey.from_public_bytes(public))
    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x02"
    extract = lambda s, salt, label, ikm: mac(salt or bytes(32), b"HPKE-v1" + s + label + ikm)
    out = lambda s, prk, label, i, n: expand(
        prk, struct.pack(">H", n) + b"HPKE-v1" + s + label + i, n)
    eae = extract(kem, b"", b"eae_prk", shared)
    secret = out(kem, eae, b"shared_secret", enc + public, 32)
    context = (b"\0" + extract(suite, b"", b"psk_id_hash", b"")
               + extract(suite, b"", b"info_hash", info))
    prk = extract(suite, secret, b"secret", b"")
    k, nonce = out(suite, prk, b"key", context, 32), out(suite, prk, b"base_nonce", context, 12)
    return enc + AESGCM(k).encrypt(nonce, plain, aad)


values = []  # (section or None, name, bytes)


def section(text):
    values.append((text, None, None))


def show(name, value):
    values.append((None, name, value))
    return value


def given(name, first, n):
    return show(name, bytes((first + i) % 256 for i in range(n)))


section("Given: what a real volume draws at random.")
volume_id = given("volume id", 0x00, 16)
volume_key = given("volume key", 0x10, 32)
master = given("master key", 0x30, 32)
keyfile = given("key file secret", 0x50, 32)
slot_salt = given("master slot salt", 0x70, 16)
identity = given("x25519 identity", 0x80, 32)
ephemeral = given("x25519 ephemeral private key", 0xa0, 32)
dir_id = given("directory id", 0xc0, 16)
object_id = given("object id", 0xd0, 16)
life_salt = given("life salt", 0xe0, 16)
data_key = given("data key", 0xf0, 32)
data_key_id = given("data key id", 0x11, 16)
seg_salt = given("segment salt", 0x21, 16)
nonce = given("nonce", 0x31, 12)

section("Derived from the volume key.")
keys = {}
for name, n in [("header mac", 32), ("descriptor mac", 32), ("directory mac", 32), ("names", 64),
                ("symlinks", 64), ("xattrs", 64), ("journal head mac", 32), ("journal", 32)]:
    keys[name] = show(name + " key", hkdf(volume_key, volume_id, b"kmsfs v1 " + name.encode(), n))

section("Master key and wrapped keys. The passphrase is `correct horse`, m = 64, t = 2, p = 1.")
kek = show("key file KEK", hkdf(keyfile, slot_salt, b"kmsfs v1 keyfile", 64))
show("passphrase KEK", Argon2id(salt=slot_salt, length=64, iterations=2, lanes=1,
                                memory_cost=64).derive(b"correct horse"))
wrapped_master = show("wrapped master", siv(kek, [b"kmsfs v1 master", volume_id], master))
local = show("local wrap key", hkdf(master, volume_id, b"kmsfs v1 local wrap", 64))
vctx = show("volume key context", b"kmsfs v1 wrap" + volume_id + b"\x01" + bytes(16))
dctx = show("data key context", b"kmsfs v1 wrap" + volume_id + b"\x02" + data_key_id)
volume_wrapped = show("wrapped volume key", siv(local, [vctx], volume_key))
data_wrapped = show("wrapped data key", siv(local, [dctx], data_key))
public = show("x25519 public key", X25519PrivateKey.from_private_bytes(identity).public_key()
              .public_bytes(Encoding.Raw, PublicFormat.Raw))
volume_hpke = show("x25519 wrapped volume key",
                   hpke_seal(public, ephemeral, b"kmsfs v1 recipient", vctx, volume_key))


def recipient(kind, epoch, ref, wrapped):
    return bytes([kind, 0]) + u16(len(ref)) + u16(len(wrapped)) + bytes(2) + u32(epoch) + ref + wrapped


def record(kind, payload):
    return u16(kind) + bytes(2) + u32(len(payload)) + payload


section("`kmsfs.volume`: names encrypted, 1 header block, 64 files per data key, made at 1700000000\n"
        "with a key file (hint `/k`) and an X25519 recipient, both at epoch 1; generation 1.")
records = [record(1, volume_id), record(2, bytes([1, 12, 1, 1]) + u32(64) + u64(1700000000) + u64(1)),
           record(6, bytes([1, 0, 0, 0]) + bytes(12) + slot_salt + u16(2) + b"/k" + wrapped_master),
           record(7, recipient(1, 1, b"", b"")), record(7, recipient(2, 1, public, b"")),
           record(8, recipient(1, 1, b"", volume_wrapped)), record(8, recipient(2, 1, public, volume_hpke))]
body = b"".join(records) + record(0xffff, bytes(32))[:8]
start = b"KMSFSVOL" + u16(1) + u16(1) + u32(16 + len(body) + 32)
show("kmsfs.volume", start + body + mac(keys["descriptor mac"], start + body))

section("The root directory's `kmsfs.dir`.")
d = b"KMSFSDIR" + u16(1) + bytes(6) + dir_id + bytes(64)
show("kmsfs.dir", d + mac(keys["directory mac"], d))

section("Names in it: `hello.txt`, and 255 times `n`. Then a symlink to `hello.txt`, the attribute\n"
        "`user.mime` = `text/plain` of the file, and one of a long name: `user.` and 200 times `n`.")
sealed = show("sealed name", siv(keys["names"], [dir_id], b"hello.txt"))
show("stored name", b64(sealed))
sealed = show("sealed long name", siv(keys["names"], [dir_id], b"n" * 255))
show("stored long name", b"kmsfs.long." + b64(hashlib.sha256(sealed).digest()))
show("stored symlink target", b64(siv(keys["symlinks"], [b"symlink"], b"hello.txt")))
show("stored attribute name",
     b"user.kmsfs." + b64(siv(keys["xattrs"], [object_id, b"name"], b"user.mime")))
show("stored attribute value", siv(keys["xattrs"], [object_id, b"value", b"user.mime"], b"text/plain"))
long = b"user." + b"n" * 200
sealed = show("sealed long attribute name", siv(keys["xattrs"], [object_id, b"name"], long))
show("stored long attribute name",
     b"user.kmsfs.long." + b64(hashlib.sha256(sealed).digest()))
show("stored long attribute value",
     u16(len(sealed)) + sealed + siv(keys["xattrs"], [object_id, b"value", long], b"text/plain"))

section("The file's keys.")
file_key = show("file key", hkdf(data_key, object_id + life_salt, b"kmsfs v1 file key", 32))
commitment = show("commitment", expand(file_key, b"kmsfs v1 commitment", 32))
tree_key = show("tree key", expand(file_key, b"kmsfs v1 tree", 32))
seg = lambda n: expand(file_key, b"kmsfs v1 segment" + u64(n) + seg_salt, 32)
show("segment 0 key", seg(0))
show("segment 2 key", seg(2))


def chunk(segment, index, plain):
    out = AESGCM(seg(segment)).encrypt(nonce, plain, object_id + life_salt + u64(index))
    return out[:-16], nonce + out[-16:]


roots = {}


def header(name, generation, size, seg0, tags, top):
    tags = tags.ljust(1792, b"\0")
    root = mac(tree_key, b"\xff" + u64(generation) + u64(size) + seg0 + tags + top)
    roots[name] = show(name + " root hash", root)
    rec = recipient(1, 1, b"", data_wrapped)
    slot = bytes([1, 1]) + u16(len(rec)) + bytes(4) + data_key_id + commitment + rec
    h = (b"KMSFSHDR" + u16(1) + bytes([1, 12, 1]) + bytes(3) + volume_id + object_id + life_salt
         + u64(generation) + u64(size) + root + u64(1) + seg0 + bytes(192) + tags + bytes(8)
         + slot.ljust(960, b"\0") + bytes(960))
    assert len(h) == B - 32
    return h + mac(keys["header mac"], h)


section("The backing file of `hello.txt`, 14 bytes `Hello, kmsfs!` and a newline, generation 1.")
cipher, tag = chunk(0, 0, b"Hello, kmsfs!\n")
show("chunk 0", cipher)
show("tag 0", tag)
show("small file", header("small file", 1, 14, seg_salt + u64(1) + bytes(8), tag, bytes(32)) + cipher)

section("A journal of epoch `life salt`, and its first record: of the 14 bytes the first becomes `J`, which\n"
        "makes a new header (generation 2, two writes in segment 0) and a new image of chunk 0 under the\n"
        "same nonce (only here). The file stands at `stored name` with inode number 77; its time is\n"
        "1700000001.5. One fresh block at 12288 and one freed range, 16384..20480, are made up.")
epoch_key = show("journal epoch key", expand(keys["journal"], b"kmsfs v1 journal epoch" + life_salt, 32))
head = b"KMSFSJNL" + u16(1) + bytes(6) + volume_id + life_salt + bytes(4016)
show("journal head", head + mac(keys["journal head mac"], head))
cipher, tag = chunk(0, 0, b"Jello, kmsfs!\n")
changed = header("changed file", 2, 14, seg_salt + u64(2) + bytes(8), tag, bytes(32))
path = b64(siv(keys["names"], [dir_id], b"hello.txt"))
blocks = (u64(0) + u32(0) + u32(B) + changed) + (u64(B) + u32(0) + u32(14) + cipher)
fresh = u64(3 * B) + u32(1) + u32(5) + u32(zlib.crc32(b"fresh"))
rest = path + blocks + fresh + u64(4 * B) + u64(5 * B)
fixed = (u64(1) + u64(0) + object_id + u64(77) + u64(1) + u64(2) + u64(1700000001) + u32(500000000)
         + u32(1) + u64(B + 14) + u32(len(path)) + u32(2) + u32(1) + u32(1) + roots["small file"][:16])
rec = b"KJR1" + u32(120 + len(rest) + 32) + fixed + rest
show("journal record", rec + mac(epoch_key, rec))

section("The same object later: generation 2, 786436 bytes, all hole but the last 4, which are `tail`:\n"
        "chunk 192, the first of group 1. Group 0 is empty, so its tag block is zero and so is its hash in\n"
        "the node. The top is node 0 of level 1. (Only here do two segments share salt and nonce.)")
cipher, tag = chunk(2, 192, b"tail")
show("chunk 192", cipher)
show("tag 192", tag)
block = (tag.ljust(3584, b"\0") + seg_salt + u64(1) + u64(2)).ljust(B, b"\0")
leaf = show("hash of tag block 1", mac(tree_key, b"\0" + u64(1) + block))
node = (bytes(32) + leaf).ljust(B, b"\0")
top = show("hash of node 0", mac(tree_key, b"\x01" + u64(0) + node))
large = header("large file", 2, 192 * B + 4, bytes(32), b"", top).ljust(194 * B, b"\0") + node + block + cipher
show("large file", large)


def lines(name, value):
    """Stored names as text. Rows of 32 bytes; rows that are all zero are left out, the length says where it ends."""
    if name.startswith("stored ") and value.isascii():
        return [f'"{value.decode()}"']
    if len(value) <= 64:
        return [value.hex()]
    rows = [(at, value[at:at + 32]) for at in range(0, len(value), 32)]
    return [f"{len(value)} bytes"] + [f"  {at:06x} {row.hex()}" for at, row in rows if any(row)]


def render():
    out, open_block = [], False
    for text, name, value in values:
        if text:
            out += ["```", ""] if open_block else []
            out += [text, "", "```example"]
            open_block = True
            continue
        first, *rest = lines(name, value)
        out += [f"{name}: {first}"] + rest
    return "\n".join(out + ["```", ""])


if __name__ == "__main__":
    path, mark = sys.argv[1], "## 15. Worked example\n"
    text = open(path, encoding="utf-8").read().split(mark)[0]
    intro = ("\nComputed by `tests/format_example.py` from this text alone. Values are hexadecimal, or text in\n"
             "quotes. Long ones are given in rows of 32 bytes, each after its offset in hexadecimal; rows that\n"
             "are all zero are left out.\n\n")
    open(path, "w", encoding="utf-8").write(text + mark + intro + render())
