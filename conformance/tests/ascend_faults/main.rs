//! Faults planted in shipped AscendC sources: each must be reported on the emulated CANN, or make a case fail.
//!
//! Each flag and barrier that the cases come to is left out in its turn, by its file and line; nothing is compiled for that. Other faults
//! are text put in place of other text (`planted.rs`). A fault ends the device's work, so the device is opened anew after each. Needs the
//! emulated CANN (see `on_emulated_cann` in test.sh); without it every fault is an ignored test with the reason.
//!
//! `ROPEWAY_TEST_OPS=norm,rope` looks at these ops only; `ROPEWAY_TEST_PART=1/3` leaves out the first of three parts of the flags.

#[path = "../faulty/mod.rs"]
mod faulty;
mod planted;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use faulty::FaultyDevice;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use planted::{FAULTS, Fault, REDUNDANT};
use ropeway::Registry;
use ropeway_conformance::cases::{self, Case, Selection};
use ropeway_conformance::report::Status;
use ropeway_conformance::suite::{Settings, Suite};
use ropeway_core::device::{Device, QueueKind};
use ropeway_core::info::Execution;

/// Set for the process of one trial, to its name.
const TRIAL: &str = "ROPEWAY_TEST_ASCEND_FAULT";
const FLAGS: &str = "each flag and barrier";
/// Operations and bytes of the largest case that flags are left out of, and of the largest that other faults are tried on.
const MOST_WORK: [f64; 2] = [1e6, 4e6];
/// Generated cases, spread over the ops: operands and dtypes that no listed case has.
const GENERATED: usize = 600;

