//! An OpenCL device whose driver miscompiles one configuration, in the test program only.

// `Device` declares unsafe functions, which a device that wraps another has to forward.
#![allow(unsafe_code)]

use std::any::Any;
use std::ffi::c_void;
use std::sync::Arc;

use ropeway::Registry;
use ropeway_core::device::{
    Device, Driver, Graph, Module, OpenOptions, PinnedBuffer, Queue, QueueKind, Unavailable,
};
use ropeway_core::info::{DeviceInfo, MemoryUse};
use ropeway_core::kernel::{Config, Source};
use ropeway_core::memory::{Buffer, DeviceId};
use ropeway_core::plan::BoundPlan;
use ropeway_core::{ErrorKind, Result};

/// The configuration of `gemm_packed` that comes out wrong.
pub const CONFIG: [(&str, i64); 3] = [("KC", 192), ("MR", 12), ("STRIPS", 8)];

/// The first OpenCL device in a registry of its own, with the fault; `None` without one.
pub fn registry() -> Option<(Registry, DeviceInfo)> {
    let device = match Registry::default().open("opencl") {
        Ok(device) => device,
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            eprintln!("not tested, no OpenCL device: {error}");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let info = device.info().clone();
    let mut registry = Registry::empty(OpenOptions::default());
    registry.add(Box::new(Miscompiling(device)));
    Some((registry, info))
}

#[derive(Clone)]
struct Miscompiling(Arc<dyn Device>);

impl Driver for Miscompiling {
    fn name(&self) -> &'static str {
        self.0.info().backend
    }

    fn probe(&self) -> std::result::Result<Vec<DeviceInfo>, Unavailable> {
        Ok(vec![self.0.info().clone()])
    }

    fn open(&self, _: usize, _: &OpenOptions) -> Result<Arc<dyn Device>> {
        Ok(Arc::new(self.clone()))
    }
}

impl Device for Miscompiling {
    fn id(&self) -> DeviceId {
        self.0.id()
    }

    fn info(&self) -> &DeviceInfo {
        self.0.info()
    }

    fn memory(&self) -> Result<MemoryUse> {
        self.0.memory()
    }

    fn alloc(&self, bytes: u64) -> Result<Buffer> {
        self.0.alloc(bytes)
    }

    fn alloc_pinned(&self, bytes: u64) -> Result<PinnedBuffer> {
        self.0.alloc_pinned(bytes)
    }

    fn create_queue(&self, kind: QueueKind) -> Result<Arc<dyn Queue>> {
        self.0.create_queue(kind)
    }

    fn compile(&self, source: &'static Source, config: &Config) -> Result<Arc<dyn Module>> {
        let mut config = config.clone();
        if CONFIG
            .iter()
            .all(|(name, value)| config.get(name) == Some(*value))
        {
            // Tiles of fewer rows than the launch is made for: less work, and rows that are never written.
            config.set("MR", 8);
        }
        self.0.compile(source, &config)
    }

    unsafe fn import_memory(
        &self,
        handle: *mut c_void,
        bytes: u64,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Buffer> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.0.import_memory(handle, bytes, owner) }
    }

    unsafe fn import_queue(
        &self,
        handle: *mut c_void,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Arc<dyn Queue>> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.0.import_queue(handle, owner) }
    }

    fn instantiate(&self, plans: Vec<BoundPlan>) -> Result<Arc<dyn Graph>> {
        self.0.instantiate(plans)
    }
}
