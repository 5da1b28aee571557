//! Source and configuration to module, and kernels ready to launch.

use std::any::Any;
use std::ffi::CString;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use cl3::kernel::{CL_KERNEL_LOCAL_MEM_SIZE, CL_KERNEL_WORK_GROUP_SIZE};
use ropeway_core::device::{Function, FunctionInfo, Module, OpenOptions};
use ropeway_core::kernel::{Code, Config, Language, Source};
use ropeway_core::{Error, Result};

use super::device::{Serial, Shared};
use super::sys::{Handle, Kernel, Mem, Program};
use crate::cache::{Cache, Key};

/// Compiles for one device, or finds what was compiled before.
pub(super) struct Compiler {
    cache: Option<Cache>,
}

impl Compiler {
    pub(super) fn new(platform: &str, options: &OpenOptions) -> Compiler {
        let directory = options.cache_dir.as_deref();
        let directory = directory.filter(|_| !keeps_programs_itself(platform));
        let opened = directory.map(Cache::open).transpose();
        let cache = opened.unwrap_or_else(|error| {
            tracing::warn!(%error, "compiled programs are not kept");
            None
        });
        Compiler { cache }
    }

    pub(super) fn compile(
        &self,
        shared: &Arc<Shared>,
        source: &Source,
        config: &Config,
    ) -> Result<Arc<dyn Module>> {
        let (Language::OpenClC, Code::Text(pieces)) = (source.language, source.code) else {
            let found = format!("{:?} on an OpenCL device", source.language);
            return Err(Error::unsupported(found));
        };
        let (text, options) = (text(pieces), options(config));
        let program = match &self.cache {
            None => build(shared, shared.context.program(&text)?, &options)?,
            Some(cache) => {
                let key = key(shared, &text, &options);
                match cached(cache, &key, shared, &options) {
                    Some(program) => program,
                    None => {
                        let program = build(shared, shared.context.program(&text)?, &options)?;
                        match program.binary() {
                            Ok(binary) if binary.is_empty() => {}
                            Ok(binary) => cache.store(&key, &binary),
                            Err(error) => {
                                tracing::debug!(%error, "the driver gives no binary of a program");
                            }
                        }
                        program
                    }
                }
            }
        };
        Ok(Arc::new(OpenClModule {
            shared: shared.clone(),
            program: Arc::new(program),
        }))
    }
}

/// PoCL has a cache of its own, with kernels compiled for the work-group sizes in use. Asking it for a binary makes it compile
/// every kernel once more for work-groups of any size (0.3 s a kernel), which none of our launches runs. It can be told
/// to keep nothing, by `POCL_KERNEL_CACHE=0`.
fn keeps_programs_itself(platform: &str) -> bool {
    platform == "Portable Computing Language"
        && std::env::var_os("POCL_KERNEL_CACHE").is_none_or(|value| value != "0")
}

fn key(shared: &Shared, text: &str, options: &str) -> Key {
    let info = &shared.info;
    Key::new(&[
        text,
        options,
        &info.name,
        &info.platform,
        &info.driver_version,
        &info.compiler_version,
    ])
}

/// The program out of the cache, unless it is not there or the driver refuses it.
fn cached(cache: &Cache, key: &Key, shared: &Shared, options: &str) -> Option<Program> {
    let binary = cache.load(key)?;
    let program = shared
        .context
        .program_from_binary(shared.device, &binary)
        .and_then(|program| build(shared, program, options));
    match program {
        Ok(program) => Some(program),
        Err(error) => {
            cache.set_aside(key, &error);
            None
        }
    }
}

fn build(shared: &Shared, program: Program, options: &str) -> Result<Program> {
    let arguments = CString::new(options)
        .map_err(|_| Error::invalid("config", options, "names without NUL"))?;
    match program.build(shared.device, &arguments) {
        Ok(()) => Ok(program),
        Err(error) => {
            let log = program.log(shared.device).unwrap_or_default();
            Err(Error::from_call(
                error.kind(),
                "clBuildProgram",
                error.code().unwrap_or_default(),
                format!("{} with options {options}\n{log}", error.context()),
            ))
        }
    }
}

/// One file for the compiler; its messages name the pieces and count their lines.
fn text(pieces: &[(&str, &str)]) -> String {
    let mut all = String::new();
    for (name, piece) in pieces {
        writeln!(all, "#line 1 \"{name}\"\n{piece}").expect("a string takes any text");
    }
    all
}

fn options(config: &Config) -> String {
    let mut options = String::from("-cl-std=CL1.2");
    for (name, value) in config.defines() {
        write!(options, " -D {name}={value}").expect("a string takes any text");
    }
    options
}

struct OpenClModule {
    shared: Arc<Shared>,
    program: Arc<Program>,
}

