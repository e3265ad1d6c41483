//! Deliberate mistakes in the protocol, for the test that shows that the simulated disk finds them.
//! Without the feature `mutations` none can be made.

/// One mistake each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Mutation {
    /// fsync does not flush the journal.
    SkipJournalFlush = 1,
    /// fsync does not flush fresh blocks.
    SkipFreshFlush,
    /// A checkpoint writes records to their place before they are firm.
    CheckpointBeforeFirm,
    /// The journal starts anew before what a checkpoint wrote is flushed.
    ReuseEarly,
    /// A commit cuts and punches at once.
    CutBeforeFirm,
    /// A commit writes the header to its place.
    HeaderInPlace,
    /// A block that an older state refers to counts as fresh.
    ForgetRetired,
    /// A block is described as a delta that no image comes before.
    DeltaWithoutImage,
    /// Recovery does not ask which state a file is in.
    IgnoreBase,
    /// Recovery does not look at fresh blocks.
    ApplyPastSums,
    /// Recovery goes on behind a record that is not whole.
    ApplyPastTorn,
    /// Recovery leaves the journal of the epoch before in force.
    KeepOldEpoch,
    /// Recovery removes the journal before what it wrote is flushed.
    RemoveBeforeFlush,
    /// Recovery replays only the last record of a file.
    LastRecordOnly,
    /// Recovery writes records to their place before they are firm.
    ReplayBeforeFirm,
    /// The journal starts anew without an end of the round before.
    KeepOldRound,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::SkipJournalFlush,
        Self::SkipFreshFlush,
        Self::CheckpointBeforeFirm,
        Self::ReuseEarly,
        Self::CutBeforeFirm,
        Self::HeaderInPlace,
        Self::ForgetRetired,
        Self::DeltaWithoutImage,
        Self::IgnoreBase,
        Self::ApplyPastSums,
        Self::ApplyPastTorn,
        Self::KeepOldEpoch,
        Self::RemoveBeforeFlush,
        Self::LastRecordOnly,
        Self::ReplayBeforeFirm,
        Self::KeepOldRound,
    ];
}

#[cfg(feature = "mutations")]
mod switch {
    use super::Mutation;
    use std::sync::atomic::{AtomicU8, Ordering};

    static ACTIVE: AtomicU8 = AtomicU8::new(0);

    /// Makes this mistake from now on, or none.
    pub fn set(mutation: Option<Mutation>) {
        ACTIVE.store(mutation.map_or(0, |m| m as u8), Ordering::SeqCst);
    }

    pub(in crate::store) fn made(mutation: Mutation) -> bool {
        ACTIVE.load(Ordering::Relaxed) == mutation as u8
    }
}

#[cfg(feature = "mutations")]
pub(super) use switch::made;
#[cfg(feature = "mutations")]
pub use switch::set;

/// Is this mistake being made?
#[cfg(not(feature = "mutations"))]
pub(super) const fn made(_: Mutation) -> bool {
    false
}
