//! What the format tests share: hexadecimal rows, keys from fixed bytes, and a reader of one file
//! that follows section 10 of FORMAT.md over the library's format and crypto functions alone.
#![allow(dead_code)] // each test uses its part

use kmsfs::crypto::wrap::{LocalWrapKey, Purpose, context};
use kmsfs::crypto::{DataKey, FileKeys, Secret, VolumeKey, VolumeKeys};
use kmsfs::format::header::{Header, KeySlot, RecipientKind};
use kmsfs::format::layout::{self, Layout};
use kmsfs::format::tags::{Node, Segment, TagBlock, TagEntry};
use kmsfs::format::{BLOCK, FormatError, VolumeId};
use std::fmt::Write;

/// Bytes of hexadecimal text.
pub fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2) && text.is_ascii(), "odd hex: {text}");
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex"))
        .collect()
}
/// Hexadecimal text of bytes.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, b| {
        write!(out, "{b:02x}").expect("a string takes all");
        out
    })
}
/// A value in rows: its length, then every row of 32 bytes that is not all zero after its offset.
pub fn rows(value: &[u8]) -> String {
    let mut out = format!("{} bytes\n", value.len());
    for (i, row) in value.chunks(32).enumerate().filter(|(_, row)| row.iter().any(|b| *b != 0)) {
        writeln!(out, "  {:06x} {}", i * 32, hex(row)).expect("a string takes all");
    }
    out
}
/// Reverses [`rows`], taking the rows that follow from `lines`.
pub fn unrows<'a>(
    first: &str,
    lines: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>,
) -> Vec<u8> {
    let len = first.strip_suffix(" bytes").expect("a length").parse().expect("a length");
    let mut value = vec![0; len];
    while let Some(row) = lines.next_if(|line| line.starts_with("  ")) {
        let (at, bytes) = row.trim().split_once(' ').expect("offset and bytes");
        let (at, bytes) = (usize::from_str_radix(at, 16).expect("offset"), unhex(bytes));
        value[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    value
}
/// An array of bytes that must have the right length.
pub fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().unwrap_or_else(|_| panic!("{} bytes instead of {N}", bytes.len()))
}
/// A secret of fixed bytes.
pub fn secret<const N: usize>(bytes: &[u8]) -> Secret<N> {
    Secret::fill_with(|out| out.copy_from_slice(bytes))
}

/// Why a file cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub enum ReadError {
    /// A structure is not valid.
    Format(FormatError),
    /// No recipient opens.
    NoKey,
    /// The data key is not the one the slot commits to.
    Commitment,
    /// Header and tree do not belong together.
    RootHash,
    /// A tag block or node is not what its parent says.
    BlockHash,
    /// A chunk does not authenticate.
    Chunk(u64),
    /// The backing file is shorter than the header says.
    Short,
}
impl From<FormatError> for ReadError {
    fn from(e: FormatError) -> Self {
        Self::Format(e)
    }
}

/// The keys of a volume that is opened with its master key.
pub struct Volume {
    pub id: VolumeId,
    pub layout: Layout,
    pub keys: VolumeKeys,
    pub local: LocalWrapKey,
}

