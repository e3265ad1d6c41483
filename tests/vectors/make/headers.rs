//! Headers.

use super::*;

/// Name, expected error, what is wrong, the bytes changed. Under the right MAC if it says so.
type Defect = (&'static str, &'static str, &'static str, usize, &'static [u8], bool);

/// Slot 0, its one record (12 + 48 bytes), slot 1 of a header of one block.
const SLOT: usize = 2144;
const RECORD: usize = SLOT + 56;
const NEXT: usize = SLOT + 960;

const START: &[Defect] = &[
    ("magic", "Magic", "magic", 7, b"X", true),
    ("version-0", "Field(\"version\")", "version 0", 8, &[0, 0], true),
    ("version-2", "Version(2)", "version 2", 8, &[2, 0], true),
    ("version-256", "Version(256)", "version 256: both bytes count", 8, &[0, 1], true),
    ("suite", "Suite(2)", "suite 2", 10, &[2], true),
    ("chunk-size", "Field(\"chunk_log2\")", "chunks of 8 KiB", 11, &[13], true),
    ("header-blocks", "Field(\"header_blocks\")", "says 2 blocks in a volume of 1", 12, &[2], true),
    ("other-volume", "OtherVolume", "volume id of another volume", 16, &[0], true),
    ("size-without-mac", "Mac", "size changed, MAC left", 72, &[7], false),
    ("mac", "Mac", "one bit of the MAC", 4095, &[0x55], false),
    ("reserved-13", "Field(\"header reserved\")", "reserved byte 15", 15, &[1], true),
    ("generation-0", "Field(\"generation\")", "generation 0", 64, &[0], true),
    ("size-too-large", "TooLarge", "size 2^53 + 6", 78, &[0x20], true),
    ("segment-slot-2", "Field(\"segment key slot\")", "segment 0 in key slot 2", 144, &[2], true),
    (
        "segment-slot-1",
        "Field(\"segment key slot\")",
        "segment 0 in the empty slot",
        144,
        &[1],
        true,
    ),
    ("segment-reserved", "Field(\"segment reserved\")", "reserved byte 151", 151, &[1], true),
    ("binding", "Field(\"location binding\")", "location binding not zero", 343, &[1], true),
    ("reserved-2136", "Field(\"header reserved\")", "reserved byte 2143", 2143, &[1], true),
];

const SLOTS: &[Defect] = &[
    ("slot-state", "Field(\"key slot state\")", "state 2 of slot 0", SLOT, &[2], true),
    ("slot-empty-not-zero", "Field(\"empty key slot\")", "slot 0 says empty", SLOT, &[0], true),
    ("slot-none", "Field(\"current key slot\")", "slot 0 is empty", SLOT, &[0; 116], true),
    ("next-empty-not-zero", "Field(\"empty key slot\")", "empty slot 1 not zero", 4063, &[1], true),
    ("next-state", "Field(\"key slot state\")", "state 255 of slot 1", NEXT, &[255], true),
    ("recipients-0", "Field(\"recipients\")", "no recipient", SLOT + 1, &[0], true),
    ("recipients-17", "Field(\"recipients\")", "17 recipients", SLOT + 1, &[17], true),
    ("recipients-2", "Field(\"recipient length\")", "a second one missing", SLOT + 1, &[2], true),
    ("slot-length-long", "Field(\"key slot length\")", "one byte unused", SLOT + 2, &[61], true),
    ("slot-length-short", "Field(\"recipient length\")", "one byte short", SLOT + 2, &[59], true),
    ("slot-length-slot", "Field(\"key slot length\")", "beyond the slot", SLOT + 3, &[4], true),
    ("slot-reserved", "Field(\"key slot reserved\")", "reserved byte 4", SLOT + 4, &[1], true),
    ("slot-padding", "Field(\"key slot padding\")", "last byte of slot 0", NEXT - 1, &[1], true),
    ("kind-0", "Field(\"recipient kind\")", "recipient kind 0", RECORD, &[0], true),
    ("kind-4", "Field(\"recipient kind\")", "recipient kind 4", RECORD, &[4], true),
    ("record-reserved-1", "Field(\"recipient reserved\")", "byte 1", RECORD + 1, &[1], true),
    ("record-reserved-7", "Field(\"recipient reserved\")", "byte 7", RECORD + 7, &[1], true),
    (
        "reference",
        "Field(\"recipient reference\")",
        "local master with a reference of 48 bytes",
        RECORD + 2,
        &[48, 0, 0, 0],
        true,
    ),
    (
        "wrapped",
        "Field(\"recipient wrapped key\")",
        "local master with a wrapped key of 47 bytes",
        SLOT + 2,
        &[59, 0, 0, 0, 0, 0],
        true,
    ),
];

