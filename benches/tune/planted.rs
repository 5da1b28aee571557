//! Planted faults: a driver that hangs, crashes or miscompiles at certain configurations, in the worker of the test program only.

// A handler at the exit can be had of the C library alone.
#![allow(unsafe_code)]

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ropeway::Registry;
use ropeway_core::device::{Device, Driver, OpenOptions, Unavailable};
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::Config;
use ropeway_core::{Error, ErrorKind, Result};

use super::child::{Children, Launcher};
use super::journal::{Described, Header, Journal};
use super::report::Progress;
use super::search::{Search, Settings};
use super::space::Space;
use super::strategy::Choice;
use super::worker::{Answer, Question};
use super::{Measurement, Measurer, Outcome, Point, Stage, Target, form, worker};
use crate::wrapped::Wrapped;

/// The configurations of `gemm_packed` that are planted: its KC, and what each MR then does.
const KC: i64 = 192;
const HANGS: i64 = 4;
const CRASHES: i64 = 6;
const MISCOMPILED: i64 = 12;

/// What a device does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// What the configurations above do, on OpenCL.
    Configurations,
    /// The others on the cpu device, whatever is compiled. It never returns, has started a compiler, and would not return from a handler
    /// at the exit either.
    Hangs,
    /// It has started a compiler, and crashes.
    Crashes,
    /// From the first compilation on, no allocation succeeds, for this reason.
    Allocates(ErrorKind),
}

const FAULTS: [Fault; 6] = [
    Fault::Configurations,
    Fault::Hangs,
    Fault::Crashes,
    Fault::Allocates(ErrorKind::OutOfMemory),
    Fault::Allocates(ErrorKind::Driver),
    Fault::Allocates(ErrorKind::DeviceLost),
];

/// The environment variable that names the file of process numbers: the worker's and its compiler's.
const PROCESSES: &str = "ROPEWAY_PLANTED_PROCESSES";

/// Starts a process that lasts, as drivers start compilers, and writes down who is there.
#[allow(
    clippy::zombie_processes,
    reason = "it outlives whoever started it, if nobody ends it"
)]
fn start_compiler() {
    let Some(path) = std::env::var_os(PROCESSES) else {
        return;
    };
    let compiler = Command::new("sleep").arg("3600").spawn().unwrap();
    let text = format!("{} {}\n", std::process::id(), compiler.id());
    std::fs::write(path, text).unwrap();
}

unsafe extern "C" {
    fn atexit(handler: extern "C" fn()) -> i32;
}

extern "C" fn never_return() {
    std::thread::sleep(Duration::from_secs(3600));
}

impl Fault {
    fn compiles(self, config: &mut Config) {
        match self {
            Fault::Hangs => {
                // SAFETY: the handler is a function that lives as long as the program.
                unsafe { atexit(never_return) };
                start_compiler();
                never_return();
            }
            Fault::Crashes => {
                start_compiler();
                std::process::abort();
            }
            Fault::Configurations if config.get("KC") == Some(KC) => match config.get("MR") {
                Some(HANGS) => std::thread::sleep(Duration::from_secs(3600)),
                Some(CRASHES) => {
                    eprintln!("the driver's last words");
                    std::process::abort();
                }
                // Tiles of fewer rows than the launch is made for: less work, and rows that are never written.
                Some(MISCOMPILED) => {
                    config.set("MR", 8);
                }
                _ => {}
            },
            Fault::Configurations | Fault::Allocates(_) => {}
        }
    }
}

struct PlantedDriver;

