//! The child's side: `ropeway tune-worker`, which compiles, checks and times one configuration after the other.
//!
//! Questions come as JSON lines on standard input, answers leave as JSON lines on standard output; what is no such line (drivers print,
//! too) is no answer. When the input ends, the process ends at once, whatever it is at: a tuner that was killed leaves no child behind.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ropeway::{PlanOptions, Registry, Session};
use ropeway_conformance::ops::{self, Posed, Problem, Subject, Variant};
use ropeway_conformance::verdict::Verdict;
use ropeway_core::device::{Device, Queue};
use ropeway_core::op::{Op, PlanRequest};
use ropeway_core::plan::BoundPlan;
use ropeway_core::request::Request;
use ropeway_core::spec::{DataClass, Recipe};
use ropeway_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::{Beside, Measurement, Outcome, Point, Stage, Target, form, space};
use crate::cmd::bench::bind;
use crate::definition::Workload;
use crate::measure::{Batches, FEWEST};
use crate::roofline::Roofline;

/// Seconds of timing for one point in the search, and in a round of the finalists.
const SEARCH: Duration = Duration::from_millis(120);
const ROUND: Duration = Duration::from_millis(200);

/// How long a device may take to come to rest after something went wrong.
const SETTLED: Duration = Duration::from_secs(10);

/// A point whose first two batches take this many times the best, or its first run the square of it, is timed no further.
const LOSES: f64 = 2.0;

/// Operations of a shape whose whole result is compared with the f64 reference for each finalist.
const WHOLE: f64 = 2.2e9;

/// Conformance cases of one variant that a finalist must pass, and the work of one.
const CASES: usize = 24;
const CASE_WORK: f64 = 4e7;

/// What a tuner asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// To make a target's inputs and the reference's answers for a stage. Its time is nobody's configuration's.
    Pose {
        /// The target.
        target: Box<Target>,
        /// What will be asked.
        stage: Stage,
    },
    /// What a point is worth.
    Point {
        /// The target.
        target: Box<Target>,
        /// The point.
        point: Point,
        /// What for.
        stage: Stage,
        /// What it is compared with on the spot.
        beside: Option<Beside>,
    },
    /// What the device can do.
    Roofline,
}

/// What a worker answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The device is open.
    Ready,
    /// It is not, or is no more: the worker ends.
    Lost(String),
    /// Inputs and reference are there.
    Posed,
    /// What came of the point.
    Outcome(Outcome),
    /// Peak and bandwidths.
    Roofline(Roofline),
    /// The question cannot be answered.
    Failed(String),
}

/// Answers questions from standard input until it ends.
///
/// # Errors
/// `File` if standard output cannot be written.
pub fn serve(registry: &Registry, selector: &str) -> Result<()> {
    let (send, questions) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin()
            .lock()
            .lines()
            .map_while(std::result::Result::ok)
        {
            if send.send(line).is_err() {
                return;
            }
        }
        // The tuner has gone: nobody waits for what is being measured.
        end_at_once();
    });
    let opened = registry.open(selector).and_then(Worker::new);
    let mut worker = match opened {
        Ok(worker) => worker,
        Err(error) => return say(&Answer::Lost(error.to_string())),
    };
    say(&Answer::Ready)?;
    for line in questions {
        let answer = match serde_json::from_str(&line) {
            Ok(question) => worker.answer(question),
            Err(error) => Answer::Failed(format!("unreadable question: {error}")),
        };
        say(&answer)?;
        if matches!(answer, Answer::Lost(_)) {
            return Ok(());
        }
    }
    Ok(())
}

/// Ends this process and, if it leads a group of its own, the compilers that a driver has started in it. No handler runs at the exit: where a
/// driver hangs, its handler would, too.
fn end_at_once() -> ! {
    #[cfg(unix)]
    {
        use rustix::process::{Signal, getpgrp, getpid, kill_current_process_group, kill_process};
        let _ = match getpgrp() == getpid() {
            true => kill_current_process_group(Signal::KILL),
            false => kill_process(getpid(), Signal::KILL),
        };
    }
    std::process::abort()
}

