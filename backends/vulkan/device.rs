//! Memory, and what all objects of an open device share.

use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ash::vk;
use ropeway_core::device::{
    Device, Graph, Module, OpenOptions, PinnedBuffer, Queue, QueueKind,
};
use ropeway_core::info::{DeviceInfo, MemoryUse};
use ropeway_core::kernel::{Config, Source};
use ropeway_core::memory::{Buffer, DeviceId};
use ropeway_core::plan::BoundPlan;
use ropeway_core::{Error, Result};

use crate::lost::Lost;
use super::Identity;
use super::compile::Compiler;
use super::graph::VulkanGraph;
use super::memory::{MappedMemory, RawBuffer, VulkanMemory};
use super::batch::Core;
use super::queue::VulkanQueue;
use super::sys::{Gpu, lock};

/// What an importer hands over.
type Owner = Arc<dyn Any + Send + Sync>;

/// What every object of an open device holds on to.
pub(super) struct Shared {
    pub(super) id: DeviceId,
    pub(super) info: DeviceInfo,
    pub(super) gpu: Arc<Gpu>,
    /// Whether buffers of the device lie where the host reads and writes them, too.
    pub(super) maps_memory: bool,
    pub(super) identity: Identity,
    /// Bytes in use.
    pub(super) used: AtomicU64,
    /// Why the device is lost, once it is.
    lost: Lost,
    pinned: Mutex<BTreeMap<usize, Arc<RawBuffer>>>,
    /// Queues that were dropped with work under way.
    orphans: Mutex<Vec<Arc<Core>>>,
    /// Whether the device's own handle is dropped, so that nobody comes by to look after the orphans.
    closed: AtomicBool,
}

/// Set, buffers are never written or read directly by the host, as on devices with memory of their own. So tests of a software
/// device can take both ways.
const STAGING: &str = "ROPEWAY_VULKAN_STAGING";

impl Shared {
    pub(super) fn new(info: DeviceInfo, gpu: Gpu, identity: Identity) -> Arc<Shared> {
        let staging = std::env::var_os(STAGING).is_some_and(|value| value != "0");
        Arc::new(Shared {
            id: DeviceId::unique(),
            maps_memory: info.unified_memory && !staging,
            info,
            gpu: Arc::new(gpu),
            identity,
            used: AtomicU64::new(0),
            lost: Lost::default(),
            pinned: Mutex::default(),
            orphans: Mutex::default(),
            closed: AtomicBool::new(false),
        })
    }

    /// # Errors
    /// Why the device is lost, if it is: the same error for every call from then on.
    #[inline]
    pub(super) fn alive(&self) -> Result<()> {
        self.lost.alive()
    }

    /// Remembers the error that the device is lost by; others pass through.
    pub(super) fn note(&self, error: Error) -> Error {
        self.lost.note(error)
    }

    /// The memory behind a buffer of this device.
    ///
    /// # Errors
    /// `InvalidArgument` for another device's.
    #[inline]
    pub(super) fn memory<'a>(&self, buffer: &'a Buffer) -> Result<&'a VulkanMemory> {
        match buffer.downcast::<VulkanMemory>() {
            Some(memory) if memory.belongs_to(self) => Ok(memory),
            _ => Err(Error::invalid(
                "buffer",
                "one of another device",
                "one of the queue's device",
            )),
        }
    }

    /// The buffers behind the pinned memory that is in use, by address.
    pub(super) fn pinned(&self) -> MutexGuard<'_, BTreeMap<usize, Arc<RawBuffer>>> {
        lock(&self.pinned)
    }

    /// Keeps a queue until its work is done.
    pub(super) fn outlive(self: &Arc<Shared>, core: Arc<Core>) {
        if self.alive().is_err() {
            // Nobody can say whether the device still works on it: better leaked than freed.
            std::mem::forget(core);
            return;
        }
        lock(&self.orphans).push(core);
        if self.closed.load(Ordering::Acquire) {
            self.look_after_orphans();
        }
    }

    /// Lets go of dropped queues whose work is done.
    pub(super) fn sweep(&self) {
        let mut orphans = lock(&self.orphans);
        if orphans.is_empty() {
            return;
        }
        let over: Vec<_> = orphans.extract_if(.., |core| core.is_idle()).collect();
        drop(orphans);
        drop(over);
    }

    /// Waits for the work of dropped queues, on a thread of its own, once nobody else does.
    fn look_after_orphans(self: &Arc<Shared>) {
        self.sweep();
        if lock(&self.orphans).is_empty() {
            return;
        }
        let shared = self.clone();
        let wait = move || {
            while let Some(core) = lock(&shared.orphans).pop() {
                while !core.is_idle() {
                    if core.wait(core.submitted(), Some(Duration::from_secs(1))).is_err()
                        && shared.alive().is_err()
                    {
                        std::mem::forget(core);
                        break;
                    }
                }
            }
        };
        // Without a thread the queues stay, and with them the device.
        let _ = std::thread::Builder::new().name("ropeway-vulkan".into()).spawn(wait);
    }
}

