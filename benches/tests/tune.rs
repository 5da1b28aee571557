//! `ropeway tune` from outside: interrupted, resumed, on a device that only records, with nothing to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ropeway::{TunedEntry, TunedTable};
use ropeway_core::spec::Random;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn recording() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tune/recordings/gemm_pocl.journal")
}

fn ropeway() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ropeway"))
}

fn simulate(directory: &Path, seed: u64) -> Command {
    simulate_of(&recording(), directory, seed)
}

/// The recording with a default of the first target that is a fifth slower than the best.
fn with_a_poor_default(directory: &Path) -> PathBuf {
    let text = fs::read_to_string(recording()).unwrap();
    let mut poor = false;
    let lines = text.lines().map(|line| {
        let (_, json) = line.split_once(' ').expect("a sum and a record");
        let mut value: Value = serde_json::from_str(json).unwrap();
        let space = &mut value["space"]["space"];
        if space.is_null() || std::mem::replace(&mut poor, true) {
            return format!("{line}\n");
        }
        let wanted = serde_json::json!({ "KC": 512, "MR": 12, "STRIPS": 8 });
        let points = space["points"].as_array().unwrap();
        let at = points.iter().position(|point| point["config"] == wanted);
        space["default"] = at.expect("a point of the space").into();
        let json = value.to_string();
        let sum: String = Sha256::digest(&json)[..4]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("{sum} {json}\n")
    });
    let path = directory.join("poor.journal");
    fs::write(&path, lines.collect::<String>()).unwrap();
    path
}

