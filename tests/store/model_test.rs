//! Random operations against the model; and after each one, what a crash would leave behind.

use crate::model::Model;
use crate::support::{Bed, CHUNK, GROUP, GROUPS, Rng, read};
use kmsfs::store::{Content, Storage};

/// Bytes a run may address.
#[derive(Clone, Copy, Debug)]
enum Scale {
    Small,
    Medium,
    Huge,
}

struct Run {
    bed: Bed,
    rng: Rng,
    scale: Scale,
    content: Content,
    model: Model,
    /// The last committed state, unless a commit happened in the middle of an operation.
    firm: Option<Model>,
    generation: u64,
    trace: Vec<String>,
}

impl Run {
    fn new(seed: u64, scale: Scale) -> Self {
        let mut rng = Rng(seed);
        let limit = rng.pick(&[1 << 31, 1 << 31, 150, 400]);
        let blocks = rng.pick(&[1, 1, 2, 4]);
        let bed = Bed::with(limit, blocks);
        let content = bed.create();
        let (model, trace) = (Model::default(), Vec::new());
        Self { bed, rng, scale, content, model, firm: None, generation: 0, trace }
    }

    fn position(&mut self) -> u64 {
        let base = match self.scale {
            Scale::Small => self.rng.pick(&[0, CHUNK, 5 * CHUNK, 63 * CHUNK, GROUPS]),
            Scale::Medium => match self.rng.below(3) {
                0 => self.rng.below(GROUPS),
                1 => GROUPS + GROUP * self.rng.below(5),
                _ => self.rng.below(3 << 20),
            },
            Scale::Huge => {
                let groups = self.rng.pick(&[0, 1, 2, 127, 128, 129, 256, 16383, 16384, 16512]);
                self.rng.pick(&[0, GROUPS + GROUP * groups])
            }
        };
        let near = self.rng.pick(&[0, 0, 1, 100, 4095, 4096, 4097, 9000]);
        if self.rng.below(2) == 0 { base + near } else { base.saturating_sub(near) }
    }

    fn len(&mut self) -> usize {
        let longest = if matches!(self.scale, Scale::Small) { 5 } else { 9 };
        let of = [1, 100, 4096, 5000, 20_000, 65_536, 70_000, 300_000, 700_000];
        let len = self.rng.pick(&of[..longest]);
        len - self.rng.below(2) as usize * (len / 3)
    }

    fn step(&mut self) {
        let (pos, len) = (self.position(), self.len());
        let op = self.rng.below(20);
        self.trace.push(format!("op {op} at {pos} len {len} (size {})", self.model.size));
        match op {
            0..=7 => {
                let data = self.rng.bytes(len);
                self.content.write(pos, &data).unwrap();
                self.model.write(pos, &data);
            }
            8 | 9 => {
                let size = self.rng.pick(&[0, pos, pos, self.model.size, self.model.size + 1]);
                self.content.truncate(size).unwrap();
                self.model.truncate(size);
            }
            10 | 11 => {
                self.content.punch(pos, len as u64).unwrap();
                self.model.punch(pos, len as u64);
            }
            12 => {
                self.content.allocate(pos, len as u64, pos % 2 == 0).unwrap();
                if pos % 2 != 0 && pos + len as u64 > self.model.size {
                    self.model.truncate(pos + len as u64);
                }
            }
            13 | 14 => {
                let got = read(&self.content, pos, len).unwrap();
                assert!(got == self.model.read(pos, len), "read at {pos} + {len}");
            }
            15 | 16 => {
                assert_eq!(self.content.seek_data(pos).unwrap(), self.model.seek_data(pos));
                assert_eq!(self.content.seek_hole(pos).unwrap(), self.model.seek_hole(pos));
            }
            17 | 18 => self.commit(),
            _ => self.reopen(),
        }
        assert_eq!(self.content.size(), self.model.size);
        self.check_crash();
    }

    fn commit(&mut self) {
        self.content.commit().unwrap();
        assert!(!self.content.is_dirty());
        self.firm = Some(self.model.clone());
        self.generation = self.content.generation();
        if self.generation > 0 {
            let want = self.bed.ctx.layout.backing_len(self.model.size);
            assert_eq!(self.bed.disk.len().unwrap(), want, "backing length");
        }
    }

    fn reopen(&mut self) {
        self.commit();
        if self.generation > 0 {
            self.content = self.bed.open();
            compare(&self.content, &self.model, &mut self.rng);
        }
    }

    /// Without a commit since, a copy of the backing file must show the last committed state.
    fn check_crash(&mut self) {
        if self.content.generation() != self.generation {
            (self.firm, self.generation) = (None, self.content.generation());
        }
        let Some(firm) = self.firm.as_ref().filter(|_| self.generation > 0) else { return };
        if self.content.is_dirty() && self.rng.below(3) == 0 {
            let copy = self.bed.on(self.bed.disk.snapshot());
            compare(&copy.try_open(false).unwrap(), firm, &mut self.rng);
        }
    }
}

fn compare(content: &Content, model: &Model, rng: &mut Rng) {
    assert_eq!(content.size(), model.size);
    if model.size < 4 << 20 {
        let all = read(content, 0, model.size as usize + 10).unwrap();
        assert!(all == model.read(0, model.size as usize), "whole file differs");
        return;
    }
    let near: Vec<u64> = model.chunks.keys().copied().collect();
    for chunk in near {
        let from = (chunk * CHUNK).saturating_sub(if rng.below(9) == 0 { 5000 } else { 0 });
        let got = read(content, from, 4096).unwrap();
        assert!(got == model.read(from, 4096), "chunk {chunk} differs");
    }
    for _ in 0..5 {
        let pos = rng.below(model.size);
        assert!(read(content, pos, 70_000).unwrap() == model.read(pos, 70_000), "at {pos}");
    }
}

fn run(seed: u64, steps: usize, scale: Scale) {
    let mut run = Run::new(seed, scale);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        (0..steps).for_each(|_| run.step());
        run.reopen();
        let mut found = 0;
        if run.generation > 0 {
            run.content.verify(&mut |_| found += 1).unwrap();
        }
        assert_eq!(found, 0, "verification finds damage");
    }));
    if let Err(panic) = result {
        let from = run.trace.len().saturating_sub(15);
        eprintln!("seed {seed} {scale:?}, last steps:\n{}", run.trace[from..].join("\n"));
        std::panic::resume_unwind(panic);
    }
}

/// Seeds; `KMSFS_MODEL_SEEDS` multiplies them for a long run.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let times = std::env::var("KMSFS_MODEL_SEEDS").ok().and_then(|v| v.parse().ok()).unwrap_or(1);
    0..count * times
}

#[test]
fn small_files_follow_the_model() {
    seeds(120).for_each(|seed| run(seed, 120, Scale::Small));
}

#[test]
fn medium_files_follow_the_model() {
    seeds(20).for_each(|seed| run(1000 + seed, 100, Scale::Medium));
}

#[test]
fn huge_sparse_files_follow_the_model() {
    seeds(20).for_each(|seed| run(2000 + seed, 100, Scale::Huge));
}
