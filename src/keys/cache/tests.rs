use super::*;
use crate::crypto::Secret;
use crate::keys::clock::boot_clock;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

fn cache(capacity: usize, ttl: Option<u64>) -> (Cache, Arc<AtomicU64>) {
    let seconds = Arc::new(AtomicU64::new(1000));
    let clock = seconds.clone();
    let now: Clock = Arc::new(move || Duration::from_secs(clock.load(Ordering::SeqCst)));
    let capacity = NonZeroUsize::new(capacity).expect("not zero");
    (Cache::new(capacity, ttl.map(Duration::from_secs), now), seconds)
}

fn key(byte: u8) -> Arc<DataKey> {
    Arc::new(DataKey(Secret::fill_with(|out| out.fill(byte))))
}

fn found(outcome: Outcome) -> u8 {
    outcome.expect("a key").0.expose()[0]
}

fn missed() -> Outcome {
    Err(KeyError::Unavailable("asked".into()))
}

#[test]
fn a_key_is_asked_for_once_and_then_known() {
    let (cache, _) = cache(4, None);
    assert_eq!(found(cache.get_or_unwrap(([1; 32], cache.purges()), || false, || Ok(key(7)))), 7);
    assert_eq!(found(cache.get_or_unwrap(([1; 32], cache.purges()), || false, missed)), 7);
    assert!(cache.get_or_unwrap(([2; 32], cache.purges()), || false, missed).is_err());
    cache.insert([2; 32], key(8), cache.purges());
    assert_eq!(found(cache.get_or_unwrap(([2; 32], cache.purges()), || false, missed)), 8);
    cache.clear();
    assert!(cache.get_or_unwrap(([1; 32], cache.purges()), || false, missed).is_err());
}

#[test]
fn the_least_recently_used_key_goes_first() {
    let (cache, _) = cache(2, None);
    cache.insert([1; 32], key(1), cache.purges());
    cache.insert([2; 32], key(2), cache.purges());
    assert_eq!(found(cache.get_or_unwrap(([1; 32], cache.purges()), || false, missed)), 1);
    cache.insert([3; 32], key(3), cache.purges());
    assert!(cache.get_or_unwrap(([2; 32], cache.purges()), || false, missed).is_err());
    assert_eq!(found(cache.get_or_unwrap(([1; 32], cache.purges()), || false, missed)), 1);
}

#[test]
fn errors_are_not_remembered() {
    let (cache, _) = cache(2, None);
    assert!(cache.get_or_unwrap(([1; 32], cache.purges()), || false, missed).is_err());
    assert_eq!(found(cache.get_or_unwrap(([1; 32], cache.purges()), || false, || Ok(key(5)))), 5);
}

#[test]
fn age_counts_from_before_the_unwrap() {
    let (cache, seconds) = cache(2, Some(60));
    let slow = || {
        seconds.fetch_add(50, Ordering::SeqCst);
        Ok(key(1))
    };
    assert_eq!(found(cache.get_or_unwrap(([1; 32], cache.purges()), || false, slow)), 1);
    seconds.fetch_add(9, Ordering::SeqCst);
    assert_eq!(found(cache.get_or_unwrap(([1; 32], cache.purges()), || false, missed)), 1);
    seconds.fetch_add(1, Ordering::SeqCst);
    assert!(cache.get_or_unwrap(([1; 32], cache.purges()), || false, missed).is_err());
}

/// All threads are let into the cache while the one unwrap is held back until nobody else can still
/// be on the way to a second one.
#[test]
fn sixty_four_threads_share_one_unwrap() {
    for fail in [false, true] {
        let (cache, _) = cache(4, None);
        let (calls, start) = (AtomicU32::new(0), Barrier::new(64));
        let results: Vec<Outcome> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..64)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        cache.get_or_unwrap(
                            ([1; 32], cache.purges()),
                            || false,
                            || {
                                calls.fetch_add(1, Ordering::SeqCst);
                                let flight = cache.state.lock().flights.get(&[1; 32]).cloned();
                                // The map, the leader and this function hold three; waiters the rest.
                                while flight.as_ref().map(Arc::strong_count) != Some(3 + 63) {
                                    std::thread::yield_now();
                                }
                                if fail { missed() } else { Ok(key(9)) }
                            },
                        )
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().expect("no panic")).collect()
        });
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        assert_eq!(results.len(), 64);
        assert!(results.into_iter().all(|r| if fail { r.is_err() } else { found(r) == 9 }));
        assert!(cache.state.lock().flights.is_empty());
    }
}

