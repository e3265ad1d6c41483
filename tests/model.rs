//! Random operations through several handles, with reopening in the middle, against a model in
//! memory. Offsets are biased to chunk, segment and group boundaries, where mistakes live.

#[path = "support/volume.rs"]
#[allow(dead_code)]
mod volume;

use std::collections::BTreeMap;

use kmsfs::format::descriptor::NameMode;
use kmsfs::fs::{Fh, Ino, SetAttr, WriteHow};
use volume::{Bench, ROOT, Tree, errno, me};

/// xorshift64*: reproducible by its seed.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    /// An offset near something interesting.
    fn offset(&mut self) -> u64 {
        const CHUNK: u64 = 4096;
        const EDGES: [u64; 7] =
            [0, CHUNK, 63 * CHUNK, 64 * CHUNK, 65 * CHUNK, 192 * CHUNK, 320 * CHUNK];
        match self.below(4) {
            0 => self.below(330 * CHUNK),
            _ => (EDGES[self.below(7) as usize] + self.below(20)).saturating_sub(self.below(20)),
        }
    }
    fn len(&mut self) -> u64 {
        match self.below(5) {
            0 => self.below(300_000),
            1 => 4096,
            _ => self.below(9000),
        }
    }
}

/// What ought to be there.
#[derive(Default)]
struct Model {
    names: BTreeMap<String, usize>,
    files: Vec<Vec<u8>>,
}

/// An open handle and the model file behind it.
struct Open {
    fh: Fh,
    ino: Ino,
    file: usize,
}

struct Run {
    rng: Rng,
    model: Model,
    open: Vec<Open>,
    log: Vec<String>,
}

const NAMES: u64 = 6;

impl Run {
    fn name(&mut self) -> String {
        match self.rng.below(NAMES) {
            0 => "l".repeat(250),
            n => format!("name-{n}"),
        }
    }

    fn step(&mut self, tree: &Tree) {
        match self.rng.below(20) {
            0 | 1 => self.create(tree),
            2 => self.open(tree),
            3 => self.unlink(tree),
            4 => self.rename(tree),
            5 => self.link(tree),
            6 => self.close(tree),
            7..=11 => self.write(tree),
            12 => self.truncate(tree),
            13 => self.punch(tree),
            14 => self.allocate(tree),
            15 => self.copy(tree),
            16 => self.sync(tree),
            17 => self.seek(tree),
            _ => self.read(tree),
        }
    }

    fn pick(&mut self) -> Option<(Fh, Ino, usize)> {
        if self.open.is_empty() {
            return None;
        }
        let at = self.rng.below(self.open.len() as u64) as usize;
        let open = &self.open[at];
        Some((open.fh, open.ino, open.file))
    }

    fn create(&mut self, tree: &Tree) {
        let name = self.name();
        self.log.push(format!("create {name:.10}"));
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        let made = tree.volume.create(me(), ROOT, name.as_bytes(), 0o644, 0, flags);
        if self.model.names.contains_key(&name) {
            assert_eq!(errno(made), libc::EEXIST);
            return;
        }
        let (attr, opened) = made.unwrap();
        self.model.files.push(Vec::new());
        let file = self.model.files.len() - 1;
        self.model.names.insert(name, file);
        self.open.push(Open { fh: opened.fh, ino: attr.ino, file });
    }

    fn open(&mut self, tree: &Tree) {
        let name = self.name();
        let truncate = self.rng.below(4) == 0;
        self.log.push(format!("open {name:.10} truncate {truncate}"));
        let Some(&file) = self.model.names.get(&name) else {
            assert_eq!(errno(tree.try_attr(&name)), libc::ENOENT);
            return;
        };
        let ino = tree.ino(&name);
        let flags = libc::O_RDWR | if truncate { libc::O_TRUNC } else { 0 };
        let opened = tree.volume.open_file(me(), ino, flags).unwrap();
        if truncate {
            self.model.files[file].clear();
        }
        self.open.push(Open { fh: opened.fh, ino, file });
    }

