//! What people and scripts read: progress, the final table, JSON.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::search::Found;
use super::{Outcome, Point, Target};
use crate::definition::Limit;
use crate::roofline::Roofline;

/// What a run of `ropeway tune` gave.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Ropeway's version.
    pub ropeway: &'static str,
    /// The day the search began, in UTC.
    pub date: String,
    /// The device's own name.
    pub device: String,
    /// Its backend.
    pub backend: String,
    /// Its driver's version.
    pub driver: String,
    /// What executes the work.
    pub execution: String,
    /// What the device can do; `None` if it was not measured.
    pub roofline: Option<Roofline>,
    /// The strategy.
    pub strategy: super::strategy::Choice,
    /// The seed.
    pub seed: u64,
    /// One a target.
    pub targets: Vec<Found>,
    /// Targets that the device cannot run, with the reason.
    pub unsupported: Vec<(String, String)>,
    /// The table that holds the entries.
    pub table: Option<PathBuf>,
    /// The journal.
    pub journal: PathBuf,
    /// The report with plots.
    pub html: Option<PathBuf>,
}

impl Report {
    /// Whether some configuration was wrong, crashed or hung.
    pub fn has_faults(&self) -> bool {
        let mut outcomes = self.targets.iter().flat_map(|found| &found.evaluations);
        outcomes.any(|evaluation| evaluation.outcome.is_fault())
    }

    /// The share of the roofline that a time is.
    pub fn share(&self, found: &Found, seconds: f64) -> Option<f64> {
        let roofline = self.roofline?;
        Some(match found.limit {
            Limit::Compute => found.flops / seconds / 1e9 / roofline.peak_gflops,
            Limit::Read => found.bytes / seconds / 1e9 / roofline.read_gbs,
            Limit::Copy => found.bytes / seconds / 1e9 / roofline.copy_gbs,
        })
    }

    /// The table and what must be said beside it.
    pub fn to_text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header([
            "target",
            "default",
            "tuned",
            "gain",
            "of limit",
            "tried",
            "space",
            "error/bound",
            "configuration",
        ]);
        for column in 1..8 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for found in &self.targets {
            table.add_row(self.row(found));
        }
        for (target, reason) in &self.unsupported {
            table.add_row([target.clone(), format!("unsupported: {reason}")]);
        }
        let mut text = format!(
            "{} through {} ({}), {:?} search, seed {}\n\n{table}\n",
            self.device, self.backend, self.execution, self.strategy, self.seed
        );
        text += &self.faults();
        if let Some(path) = &self.table {
            text += &format!("\nentries: {}", path.display());
        }
        text += &format!("\njournal: {}", self.journal.display());
        if let Some(path) = &self.html {
            text += &format!("\nreport:  {}", path.display());
        }
        text
    }

    fn row(&self, found: &Found) -> Vec<String> {
        let time = found.time();
        let seconds = |summary: super::gate::Summary| {
            let percent = 100.0 * summary.deviation / summary.seconds;
            format!("{} ±{percent:.1} %", microseconds(summary.seconds))
        };
        let (gain, what) = match (&found.winner, found.default_time) {
            (Some(winner), Some(default)) => {
                let gain = default.seconds / winner.time.seconds;
                (format!("{gain:.2}×"), winner.point.to_string())
            }
            (None, Some(_)) => ("none".into(), format!("{} (default)", found.default)),
            _ => (
                "".into(),
                "the default fails: nothing to compare with".into(),
            ),
        };
        let ratio = found
            .entry
            .as_ref()
            .and_then(|entry| entry.measured.as_ref());
        vec![
            found.target.clone(),
            found.default_time.map_or("failed".into(), seconds),
            time.map_or(String::new(), seconds),
            gain,
            time.and_then(|time| self.share(found, time.seconds))
                .map_or(String::new(), |share| format!("{:.1} %", 100.0 * share)),
            match found.out_of_time {
                true => format!("{}, out of time", found.evaluations.len()),
                false => found.evaluations.len().to_string(),
            },
            found.points.to_string(),
            ratio.map_or(String::new(), |m| format!("{:.3}", m.error_over_bound)),
            what,
        ]
    }

    /// Configurations that are wrong, crashed or hung, each a fault of a kernel or a driver that somebody should know of; and those that
    /// were refused, by reason.
    fn faults(&self) -> String {
        let mut text = String::new();
        for found in &self.targets {
            for (point, findings) in found.wrong() {
                text += &format!("\nWRONG {}: {point}: {}", found.target, findings.join("; "));
            }
            for evaluation in &found.evaluations {
                let what = match &evaluation.outcome {
                    Outcome::Crashed(said) => format!("crashed: {said}"),
                    Outcome::TimedOut(limit) => format!("no answer within {limit} s"),
                    _ => continue,
                };
                text += &format!("\nFAULT {}: {}: {what}", found.target, evaluation.point);
            }
        }
        for found in &self.targets {
            for (reason, points) in found.refused() {
                let first = points[0];
                let others = match points.len() {
                    1 => String::new(),
                    count => format!(" and {} more", count - 1),
                };
                text += &format!("\nREFUSED {}: {first}{others}: {reason}", found.target);
            }
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text
    }
}

