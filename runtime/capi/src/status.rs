//! Status codes, the calling thread's last error, and the guard that every function of the table runs in.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use ropeway_core::{Error, ErrorKind, Result};

/// How a call ended: ROPEWAY_OK or one of ROPEWAY_ERROR_...
pub type ropeway_status = i32;

/// It did what it was asked.
pub const ROPEWAY_OK: ropeway_status = 0;
/// The request is malformed; the message names the argument, what was found and what is expected.
pub const ROPEWAY_ERROR_INVALID_ARGUMENT: ropeway_status = 1;
/// The request is sound, but this device or this library cannot do it; the message says what it lacks.
pub const ROPEWAY_ERROR_UNSUPPORTED: ropeway_status = 2;
/// A vendor's library, driver or device is not there; the message says what to install.
pub const ROPEWAY_ERROR_UNAVAILABLE: ropeway_status = 3;
/// The device or the host has no room for an allocation. The device stays usable.
pub const ROPEWAY_ERROR_OUT_OF_MEMORY: ropeway_status = 4;
/// The device is gone. Every later call on it fails in the same way; open it anew.
pub const ROPEWAY_ERROR_DEVICE_LOST: ropeway_status = 5;
/// A wait passed its time limit. The work may still be running.
pub const ROPEWAY_ERROR_TIMEOUT: ropeway_status = 6;
/// A kernel did not compile; the message holds the compiler's log.
pub const ROPEWAY_ERROR_COMPILE_FAILED: ropeway_status = 7;
/// The driver refused or aborted a launch.
pub const ROPEWAY_ERROR_LAUNCH_FAILED: ropeway_status = 8;
/// A kernel met a value in device memory (an id, an offset, a length) that is out of range and skipped it.
pub const ROPEWAY_ERROR_DATA_OUT_OF_RANGE: ropeway_status = 9;
/// A file could not be read, written or trusted.
pub const ROPEWAY_ERROR_FILE: ropeway_status = 10;
/// The driver reported something that no code above covers.
pub const ROPEWAY_ERROR_DRIVER: ropeway_status = 11;
/// A fault in the library itself. Please report the message.
pub const ROPEWAY_ERROR_INTERNAL: ropeway_status = 12;

/// The status of an error.
fn code(kind: ErrorKind) -> ropeway_status {
    match kind {
        ErrorKind::InvalidArgument => ROPEWAY_ERROR_INVALID_ARGUMENT,
        ErrorKind::Unsupported => ROPEWAY_ERROR_UNSUPPORTED,
        ErrorKind::Unavailable => ROPEWAY_ERROR_UNAVAILABLE,
        ErrorKind::OutOfMemory => ROPEWAY_ERROR_OUT_OF_MEMORY,
        ErrorKind::DeviceLost => ROPEWAY_ERROR_DEVICE_LOST,
        ErrorKind::Timeout => ROPEWAY_ERROR_TIMEOUT,
        ErrorKind::CompileFailed => ROPEWAY_ERROR_COMPILE_FAILED,
        ErrorKind::LaunchFailed => ROPEWAY_ERROR_LAUNCH_FAILED,
        ErrorKind::DataOutOfRange => ROPEWAY_ERROR_DATA_OUT_OF_RANGE,
        ErrorKind::File => ROPEWAY_ERROR_FILE,
        // `ErrorKind` may gain kinds before this list does.
        _ => ROPEWAY_ERROR_DRIVER,
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

fn remember(message: String) {
    // A thread that is ending has no last error any more; the status still says what happened.
    let _ = LAST_ERROR.try_with(|last| *last.borrow_mut() = c_string(message));
}

pub(crate) extern "C" fn last_error() -> *const c_char {
    LAST_ERROR
        .try_with(|last| last.borrow().as_ptr())
        .unwrap_or(c"".as_ptr())
}

/// Text for C, which ends at a zero byte.
pub(crate) fn c_string(text: impl Into<String>) -> CString {
    let text = text.into().replace('\0', "\u{fffd}");
    CString::new(text).expect("zero bytes were replaced")
}

/// Runs the body of a function of the table: an error or a panic becomes a status and the thread's last error.
pub(crate) fn entry(body: impl FnOnce() -> Result<()>) -> ropeway_status {
    // Handles are shared by reference and guard what changes by locks that tolerate poison, so an interrupted call leaves nothing unsound.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => ROPEWAY_OK,
        Ok(Err(error)) => {
            remember(error.to_string());
            code(error.kind())
        }
        Err(panic) => {
            remember(format!("internal error: {}", panic_message(&*panic)));
            ROPEWAY_ERROR_INTERNAL
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(message), _) => message,
        (_, Some(message)) => message,
        _ => "a panic without a message",
    }
}

/// [`entry`] for a function that makes a handle: `out` is the handle, or null.
///
/// # Safety
/// `out` is null or may be written.
pub(crate) unsafe fn create<T>(
    out: *mut *mut T,
    make: impl FnOnce() -> Result<T>,
) -> ropeway_status {
    entry(|| {
        if out.is_null() {
            return Err(Error::invalid("out", "NULL", "a place for the handle"));
        }
        // SAFETY: the caller lets us write there.
        unsafe { out.write(std::ptr::null_mut()) };
        let handle = Box::into_raw(Box::new(make()?));
        // SAFETY: as above.
        unsafe { out.write(handle) };
        Ok(())
    })
}

/// Releases a handle; null is nothing to release.
///
/// # Safety
/// `handle` is null or was made by [`create`], and nobody uses it any more.
pub(crate) unsafe fn release<T>(handle: *mut T) {
    entry(|| {
        if !handle.is_null() {
            // SAFETY: it came from a box, and this is its one release.
            drop(unsafe { Box::from_raw(handle) });
        }
        Ok(())
    });
}

/// What a handle or a plain object of the caller's is.
///
/// # Safety
/// `pointer` is null or valid for `'a`.
pub(crate) unsafe fn borrow<'a, T>(pointer: *const T, name: &str) -> Result<&'a T> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.ok_or_else(|| Error::invalid(name, "NULL", "a pointer"))
}

