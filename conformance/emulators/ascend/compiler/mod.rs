//! The run-time compiler: AscendC source to a shared object, by the machine's g++ and a clean-room subset of AscendC.
//!
//! The subset's headers are what a source finds as `kernel_operator.h`. They run a kernel on host threads and watch it; they are not a
//! compiler for NPUs, and what passes here may still be refused by the real one.

pub mod entry;
pub mod store;
pub mod subset;
pub mod trailer;

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::runtime::binary::{self, ARCHITECTURE};
use crate::runtime::device::emulator;
use crate::runtime::lock;
use crate::runtime::status::{self, Result};

/// A source, and what became of it.
#[derive(Debug)]
pub struct Program {
    source: String,
    name: String,
    outcome: Mutex<Outcome>,
}

#[derive(Debug, Default)]
struct Outcome {
    log: String,
    binary: Option<Vec<u8>>,
}

impl Program {
    /// A source that is not compiled yet.
    pub fn new(source: String, name: &str) -> Program {
        // The name serves as one of a file.
        let name: String = name
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || "._-".contains(c) {
                    c
                } else {
                    '_'
                }
            })
            .collect();
        Program {
            source,
            name: if name.is_empty() {
                "kernel".into()
            } else {
                name
            },
            outcome: Mutex::default(),
        }
    }

    /// Compiles it.
    ///
    /// # Errors
    /// 276000 where source or options are at fault, with a log; 576000 where there is no g++.
    pub fn compile(&self, options: &[&str]) -> Result<()> {
        let result = if emulator().faults.compilation() {
            Err(status::COMPILE_FAILED.because("error: on demand"))
        } else {
            self.build(options)
        };
        let mut outcome = lock(&self.outcome);
        match result {
            Ok((binary, log)) => {
                *outcome = Outcome {
                    log,
                    binary: Some(binary),
                };
                Ok(())
            }
            Err(failure) => {
                *outcome = Outcome {
                    log: failure.why.clone(),
                    binary: None,
                };
                Err(failure)
            }
        }
    }

    /// What the last compilation made, if it succeeded.
    pub fn binary(&self) -> Option<Vec<u8>> {
        lock(&self.outcome).binary.clone()
    }

    fn build(&self, options: &[&str]) -> Result<(Vec<u8>, String)> {
        let defines = check_options(options).map_err(|why| status::COMPILE_FAILED.because(why))?;
        let folder = tempfile::Builder::new().prefix("ropeway-aclrtc-").tempdir();
        let unwritable =
            |error| status::COMPILER_FAILED.because(format!("no place to compile: {error}"));
        let folder = folder.map_err(unwritable)?;
        let subset = subset::write(folder.path()).map_err(unwritable)?;
        let file = folder.path().join(&self.name);
        std::fs::write(&file, &self.source).map_err(unwritable)?;
        let version = compiler_version(folder.path())?;
        let mut parts: Vec<&[u8]> = vec![
            b"kernels",
            &version,
            &subset.text,
            self.name.as_bytes(),
            self.source.as_bytes(),
        ];
        parts.extend(defines.iter().map(|define| define.as_bytes()));
        let stored = store::name(&parts);
        let profile = emulator().settings.profile.to_string();
        if let Some(object) = store::get(&stored) {
            return Ok((binary::pack(&profile, &object), String::new()));
        }
        // Only what the preprocessor lets through has kernels; macros are left as they are, so that they can be found.
        let mut command = gpp(&subset.folder, &defines);
        command
            .args(["-E", "-fdirectives-only", "-x", "c++"])
            .arg(&file);
        let (active, _) = run(command, folder.path())?;
        let kernels = trailer::kernels(&String::from_utf8_lossy(&active));
        if kernels.is_empty() {
            let why = format!(
                "{}: error: no extern \"C\" __global__ __aicore__ void kernel",
                self.name
            );
            return Err(status::COMPILE_FAILED.because(why));
        }
        let whole = format!("{}\n{}", self.source, trailer::text(&kernels));
        std::fs::write(&file, whole).map_err(unwritable)?;
        let object = folder.path().join("kernels.so");
        let machine = folder.path().join("machine.o");
        let code = machine_object(&subset, &version, folder.path())?;
        std::fs::write(&machine, &*code).map_err(unwritable)?;
        let mut command = gpp(&subset.folder, &defines);
        command
            .args([
                "-O1",
                "-shared",
                "-fPIC",
                "-fvisibility=hidden",
                "-Wl,--no-undefined",
                "-o",
            ])
            .arg(&object)
            .args(["-x", "c++"])
            .arg(&file)
            .args(["-x", "none"])
            .arg(&machine);
        let (_, log) = run(command, folder.path())?;
        let object = std::fs::read(&object).map_err(unwritable)?;
        // What a kept object was warned of would not be said again.
        if log.is_empty() {
            store::put(&stored, &object);
        }
        Ok((binary::pack(&profile, &object), log))
    }
}

