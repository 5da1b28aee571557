//! Ten thousand ops leave nothing behind: neither in what the program allocates nor in what the system has given the process. Alone
//! in its program, since it watches both.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use peak_alloc::PeakAlloc;
use ropeway::Registry;
use ropeway::prelude::*;
use ropeway_core::info::Execution;

#[global_allocator]
static ALLOCATIONS: PeakAlloc = PeakAlloc;

const OPS: usize = 10_000;

/// The most rounds of so many ops: the one that leaves the least counts, and one that leaves little enough is the last.
const ROUNDS: usize = 6;

/// What the process may grow by: less than a hundred bytes an op. What the program has allocated but never touched (staging blocks
/// that a queue keeps for as many uploads as were once under way) is not in it.
const KEPT_BY_PROCESS: u64 = 768 << 10;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let probes = Registry::default().probe();
    let infos = probes
        .into_iter()
        .filter_map(|probe| probe.devices.ok())
        .flatten();
    let trials = infos.map(|info| {
        let selector = info.selector();
        let name = format!("{selector}::ten_thousand_ops_leave_nothing_behind");
        match info.execution {
            Execution::Recorded => {
                let records = || Ok(Completion::ignored_with("a recorder keeps every call"));
                Trial::ignorable_test(name, records)
            }
            Execution::Emulated => {
                let slow = || Ok(Completion::ignored_with("an emulator takes hours for it"));
                Trial::ignorable_test(name, slow)
            }
            _ => Trial::ignorable_test(name, move || leaves_nothing(&selector)),
        }
    });
    let trials: Vec<Trial> = trials.collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn leaves_nothing(selector: &str) -> Result<Completion, Failed> {
    let session = Session::new(Registry::default().open(selector)?)?;
    let rows = TensorDesc::contiguous(DType::F32, &[4, 32])?;
    let square = TensorDesc::contiguous(DType::F32, &[32, 32])?;
    let product = gemm::Gemm::builder(rows, square).build()?;
    let plan = match session.plan(&product) {
        // The expectations say which devices may.
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            return Ok(Completion::ignored_with(error.context().to_owned()));
        }
        plan => plan?,
    };
    let workspace = session.workspace(&plan)?;
    let weights = session
        .device()
        .alloc(square.span_bytes()?)?
        .view(square, 0)?;
    session.queue().fill(&weights.bytes(), 0)?;
    // Each op with buffers of its own, some of which are dropped while it is queued.
    let run = |count: usize| -> Result<()> {
        for number in 0..count {
            let a = session.device().alloc(rows.span_bytes()?)?.view(rows, 0)?;
            let d = session.device().alloc(rows.span_bytes()?)?.view(rows, 0)?;
            session.queue().upload(&a.bytes(), &[0; 4 * 4 * 32])?;
            plan.enqueue(
                &**session.queue(),
                &[a, weights.clone(), d],
                workspace.as_ref(),
            )?;
            if number % 100 == 99 {
                session.queue().synchronize(None)?;
            }
        }
        session.queue().synchronize(None)
    };
    // As many before, so that pools have grown to what this load needs.
    run(OPS)?;
    // A leak shows in each of the rounds; a pool that grows late, in few.
    let mut least = (usize::MAX, None);
    for _ in 0..ROUNDS {
        let (program, process) = (ALLOCATIONS.current_usage(), resident());
        run(OPS)?;
        let program = ALLOCATIONS.current_usage().saturating_sub(program);
        let process = process.and_then(|before| Some(resident()?.saturating_sub(before)));
        if process.unwrap_or(program as u64) <= least.1.unwrap_or(least.0 as u64) {
            least = (program, process);
        }
        if process.unwrap_or(program as u64) <= KEPT_BY_PROCESS {
            break;
        }
    }
    let (program, process) = least;
    eprintln!("{selector}: {program} bytes in the program, {process:?} in the process");
    if process.unwrap_or(program as u64) > KEPT_BY_PROCESS {
        return Err(format!("{program} bytes in the program, {process:?} in the process").into());
    }
    let used = session.device().memory()?.used;
    let held = square.span_bytes()? + workspace.map_or(0, |slice| slice.len());
    match used <= held {
        true => Ok(Completion::Completed),
        false => Err(format!("{used} bytes of device memory in use, {held} are held").into()),
    }
}

/// Bytes of physical memory that the process has; known on Linux only.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes << 10)
}
