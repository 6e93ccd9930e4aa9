//! Real processes: who excludes whom, who outlives whom, and what was taken away.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use vellum::format::{SUPERBLOCK_BLOCKS, Superblock};
use vellum::{BLOCK_BYTES, Error, PageId, Pager, Read};

use crate::children::{Puppet, command};
use crate::{SMALL, WAYS, allocate, assert_full, busy, fill, reader};

/// A store with a page that is full of ones, and its path.
fn store(folder: &Path) -> (PathBuf, PageId) {
    let path = folder.join("store");
    let pager = Pager::create(&path, &busy()).unwrap();
    let page = allocate(&pager, SMALL, 1)[0];
    fill(&pager, &[page], 1);
    pager.close().unwrap();
    (path, page)
}

#[test]
fn processes_that_exclude_each_other_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = store(folder.path());
    let (mut first, mut second, mut third) = (Puppet::new(&path), Puppet::new(&path), Puppet::new(&path));
    assert_eq!(first.tell("write"), "done");
    assert!(second.tell("write").starts_with("Locked "));
    assert!(second.tell("exclude").starts_with("Locked "));
    assert_eq!(third.tell("read"), "BesideWriters");
    first.kill();
    // What beside writers reads excludes nobody; what excludes writers, writers.
    assert_eq!(second.tell("exclude"), "done");
    let mut fourth = Puppet::new(&path);
    let answer = fourth.tell("write");
    assert!(answer.starts_with("LockedByReaders ") && answer.contains(path.to_str().unwrap()), "{answer}");
    assert!(third.tell("refresh").ends_with("alone"));
    second.kill();
    assert_eq!(fourth.tell("write"), "done");
    assert!(third.tell("refresh").ends_with("writer"));
}

#[test]
fn readers_go_on_when_the_writer_crashes_and_follow_the_next() {
    for way in WAYS {
        let folder = tempfile::tempdir().unwrap();
        let (path, page) = store(folder.path());
        let reader = reader(&path, way);
        let mut writer = Puppet::new(&path);
        writer.tell("write");
        writer.tell(&format!("fill {} 2", page.to_u64()));
        reader.refresh().unwrap();
        let two = reader.view().unwrap();
        writer.tell(&format!("fill {} 3", page.to_u64()));
        writer.kill();
        // What was acknowledged is shown, though the writer is gone.
        let found = reader.refresh().unwrap();
        assert!(found.changed && !found.writer);
        let three = reader.view().unwrap();
        assert_full(&three, &[page], 3);
        let mut next = Puppet::new(&path);
        assert_eq!(next.tell("write"), "done");
        assert!(next.tell(&format!("churn {} 60", page.to_u64())) == "done");
        assert_full(&two, &[page], 2);
        assert_full(&three, &[page], 3);
        assert!(reader.refresh().unwrap().writer);
        assert_full(&reader.view().unwrap(), &[page], 59);
        assert_full(&two, &[page], 2);
    }
}

#[test]
fn what_a_killed_reader_held_is_free_again() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = store(folder.path());
    let pager = Pager::open(&path, &busy()).unwrap();
    let pages = allocate(&pager, SMALL, 300);
    fill(&pager, &pages, 1);
    let mut reader = Puppet::new(&path);
    for order in ["read", "view"] {
        reader.tell(order);
    }
    fill(&pager, &pages, 2);
    fill(&pager, &pages[..1], 3);
    let held = pager.stats().status.deferred_extents;
    let listed = vellum::process::readers(&path).unwrap();
    assert_eq!((listed.len(), listed[0].name.as_str()), (1, "puppet"));
    reader.kill();
    assert!(vellum::process::readers(&path).unwrap().is_empty());
    std::thread::sleep(std::time::Duration::from_millis(30));
    fill(&pager, &pages[..1], 4);
    assert!(pager.stats().status.deferred_extents < held);
    let left = fs::read_dir(folder.path().join("store.readers")).unwrap().count();
    assert_eq!(left, 1, "the file of the dead is swept, the writer's is there");
}

#[test]
fn a_folder_that_is_taken_away_splits_nobody() {
    for way in ["read", "map"] {
        let folder = tempfile::tempdir().unwrap();
        let (path, page) = store(folder.path());
        let (mut writer, mut reader) = (Puppet::new(&path), Puppet::new(&path));
        writer.tell("write");
        assert_eq!(reader.tell(way), "BesideWriters");
        reader.tell("view");
        for round in 0..3 {
            fs::remove_dir_all(folder.path().join("store.readers")).unwrap();
            if round == 1 {
                // The reader notices first; nobody has the new folder yet.
                reader.tell("refresh");
            }
            writer.tell(&format!("churn {} 30", page.to_u64()));
            assert_eq!(reader.tell(&format!("check 0 {} 1", page.to_u64())), "done");
            assert!(reader.tell("refresh").ends_with("writer"));
            reader.tell("view");
            assert_eq!(reader.tell(&format!("check {} {} 29", round + 1, page.to_u64())), "done");
        }
    }
}

