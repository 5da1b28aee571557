//! The report as JUnit XML, for continuous integration.

use std::fmt::Write;

use super::{Report, Status};

/// The whole report: a test suite for each device.
pub fn junit(report: &Report) -> String {
    let mut xml =
        String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"ropeway\">\n");
    for device in &report.devices {
        let total = device.total();
        let failures = total.failed + device.unmatched.len();
        writeln!(
            xml,
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{failures}\" skipped=\"{}\" time=\"{:.3}\">",
            escape(&device.title()),
            device.outcomes.len() + device.unmatched.len(),
            total.skipped + total.expected_failures,
            device.seconds
        )
        .expect("writing to a string");
        for outcome in &device.outcomes {
            let name = format!(
                "classname=\"{}.{}\" name=\"{}\" time=\"{:.4}\"",
                escape(&device.info.selector()),
                escape(outcome.group()),
                escape(&outcome.id),
                outcome.seconds
            );
            let body = match &outcome.status {
                Status::Passed => String::new(),
                Status::Failed(findings) => format!(
                    "<failure message=\"{}\">{}\nreplay: ropeway check --device {} --replay {}</failure>",
                    escape(findings.first().map_or("", String::as_str)),
                    escape(&findings.join("\n")),
                    escape(&device.info.selector()),
                    escape(&outcome.replay())
                ),
                Status::Skipped(reason) => format!("<skipped message=\"{}\"/>", escape(reason)),
                Status::ExpectedFailure(reason) => {
                    format!(
                        "<skipped message=\"expected failure: {}\"/>",
                        escape(reason)
                    )
                }
            };
            writeln!(xml, "    <testcase {name}>{body}</testcase>").expect("writing to a string");
        }
        for entry in &device.unmatched {
            writeln!(
                xml,
                "    <testcase classname=\"{}.expectations\" name=\"{}\"><failure message=\"the entry matches nothing\"/></testcase>",
                escape(&device.info.selector()),
                escape(entry)
            )
            .expect("writing to a string");
        }
        xml.push_str("  </testsuite>\n");
    }
    xml.push_str("</testsuites>\n");
    xml
}

/// Text for an attribute or element. Characters that XML 1.0 cannot hold at all become U+FFFD.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            c if (c as u32) < 0x20 && c != '\t' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}
