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

/// A supply for strict files that makes keys ahead.
fn ahead() -> Fixture {
    let f = fixture(1);
    let (seconds, clock) = (f.seconds.clone(), f.seconds.clone());
    let now: Clock = Arc::new(move || Duration::from_secs(clock.load(Ordering::SeqCst)));
    Fixture { supply: Supply::new(1, 1, now), seconds, made: AtomicU64::new(0) }
}

impl Fixture {
    /// Orders all that is wanted; how many that was.
    fn order_all(&self) -> Vec<Order> {
        std::iter::from_fn(|| self.supply.order()).collect()
    }

    fn key(&self) -> NewDataKey {
        let made = Supply::new(1, 0, Arc::new(|| Duration::ZERO));
        let number = self.made.fetch_add(1, Ordering::SeqCst) as u8;
        made.take(|| {
            let key = Arc::new(DataKey(Secret::random()));
            let recipients = vec![];
            let slot =
                KeySlot { data_key_id: DataKeyId([number; 16]), commitment: [0; 32], recipients };
            Ok(NewDataKey { key, slot })
        })
        .unwrap()
    }
}

#[test]
fn one_key_is_made_ahead_and_more_after_each_shortage() {
    let f = ahead();
    let orders = f.order_all();
    assert_eq!(orders.len(), 1);
    f.supply.carry_out(orders[0]).end(Some(f.key()));
    assert!(f.order_all().is_empty(), "it is there");
    assert!(f.supply.try_take().is_some());
    assert_eq!(f.order_all().len(), 1, "the next one");
    for depth in [2, 4, 8, 16, 32, 64, 64] {
        assert!(f.supply.try_take().is_none(), "short");
        assert_eq!(f.supply.facts().depth, depth);
    }
    assert_eq!(f.order_all().len(), 63, "one is being made already");
}

#[test]
fn a_calm_supply_gets_shallow_again() {
    let f = ahead();
    for _ in 0..4 {
        assert!(f.supply.try_take().is_none());
    }
    assert_eq!(f.supply.facts().depth, 16);
    f.seconds.fetch_add(31, Ordering::SeqCst);
    assert_eq!(f.order_all().len(), 8);
    f.seconds.fetch_add(310, Ordering::SeqCst);
    f.supply.order();
    assert_eq!(f.supply.facts().depth, 4);
}

#[test]
fn after_a_failure_nothing_is_made_ahead_for_a_moment() {
    let f = ahead();
    let orders = f.order_all();
    f.supply.carry_out(orders[0]).end(None);
    assert!(f.order_all().is_empty());
    f.seconds.fetch_add(1, Ordering::SeqCst);
    assert_eq!(f.order_all().len(), 1);
}

#[test]
fn a_key_given_back_is_the_next_one() {
    let f = ahead();
    let orders = f.order_all();
    f.supply.carry_out(orders[0]).end(Some(f.key()));
    let first = f.supply.try_take().unwrap();
    let id = first.slot.data_key_id;
    let orders = f.order_all();
    f.supply.carry_out(orders[0]).end(Some(f.key()));
    f.supply.give_back(first);
    assert_eq!(f.supply.try_take().unwrap().slot.data_key_id, id);
    assert_ne!(f.supply.try_take().unwrap().slot.data_key_id, id);
    let f = fixture(3);
    let taken: Vec<u8> = (0..2).map(|_| f.take()).collect();
    let key = f.supply.try_take().unwrap();
    assert_eq!((taken, key.slot.data_key_id.0[0]), (vec![0, 0], 0));
    f.supply.give_back(key);
    assert_eq!((f.take(), f.take()), (0, 1), "three files, no more");
}

#[test]
fn what_was_ordered_before_a_purge_is_not_taken_after_it() {
    let f = ahead();
    let orders = f.order_all();
    f.supply.clear();
    f.supply.carry_out(orders[0]).end(Some(f.key()));
    assert_eq!(f.supply.facts().ready, 0);
}

#[test]
fn a_key_given_back_is_as_old_as_it_was_and_none_comes_back_after_a_purge() {
    let f = fixture(1);
    assert_eq!(f.take(), 0);
    let key = || f.supply.take(|| Ok(f.key())).unwrap();
    let held = key();
    f.seconds.fetch_add(3600, Ordering::SeqCst);
    f.supply.give_back(held);
    assert!(f.supply.try_take().is_none(), "an hour old");
    let held = key();
    f.supply.clear();
    f.supply.give_back(held);
    assert!(f.supply.try_take().is_none(), "from before the purge");
}

#[test]
fn a_maker_that_panics_leaves_no_order_behind() {
    let f = ahead();
    let orders = f.order_all();
    let panics = std::panic::AssertUnwindSafe(|| {
        let _making = f.supply.carry_out(orders[0]);
        panic!("a provider's bug");
    });
    assert!(std::panic::catch_unwind(panics).is_err());
    f.seconds.fetch_add(1, Ordering::SeqCst);
    assert_eq!(f.order_all().len(), 1);
}
