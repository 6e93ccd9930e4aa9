//! What the types of this room must refuse, as tests.
//!
//! A test that something does not compile proves little alone: a misspelt name would do. So each comes as a pair that
//! is the same but for the last line: with the one it compiles and runs, with the other it does not, with the error
//! that is named (which nightly's `cargo test --doc` compares).

/// A claim, what both examples start with, the last line that is accepted, and the one that is refused.
macro_rules! pair {
    ($(#[$condition:meta])* $name:ident, $claim:literal, $error:literal, $start:literal, $accepted:literal, $refused:literal) => {
        $(#[$condition])*
        #[doc = $claim]
        #[doc = concat!("```\nuse vellum::memory::*;\n", $start, "\n", $accepted, "\n# Ok::<(), vellum::Error>(())\n```")]
        #[doc = concat!("```compile_fail,", $error, "\nuse vellum::memory::*;\n", $start, "\n", $refused, "\n# Ok::<(), vellum::Error>(())\n```")]
        #[allow(dead_code)]
        const $name: () = ();
    };
}

pair!(
    WRITE_READ_ONLY,
    "Memory that denies writing is not indexed for writing.",
    "E0594",
    "let mut pages = Pages::new(1)?; let mut read_only = Pages::new(1)?.deny_write()?;",
    "pages[0] = 1;",
    "read_only[0] = 1;"
);

pair!(
    SLICE_READ_ONLY,
    "Memory that denies writing has no writable slice.",
    "E0596",
    "let mut pages = Pages::new(1)?; let mut read_only = Pages::new(1)?.deny_write()?;",
    "pages[..].fill(1);",
    "read_only[..].fill(1);"
);

pair!(
    WRITE_AT_READ_ONLY,
    "Memory that denies writing is not written by offset.",
    "E0599",
    "let mut pages = Pages::new(1)?; let mut read_only = Pages::new(1)?.deny_write()?;",
    "pages.write_at(0, &[1])?;",
    "read_only.write_at(0, &[1])?;"
);

pair!(
    DECOMMIT_READ_ONLY,
    "Memory that denies writing is not made zero by giving it back.",
    "E0599",
    "let mut pages = Pages::new(1)?; let mut read_only = Pages::new(1)?.deny_write()?;",
    "pages.decommit(..)?;",
    "read_only.decommit(..)?;"
);

pair!(
    RESIZE_READ_ONLY,
    "Memory that denies writing is not resized.",
    "E0599",
    "let mut pages = Pages::new(1)?; let mut read_only = Pages::new(1)?.deny_write()?;",
    "pages.resize(9)?;",
    "read_only.resize(9)?;"
);

pair!(
    READ_UNREADABLE,
    "Memory that denies reading is not indexed.",
    "E0608",
    "let pages = Pages::new(1)?; let unreadable = Pages::new(1)?.deny_read()?;",
    "let byte: u8 = pages[0];",
    "let byte: u8 = unreadable[0];"
);

pair!(
    SLICE_UNREADABLE,
    "Memory that denies reading has no slice, though it is writable.",
    "E0614",
    "let pages = Pages::new(1)?; let unreadable = Pages::new(1)?.deny_read()?;",
    "let bytes: &[u8] = &*pages;",
    "let bytes: &[u8] = &*unreadable;"
);

pair!(
    USE_OLD_TYPE,
    "A change of permission consumes the value.",
    "E0382",
    "let pages = Pages::new(1)?; let length = pages.len(); let read_only = pages.deny_write()?;",
    "let byte = read_only[0];",
    "let byte = pages[0];"
);

pair!(
    KEEP_SLICE,
    "No slice outlives the permission it relies on.",
    "E0505",
    "let pages = Pages::new(1)?; let slice = &pages[..]; let first = slice[0]; let read_only = pages.deny_write()?;",
    "let byte = first;",
    "let byte = slice[0];"
);

pair!(
    RESIZE_UNDER_SLICE,
    "Memory that may move is not borrowed.",
    "E0502",
    "let mut pages = Pages::new(1)?; let slice = &pages[..]; let first = slice[0]; pages.resize(1 << 20)?;",
    "let byte = first;",
    "let byte = slice[0];"
);

pair!(
    WRITE_CODE,
    "Memory that was made executable is not written.",
    "E0594",
    "let mut code = Pages::new(1)?; code[0] = 0xc3; let mut code = code.set_protected_exec()?; let mut data = Pages::new(1)?;",
    "data[0] = 0x90;",
    "code[0] = 0x90;"
);

pair!(
    #[cfg(not(feature = "write-exec"))]
    ALLOW_WRITE_TO_CODE,
    "Executable memory is not made writable too, without `write-exec`.",
    "E0277",
    "let code = Pages::new(1)?.set_protected_exec()?;",
    "let data = code.set_protected_write()?;",
    "let data = code.allow_write()?;"
);

pair!(
    #[cfg(not(feature = "write-exec"))]
    EXECUTE_DATA,
    "Writable memory is not made executable too, without `write-exec`.",
    "E0277",
    "let data = Pages::new(1)?;",
    "let code = data.deny_write()?.allow_exec()?;",
    "let code = data.allow_exec()?;"
);

pair!(
    #[cfg(not(feature = "exec"))]
    FUNCTION_WITHOUT_FEATURE,
    "Memory is not called, without `exec`.",
    "E0599",
    "let code = Pages::new(1)?.set_protected_exec()?;",
    "let address = code.as_ptr();",
    "let function = unsafe { code.get_fn::<extern \"C\" fn()>(0) };"
);

pair!(
    #[cfg(feature = "exec")]
    FUNCTION_IN_DATA,
    "Memory that denies executing has no functions.",
    "E0599",
    "let data = Pages::new(1)?; let code = Pages::new(1)?.set_protected_exec()?;",
    "let function = unsafe { code.get_fn::<extern \"C\" fn()>(0) }?;",
    "let function = unsafe { data.get_fn::<extern \"C\" fn()>(0) }?;"
);

pair!(
    #[cfg(feature = "exec")]
    FUNCTION_OUTLIVES_MEMORY,
    "A function does not outlive its memory.",
    "E0597",
    "let outer = Pages::new(1)?.set_protected_exec()?; let function; { let inner = Pages::new(1)?.set_protected_exec()?;",
    "function = unsafe { outer.get_fn::<extern \"C\" fn()>(0) }?; } let copy = function;",
    "function = unsafe { inner.get_fn::<extern \"C\" fn()>(0) }?; } let copy = function;"
);

pair!(
    #[cfg(feature = "exec")]
    WRITE_UNDER_FUNCTION,
    "Code is not made writable while a function of it can be called.",
    "E0505",
    "let code = Pages::new(1)?.set_protected_exec()?; let function = unsafe { code.get_fn::<extern \"C\" fn()>(0) }?; let copy = function; let data = code.set_protected_write()?;",
    "let length = data.len();",
    "let again = function;"
);

pair!(
    #[cfg(feature = "exec")]
    UNSAFE_CALL,
    "A function of an unsafe type is called in an unsafe block.",
    "E0133",
    "# if false {\nlet code = Pages::new(1)?.set_protected_exec()?; let function = unsafe { code.get_fn::<unsafe extern \"C\" fn()>(0) }?;",
    "unsafe { function.call() };\n# }",
    "function.call();\n# }"
);

pair!(
    WRITE_FILE,
    "A mapped file is not made writable.",
    "E0599",
    "let anonymous = Pages::new(1)?.deny_write()?; let file = std::fs::File::open(\"Cargo.toml\").unwrap(); let mapped = unsafe { Pages::map(&file) }?;",
    "let writable = anonymous.allow_write()?;",
    "let writable = mapped.allow_write()?;"
);

pair!(
    PUSH_UNDER_REFERENCE,
    "A vector that may move is not borrowed.",
    "E0502",
    "let mut vector = PagedVec::from(vec![1]); let first = &vector[0]; let copy = *first; vector.push(2);",
    "let value = copy;",
    "let value = *first;"
);

pair!(
    PUSH_UNDER_DRAIN,
    "A vector is not used while elements are drained from it.",
    "E0499",
    "let mut vector = PagedVec::from(vec![1]); let mut other: PagedVec<i32> = PagedVec::new(); let drain = vector.drain(..);",
    "other.push(2); drop(drain);",
    "vector.push(2); drop(drain);"
);

pair!(
    SEND_WHAT_MAY_NOT,
    "A vector is sent to another thread only if its elements are.",
    "E0277",
    "fn send<T: Send>(value: T) {}",
    "send(PagedVec::<std::sync::Arc<u8>>::new());",
    "send(PagedVec::<std::rc::Rc<u8>>::new());"
);

pair!(
    ZEROED_REFERENCES,
    "Only types for which zeros are valid are made of zeros.",
    "E0277",
    "let length = 1;",
    "let vector = PagedVec::<u64>::zeroed(length)?;",
    "let vector = PagedVec::<&u64>::zeroed(length)?;"
);
