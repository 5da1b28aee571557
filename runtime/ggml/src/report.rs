//! What ran on Ropeway, what was declined and why: printed when a stream ends, with `GGML_ROPEWAY_REPORT=1`; with `GGML_ROPEWAY_REPORT=time`
//! also how long each kind of node took on the device.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::tensor::Tensor;

/// What the report shall say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Nothing,
    Counts,
    Times,
}

static WANTED: LazyLock<Wanted> = LazyLock::new(|| {
    let value = std::env::var_os("GGML_ROPEWAY_REPORT").unwrap_or_default();
    match value.to_str() {
        Some("" | "0") => Wanted::Nothing,
        Some("time") => Wanted::Times,
        _ => Wanted::Counts,
    }
});

/// Names of nodes that are listed for a reason; further ones are counted.
const LISTED: usize = 4;

#[derive(Default)]
struct Report {
    graphs: u64,
    host: Duration,
    ran: BTreeMap<&'static str, u64>,
    /// Nodes and their time on the device, by what [`label`] says of them.
    timed: BTreeMap<String, (u64, Duration)>,
    /// By operation and reason: the names of the nodes, which differ within a graph.
    declined: BTreeMap<(&'static str, String), BTreeSet<String>>,
}

static REPORT: Mutex<Option<Report>> = Mutex::new(None);

fn report() -> MutexGuard<'static, Option<Report>> {
    REPORT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a node that is left to another backend.
pub fn declined(node: Tensor<'_>, reason: &str) {
    if *WANTED != Wanted::Nothing {
        let mut report = report();
        let reasons = &mut report.get_or_insert_default().declined;
        let key = (node.operation_name(), reason.to_owned());
        reasons.entry(key).or_default().insert(node.name());
    }
}

/// Counts the nodes of a graph that were enqueued, and the time of the host that it took.
pub fn ran(nodes: impl Iterator<Item = &'static str>, host: Duration) {
    if *WANTED != Wanted::Nothing {
        let mut report = report();
        let report = report.get_or_insert_default();
        report.graphs += 1;
        report.host += host;
        for name in nodes {
            *report.ran.entry(name).or_default() += 1;
        }
    }
}

/// Whether anybody wants to know.
pub fn wanted() -> bool {
    *WANTED != Wanted::Nothing
}

/// Whether nodes shall be timed, which costs an event for each.
pub fn times_wanted() -> bool {
    *WANTED == Wanted::Times
}

/// Adds the time on the device of a node.
pub fn took(label: String, time: Duration) {
    let mut report = report();
    let timed = &mut report.get_or_insert_default().timed;
    let (count, total) = timed.entry(label).or_default();
    *count += 1;
    *total += time;
}

/// What nodes have in common that are timed together: the operation, and of products the weights and the number of rows.
pub fn label(node: Tensor<'_>) -> String {
    let name = node.operation_name();
    match (node.src(0), node.src(1)) {
        (Some(weights), Some(x)) if name.starts_with("MUL_MAT") => {
            let [k, n, ..] = weights.ne();
            let [_, rows, more, _] = x.ne();
            format!(
                "{name} {} {k} x {n}, {} rows",
                weights.type_name(),
                rows * more
            )
        }
        _ => name.to_owned(),
    }
}

/// Prints what has been counted since the last call.
pub fn print(device: &str) {
    let Some(report) = report().take() else {
        return;
    };
    let nodes: u64 = report.ran.values().sum();
    let each = report.host.as_secs_f64() * 1e6 / nodes.max(1) as f64;
    let mut text = format!(
        "ropeway report, {device}: {nodes} nodes ran in {} graphs, {each:.2} us of the host each\n",
        report.graphs
    );
    for (name, count) in &report.ran {
        text += &format!("  ran       {name:<16} {count:>8}\n");
    }
    let total: Duration = report.timed.values().map(|(_, time)| *time).sum();
    let mut timed: Vec<_> = report.timed.iter().collect();
    timed.sort_by_key(|(_, (_, time))| std::cmp::Reverse(*time));
    for (label, (count, time)) in timed {
        let share = 100.0 * time.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE);
        let each = time.as_secs_f64() * 1e6 / *count as f64;
        text += &format!(
            "  took      {label:<40} {count:>8} nodes, {each:>8.2} us each, {share:>5.1} %\n"
        );
    }
    for ((name, reason), nodes) in &report.declined {
        let listed: Vec<_> = nodes.iter().take(LISTED).map(String::as_str).collect();
        let more = match nodes.len().saturating_sub(LISTED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let (count, listed) = (nodes.len(), listed.join(", "));
        text += &format!("  declined  {name:<16} {count:>8} nodes: {reason} ({listed}{more})\n");
    }
    if report.declined.is_empty() {
        text += "  declined  nothing\n";
    }
    eprint!("{text}");
}
