//! Whole files: what the hash tree, the commitment and the chunk cipher catch.

use super::*;

const FULL: [u8; BLOCK] = [0x5a; BLOCK];
/// Tag block on top of the tree.
const ONE_GROUP: Specimen<'static> = Specimen {
    header_blocks: 1,
    size: 65 * 4096 + 3,
    chunks: &[(0, b"first"), (1, b"second"), (64, b"group"), (65, b"end")],
    next: false,
};
/// A node on top; group 1 is all hole.
const THREE_GROUPS: Specimen<'static> = Specimen {
    header_blocks: 1,
    size: (64 + 2 * 128) * 4096 + 4,
    chunks: &[(64, b"zero"), (66, b"two"), (320, b"tail")],
    next: false,
};

fn vector(name: &str, expect: &str, what: &str, of: &Specimen<'_>, payload: &[u8]) -> Vector {
    let plain = if expect == "ok" { of.plaintext() } else { Vec::new() };
    with_volume(&format!("file-{name}"), "file", expect, what, of.header_blocks)
        .bytes("plaintext", plain)
        .bytes("payload", payload)
}
fn ok(name: &str, what: &str, of: &Specimen<'_>) -> Vector {
    vector(name, "ok", what, of, &of.make().1)
}

fn accepted() -> Vec<Vector> {
    let empty = Specimen { size: 0, chunks: &[], ..SMALL };
    let mut longer = SMALL.make().1;
    longer.extend([0xee; 100]);
    let hole = Specimen { size: 2 * 4096 + 6, chunks: &[(2, b"behind")], ..SMALL };
    let mut filled_hole = hole.make().1;
    filled_hole[4096..3 * 4096].fill(0xee);
    vec![
        vector("never-written", "ok", "backing length 0: an empty file", &empty, &[]),
        ok("ok-empty", "written and empty", &empty),
        ok("ok-small", "six bytes", &SMALL),
        ok(
            "ok-one-chunk",
            "a chunk that ends with the file",
            &Specimen { size: 4096, chunks: &[(0, &FULL)], ..SMALL },
        ),
        ok("ok-two-header-blocks", "six bytes", &Specimen { header_blocks: 2, ..SMALL }),
        ok(
            "ok-next-slot",
            "segments under the next data key",
            &Specimen { next: true, ..ONE_GROUP },
        ),
        ok("ok-one-group", "a tag block is the top of the tree", &ONE_GROUP),
        ok("ok-three-groups", "a node is the top, an empty group below", &THREE_GROUPS),
        ok("ok-all-hole", "three groups of holes", &Specimen { chunks: &[], ..THREE_GROUPS }),
        vector("ok-leftover", "ok", "the backing file is longer than the size", &SMALL, &longer),
        vector("ok-hole-filled", "ok", "bytes in the place of a hole", &hole, &filled_hole),
    ]
}

/// Six bytes and what can be wrong with them.
fn small() -> Vec<Vector> {
    let (header, good) = SMALL.make();
    let edit = |name: &str, expect: &str, what: &str, f: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        f(&mut bytes);
        vector(name, expect, what, &SMALL, &bytes)
    };
    // What only someone with the volume key could do: another root hash or MAC under right keys.
    let forge = |name: &str, expect: &str, what: &str, f: &dyn Fn(&mut Header)| {
        let (mut header, volume) = (header.clone(), volume(1));
        f(&mut header);
        let mut bytes =
            header.encode(volume.layout, |b| volume.keys.header_mac(b)).expect("encodes");
        bytes.extend(&good[BLOCK..]);
        vector(name, expect, what, &SMALL, &bytes)
    };
    vec![
        edit("chunk-bit", "Chunk(0)", "one bit of the chunk", &|b| b[BLOCK] ^= 1),
        edit("cut", "Short", "the last byte is missing", &|b| b.truncate(BLOCK + 5)),
        edit("cut-to-header", "Short", "only the header is left", &|b| b.truncate(BLOCK)),
        edit("cut-in-header", "Length(4000)", "cut within the header", &|b| b.truncate(4000)),
        edit("header-zero", "Magic", "the header block is zero", &|b| b[..BLOCK].fill(0)),
        edit("header-mac", "Mac", "one bit of a tag", &|b| b[344] ^= 1),
        forge("wrapped-key", "NoKey", "the wrapped data key is damaged", &|h| {
            h.current.recipients[0].wrapped[0] ^= 1;
        }),
        forge("data-key-id", "NoKey", "wrapped under another data key id", &|h| {
            h.current.data_key_id.0[0] ^= 1;
        }),
        forge("commitment", "Commitment", "commits to another key", &|h| {
            h.current.commitment[31] ^= 1;
        }),
        forge("life-salt", "Commitment", "another life salt", &|h| h.life_salt[0] ^= 1),
        forge("object-id", "Commitment", "another object id", &|h| h.object.0[0] ^= 1),
        forge("root-hash", "RootHash", "another root hash", &|h| h.root_hash[0] ^= 1),
        forge("generation", "RootHash", "generation of another state", &|h| h.generation = 2),
        forge("size", "RootHash", "one byte less than the tree says", &|h| h.size = 5),
        forge("segment", "RootHash", "write count of another state", &|h| h.segment.writes = 2),
        forge("tag", "RootHash", "a tag made a hole", &|h| h.tags[0] = TagEntry::HOLE),
    ]
}

