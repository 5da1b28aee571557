//! NVRTC, NVIDIA's run-time compiler: loaded where it is there.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::OnceLock;

use cudarc::nvrtc::sys as rtc;
use ropeway_core::{Error, ErrorKind, Result};

/// Every function that is called.
const REQUIRED: &[&str] = &[
    "nvrtcVersion",
    "nvrtcGetErrorString",
    "nvrtcCreateProgram",
    "nvrtcCompileProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetProgramLogSize",
    "nvrtcGetProgramLog",
    "nvrtcGetCUBINSize",
    "nvrtcGetCUBIN",
    "nvrtcGetPTXSize",
    "nvrtcGetPTX",
    "nvrtcGetNumSupportedArchs",
    "nvrtcGetSupportedArchs",
];

/// Its version (`12.9`), if it is there whole.
pub(super) fn version() -> Option<String> {
    static VERSION: OnceLock<Option<String>> = OnceLock::new();
    let read = || {
        // SAFETY: opens libraries by their usual names; their initialisers are NVIDIA's.
        if !unsafe { rtc::is_culib_present() } {
            return None;
        }
        let whole = REQUIRED.iter().all(|symbol| {
            // SAFETY: the library is there; the pointer is only compared.
            let found = unsafe { rtc::culib().get::<*const c_void>(symbol.as_bytes()) };
            found.is_ok_and(|function| !function.is_null())
        });
        if !whole {
            tracing::warn!("a libnvrtc was found that lacks functions (before 11.2); it is not used");
            return None;
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the pointers are valid.
        let told = unsafe { rtc::nvrtcVersion(&raw mut major, &raw mut minor) };
        (told == rtc::nvrtcResult::NVRTC_SUCCESS).then(|| format!("{major}.{minor}"))
    };
    VERSION.get_or_init(read).clone()
}

/// Why nothing can be compiled.
pub(super) fn missing() -> Error {
    Error::unsupported(
        "compiling CUDA kernels without NVRTC: no libnvrtc could be loaded; install it (Debian: apt-get install libnvrtc12; \
         or pip install nvidia-cuda-nvrtc-cu12) and put its directory on the loader's path, or name a directory of kernels that \
         `ropeway compile --language cuda` made for this GPU in ROPEWAY_BINARIES_DIR",
    )
}

/// The compute capabilities that it compiles for (80 for 8.0).
pub(super) fn architectures() -> Result<Vec<u32>> {
    let mut count: c_int = 0;
    // SAFETY: the pointer is valid.
    check("nvrtcGetNumSupportedArchs", unsafe {
        rtc::nvrtcGetNumSupportedArchs(&raw mut count)
    })?;
    let mut all = vec![0 as c_int; count.max(0) as usize];
    // SAFETY: there is room for as many as it said.
    check("nvrtcGetSupportedArchs", unsafe {
        rtc::nvrtcGetSupportedArchs(all.as_mut_ptr())
    })?;
    Ok(all.into_iter().map(|arch| arch as u32).collect())
}

/// What is wanted of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Machine code of one architecture.
    Cubin,
    /// Text that a driver compiles, ending with NUL.
    Ptx,
}

fn check(call: &'static str, code: rtc::nvrtcResult) -> Result<()> {
    use rtc::nvrtcResult as C;
    let kind = match code {
        C::NVRTC_SUCCESS => return Ok(()),
        C::NVRTC_ERROR_OUT_OF_MEMORY => ErrorKind::OutOfMemory,
        C::NVRTC_ERROR_COMPILATION | C::NVRTC_ERROR_INVALID_OPTION => ErrorKind::CompileFailed,
        _ => ErrorKind::Driver,
    };
    // SAFETY: gives a constant of the library.
    let text = unsafe { CStr::from_ptr(rtc::nvrtcGetErrorString(code)) };
    Err(Error::from_call(
        kind,
        call,
        code as i64,
        text.to_string_lossy(),
    ))
}

struct Program(rtc::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `nvrtcCreateProgram`, and owned by this handle. A failure leaves nothing to do.
        let _ = unsafe { rtc::nvrtcDestroyProgram(&raw mut self.0) };
    }
}

impl Program {
    fn bytes(
        &self,
        call: &'static str,
        size: unsafe fn(rtc::nvrtcProgram, *mut usize) -> rtc::nvrtcResult,
        get: unsafe fn(rtc::nvrtcProgram, *mut c_char) -> rtc::nvrtcResult,
    ) -> Result<Vec<u8>> {
        let mut bytes = 0;
        // SAFETY: the program is valid, and so is the pointer.
        check(call, unsafe { size(self.0, &raw mut bytes) })?;
        let mut all = vec![0u8; bytes];
        // SAFETY: there is room for as many bytes as it said.
        check(call, unsafe { get(self.0, all.as_mut_ptr().cast()) })?;
        Ok(all)
    }

    fn log(&self) -> String {
        let log = self.bytes(
            "nvrtcGetProgramLog",
            rtc::nvrtcGetProgramLogSize,
            rtc::nvrtcGetProgramLog,
        );
        let log = log.unwrap_or_default();
        String::from_utf8_lossy(&log)
            .trim_end_matches(['\0', '\n'])
            .to_owned()
    }
}

/// Compiles a source.
///
/// # Errors
/// `Unsupported` without NVRTC, `CompileFailed` with options and log.
pub(super) fn compile(text: &str, options: &[String], output: Output) -> Result<Vec<u8>> {
    if version().is_none() {
        return Err(missing());
    }
    let c_text = |text: &str| {
        CString::new(text).map_err(|_| Error::invalid("source", "a NUL", "text without"))
    };
    let source = c_text(text)?;
    let owned = options
        .iter()
        .map(|option| c_text(option))
        .collect::<Result<Vec<_>>>()?;
    let pointers: Vec<*const c_char> = owned.iter().map(|option| option.as_ptr()).collect();
    let mut raw = ptr::null_mut();
    // SAFETY: the texts end with NUL; there are no headers.
    check("nvrtcCreateProgram", unsafe {
        rtc::nvrtcCreateProgram(
            &raw mut raw,
            source.as_ptr(),
            c"kernel.cu".as_ptr(),
            0,
            ptr::null(),
            ptr::null(),
        )
    })?;
    let program = Program(raw);
    // SAFETY: the program is valid, and there are as many options as said.
    let compiled = check("nvrtcCompileProgram", unsafe {
        rtc::nvrtcCompileProgram(program.0, pointers.len() as c_int, pointers.as_ptr())
    });
    compiled.map_err(|error| {
        Error::from_call(
            error.kind(),
            "nvrtcCompileProgram",
            error.code().unwrap_or_default(),
            format!(
                "{} with options {}\n{}",
                error.context(),
                options.join(" "),
                program.log()
            ),
        )
    })?;
    match output {
        Output::Cubin => {
            program.bytes("nvrtcGetCUBIN", rtc::nvrtcGetCUBINSize, rtc::nvrtcGetCUBIN)
        }
        Output::Ptx => program.bytes("nvrtcGetPTX", rtc::nvrtcGetPTXSize, rtc::nvrtcGetPTX),
    }
}
