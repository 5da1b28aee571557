//! Streams, which ggml calls backends: a Ropeway queue with the copies, events and graphs that ggml enqueues.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ropeway::core::device::{Download, PinnedBuffer};
use ropeway::prelude::*;

use crate::abi::{self, Backend, BackendInterface, FLAG_COMPUTE, Graph, log_level, status};
use crate::device::RopewayDevice;
use crate::host::{host, log};
use crate::memory::device_copy;
use crate::ops::{self, Key, Rooms};
use crate::tensor::Tensor;
use crate::{guard, report};

/// By which ggml tells backends apart.
static mut GUID: [u8; 16] = *b"ropeway-backend\0";

/// A queue and what it needs from call to call.
struct Stream {
    device: &'static RopewayDevice,
    queue: Arc<dyn Queue>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rooms: Rooms,
    /// Copies to the host under way, and where their bytes go.
    downloads: Vec<(Download, HostBytes)>,
    /// Pinned memory for the next of them.
    pinned: Vec<PinnedBuffer>,
    key: Key,
}

/// Memory of the host's that stays valid until ggml has synchronised, as its asynchronous reads ask for.
struct HostBytes {
    begin: *mut u8,
    len: usize,
}

// SAFETY: ggml lets nobody else touch the bytes before it has synchronised.
unsafe impl Send for HostBytes {}

