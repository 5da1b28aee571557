//! Source and configuration to module: by CANN's run-time compiler, whose binaries are kept.

use std::ffi::{CString, c_char, c_int};
use std::fmt::Write;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use ropeway_core::device::{Function, FunctionInfo, Module, OpenOptions};
use ropeway_core::kernel::{Code, Config, Language, Source};
use ropeway_core::{Error, ErrorKind, Result};

use super::ARCHITECTURE;
use super::device::Shared;
use super::handles::{RawFunction, RawModule};
use super::library::{RuntimeCompiler, no_compiler};
use super::sys::{self, Handle};
use crate::cache::{Cache, Key};

/// Compiles for one device, or finds what was compiled before.
pub(super) struct Compiler {
    cache: Option<Cache>,
    /// Binaries that were compiled beforehand.
    binaries: Option<Cache>,
}

impl Compiler {
    pub(super) fn new(options: &OpenOptions) -> Compiler {
        let opened = options.cache_dir.as_deref().map(Cache::open).transpose();
        let cache = opened.unwrap_or_else(|error| {
            tracing::warn!(%error, "compiled kernels are not kept");
            None
        });
        let open = |directory: &std::path::Path| match directory.is_dir() {
            // Opening would make it.
            true => Cache::open(directory),
            false => Err(Error::invalid(
                "binaries_dir",
                directory.display(),
                "a directory",
            )),
        };
        let opened = options.binaries_dir.as_deref().map(open).transpose();
        let binaries = opened.unwrap_or_else(|error| {
            tracing::warn!(%error, "no kernels are loaded that were compiled beforehand");
            None
        });
        Compiler { cache, binaries }
    }

    pub(super) fn compile(
        &self,
        shared: &Arc<Shared>,
        source: &Source,
        config: &Config,
    ) -> Result<Arc<dyn Module>> {
        let text = text(source)?;
        let options = options(config);
        let module = match self.compiled_beforehand(shared, &text, &options)? {
            Some(module) => module,
            None => self.compile_now(shared, &text, &options)?,
        };
        Ok(Arc::new(AscendModule {
            shared: shared.clone(),
            module: shared.keep(module),
        }))
    }

    /// The module of this source among those that were compiled beforehand, elsewhere.
    fn compiled_beforehand(
        &self,
        shared: &Shared,
        text: &str,
        options: &[String],
    ) -> Result<Option<RawModule>> {
        let key = beforehand(text, options);
        for cache in [&self.binaries, &self.cache].into_iter().flatten() {
            let Some(binary) = cache.load(&key) else {
                continue;
            };
            match RawModule::load(shared.gate, &binary, cores(text)) {
                Ok(module) => return Ok(Some(module)),
                Err(error) => {
                    let error = shared.note(error);
                    // A lost device says nothing of the binary.
                    shared.alive()?;
                    tracing::warn!(%error, "a kernel that was compiled beforehand is not used");
                    if shared.gate.api.compiler.is_none() {
                        return Err(error.within("loading a kernel that was compiled beforehand"));
                    }
                }
            }
        }
        Ok(None)
    }

    fn compile_now(&self, shared: &Shared, text: &str, options: &[String]) -> Result<RawModule> {
        let api = shared.gate.api;
        let compiler = api.compiler.as_ref().ok_or_else(no_compiler)?;
        let chip = &shared.info.name;
        let key = Key::new(&[
            text,
            &options.join(" "),
            &api.version,
            &compiler.identity,
            chip,
            "ascend",
        ]);
        if let Some(cache) = &self.cache
            && let Some(binary) = cache.load(&key)
        {
            match RawModule::load(shared.gate, &binary, cores(text)) {
                Ok(module) => return Ok(module),
                Err(error) => {
                    let error = shared.note(error);
                    // A lost device says nothing of the binary.
                    shared.alive()?;
                    cache.set_aside(&key, &error);
                }
            }
        }
        let binary = compile(compiler, text, options)?;
        let module = RawModule::load(shared.gate, &binary, cores(text))
            .map_err(|error| error.within(format!("loading a kernel for {ARCHITECTURE}")))?;
        if let Some(cache) = &self.cache {
            cache.store(&key, &binary);
        }
        Ok(module)
    }
}

