//! Buffers: of the device, pinned for the host, and the blocks through which a queue hands over data and arguments.

use std::any::Any;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ash::vk;
use gpu_allocator::MemoryLocation;
use gpu_allocator::vulkan::{Allocation, AllocationCreateDesc, AllocationScheme};
use ropeway_core::device::PinnedMemory;
use ropeway_core::memory::{DeviceId, Memory};
use ropeway_core::{Error, ErrorKind, Result};

use super::device::Shared;
use super::sys::{Gpu, Place, allocation_failed, failed};

/// Alignment of every buffer's address in bytes: what the widest load of a kernel needs. Drivers give more, but differ.
pub(super) const ALIGNMENT: u64 = 16;

/// A `VkBuffer` with its memory and address.
pub(super) struct RawBuffer {
    raw: vk::Buffer,
    pub(super) address: u64,
    /// Where the host sees it, if it does.
    mapped: Option<NonNull<u8>>,
    pub(super) bytes: u64,
    allocation: ManuallyDrop<Allocation>,
    gpu: Arc<Gpu>,
}

// SAFETY: the handle may be used from any thread; who reads and writes the mapped bytes, and when, is up to the owner.
unsafe impl Send for RawBuffer {}
// SAFETY: as above.
unsafe impl Sync for RawBuffer {}

/// What a buffer is for; it decides where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Operands of kernels.
    Device,
    /// Operands of kernels that the host reads and writes directly: where device and host share their memory.
    Shared,
    /// Written by the host, read by the device.
    Upload,
    /// Written by the device, read by the host.
    Download,
}

impl RawBuffer {
    pub(super) fn new(gpu: &Arc<Gpu>, bytes: u64, used_for: Use) -> Result<RawBuffer> {
        // Vulkan has no buffers without bytes, and kernels address whole words.
        let size = bytes.max(1).next_multiple_of(ALIGNMENT);
        let families: Vec<u32> = gpu.families.iter().map(|family| family.index).collect();
        let mut create = vk::BufferCreateInfo::default()
            .size(size)
            .usage(
                vk::BufferUsageFlags::STORAGE_BUFFER
                    | vk::BufferUsageFlags::TRANSFER_SRC
                    | vk::BufferUsageFlags::TRANSFER_DST
                    | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS,
            )
            .sharing_mode(vk::SharingMode::EXCLUSIVE);
        if families.len() > 1 {
            create = create
                .sharing_mode(vk::SharingMode::CONCURRENT)
                .queue_family_indices(&families);
        }
        // SAFETY: the device is valid.
        let raw = unsafe { gpu.raw.create_buffer(&create, None) }.map_err(failed("vkCreateBuffer"))?;
        let destroy_on = |error: Error| {
            // SAFETY: the buffer is new and in nobody's use.
            unsafe { gpu.raw.destroy_buffer(raw, None) };
            error
        };
        // SAFETY: the buffer is valid.
        let mut requirements = unsafe { gpu.raw.get_buffer_memory_requirements(raw) };
        requirements.alignment = requirements.alignment.max(ALIGNMENT);
        let allocation = gpu
            .allocator()
            .allocate(&AllocationCreateDesc {
                name: "ropeway",
                requirements,
                location: match used_for {
                    Use::Device => MemoryLocation::GpuOnly,
                    Use::Upload => MemoryLocation::CpuToGpu,
                    // Cached for the host.
                    Use::Shared | Use::Download => MemoryLocation::GpuToCpu,
                },
                linear: true,
                allocation_scheme: AllocationScheme::GpuAllocatorManaged,
            })
            .map_err(|cause| destroy_on(allocation_failed(&cause, bytes)))?;
        // SAFETY: the allocation was made for this buffer's requirements.
        let bound = unsafe { gpu.raw.bind_buffer_memory(raw, allocation.memory(), allocation.offset()) };
        let mapped = match used_for {
            Use::Device => None,
            _ => allocation.mapped_ptr().map(NonNull::cast),
        };
        let mut buffer = RawBuffer {
            raw,
            address: 0,
            mapped,
            bytes: size,
            allocation: ManuallyDrop::new(allocation),
            gpu: gpu.clone(),
        };
        bound.map_err(failed("vkBindBufferMemory"))?;
        let info = vk::BufferDeviceAddressInfo::default().buffer(raw);
        // SAFETY: the buffer is bound and was made for it.
        buffer.address = unsafe { gpu.raw.get_buffer_device_address(&info) };
        debug_assert!(buffer.address.is_multiple_of(ALIGNMENT));
        Ok(buffer)
    }

