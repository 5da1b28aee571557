//! `ropeway doctor`: what Ropeway looked for on this machine, where it found it, and what is wrong with it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use ropeway::{Registry, TunedTable, cache_dir, data_dir};
use ropeway_core::Result;
use serde_json::{Value, json};

use super::print_line;

/// Variables that change what Ropeway or the drivers it loads do.
const VARIABLES: [&str; 27] = [
    "ROPEWAY_BINARIES_DIR",
    "ROPEWAY_CACHE_DIR",
    "ROPEWAY_DATA_DIR",
    "CUDA_VISIBLE_DEVICES",
    "ASCEND_HOME_PATH",
    "ASCEND_TOOLKIT_HOME",
    "ASCEND_RT_VISIBLE_DEVICES",
    "OPENCL_DYLIB_PATH",
    "OCL_ICD_VENDORS",
    "OPENCL_VENDOR_PATH",
    "OCL_ICD_FILENAMES",
    "VK_DRIVER_FILES",
    "VK_ICD_FILENAMES",
    "VK_INSTANCE_LAYERS",
    "VK_LOADER_LAYERS_ENABLE",
    "VK_LAYER_SETTINGS_PATH",
    "ROPEWAY_VULKAN_STAGING",
    "LP_NATIVE_VECTOR_WIDTH",
    "MESA_SHADER_CACHE_DISABLE",
    "POCL_DEVICES",
    "POCL_CACHE_DIR",
    "POCL_MAX_PTHREAD_COUNT",
    "POCL_AFFINITY",
    "LD_LIBRARY_PATH",
    "RAYON_NUM_THREADS",
    "RUST_LOG",
    "XDG_CACHE_HOME",
];

/// Parts of the names of the libraries whose place is worth knowing once they are loaded.
const LIBRARIES: [&str; 16] = [
    "libcuda",
    "nvrtc",
    "libacl_",
    "libascendcl",
    "OpenCL",
    "pocl",
    "oclgrind",
    "intelocl",
    "clblast",
    "amdocl",
    "libvulkan",
    "swiftshader",
    "VkLayer",
    "GLX_nvidia",
    "radeon",
    "intel",
];

/// Where OpenCL loaders look for drivers unless told otherwise.
const ICD_DIRECTORY: &str = "/etc/OpenCL/vendors";

/// Where Vulkan's loader looks for drivers unless told otherwise.
const VULKAN_DIRECTORIES: [&str; 3] = [
    "/etc/vulkan/icd.d",
    "/usr/local/share/vulkan/icd.d",
    "/usr/share/vulkan/icd.d",
];

/// How to say it.
#[derive(Args, Debug)]
pub struct Doctor {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// Looks at everything. The exit code is 1 if a problem was found; a vendor whose library is not installed is none.
    ///
    /// # Errors
    /// `File` if standard output cannot be written.
    pub fn run(self) -> Result<ExitCode> {
        let mut problems = Vec::new();
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            "backends": backends(),
            "icd_files": icd_files(&mut problems),
            "vulkan_drivers": vulkan_drivers(&mut problems),
            // After the probe, so that what it loaded is there to be seen.
            "libraries": loaded_libraries(),
            "cache": cache(&mut problems),
            "tuned": tuned(&mut problems),
            "environment": environment(),
            "problems": problems,
        });
        match self.json {
            true => print_line(format_args!("{report:#}"))?,
            false => print_line(to_text(&report, 0).trim_end())?,
        }
        let sound = report["problems"].as_array().is_none_or(Vec::is_empty);
        Ok(ExitCode::from(u8::from(!sound)))
    }
}

fn backends() -> Value {
    let probes = Registry::default().probe().into_iter().map(|probe| {
        let answer = match probe.devices {
            Ok(devices) => devices
                .iter()
                .map(|info| {
                    let version = format!(
                        "{} ({}, driver {}, compiler {})",
                        info.name,
                        info.platform,
                        or_unnamed(&info.driver_version),
                        or_unnamed(&info.compiler_version)
                    );
                    (info.selector(), Value::from(version))
                })
                .collect(),
            Err(unavailable) => json!({
                "missing": unavailable.reason.to_string(),
                "remedy": unavailable.remedy,
            }),
        };
        (probe.backend.to_owned(), answer)
    });
    probes.collect()
}

fn or_unnamed(version: &str) -> &str {
    match version {
        "" => "without a version",
        version => version,
    }
}

/// The drivers that OpenCL's loader is told of, and whether their libraries are there.
fn icd_files(problems: &mut Vec<String>) -> Value {
    let directory = ["OCL_ICD_VENDORS", "OPENCL_VENDOR_PATH"]
        .into_iter()
        .find_map(std::env::var_os)
        .map_or_else(|| PathBuf::from(ICD_DIRECTORY), PathBuf::from);
    let files = match directory.extension() == Some(OsStr::new("icd")) {
        true => vec![directory],
        false => list(&directory, "icd"),
    };
    let entries = files.into_iter().map(|file| {
        let name = file.display().to_string();
        let library = match fs::read_to_string(&file) {
            Ok(text) => text.trim().to_owned(),
            Err(error) => {
                problems.push(format!("{name}: {error}"));
                String::new()
            }
        };
        // A bare name is for the dynamic loader to find; a path must be there.
        if library.contains('/') && !Path::new(&library).exists() {
            problems.push(format!("{name} names {library}, which does not exist"));
        }
        (name, Value::from(library))
    });
    entries.collect()
}

