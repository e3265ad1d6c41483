//! Makes all vectors from fixed keys: valid specimens, and each defect put into one of them alone.

#[path = "make/descriptors.rs"]
mod descriptors;
#[path = "make/files.rs"]
mod files;
#[path = "make/headers.rs"]
mod headers;
#[path = "make/small.rs"]
mod small;

use super::file::Vector;
use super::kit::{self, Volume};
use kmsfs::crypto::wrap::{Purpose, context};
use kmsfs::crypto::{DataKey, FileKeys};
use kmsfs::format::header::{Header, KeySlot, Recipient, RecipientKind};
use kmsfs::format::layout::{self, Layout};
use kmsfs::format::tags::{Node, Segment, TagBlock, TagEntry};
use kmsfs::format::{BLOCK, DataKeyId, ObjectId};

/// All vectors.
pub fn all() -> Vec<Vector> {
    [headers::all(), descriptors::all(), files::all(), small::all()].concat()
}

/// `N` bytes counting up from `first`.
fn bytes<const N: usize>(first: u8) -> [u8; N] {
    std::array::from_fn(|i| first.wrapping_add(i as u8))
}

const VOLUME_ID: u8 = 0x01;
const VOLUME_KEY: u8 = 0x21;
const MASTER: u8 = 0x41;
const OBJECT: u8 = 0x61;
const LIFE: u8 = 0x71;
const DATA_KEY: u8 = 0x81;
const DATA_KEY_ID: u8 = 0xa1;
const DIRECTORY: u8 = 0xb1;

fn volume(header_blocks: u8) -> Volume {
    let [id, key, master] = [VOLUME_ID, VOLUME_KEY, MASTER].map(bytes::<32>);
    Volume::new(&id[..16], &key, &master, header_blocks)
}
/// A vector with the volume's keys in it.
fn with_volume(name: &str, kind: &str, expect: &str, what: &str, header_blocks: u8) -> Vector {
    Vector::new(name, kind, expect, what)
        .bytes("volume id", bytes::<16>(VOLUME_ID))
        .bytes("volume key", bytes::<32>(VOLUME_KEY))
        .bytes("master key", bytes::<32>(MASTER))
        .number("header blocks", header_blocks.into())
}
fn file_keys(data_key: u8) -> FileKeys {
    let data_key = DataKey(kit::secret(&bytes::<32>(data_key)));
    FileKeys::derive(&data_key, ObjectId(bytes(OBJECT)), &bytes(LIFE))
}
/// A slot for the data key, wrapped by the master key.
fn slot(volume: &Volume, data_key: u8) -> KeySlot {
    let data_key_id = DataKeyId(bytes(DATA_KEY_ID ^ data_key ^ DATA_KEY));
    let context = context(volume.id, Purpose::Data(data_key_id));
    let wrapped = volume.local.seal(&context, &kit::secret(&bytes::<32>(data_key)));
    let local = Recipient {
        kind: RecipientKind::LocalMaster,
        epoch: 1,
        key_ref: vec![],
        wrapped: wrapped.to_vec(),
    };
    KeySlot { data_key_id, commitment: *file_keys(data_key).commitment(), recipients: vec![local] }
}

/// A file to be made: what is not in `chunks` is hole.
struct Specimen<'a> {
    header_blocks: u8,
    size: u64,
    chunks: &'a [(u64, &'a [u8])],
    /// Segments use the next data key.
    next: bool,
}

const SMALL: Specimen<'static> =
    Specimen { header_blocks: 1, size: 6, chunks: &[(0, b"vector")], next: false };

/// Hash of the whole tree over these tag blocks (at most 128), put into `backing` with its node.
fn plant(layout: Layout, keys: &FileKeys, blocks: &[TagBlock], backing: &mut [u8]) -> [u8; 32] {
    let mut node = Node::empty();
    let mut place = |offset: u64, block: &[u8; BLOCK]| {
        backing[offset as usize..][..BLOCK].copy_from_slice(block);
    };
    let mut block = [0; BLOCK];
    for (group, tags) in (0..).zip(blocks) {
        tags.encode(&mut block);
        node.children[group as usize] = keys.block_hash(0, group, &block);
        place(layout.tag_block_offset(group), &block);
    }
    if blocks.len() < 2 {
        return node.children[0];
    }
    node.encode(&mut block);
    place(layout.node_offset(1, 0), &block);
    keys.block_hash(1, 0, &block)
}

impl Specimen<'_> {
    fn plaintext(&self) -> Vec<u8> {
        let mut plain = vec![0; self.size as usize];
        for (chunk, data) in self.chunks {
            plain[*chunk as usize * BLOCK..][..data.len()].copy_from_slice(data);
        }
        plain
    }
    /// Header and whole backing file.
    fn make(&self) -> (Header, Vec<u8>) {
        let volume = volume(self.header_blocks);
        let layout = volume.layout;
        let keys = file_keys(if self.next { DATA_KEY + 1 } else { DATA_KEY });
        let mut backing = vec![0; layout.backing_len(self.size) as usize];
        let mut header = self.header(&volume);
        let mut blocks = vec![TagBlock::empty(); layout::groups(self.size) as usize];
        for (chunk, data) in self.chunks {
            let number = layout::group_of(*chunk).map_or(0, |group| group + 1);
            let mut body = data.to_vec();
            body.resize(layout::chunk_len(self.size, *chunk), 0);
            let (salt, nonce) = (bytes(0x80 + number as u8), bytes(*chunk as u8 + 1));
            let key = keys.segment_key(number, &salt);
            let tag = key.seal_in_place(&nonce, &keys.chunk_aad(*chunk), &mut body);
            backing[layout.chunk_offset(*chunk) as usize..][..body.len()].copy_from_slice(&body);
            let (tags, segment) = match number {
                0 => (&mut header.tags[..], &mut header.segment),
                _ => {
                    let block = &mut blocks[number as usize - 1];
                    block.generation = 1;
                    (&mut block.tags[..], &mut block.segment)
                }
            };
            tags[((chunk + 64) % if number == 0 { 64 } else { 128 }) as usize] =
                TagEntry { nonce, tag };
            *segment = Segment { salt, writes: segment.writes + 1, key_slot: u8::from(self.next) };
        }
        // The tree is under the tree key of slot 0 whatever key the chunks are under.
        let keys = file_keys(DATA_KEY);
        let top = plant(layout, &keys, &blocks, &mut backing);
        let (tags, segment) = (header.tag_bytes(), header.segment);
        header.root_hash = keys.root_hash(1, self.size, &segment, &tags, &top);
        let encoded = header.encode(layout, |b| volume.keys.header_mac(b)).expect("encodes");
        backing[..encoded.len()].copy_from_slice(&encoded);
        (header, backing)
    }
    fn header(&self, volume: &Volume) -> Header {
        Header {
            volume: volume.id,
            object: ObjectId(bytes(OBJECT)),
            life_salt: bytes(LIFE),
            generation: 1,
            size: self.size,
            root_hash: [0; 32],
            wrap_epoch: 1,
            segment: Segment::default(),
            tags: Box::new([TagEntry::HOLE; 64]),
            current: slot(volume, DATA_KEY),
            next: self.next.then(|| slot(volume, DATA_KEY + 1)),
        }
    }
}

/// Puts the right MAC back into a header.
fn remac_header(bytes: &mut [u8], header_blocks: u8) {
    let end = usize::from(header_blocks) * BLOCK - 32;
    let mac = volume(header_blocks).keys.header_mac(&bytes[..end]);
    bytes[end..end + 32].copy_from_slice(&mac);
}
