//! `ropeway check` as a user calls it: exit codes, formats, ids, replay.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn check(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ropeway"))
        .arg("check")
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("the binary of this package runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_table_names_the_device_and_counts() {
    let folder = tempfile::tempdir().unwrap();
    let output = check(folder.path(), &["device/copies", "--device", "cpu"]);
    let stdout = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{stdout}");
    assert!(
        stdout.contains("cpu:0") && stdout.contains("7 passed, 0 failed"),
        "{stdout}"
    );
}

#[test]
fn calls_that_cannot_be_meant_are_usage_errors() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, named) in [
        (&["no such case", "--device", "cpu"][..], "no such case"),
        (&["--device", "tpu"], "tpu"),
        (&["--device", "cpu:7"], "cpu:7"),
        (
            &["--device", "cpu", "--replay", "gemm/fixed/no_such"],
            "gemm/fixed/no_such",
        ),
        (
            &["--device", "cpu", "--kernel", "no_such_kernel"],
            "no_such_kernel",
        ),
        (&["--format", "yaml"], "yaml"),
        (&["--seed", "twelve"], "twelve"),
    ] {
        let output = check(folder.path(), arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(named), "{arguments:?}: {stderr}");
    }
}

#[test]
fn json_holds_every_case_and_the_seed() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "moe_route",
        "--device",
        "cpu",
        "--cases",
        "105",
        "--seed",
        "0xabc",
        "--json",
    ];
    let output = check(folder.path(), &arguments);
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(report["passes"], true, "{report}");
    let device = &report["devices"][0];
    assert_eq!(device["device"], "cpu:0");
    assert_eq!(device["seed"], "0000000000000abc");
    let cases = device["cases"].as_array().unwrap();
    let generated: Vec<_> = cases
        .iter()
        .filter_map(|case| case["id"].as_str())
        .filter(|id| id.starts_with("moe_route/generated/"))
        .collect();
    assert_eq!(generated.len(), 5, "{generated:?}");
    assert!(cases.iter().all(|case| case["status"] == "passed"));

    // An id from that run, on its own.
    let replay = check(
        folder.path(),
        &["--device", "cpu", "--replay", generated[0], "--json"],
    );
    let again: Value = serde_json::from_slice(&replay.stdout).unwrap();
    let again = &again["devices"][0]["cases"];
    assert_eq!(again.as_array().unwrap().len(), 1);
    assert_eq!(again[0]["id"], generated[0]);
    let first = cases
        .iter()
        .find(|case| case["id"] == generated[0])
        .unwrap();
    assert_eq!(again[0]["worst_ratio"], first["worst_ratio"]);
}

#[test]
fn junit_is_one_element_a_case() {
    let folder = tempfile::tempdir().unwrap();
    let output = check(
        folder.path(),
        &["device/memory", "--device", "cpu", "--format", "junit"],
    );
    let xml = text(&output.stdout);
    assert!(xml.starts_with("<?xml"), "{xml}");
    let list = check(
        folder.path(),
        &["device/memory", "--device", "cpu", "--list"],
    );
    let listed = text(&list.stdout);
    assert!(listed.lines().count() > 5, "{listed}");
    assert_eq!(xml.matches("<testcase ").count(), listed.lines().count());
    for line in listed.lines() {
        let id = line.strip_prefix("cpu:0 ").expect("selector and id");
        assert!(xml.contains(&format!("name=\"{id}\"")), "{id}");
    }
}

#[test]
fn a_list_is_the_same_twice_and_holds_no_id_twice() {
    let folder = tempfile::tempdir().unwrap();
    let list = || text(&check(folder.path(), &["--device", "cpu", "--list"]).stdout);
    let (first, second) = (list(), list());
    assert_eq!(first, second);
    let mut ids: Vec<_> = first.lines().collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all);
    for op in ["gemm/", "attention_paged/", "moe_ffn/", "device/"] {
        assert!(first.contains(&format!("cpu:0 {op}")), "no case of {op}");
    }
}

#[test]
fn shards_together_are_all_cases() {
    let folder = tempfile::tempdir().unwrap();
    let list = |more: &[&str]| {
        let output = check(
            folder.path(),
            &[&["--device", "cpu", "--list"], more].concat(),
        );
        let lines = text(&output.stdout);
        lines.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let shards = ["1/3", "2/3", "3/3"].map(|shard| list(&["--shard", shard]));
    let sizes = shards.each_ref().map(Vec::len);
    assert!(sizes[0].abs_diff(sizes[2]) <= 1, "{sizes:?}");
    let mut together = shards.concat();
    let mut all = list(&[]);
    together.sort_unstable();
    all.sort_unstable();
    assert_eq!(together, all);

    for refused in ["0/3", "4/3", "1", "1/0"] {
        let arguments = ["--device", "cpu", "--list", "--shard", refused];
        assert!(
            !check(folder.path(), &arguments).status.success(),
            "{refused}"
        );
    }
}
