//! The header: where every byte stands, every check and the order of checks.

use super::*;
use crate::format::DataKeyId;
use crate::format::bytes::is_zero;
use crate::format::layout::MAX_PLAIN;
use crate::format::testing::{mac, mac_ok, remac};

const VOLUME: VolumeId = VolumeId([1; 16]);

fn layout(blocks: u8) -> Layout {
    Layout::new(blocks).expect("a layout")
}
fn slot(n: u8) -> KeySlot {
    let local = Recipient {
        kind: RecipientKind::LocalMaster,
        epoch: 1,
        key_ref: vec![],
        wrapped: vec![n; 48],
    };
    KeySlot { data_key_id: DataKeyId([n; 16]), commitment: [n + 1; 32], recipients: vec![local] }
}
fn header() -> Header {
    let mut tags = [TagEntry::HOLE; 64];
    tags[0] = TagEntry { nonce: [0xa0; 12], tag: [0xa1; 16] };
    tags[63] = TagEntry { nonce: [0xb0; 12], tag: [0xb1; 16] };
    Header {
        volume: VOLUME,
        object: ObjectId([2; 16]),
        life_salt: [3; 16],
        generation: 4,
        size: 64 * 4096,
        root_hash: [5; 32],
        wrap_epoch: 6,
        segment: Segment { salt: [7; 16], writes: 2, key_slot: 0 },
        tags: Box::new(tags),
        current: slot(8),
        next: None,
    }
}
fn encoded(h: &Header, blocks: u8) -> Vec<u8> {
    h.encode(layout(blocks), mac).expect("encodes")
}
fn decode(bytes: &[u8], blocks: u8) -> Result<Header, FormatError> {
    Header::decode(bytes, layout(blocks), VOLUME, mac_ok)
}
/// Decodes the valid header with bytes changed and the MAC made right again.
fn with(changes: &[(usize, &[u8])]) -> Result<Header, FormatError> {
    let mut bytes = encoded(&header(), 1);
    for (at, new) in changes {
        bytes[*at..*at + new.len()].copy_from_slice(new);
    }
    remac(&mut bytes, 0);
    decode(&bytes, 1)
}

#[test]
fn round_trips_at_every_header_size() {
    for (blocks, slot_bytes) in [(1, 960), (2, 3008), (4, 7104)] {
        assert_eq!(slot_len(layout(blocks)), slot_bytes);
        for next in [None, Some(slot(20))] {
            let h = Header { next, ..header() };
            let bytes = encoded(&h, blocks);
            assert_eq!(bytes.len(), usize::from(blocks) * 4096);
            assert_eq!(decode(&bytes, blocks), Ok(h));
        }
    }
}

#[test]
fn bytes_stand_where_the_text_says() {
    let h = Header { next: Some(slot(20)), ..header() };
    let b = encoded(&h, 2);
    assert_eq!(&b[..13], b"KMSFSHDR\x01\x00\x01\x0c\x02");
    assert!(is_zero(&b[13..16]));
    assert_eq!((&b[16..32], &b[32..48], &b[48..64]), (&[1; 16][..], &[2; 16][..], &[3; 16][..]));
    assert_eq!(
        (b[64..72].to_vec(), &b[72..80]),
        (4u64.to_le_bytes().to_vec(), &[0, 0, 4, 0, 0, 0, 0, 0][..])
    );
    assert_eq!((&b[80..112], &b[112..120]), (&[5; 32][..], &[6, 0, 0, 0, 0, 0, 0, 0][..]));
    assert_eq!(b[120..152], h.segment.encode());
    assert!(is_zero(&b[152..344]));
    assert_eq!(b[344..2136], h.tag_bytes());
    assert_eq!((&b[344..356], &b[356..372]), (&[0xa0; 12][..], &[0xa1; 16][..]));
    assert_eq!((&b[2108..2120], &b[2120..2136]), (&[0xb0; 12][..], &[0xb1; 16][..]));
    assert!(is_zero(&b[2136..2144]));
    assert_eq!((b[2144], b[2144 + 3008], b[2144 + 8]), (1, 1, 8));
    assert_eq!(b[8160..], mac(&b[..8160]));
}

