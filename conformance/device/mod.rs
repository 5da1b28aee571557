//! What a device must do, whatever chip it is: memory, copies, order, events, threads, launches, graphs, errors.
//!
//! Each test gets an open device and nothing else. What a device cannot do (a clock, an import) is skipped with the reason that the
//! device gives.

use std::sync::Arc;

use ropeway_core::device::Device;
use ropeway_core::info::Execution;
use ropeway_core::{Error, ErrorKind};

use crate::verdict::{Pass, Verdict};

/// One test of a device.
#[derive(Clone, Copy)]
pub struct DeviceTest {
    /// Its name, after `device/` in the id.
    pub name: &'static str,
    /// True if it looks at data, which a device that only records calls does not have.
    pub needs_data: bool,
    /// The test.
    pub run: fn(&Arc<dyn Device>) -> Outcome,
}

/// What a device test ends with.
pub type Outcome = std::result::Result<(), Ended>;

/// Why a device test ended early.
#[derive(Debug)]
pub enum Ended {
    /// The device cannot do it.
    Skipped(String),
    /// The device did something wrong.
    Failed(String),
}

impl From<Error> for Ended {
    /// An error that the test did not ask for.
    fn from(error: Error) -> Ended {
        match error.kind() {
            ErrorKind::Unsupported => Ended::Skipped(error.context().to_owned()),
            _ => Ended::Failed(error.to_string()),
        }
    }
}

/// Fails a test unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::device::Ended::Failed(format!($($message)+)));
        }
    };
}
pub(crate) use ensure;

/// All of them.
pub const TESTS: &[DeviceTest] = &[];

impl DeviceTest {
    /// Runs it; a panic fails it.
    pub fn check(&self, device: &Arc<dyn Device>) -> Verdict {
        if self.needs_data && device.info().execution == Execution::Recorded {
            return Verdict::Skipped("this device records calls and holds no data".into());
        }
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (self.run)(device)));
        match ended {
            Ok(Ok(())) => Verdict::Passed(Pass::default()),
            Ok(Err(Ended::Skipped(reason))) => Verdict::Skipped(reason),
            Ok(Err(Ended::Failed(finding))) => Verdict::Failed(vec![finding]),
            Err(_) => Verdict::Failed(vec!["panicked".into()]),
        }
    }
}
