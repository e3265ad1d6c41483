//! Waiting until everybody in AWS knows of a change.

use super::Teller;
use super::account::{Account, Refused};
use std::time::{Duration, Instant};

/// Pause after the first look; doubled after each further one.
const PAUSE: Duration = Duration::from_millis(250);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What the last look saw, when time was up.
pub type Unsettled = String;

/// Looks until there is an answer, `limit` at most; `look` gives what it waits for, or what it saw
/// instead.
pub fn within<T>(
    limit: Duration,
    what: &str,
    teller: &dyn Teller,
    mut look: impl FnMut() -> Result<Result<T, Unsettled>, Refused>,
) -> Result<Result<T, Unsettled>, Refused> {
    let (started, mut pause) = (Instant::now(), PAUSE);
    loop {
        let state = match look()? {
            Ok(there) => return Ok(Ok(there)),
            Err(state) => state,
        };
        let left = limit.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Ok(Err(state));
        }
        teller.waiting(what, &state);
        // The last look comes when time is up, not before.
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// As [`within`], for as long as AWS may take to tell everybody.
pub fn settled<T>(
    account: &Account,
    what: &str,
    teller: &dyn Teller,
    look: impl FnMut() -> Result<Result<T, Unsettled>, Refused>,
) -> Result<Result<T, Unsettled>, Refused> {
    within(account.pace.settling, what, teller, look)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::Silent;

    #[test]
    fn the_last_look_comes_when_time_is_up() {
        let mut looks = 0;
        let seen = within(Duration::from_millis(300), "it", &Silent, || {
            looks += 1;
            Ok(Err::<(), _>(format!("{looks}")))
        });
        assert_eq!(seen, Ok(Err("3".to_owned())));
        let mut looks = 0;
        let seen = within(Duration::from_secs(60), "it", &Silent, || {
            looks += 1;
            Ok(if looks == 2 { Ok(looks) } else { Err(String::new()) })
        });
        assert_eq!(seen, Ok(Ok(2)));
    }
}