    fn unlink(&mut self, tree: &Tree) {
        let name = self.name();
        self.log.push(format!("unlink {name:.10}"));
        let done = tree.volume.unlink(ROOT, name.as_bytes());
        match self.model.names.remove(&name) {
            Some(_) => done.unwrap(),
            None => assert_eq!(errno(done), libc::ENOENT),
        }
    }

    fn rename(&mut self, tree: &Tree) {
        let (from, to) = (self.name(), self.name());
        self.log.push(format!("rename {from:.10} {to:.10}"));
        let done = tree.rename(&from, &to);
        let Some(&file) = self.model.names.get(&from) else {
            assert_eq!(errno(done), libc::ENOENT);
            return;
        };
        done.unwrap();
        // Two names of one file: rename does nothing.
        if self.model.names.get(&to) != Some(&file) {
            self.model.names.remove(&from);
            self.model.names.insert(to, file);
        }
    }

    fn link(&mut self, tree: &Tree) {
        let (from, to) = (self.name(), self.name());
        self.log.push(format!("link {from:.10} {to:.10}"));
        let Some(&file) = self.model.names.get(&from) else { return };
        let done = tree.volume.link(tree.ino(&from), ROOT, to.as_bytes());
        if self.model.names.contains_key(&to) {
            assert_eq!(errno(done), libc::EEXIST);
            return;
        }
        done.unwrap();
        self.model.names.insert(to, file);
    }

    fn close(&mut self, tree: &Tree) {
        if self.open.len() < 3 {
            return;
        }
        let at = self.rng.below(self.open.len() as u64) as usize;
        let open = self.open.swap_remove(at);
        self.log.push(format!("close {}", open.file));
        tree.volume.flush(open.fh).unwrap();
        tree.volume.release(open.fh);
    }

