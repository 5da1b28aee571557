//! The gate of `ropeway check` as tests: every case on every device of this machine. What cannot run here is an ignored test with its
//! reason: a backend without a device, a case that a device does not support. `ROPEWAY_GATE_DEVICES=cpu,null` leaves the others out, for runs that check
//! those by themselves.

use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use ropeway::Registry;
use ropeway_conformance::cases::{self, Body, Case, Selection};
use ropeway_conformance::report::Status;
use ropeway_conformance::suite::{Settings, Suite};
use ropeway_core::device::{Device, QueueKind};

/// What the trials of one device share.
struct Shared {
    device: Arc<dyn Device>,
    suite: Suite,
    /// Device tests count memory and time: each of them runs alone.
    turn: RwLock<()>,
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let registry = Registry::default();
    let wanted = std::env::var("ROPEWAY_GATE_DEVICES").ok();
    let is_wanted = |backend| match &wanted {
        Some(names) => names.split(',').any(|name| name == backend),
        None => true,
    };
    let mut trials = Vec::new();
    for probe in registry
        .probe()
        .into_iter()
        .filter(|probe| is_wanted(probe.backend))
    {
        match probe.devices {
            Err(why) => trials.push(
                Trial::ignorable_test("no device", move || Ok(Completion::ignored_with(why)))
                    .with_kind(probe.backend),
            ),
            Ok(devices) => {
                for info in devices {
                    let device = registry
                        .open(&info.selector())
                        .unwrap_or_else(|error| panic!("{}: {error}", info.name));
                    trials.extend(of_device(device));
                }
            }
        }
    }
    // A run that finds nothing to test has tested nothing.
    assert!(!trials.is_empty(), "no backend at all");
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn of_device(device: Arc<dyn Device>) -> Vec<Trial> {
    let info = device.info();
    let cases = cases::select(info, &Selection::default())
        .unwrap_or_else(|error| panic!("{}: {error}", info.name));
    let kind = info.selector();
    let shared = Arc::new(Shared {
        suite: Suite::new(Arc::clone(&device), Settings::default())
            .unwrap_or_else(|error| panic!("{error}")),
        device,
        turn: RwLock::new(()),
    });
    cases
        .into_iter()
        .map(|case| {
            let shared = Arc::clone(&shared);
            Trial::ignorable_test(case.id.clone(), move || check(&shared, &case))
                .with_kind(kind.clone())
        })
        .collect()
}

fn check(shared: &Shared, case: &Case) -> Result<Completion, Failed> {
    let (_alone, _beside);
    match case.body {
        Body::Device(_) => _alone = shared.turn.write().unwrap_or_else(PoisonError::into_inner),
        _ => _beside = shared.turn.read().unwrap_or_else(PoisonError::into_inner),
    }
    let queue = shared.device.create_queue(QueueKind::Compute)?;
    match shared.suite.case(&*queue, case).status {
        Status::Passed => Ok(Completion::Completed),
        Status::Failed(findings) => Err(findings.join("\n").into()),
        Status::Skipped(reason) => Ok(Completion::ignored_with(reason)),
        Status::ExpectedFailure(reason) => Ok(Completion::ignored_with(format!(
            "expected failure: {reason}"
        ))),
    }
}
