//! Private frames: memory of the pools that a writer fills before anybody else sees it.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::Deref;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::manager::Inner;
use super::pool::{Meta, PUBLISHED, take_zero};
use super::room::{FrameName, is_counted};
use crate::error::Result;
use crate::id::SizeClass;

/// A counted handle of a frame. As long as it is the only one, its bytes can be changed; handles of a frame that was
/// published read it, whatever becomes of the page.
///
/// Its memory counts as private until it is published, and goes back when the last handle is dropped.
pub struct Frame {
    inner: Arc<Inner>,
    name: FrameName,
    start: std::ptr::NonNull<u8>,
}

// SAFETY: bytes are changed through the only handle, by `&mut` (`get_mut`); the rest is atomic or under a lock.
unsafe impl Send for Frame {}
// SAFETY: as above.
unsafe impl Sync for Frame {}

impl Frame {
    /// The first handle of a frame that was taken for it.
    ///
    /// # Errors
    /// Those of making its pool: none, since it is from there.
    pub(super) fn new(inner: Arc<Inner>, name: FrameName) -> Result<Self> {
        let pool = inner.pool(name.class, |_| ())?;
        let meta = pool.meta(name.number);
        debug_assert!(!is_counted(meta));
        meta.handles.store(1, Ordering::Release);
        let start = pool.address(name.number);
        Ok(Self { inner, name, start })
    }

    fn meta(&self) -> Option<&Meta> {
        Some(self.inner.pools.get(self.name.class)?.meta(self.name.number))
    }

    /// The frame's size class.
    pub fn class(&self) -> SizeClass {
        self.name.class
    }

    /// The bytes, for changing, while this is the only handle and they were not published.
    pub fn get_mut(&mut self) -> Option<&mut [u8]> {
        let meta = self.meta()?;
        if meta.handles.load(Ordering::Acquire) != 1 {
            return None;
        }
        // SAFETY: the only handle, borrowed exclusively; a private frame is named by nothing else.
        Some(unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.length()) })
    }

    /// Whether the frame was published.
    pub fn is_published(&self) -> bool {
        self.meta().is_none_or(|meta| meta.handles.load(Ordering::Acquire) & PUBLISHED != 0)
    }

    /// The frame of a scratch page is in use, for which it does not go elsewhere, and counts as touched.
    pub(super) fn lend(&self) {
        if let Some(meta) = self.meta() {
            meta.pins.fetch_add(1, Ordering::AcqRel);
            meta.generation.store(1, Ordering::Relaxed);
        }
    }

    /// Undoes [`Frame::lend`].
    pub(super) fn take_back(&self) {
        if let Some(meta) = self.meta() {
            meta.pins.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// What was known of the bytes is no longer so: they are about to be written.
    pub(super) fn claim(&self) {
        if let Some(meta) = self.meta() {
            take_zero(meta);
        }
    }

    /// Makes all bytes zero, if they are not known to be. The only handle.
    pub(super) fn make_zero(&mut self) {
        let is_zero = self.meta().is_some_and(take_zero);
        if !is_zero && let Some(bytes) = self.get_mut() {
            bytes.fill(0);
        }
    }

    fn length(&self) -> usize {
        self.name.class.page_bytes() as usize
    }

    /// Whether the frame belongs to this manager.
    pub(super) fn is_of(&self, inner: &Inner) -> bool {
        std::ptr::eq(Arc::as_ptr(&self.inner), inner)
    }

    /// The frame's name and address.
    pub(super) fn place(&self) -> (FrameName, usize) {
        (self.name, self.start.addr().get())
    }

    /// Gives up the handle of a frame that the pool takes over, under the room's lock.
    pub(super) fn hand_over(self) {
        if let Some(meta) = self.meta() {
            meta.handles.fetch_add(PUBLISHED - 1, Ordering::AcqRel);
        }
        let mut this = std::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is not dropped, so this is the only drop of the count.
        unsafe { std::ptr::drop_in_place(&mut this.inner) };
    }
}

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: a handle holds the frame; bytes change through `get_mut` only, which excludes other handles.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.length()) }
    }
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Clone for Frame {
    fn clone(&self) -> Self {
        if let Some(meta) = self.meta() {
            meta.handles.fetch_add(1, Ordering::Relaxed);
        }
        Self { inner: Arc::clone(&self.inner), name: self.name, start: self.start }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let Some(meta) = self.meta() else { return };
        // The last one of a frame that was published leaves the mark, and the pool to do the rest.
        if meta.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.inner.release(self.name);
        }
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame").field("class", &self.class()).finish_non_exhaustive()
    }
}
