//! Compiled kernels, and launching them.
//!
//! A binary is a header and a shared object that exports `ropeway_launch`, which runs a kernel over all its blocks, and `ropeway_parameter`,
//! which tells the kernels' parameters.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex};

use super::clock::Clock;
use super::device::{Fault, emulator};
use super::lock;
use super::memory::Allocation;
use super::status::{self, Result, Status};

/// The first bytes of a binary.
pub const MAGIC: &[u8; 12] = b"ropeway asc\n";
/// Magic, the version of CANN that it was compiled by, the architecture.
pub const HEADER_BYTES: usize = 32;
/// The architecture of the emulated devices.
pub const ARCHITECTURE: &str = "dav-2201";

/// What compiled kernels call back; the same structure is declared in `ropeway_runtime.h`.
#[repr(C)]
struct Host {
    context: *mut c_void,
    translate: extern "C" fn(*mut c_void, u64, u64, c_int) -> *mut u8,
    report: extern "C" fn(*mut c_void, *const c_char),
    seed: u64,
}

type LaunchFunction =
    unsafe extern "C" fn(*const c_char, u32, *const c_void, usize, *const Host) -> c_int;
type ParameterFunction = unsafe extern "C" fn(*const c_char, u32, *mut u32, *mut u32) -> c_int;

/// A parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Where it lies in the arguments.
    pub offset: u32,
    /// How long it is.
    pub bytes: u32,
}

/// A loaded binary.
pub struct Binary {
    launch: LaunchFunction,
    parameter: ParameterFunction,
    /// Queued work that refers to it.
    pub uses: Mutex<Clock>,
    /// What the functions above are of.
    _library: libloading::Library,
}

impl fmt::Debug for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binary").finish_non_exhaustive()
    }
}

/// Puts header and shared object together.
pub fn pack(profile: &str, object: &[u8]) -> Vec<u8> {
    let mut binary = MAGIC.to_vec();
    binary.extend(profile.bytes());
    binary.resize(16, 0);
    binary.extend(ARCHITECTURE.bytes());
    binary.resize(HEADER_BYTES, 0);
    binary.extend(object);
    binary
}

impl Binary {
    /// Loads what [`pack`] gave.
    ///
    /// # Errors
    /// 107000 for other bytes, or another architecture.
    pub fn load(bytes: &[u8]) -> Result<Binary> {
        let (header, object) = bytes
            .split_at_checked(HEADER_BYTES)
            .filter(|(header, _)| header.starts_with(MAGIC))
            .ok_or_else(|| status::PARAMETER.because("the data are no kernel binary"))?;
        let architecture = String::from_utf8_lossy(&header[16..]);
        let architecture = architecture.trim_end_matches('\0');
        if architecture != ARCHITECTURE {
            let why = format!("the binary is for {architecture}, the device is {ARCHITECTURE}");
            return Err(status::PARAMETER.because(why));
        }
        let unloadable = |error: &dyn fmt::Display| {
            status::PARAMETER.because(format!("the binary cannot be loaded: {error}"))
        };
        // A file of its own: the loader would take a name it knows for the same library.
        let mut file = tempfile::Builder::new()
            .prefix("ropeway-emulated-")
            .suffix(".so")
            .tempfile()
            .map_err(|error| unloadable(&error))?;
        file.write_all(object).map_err(|error| unloadable(&error))?;
        let path = file.into_temp_path();
        // SAFETY: the object was made by the emulator's compiler, as its header says; its initialisers are those of the kernels' variables.
        let library =
            unsafe { libloading::Library::new(&path) }.map_err(|error| unloadable(&error))?;
        // SAFETY: the emulator's compiler gives these functions these types.
        let found = unsafe {
            let launch = library
                .get::<LaunchFunction>(b"ropeway_launch\0")
                .map(|found| *found);
            let parameter = library
                .get::<ParameterFunction>(b"ropeway_parameter\0")
                .map(|found| *found);
            launch.and_then(|launch| Ok((launch, parameter?)))
        };
        let (launch, parameter) = found.map_err(|error| unloadable(&error))?;
        Ok(Binary {
            launch,
            parameter,
            uses: Mutex::default(),
            _library: library,
        })
    }

    /// The parameters of a kernel; nothing if there is no such kernel.
    fn parameters(&self, kernel: &CStr) -> Option<Vec<Parameter>> {
        let mut parameters = Vec::new();
        loop {
            let (mut offset, mut bytes) = (0, 0);
            let index = parameters.len() as u32;
            // SAFETY: the library is loaded, and writes to the two places.
            let found =
                unsafe { (self.parameter)(kernel.as_ptr(), index, &mut offset, &mut bytes) };
            match found {
                0 => parameters.push(Parameter { offset, bytes }),
                1 => return Some(parameters),
                _ => return None,
            }
        }
    }
}

/// A kernel of a loaded binary.
#[derive(Debug)]
pub struct Function {
    /// Its name.
    pub name: CString,
    /// Its binary.
    pub binary: Arc<Binary>,
    /// The binary's handle.
    pub of: usize,
    /// Its parameters.
    pub parameters: Vec<Parameter>,
}

