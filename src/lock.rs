//! Locks that are waited for awake.

use std::hint::spin_loop;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::yield_now;

/// Looks at a lock before a thread sleeps for it.
const LOOKS: u32 = 160;

/// Looks in a row, before others get the processor.
const LOOKS_AT_ONCE: u32 = 32;

/// Takes a lock that is mostly held for a microsecond at most. Sleeping for it takes longer, and whoever comes while
/// others sleep would sleep too, each until the one before has woken up. But who holds it may have been interrupted: then
/// others get the processor.
///
/// For what is whole whenever the lock is not held: that a thread panicked while it held it makes no difference.
pub(crate) fn lock_awake<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    for look in 1..=LOOKS {
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(TryLockError::Poisoned(poison)) => return poison.into_inner(),
            Err(TryLockError::WouldBlock) if look % LOOKS_AT_ONCE == 0 => yield_now(),
            Err(TryLockError::WouldBlock) => spin_loop(),
        }
    }
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_another_thread_makes_no_difference() {
        let number = Mutex::new(1);
        let panics = || {
            let _guard = lock_awake(&number);
            std::panic::resume_unwind(Box::new("on purpose"));
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        assert!(number.is_poisoned());
        assert_eq!(*lock_awake(&number), 1);
    }
}
