//! NVRTC libraries, each opened by itself: two versions serve one process.

use std::env;
use std::ffi::{CString, c_char, c_int, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;

use libloading::Library;

/// Names the libraries to use, as paths separated by colons.
const VARIABLE: &str = "ROPEWAY_NVRTC";

/// What the loader may know.
const NAMES: [&str; 3] = ["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"];

type Program = *mut c_void;
type SizeOf = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type BytesOf = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// A compiler.
pub struct Nvrtc {
    library: Library,
    /// NVRTC opens it by its bare name, which the loader knows once it is open.
    _builtins: Option<Library>,
    /// "12.9".
    pub version: String,
}

/// Machine code, and what ptxas said of it.
pub struct Compiled {
    /// An ELF file.
    pub cubin: Vec<u8>,
    /// Registers, spills and shared memory of each entry.
    pub log: String,
}

/// Every version that is there, or why there is none.
pub fn find() -> Result<Vec<Arc<Nvrtc>>, String> {
    let named = env::var_os(VARIABLE);
    let paths: Vec<PathBuf> = match &named {
        Some(paths) => env::split_paths(paths).collect(),
        None => NAMES.map(PathBuf::from).to_vec(),
    };
    let mut found: Vec<Arc<Nvrtc>> = Vec::new();
    let mut failures = Vec::new();
    for path in paths {
        match Nvrtc::open(&path) {
            Ok(nvrtc) if found.iter().any(|other| other.version == nvrtc.version) => {}
            Ok(nvrtc) => found.push(Arc::new(nvrtc)),
            Err(error) => failures.push(error),
        }
    }
    match (found.is_empty(), named.is_some()) {
        // Who names a library wants that one.
        (_, true) if !failures.is_empty() => panic!("{VARIABLE}: {failures:?}"),
        (true, _) => Err(format!(
            "no NVRTC: set {VARIABLE} to its path, or install nvidia-cuda-nvrtc-cu12 ({failures:?})"
        )),
        _ => Ok(found),
    }
}

/// The library of built-in functions that lies beside NVRTC.
fn beside(nvrtc: &Path) -> Option<Library> {
    let files = fs::read_dir(nvrtc.parent()?).ok()?.flatten();
    let mut names = files.map(|file| file.path());
    let found = names.find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libnvrtc-builtins.so") && !name.contains("alt")
    })?;
    // SAFETY: a library of NVIDIA's, whose initialisers have no preconditions.
    unsafe { Library::new(found) }.ok()
}

impl Nvrtc {
    fn open(path: &Path) -> Result<Nvrtc, String> {
        let builtins = beside(path);
        // SAFETY: a library of NVIDIA's, whose initialisers have no preconditions.
        let library = unsafe { Library::new(path) }.map_err(|error| error.to_string())?;
        let (mut major, mut minor) = (0, 0);
        {
            // SAFETY: declared so in nvrtc.h.
            let version = unsafe {
                library
                    .get::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>(b"nvrtcVersion\0")
            };
            let version = version.map_err(|error| error.to_string())?;
            // SAFETY: both pointers are valid.
            let status = unsafe { version(&raw mut major, &raw mut minor) };
            assert_eq!(status, 0, "nvrtcVersion");
        }
        let version = format!("{major}.{minor}");
        Ok(Nvrtc {
            library,
            _builtins: builtins,
            version,
        })
    }

    /// Compiles to machine code, as the backend does, and has ptxas report.
    ///
    /// # Errors
    /// The log of what does not compile.
    pub fn compile(&self, text: &str, options: &[String]) -> Result<Compiled, String> {
        let text = CString::new(text).expect("a source without NUL");
        let options: Vec<CString> = options
            .iter()
            .map(String::as_str)
            .chain(["--ptxas-options=-v"])
            .map(|option| CString::new(option).expect("an option without NUL"))
            .collect();
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program: Program = ptr::null_mut();
        // SAFETY: declared so in nvrtc.h; the texts end with NUL and outlive the calls, the program is the one that was made,
        // and it is not used after its end.
        unsafe {
            let create = self.function::<unsafe extern "C" fn(
                *mut Program,
                *const c_char,
                *const c_char,
                c_int,
                *const *const c_char,
                *const *const c_char,
            ) -> c_int>("nvrtcCreateProgram");
            let name = c"kernel.cu".as_ptr();
            let created = create(
                &raw mut program,
                text.as_ptr(),
                name,
                0,
                ptr::null(),
                ptr::null(),
            );
            assert_eq!(created, 0, "nvrtcCreateProgram");
            let compile = self
                .function::<unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int>(
                    "nvrtcCompileProgram",
                );
            let status = compile(program, pointers.len() as c_int, pointers.as_ptr());
            let log = self.bytes(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog");
            let log = String::from_utf8_lossy(&log)
                .trim_end_matches('\0')
                .to_owned();
            let compiled = match status {
                0 => Ok(Compiled {
                    cubin: self.bytes(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN"),
                    log,
                }),
                _ => Err(log),
            };
            self.function::<unsafe extern "C" fn(*mut Program) -> c_int>("nvrtcDestroyProgram")(
                &raw mut program,
            );
            compiled
        }
    }

    /// # Safety
    /// `program` is one of this library's, and the functions give a size and so many bytes of it.
    unsafe fn bytes(&self, program: Program, size: &str, get: &str) -> Vec<u8> {
        let mut bytes = 0;
        // SAFETY: the caller's promise; the pointer is valid.
        let status = unsafe { self.function::<SizeOf>(size)(program, &raw mut bytes) };
        assert_eq!(status, 0, "{size}");
        let mut all = vec![0; bytes];
        // SAFETY: the caller's promise; there is room for what the library said.
        let status = unsafe { self.function::<BytesOf>(get)(program, all.as_mut_ptr().cast()) };
        assert_eq!(status, 0, "{get}");
        all
    }

    /// # Safety
    /// The function is declared so in nvrtc.h.
    unsafe fn function<T: Copy>(&self, name: &str) -> T {
        // SAFETY: the caller's promise; what is returned is used while the library is open.
        let found = unsafe { self.library.get::<T>(name.as_bytes()) };
        *found.unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}
