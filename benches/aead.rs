//! What cryptography costs per operation, single thread: chunks of 4 KiB under both AEAD backends,
//! key set-up, header MAC, tree hash, names.
//!
//! Run with `cargo bench --bench aead`. Rounds of all measurements are interleaved, so that a
//! change of clock or a busy neighbour hits all of them; the median round counts. Figures are of
//! this machine.

use kmsfs::crypto::aead::portable;
use kmsfs::crypto::{BACKEND, DataKey, FileKeys, Secret, SegmentKey, VolumeKey, VolumeKeys};
use kmsfs::format::{BLOCK, DirId, ObjectId, VolumeId};
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: usize = 21;
const NAME: &[u8] = b"a name of usual length.txt";

/// One thing measured: `run` does `per_round` operations on `bytes` bytes each.
struct Case<'a> {
    label: String,
    bytes: usize,
    per_round: u32,
    run: Box<dyn FnMut() + 'a>,
    nanos: Vec<f64>,
}

impl<'a> Case<'a> {
    fn new(label: &str, bytes: usize, per_round: u32, run: impl FnMut() + 'a) -> Self {
        Self { label: label.into(), bytes, per_round, run: Box::new(run), nanos: Vec::new() }
    }
    fn round(&mut self) {
        let start = Instant::now();
        for _ in 0..self.per_round {
            (self.run)();
        }
        self.nanos.push(start.elapsed().as_nanos() as f64 / f64::from(self.per_round));
    }
    /// Nanoseconds per operation.
    fn median(&self) -> f64 {
        let mut sorted = self.nanos.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
}

/// Sealing and opening 4 KiB with one backend.
macro_rules! backend {
    ($cases:ident, $name:expr, $key:ty) => {
        let key = std::rc::Rc::new(<$key>::new(&Secret::random()));
        let (sealer, mut data) = (key.clone(), vec![7u8; BLOCK]);
        $cases.push(Case::new(
            concat_label("seal 4 KiB, ", $name).as_str(),
            BLOCK,
            2000,
            move || {
                black_box(sealer.seal(&[1; 12], &[2; 40], black_box(&mut data)));
            },
        ));
        let mut sealed = vec![7u8; BLOCK];
        let tag = key.seal(&[1; 12], &[2; 40], &mut sealed);
        let mut data = sealed.clone();
        $cases.push(Case::new(
            concat_label("open 4 KiB, ", $name).as_str(),
            BLOCK,
            2000,
            move || {
                data.copy_from_slice(&sealed);
                key.open(&[1; 12], &[2; 40], black_box(&mut data), &tag).expect("authentic");
            },
        ));
        $cases.push(Case::new(concat_label("key set-up, ", $name).as_str(), 0, 2000, {
            let secret = Secret::random();
            move || drop(black_box(<$key>::new(black_box(&secret))))
        }));
    };
}

fn concat_label(what: &str, name: &str) -> String {
    format!("{what}{name}")
}

fn main() {
    let volume = VolumeKeys::derive(&VolumeKey(Secret::random()), VolumeId([1; 16]));
    let data_key = DataKey(Secret::random());
    let file = FileKeys::derive(&data_key, ObjectId([2; 16]), &[3; 16]);
    let (block, dir) = ([9u8; BLOCK], DirId([4; 16]));
    let sealed = volume.seal_name(dir, NAME);
    let mut cases = Vec::new();
    #[cfg(feature = "ring")]
    {
        use kmsfs::crypto::aead::ring_gcm;
        backend!(cases, ring_gcm::NAME, ring_gcm::Key);
    }
    backend!(cases, portable::NAME, portable::Key);
    cases.extend([
        Case::new("header MAC, 4064 bytes", BLOCK - 32, 500, || {
            black_box(volume.header_mac(black_box(&block[..BLOCK - 32])));
        }),
        Case::new("tree hash, 4096 bytes", BLOCK, 500, || {
            black_box(file.block_hash(0, 1, black_box(&block)));
        }),
        Case::new("seal a name of 26 bytes", 0, 2000, || {
            black_box(volume.seal_name(dir, black_box(NAME)));
        }),
        Case::new("open a name of 26 bytes", 0, 2000, || {
            black_box(volume.open_name(dir, black_box(&sealed)).expect("authentic"));
        }),
        Case::new("file keys of a header", 0, 500, || {
            black_box(FileKeys::derive(&data_key, ObjectId([2; 16]), black_box(&[3; 16])));
        }),
        Case::new("segment key, expanded", 0, 500, || {
            let key: SegmentKey = file.segment_key(black_box(1), &[5; 16]);
            drop(black_box(key));
        }),
    ]);
    for _ in 0..ROUNDS {
        cases.iter_mut().for_each(Case::round);
    }
    report(&cases);
}

fn report(cases: &[Case<'_>]) {
    println!("backend of this build: {BACKEND}; medians of {ROUNDS} interleaved rounds");
    for case in cases {
        let nanos = case.median();
        let rate = match case.bytes {
            0 => String::new(),
            bytes => format!("{:9.0} MB/s", bytes as f64 / nanos * 1000.0),
        };
        println!("{:32} {nanos:9.0} ns {rate}", case.label);
    }
    let of = |what: &str, name: &str| {
        cases.iter().find(|c| c.label == concat_label(what, name)).map(Case::median)
    };
    for what in ["seal 4 KiB, ", "open 4 KiB, "] {
        if let (Some(fast), Some(portable)) = (of(what, BACKEND), of(what, portable::NAME)) {
            println!(
                "{what}{BACKEND} is {:.2} times as fast as {}",
                portable / fast,
                portable::NAME
            );
        }
    }
}