impl Volume {
    pub fn new(id: &[u8], key: &[u8], master: &[u8], header_blocks: u8) -> Self {
        let id = VolumeId(array(id));
        Self {
            id,
            layout: Layout::new(header_blocks).expect("header blocks"),
            keys: VolumeKeys::derive(&VolumeKey(secret(key)), id),
            local: LocalWrapKey::derive(&secret(master), id),
        }
    }
    fn file_keys(&self, header: &Header, slot: &KeySlot) -> Result<FileKeys, ReadError> {
        let context = context(self.id, Purpose::Data(slot.data_key_id));
        let data_key = slot
            .recipients
            .iter()
            .filter(|r| r.kind == RecipientKind::LocalMaster)
            .find_map(|r| self.local.open(&context, &r.wrapped).ok())
            .ok_or(ReadError::NoKey)?;
        let keys = FileKeys::derive(&DataKey(data_key), header.object, &header.life_salt);
        if keys.commits_to(&slot.commitment) { Ok(keys) } else { Err(ReadError::Commitment) }
    }
    /// The plaintext of a whole backing file.
    pub fn read(&self, backing: &[u8]) -> Result<Vec<u8>, ReadError> {
        if backing.is_empty() {
            return Ok(Vec::new());
        }
        let start = &backing[..backing.len().min(self.layout.header_len())];
        let mac_ok = |bytes: &[u8], mac: &[u8; 32]| self.keys.header_mac_ok(bytes, mac);
        let header = Header::decode(start, self.layout, self.id, mac_ok)?;
        if (backing.len() as u64) < self.layout.backing_len(header.size) {
            return Err(ReadError::Short);
        }
        let mut keys = vec![self.file_keys(&header, &header.current)?];
        if let Some(slot) = &header.next {
            keys.push(self.file_keys(&header, slot)?);
        }
        let file = File { layout: self.layout, backing, header, keys };
        let mut plain = vec![0; file.header.size as usize];
        let top = file.check_root()?;
        file.chunks(0, &file.header.segment, 0, &file.header.tags[..], &mut plain)?;
        file.subtree(file.top_level(), 0, &top, &mut plain)?;
        Ok(plain)
    }
}

struct File<'a> {
    layout: Layout,
    backing: &'a [u8],
    header: Header,
    keys: Vec<FileKeys>,
}

impl File<'_> {
    fn block(&self, offset: u64) -> &[u8; BLOCK] {
        let at = offset as usize;
        self.backing[at..].first_chunk().expect("the length was compared with the header")
    }
    fn root(&self, top: &[u8; 32]) -> [u8; 32] {
        let h = &self.header;
        self.keys[0].root_hash(h.generation, h.size, &h.segment, &h.tag_bytes(), top)
    }
    fn top_level(&self) -> u32 {
        layout::top_level(layout::groups(self.header.size))
    }
    /// Checks the root hash, before any of the content is decrypted; gives the top hash.
    fn check_root(&self) -> Result<[u8; 32], ReadError> {
        let empty = [0; 32];
        if self.root(&empty) == self.header.root_hash {
            return Ok(empty);
        }
        if layout::groups(self.header.size) == 0 {
            return Err(ReadError::RootHash);
        }
        let level = self.top_level();
        let top = self.keys[0].block_hash(level, 0, self.block(self.layout.node_offset(level, 0)));
        if self.root(&top) == self.header.root_hash { Ok(top) } else { Err(ReadError::RootHash) }
    }
    fn subtree(
        &self,
        level: u32,
        index: u64,
        hash: &[u8; 32],
        plain: &mut [u8],
    ) -> Result<(), ReadError> {
        if *hash == [0; 32] {
            return Ok(());
        }
        let block = self.block(self.layout.node_offset(level, index));
        if self.keys[0].block_hash(level, index, block) != *hash {
            return Err(ReadError::BlockHash);
        }
        if level > 0 {
            for (child, hash) in (index * 128..).zip(&Node::decode(block).children) {
                self.subtree(level - 1, child, hash, plain)?;
            }
            return Ok(());
        }
        let block = TagBlock::decode(block)?;
        self.chunks(index + 1, &block.segment, 64 + 128 * index, &block.tags, plain)
    }
    /// Decrypts the chunks of one segment.
    fn chunks(
        &self,
        number: u64,
        segment: &Segment,
        first: u64,
        tags: &[TagEntry],
        plain: &mut [u8],
    ) -> Result<(), ReadError> {
        let keys = self.keys.get(usize::from(segment.key_slot)).ok_or(ReadError::NoKey)?;
        let key = keys.segment_key(number, &segment.salt);
        for (chunk, tag) in (first..layout::chunks(self.header.size)).zip(tags) {
            if tag.is_hole() {
                continue;
            }
            let len = layout::chunk_len(self.header.size, chunk);
            let from = self.layout.chunk_offset(chunk) as usize;
            let into = &mut plain[chunk as usize * BLOCK..][..len];
            into.copy_from_slice(&self.backing[from..from + len]);
            key.open_in_place(&tag.nonce, &keys.chunk_aad(chunk), into, &tag.tag)
                .map_err(|_| ReadError::Chunk(chunk))?;
        }
        Ok(())
    }
}