impl Function {
    /// Finds a kernel.
    ///
    /// # Errors
    /// 107000 if there is none of this name.
    pub fn find(binary: Arc<Binary>, of: usize, name: &str) -> Result<Function> {
        let missing = || status::PARAMETER.because(format!("no kernel {name} in the binary"));
        let text = CString::new(name).map_err(|_| missing())?;
        let parameters = binary.parameters(&text).ok_or_else(missing)?;
        Ok(Function {
            name: text,
            binary,
            of,
            parameters,
        })
    }

    /// Bytes of all arguments.
    pub fn argument_bytes(&self) -> usize {
        let last = self.parameters.last();
        last.map_or(0, |last| (last.offset + last.bytes) as usize)
    }
}

/// A list of arguments that is put together.
#[derive(Debug)]
pub struct Arguments {
    /// Whose they are.
    pub function: Arc<Function>,
    /// What was appended, and whether that is all.
    pub appended: Mutex<(Vec<Vec<u8>>, bool)>,
}

impl Arguments {
    /// Adds the next argument.
    ///
    /// # Errors
    /// 107000 if there is no such parameter, it has another size, or the list is finished.
    pub fn append(&self, bytes: Vec<u8>) -> Result<usize> {
        let mut appended = lock(&self.appended);
        let name = self.function.name.to_string_lossy();
        let index = appended.0.len();
        if appended.1 {
            return Err(status::PARAMETER.breach("an argument is appended to a finished list"));
        }
        match self.function.parameters.get(index) {
            None => {
                let why = format!("{name} has {index} parameters, and gets another argument");
                Err(status::PARAMETER.breach(why))
            }
            Some(parameter) if parameter.bytes as usize != bytes.len() => {
                let (has, gets) = (parameter.bytes, bytes.len());
                let why =
                    format!("parameter {index} of {name} has {has} bytes, its argument {gets}");
                Err(status::PARAMETER.breach(why))
            }
            Some(_) => {
                appended.0.push(bytes);
                Ok(index)
            }
        }
    }

    /// The arguments as a launch wants them.
    ///
    /// # Errors
    /// 107000 if the list is not finished.
    pub fn packed(&self) -> Result<Vec<u8>> {
        let appended = lock(&self.appended);
        if !appended.1 {
            return Err(
                status::PARAMETER.breach("a launch gets a list of arguments that is not finished")
            );
        }
        let mut packed = vec![0; self.function.argument_bytes()];
        for (bytes, parameter) in appended.0.iter().zip(&self.function.parameters) {
            packed[parameter.offset as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        Ok(packed)
    }
}

/// A launch, with its arguments as they were when it was asked for.
#[derive(Debug)]
pub struct Launch {
    /// The kernel.
    pub function: Arc<Function>,
    /// How many blocks.
    pub blocks: u32,
    /// The arguments; as words, so that they are aligned.
    pub arguments: Vec<u64>,
    /// How many bytes of them count.
    pub bytes: usize,
    /// What it shall meet.
    pub fault: Option<Status>,
    /// Decides the order of cores.
    pub seed: u64,
}

/// What callbacks of a launch work on.
#[derive(Default)]
struct Running {
    /// Memory that the kernel reached: kept until it is done, should it be freed under it.
    kept: Mutex<Vec<Arc<Allocation>>>,
    reports: Mutex<Vec<String>>,
}

extern "C" fn translate(context: *mut c_void, address: u64, bytes: u64, _write: c_int) -> *mut u8 {
    // SAFETY: the context of a launch under way.
    let running = unsafe { &*context.cast::<Running>() };
    let Some((allocation, at)) = emulator().memory.translate(address, bytes) else {
        return std::ptr::null_mut();
    };
    let mut kept = lock(&running.kept);
    if !kept.iter().any(|known| Arc::ptr_eq(known, &allocation)) {
        kept.push(allocation);
    }
    at
}

extern "C" fn report(context: *mut c_void, text: *const c_char) {
    // SAFETY: the context of a launch under way.
    let running = unsafe { &*context.cast::<Running>() };
    if !text.is_null() {
        // SAFETY: kernels report text that ends with NUL.
        let text = unsafe { CStr::from_ptr(text) };
        lock(&running.reports).push(text.to_string_lossy().into_owned());
    }
}

/// A launch has all cores.
static CORES: Mutex<()> = Mutex::new(());

impl Launch {
    /// Runs the kernel.
    ///
    /// # Errors
    /// What it met.
    pub fn run(&self) -> std::result::Result<(), Fault> {
        let name = self.function.name.to_string_lossy();
        if let Some(status) = self.fault {
            return Err(Fault {
                status,
                why: format!("kernel {name}: on demand"),
            });
        }
        let running = Running::default();
        let host = Host {
            context: (&raw const running).cast_mut().cast(),
            translate,
            report,
            seed: self.seed,
        };
        let cores = lock(&CORES);
        // SAFETY: the library is loaded, as the function holds its binary; the arguments are as long as the kernel's parameters.
        let code = unsafe {
            (self.function.binary.launch)(
                self.function.name.as_ptr(),
                self.blocks,
                self.arguments.as_ptr().cast(),
                self.bytes,
                &host,
            )
        };
        drop(cores);
        let reports = std::mem::take(&mut *lock(&running.reports));
        for report in &reports {
            emulator()
                .breaches
                .record(&format!("kernel {name}: {report}"));
        }
        if code == 0 {
            return Ok(());
        }
        Err(Fault {
            status: Status(code),
            why: format!("kernel {name}: {}", reports.join("; ")),
        })
    }
}
