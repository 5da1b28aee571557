//! A device around another that does at compiling and allocating what a test wants.

// `Device` declares unsafe functions, which a device that wraps another has to forward.
#![allow(unsafe_code)]

use std::any::Any;
use std::ffi::c_void;
use std::sync::Arc;

use ropeway_core::Result;
use ropeway_core::device::{Device, Graph, Module, PinnedBuffer, Queue, QueueKind};
use ropeway_core::info::{DeviceInfo, MemoryUse};
use ropeway_core::kernel::{Config, Source};
use ropeway_core::memory::{Buffer, DeviceId};
use ropeway_core::plan::BoundPlan;

/// A device that does what another does, and something before.
pub struct Wrapped {
    /// The other.
    pub device: Arc<dyn Device>,
    /// Before a module is compiled; it may be made of another configuration.
    pub compiling: Box<dyn Fn(&mut Config) + Send + Sync>,
    /// Before memory is taken, or instead of it.
    pub allocating: Box<dyn Fn() -> Result<()> + Send + Sync>,
}

impl Device for Wrapped {
    fn id(&self) -> DeviceId {
        self.device.id()
    }

    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    fn memory(&self) -> Result<MemoryUse> {
        self.device.memory()
    }

    fn alloc(&self, bytes: u64) -> Result<Buffer> {
        (self.allocating)()?;
        self.device.alloc(bytes)
    }

    fn alloc_pinned(&self, bytes: u64) -> Result<PinnedBuffer> {
        self.device.alloc_pinned(bytes)
    }

    fn create_queue(&self, kind: QueueKind) -> Result<Arc<dyn Queue>> {
        self.device.create_queue(kind)
    }

    fn compile(&self, source: &'static Source, config: &Config) -> Result<Arc<dyn Module>> {
        let mut config = config.clone();
        (self.compiling)(&mut config);
        self.device.compile(source, &config)
    }

    unsafe fn import_memory(
        &self,
        handle: *mut c_void,
        bytes: u64,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Buffer> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.device.import_memory(handle, bytes, owner) }
    }

    unsafe fn import_queue(
        &self,
        handle: *mut c_void,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Arc<dyn Queue>> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.device.import_queue(handle, owner) }
    }

    fn instantiate(&self, plans: Vec<BoundPlan>) -> Result<Arc<dyn Graph>> {
        self.device.instantiate(plans)
    }
}
