//! The lock-free core: a page's descriptor, the records of threads, and when a frame may be used again.
//!
//! Nothing here knows of memory, stores or policies, so that `tests/buffer_model` can compile these very files over the
//! model checker's atomics and try every order of events. See the [room](super) for the picture.

pub(super) mod descriptor;
pub(super) mod limbo;
pub(super) mod record;