#[test]
fn a_panic_in_the_provider_strands_nobody() {
    let (cache, _) = cache(4, None);
    let waiting = || {
        while cache.state.lock().flights.get(&[1; 32]).is_none_or(|f| Arc::strong_count(f) < 3) {
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        let leader = scope.spawn(|| {
            cache.get_or_unwrap(
                ([1; 32], cache.purges()),
                || false,
                || {
                    waiting();
                    panic!("a provider's bug")
                },
            )
        });
        while cache.state.lock().flights.is_empty() {
            std::thread::yield_now();
        }
        let follower =
            scope.spawn(|| cache.get_or_unwrap(([1; 32], cache.purges()), || false, missed));
        assert!(leader.join().is_err());
        assert!(matches!(follower.join().expect("no panic"), Err(KeyError::Unavailable(_))));
    });
    assert_eq!(found(cache.get_or_unwrap(([1; 32], cache.purges()), || false, || Ok(key(2)))), 2);
}

#[test]
fn the_boot_clock_does_not_run_backwards() {
    let clock = boot_clock();
    let first = clock();
    assert!(first > Duration::ZERO && clock() >= first);
}

/// What a cache of two keys and a life of 60 s says, step by step.
#[test]
fn capacity_expiry_use_and_clock_by_table() {
    enum Do {
        /// Ask for a key; the provider would give this byte.
        Ask(u8, u8),
        /// Ask while the provider is away; a stale key may serve or not.
        Away(u8, bool),
        /// Ask while the provider says no.
        Denied(u8),
        /// The clock goes to this second.
        At(u64),
    }
    use Do::{Ask, At, Away, Denied};
    let steps: &[(&str, Do, Option<u8>)] = &[
        ("unwrapped", Ask(1, 11), Some(11)),
        ("known", Ask(1, 99), Some(11)),
        ("a second", Ask(2, 12), Some(12)),
        ("a third drops the one used longest ago", Ask(3, 13), Some(13)),
        ("which is asked for again", Ask(1, 21), Some(21)),
        ("and drops the second", Ask(2, 22), Some(22)),
        ("just before the end", At(1059), None),
        ("still known", Ask(2, 99), Some(22)),
        ("at the end", At(1060), None),
        ("nobody answers, and stale is not enough", Away(2, false), None),
        ("nobody answers, and stale must do", Away(2, true), Some(22)),
        ("which confirms nothing", Away(2, false), None),
        ("confirmed again", Ask(2, 32), Some(32)),
        ("a no is final", At(1200), None),
        ("said no", Denied(2), None),
        ("gone, even if nobody answers now", Away(2, true), None),
        ("and comes back by a yes only", Ask(2, 42), Some(42)),
        ("a clock set back", At(900), None),
        ("makes no key older than it is", Ask(2, 99), Some(42)),
        ("nor does it live longer", At(1259), None),
        ("known", Ask(2, 99), Some(42)),
        ("a jump ahead, as after sleep", At(90_000), None),
        ("everything is old", Ask(2, 52), Some(52)),
    ];
    let (cache, seconds) = cache(2, Some(60));
    for (what, step, expected) in steps {
        let denied = || Err(KeyError::Revoked("no".into()));
        let outcome = match step {
            At(second) => {
                seconds.store(*second, Ordering::SeqCst);
                continue;
            }
            Ask(name, byte) => {
                cache.get_or_unwrap(([*name; 32], cache.purges()), || false, || Ok(key(*byte)))
            }
            Away(name, stale) => {
                cache.get_or_unwrap(([*name; 32], cache.purges()), || *stale, missed)
            }
            Denied(name) => cache.get_or_unwrap(([*name; 32], cache.purges()), || true, denied),
        };
        assert_eq!(outcome.ok().map(|key| key.0.expose()[0]), *expected, "{what}");
    }
}

#[test]
fn a_key_in_use_outlives_its_eviction_and_is_wiped_with_its_last_user() {
    use crate::sys::hook::freed_during;
    let (cache, _) = cache(1, None);
    let held = cache.get_or_unwrap(([1; 32], cache.purges()), || false, || Ok(key(5))).unwrap();
    let freed = freed_during(|| cache.insert([2; 32], key(6), cache.purges()));
    assert!(freed.is_empty(), "still in use");
    assert_eq!(held.0.expose()[0], 5);
    assert_eq!(freed_during(|| drop(held)), [vec![0; 32]]);
    assert_eq!(freed_during(|| cache.clear()), [vec![0; 32]]);
}

#[test]
fn what_was_asked_for_before_a_purge_does_not_land_after_it() {
    let (cache, _) = cache(4, None);
    let outcome = cache.get_or_unwrap(
        ([1; 32], cache.purges()),
        || false,
        || {
            cache.clear();
            Ok(key(1))
        },
    );
    assert_eq!(found(outcome), 1, "whoever asked gets it");
    assert!(!cache.expects(&[1; 32]));
    cache.insert([2; 32], key(2), cache.purges());
    cache.get(&[2; 32]);
    let facts = cache.facts();
    assert_eq!((facts.keys, facts.hits, facts.misses), (1, 1, 1));
}
