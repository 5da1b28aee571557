//! `ropeway compile --language cuda` from outside. What it makes is run by `backends/tests/cuda` and `./test.sh`.

use std::process::{Command, Output};

fn compile(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ropeway"))
        .arg("compile")
        .args(arguments)
        .output()
        .expect("the command runs")
}

/// A call that makes no sense says what is wrong, with exit code 2, and makes nothing.
#[test]
fn calls_without_sense_are_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let output = directory.path().join("binaries");
    let path = output.to_str().expect("a name of letters");
    for (arguments, word) in [
        (&["--language", "cuda"][..], "--arch"),
        (&["--language", "cuda", "--output", path], "--arch"),
        (&["--language", "cuda", "--arch", "sm_80"], "--output"),
        (
            &["--language", "cuda", "--output", path, "--arch", "sm_81"],
            "sm_80",
        ),
        (
            &["--language", "cuda", "--output", path, "--arch", "sm_80,"],
            "one of",
        ),
        (
            &[
                "--language",
                "cuda",
                "--output",
                path,
                "--arch",
                "sm_80",
                "--check",
            ],
            "--check",
        ),
        (
            &["--language", "cuda", "--output", path, "--arch", "dav-2201"],
            "--arch",
        ),
        (
            &["--language", "ascendc", "--output", path, "--arch", "sm_80"],
            "dav-2201",
        ),
        (&["--language", "ascendc", "--arch", "dav-2201"], "--output"),
        (&["--language", "spirv", "--arch", "sm_80"], "--arch"),
        (&["--language", "spirv", "--output", path], "--output"),
    ] {
        let refused = compile(arguments);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(word), "{arguments:?}: {said}");
        assert!(!output.exists(), "{arguments:?}");
    }
    let workloads = directory.path().join("none.toml");
    let workloads = workloads.to_str().expect("a name of letters");
    let call = [
        "--language",
        "cuda",
        "--arch",
        "sm_80",
        "--output",
        path,
        workloads,
    ];
    let refused = compile(&call);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("none.toml") && !output.exists(), "{said}");
}
