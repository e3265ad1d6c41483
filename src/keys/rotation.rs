//! When a volume's KMS keys are to be rotated: the operator's policy, kept in the descriptor where KMS
//! keeps none (keys in a custom key store).
//!
//! Compatible features with a value: `rotation-period-days=N`; `period-of=ID:SECONDS`, for each key the
//! period is kept for, its id and when it took its place, in seconds since 1970; `rotated=SECONDS`, the
//! same of a volume none of whose keys has that; `rotated-from=ID` and `rotated-to=ID`, the key that the
//! last rotation replaced and the one in use since.

use crate::format::descriptor::Descriptor;
use crate::format::recipient::RecipientKind;
use std::ops::RangeInclusive;

const PERIOD: &str = "rotation-period-days=";
const KEPT: &str = "period-of=";
const ROTATED: &str = "rotated=";
const FROM: &str = "rotated-from=";
const TO: &str = "rotated-to=";
const DAY: u64 = 86_400;

/// Days between two rotations that KMS allows for its own; ours keep to them.
pub const PERIODS: RangeInclusive<u32> = 90..=2560;

/// What a descriptor says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rotation {
    /// Days between two rotations; none: no policy.
    pub period_days: Option<u32>,
    /// When the key was last rotated, or the volume made: seconds since 1970.
    pub last: u64,
}

impl Rotation {
    /// Of the key that is due first.
    pub fn of(descriptor: &Descriptor) -> Self {
        let first = kept(descriptor).into_iter().map(|(_, since)| since).min();
        Self { period_days: period(descriptor), last: first.unwrap_or_else(|| last(descriptor)) }
    }

    /// Of the key with this id. Where it is not said which keys the period is for, it is for any.
    pub fn of_key(descriptor: &Descriptor, id: &str) -> Self {
        let kept = kept(descriptor);
        let since = kept.iter().find(|(known, _)| known == id).map(|(_, since)| *since);
        let period = period(descriptor).filter(|_| since.is_some() || kept.is_empty());
        Self { period_days: period, last: since.unwrap_or_else(|| last(descriptor)) }
    }

    /// When the next rotation is due, seconds since 1970.
    pub fn due(&self) -> Option<u64> {
        self.period_days.map(|days| self.last.saturating_add(u64::from(days) * DAY))
    }

    /// Days until it is due, negative once it is.
    pub fn days_left(&self, now: u64) -> Option<i64> {
        self.due().map(|due| (due as i64 - now as i64).div_euclid(DAY as i64))
    }
}

/// Ids of the keys the period is kept for, that which is due first in front.
pub(super) fn kept_for(descriptor: &Descriptor) -> Vec<String> {
    let mut kept = kept(descriptor);
    kept.sort_by_key(|(_, since)| *since);
    kept.into_iter().map(|(id, _)| id).collect()
}

/// Ids of the key that the last rotation replaced and, if that is known, of its successor.
#[cfg(any(feature = "aws", test))]
pub(super) fn last_pair(descriptor: &Descriptor) -> Option<(String, Option<String>)> {
    value(descriptor, FROM).map(|from| (from, value(descriptor, TO)))
}

/// Sets the policy for this key, from `now` if it is one of several and nothing tells when it took its
/// place; whether that changed anything.
pub(super) fn set_period(descriptor: &mut Descriptor, id: &str, days: u32, now: u64) -> bool {
    let before = descriptor.compat.clone();
    let is_known = kept(descriptor).iter().any(|(kept, _)| kept == id);
    let since = match is_known || kms_ids(descriptor).len() <= 1 {
        true => Rotation::of_key(descriptor, id).last,
        false => now,
    };
    set(descriptor, PERIOD, Some(days.to_string()));
    keep(descriptor, id, since);
    descriptor.compat != before
}

/// Takes the policy for this key away, and with the last key the period; whether that changed anything.
pub(super) fn drop_period(descriptor: &mut Descriptor, id: &str) -> bool {
    let before = descriptor.compat.clone();
    let only = kms_ids(descriptor).len() <= 1;
    let was_kept = drop_kept(descriptor, id);
    if (was_kept || only) && kept(descriptor).is_empty() {
        set(descriptor, PERIOD, None);
    }
    descriptor.compat != before
}

