//! Queues: copies, fills, executions and order.

use std::ffi::c_void;
use std::sync::Arc;

use ropeway_core::device::{Queue, QueueKind};
use ropeway_core::{Error, Result};

use crate::device::ropeway_device;
use crate::event::{limit, ropeway_event};
use crate::execution::ropeway_execution;
use crate::graph::ropeway_graph;
use crate::memory::{Owner, ropeway_buffer, ropeway_pinned, ropeway_release_callback};
use crate::status::{borrow, create, entry, release, ropeway_status};

/// A sequence of work on a device.
pub struct ropeway_queue {
    pub(crate) queue: Arc<dyn Queue>,
}

/// What a queue is for.
pub type ropeway_queue_kind = u32;
/// Executions and copies.
pub const ROPEWAY_QUEUE_COMPUTE: ropeway_queue_kind = 0;
/// Copies that should run beside a compute queue where the device has an engine for them.
pub const ROPEWAY_QUEUE_TRANSFER: ropeway_queue_kind = 1;

pub(crate) unsafe extern "C" fn queue_create(
    device: *const ropeway_device,
    kind: ropeway_queue_kind,
    out: *mut *mut ropeway_queue,
) -> ropeway_status {
    let make = || {
        // SAFETY: the handle is null or alive.
        let device = unsafe { borrow(device, "device") }?;
        let kind = match kind {
            ROPEWAY_QUEUE_COMPUTE => QueueKind::Compute,
            ROPEWAY_QUEUE_TRANSFER => QueueKind::Transfer,
            other => return Err(Error::invalid("kind", other, "one of ROPEWAY_QUEUE_...")),
        };
        let queue = device.session.device().create_queue(kind)?;
        Ok(ropeway_queue { queue })
    };
    // SAFETY: `out` is what the header asks for.
    unsafe { create(out, make) }
}

pub(crate) unsafe extern "C" fn queue_import(
    device: *const ropeway_device,
    handle: *mut c_void,
    callback: ropeway_release_callback,
    user: *mut c_void,
    out: *mut *mut ropeway_queue,
) -> ropeway_status {
    let make = || {
        // SAFETY: the handle is null or alive.
        let device = unsafe { borrow(device, "device") }?.session.device();
        if handle.is_null() {
            return Err(Error::invalid(
                "handle",
                "NULL",
                "a stream or command queue",
            ));
        }
        let queue = Owner::import(callback, user, |owner| {
            // SAFETY: the caller gives what the backend documents, valid until it is told of the release.
            unsafe { device.import_queue(handle, owner) }
        })?;
        Ok(ropeway_queue { queue })
    };
    // SAFETY: `out` is what the header asks for.
    unsafe { create(out, make) }
}

/// [`entry`] with the queue that every function here begins with.
///
/// # Safety
/// `queue` is null or alive.
unsafe fn on(
    queue: *const ropeway_queue,
    body: impl FnOnce(&dyn Queue) -> Result<()>,
) -> ropeway_status {
    entry(|| {
        // SAFETY: the caller's promise.
        let queue = unsafe { borrow(queue, "queue") }?;
        body(&*queue.queue)
    })
}

/// The caller's bytes.
fn host_len(data: *const c_void, bytes: u64) -> Result<usize> {
    match usize::try_from(bytes) {
        Ok(len) if isize::try_from(len).is_ok() && (len == 0 || !data.is_null()) => Ok(len),
        Ok(_) if data.is_null() => {
            let found = format!("NULL for {bytes} bytes");
            Err(Error::invalid("data", found, "host memory"))
        }
        _ => Err(Error::invalid(
            "bytes",
            bytes,
            "a size that the host can address",
        )),
    }
}

pub(crate) unsafe extern "C" fn queue_upload(
    queue: *const ropeway_queue,
    to: *const ropeway_buffer,
    offset: u64,
    data: *const c_void,
    bytes: u64,
) -> ropeway_status {
    let body = |queue: &dyn Queue| {
        // SAFETY: the handle is null or alive.
        let to = unsafe { ropeway_buffer::slice(to, offset, bytes, "to") }?;
        let data: &[u8] = match host_len(data, bytes)? {
            0 => &[],
            // SAFETY: the caller has as many bytes there.
            len => unsafe { std::slice::from_raw_parts(data.cast(), len) },
        };
        queue.upload(&to, data)
    };
    // SAFETY: the handle is null or alive.
    unsafe { on(queue, body) }
}

