//! Tag blocks, chunks, names, symlinks, attributes, sizes.

use super::*;
use kmsfs::crypto::volumekeys::{encode_name, long_name_hash};
use kmsfs::format::DirId;

fn tag_blocks() -> Vec<Vector> {
    let vector = |name: &str, expect: &str, what: &str, payload: [u8; BLOCK]| {
        let name = format!("tag-block-{name}");
        Vector::new(&name, "tag block", expect, what).bytes("payload", payload)
    };
    let mut block = TagBlock::empty();
    block.tags[1] = TagEntry { nonce: bytes(1), tag: bytes(2) };
    block.tags[127] = TagEntry { nonce: bytes(3), tag: bytes(4) };
    block.segment = Segment { salt: bytes(5), writes: 2, key_slot: 1 };
    block.generation = 6;
    let mut good = [0; BLOCK];
    block.encode(&mut good);
    let with = |mut bytes: [u8; BLOCK], at: usize, byte: u8| {
        bytes[at] = byte;
        bytes
    };
    vec![
        vector("ok", "ok", "two tags, segment in slot 1", good),
        vector("ok-empty", "ok", "all zero: nothing but holes", [0; BLOCK]),
        vector("slot", "Field(\"segment key slot\")", "key slot 2", with(good, 3616, 2)),
        vector("reserved", "Field(\"tag block reserved\")", "byte 3617", with(good, 3617, 1)),
        vector("end", "Field(\"tag block reserved\")", "last byte", with(good, 4095, 1)),
        vector("salt", "Field(\"empty tag block\")", "a salt, no tag", with([0; BLOCK], 3584, 1)),
        vector("count", "Field(\"empty tag block\")", "a count, no tag", with([0; BLOCK], 3600, 1)),
    ]
}

fn chunks() -> Vec<Vector> {
    let keys = file_keys(DATA_KEY);
    let plain = b"the last chunk of a file may be of any length";
    let mut data = plain.to_vec();
    let key = keys.segment_key(3, &bytes(0x33));
    let tag = key.seal_in_place(&bytes(0x44), &keys.chunk_aad(400), &mut data);
    let make = |name: &str, expect: &str, what: &str, n: [u8; 6], segment: u64, chunk: u64| {
        let [object, salt, nonce, tag_flip, data_flip, cut] = n;
        let (mut tag, mut data) = (tag, data.clone());
        tag[15] ^= tag_flip;
        data[0] ^= data_flip;
        data.truncate(data.len() - usize::from(cut));
        Vector::new(&format!("chunk-{name}"), "chunk", expect, what)
            .bytes("data key", bytes::<32>(DATA_KEY))
            .bytes("object id", bytes::<16>(object))
            .bytes("life salt", bytes::<16>(LIFE))
            .number("segment", segment)
            .bytes("segment salt", bytes::<16>(salt))
            .number("chunk", chunk)
            .bytes("nonce", bytes::<12>(nonce))
            .bytes("tag", tag)
            .bytes("plaintext", plain)
            .bytes("payload", data)
    };
    let good = [OBJECT, 0x33, 0x44, 0, 0, 0];
    let bad = |i: usize, value: u8| {
        let mut n = good;
        n[i] = value;
        n
    };
    let e = "AuthError";
    vec![
        make("ok", "ok", "45 bytes of chunk 400", good, 3, 400),
        make("object", e, "a chunk of another file", bad(0, 0), 3, 400),
        make("salt", e, "another segment salt", bad(1, 0), 3, 400),
        make("nonce", e, "another nonce", bad(2, 0), 3, 400),
        make("tag", e, "the last bit of the tag", bad(3, 1), 3, 400),
        make("bit", e, "the first bit of the ciphertext", bad(4, 0x80), 3, 400),
        make("short", e, "one byte cut off", bad(5, 1), 3, 400),
        make("segment", e, "another segment", good, 2, 400),
        make("index", e, "another place in the file", good, 3, 401),
    ]
}

