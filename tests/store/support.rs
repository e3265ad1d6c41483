//! A volume without a volume: context, keys, files, random numbers from a seed.

use crate::mem::MemStorage;
use kmsfs::crypto::{DataKey, Secret, Vault, VolumeKey, VolumeKeys};
use kmsfs::format::header::{KeySlot, Recipient, RecipientKind};
use kmsfs::format::layout::Layout;
use kmsfs::format::{DataKeyId, VolumeId};
use kmsfs::store::content::VolumeContext;
use kmsfs::store::{Content, StoreError};
use std::sync::Arc;

pub const CHUNK: u64 = 4096;
/// First byte of group 0.
pub const GROUPS: u64 = 64 * CHUNK;
/// Plaintext bytes of a group.
pub const GROUP: u64 = 128 * CHUNK;

/// SplitMix64.
pub struct Rng(pub u64);
impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(n + 8);
        while out.len() < n {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(n);
        out
    }
}

/// One file of a volume in memory.
pub struct Bed {
    pub ctx: Arc<VolumeContext>,
    pub key: Arc<DataKey>,
    pub disk: Arc<MemStorage>,
}

pub fn recipient() -> Recipient {
    let (kind, key_ref) = (RecipientKind::LocalMaster, Vec::new());
    Recipient { kind, epoch: 1, key_ref, wrapped: vec![7; 48] }
}

pub fn slot() -> KeySlot {
    let recipients = vec![recipient()];
    KeySlot { data_key_id: DataKeyId([5; 16]), commitment: [0; 32], recipients }
}

pub fn context(rekey_limit: u64, header_blocks: u8) -> Arc<VolumeContext> {
    let volume = VolumeId([9; 16]);
    let keys = Vault::new(VolumeKeys::derive(&VolumeKey(Secret::random()), volume));
    let layout = Layout::new(header_blocks).unwrap();
    Arc::new(VolumeContext { volume, layout, keys, rekey_limit })
}

impl Bed {
    pub fn new() -> Self {
        Self::with(1 << 31, 1)
    }
    pub fn with(rekey_limit: u64, header_blocks: u8) -> Self {
        let ctx = context(rekey_limit, header_blocks);
        Self { ctx, key: Arc::new(DataKey(Secret::random())), disk: Arc::default() }
    }
    /// Another file of the same volume and data key.
    pub fn sibling(&self) -> Self {
        Self { ctx: self.ctx.clone(), key: self.key.clone(), disk: Arc::default() }
    }
    /// The same file on another disk.
    pub fn on(&self, disk: MemStorage) -> Self {
        Self { ctx: self.ctx.clone(), key: self.key.clone(), disk: Arc::new(disk) }
    }
    pub fn create(&self) -> Content {
        Content::create(self.ctx.clone(), self.disk.clone(), self.key.clone(), slot())
    }
    pub fn try_open(&self, writable: bool) -> Result<Content, StoreError> {
        let header = Content::read_header(&self.ctx, &*self.disk)?;
        let key = self.key.clone();
        Content::open(self.ctx.clone(), self.disk.clone(), header, key, None, writable)
    }
    pub fn open(&self) -> Content {
        self.try_open(true).unwrap()
    }
    /// A committed file with this content.
    pub fn file(&self, data: &[u8]) -> Content {
        let content = self.create();
        content.write(0, data).unwrap();
        content.commit().unwrap();
        content
    }
}

pub fn read(content: &Content, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
    let mut buf = vec![0xaa; len];
    let n = content.read(offset, &mut buf)?;
    buf.truncate(n);
    Ok(buf)
}

/// Everything a verification finds.
pub fn damage(content: &Content) -> Vec<String> {
    let mut found = Vec::new();
    content.verify(&mut |e| found.push(e.to_string())).unwrap();
    found
}
