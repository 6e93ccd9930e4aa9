//! The first steps: `cargo run --example quick_start -- some/path.vellum`

use vellum::{Options, PageId, Pager, Read, SizeClass};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("give the path of a store, which is made if it is not there")?;
    let pager = Pager::open_or_create(&path, &Options::new())?;

    // The header is the database's own root: here, the id of a page that counts.
    let transaction = pager.begin()?;
    let header = transaction.header();
    let counter = match header[..].try_into().ok().and_then(PageId::from_bytes) {
        Some(page) => page,
        None => {
            let page = transaction.allocate(SizeClass::MIN)?;
            transaction.set_header(&page.to_bytes())?;
            page
        }
    };
    {
        let mut page = transaction.write(counter)?;
        let (number, _) = page.split_first_chunk_mut::<8>().ok_or("a page has more than 8 bytes")?;
        *number = (u64::from_le_bytes(*number) + 1).to_le_bytes();
    }
    let committed = transaction.commit()?;

    // A view is a state that stays as it is, whatever is committed meanwhile.
    let view = pager.view();
    let page = view.page(counter)?;
    let number = page.first_chunk::<8>().ok_or("a page has more than 8 bytes")?;
    println!("run {} made {}", u64::from_le_bytes(*number), committed.generation);
    for class in SizeClass::all() {
        let pages = view.page_ids(class).collect::<Result<Vec<_>, _>>()?;
        if !pages.is_empty() {
            println!("{} page(s) of {class}", pages.len());
        }
    }
    drop(view);
    pager.close()?;
    Ok(())
}
