//! The one error type of Ropeway.
//!
//! An [`Error`] is cheap to clone, because a lost device must be able to hand the same cause to every waiter. What
//! went wrong is its [`ErrorKind`]; which call of which library said so, with which code, is kept beside it for the
//! reader of a log.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// What went wrong, as far as a caller can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller's request is malformed: the context names the operand or attribute, what was found, what was expected.
    InvalidArgument,
    /// The request is sound, but this device cannot do it; the context says what it lacks.
    Unsupported,
    /// A vendor's library, driver or device is not there (see [`Unavailable`](crate::device::Unavailable)).
    Unavailable,
    /// The device or the host has no room for an allocation. The device stays usable.
    OutOfMemory,
    /// The device is gone. Every later call on it fails with this same error; open it anew.
    DeviceLost,
    /// A wait passed its time limit. The work may still be running.
    Timeout,
    /// A kernel did not compile; the context holds the compiler's log.
    CompileFailed,
    /// The driver refused or aborted a launch.
    LaunchFailed,
    /// A kernel met a value in device memory (an id, an offset, a length) that is out of range and skipped it.
    DataOutOfRange,
    /// A file could not be read, written or trusted.
    File,
    /// The driver reported something that no kind above covers.
    Driver,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ErrorKind::InvalidArgument => "invalid argument",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::OutOfMemory => "out of memory",
            ErrorKind::DeviceLost => "device lost",
            ErrorKind::Timeout => "timed out",
            ErrorKind::CompileFailed => "compile failed",
            ErrorKind::LaunchFailed => "launch failed",
            ErrorKind::DataOutOfRange => "device data out of range",
            ErrorKind::File => "file error",
            ErrorKind::Driver => "driver error",
        })
    }
}

/// A failure, with its kind, the call that reported it and the reason behind it.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    call: Cow<'static, str>,
    code: Option<i64>,
    context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// `Result` with Ropeway's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`, explained by `context`.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Error {
        Error(Arc::new(Inner {
            kind,
            call: Cow::Borrowed(""),
            code: None,
            context: context.into(),
            source: None,
        }))
    }

    /// A malformed request: `name` is the operand or attribute, `found` and `expected` say the rest.
    pub fn invalid(name: &str, found: impl fmt::Display, expected: impl fmt::Display) -> Error {
        Error::new(
            ErrorKind::InvalidArgument,
            format!("{name}: found {found}, expected {expected}"),
        )
    }

    /// A sound request that the device or kernel cannot do, because of `lack`.
    pub fn unsupported(lack: impl Into<String>) -> Error {
        Error::new(ErrorKind::Unsupported, lack)
    }

    /// What a vendor's `call` reported as `code`.
    pub fn from_call(
        kind: ErrorKind,
        call: impl Into<Cow<'static, str>>,
        code: i64,
        context: impl Into<String>,
    ) -> Error {
        Error(Arc::new(Inner {
            kind,
            call: call.into(),
            code: Some(code),
            context: context.into(),
            source: None,
        }))
    }

    /// Kernels have stored `code` in a queue's status word.
    pub fn data_out_of_range(code: u32) -> Error {
        Error::from_call(
            ErrorKind::DataOutOfRange,
            "",
            code.into(),
            "a kernel skipped an id, offset or length that is out of range",
        )
    }

    /// The same error with what lies behind it.
    ///
    /// Meant for an error that was just made; a shared one is wrapped instead.
    #[must_use]
    pub fn with_source(self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        match Arc::try_unwrap(self.0) {
            Ok(inner) => Error(Arc::new(Inner {
                source: Some(source.into()),
                ..inner
            })),
            Err(shared) => Error(shared),
        }
    }

    /// The same failure, said of something larger: `"layer 3: …"`.
    #[must_use]
    pub fn within(self, outer: impl fmt::Display) -> Error {
        Error(Arc::new(Inner {
            kind: self.0.kind,
            call: self.0.call.clone(),
            code: self.0.code,
            context: format!("{outer}: {}", self.0.context),
            source: Some(Box::new(self)),
        }))
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The vendor's call that failed, empty where none did.
    pub fn call(&self) -> &str {
        &self.0.call
    }

    /// The vendor's code.
    pub fn code(&self) -> Option<i64> {
        self.0.code
    }

    /// The explanation, without kind and call.
    pub fn context(&self) -> &str {
        &self.0.context
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.kind)?;
        if !self.0.call.is_empty() {
            write!(f, " in {}", self.0.call)?;
        }
        if let Some(code) = self.0.code {
            write!(f, " (code {code})")?;
        }
        if !self.0.context.is_empty() {
            write!(f, ": {}", self.0.context)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|s| s as _)
    }
}

impl From<std::io::Error> for Error {
    fn from(source: std::io::Error) -> Error {
        let kind = match source.kind() {
            std::io::ErrorKind::OutOfMemory => ErrorKind::OutOfMemory,
            _ => ErrorKind::File,
        };
        Error::new(kind, source.to_string()).with_source(source)
    }
}
