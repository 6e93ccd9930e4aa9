//! Memory of pages: shared once it is published, changed only by its one owner before.

use std::ops::Deref;
use std::sync::Arc;

use crate::id::SizeClass;

/// A counted handle of a page's (or a chunk's) bytes. They can be changed only while there is one handle.
#[derive(Clone, Debug)]
pub(super) struct Frame(Arc<[u8]>);

impl Frame {
    /// A frame of zeros that nobody else has.
    pub(super) fn zeroed(class: SizeClass) -> Self {
        Self(std::iter::repeat_n(0, class.page_bytes() as usize).collect())
    }

    /// A frame with these bytes, that nobody else has.
    pub(super) fn copy_of(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The bytes, if this is the only handle.
    pub(super) fn get_mut(&mut self) -> Option<&mut [u8]> {
        Arc::get_mut(&mut self.0)
    }

    /// The bytes, as the store takes them.
    pub(super) fn shared(&self) -> &Arc<[u8]> {
        &self.0
    }
}

impl From<Arc<[u8]>> for Frame {
    fn from(bytes: Arc<[u8]>) -> Self {
        Self(bytes)
    }
}

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
