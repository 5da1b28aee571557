//! Where CANN's libraries are, what they have of the functions that are called, and who initialises them.
//!
//! A library is opened by an absolute path or by its name alone, never from the working directory, and never closed: CANN leaves threads
//! behind. Which version it is does not matter; which functions it has does.

use std::ffi::{OsStr, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::Library;
use ropeway_core::device::{Reason, Unavailable};
use ropeway_core::{Error, Result};

use super::sys::{self, Compiler, Runtime};

/// Names of the runtime's library: the new one, the umbrella of old, and these with the number that packages without headers have.
const RUNTIME: [&str; 4] = [
    "libacl_rt.so",
    "libascendcl.so",
    "libacl_rt.so.1",
    "libascendcl.so.1",
];
/// Names of the run-time compiler's library.
const COMPILER: [&str; 2] = ["libacl_rtc.so", "libacl_rtc.so.1"];
/// Where an installer of CANN puts it unless told otherwise: since 8.5, and before.
const DEFAULT_PLACES: [&str; 2] = [
    "/usr/local/Ascend/cann",
    "/usr/local/Ascend/ascend-toolkit/latest",
];

const REMEDY: &str = "install Huawei's driver and CANN 8.1 or later, and source its set_env.sh (or set ASCEND_HOME_PATH to where it is)";

/// How kernels are launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LaunchPath {
    /// `aclrtLaunchKernelWithHostArgs`: all arguments at once (CANN 8.5).
    HostArgs,
    /// `aclrtKernelArgsAppend` for each, then `aclrtLaunchKernelWithConfig`.
    KernelArgs,
}

/// What was found.
pub(super) struct Api {
    pub(super) runtime: Runtime,
    pub(super) launch: LaunchPath,
    /// The version of the interface, which its own function tells (`1.15.0`).
    pub(super) version: String,
    pub(super) compiler: Option<RuntimeCompiler>,
}

/// The run-time compiler, and what tells its version: it has no function that does, but each version lies in a directory of its own.
pub(super) struct RuntimeCompiler {
    pub(super) functions: Compiler,
    pub(super) identity: String,
}

impl Api {
    /// Whether launches can be captured into a model runtime instance.
    pub(super) fn captures(&self) -> bool {
        let runtime = &self.runtime;
        runtime.aclmdlRICaptureBegin.is_some()
            && runtime.aclmdlRICaptureEnd.is_some()
            && runtime.aclmdlRIExecuteAsync.is_some()
            && runtime.aclmdlRIDestroy.is_some()
    }

    /// Whether asynchronous copies want addresses that are multiples of 64, as CANN 8.1 documents and later versions do not: by a function that
    /// came between.
    pub(super) fn wants_aligned_copies(&self) -> bool {
        self.launch == LaunchPath::KernelArgs
    }

    /// What it does by which functions, for reports.
    pub(super) fn paths(&self) -> String {
        let launch = match self.launch {
            LaunchPath::HostArgs => "HostArgs",
            LaunchPath::KernelArgs => "KernelArgs",
        };
        let load = match self.runtime.aclrtBinaryLoadFromData {
            Some(_) => "FromData",
            None => "FromFile",
        };
        let graphs = match self.captures() {
            true => "capture",
            false => "loop",
        };
        format!("{launch} {load} {graphs}")
    }

    /// Opens the libraries in the first of `places` that has them, and looks every function up.
    ///
    /// # Errors
    /// Which libraries were tried, or which function is missing from which.
    pub(super) fn load(places: &[PathBuf], by_name: bool) -> Result<Api, Unavailable> {
        let because = |reason| Unavailable {
            reason,
            remedy: REMEDY.into(),
        };
        let mut tried = Vec::new();
        let mut incomplete = None;
        for path in candidates(places, by_name, &RUNTIME) {
            tried.push(path.display().to_string());
            let Some(library) = open(&path) else {
                continue;
            };
            match complete(library) {
                Ok((runtime, launch)) => {
                    let version = version(&runtime)
                        .map_err(|error| because(Reason::InitialisationFailed(error)))?;
                    return Ok(Api {
                        compiler: compiler(places, by_name),
                        runtime,
                        launch,
                        version,
                    });
                }
                // Of an installation that has both, the umbrella may still be whole.
                Err(symbol) => {
                    incomplete.get_or_insert(Reason::SymbolMissing {
                        library: path.display().to_string(),
                        symbol: symbol.into(),
                    });
                }
            }
        }
        Err(because(
            incomplete.unwrap_or(Reason::LibraryNotFound { tried }),
        ))
    }
}