#[test]
fn a_reader_in_a_forked_child_says_so() {
    for way in WAYS {
        let folder = tempfile::tempdir().unwrap();
        let (path, page) = store(folder.path());
        let reader = reader(&path, way);
        let view = reader.view().unwrap();
        let (of_child, view_of_child) = (reader.clone(), view.clone());
        let mut command = std::process::Command::new("true");
        let in_child = move || {
            let forked = |result: vellum::Result<()>| matches!(result, Err(Error::Forked { .. }));
            let all = forked(of_child.refresh().map(drop))
                && forked(of_child.view().map(drop))
                && forked(view_of_child.page(page).map(drop))
                && forked(view_of_child.contains(page).map(drop))
                && forked(view_of_child.scope(|_| Ok(())));
            // Neither gives back what is the parent's.
            drop(view_of_child.clone());
            if all { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
        };
        #[allow(unsafe_code)]
        // SAFETY: what runs in the child takes no lock that another thread may have: the reader is this test's own.
        unsafe {
            command.pre_exec(in_child);
        }
        command.status().unwrap();
        drop(command);
        // The parent goes on, and what it holds is held.
        let pager = Pager::open(&path, &busy()).unwrap();
        for byte in 2..40 {
            fill(&pager, &[page], byte);
            pager.checkpoint().unwrap();
        }
        assert_full(&view, &[page], 1);
        reader.refresh().unwrap();
        assert_full(&reader.view().unwrap(), &[page], 39);
    }
}

#[test]
fn a_store_in_a_folder_that_may_not_be_written_is_read_under_a_lock() {
    let folder = tempfile::tempdir().unwrap();
    let (path, page) = store(folder.path());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    // To the superuser no permission is lacking; a child that is nobody lacks it. It must be able to start.
    let program = folder.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let mut nobody = command(&program, "puppet", &path);
    if fs::File::create(folder.path().join("superuser")).is_ok() {
        fs::remove_file(folder.path().join("superuser")).unwrap();
        nobody.uid(65534).gid(65534);
    }
    let mut reader = Puppet::from(nobody);
    assert_eq!(reader.tell("read"), "WritersExcluded");
    reader.tell("view");
    assert_eq!(reader.tell(&format!("check 0 {} 1", page.to_u64())), "done");
    assert!(!folder.path().join("store.readers").exists());
    let error = Pager::open(&path, &busy()).unwrap_err();
    assert!(matches!(error, Error::LockedByReaders { .. }), "{error}");
    reader.kill();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    Pager::open(&path, &busy()).unwrap();
}

#[test]
fn a_writer_that_lost_a_readers_checkpoint_does_not_write() {
    let folder = tempfile::tempdir().unwrap();
    let (path, page) = store(folder.path());
    let mut reader = Puppet::new(&path);
    assert_eq!(reader.tell("read"), "BesideWriters");
    // Both copies of the newest superblock are lost; the older leads to the same state.
    let mut bytes = fs::read(&path).unwrap();
    let slots = SUPERBLOCK_BLOCKS.map(|block| (block * BLOCK_BYTES) as usize);
    let number = |at: usize| {
        let block: &[u8; 4096] = bytes[at..at + 4096].try_into().unwrap();
        Superblock::decode(block).unwrap().unwrap().checkpoint
    };
    let newest = slots.into_iter().map(number).max().unwrap();
    let lost: Vec<usize> = slots.into_iter().filter(|at| number(*at) == newest).collect();
    for at in lost {
        bytes[at..at + 4096].fill(0xEE);
    }
    fs::write(&path, &bytes).unwrap();
    let before = fs::read(&path).unwrap();
    match Pager::open(&path, &busy()).unwrap_err() {
        Error::ReaderAhead { holder, base, .. } => {
            assert!(holder.contains("puppet"), "{holder}");
            assert_eq!(base, Some(newest));
        }
        other => panic!("{other}"),
    }
    assert!(fs::read(&path).unwrap() == before, "nothing was written");
    reader.kill();
    let pager = Pager::open(&path, &busy()).unwrap();
    assert_full(&pager.view(), &[page], 1);
}
