//! Kernels that were compiled beforehand, in a process that finds no NVRTC.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ropeway_backends::cache::Cache;
use ropeway_backends::cuda::{CudaDriver, Target, precompile};
use ropeway_core::ErrorKind;
use ropeway_core::device::{Argument, Device, Driver, OpenOptions, QueueKind};
use ropeway_core::kernel::Config;

use super::on_device::{Outcome, launch, words};
use super::{CHILD, SOURCE, function, operand};

/// The directory, for the process that [`need_no_nvrtc`] starts.
const DIRECTORY: &str = "ROPEWAY_TEST_CUDA_BINARIES";

/// What a device says where there is none.
const NONE: &str = "no NVRTC";

pub fn need_no_nvrtc(device: &Arc<dyn Device>) -> Outcome {
    if device.info().compiler_version == NONE {
        println!("skipped: it takes NVRTC to compile beforehand");
        return Ok(());
    }
    // PTX of an earlier architecture than any that this runs on, and machine code, which comes first and the emulated driver refuses.
    for names in [
        &["compute_75"][..],
        &["compute_75", &device.info().architecture],
    ] {
        let directory = tempfile::tempdir()?;
        for name in names {
            let target: Target = name.parse()?;
            precompile(
                &SOURCE,
                &Config::default(),
                target,
                &Cache::open(directory.path())?,
            )?;
        }
        let output = Command::new(env::current_exe()?)
            .env(CHILD, "beforehand")
            .env(DIRECTORY, directory.path())
            .env("LD_LIBRARY_PATH", paths_without_nvrtc())
            .output()?;
        print!("{}", String::from_utf8_lossy(&output.stdout));
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("{names:?}: {said}").into());
        }
    }
    Ok(())
}

fn paths_without_nvrtc() -> std::ffi::OsString {
    let has_nvrtc = |directory: &PathBuf| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.file_name());
        names.any(|name| name.to_string_lossy().starts_with("libnvrtc"))
    };
    let all = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    env::join_paths(env::split_paths(&all).filter(|path| !has_nvrtc(path))).expect("as they were")
}

fn open(binaries_dir: Option<&Path>) -> Arc<dyn Device> {
    let options = OpenOptions {
        binaries_dir: binaries_dir.map(Path::to_owned),
        ..OpenOptions::default()
    };
    CudaDriver.open(0, &options).expect("a device")
}

pub fn child() {
    let directory = PathBuf::from(env::var_os(DIRECTORY).expect("set by the test"));
    let device = open(Some(&directory));
    if device.info().compiler_version != NONE {
        println!("skipped: NVRTC is where the loader always looks");
        return;
    }
    let add = function(&device, "add_one").expect("compiled beforehand");
    let queue = device.create_queue(QueueKind::Compute).expect("a queue");
    let x = device.alloc(256).expect("memory");
    queue.fill(&x.all(), 0).expect("a fill");
    launch(&*queue, &add, 1, 64, &[operand(&x), Argument::U32(0)]).expect("a launch");
    assert_eq!(words(&*queue, &x).expect("results"), [1; 64]);

    let refused = |device: &Arc<dyn Device>, config: &Config| {
        let error = device.compile(&SOURCE, config).err().expect("not there");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        let text = error.to_string();
        assert!(
            text.contains("NVRTC") && text.contains("ROPEWAY_BINARIES_DIR"),
            "{text}"
        );
    };
    let mut other = Config::default();
    other.set("OTHER", 1);
    refused(&device, &other);
    refused(&open(None), &Config::default());
    let nowhere = directory.join("nowhere");
    refused(&open(Some(&nowhere)), &Config::default());
    assert!(!nowhere.exists(), "a directory was made");
    // What is cut short is not loaded.
    for entry in fs::read_dir(&directory).expect("the directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "bin") {
            let bytes = fs::read(&path).expect("the file");
            fs::write(&path, &bytes[..bytes.len() - 1]).expect("the file");
        }
    }
    refused(&open(Some(&directory)), &Config::default());
}