/// Directories that may hold libraries, by what the environment says and then by default. Relative ones are passed over.
fn places(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Vec<PathBuf> {
    let said = ["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"].into_iter().filter_map(|name| {
        let place = PathBuf::from(variable(name)?);
        if !place.is_absolute() {
            tracing::warn!(variable = name, path = %place.display(), "not an absolute path; no library is loaded from there");
            return None;
        }
        Some(place)
    });
    let mut all: Vec<PathBuf> = said
        .chain(DEFAULT_PLACES.map(PathBuf::from))
        .map(|place| place.join("lib64"))
        .collect();
    all.dedup();
    all
}

/// Every path at which a library of these names may be, in order; then the names alone, which the dynamic loader knows where to find.
fn candidates(places: &[PathBuf], by_name: bool, names: &[&str]) -> Vec<PathBuf> {
    let in_places = places
        .iter()
        .flat_map(|place| names.iter().map(|name| place.join(name)));
    let alone = names.iter().filter(|_| by_name).map(PathBuf::from);
    in_places.chain(alone).collect()
}

/// Opens a library for good.
fn open(path: &Path) -> Option<&'static Library> {
    if path.is_absolute() && !path.exists() {
        return None;
    }
    // SAFETY: an absolute path, or a name without a slash; its initialisers are the vendor's.
    match unsafe { Library::new(path) } {
        // Never closed: its threads may still run.
        Ok(library) => Some(Box::leak(Box::new(library))),
        Err(error) => {
            if path.is_absolute() {
                tracing::warn!(library = %path.display(), %error, "a library of CANN is there and cannot be loaded");
            }
            None
        }
    }
}

fn find(library: &Library, name: &str) -> *mut c_void {
    // SAFETY: only the address is taken.
    let found = unsafe { library.get::<*mut c_void>(name.as_bytes()) };
    // What is there by name only, at address 0, is none.
    found.map_or(std::ptr::null_mut(), |symbol| *symbol)
}

/// The functions of the runtime, and by which of them kernels are launched.
///
/// # Errors
/// The function that is missing.
fn complete(library: &'static Library) -> Result<(Runtime, LaunchPath), &'static str> {
    // SAFETY: the library stays; the functions of CANN's runtime have these types in every version.
    let runtime = unsafe { Runtime::load(|name| find(library, name)) }?;
    if runtime.aclrtLaunchKernelWithHostArgs.is_some() {
        return Ok((runtime, LaunchPath::HostArgs));
    }
    let missing = [
        ("aclrtKernelArgsInit", runtime.aclrtKernelArgsInit.is_none()),
        (
            "aclrtKernelArgsAppend",
            runtime.aclrtKernelArgsAppend.is_none(),
        ),
        (
            "aclrtKernelArgsFinalize",
            runtime.aclrtKernelArgsFinalize.is_none(),
        ),
        (
            "aclrtLaunchKernelWithConfig",
            runtime.aclrtLaunchKernelWithConfig.is_none(),
        ),
    ];
    match missing.into_iter().find(|(_, missing)| *missing) {
        Some((symbol, _)) => Err(symbol),
        None => Ok((runtime, LaunchPath::KernelArgs)),
    }
}

fn version(runtime: &Runtime) -> Result<String> {
    let (mut major, mut minor, mut patch) = (0, 0, 0);
    // SAFETY: the pointers are valid; the call needs no initialisation.
    unsafe {
        sys::run!(
            runtime,
            aclrtGetVersion(&raw mut major, &raw mut minor, &raw mut patch)
        )
    }?;
    Ok(format!("{major}.{minor}.{patch}"))
}

/// The run-time compiler, if it is there whole.
fn compiler(places: &[PathBuf], by_name: bool) -> Option<RuntimeCompiler> {
    for path in candidates(places, by_name, &COMPILER) {
        let Some(library) = open(&path) else {
            continue;
        };
        // SAFETY: the library stays; its functions have these types in every version.
        match unsafe { Compiler::load(|name| find(library, name)) } {
            Ok(functions) => {
                return Some(RuntimeCompiler {
                    functions,
                    identity: identity(&path),
                });
            }
            Err(symbol) => {
                tracing::warn!(library = %path.display(), symbol, "a run-time compiler of CANN lacks a function; it is not used");
            }
        }
    }
    None
}

/// What changes when the compiler does: where it really lies (`…/8.5.0/…`), and how long the file is.
fn identity(path: &Path) -> String {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let length = real.metadata().map_or(0, |file| file.len());
    format!("{} ({length} bytes)", real.display())
}

/// CANN as the environment names it. What was found is kept; a failure is looked into again.
///
/// # Errors
/// As [`Api::load`].
pub(super) fn api() -> Result<&'static Api, Unavailable> {
    static API: OnceLock<Api> = OnceLock::new();
    static LOADING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(api) = API.get() {
        return Ok(api);
    }
    let found = Api::load(
        &places(|name| std::env::var_os(name).filter(|value| value != OsStr::new(""))),
        true,
    )?;
    Ok(API.get_or_init(|| found))
}

