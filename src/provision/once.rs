//! Making what must not be made twice, with calls that cannot say "that was me".
//!
//! An answer that is lost leaves open whether something was made. A second one costs money and
//! confuses everybody, so it is looked for first, for as long as AWS may take to show it.

use std::time::Instant;

use super::account::{Account, Refused};

/// How often is tried: more would hide that something is wrong.
const TRIES: u32 = 2;

/// Makes it, or finds what a call without an answer has made.
pub fn once<T>(
    account: &Account,
    make: impl Fn() -> Result<T, Refused>,
    look: impl Fn() -> Result<Option<T>, Refused>,
) -> Result<T, Refused> {
    let mut tries = 0;
    loop {
        tries += 1;
        let refused = match make() {
            Err(refused) if refused.may_have_worked() => refused,
            other => return other,
        };
        log::warn!("{refused}; looking whether it was made nevertheless");
        if let Some(made) = look_again(account, &look)? {
            return Ok(made);
        }
        if tries >= TRIES {
            return Err(refused);
        }
    }
}

/// Looks until it is there or everybody in AWS would know of it.
fn look_again<T>(
    account: &Account,
    look: impl Fn() -> Result<Option<T>, Refused>,
) -> Result<Option<T>, Refused> {
    let started = Instant::now();
    loop {
        let found = look()?;
        if found.is_some() || started.elapsed() >= account.pace.settling {
            return Ok(found);
        }
        std::thread::sleep(account.pace.poll.min(account.pace.settling));
    }
}
