//! What the fuzz targets share: images of stores that can be damaged and mended, and a watch over memory.

pub mod image;
pub mod memory;

use vellum::space::FirstFit;
use vellum::store::Settings;
use vellum::testing::tiny;

/// Settings of the stores that are fuzzed: a tiny geometry, next to no cache, a limit so that nothing grows for ever.
pub fn settings() -> Settings {
    Settings { cached_nodes: 0, segment_blocks: 1024, blocks_limit: 1 << 16, strategy: || Box::<FirstFit>::default(), ..tiny() }
}