/// Compiles a kernel beforehand, into a directory that [`OpenOptions::binaries_dir`] will name or a cache. No NPU is needed, but CANN's run-time
/// compiler is.
///
/// # Errors
/// `Unavailable` without CANN, `Unsupported` without its run-time compiler or for a source that is no AscendC, `CompileFailed`, `File` if it
/// cannot be kept.
pub fn precompile(source: &Source, config: &Config, into: &Cache) -> Result<()> {
    let compiler = super::library::api()?
        .compiler
        .as_ref()
        .ok_or_else(no_compiler)?;
    let (text, options) = (text(source)?, options(config));
    let binary = compile(compiler, &text, &options)?;
    into.keep(&beforehand(&text, &options), &binary)
}

/// The key of a kernel that was compiled beforehand, by whatever version of CANN.
fn beforehand(text: &str, options: &[String]) -> Key {
    Key::new(&[text, &options.join(" "), "ascend binary"])
}

/// One file for the compiler; its messages name the pieces and count their lines.
///
/// # Errors
/// `Unsupported` for another language.
fn text(source: &Source) -> Result<String> {
    let (Language::AscendC, Code::Text(pieces)) = (source.language, source.code) else {
        let found = format!("{:?} on an Ascend device", source.language);
        return Err(Error::unsupported(found));
    };
    let mut all = String::new();
    for (name, piece) in pieces {
        writeln!(all, "#line 1 \"{name}\"\n{piece}").expect("a string takes any text");
    }
    Ok(all)
}

fn options(config: &Config) -> Vec<String> {
    let mut options = vec![format!("--npu-arch={ARCHITECTURE}")];
    options.extend(
        config
            .defines()
            .map(|(name, value)| format!("-D{name}={value}")),
    );
    options
}

/// The magic number of the cores that a source's kernels run on: vector cores alone, cube cores alone, or both.
fn cores(text: &str) -> u32 {
    const BOTH: u32 = 0x4355_4245;
    const CUBE: u32 = 0x4149_4343;
    const VECTOR: u32 = 0x4141_5246;
    let (cube, vector, mixed) = (
        text.contains("KERNEL_TYPE_AIC_ONLY"),
        text.contains("KERNEL_TYPE_AIV_ONLY"),
        text.contains("KERNEL_TYPE_MIX_"),
    );
    match (cube, vector, mixed) {
        (true, false, false) => CUBE,
        (false, true, false) => VECTOR,
        _ => BOTH,
    }
}

/// A program of the run-time compiler.
struct Program<'a> {
    raw: Handle,
    functions: &'a sys::Compiler,
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `aclrtcCreateProg`, and owned by this handle. A failure leaves nothing to do.
        let _ = unsafe { (self.functions.aclrtcDestroyProg)(&raw mut self.raw) };
    }
}

impl Program<'_> {
    fn bytes(
        &self,
        calls: [&'static str; 2],
        size: unsafe extern "C" fn(Handle, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Handle, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>> {
        let mut bytes = 0;
        // SAFETY: the program is valid, and so is the pointer.
        check(calls[0], unsafe { size(self.raw, &raw mut bytes) })?;
        let mut all = vec![0u8; bytes];
        // SAFETY: there is room for as many bytes as it said.
        check(calls[1], unsafe { get(self.raw, all.as_mut_ptr().cast()) })?;
        Ok(all)
    }

    fn log(&self) -> String {
        let log = self.bytes(
            ["aclrtcGetCompileLogSize", "aclrtcGetCompileLog"],
            self.functions.aclrtcGetCompileLogSize,
            self.functions.aclrtcGetCompileLog,
        );
        let log = log.unwrap_or_default();
        String::from_utf8_lossy(&log)
            .trim_end_matches(['\0', '\n'])
            .to_owned()
    }
}

fn check(call: &'static str, code: c_int) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(Error::from_call(
            sys::kind(code),
            call,
            code.into(),
            "the run-time compiler failed",
        )),
    }
}