/// What every kernel is linked with, compiled once in a process, or kept from before.
fn machine_object(subset: &subset::Subset, version: &[u8], folder: &Path) -> Result<Arc<Vec<u8>>> {
    static COMPILED: Mutex<Option<(String, Arc<Vec<u8>>)>> = Mutex::new(None);
    let name = store::name(&[b"machine", version, &subset.text]);
    // Held while it is compiled: whoever comes meanwhile needs the same.
    let mut compiled = lock(&COMPILED);
    if let Some((known, code)) = &*compiled
        && *known == name
    {
        return Ok(Arc::clone(code));
    }
    let code = match store::get(&name) {
        Some(code) => code,
        None => {
            let object = folder.join("machine.o");
            let mut command = gpp(&subset.folder, &[]);
            command
                .args(["-O3", "-fPIC", "-fvisibility=hidden", "-c", "-o"])
                .arg(&object)
                .arg(subset.folder.join("machine.cpp"));
            run(command, folder)?;
            let code = std::fs::read(&object)
                .map_err(|error| status::COMPILER_FAILED.because(format!("{error}")))?;
            store::put(&name, &code);
            code
        }
    };
    let code = Arc::new(code);
    *compiled = Some((name, Arc::clone(&code)));
    Ok(code)
}

/// The compiler's name.
fn compiler() -> OsString {
    std::env::var_os("ROPEWAY_EMULATED_CANN_CXX").unwrap_or_else(|| "g++".into())
}

/// Which compiler it is, asked once in a process.
fn compiler_version(folder: &Path) -> Result<Arc<Vec<u8>>> {
    static KNOWN: Mutex<Option<(OsString, Arc<Vec<u8>>)>> = Mutex::new(None);
    let name = compiler();
    if let Some((known, version)) = &*lock(&KNOWN)
        && *known == name
    {
        return Ok(Arc::clone(version));
    }
    let mut command = Command::new(&name);
    command.arg("--version");
    let version = Arc::new(run(command, folder)?.0);
    *lock(&KNOWN) = Some((name, Arc::clone(&version)));
    Ok(version)
}

/// What all calls of g++ have in common.
fn gpp(headers: &Path, defines: &[&str]) -> Command {
    let mut command = Command::new(compiler());
    command
        .args(["-std=c++17", "-I"])
        .arg(headers)
        .args(defines);
    // Its messages are part of what is tested.
    command.env("LC_ALL", "C");
    command
}

/// Runs the compiler; gives its output and its messages, without the names of places that exist only now.
fn run(mut command: Command, folder: &Path) -> Result<(Vec<u8>, String)> {
    let output = command.output().map_err(|error| {
        let name = command.get_program().to_string_lossy().into_owned();
        let why = format!(
            "error: {name} cannot be run, which the emulated run-time compiler needs: {error}"
        );
        status::COMPILER_FAILED.because(why)
    })?;
    let place = format!("{}/", folder.display());
    let log = String::from_utf8_lossy(&output.stderr).replace(&place, "");
    if output.status.success() {
        Ok((output.stdout, log))
    } else {
        Err(status::COMPILE_FAILED.because(log))
    }
}

/// The definitions among the options; every other option is known or refused.
fn check_options<'a>(options: &[&'a str]) -> std::result::Result<Vec<&'a str>, String> {
    let mut architecture = false;
    let mut defines = Vec::new();
    for option in options {
        if let Some(name) = option.strip_prefix("--npu-arch=") {
            if name != ARCHITECTURE {
                return Err(format!(
                    "error: --npu-arch={name} is not supported, only {ARCHITECTURE} is"
                ));
            }
            architecture = true;
        } else if option
            .strip_prefix("-D")
            .is_some_and(|define| !define.is_empty())
        {
            defines.push(*option);
        } else {
            return Err(format!("error: unknown option {option}"));
        }
    }
    if !architecture {
        return Err(format!("error: --npu-arch={ARCHITECTURE} is missing"));
    }
    Ok(defines)
}

#[cfg(test)]
mod tests {
    use super::check_options;

    #[test]
    fn options_are_known_or_refused() {
        let defines = check_options(&["--npu-arch=dav-2201", "-DM=3", "-DTRANSPOSED"]);
        assert_eq!(defines.unwrap(), ["-DM=3", "-DTRANSPOSED"]);
        for wrong in [
            &["-DM=3"][..],
            &["--npu-arch=dav-3101"],
            &["--npu-arch=dav-2201", "-O7"],
            &["--npu-arch=dav-2201", "-D"],
        ] {
            assert!(check_options(wrong).unwrap_err().starts_with("error: "));
        }
    }
}
