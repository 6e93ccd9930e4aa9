//! Calling machine code that lies in [`Pages`].
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;

use super::mapping::refused;
use super::pages::{Pages, sealed::Backing as _};
use super::protection::AllowExec;
use crate::Result;

/// A C function of zero to twelve arguments: `extern "C" fn(…) -> …`, or `unsafe extern "C" fn(…) -> …`.
pub trait CFunction: sealed::CFunction {}

/// A function that lies in [`Pages`], and lives no longer than they are borrowed: while it can be called, its memory
/// is neither given back, nor moved, nor made writable or not executable.
///
/// There is a method `call` for each number of arguments; it is unsafe if the function's type is.
#[derive(Clone, Copy, Debug)]
pub struct Function<'memory, F> {
    function: F,
    memory: PhantomData<&'memory ()>,
}

mod sealed {
    pub trait CFunction {
        /// # Safety
        /// At `address` lies a function of this type.
        unsafe fn at(address: *const u8) -> Self;
    }
}

impl<R, W> Pages<R, W, AllowExec> {
    /// The function whose machine code starts at `offset`.
    ///
    /// ```
    /// # #[cfg(target_arch = "x86_64")] {
    /// use vellum::memory::Pages;
    ///
    /// let mut pages = Pages::new(5)?;
    /// pages[..5].copy_from_slice(&[0x48, 0x8d, 0x04, 0x37, 0xc3]); // lea rax, [rdi + rsi]; ret
    /// let code = pages.set_protected_exec()?;
    /// // SAFETY: these instructions are a C function that adds two numbers.
    /// let add = unsafe { code.get_fn::<extern "C" fn(u64, u64) -> u64>(0) }?;
    /// assert_eq!(add.call(43, 34), 77);
    /// # }
    /// # Ok::<(), vellum::Error>(())
    /// ```
    ///
    /// # Safety
    /// From `offset` on, the memory holds machine code of this processor that is a function of type `F`, and obeys its
    /// calling convention. Where the instruction cache does not follow memory by itself (everywhere but on x86), it has
    /// been made to.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if `offset` lies outside.
    pub unsafe fn get_fn<F: CFunction>(&self, offset: usize) -> Result<Function<'_, F>> {
        if offset >= self.len() {
            let outside = io::Error::new(io::ErrorKind::InvalidInput, "the function lies outside");
            return Err(refused("use", self.len(), outside));
        }
        // SAFETY: executable (M2), and a function of type `F` (the caller).
        let function = unsafe { F::at(self.backing().start().as_ptr().add(offset)) };
        Ok(Function { function, memory: PhantomData })
    }
}

macro_rules! c_function {
    ($($argument:ident: $type:ident),*) => {
        impl<Output, $($type),*> CFunction for extern "C" fn($($type),*) -> Output {}
        impl<Output, $($type),*> sealed::CFunction for extern "C" fn($($type),*) -> Output {
            unsafe fn at(address: *const u8) -> Self {
                // SAFETY: a function pointer is an address, and this one is of such a function (the caller).
                unsafe { std::mem::transmute(address) }
            }
        }
        impl<Output, $($type),*> Function<'_, extern "C" fn($($type),*) -> Output> {
            /// Calls the function.
            #[allow(clippy::too_many_arguments)]
            pub fn call(&self, $($argument: $type),*) -> Output {
                (self.function)($($argument),*)
            }
        }

        impl<Output, $($type),*> CFunction for unsafe extern "C" fn($($type),*) -> Output {}
        impl<Output, $($type),*> sealed::CFunction for unsafe extern "C" fn($($type),*) -> Output {
            unsafe fn at(address: *const u8) -> Self {
                // SAFETY: a function pointer is an address, and this one is of such a function (the caller).
                unsafe { std::mem::transmute(address) }
            }
        }
        impl<Output, $($type),*> Function<'_, unsafe extern "C" fn($($type),*) -> Output> {
            /// Calls the function.
            ///
            /// # Safety
            /// What the function itself asks for.
            #[allow(clippy::too_many_arguments)]
            pub unsafe fn call(&self, $($argument: $type),*) -> Output {
                // SAFETY: the caller's promise.
                unsafe { (self.function)($($argument),*) }
            }
        }
    };
}

c_function!();
c_function!(a: A);
c_function!(a: A, b: B);
c_function!(a: A, b: B, c: C);
c_function!(a: A, b: B, c: C, d: D);
c_function!(a: A, b: B, c: C, d: D, e: E);
c_function!(a: A, b: B, c: C, d: D, e: E, f: F);
c_function!(a: A, b: B, c: C, d: D, e: E, f: F, g: G);
c_function!(a: A, b: B, c: C, d: D, e: E, f: F, g: G, h: H);
c_function!(a: A, b: B, c: C, d: D, e: E, f: F, g: G, h: H, i: I);
c_function!(a: A, b: B, c: C, d: D, e: E, f: F, g: G, h: H, i: I, j: J);
c_function!(a: A, b: B, c: C, d: D, e: E, f: F, g: G, h: H, i: I, j: J, k: K);
c_function!(a: A, b: B, c: C, d: D, e: E, f: F, g: G, h: H, i: I, j: J, k: K, l: L);