impl Driver for PlantedDriver {
    fn name(&self) -> &'static str {
        "planted"
    }

    fn probe(&self) -> std::result::Result<Vec<DeviceInfo>, Unavailable> {
        Ok(Vec::new())
    }

    fn open(&self, ordinal: usize, _: &OpenOptions) -> Result<Arc<dyn Device>> {
        let fault = FAULTS[ordinal];
        let device = match fault {
            Fault::Configurations => "opencl",
            _ => "cpu",
        };
        let compiled = Arc::new(AtomicBool::new(false));
        let seen = compiled.clone();
        Ok(Arc::new(Wrapped {
            device: Registry::default().open(device)?,
            compiling: Box::new(move |config| {
                seen.store(true, Ordering::Relaxed);
                fault.compiles(config);
            }),
            allocating: Box::new(move || match fault {
                Fault::Allocates(kind) if compiled.load(Ordering::Relaxed) => {
                    Err(Error::new(kind, "planted"))
                }
                _ => Ok(()),
            }),
        }))
    }
}

/// The children of the tests below: this program, which runs one of these tests and is spoken to by its pipes.
fn serve(ordinal: usize) {
    let mut registry = Registry::default();
    registry.add(Box::new(PlantedDriver));
    worker::serve(&registry, &format!("planted:{ordinal}")).unwrap();
}

/// A test for each child, and its name.
macro_rules! children {
    ($($name:ident: $serve:expr;)*) => { $(
        #[test]
        #[ignore = "the child process of other tests"]
        fn $name() {
            $serve
        }
    )* };
}

children! {
    serve_with_faults: serve(0);
    serve_hanging: serve(1);
    serve_crashing: serve(2);
    serve_out_of_memory: serve(3);
    serve_with_a_failing_driver: serve(4);
    serve_a_lost_device: serve(5);
    tune_with_a_hanging_worker: drop(measured("serve_hanging", Duration::from_secs(600)));
    answer_slowly: answer(|question, _| match question {
        Question::Pose { .. } => {
            std::thread::sleep(Duration::from_secs(3));
            Answer::Posed
        }
        _ => Answer::Outcome(Outcome::Measured(measurement(vec![1e-3]))),
    });
    answer_nonsense: answer(|question, number| match (question, number) {
        (Question::Pose { .. }, _) => Answer::Posed,
        (_, 1) => Answer::Outcome(Outcome::Measured(measurement(vec![1e-3]))),
        (_, 2) => Answer::Outcome(Outcome::Measured(measurement(Vec::new()))),
        _ => Answer::Outcome(Outcome::Proven(0.5)),
    });
}

/// A worker without a device: answers by the question and its number.
fn answer(answer: impl Fn(Question, usize) -> Answer) {
    let say = |answer| println!("\n{}", serde_json::to_string(&answer).unwrap());
    say(Answer::Ready);
    for (number, line) in std::io::stdin().lines().enumerate() {
        say(answer(
            serde_json::from_str(&line.unwrap()).unwrap(),
            number,
        ));
    }
}

fn measurement(samples: Vec<f64>) -> Measurement {
    Measurement {
        samples,
        runs: 1,
        reference: Vec::new(),
        error_over_bound: 0.5,
        stopped: false,
    }
}

/// A child's full name as a test.
fn child(name: &str) -> String {
    format!("tune::planted::{name}")
}

/// What comes of the cpu device's one point, and the workers that it took.
fn measured(name: &str, limit: Duration) -> (Outcome, usize) {
    let mut children = Children::new(launcher(&child(name)), limit);
    let outcome = children.measure(&target(), &native(), Stage::Search, None);
    (outcome.unwrap(), children.started)
}

fn native() -> Point {
    Point {
        kernel: "gemm_native".into(),
        config: [].into(),
    }
}

fn launcher(test: &str) -> Launcher {
    Launcher {
        program: std::env::current_exe().unwrap(),
        args: [
            test,
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ]
        .map(Into::into)
        .into(),
    }
}

fn target() -> Target {
    Target {
        workload: form::workload("gemm", "m=96 n=96 k=384", "F32").unwrap(),
        dtype: "F32".into(),
    }
}

