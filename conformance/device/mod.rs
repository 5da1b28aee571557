//! What a device must do, whatever chip it is: memory, copies, order, events, threads, launches, graphs, errors.
//!
//! Each test gets an open device and nothing else. What a device cannot do (a clock, an import) is skipped with the reason that the
//! device gives.

mod copies;
mod events;
mod foreign;
mod graphs;
mod launches;
mod memory;
mod order;
mod probe;
mod spirv;
mod status;
mod threads;

use std::sync::Arc;
use std::time::Duration;

use ropeway_core::device::Device;
use ropeway_core::info::Execution;
use ropeway_core::kernel::Kernel;
use ropeway_core::{Error, ErrorKind, Result};

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

/// Fails a test unless the call was refused as the caller's fault.
fn refused<T>(result: Result<T>, what: &str) -> Outcome {
    match result {
        Ok(_) => Err(Ended::Failed(format!("{what} was accepted"))),
        Err(error) if error.kind() == ErrorKind::InvalidArgument => Ok(()),
        Err(error) => Err(Ended::Failed(format!(
            "{what} gave {error}, not an invalid argument"
        ))),
    }
}

/// After this long a device counts as hung.
const TIMEOUT: Duration = Duration::from_secs(60);

const fn test(
    name: &'static str,
    needs_data: bool,
    run: fn(&Arc<dyn Device>) -> Outcome,
) -> DeviceTest {
    DeviceTest {
        name,
        needs_data,
        run,
    }
}

/// The kernel that they launch, with no configuration.
pub fn kernel() -> &'static Kernel {
    &probe::PROBE
}

/// All of them.
pub const TESTS: &[DeviceTest] = &[
    test("memory/info", false, memory::info),
    test("memory/zero_bytes", false, memory::zero_bytes),
    test("memory/many", true, memory::many),
    test("memory/out_of_memory", true, memory::out_of_memory),
    test(
        "memory/out_of_memory_is_typed",
        false,
        memory::out_of_memory_is_typed,
    ),
    test("memory/accounting", false, memory::accounting),
    test(
        "memory/dropped_while_queued",
        true,
        memory::dropped_while_queued,
    ),
    test(
        "memory/outlives_its_queue",
        true,
        memory::outlives_its_queue,
    ),
    test("memory/pinned", false, memory::pinned),
    test("copies/round_trip", true, copies::round_trip),
    test("copies/upload_takes_over", true, copies::upload_takes_over),
    test("copies/download", true, copies::download),
    test("copies/download_dropped", true, copies::download_dropped),
    test("copies/within_device", true, copies::within_device),
    test("copies/fill", true, copies::fill),
    test("copies/wrong_lengths", false, copies::wrong_lengths),
    test("order/in_a_queue", true, order::in_a_queue),
    test("order/between_queues", true, order::between_queues),
    test("order/diamond", true, order::diamond),
    test(
        "order/waits_that_are_over",
        false,
        order::waits_that_are_over,
    ),
    test("events/done", true, events::done),
    test("events/progress", true, events::progress),
    test("events/timeout", true, events::timeout),
    test("events/enqueue_returns", true, events::enqueue_returns),
    test("events/elapsed", true, events::elapsed),
    test("threads/a_queue_each", true, threads::a_queue_each),
    test("threads/one_queue", true, threads::one_queue),
    test("threads/allocation", false, threads::allocation),
    test(
        "threads/short_lived_queues",
        true,
        threads::short_lived_queues,
    ),
    test("launches/arguments", true, launches::arguments),
    test("launches/offsets", true, launches::offsets),
    test("launches/grids", true, launches::grids),
    test("launches/fewer_rows", true, launches::fewer_rows),
    test("launches/wrong_operands", false, launches::wrong_operands),
    test("launches/status_word", true, launches::status_word),
    test("launches/compile_error", true, launches::compile_error),
    test("launches/unknown_names", true, launches::unknown_names),
    test("launches/nothing_leaks", false, launches::nothing_leaks),
    test("graphs/replay", true, graphs::replay),
    test("graphs/rebind", true, graphs::rebind),
    test("graphs/wrong_rebind", false, graphs::wrong_rebind),
    test(
        "graphs/dropped_while_queued",
        true,
        graphs::dropped_while_queued,
    ),
    test("graphs/empty", false, graphs::empty),
    test("foreign/buffers", false, foreign::buffers),
    test("foreign/objects", false, foreign::objects),
    test(
        "foreign/usable_afterwards",
        true,
        foreign::usable_afterwards,
    ),
    test("status/grouped_gemm", true, status::grouped_gemm),
    test(
        "status/grouped_gemm_masked",
        true,
        status::grouped_gemm_masked,
    ),
    test("status/attention", true, status::attention),
    test("status/attention_varlen", true, status::attention_varlen),
    test("status/attention_paged", true, status::attention_paged),
    test("status/expert_scatter", true, status::expert_scatter),
    test("status/expert_gather", true, status::expert_gather),
    test("status/after_a_replay", true, status::after_a_replay),
    test("status/get_rows", true, status::get_rows),
    test("status/set_rows", true, status::set_rows),
];

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
