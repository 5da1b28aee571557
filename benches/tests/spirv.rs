//! The committed SPIR-V: made from the text that lies beside it, and needing no feature that its source does not name.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use ropeway_backends::vulkan::spirv::{Reflection, words};
use ropeway_core::kernel::{Code, Language};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn check(folder: Option<&Path>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ropeway"))
        .args(["compile", "--language", "spirv", "--check"])
        .args(folder)
        .current_dir(ROOT)
        .output()
        .expect("the command runs")
}

#[test]
fn binaries_are_made_from_the_text_beside_them() {
    let output = check(None);
    assert!(
        output.status.success(),
        "stale:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A change of any byte that goes into a binary, or of the binary itself, is noticed.
#[test]
fn stale_binaries_are_noticed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let folder = directory.path().join("device");
    let source = Path::new(ROOT).join("conformance/device");
    fs::create_dir_all(folder.join("spirv")).expect("a folder");
    let mut names = vec![
        "probe.comp".to_owned(),
        "spirv.toml".into(),
        "spirv.rs".into(),
    ];
    for entry in fs::read_dir(source.join("spirv")).expect("the binaries") {
        let name = entry.expect("an entry").file_name();
        names.push(format!("spirv/{}", name.to_string_lossy()));
    }
    let restore = || {
        for name in &names {
            fs::copy(source.join(name), folder.join(name)).expect("a copy");
        }
    };
    restore();
    assert!(check(Some(&folder)).status.success());
    for name in ["probe.comp", "spirv.rs", "spirv/probe.spin.spv"] {
        let mut bytes = fs::read(folder.join(name)).expect("the file");
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        fs::write(folder.join(name), bytes).expect("the file");
        let output = check(Some(&folder));
        assert_eq!(output.status.code(), Some(1), "{name} was changed");
        restore();
    }
    fs::remove_file(folder.join("spirv/probe.spin.spv")).expect("the file");
    assert_eq!(
        check(Some(&folder)).status.code(),
        Some(1),
        "a binary is missing"
    );
    restore();
    fs::write(folder.join("spirv/more.spv"), b"").expect("a file");
    assert_eq!(
        check(Some(&folder)).status.code(),
        Some(1),
        "a binary is not listed"
    );
}

/// A device picks a source by what the source requires; were a feature missing there, it would be given a module that it cannot run.
#[test]
fn sources_name_the_features_that_their_binaries_need() {
    let mut seen = 0;
    for op in ropeway_kernels::ops() {
        for kernel in op.kernels() {
            for source in kernel
                .sources
                .iter()
                .filter(|s| s.language == Language::SpirV)
            {
                let Code::Binaries(binaries) = source.code else {
                    panic!("{}: SPIR-V that is no table of binaries", kernel.name);
                };
                for binary in binaries {
                    let found = words(binary.code).and_then(|words| Reflection::read(&words));
                    let found =
                        found.unwrap_or_else(|error| panic!("{} {binary:?}: {error}", kernel.name));
                    for feature in found.features {
                        assert!(
                            source.requires.contains(&feature),
                            "{} {binary:?} needs {feature}, its source requires {:?}",
                            kernel.name,
                            source.requires
                        );
                    }
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 0, "no SPIR-V was looked at");
}
