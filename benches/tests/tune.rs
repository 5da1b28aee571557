//! `ropeway tune` from outside: interrupted, resumed, on a device that only records, with nothing to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use ropeway_core::spec::Random;
use serde_json::Value;
use sha2::{Digest, Sha256};

fn recording() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tune/recordings/gemm_pocl.journal")
}

fn ropeway() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ropeway"))
}

fn simulate(directory: &Path, seed: u64) -> Command {
    let mut command = ropeway();
    command.arg("tune").arg("--simulate").arg(recording());
    command.arg("--save-dir").arg(directory);
    command.args(["--strategy", "random", "--max-evals", "60", "--resume"]);
    command.args(["--seed", &seed.to_string()]);
    command
}

fn table(directory: &Path) -> String {
    fs::read_to_string(directory.join("simulated.toml")).expect("a table")
}

fn text(output: &Output) -> String {
    let all = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn killed_fifty_times_and_resumed_it_ends_with_the_same_table() {
    let mut random = Random::new(50);
    let mut kills = 0;
    let mut seed = 0;
    while kills < 50 {
        seed += 1;
        let undisturbed = tempfile::tempdir().unwrap();
        let begin = Instant::now();
        let output = simulate(undisturbed.path(), seed).output().unwrap();
        let whole = begin.elapsed();
        assert!(output.status.success(), "{}", text(&output));
        let interrupted = tempfile::tempdir().unwrap();
        // Bounded: each run goes further than the one before.
        for _ in 0..200 {
            let mut command = simulate(interrupted.path(), seed);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            std::thread::sleep(Duration::from_secs_f64(whole.as_secs_f64() * random.unit()));
            let _ = child.kill();
            match child.wait().unwrap().success() {
                true => break,
                false => kills += 1,
            }
        }
        let output = simulate(interrupted.path(), seed).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(
            table(interrupted.path()),
            table(undisturbed.path()),
            "seed {seed}"
        );
    }
}

#[test]
fn a_damaged_journal_gives_one_warning_and_the_same_table() {
    let undisturbed = tempfile::tempdir().unwrap();
    assert!(simulate(undisturbed.path(), 1).status().unwrap().success());
    let damaged = tempfile::tempdir().unwrap();
    assert!(simulate(damaged.path(), 1).status().unwrap().success());
    let mut journals = fs::read_dir(damaged.path())
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    let journal = journals
        .find(|p| p.extension().is_some_and(|e| e == "journal"))
        .unwrap();
    let mut bytes = fs::read(&journal).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    bytes.truncate(bytes.len() - 30);
    fs::write(&journal, bytes).unwrap();
    let output = simulate(damaged.path(), 1).output().unwrap();
    assert!(output.status.success());
    let said = text(&output);
    assert_eq!(said.matches("damaged lines").count(), 1, "{said}");
    assert_eq!(table(damaged.path()), table(undisturbed.path()));
}

#[test]
fn what_is_published_beats_the_default_or_says_that_it_won() {
    let folder = tempfile::tempdir().unwrap();
    let output = simulate(folder.path(), 3).arg("--json").output().unwrap();
    let report: Value =
        serde_json::from_slice(&output.stdout).expect("JSON alone on standard output");
    let targets = report["targets"].as_array().unwrap();
    assert_eq!(targets.len(), 1);
    for target in targets {
        assert_eq!(target["evaluations"].as_array().unwrap().len(), 60);
        if let Some(winner) = target["winner"].as_object() {
            assert!(
                winner["time"]["seconds"].as_f64() < target["default_time"]["seconds"].as_f64()
            );
        }
    }
    let html = fs::read_to_string(report["html"].as_str().unwrap()).unwrap();
    assert!(html.matches("<svg").count() > 3, "plots");
    assert!(
        !html.contains("http://")
            || html.matches("http://").count() == html.matches("www.w3.org").count()
    );
}

#[test]
fn a_dry_run_plans_on_every_device_that_opens() {
    let devices = ropeway().args(["devices", "--json"]).output().unwrap();
    let devices: Value = serde_json::from_slice(&devices.stdout).unwrap();
    let text_of = devices.to_string();
    for device in ["null", "cpu", "opencl", "vulkan", "cuda"] {
        let mut command = ropeway();
        command.args([
            "tune",
            "--dry-run",
            "--json",
            "--model",
            "minilm",
            "--device",
            device,
        ]);
        let output = command.output().unwrap();
        if !output.status.success() {
            let said = text(&output);
            assert!(!["null", "cpu"].contains(&device), "{device}: {said}");
            assert!(
                !text_of.contains(&format!("\"{device}:0\"")),
                "{device} opens: {said}"
            );
            continue;
        }
        let planned: Value = serde_json::from_slice(&output.stdout).unwrap();
        let count = planned["targets"].as_array().unwrap().len()
            + planned["unsupported"].as_array().unwrap().len();
        assert_eq!(count, 8, "{device}: {planned}");
    }
}

#[test]
fn calls_that_cannot_be_meant_are_usage_errors() {
    for args in [
        &["--device", "cpu"][..],
        &["--device", "cpu", "--shape", "m=1 n=2"],
        &["dot", "--device", "cpu", "--shape", "m=1"],
        &["--device", "cpu", "--model", "gpt-17"],
        &["--device", "no-such", "--shape", "m=1 n=1 k=1"],
        &["--device", "null", "--shape", "m=1 n=1 k=1"],
        &[
            "--device",
            "cpu",
            "--shape",
            "m=1 n=1 k=1",
            "--budget-time",
            "-1",
        ],
        &["--simulate", "no-such-file"],
    ] {
        let output = ropeway().arg("tune").args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output));
    }
    let folder = tempfile::tempdir().unwrap();
    let foreign = folder.path().join("photograph");
    fs::write(&foreign, b"\xff\xd8\xff\xe0 JFIF").unwrap();
    let mut command = ropeway();
    command
        .args(["tune", "--simulate"])
        .arg(&foreign)
        .arg("--save-dir")
        .arg(folder.path());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