/// A time as people compare it.
pub fn microseconds(seconds: f64) -> String {
    match seconds {
        s if s < 1e-2 => format!("{:.1} us", s * 1e6),
        s => format!("{:.2} ms", s * 1e3),
    }
}

/// Where the search of a target is.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// The least time known.
    pub best: Option<f64>,
    /// Whether the last point gave it.
    pub news: bool,
    /// The problem's operations.
    pub flops: f64,
    /// Seconds left, if they are counted.
    pub left: Option<f64>,
}

/// A bar on a terminal, lines elsewhere.
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
}

impl Progress {
    /// On standard error; nothing if `quiet`.
    pub fn new(quiet: bool) -> Progress {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template(
                "{prefix} [{bar:24}] {pos}/{len} {elapsed_precise}\n  {wide_msg}",
            );
            let bar = ProgressBar::no_length();
            bar.set_style(style.expect("a valid template").progress_chars("=> "));
            bar.set_message("measuring what the device can do");
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        Progress { bar, quiet }
    }

    /// A target begins, of which so many are left, itself included.
    pub fn target(&self, name: &str, left: usize, points: usize) {
        match &self.bar {
            Some(bar) => {
                bar.reset();
                bar.set_length(points as u64);
                bar.set_prefix(match left {
                    0 | 1 => name.to_owned(),
                    left => format!("{name} and {} more", left - 1),
                });
                bar.set_message("the default");
            }
            None => self.line(format_args!("{name}: up to {points} configurations")),
        }
    }

    /// A point was tried.
    pub fn evaluated(&self, target: &Target, point: &Point, outcome: &Outcome, state: &State) {
        let State {
            best,
            news,
            flops,
            left,
        } = *state;
        let of_best = best.map_or("nothing yet".into(), |best| {
            format!(
                "best {} ({:.1} GFLOP/s)",
                microseconds(best),
                flops / best / 1e9
            )
        });
        let left = left.map_or(String::new(), |left| {
            format!(", {:.0} s left", left.max(0.0))
        });
        if let Some(bar) = &self.bar {
            bar.inc(1);
            bar.set_message(format!("{of_best}{left}; {point}"));
        }
        let what = match outcome {
            Outcome::Measured(_) if news => format!("{of_best}{left}"),
            Outcome::Measured(_) | Outcome::Proven(_) | Outcome::Refused(_) => return,
            Outcome::Wrong(findings) => format!("WRONG: {}", findings.join("; ")),
            Outcome::Crashed(said) => format!("crashed: {said}"),
            Outcome::TimedOut(limit) => format!("no answer within {limit} s"),
        };
        let is_news = !matches!(outcome, Outcome::Measured(_));
        match &self.bar {
            Some(bar) if is_news => bar.println(format!("{}: {point}: {what}", target.name())),
            Some(_) => {}
            None => self.line(format_args!("{}: {point}: {what}", target.name())),
        }
    }

    /// A finalist is held to the conformance cases.
    pub fn proving(&self, target: &Target, point: &Point) {
        match &self.bar {
            Some(bar) => bar.set_message(format!("checking {point}")),
            None => self.line(format_args!("{}: checking {point}", target.name())),
        }
    }

    /// So many points of the search are measured again.
    pub fn again(&self, target: &Target, points: usize) {
        match &self.bar {
            Some(bar) => bar.set_message(format!("{points} once more")),
            None => self.line(format_args!("{}: {points} once more", target.name())),
        }
    }

    /// Rounds of so many points begin.
    pub fn rounds(&self, target: &Target, points: usize, rounds: usize) {
        let text = format!("{points} in turn, {rounds} rounds");
        match &self.bar {
            Some(bar) => bar.set_message(text),
            None => self.line(format_args!("{}: {text}", target.name())),
        }
    }

    /// Rounds at another place of the bucket begin.
    pub fn elsewhere(&self, target: &Target, place: usize, places: usize) {
        match &self.bar {
            Some(bar) => bar.set_message(format!("elsewhere in its bucket, {place} of {places}")),
            None if place == 1 => {
                self.line(format_args!("{}: elsewhere in its bucket", target.name()));
            }
            None => {}
        }
    }

    /// Something to say beside the bar.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => self.line(format_args!("{text}")),
        }
    }

    fn line(&self, text: std::fmt::Arguments<'_>) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