/// Writes an answer on a line of its own.
fn say(answer: &Answer) -> Result<()> {
    let json = serde_json::to_string(answer)
        .map_err(|error| Error::new(ErrorKind::File, error.to_string()))?;
    let mut out = std::io::stdout().lock();
    // What a driver printed last need not end in a line.
    write!(out, "\n{json}\n")?;
    Ok(out.flush()?)
}

struct Worker {
    device: Arc<dyn Device>,
    queue: Arc<dyn Queue>,
    /// What was made for the last target.
    posed: Option<PosedTarget>,
}

/// A target's problems and inputs, made once for all its points.
struct PosedTarget {
    name: String,
    request: Request,
    op: Box<dyn Op>,
    checks: Vec<Problem>,
    /// What points are timed beside.
    reference: Option<Placed>,
    /// Made when the first finalist needs them.
    cases: Option<Vec<Problem>>,
}

impl PosedTarget {
    /// What a point is held to.
    fn problems(
        &mut self,
        target: &Target,
        device: &dyn Device,
        stage: Stage,
    ) -> Result<&[Problem]> {
        if stage == Stage::Proof && self.cases.is_none() {
            self.cases = Some(cases(target, device)?);
        }
        Ok(match self.cases.as_deref() {
            Some(cases) if stage == Stage::Proof && !cases.is_empty() => cases,
            _ => &self.checks,
        })
    }
}

impl Worker {
    fn new(device: Arc<dyn Device>) -> Result<Worker> {
        let queue = device.create_queue(ropeway_core::device::QueueKind::Compute)?;
        Ok(Worker {
            device,
            queue,
            posed: None,
        })
    }

    fn answer(&mut self, question: Question) -> Answer {
        let answered = match question {
            Question::Roofline => self.roofline().map(Answer::Roofline),
            Question::Pose { target, stage } => self.pose(&target, stage).map(|()| Answer::Posed),
            Question::Point {
                target,
                point,
                stage,
                beside,
            } => self
                .point(&target, &point, stage, beside.as_ref())
                .map(Answer::Outcome),
        };
        answered.unwrap_or_else(|error| match self.survives(&error) {
            true => Answer::Outcome(Outcome::Refused(error.to_string())),
            false => Answer::Lost(error.to_string()),
        })
    }

    /// Whether the device serves other points after this one has failed so.
    fn survives(&self, error: &Error) -> bool {
        match error.kind() {
            ErrorKind::DeviceLost | ErrorKind::Timeout => false,
            // Some drivers answer every call with the first error from then on.
            ErrorKind::Driver | ErrorKind::LaunchFailed => settled(&*self.queue).is_ok(),
            _ => true,
        }
    }

    fn roofline(&self) -> Result<Roofline> {
        let session = Session::with_tuned(Arc::clone(&self.device), Box::new(()))?;
        Roofline::measure(&session)
    }

    fn point(
        &mut self,
        target: &Target,
        point: &Point,
        stage: Stage,
        beside: Option<&Beside>,
    ) -> Result<Outcome> {
        // Compiled modules die with the point: a search compiles hundreds.
        let subject = Subject::new(Arc::clone(&self.device));
        let mut worst = 0.0;
        if is_checked(stage) {
            match self.check(&subject, target, point, stage)? {
                Checked::Right(ratio) => worst = ratio,
                Checked::Wrong(findings) => return Ok(Outcome::Wrong(findings)),
            }
            if stage == Stage::Proof {
                return Ok(Outcome::Proven(worst));
            }
        }
        let budget = match stage {
            Stage::Round(_) | Stage::Elsewhere { .. } => ROUND,
            _ => SEARCH,
        };
        let mut measurement = self.time(target, point, budget, beside)?;
        measurement.error_over_bound = worst;
        Ok(Outcome::Measured(measurement))
    }

    /// Makes what a stage's points need besides themselves.
    fn pose(&mut self, target: &Target, stage: Stage) -> Result<()> {
        let posed = pose(&mut self.posed, target)?;
        if is_checked(stage) {
            for problem in posed.problems(target, &*self.device, stage)? {
                problem.reference()?;
            }
        }
        Ok(())
    }