    fn write(&mut self, tree: &Tree) {
        let Some((fh, _, file)) = self.pick() else { return };
        let (offset, len, byte) = (self.rng.offset(), self.rng.len(), self.rng.next() as u8);
        self.log.push(format!("write {file} {offset} {len}"));
        let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add(i as u8)).collect();
        tree.volume.write(fh, offset, &data, WriteHow::Direct).unwrap();
        let content = &mut self.model.files[file];
        let end = (offset + len) as usize;
        if len > 0 && content.len() < end {
            content.resize(end, 0);
        }
        if len > 0 {
            content[offset as usize..end].copy_from_slice(&data);
        }
    }

    fn truncate(&mut self, tree: &Tree) {
        let Some((fh, ino, file)) = self.pick() else { return };
        let size = if self.rng.below(4) == 0 { 0 } else { self.rng.offset() };
        self.log.push(format!("truncate {file} {size}"));
        let changes = SetAttr { size: Some(size), ..SetAttr::default() };
        let fh = (self.rng.below(2) == 0).then_some(fh);
        assert_eq!(tree.volume.setattr(me(), ino, fh, changes).unwrap().size, size);
        self.model.files[file].resize(size as usize, 0);
    }

    fn punch(&mut self, tree: &Tree) {
        let Some((fh, _, file)) = self.pick() else { return };
        let (offset, len) = (self.rng.offset(), self.rng.len() + 1);
        self.log.push(format!("punch {file} {offset} {len}"));
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        tree.volume.fallocate(me(), fh, offset, len, mode).unwrap();
        let content = &mut self.model.files[file];
        let end = content.len().min((offset + len) as usize);
        if (offset as usize) < end {
            content[offset as usize..end].fill(0);
        }
    }

    fn allocate(&mut self, tree: &Tree) {
        let Some((fh, _, file)) = self.pick() else { return };
        let (offset, len) = (self.rng.offset(), self.rng.len() + 1);
        let zero = self.rng.below(2) == 0;
        self.log.push(format!("allocate {file} {offset} {len} zero {zero}"));
        let mode = if zero { libc::FALLOC_FL_ZERO_RANGE } else { 0 };
        tree.volume.fallocate(me(), fh, offset, len, mode).unwrap();
        let content = &mut self.model.files[file];
        let end = (offset + len) as usize;
        if content.len() < end {
            content.resize(end, 0);
        }
        if zero {
            content[offset as usize..end].fill(0);
        }
    }

    fn copy(&mut self, tree: &Tree) {
        let (Some(from), Some(to)) = (self.pick(), self.pick()) else { return };
        if from.2 == to.2 {
            return;
        }
        let (at, to_at, len) = (self.rng.offset(), self.rng.offset(), self.rng.len());
        self.log.push(format!("copy {} {at} to {} {to_at} len {len}", from.2, to.2));
        let n = tree.volume.copy_file_range(me(), from.0, at, to.0, to_at, len).unwrap();
        let source = &self.model.files[from.2];
        let end = source.len().min((at + len) as usize);
        let part = source.get(at as usize..end).unwrap_or(&[]).to_vec();
        assert_eq!(n, part.len() as u64);
        let content = &mut self.model.files[to.2];
        let end = to_at as usize + part.len();
        if !part.is_empty() && content.len() < end {
            content.resize(end, 0);
        }
        if !part.is_empty() {
            content[to_at as usize..end].copy_from_slice(&part);
        }
    }

    fn sync(&mut self, tree: &Tree) {
        let Some((fh, _, file)) = self.pick() else { return };
        self.log.push(format!("sync {file}"));
        match self.rng.below(3) {
            0 => tree.volume.fsync(fh, false).unwrap(),
            1 => tree.volume.flush(fh).unwrap(),
            _ => tree.volume.commit_all(false).unwrap(),
        }
    }

    fn seek(&mut self, tree: &Tree) {
        let Some((fh, _, file)) = self.pick() else { return };
        let content = &self.model.files[file];
        let mut at = 0;
        // Every byte outside the data that SEEK_DATA and SEEK_HOLE report is zero.
        while let Ok(data) = tree.volume.lseek(fh, at, libc::SEEK_DATA) {
            assert!(content[at as usize..data as usize].iter().all(|b| *b == 0));
            at = tree.volume.lseek(fh, data, libc::SEEK_HOLE).unwrap();
            assert!(at > data);
        }
        assert!(content[at as usize..].iter().all(|b| *b == 0));
    }

    fn read(&mut self, tree: &Tree) {
        let Some((fh, ino, file)) = self.pick() else { return };
        let (offset, len) = (self.rng.offset() as usize, self.rng.len() as usize);
        self.log.push(format!("read {file} {offset} {len}"));
        let mut buf = vec![0xaa; len];
        let n = tree.volume.read(fh, offset as u64, &mut buf).unwrap();
        let content = &self.model.files[file];
        let end = content.len().min(offset + len);
        assert_eq!(&buf[..n], content.get(offset..end).unwrap_or(&[]));
        assert_eq!(tree.volume.getattr(ino, None).unwrap().size, content.len() as u64);
    }

    fn check(&self, tree: &Tree) {
        let names: Vec<String> = self.model.names.keys().cloned().collect();
        assert_eq!(tree.list(""), names);
        for (name, file) in &self.model.names {
            assert!(tree.get(name) == self.model.files[*file], "{name:.10} differs");
        }
    }
}

fn run(seed: u64, steps: usize) {
    let bench = Bench::new(NameMode::Encrypted);
    let mut run =
        Run { rng: Rng(seed | 1), model: Model::default(), open: Vec::new(), log: Vec::new() };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for _ in 0..4 {
            let tree = bench.tree();
            assert!(!tree.volume.was_unclean());
            run.check(&tree);
            for _ in 0..steps / 4 {
                run.step(&tree);
            }
            run.check(&tree);
            for open in run.open.drain(..) {
                tree.volume.release(open.fh);
            }
            run.check(&tree);
            tree.volume.shutdown().unwrap();
            run.log.push("reopen".into());
        }
        run.check(&bench.tree());
    }));
    if let Err(panic) = outcome {
        eprintln!("seed {seed}; operations:\n{}", run.log.join("\n"));
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn random_operations_agree_with_the_model() {
    // More with KMSFS_MODEL_SEEDS=n.
    let seeds = std::env::var("KMSFS_MODEL_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    for seed in 1..=seeds {
        run(seed * 7919, 400);
    }
}