/// The key `from` was replaced by `to` in a rotation.
pub(super) fn set_pair(descriptor: &mut Descriptor, from: &str, to: &str) {
    set(descriptor, FROM, Some(from.to_owned()));
    set(descriptor, TO, Some(to.to_owned()));
}

/// `to` took the place of `from` now. Where the period is kept for other keys, that is none of theirs.
pub(super) fn set_rotated(descriptor: &mut Descriptor, from: &str, to: &str, now: u64) {
    if drop_kept(descriptor, from) {
        keep(descriptor, to, now);
    } else if kept(descriptor).is_empty() {
        set(descriptor, ROTATED, Some(now.to_string()));
    }
}

fn period(descriptor: &Descriptor) -> Option<u32> {
    value(descriptor, PERIOD).filter(|days| PERIODS.contains(days))
}

fn last(descriptor: &Descriptor) -> u64 {
    value(descriptor, ROTATED).unwrap_or(descriptor.params.created)
}

/// Keys in use that the period is kept for, and since when.
fn kept(descriptor: &Descriptor) -> Vec<(String, u64)> {
    let ids = kms_ids(descriptor);
    let read = |feature: &String| {
        let (id, since) = feature.strip_prefix(KEPT)?.split_once(':')?;
        Some((id.to_owned(), since.parse().ok()?)).filter(|(id, _)| ids.contains(id))
    };
    descriptor.compat.iter().filter_map(read).collect()
}

fn keep(descriptor: &mut Descriptor, id: &str, since: u64) {
    drop_kept(descriptor, id);
    descriptor.compat.push(format!("{KEPT}{id}:{since}"));
}

fn drop_kept(descriptor: &mut Descriptor, id: &str) -> bool {
    let (before, name) = (descriptor.compat.len(), format!("{KEPT}{id}:"));
    descriptor.compat.retain(|feature| !feature.starts_with(&name));
    descriptor.compat.len() < before
}

/// The last part of the ARN of each KMS key in use.
fn kms_ids(descriptor: &Descriptor) -> Vec<String> {
    let kms = descriptor.volume_keys.iter().filter(|copy| copy.kind == RecipientKind::AwsKms);
    kms.map(|copy| id_in(&String::from_utf8_lossy(&copy.key_ref)).to_owned()).collect()
}

/// The id at the end of a key's ARN.
pub fn id_in(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or_default()
}

fn value<T: std::str::FromStr>(descriptor: &Descriptor, name: &str) -> Option<T> {
    descriptor.compat.iter().find_map(|feature| feature.strip_prefix(name)?.parse().ok())
}

