//! What an fsync costs the backing disk: `cargo bench --bench flushes`.
//!
//! Prints for each operation followed by an fsync how often the journal and the file are flushed,
//! and how many bytes are written to each; then what the checkpoint behind it adds.

use kmsfs::crypto::{DataKey, Secret, Vault, VolumeKey, VolumeKeys};
use kmsfs::format::header::{KeySlot, Recipient, RecipientKind};
use kmsfs::format::layout::Layout;
use kmsfs::format::{DataKeyId, VolumeId};
use kmsfs::store::content::VolumeContext;
use kmsfs::store::{Content, FileLog, FileStorage, Journal, Medium, Storage, Whereabouts};
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A real file that counts.
struct Counted {
    file: FileStorage,
    flushes: AtomicU64,
    written: AtomicU64,
}

impl Counted {
    fn new() -> Arc<Self> {
        let file = FileStorage(tempfile::tempfile().unwrap());
        Arc::new(Self { file, flushes: AtomicU64::new(0), written: AtomicU64::new(0) })
    }
    /// Flushes and bytes since the last call.
    fn take(&self) -> (u64, u64) {
        (self.flushes.swap(0, Relaxed), self.written.swap(0, Relaxed))
    }
}

impl Storage for Counted {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.written.fetch_add(bufs.iter().map(|b| b.len() as u64).sum(), Relaxed);
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
        self.flushes.fetch_add(1, Relaxed);
        self.file.sync()
    }
}

/// Hands out one file for the journal.
struct Aside(Arc<Counted>);

impl Medium for Aside {
    fn create(&self, _: &str) -> io::Result<Arc<dyn Storage>> {
        Ok(self.0.clone())
    }
    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }
}

struct Nowhere;

impl Whereabouts for Nowhere {
    fn find(&self) -> (u64, Vec<u8>) {
        (7, b"a-backing-name-of-usual-length".to_vec())
    }
}

struct Bed {
    ctx: Arc<VolumeContext>,
    journal: Arc<Journal>,
    log: Arc<Counted>,
}

impl Bed {
    fn new() -> Self {
        let volume = VolumeId([9; 16]);
        let keys = Vault::new(VolumeKeys::derive(&VolumeKey(Secret::random()), volume));
        let layout = Layout::new(1).unwrap();
        let log = Counted::new();
        let journal = Journal::new(volume, keys.clone(), Arc::new(Aside(log.clone())));
        Self {
            ctx: Arc::new(VolumeContext { volume, layout, keys, rekey_limit: 1 << 31 }),
            journal,
            log,
        }
    }

    /// A new file of so many bytes; durable unless there are none.
    fn file(&self, size: usize) -> (Arc<Counted>, Content) {
        let disk = Counted::new();
        let file = FileLog::new(self.journal.clone(), disk.clone(), Box::new(Nowhere), false);
        let kind = RecipientKind::LocalMaster;
        let recipient = Recipient { kind, epoch: 1, key_ref: vec![], wrapped: vec![7; 48] };
        let (data_key_id, recipients) = (DataKeyId([5; 16]), vec![recipient]);
        let slot = KeySlot { data_key_id, commitment: [0; 32], recipients };
        let key = Arc::new(DataKey(Secret::random()));
        let content = Content::create(self.ctx.clone(), file, key, slot);
        if size > 0 {
            content.write(0, &vec![1; size]).unwrap();
            content.sync().unwrap();
        }
        (disk, content)
    }
}

fn main() {
    let bed = Bed::new();
    // The first record makes the journal; that is not what is measured.
    let (_, content) = bed.file(5000);
    content.write(0, b"x").unwrap();
    content.sync().unwrap();
    bed.journal.checkpoint(false).unwrap();
    println!(
        "{:<34} {:>16} {:>16}   {:>16} {:>16}",
        "", "fsync: journal", "file", "later: journal", "file"
    );
    println!("{:<34} {:>16} {:>16}   {:>16} {:>16}", "", "flushes/bytes", "", "", "");
    type Act = fn(&Content);
    let cases: [(&str, usize, Act); 9] = [
        ("new file of 4 KiB", 0, |c| c.write(0, &[2; 4096]).unwrap()),
        ("new file of 1 MiB", 0, |c| c.write(0, &vec![2; 1 << 20]).unwrap()),
        ("overwrite 100 bytes of 64 KiB", 64 << 10, |c| c.write(9000, &[2; 100]).unwrap()),
        ("overwrite 4 KiB of 64 KiB", 64 << 10, |c| c.write(8192, &[2; 4096]).unwrap()),
        ("overwrite 4 KiB of 4 MiB", 4 << 20, |c| c.write(2 << 20, &[2; 4096]).unwrap()),
        ("append 100 bytes to 5000", 5000, |c| c.write(5000, &[2; 100]).unwrap()),
        ("append 128 KiB to 1 MiB", 1 << 20, |c| c.write(1 << 20, &vec![2; 128 << 10]).unwrap()),
        ("shrink 64 KiB to 5000", 64 << 10, |c| c.truncate(5000).unwrap()),
        ("punch 16 KiB of 64 KiB", 64 << 10, |c| c.punch(8192, 16 << 10).unwrap()),
    ];
    for (name, size, act) in cases {
        for again in [false, true] {
            let (disk, content) = bed.file(size);
            if again {
                // The second in a row writes what differs from the first.
                act(&content);
                content.sync().unwrap();
            }
            disk.take();
            bed.log.take();
            act(&content);
            content.sync().unwrap();
            let at_once = (bed.log.take(), disk.take());
            bed.journal.checkpoint(false).unwrap();
            let later = (bed.log.take(), disk.take());
            let name = if again { "  once more".to_owned() } else { name.to_owned() };
            let cell = |(flushes, bytes): (u64, u64)| format!("{flushes} / {bytes}");
            let [a, b, c, d] = [at_once.0, at_once.1, later.0, later.1].map(cell);
            println!("{name:<34} {a:>16} {b:>16}   {c:>16} {d:>16}");
        }
    }
}