fn names() -> Vec<Vector> {
    let keys = volume(1).keys;
    let vector = |name: &str, expect: &str, what: &str, stored: &str, dir: u8, plain: &[u8]| {
        with_volume(&format!("name-{name}"), "name", expect, what, 1)
            .bytes("directory id", bytes::<16>(dir))
            .text("stored", stored)
            .bytes("name", plain)
    };
    let stored = |name: &[u8]| encode_name(&keys.seal_name(DirId(bytes(DIRECTORY)), name));
    let plain = b"hello.txt";
    let good = stored(plain);
    let mut flipped = good.clone().into_bytes();
    flipped[0] = if flipped[0] == b'A' { b'B' } else { b'A' };
    let flipped = String::from_utf8(flipped).expect("ASCII");
    let one = stored(b"1");
    // 17 bytes end in a character of which only two bits count.
    let loose = format!("{}{}", &one[..22], if one.ends_with('B') { 'C' } else { 'B' });
    let (auth, base64, dir) = ("AuthError", "NotBase64", DIRECTORY);
    vec![
        vector("ok", "ok", "nine bytes", &good, dir, plain),
        vector("ok-latin1", "ok", "a name that is not UTF-8", &stored(b"caf\xe9"), dir, b"caf\xe9"),
        vector(
            "ok-175",
            "ok",
            "the longest that is stored whole",
            &stored(&[b'x'; 175]),
            dir,
            &[b'x'; 175],
        ),
        vector("dots", "NotAName", "seals the name of the parent", &stored(b".."), dir, b".."),
        vector("slash", "NotAName", "seals a path", &stored(b"a/b"), dir, b"a/b"),
        vector("none", "NotAName", "seals no byte", &stored(b""), dir, b""),
        vector("directory", auth, "moved to another directory", &good, 0, plain),
        vector("bit", auth, "one character changed", &flipped, dir, plain),
        vector("cut", auth, "shorter than a SIV", &good[..20], dir, plain),
        vector("padding", base64, "with base64 padding", &format!("{one}="), dir, b"1"),
        vector("loose-bits", base64, "unused bits not zero", &loose, dir, b"1"),
        vector(
            "alphabet",
            base64,
            "the other base64 alphabet",
            &format!("+{}", &good[1..]),
            dir,
            plain,
        ),
    ]
}

fn long_names() -> Vec<Vector> {
    let (keys, plain) = (volume(1).keys, [b'n'; 255]);
    let sealed = keys.seal_name(DirId(bytes(DIRECTORY)), &plain);
    let vector = |name: &str, expect: &str, what: &str, dir: u8, sidecar: &[u8]| {
        with_volume(&format!("long-name-{name}"), "long name", expect, what, 1)
            .bytes("directory id", bytes::<16>(dir))
            .text("stored", &format!("kmsfs.long.{}", long_name_hash(&sealed)))
            .bytes("name", plain)
            .bytes("payload", sidecar)
    };
    let mut flipped = sealed.clone();
    flipped[200] ^= 1;
    vec![
        vector("ok", "ok", "255 bytes; the payload is the sidecar", DIRECTORY, &sealed),
        vector("bit", "NameHash", "one bit of the sidecar", DIRECTORY, &flipped),
        vector("empty", "NameHash", "the sidecar is empty", DIRECTORY, &[]),
        vector("directory", "AuthError", "moved to another directory", 0, &sealed),
    ]
}

fn symlinks() -> Vec<Vector> {
    let keys = volume(1).keys;
    let vector = |name: &str, expect: &str, what: &str, stored: &str, target: &[u8]| {
        with_volume(&format!("symlink-{name}"), "symlink", expect, what, 1)
            .text("stored", stored)
            .bytes("target", target)
    };
    let target = b"../there/hello.txt";
    let good = encode_name(&keys.seal_symlink(target));
    let mut sealed = keys.seal_symlink(target);
    sealed[16] ^= 1;
    let as_name = encode_name(&keys.seal_name(DirId(bytes(DIRECTORY)), target));
    let long = [b't'; 3055];
    let stored = encode_name(&keys.seal_symlink(&long));
    vec![
        vector("ok", "ok", "a short target", &good, target),
        vector("ok-3055", "ok", "the longest target that is stored whole", &stored, &long),
        vector("bit", "AuthError", "one bit of the ciphertext", &encode_name(&sealed), target),
        vector("name", "AuthError", "a sealed name in its place", &as_name, target),
        vector("plain", "NotBase64", "a target that was never encrypted", "../there", target),
    ]
}