fn header() -> Header {
    Header {
        ropeway_tune: Header::FORMAT,
        device: "planted".into(),
        backend: "opencl".into(),
        driver: String::new(),
        compiler: String::new(),
        ropeway: String::new(),
        seed: 1,
        strategy: Choice::Exhaustive,
        task: String::new(),
        date: "2026-01-31".into(),
    }
}

#[test]
fn a_wrong_a_hanging_and_a_crashing_configuration_cost_only_themselves() {
    let device = match Registry::default().open("opencl") {
        Ok(device) => device,
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            println!("skipped: no OpenCL device: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let target = target();
    let op = target.workload.op("F32").unwrap();
    let mut space = Space::new(&*op, device.info(), 1).unwrap();
    let default = space.points[space.default].clone();
    space.points.retain(|point| {
        let value = |name: &str| point.config.get(name).copied();
        let planted = value("KC") == Some(KC) && value("STRIPS") == Some(8);
        planted || *point == default
    });
    let position = |point: &Point| space.points.iter().position(|p| p == point);
    space.default = position(&default).expect("kept");
    assert_eq!(space.points.len(), 5, "{:?}", space.points);
    let described = Described {
        target,
        space,
        work: [1e6, 1e6],
    };
    let settings = Settings {
        strategy: Choice::Exhaustive,
        seed: 1,
        evaluations: None,
        budget: None,
        passes: 1,
        along: false,
        simulated: false,
    };
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(&folder.path().join("journal"), header(), false).unwrap();
    let progress = Progress::new(true);
    let launcher = launcher(&child("serve_with_faults"));
    let mut children = Children::new(launcher, Duration::from_secs(20));
    let found = Search::new(&settings, &mut children, &mut journal, &progress)
        .tune(&described, 1)
        .unwrap();

    let outcome = |mr: i64| {
        let of_mr = |p: &Point| p.config["KC"] == KC && p.config["MR"] == mr;
        let mut evaluations = found.evaluations.iter();
        &evaluations
            .find(|e| of_mr(&e.point))
            .expect("tried")
            .outcome
    };
    assert_eq!(*outcome(HANGS), Outcome::TimedOut(20.0));
    let Outcome::Crashed(said) = outcome(CRASHES) else {
        panic!("{:?}", outcome(CRASHES));
    };
    assert!(
        said.contains("last words") && said.contains("signal"),
        "{said}"
    );
    let Outcome::Wrong(findings) = outcome(MISCOMPILED) else {
        panic!("{:?}", outcome(MISCOMPILED));
    };
    assert!(findings.len() > 1, "{findings:?}");
    assert!(
        matches!(outcome(8), Outcome::Measured(_)),
        "{:?}",
        outcome(8)
    );
    assert_eq!(
        children.started, 3,
        "one worker, and one after each that was lost"
    );

    let [(wrong, _)] = found.wrong().collect::<Vec<_>>()[..] else {
        panic!("one is wrong")
    };
    assert_eq!(wrong.config["MR"], MISCOMPILED);
    let entry = found.entry.expect("the default or the one that is right");
    assert!([8].contains(&entry.config["MR"]), "{entry:?}");
    assert!(entry.measured.unwrap().error_over_bound <= 1.0);
}

/// The child of the next test: no worker at all.
#[test]
#[ignore = "the child process of other tests"]
fn serve_nothing() {
    eprintln!("no such device here");
    std::process::exit(3);
}

#[test]
fn a_worker_that_never_opens_the_device_ends_the_search_with_its_reason() {
    let mut children = Children::new(launcher(&child("serve_nothing")), Duration::from_secs(5));
    let point = Point {
        kernel: "gemm_packed".into(),
        config: [].into(),
    };
    let error = children
        .measure(&target(), &point, Stage::Search, None)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("no such device here"), "{error}");
}

#[test]
fn what_keeps_a_result_from_being_judged_is_no_wrong_result() {
    let outcome = |name| measured(name, Duration::from_secs(60)).0;
    let refused = |text: &str| Outcome::Refused(text.into());
    assert_eq!(
        outcome("serve_out_of_memory"),
        refused("out of memory: planted")
    );
    assert_eq!(
        outcome("serve_with_a_failing_driver"),
        refused("driver error: planted")
    );
    let lost = Outcome::Crashed("device lost: planted".into());
    assert_eq!(outcome("serve_a_lost_device"), lost);
}

#[test]
fn the_limit_of_a_configuration_does_not_count_its_inputs_and_reference() {
    let (outcome, _) = measured("answer_slowly", Duration::from_secs(1));
    assert_eq!(outcome, Outcome::Measured(measurement(vec![1e-3])));
}

#[test]
fn a_worker_that_answers_what_cannot_be_is_replaced() {
    let limit = Duration::from_secs(10);
    let mut children = Children::new(launcher(&child("answer_nonsense")), limit);
    let mut ask = |stage| {
        let outcome = children.measure(&target(), &native(), stage, None);
        (outcome.unwrap(), children.started)
    };
    let right = Outcome::Measured(measurement(vec![1e-3]));
    assert_eq!(ask(Stage::Search), (right.clone(), 1));
    let (outcome, _) = ask(Stage::Search);
    assert!(
        matches!(&outcome, Outcome::Crashed(why) if why.contains("a time of no runs")),
        "{outcome:?}"
    );
    assert_eq!(ask(Stage::Round(0)), (right, 2));
    let _ = ask(Stage::Round(0));
    assert_eq!(ask(Stage::Round(0)).1, 3);
}

/// Processes: whether they go, and go soon.
#[cfg(target_os = "linux")]
mod processes {
    use std::path::Path;
    use std::time::Instant;

    use super::*;

    fn is_there(process: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"));
        // What nobody has taken the status of is no more, too.
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }

    /// The processes that a file names, once it does.
    fn processes(path: &Path) -> Vec<String> {
        let begin = Instant::now();
        loop {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if text.ends_with('\n') {
                return text.split_whitespace().map(Into::into).collect();
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "nothing started");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn assert_gone_within(seconds: u64, processes: &[String]) {
        let begin = Instant::now();
        while processes.iter().any(|process| is_there(process)) {
            let took = begin.elapsed();
            assert!(took < Duration::from_secs(seconds), "{processes:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A launcher whose worker writes down its processes.
    fn noting(name: &str, path: &Path) -> Launcher {
        let Launcher { program, args } = launcher(&child(name));
        let variable = format!("{PROCESSES}={}", path.display());
        Launcher {
            program: "env".into(),
            args: [variable.into(), program.into()]
                .into_iter()
                .chain(args)
                .collect(),
        }
    }

    #[test]
    fn a_worker_that_a_driver_holds_ends_with_its_tuner_that_was_killed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("processes");
        let Launcher { program, args } = launcher(&child("tune_with_a_hanging_worker"));
        let mut tuner = Command::new(program)
            .args(args)
            .env(PROCESSES, &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let started = processes(&path);
        assert!(started.len() == 2 && started.iter().all(|process| is_there(process)));
        tuner.kill().unwrap();
        tuner.wait().unwrap();
        assert_gone_within(2, &started);
    }

    #[test]
    fn with_a_worker_ends_what_it_has_started() {
        for name in ["serve_hanging", "serve_crashing"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("processes");
            let mut children = Children::new(noting(name, &path), Duration::from_secs(5));
            let begin = Instant::now();
            let outcome = children
                .measure(&target(), &native(), Stage::Search, None)
                .unwrap();
            let took = begin.elapsed();
            match name {
                "serve_hanging" => assert_eq!(outcome, Outcome::TimedOut(5.0)),
                // The compiler holds the worker's output open; its death shows all the same.
                _ => assert!(
                    matches!(&outcome, Outcome::Crashed(how) if how.contains("signal"))
                        && took < Duration::from_secs(4),
                    "{outcome:?} after {took:?}"
                ),
            }
            assert_gone_within(1, &processes(&path));
        }
    }
}