type Answer<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(TRIAL) {
        let done = match FAULTS.iter().find(|fault| fault.name == name) {
            Some(fault) => planted_is_caught(fault),
            None => flags_are_needed(),
        };
        return match done {
            Ok(said) => {
                println!("{said}");
                ExitCode::SUCCESS
            }
            Err(why) => {
                println!("{name}: {why}");
                ExitCode::FAILURE
            }
        };
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let emulated = match Registry::default().open("ascend") {
        Ok(device) if device.info().execution == Execution::Emulated => Ok(()),
        Ok(_) => Err("the Ascend device is no emulated one".to_owned()),
        Err(why) => Err(why.to_string()),
    };
    let names = std::iter::once(FLAGS).chain(FAULTS.iter().map(|fault| fault.name));
    let trials = names.map(|name| {
        let emulated = emulated.clone();
        Trial::ignorable_test(name, move || match emulated {
            Err(why) => Ok(Completion::ignored_with(why)),
            Ok(()) => in_a_process(name).map(|()| Completion::Completed),
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Runs a trial in a process of its own, in whose environment the emulator finds what to leave out and where to tell what it came to.
fn in_a_process(name: &str) -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let file = |name: &str| directory.path().join(name);
    std::fs::write(file("drop"), "")?;
    let mut drop = std::ffi::OsString::from("@");
    drop.push(file("drop"));
    let output = Command::new(std::env::current_exe()?)
        .env(TRIAL, name)
        .env("ROPEWAY_TEST_FOLDER", directory.path())
        .env("ROPEWAY_EMULATED_CANN_DROP", drop)
        .env("ROPEWAY_EMULATED_CANN_LINES", file("lines"))
        .env("ROPEWAY_EMULATED_CANN_REPORT", file("report"))
        .env("ROPEWAY_EMULATED_CANN_UNREAD", "report")
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{said}{errors}").into());
    }
    print!("{said}");
    Ok(())
}

/// A file that this process and the emulator share.
fn shared(name: &str) -> PathBuf {
    let folder = std::env::var_os("ROPEWAY_TEST_FOLDER").unwrap_or_default();
    PathBuf::from(folder).join(name)
}

/// An open device, and the suite on it.
struct Bench {
    device: Arc<dyn Device>,
    suite: Suite,
}

impl Bench {
    fn open() -> Answer<Bench> {
        let device = Registry::default().open("ascend")?;
        let suite = Suite::new(Arc::clone(&device), Settings::default())?;
        Ok(Bench { device, suite })
    }

    /// Runs a case with these lines left out; what it found, if it found anything.
    fn findings(&self, case: &Case, without: &str) -> Answer<Option<String>> {
        std::fs::write(shared("drop"), without)?;
        let queue = self.device.create_queue(QueueKind::Compute)?;
        let outcome = self.suite.case(&*queue, case);
        std::fs::write(shared("drop"), "")?;
        Ok(match outcome.status {
            Status::Failed(findings) => Some(findings.join("\n")),
            // What the device met behind the case's last look at it counts as well.
            _ => {
                let lost = self.device.create_queue(QueueKind::Compute).err();
                lost.map(|error| error.to_string())
            }
        })
    }

    /// Cases of the ops, small ones, and the tests of what is reported through a status word.
    fn cases(&self, filter: Option<&str>) -> Answer<Vec<Case>> {
        let selection = Selection {
            filter: filter.map(Into::into),
            generated: GENERATED,
            max_work: Some(MOST_WORK[usize::from(filter.is_some())]),
            ..Selection::default()
        };
        let mut cases = cases::select(self.device.info(), &selection)?;
        if filter.is_none() {
            let status = Selection {
                filter: Some("device/status/".into()),
                ..Selection::default()
            };
            cases.extend(cases::select(self.device.info(), &status)?);
        }
        let only = std::env::var("ROPEWAY_TEST_OPS").ok();
        cases.retain(|case| {
            let wanted = |ops: &String| ops.split(',').any(|op| op == case.group());
            only.as_ref().is_none_or(wanted)
        });
        Ok(cases)
    }
}

/// What the emulator came to since it was asked last: `FILE:LINE`.
fn met() -> BTreeSet<String> {
    let lines = std::fs::read_to_string(shared("lines")).unwrap_or_default();
    let _ = std::fs::remove_file(shared("lines"));
    lines.lines().map(str::to_owned).collect()
}

/// The text of a source in the kernels' folders.
fn source(name: &str) -> String {
    fn find(folder: &Path, name: &str) -> Option<String> {
        for entry in std::fs::read_dir(folder).ok()?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                if let Some(text) = find(&path, name) {
                    return Some(text);
                }
            } else if path.file_name().is_some_and(|file| file == name) {
                return std::fs::read_to_string(path).ok();
            }
        }
        None
    }
    let kernels = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernels");
    find(Path::new(kernels), name).unwrap_or_default()
}

/// The text of `FILE:LINE`.
fn text_of(place: &str) -> String {
    let (file, line) = place.split_once(':').unwrap_or((place, "0"));
    let number: usize = line.parse().unwrap_or(0);
    let text = source(file);
    let line = text.lines().nth(number.saturating_sub(1));
    line.unwrap_or("?").trim().to_owned()
}

/// The flags and barriers of a source, as `FILE:LINE`.
fn synchronising(file: &str) -> Vec<String> {
    const NAMES: [&str; 4] = ["SetFlag<", "WaitFlag<", "WaitFlag(", "PipeBarrier<"];
    let text = source(file);
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| NAMES.iter().any(|name| line.contains(name)))
        .map(|(index, _)| format!("{file}:{}", index + 1))
        .collect()
}

/// Which part of the flags is left out, of how many, as in "1/3": all of them where `ROPEWAY_TEST_PART` does not say.
fn part() -> (usize, usize) {
    let Ok(said) = std::env::var("ROPEWAY_TEST_PART") else {
        return (1, 1);
    };
    let numbers = said
        .split_once('/')
        .and_then(|(part, parts)| Some((part.parse().ok()?, parts.parse().ok()?)));
    match numbers {
        Some((part, parts)) if (1..=parts).contains(&part) => (part, parts),
        _ => panic!("ROPEWAY_TEST_PART={said}: 1/3 is the first part of three"),
    }
}