fn tree() -> Vec<Vector> {
    let layout = Layout::new(1).expect("a layout");
    let edit = |of: &Specimen<'_>, name: &str, expect: &str, what: &str, f: &dyn Fn(&mut [u8])| {
        let mut bytes = of.make().1;
        f(&mut bytes);
        vector(name, expect, what, of, &bytes)
    };
    let (one, three) = (&ONE_GROUP, &THREE_GROUPS);
    let tag_block = move |group| layout.tag_block_offset(group) as usize;
    let chunk = move |index| layout.chunk_offset(index) as usize;
    let node = layout.node_offset(1, 0) as usize;
    let swap = |b: &mut [u8], x: usize, y: usize| {
        let (low, high) = b.split_at_mut(y);
        low[x..x + BLOCK].swap_with_slice(&mut high[..BLOCK]);
    };
    vec![
        edit(one, "chunks-swapped", "Chunk(0)", "chunks 0 and 1 changed places", &|b| {
            swap(b, chunk(0), chunk(1));
        }),
        edit(one, "chunk-zero", "Chunk(64)", "chunk 64 zeroed", &|b| {
            b[chunk(64)..][..BLOCK].fill(0);
        }),
        edit(one, "top-tag-block", "RootHash", "one bit of the only tag block", &|b| {
            b[tag_block(0)] ^= 1;
        }),
        edit(one, "top-zero", "RootHash", "the only tag block zeroed", &|b| {
            b[tag_block(0)..][..BLOCK].fill(0);
        }),
        edit(three, "node-bit", "RootHash", "one bit of the top node", &|b| b[node + 4095] ^= 1),
        edit(three, "node-zero", "RootHash", "the top node zeroed", &|b| {
            b[node..][..BLOCK].fill(0);
        }),
        edit(three, "tag-block-bit", "BlockHash", "one bit of tag block 2", &|b| {
            b[tag_block(2) + 27] ^= 1;
        }),
        edit(three, "tag-block-zero", "BlockHash", "tag block 0 zeroed", &|b| {
            b[tag_block(0)..][..BLOCK].fill(0);
        }),
        edit(three, "tag-blocks-swapped", "BlockHash", "tag blocks 0 and 2 swapped", &|b| {
            swap(b, tag_block(0), tag_block(2));
        }),
        edit(three, "tail-bit", "Chunk(320)", "one bit of the last chunk", &|b| {
            b[chunk(320) + 3] ^= 0x80;
        }),
    ]
}

/// Tag blocks that a hash covers and a decoder must still refuse.
fn forged_tag_blocks() -> Vec<Vector> {
    let (layout, keys, volume) =
        (Layout::new(1).expect("a layout"), file_keys(DATA_KEY), volume(1));
    let forge = |name: &str, expect: &str, what: &str, at: usize, byte: u8| {
        let (mut header, mut bytes) = ONE_GROUP.make();
        let place = layout.tag_block_offset(0) as usize;
        bytes[place + at] = byte;
        let top = keys.block_hash(0, 0, &kit::array(&bytes[place..place + BLOCK]));
        let (segment, tags) = (header.segment, header.tag_bytes());
        header.root_hash = keys.root_hash(1, header.size, &segment, &tags, &top);
        let start = header.encode(layout, |b| volume.keys.header_mac(b)).expect("encodes");
        bytes[..BLOCK].copy_from_slice(&start);
        vector(name, expect, what, &ONE_GROUP, &bytes)
    };
    vec![
        forge("group-slot", "NoKey", "the group's segment is in the empty slot", 3616, 1),
        forge("group-salt", "Chunk(64)", "another salt of the group's segment", 3584, 0),
        forge("group-reserved", "Field(\"tag block reserved\")", "last byte", 4095, 1),
    ]
}

pub fn all() -> Vec<Vector> {
    [accepted(), small(), tree(), forged_tag_blocks()].concat()
}
