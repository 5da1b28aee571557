//! Buffers: memory of a Ropeway device under addresses that nobody can follow.
//!
//! ggml names a place in a buffer by a pointer, which it computes itself from a base and an offset. The base here is an address that no process
//! can map, so a host access by mistake faults at once; no two buffers share addresses, since ggml compares pointers across buffers.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ropeway::prelude::*;

use crate::abi::{self, BufferInterface, BufferType, BufferTypeV2, BufferTypeV3, log_level};
use crate::device::RopewayDevice;
use crate::host::{host, log};
use crate::{guard, is_own_type, tensor::Tensor};

/// Alignment of a tensor in a buffer, in bytes: that of Ropeway's workspaces, more than any kernel asks for.
pub const ALIGNMENT: usize = 256;

/// The first address of the first buffer: beyond what 64-bit processors address.
static NEXT_BASE: AtomicUsize = AtomicUsize::new(1 << 60);

/// One buffer of the plugin.
pub struct Allocation {
    /// The device it lies on.
    pub device: &'static RopewayDevice,
    /// Its memory.
    pub buffer: Buffer,
    base: usize,
}

impl Allocation {
    /// The allocation behind a buffer of ggml's, if the plugin made it.
    ///
    /// # Safety
    /// `buffer` must be null or a buffer that lives as long as the answer.
    pub unsafe fn of<'a>(buffer: *const abi::Buffer) -> Option<&'a Allocation> {
        // SAFETY: as the caller promises.
        let buffer = unsafe { buffer.as_ref() }?;
        // SAFETY: a buffer of one of the plugin's types was made by `alloc_buffer`, which put an allocation there.
        is_own_type(buffer.kind).then(|| unsafe { &*buffer.context.cast::<Allocation>() })
    }

    /// The byte that an address of ggml's stands for.
    pub fn offset_of(&self, address: usize) -> Option<u64> {
        let offset = address.checked_sub(self.base)? as u64;
        (offset <= self.buffer.size()).then_some(offset)
    }

    fn slice(&self, tensor: &abi::Tensor, offset: usize, size: usize) -> Result<Slice> {
        let (allocation, begin) = Tensor(tensor).place()?;
        if !ptr::eq(allocation, self) {
            return Err(Error::invalid(
                "tensor",
                "a tensor of another buffer",
                "one of this",
            ));
        }
        self.buffer.slice(begin + offset as u64, size as u64)
    }
}

/// A device's buffer type in the layout of the host's interface. It lives as long as the process, as ggml expects.
pub fn new_buffer_type(api_version: c_int, device: *mut abi::Device) -> *mut BufferType {
    let context = ptr::null_mut();
    if api_version == 2 {
        Box::into_raw(Box::new(BufferTypeV2 {
            get_name,
            alloc_buffer,
            get_alignment,
            get_max_size: Some(get_max_size),
            get_alloc_size: None,
            is_host: None,
            device,
            context,
        }))
        .cast()
    } else {
        Box::into_raw(Box::new(BufferTypeV3 {
            get_name,
            alloc_buffer,
            alloc_buffer_n: None,
            get_alignment,
            get_max_size: Some(get_max_size),
            get_alloc_size: None,
            get_alloc_size_n: None,
            is_host: None,
            device,
            context,
        }))
        .cast()
    }
}

/// The device of a buffer type of the plugin.
fn device_of(kind: *mut BufferType) -> &'static RopewayDevice {
    let version = host().map_or(0, |host| host.api_version);
    // SAFETY: ggml hands a buffer type's functions that buffer type, which `new_buffer_type` made for this interface and never frees.
    unsafe {
        let device = match version {
            2 => (*kind.cast::<BufferTypeV2>()).device,
            _ => (*kind.cast::<BufferTypeV3>()).device,
        };
        RopewayDevice::of(device)
    }
}

unsafe extern "C" fn get_name(kind: *mut BufferType) -> *const c_char {
    device_of(kind).name.as_ptr()
}

unsafe extern "C" fn get_alignment(_: *mut BufferType) -> usize {
    ALIGNMENT
}

unsafe extern "C" fn get_max_size(kind: *mut BufferType) -> usize {
    device_of(kind).info().limits.max_buffer as usize
}

unsafe extern "C" fn alloc_buffer(kind: *mut BufferType, size: usize) -> *mut abi::Buffer {
    guard("alloc_buffer", ptr::null_mut(), || {
        let device = device_of(kind);
        let Some(host) = host() else {
            return ptr::null_mut();
        };
        let buffer = match device.alloc(size as u64) {
            Ok(buffer) => buffer,
            Err(error) => {
                log(
                    log_level::ERROR,
                    &format!("a buffer of {size} bytes: {error}"),
                );
                return ptr::null_mut();
            }
        };
        // A gap behind each buffer, so that an address one past its end is not the next one's.
        let span = (size + ALIGNMENT).next_multiple_of(1 << 16);
        let allocation = Box::new(Allocation {
            device,
            buffer,
            base: NEXT_BASE.fetch_add(span, Ordering::Relaxed),
        });
        let interface = BufferInterface {
            free_buffer: Some(free_buffer),
            get_base,
            init_tensor: None,
            memset_tensor: Some(memset_tensor),
            set_tensor,
            get_tensor,
            set_tensor_2d: None,
            get_tensor_2d: None,
            cpy_tensor: Some(cpy_tensor),
            clear,
            reset: None,
        };
        // SAFETY: the interface's functions expect an allocation, and `free_buffer` frees it.
        unsafe { host.new_buffer(kind, interface, Box::into_raw(allocation).cast(), size) }
    })
}

