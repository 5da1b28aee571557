//! CANN's functions: each declared once, and the one place where its codes become errors.
//!
//! The declarations are written by hand after the published documentation of CANN 8.1 to 9.1. Handles are opaque; every function but those
//! that say otherwise gives an `aclError`, 0 for success. What [`super::library`] finds fills the tables.

use std::ffi::{CStr, c_char, c_int, c_void};

use ropeway_core::{Error, ErrorKind, Result};

/// What a call gives; 0 is success.
pub(super) type AclError = c_int;
/// A context, stream, event, binary, kernel, list of arguments, graph or program.
pub(super) type Handle = *mut c_void;

/// `ACL_ERROR_REPEAT_INITIALIZE`: somebody in this process has called `aclInit`.
pub(super) const INITIALISED_BEFORE: AclError = 100_002;
/// `ACL_MEM_MALLOC_HUGE_FIRST`
pub(super) const HUGE_FIRST: c_int = 0;
/// `ACL_HBM_MEM`
pub(super) const HBM: c_int = 1;
/// `ACL_MEMCPY_HOST_TO_DEVICE`
pub(super) const HOST_TO_DEVICE: c_int = 1;
/// `ACL_MEMCPY_DEVICE_TO_HOST`
pub(super) const DEVICE_TO_HOST: c_int = 2;
/// `ACL_MEMCPY_DEVICE_TO_DEVICE`
pub(super) const DEVICE_TO_DEVICE: c_int = 3;
/// `ACL_EVENT_SYNC | ACL_EVENT_CAPTURE_STREAM_PROGRESS | ACL_EVENT_TIME_LINE`: streams may wait for it, the host may ask for it, it has a time.
pub(super) const EVENT_FLAGS: u32 = 1 | 2 | 8;
/// `ACL_EVENT_RECORDED_STATUS_COMPLETE`
pub(super) const EVENT_COMPLETE: c_int = 1;
/// `ACL_MODEL_RI_CAPTURE_MODE_THREAD_LOCAL`
pub(super) const CAPTURE_THREAD_LOCAL: c_int = 1;
/// `ACL_RT_BINARY_LOAD_OPT_MAGIC`
pub(super) const LOAD_MAGIC: u32 = 2;
/// Attributes of a device.
pub(super) const CUBE_CORES: c_int = 102;
pub(super) const VECTOR_CORES: c_int = 201;
pub(super) const GLOBAL_MEMORY: c_int = 301;
pub(super) const L2_CACHE: c_int = 302;
pub(super) const NPU_ARCHITECTURE: c_int = 601;

/// `aclrtBinaryLoadOption`
#[repr(C)]
pub(super) struct LoadOption {
    pub(super) kind: u32,
    /// A union of four words, whose first is the magic number.
    pub(super) value: [u32; 4],
}

/// `aclrtBinaryLoadOptions`
#[repr(C)]
pub(super) struct LoadOptions {
    pub(super) options: *mut LoadOption,
    pub(super) count: usize,
}

const _: () = {
    assert!(size_of::<LoadOption>() == 20 && std::mem::offset_of!(LoadOption, value) == 4);
    assert!(size_of::<LoadOptions>() == 16);
};

/// Declares a library's functions: those that every version has, and those that may be missing.
macro_rules! functions {
    (
        $(#[$about:meta])* $table:ident
        required { $($name:ident($($argument:ty),*) -> $value:ty;)* }
        optional { $($extra:ident($($extra_argument:ty),*) -> $extra_value:ty;)* }
    ) => {
        $(#[$about])*
        #[allow(non_snake_case, reason = "the vendor's names")]
        pub(super) struct $table {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> $value,)*
            $(pub(super) $extra: Option<unsafe extern "C" fn($($extra_argument),*) -> $extra_value>,)*
        }

        impl $table {
            /// Looks every function up.
            ///
            /// # Errors
            /// The name of the first that is missing.
            ///
            /// # Safety
            /// What `find` gives for a name must be the function of that name, which stays as long as the process, or null.
            pub(super) unsafe fn load(find: impl Fn(&str) -> *mut c_void) -> Result<$table, &'static str> {
                Ok($table {
                    $($name: match find(stringify!($name)) {
                        address if address.is_null() => return Err(stringify!($name)),
                        // SAFETY: a function of this type by the caller's promise.
                        address => unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> $value>(address)
                        },
                    },)*
                    $($extra: match find(stringify!($extra)) {
                        address if address.is_null() => None,
                        // SAFETY: as above.
                        address => Some(unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($extra_argument),*) -> $extra_value>(address)
                        }),
                    },)*
                })
            }
        }
    };
}

