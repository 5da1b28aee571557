//! What ran on Ropeway, what was declined and why: printed when a stream ends, with `GGML_ROPEWAY_REPORT=1`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::tensor::Tensor;

static WANTED: LazyLock<bool> = LazyLock::new(|| {
    let value = std::env::var_os("GGML_ROPEWAY_REPORT");
    value.is_some_and(|value| !value.is_empty() && value != "0")
});

/// Names of nodes that are listed for a reason; further ones are counted.
const LISTED: usize = 4;

#[derive(Default)]
struct Report {
    graphs: u64,
    host: Duration,
    ran: BTreeMap<&'static str, u64>,
    /// By operation and reason: the names of the nodes, which differ within a graph.
    declined: BTreeMap<(&'static str, String), BTreeSet<String>>,
}

static REPORT: Mutex<Option<Report>> = Mutex::new(None);

fn report() -> MutexGuard<'static, Option<Report>> {
    REPORT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a node that is left to another backend.
pub fn declined(node: Tensor<'_>, reason: &str) {
    if *WANTED {
        let mut report = report();
        let reasons = &mut report.get_or_insert_default().declined;
        let key = (node.operation_name(), reason.to_owned());
        reasons.entry(key).or_default().insert(node.name());
    }
}

/// Counts the nodes of a graph that were enqueued, and the time of the host that it took.
pub fn ran(nodes: impl Iterator<Item = &'static str>, host: Duration) {
    if *WANTED {
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
    *WANTED
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
