//! What the system is told of how memory will be used, and what it says of its pages.

use std::sync::OnceLock;

/// How memory is going to be used. A hint changes speed and residency, never the bytes.
///
/// "Don't need" is none of these, since it changes what anonymous memory holds: see
/// [`decommit`](super::Pages::decommit), [`release`](super::Pages::release) for a mapped file, and
/// [`clear_and_release`](super::PagedVec::clear_and_release).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hint {
    /// As without a hint: takes back [`Hint::Sequential`] and [`Hint::Random`].
    Normal,
    /// Read from the front to the back: more is read ahead, what was read is dropped early.
    Sequential,
    /// Read here and there: nothing is read ahead.
    Random,
    /// Needed soon: what is on a disk (a file's bytes, or swapped memory) is read now, in the background.
    WillNeed,
    /// Every OS page gets its memory now, so that no later access has to wait for it.
    Populate,
    /// Backed by huge pages where the system can: fewer faults and fewer misses of the TLB, at the price of memory
    /// that is obtained [`huge_page_bytes`] at a time. Works unless the system's setting is
    /// [`HugePageSetting::Never`].
    HugePages,
    /// Not backed by huge pages.
    SmallPages,
}

/// The system's setting for transparent huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePageSetting {
    /// All anonymous memory is backed by huge pages where that is possible.
    Always,
    /// Memory that asks for huge pages gets them.
    Madvise,
    /// No memory gets them.
    Never,
    /// The system does not say, or has none.
    Unknown,
}

impl HugePageSetting {
    /// The setting in force now.
    pub fn of_the_system() -> Self {
        let text = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        Self::parse(&text)
    }

    /// The choice in brackets, as in `always [madvise] never`.
    fn parse(text: &str) -> Self {
        match text.split_whitespace().find(|word| word.starts_with('[')) {
            Some("[always]") => Self::Always,
            Some("[madvise]") => Self::Madvise,
            Some("[never]") => Self::Never,
            _ => Self::Unknown,
        }
    }
}

impl std::fmt::Display for HugePageSetting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Always => "always",
            Self::Madvise => "madvise",
            Self::Never => "never",
            Self::Unknown => "unknown",
        })
    }
}

/// Bytes of an OS page: 4 KiB on most machines, 16 or 64 KiB on some.
pub fn page_bytes() -> usize {
    pretended_page_bytes().unwrap_or_else(system_page_bytes)
}

/// As [`page_bytes`], whatever is pretended: for what depends on where the system itself puts a mapping.
pub(super) fn system_page_bytes() -> usize {
    rustix::param::page_size()
}

/// Tests can pretend that OS pages are larger than they are, by `VELLUM_OS_PAGE_BYTES`: then memory comes and goes in
/// such pages, as it would on another machine.
#[cfg(any(test, feature = "testing"))]
fn pretended_page_bytes() -> Option<usize> {
    static BYTES: OnceLock<Option<usize>> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let bytes: usize = std::env::var("VELLUM_OS_PAGE_BYTES").ok()?.parse().ok()?;
        (bytes.is_power_of_two() && (system_page_bytes()..=64 << 10).contains(&bytes)).then_some(bytes)
    })
}

#[cfg(not(any(test, feature = "testing")))]
const fn pretended_page_bytes() -> Option<usize> {
    None
}

/// Bytes of a huge page: 2 MiB on most machines, and taken to be that where the system does not say.
pub fn huge_page_bytes() -> usize {
    const USUAL: usize = 2 << 20;
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .filter(|bytes: &usize| bytes.is_power_of_two() && *bytes >= page_bytes())
            .unwrap_or(USUAL)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_is_the_word_in_brackets() {
        assert_eq!(HugePageSetting::parse("always [madvise] never\n"), HugePageSetting::Madvise);
        assert_eq!(HugePageSetting::parse("[always] madvise never\n"), HugePageSetting::Always);
        assert_eq!(HugePageSetting::parse("always madvise [never]\n"), HugePageSetting::Never);
        assert_eq!(HugePageSetting::parse(""), HugePageSetting::Unknown);
    }

    #[test]
    fn page_sizes_are_powers_of_two_and_the_huge_one_is_no_smaller() {
        assert!(page_bytes().is_power_of_two());
        assert!(huge_page_bytes().is_power_of_two());
        assert!(huge_page_bytes() >= page_bytes());
    }
}
