//! Planted kernel faults: each must be caught by the cases of the gate.
//!
//! A fault is text put in place of other text in a shipped OpenCL source. For each: the text is found exactly once, the cases pass
//! without the fault, and at least one of them fails with it. So a bound that is too wide, a case that is missing or a detector that
//! sleeps is a failing test here. Needs an OpenCL device; without one every fault is an ignored test with the reason.

#[path = "../faulty/mod.rs"]
mod faulty;
mod planted;

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use faulty::FaultyDevice;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use planted::{FAULTS, Fault};
use ropeway::Registry;
use ropeway_conformance::cases::{self, Case, Selection};
use ropeway_conformance::report::Status;
use ropeway_conformance::suite::{Settings, Suite};
use ropeway_core::device::{Device, QueueKind};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Faults that loop or overrun hurt their neighbours least one by one.
    arguments.test_threads = Some(1);
    let device = Registry::default().open("opencl");
    let healthy = Arc::new(Mutex::new(Vec::new()));
    let trials = FAULTS
        .iter()
        .map(|fault| {
            let (device, healthy) = (device.clone(), Arc::clone(&healthy));
            Trial::ignorable_test(fault.name, move || match device {
                Err(why) => Ok(Completion::ignored_with(why)),
                Ok(device) => caught(fault, &device, &healthy).map(|()| Completion::Completed),
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The cases of the gate that a fault must show in.
fn cases(fault: &Fault, device: &Arc<dyn Device>) -> Result<Vec<Case>, Failed> {
    let selection = Selection {
        filter: Some(fault.cases.into()),
        kernel: fault.kernel.map(Into::into),
        ..Selection::default()
    };
    Ok(cases::select(device.info(), &selection)?)
}

fn caught(
    fault: &Fault,
    device: &Arc<dyn Device>,
    healthy: &Mutex<Vec<String>>,
) -> Result<(), Failed> {
    let cases = cases(fault, device)?;
    let queue = device.create_queue(QueueKind::Compute)?;

    let mutant = FaultyDevice::mutated(Arc::clone(device), fault.substitution);
    let suite = Suite::new(Arc::clone(&mutant) as Arc<dyn Device>, Settings::default())?;
    let failing = cases.iter().find_map(|case| {
        let outcome = suite.case(&*queue, case);
        match outcome.status {
            Status::Failed(findings) => Some((case, findings)),
            _ => None,
        }
    });
    if mutant.substituted.load(Ordering::Relaxed) == 0 {
        return Err(format!(
            "no case under {:?} compiles {}",
            fault.cases, fault.substitution.file
        )
        .into());
    }
    let Some((case, findings)) = failing else {
        return Err(format!("none of {} cases caught it", cases.len()).into());
    };
    let findings = findings.join("\n");
    if findings.contains("compile failed") {
        return Err(format!("the fault is no kernel: {findings}").into());
    }

    let known = healthy
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .contains(&case.id);
    if !known {
        let suite = Suite::new(Arc::clone(device), Settings::default())?;
        let outcome = suite.case(&*queue, case);
        if outcome.status != Status::Passed {
            return Err(format!(
                "{} does not pass without the fault: {:?}",
                case.id, outcome.status
            )
            .into());
        }
        healthy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(case.id.clone());
    }
    println!("{}: caught by {}: {findings}", fault.name, case.id);
    Ok(())
}