/// Each flag and barrier that a case comes to is left out in its turn, and must be reported by one of those cases.
fn flags_are_needed() -> Answer<String> {
    let mut bench = Bench::open()?;
    let cases = bench.cases(None)?;
    let mut places: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut seconds = Vec::new();
    met();
    for (index, case) in cases.iter().enumerate() {
        let begin = std::time::Instant::now();
        if let Some(findings) = bench.findings(case, "")? {
            return Err(format!("{} fails without a fault: {findings}", case.id).into());
        }
        seconds.push(begin.elapsed());
        for place in met() {
            places.entry(place).or_default().push(index);
        }
    }
    let mut kept = Vec::new();
    let (part, parts) = part();
    for (place, users) in places.iter_mut().skip(part - 1).step_by(parts) {
        // Quick cases first, but of all ops in turn: what one does not need may be another's.
        users.sort_by_key(|index| seconds[*index]);
        let mut of_op: BTreeMap<&str, usize> = BTreeMap::new();
        let mut ranked: Vec<(usize, usize)> = users
            .iter()
            .map(|index| {
                let turn = of_op.entry(cases[*index].group()).or_default();
                *turn += 1;
                (*turn, *index)
            })
            .collect();
        ranked.sort();
        let mut found = None;
        for (_, index) in ranked {
            found = bench.findings(&cases[index], place)?;
            if found.is_some() {
                drop(bench);
                bench = Bench::open()?;
                break;
            }
        }
        if found.is_none() {
            kept.push(place.clone());
        }
    }
    // What stands in a source that was come to, and that nobody came to itself.
    let came_to: BTreeSet<&str> = places
        .keys()
        .filter_map(|place| place.split(':').next())
        .collect();
    let everything = std::env::var_os("ROPEWAY_TEST_OPS").is_none();
    let unmet: Vec<String> = came_to
        .iter()
        .filter(|_| everything)
        .flat_map(|file| synchronising(file))
        .filter(|place| !places.contains_key(place))
        .map(|place| format!("{place}: {}", text_of(&place)))
        .collect();
    let listed = |place: &String| {
        let (file, text) = (place.split(':').next(), text_of(place));
        REDUNDANT
            .iter()
            .any(|known| Some(known.file) == file && known.text == text)
    };
    let said: Vec<String> = kept
        .iter()
        .filter(|place| !listed(place))
        .map(|place| format!("{place}: {}", text_of(place)))
        .collect();
    let (all, cases) = (places.len(), cases.len());
    if all == 0 {
        return Err("no case came to a flag or barrier".into());
    }
    if said.is_empty() {
        let listed = kept.len();
        Ok(format!(
            "part {part} of {parts} of {all} flags and barriers, by {cases} cases: each is needed, but for {listed} with a reason. No case comes to: {unmet:?}"
        ))
    } else {
        let said = said.join("\n");
        Err(
            format!("part {part} of {parts} of {all} flags and barriers, by {cases} cases: nobody misses these:\n{said}")
                .into(),
        )
    }
}

/// Some case passes without the fault and fails with it.
fn planted_is_caught(fault: &Fault) -> Answer<String> {
    let bench = Bench::open()?;
    let mutant = FaultyDevice::mutated(Arc::clone(&bench.device), fault.substitution);
    let suite = Suite::new(Arc::clone(&mutant) as Arc<dyn Device>, Settings::default())?;
    let cases = bench.cases(Some(fault.cases))?;
    let queue = bench.device.create_queue(QueueKind::Compute)?;
    for case in &cases {
        if let Some(findings) = bench.findings(case, "")? {
            return Err(format!("{} fails without the fault: {findings}", case.id).into());
        }
        let Status::Failed(findings) = suite.case(&*queue, case).status else {
            continue;
        };
        let findings = findings.join("\n");
        if findings.contains("compile failed") {
            return Err(format!("the fault is no kernel: {findings}").into());
        }
        let reports = std::fs::read_to_string(shared("report")).unwrap_or_default();
        let all = format!("{findings}\n{reports}");
        return match fault.says.iter().any(|words| all.contains(words)) {
            true => Ok(format!("{}: caught by {}: {all}", fault.name, case.id)),
            false => Err(format!("reported as something else than {:?}: {all}", fault.says).into()),
        };
    }
    Err(match mutant.substituted.load(Ordering::Relaxed) {
        0 => format!("no case under {:?} compiles the file", fault.cases),
        _ => format!("none of {} cases caught it", cases.len()),
    }
    .into())
}
