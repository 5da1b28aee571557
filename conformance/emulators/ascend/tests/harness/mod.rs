//! Loads the emulated libraries as a program does: installed into a directory, opened by path, called by name.
//!
//! Each [`Cann`] is a file of its own, so that the loader takes it for a library of its own, and tests do not see each other.
#![allow(dead_code, reason = "each test file uses a part")]

use std::ffi::{CStr, CString, c_char};
use std::path::Path;
use std::process::Command;

use libloading::Library;

pub const BIN: &str = env!("CARGO_BIN_EXE_ropeway-ascend-emulator");
pub const H2H: u64 = 0;
pub const H2D: u64 = 1;
pub const D2H: u64 = 2;
pub const D2D: u64 = 3;

/// An installation.
pub struct Cann {
    pub folder: tempfile::TempDir,
    pub runtime: Library,
    pub compiler: Option<Library>,
}

/// What an out parameter takes.
pub fn out<T>(place: &mut T) -> u64 {
    std::ptr::from_mut(place) as u64
}

pub fn text(text: &CStr) -> u64 {
    text.as_ptr() as u64
}

/// Installs a version into a folder.
pub fn install(folder: &Path, arguments: &[&str]) {
    let mut command = Command::new(BIN);
    let status = command
        .arg("install")
        .arg(folder)
        .args(arguments)
        .output()
        .unwrap();
    assert!(status.status.success(), "{status:?}");
}

/// Calls a function whose arguments are integers and pointers.
///
/// Every one has a register or eight bytes of the stack to itself, so that all can be handed over as 64 bits.
pub fn call_in(library: &Library, name: &str, arguments: &[u64]) -> i32 {
    macro_rules! forms {
        ($($count:literal: $($ty:ident)*),*) => {
            match arguments.len() {
                $($count => {
                    type Function = unsafe extern "C" fn($($ty),*) -> i32;
                    // SAFETY: the test names a function with so many arguments.
                    let function = unsafe { library.get::<Function>(name.as_bytes()) };
                    let function = function.unwrap_or_else(|error| panic!("{name}: {error}"));
                    let mut rest = arguments.iter().copied();
                    let mut next = || rest.next().unwrap_or(0);
                    let _ = &mut next;
                    // SAFETY: as above; what the arguments point to outlives the call.
                    unsafe { function($({ let value: $ty = next(); value }),*) }
                })*
                more => panic!("{name} with {more} arguments"),
            }
        };
    }
    forms!(0: , 1: u64, 2: u64 u64, 3: u64 u64 u64, 4: u64 u64 u64 u64, 5: u64 u64 u64 u64 u64,
        6: u64 u64 u64 u64 u64 u64, 7: u64 u64 u64 u64 u64 u64 u64, 8: u64 u64 u64 u64 u64 u64 u64 u64)
}

fn lines(library: &Library, name: &str) -> Vec<String> {
    type Function = unsafe extern "C" fn(*mut u8, usize) -> usize;
    // SAFETY: these functions have this type.
    let function = unsafe { library.get::<Function>(name.as_bytes()) }.unwrap();
    let mut bytes = vec![0u8; 1 << 16];
    // SAFETY: there is as much room as is said.
    let needed = unsafe { function(bytes.as_mut_ptr(), bytes.len()) };
    assert!(needed <= bytes.len());
    let text = CStr::from_bytes_until_nul(&bytes).unwrap();
    text.to_str().unwrap().lines().map(str::to_owned).collect()
}

impl Cann {
    /// An installation of a version, opened but not initialised.
    pub fn open(profile: &str) -> Cann {
        let folder = tempfile::tempdir().unwrap();
        install(folder.path(), &["--profile", profile]);
        let library = folder.path().join("lib64/libacl_rt.so");
        // SAFETY: the emulator's library has no initialisers.
        let runtime = unsafe { Library::new(library) }.unwrap();
        let compiler = folder.path().join("lib64/libacl_rtc.so");
        // SAFETY: as above.
        let compiler = compiler
            .exists()
            .then(|| unsafe { Library::new(compiler) }.unwrap());
        Cann {
            folder,
            runtime,
            compiler,
        }
    }

    /// The default version, initialised, with device 0 current in this thread.
    pub fn ready() -> Cann {
        Cann::ready_as("9.0")
    }

    pub fn ready_as(profile: &str) -> Cann {
        let cann = Cann::open(profile);
        cann.ok("aclInit", &[0]);
        cann.ok("aclrtSetDevice", &[0]);
        cann
    }

    pub fn call(&self, name: &str, arguments: &[u64]) -> i32 {
        call_in(&self.runtime, name, arguments)
    }

    /// Calls what must not fail.
    pub fn ok(&self, name: &str, arguments: &[u64]) {
        let code = self.call(name, arguments);
        assert_eq!(code, 0, "{name}: {:?}", self.message());
    }

    /// Calls what must fail with this code, as a breach whose text has this.
    pub fn breach(&self, code: i32, with: &str, name: &str, arguments: &[u64]) {
        assert_eq!(
            self.call(name, arguments),
            code,
            "{name}: {:?}",
            self.message()
        );
        let message = self.message().unwrap();
        assert!(message.contains(with), "{message}");
        self.breached(with);
    }

    /// Calls what must fail with this code, without being a breach.
    pub fn fails(&self, code: i32, name: &str, arguments: &[u64]) {
        assert_eq!(self.call(name, arguments), code, "{name}");
        assert_eq!(self.breaches(), [""; 0]);
    }

