//! Runs the cases of a device and counts what came of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use ropeway_core::Result;
use ropeway_core::device::{Device, Queue, QueueKind};
use ropeway_core::spec::Recipe;

use crate::cases::{Body, Case, Selection};
use crate::expectations::Expectations;
use crate::generate::Generated;
use crate::ops::{self, Posed, Subject, Variant};
use crate::report::{DeviceReport, Outcome, Status};
use crate::saved::{self, Saved};
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

/// The suite on one device.
pub struct Suite {
    subject: Subject,
    expectations: Expectations,
    settings: Settings,
}

impl Suite {
    /// On this device, with the expectations that ship for its backend.
    ///
    /// # Errors
    /// If the expectations do not parse.
    pub fn new(device: Arc<dyn Device>, settings: Settings) -> Result<Suite> {
        let info = device.info();
        Ok(Suite {
            expectations: Expectations::of(info.backend, &info.name)?,
            subject: Subject::new(device),
            settings,
        })
    }

    /// Runs one case and holds its verdict against the expectations. `queue` is for op cases; device tests make their own.
    pub fn case(&self, queue: &dyn Queue, case: &Case) -> Outcome {
        let started = Instant::now();
        let (verdict, failing) = match &case.body {
            Body::Device(test) => (test.check(self.subject.device()), None),
            Body::Saved(saved) => (self.saved(queue, saved), None),
            Body::Fixed { recipe, variant } => {
                let thorough = variant.kernel.is_none();
                let verdict = self.attempt(queue, recipe, variant, thorough);
                (verdict, Some(((**recipe).clone(), variant)))
            }
            Body::Generated {
                kind,
                seed,
                variant,
            } => match Generated::new(*kind, *seed) {
                Err(error) => (Verdict::Failed(vec![error.to_string()]), None),
                Ok(generated) => {
                    let attempt = |recipe: &Recipe| self.attempt(queue, recipe, variant, true);
                    match attempt(&generated.recipe()) {
                        Verdict::Failed(findings) => {
                            let (verdict, smallest) = shrink(generated, findings, attempt);
                            (verdict, Some((smallest, variant)))
                        }
                        other => (other, None),
                    }
                }
            },
        };
        let saved = match (&verdict, failing, &self.settings.save) {
            (Verdict::Failed(_), Some((recipe, variant)), Some(folder)) => {
                Some(saved::save(&recipe, variant, &case.id, folder))
            }
            _ => None,
        };
        let judged = self.expectations.judge(&case.id, verdict);
        let mut outcome = Outcome::new(&case.id, judged, started.elapsed());
        match saved {
            Some(Ok(path)) => outcome.saved = Some(path),
            Some(Err(error)) => outcome.notes.push(format!("could not be saved: {error}")),
            None => {}
        }
        outcome
    }

    fn attempt(
        &self,
        queue: &dyn Queue,
        recipe: &Recipe,
        variant: &Variant,
        thorough: bool,
    ) -> Verdict {
        caught(|| ops::check(&self.subject, queue, recipe, variant, thorough))
    }

    fn saved(&self, queue: &dyn Queue, saved: &Saved) -> Verdict {
        caught(|| match saved.pose() {
            Posed::Settled(verdict) => verdict,
            Posed::Problem(problem) => {
                ops::check_problem(&self.subject, queue, &problem, &saved.variant, true)
            }
        })
    }

    /// Runs cases: device tests one after the other, since they count memory and time, then op cases on several queues at once.
    /// `observe` is told of each outcome as it comes.
    ///
    /// # Errors
    /// If a queue cannot be made. What goes wrong in a case is its verdict.
    pub fn run(&self, cases: &[Case], mut observe: impl FnMut(&Outcome)) -> Result<DeviceReport> {
        let begin = Instant::now();
        let device = self.subject.device();
        let mut outcomes: Vec<Option<Outcome>> = Vec::new();
        outcomes.resize_with(cases.len(), || None);
        // One job is the calling thread: a driver that watches every access may know no other (oclgrind 21.10).
        let (alone, beside): (Vec<usize>, Vec<usize>) = (0..cases.len()).partition(|&number| {
            self.settings.jobs <= 1 || matches!(cases[number].body, Body::Device(_))
        });

        let jobs = self.settings.jobs.clamp(1, beside.len().max(1));
        let queue = device.create_queue(QueueKind::Compute)?;
        for number in alone {
            let outcome = self.case(&*queue, &cases[number]);
            observe(&outcome);
            outcomes[number] = Some(outcome);
        }
        drop(queue);
        let queues = (0..jobs)
            .map(|_| device.create_queue(QueueKind::Compute))
            .collect::<Result<Vec<_>>>()?;
        let next = AtomicUsize::new(0);
        let (send, receive) = mpsc::channel();
        std::thread::scope(|scope| {
            for queue in &queues {
                let (send, next, beside) = (send.clone(), &next, &beside);
                scope.spawn(move || {
                    while let Some(&number) = beside.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let outcome = self.case(&**queue, &cases[number]);
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
        let outcomes: Vec<Outcome> = outcomes.into_iter().flatten().collect();
        Ok(DeviceReport {
            info: device.info().clone(),
            seed: self.settings.seed,
            unmatched: self.unmatched(&outcomes),
            outcomes,
            seconds: begin.elapsed().as_secs_f64(),
        })
    }

    /// Entries of the expectations that no case of a complete run matches.
    fn unmatched(&self, outcomes: &[Outcome]) -> Vec<String> {
        if !self.settings.complete {
            return Vec::new();
        }
        self.expectations.unmatched(outcomes.iter().map(|outcome| {
            let said = match &outcome.status {
                Status::Skipped(said) => Some(said.as_str()),
                _ => None,
            };
            (outcome.id.as_str(), said)
        }))
    }
}

/// Makes a failing case as small as it goes. The findings are those of the small one, after those of the original.
fn shrink(
    generated: Generated,
    mut findings: Vec<String>,
    attempt: impl Fn(&Recipe) -> Verdict,
) -> (Verdict, Recipe) {
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
    (Verdict::Failed(findings), smallest)
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