/// Writes a result of the caller's.
///
/// # Safety
/// `out` is null or may be written.
pub(crate) unsafe fn write_out<T>(out: *mut T, name: &str, value: T) -> Result<()> {
    if out.is_null() {
        return Err(Error::invalid(name, "NULL", "a pointer"));
    }
    // SAFETY: the caller lets us write there.
    unsafe { out.write(value) };
    Ok(())
}

/// A caller's text, if there is any.
///
/// # Safety
/// `pointer` is null or a string that ends in zero and is valid for `'a`.
pub(crate) unsafe fn optional_text<'a>(
    pointer: *const c_char,
    name: &str,
) -> Result<Option<&'a str>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str()
        .map(Some)
        .map_err(|_| Error::invalid(name, "bytes that are not UTF-8", "UTF-8"))
}

/// A caller's text.
///
/// # Safety
/// As [`optional_text`].
pub(crate) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str> {
    // SAFETY: the caller's promise.
    unsafe { optional_text(pointer, name) }?.ok_or_else(|| Error::invalid(name, "NULL", "a string"))
}

/// A flag of a struct, which is 0 or 1.
pub(crate) fn flag(value: u32, name: &str) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Error::invalid(name, other, "0 or 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> String {
        // SAFETY: the message is valid until this thread's next failure.
        let message = unsafe { CStr::from_ptr(last_error()) };
        message.to_str().unwrap().to_owned()
    }

    #[test]
    fn no_panic_crosses() {
        assert_eq!(
            entry(|| panic!("the answer is {}", 42)),
            ROPEWAY_ERROR_INTERNAL
        );
        assert_eq!(message(), "internal error: the answer is 42");
        assert_eq!(entry(|| std::panic::panic_any(7)), ROPEWAY_ERROR_INTERNAL);
        assert_eq!(message(), "internal error: a panic without a message");
        struct Explodes;
        impl Drop for Explodes {
            fn drop(&mut self) {
                panic!("in a release");
            }
        }
        let handle = Box::into_raw(Box::new(Explodes));
        // SAFETY: it came from a box.
        unsafe { release(handle) };
        assert_eq!(message(), "internal error: in a release");
    }

    #[test]
    fn a_message_is_its_thread_s_own() {
        let failed = entry(|| Err(Error::invalid("here", 1, 2)));
        assert_eq!(failed, ROPEWAY_ERROR_INVALID_ARGUMENT);
        std::thread::spawn(|| assert_eq!(message(), ""))
            .join()
            .unwrap();
        assert_eq!(entry(|| Ok(())), ROPEWAY_OK);
        assert_eq!(message(), "invalid argument: here: found 1, expected 2");
    }

    #[test]
    fn a_message_with_a_zero_byte_is_not_cut() {
        entry(|| Err(Error::unsupported("before\0after")));
        assert_eq!(message(), "unsupported: before\u{fffd}after");
    }

    #[test]
    fn a_handle_that_could_not_be_made_is_null() {
        let mut handle = std::ptr::dangling_mut::<u8>();
        // SAFETY: `handle` may be written.
        let status = unsafe { create(&mut handle, || Err(Error::unsupported("it"))) };
        assert_eq!(
            (status, handle),
            (ROPEWAY_ERROR_UNSUPPORTED, std::ptr::null_mut())
        );
        // SAFETY: null is refused.
        let status = unsafe { create(std::ptr::null_mut(), || Ok(1u8)) };
        assert_eq!(status, ROPEWAY_ERROR_INVALID_ARGUMENT);
    }
}
