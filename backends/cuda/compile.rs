//! Source and configuration to module: by NVRTC to machine code of the device's architecture, which is kept.

use std::ffi::CString;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;

use cudarc::driver::sys as cu;
use ropeway_core::device::{Function, FunctionInfo, Module, OpenOptions};
use ropeway_core::kernel::{Code, Config, DEPENDENT_LAUNCH, Language, Source};
use ropeway_core::{Error, Result};

use super::binaries::{self, Binaries, Target};
use super::device::Shared;
use super::nvrtc::{self, Output};
use super::sys::{self, RawFunction, RawModule};
use crate::cache::{Cache, Key};

/// Dynamic shared memory that a launch may have without asking.
const FREE_SHARED_MEMORY: u32 = 48 << 10;

/// Compiles for one device, or finds what was compiled before.
pub(super) struct Compiler {
    binaries: Binaries,
    cache: Option<Cache>,
    /// The driver takes no machine code that NVRTC makes: the GPU is newer than NVRTC, or an emulated one. It compiles PTX itself.
    takes_ptx_only: AtomicBool,
}

impl Compiler {
    pub(super) fn new(options: &OpenOptions) -> Compiler {
        let opened = options.cache_dir.as_deref().map(Cache::open).transpose();
        let cache = opened.unwrap_or_else(|error| {
            tracing::warn!(%error, "compiled kernels are not kept");
            None
        });
        Compiler {
            binaries: Binaries::open(options),
            cache,
            takes_ptx_only: AtomicBool::new(false),
        }
    }

    pub(super) fn compile(
        &self,
        shared: &Arc<Shared>,
        source: &Source,
        config: &Config,
    ) -> Result<Arc<dyn Module>> {
        let (Language::CudaC, Code::Text(pieces)) = (source.language, source.code) else {
            let found = format!("{:?} on a CUDA device", source.language);
            return Err(Error::unsupported(found));
        };
        let text = text(pieces);
        let module = match self.compiled_beforehand(shared, &text, config)? {
            Some(module) => module,
            None => self.compile_now(shared, &text, config)?,
        };
        Ok(Arc::new(CudaModule {
            shared: shared.clone(),
            module: shared.keep(module),
            begins_early: config.get(DEPENDENT_LAUNCH) == Some(1)
                && shared.info.has("sm_90")
                && sys::launches_overlap(),
        }))
    }

    /// The module of this source among those that were compiled beforehand.
    fn compiled_beforehand(
        &self,
        shared: &Shared,
        text: &str,
        config: &Config,
    ) -> Result<Option<RawModule>> {
        let own = Target::own(capability(shared));
        let mut targets = binaries::loadable(capability(shared));
        if self.takes_ptx_only.load(Ordering::Relaxed) {
            targets.retain(|target| !target.is_machine_code());
        }
        let has_nvrtc = nvrtc::version().is_some();
        if has_nvrtc {
            // It compiles for this very architecture, which is better than what any other's code can be.
            targets.retain(|target| *target == own);
        }
        let mut failure = None;
        let loaded = self.binaries.load(text, config, &targets, |target, error| {
            let error = shared.note(error);
            // A lost device says nothing of the binary.
            shared.alive()?;
            if !refuses_binaries(&error) {
                let error = error.within(format!("loading a kernel that was compiled for {target}"));
                tracing::warn!(%error, "a kernel that was compiled beforehand is not used");
                failure = Some(error);
            } else if target == own {
                self.takes_ptx_only.store(true, Ordering::Relaxed);
            }
            Ok(())
        })?;
        match (loaded, failure) {
            (None, Some(error)) if !has_nvrtc => Err(error),
            (loaded, _) => Ok(loaded),
        }
    }

    fn compile_now(&self, shared: &Shared, text: &str, config: &Config) -> Result<RawModule> {
        let version = nvrtc::version().ok_or_else(nvrtc::missing)?;
        let compile = || {
            let (architecture, output) = self.target(shared, &version)?;
            let loaded = self.load(shared, text, config, &version, &architecture, output);
            Ok::<_, Error>((loaded, output))
        };
        match compile()? {
            (Err(error), Output::Cubin) if refuses_binaries(&error) => {
                self.takes_ptx_only.store(true, Ordering::Relaxed);
                compile()?.0
            }
            (loaded, _) => loaded,
        }
    }

    /// What to compile for: the device's own architecture, or PTX of the newest one before it that NVRTC knows.
    fn target(&self, shared: &Shared, version: &str) -> Result<(String, Output)> {
        let own = capability(shared);
        let known = nvrtc::architectures()?;
        if known.contains(&own) && !self.takes_ptx_only.load(Ordering::Relaxed) {
            return Ok((Target::own(own).to_string(), Output::Cubin));
        }
        let newest = known.into_iter().filter(|known| *known <= own).max();
        match newest {
            // Its own PTX may have what no other architecture's has.
            Some(newest) if newest == own => Ok((Target::own_ptx(own).to_string(), Output::Ptx)),
            Some(newest) => Ok((Target::new(newest, Output::Ptx).to_string(), Output::Ptx)),
            None => Err(Error::unsupported(format!(
                "sm_{own}: NVRTC {version} compiles for newer architectures only"
            ))),
        }
    }

