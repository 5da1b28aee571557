//! The report for people: one HTML file that needs nothing else, with a plot of each search, of each tunable and of the roofline.

use std::collections::BTreeMap;
use std::fmt::Write;

use plotters::prelude::*;
use ropeway_core::{Error, ErrorKind, Result};

use super::Outcome;
use super::gate::Summary;
use super::report::{Report, microseconds};
use super::search::Found;

const WIDE: (u32, u32) = (640, 300);
const NARROW: (u32, u32) = (300, 240);

const TRIED: RGBColor = RGBColor(120, 144, 170);
/// What takes so many times the fastest is off a plot of times.
const CUT: f64 = 3.0;

const BEST: RGBColor = RGBColor(200, 70, 30);
const DEFAULT: RGBColor = RGBColor(40, 120, 60);

/// Writes the page.
///
/// # Errors
/// `File` if a plot cannot be drawn.
pub fn page(report: &Report) -> Result<String> {
    let title = format!("Tuning {} through {}", report.device, report.backend);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n<style>\n\
         body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}\n\
         table {{ border-collapse: collapse; font-size: 14px }} th, td {{ padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd }}\n\
         td:nth-child(2), th:nth-child(2), td:last-child, th:last-child {{ text-align: left }}\n\
         code {{ font-size: 13px }} .fault {{ color: #a00 }} figure {{ margin: 1rem 0 }} td {{ white-space: nowrap }}\n\
         figcaption {{ font-size: 13px; color: #555 }} h2 {{ margin-top: 2.5rem }}\n</style></head><body>\n<h1>{title}</h1>\n",
        title = escaped(&title)
    );
    let _ = writeln!(
        page,
        "<p>{} search, seed {}, {}; driver {}; executed in {}. Times are medians of interleaved rounds.</p>",
        escaped(&format!("{:?}", report.strategy)),
        report.seed,
        escaped(&report.date),
        escaped(&report.driver),
        escaped(&report.execution)
    );
    page += &table(report);
    page += &faults(report);
    if report.roofline.is_some() && report.targets.iter().any(|f| f.time().is_some()) {
        page += &figure(
            &roofline(report)?,
            "Where each target, by its number in the table, lies under the device's roofline: open the default, filled the tuned configuration.",
        );
    }
    for (number, found) in report.targets.iter().enumerate() {
        let _ = writeln!(
            page,
            "<h2>{}. {}</h2>\n<p><code>{}</code></p>",
            number + 1,
            escaped(&found.target),
            escaped(&found.key)
        );
        if measured(found).next().is_none() {
            page += "<p>Nothing could be measured.</p>\n";
            continue;
        }
        page += &finalists(found);
        page += &figure(
            &progress(found)?,
            "Each configuration in the order it was tried; the line is the best so far, green the default. Open circles at the top are slower still.",
        );
        for (kernel, tunables) in tunables(found) {
            let mut plots = String::new();
            for (name, values) in tunables {
                plots += &tunable(name, &values)?;
            }
            page += &figure(
                &plots,
                &format!(
                    "Every configuration of {kernel} that was measured, by the value of each tunable; the line joins the fastest of each value."
                ),
            );
        }
    }
    page += "</body></html>\n";
    Ok(page)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn figure(svg: &str, caption: &str) -> String {
    format!(
        "<figure>{svg}<figcaption>{}</figcaption></figure>\n",
        escaped(caption)
    )
}

fn table(report: &Report) -> String {
    let mut text = String::from(
        "<table><tr><th></th><th>target</th><th>default</th><th>tuned</th><th>gain</th><th>of the limit</th><th>tried</th><th>space</th>\
         <th>configuration</th></tr>\n",
    );
    for (number, found) in report.targets.iter().enumerate() {
        let default = found
            .default_time
            .map_or("failed".into(), |t| microseconds(t.seconds));
        let time = found.time();
        let gain = match (&found.winner, found.default_time, time) {
            (Some(_), Some(default), Some(time)) => {
                format!("{:.2}×", default.seconds / time.seconds)
            }
            _ => "none".into(),
        };
        let what = match &found.winner {
            Some(winner) => winner.point.to_string(),
            None => format!("{} (default)", found.default),
        };
        let share = time.and_then(|time| report.share(found, time.seconds));
        let _ = writeln!(
            text,
            "<tr><td>{}</td><td>{}</td><td>{default}</td><td>{}</td><td>{gain}</td><td>{}</td><td>{}</td><td>{}</td><td><code>{}</code></td></tr>",
            number + 1,
            escaped(&found.target),
            time.map_or(String::new(), |time| microseconds(time.seconds)),
            share.map_or(String::new(), |share| format!("{:.1} %", 100.0 * share)),
            found.evaluations.len(),
            found.points,
            escaped(&what)
        );
    }
    for (target, reason) in &report.unsupported {
        let _ = writeln!(
            text,
            "<tr><td></td><td>{}</td><td colspan=7>unsupported: {}</td></tr>",
            escaped(target),
            escaped(reason)
        );
    }
    text + "</table>\n"
}

/// The rounds that decided.
fn finalists(found: &Found) -> String {
    let Some(default) = found.default_time else {
        return String::new();
    };
    let mut text = String::from(
        "<table><tr><th></th><th>in turn with the default</th><th>time</th><th>±</th><th>error / bound</th></tr>\n",
    );
    let mut row = |what: &str, point: String, time: Summary, ratio: Option<f64>| {
        let _ = writeln!(
            text,
            "<tr><td>{what}</td><td><code>{}</code></td><td>{}</td><td>{:.1} %</td><td>{}</td></tr>",
            escaped(&point),
            microseconds(time.seconds),
            100.0 * time.deviation / time.seconds,
            ratio.map_or(String::new(), |ratio| format!("{ratio:.3}")),
        );
    };
    for finalist in &found.finalists {
        let ratio = Some(finalist.error_over_bound);
        row("", finalist.point.to_string(), finalist.time, ratio);
    }
    if let Some(winner) = &found.winner {
        let ratio = Some(winner.error_over_bound);
        row("last two", winner.point.to_string(), winner.time, ratio);
    }
    row("default", found.default.to_string(), default, None);
    text + "</table>\n"
}

fn faults(report: &Report) -> String {
    let mut text = String::new();
    for found in &report.targets {
        for evaluation in &found.evaluations {
            let what = match &evaluation.outcome {
                Outcome::Wrong(findings) => format!("wrong: {}", findings.join("; ")),
                Outcome::Crashed(said) => format!("crashed: {said}"),
                Outcome::TimedOut(limit) => format!("no answer within {limit} s"),
                _ => continue,
            };
            let line = format!("{}: {}: {what}", found.target, evaluation.point);
            let _ = writeln!(text, "<li class=\"fault\">{}</li>", escaped(&line));
        }
    }
    let mut page = String::new();
    if !text.is_empty() {
        let _ = writeln!(
            page,
            "<h2>Faults of kernels or drivers</h2>\n<ul>\n{text}</ul>"
        );
    }
    let mut refused = String::new();
    for found in &report.targets {
        for (reason, points) in found.refused() {
            let points: Vec<String> = points.iter().map(ToString::to_string).collect();
            let line = format!("{}: {reason}", found.target);
            let _ = writeln!(
                refused,
                "<li>{}<br><code>{}</code></li>",
                escaped(&line),
                escaped(&points.join(", "))
            );
        }
    }
    if !refused.is_empty() {
        let _ = writeln!(
            page,
            "<h2>Refused by compiler, driver or device</h2>\n<ul>\n{refused}</ul>"
        );
    }
    page
}

/// Index and seconds of what was measured.
fn measured(found: &Found) -> impl Iterator<Item = (usize, f64)> {
    let all = found.evaluations.iter().enumerate();
    all.filter_map(|(number, e)| Some((number + 1, e.seconds?)))
}

/// The times by value of each tunable that was tried at more than one, by kernel: one name may mean two things.
type Tunables<'a> = BTreeMap<&'a str, BTreeMap<&'a str, BTreeMap<i64, Vec<f64>>>>;

fn tunables(found: &Found) -> Tunables<'_> {
    let mut all: Tunables<'_> = BTreeMap::new();
    for evaluation in &found.evaluations {
        let Some(seconds) = evaluation.seconds else {
            continue;
        };
        let of_kernel = all.entry(&evaluation.point.kernel).or_default();
        for (name, value) in &evaluation.point.config {
            let values = of_kernel.entry(name).or_default();
            values.entry(*value).or_default().push(seconds);
        }
    }
    for tunables in all.values_mut() {
        tunables.retain(|_, values| values.len() > 1);
    }
    all.retain(|_, tunables| !tunables.is_empty());
    all
}

/// A linear axis of times that ends at the slowest of those that take no multiple of the fastest, or the others would lie on one line.
struct Times {
    unit: &'static str,
    scale: f64,
    range: std::ops::Range<f64>,
}

impl Times {
    fn of(seconds: impl Iterator<Item = f64> + Clone) -> Times {
        let least = seconds.clone().fold(f64::INFINITY, f64::min);
        let near = seconds.filter(|s| *s <= CUT * least);
        let most = near.fold(least, f64::max);
        let (unit, scale) = match least {
            s if s < 1e-3 => ("microseconds", 1e6),
            _ => ("milliseconds", 1e3),
        };
        let margin = 0.06 * (most - least).max(0.02 * least);
        Times {
            unit,
            scale,
            range: scale * (least - margin)..scale * (most + margin),
        }
    }

    /// A number on the axis: as many digits as tell its neighbours apart.
    fn label(&self, value: f64) -> String {
        match self.range.end - self.range.start {
            span if span >= 10.0 => format!("{value:.0}"),
            span if span >= 1.0 => format!("{value:.1}"),
            _ => format!("{value:.2}"),
        }
    }

    /// Where a time is drawn, and whether it was cut off.
    fn at(&self, seconds: f64) -> (f64, bool) {
        let value = seconds * self.scale;
        (value.min(self.range.end), value > self.range.end)
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::File, format!("a plot: {error}"))
}

/// A little more than the values span, for an axis of logarithms.
fn span(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(low, high), v| {
        (low.min(v), high.max(v))
    });
    low.max(1e-9) / 1.15..high.max(1e-9) * 1.15
}

/// The step of an axis of logarithms, so that it has a few labels however little it spans.
fn base(range: &std::ops::Range<f64>) -> f64 {
    match range.end / range.start {
        ratio if ratio < 3.0 => 1.25,
        ratio if ratio < 40.0 => 2.0,
        _ => 10.0,
    }
}

/// A number on an axis: no more digits than tell.
fn label(value: &f64) -> String {
    match *value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 1.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn progress(found: &Found) -> Result<String> {
    let points: Vec<(f64, f64)> = measured(found).map(|(n, s)| (n as f64, s)).collect();
    let default = found.evaluations.iter().find(|e| e.point == found.default);
    let default = default.and_then(|e| e.seconds);
    let last = found.evaluations.len() as f64 + 0.5;
    let up = Times::of(points.iter().map(|p| p.1));
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, WIDE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(60)
            .build_cartesian_2d(0.5..last, up.range.clone())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc("configurations tried")
            .y_desc(up.unit)
            .y_label_formatter(&|y| up.label(*y))
            .light_line_style(WHITE)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .draw()
            .map_err(failed)?;
        if let Some(default) = default {
            let (default, _) = up.at(default);
            let line = LineSeries::new([(0.5, default), (last, default)], DEFAULT.stroke_width(1));
            chart.draw_series(line).map_err(failed)?;
        }
        chart
            .draw_series(points.iter().map(|(number, s)| dot(*number, up.at(*s), 3)))
            .map_err(failed)?;
        let mut steps: Vec<(f64, f64)> = Vec::new();
        for (number, seconds) in &points {
            let (value, _) = up.at(*seconds);
            let before = steps.last().map_or(value, |step| step.1);
            steps.push((*number, before));
            steps.push((*number, before.min(value)));
        }
        steps.extend(steps.last().map(|step| (last, step.1)));
        chart
            .draw_series(LineSeries::new(steps, BEST.stroke_width(2)))
            .map_err(failed)?;
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// A configuration; open if its time is off the plot.
fn dot(x: f64, (y, cut): (f64, bool), size: i32) -> Circle<(f64, f64), i32> {
    match cut {
        true => Circle::new((x, y), size, TRIED.stroke_width(1)),
        false => Circle::new((x, y), size, TRIED.filled()),
    }
}

fn tunable(name: &str, values: &BTreeMap<i64, Vec<f64>>) -> Result<String> {
    let names: Vec<i64> = values.keys().copied().collect();
    let up = Times::of(values.values().flatten().copied());
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, NARROW).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(54)
            .build_cartesian_2d(-0.5..names.len() as f64 - 0.5, up.range.clone())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(WHITE)
            .x_labels(2 * names.len() + 1)
            .x_desc(name)
            .y_desc(up.unit)
            .y_label_formatter(&|y| up.label(*y))
            .x_label_formatter(&|x| {
                let nearest = x.round();
                match names.get(nearest as usize) {
                    Some(value) if (x - nearest).abs() < 0.01 && nearest >= 0.0 => {
                        value.to_string()
                    }
                    _ => String::new(),
                }
            })
            .draw()
            .map_err(failed)?;
        let mut least = Vec::new();
        for (at, times) in values.values().enumerate() {
            let dots = times.iter().map(|s| dot(at as f64, up.at(*s), 2));
            chart.draw_series(dots).map_err(failed)?;
            let fastest = times.iter().copied().fold(f64::INFINITY, f64::min);
            least.push((at as f64, up.at(fastest).0));
        }
        chart
            .draw_series(LineSeries::new(least, BEST.stroke_width(2)))
            .map_err(failed)?;
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Operations a second over operations a byte.
fn roofline(report: &Report) -> Result<String> {
    let Some(roof) = report.roofline else {
        return Ok(String::new());
    };
    let mut points: Vec<(usize, f64, f64, f64)> = Vec::new();
    for (number, found) in report.targets.iter().enumerate() {
        if let (Some(default), Some(time)) = (found.default_time, found.time()) {
            let rate = |seconds: f64| found.flops / seconds / 1e9;
            points.push((
                number + 1,
                found.flops / found.bytes,
                rate(default.seconds),
                rate(time.seconds),
            ));
        }
    }
    let points: Vec<_> = points
        .into_iter()
        .filter(|p| p.1 > 0.0 && p.2 > 0.0)
        .collect();
    let corner = roof.peak_gflops / roof.read_gbs;
    let across = span(
        points
            .iter()
            .map(|p| p.1)
            .chain([corner / 4.0, corner * 8.0]),
    );
    let up = span(
        points
            .iter()
            .flat_map(|p| [p.2, p.3])
            .chain([roof.peak_gflops, across.start * roof.read_gbs]),
    );
    let line = [
        (across.start, across.start * roof.read_gbs),
        (corner, roof.peak_gflops),
        (across.end, roof.peak_gflops),
    ];
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, WIDE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(60)
            .build_cartesian_2d(
                across.clone().log_scale().base(base(&across)),
                up.clone().log_scale().base(base(&up)),
            )
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("operations by byte")
            .y_desc("GFLOP/s")
            .x_label_formatter(&label)
            .y_label_formatter(&label)
            .draw()
            .map_err(failed)?;
        chart
            .draw_series(LineSeries::new(line, BLACK.stroke_width(2)))
            .map_err(failed)?;
        let small = ("sans-serif", 13).into_font();
        for (number, at, default, tuned) in points {
            let move_line = LineSeries::new([(at, default), (at, tuned)], TRIED.stroke_width(1));
            chart.draw_series(move_line).map_err(failed)?;
            let open = Circle::new((at, default), 4, DEFAULT.stroke_width(1));
            chart.draw_series([open]).map_err(failed)?;
            chart
                .draw_series([Circle::new((at, tuned), 4, BEST.filled())])
                .map_err(failed)?;
            let beside = EmptyElement::at((at, tuned))
                + Text::new(number.to_string(), (7, -6), small.clone());
            chart.draw_series([beside]).map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}
