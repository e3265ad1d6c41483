//! How many flushes an fsync costs, alone and among others.

use crate::crash::PATTERNS;
use crate::disk::SimDisk;
use crate::explore::{Inner, Recording, points};
use crate::model::Model;
use crate::oracle::{Mark, Oracle, State, Which};
use crate::runner::{Op::*, Runner};
use crate::support::Rng;
use crate::volume::Volume;
use crate::world::{Event, World};
use kmsfs::store::{Journal, Medium, Storage};
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Flushes of the journal and of files among the events.
fn flushes(disk: &SimDisk) -> (usize, usize) {
    let world = disk.world();
    let is_journal = |file: usize| {
        world.names.iter().any(|(name, id)| *id == file && crate::oracle::is_journal(name))
    };
    let (mut journal, mut files) = (0, 0);
    for event in disk.take_log() {
        match event {
            Event::Sync { file } if is_journal(file) => journal += 1,
            Event::Sync { .. } | Event::SyncAll => files += 1,
            _ => {}
        }
    }
    (journal, files)
}

#[test]
fn an_fsync_costs_as_few_flushes_as_it_can() {
    let _quiet = crate::sound();
    let volume = Volume::new(1 << 31, 1, (1 << 20, 1 << 20));
    let mut runner = Runner::new(&volume, SimDisk::default(), 1, Vec::new());
    let mut cost = |ops: &[crate::runner::Op]| {
        runner.disk.take_log();
        ops.iter().for_each(|op| runner.run(*op).unwrap());
        flushes(&runner.disk)
    };
    assert_eq!(cost(&[Create(0), Write(0, 0, 20_000), Fsync(0)]), (0, 1), "a new file");
    assert_eq!(cost(&[Write(0, 0, 9), Fsync(0)]), (2, 0), "the first record fills a journal");
    assert_eq!(cost(&[Write(0, 5000, 100), Fsync(0)]), (1, 0), "overwriting 100 bytes");
    assert_eq!(cost(&[Write(0, 4096, 4096), Fsync(0)]), (1, 0), "overwriting a block");
    assert_eq!(cost(&[Append(0, 7), Fsync(0)]), (1, 0), "a small append");
    assert_eq!(cost(&[Truncate(0, 9000), Fsync(0)]), (1, 0), "cutting");
    assert_eq!(cost(&[Punch(0, 0, 4096), Fsync(0)]), (1, 0), "punching");
    assert_eq!(cost(&[Fsync(0), Fsync(0)]), (0, 0), "nothing changed");
    assert_eq!(cost(&[Append(0, 70_000), Fsync(0)]), (1, 1), "an append of new blocks");
    assert_eq!(cost(&[Commit(0), Write(0, 0, 9), Commit(0)]), (0, 0), "a commit");
    assert_eq!(cost(&[Checkpoint(false)]), (2, 1), "records, their places, the end of the round");
    assert_eq!(cost(&[Checkpoint(false)]), (0, 0), "nothing to do");
    assert_eq!(cost(&[Create(1), Write(1, 0, 9), Fsync(1)]), (0, 1), "another new file");
    assert_eq!(cost(&[Reopen(0), Fsync(0)]), (0, 1), "a file just opened may be loose");
    assert_eq!(cost(&[Write(0, 0, 9), Fsync(0)]), (1, 0), "but only once");
}

/// A journal whose flush waits for as many records as announced.
struct SlowMedium {
    disk: SimDisk,
    hold: Arc<Hold>,
}

#[derive(Default)]
struct Hold {
    journal: OnceLock<Arc<Journal>>,
    records: AtomicU64,
    flushes: AtomicUsize,
}

struct SlowStorage {
    file: Arc<dyn Storage>,
    hold: Arc<Hold>,
}

impl Medium for SlowMedium {
    fn create(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        let (file, hold) = (self.disk.create(name)?, self.hold.clone());
        Ok(Arc::new(SlowStorage { file, hold }))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn sync_all(&self) -> io::Result<()> {
        self.disk.sync_all()
    }
}

impl Storage for SlowStorage {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.file.write_at(bufs, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.punch(offset, len)
    }
    fn reserve(&self, len: u64) -> io::Result<()> {
        self.file.reserve(len)
    }
    fn set_mtime(&self, time: (i64, u32)) -> io::Result<()> {
        self.file.set_mtime(time)
    }
    fn sync(&self) -> io::Result<()> {
        let wanted = self.hold.records.load(Ordering::SeqCst);
        let until = Instant::now() + Duration::from_secs(60);
        while wanted > 0 && self.hold.journal.get().unwrap().status().records < wanted {
            assert!(Instant::now() < until, "the others do not get their records written");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.hold.flushes.fetch_add(1, Ordering::SeqCst);
        self.file.sync()
    }
}

const THREADS: usize = 8;

#[test]
fn concurrent_fsyncs_share_a_flush() {
    let _quiet = crate::sound();
    let volume = Volume::new(1 << 31, 1, (1 << 20, 1 << 20));
    let (disk, hold) = (SimDisk::default(), Arc::new(Hold::default()));
    let medium = Arc::new(SlowMedium { disk: disk.clone(), hold: hold.clone() });
    let (id, keys) = (volume.ctx.volume, volume.ctx.keys.clone());
    let journal = Journal::with_sizes(id, keys, medium, 1 << 20..1 << 20);
    hold.journal.set(journal.clone()).ok().unwrap();
    let mut files = Vec::new();
    for n in 0..THREADS {
        let name = format!("f{n}");
        let file = disk.create_file(&name).unwrap();
        let log = volume.log(&disk, &journal, (file, &name), false, &mut Rng(n as u64));
        files.push((file, volume.create(log), Model::default()));
    }
    let write = |(file, content, model): &mut (usize, kmsfs::store::Content, Model), byte: u8| {
        content.write(5, &[byte; 9000]).unwrap();
        model.write(5, &[byte; 9000]);
        let states = vec![Arc::new(State { content: model.clone(), wrap: 0 })];
        disk.mark(Mark::Begin { file: *file, states: states.clone() });
        content.sync().unwrap();
        disk.mark(Mark::End { file: *file, states, which: Which::All });
        disk.mark(Mark::Firm { file: *file });
    };
    // The first commits are in place; the first record makes the journal.
    files.iter_mut().for_each(|file| write(file, 1));
    write(&mut files[0], 2);
    let before = hold.flushes.load(Ordering::SeqCst);
    hold.records.store(journal.status().records + THREADS as u64, Ordering::SeqCst);
    std::thread::scope(|scope| {
        for file in &mut files {
            scope.spawn(|| write(file, 3));
        }
    });
    // One that waited for all, and one for those who came after it had begun.
    let flushes = hold.flushes.load(Ordering::SeqCst) - before;
    assert!(flushes <= 2, "{flushes} flushes of {THREADS} calls");
    let (start, oracle, log) = (World::default(), Oracle::default(), disk.take_log());
    let recording = Recording { volume, start, oracle, log };
    let all = points(&recording.log);
    if let Err(error) = recording.explore(&all, usize::MAX, Inner::None, || PATTERNS.to_vec()) {
        panic!("{error}");
    }
}
