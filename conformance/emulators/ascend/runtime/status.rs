//! The codes of `aclError`, and failures with their reasons.

use std::fmt;

/// A code that is not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub i32);

macro_rules! codes {
    ($($name:ident = $code:literal, $meaning:literal;)*) => {
        $(#[doc = $meaning] pub const $name: Status = Status($code);)*

        /// What a code means.
        pub fn meaning(code: i32) -> Option<&'static str> {
            match code {
                $($code => Some($meaning),)*
                _ => None,
            }
        }
    };
}

codes! {
    INVALID_PARAMETER = 100000, "invalid parameter";
    UNINITIALISED = 100001, "not initialised";
    REPEATED_INITIALISATION = 100002, "initialised before";
    PARAMETER = 107000, "invalid parameter of the runtime";
    DEVICE_ID = 107001, "no such device";
    CONTEXT_NULL = 107002, "the thread has no context";
    STREAM_CONTEXT = 107003, "the stream is not of the current context";
    UNALIGNED = 107008, "the address is not aligned";
    HANDLE = 107017, "invalid handle";
    WAIT_TIMEOUT = 107019, "the wait took too long";
    CAPTURED = 107025, "not possible while the stream is captured";
    NOT_CAPTURED = 107027, "there is no valid capture";
    UNJOINED = 107030, "a stream did not join its capture again";
    BAD_ALLOCATION = 200000, "host memory ran out";
    UNSUPPORTED = 207000, "not supported";
    OUT_OF_MEMORY = 207001, "device memory ran out";
    DEVICE_OUT_OF_MEMORY = 207018, "device memory ran out below the runtime";
    AICORE_TIMEOUT = 507014, "an AI core took too long";
    AICORE_EXCEPTION = 507015, "an AI core met an exception";
    VECTOR_TIMEOUT = 507034, "a vector core took too long";
    VECTOR_EXCEPTION = 507035, "a vector core met an exception";
    STREAM_TIMEOUT = 507046, "the stream was not done in time";
    DRIVER = 507899, "the driver failed";
    COMPILER_PARAMETER = 176000, "invalid parameter of the compiler";
    COMPILER_PROGRAM = 176001, "no such program";
    COMPILER_NOT_COMPILED = 176002, "the program is not compiled";
    COMPILE_FAILED = 276000, "the source does not compile";
    COMPILER_FAILED = 576000, "the compiler could not be run";
}

/// Why a call failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What it gives.
    pub status: Status,
    /// What was wrong, for `aclGetRecentErrMsg`.
    pub why: String,
    /// Whether the caller broke the contract, rather than met what it must be ready for.
    pub breach: bool,
}

/// What most functions give.
pub type Result<T> = std::result::Result<T, Failure>;

impl Status {
    /// The caller must be ready for this.
    pub fn because(self, why: impl Into<String>) -> Failure {
        Failure {
            status: self,
            why: why.into(),
            breach: false,
        }
    }

    /// The caller may not do this.
    pub fn breach(self, why: impl Into<String>) -> Failure {
        Failure {
            status: self,
            why: why.into(),
            breach: true,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match meaning(self.0) {
            Some(meaning) => write!(f, "{} ({meaning})", self.0),
            None => self.0.fmt(f),
        }
    }
}