fn attributes() -> Vec<Vector> {
    let (keys, object, name) = (volume(1).keys, bytes::<16>(OBJECT), b"user.mime");
    let stored = |object: &[u8; 16], name: &[u8]| {
        format!("user.kmsfs.{}", encode_name(&keys.seal_xattr_name(object, name)))
    };
    let vector = |id: &str, expect: &str, what: &str, stored: &str, sealed: &[u8]| {
        with_volume(&format!("attribute-{id}"), "attribute", expect, what, 1)
            .bytes("object id", object)
            .text("stored", stored)
            .bytes("name", name)
            .bytes("value", b"text/plain")
            .bytes("payload", sealed)
    };
    let value = keys.seal_xattr_value(&object, name, b"text/plain");
    let mut flipped = value.clone();
    flipped[20] ^= 4;
    let other_object = keys.seal_xattr_value(&[0; 16], name, b"text/plain");
    let other_name = keys.seal_xattr_value(&object, b"user.type", b"text/plain");
    let good = stored(&object, name);
    let moved = good.replacen("user.", "trusted.", 1);
    let (in_name, in_value) = ("AuthError in name", "AuthError in value");
    vec![
        vector("ok", "ok", "a user attribute of a file", &good, &value),
        vector("name-object", in_name, "name of another object's", &stored(&[0; 16], name), &value),
        vector("value-object", in_value, "value of another object's", &good, &other_object),
        vector("value-name", in_value, "value of another attribute", &good, &other_name),
        vector("value-bit", in_value, "one bit of the value", &good, &flipped),
        vector("value-empty", in_value, "no bytes, not even a SIV", &good, &[]),
        vector("padding", "NotBase64", "name with padding", &format!("{good}=="), &value),
        vector("prefix", "OtherPrefix", "under another namespace's prefix", &moved, &value),
    ]
}

fn long_attributes() -> Vec<Vector> {
    let (keys, object) = (volume(1).keys, bytes::<16>(OBJECT));
    let of = |len: usize| [b"user.".as_slice(), &vec![b'n'; len - 5]].concat();
    let join = |sealed_name: &[u8], sealed_value: &[u8]| {
        [&(sealed_name.len() as u16).to_le_bytes()[..], sealed_name, sealed_value].concat()
    };
    let stored = |prefix: &str, name: &[u8]| {
        format!("{prefix}long.{}", long_name_hash(&keys.seal_xattr_name(&object, name)))
    };
    let whole = |name: &[u8]| {
        join(
            &keys.seal_xattr_name(&object, name),
            &keys.seal_xattr_value(&object, name, b"text/plain"),
        )
    };
    let vector = |id: &str, expect: &str, what: &str, stored: &str, n: &[u8], payload: &[u8]| {
        with_volume(&format!("long-attribute-{id}"), "attribute", expect, what, 1)
            .bytes("object id", object)
            .text("stored", stored)
            .bytes("name", n)
            .bytes("value", b"text/plain")
            .bytes("payload", payload)
    };
    let name = of(205);
    let (good, payload) = (stored("user.kmsfs.", &name), whole(&name));
    let other = stored("user.kmsfs.", &of(206));
    let mut flipped = payload.clone();
    flipped[100] ^= 1;
    let mut value_flipped = payload.clone();
    *value_flipped.last_mut().expect("not empty") ^= 1;
    let [shortest, short, longest, above] = [168, 167, 255, 256].map(of);
    let security = [b"security.".as_slice(), &[b'n'; 156]].concat();
    let user = |name: &[u8]| stored("user.kmsfs.", name);
    let hash = "NameHash";
    vec![
        vector("ok", "ok", "205 bytes", &good, &name, &payload),
        vector("ok-168", "ok", "the shortest", &user(&shortest), &shortest, &whole(&shortest)),
        vector("ok-255", "ok", "the longest", &user(&longest), &longest, &whole(&longest)),
        vector(
            "ok-165",
            "ok",
            "the shortest of the other prefix",
            &stored("trusted.kmsfs.", &security),
            &security,
            &whole(&security),
        ),
        vector("fits", hash, "a name that fits by itself", &user(&short), &short, &whole(&short)),
        vector("256", hash, "a name no attribute can have", &user(&above), &above, &whole(&above)),
        vector("hash", hash, "the stored name of another", &other, &name, &payload),
        vector("bit", hash, "one bit of the sealed name", &good, &name, &flipped),
        vector("cut", hash, "ends within the sealed name", &good, &name, &payload[..100]),
        vector("empty", hash, "no bytes", &good, &name, &[]),
        vector("value", "AuthError in value", "one bit of the value", &good, &name, &value_flipped),
        vector(
            "prefix",
            "OtherPrefix",
            "under the prefix of another namespace",
            &stored("trusted.kmsfs.", &name),
            &name,
            &payload,
        ),
    ]
}