    /// A place in it.
    pub(super) fn at(&self, offset: u64) -> Place {
        Place {
            buffer: self.raw,
            offset,
        }
    }

    /// The host's pointer to a byte of it, if it has one.
    pub(super) fn pointer(&self, offset: u64) -> Option<*mut u8> {
        debug_assert!(offset <= self.bytes);
        // SAFETY: the offset lies within the mapped bytes.
        self.mapped.map(|base| unsafe { base.as_ptr().add(offset as usize) })
    }

    fn host_pointer(&self, offset: u64) -> Result<*mut u8> {
        self.pointer(offset).ok_or_else(|| {
            Error::new(ErrorKind::OutOfMemory, "no memory that the host can reach")
        })
    }
}

impl Drop for RawBuffer {
    fn drop(&mut self) {
        // SAFETY: whoever queues work with the buffer holds it until that work is done; the allocation is taken here only.
        let allocation = unsafe {
            self.gpu.raw.destroy_buffer(self.raw, None);
            ManuallyDrop::take(&mut self.allocation)
        };
        if let Err(cause) = self.gpu.allocator().free(allocation) {
            tracing::error!(%cause, "memory could not be freed");
        }
    }
}

/// Tells one buffer from another for good: a handle may come again after its release, a serial number never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Serial(u64);

impl Serial {
    /// Of no buffer.
    pub(super) const NONE: Serial = Serial(0);

