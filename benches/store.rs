//! Speed of the file engine over memory: `cargo bench --bench store`.
//!
//! Prints medians of several rounds: sequential reading and writing in 1 MiB requests, overwriting,
//! small files.

use kmsfs::crypto::{BACKEND, DataKey, Secret, Vault, VolumeKey, VolumeKeys};
use kmsfs::format::header::{KeySlot, Recipient, RecipientKind};
use kmsfs::format::layout::Layout;
use kmsfs::format::{DataKeyId, VolumeId};
use kmsfs::store::content::VolumeContext;
use kmsfs::store::{Content, Storage};
use std::io::{self, IoSlice};
use std::sync::{Arc, RwLock};
use std::time::Instant;

/// A flat backing file in memory.
struct Flat(RwLock<Vec<u8>>);

impl Storage for Flat {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let data = self.0.read().unwrap();
        let from = data.len().min(offset as usize);
        let n = buf.len().min(data.len() - from);
        buf[..n].copy_from_slice(&data[from..from + n]);
        Ok(n)
    }
    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut data = self.0.write().unwrap();
        let mut at = offset as usize;
        for buf in bufs {
            if data.len() < at + buf.len() {
                data.resize(at + buf.len(), 0);
            }
            data[at..at + buf.len()].copy_from_slice(buf);
            at += buf.len();
        }
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.write().unwrap().resize(len as usize, 0);
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.read().unwrap().len() as u64)
    }
    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn reserve(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn set_mtime(&self, _: (i64, u32)) -> io::Result<()> {
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

const MIB: usize = 1 << 20;
const FILE: usize = 64 * MIB;
const ROUNDS: usize = 9;
const SMALL_FILES: usize = 2000;

struct Bed {
    ctx: Arc<VolumeContext>,
    key: Arc<DataKey>,
}

impl Bed {
    fn new() -> Self {
        let volume = VolumeId([1; 16]);
        let keys = Vault::new(VolumeKeys::derive(&VolumeKey(Secret::random()), volume));
        let layout = Layout::new(1).unwrap();
        let ctx = Arc::new(VolumeContext { volume, layout, keys, rekey_limit: 1 << 31 });
        Self { ctx, key: Arc::new(DataKey(Secret::random())) }
    }
    fn create(&self, capacity: usize) -> (Content, Arc<Flat>) {
        let mut bytes = vec![1; capacity]; // touched, so that page faults are not measured
        bytes.clear();
        let disk = Arc::new(Flat(RwLock::new(bytes)));
        let recipient = Recipient {
            kind: RecipientKind::LocalMaster,
            epoch: 1,
            key_ref: Vec::new(),
            wrapped: vec![0; 48],
        };
        let slot = KeySlot {
            data_key_id: DataKeyId([1; 16]),
            commitment: [0; 32],
            recipients: vec![recipient],
        };
        let content = Content::create(self.ctx.clone(), disk.clone(), self.key.clone(), slot);
        (content, disk)
    }
}

/// Median seconds of `ROUNDS` runs; `work` returns the seconds it counts.
fn median(mut work: impl FnMut() -> f64) -> f64 {
    let mut times: Vec<f64> = (0..ROUNDS).map(|_| work()).collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn rate(name: &str, bytes: usize, seconds: f64) {
    println!("{name:<44} {:>9.0} MB/s", bytes as f64 / seconds / 1e6);
}

fn stream(content: &Content, data: &[u8]) {
    for i in 0..FILE / data.len() {
        content.write((i * data.len()) as u64, data).unwrap();
    }
    content.commit().unwrap();
}

fn main() {
    let bed = Bed::new();
    let data = vec![7; MIB];
    println!("AEAD backend: {BACKEND}; medians of {ROUNDS} rounds, {} MiB files", FILE / MIB);
    rate("sequential write, 1 MiB, new file", FILE, {
        median(|| {
            let (content, _disk) = bed.create(FILE + FILE / 64);
            timed(|| stream(&content, &data))
        })
    });
    let (content, disk) = bed.create(FILE + FILE / 64);
    stream(&content, &data);
    rate("sequential overwrite, 1 MiB", FILE, median(|| timed(|| stream(&content, &data))));
    let page = &data[..4096];
    rate("sequential overwrite, 4 KiB", FILE, median(|| timed(|| stream(&content, page))));
    let mut buf = vec![0; MIB];
    let read_all = |content: &Content, buf: &mut [u8]| {
        for i in 0..FILE / buf.len() {
            assert_eq!(content.read((i * buf.len()) as u64, buf).unwrap(), buf.len());
        }
    };
    rate("sequential read, 1 MiB", FILE, median(|| timed(|| read_all(&content, &mut buf))));
    rate("sequential read, 4 KiB", FILE, median(|| timed(|| read_all(&content, &mut buf[..4096]))));
    small_files(&bed);
    open_and_read(&bed, disk);
}

fn small_files(bed: &Bed) {
    for size in [4096, 65_536] {
        let data = vec![3; size];
        let seconds = median(|| {
            timed(|| {
                for _ in 0..SMALL_FILES {
                    let (content, _disk) = bed.create(0);
                    content.write(0, &data).unwrap();
                    content.commit().unwrap();
                }
            })
        });
        let name = format!("create + write + commit, {size} bytes");
        println!("{name:<44} {:>9.2} us/file", seconds / SMALL_FILES as f64 * 1e6);
    }
}

fn open_and_read(bed: &Bed, disk: Arc<Flat>) {
    let mut buf = [0; 4096];
    let seconds = median(|| {
        timed(|| {
            for _ in 0..SMALL_FILES {
                let header = Content::read_header(&bed.ctx, &*disk).unwrap();
                let key = bed.key.clone();
                let content =
                    Content::open(bed.ctx.clone(), disk.clone(), header, key, None, false).unwrap();
                content.read(0, &mut buf).unwrap();
            }
        })
    });
    let name = "open + read the first 4096 bytes";
    println!("{name:<44} {:>9.2} us/file", seconds / SMALL_FILES as f64 * 1e6);
}