functions! {
    /// `libacl_rt.so`
    Runtime
    required {
        aclInit(*const c_char) -> AclError;
        aclFinalize() -> AclError;
        aclGetRecentErrMsg() -> *const c_char;
        aclrtGetSocName() -> *const c_char;
        aclrtGetVersion(*mut i32, *mut i32, *mut i32) -> AclError;
        aclrtGetDeviceCount(*mut u32) -> AclError;
        aclrtSetDevice(i32) -> AclError;
        aclrtGetMemInfo(c_int, *mut usize, *mut usize) -> AclError;
        aclrtMalloc(*mut *mut c_void, usize, c_int) -> AclError;
        aclrtFree(*mut c_void) -> AclError;
        aclrtMallocHost(*mut *mut c_void, usize) -> AclError;
        aclrtFreeHost(*mut c_void) -> AclError;
        // To, bytes there, from, bytes to copy, kind, and for the asynchronous one the stream.
        aclrtMemcpy(*mut c_void, usize, *const c_void, usize, c_int) -> AclError;
        aclrtMemcpyAsync(*mut c_void, usize, *const c_void, usize, c_int, Handle) -> AclError;
        // To, bytes there, value, bytes to set, stream.
        aclrtMemsetAsync(*mut c_void, usize, i32, usize, Handle) -> AclError;
        aclrtCreateStream(*mut Handle) -> AclError;
        aclrtDestroyStream(Handle) -> AclError;
        aclrtSynchronizeStreamWithTimeout(Handle, i32) -> AclError;
        aclrtStreamWaitEvent(Handle, Handle) -> AclError;
        aclrtCreateEventExWithFlag(*mut Handle, u32) -> AclError;
        aclrtDestroyEvent(Handle) -> AclError;
        aclrtRecordEvent(Handle, Handle) -> AclError;
        aclrtSynchronizeEvent(Handle) -> AclError;
        aclrtQueryEventStatus(Handle, *mut c_int) -> AclError;
        aclrtEventElapsedTime(*mut f32, Handle, Handle) -> AclError;
        aclrtBinaryLoadFromFile(*const c_char, *mut LoadOptions, *mut Handle) -> AclError;
        aclrtBinaryGetFunction(Handle, *const c_char, *mut Handle) -> AclError;
        aclrtBinaryUnLoad(Handle) -> AclError;
    }
    optional {
        aclFinalizeReference(*mut u64) -> AclError;
        aclrtGetDeviceInfo(u32, c_int, *mut i64) -> AclError;
        // Launching: this,
        aclrtLaunchKernelWithHostArgs(Handle, u32, Handle, *mut c_void, *mut c_void, usize, *mut c_void, usize) -> AclError;
        // or, where it is missing, these.
        aclrtKernelArgsInit(Handle, *mut Handle) -> AclError;
        aclrtKernelArgsAppend(Handle, *mut c_void, usize, *mut Handle) -> AclError;
        aclrtKernelArgsFinalize(Handle) -> AclError;
        aclrtLaunchKernelWithConfig(Handle, u32, Handle, *mut c_void, Handle, *mut c_void) -> AclError;
        // Loading without a file.
        aclrtBinaryLoadFromData(*const c_void, usize, *const LoadOptions, *mut Handle) -> AclError;
        // Graphs.
        aclmdlRICaptureBegin(Handle, c_int) -> AclError;
        aclmdlRICaptureEnd(Handle, *mut Handle) -> AclError;
        aclmdlRIExecuteAsync(Handle, Handle) -> AclError;
        aclmdlRIDestroy(Handle) -> AclError;
    }
}