fn vector(name: &str, expect: &str, what: &str, blocks: u8, payload: &[u8]) -> Vector {
    with_volume(&format!("header-{name}"), "header", expect, what, blocks).bytes("payload", payload)
}

fn defects() -> Vec<Vector> {
    let (_, good) = SMALL.make();
    let defect = |(name, expect, what, at, new, remac): &Defect| {
        let mut bytes = good[..BLOCK].to_vec();
        bytes[*at..at + new.len()].copy_from_slice(new);
        if *name == "wrapped" {
            bytes[RECORD + 4] = 47;
            bytes[RECORD + 59] = 0;
        }
        if *remac {
            remac_header(&mut bytes, 1);
        }
        vector(name, expect, what, 1, &bytes)
    };
    START.iter().chain(SLOTS).map(defect).collect()
}

fn full_slot(volume: &Volume) -> KeySlot {
    let mut slot = slot(volume, DATA_KEY);
    slot.recipients.push(Recipient {
        kind: RecipientKind::X25519,
        epoch: 3,
        key_ref: bytes::<32>(0x11).to_vec(),
        wrapped: bytes::<80>(0x33).to_vec(),
    });
    slot.recipients.push(Recipient {
        kind: RecipientKind::AwsKms,
        epoch: u32::MAX,
        key_ref: b"arn:aws:kms:eu-west-1:111122223333:key/1234abcd".to_vec(),
        wrapped: bytes::<184>(0x55).to_vec(),
    });
    slot
}

fn accepted() -> Vec<Vector> {
    let mut out =
        vec![vector("ok", "ok", "the header of a small file", 1, &SMALL.make().1[..BLOCK])];
    for (blocks, name) in [(2, "ok-2-blocks"), (4, "ok-4-blocks")] {
        let specimen = Specimen { header_blocks: blocks, ..SMALL };
        let (header, _) = specimen.make();
        let (volume, next) = (volume(blocks), Some(slot(&volume(blocks), DATA_KEY + 1)));
        let header = Header { current: full_slot(&volume), next, wrap_epoch: 9, ..header };
        let bytes = header.encode(volume.layout, |b| volume.keys.header_mac(b)).expect("encodes");
        let what = "three kinds of recipients, and a next key slot";
        out.push(vector(name, "ok", what, blocks, &bytes));
    }
    out
}

/// One byte more than the limits of a reference and of a wrapped key, in a slot with room for it.
fn too_long() -> Vec<Vector> {
    let mut out = Vec::new();
    for (name, reference, wrapped, field) in [
        ("reference-2049", 2049u16, 1u16, "recipient reference"),
        ("wrapped-6145", 1, 6145, "recipient wrapped key"),
    ] {
        let (_, mut bytes) = Specimen { header_blocks: 4, ..SMALL }.make();
        bytes.truncate(4 * BLOCK);
        let used = 12 + usize::from(reference + wrapped);
        bytes[SLOT + 2..SLOT + 4].copy_from_slice(&(used as u16).to_le_bytes());
        bytes[RECORD] = 3;
        bytes[RECORD + 2..RECORD + 4].copy_from_slice(&reference.to_le_bytes());
        bytes[RECORD + 4..RECORD + 6].copy_from_slice(&wrapped.to_le_bytes());
        bytes[RECORD + 12..RECORD + used].fill(b'k');
        remac_header(&mut bytes, 4);
        let expect = format!("Field({field:?})");
        out.push(vector(name, &expect, "one byte longer than allowed", 4, &bytes));
    }
    out
}

pub fn all() -> Vec<Vector> {
    let (_, good) = SMALL.make();
    let mut long = good[..BLOCK].to_vec();
    long.push(0);
    let lengths = vec![
        vector("short", "Length(4095)", "the last byte is missing", 1, &good[..BLOCK - 1]),
        vector("long", "Length(4097)", "one byte too many", 1, &long),
        vector("empty", "Length(0)", "no bytes", 1, &[]),
        vector("zero", "Magic", "all zero", 1, &[0; BLOCK]),
    ];
    [accepted(), lengths, defects(), too_long()].concat()
}