/// Compiles a source.
///
/// # Errors
/// `CompileFailed` with options and log.
fn compile(compiler: &RuntimeCompiler, text: &str, options: &[String]) -> Result<Vec<u8>> {
    /// Nothing is said of threads that compile at once.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let functions = &compiler.functions;
    let c_text = |text: &str| {
        CString::new(text).map_err(|_| Error::invalid("source", "a NUL", "text without"))
    };
    let source = c_text(text)?;
    let owned = options
        .iter()
        .map(|option| c_text(option))
        .collect::<Result<Vec<_>>>()?;
    let pointers: Vec<*const c_char> = owned.iter().map(|option| option.as_ptr()).collect();
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut raw = ptr::null_mut();
    // SAFETY: the texts end with NUL; there are no headers.
    check("aclrtcCreateProg", unsafe {
        (functions.aclrtcCreateProg)(
            &raw mut raw,
            source.as_ptr(),
            c"kernel.asc".as_ptr(),
            0,
            ptr::null(),
            ptr::null(),
        )
    })?;
    let program = Program { raw, functions };
    // SAFETY: the program is valid, and there are as many options as said.
    let code = unsafe {
        (functions.aclrtcCompileProg)(program.raw, pointers.len() as c_int, pointers.as_ptr())
    };
    if code != 0 {
        let kind = match sys::kind(code) {
            ErrorKind::Driver => ErrorKind::Driver,
            _ => ErrorKind::CompileFailed,
        };
        let said = format!("with options {}\n{}", options.join(" "), program.log());
        return Err(Error::from_call(
            kind,
            "aclrtcCompileProg",
            code.into(),
            said,
        ));
    }
    program.bytes(
        ["aclrtcGetBinDataSize", "aclrtcGetBinData"],
        functions.aclrtcGetBinDataSize,
        functions.aclrtcGetBinData,
    )
}

struct AscendModule {
    shared: Arc<Shared>,
    module: Arc<RawModule>,
}

impl Module for AscendModule {
    fn function(&self, entry: &str) -> Result<Arc<dyn Function>> {
        let shared = &self.shared;
        shared.enter()?;
        let name = CString::new(entry)
            .map_err(|_| Error::invalid("entry", entry, "a name without NUL"))?;
        let raw = self.module.function(&name);
        Ok(Arc::new(AscendFunction {
            raw: raw.map_err(|error| shared.note(error).within(entry))?,
            shared: shared.clone(),
            name: entry.to_owned(),
        }))
    }
}

/// An entry point, valid as long as its device.
pub(super) struct AscendFunction {
    pub(super) shared: Arc<Shared>,
    pub(super) raw: RawFunction,
    pub(super) name: String,
}

impl Function for AscendFunction {
    fn info(&self) -> FunctionInfo {
        // A block has no work-items.
        FunctionInfo {
            max_group_size: Some(1),
            ..FunctionInfo::default()
        }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ropeway_core::DType;

    #[test]
    fn a_source_is_one_text_whose_pieces_are_named() {
        let source = Source {
            language: Language::AscendC,
            code: Code::Text(&[("a.asc", "int a;"), ("b.asc", "int b;")]),
            requires: &[],
        };
        let expected = "#line 1 \"a.asc\"\nint a;\n#line 1 \"b.asc\"\nint b;\n";
        assert_eq!(text(&source), Ok(expected.to_owned()));
        let other = Source {
            language: Language::CudaC,
            ..source
        };
        assert_eq!(
            text(&other).expect_err("another language").kind(),
            ErrorKind::Unsupported
        );
        let mut config = Config::default();
        config.set("TILE", 128).set_dtype("A", DType::F16);
        let expected = format!("-DA={}", DType::F16.code());
        assert_eq!(
            options(&config),
            ["--npu-arch=dav-2201", "-DTILE=128", &expected]
        );
    }

    #[test]
    fn the_cores_are_those_that_the_kernels_name() {
        let kernels = |kinds: &[&str]| {
            let lines: Vec<_> = kinds
                .iter()
                .map(|kind| format!("KERNEL_TASK_TYPE_DEFAULT({kind});"))
                .collect();
            cores(&lines.join("\n"))
        };
        assert_eq!(kernels(&["KERNEL_TYPE_AIC_ONLY"]), 0x4149_4343);
        assert_eq!(
            kernels(&["KERNEL_TYPE_AIV_ONLY", "KERNEL_TYPE_AIV_ONLY"]),
            0x4141_5246
        );
        for both in [
            &["KERNEL_TYPE_AIC_ONLY", "KERNEL_TYPE_AIV_ONLY"][..],
            &["KERNEL_TYPE_MIX_AIC_1_2"],
            &[],
        ] {
            assert_eq!(kernels(both), 0x4355_4245);
        }
    }
}
