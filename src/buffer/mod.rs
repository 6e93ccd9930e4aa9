//! Memory for pages: what stays in it is decided by an eviction policy.

pub mod policy;