    fn next() -> Serial {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Serial(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Bytes taken from the device's memory, given back on drop.
struct Reservation {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// An allocation of the device.
pub(super) struct VulkanMemory {
    pub(super) buffer: RawBuffer,
    pub(super) serial: Serial,
    /// The last list of kept buffers that this one went into (see `queue`).
    pub(super) kept_in: AtomicU64,
    size: u64,
    reservation: Reservation,
}

impl VulkanMemory {
    pub(super) fn new(shared: &Arc<Shared>, bytes: u64) -> Result<VulkanMemory> {
        let reservation = reserve(shared, bytes)?;
        let used_for = match shared.maps_memory {
            true => Use::Shared,
            false => Use::Device,
        };
        let buffer = RawBuffer::new(&shared.gpu, bytes, used_for).map_err(|error| shared.note(error))?;
        Ok(VulkanMemory {
            buffer,
            serial: Serial::next(),
            kept_in: AtomicU64::new(0),
            size: bytes,
            reservation,
        })
    }

    pub(super) fn belongs_to(&self, shared: &Shared) -> bool {
        self.reservation.shared.id == shared.id
    }
}

/// Takes `bytes` from the device's memory, in the books only: software drivers allocate at the first touch, and so take any size
/// and die later.
fn reserve(shared: &Arc<Shared>, bytes: u64) -> Result<Reservation> {
    let info = &shared.info;
    let too_much = |limit: &str, most: u64| {
        Err(Error::new(
            ErrorKind::OutOfMemory,
            format!("{bytes} bytes: {limit} {most}"),
        ))
    };
    if bytes > info.limits.max_buffer {
        return too_much("the device's largest buffer has", info.limits.max_buffer);
    }
    let total = info.memory;
    let taken = shared
        .used
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            used.checked_add(bytes).filter(|&sum| sum <= total)
        });
    match taken {
        Ok(_) => Ok(Reservation {
            shared: shared.clone(),
            bytes,
        }),
        Err(used) => too_much("free are", total.saturating_sub(used)),
    }
}

impl Memory for VulkanMemory {
    fn size(&self) -> u64 {
        self.size
    }

    fn device(&self) -> DeviceId {
        self.reservation.shared.id
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Host memory that the device copies from and to. `Shared` knows it by its address while it lives.
pub(super) struct MappedMemory {
    pointer: NonNull<u8>,
    len: usize,
    shared: Arc<Shared>,
}

// SAFETY: the bytes are this object's alone.
unsafe impl Send for MappedMemory {}

impl MappedMemory {
    pub(super) fn new(shared: &Arc<Shared>, bytes: u64) -> Result<MappedMemory> {
        if bytes > shared.info.limits.max_buffer {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!("{bytes} pinned bytes: the largest buffer has {}", shared.info.limits.max_buffer),
            ));
        }
        let buffer = RawBuffer::new(&shared.gpu, bytes, Use::Download).map_err(|error| shared.note(error))?;
        let pointer = buffer.host_pointer(0)?;
        // SAFETY: as many bytes are mapped, and nobody else knows of them yet.
        unsafe { pointer.write_bytes(0, buffer.bytes as usize) };
        let pointer = NonNull::new(pointer).expect("mapped memory has an address");
        shared.pinned().insert(pointer.as_ptr() as usize, Arc::new(buffer));
        Ok(MappedMemory {
            pointer,
            len: bytes as usize,
            shared: shared.clone(),
        })
    }
}

impl PinnedMemory for MappedMemory {
    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for reading and writing, `len` bytes, until the drop.
        unsafe { slice::from_raw_parts(self.pointer.as_ptr(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.pointer.as_ptr(), self.len) }
    }
}

impl Drop for MappedMemory {
    fn drop(&mut self) {
        let buffer = self.shared.pinned().remove(&(self.pointer.as_ptr() as usize));
        drop(buffer);
    }
}

/// Blocks of host memory from which a queue takes room for uploads and arguments, again and again.
pub(super) struct Arena {
    blocks: Vec<Block>,
    current: usize,
}

struct Block {
    buffer: RawBuffer,
    used: u64,
    /// The batch that last took room in it.
    until: u64,
}

/// Room in an arena: the device's and the host's view of it.
pub(super) struct Room {
    pub(super) place: Place,
    pub(super) address: u64,
    pointer: *mut u8,
    bytes: usize,
}

impl Room {
    /// Writes what the device shall read.
    pub(super) fn write(&self, data: &[u8]) {
        assert!(data.len() <= self.bytes, "room for what is written was taken");
        // SAFETY: the room is this caller's alone until the batch that it was taken for is done, and as large.
        unsafe { self.pointer.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
    }
}

/// A queue that only launches needs no more.
const FIRST_BLOCK: u64 = 256 << 10;
/// The largest room that can be taken.
pub(super) const BLOCK: u64 = 4 << 20;
/// Data that may wait for the device: 64 MiB.
const BLOCKS: usize = 16;

impl Arena {
    pub(super) fn new() -> Arena {
        Arena {
            blocks: Vec::with_capacity(BLOCKS),
            current: 0,
        }
    }

    /// Room for a batch, where all batches up to `done` are over; `None` if too much is waiting.
    pub(super) fn take(&mut self, gpu: &Arc<Gpu>, bytes: usize, batch: u64, done: u64) -> Result<Option<Room>> {
        let wanted = bytes as u64;
        debug_assert!(wanted <= BLOCK);
        let fits = |block: &mut Block| {
            if block.until <= done {
                block.used = 0;
            }
            block.used + wanted <= block.buffer.bytes
        };
        let count = self.blocks.len();
        let found = (0..count)
            .map(|step| (self.current + step) % count)
            .find(|&index| fits(&mut self.blocks[index]));
        let index = match found {
            Some(index) => index,
            None if count == BLOCKS => return Ok(None),
            None => {
                let size = if count == 0 { FIRST_BLOCK.max(wanted) } else { BLOCK };
                let buffer = RawBuffer::new(gpu, size, Use::Upload)?;
                buffer.host_pointer(0)?;
                self.blocks.push(Block {
                    buffer,
                    used: 0,
                    until: 0,
                });
                count
            }
        };
        self.current = index;
        let block = &mut self.blocks[index];
        let offset = block.used;
        block.used = (offset + wanted).next_multiple_of(ALIGNMENT);
        block.until = batch;
        Ok(Some(Room {
            place: block.buffer.at(offset),
            address: block.buffer.address + offset,
            pointer: block.buffer.host_pointer(offset)?,
            bytes,
        }))
    }
}