    /// Holds the point to the target's problems.
    fn check(
        &mut self,
        subject: &Subject,
        target: &Target,
        point: &Point,
        stage: Stage,
    ) -> Result<Checked> {
        let posed = pose(&mut self.posed, target)?;
        let problems = posed.problems(target, &*self.device, stage)?;
        let config = point.config();
        let variant = Variant {
            kernel: ropeway_kernels::op(&target.workload.op)
                .and_then(|kind| ops::kernel_of(kind, &point.kernel).ok()),
            prepared: Vec::new(),
        };
        let mut worst: Option<f64> = None;
        for problem in problems {
            let request = PlanRequest {
                kernel: Some(&point.kernel),
                config: Some(&config),
                ..PlanRequest::new(self.device.info())
            };
            let plan = match problem.op.plan(&request) {
                Ok(plan) => plan,
                // A kernel for few rows, say, need not take every size.
                Err(error) if error.kind() == ErrorKind::Unsupported => continue,
                Err(error) => return Err(error),
            };
            // What does not compile is refused, not wrong.
            subject.executable(plan.clone())?;
            let queue = &*self.queue;
            match ops::check_plan(subject, queue, problem, plan, &variant, false)? {
                Verdict::Passed(pass) => {
                    worst = Some(worst.unwrap_or_default().max(pass.worst_ratio));
                }
                Verdict::Skipped(reason) => return Err(Error::unsupported(reason)),
                Verdict::Failed(findings) => return failed(queue, problem, findings),
            }
        }
        // What nothing was compared with is not known to be right.
        let worst =
            worst.ok_or_else(|| Error::unsupported("no case that it takes could be checked"))?;
        Ok(Checked::Right(worst))
    }

    fn time(
        &mut self,
        target: &Target,
        point: &Point,
        budget: Duration,
        beside: Option<&Beside>,
    ) -> Result<Measurement> {
        let posed = pose(&mut self.posed, target)?;
        if let Some(beside) = beside
            && posed
                .reference
                .as_ref()
                .is_none_or(|r| r.point != beside.reference)
        {
            posed.reference = None;
            // A reference that does not run, or does not fit beside the point, is none.
            posed.reference = Placed::new(&self.device, target, posed, &beside.reference).ok();
        }
        let placed = Placed::new(&self.device, target, posed, point)?;
        let mut own = placed.batches()?;
        let reference = posed.reference.as_ref().filter(|_| beside.is_some());
        let mut reference = reference.map(Placed::batches).transpose()?;
        let best = beside.and_then(|beside| beside.best);
        let mut measurement = Measurement {
            samples: Vec::new(),
            runs: own.runs(),
            reference: Vec::new(),
            error_over_bound: 0.0,
            stopped: false,
        };
        // What a first batch still warms up must not be the pairs' gain.
        let beside = reference.as_mut().map(|r| r.time()).transpose()?;
        // One run says little: it must lose by far.
        if let (Some(beside), Some(best)) = (beside, best)
            && own.once() > LOSES * LOSES * best * beside
        {
            measurement.samples.push(five_digits(own.once()));
            measurement.reference.push(five_digits(beside));
            measurement.runs = 1;
            measurement.stopped = true;
            return Ok(measurement);
        }
        own.time()?;
        let begin = Instant::now();
        while measurement.samples.len() < FEWEST || begin.elapsed() < budget {
            if let Some(reference) = &mut reference {
                measurement.reference.push(five_digits(reference.time()?));
            }
            measurement.samples.push(five_digits(own.time()?));
            let pairs = measurement.samples.iter().zip(&measurement.reference);
            let loses = |best: f64| pairs.filter(|(s, r)| **s > LOSES * best * **r).count();
            let lost = best.map_or(0, loses);
            if lost >= 2 && lost == measurement.samples.len() {
                measurement.stopped = true;
                break;
            }
        }
        Ok(measurement)
    }
}

/// A point with its operands on the device.
struct Placed {
    point: Point,
    session: Session,
    bound: Vec<BoundPlan>,
}

impl Placed {
    fn new(
        device: &Arc<dyn Device>,
        target: &Target,
        posed: &PosedTarget,
        point: &Point,
    ) -> Result<Placed> {
        let session = Session::with_tuned(Arc::clone(device), Box::new(()))?;
        let options = PlanOptions {
            kernel: Some(point.kernel.clone()),
            config: Some(point.config()),
            prepared: Vec::new(),
        };
        let PosedTarget { request, op, .. } = posed;
        let executable = session.plan_with(&**op, &options)?;
        let cold = target.workload.cold;
        let bound = bind(&session, &**op, request, &options, &executable, cold)?;
        Ok(Placed {
            point: point.clone(),
            session,
            bound,
        })
    }

