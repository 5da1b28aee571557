//! Faults planted in shipped CUDA sources: each must be reported on the emulated driver, by the detector that should.
//!
//! A fault is text put in place of other text. What breaks the rules of the machine (a race, a copy that is not waited for) is the
//! sanitizer's to report, what gives wrong numbers the suite's. A report ends the context, so each fault has a process of its own. Needs the
//! emulated CUDA driver (see `on_emulated_cuda` in test.sh); without it every fault is an ignored test with the reason.

#[path = "../faulty/mod.rs"]
mod faulty;
mod planted;

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use faulty::FaultyDevice;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use planted::{FAULTS, Fault};
use ropeway::Registry;
use ropeway_conformance::cases::{self, Selection};
use ropeway_conformance::report::Status;
use ropeway_conformance::suite::{Settings, Suite};
use ropeway_core::device::{Device, QueueKind};
use ropeway_core::info::Execution;

/// Set for the process of one fault, to its name.
const FAULT: &str = "ROPEWAY_TEST_CUDA_FAULT";
/// Operations and bytes of the largest case that is run.
const MOST_WORK: f64 = 2e7;

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(FAULT) {
        let fault = FAULTS.iter().find(|fault| fault.name == name);
        return child(fault.expect("the name of a fault"));
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let emulated = match Registry::default().open("cuda") {
        Ok(device) if device.info().execution == Execution::Emulated => Ok(()),
        Ok(_) => Err("the CUDA device is no emulated one".to_owned()),
        Err(why) => Err(why.to_string()),
    };
    let trials = FAULTS
        .iter()
        .map(|fault| {
            let emulated = emulated.clone();
            Trial::ignorable_test(fault.name, move || match emulated {
                Err(why) => Ok(Completion::ignored_with(why)),
                Ok(()) => caught(fault).map(|()| Completion::Completed),
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs the fault in a process of its own, and looks who has reported it.
fn caught(fault: &Fault) -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let reports = directory.path().join("reports");
    let output = Command::new(std::env::current_exe()?)
        .env(FAULT, fault.name)
        .env("ROPEWAY_EMULATED_CUDA_REPORT", &reports)
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{said}{errors}").into());
    }
    let reports = std::fs::read_to_string(&reports).unwrap_or_default();
    let all = format!("{said}{reports}");
    match fault.says.iter().any(|words| all.contains(words)) {
        true => {
            println!("{}: {all}", fault.name);
            Ok(())
        }
        false => Err(format!("reported by another than {:?}: {all}", fault.says).into()),
    }
}

/// Finds a case that passes without the fault and fails with it.
fn child(fault: &Fault) -> ExitCode {
    match find(fault) {
        Ok(found) => {
            println!("{found}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("{}: {}", fault.name, why.message().unwrap_or("no reason"));
            ExitCode::FAILURE
        }
    }
}

fn find(fault: &Fault) -> Result<String, Failed> {
    let device = Registry::default().open("cuda")?;
    let selection = Selection {
        filter: Some(fault.cases.into()),
        kernel: Some(fault.kernel.into()),
        max_work: Some(MOST_WORK),
        ..Selection::default()
    };
    let cases = cases::select(device.info(), &selection)?;
    let queue = device.create_queue(QueueKind::Compute)?;
    let healthy = Suite::new(Arc::clone(&device), Settings::default())?;
    let mutant = FaultyDevice::mutated(Arc::clone(&device), fault.substitution);
    let suite = Suite::new(Arc::clone(&mutant) as Arc<dyn Device>, Settings::default())?;
    for case in &cases {
        let outcome = healthy.case(&*queue, case);
        if outcome.status != Status::Passed {
            let status = outcome.status;
            return Err(format!("{} fails without the fault: {status:?}", case.id).into());
        }
        if let Status::Failed(findings) = suite.case(&*queue, case).status {
            let findings = findings.join("\n");
            if findings.contains("compile failed") {
                return Err(format!("the fault is no kernel: {findings}").into());
            }
            return Ok(format!("caught by {}: {findings}", case.id));
        }
    }
    Err(match mutant.substituted.load(Ordering::Relaxed) {
        0 => format!("no case under {:?} compiles the file", fault.cases),
        _ => format!("none of {} cases caught it", cases.len()),
    }
    .into())
}
