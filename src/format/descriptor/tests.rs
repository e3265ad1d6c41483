//! The descriptor: round trips, every check, and the bounds.

use super::*;
use crate::format::header::RecipientKind;
use crate::format::testing::mac;

fn local(wrapped: usize) -> Recipient {
    let wrapped = vec![4; wrapped];
    Recipient { kind: RecipientKind::LocalMaster, epoch: 1, key_ref: vec![], wrapped }
}
fn x25519(wrapped: usize) -> Recipient {
    let wrapped = vec![5; wrapped];
    Recipient { kind: RecipientKind::X25519, epoch: 2, key_ref: vec![6; 32], wrapped }
}
fn keyfile_slot() -> MasterSlot {
    MasterSlot {
        kdf: MasterKdf::Keyfile,
        salt: [7; 16],
        hint: "/etc/kmsfs/ключ".into(),
        wrapped: [8; 48],
    }
}
fn passphrase_slot() -> MasterSlot {
    let kdf = MasterKdf::Passphrase { m_kib: 65536, t: 3, p: 4 };
    MasterSlot { kdf, salt: [9; 16], hint: String::new(), wrapped: [10; 48] }
}
fn full() -> Descriptor {
    Descriptor {
        volume: VolumeId([1; 16]),
        params: Params {
            header_blocks: 2,
            names: NameMode::Plain,
            files_per_data_key: 100,
            created: 1_700_000_000,
            generation: 1,
        },
        compat: vec!["speed".into(), "colour".into()],
        ro_compat: vec!["binding".into()],
        incompat: vec![],
        masters: vec![keyfile_slot(), passphrase_slot()],
        allowed: vec![local(0), x25519(0)],
        volume_keys: vec![local(48), x25519(80)],
    }
}
fn small() -> Descriptor {
    Descriptor {
        compat: vec![],
        ro_compat: vec![],
        masters: vec![keyfile_slot()],
        allowed: vec![],
        volume_keys: vec![local(48)],
        ..full()
    }
}
fn parse(bytes: &[u8]) -> Result<Descriptor, FormatError> {
    Descriptor::parse(bytes).map(|(d, _)| d)
}
/// A descriptor of these records (type, payload) with a MAC record and the right total length.
fn of(records: &[(u16, Vec<u8>)]) -> Result<Descriptor, FormatError> {
    let mut out = b"KMSFSVOL\x01\0\x01\0\0\0\0\0".to_vec();
    for (kind, payload) in records {
        record(&mut out, *kind, payload);
    }
    record(&mut out, 0xffff, &[0; 32]);
    let total = out.len() as u32;
    out[12..16].copy_from_slice(&total.to_le_bytes());
    parse(&out)
}
/// The records of the small descriptor, of which tests change one.
fn records() -> Vec<(u16, Vec<u8>)> {
    let mut key = Vec::new();
    local(48).encode(&mut key);
    let d = small();
    vec![
        (1, d.volume.0.to_vec()),
        (2, d.params.encode().to_vec()),
        (6, keyfile_slot().encode()),
        (8, key),
    ]
}
fn with(index: usize, change: impl FnOnce(&mut Vec<u8>)) -> Result<Descriptor, FormatError> {
    let mut records = records();
    change(&mut records[index].1);
    of(&records)
}
fn plus(extra: Vec<(u16, Vec<u8>)>) -> Result<Descriptor, FormatError> {
    let mut records = records();
    records.extend(extra);
    records.sort_by_key(|(kind, _)| *kind);
    of(&records)
}
fn field<T>(name: &'static str) -> Result<T, FormatError> {
    Err(FormatError::Field(name))
}

#[test]
fn round_trips_and_the_maced_part_ends_before_the_mac() {
    for d in [full(), small()] {
        let bytes = d.encode_checked(mac).expect("encodes");
        assert_eq!(bytes, d.encode(mac));
        let (read, maced) = Descriptor::parse(&bytes).expect("parses");
        assert_eq!(read, d);
        assert_eq!(maced, bytes.len() - 32);
        assert_eq!(bytes[maced..], mac(&bytes[..maced]));
        assert_eq!(bytes[maced - 8..maced], [0xff, 0xff, 0, 0, 32, 0, 0, 0]);
    }
    assert_eq!(of(&records()), Ok(small()));
}

