//! The exported functions, named and shaped as in `cuda.h`.
//!
//! Handles (`CUcontext`, `CUstream`, …) are pointers in C and numbers here; enumerations are their integers.

#![allow(non_snake_case, reason = "names of cuda.h")]

use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use super::abi::{Host, Out, Text};
use super::state::{Driver, driver};
use super::status::{self, INVALID_VALUE, NOT_FOUND, NOT_SUPPORTED, Result};

/// Declares exported functions: each counts as a call, may fail on demand, and gives a `CUresult`.
macro_rules! exported {
    ($(fn $name:ident($($argument:ident: $ty:ty),* $(,)?) |$driver:ident| $body:block)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`, as `cuda.h` declares it.")]
            #[unsafe(no_mangle)]
            #[allow(clippy::too_many_arguments, reason = "the arguments of cuda.h")]
            pub extern "C" fn $name($($argument: $ty),*) -> u32 {
                $crate::driver::entry::call(stringify!($name), |$driver| $body)
            }
        )*

        /// These functions by name.
        pub(super) fn symbols() -> Vec<(&'static str, *const std::ffi::c_void)> {
            vec![$((stringify!($name), $name as *const std::ffi::c_void)),*]
        }
    };
}

pub mod context;
pub mod device;
pub mod graph;
pub mod memory;
pub mod module;
pub mod stream;
pub mod tensor;

/// The version of CUDA whose driver this stands for.
pub const VERSION: i32 = 13000;

/// What may be called before `cuInit`.
const BEFORE_INIT: [&str; 4] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetProcAddress",
    "cuGetProcAddress_v2",
];

fn call(name: &str, body: impl FnOnce(&'static Driver) -> Result<()>) -> u32 {
    // A panic must not cross into C; it is a fault of the emulator's, and says so.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let driver = driver();
        driver.faults.call()?;
        if !driver.initialised.load(Ordering::Acquire) && !BEFORE_INIT.contains(&name) {
            return Err(status::NOT_INITIALIZED);
        }
        body(driver)
    }));
    match outcome {
        Ok(Ok(())) => 0,
        Ok(Err(status)) => status.0,
        Err(_) => {
            eprintln!("emulated CUDA driver: {name} panicked");
            status::UNKNOWN.0
        }
    }
}

exported! {
    fn cuInit(flags: u32) |driver| {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        driver.initialised.store(true, Ordering::Release);
        if driver.devices.is_empty() { Err(status::NO_DEVICE) } else { Ok(()) }
    }

    fn cuDriverGetVersion(version: Out<i32>) |_driver| {
        version.put(VERSION)
    }

    // NVRTC asks for tables that are nowhere documented, and lives without them.
    fn cuGetExportTable(table: Out<*const c_void>, _id: *const c_void) |_driver| {
        table.offer(std::ptr::null());
        Err(NOT_SUPPORTED)
    }

    fn cuGetProcAddress(symbol: Text, function: Out<*const c_void>, version: i32, flags: u64) |_driver| {
        find_symbol(symbol, function, version, flags).map(|_| ())
    }

    fn cuGetProcAddress_v2(symbol: Text, function: Out<*const c_void>, version: i32, flags: u64, found: Out<u32>) |_driver| {
        // 0: found, 1: not found.
        let result = find_symbol(symbol, function, version, flags);
        found.offer(u32::from(result.is_err()));
        result
    }
}

/// The newest form of a function: of `cuMemAlloc` that is `cuMemAlloc_v2`.
fn find_symbol(
    symbol: Text,
    function: Out<*const c_void>,
    _version: i32,
    _flags: u64,
) -> Result<()> {
    let name = symbol.get()?;
    let all = [
        symbols(),
        context::symbols(),
        device::symbols(),
        graph::symbols(),
        memory::symbols(),
        module::symbols(),
        stream::symbols(),
        tensor::symbols(),
        vec![
            ("cuGetErrorName", cuGetErrorName as *const c_void),
            ("cuGetErrorString", cuGetErrorString as *const c_void),
        ],
    ]
    .concat();
    let forms = ["_v4", "_v3", "_v2", ""].map(|suffix| format!("{name}{suffix}"));
    let found = forms
        .iter()
        .find_map(|form| all.iter().find(|(known, _)| known == form));
    match found {
        Some((_, pointer)) => function.put(*pointer),
        None => {
            function.offer(std::ptr::null());
            Err(NOT_FOUND)
        }
    }
}

/// `cuGetErrorName`, as `cuda.h` declares it. It never fails on demand: it is how failures are told.
#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorName(error: u32, text: Out<*const c_char>) -> u32 {
    describe(error, text, |(name, _)| name)
}

/// `cuGetErrorString`, as `cuda.h` declares it. It never fails on demand.
#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorString(error: u32, text: Out<*const c_char>) -> u32 {
    describe(error, text, |(_, text)| text)
}

fn describe(
    error: u32,
    text: Out<*const c_char>,
    pick: impl Fn((&'static str, &'static str)) -> &'static str,
) -> u32 {
    let found = status::describe(error).map(|both| pick(both).as_ptr().cast());
    text.offer(found.unwrap_or(std::ptr::null()));
    if found.is_some() { 0 } else { INVALID_VALUE.0 }
}

/// Replaces the faults on demand and starts their counts anew; 0 if the list is understood.
#[unsafe(no_mangle)]
pub extern "C" fn ropeway_emulated_cuda_set_fault(list: Text) -> u32 {
    match list.get() {
        Ok(list) if driver().faults.set(list) => 0,
        _ => INVALID_VALUE.0,
    }
}

/// How many calls there were since faults were set last.
#[unsafe(no_mangle)]
pub extern "C" fn ropeway_emulated_cuda_calls() -> u64 {
    driver().faults.calls()
}

/// Copies the reports since they were last taken, a line each, ending with NUL, into so many bytes; gives the bytes that they need. With room
/// for none they stay.
#[unsafe(no_mangle)]
pub extern "C" fn ropeway_emulated_cuda_reports(into: Host, bytes: usize) -> usize {
    let reports = driver().faults.take_reports();
    let text: String = reports
        .iter()
        .flat_map(|report| [report.as_str(), "\n"])
        .collect();
    let needed = text.len() + 1;
    if needed > bytes || into.is_null() {
        driver().faults.put_back(reports);
        return needed;
    }
    into.write(text.as_bytes());
    into.beyond(text.len()).write(&[0]);
    needed
}
