//! Who may open a volume's keys, and what asks them: the recipients of one descriptor.
//!
//! Immutable; a change of the descriptor brings another one. Only recipients of the descriptor's list
//! are ever asked. Those that have no copy of the volume key are on their way out: what was wrapped
//! for them can be opened, but nothing new is wrapped for them.

use super::keyring::Member;
use super::{KeyError, KeyProvider, describe_recipient, same_key};
use crate::format::header::{Recipient, RecipientKind};

/// Copies of a key, each with the member that can unwrap it.
pub(super) type Ways<'a> = Vec<(&'a Recipient, &'a Member)>;

pub(super) struct Recipients {
    /// Those every new key is wrapped for, in the descriptor's order.
    pub(super) wrap_order: Vec<Recipient>,
    /// In the order they are asked to unwrap.
    pub(super) members: Vec<Member>,
    /// Wrapped copies of the volume key.
    pub(super) volume_keys: Vec<Recipient>,
}

impl Recipients {
    /// `members` in the descriptor's order.
    pub(super) fn new(mut members: Vec<Member>, volume_keys: Vec<Recipient>) -> Self {
        let stays = |member: &&Member| {
            volume_keys.is_empty() || volume_keys.iter().any(|k| same_key(k, &member.recipient))
        };
        let wrap_order = members.iter().filter(stays).map(|m| m.recipient.clone()).collect();
        // Stable: the rest stays in the descriptor's order.
        members.sort_by_key(|member| !member.preferred);
        Self { wrap_order, members, volume_keys }
    }

    /// What is asked first to unwrap a key.
    pub(super) fn first_way(&self) -> Option<&dyn KeyProvider> {
        let mut ways = self.members.iter().filter_map(|member| member.provider.as_deref());
        ways.find(|provider| provider.can_unwrap())
    }

    pub(super) fn any_remote(&self) -> bool {
        self.members.iter().any(Member::is_remote)
    }

    /// Are these copies exactly those a new key would have?
    pub(super) fn are_right(&self, copies: &[Recipient]) -> bool {
        let wanted = &self.wrap_order;
        copies.len() == wanted.len() && copies.iter().zip(wanted).all(|(c, w)| is_for(c, w))
    }

    /// The copies that may be asked for, in the order they are tried.
    pub(super) fn in_order<'a>(&'a self, copies: &'a [Recipient]) -> Ways<'a> {
        let copy_of =
            |member: &Member| copies.iter().find(|copy| same_key(copy, &member.recipient));
        self.members.iter().filter_map(|member| Some((copy_of(member)?, member))).collect()
    }

    /// Copies that one KMS key can turn into a copy of another, in the order they are tried: those of
    /// keys on their way out first, as another one may be somebody else's affair. None if a key was
    /// named that opens without asking: what for would it have been, otherwise?
    pub(super) fn kms_copies<'a>(&'a self, copies: &'a [Recipient]) -> Vec<&'a Recipient> {
        let ways = self.in_order(copies);
        if ways.iter().any(|(_, member)| member.preferred) {
            return vec![];
        }
        let kms = |copy: &&Recipient| copy.kind == RecipientKind::AwsKms;
        let mut found: Vec<_> = ways.into_iter().map(|(copy, _)| copy).filter(kms).collect();
        found.sort_by_key(|copy| self.wrap_order.iter().any(|wanted| same_key(wanted, copy)));
        found
    }

    pub(super) fn member(&self, recipient: &Recipient) -> Option<&Member> {
        self.members.iter().find(|member| same_key(&member.recipient, recipient))
    }

    pub(super) fn provider(
        &self,
        recipient: &Recipient,
    ) -> Result<(&Member, &dyn KeyProvider), KeyError> {
        let member = self.member(recipient);
        member.and_then(|member| Some((member, member.provider.as_deref()?))).ok_or_else(|| {
            KeyError::Unavailable(format!(
                "the {} is not at hand, and new files need a copy of their key for every \
                 recipient; mount with the volume's key file or passphrase to make files",
                describe_recipient(recipient)
            ))
        })
    }

    pub(super) fn can_create(&self) -> Result<(), KeyError> {
        self.wrap_order.iter().try_for_each(|recipient| self.provider(recipient).map(drop))
    }
}

/// Is this the copy for that recipient, by its present material?
pub(super) fn is_for(copy: &Recipient, wanted: &Recipient) -> bool {
    same_key(copy, wanted) && copy.epoch == wanted.epoch
}