/// A recording whose lines fit their sums and say what cannot be.
fn absurd(random: &mut Random) -> String {
    let text = fs::read_to_string(recording()).unwrap();
    let numbers = [
        "0",
        "-1",
        "1e999",
        "null",
        "5e-324",
        "1e300",
        "[]",
        "{}",
        "\"\"",
        "999999999999",
    ];
    let damaged = |line: &str, random: &mut Random| {
        // Some value: what stands behind a colon, a comma or a bracket, up to the next.
        let begins: Vec<usize> = line
            .match_indices([':', '[', ','])
            .map(|(at, _)| at + 1)
            .filter(|at| line[*at..].starts_with(|c: char| c.is_ascii_digit() || c == '['))
            .collect();
        let begin = begins[random.below(begins.len() as u64) as usize];
        let length = match line[begin..].starts_with('[') {
            true => line[begin..].find(']').map(|at| at + 1),
            false => line[begin..].find([',', ']', '}']),
        };
        let number = numbers[random.below(numbers.len() as u64) as usize];
        let end = begin + length.unwrap_or(line.len() - begin);
        [&line[..begin], number, &line[end..]].concat()
    };
    let mut lines: Vec<String> = text.lines().map(|line| line[9..].to_owned()).collect();
    let count = lines.len() as u64;
    // The space, whatever else.
    for which in [
        1,
        random.below(count),
        random.below(count),
        random.below(count),
    ] {
        let which = which as usize;
        if which > 1 || random.below(2) == 0 {
            lines[which] = damaged(&lines[which], random);
        }
    }
    let signed = lines.iter().map(|json| {
        let digest = Sha256::digest(json.as_bytes());
        let sum: String = digest[..4]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("{sum} {json}\n")
    });
    signed.collect()
}

#[test]
fn a_recording_of_absurd_numbers_is_no_reason_to_panic() {
    let mut random = Random::new(7);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("absurd");
    let mut searched = 0;
    for case in 0..40 {
        fs::write(&path, absurd(&mut random)).unwrap();
        let save = folder.path().join(case.to_string());
        let mut command = ropeway();
        command.arg("tune").arg("--simulate").arg(&path);
        command.args([
            "--max-evals",
            "8",
            "--strategy",
            ["guided", "random"][case % 2],
        ]);
        command.arg("--save-dir").arg(&save);
        let output = command.output().unwrap();
        let said = text(&output);
        assert!(
            matches!(output.status.code(), Some(0..=2)) && !said.contains("panicked"),
            "{said}"
        );
        searched += usize::from(output.status.code() == Some(0));
    }
    assert!(searched > 10, "{searched} could be searched at all");
}
