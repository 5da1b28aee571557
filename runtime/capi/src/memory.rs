//! Device memory, pinned host memory, and memory of others.

use std::any::Any;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ropeway_core::device::{Download, PinnedBuffer, PinnedMemory, Queue};
use ropeway_core::{Buffer, Error, ErrorKind, Result, Slice};

use crate::device::ropeway_device;
use crate::event::limit;
use crate::status::{borrow, create, entry, release, ropeway_status};

/// Device memory.
pub struct ropeway_buffer {
    pub(crate) buffer: Buffer,
}

/// Called once when the library needs imported memory or an imported queue no longer: from any thread, perhaps long after the handle's
/// release, and not at all if the import failed.
pub type ropeway_release_callback = Option<unsafe extern "C" fn(user: *mut c_void)>;

/// What keeps an imported object alive: dropped after the last use, it tells the owner.
pub(crate) struct Owner {
    callback: unsafe extern "C" fn(*mut c_void),
    user: *mut c_void,
    /// Set once the import has succeeded.
    armed: AtomicBool,
}

// SAFETY: the header demands of the callback that it may be called from any thread with this pointer.
unsafe impl Send for Owner {}
// SAFETY: shared access does nothing but set a flag.
unsafe impl Sync for Owner {}

impl Owner {
    /// Runs an import with an owner that is told of the release, if the import succeeds and the caller wants to hear of it.
    pub(crate) fn import<T>(
        callback: ropeway_release_callback,
        user: *mut c_void,
        import: impl FnOnce(Option<Arc<dyn Any + Send + Sync>>) -> Result<T>,
    ) -> Result<T> {
        let owner = callback.map(|callback| {
            Arc::new(Owner {
                callback,
                user,
                armed: AtomicBool::new(false),
            })
        });
        let imported = import(owner.clone().map(|owner| owner as _))?;
        if let Some(owner) = owner {
            owner.armed.store(true, Ordering::Release);
        }
        Ok(imported)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.armed.load(Ordering::Acquire) {
            // SAFETY: the caller gave both for this call, which is the only one.
            unsafe { (self.callback)(self.user) }
        }
    }
}

impl ropeway_buffer {
    /// A range of bytes of a buffer.
    ///
    /// # Safety
    /// `buffer` is null or alive.
    pub(crate) unsafe fn slice(
        buffer: *const ropeway_buffer,
        offset: u64,
        bytes: u64,
        name: &str,
    ) -> Result<Slice> {
        // SAFETY: the caller's promise.
        let buffer = unsafe { borrow(buffer, name) }?;
        let slice = buffer.buffer.slice(offset, bytes);
        slice.map_err(|error| error.within(name))
    }
}

pub(crate) unsafe extern "C" fn buffer_create(
    device: *const ropeway_device,
    bytes: u64,
    out: *mut *mut ropeway_buffer,
) -> ropeway_status {
    let make = || {
        // SAFETY: the handle is null or alive.
        let device = unsafe { borrow(device, "device") }?;
        let buffer = device.session.device().alloc(bytes)?;
        Ok(ropeway_buffer { buffer })
    };
    // SAFETY: `out` is what the header asks for.
    unsafe { create(out, make) }
}

pub(crate) unsafe extern "C" fn buffer_import(
    device: *const ropeway_device,
    handle: *mut c_void,
    bytes: u64,
    callback: ropeway_release_callback,
    user: *mut c_void,
    out: *mut *mut ropeway_buffer,
) -> ropeway_status {
    let make = || {
        // SAFETY: the handle is null or alive.
        let device = unsafe { borrow(device, "device") }?.session.device();
        if handle.is_null() {
            return Err(Error::invalid("handle", "NULL", "memory of the device"));
        }
        let buffer = Owner::import(callback, user, |owner| {
            // SAFETY: the caller gives what the backend documents, valid until it is told of the release.
            unsafe { device.import_memory(handle, bytes, owner) }
        })?;
        Ok(ropeway_buffer { buffer })
    };
    // SAFETY: `out` is what the header asks for.
    unsafe { create(out, make) }
}

pub(crate) unsafe extern "C" fn buffer_size(buffer: *const ropeway_buffer) -> u64 {
    // SAFETY: the handle is null or alive.
    unsafe { buffer.as_ref() }.map_or(0, |buffer| buffer.buffer.size())
}

pub(crate) unsafe extern "C" fn buffer_release(buffer: *mut ropeway_buffer) {
    // SAFETY: null, or the handle's one release.
    unsafe { release(buffer) }
}

/// Host memory that a device copies to directly: the target of queue_download.
pub struct ropeway_pinned {
    memory: Arc<Pinned>,
    transfer: Mutex<Transfer>,
}

/// The memory, kept by its handle and by a copy under way.
struct Pinned {
    address: *mut u8,
    len: usize,
    _buffer: Mutex<PinnedBuffer>,
}