/// `aclInit`, for as long as this lives. Devices that are open at the same time share one.
pub(super) struct Session(&'static Api);

#[derive(Default)]
struct Initialisation {
    sessions: usize,
    ours: bool,
}

static INITIALISATION: Mutex<Initialisation> = Mutex::new(Initialisation {
    sessions: 0,
    ours: false,
});

impl Session {
    /// Initialises CANN, unless this process has done so.
    ///
    /// # Errors
    /// What `aclInit` reports.
    pub(super) fn begin(api: &'static Api) -> Result<Session> {
        let mut state = INITIALISATION
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if state.sessions == 0 {
            // SAFETY: null is the default configuration.
            let code = unsafe { (api.runtime.aclInit)(std::ptr::null()) };
            state.ours = code == 0;
            if code != sys::INITIALISED_BEFORE {
                api.runtime.check("aclInit", code)?;
            }
        }
        state.sessions += 1;
        Ok(Session(api))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut state = INITIALISATION
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        state.sessions -= 1;
        if state.sessions > 0 || !std::mem::take(&mut state.ours) {
            return;
        }
        // Somebody else may have called `aclInit` after us: where initialisations are counted, only ours is taken back.
        let runtime = &self.0.runtime;
        let ended = match runtime.aclFinalizeReference {
            // SAFETY: null asks for no count.
            Some(finalise) => runtime.check("aclFinalizeReference", unsafe {
                finalise(std::ptr::null_mut())
            }),
            // SAFETY: nothing of ours is left: every object holds a session.
            None => unsafe { sys::run!(runtime, aclFinalize()) },
        };
        if let Err(error) = ended {
            tracing::warn!(%error, "CANN was not finalised");
        }
    }
}

/// What an error is that a library is missing for.
pub(super) fn no_compiler() -> Error {
    Error::unsupported(format!(
        "compiling AscendC kernels without CANN's run-time compiler: none of {} was found (it comes with CANN 8.3 and later); and no binary of \
         this kernel that was compiled beforehand",
        COMPILER.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_looked_for_at_absolute_paths_and_then_by_name() {
        let said = |name: &str| match name {
            "ASCEND_HOME_PATH" => Some("/opt/cann".into()),
            "ASCEND_TOOLKIT_HOME" => Some("relative/toolkit".into()),
            other => panic!("{other} is not asked for"),
        };
        let found = places(said);
        let expected = [
            "/opt/cann/lib64",
            "/usr/local/Ascend/cann/lib64",
            "/usr/local/Ascend/ascend-toolkit/latest/lib64",
        ];
        assert_eq!(found, expected.map(PathBuf::from));
        let all = candidates(&found, true, &RUNTIME);
        assert_eq!(all.len(), 4 * 4);
        assert_eq!(all[0], Path::new("/opt/cann/lib64/libacl_rt.so"));
        for (index, path) in all.iter().enumerate() {
            let is_name = path.components().count() == 1;
            assert_eq!(is_name, index >= 12, "{}", path.display());
            assert!(is_name || path.is_absolute());
        }
        assert_eq!(candidates(&found, false, &RUNTIME).len(), 12);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let empty = tempfile::tempdir().expect("a directory");
        let Err(missing) = Api::load(&[empty.path().to_owned()], false) else {
            panic!("an empty directory has no library");
        };
        let Reason::LibraryNotFound { tried } = missing.reason else {
            panic!("{missing}");
        };
        assert_eq!(tried.len(), RUNTIME.len());
        assert!(missing.remedy.contains("ASCEND_HOME_PATH"));
    }
}
