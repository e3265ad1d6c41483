//! Descriptors and directory files.

use super::*;
use kmsfs::crypto::wrap;
use kmsfs::format::descriptor::{
    Descriptor, MAX_ARGON2_KIB, MasterKdf, MasterSlot, NameMode, Params,
};
use kmsfs::format::{DirId, dirfile};

fn descriptor() -> Descriptor {
    let volume = volume(1);
    let (id, master) = (volume.id, kit::secret(&bytes::<32>(MASTER)));
    let kek = wrap::kek_from_keyfile(&kit::secret(&bytes::<32>(0x90)), &bytes(0xc0));
    let context = context(id, Purpose::Volume);
    let wrapped = volume.local.seal(&context, &kit::secret(&bytes::<32>(VOLUME_KEY))).to_vec();
    let local = Recipient { kind: RecipientKind::LocalMaster, epoch: 1, key_ref: vec![], wrapped };
    Descriptor {
        volume: id,
        params: Params {
            header_blocks: 1,
            names: NameMode::Encrypted,
            files_per_data_key: 64,
            created: 1_700_000_000,
            generation: 1,
        },
        compat: vec![],
        ro_compat: vec![],
        incompat: vec![],
        masters: vec![MasterSlot {
            kdf: MasterKdf::Keyfile,
            salt: bytes(0xc0),
            hint: "/etc/kmsfs.key".into(),
            wrapped: wrap::seal_master(&kek, id, &master),
        }],
        allowed: vec![Recipient { wrapped: vec![], ..local.clone() }],
        volume_keys: vec![local],
    }
}

fn vector(name: &str, expect: &str, what: &str, payload: &[u8]) -> Vector {
    let name = format!("descriptor-{name}");
    with_volume(&name, "descriptor", expect, what, 1).bytes("payload", payload)
}
fn encode(d: &Descriptor) -> Vec<u8> {
    d.encode(|bytes| volume(1).keys.descriptor_mac(bytes))
}
/// Sets the total length and the MAC right.
fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let total = bytes.len() as u32;
    bytes[12..16].copy_from_slice(&total.to_le_bytes());
    let end = bytes.len() - 32;
    let mac = volume(1).keys.descriptor_mac(&bytes[..end]);
    bytes[end..].copy_from_slice(&mac);
    bytes
}
/// The records of the good descriptor, each with its head.
fn records() -> Vec<Vec<u8>> {
    let good = encode(&descriptor());
    let (mut rest, mut out) = (&good[16..], Vec::new());
    while !rest.is_empty() {
        let len = 8 + u32::from_le_bytes(kit::array(&rest[4..8])) as usize;
        out.push(rest[..len].to_vec());
        rest = &rest[len..];
    }
    out
}
fn of(records: &[Vec<u8>]) -> Vec<u8> {
    seal([encode(&descriptor())[..16].to_vec(), records.concat()].concat())
}
fn record(kind: u16, payload: &[u8]) -> Vec<u8> {
    let head = [kind.to_le_bytes(), [0, 0]].concat();
    [&head[..], &(payload.len() as u32).to_le_bytes(), payload].concat()
}

/// A passphrase slot of this cost.
fn passphrase(m_kib: u32, t: u32) -> Vec<u8> {
    let mut slot = vec![2, 0, 0, 0];
    [m_kib, t, 1].iter().for_each(|n: &u32| slot.extend(n.to_le_bytes()));
    slot.extend([bytes::<16>(0xc0).as_slice(), &[0, 0], &bytes::<48>(0xd0)].concat());
    record(6, &slot)
}

/// Indices into `records()`.
const VOLUME: usize = 0;
const PARAMS: usize = 1;
const MASTER_SLOT: usize = 2;
const ALLOWED: usize = 3;
const WRAPPED: usize = 4;
const LAST: usize = 5;