functions! {
    /// `libacl_rtc.so`, the run-time compiler
    Compiler
    required {
        aclrtcCreateProg(*mut Handle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> AclError;
        aclrtcCompileProg(Handle, c_int, *const *const c_char) -> AclError;
        aclrtcGetBinDataSize(Handle, *mut usize) -> AclError;
        aclrtcGetBinData(Handle, *mut c_char) -> AclError;
        aclrtcGetCompileLogSize(Handle, *mut usize) -> AclError;
        aclrtcGetCompileLog(Handle, *mut c_char) -> AclError;
        aclrtcDestroyProg(*mut Handle) -> AclError;
    }
    optional {}
}

/// What sort of failure a code means: its first digit says whose fault it is (1 the caller's, 2 a resource, 3 the business at hand, 5 the
/// device's), and some are told apart.
pub(super) fn kind(code: AclError) -> ErrorKind {
    match code {
        // Of the run-time compiler.
        276_000 | 276_001 => ErrorKind::CompileFailed,
        176_000..=176_007 | 576_000 => ErrorKind::Driver,
        107_019 | 507_046 => ErrorKind::Timeout,
        // Work that a capture does not take.
        107_025 | 107_027 | 107_030 | 207_000 => ErrorKind::Unsupported,
        200_000 | 207_001 | 207_018 => ErrorKind::OutOfMemory,
        // Not initialised, no context: ours to see to, never an argument's fault.
        100_001 | 107_002 => ErrorKind::Driver,
        100_000..=199_999 => ErrorKind::InvalidArgument,
        // Cores that met an exception or took too long, the driver: the device answers nothing else from then on.
        500_000..=599_999 => ErrorKind::DeviceLost,
        _ => ErrorKind::Driver,
    }
}

/// What is known of a code where the vendor says nothing.
fn meaning(code: AclError) -> &'static str {
    match code {
        100_000 | 107_000 => "invalid parameter",
        100_001 => "not initialised",
        107_001 => "no such device",
        107_002 => "the thread has no context",
        107_003 => "a stream of another context",
        107_008 => "an address that is not aligned",
        107_017 => "an invalid handle",
        107_019 | 507_046 => "the wait took too long",
        107_025 | 107_027 | 107_030 => "the capture does not take this",
        200_000 => "host memory ran out",
        207_000 => "not supported",
        207_001 | 207_018 => "device memory ran out",
        507_014 => "an AI core took too long",
        507_015 => "an AI core met an exception",
        507_034 => "a vector core took too long",
        507_035 => "a vector core met an exception",
        507_899 => "the driver failed",
        _ => "a code without a known meaning",
    }
}

impl Runtime {
    /// # Errors
    /// What `call` means by `code`, with the vendor's own message, which is the calling thread's last.
    #[inline]
    pub(super) fn check(&self, call: &'static str, code: AclError) -> Result<()> {
        match code {
            0 => Ok(()),
            code => Err(self.error(call, code)),
        }
    }

    #[cold]
    fn error(&self, call: &'static str, code: AclError) -> Error {
        // SAFETY: gives null or a text that ends with NUL, and stays until the thread's next call.
        let said = unsafe {
            let text = (self.aclGetRecentErrMsg)();
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy())
        };
        let said = said
            .as_deref()
            .map(str::trim)
            .filter(|said| !said.is_empty());
        Error::from_call(kind(code), call, code.into(), said.unwrap_or(meaning(code)))
    }

    /// The SoC's name, as far as it is known before `aclInit`.
    pub(super) fn soc_name(&self) -> Option<String> {
        // SAFETY: gives null or a text that ends with NUL, and stays.
        unsafe {
            let text = (self.aclrtGetSocName)();
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    }
}

/// Calls a function of the runtime that gives an `aclError`.
macro_rules! run {
    ($runtime:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        let runtime: &$crate::ascend::sys::Runtime = $runtime;
        runtime.check(stringify!($function), (runtime.$function)($($argument),*))
    }};
}
pub(super) use run;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_kinds_by_class() {
        for (code, expected) in [
            (100_000, ErrorKind::InvalidArgument),
            (107_003, ErrorKind::InvalidArgument),
            (107_002, ErrorKind::Driver),
            (107_019, ErrorKind::Timeout),
            (507_046, ErrorKind::Timeout),
            (107_025, ErrorKind::Unsupported),
            (207_000, ErrorKind::Unsupported),
            (207_001, ErrorKind::OutOfMemory),
            (200_000, ErrorKind::OutOfMemory),
            (276_000, ErrorKind::CompileFailed),
            (507_015, ErrorKind::DeviceLost),
            (507_899, ErrorKind::DeviceLost),
            (300_000, ErrorKind::Driver),
            (-1, ErrorKind::Driver),
        ] {
            assert_eq!(kind(code), expected, "{code}");
        }
    }
}
