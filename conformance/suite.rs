//! Runs the cases of a device and counts what came of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ropeway_core::Result;
use ropeway_core::device::{Device, Queue, QueueKind};
use ropeway_core::spec::Recipe;

use crate::cases::{Body, Case, Selection};
use crate::expectations::{Expectations, Judged};
use crate::generate::Generated;
use crate::ops::{self, Posed, Subject, Variant};
use crate::report::{DeviceReport, Outcome, Status};
use crate::saved;
use crate::verdict::Verdict;

/// How to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Cases of ops that run at once, each on a queue of its own.
    pub jobs: usize,
    /// Where the request files of failing cases go; `None` saves none.
    pub save: Option<PathBuf>,
    /// The seed of the run, for the report.
    pub seed: u64,
    /// Whether these are all cases of the device, so that the expectations must all match.
    pub complete: bool,
}

impl Default for Settings {
    /// A job for each core, nothing saved.
    fn default() -> Settings {
        Settings {
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
            save: None,
            seed: Selection::GATE_SEED,
            complete: false,
        }
    }
}

/// Runs `cases` on `device`; `observe` is told of each outcome as it comes.
///
/// # Errors
/// If a queue cannot be made or the expectations do not parse. What goes wrong in a case is its verdict.
pub fn run(
    device: &Arc<dyn Device>,
    cases: &[Case],
    settings: &Settings,
    mut observe: impl FnMut(&Outcome),
) -> Result<DeviceReport> {
    let begin = Instant::now();
    let info = device.info().clone();
    let expectations = Expectations::of(info.backend, &info.name)?;
    let subject = Subject::new(Arc::clone(device));
    let mut outcomes: Vec<Option<Outcome>> = Vec::new();
    outcomes.resize_with(cases.len(), || None);

    let mut op_cases = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        match &case.body {
            // Device tests count memory and time: they run alone.
            Body::Device(test) => {
                let started = Instant::now();
                let verdict = test.check(device);
                let outcome = conclude(case, verdict, started.elapsed(), &expectations, None);
                observe(&outcome);
                outcomes[number] = Some(outcome);
            }
            _ => op_cases.push(number),
        }
    }

    let jobs = settings.jobs.clamp(1, op_cases.len().max(1));
    let queues = (0..jobs)
        .map(|_| device.create_queue(QueueKind::Compute))
        .collect::<Result<Vec<_>>>()?;
    let next = AtomicUsize::new(0);
    let (send, receive) = mpsc::channel();
    std::thread::scope(|scope| {
        for queue in &queues {
            let send = send.clone();
            let (next, op_cases, subject, expectations) =
                (&next, &op_cases, &subject, &expectations);
            scope.spawn(move || {
                while let Some(&number) = op_cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome =
                        run_op_case(subject, &**queue, &cases[number], expectations, settings);
                    if send.send((number, outcome)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        for (number, outcome) in receive {
            observe(&outcome);
            outcomes[number] = Some(outcome);
        }
    });

    let outcomes: Vec<Outcome> = outcomes
        .into_iter()
        .zip(cases)
        .map(|(outcome, case)| {
            outcome.unwrap_or_else(|| {
                let died = Verdict::Failed(vec!["its thread ended without a verdict".into()]);
                Outcome::new(&case.id, Judged::AsIs(died), Duration::ZERO)
            })
        })
        .collect();
    let unmatched = match settings.complete {
        true => expectations.unmatched(outcomes.iter().map(|outcome| {
            let said = match &outcome.status {
                Status::Skipped(said) => Some(said.as_str()),
                _ => None,
            };
            (outcome.id.as_str(), said)
        })),
        false => Vec::new(),
    };
    Ok(DeviceReport {
        info,
        seed: settings.seed,
        outcomes,
        unmatched,
        seconds: begin.elapsed().as_secs_f64(),
    })
}

fn run_op_case(
    subject: &Subject,
    queue: &dyn Queue,
    case: &Case,
    expectations: &Expectations,
    settings: &Settings,
) -> Outcome {
    let started = Instant::now();
    let attempt = |recipe: &Recipe, variant: &Variant, thorough: bool| {
        caught(|| ops::check(subject, queue, recipe, variant, thorough))
    };
    let (verdict, failing, variant) = match &case.body {
        Body::Device(_) => unreachable!("device tests run before"),
        Body::Saved(saved) => {
            let verdict = caught(|| match saved.pose() {
                Posed::Settled(verdict) => verdict,
                Posed::Problem(problem) => {
                    ops::check_problem(subject, queue, &problem, &saved.variant, true)
                }
            });
            (verdict, None, &saved.variant)
        }
        Body::Fixed { recipe, variant } => {
            let verdict = attempt(recipe, variant, variant.kernel.is_none());
            (verdict, Some((**recipe).clone()), variant)
        }
        Body::Generated {
            kind,
            seed,
            variant,
        } => {
            let (verdict, failing) = match Generated::new(*kind, *seed) {
                Err(error) => (Verdict::Failed(vec![error.to_string()]), None),
                Ok(generated) => match attempt(&generated.recipe(), variant, true) {
                    Verdict::Failed(findings) => {
                        shrink(generated, findings, |recipe| attempt(recipe, variant, true))
                    }
                    other => (other, None),
                },
            };
            (verdict, failing, variant)
        }
    };
    let saved = match (&verdict, failing, &settings.save) {
        (Verdict::Failed(_), Some(recipe), Some(folder)) => {
            Some(saved::save(&recipe, variant, &case.id, folder))
        }
        _ => None,
    };
    conclude(case, verdict, started.elapsed(), expectations, saved)
}

/// Makes a failing case as small as it goes. The findings are those of the small one, after those of the original.
fn shrink(
    generated: Generated,
    mut findings: Vec<String>,
    attempt: impl Fn(&Recipe) -> Verdict,
) -> (Verdict, Option<Recipe>) {
    let mut last = Vec::new();
    let (smallest, runs) = generated.shrink(|recipe| match attempt(recipe) {
        Verdict::Failed(found) => {
            last = found;
            true
        }
        _ => false,
    });
    if !last.is_empty() {
        findings.push(format!(
            "shrunk in {runs} runs to {}",
            saved::summary(&smallest)
        ));
        findings.extend(last);
    }
    (Verdict::Failed(findings), Some(smallest))
}

/// A panic in a planner, a reference or a kernel's host code fails its case, not the run.
fn caught(check: impl FnOnce() -> Verdict) -> Verdict {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Verdict::Failed(vec![format!("panicked: {text}")])
    })
}

fn conclude(
    case: &Case,
    verdict: Verdict,
    time: Duration,
    expectations: &Expectations,
    saved: Option<Result<PathBuf>>,
) -> Outcome {
    let judged = expectations.judge(&case.id, verdict);
    let mut outcome = Outcome::new(&case.id, judged, time);
    match saved {
        Some(Ok(path)) => outcome.saved = Some(path),
        Some(Err(error)) => outcome.notes.push(format!("could not be saved: {error}")),
        None => {}
    }
    outcome
}
