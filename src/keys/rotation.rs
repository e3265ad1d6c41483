//! When a volume's KMS key is to be rotated: the operator's policy, kept in the descriptor where KMS
//! keeps none (keys in a custom key store).
//!
//! Three compatible features with a value: `rotation-period-days=N`, `rotated=SECONDS` since 1970, and
//! `rotated-from=ID`, the id of the key whose successor is in use since.

use crate::format::descriptor::Descriptor;
use std::ops::RangeInclusive;

const PERIOD: &str = "rotation-period-days=";
const ROTATED: &str = "rotated=";
const FROM: &str = "rotated-from=";
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
    /// Id of the key that the last rotation replaced: its aliases and headers are to follow.
    pub from: Option<String>,
}

impl Rotation {
    /// What this descriptor says.
    pub fn of(descriptor: &Descriptor) -> Self {
        let period_days = value(descriptor, PERIOD).filter(|days| PERIODS.contains(days));
        let last = value(descriptor, ROTATED).unwrap_or(descriptor.params.created);
        Self { period_days, last, from: value(descriptor, FROM) }
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

/// Sets the policy, or takes it away; whether that changed anything.
pub(super) fn set_period(descriptor: &mut Descriptor, days: Option<u32>) -> bool {
    set(descriptor, PERIOD, days.map(u64::from))
}

/// The key with this id was replaced by a rotation.
pub(super) fn set_from(descriptor: &mut Descriptor, id: &str) {
    descriptor.compat.retain(|feature| !feature.starts_with(FROM));
    descriptor.compat.push(format!("{FROM}{id}"));
}

/// The key was rotated now.
pub(super) fn set_rotated(descriptor: &mut Descriptor, now: u64) {
    set(descriptor, ROTATED, Some(now));
}

fn value<T: std::str::FromStr>(descriptor: &Descriptor, name: &str) -> Option<T> {
    descriptor.compat.iter().find_map(|feature| feature.strip_prefix(name)?.parse().ok())
}

fn set(descriptor: &mut Descriptor, name: &str, value: Option<u64>) -> bool {
    let before = descriptor.compat.clone();
    descriptor.compat.retain(|feature| !feature.starts_with(name));
    descriptor.compat.extend(value.map(|value| format!("{name}{value}")));
    descriptor.compat != before
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::VolumeId;
    use crate::format::descriptor::{NameMode, Params};

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

    #[test]
    fn the_policy_is_kept_counts_from_the_last_rotation_and_leaves_other_features_alone() {
        let mut descriptor = descriptor();
        assert_eq!(
            Rotation::of(&descriptor),
            Rotation { period_days: None, last: 1_000_000, from: None }
        );
        assert!(set_period(&mut descriptor, Some(90)));
        assert!(!set_period(&mut descriptor, Some(90)));
        assert_eq!(Rotation::of(&descriptor).due(), Some(1_000_000 + 90 * DAY));
        set_rotated(&mut descriptor, 2_000_000);
        let rotation = Rotation::of(&descriptor);
        assert_eq!(rotation.due(), Some(2_000_000 + 90 * DAY));
        assert_eq!(rotation.days_left(2_000_000), Some(90));
        assert_eq!(rotation.days_left(2_000_000 + 90 * DAY + 1), Some(-1));
        assert!(set_period(&mut descriptor, None));
        assert_eq!(Rotation::of(&descriptor).due(), None);
        assert_eq!(descriptor.compat, ["something-else", "rotated=2000000"]);
        set_from(&mut descriptor, "old");
        set_from(&mut descriptor, "older");
        assert_eq!(Rotation::of(&descriptor).from.as_deref(), Some("older"));
        assert_eq!(descriptor.compat.len(), 3);
    }

    #[test]
    fn a_policy_nobody_could_have_set_is_none() {
        for text in ["rotation-period-days=1", "rotation-period-days=x", "rotation-period-days="] {
            let descriptor = Descriptor { compat: vec![text.into()], ..descriptor() };
            assert_eq!(Rotation::of(&descriptor).period_days, None, "{text}");
        }
    }
}
