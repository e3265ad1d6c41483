//! The clock by which keys age: time since boot, suspension included, so that neither a changed
//! date nor a night asleep lengthens a key's life. And the date, for what outlives a boot.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Reads the time; tests bring their own.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// CLOCK_BOOTTIME.
pub fn boot_clock() -> Clock {
    Arc::new(|| {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
    })
}

/// The date: seconds since 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A clock that stands where it was set, at 0 to begin with.
#[cfg(test)]
pub(crate) fn hand_clock() -> (Clock, impl Fn(Duration) + Clone + Send + Sync) {
    let time = Arc::new(parking_lot::Mutex::new(Duration::ZERO));
    let reading = time.clone();
    (Arc::new(move || *reading.lock()), move |now| *time.lock() = now)
}