    /// There was this one breach.
    pub fn breached(&self, with: &str) {
        let breaches = self.breaches();
        assert!(
            breaches.len() == 1 && breaches[0].contains(with),
            "{with}: {breaches:?}"
        );
    }

    pub fn breaches(&self) -> Vec<String> {
        lines(&self.runtime, "ropeway_emulated_cann_breaches")
    }

    pub fn living(&self) -> Vec<String> {
        lines(&self.runtime, "ropeway_emulated_cann_living")
    }

    pub fn message(&self) -> Option<String> {
        type Function = unsafe extern "C" fn() -> *const c_char;
        // SAFETY: the function has this type.
        let function = unsafe { self.runtime.get::<Function>(b"aclGetRecentErrMsg") }.unwrap();
        // SAFETY: null, or a text until the next call.
        unsafe {
            let message = function();
            (!message.is_null()).then(|| CStr::from_ptr(message).to_str().unwrap().to_owned())
        }
    }

    pub fn fault(&self, list: &str) {
        let list = CString::new(list).unwrap();
        self.ok("ropeway_emulated_cann_set_fault", &[text(&list)]);
    }

    /// A handle or address that a function gives in its first argument.
    pub fn make(&self, name: &str, arguments: &[u64]) -> u64 {
        let mut made = 0u64;
        let mut all = vec![out(&mut made)];
        all.extend(arguments);
        self.ok(name, &all);
        made
    }

    pub fn malloc(&self, bytes: u64) -> u64 {
        self.make("aclrtMalloc", &[bytes, 0])
    }

    pub fn pinned(&self, bytes: u64) -> &'static mut [u8] {
        let address = self.make("aclrtMallocHost", &[bytes]);
        // SAFETY: so many bytes of pinned memory, which this test frees when it is done with them, if at all.
        unsafe { std::slice::from_raw_parts_mut(address as *mut u8, bytes as usize) }
    }

    pub fn stream(&self) -> u64 {
        self.make("aclrtCreateStream", &[])
    }

    pub fn synchronize(&self, stream: u64) {
        self.ok("aclrtSynchronizeStream", &[stream]);
    }

    /// Memory of the device, as bytes.
    pub fn download(&self, from: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0u8; bytes];
        let (to, bytes) = (data.as_mut_ptr() as u64, bytes as u64);
        self.ok("aclrtMemcpy", &[to, bytes, from, bytes, D2H]);
        data
    }

    pub fn upload(&self, to: u64, data: &[u8]) {
        let bytes = data.len() as u64;
        self.ok(
            "aclrtMemcpy",
            &[to, bytes, data.as_ptr() as u64, bytes, H2D],
        );
    }
}

/// Runs a test of this file again in a process of its own, which finds `what` in the environment.
pub fn child(test: &str, what: &str, variables: &[(&str, &str)]) -> std::process::Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.env(CHILD, what).envs(variables.iter().copied());
    command.output().unwrap()
}

const CHILD: &str = "ROPEWAY_TEST_CHILD";

/// What this process shall do, if it is one that a test started.
pub fn of_child() -> Option<String> {
    std::env::var(CHILD).ok()
}

pub const SOURCE: &CStr =
    match CStr::from_bytes_with_nul(concat!(include_str!("../scale.asc"), "\0").as_bytes()) {
        Ok(source) => source,
        Err(_) => panic!("the source has a NUL"),
    };
pub const ARCHITECTURE: &CStr = c"--npu-arch=dav-2201";

/// What compiling gives: the code, the binary if there is one, the log.
pub fn compile(compiler: &Library, source: &CStr, options: &[&CStr]) -> (i32, Vec<u8>, String) {
    let ok = |name, arguments: &[u64]| assert_eq!(call_in(compiler, name, arguments), 0, "{name}");
    let options: Vec<u64> = options.iter().map(|option| text(option)).collect();
    let mut program = 0u64;
    let name = text(c"scale.asc");
    ok(
        "aclrtcCreateProg",
        &[out(&mut program), text(source), name, 0, 0, 0],
    );
    let arguments = [program, options.len() as u64, options.as_ptr() as u64];
    let code = call_in(compiler, "aclrtcCompileProg", &arguments);
    let mut bytes = 0u64;
    ok("aclrtcGetCompileLogSize", &[program, out(&mut bytes)]);
    let mut log = vec![1u8; bytes as usize];
    ok("aclrtcGetCompileLog", &[program, log.as_mut_ptr() as u64]);
    assert_eq!(log.pop(), Some(0));
    let mut binary = Vec::new();
    if code == 0 {
        ok("aclrtcGetBinDataSize", &[program, out(&mut bytes)]);
        binary = vec![0u8; bytes as usize];
        ok("aclrtcGetBinData", &[program, binary.as_mut_ptr() as u64]);
    }
    ok("aclrtcDestroyProg", &[out(&mut program)]);
    assert_eq!(program, 0);
    assert_eq!(lines(compiler, "ropeway_emulated_cann_living"), [""; 0]);
    (code, binary, String::from_utf8(log).unwrap())
}

/// The binary of `scale.asc`, compiled once.
pub fn binary() -> &'static [u8] {
    static BINARY: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    BINARY.get_or_init(|| {
        let cann = Cann::open("9.0");
        let (code, binary, log) = compile(
            cann.compiler.as_ref().unwrap(),
            SOURCE,
            &[ARCHITECTURE, c"-DEXTRA=1"],
        );
        assert_eq!(code, 0, "{log}");
        binary
    })
}

pub fn compiler_breaches(compiler: &Library) -> Vec<String> {
    lines(compiler, "ropeway_emulated_cann_breaches")
}