fn set(descriptor: &mut Descriptor, name: &str, value: Option<String>) {
    descriptor.compat.retain(|feature| !feature.starts_with(name));
    descriptor.compat.extend(value.map(|value| format!("{name}{value}")));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::VolumeId;
    use crate::format::descriptor::{NameMode, Params};
    use crate::format::header::Recipient;

    fn descriptor() -> Descriptor {
        let params = Params {
            header_blocks: 1,
            names: NameMode::Encrypted,
            files_per_data_key: 256,
            created: 1_000_000,
            generation: 1,
        };
        Descriptor {
            volume: VolumeId([1; 16]),
            params,
            compat: vec!["something-else".into()],
            ro_compat: vec![],
            incompat: vec![],
            masters: vec![],
            allowed: vec![],
            volume_keys: vec![],
        }
    }

    /// The descriptor of a volume with these KMS keys.
    fn with_keys(ids: &[&str]) -> Descriptor {
        let copy = |id: &&str| Recipient {
            kind: RecipientKind::AwsKms,
            epoch: 1,
            key_ref: format!("arn:aws:kms:us-east-1:111122223333:key/{id}").into_bytes(),
            wrapped: vec![1; 184],
        };
        Descriptor { volume_keys: ids.iter().map(copy).collect(), ..descriptor() }
    }

    #[test]
    fn the_policy_is_kept_counts_from_the_last_rotation_and_leaves_other_features_alone() {
        let mut descriptor = with_keys(&["a"]);
        assert_eq!(Rotation::of(&descriptor), Rotation { period_days: None, last: 1_000_000 });
        assert!(set_period(&mut descriptor, "a", 90, 5_000_000));
        assert!(!set_period(&mut descriptor, "a", 90, 5_000_000));
        assert_eq!(Rotation::of(&descriptor).due(), Some(1_000_000 + 90 * DAY));
        set_rotated(&mut descriptor, "a", "a", 2_000_000);
        let rotation = Rotation::of(&descriptor);
        assert_eq!(rotation.due(), Some(2_000_000 + 90 * DAY));
        assert_eq!(rotation.days_left(2_000_000), Some(90));
        assert_eq!(rotation.days_left(2_000_000 + 90 * DAY + 1), Some(-1));
        assert!(drop_period(&mut descriptor, "a"));
        assert_eq!(Rotation::of(&descriptor).due(), None);
        set_rotated(&mut descriptor, "a", "a", 2_000_000);
        assert_eq!(descriptor.compat, ["something-else", "rotated=2000000"]);
        assert_eq!(last_pair(&descriptor), None);
        set_pair(&mut descriptor, "old", "new");
        set_pair(&mut descriptor, "older", "newer");
        assert_eq!(last_pair(&descriptor), Some(("older".into(), Some("newer".into()))));
        assert_eq!(descriptor.compat.len(), 4);
    }

    #[test]
    fn each_key_has_a_clock_of_its_own_and_what_happens_to_others_is_none_of_it() {
        let mut descriptor = with_keys(&["hsm", "native", "abroad"]);
        assert!(set_period(&mut descriptor, "hsm", 100, 1_000_000));
        // Known by now.
        assert!(!set_period(&mut descriptor, "hsm", 100, 5_000_000));
        // Neither looking at another key nor replacing it.
        assert!(!drop_period(&mut descriptor, "native"));
        set_rotated(&mut descriptor, "native", "native", 3_000_000);
        assert_eq!(Rotation::of_key(&descriptor, "native").period_days, None);
        assert_eq!(Rotation::of(&descriptor).due(), Some(1_000_000 + 100 * DAY));
        // Of two keys the one that is due first counts, and each follows its own rotation.
        assert!(set_period(&mut descriptor, "abroad", 100, 3_500_000));
        descriptor.volume_keys = with_keys(&["next", "native", "abroad"]).volume_keys;
        set_rotated(&mut descriptor, "hsm", "next", 4_000_000);
        assert_eq!(kept_for(&descriptor), ["abroad", "next"]);
        assert_eq!(Rotation::of_key(&descriptor, "next").due(), Some(4_000_000 + 100 * DAY));
        assert_eq!(Rotation::of(&descriptor), Rotation::of_key(&descriptor, "abroad"));
        // The period goes with the last key it is for.
        assert!(drop_period(&mut descriptor, "abroad"));
        assert_eq!(Rotation::of(&descriptor).due(), Some(4_000_000 + 100 * DAY));
        assert!(drop_period(&mut descriptor, "next"));
        assert_eq!((Rotation::of(&descriptor).due(), descriptor.compat.len()), (None, 1));
    }

    #[test]
    fn a_period_that_names_no_key_is_that_of_any() {
        let old = ["rotation-period-days=90", "rotated=2000000", "rotated-from=old"];
        let compat: Vec<String> = old.map(str::to_owned).into();
        let mut descriptor = Descriptor { compat, ..with_keys(&["a", "b"]) };
        for rotation in [Rotation::of(&descriptor), Rotation::of_key(&descriptor, "b")] {
            assert_eq!(rotation.due(), Some(2_000_000 + 90 * DAY));
        }
        assert_eq!(last_pair(&descriptor), Some(("old".into(), None)));
        assert!(!drop_period(&mut descriptor, "b"));
        descriptor.volume_keys.pop();
        assert!(drop_period(&mut descriptor, "a"));
    }

    #[test]
    fn a_policy_nobody_could_have_set_is_none() {
        for text in ["rotation-period-days=1", "rotation-period-days=x", "rotation-period-days="] {
            let descriptor = Descriptor { compat: vec![text.into()], ..descriptor() };
            assert_eq!(Rotation::of(&descriptor).period_days, None, "{text}");
        }
    }
}