/// One byte of one record changed.
fn bytes_changed() -> Vec<Vector> {
    let table: &[(&str, &str, &str, usize, usize, u8)] = &[
        ("reserved", "Field(\"record reserved\")", "reserved byte of a record", VOLUME, 2, 1),
        ("suite", "Suite(9)", "suite 9", PARAMS, 8, 9),
        ("chunk-size", "Field(\"chunk_log2\")", "chunks of 64 KiB", PARAMS, 9, 16),
        ("header-blocks", "Field(\"header_blocks\")", "3 header blocks", PARAMS, 10, 3),
        ("names", "Field(\"names\")", "names stored in a third way", PARAMS, 11, 3),
        ("generation", "Field(\"descriptor generation\")", "generation 0", PARAMS, 24, 0),
        ("files-per-key", "Field(\"files_per_data_key\")", "0 files share a key", PARAMS, 12, 0),
        ("master-kind", "Field(\"master slot kind\")", "master slot kind 3", MASTER_SLOT, 8, 3),
        ("master-zero", "Field(\"master slot reserved\")", "reserved byte", MASTER_SLOT, 11, 1),
        ("keyfile-cost", "Field(\"master slot cost\")", "key file with a cost", MASTER_SLOT, 12, 1),
        ("argon2-cost", "Field(\"master slot cost\")", "Argon2 without memory", MASTER_SLOT, 8, 2),
        ("hint-utf8", "Field(\"master slot hint\")", "hint is not UTF-8", MASTER_SLOT, 42, 0xff),
        ("hint-control", "Field(\"master slot hint\")", "a tab in the hint", MASTER_SLOT, 42, 9),
        (
            "hint-length",
            "Field(\"master slot length\")",
            "hint one byte short",
            MASTER_SLOT,
            40,
            13,
        ),
        ("allowed-kind", "Field(\"recipient kind\")", "unknown kind of key", ALLOWED, 8, 4),
        ("allowed-ref", "Field(\"recipient length\")", "reference missing", ALLOWED, 10, 1),
        (
            "wrapped-length",
            "Field(\"recipient wrapped key\")",
            "wrapped key one short",
            WRAPPED,
            12,
            47,
        ),
        ("mac", "Mac", "creation time changed, MAC left", PARAMS, 16, 1),
    ];
    let change = |(name, expect, what, index, at, new): &(&str, &str, &str, usize, usize, u8)| {
        let mut records = records();
        records[*index][*at] = *new;
        let mut bytes = of(&records);
        if *name == "mac" {
            let good = encode(&descriptor());
            let end = good.len() - 32;
            bytes[end..].copy_from_slice(&good[end..]);
        }
        vector(name, expect, what, &bytes)
    };
    table.iter().map(change).collect()
}

/// Records added, missing or out of order.
fn records_changed() -> Vec<Vector> {
    let edit = |name: &str, expect: &str, what: &str, f: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut records = records();
        f(&mut records);
        vector(name, expect, what, &of(&records))
    };
    let feature = |kind: u16, name: &[u8]| record(kind, name);
    vec![
        edit("type-9", "Field(\"record type\")", "a record of type 9", &|r| {
            r.insert(LAST, record(9, b"?"));
        }),
        edit("order", "Field(\"record order\")", "parameters before volume id", &|r| {
            r.swap(VOLUME, PARAMS);
        }),
        edit("twice", "Field(\"record order\")", "two volume ids", &|r| {
            r.insert(VOLUME, r[VOLUME].clone());
        }),
        edit("no-id", "Field(\"volume id\")", "no volume id", &|r| drop(r.remove(VOLUME))),
        edit("no-params", "Field(\"parameters\")", "no parameters", &|r| drop(r.remove(PARAMS))),
        edit("no-key", "Field(\"volume keys\")", "no wrapped volume key", &|r| {
            r.remove(WRAPPED);
        }),
        edit("id-long", "Field(\"record length\")", "a volume id of 17 bytes", &|r| {
            r[VOLUME] = record(1, &[1; 17]);
        }),
        edit("masters-17", "Field(\"record count\")", "17 master slots", &|r| {
            r.splice(MASTER_SLOT..=MASTER_SLOT, vec![r[MASTER_SLOT].clone(); 17]);
        }),
        edit("argon2-memory", "Field(\"master slot cost\")", "Argon2 in 1 GiB and 1 KiB", &|r| {
            r[MASTER_SLOT] = passphrase(MAX_ARGON2_KIB + 1, 1);
        }),
        edit("argon2-work", "Field(\"master slot cost\")", "1 GiB, 9 passes", &|r| {
            r[MASTER_SLOT] = passphrase(MAX_ARGON2_KIB, 9);
        }),
        edit("argon2-total", "Field(\"master slots cost\")", "17 GiB in three slots", &|r| {
            let slots = [(8, MAX_ARGON2_KIB), (8, MAX_ARGON2_KIB), (1, MAX_ARGON2_KIB)];
            r.splice(MASTER_SLOT..=MASTER_SLOT, slots.map(|(t, m_kib)| passphrase(m_kib, t)));
        }),
        edit("ok-argon2-most", "ok", "16 GiB in two slots", &|r| {
            let slots = [passphrase(MAX_ARGON2_KIB, 8), passphrase(MAX_ARGON2_KIB / 8, 64)];
            r.splice(MASTER_SLOT..=MASTER_SLOT, slots);
        }),
        edit("arn-space", "Field(\"recipient reference\")", "an ARN with a space", &|r| {
            let head = [3, 0, 3, 0, 0, 0, 0, 0, 1, 0, 0, 0];
            r.insert(ALLOWED + 1, record(7, &[&head[..], b"a b"].concat()));
        }),
        edit("allowed-wrapped", "Field(\"recipient wrapped key\")", "allowed, yet wrapped", &|r| {
            r[ALLOWED] = record(7, &r[WRAPPED][8..]);
        }),
        edit("feature-unknown", "Feature(\"flying\")", "an unknown incompatible feature", &|r| {
            r.insert(MASTER_SLOT, feature(5, b"flying"));
        }),
        edit("feature-read-only", "read-only: binding", "an unknown ro-compatible feature", &|r| {
            r.insert(MASTER_SLOT, feature(4, b"binding"));
        }),
        edit("feature-name", "Field(\"feature name\")", "a feature name with a space", &|r| {
            r.insert(MASTER_SLOT, feature(3, b"a b"));
        }),
        edit("feature-twice", "Field(\"feature name\")", "a feature named twice", &|r| {
            r.splice(MASTER_SLOT..MASTER_SLOT, [feature(3, b"a"), feature(3, b"a")]);
        }),
        edit("trailing", "Length(305)", "a byte after the MAC record", &|r| {
            let mac = record(0xffff, &[0; 32]);
            r[LAST] = [mac, vec![0]].concat();
        }),
    ]
}

