//! The codes of `CUresult` that the emulator gives, with their names and texts.

/// A `CUresult` other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub u32);

/// A result of the driver.
pub type Result<T> = std::result::Result<T, Status>;

macro_rules! statuses {
    ($($name:ident $full:literal $code:literal $text:literal;)*) => {
        $(#[doc = $text] pub const $name: Status = Status($code);)*

        /// Name and text of a code, each ending with NUL.
        pub fn describe(code: u32) -> Option<(&'static str, &'static str)> {
            match code {
                0 => Some(("CUDA_SUCCESS\0", "no error\0")),
                $($code => Some((concat!("CUDA_ERROR_", $full, "\0"), concat!($text, "\0"))),)*
                _ => None,
            }
        }

        /// The code of a name without `CUDA_ERROR_`, in any case.
        pub fn by_name(name: &str) -> Option<Status> {
            $(if name.eq_ignore_ascii_case($full) { return Some($name); })*
            None
        }
    };
}

statuses! {
    INVALID_VALUE "INVALID_VALUE" 1 "invalid argument";
    OUT_OF_MEMORY "OUT_OF_MEMORY" 2 "out of memory";
    NOT_INITIALIZED "NOT_INITIALIZED" 3 "initialization error";
    DEINITIALIZED "DEINITIALIZED" 4 "driver shutting down";
    DEVICE_UNAVAILABLE "DEVICE_UNAVAILABLE" 46 "CUDA-capable device(s) is/are busy or unavailable";
    NO_DEVICE "NO_DEVICE" 100 "no CUDA-capable device is detected";
    INVALID_DEVICE "INVALID_DEVICE" 101 "invalid device ordinal";
    INVALID_IMAGE "INVALID_IMAGE" 200 "device kernel image is invalid";
    INVALID_CONTEXT "INVALID_CONTEXT" 201 "invalid device context";
    NO_BINARY_FOR_GPU "NO_BINARY_FOR_GPU" 209 "no kernel image is available for execution on the device";
    ECC_UNCORRECTABLE "ECC_UNCORRECTABLE" 214 "uncorrectable ECC error encountered";
    INVALID_PTX "INVALID_PTX" 218 "a PTX JIT compilation failed";
    UNSUPPORTED_PTX_VERSION "UNSUPPORTED_PTX_VERSION" 222 "the provided PTX was compiled with an unsupported toolchain.";
    FILE_NOT_FOUND "FILE_NOT_FOUND" 301 "file not found";
    INVALID_HANDLE "INVALID_HANDLE" 400 "invalid resource handle";
    NOT_FOUND "NOT_FOUND" 500 "named symbol not found";
    NOT_READY "NOT_READY" 600 "device not ready";
    ILLEGAL_ADDRESS "ILLEGAL_ADDRESS" 700 "an illegal memory access was encountered";
    LAUNCH_OUT_OF_RESOURCES "LAUNCH_OUT_OF_RESOURCES" 701 "too many resources requested for launch";
    LAUNCH_TIMEOUT "LAUNCH_TIMEOUT" 702 "the launch timed out and was terminated";
    PEER_ACCESS_ALREADY_ENABLED "PEER_ACCESS_ALREADY_ENABLED" 704 "peer access is already enabled";
    PEER_ACCESS_NOT_ENABLED "PEER_ACCESS_NOT_ENABLED" 705 "peer access has not been enabled";
    ASSERT "ASSERT" 710 "device-side assert triggered";
    HOST_MEMORY_ALREADY_REGISTERED "HOST_MEMORY_ALREADY_REGISTERED" 712 "part or all of the requested memory range is already mapped";
    HOST_MEMORY_NOT_REGISTERED "HOST_MEMORY_NOT_REGISTERED" 713 "pointer does not correspond to a registered memory region";
    ILLEGAL_INSTRUCTION "ILLEGAL_INSTRUCTION" 715 "an illegal instruction was encountered";
    MISALIGNED_ADDRESS "MISALIGNED_ADDRESS" 716 "misaligned address";
    LAUNCH_FAILED "LAUNCH_FAILED" 719 "unspecified launch failure";
    NOT_PERMITTED "NOT_PERMITTED" 800 "operation not permitted";
    NOT_SUPPORTED "NOT_SUPPORTED" 801 "operation not supported";
    STREAM_CAPTURE_UNSUPPORTED "STREAM_CAPTURE_UNSUPPORTED" 900 "operation not permitted when stream is capturing";
    STREAM_CAPTURE_INVALIDATED "STREAM_CAPTURE_INVALIDATED" 901 "operation failed due to a previous error during capture";
    STREAM_CAPTURE_MERGE "STREAM_CAPTURE_MERGE" 902 "operation would result in a merge of separate capture sequences";
    STREAM_CAPTURE_UNMATCHED "STREAM_CAPTURE_UNMATCHED" 903 "capture was not ended in the same stream as it began";
    STREAM_CAPTURE_UNJOINED "STREAM_CAPTURE_UNJOINED" 904 "capturing stream has unjoined work";
    CAPTURED_EVENT "CAPTURED_EVENT" 907 "operation not permitted on an event last recorded in a capturing stream";
    INVALID_CLUSTER_SIZE "INVALID_CLUSTER_SIZE" 912 "cluster dimensions are not supported by the device";
    UNKNOWN "UNKNOWN" 999 "unknown error";
}