pub(crate) unsafe extern "C" fn queue_read_blocking(
    queue: *const ropeway_queue,
    from: *const ropeway_buffer,
    offset: u64,
    data: *mut c_void,
    bytes: u64,
) -> ropeway_status {
    let body = |queue: &dyn Queue| {
        // SAFETY: the handle is null or alive.
        let from = unsafe { ropeway_buffer::slice(from, offset, bytes, "from") }?;
        let data: &mut [u8] = match host_len(data, bytes)? {
            0 => &mut [],
            // SAFETY: the caller has as many bytes there, to be written.
            len => unsafe { std::slice::from_raw_parts_mut(data.cast(), len) },
        };
        queue.read_blocking(&from, data)
    };
    // SAFETY: the handle is null or alive.
    unsafe { on(queue, body) }
}

pub(crate) unsafe extern "C" fn queue_download(
    queue: *const ropeway_queue,
    from: *const ropeway_buffer,
    offset: u64,
    bytes: u64,
    into: *const ropeway_pinned,
) -> ropeway_status {
    let body = |queue: &dyn Queue| {
        // SAFETY: the handles are null or alive.
        let (from, into) = unsafe {
            let from = ropeway_buffer::slice(from, offset, bytes, "from")?;
            (from, borrow(into, "into")?)
        };
        into.download(queue, &from)
    };
    // SAFETY: the handle is null or alive.
    unsafe { on(queue, body) }
}

pub(crate) unsafe extern "C" fn queue_copy(
    queue: *const ropeway_queue,
    from: *const ropeway_buffer,
    from_offset: u64,
    to: *const ropeway_buffer,
    to_offset: u64,
    bytes: u64,
) -> ropeway_status {
    let body = |queue: &dyn Queue| {
        // SAFETY: the handles are null or alive.
        let (from, to) = unsafe {
            let from = ropeway_buffer::slice(from, from_offset, bytes, "from")?;
            (from, ropeway_buffer::slice(to, to_offset, bytes, "to")?)
        };
        queue.copy(&from, &to)
    };
    // SAFETY: the handle is null or alive.
    unsafe { on(queue, body) }
}

pub(crate) unsafe extern "C" fn queue_fill(
    queue: *const ropeway_queue,
    to: *const ropeway_buffer,
    offset: u64,
    bytes: u64,
    value: u8,
) -> ropeway_status {
    let body = |queue: &dyn Queue| {
        // SAFETY: the handle is null or alive.
        let to = unsafe { ropeway_buffer::slice(to, offset, bytes, "to") }?;
        queue.fill(&to, value)
    };
    // SAFETY: the handle is null or alive.
    unsafe { on(queue, body) }
}

pub(crate) unsafe extern "C" fn queue_execute(
    queue: *const ropeway_queue,
    execution: *const ropeway_execution,
) -> ropeway_status {
    let body = |queue: &dyn Queue| {
        // SAFETY: the execution is what the header asks for.
        unsafe { ropeway_execution::enqueue(execution, queue) }
    };
    // SAFETY: the handle is null or alive.
    unsafe { on(queue, body) }
}

pub(crate) unsafe extern "C" fn queue_replay(
    queue: *const ropeway_queue,
    graph: *const ropeway_graph,
) -> ropeway_status {
    let body = |queue: &dyn Queue| {
        // SAFETY: the handle is null or alive.
        let graph = unsafe { borrow(graph, "graph") }?;
        queue.replay(&*graph.graph)
    };
    // SAFETY: the handle is null or alive.
    unsafe { on(queue, body) }
}

pub(crate) unsafe extern "C" fn queue_record(
    queue: *const ropeway_queue,
    out: *mut *mut ropeway_event,
) -> ropeway_status {
    let make = || {
        // SAFETY: the handle is null or alive.
        let queue = unsafe { borrow(queue, "queue") }?;
        let event = queue.queue.record()?;
        Ok(ropeway_event { event })
    };
    // SAFETY: `out` is what the header asks for.
    unsafe { create(out, make) }
}

pub(crate) unsafe extern "C" fn queue_wait(
    queue: *const ropeway_queue,
    event: *const ropeway_event,
) -> ropeway_status {
    let body = |queue: &dyn Queue| {
        // SAFETY: the handle is null or alive.
        let event = unsafe { borrow(event, "event") }?;
        queue.wait(&event.event)
    };
    // SAFETY: the handle is null or alive.
    unsafe { on(queue, body) }
}

pub(crate) unsafe extern "C" fn queue_flush(queue: *const ropeway_queue) -> ropeway_status {
    // SAFETY: the handle is null or alive.
    unsafe { on(queue, |queue| queue.flush()) }
}

pub(crate) unsafe extern "C" fn queue_synchronize(
    queue: *const ropeway_queue,
    timeout_ns: u64,
) -> ropeway_status {
    // SAFETY: the handle is null or alive.
    unsafe { on(queue, |queue| queue.synchronize(limit(timeout_ns))) }
}

pub(crate) unsafe extern "C" fn queue_release(queue: *mut ropeway_queue) {
    // SAFETY: null, or the handle's one release.
    unsafe { release(queue) }
}
