//! Random damage to valid structures: no parser panics, and nothing that differs is accepted.

#[path = "vectors/kit.rs"]
mod kit;

use kmsfs::crypto::{VolumeKey, VolumeKeys};
use kmsfs::format::descriptor::{Descriptor, MasterKdf, MasterSlot, NameMode, Params};
use kmsfs::format::header::{Header, KeySlot, Recipient, RecipientKind};
use kmsfs::format::layout::Layout;
use kmsfs::format::tags::{Segment, TagBlock, TagEntry};
use kmsfs::format::{BLOCK, DataKeyId, DirId, ObjectId, VolumeId, dirfile};

const VOLUME: VolumeId = VolumeId([0x11; 16]);

/// splitmix64: small, seeded, the same everywhere.
struct Random(u64);
impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// One to three changes: bits flipped, bytes overwritten, cut, extended, parts copied.
    fn damage(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = bytes.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(out.len().max(1));
            match self.below(6) {
                _ if out.is_empty() => out.push(self.next() as u8),
                0 | 1 => out[at] ^= 1 << self.below(8),
                2 => out[at] = self.next() as u8,
                3 => out.truncate(at),
                4 => out.resize(out.len() + 1 + self.below(5000), self.next() as u8 & 1),
                _ => {
                    let from = self.below(out.len());
                    let len = self.below(64).min(out.len() - from.max(at));
                    out.copy_within(from..from + len, at);
                }
            }
        }
        out
    }
}

fn keys() -> VolumeKeys {
    VolumeKeys::derive(&VolumeKey(kit::secret(&[0x22; 32])), VOLUME)
}
fn recipients() -> Vec<Recipient> {
    let recipient = |kind, r: usize, w: usize| Recipient {
        kind,
        epoch: 7,
        key_ref: vec![b'k'; r],
        wrapped: vec![b'w'; w],
    };
    vec![
        recipient(RecipientKind::LocalMaster, 0, 48),
        recipient(RecipientKind::X25519, 32, 80),
        recipient(RecipientKind::AwsKms, 75, 184),
    ]
}
fn slot(n: u8) -> KeySlot {
    let recipients = recipients();
    KeySlot { data_key_id: DataKeyId([n; 16]), commitment: [n; 32], recipients }
}
fn header() -> Header {
    let tag = |i| TagEntry { nonce: [i as u8 + 1; 12], tag: [i as u8 + 2; 16] };
    Header {
        volume: VOLUME,
        object: ObjectId([3; 16]),
        life_salt: [4; 16],
        generation: 5,
        size: 123_456,
        root_hash: [6; 32],
        wrap_epoch: 7,
        segment: Segment { salt: [8; 16], writes: 31, key_slot: 1 },
        tags: Box::new(std::array::from_fn(tag)),
        current: slot(9),
        next: Some(slot(10)),
    }
}
fn descriptor() -> Descriptor {
    let allowed = recipients().into_iter().map(|r| Recipient { wrapped: vec![], ..r }).collect();
    let kdf = MasterKdf::Passphrase { m_kib: 65536, t: 3, p: 4 };
    let slot =
        |kdf, hint: &str| MasterSlot { kdf, salt: [1; 16], hint: hint.into(), wrapped: [2; 48] };
    Descriptor {
        volume: VOLUME,
        params: Params {
            header_blocks: 1,
            names: NameMode::Encrypted,
            files_per_data_key: 64,
            created: 1,
            generation: 1,
        },
        compat: vec!["one".into(), "two".into()],
        ro_compat: vec!["three".into()],
        incompat: vec![],
        masters: vec![slot(MasterKdf::Keyfile, "/some/where"), slot(kdf, "")],
        allowed,
        volume_keys: recipients(),
    }
}
/// Parses and authenticates, as a mount does.
fn open_descriptor(bytes: &[u8], keys: &VolumeKeys) -> bool {
    Descriptor::parse(bytes).is_ok_and(|(_, maced)| {
        keys.descriptor_mac_ok(&bytes[..maced], &kit::array(&bytes[maced..]))
    })
}

/// Runs `accepts` on `rounds` damaged versions of `good`.
fn storm(seed: u64, rounds: usize, good: &[u8], accepts: impl Fn(&[u8]) -> bool) {
    let mut random = Random(seed);
    let mut damaged = 0;
    assert!(accepts(good));
    for round in 0..rounds {
        let bad = random.damage(good);
        damaged += usize::from(bad != good);
        assert!(!accepts(&bad) || bad == good, "seed {seed} round {round}: {}", kit::hex(&bad));
    }
    assert!(damaged > rounds / 2);
}

