//! The report as JSON, for scripts.

use serde_json::{Value, json};

use super::{DeviceReport, Outcome, Report, Status, title};

/// The whole report as one object; a field is added over time, none is renamed.
pub fn json(report: &Report) -> Value {
    json!({
        "passes": report.passes(),
        "devices": report.devices.iter().map(device).collect::<Vec<_>>(),
        "missing": report.missing.iter().map(|(backend, why)| json!({
            "backend": backend,
            "reason": why.reason.to_string(),
            "remedy": why.remedy,
        })).collect::<Vec<_>>(),
    })
}

fn device(report: &DeviceReport) -> Value {
    let info = &report.info;
    let total = report.total();
    json!({
        "device": info.selector(),
        "title": title(info),
        "name": info.name,
        "platform": info.platform,
        "driver_version": info.driver_version,
        "compiler_version": info.compiler_version,
        "execution": info.execution.to_string(),
        "seed": format!("{:016x}", report.seed),
        "passes": report.passes(),
        "passed": total.passed,
        "failed": total.failed,
        "expected_failures": total.expected_failures,
        "skipped": total.skipped,
        "skip_reasons": total.reasons,
        "unmatched_expectations": report.unmatched,
        "seconds": report.seconds,
        "cases": report.outcomes.iter().map(|o| case(&info.selector(), o)).collect::<Vec<_>>(),
    })
}

fn case(selector: &str, outcome: &Outcome) -> Value {
    let (status, findings) = match &outcome.status {
        Status::Passed => ("passed", Vec::new()),
        Status::Failed(findings) => ("failed", findings.clone()),
        Status::Skipped(reason) => ("skipped", vec![reason.clone()]),
        Status::ExpectedFailure(reason) => ("expected_failure", vec![reason.clone()]),
    };
    json!({
        "id": outcome.id,
        "status": status,
        "findings": findings,
        "plan": outcome.plan,
        "worst_ratio": finite(outcome.worst_ratio),
        "seconds": outcome.seconds,
        "notes": outcome.notes,
        "saved": outcome.saved,
        "replay": format!("ropeway check --device {selector} --replay {}", outcome.replay()),
    })
}

/// JSON has no infinity.
fn finite(ratio: f64) -> Value {
    match ratio.is_finite() {
        true => json!(ratio),
        false => json!(ratio.to_string()),
    }
}
