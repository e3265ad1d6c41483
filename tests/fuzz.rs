//! A short seeded run of the fuzz targets' properties; cargo-fuzz runs them for longer.

#[path = "../fuzz/properties.rs"]
mod properties;

use kmsfs::format::descriptor::{Descriptor, MasterKdf, MasterSlot, NameMode, Params};
use kmsfs::format::header::{Recipient, RecipientKind};
use kmsfs::format::{DirId, dirfile};

/// A fixed sequence: the same inputs in every run.
struct Sequence(u64);

impl Sequence {
    /// xorshift64*.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// A few small defects: bytes changed, cut out, doubled, zeroed.
    fn damage(&mut self, sample: &[u8]) -> Vec<u8> {
        let mut data = sample.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(data.len());
            let end = (at + 1 + self.below(8)).min(data.len());
            match self.below(6) {
                0 => data.truncate(at),
                1 => drop(data.drain(at..end)),
                2 => data.extend_from_within(at..end),
                3 => data[at..end].fill(0),
                _ if at < data.len() => data[at] = self.next() as u8,
                _ => {}
            }
        }
        data
    }
}

/// Feeds a sound sample, damaged copies of it, and noise.
fn feed(seed: u64, sample: &[u8], property: fn(&[u8])) {
    property(sample);
    let mut sequence = Sequence(seed);
    for _ in 0..20_000 {
        property(&sequence.damage(sample));
    }
    for len in 0..200 {
        let noise: Vec<u8> = (0..len).map(|_| sequence.next() as u8).collect();
        property(&noise);
    }
}

#[test]
fn headers_have_one_form() {
    let mut sample = properties::sample_file();
    sample.truncate(4096);
    feed(1, &sample, properties::header);
}

#[test]
fn descriptors_have_one_form() {
    let local = Recipient {
        kind: RecipientKind::LocalMaster,
        epoch: 1,
        key_ref: Vec::new(),
        wrapped: Vec::new(),
    };
    let descriptor = Descriptor {
        volume: properties::VOLUME,
        params: Params {
            header_blocks: 1,
            names: NameMode::Encrypted,
            files_per_data_key: 256,
            created: 1_700_000_000,
            generation: 1,
        },
        compat: vec!["one".into()],
        ro_compat: vec![],
        incompat: vec![],
        masters: vec![MasterSlot {
            kdf: MasterKdf::Passphrase { m_kib: 65536, t: 3, p: 4 },
            salt: [5; 16],
            hint: String::new(),
            wrapped: [6; 48],
        }],
        allowed: vec![local.clone()],
        volume_keys: vec![Recipient { wrapped: vec![9; 48], ..local }],
    };
    let sample = descriptor.encode(|_| [1; 32]);
    assert!(Descriptor::parse(&sample).is_ok());
    feed(2, &sample, properties::descriptor);
}

#[test]
fn directory_ids_have_one_form() {
    let sample = dirfile::encode(DirId([4; 16]), |_| [1; 32]);
    feed(3, &sample, properties::dirfile);
}

#[test]
fn files_read_as_written() {
    let mut sequence = Sequence(4);
    for _ in 0..300 {
        let len = 8 * (1 + sequence.below(40));
        let script: Vec<u8> = (0..len).map(|_| sequence.next() as u8).collect();
        properties::store_ops(&script);
    }
}
