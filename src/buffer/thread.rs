//! The record of the calling thread.

use std::cell::Cell;
use std::sync::OnceLock;

use super::protocol::record::{Record, Registry, Slot};

/// All threads of the process, whatever manager they use: frames are told apart by their addresses.
pub(super) fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(Registry::new)
}

struct Local {
    record: Cell<Option<&'static Record>>,
    /// How many scopes the thread is in.
    depth: Cell<usize>,
    /// Where a free slot is likely.
    slot: Cell<usize>,
}

/// Gives the record up when the thread ends.
struct Owner;

impl Drop for Owner {
    fn drop(&mut self) {
        LOCAL.with(|local| {
            if local.depth.get() == 0
                && let Some(record) = local.record.take()
            {
                record.give_up();
            }
        });
    }
}

thread_local! {
    // Nothing to drop, so it costs no look at whether it is there still.
    static LOCAL: Local = const { Local { record: Cell::new(None), depth: Cell::new(0), slot: Cell::new(0) } };
    static OWNER: Owner = const { Owner };
}

/// The calling thread's record.
#[inline(always)]
pub(super) fn record() -> &'static Record {
    LOCAL.with(|local| match local.record.get() {
        Some(record) => record,
        None => take(local),
    })
}

#[cold]
fn take(local: &Local) -> &'static Record {
    let record = registry().take();
    local.record.set(Some(record));
    // While the thread's last values are dropped it has no owner any more, and the record stays taken for good.
    let _ = OWNER.try_with(|_| ());
    record
}

/// Puts a frame into a slot of the calling thread; `None` if all are in use. A light fence must follow.
#[inline(always)]
pub(super) fn protect(address: usize) -> Option<&'static Slot> {
    let record = record();
    LOCAL.with(|local| {
        let (at, slot) = record.protect(local.slot.get(), address)?;
        local.slot.set(at);
        Some(slot)
    })
}

/// Whether the calling thread is in a scope.
pub(super) fn is_in_scope() -> bool {
    LOCAL.with(|local| local.depth.get() > 0)
}

/// An epoch of the calling thread; those within another are that one.
pub(super) struct Epoch {
    record: &'static Record,
    /// It stays in the thread that entered it.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Epoch {
    #[inline(always)]
    pub(super) fn enter() -> Self {
        let record = record();
        LOCAL.with(|local| {
            let depth = local.depth.get();
            local.depth.set(depth + 1);
            if depth == 0 {
                record.enter(registry());
            }
        });
        Self { record, _not_send: std::marker::PhantomData }
    }
}

impl Drop for Epoch {
    #[inline(always)]
    fn drop(&mut self) {
        LOCAL.with(|local| {
            let depth = local.depth.get() - 1;
            local.depth.set(depth);
            if depth == 0 {
                self.record.leave();
            }
        });
    }
}