fn start() -> Vec<Vector> {
    let good = encode(&descriptor());
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        seal(bytes)
    };
    let mut wrong_total = good.clone();
    wrong_total[12] ^= 1;
    let short = &good[..good.len() - 1];
    vec![
        vector("short", "Length(15)", "shorter than its start", &good[..15]),
        vector("cut", &format!("Length({})", short.len()), "the last byte is missing", short),
        vector("total", &format!("Length({})", good.len()), "wrong total length", &wrong_total),
        vector("magic", "Magic", "magic", &with(0, b'k')),
        vector("version-2", "Version(2)", "version 2", &with(8, 2)),
        vector("version-0", "Field(\"version\")", "version 0", &with(8, 0)),
        vector("min-reader", "Version(3)", "needs a reader of version 3", &with(10, 3)),
    ]
}

fn accepted() -> Vec<Vector> {
    let mut full = descriptor();
    let kdf = MasterKdf::Passphrase { m_kib: 65536, t: 3, p: 4 };
    let by_passphrase = MasterSlot { kdf, hint: String::new(), ..full.masters[0].clone() };
    full.masters.push(by_passphrase);
    full.compat = vec!["colour".into(), "speed".into()];
    full.params = Params {
        header_blocks: 4,
        names: NameMode::Plain,
        files_per_data_key: 65536,
        created: u64::MAX,
        generation: u64::MAX,
    };
    let (kind, key_ref) = (RecipientKind::X25519, bytes::<32>(0x11).to_vec());
    let x25519 = Recipient { kind, epoch: 1, key_ref, wrapped: bytes::<80>(0x33).to_vec() };
    full.allowed.push(Recipient { wrapped: vec![], ..x25519.clone() });
    full.volume_keys.push(x25519);
    vec![
        vector("ok", "ok", "one key file, nothing more", &encode(&descriptor())),
        vector("ok-full", "ok", "two master slots, two recipients, features", &encode(&full)),
    ]
}

fn directories() -> Vec<Vector> {
    let keys = volume(1).keys;
    let good = dirfile::encode(DirId(bytes(DIRECTORY)), |b| keys.directory_mac(b));
    let vector = |name: &str, expect: &str, what: &str, payload: &[u8]| {
        with_volume(&format!("directory-{name}"), "directory", expect, what, 1)
            .bytes("directory id", bytes::<16>(DIRECTORY))
            .bytes("payload", payload)
    };
    let with = |at: usize, byte: u8| {
        let mut bytes = good;
        bytes[at] = byte;
        let mac = keys.directory_mac(&bytes[..96]);
        bytes[96..].copy_from_slice(&mac);
        bytes
    };
    let mut other_id = good;
    other_id[16] ^= 1;
    vec![
        vector("ok", "ok", "a directory's file", &good),
        vector("short", "Length(127)", "the last byte is missing", &good[..127]),
        vector("empty", "Length(0)", "no bytes: creation was interrupted", &[]),
        vector("magic", "Magic", "magic", &with(0, 0)),
        vector("version-2", "Version(2)", "version 2", &with(8, 2)),
        vector("mac", "Mac", "another directory id, MAC left", &other_id),
        vector("reserved-10", "Field(\"directory reserved\")", "byte 10", &with(10, 1)),
        vector("binding", "Field(\"parent binding\")", "binding not zero", &with(79, 1)),
        vector("reserved-80", "Field(\"directory reserved\")", "byte 95", &with(95, 1)),
    ]
}

pub fn all() -> Vec<Vector> {
    [accepted(), start(), bytes_changed(), records_changed(), directories()].concat()
}