// SAFETY: the address is of the buffer beside it. Who reads and writes there, and when, is between the caller's threads and its copies.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

enum Transfer {
    /// None is under way.
    None,
    Begun(Download),
    /// One failed, and the device may write to the memory yet.
    Failed(Error),
}

/// The memory as a queue takes it over, so that the handle still has it when the queue refuses.
struct Lent(Arc<Pinned>);

impl PinnedMemory for Lent {
    fn bytes(&self) -> &[u8] {
        // SAFETY: the memory is alive, and the caller leaves it alone while a copy is under way.
        unsafe { std::slice::from_raw_parts(self.0.address, self.0.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; no second copy has it, by the lock of the handle.
        unsafe { std::slice::from_raw_parts_mut(self.0.address, self.0.len) }
    }
}

impl ropeway_pinned {
    fn transfer(&self) -> MutexGuard<'_, Transfer> {
        self.transfer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a copy into the memory.
    pub(crate) fn download(&self, queue: &dyn Queue, from: &Slice) -> Result<()> {
        let mut transfer = self.transfer();
        if let Transfer::Begun(download) = &*transfer {
            if !download.event().is_done()? {
                let found = "memory that an earlier copy still fills";
                let expected = "memory with no copy under way (pinned_wait)";
                return Err(Error::invalid("into", found, expected));
            }
            finish(&mut transfer)?;
        }
        if let Transfer::Failed(error) = &*transfer {
            return Err(error.clone());
        }
        let target = PinnedBuffer::new(Box::new(Lent(Arc::clone(&self.memory))));
        *transfer = Transfer::Begun(queue.download(from, target)?);
        Ok(())
    }

    /// Waits for the copy that is under way, if there is one.
    fn wait(&self, timeout_ns: u64) -> Result<()> {
        // Waited for outside the lock: a wait without limit must not hold up another thread's that has one.
        let event = match &*self.transfer() {
            Transfer::None => return Ok(()),
            Transfer::Begun(download) => Arc::clone(download.event()),
            Transfer::Failed(error) => return Err(error.clone()),
        };
        match event.wait(limit(timeout_ns)) {
            Err(error) if error.kind() == ErrorKind::Timeout => return Err(error),
            // What went wrong is reported by the end of the copy.
            _ => {}
        }
        let mut transfer = self.transfer();
        match &*transfer {
            Transfer::Begun(download) if Arc::ptr_eq(download.event(), &event) => {
                finish(&mut transfer)
            }
            Transfer::Failed(error) => Err(error.clone()),
            // Another thread has ended this copy, and perhaps begun the next.
            _ => Ok(()),
        }
    }
}

/// Ends a copy that is done or has failed.
fn finish(transfer: &mut Transfer) -> Result<()> {
    if let Transfer::Begun(download) = std::mem::replace(transfer, Transfer::None)
        && let Err(error) = download.finish()
    {
        *transfer = Transfer::Failed(error.clone());
        return Err(error);
    }
    Ok(())
}

pub(crate) unsafe extern "C" fn pinned_create(
    device: *const ropeway_device,
    bytes: u64,
    out: *mut *mut ropeway_pinned,
) -> ropeway_status {
    let make = || {
        // SAFETY: the handle is null or alive.
        let device = unsafe { borrow(device, "device") }?;
        let mut buffer = device.session.device().alloc_pinned(bytes)?;
        let memory = Pinned {
            address: buffer.bytes_mut().as_mut_ptr(),
            len: buffer.bytes().len(),
            _buffer: Mutex::new(buffer),
        };
        Ok(ropeway_pinned {
            memory: Arc::new(memory),
            transfer: Mutex::new(Transfer::None),
        })
    };
    // SAFETY: `out` is what the header asks for.
    unsafe { create(out, make) }
}

pub(crate) unsafe extern "C" fn pinned_data(pinned: *const ropeway_pinned) -> *mut c_void {
    // SAFETY: the handle is null or alive.
    let pinned = unsafe { pinned.as_ref() };
    pinned.map_or(std::ptr::null_mut(), |pinned| pinned.memory.address.cast())
}

pub(crate) unsafe extern "C" fn pinned_size(pinned: *const ropeway_pinned) -> u64 {
    // SAFETY: the handle is null or alive.
    unsafe { pinned.as_ref() }.map_or(0, |pinned| pinned.memory.len as u64)
}

pub(crate) unsafe extern "C" fn pinned_wait(
    pinned: *const ropeway_pinned,
    timeout_ns: u64,
) -> ropeway_status {
    entry(|| {
        // SAFETY: the handle is null or alive.
        unsafe { borrow(pinned, "pinned") }?.wait(timeout_ns)
    })
}

pub(crate) unsafe extern "C" fn pinned_release(pinned: *mut ropeway_pinned) {
    // SAFETY: null, or the handle's one release.
    unsafe { release(pinned) }
}