/// The allocation of a buffer whose functions are these.
///
/// # Safety
/// `buffer` must be a buffer of this plugin that lives as long as the answer.
unsafe fn own<'a>(buffer: *mut abi::Buffer) -> &'a Allocation {
    // SAFETY: as the caller promises.
    unsafe { &*(*buffer).context.cast::<Allocation>() }
}

unsafe extern "C" fn free_buffer(buffer: *mut abi::Buffer) {
    guard("free_buffer", (), || {
        // SAFETY: ggml frees a buffer once; `alloc_buffer` made this from a box.
        drop(unsafe { Box::from_raw((*buffer).context.cast::<Allocation>()) });
    });
}

unsafe extern "C" fn get_base(buffer: *mut abi::Buffer) -> *mut c_void {
    // SAFETY: ggml hands a buffer's functions that buffer.
    unsafe { own(buffer) }.base as *mut c_void
}

/// Runs a copy that ggml gives no way to fail: what went wrong is logged, and the next graph of the device fails with it.
fn run(allocation: &Allocation, what: &'static str, copy: impl FnOnce() -> Result<()>) {
    guard(what, (), || {
        if let Err(error) = copy() {
            allocation.device.fail(what, error);
        }
    });
}

unsafe extern "C" fn memset_tensor(
    buffer: *mut abi::Buffer,
    tensor: *mut abi::Tensor,
    value: u8,
    offset: usize,
    size: usize,
) {
    // SAFETY: ggml hands a buffer's functions that buffer and one of its tensors.
    let (allocation, tensor) = unsafe { (own(buffer), &*tensor) };
    run(allocation, "memset_tensor", || {
        let to = allocation.slice(tensor, offset, size)?;
        let queue = allocation.device.queue()?;
        queue.fill(&to, value)?;
        queue.synchronize(None)
    });
}

unsafe extern "C" fn set_tensor(
    buffer: *mut abi::Buffer,
    tensor: *mut abi::Tensor,
    data: *const c_void,
    offset: usize,
    size: usize,
) {
    if size == 0 {
        return;
    }
    // SAFETY: as above; ggml passes as many bytes as it says.
    let (allocation, tensor, data) = unsafe {
        let data = std::slice::from_raw_parts(data.cast::<u8>(), size);
        (own(buffer), &*tensor, data)
    };
    run(allocation, "set_tensor", || {
        let queue = allocation.device.queue()?;
        queue.upload(&allocation.slice(tensor, offset, size)?, data)?;
        queue.synchronize(None)
    });
}

unsafe extern "C" fn get_tensor(
    buffer: *mut abi::Buffer,
    tensor: *const abi::Tensor,
    data: *mut c_void,
    offset: usize,
    size: usize,
) {
    if size == 0 {
        return;
    }
    // SAFETY: as above; ggml has room for as many bytes as it says.
    let (allocation, tensor, data) = unsafe {
        let data = std::slice::from_raw_parts_mut(data.cast::<u8>(), size);
        (own(buffer), &*tensor, data)
    };
    run(allocation, "get_tensor", || {
        let from = allocation.slice(tensor, offset, size)?;
        allocation.device.queue()?.read_blocking(&from, data)
    });
}

unsafe extern "C" fn cpy_tensor(
    buffer: *mut abi::Buffer,
    src: *const abi::Tensor,
    dst: *mut abi::Tensor,
) -> bool {
    // SAFETY: as above.
    let (allocation, src, dst) = unsafe { (own(buffer), &*src, &*dst) };
    guard("cpy_tensor", false, || {
        let Some((from, to)) = device_copy(src, dst) else {
            return false;
        };
        run(allocation, "cpy_tensor", || {
            let queue = allocation.device.queue()?;
            queue.copy(&from, &to)?;
            queue.synchronize(None)
        });
        true
    })
}

/// The bytes of two tensors between which the device can copy by itself: both in the plugin's buffers on one device, apart from each other.
pub fn device_copy(src: &abi::Tensor, dst: &abi::Tensor) -> Option<(Slice, Slice)> {
    let bytes = host()?.bytes(src);
    let (from, from_offset) = Tensor(src).place().ok()?;
    let (to, to_offset) = Tensor(dst).place().ok()?;
    if !ptr::eq(from.device, to.device) {
        return None;
    }
    let from = from.buffer.slice(from_offset, bytes as u64).ok()?;
    let to = to.buffer.slice(to_offset, bytes as u64).ok()?;
    let apart = !from.buffer().same(to.buffer()) || from_offset.abs_diff(to_offset) >= bytes as u64;
    apart.then_some((from, to))
}

unsafe extern "C" fn clear(buffer: *mut abi::Buffer, value: u8) {
    // SAFETY: as above.
    let allocation = unsafe { own(buffer) };
    run(allocation, "clear", || {
        if allocation.buffer.size() == 0 {
            return Ok(());
        }
        let queue = allocation.device.queue()?;
        queue.fill(&allocation.buffer.all(), value)?;
        queue.synchronize(None)
    });
}

/// Room on a device, in powers of two, so that growing needs settle.
///
/// # Errors
/// `OutOfMemory`.
pub fn device_alloc(device: &Arc<dyn Device>, bytes: u64) -> Result<Buffer> {
    device.alloc(bytes.next_power_of_two())
}
