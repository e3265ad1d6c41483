//! Finds a key again by its tags.

use super::facts::{Head, aliases, look, mark, tag, tags};
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

/// A key and its tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What DescribeKey says.
    pub head: Head,
    /// Names and values.
    pub tags: Vec<(String, String)>,
}

/// When nothing was found, and some keys of the account did not show their tags to this caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hidden {
    /// Any of them may be the one: refuse.
    Refuse,
    /// Somebody who knows says that none of them is.
    Accept,
}

/// The key with this mark. Keys to be deleted do not count.
pub fn find(account: &Account, mark: &str, hidden: Hidden) -> Result<Option<Found>, Refused> {
    let what = format!("the key {mark}");
    let found = scan(account, &what, hidden, &|_, tags| Ok(tag(tags, TAG_REQUEST) == Some(mark)))?;
    latest(&what, found)
}

/// The youngest key made for a volume, named by its id in hexadecimal. Keys to be deleted do not count.
pub fn find_of_volume(
    account: &Account,
    volume: &str,
    hidden: Hidden,
) -> Result<Option<Found>, Refused> {
    let what = format!("the key of volume {volume}");
    let found = scan(account, &what, hidden, &|_, tags| {
        Ok(mark(tags).is_some_and(|(whom, _)| whom == volume))
    })?;
    latest(&what, found)
}

/// The youngest key that was made for this alias of a deployment and does not have it: whoever made it
/// was interrupted, and did not live to tell its mark. Keys to be deleted do not count.
pub fn find_begun(
    account: &Account,
    deployment: &str,
    alias: &str,
    hidden: Hidden,
) -> Result<Option<Found>, Refused> {
    let what = format!("the key of {alias}");
    let found = scan(account, &what, hidden, &|arn, tags| {
        let ours = tag(tags, TAG_DEPLOYMENT) == Some(deployment);
        let made_for_it = ours && tag(tags, TAG_ALIAS) == Some(alias);
        Ok(made_for_it && aliases(account, arn)?.is_empty())
    })?;
    latest(&what, found)
}

/// Of the keys of one volume the one that followed the others; whatever else was found is for people to
/// judge.
fn latest(what: &str, found: Vec<Found>) -> Result<Option<Found>, Refused> {
    let Some(best) = found.iter().max_by_key(|key| mark(&key.tags).map(|(_, number)| number))
    else {
        return Ok(None);
    };
    let rivals = |key: &&Found| {
        let (one, other) = (mark(&key.tags), mark(&best.tags));
        key.head.arn != best.head.arn
            && (one == other || one.map(|(whom, _)| whom) != other.map(|(whom, _)| whom))
    };
    if found.iter().any(|key| rivals(&key)) {
        let name = |key: &Found| {
            let mark = tag(&key.tags, TAG_REQUEST).unwrap_or("without");
            format!("{} ({TAG_REQUEST} {mark})", key.head.arn)
        };
        let names: Vec<String> = found.iter().map(name).collect();
        let text = format!(
            "{what} may be any of {}: say which volume it is for with --volume-id, or take the tag \
             {TAG_REQUEST} away from those that are not it (`aws kms untag-resource`); nothing was made",
            names.join(", ")
        );
        return Err(Refused::here(Class::Misconfigured, text));
    }
    Ok(Some(best.clone()))
}

fn blind(what: &str, hidden: usize) -> Refused {
    let keys = if hidden == 1 { "a key".to_owned() } else { format!("{hidden} keys") };
    let text = format!(
        "{keys} of this account not showing tags to this caller, nobody can say whether {what} was made \
         already, and nothing was made: have kms:ListResourceTags on all keys added to the caller's IAM \
         policy (and to key policies that do not let IAM policies count), wait a minute if a key was made \
         just now, or, if it is certain that there is no such key, say --accept-hidden-keys"
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
        // Deleted, or on its way.
        Err(refused) if matches!(refused.class, Class::Denied | Class::Revoked) => Ok(None),
        Err(refused) => Err(refused),
    }
}

/// Is it the key with this ARN and these tags?
type Test<'a> = dyn Fn(&str, &[(String, String)]) -> Result<bool, Refused> + Sync + 'a;

/// What looking through all keys has shown.
#[derive(Default)]
struct Seen {
    found: Vec<Found>,
    /// Keys of customers whose tags are not for this caller.
    hidden: usize,
    failed: Option<Refused>,
}

/// All keys that are it; `what` names them for people.
fn scan(
    account: &Account,
    what: &str,
    hidden: Hidden,
    is_it: &Test<'_>,
) -> Result<Vec<Found>, Refused> {
    let (keys, seen) = (list(account)?, Mutex::new(Seen::default()));
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let lane = || {
        while let (false, Some(arn)) = (over.load(Relaxed), keys.get(next.fetch_add(1, Relaxed))) {
            if let Err(refused) = inspect(account, arn, is_it, &seen) {
                over.store(true, Relaxed);
                seen.lock().failed = Some(refused);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..LANES.min(keys.len()) {
            scope.spawn(lane);
        }
    });
    let seen = seen.into_inner();
    match seen.failed {
        Some(refused) => Err(refused),
        None if seen.found.is_empty() && seen.hidden > 0 && hidden == Hidden::Refuse => {
            Err(blind(what, seen.hidden))
        }
        None => Ok(seen.found),
    }
}

fn inspect(
    account: &Account,
    arn: &str,
    is_it: &Test<'_>,
    seen: &Mutex<Seen>,
) -> Result<(), Refused> {
    // Nothing, if they are hidden.
    match not_for_us(tags(account, arn))? {
        Some(tags) if is_it(arn, &tags)? => match look(account, arn) {
            Ok(head) if is_living(&head) => seen.lock().found.push(Found { head, tags }),
            Ok(_) => {}
            Err(refused) if refused.code == "NotFoundException" => {}
            Err(refused) => return Err(refused),
        },
        Some(_) => {}
        None => {
            // The keys AWS makes for its services show theirs to nobody, and are never ours.
            let of_aws = not_for_us(look(account, arn))?.is_some_and(|head| head.manager == "AWS");
            seen.lock().hidden += usize::from(!of_aws);
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn found(id: &str, mark: &str) -> Found {
        let head = Head { arn: id.into(), ..Head::nobody() };
        Found { head, tags: vec![(TAG_REQUEST.into(), mark.into())] }
    }

    #[test]
    fn the_youngest_of_one_volume_counts_and_nobody_guesses() {
        let of = |keys: &[(&str, &str)]| {
            latest("it", keys.iter().map(|(id, mark)| found(id, mark)).collect())
        };
        assert_eq!(of(&[]), Ok(None));
        let best = of(&[("a", "v.1"), ("b", "v.10"), ("c", "v.9")]).unwrap().unwrap();
        assert_eq!(best.head.arn, "b");
        for rivals in
            [[("a", "v.1"), ("b", "w.2")], [("a", "v.2"), ("b", "v.2")], [("a", "x"), ("b", "v.1")]]
        {
            let refused = of(&rivals).unwrap_err();
            assert!(refused.sentence.contains("any of a (") && refused.sentence.contains("b ("));
        }
    }
}