fn sizes() -> Vec<Vector> {
    let mut out = Vec::new();
    for (name, blocks, size, backing) in [
        ("ok-0", 1, 0, 4096),
        ("ok-1", 1, 1, 4097),
        ("ok-64-chunks", 1, 64 * 4096, 65 * 4096),
        ("ok-tag-block", 1, 64 * 4096 + 1, 66 * 4096 + 1),
        ("ok-node", 1, 192 * 4096 + 1, 196 * 4096 + 1),
        ("ok-level-2", 1, 16448 * 4096 + 1, 16581 * 4096 + 1),
        ("ok-level-3", 2, 2_097_216 * 4096 + 1, 2_113_735 * 4096 + 1),
        ("ok-largest", 4, 1 << 53, 9_078_122_083_536_896),
    ] {
        let vector = Vector::new(&format!("size-{name}"), "size", "ok", "where a file ends");
        out.push((vector, blocks, size, backing));
    }
    let large = Vector::new("size-too-large", "size", "TooLarge", "one byte above 2^53");
    out.push((large, 1, (1 << 53) + 1, 0));
    let what = "a volume of 3 header blocks";
    let blocks = Vector::new("size-header-blocks", "size", "Field(\"header_blocks\")", what);
    out.push((blocks, 3, 1, 0));
    out.into_iter()
        .map(|(v, blocks, size, backing)| {
            v.number("header blocks", blocks).number("size", size).number("backing length", backing)
        })
        .collect()
}

fn lengths() -> Vec<Vector> {
    let full = 64 * 4096;
    [
        ("ok", "ok", "ends in a chunk", 1, 4100, 4),
        ("in-header", "NoSize", "ends in the header", 1, 4095, 0),
        ("in-second-block", "NoSize", "ends in the second header block", 2, 4097, 0),
        ("in-tag-block", "NoSize", "ends in tag block 0", 1, 65 * 4096 + 9, full),
        ("after-tag-block", "NoSize", "ends with tag block 0", 1, 66 * 4096, full),
        ("in-node", "NoSize", "ends in node 0 of level 1", 1, 194 * 4096 + 1, 3 * full),
        ("after-node", "NoSize", "ends with node 0 of level 1", 1, 195 * 4096, 3 * full),
    ]
    .into_iter()
    .map(|(name, expect, what, blocks, backing, shown)| {
        Vector::new(&format!("length-{name}"), "length", expect, what)
            .number("header blocks", blocks)
            .number("backing length", backing)
            .number("shown size", shown)
    })
    .collect()
}

pub fn all() -> Vec<Vector> {
    let many = [
        tag_blocks(),
        chunks(),
        names(),
        long_names(),
        symlinks(),
        attributes(),
        long_attributes(),
    ];
    [many.concat(), sizes(), lengths()].concat()
}
