//! Following the writer: R2, and the reader's half of the protocol of pins.

use super::open::{PATIENT, limit_of};
use super::{Inner, ReadOnlyPager, Refreshed, Shared};
use crate::error::{Error, Result};
use crate::process::Told;
use crate::store::{FollowLimit, Followed};

impl ReadOnlyPager {
    /// Looks for a newer state, and shows it from now on. Views stay as they are. Costs next to nothing if there is
    /// none, and else in proportion to what changed.
    ///
    /// Without a writer nothing new can come, and this says so.
    ///
    /// # Errors
    /// `Forked`; `Io`; `Corrupt` if something durable is damaged. The state shown before then still is.
    pub fn refresh(&self) -> Result<Refreshed> {
        self.shared.check_process()?;
        let mut inner = self.shared.lock();
        let before = inner.head.generation;
        let writer = self.shared.refresh(&mut inner)?;
        let generation = inner.head.generation;
        Ok(Refreshed { generation, changed: generation != before, writer })
    }
}

impl Shared {
    /// Returns whether there is a writer.
    fn refresh(&self, inner: &mut Inner) -> Result<bool> {
        let Some(registration) = &mut inner.registration else { return Ok(false) };
        let told = registration.told()?;
        let writer = !matches!(told, Told::Gone(_));
        match told {
            Told::Live(state) if inner.limit == FollowLimit::Published(state) => return Ok(true),
            Told::Gone(said) if inner.limit == FollowLimit::Durable(said) => return Ok(false),
            Told::Silent => return Ok(true),
            _ => {}
        }
        registration.pin_everything()?;
        let result = self.follow(inner);
        let said = self.say_pins(inner);
        result.and(said).map(|()| writer)
    }

    /// Everything is pinned while this runs.
    fn follow(&self, inner: &mut Inner) -> Result<()> {
        let mut futile = 0;
        let mut last = None;
        loop {
            let Some(registration) = &mut inner.registration else { return Ok(()) };
            let told = registration.told()?;
            // While nobody says anything, what was shown before is as good as anything.
            let Some(limit) = limit_of(&inner.disk, told)? else { return Ok(()) };
            futile = if last == Some(limit) { futile + 1 } else { 0 };
            last = Some(limit);
            match inner.follower.follow(limit) {
                Ok(Some(followed)) => {
                    self.show(inner, followed);
                    inner.limit = limit;
                    return Ok(());
                }
                // What a writer that is faster left of the state before may look like anything.
                Ok(None) | Err(Error::Corrupt(_)) if futile < PATIENT => std::thread::yield_now(),
                Ok(None) => return Err(Error::WriterSilent { path: self.path.clone() }),
                Err(error) => return Err(error),
            }
        }
    }

    fn show(&self, inner: &mut Inner, followed: Followed) {
        let Followed { state, changed } = followed;
        self.frames.change(&state, &changed.pages);
        match &self.mapped {
            Some(mapped) if changed.any_may_have_moved => mapped.forget_all(state.generation),
            Some(mapped) => mapped.forget(&changed.pages, state.generation),
            None => {}
        }
        inner.follower.show(state);
        inner.head = self.published.pin();
    }
}