    /// The module of this source, out of the cache or compiled.
    fn load(
        &self,
        shared: &Shared,
        text: &str,
        config: &Config,
        version: &str,
        architecture: &str,
        output: Output,
    ) -> Result<RawModule> {
        let options = options(config, architecture);
        let key = Key::new(&[text, &options.join(" "), version, "cuda"]);
        if let Some(cache) = &self.cache
            && let Some(binary) = cache.load(&key)
        {
            match RawModule::load(&binary) {
                Ok(module) => return Ok(module),
                Err(error) if refuses_binaries(&error) => return Err(error),
                Err(error) => {
                    // A lost device says nothing of the binary.
                    shared.alive()?;
                    cache.set_aside(&key, &error);
                }
            }
        }
        let binary = nvrtc::compile(text, &options, output)?;
        let module = RawModule::load(&binary)
            .map_err(|error| error.within(format!("loading a kernel for {architecture}")))?;
        if let Some(cache) = &self.cache {
            cache.store(&key, &binary);
        }
        Ok(module)
    }
}

/// The device's compute capability, 80 for 8.0.
fn capability(shared: &Shared) -> u32 {
    let number = shared.info.architecture.trim_start_matches("sm_");
    number.parse().unwrap_or_default()
}

/// The driver cannot run this machine code, which says nothing against the source.
fn refuses_binaries(error: &Error) -> bool {
    let code = error.code();
    code == Some(cu::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU as i64)
}

/// One file for the compiler; its messages name the pieces and count their lines.
pub(super) fn text(pieces: &[(&str, &str)]) -> String {
    let mut all = String::new();
    for (name, piece) in pieces {
        writeln!(all, "#line 1 \"{name}\"\n{piece}").expect("a string takes any text");
    }
    all
}

pub(super) fn options(config: &Config, architecture: &str) -> Vec<String> {
    let mut options = vec![
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".to_owned(),
    ];
    options.extend(
        config
            .defines()
            .map(|(name, value)| format!("-D{name}={value}")),
    );
    options
}

struct CudaModule {
    shared: Arc<Shared>,
    module: Arc<RawModule>,
    /// Its kernels wait themselves for the launch before them.
    begins_early: bool,
}

impl Module for CudaModule {
    fn function(&self, entry: &str) -> Result<Arc<dyn Function>> {
        let shared = &self.shared;
        shared.enter()?;
        let name = CString::new(entry)
            .map_err(|_| Error::invalid("entry", entry, "a name without NUL"))?;
        let note = |error: Error| shared.note(error).within(entry);
        let raw = self.module.function(&name).map_err(note)?;
        let attribute = |name| raw.attribute(name).map_err(note);
        use cu::CUfunction_attribute as A;
        let local_memory = attribute(A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)? as u32;
        let info = FunctionInfo {
            max_group_size: Some(attribute(A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)? as u32),
            local_memory: Some(local_memory.into()),
            registers: Some(attribute(A::CU_FUNC_ATTRIBUTE_NUM_REGS)? as u32),
            spilled: Some(attribute(A::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)? as u64),
        };
        Ok(Arc::new(CudaFunction {
            shared: shared.clone(),
            raw,
            name: entry.to_owned(),
            parameters: raw.parameters(),
            begins_early: self.begins_early,
            allowed_shared_memory: AtomicU32::new(FREE_SHARED_MEMORY.saturating_sub(local_memory)),
            info,
        }))
    }
}

/// An entry point, valid as long as its device.
pub(super) struct CudaFunction {
    pub(super) shared: Arc<Shared>,
    pub(super) raw: RawFunction,
    pub(super) name: String,
    /// Where the driver tells.
    pub(super) parameters: Option<usize>,
    /// Whether it waits itself for the launch before it.
    pub(super) begins_early: bool,
    allowed_shared_memory: AtomicU32,
    pub(super) info: FunctionInfo,
}

impl CudaFunction {
    /// Sees that a launch may have so many bytes of dynamic shared memory.
    #[inline]
    pub(super) fn allow_shared_memory(&self, bytes: u32) -> Result<()> {
        if bytes <= self.allowed_shared_memory.load(Ordering::Relaxed) {
            return Ok(());
        }
        let most = self.shared.info.limits.local_memory;
        let own = self.info.local_memory.unwrap_or_default();
        if u64::from(bytes) + own > most {
            return Err(Error::invalid(
                "local_memory",
                format!("{bytes} bytes beside the kernel's own {own}"),
                format!("at most {most} together"),
            ));
        }
        // All there is, at once: of two threads that set what each of them needs, the later one could set less.
        let all = (most - own) as u32;
        self.raw.allow_shared_memory(all)?;
        self.allowed_shared_memory.store(all, Ordering::Relaxed);
        Ok(())
    }
}

impl Function for CudaFunction {
    fn info(&self) -> FunctionInfo {
        self.info
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