#[test]
fn the_start_in_its_order() {
    let mut b = full().encode(mac);
    for len in 0..16 {
        assert_eq!(parse(&b[..len]), Err(FormatError::Length(len)));
    }
    let too_long = vec![0; MAX_LEN + 1];
    assert_eq!(parse(&too_long), Err(FormatError::Length(MAX_LEN + 1)));
    assert_eq!(parse(&too_long[1..]), Err(FormatError::Magic));
    b[12] ^= 1;
    assert_eq!(parse(&b), Err(FormatError::Length(b.len())));
    b[8] = 3;
    assert_eq!(parse(&b), Err(FormatError::Version(3)));
    b[8] = 0;
    assert_eq!(parse(&b), field("version"));
    b[10] = 2;
    assert_eq!(parse(&b), Err(FormatError::Version(2)));
    b[0] = b'k';
    assert_eq!(parse(&b), Err(FormatError::Magic));
}

#[test]
fn cut_or_extended_anywhere_is_refused() {
    let good = full().encode(mac);
    for len in 16..good.len() {
        assert_eq!(parse(&good[..len]), Err(FormatError::Length(len)));
        let mut honest = good[..len].to_vec();
        honest[12..16].copy_from_slice(&(len as u32).to_le_bytes());
        assert!(parse(&honest).is_err(), "{len}");
    }
    let mut long = good.clone();
    long.push(0);
    assert_eq!(parse(&long), Err(FormatError::Length(long.len())));
    let total = long.len() as u32;
    long[12..16].copy_from_slice(&total.to_le_bytes());
    assert_eq!(parse(&long), Err(FormatError::Length(long.len())));
}

