#[path = "format/small.rs"]
mod small;
#[test]
fn dump() {
    std::fs::write("/tmp/docs_small.vellum", small::small_store()).unwrap();
}
