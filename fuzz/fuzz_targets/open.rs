//! A store's file with anything changed in it, its checksums mended if the fuzzer asks for it: it opens or not, it is
//! checked, read, written and closed. Errors are fine; panics, endless loops and hunger for memory are not.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vellum::disk::{Disk, MemoryDisk};
use vellum::process::NoReaders;
use vellum::store::{Changes, Durability, PageChange, PageReader, SeededEntropy, Store, VerifyLevel};
use vellum::{PageId, SizeClass};
use vellum_fuzz::image::{Mutation, images};
use vellum_fuzz::memory::{self, Counting};
use vellum_fuzz::settings;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Arbitrary, Debug)]
struct Input {
    image: u8,
    mutations: Vec<Mutation>,
    mended: bool,
}

/// Reads what the store shows, up to a limit.
fn read(store: &Store) -> vellum::Result<()> {
    let (state, nodes) = (store.state(), store.nodes());
    for (class, map) in SizeClass::all().zip(state.maps.get().iter()) {
        let mut from = 0;
        for _ in 0..300 {
            let Some((index, pointer)) = map.next(nodes, from)? else { break };
            from = index + 1;
            let Some(page) = PageId::new(class, index) else { break };
            let mut bytes = vec![0; class.page_bytes().min(1 << 16) as usize];
            drop(PageReader::new(nodes).read(page, &pointer, 0, &mut bytes));
        }
        map.next_free(nodes, 0, |_, _| true)?;
    }
    Ok(())
}

/// Writes, frees, folds: each may fail.
fn write(store: &mut Store) -> vellum::Result<()> {
    let page = |class, index| SizeClass::new(class).and_then(|class| PageId::new(class, index));
    for round in 0..3u8 {
        let mut changes = Changes::default();
        if let Some(page) = page(12, round.into()) {
            changes.pages.insert(page, PageChange::Whole(vec![round; 4096].into()));
        }
        if let Some(page) = page(13, 0) {
            changes.pages.insert(page, PageChange::Zero);
        }
        drop(store.commit(&changes, Durability::Durable));
        let moved: Vec<PageId> = page(12, 3).into_iter().chain(page(12, 4)).collect();
        drop(store.move_pages(&moved, Durability::Durable));
        let name = store.state().catalogue.first().map(|listed| listed.entry.name.clone());
        if let Some(name) = name {
            drop(store.roll_back(&name));
            drop(store.remove_name(&name));
        }
        drop(store.checkpoint());
    }
    Ok(())
}

fuzz_target!(|input: Input| {
    let images = images();
    let mut image = images[input.image as usize % images.len()].clone();
    input.mutations.iter().take(24).for_each(|mutation| image.mutate(mutation));
    if input.mended {
        image.mend();
    }
    memory::limit((64 << 20) + 4 * image.bytes.len());
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::from_bytes(&image.bytes));
    let open = |seed| {
        let entropy = Box::new(SeededEntropy(seed));
        Store::open(Arc::clone(&disk), Arc::new(NoReaders), settings(), entropy).map(|(store, _)| store)
    };
    if let Ok(mut store) = open(1) {
        drop(store.verify(VerifyLevel::Full, &mut |_| {}));
        drop(read(&store));
        drop(write(&mut store));
        drop(read(&store));
        drop(store);
        if let Ok(mut store) = open(2) {
            drop(store.verify(VerifyLevel::Quick, &mut |_| {}));
        }
    }
    memory::unlimited();
});
