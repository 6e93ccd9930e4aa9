//! Rules that can be broken on purpose, so that the crash tests can be seen to catch it. Compiled into tests and the
//! feature `testing` only; elsewhere every question answers "no" at compile time.

use super::Store;

macro_rules! sabotages {
    ($($(#[$doc:meta])* $variant:ident => $ask:ident,)*) => {
        /// A rule to break.
        #[cfg(any(test, feature = "testing"))]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Sabotage {
            $($(#[$doc])* $variant,)*
        }

        #[cfg(any(test, feature = "testing"))]
        impl Sabotage {
            /// Every rule that can be broken.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
        }

        impl Store {
            $(pub(super) fn $ask(&self) -> bool {
                #[cfg(any(test, feature = "testing"))]
                return self.settings.sabotage == Some(Sabotage::$variant);
                #[cfg(not(any(test, feature = "testing")))]
                return false;
            })*
        }
    };
}

sabotages! {
    /// A commit does not sync.
    SkipSync => sabotaged_skip_sync,
    /// A durable write of the record stands for the sync of the pages written before it.
    DurableWriteForSync => sabotaged_durable_write_for_sync,
    /// A commit that names spilled pages does not sync them first.
    SpillUnsynced => sabotaged_spill_unsynced,
    /// R2 without the condition that the writer of the extent is anchored.
    IgnoreAnchored => sabotaged_ignore_anchored,
    /// A checkpoint anchors what it folds at once, though its superblock may be lost.
    FoldAnchors => sabotaged_fold_anchors,
    /// A commit is acknowledged before its sync, which comes with the next one.
    AcknowledgeBeforeSync => sabotaged_acknowledge_before_sync,
    /// R2 with "committed" for "synced".
    CommittedForSynced => sabotaged_committed_for_synced,
    /// R3 left out: a replaced node is free at once.
    IgnoreReplaced => sabotaged_ignore_replaced,
    /// R5 left out: a checkpoint folds at an older generation than the one its homes are free at.
    LateHomes => sabotaged_late_homes,
    /// R6 left out: replay does not cancel a deferred entry whose blocks are allocated again.
    KeepCancelled => sabotaged_keep_cancelled,
    /// The opening record is left out.
    NoOpeningRecord => sabotaged_no_opening_record,
    /// Recovery ignores `synced_through`: it takes missing acknowledged commits for a torn tail.
    IgnoreSyncedThrough => sabotaged_ignore_synced_through,
    /// Recovery does not verify the pages of the tail.
    TrustTail => sabotaged_trust_tail,
    /// Recovery takes a read error for the end of the log.
    ReadErrorIsTear => sabotaged_read_error_is_tear,
    /// A superblock is written before the trees it leads to are durable.
    SuperblockFirst => sabotaged_superblock_first,
    /// A checkpoint restarts the log: it does not keep the records that the older slot needs (R4).
    RestartLog => sabotaged_restart_log,
    /// Recovery does not write the unsynced tail again.
    NoAdoption => sabotaged_no_adoption,
}
