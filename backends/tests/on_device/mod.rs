//! Tests of one driver, on every device that it finds: a trial for each test and device, or ignored ones and the reason.

use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use ropeway_core::Buffer;
use ropeway_core::device::{
    Argument, Device, Driver, Function, LaunchCall, OpenOptions, Queue, QueueKind,
};
use ropeway_core::info::Execution;

pub type Outcome = Result<(), Failed>;
pub type Test = fn(&Arc<dyn Device>) -> Outcome;

/// Names functions as tests.
macro_rules! tests {
    ($($name:ident,)*) => { &[$((stringify!($name), $name),)*] };
}
pub(crate) use tests;

/// Runs `tests` on every device of `driver`; those in `beyond_emulators` not on emulated ones.
pub fn run(driver: &'static dyn Driver, tests: &[(&'static str, Test)], beyond_emulators: &[&str]) {
    let mut arguments = Arguments::from_args();
    // One at a time: some look at the clock or at the memory of the process.
    arguments.test_threads = Some(1);
    let mut trials = Vec::new();
    match driver.probe() {
        Ok(devices) => {
            for info in devices {
                for &(name, test) in tests {
                    let ordinal = info.ordinal;
                    let beyond =
                        info.execution == Execution::Emulated && beyond_emulators.contains(&name);
                    if beyond {
                        println!("skipped: {name} on {}, an emulator", info.name);
                    }
                    let run = move || test(&driver.open(ordinal, &OpenOptions::default())?);
                    let trial = Trial::test(format!("{}::{name}", info.selector()), run);
                    trials.push(trial.with_ignored_flag(beyond));
                }
            }
        }
        Err(reason) => {
            let backend = driver.name();
            println!(
                "skipped: {} tests, since {backend} is not available: {reason}",
                tests.len()
            );
            for &(name, _) in tests {
                let trial = Trial::test(format!("{backend}::{name}"), || Ok(()));
                trials.push(trial.with_ignored_flag(true));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// Enqueues a launch of `grid` work-groups of `group` work-items.
pub fn launch(
    queue: &dyn Queue,
    function: &Arc<dyn Function>,
    grid: u64,
    group: u32,
    arguments: &[Argument<'_>],
) -> ropeway_core::Result<()> {
    // SAFETY: each test passes what its kernel takes, and buffers that are large enough; the one that does not says so.
    unsafe {
        queue.launch(&LaunchCall {
            function,
            grid: [grid, 1, 1],
            group: [group, 1, 1],
            local_memory: 0,
            arguments,
        })
    }
}

/// What a buffer holds once the queue's work is done.
pub fn words(queue: &dyn Queue, buffer: &Buffer) -> ropeway_core::Result<Vec<u32>> {
    let mut bytes = vec![0; buffer.size() as usize];
    queue.read_blocking(&buffer.all(), &mut bytes)?;
    Ok(bytes
        .chunks_exact(4)
        .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
        .collect())
}

/// Resident bytes of this process, where the system tells.
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(statm.split_whitespace().nth(1)?.parse::<u64>().ok()? * 4096)
}

/// Launches `add` (which adds 1 to 64 words) 10,000 times after 3,000 to settle: the process may grow by less than `bound` bytes.
pub fn leaks_nothing(
    device: &Arc<dyn Device>,
    bound: u64,
    add: impl Fn(&dyn Queue, &Buffer) -> ropeway_core::Result<()>,
) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let round = |count: u32| -> Outcome {
        for _ in 0..count / 100 {
            let x = device.alloc(4 * 64)?;
            queue.upload(&x.all(), &[0; 256])?;
            for _ in 0..100 {
                add(&*queue, &x)?;
            }
            queue.record()?;
            assert_eq!(words(&*queue, &x)?[63], 100);
        }
        Ok(queue.synchronize(None)?)
    };
    round(3_000)?;
    let before = resident();
    round(10_000)?;
    assert_eq!(device.memory()?.used, 0);
    if let (Some(before), Some(after)) = (before, resident()) {
        let grown = after.saturating_sub(before);
        assert!(grown < bound, "{grown} bytes more after 10,000 launches");
    }
    Ok(())
}
