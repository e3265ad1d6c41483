use super::*;

fn mac(bytes: &[u8]) -> [u8; MAC_LEN] {
    let sum = bytes.iter().fold(7u8, |a, b| a.rotate_left(1) ^ b);
    [sum; MAC_LEN]
}

fn mac_ok(bytes: &[u8], found: &[u8; MAC_LEN]) -> bool {
    mac(bytes) == *found
}

fn record(image: &[u8]) -> Record<'_> {
    Record {
        number: 9,
        firm: 7,
        object: ObjectId([3; 16]),
        ino: 77,
        base: 4,
        base_root: [6; 16],
        generation: 5,
        mtime: Some((-5, 999_999_999)),
        len: 12_345,
        path: b"a/b".to_vec(),
        blocks: vec![(0, Change::Image(image)), (8192, Change::Delta(vec![1, 0, 1, 0, 5]))],
        fresh: vec![Fresh { offset: 4096, sums: vec![1, 2], last_len: 5 }],
        freed: std::iter::once(16_384..20_480).collect(),
    }
}

#[test]
fn a_head_is_checked_in_order() {
    let head = Head { volume: VolumeId([1; 16]), epoch: [2; 16] };
    let good = head.encode(mac);
    assert_eq!(Head::decode(&good[..], head.volume, mac_ok), Ok(head));
    assert_eq!(Head::decode(&good[..100], head.volume, mac_ok), Err(FormatError::Length(100)));
    let other = Head::decode(&good[..], VolumeId([9; 16]), mac_ok);
    assert_eq!(other, Err(FormatError::OtherVolume));
    for (at, error) in [
        (0, FormatError::Magic),
        (8, FormatError::Field("version")),
        (40, FormatError::Mac),
        (4090, FormatError::Mac),
    ] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert_eq!(Head::decode(&bad[..], head.volume, mac_ok), Err(error), "{at}");
    }
    let mut reserved = good.clone();
    reserved[100] = 1;
    let sum = mac(&reserved[..BLOCK - MAC_LEN]);
    reserved[BLOCK - MAC_LEN..].copy_from_slice(&sum);
    let refused = Err(FormatError::Field("journal head reserved"));
    assert_eq!(Head::decode(&reserved[..], head.volume, mac_ok), refused);
}

#[test]
fn a_record_comes_back_and_no_other_length_does() {
    let image = [8; BLOCK];
    let record = record(&image);
    let bytes = record.encode(mac);
    assert_eq!(Record::peek_len(&bytes), Some(bytes.len()));
    assert_eq!(Record::decode(&bytes, mac_ok), Ok(record));
    for cut in [0, 3, 8, FIXED_LEN, bytes.len() - 1] {
        assert!(Record::decode(&bytes[..cut], mac_ok).is_err(), "{cut}");
    }
    let mut bad = bytes.clone();
    bad[50] ^= 4;
    assert_eq!(Record::decode(&bad, mac_ok), Err(FormatError::Mac));
}

#[test]
fn no_field_makes_a_reader_panic_or_read_past_the_end() {
    let image = [8; BLOCK];
    let bytes = record(&image).encode(mac);
    for at in 8..bytes.len() - MAC_LEN {
        for value in [0, 1, 0x80, 0xff] {
            let mut bad = bytes.clone();
            bad[at] = value;
            let end = bad.len() - MAC_LEN;
            let sum = mac(&bad[..end]);
            bad[end..].copy_from_slice(&sum);
            if let Ok(back) = Record::decode(&bad, mac_ok) {
                assert_eq!(back.encode(mac), bad, "{at}");
            }
        }
    }
}

#[test]
fn a_generation_follows_its_base_or_is_it() {
    let cases =
        [(1, 1, true), (1, 2, true), (0, 1, true), (0, 0, false), (2, 1, false), (1, 3, false)];
    for (base, generation, good) in cases {
        let record = Record { base, generation, ..record(b"x") };
        assert_eq!(Record::decode(&record.encode(mac), mac_ok).is_ok(), good);
    }
}

#[test]
fn a_delta_turns_one_block_into_the_other_or_is_not_worth_it() {
    let old: Vec<u8> = (0..BLOCK).map(|i| (i % 251) as u8).collect();
    for changes in [&[0][..], &[5, 6, 7, 900, 901, 4095], &[17, 25, 26, 34, 44]] {
        let mut new = old.clone();
        changes.iter().for_each(|i| new[*i] ^= 0x55);
        let delta = delta(&old, &new).unwrap();
        assert!(delta.len() < 100);
        let mut block = old.clone();
        apply_delta(&mut block, &delta).unwrap();
        assert!(block == new);
    }
    let other: Vec<u8> = old.iter().map(|b| !b).collect();
    assert_eq!(delta(&old, &other), None);
    assert_eq!(delta(&old, &old), None);
    assert_eq!(delta(&old, &old[1..]), None);
}

#[test]
fn a_delta_that_does_not_fit_is_refused() {
    let mut block = [0; 16];
    for bad in [&[0, 0, 17, 0][..], &[15, 0, 2, 0, 1, 1], &[0xff, 0xff, 1, 0, 1], &[1, 0]] {
        assert!(apply_delta(&mut block, bad).is_err());
    }
}
