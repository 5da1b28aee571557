//! `ropeway tuned` as a user calls it, on the cpu device.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        fs::create_dir(place.0.path().join("tuned")).unwrap();
        place
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_ropeway"))
            .args(arguments)
            .current_dir(self.0.path())
            .env("ROPEWAY_DATA_DIR", self.0.path())
            .output()
            .expect("the binary of this package runs")
    }

    fn json(&self, arguments: &[&str]) -> (Value, Option<i32>) {
        let output = self.run(arguments);
        let value = serde_json::from_slice(&output.stdout);
        let value = value.unwrap_or_else(|error| panic!("{error}: {output:?}"));
        (value, output.status.code())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// Kernel, manifest version and default tunables of what the cpu device runs for a shape, and the device's name.
fn default_of(place: &Place, shape: &str) -> (String, String) {
    let (devices, _) = place.json(&["devices", "--json"]);
    let all = devices["devices"]
        .as_array()
        .unwrap_or_else(|| panic!("{devices:#}"));
    let cpu = all.iter().find(|device| device["device"] == "cpu:0");
    let name = cpu.unwrap_or_else(|| panic!("{devices:#}"))["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let arguments = [
        "tuned",
        "show",
        "--device",
        "cpu",
        "--op",
        "gemm",
        "--variant",
        "f32_f32_nn",
        "--shape",
        shape,
        "--json",
    ];
    let (served, code) = place.json(&arguments);
    assert_eq!(
        (served["served"].as_str(), code),
        (Some("default"), Some(0)),
        "{served:#}"
    );
    (name, served["kernel"].as_str().unwrap().to_owned())
}

fn header(device: &str) -> String {
    format!("device = {device:?}\nbackend = \"cpu\"\n")
}

/// An entry of the cpu's one gemm kernel, said to be this many times faster than the default.
fn entry(m: u64, kernel: &str, gain: f64) -> String {
    let seconds = 0.001 / gain;
    format!(
        "\n[[entry]]\nop = \"gemm\"\nvariant = \"f32_f32_nn\"\nsizes = {{ m = {m}, n = 64, k = 64 }}\nkernel = \"{kernel}\"\nversion = 1\nconfig = {{}}\n\
         measured = {{ seconds = {seconds}, deviation = 0.0, samples = 9, default_kernel = \"{kernel}\", default_seconds = 0.001, default_deviation = 0.0, error_over_bound = 0.5, along = [\"m\"] }}\n\
         provenance = {{ driver = \"old\", compiler = \"old\", source = \"old\", ropeway = \"0.0.1\", date = \"2020-01-01\", seed = 3 }}\n"
    )
}

#[test]
fn show_names_entries_states_and_what_serves_a_shape() {
    let place = Place::new();
    let (device, kernel) = default_of(&place, "m=64 n=64 k=64");
    let table = header(&device)
        + &entry(64, &kernel, 2.0)
        + &entry(256, &kernel, 2.0)
        + &entry(8, &kernel, 0.5)
        + &entry(9, "gone", 2.0);
    place.write("tuned/mine.toml", &table);
    place.write("tuned/broken.toml", "device = ");
    let (shown, code) = place.json(&["tuned", "show", "--json"]);
    assert_eq!(code, Some(1), "a table is damaged");
    let damaged = shown["damaged"].as_array().unwrap();
    assert!(
        damaged.len() == 1 && damaged[0].as_str().unwrap().contains("broken.toml: line 1"),
        "{shown:#}"
    );
    let states: Vec<_> = shown["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["stale", "stale", "refused", "outdated"]);
    let why = shown["entries"][0]["reasons"].to_string();
    assert!(
        why.contains("driver was") && why.contains("Ropeway was"),
        "{why}"
    );
    let output = place.run(&["tuned", "show", "--op", "gemm", "--device", "cpu"]);
    let shown = text(&output.stdout);
    assert!(
        shown.contains("2.00 ×") && shown.contains("mine.toml") && shown.contains("stale: "),
        "{shown}"
    );
    fs::remove_file(place.0.path().join("tuned/broken.toml")).unwrap();
    for (m, served) in [
        ("64", "exact"),
        ("63", "bucket"),
        ("100", "between"),
        ("1000", "default"),
    ] {
        let shape = format!("m={m},n=64,k=64");
        let arguments = [
            "tuned",
            "show",
            "--device",
            "cpu",
            "--op",
            "gemm",
            "--variant",
            "f32_f32_nn",
            "--shape",
            &shape,
            "--json",
        ];
        let (found, code) = place.json(&arguments);
        assert_eq!(
            (found["served"].as_str(), code),
            (Some(served), Some(0)),
            "{shape}: {found:#}"
        );
    }
    let output = place.run(&[
        "tuned",
        "show",
        "--op",
        "attention",
        "--device",
        "nothing like it",
    ]);
    assert!(text(&output.stdout).contains("no entries"));
}

#[test]
fn calls_that_cannot_be_meant_are_usage_errors() {
    let place = Place::new();
    for (arguments, named) in [
        (&["tuned", "verify", "--device", "tpu"][..], "tpu"),
        (&["tuned", "verify", "--seconds", "0"], "seconds"),
        (&["tuned", "show", "--shape", "m=1"], "--variant"),
        (
            &[
                "tuned",
                "show",
                "--device",
                "cpu",
                "--op",
                "gemm",
                "--variant",
                "f32_f32_nn",
                "--shape",
                "m=x",
            ],
            "m=x",
        ),
        (&["tuned", "export", "--format", "xml"], "xml"),
        (&["tuned", "export"], "no table"),
        (&["tuned", "merge", "--output", "x"], "FILE"),
    ] {
        let output = place.run(arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(named), "{arguments:?}: {stderr}");
    }
    let output = place.run(&["tuned", "diff", "absent.toml", "absent.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("absent.toml"));
}

#[test]
fn merge_refuses_by_name_and_does_not_depend_on_order() {
    let place = Place::new();
    let a = place.write(
        "a.toml",
        &(header("chip") + &entry(64, "gemm_native", 2.0) + &entry(8, "gemm_native", 0.5)),
    );
    let b = place.write(
        "b.toml",
        &(header("chip") + &entry(64, "gemm_native", 3.0) + &entry(256, "gemm_native", 1.5)),
    );
    let merge = |files: [&Path; 2], output: &str| {
        let files = files.map(|file| file.to_str().unwrap());
        place.json(&[
            "tuned", "merge", files[0], files[1], "--output", output, "--json",
        ])
    };
    let (report, code) = merge([&a, &b], "ab.toml");
    assert_eq!((report["entries"].as_u64(), code), (Some(2), Some(0)));
    let refused = report["refused"].as_array().unwrap();
    assert!(
        refused.len() == 1 && refused[0]["reason"].as_str().unwrap().contains("slower"),
        "{report:#}"
    );
    assert_eq!(refused[0]["entry"]["sizes"]["m"], 8);
    merge([&b, &a], "ba.toml");
    let merged = read(&place.0.path().join("ab.toml"));
    assert_eq!(merged, read(&place.0.path().join("ba.toml")));
    assert!(
        merged.contains("seconds = 0.0003333"),
        "the greater gain: {merged}"
    );
    let (differences, code) = place.json(&["tuned", "diff", "a.toml", "ab.toml", "--json"]);
    assert_eq!(
        (differences["entries"].as_array().unwrap().len(), code),
        (3, Some(1))
    );
    let twice = header("chip")
        + &entry(64, "gemm_native", 2.0)
        + &entry(64, "gemm_native", 2.0).replace("version = 1", "version = 2");
    place.write("twice.toml", &twice);
    let same = place.run(&["tuned", "diff", "twice.toml", "twice.toml"]);
    assert_eq!(same.status.code(), Some(0), "one key in two versions");
    let same = place.run(&["tuned", "diff", "ab.toml", "ba.toml"]);
    assert_eq!(same.status.code(), Some(0));
    let other = place.write("other.toml", &header("other chip"));
    let output = place.run(&[
        "tuned",
        "merge",
        "a.toml",
        other.to_str().unwrap(),
        "--output",
        "ab.toml",
    ]);
    assert_eq!(output.status.code(), Some(2), "of another device");
    assert_eq!(read(&place.0.path().join("ab.toml")), merged);
}

#[test]
fn export_gives_one_table_or_t4() {
    let place = Place::new();
    place.write(
        "tuned/one.toml",
        &(header("chip") + &entry(64, "gemm_native", 2.0)),
    );
    place.write(
        "tuned/two.toml",
        &(header("chip") + &entry(256, "gemm_native", 2.0)),
    );
    let output = place.run(&[
        "tuned",
        "export",
        "--device",
        "chip",
        "--output",
        "chip.toml",
    ]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(
        read(&place.0.path().join("chip.toml"))
            .matches("[[entry]]")
            .count(),
        2
    );
    let (document, code) = place.json(&["tuned", "export", "--format", "t4"]);
    assert_eq!(
        (document["results"].as_array().unwrap().len(), code),
        (2, Some(0))
    );
    assert_eq!(document["results"][0]["times"]["runtimes"][0], 0.5);
    place.write(
        "tuned/three.toml",
        &(header("third") + &entry(64, "gemm_native", 2.0)),
    );
    assert_eq!(
        place.run(&["tuned", "export"]).status.code(),
        Some(2),
        "which device?"
    );
}

/// The cpu's gemm has no tunables, so that an entry can only be even with the default: it is checked and kept. What claims another manifest
/// version fails, and goes with --fix only.
#[test]
fn verify_measures_checks_and_removes_only_when_told() {
    let place = Place::new();
    let (device, kernel) = default_of(&place, "m=64 n=64 k=64");
    let outdated = entry(32, &kernel, 2.0).replace("version = 1", "version = 999");
    let table = header(&device) + &entry(64, &kernel, 2.0) + &outdated;
    let path = place.write("tuned/mine.toml", &table);
    let (report, code) = place.json(&["tuned", "verify", "--seconds", "0.05", "--json"]);
    let findings: Vec<_> = report["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["finding"].as_str().unwrap())
        .collect();
    assert_eq!(code, Some(1), "{report:#}");
    assert_eq!(findings[1], "invalid", "{report:#}");
    let first = &report["entries"][0];
    assert!(
        ["even", "holds", "loses"].contains(&findings[0]),
        "{report:#}"
    );
    assert!(
        first["now"]["seconds"].as_f64().unwrap() > 0.0 && first["regret"].as_f64().unwrap() >= 0.0
    );
    let ratio = first["now"]["error_over_bound"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&ratio), "{report:#}");
    assert_eq!(
        read(&path).matches("[[entry]]").count(),
        2,
        "nothing goes unasked"
    );
    let (report, _) = place.json(&["tuned", "verify", "--seconds", "0.05", "--fix", "--json"]);
    // In the order of their keys by now, if the first verification found the other one to hold and wrote the table anew.
    let rows = report["entries"].as_array().unwrap();
    let outdated = rows.iter().find(|row| row["finding"] == "invalid");
    assert_eq!(outdated.unwrap()["removed"], true, "{report:#}");
    assert!(!read(&path).contains("999"), "{}", read(&path));
    let nothing = place.run(&["tuned", "verify", "--op", "moe_route"]);
    assert_eq!(
        nothing.status.code(),
        Some(1),
        "nothing verified is no success"
    );
}

#[test]
fn a_search_never_writes_into_another_devices_table() {
    let place = Place::new();
    let path = place.write(
        "simulated.toml",
        &(header("chip") + &entry(64, "gemm_native", 2.0)),
    );
    let before = read(&path);
    let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("tune/recordings/gemm_pocl.journal");
    let output = place.run(&[
        "tune",
        "--simulate",
        recording.to_str().unwrap(),
        "--save-dir",
        ".",
    ]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("simulated.toml") && stderr.contains("chip"),
        "{stderr}"
    );
    assert_eq!(read(&path), before);
}