#[test]
fn records_come_in_order_and_are_known() {
    for kind in [0, 9, 10, 0x7fff, 0xfffe] {
        assert_eq!(plus(vec![(kind, vec![])]), field("record type"));
    }
    let mut swapped = records();
    swapped.swap(0, 1);
    assert_eq!(of(&swapped), field("record order"));
    assert_eq!(plus(vec![(1, vec![1; 16])]), field("record order"));
    assert_eq!(plus(vec![(2, small().params.encode().to_vec())]), field("record order"));
    let missing =
        |kind: u16| of(&records().into_iter().filter(|(k, _)| *k != kind).collect::<Vec<_>>());
    assert_eq!(missing(1), field("volume id"));
    assert_eq!(missing(2), field("parameters"));
    assert_eq!(missing(8), field("volume keys"));
    assert!(missing(6).is_ok());
    assert_eq!(with(0, |p| p.push(0)), field("record length"));
    assert_eq!(with(1, |p| p.truncate(15)), field("record length"));
    let mut bytes = small().encode(mac);
    bytes[18] = 1;
    assert_eq!(parse(&bytes), field("record reserved"));
    bytes[18] = 0;
    bytes[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(parse(&bytes), field("record length"));
}

#[test]
fn parameters_are_checked() {
    let params = |at: usize, byte: u8| with(1, |p| p[at] = byte);
    assert_eq!(params(0, 2), Err(FormatError::Suite(2)));
    assert_eq!(params(1, 13), field("chunk_log2"));
    assert_eq!(params(2, 3), field("header_blocks"));
    assert_eq!(params(3, 0), field("names"));
    assert_eq!(params(3, 3), field("names"));
    assert_eq!(params(4, 0), field("files_per_data_key"));
    assert_eq!(
        with(1, |p| p[4..8].copy_from_slice(&65537u32.to_le_bytes())),
        field("files_per_data_key")
    );
    assert!(with(1, |p| p[4..8].copy_from_slice(&65536u32.to_le_bytes())).is_ok());
    assert_eq!(with(1, |p| p[16..].fill(0)), field("descriptor generation"));
    assert!(with(1, |p| p[16..].fill(0xff)).is_ok());
}

#[test]
fn features_are_refused_by_name() {
    let feature = |kind: u16, name: &[u8]| plus(vec![(kind, name.to_vec())]);
    assert_eq!(feature(5, b"suite-fips"), Err(FormatError::Feature("suite-fips".into())));
    let read_only = feature(4, b"binding").expect("may be read");
    assert_eq!(read_only.read_only_reason(), Some("binding"));
    let ignored = feature(3, b"speed").expect("may be ignored");
    assert_eq!(ignored.read_only_reason(), None);
    for kind in 3..=5 {
        for bad in [&b""[..], &[b'x'; 65], b"two words", b"\xc3\xa9", b"nul\0", b"\x1b[31m"] {
            assert_eq!(feature(kind, bad), field("feature name"));
        }
    }
    assert!(feature(3, &[b'x'; 64]).is_ok());
    assert_eq!(plus(vec![(3, b"a".to_vec()), (3, b"a".to_vec())]), field("feature name"));
    assert!(plus(vec![(3, b"a".to_vec()), (4, b"a".to_vec())]).is_ok());
}

#[test]
fn master_slots_are_checked() {
    let slot = |at: usize, byte: u8| with(2, |p| p[at] = byte);
    assert_eq!(slot(0, 0), field("master slot kind"));
    assert_eq!(slot(0, 3), field("master slot kind"));
    assert_eq!(slot(3, 1), field("master slot reserved"));
    assert_eq!(slot(4, 1), field("master slot cost"));
    assert_eq!(slot(34, 0xff), field("master slot hint"));
    assert_eq!(with(2, |p| p.push(0)), field("master slot length"));
    assert_eq!(with(2, |p| p.truncate(p.len() - 1)), field("master slot length"));
    assert_eq!(with(2, |p| p.truncate(20)), field("master slot length"));
    let mut long = keyfile_slot();
    long.hint = "h".repeat(MAX_HINT);
    assert!(with(2, |p| *p = long.encode()).is_ok());
    long.hint.push('h');
    assert_eq!(with(2, |p| *p = long.encode()), field("master slot hint"));
    for bad in ["/k\u{1b}[31m", "/a\nb", "\u{7f}", "\u{9b}1m"] {
        let slot = MasterSlot { hint: bad.into(), ..keyfile_slot() };
        assert_eq!(with(2, |p| *p = slot.encode()), field("master slot hint"), "{bad:?}");
    }
    let mut secret = passphrase_slot();
    secret.hint = "swordfish".into();
    assert_eq!(with(2, |p| *p = secret.encode()), field("master slot hint"));
}

#[test]
fn argon2_costs_are_bounded() {
    let cost = |m_kib, t, p| {
        let kdf = MasterKdf::Passphrase { m_kib, t, p };
        with(2, |bytes| *bytes = MasterSlot { kdf, ..passphrase_slot() }.encode())
    };
    let most_passes = (MAX_ARGON2_WORK / u64::from(MAX_ARGON2_PASSES)) as u32;
    for (m, t, p) in
        [(8, 1, 1), (65536, 3, 4), (MAX_ARGON2_KIB, 8, 64), (most_passes, MAX_ARGON2_PASSES, 64)]
    {
        assert!(cost(m, t, p).is_ok());
    }
    for (m, t, p) in [
        (7, 1, 1),
        (31, 1, 4),
        (8, 0, 1),
        (8, 1, 0),
        (MAX_ARGON2_KIB + 1, 1, 1),
        (8, MAX_ARGON2_PASSES + 1, 1),
        (MAX_ARGON2_KIB, 1, 65),
        (MAX_ARGON2_KIB, 9, 1),
        (most_passes + 1, MAX_ARGON2_PASSES, 1),
        (u32::MAX, u32::MAX, u32::MAX),
    ] {
        assert_eq!(cost(m, t, p), field("master slot cost"), "{m} {t} {p}");
    }
}

#[test]
fn what_one_wrong_passphrase_may_cost_is_bounded() {
    let slot = |m_kib, t| {
        let kdf = MasterKdf::Passphrase { m_kib, t, p: 1 };
        (6, MasterSlot { kdf, ..passphrase_slot() }.encode())
    };
    assert!(plus(vec![slot(MAX_ARGON2_KIB, 8), slot(MAX_ARGON2_KIB, 8)]).is_ok());
    let more = vec![slot(MAX_ARGON2_KIB, 8), slot(MAX_ARGON2_KIB, 8), slot(8, 1)];
    assert_eq!(plus(more), field("master slots cost"));
    let d = Descriptor { masters: vec![passphrase_slot(); MAX_MASTERS], ..small() };
    assert!(d.encode_checked(mac).is_ok(), "as many as fit, at the default cost");
}

#[test]
fn key_records_are_checked() {
    let with_key = |kind: u16, recipient: &Recipient, extra: usize| {
        let mut payload = Vec::new();
        recipient.encode(&mut payload);
        payload.resize(payload.len() + extra, 0);
        plus(vec![(kind, payload)])
    };
    assert!(with_key(7, &x25519(0), 0).is_ok() && with_key(8, &x25519(80), 0).is_ok());
    assert_eq!(with_key(7, &x25519(80), 0), field("recipient wrapped key"));
    assert_eq!(with_key(8, &x25519(0), 0), field("recipient wrapped key"));
    assert_eq!(with_key(8, &local(48), 1), field("recipient length"));
    assert_eq!(with(3, |p| p.truncate(20)), field("recipient length"));
    assert_eq!(with(3, |p| p[0] = 9), field("recipient kind"));
    let arn = |key_ref: &[u8]| {
        let kind = RecipientKind::AwsKms;
        with_key(7, &Recipient { kind, epoch: 1, key_ref: key_ref.to_vec(), wrapped: vec![] }, 0)
    };
    assert!(arn(b"arn:aws:kms:eu-west-1:1:key/1").is_ok());
    for bad in [&b"two words"[..], b"\x1b[31m", b"\xc3\xa9", b"\n", b"\x7f"] {
        assert_eq!(arn(bad), field("recipient reference"));
    }
}

#[test]
fn lists_are_bounded() {
    let mut d = small();
    d.masters = vec![keyfile_slot(); MAX_MASTERS];
    d.allowed = vec![x25519(0); MAX_KEYS];
    d.volume_keys = vec![x25519(80); MAX_KEYS];
    d.compat = (0..MAX_FEATURES).map(|i| format!("f{i}")).collect();
    assert!(d.encode_checked(mac).is_ok());
    let refused = |d: Descriptor| d.encode_checked(mac).expect_err("refused");
    let count = FormatError::Field("record count");
    assert_eq!(refused(Descriptor { masters: vec![keyfile_slot(); 17], ..d.clone() }), count);
    assert_eq!(refused(Descriptor { allowed: vec![x25519(0); 65], ..d.clone() }), count);
    assert_eq!(refused(Descriptor { volume_keys: vec![x25519(80); 65], ..d.clone() }), count);
    d.compat.push("one-more".into());
    assert_eq!(refused(d), count);
}

#[test]
fn what_parses_encodes_to_the_same_bytes() {
    let good = full().encode(mac);
    let mut accepted = 0;
    for bit in 0..(good.len() - 32) * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok((d, maced)) = Descriptor::parse(&bytes) {
            let again = d.encode(mac);
            assert_eq!(again[..maced], bytes[..maced], "bit {bit}");
            accepted += 1;
        }
    }
    assert!(accepted > 1000, "{accepted}");
}

#[test]
fn golden_digest() {
    let digest: String = mac(&full().encode(mac)).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(
        digest, "0c553301a792fa233d17e196f657bc4fc57c9010bc7ced00735884de221ecb0e",
        "version bump required"
    );
}