    fn batches(&self) -> Result<Batches<impl FnMut(usize) -> Result<()>>> {
        let queue = self.session.queue();
        Batches::new(queue, move |count| {
            self.bound[count % self.bound.len()].enqueue(&**queue)
        })
    }
}

/// Whether a point's results are compared with the reference before anything else.
fn is_checked(stage: Stage) -> bool {
    matches!(stage, Stage::Search | Stage::Proof)
}

/// The target's problems, made if the last ones were another's.
fn pose<'a>(posed: &'a mut Option<PosedTarget>, target: &Target) -> Result<&'a mut PosedTarget> {
    if posed
        .as_ref()
        .is_none_or(|posed| posed.name != target.name())
    {
        // The old ones go first: both together may not fit the memory.
        *posed = None;
        let (request, op) = target.workload.request(&target.dtype)?;
        *posed = Some(PosedTarget {
            name: target.name(),
            request,
            op,
            checks: checks(target)?,
            reference: None,
            cases: None,
        });
    }
    Ok(posed.as_mut().expect("made above"))
}

/// Waits for a device to come to rest. What kernels report of values is of what ran before.
fn settled(queue: &dyn Queue) -> Result<()> {
    match queue.synchronize(Some(SETTLED)) {
        Err(error) if error.kind() == ErrorKind::DataOutOfRange => Ok(()),
        other => other,
    }
}

/// A finding, with the shapes it was made at. A lost device is no wrong result.
fn failed(queue: &dyn Queue, problem: &Problem, mut findings: Vec<String>) -> Result<Checked> {
    settled(queue)?;
    let shapes = problem
        .inputs
        .iter()
        .map(|(name, tensor)| format!("{name} {:?}", tensor.shape()));
    findings.insert(0, shapes.collect::<Vec<_>>().join(", "));
    Ok(Checked::Wrong(findings))
}

enum Checked {
    Right(f64),
    Wrong(Vec<String>),
}

/// The target's shape, made smaller, and its edges.
fn checks(target: &Target) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for workload in form::checks(&target.workload, &target.dtype)? {
        problems.push(problem(&workload, &target.dtype)?);
    }
    if problems.is_empty() {
        // Of no known form: the shape itself, at any price.
        problems.push(problem(&target.workload, &target.dtype)?);
    }
    Ok(problems)
}

fn problem(workload: &Workload, dtype: &str) -> Result<Problem> {
    let (request, op) = workload.request(dtype)?;
    let kind = ops::kind_of(&workload.op)?;
    Ok(Problem::new(
        kind,
        op,
        request.inputs,
        request.attrs,
        DataClass::Random,
    ))
}

/// What a finalist is held to: the whole shape, where its reference takes seconds, and the op's fixed conformance cases of the same dtypes
/// and layout.
fn cases(target: &Target, device: &dyn Device) -> Result<Vec<Problem>> {
    let info = device.info();
    let op = target.workload.op(&target.dtype)?;
    let variant = space::key(&*op, info)?.variant;
    let mut problems = Vec::new();
    // What is not kept would be computed anew in each configuration's time.
    let operands = op.operands();
    let outputs = operands.iter().filter(|operand| operand.output);
    let elements: u64 = outputs.map(|operand| operand.desc.layout.elements()).sum();
    if work(&*op) <= WHOLE && elements <= ops::KEPT as u64 {
        problems.push(problem(&target.workload, &target.dtype)?);
    }
    let of_variant = |recipe: &Recipe| -> Option<Problem> {
        let Posed::Problem(problem) = ops::pose(recipe) else {
            return None;
        };
        let key = space::key(&*problem.op, info).ok()?;
        (key.variant == variant && work(&*problem.op) <= CASE_WORK).then_some(problem)
    };
    let recipes = ops::kind_of(&target.workload.op)?.spec().fixed_cases();
    problems.extend(recipes.iter().filter_map(of_variant).take(CASES));
    Ok(problems)
}

/// A number rounded to five significant digits: no clock tells more, and a journal is read by people, too.
fn five_digits(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

fn work(op: &dyn Op) -> f64 {
    let cost = op.cost();
    cost.flops.max(cost.bytes)
}