#[test]
fn damaged_headers_are_never_accepted() {
    let keys = keys();
    for (seed, blocks) in [(1, 1), (2, 2), (3, 4)] {
        let layout = Layout::new(blocks).expect("a layout");
        let good = header().encode(layout, |b| keys.header_mac(b)).expect("encodes");
        storm(seed, 10_000, &good, |bytes| {
            Header::decode(bytes, layout, VOLUME, |b, mac| keys.header_mac_ok(b, mac)).is_ok()
        });
    }
}

#[test]
fn damaged_descriptors_are_never_accepted() {
    let keys = keys();
    let good = descriptor().encode_checked(|b| keys.descriptor_mac(b)).expect("encodes");
    storm(4, 30_000, &good, |bytes| open_descriptor(bytes, &keys));
}

#[test]
fn damaged_directory_files_are_never_accepted() {
    let keys = keys();
    let good = dirfile::encode(DirId([5; 16]), |b| keys.directory_mac(b));
    storm(5, 30_000, &good, |bytes| {
        dirfile::decode(bytes, |b, mac| keys.directory_mac_ok(b, mac)).is_ok()
    });
}

/// With a MAC that accepts everything the strict checks behind it are reached: what they let pass
/// encodes to the same bytes, so no two byte strings mean the same.
#[test]
fn what_passes_without_a_mac_is_canonical() {
    let layout = Layout::new(1).expect("a layout");
    let good = header().encode(layout, |_| [0; 32]).expect("encodes");
    let mut random = Random(6);
    let mut accepted = 0;
    for round in 0..30_000 {
        let bad = random.damage(&good);
        if let Ok(h) = Header::decode(&bad, layout, VOLUME, |_, _| true) {
            let mac = kit::array(&bad[BLOCK - 32..]);
            assert_eq!(h.encode(layout, |_| mac), Ok(bad), "round {round}");
            accepted += 1;
        }
    }
    let good = descriptor().encode(|_| [0; 32]);
    for round in 0..30_000 {
        let bad = random.damage(&good);
        if let Ok((d, maced)) = Descriptor::parse(&bad) {
            let mac = kit::array(&bad[maced..]);
            assert_eq!(d.encode(|_| mac), bad, "round {round}");
            accepted += 1;
        }
    }
    assert!(accepted > 10_000, "{accepted}");
}

#[test]
fn damaged_tag_blocks_decode_to_what_they_say_or_not_at_all() {
    let tag = |i| TagEntry { nonce: [i as u8; 12], tag: [i as u8 ^ 1; 16] };
    let segment = Segment { salt: [1; 16], writes: 128, key_slot: 0 };
    let block = TagBlock { tags: std::array::from_fn(tag), segment, generation: 2 };
    let mut good = [0; BLOCK];
    block.encode(&mut good);
    let mut random = Random(7);
    for round in 0..20_000 {
        let mut bad = random.damage(&good);
        bad.resize(BLOCK, 0);
        let bad: [u8; BLOCK] = kit::array(&bad);
        if let Ok(read) = TagBlock::decode(&bad) {
            let mut again = [1; BLOCK];
            read.encode(&mut again);
            assert_eq!(again, bad, "round {round}");
        }
    }
}

/// Arbitrary bytes, not damaged ones: parsers meet them when a volume is no volume.
#[test]
fn noise_is_refused() {
    let (keys, layout) = (keys(), Layout::new(1).expect("a layout"));
    let mut random = Random(8);
    for round in 0..3_000 {
        let len = [0, 16, 128, 4096, 5000][random.below(5)];
        let mut noise: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        let magic =
            [&b"KMSFSHDR\x01\0\x01\x0c\x01"[..], b"KMSFSVOL\x01\0\x01\0", b"KMSFSDIR\x01\0"];
        let magic = magic[random.below(3)];
        if round % 2 == 0 && magic.len() <= len {
            noise[..magic.len()].copy_from_slice(magic);
        }
        assert!(Header::decode(&noise, layout, VOLUME, |_, _| true).is_err());
        assert!(dirfile::decode(&noise, |b, mac| keys.directory_mac_ok(b, mac)).is_err());
        assert!(!open_descriptor(&noise, &keys));
    }
}
