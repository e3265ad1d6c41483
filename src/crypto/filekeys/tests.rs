//! Known answers computed with another implementation (OpenSSL) from the text of the format.

use super::*;
use crate::crypto::testing::{counting, hex, secret};
use crate::sys::hook::freed_during;

fn keys() -> FileKeys {
    let data_key = DataKey(secret(&counting::<32>(0x40)));
    FileKeys::derive(&data_key, ObjectId(counting(1)), &counting(0xa0))
}

fn block() -> [u8; BLOCK] {
    std::array::from_fn(|i| i as u8)
}

#[test]
fn commitment_is_known_and_compared_whole() {
    let keys = keys();
    assert_eq!(
        keys.commitment().to_vec(),
        hex("1c11cf228dead842e48aeec75de036e732f5295b10f14e362be4f4af5bce49d6")
    );
    assert!(keys.commits_to(keys.commitment()));
    for i in 0..32 {
        let mut other = *keys.commitment();
        other[i] ^= 1;
        assert!(!keys.commits_to(&other));
    }
}

#[test]
fn object_and_life_and_data_key_all_change_the_file_key() {
    let derive = |key: u8, object: u8, life: u8| {
        let data_key = DataKey(secret(&[key; 32]));
        *FileKeys::derive(&data_key, ObjectId([object; 16]), &[life; 16]).commitment()
    };
    let all = [derive(1, 1, 1), derive(2, 1, 1), derive(1, 2, 1), derive(1, 1, 2)];
    for i in 0..all.len() {
        assert!(all[i + 1..].iter().all(|other| *other != all[i]));
    }
}

#[test]
fn a_chunk_is_known() {
    let keys = keys();
    let aad = keys.chunk_aad(0x0102);
    assert_eq!(aad[32..], [2, 1, 0, 0, 0, 0, 0, 0]);
    let mut data = *b"sixteen byte txt";
    let tag = keys.segment_key(5, &counting(0x77)).seal_in_place(&counting(0xc0), &aad, &mut data);
    assert_eq!(
        [data, tag].concat(),
        hex("e90362f5d3fe1c7e5839f6e864973d6a2a371cd2994c1d180790abdede87358d")
    );
    for (number, salt) in [(4, 0x77), (5, 0x78)] {
        let other = keys.segment_key(number, &counting(salt));
        let mut copy = data;
        assert!(other.open_in_place(&counting(0xc0), &aad, &mut copy, &tag).is_err());
    }
}

#[test]
fn block_hashes_are_known() {
    let keys = keys();
    let known = [
        (0, 9, "ebeeafa853a995ac383d7b8f4965738a20b3e9c11258a27b85a42fe37f7544b3"),
        (2, 0x0a0b, "5eb1e83daeaba8ce490728916a887c16a5c08f917420b3d692907d59abb5391b"),
    ];
    for (level, index, hash) in known {
        assert_eq!(keys.block_hash(level, index, &block()).to_vec(), hex(hash));
    }
    assert_ne!(keys.block_hash(0, 10, &block()), keys.block_hash(0, 9, &block()));
}

#[test]
fn only_an_all_zero_block_hashes_to_zero() {
    let keys = keys();
    let mut block = [0; BLOCK];
    assert_eq!(keys.block_hash(0, 3, &block), [0; 32]);
    block[BLOCK - 1] = 1;
    assert_ne!(keys.block_hash(0, 3, &block), [0; 32]);
}

#[test]
fn the_root_hash_is_known_and_covers_every_input() {
    let keys = keys();
    let segment = Segment { salt: counting(0x30), writes: 77, key_slot: 1 };
    let tags: [u8; 1792] = std::array::from_fn(|i| i as u8);
    let top = counting(0x55);
    let root = keys.root_hash(3, 262_145, &segment, &tags, &top);
    assert_eq!(
        root.to_vec(),
        hex("d8c5daad6750b8b4871f76bed5ca02ec4778ddb47c9e28e8de868f1b32e0153f")
    );
    let mut other_tags = tags;
    other_tags[1791] ^= 1;
    let other_segment = Segment { writes: 78, ..segment };
    let others = [
        keys.root_hash(4, 262_145, &segment, &tags, &top),
        keys.root_hash(3, 262_146, &segment, &tags, &top),
        keys.root_hash(3, 262_145, &other_segment, &tags, &top),
        keys.root_hash(3, 262_145, &segment, &other_tags, &top),
        keys.root_hash(3, 262_145, &segment, &tags, &counting(0x56)),
    ];
    assert!(others.iter().all(|other| *other != root));
}

#[test]
fn derived_keys_are_wiped() {
    let keys = keys();
    let freed = freed_during(|| drop(keys));
    assert_eq!(freed.len(), 1);
    assert!(freed[0].iter().all(|b| *b == 0));
}