impl Module for OpenClModule {
    fn function(&self, entry: &str) -> Result<Arc<dyn Function>> {
        let shared = &self.shared;
        shared.alive()?;
        let name = CString::new(entry)
            .map_err(|_| Error::invalid("entry", entry, "a name without NUL"))?;
        let kernel = self
            .program
            .kernel(&name)
            .map_err(|error| shared.note(error).within(entry))?;
        let info = FunctionInfo {
            max_group_size: kernel
                .work_group(shared.device, CL_KERNEL_WORK_GROUP_SIZE)
                .ok()
                .map(|size| size.min(u32::MAX.into()) as u32),
            local_memory: kernel
                .work_group(shared.device, CL_KERNEL_LOCAL_MEM_SIZE)
                .ok(),
            registers: None,
            spilled: None,
        };
        let arguments = kernel.arguments()?;
        let mut ready = Vec::with_capacity(READY_KERNELS);
        ready.push(Prepared::new(kernel, arguments));
        Ok(Arc::new(OpenClFunction {
            shared: shared.clone(),
            program: self.program.clone(),
            name,
            arguments,
            info,
            ready: Mutex::new(ready),
        }))
    }
}

/// Room for the kernels of this many threads that launch one function at once, before the list must grow.
const READY_KERNELS: usize = 16;

/// An entry point. Arguments belong to a `cl_kernel`, not to a launch, so each thread in a launch has a kernel of its own.
pub(super) struct OpenClFunction {
    pub(super) shared: Arc<Shared>,
    program: Arc<Program>,
    name: CString,
    pub(super) arguments: u32,
    info: FunctionInfo,
    ready: Mutex<Vec<Prepared>>,
}

impl OpenClFunction {
    /// A kernel for one launch.
    #[inline]
    pub(super) fn take(&self) -> Result<Taken<'_>> {
        let ready = self
            .ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let kernel = match ready {
            Some(kernel) => kernel,
            None => Prepared::new(self.program.kernel(&self.name)?, self.arguments),
        };
        Ok(Taken {
            function: self,
            kernel: Some(kernel),
        })
    }

    #[inline]
    pub(super) fn max_group_size(&self) -> Option<u32> {
        self.info.max_group_size
    }

    pub(super) fn name(&self) -> std::borrow::Cow<'_, str> {
        self.name.to_string_lossy()
    }
}

impl Function for OpenClFunction {
    fn info(&self) -> FunctionInfo {
        self.info
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A kernel out of the function's list, which goes back on drop.
pub(super) struct Taken<'a> {
    function: &'a OpenClFunction,
    kernel: Option<Prepared>,
}

impl Taken<'_> {
    pub(super) fn kernel(&mut self) -> &mut Prepared {
        self.kernel.as_mut().expect("present until the drop")
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut ready = self
            .function
            .ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        ready.extend(self.kernel.take());
    }
}

/// A kernel and what its arguments are set to: setting one again to the same costs the driver time and changes nothing.
pub(super) struct Prepared {
    pub(super) kernel: Kernel,
    set: Box<[Set]>,
}

/// What an argument is set to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Set {
    Unknown,
    Buffer(Serial),
    Null,
    Word(u32),
    LongWord(u64),
}

impl Prepared {
    fn new(kernel: Kernel, arguments: u32) -> Prepared {
        Prepared {
            kernel,
            set: vec![Set::Unknown; arguments as usize].into(),
        }
    }

    /// Sets the argument of this number unless it is so already.
    ///
    /// # Safety
    /// As [`Kernel::set`].
    #[inline]
    unsafe fn put<T>(&mut self, index: u32, set: Set, value: &T) -> Result<()> {
        let count = self.set.len();
        let Some(slot) = self.set.get_mut(index as usize) else {
            return Err(Error::invalid(
                "arguments",
                "more",
                format!("the kernel's {count}"),
            ));
        };
        if *slot != set {
            *slot = Set::Unknown;
            // SAFETY: the caller's promise.
            unsafe { self.kernel.set(index, value) }?;
            *slot = set;
        }
        Ok(())
    }

    /// # Safety
    /// The argument of this number must be a global pointer.
    #[inline]
    pub(super) unsafe fn put_buffer(
        &mut self,
        index: u32,
        serial: Serial,
        mem: &Mem,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.put(index, Set::Buffer(serial), &mem.raw()) }
    }

    /// # Safety
    /// The argument of this number must be a global pointer.
    #[inline]
    pub(super) unsafe fn put_null(&mut self, index: u32) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.put(index, Set::Null, &std::ptr::null_mut::<std::ffi::c_void>()) }
    }

    /// # Safety
    /// The argument of this number must be a 32-bit scalar.
    #[inline]
    pub(super) unsafe fn put_word(&mut self, index: u32, value: u32) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.put(index, Set::Word(value), &value) }
    }

    /// # Safety
    /// The argument of this number must be a 64-bit scalar.
    #[inline]
    pub(super) unsafe fn put_long_word(&mut self, index: u32, value: u64) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.put(index, Set::LongWord(value), &value) }
    }
}