#[cfg(test)]
#[cfg(all(not(any(miri, vellum_heap_memory)), any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use super::*;
    use crate::memory::{AllowRead, DenyWrite};

    type Code = Pages<AllowRead, DenyWrite, AllowExec>;

    fn assemble(bytes: &[u8]) -> Code {
        let mut pages = Pages::new(bytes.len()).unwrap();
        pages[..bytes.len()].copy_from_slice(bytes);
        let code = pages.set_protected_exec().unwrap();
        #[cfg(target_arch = "aarch64")]
        // SAFETY: waits for earlier writes and drops what was fetched; the page was never executed before.
        unsafe {
            std::arch::asm!("dsb ish", "isb");
        }
        code
    }

    #[cfg(target_arch = "x86_64")]
    const ADD: [u8; 5] = [0x48, 0x8d, 0x04, 0x37, 0xc3]; // lea rax, [rdi + rsi]; ret
    #[cfg(target_arch = "aarch64")]
    const ADD: [u8; 8] = [0x00, 0x00, 0x01, 0x8b, 0xc0, 0x03, 0x5f, 0xd6]; // add x0, x0, x1; ret

    /// Code that goes on at the address.
    fn jump_to(address: *const ()) -> Code {
        #[cfg(target_arch = "x86_64")]
        let (head, tail) = ([0x48, 0xb8], [0xff, 0xe0]); // mov rax, address; jmp rax
        #[cfg(target_arch = "aarch64")]
        let (head, tail) = ([0x50, 0x00, 0x00, 0x58, 0x00, 0x02, 0x1f, 0xd6], []); // ldr x16, #8; br x16; address
        let address = (address.expose_provenance() as u64).to_le_bytes();
        assemble(&[&head[..], &address[..], &tail[..]].concat())
    }

    #[test]
    fn a_function_assembled_at_run_time_adds_two_numbers() {
        let code = assemble(&ADD);
        // SAFETY: these instructions are such a function.
        let add = unsafe { code.get_fn::<extern "C" fn(u64, u64) -> u64>(0) }.unwrap();
        assert_eq!(add.call(43, 34), 77);
        assert_eq!(add.call(u64::MAX, 2), 1);
        // SAFETY: the same one.
        let unsafe_add = unsafe { code.get_fn::<unsafe extern "C" fn(i64, i64) -> i64>(0) }.unwrap();
        // SAFETY: it asks for nothing.
        assert_eq!(unsafe { unsafe_add.call(-5, 3) }, -2);
    }

    #[test]
    fn code_can_be_changed_once_its_functions_are_gone() {
        let mut data = assemble(&ADD).set_protected_write().unwrap();
        data.copy_within(..ADD.len(), 64);
        let code = data.set_protected_exec().unwrap();
        // SAFETY: the function lies there now too.
        let add = unsafe { code.get_fn::<extern "C" fn(u64, u64) -> u64>(64) }.unwrap();
        assert_eq!(add.call(1, 2), 3);
    }

    #[test]
    fn a_function_outside_is_refused() {
        let code = assemble(&ADD);
        // SAFETY: there is no function, and none is returned.
        let outside = unsafe { code.get_fn::<extern "C" fn()>(code.len()) };
        assert!(outside.is_err());
    }

    macro_rules! check_arguments {
        ($($count:literal: $($name:ident)*;)*) => {$({
            extern "C" fn digits($($name: u64),*) -> u64 {
                let arguments: [u64; $count] = [$($name),*];
                arguments.iter().fold($count, |all, digit| all * 13 + digit)
            }
            type Digits = extern "C" fn($(check_arguments!(@type $name)),*) -> u64;
            let code = jump_to(digits as Digits as *const ());
            // SAFETY: the code jumps to such a function.
            let function = unsafe { code.get_fn::<Digits>(0) }.unwrap();
            let mut next = 0..;
            let arguments: [u64; $count] = [$({ let $name = next.next().unwrap(); $name }),*];
            let expected = arguments.iter().fold($count, |all, digit| all * 13 + digit);
            let [$($name),*] = arguments;
            assert_eq!(function.call($($name),*), expected, "{} arguments", $count);
        })*};
        (@type $name:ident) => { u64 };
    }

    #[test]
    #[allow(unused_mut, unused_variables)]
    fn functions_of_zero_to_twelve_arguments_get_them_in_order() {
        check_arguments! {
            0: ;
            1: a;
            2: a b;
            3: a b c;
            4: a b c d;
            5: a b c d e;
            6: a b c d e f;
            7: a b c d e f g;
            8: a b c d e f g h;
            9: a b c d e f g h i;
            10: a b c d e f g h i j;
            11: a b c d e f g h i j k;
            12: a b c d e f g h i j k l;
        }
    }
}
