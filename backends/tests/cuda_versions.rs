//! An engine may ask `cudarc` for the CUDA version of its choice. Cargo gives all crates of a build one `cudarc` with the features that any of
//! them asks for, and two versions do not compile together: so Ropeway asks for none, and this builds it beside one that does.
#![cfg(feature = "cuda")]

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn builds_beside_an_engine_that_picks_a_cuda_version() {
    let backends = env!("CARGO_MANIFEST_DIR");
    let engine = Path::new(env!("CARGO_TARGET_TMPDIR")).join("engine");
    fs::create_dir_all(engine.join("src")).expect("a directory");
    let manifest = format!(
        r#"
[package]
name = "engine"
edition = "2024"

[workspace]

[dependencies]
cudarc = {{ version = "0.19", default-features = false, features = ["std", "driver", "dynamic-loading", "cuda-12080"] }}
ropeway-backends = {{ path = {backends:?}, default-features = false, features = ["cuda"] }}
"#
    );
    fs::write(engine.join("Cargo.toml"), manifest).expect("a file");
    let source = "pub use {cudarc::driver::CudaContext, ropeway_backends::cuda::CudaDriver};\n";
    fs::write(engine.join("src/lib.rs"), source).expect("a file");
    // The versions that this build has are those that are here without a network.
    let lock = Path::new(backends).join("../Cargo.lock");
    fs::copy(lock, engine.join("Cargo.lock")).expect("the workspace's lock file");
    let output = Command::new(env!("CARGO"))
        .args(["check", "--offline", "--target-dir"])
        .arg(engine.join("target"))
        .current_dir(&engine)
        .env_remove("RUSTFLAGS")
        .output()
        .expect("cargo runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
