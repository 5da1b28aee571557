//! Planted faults: a driver that hangs, crashes or miscompiles at certain configurations, in the worker of the test program only.

// `Device` declares unsafe functions, which a device that wraps another has to forward.
#![allow(unsafe_code)]

use std::any::Any;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use ropeway::Registry;
use ropeway_core::device::{
    Device, Driver, Graph, Module, OpenOptions, PinnedBuffer, Queue, QueueKind, Unavailable,
};
use ropeway_core::info::{DeviceInfo, MemoryUse};
use ropeway_core::kernel::{Config, Source};
use ropeway_core::memory::{Buffer, DeviceId};
use ropeway_core::plan::BoundPlan;
use ropeway_core::{ErrorKind, Result};

use super::child::{Children, Launcher};
use super::journal::{Described, Header, Journal};
use super::report::Progress;
use super::search::{Search, Settings};
use super::space::Space;
use super::strategy::Choice;
use super::{Measurer, Outcome, Point, Stage, Target, form, worker};

/// The configurations of `gemm_packed` that are planted: its KC, and what each MR then does.
const KC: i64 = 192;
const HANGS: i64 = 4;
const CRASHES: i64 = 6;
const MISCOMPILED: i64 = 12;

struct PlantedDriver;

impl Driver for PlantedDriver {
    fn name(&self) -> &'static str {
        "planted"
    }

    fn probe(&self) -> std::result::Result<Vec<DeviceInfo>, Unavailable> {
        Ok(Vec::new())
    }

    fn open(&self, _: usize, _: &OpenOptions) -> Result<Arc<dyn Device>> {
        Ok(Arc::new(Planted(Registry::default().open("opencl")?)))
    }
}

struct Planted(Arc<dyn Device>);

impl Device for Planted {
    fn id(&self) -> DeviceId {
        self.0.id()
    }

    fn info(&self) -> &DeviceInfo {
        self.0.info()
    }

    fn memory(&self) -> Result<MemoryUse> {
        self.0.memory()
    }

    fn alloc(&self, bytes: u64) -> Result<Buffer> {
        self.0.alloc(bytes)
    }

    fn alloc_pinned(&self, bytes: u64) -> Result<PinnedBuffer> {
        self.0.alloc_pinned(bytes)
    }

    fn create_queue(&self, kind: QueueKind) -> Result<Arc<dyn Queue>> {
        self.0.create_queue(kind)
    }

    fn compile(&self, source: &'static Source, config: &Config) -> Result<Arc<dyn Module>> {
        let mut config = config.clone();
        if config.get("KC") == Some(KC) {
            match config.get("MR") {
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
            }
        }
        self.0.compile(source, &config)
    }

    unsafe fn import_memory(
        &self,
        handle: *mut c_void,
        bytes: u64,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Buffer> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.0.import_memory(handle, bytes, owner) }
    }

    unsafe fn import_queue(
        &self,
        handle: *mut c_void,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Arc<dyn Queue>> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.0.import_queue(handle, owner) }
    }

    fn instantiate(&self, plans: Vec<BoundPlan>) -> Result<Arc<dyn Graph>> {
        self.0.instantiate(plans)
    }
}

/// The child of the tests below: this program, which runs this one test and is spoken to by its pipes.
#[test]
#[ignore = "the child process of other tests"]
fn serve_with_faults() {
    let mut registry = Registry::default();
    registry.add(Box::new(PlantedDriver));
    worker::serve(&registry, "planted").unwrap();
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
            eprintln!("not tested, no OpenCL device: {error}");
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
        simulated: false,
    };
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(&folder.path().join("journal"), header(), false).unwrap();
    let progress = Progress::new(true);
    let launcher = launcher("tune::planted::serve_with_faults");
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
    let mut children = Children::new(
        launcher("tune::planted::serve_nothing"),
        Duration::from_secs(5),
    );
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
