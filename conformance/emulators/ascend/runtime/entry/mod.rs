//! The exported functions, named and shaped as CANN's documentation has them.
//!
//! Handles (`aclrtContext`, `aclrtStream`, …) are pointers in C and numbers here; enumerations are their integers.

#![allow(non_snake_case, reason = "names of CANN")]

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use super::abi::{Address, Text};
use super::device::{Emulator, emulator};
use super::lock;
use super::status::{self, Result};

/// Declares exported functions: each counts as a call, may fail on demand, and gives an `aclError`.
macro_rules! exported {
    ($(fn $name:ident($($argument:ident: $ty:ty),* $(,)?) |$emulator:ident| $body:block)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`, as CANN's documentation declares it.")]
            #[unsafe(no_mangle)]
            #[allow(clippy::too_many_arguments, reason = "the arguments of CANN")]
            pub extern "C" fn $name($($argument: $ty),*) -> i32 {
                $crate::runtime::entry::call(stringify!($name), |$emulator| $body)
            }
        )*

        /// The names of these functions.
        pub const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}
pub(crate) use exported;

pub mod device;
pub mod event;
pub mod graph;
pub mod launch;
pub mod memory;
pub mod stream;

thread_local! {
    /// What failed last on this thread, and the text that was handed out last.
    static RECENT: RefCell<(Option<String>, CString)> = RefCell::default();
}

/// What may be called before `aclInit`.
const BEFORE_INIT: [&str; 3] = ["aclInit", "aclrtGetDeviceCount", "aclrtGetVersion"];

/// Runs an exported function.
pub(crate) fn call(name: &str, body: impl FnOnce(&'static Emulator) -> Result<()>) -> i32 {
    // A panic must not cross into C; it is a fault of the emulator's, and says so.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let emulator = emulator();
        if let Some(status) = emulator.faults.call(name) {
            return Err(status.because("on demand"));
        }
        let compiler = name.starts_with("aclrtc");
        let ready = emulator.initialised.load(Ordering::Acquire) > 0;
        if !ready && !compiler && !BEFORE_INIT.contains(&name) {
            return Err(status::UNINITIALISED.breach("aclInit was not called"));
        }
        body(emulator)
    }));
    match outcome {
        Ok(Ok(())) => 0,
        Ok(Err(failure)) => {
            let text = format!("{name}: {}: {}", failure.status, failure.why);
            if failure.breach {
                emulator().breaches.record(&text);
            }
            RECENT.with(|recent| recent.borrow_mut().0 = Some(text));
            failure.status.0
        }
        Err(_) => {
            emulator()
                .breaches
                .record(&format!("{name} panicked, which is the emulator's fault"));
            status::DRIVER.0
        }
    }
}

/// `aclGetRecentErrMsg`, as CANN's documentation declares it: what failed last on this thread, once. It never fails on demand: it is how
/// failures are told.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetRecentErrMsg() -> *const c_char {
    RECENT.with(|recent| {
        let mut recent = recent.borrow_mut();
        match recent.0.take() {
            Some(text) => {
                recent.1 = CString::new(text.replace('\0', " ")).unwrap_or_default();
                recent.1.as_ptr()
            }
            None => std::ptr::null(),
        }
    })
}

/// Replaces the faults on demand and starts their counts anew; 0 if the list is understood.
#[unsafe(no_mangle)]
pub extern "C" fn ropeway_emulated_cann_set_fault(list: Text) -> i32 {
    match list.get("list") {
        Ok(list) if emulator().faults.set(list) => 0,
        _ => status::INVALID_PARAMETER.0,
    }
}

/// How often a function was called since faults were set last; of `*`, all together.
#[unsafe(no_mangle)]
pub extern "C" fn ropeway_emulated_cann_calls(name: Text) -> u64 {
    name.get("name")
        .map_or(0, |name| emulator().faults.calls(name))
}

/// Copies the breaches since they were last taken, a line each, ending with NUL, into so many bytes; gives the bytes that they need. With room
/// for none they stay. Without any it gives 1.
#[unsafe(no_mangle)]
pub extern "C" fn ropeway_emulated_cann_breaches(into: Address, bytes: usize) -> usize {
    let breaches = emulator().breaches.take();
    let needed = hand_out(&breaches, into, bytes);
    if needed > bytes || into.is_null() {
        emulator().breaches.put_back(breaches);
    }
    needed
}

/// Copies what lives (memory, streams, …), likewise.
#[unsafe(no_mangle)]
pub extern "C" fn ropeway_emulated_cann_living(into: Address, bytes: usize) -> usize {
    hand_out(&emulator().living(), into, bytes)
}

fn hand_out(lines: &[String], into: Address, bytes: usize) -> usize {
    let mut text: Vec<u8> = lines
        .iter()
        .flat_map(|line| [line.replace('\n', " "), "\n".into()])
        .collect::<String>()
        .into_bytes();
    text.push(0);
    if text.len() <= bytes && !into.is_null() {
        into.write(&text);
    }
    text.len()
}

/// Fails if queued work still refers to something, as far as the host knows.
///
/// # Errors
/// 107000.
fn require_idle(
    emulator: &Emulator,
    uses: &std::sync::Mutex<super::clock::Clock>,
    what: &str,
) -> Result<()> {
    let uses = lock(uses);
    match lock(&emulator.known).lacks(&uses) {
        Some((stream, _)) => {
            let why = format!(
                "{what}, and work of stream {stream:#x} refers to it that was not waited for"
            );
            Err(status::PARAMETER.breach(why))
        }
        None => Ok(()),
    }
}
