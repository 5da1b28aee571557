//! Ropeway's errors as the exceptions of `ropeway.errors`, one class a kind.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyModule;
use ropeway::core::{Error, ErrorKind};

/// What a call into Ropeway can fail with: its own errors, and those that Python raised on the way.
pub(crate) enum Failure {
    Ropeway(Error),
    Python(PyErr),
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Ropeway(error)
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Failure {
        Failure::Python(error)
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> PyErr {
        match failure {
            Failure::Ropeway(error) => exception(&error),
            Failure::Python(error) => error,
        }
    }
}

fn class_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidArgument => "InvalidArgumentError",
        ErrorKind::Unsupported => "UnsupportedError",
        ErrorKind::Unavailable => "UnavailableError",
        ErrorKind::OutOfMemory => "OutOfMemoryError",
        ErrorKind::DeviceLost => "DeviceLostError",
        ErrorKind::Timeout => "TimeoutError",
        ErrorKind::CompileFailed => "CompileFailedError",
        ErrorKind::LaunchFailed => "LaunchFailedError",
        ErrorKind::DataOutOfRange => "DataOutOfRangeError",
        ErrorKind::File => "FileError",
        ErrorKind::Driver => "DriverError",
        _ => "RopewayError",
    }
}

fn exception(error: &Error) -> PyErr {
    static CLASSES: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    Python::attach(|py| {
        let classes =
            CLASSES.get_or_try_init(py, || Ok(PyModule::import(py, "ropeway.errors")?.unbind()));
        let made = classes.and_then(|classes| {
            let class = classes.bind(py).getattr(class_name(error.kind()))?;
            let fields = (
                error.to_string(),
                error.call(),
                error.code(),
                error.context(),
            );
            class.call1(fields)
        });
        made.map_or_else(|failed| failed, PyErr::from_value)
    })
}