impl Stream {
    /// The stream of one of ggml's backends.
    ///
    /// # Safety
    /// `backend` must be a backend of this plugin that lives as long as the answer.
    unsafe fn of<'a>(backend: *mut Backend) -> &'a Stream {
        // SAFETY: as the caller promises.
        unsafe { &*(*backend).context.cast::<Stream>() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the copies to the host that are under way.
    fn finish_downloads(&self) -> Result<()> {
        let mut state = self.state();
        let downloads = std::mem::take(&mut state.downloads);
        for (download, to) in downloads {
            let pinned = download.finish()?;
            // SAFETY: see `HostBytes`; the pinned memory is at least as long.
            unsafe { ptr::copy_nonoverlapping(pinned.bytes().as_ptr(), to.begin, to.len) };
            state.pinned.push(pinned);
        }
        Ok(())
    }

    fn read(&self, from: &Slice, to: HostBytes) -> Result<()> {
        let mut state = self.state();
        let fits = |pinned: &PinnedBuffer| pinned.bytes().len() >= to.len;
        let pinned = match state.pinned.iter().position(fits) {
            Some(index) => state.pinned.swap_remove(index),
            None => {
                // Those that are too small would never be of use again.
                state.pinned.clear();
                self.device.device()?.alloc_pinned(from.len())?
            }
        };
        let download = self.queue.download(from, pinned)?;
        state.downloads.push((download, to));
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        self.finish_downloads()?;
        self.queue.synchronize(None)
    }

    /// Enqueues the nodes of a graph.
    ///
    /// # Safety
    /// As [`crate::host::Host::nodes`].
    unsafe fn compute(&self, graph: *mut Graph) -> Result<()> {
        if let Some(error) = self.device.take_fault() {
            return Err(error.within("an earlier copy"));
        }
        let Some(host) = host() else {
            return Ok(());
        };
        let begin = Instant::now();
        let mut state = self.state();
        let state = &mut *state;
        state.rooms.next_graph();
        let device = self.device.device()?;
        let mut ran = Vec::new();
        let mut times = match report::times_wanted() {
            true => Some(Times::begin(&*self.queue)?),
            false => None,
        };
        // SAFETY: as the caller promises.
        for node in unsafe { host.nodes(graph) } {
            let tensor = Tensor(node);
            if node.flags & FLAG_COMPUTE == 0 || ops::passes_over(tensor) {
                continue;
            }
            let describe = |error: Error| {
                error.within(format!("{} {}", tensor.operation_name(), tensor.name()))
            };
            state.key.fill(tensor);
            let plan = self.device.plan(tensor, &state.key).map_err(describe)?;
            plan.enqueue(tensor, device, &*self.queue, &mut state.rooms)
                .map_err(describe)?;
            if report::wanted() {
                ran.push(tensor.operation_name());
            }
            if let Some(times) = &mut times {
                times.mark(&*self.queue, tensor)?;
            }
        }
        self.queue.flush()?;
        report::ran(ran.into_iter(), begin.elapsed());
        match times {
            Some(times) => times.finish(&*self.queue),
            None => Ok(()),
        }
    }
}

/// Events between the nodes of a graph.
struct Times {
    begin: Arc<dyn Event>,
    nodes: Vec<(String, Arc<dyn Event>)>,
}

impl Times {
    fn begin(queue: &dyn Queue) -> Result<Times> {
        Ok(Times {
            begin: queue.record()?,
            nodes: Vec::new(),
        })
    }

    /// Ends the time of a node.
    fn mark(&mut self, queue: &dyn Queue, node: Tensor<'_>) -> Result<()> {
        self.nodes.push((report::label(node), queue.record()?));
        Ok(())
    }

    /// Waits, and reports the times.
    fn finish(self, queue: &dyn Queue) -> Result<()> {
        queue.synchronize(None)?;
        let mut earlier = self.begin;
        for (label, event) in self.nodes {
            report::took(label, event.elapsed_since(&*earlier)?);
            earlier = event;
        }
        Ok(())
    }
}

/// A new stream on a device.
///
/// # Errors
/// What opening the device or creating a queue can fail with.
pub fn new(device: *mut abi::Device) -> Result<*mut Backend> {
    // SAFETY: ggml hands a device's functions that device.
    let own = unsafe { RopewayDevice::of(device) };
    let stream = Box::new(Stream {
        device: own,
        queue: own.device()?.create_queue(QueueKind::Compute)?,
        state: Mutex::default(),
    });
    Ok(Box::into_raw(Box::new(Backend {
        guid: &raw mut GUID,
        interface: BackendInterface {
            get_name,
            free,
            set_tensor_async: Some(set_tensor_async),
            get_tensor_async: Some(get_tensor_async),
            set_tensor_2d_async: ptr::null(),
            get_tensor_2d_async: ptr::null(),
            cpy_tensor_async: Some(cpy_tensor_async),
            synchronize: Some(synchronize),
            graph_plan_create: ptr::null(),
            graph_plan_free: ptr::null(),
            graph_plan_update: ptr::null(),
            graph_plan_compute: ptr::null(),
            graph_compute,
            event_record: Some(event_record),
            event_wait: Some(event_wait),
            graph_optimize: ptr::null(),
        },
        device,
        context: Box::into_raw(stream).cast(),
    })))
}

/// Runs what ggml gives no way to fail: what went wrong is logged, and the next graph of the device fails with it.
fn run(stream: &Stream, what: &'static str, work: impl FnOnce() -> Result<()>) {
    guard(what, (), || {
        if let Err(error) = work() {
            stream.device.fail(what, error);
        }
    });
}

// ---- what ggml calls; it hands a backend's functions that backend and tensors of its buffers -----------------------

unsafe extern "C" fn get_name(backend: *mut Backend) -> *const c_char {
    // SAFETY: see above.
    unsafe { Stream::of(backend) }.device.name.as_ptr()
}

unsafe extern "C" fn free(backend: *mut Backend) {
    // SAFETY: ggml frees a backend once; `new` made both from boxes.
    let (backend, stream) = unsafe {
        let stream = Box::from_raw((*backend).context.cast::<Stream>());
        (Box::from_raw(backend), stream)
    };
    run(&stream, "free", || stream.synchronize());
    report::print(&stream.device.to_string());
    drop(backend);
}

unsafe extern "C" fn set_tensor_async(
    backend: *mut Backend,
    tensor: *mut abi::Tensor,
    data: *const c_void,
    offset: usize,
    size: usize,
) {
    if size == 0 {
        return;
    }
    // SAFETY: see above; ggml passes as many bytes as it says.
    let (stream, tensor, data) = unsafe {
        let data = std::slice::from_raw_parts(data.cast::<u8>(), size);
        (Stream::of(backend), &*tensor, data)
    };
    run(stream, "set_tensor_async", || {
        let (allocation, begin) = Tensor(tensor).place()?;
        let to = allocation
            .buffer
            .slice(begin + offset as u64, size as u64)?;
        stream.queue.upload(&to, data)
    });
}

unsafe extern "C" fn get_tensor_async(
    backend: *mut Backend,
    tensor: *const abi::Tensor,
    data: *mut c_void,
    offset: usize,
    size: usize,
) {
    if size == 0 {
        return;
    }
    // SAFETY: see above.
    let (stream, tensor) = unsafe { (Stream::of(backend), &*tensor) };
    run(stream, "get_tensor_async", || {
        let (allocation, begin) = Tensor(tensor).place()?;
        let from = allocation
            .buffer
            .slice(begin + offset as u64, size as u64)?;
        let to = HostBytes {
            begin: data.cast(),
            len: size,
        };
        stream.read(&from, to)
    });
}

unsafe extern "C" fn cpy_tensor_async(
    from: *mut Backend,
    to: *mut Backend,
    src: *const abi::Tensor,
    dst: *mut abi::Tensor,
) -> bool {
    // SAFETY: ggml passes two backends, one of which is the plugin's; the other is told by its GUID.
    let (ours, from_ours, src, dst) = unsafe {
        let is_ours = |backend: *mut Backend| ptr::eq((*backend).guid, &raw const GUID);
        (is_ours(to), is_ours(from), &*src, &*dst)
    };
    if !(ours && from_ours) {
        return false;
    }
    // SAFETY: both are the plugin's, as was just checked.
    let (from, to) = unsafe { (Stream::of(from), Stream::of(to)) };
    guard("cpy_tensor_async", false, || {
        let Some((source, target)) = device_copy(src, dst) else {
            return false;
        };
        let copy = || {
            if !ptr::eq(from, to) {
                to.queue.wait(&from.queue.record()?)?;
            }
            to.queue.copy(&source, &target)
        };
        if let Err(error) = copy() {
            to.device.fail("cpy_tensor_async", error);
        }
        true
    })
}

unsafe extern "C" fn synchronize(backend: *mut Backend) {
    // SAFETY: see above.
    let stream = unsafe { Stream::of(backend) };
    run(stream, "synchronize", || stream.synchronize());
}

unsafe extern "C" fn graph_compute(backend: *mut Backend, graph: *mut Graph) -> c_int {
    // SAFETY: see above.
    let stream = unsafe { Stream::of(backend) };
    guard("graph_compute", status::FAILED, || {
        // SAFETY: ggml keeps the graph until this call returns.
        match unsafe { stream.compute(graph) } {
            Ok(()) => status::SUCCESS,
            Err(error) => {
                log(log_level::ERROR, &format!("{}: {error}", stream.device));
                match error.kind() {
                    ErrorKind::OutOfMemory => status::ALLOC_FAILED,
                    _ => status::FAILED,
                }
            }
        }
    })
}

// ---- events --------------------------------------------------------------------------------------------------------

/// What an event was last recorded as.
type Recorded = Mutex<Option<Arc<dyn Event>>>;

/// A new event, which is done as long as it is not recorded.
pub unsafe extern "C" fn event_new(device: *mut abi::Device) -> *mut abi::Event {
    let recorded: Box<Recorded> = Box::default();
    Box::into_raw(Box::new(abi::Event {
        device,
        context: Box::into_raw(recorded).cast(),
    }))
}

/// Frees an event.
pub unsafe extern "C" fn event_free(_: *mut abi::Device, event: *mut abi::Event) {
    // SAFETY: ggml frees an event once; `event_new` made both from boxes.
    unsafe {
        let event = Box::from_raw(event);
        drop(Box::from_raw(event.context.cast::<Recorded>()));
    }
}

/// Waits for an event on the host.
pub unsafe extern "C" fn event_synchronize(device: *mut abi::Device, event: *mut abi::Event) {
    // SAFETY: ggml hands a device's functions that device and an event of it.
    let (device, recorded) = unsafe { (RopewayDevice::of(device), recorded(event)) };
    guard("event_synchronize", (), || {
        let event = recorded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(Err(error)) = event.map(|event| event.wait(None)) {
            device.fail("event_synchronize", error);
        }
    });
}

/// What an event was recorded as.
///
/// # Safety
/// `event` must be an event of this plugin that lives as long as the answer.
unsafe fn recorded<'a>(event: *mut abi::Event) -> &'a Recorded {
    // SAFETY: as the caller promises.
    unsafe { &*(*event).context.cast::<Recorded>() }
}

unsafe extern "C" fn event_record(backend: *mut Backend, event: *mut abi::Event) {
    // SAFETY: see above.
    let (stream, recorded) = unsafe { (Stream::of(backend), recorded(event)) };
    run(stream, "event_record", || {
        // Whoever waits for the event may read what was asked for before it.
        stream.finish_downloads()?;
        let event = stream.queue.record()?;
        *recorded.lock().unwrap_or_else(PoisonError::into_inner) = Some(event);
        Ok(())
    });
}

unsafe extern "C" fn event_wait(backend: *mut Backend, event: *mut abi::Event) {
    // SAFETY: see above.
    let (stream, recorded) = unsafe { (Stream::of(backend), recorded(event)) };
    run(stream, "event_wait", || {
        let event = recorded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        event.map_or(Ok(()), |event| stream.queue.wait(&event))
    });
}
