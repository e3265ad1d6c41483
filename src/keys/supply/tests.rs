use super::*;
use crate::crypto::{DataKey, Secret};
use crate::format::DataKeyId;
use crate::format::header::KeySlot;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

struct Fixture {
    supply: Supply,
    seconds: Arc<AtomicU64>,
    made: AtomicU64,
}

fn fixture(files_per_key: u32) -> Fixture {
    let seconds = Arc::new(AtomicU64::new(5));
    let clock = seconds.clone();
    let now: Clock = Arc::new(move || Duration::from_secs(clock.load(Ordering::SeqCst)));
    Fixture { supply: Supply::new(files_per_key, 0, now), seconds, made: AtomicU64::new(0) }
}

impl Fixture {
    fn take(&self) -> u8 {
        let make = || {
            let number = self.made.fetch_add(1, Ordering::SeqCst) as u8;
            let key = Arc::new(DataKey(Secret::random()));
            let slot = KeySlot {
                data_key_id: DataKeyId([number; 16]),
                commitment: [0; 32],
                recipients: vec![],
            };
            Ok(NewDataKey { key, slot })
        };
        self.supply.take(make).expect("made").slot.data_key_id.0[0]
    }
}

#[test]
fn a_key_serves_its_number_of_files() {
    let f = fixture(3);
    let ids: Vec<u8> = (0..7).map(|_| f.take()).collect();
    assert_eq!(ids, [0, 0, 0, 1, 1, 1, 2]);
    let f = fixture(1);
    assert_eq!((f.take(), f.take(), f.take()), (0, 1, 2));
}

#[test]
fn a_key_serves_for_less_than_an_hour() {
    let f = fixture(1000);
    assert_eq!(f.take(), 0);
    f.seconds.fetch_add(3599, Ordering::SeqCst);
    assert_eq!(f.take(), 0);
    f.seconds.fetch_add(1, Ordering::SeqCst);
    assert_eq!((f.take(), f.take()), (1, 1));
}

#[test]
fn a_failure_leaves_no_key_and_is_not_remembered() {
    let f = fixture(1);
    assert_eq!(f.take(), 0);
    let failed = f.supply.take(|| Err(KeyError::Unavailable("gone".into())));
    assert!(matches!(failed.map(drop), Err(KeyError::Unavailable(_))));
    assert_eq!(f.take(), 1);
}

#[test]
fn a_cleared_supply_starts_anew() {
    let f = fixture(1000);
    assert_eq!(f.take(), 0);
    f.supply.clear();
    assert_eq!(f.take(), 1);
}

#[test]
fn many_threads_never_exceed_the_number() {
    let f = fixture(10);
    let ids: Vec<u8> = std::thread::scope(|scope| {
        let takes = || (0..25).map(|_| f.take()).collect::<Vec<u8>>();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(takes)).collect();
        threads.into_iter().flat_map(|t| t.join().expect("no panic")).collect()
    });
    for id in 0..20 {
        assert_eq!(ids.iter().filter(|other| **other == id).count(), 10);
    }
    assert_eq!(f.made.load(Ordering::SeqCst), 20);
}
