//! Finds a key again by its mark.

use super::facts::{Head, aliases, look, tag, tags};
use super::{TAG_ALIAS, TAG_REQUEST};
use crate::keys::aws::classify::Class;
use crate::keys::aws::fault;
use crate::provision::TAG_DEPLOYMENT;
use crate::provision::account::{Account, Refused};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// Keys whose tags are asked for at a time.
const LANES: usize = 4;
/// Keys in one page of the list.
const PAGE: i32 = 1000;

/// What looking through all keys has shown.
#[derive(Default)]
struct Seen {
    found: Option<Head>,
    /// Keys whose tags were read.
    read: usize,
    /// Keys of customers whose tags are not for this caller.
    hidden: usize,
}

/// The key with this mark: what the alias names, if that is it, otherwise any of the account. Keys to be
/// deleted do not count.
pub fn find(account: &Account, mark: &str, alias: Option<&str>) -> Result<Option<Head>, Refused> {
    if let Some(alias) = alias {
        // An alias of somebody else's may not be for this caller.
        let named = not_for_us(look(account, alias))?;
        if let Some(head) = named.filter(is_living)
            && not_for_us(tags(account, &head.arn))?.is_some_and(|tags| has_mark(&tags, mark))
        {
            return Ok(Some(head));
        }
    }
    let seen = scan(account, &|_, tags| Ok(has_mark(tags, mark)))?;
    if seen.found.is_none() && seen.read == 0 && seen.hidden > 0 {
        return Err(blind(mark, seen.hidden));
    }
    Ok(seen.found)
}

/// A key that was made for this alias of a deployment and did not get it: whoever made it was
/// interrupted, and did not live to tell its mark. Keys to be deleted do not count.
pub fn find_begun(
    account: &Account,
    deployment: &str,
    alias: &str,
) -> Result<Option<Head>, Refused> {
    let seen = scan(account, &|arn, tags| {
        let ours = tag(tags, TAG_DEPLOYMENT) == Some(deployment);
        let made_for_it = ours && tag(tags, TAG_ALIAS) == Some(alias);
        Ok(made_for_it && aliases(account, arn)?.is_empty())
    })?;
    if seen.found.is_none() && seen.read == 0 && seen.hidden > 0 {
        return Err(blind(&format!("of {alias}"), seen.hidden));
    }
    Ok(seen.found)
}

/// As [`find`], for when it must be certain that there is none.
pub fn find_surely(account: &Account, mark: &str) -> Result<Option<Head>, Refused> {
    let seen = scan(account, &|_, tags| Ok(has_mark(tags, mark)))?;
    match seen.found {
        None if seen.hidden > 0 => Err(blind(mark, seen.hidden)),
        found => Ok(found),
    }
}

fn blind(mark: &str, hidden: usize) -> Refused {
    let text = format!(
        "{hidden} keys of this account do not show their tags to this caller, so nobody can say \
         whether the key {mark} was made already; have kms:ListResourceTags on all keys added to the \
         caller's IAM policy, and run the same command again"
    );
    Refused { code: "AccessDeniedException".into(), class: Class::Denied, sentence: text }
}

fn is_living(head: &Head) -> bool {
    !head.state.starts_with("Pending")
}

/// Nothing, if KMS knows no such key or does not say.
fn not_for_us<T>(answer: Result<T, Refused>) -> Result<Option<T>, Refused> {
    match answer {
        Ok(there) => Ok(Some(there)),
        Err(refused) if refused.class == Class::Denied => Ok(None),
        // Deleted, or on its way.
        Err(refused) if refused.class == Class::Revoked => Ok(None),
        Err(refused) => Err(refused),
    }
}

fn has_mark(tags: &[(String, String)], mark: &str) -> bool {
    tag(tags, TAG_REQUEST) == Some(mark)
}

/// Is it the key with this ARN and these tags?
type Test<'a> = dyn Fn(&str, &[(String, String)]) -> Result<bool, Refused> + Sync + 'a;

fn scan(account: &Account, is_it: &Test<'_>) -> Result<Seen, Refused> {
    let (keys, seen, failed) = (list(account)?, Mutex::new(Seen::default()), Mutex::new(None));
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let lane = || {
        while let (false, Some(arn)) = (over.load(Relaxed), keys.get(next.fetch_add(1, Relaxed))) {
            match inspect(account, arn, is_it, &seen) {
                Ok(true) => over.store(true, Relaxed),
                Ok(false) => {}
                Err(refused) => {
                    over.store(true, Relaxed);
                    *failed.lock() = Some(refused);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..LANES.min(keys.len()) {
            scope.spawn(lane);
        }
    });
    let seen = seen.into_inner();
    match failed.into_inner() {
        Some(refused) if seen.found.is_none() => Err(refused),
        _ => Ok(seen),
    }
}

/// Is it the one?
fn inspect(
    account: &Account,
    arn: &str,
    is_it: &Test<'_>,
    seen: &Mutex<Seen>,
) -> Result<bool, Refused> {
    // Nothing, if they are hidden.
    let tags = not_for_us(tags(account, arn))?;
    match tags.map(|tags| is_it(arn, &tags)).transpose()? {
        Some(false) => seen.lock().read += 1,
        Some(true) => {
            let head = not_for_us(look(account, arn))?.filter(is_living);
            let mut seen = seen.lock();
            seen.read += 1;
            if head.is_some() {
                seen.found = head;
                return Ok(true);
            }
        }
        None => {
            // The keys AWS makes for its services show theirs to nobody, and are never ours.
            let of_aws = not_for_us(look(account, arn))?.is_some_and(|head| head.manager == "AWS");
            seen.lock().hidden += usize::from(!of_aws);
        }
    }
    Ok(false)
}

/// The ARNs of all keys.
fn list(account: &Account) -> Result<Vec<String>, Refused> {
    let (mut all, mut marker) = (vec![], None);
    loop {
        let from: Option<String> = marker.take();
        let page = account.ask("ListKeys", "KMS keys", move |clients| {
            let request = clients.kms.list_keys().limit(PAGE).set_marker(from.clone());
            async move { request.send().await.map_err(|e| fault(&e)) }
        })?;
        all.extend(page.keys.unwrap_or_default().into_iter().filter_map(|key| key.key_arn));
        match page.next_marker {
            Some(next) if page.truncated => marker = Some(next),
            _ => return Ok(all),
        }
    }
}