/// The drivers that Vulkan's loader is told of, and whether their libraries are there.
fn vulkan_drivers(problems: &mut Vec<String>) -> Value {
    let chosen = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"]
        .into_iter()
        .find_map(std::env::var_os);
    let files: Vec<PathBuf> = match chosen {
        Some(files) => std::env::split_paths(&files).collect(),
        None => VULKAN_DIRECTORIES
            .iter()
            .flat_map(|directory| list(Path::new(directory), "json"))
            .collect(),
    };
    let entries = files.into_iter().map(|file| {
        let name = file.display().to_string();
        let manifest = fs::read_to_string(&file)
            .map_err(|error| error.to_string())
            .and_then(|text| {
                serde_json::from_str::<Value>(&text).map_err(|error| error.to_string())
            });
        let library = match manifest {
            Ok(manifest) => manifest["ICD"]["library_path"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            Err(error) => {
                problems.push(format!("{name}: {error}"));
                String::new()
            }
        };
        // A bare name is for the dynamic loader to find; a path must be there, seen from the file.
        let place = file.with_file_name("").join(&library);
        if library.contains('/') && !place.exists() {
            problems.push(format!("{name} names {library}, which does not exist"));
        }
        (name, Value::from(library))
    });
    entries.collect()
}

/// What the process has loaded of the libraries that matter, by their real paths. Known on Linux only.
fn loaded_libraries() -> Value {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut paths: Vec<&str> = maps
        .lines()
        .filter_map(|line| {
            line.split_once('/')
                .map(|(before, _)| &line[before.len()..])
        })
        .filter(|path| {
            let name = path.rsplit('/').next().unwrap_or_default();
            name.contains(".so") && LIBRARIES.iter().any(|part| name.contains(part))
        })
        .collect();
    paths.sort_unstable();
    paths.dedup();
    paths.into()
}

fn cache(problems: &mut Vec<String>) -> Value {
    let Some(directory) = cache_dir() else {
        problems.push(
            "no cache directory: set ROPEWAY_CACHE_DIR or HOME; every run compiles anew".into(),
        );
        return Value::Null;
    };
    let shown = directory.display().to_string();
    if !directory.exists() {
        return json!({"directory": shown, "state": "made at the first use"});
    }
    let (files, bytes) = size(&directory);
    let state = match writers(&directory) {
        Some(mode) if mode & 0o022 != 0 => {
            problems.push(format!(
                "{shown} may be written by others (mode {mode:o}), so cached kernels are not loaded from it: chmod go-w {shown}"
            ));
            format!("mode {mode:o}, not trusted")
        }
        Some(mode) => format!("mode {mode:o}"),
        None => "permissions unknown".into(),
    };
    json!({"directory": shown, "state": state, "files": files, "bytes": bytes})
}

#[cfg(unix)]
fn writers(path: &Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt;
    Some(fs::metadata(path).ok()?.permissions().mode() & 0o777)
}

#[cfg(not(unix))]
fn writers(_: &Path) -> Option<u32> {
    None
}

fn size(directory: &Path) -> (u64, u64) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.fold((0, 0), |(files, bytes), entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => {
            let (more_files, more_bytes) = size(&entry.path());
            (files + more_files, bytes + more_bytes)
        }
        Ok(metadata) => (files + 1, bytes + metadata.len()),
        Err(_) => (files, bytes),
    })
}

fn list(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
    files.retain(|file| file.extension() == Some(OsStr::new(extension)));
    files.sort();
    files
}

fn tuned(problems: &mut Vec<String>) -> Value {
    let Some(directory) = data_dir().map(|directory| directory.join("tuned")) else {
        return Value::Null;
    };
    let mut describe = |file: &Path| match TunedTable::read(file) {
        Ok(table) => {
            let entries = table.unwrap_or_default().entries;
            let faulty = entries
                .iter()
                .filter(|entry| entry.fault().is_some())
                .count();
            if faulty > 0 {
                problems.push(format!(
                    "{}: {faulty} of {} entries are passed over: ropeway tuned show",
                    file.display(),
                    entries.len()
                ));
            }
            format!("{}: {} entries", file.display(), entries.len())
        }
        Err(error) => {
            problems.push(error.context().to_owned());
            format!("{}: damaged", file.display())
        }
    };
    let files = list(&directory, "toml");
    let tables: Vec<_> = files.iter().map(|file| describe(file)).collect();
    json!({
        "directory": directory.display().to_string(),
        "tables": tables,
        "shipped": ropeway_kernels::TUNED.len(),
    })
}

fn environment() -> Value {
    VARIABLES
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), Value::from(std::env::var(name).ok()?))))
        .collect()
}

/// The report as indented lines.
fn to_text(report: &Value, depth: usize) -> String {
    let indent = "  ".repeat(depth);
    match report {
        Value::Object(fields) if fields.is_empty() => format!("{indent}none\n"),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| match value {
                Value::Object(_) | Value::Array(_) => {
                    format!("{indent}{key}:\n{}", to_text(value, depth + 1))
                }
                Value::String(text) => format!("{indent}{key}: {text}\n"),
                other => format!("{indent}{key}: {other}\n"),
            })
            .collect(),
        Value::Array(items) if items.is_empty() => format!("{indent}none\n"),
        Value::Array(items) => items.iter().map(|item| to_text(item, depth)).collect(),
        Value::String(text) => format!("{indent}{text}\n"),
        other => format!("{indent}{other}\n"),
    }
}