#[test]
fn checks_before_the_mac_in_their_order() {
    assert_eq!(decode(&[], 1), Err(FormatError::Length(0)));
    let mut b = encoded(&header(), 1);
    assert_eq!(decode(&b[..4095], 1), Err(FormatError::Length(4095)));
    assert_eq!(decode(&b, 2), Err(FormatError::Length(4096)));
    // From the last check to the first: each defect hides those made before it.
    b[4000] ^= 1;
    assert_eq!(decode(&b, 1), Err(FormatError::Mac));
    b[16] ^= 1;
    assert_eq!(decode(&b, 1), Err(FormatError::OtherVolume));
    b[12] = 2;
    assert_eq!(decode(&b, 1), Err(FormatError::Field("header_blocks")));
    b[11] = 13;
    assert_eq!(decode(&b, 1), Err(FormatError::Field("chunk_log2")));
    b[10] = 2;
    assert_eq!(decode(&b, 1), Err(FormatError::Suite(2)));
    b[8..10].copy_from_slice(&[0, 1]);
    assert_eq!(decode(&b, 1), Err(FormatError::Version(256)));
    b[8..10].copy_from_slice(&[0, 0]);
    assert_eq!(decode(&b, 1), Err(FormatError::Field("version")));
    b[7] = b'X';
    assert_eq!(decode(&b, 1), Err(FormatError::Magic));
}

#[test]
fn checks_after_the_mac() {
    let field = |name| Err(FormatError::Field(name));
    for at in 13..16 {
        assert_eq!(with(&[(at, &[1])]), field("header reserved"));
    }
    assert_eq!(with(&[(64, &[0; 8])]), field("generation"));
    assert_eq!(with(&[(72, &(MAX_PLAIN + 1).to_le_bytes())]), Err(FormatError::TooLarge));
    assert!(with(&[(72, &MAX_PLAIN.to_le_bytes())]).is_ok());
    assert_eq!(with(&[(144, &[2])]), field("segment key slot"));
    assert_eq!(with(&[(145, &[1])]), field("segment reserved"));
    for at in 152..344 {
        assert_eq!(with(&[(at, &[1])]), field("location binding"));
    }
    for at in 2136..2144 {
        assert_eq!(with(&[(at, &[1])]), field("header reserved"));
    }
    assert_eq!(with(&[(2144, &[0; 960])]), field("current key slot"));
    assert_eq!(with(&[(2145, &[0])]), field("recipients"));
    assert_eq!(with(&[(2144 + 960, &[2])]), field("key slot state"));
    assert_eq!(with(&[(2144 + 961, &[1])]), field("empty key slot"));
    assert_eq!(with(&[(144, &[1])]), field("segment key slot"));
}

#[test]
fn a_segment_may_use_the_next_slot_only_when_there_is_one() {
    let segment = Segment { key_slot: 1, ..header().segment };
    let h = Header { segment, next: Some(slot(9)), ..header() };
    assert_eq!(decode(&encoded(&h, 1), 1), Ok(h.clone()));
    let alone = Header { next: None, ..h };
    assert_eq!(alone.encode(layout(1), mac), Err(FormatError::Field("segment key slot")));
}

#[test]
fn encode_refuses_what_decode_would() {
    let encode = |h: Header| h.encode(layout(1), mac).expect_err("refused");
    assert_eq!(encode(Header { generation: 0, ..header() }), FormatError::Field("generation"));
    assert_eq!(encode(Header { size: MAX_PLAIN + 1, ..header() }), FormatError::TooLarge);
    let mut h = header();
    h.current.recipients = vec![h.current.recipients[0].clone(); 16];
    assert_eq!(encode(h.clone()), FormatError::Field("recipients"));
    assert_eq!(decode(&encoded(&h, 2), 2), Ok(h.clone()));
    h.current.recipients.clear();
    assert_eq!(encode(h), FormatError::Field("recipients"));
}

#[test]
fn any_flipped_bit_is_refused() {
    let bytes = encoded(&header(), 1);
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&bad, 1).is_err(), "bit {bit}");
    }
}

#[test]
fn golden_digest() {
    let digest: String = mac(&encoded(&header(), 1)).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(
        digest, "fd308d770304c1b12289a00e866be47bd28a16cc4912255b98ced71ba73d6b3b",
        "version bump required"
    );
}
