//! The layout against an enumeration that follows the text of the format, block by block.

use super::*;
use std::collections::HashMap;

const LAYOUTS: [Layout; 3] =
    [Layout { header_blocks: 1 }, Layout { header_blocks: 2 }, Layout { header_blocks: 4 }];

/// Sizes around which things change, with their neighbours.
fn sizes() -> Vec<u64> {
    let group_ends = [0, 1, 2, 127, 128, 129, 255, 256, 16383, 16384, 16385, 1 << 21, 1 << 28];
    let mut edges = vec![0, B, 2 * B, 63 * B, 64 * B, MAX_PLAIN - 2 * B];
    edges.extend(group_ends.map(|g| (HEADER_CHUNKS + GROUP_CHUNKS * g) * B));
    let mut all: Vec<u64> = edges
        .iter()
        .flat_map(|e| [0, 1, 2, B - 1, B, B + 1].map(|d| [e.saturating_sub(d), e + d]))
        .flatten()
        .chain([MAX_PLAIN - 1, MAX_PLAIN])
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The blocks of a file of `groups` groups in the order the text of the format gives.
fn enumerate(header_blocks: u8, groups: u64) -> Vec<BlockKind> {
    let mut blocks = vec![BlockKind::Header; usize::from(header_blocks)];
    blocks.extend((0..64).map(BlockKind::Chunk));
    for group in 0..groups {
        for level in 1..=9u32 {
            if group == 128u64.pow(level - 1) {
                blocks.push(BlockKind::Node { level, index: 0 });
            } else if group > 0 && group % 128u64.pow(level) == 0 {
                blocks.push(BlockKind::Node { level, index: group / 128u64.pow(level) });
            }
        }
        blocks.push(BlockKind::TagBlock(group));
        blocks.extend((0..128).map(|c| BlockKind::Chunk(64 + 128 * group + c)));
    }
    blocks
}

fn offset_of(layout: Layout, kind: BlockKind) -> u64 {
    match kind {
        BlockKind::Header => 0,
        BlockKind::Chunk(chunk) => layout.chunk_offset(chunk),
        BlockKind::TagBlock(group) => layout.tag_block_offset(group),
        BlockKind::Node { level, index } => layout.node_offset(level, index),
    }
}

#[test]
fn only_1_2_4_header_blocks() {
    for n in 0..=255u8 {
        match Layout::new(n) {
            Ok(l) => {
                assert!([1, 2, 4].contains(&n));
                assert_eq!((l.header_blocks(), l.header_len()), (n, usize::from(n) * 4096));
            }
            Err(e) => {
                assert!(![1, 2, 4].contains(&n));
                assert_eq!(e, FormatError::Field("header_blocks"));
            }
        }
    }
}

#[test]
fn counts_at_the_edges() {
    assert_eq!([0, 1, 4095, 4096, 4097].map(chunks), [0, 1, 1, 1, 2]);
    assert_eq!([0, 63 * B, 64 * B, 64 * B + 1, 192 * B].map(groups), [0, 0, 0, 1, 1]);
    assert_eq!([192 * B + 1, 320 * B, 320 * B + 1].map(groups), [2, 2, 3]);
    assert_eq!([0, 63, 64, 191, 192].map(group_of), [None, None, Some(0), Some(0), Some(1)]);
    assert_eq!([1, 2, 128, 129, 16384, 16385, 1 << 21].map(top_level), [0, 1, 1, 2, 2, 3, 3]);
    assert_eq!((top_level(0), top_level((1 << 21) + 1)), (0, 4));
    assert_eq!([0, 1, 2, 3].map(|c| chunk_len(4096 * 2 + 5, c)), [4096, 4096, 5, 0]);
    assert_eq!((chunk_len(0, 0), chunk_len(u64::MAX, u64::MAX)), (0, 0));
    assert_eq!(check_size(MAX_PLAIN), Ok(()));
    assert_eq!(check_size(MAX_PLAIN + 1), Err(FormatError::TooLarge));
}

#[test]
fn top_level_is_the_smallest_that_spans_all_groups() {
    let near = (0..=5).flat_map(|l| [128u64.pow(l) - 1, 128u64.pow(l), 128u64.pow(l) + 1]);
    for groups in (1..40_000).chain(near).filter(|g| *g > 0) {
        let level = (0..).find(|l| 128u64.pow(*l) >= groups).expect("a level");
        assert_eq!(top_level(groups), level, "{groups} groups");
    }
}

#[test]
fn the_numbers_of_the_text() {
    let l = LAYOUTS[0];
    assert_eq!(l.chunk_offset(0), 4096);
    assert_eq!(l.chunk_offset(63), 64 * 4096);
    assert_eq!(l.tag_block_offset(0), 65 * 4096);
    assert_eq!(l.chunk_offset(64), 66 * 4096);
    assert_eq!(l.chunk_offset(191), 193 * 4096);
    assert_eq!(l.node_offset(1, 0), 194 * 4096);
    assert_eq!(l.tag_block_offset(1), 195 * 4096);
    // Before group 128: node 1 of level 1, then node 0 of level 2, then the tag block.
    assert_eq!(l.tag_block_offset(128), (65 + 129 * 128 + 3) * 4096);
    assert_eq!(l.node_offset(1, 1), l.tag_block_offset(128) - 2 * 4096);
    assert_eq!(l.node_offset(2, 0), l.tag_block_offset(128) - 4096);
}

#[test]
fn every_block_has_one_owner_and_the_formula_agrees_with_the_enumeration() {
    for layout in LAYOUTS {
        let blocks = enumerate(layout.header_blocks, 3000);
        let mut owners = HashMap::new();
        for (number, kind) in blocks.iter().enumerate() {
            let number = number as u64;
            assert_eq!(layout.block_at(number), Some(*kind), "block {number}");
            if *kind != BlockKind::Header {
                assert_eq!(offset_of(layout, *kind), number * B, "{kind:?}");
                assert!(owners.insert(*kind, number).is_none(), "{kind:?} twice");
            }
        }
    }
}

#[test]
fn every_block_has_one_owner_around_the_higher_levels() {
    let layout = LAYOUTS[0];
    for centre in [1u64 << 14, 1 << 21, 1 << 28, 3 << 14, 5 << 21, (1 << 34) - 3] {
        let first = layout.tag_block_offset(centre - 3) / B;
        let last = layout.tag_block_offset(centre + 3) / B;
        let mut nodes = 0;
        for block in first..last {
            let kind = layout.block_at(block).expect("in range");
            assert_eq!(offset_of(layout, kind), block * B, "{kind:?}");
            nodes += u64::from(matches!(kind, BlockKind::Node { .. }));
        }
        assert_eq!(last - first, 6 * 129 + nodes);
        let mut before = layout.tag_block_offset(centre) / B - 1;
        for level in (1..=9).rev() {
            let index = match centre {
                c if c == 128u64.pow(level - 1) => 0,
                c if c % 128u64.pow(level) == 0 => c / 128u64.pow(level),
                _ => continue,
            };
            assert_eq!(layout.node_offset(level, index), before * B, "level {level}");
            before -= 1;
        }
        let below = GROUP_CHUNKS * centre + HEADER_CHUNKS - 1;
        assert_eq!(layout.chunk_offset(below), before * B);
    }
}

#[test]
fn the_nodes_that_stand_in_a_file_are_those_its_tree_needs() {
    for groups in (1..700).chain([16383, 16384, 16385, 16512, 16513]) {
        let end = LAYOUTS[0].tag_block_offset(groups - 1) / B + 129;
        let top = top_level(groups);
        let needed: u64 = (1..=top).map(|level| groups.div_ceil(128u64.pow(level))).sum();
        assert_eq!(end, 65 + 129 * groups + needed, "{groups} groups");
    }
}

#[test]
fn plain_and_backing_determine_each_other() {
    for layout in LAYOUTS {
        for plain in sizes().into_iter().filter(|p| *p <= MAX_PLAIN) {
            let backing = layout.backing_len(plain);
            assert_eq!(layout.plain_len(backing), Some(plain), "{plain}");
            assert_eq!(layout.plain_len_floor(backing), plain);
        }
        assert_eq!((layout.plain_len(0), layout.plain_len_floor(0)), (Some(0), 0));
    }
}

#[test]
fn bijection_byte_by_byte_over_two_groups() {
    for layout in LAYOUTS {
        let mut next = 0; // largest plain size seen
        let end = layout.backing_len((64 + 129) * B + 10);
        let mut seen = 0u64;
        for backing in layout.header_len() as u64..=end {
            match layout.plain_len(backing) {
                Some(plain) => {
                    assert_eq!(layout.backing_len(plain), backing);
                    assert!(backing == layout.header_len() as u64 || plain == next + 1);
                    next = plain;
                    seen += 1;
                }
                None => assert_eq!(layout.plain_len_floor(backing), next, "{backing}"),
            }
        }
        assert_eq!(seen, (64 + 129) * B + 11);
        for backing in 1..layout.header_len() as u64 {
            assert_eq!((layout.plain_len(backing), layout.plain_len_floor(backing)), (None, 0));
        }
    }
}

#[test]
fn lengths_grow_strictly() {
    for layout in LAYOUTS {
        let sizes: Vec<u64> = sizes().into_iter().filter(|p| *p <= MAX_PLAIN).collect();
        for pair in sizes.windows(2) {
            assert!(layout.backing_len(pair[0]) < layout.backing_len(pair[1]), "{pair:?}");
        }
        let floors: Vec<u64> =
            (0..700 * B).step_by(509).map(|b| layout.plain_len_floor(b)).collect();
        assert!(floors.is_sorted());
    }
}

#[test]
fn lengths_ending_in_a_tag_block_or_node_belong_to_no_size() {
    let layout = LAYOUTS[0];
    for group in [0u64, 1, 2, 127, 128, 129, 16383, 16384, 16385, 1 << 21] {
        let tag_block = layout.tag_block_offset(group);
        let full = (HEADER_CHUNKS + GROUP_CHUNKS * group) * B;
        let end = layout.backing_len(full);
        assert_eq!(layout.plain_len(end), Some(full));
        for backing in [end + 1, end + B, tag_block, tag_block + 1, tag_block + B] {
            if backing > end {
                assert_eq!(layout.plain_len(backing), None, "group {group} length {backing}");
                assert_eq!(layout.plain_len_floor(backing), full);
            }
        }
        assert_eq!(layout.plain_len(tag_block + B + 1), Some(full + 1));
    }
}

#[test]
fn the_ends_of_the_world() {
    for layout in LAYOUTS {
        let end = layout.backing_len(MAX_PLAIN);
        assert!(end < i64::MAX as u64);
        assert_eq!(layout.plain_len(end), Some(MAX_PLAIN));
        assert_eq!(layout.backing_len(MAX_PLAIN + 1), NOWHERE);
        for backing in [end + 1, end + B, end + 200 * B, 1 << 60, u64::MAX - 1, u64::MAX] {
            assert_eq!(layout.plain_len(backing), None);
            assert_eq!(layout.plain_len_floor(backing), MAX_PLAIN);
        }
        for n in [1 << 50, u64::MAX / 2, u64::MAX] {
            assert_eq!(layout.chunk_offset(n), NOWHERE);
            assert_eq!(layout.tag_block_offset(n), NOWHERE);
            assert_eq!(layout.node_offset(1, n), NOWHERE);
            assert_eq!(layout.node_offset(u32::MAX, n), NOWHERE);
            assert_eq!(layout.block_at(n), None);
        }
        assert_eq!(layout.node_offset(0, 7), layout.tag_block_offset(7));
        assert_eq!(layout.node_offset(7, 0), NOWHERE);
    }
}

#[test]
fn overhead_is_one_block_up_to_256_kib_and_one_percent_beyond_8_mib() {
    let layout = LAYOUTS[0];
    for plain in 1..=256 << 10 {
        assert_eq!(layout.backing_len(plain) - plain, 4096);
    }
    let small = (8 << 20..1u64 << 30).step_by(4096).flat_map(|p| [p, p + 1]);
    let large = (30..53).flat_map(|log| (0..64u64).map(move |i| (1 << log) + i * (129 << 12) + 1));
    for plain in small.chain(large) {
        let overhead = layout.backing_len(plain) - plain;
        assert!(overhead * 100 <= plain, "{overhead} bytes over {plain}");
    }
}

/// A change of any of these numbers makes existing volumes unreadable.
#[test]
fn golden_offsets() {
    let offsets: Vec<u64> = [0, 63, 64, 191, 192, 16447, 16448, 2_097_215, 2_097_216]
        .into_iter()
        .map(|c| LAYOUTS[0].chunk_offset(c) / B)
        .collect();
    let golden = [1, 64, 66, 193, 196, 16577, 16581, 2_113_729, 2_113_734];
    assert_eq!(offsets, golden, "version bump required");
}