pub(super) struct VulkanDevice {
    pub(super) shared: Arc<Shared>,
    compiler: Arc<Compiler>,
}

impl VulkanDevice {
    pub(super) fn new(shared: Arc<Shared>, options: &OpenOptions) -> VulkanDevice {
        VulkanDevice {
            shared,
            compiler: Arc::new(Compiler::new(options)),
        }
    }
}

impl Drop for VulkanDevice {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.look_after_orphans();
    }
}

impl Device for VulkanDevice {
    fn id(&self) -> DeviceId {
        self.shared.id
    }

    fn info(&self) -> &DeviceInfo {
        &self.shared.info
    }

    fn memory(&self) -> Result<MemoryUse> {
        self.shared.alive()?;
        self.shared.sweep();
        Ok(MemoryUse {
            used: self.shared.used.load(Ordering::Acquire),
            free: self.shared.identity.budget.then(|| free(&self.shared.gpu)),
            total: self.shared.info.memory,
        })
    }

    fn alloc(&self, bytes: u64) -> Result<Buffer> {
        self.shared.alive()?;
        self.shared.sweep();
        let memory = VulkanMemory::new(&self.shared, bytes)?;
        Ok(Buffer::new(Arc::new(memory)))
    }

    fn alloc_pinned(&self, bytes: u64) -> Result<PinnedBuffer> {
        self.shared.alive()?;
        let memory = MappedMemory::new(&self.shared, bytes)?;
        Ok(PinnedBuffer::new(Box::new(memory)))
    }

    fn create_queue(&self, kind: QueueKind) -> Result<Arc<dyn Queue>> {
        self.shared.alive()?;
        self.shared.sweep();
        let queue = VulkanQueue::new(&self.shared, kind).map_err(|error| self.shared.note(error))?;
        Ok(Arc::new(queue))
    }

    fn compile(&self, source: &'static Source, config: &Config) -> Result<Arc<dyn Module>> {
        self.shared.alive()?;
        self.compiler
            .compile(&self.shared, source, config)
            .map_err(|error| self.shared.note(error))
    }

    unsafe fn import_memory(&self, _: *mut c_void, _: u64, _: Option<Owner>) -> Result<Buffer> {
        Err(Error::unsupported(
            "memory of another logical device, which Vulkan does not share",
        ))
    }

    unsafe fn import_queue(&self, _: *mut c_void, _: Option<Owner>) -> Result<Arc<dyn Queue>> {
        Err(Error::unsupported(
            "a queue of another logical device, which Vulkan does not share",
        ))
    }

    fn instantiate(&self, plans: Vec<BoundPlan>) -> Result<Arc<dyn Graph>> {
        self.shared.alive()?;
        let graph = VulkanGraph::new(&self.shared, plans).map_err(|error| self.shared.note(error))?;
        Ok(Arc::new(graph))
    }
}

/// Bytes of the device's largest own heap that this process may still take.
fn free(gpu: &Gpu) -> u64 {
    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let mut all = vk::PhysicalDeviceMemoryProperties2::default().push_next(&mut budget);
    // SAFETY: the structures live until the call returns, and the device has the extension.
    unsafe {
        gpu.instance
            .raw()
            .get_physical_device_memory_properties2(gpu.physical, &mut all);
    }
    let heaps = all.memory_properties;
    heaps
        .memory_heaps_as_slice()
        .iter()
        .enumerate()
        .filter(|(_, heap)| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL))
        .map(|(index, _)| budget.heap_budget[index].saturating_sub(budget.heap_usage[index]))
        .max()
        .unwrap_or(0)
}
