//! What must hold for every input. Run by the fuzz targets beside this file, and for a fixed number
//! of seeded inputs by `tests/fuzz.rs`.
#![allow(dead_code)]

use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};

use kmsfs::crypto::{DataKey, Secret, Vault, VolumeKey, VolumeKeys};
use kmsfs::format::descriptor::Descriptor;
use kmsfs::format::header::{Header, KeySlot, Recipient, RecipientKind};
use kmsfs::format::layout::Layout;
use kmsfs::format::{DataKeyId, VolumeId, dirfile};
use kmsfs::store::content::VolumeContext;
use kmsfs::store::{Content, Storage};

/// Volume id in every header here.
pub const VOLUME: VolumeId = VolumeId([7; 16]);

/// The last 32 bytes: where every structure has its MAC.
fn mac_of(data: &[u8]) -> [u8; 32] {
    data.last_chunk().copied().unwrap_or_default()
}

/// Whatever parses is written back byte for byte: nothing is ignored, nothing has two forms.
pub fn header(data: &[u8]) {
    for blocks in [1, 2, 4] {
        let layout = Layout::new(blocks).expect("a legal number of blocks");
        if let Ok(header) = Header::decode(data, layout, VOLUME, |_, _| true) {
            let again = header.encode(layout, |_| mac_of(data)).expect("it fitted before");
            assert!(again == data, "a header has two forms");
        }
    }
}

/// As [`header`].
pub fn descriptor(data: &[u8]) {
    if let Ok((descriptor, len)) = Descriptor::parse(data) {
        assert!(len < data.len());
        assert!(descriptor.encode(|_| mac_of(data)) == data, "a descriptor has two forms");
    }
}

/// As [`header`].
pub fn dirfile(data: &[u8]) {
    if let Ok(id) = dirfile::decode(data, |_, _| true) {
        assert!(dirfile::encode(id, |_| mac_of(data))[..] == *data, "a directory id has two forms");
    }
}

/// A backing file in memory.
#[derive(Default)]
pub struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Everything in it.
    pub fn copy(&self) -> Vec<u8> {
        self.bytes().clone()
    }
}

impl Storage for Memory {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.bytes();
        let from = bytes.len().min(offset as usize);
        let n = buf.len().min(bytes.len() - from);
        buf[..n].copy_from_slice(&bytes[from..from + n]);
        Ok(n)
    }
    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut bytes = self.bytes();
        let mut at = offset as usize;
        for buf in bufs {
            let end = at + buf.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[at..end].copy_from_slice(buf);
            at = end;
        }
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes().resize(len as usize, 0);
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut bytes = self.bytes();
        let end = bytes.len().min((offset + len) as usize);
        let from = end.min(offset as usize);
        bytes[from..end].fill(0);
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

/// One file, and what it must read as.
pub struct Pair {
    context: Arc<VolumeContext>,
    storage: Arc<Memory>,
    key: Arc<DataKey>,
    content: Content,
    model: Vec<u8>,
}

/// Largest file the operations make: beyond the second group, so that the tree has a node.
const SIZE_MAX: u64 = (64 + 128 + 20) * 4096;

impl Pair {
    /// A new file. Segment keys are replaced after few writes, so that this happens too.
    pub fn new() -> Self {
        let keys = Vault::new(VolumeKeys::derive(&VolumeKey(Secret::random()), VOLUME));
        let layout = Layout::new(1).expect("a legal number of blocks");
        let context = Arc::new(VolumeContext { volume: VOLUME, layout, keys, rekey_limit: 50 });
        let storage = Arc::new(Memory::default());
        let key = Arc::new(DataKey(Secret::random()));
        let copy = Recipient {
            kind: RecipientKind::LocalMaster,
            epoch: 1,
            key_ref: Vec::new(),
            wrapped: vec![1; 48],
        };
        let slot = KeySlot {
            data_key_id: DataKeyId([3; 16]),
            commitment: [0; 32],
            recipients: vec![copy],
        };
        let content = Content::create(context.clone(), storage.clone(), key.clone(), slot);
        Self { context, storage, key, content, model: Vec::new() }
    }

    /// One operation of 8 bytes: kind, fill, length in units of 97 bytes, offset in steps of 13.
    fn operate(&mut self, op: [u8; 8]) {
        let [kind, fill, a, b, c, d, e, _] = op;
        let len = u64::from(u16::from_le_bytes([a, b])) * 97 % (SIZE_MAX / 4);
        let offset = u64::from(u32::from_le_bytes([c, d, e, 0])) * 13 % SIZE_MAX;
        match kind % 6 {
            0 | 1 => self.write(offset, len, fill),
            2 => self.truncate(offset),
            3 => self.punch(offset, len),
            4 => self.content.commit().expect("memory takes everything"),
            _ => self.reopen(),
        }
    }

    fn write(&mut self, offset: u64, len: u64, fill: u8) {
        let data: Vec<u8> = (0..len).map(|n| fill.wrapping_add(n as u8)).collect();
        self.content.write(offset, &data).expect("memory takes everything");
        if data.is_empty() {
            return;
        }
        let end = (offset + len) as usize;
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[offset as usize..end].copy_from_slice(&data);
    }

    fn truncate(&mut self, size: u64) {
        self.content.truncate(size).expect("memory takes everything");
        self.model.resize(size as usize, 0);
    }

    fn punch(&mut self, offset: u64, len: u64) {
        self.content.punch(offset, len).expect("memory takes everything");
        let end = self.model.len().min((offset + len) as usize);
        let from = end.min(offset as usize);
        self.model[from..end].fill(0);
    }

    /// Commits, forgets everything, and opens the backing file anew.
    fn reopen(&mut self) {
        self.content.commit().expect("memory takes everything");
        if self.storage.bytes().is_empty() {
            return;
        }
        let header = Content::read_header(&self.context, &*self.storage).expect("just written");
        let (context, storage) = (self.context.clone(), self.storage.clone());
        self.content = Content::open(context, storage, header, self.key.clone(), None, true)
            .expect("just written");
        self.content.verify(&mut |error| panic!("{error}")).expect("memory can be read");
    }

    fn compare(&self) {
        assert_eq!(self.content.size(), self.model.len() as u64);
        let mut read = vec![0xee; self.model.len() + 10];
        let n = self.content.read(0, &mut read).expect("its own content");
        assert!(read[..n] == self.model, "content differs from the model");
    }
}

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}

/// Any operations in any order: the file reads as a plain vector would.
pub fn store_ops(data: &[u8]) {
    let mut pair = Pair::new();
    for op in data.as_chunks::<8>().0.iter().take(64) {
        pair.operate(*op);
    }
    pair.compare();
    pair.reopen();
    pair.compare();
}

/// The backing bytes of some file, with a valid header in front.
pub fn sample_file() -> Vec<u8> {
    let mut pair = Pair::new();
    pair.write(0, 300_000, 1);
    pair.reopen();
    pair.storage.copy()
}
