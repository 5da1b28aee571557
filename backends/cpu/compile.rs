//! Native sources need no compiler: a module is the table of functions with the configuration they are to read.

use std::any::Any;
use std::sync::Arc;

use ropeway_core::device::{Function, FunctionInfo, Module};
use ropeway_core::kernel::{Code, Config, Source};
use ropeway_core::memory::DeviceId;
use ropeway_core::native::NativeFn;
use ropeway_core::{Error, Result};

pub(super) struct CpuModule {
    device: DeviceId,
    entries: &'static [(&'static str, NativeFn)],
    config: Arc<Config>,
}

pub(super) struct CpuFunction {
    pub(super) device: DeviceId,
    pub(super) entry: &'static str,
    pub(super) function: NativeFn,
    pub(super) config: Arc<Config>,
}

pub(super) fn compile(device: DeviceId, source: &Source, config: &Config) -> Result<Arc<dyn Module>> {
    match source.code {
        Code::Native(entries) => Ok(Arc::new(CpuModule { device, entries, config: Arc::new(config.clone()) })),
        _ => Err(Error::unsupported(format!("the cpu device takes native functions, not {:?}", source.language))),
    }
}

impl Module for CpuModule {
    fn function(&self, entry: &str) -> Result<Arc<dyn Function>> {
        let found = self.entries.iter().find(|(name, _)| *name == entry);
        let &(entry, function) = found.ok_or_else(|| {
            let names: Vec<_> = self.entries.iter().map(|(name, _)| *name).collect();
            Error::invalid(entry, "no such entry", format!("one of {names:?}"))
        })?;
        Ok(Arc::new(CpuFunction { device: self.device, entry, function, config: Arc::clone(&self.config) }))
    }
}

impl Function for CpuFunction {
    fn info(&self) -> FunctionInfo {
        FunctionInfo::default()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
