//! The error that a device was lost by.

use std::sync::OnceLock;

use ropeway_core::{Error, ErrorKind, Result};

/// Empty while the device works; then the cause, which every later call fails with.
#[derive(Default)]
pub(crate) struct Lost(OnceLock<Error>);

impl Lost {
    /// # Errors
    /// Why the device is lost, if it is: the same error for every call from then on.
    #[inline]
    pub(crate) fn alive(&self) -> Result<()> {
        match self.0.get() {
            None => Ok(()),
            Some(cause) => Err(cause.clone()),
        }
    }

    /// Remembers the error that the device is lost by; others pass through.
    pub(crate) fn note(&self, error: Error) -> Error {
        if error.kind() != ErrorKind::DeviceLost {
            return error;
        }
        self.0.get_or_init(|| error).clone()
    }
}