fn simulate_of(recording: &Path, directory: &Path, seed: u64) -> Command {
    let mut command = ropeway();
    command.arg("tune").arg("--simulate").arg(recording);
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
    let (mut won, mut kept) = (0, 0);
    for seed in 1..=6 {
        let folder = tempfile::tempdir().unwrap();
        let recording = with_a_poor_default(folder.path());
        let mut command = simulate_of(&recording, folder.path(), seed);
        let output = command.arg("--json").output().unwrap();
        let report: Value =
            serde_json::from_slice(&output.stdout).expect("JSON alone on standard output");
        let table = TunedTable::read(&folder.path().join("simulated.toml"));
        let table = table.unwrap().expect("a table");
        let targets = report["targets"].as_array().unwrap();
        assert_eq!((targets.len(), table.entries.len()), (2, 2));
        for target in targets {
            // The winner of the shape before may be one more.
            let tried = target["evaluations"].as_array().unwrap().len();
            assert!((60..=61).contains(&tried), "{tried}");
            let of_target = |entry: &&TunedEntry| {
                let sizes = entry
                    .sizes
                    .iter()
                    .map(|(name, size)| format!(" {name}={size}"));
                let key = format!(
                    "{} {}{}",
                    entry.op,
                    entry.variant,
                    sizes.collect::<String>()
                );
                target["key"] == key
            };
            let entry = table.entries.iter().find(of_target).expect("an entry");
            let measured = entry.measured.as_ref().unwrap();
            assert_eq!(entry.fault(), None);
            assert!(
                measured.along.is_empty(),
                "nothing is recorded of other shapes"
            );
            let point = match target["winner"].as_object() {
                Some(winner) => {
                    won += 1;
                    assert!(
                        measured.seconds < 0.99 * measured.default_seconds,
                        "{entry:?}"
                    );
                    assert_eq!(winner["time"]["seconds"], measured.seconds);
                    &winner["point"]
                }
                None => {
                    kept += 1;
                    assert!(entry.keeps_default(), "{entry:?}");
                    &target["default"]
                }
            };
            assert_eq!(point["kernel"], entry.kernel);
            assert_eq!(
                point["config"],
                serde_json::to_value(&entry.config).unwrap()
            );
            assert_eq!(target["default_time"]["seconds"], measured.default_seconds);
        }
        let html = fs::read_to_string(report["html"].as_str().unwrap()).unwrap();
        assert!(html.matches("<svg").count() > 3, "plots");
        assert_eq!(
            html.matches("http://").count(),
            html.matches("http://www.w3.org").count(),
            "it needs no network"
        );
    }
    assert!(
        won > 0 && kept > 0,
        "both happen: {won} won, {kept} kept the default"
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

/// A line of a journal.
fn signed(json: &str) -> String {
    let digest = Sha256::digest(json.as_bytes());
    let sum: String = digest[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{sum} {json}\n")
}

/// The recording's shape 512 as if it had been recorded at other depths.
fn at_depths(depths: &[u64]) -> String {
    let text = fs::read_to_string(recording()).unwrap();
    let lines: Vec<&str> = text.lines().map(|line| &line[9..]).collect();
    let of_shape = |line: &&&str| line.contains("gemm m=512 n=512 k=512");
    let mut recorded = signed(lines[0]);
    for depth in depths {
        for line in lines[1..].iter().filter(of_shape) {
            let line = line.replace("k=512", &format!("k={depth}"));
            recorded += &signed(&line.replace("\"k\":512", &format!("\"k\":{depth}")));
        }
    }
    recorded
}

/// A process that ended well and had nothing to complain of.
fn quiet(mut command: Command) -> Value {
    let output = command.arg("--json").output().unwrap();
    let said = text(&output);
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{said}"
    );
    serde_json::from_slice(&output.stdout).expect("JSON alone on standard output")
}

#[test]
fn of_eight_processes_that_tune_and_read_at_once_none_loses_or_disturbs_another() {
    const DEPTHS: [[u64; 3]; 4] = [
        [1 << 6, 1 << 7, 1 << 8],
        [1 << 9, 1 << 10, 1 << 11],
        [1 << 12, 1 << 13, 1 << 14],
        [1 << 15, 1 << 16, 1 << 17],
    ];
    let folder = tempfile::tempdir().unwrap();
    let tables = folder.path().join("tuned");
    let show = || {
        let mut command = ropeway();
        command.args(["tuned", "show"]);
        command.env("ROPEWAY_DATA_DIR", folder.path());
        command
    };
    let ended = AtomicUsize::new(0);
    let reads = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (number, depths) in DEPTHS.iter().enumerate() {
            let (folder, tables, ended) = (folder.path(), &tables, &ended);
            scope.spawn(move || {
                // Counts when it panics, too: the readers would wait for ever.
                let _ended = Ended(ended);
                let recorded = folder.join(format!("recording.{number}"));
                fs::write(&recorded, at_depths(depths)).unwrap();
                let mut command = ropeway();
                command.args(["tune", "--strategy", "random", "--max-evals", "12"]);
                command.args(["--seed", &number.to_string()]);
                command.arg("--simulate").arg(recorded);
                command.arg("--save-dir").arg(tables);
                command
                    .arg("--journal")
                    .arg(folder.join(format!("journal.{number}")));
                quiet(command);
            });
        }
        for reader in 0..4 {
            let (show, ended, reads) = (&show, &ended, &reads);
            scope.spawn(move || {
                while ended.load(Ordering::Relaxed) < DEPTHS.len() {
                    let mut command = show();
                    if reader % 2 == 0 {
                        command.args([
                            "--device",
                            "cpu",
                            "--op",
                            "gemm",
                            "--variant",
                            "f32_f32_nn",
                        ]);
                        command.args(["--shape", "m=100 n=64 k=64"]);
                    }
                    let shown = quiet(command);
                    let whole = shown["served"] == "default" || shown["damaged"] == json!([]);
                    assert!(whole, "{shown}");
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert!(reads.into_inner() >= 4);

    let shown = quiet(show());
    let entries = shown["entries"].as_array().unwrap();
    let mut depths: Vec<u64> = entries
        .iter()
        .map(|entry| entry["entry"]["sizes"]["k"].as_u64().unwrap())
        .collect();
    depths.sort_unstable();
    assert_eq!(depths, DEPTHS.concat());
    let mut files: Vec<_> = fs::read_dir(&tables)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    files.sort();
    assert_eq!(files, [".simulated.toml.lock", "simulated.toml"]);
}

/// Counts itself when it goes.
struct Ended<'a>(&'a AtomicUsize);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The recording with one value in place of another wherever there is one, and sums that fit.
fn absurd(place: &str, value: &Value) -> String {
    let text = fs::read_to_string(recording()).unwrap();
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(&line[9..]).unwrap();
        if let Some(known) = line.pointer_mut(place) {
            *known = value.clone();
        }
        signed(&line.to_string())
    });
    lines.collect()
}

#[test]
fn a_recording_of_absurd_numbers_is_no_reason_to_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("absurd");
    for (case, (place, value)) in [
        ("/space/space/default", json!(999_999)),
        ("/space/space/kernel_defaults", json!([999_999])),
        ("/space/space/points", json!([])),
        ("/space/work", json!([-1.0, 1e300])),
        ("/record/outcome/measured/samples", json!([])),
        ("/record/outcome/measured/samples/0", json!(0.0)),
        ("/record/outcome/measured/samples/0", json!(5e-324)),
        ("/record/outcome/measured/reference", json!([1e-3])),
        ("/record/outcome/measured/reference/0", json!(-1.0)),
        ("/record/outcome/measured/error_over_bound", json!(-1e300)),
    ]
    .into_iter()
    .enumerate()
    {
        fs::write(&path, absurd(place, &value)).unwrap();
        let mut command = ropeway();
        command.arg("tune").arg("--simulate").arg(&path);
        command.args(["--max-evals", "8", "--strategy", "guided"]);
        command
            .arg("--save-dir")
            .arg(folder.path().join(case.to_string()));
        let output = command.output().unwrap();
        let said = text(&output);
        assert!(
            matches!(output.status.code(), Some(0..=2)) && !said.contains("panicked"),
            "{place}: {said}"
        );
        assert!(!said.contains('×'), "{place}: a gain by {value}: {said}");
    }
}
