//! The table of functions.

use std::ffi::{c_char, c_void};

use crate::device::{
    ropeway_backend_info, ropeway_device, ropeway_device_info, ropeway_device_options,
    ropeway_memory_use, ropeway_probe,
};
use crate::event::ropeway_event;
use crate::execution::ropeway_execution;
use crate::graph::ropeway_graph;
use crate::log::{ropeway_log_callback, ropeway_log_level};
use crate::memory::{ropeway_buffer, ropeway_pinned, ropeway_release_callback};
use crate::ops::{
    ropeway_attention, ropeway_attention_paged, ropeway_attention_varlen, ropeway_expert_gather,
    ropeway_expert_scatter, ropeway_gemm, ropeway_grouped_gemm, ropeway_grouped_gemm_masked,
    ropeway_moe_ffn, ropeway_moe_route,
};
use crate::plan::{
    ropeway_operand_info, ropeway_plan, ropeway_plan_info, ropeway_plan_options, ropeway_request,
};
use crate::queue::{ropeway_queue, ropeway_queue_kind};
use crate::status::ropeway_status;
use crate::tensor::ropeway_tensor;
use crate::{device, event, graph, log, memory, ops, plan, queue, status};

/// The version of the interface that this header describes. Additions do not change it.
pub const ROPEWAY_API_VERSION: u32 = 1;

/// The functions of the library. See the top of this header for errors, structs, handles and threads.
#[repr(C)]
pub struct ropeway_api {
    /// Bytes of this library's table; ROPEWAY_HAS compares with it.
    pub struct_size: usize,
    /// The library's version: "major.minor.patch".
    pub library_version: *const c_char,
    /// What went wrong in the calling thread's last call that failed, or "". Valid until the thread's next failure.
    pub last_error: unsafe extern "C" fn() -> *const c_char,
    /// Has the library's messages up to this level given to a callback, for the whole process; NULL ends it. When it returns, an earlier callback
    /// runs no more. UNSUPPORTED if the program that this library is linked into has a log of its own for it.
    pub set_log: unsafe extern "C" fn(
        level: ropeway_log_level,
        callback: ropeway_log_callback,
        user: *mut c_void,
    ) -> ropeway_status,
    /// Asks every backend for its devices. Takes no seconds and opens nothing that stays open.
    pub probe: unsafe extern "C" fn(out: *mut *mut ropeway_probe) -> ropeway_status,
    /// Number of backends; 0 for NULL.
    pub probe_backend_count: unsafe extern "C" fn(probe: *const ropeway_probe) -> usize,
    /// What a backend answered: how many devices it has, or why none.
    pub probe_backend: unsafe extern "C" fn(
        probe: *const ropeway_probe,
        backend: usize,
        out: *mut ropeway_backend_info,
    ) -> ropeway_status,
    /// A device of a backend.
    pub probe_device: unsafe extern "C" fn(
        probe: *const ropeway_probe,
        backend: usize,
        device: usize,
        out: *mut ropeway_device_info,
    ) -> ropeway_status,
    /// Releases a probe.
    pub probe_release: unsafe extern "C" fn(probe: *mut ropeway_probe),
    /// Opens a device by "backend" or "backend:number" ("cpu", "opencl:1"). `options` may be NULL.
    pub device_open: unsafe extern "C" fn(
        selector: *const c_char,
        options: *const ropeway_device_options,
        out: *mut *mut ropeway_device,
    ) -> ropeway_status,
    /// Opens a device in a context that the program has made, so that the program's memory and queues can be imported. Backend "opencl": a cl_context,
    /// which is retained, and one of its cl_device_ids. Others use the device's own context (CUDA: the primary one) and need no adoption: UNSUPPORTED.
    /// `options` may be NULL.
    pub device_adopt: unsafe extern "C" fn(
        backend: *const c_char,
        context: *mut c_void,
        native_device: *mut c_void,
        options: *const ropeway_device_options,
        out: *mut *mut ropeway_device,
    ) -> ropeway_status,
    /// What a device is and can do.
    pub device_info: unsafe extern "C" fn(
        device: *const ropeway_device,
        out: *mut ropeway_device_info,
    ) -> ropeway_status,
    /// Memory in use and left.
    pub device_memory: unsafe extern "C" fn(
        device: *const ropeway_device,
        out: *mut ropeway_memory_use,
    ) -> ropeway_status,
    /// The context that a device's memory and queues belong to, which stays the device's: a cl_context. Others: UNSUPPORTED.
    pub device_native_context: unsafe extern "C" fn(
        device: *const ropeway_device,
        out: *mut *mut c_void,
    ) -> ropeway_status,
    /// Releases a device's handle; the device closes when nothing of it is left.
    pub device_release: unsafe extern "C" fn(device: *mut ropeway_device),
    /// Allocates device memory with undefined content. 0 bytes are allowed.
    pub buffer_create: unsafe extern "C" fn(
        device: *const ropeway_device,
        bytes: u64,
        out: *mut *mut ropeway_buffer,
    ) -> ropeway_status,
    /// Takes in memory that the program allocated on this device: a CUDA device pointer at a multiple of 16 bytes, a cl_mem of the device's context, any
    /// host pointer for "cpu" (elements that lie unaligned are refused at execution). `handle` must be that, of at least `bytes` bytes, until `callback` (may be NULL) is called with `user`; without a
    /// callback, until the buffer is released and its work is done. UNSUPPORTED where the backend cannot (Vulkan).
    pub buffer_import: unsafe extern "C" fn(
        device: *const ropeway_device,
        handle: *mut c_void,
        bytes: u64,
        callback: ropeway_release_callback,
        user: *mut c_void,
        out: *mut *mut ropeway_buffer,
    ) -> ropeway_status,
    /// Bytes; 0 for NULL.
    pub buffer_size: unsafe extern "C" fn(buffer: *const ropeway_buffer) -> u64,
    /// Releases a buffer; its memory is freed after the work that uses it.
    pub buffer_release: unsafe extern "C" fn(buffer: *mut ropeway_buffer),
    /// Allocates host memory that the device copies to directly, zeroed.
    pub pinned_create: unsafe extern "C" fn(
        device: *const ropeway_device,
        bytes: u64,
        out: *mut *mut ropeway_pinned,
    ) -> ropeway_status,
    /// Its bytes, at one address for as long as it lives. The program leaves them alone while a copy is under way. NULL for NULL.
    pub pinned_data: unsafe extern "C" fn(pinned: *const ropeway_pinned) -> *mut c_void,
    /// Its size in bytes; 0 for NULL.
    pub pinned_size: unsafe extern "C" fn(pinned: *const ropeway_pinned) -> u64,
    /// Waits until the copy into it is done (at once if there is none), at most `timeout_ns`, and reports what went wrong. After a failed copy the
    /// memory takes no other.
    pub pinned_wait:
        unsafe extern "C" fn(pinned: *const ropeway_pinned, timeout_ns: u64) -> ropeway_status,
    /// Releases pinned memory, after waiting for a copy that is under way.
    pub pinned_release: unsafe extern "C" fn(pinned: *mut ropeway_pinned),
    /// A new queue.
    pub queue_create: unsafe extern "C" fn(
        device: *const ropeway_device,
        kind: ropeway_queue_kind,
        out: *mut *mut ropeway_queue,
    ) -> ropeway_status,
    /// Takes in a stream or command queue that the program made on this device: a CUstream, a cl_command_queue. What is enqueued joins its order, and a
    /// capture that the program has begun on it. It must stay valid until `callback` (may be NULL) is called with `user`; without a callback, until the queue
    /// is released and its work is done. UNSUPPORTED where the backend cannot (cpu, Vulkan).
    pub queue_import: unsafe extern "C" fn(
        device: *const ropeway_device,
        handle: *mut c_void,
        callback: ropeway_release_callback,
        user: *mut c_void,
        out: *mut *mut ropeway_queue,
    ) -> ropeway_status,
    /// Copies host bytes to the device. `data` is taken over before the call returns.
    pub queue_upload: unsafe extern "C" fn(
        queue: *const ropeway_queue,
        to: *const ropeway_buffer,
        offset: u64,
        data: *const c_void,
        bytes: u64,
    ) -> ropeway_status,
    /// Copies from the device and waits for it, and so for all earlier work of this queue.
    pub queue_read_blocking: unsafe extern "C" fn(
        queue: *const ropeway_queue,
        from: *const ropeway_buffer,
        offset: u64,
        data: *mut c_void,
        bytes: u64,
    ) -> ropeway_status,
    /// Begins a copy from the device to the begin of pinned memory, which pinned_wait waits for. INVALID_ARGUMENT while an earlier copy fills it.
    pub queue_download: unsafe extern "C" fn(
        queue: *const ropeway_queue,
        from: *const ropeway_buffer,
        offset: u64,
        bytes: u64,
        into: *const ropeway_pinned,
    ) -> ropeway_status,
    /// Copies within the device. The ranges do not overlap.
    pub queue_copy: unsafe extern "C" fn(
        queue: *const ropeway_queue,
        from: *const ropeway_buffer,
        from_offset: u64,
        to: *const ropeway_buffer,
        to_offset: u64,
        bytes: u64,
    ) -> ropeway_status,
    /// Sets every byte of a range.
    pub queue_fill: unsafe extern "C" fn(
        queue: *const ropeway_queue,
        to: *const ropeway_buffer,
        offset: u64,
        bytes: u64,
        value: u8,
    ) -> ropeway_status,
    /// Checks the operands against the plan, on the host, and enqueues it.
    pub queue_execute: unsafe extern "C" fn(
        queue: *const ropeway_queue,
        execution: *const ropeway_execution,
    ) -> ropeway_status,
    /// Enqueues a graph of the same device.
    pub queue_replay: unsafe extern "C" fn(
        queue: *const ropeway_queue,
        graph: *const ropeway_graph,
    ) -> ropeway_status,
    /// An event that is done when all earlier work of this queue is.
    pub queue_record: unsafe extern "C" fn(
        queue: *const ropeway_queue,
        out: *mut *mut ropeway_event,
    ) -> ropeway_status,
    /// Makes later work of this queue wait, on the device, for an event of the same device, which may be another queue's.
    pub queue_wait: unsafe extern "C" fn(
        queue: *const ropeway_queue,
        event: *const ropeway_event,
    ) -> ropeway_status,
    /// Hands everything to the device that the driver still holds back.
    pub queue_flush: unsafe extern "C" fn(queue: *const ropeway_queue) -> ropeway_status,
    /// Waits until all earlier work is done, at most `timeout_ns` (ROPEWAY_NO_TIMEOUT: without limit), and reports what went wrong in it: among others
    /// DATA_OUT_OF_RANGE if a kernel met an id, offset or length that is out of range.
    pub queue_synchronize:
        unsafe extern "C" fn(queue: *const ropeway_queue, timeout_ns: u64) -> ropeway_status,
    /// Releases a queue; what is enqueued still runs.
    pub queue_release: unsafe extern "C" fn(queue: *mut ropeway_queue),
    /// Sets `done` to 1 if the work before the event is done, else to 0.
    pub event_is_done:
        unsafe extern "C" fn(event: *const ropeway_event, done: *mut u32) -> ropeway_status,
    /// Waits for it, at most `timeout_ns`, and reports what went wrong in the work before it.
    pub event_wait:
        unsafe extern "C" fn(event: *const ropeway_event, timeout_ns: u64) -> ropeway_status,
    /// Device time between two events of one device, both done.
    pub event_elapsed: unsafe extern "C" fn(
        earlier: *const ropeway_event,
        later: *const ropeway_event,
        nanoseconds: *mut u64,
    ) -> ropeway_status,
    /// Releases an event.
    pub event_release: unsafe extern "C" fn(event: *mut ropeway_event),
    /// The name of the op with this number, for plan_create; NULL past the last.
    pub op_name: unsafe extern "C" fn(index: usize) -> *const c_char,
    /// Plans and compiles any op by its name. Equal requests on one device are planned once. The plan holds for all row counts and lengths up to those of
    /// the request. `options` may be NULL.
    pub plan_create: unsafe extern "C" fn(
        device: *const ropeway_device,
        request: *const ropeway_request,
        options: *const ropeway_plan_options,
        out: *mut *mut ropeway_plan,
    ) -> ropeway_status,
    /// plan_create of gemm.
    pub plan_gemm: unsafe extern "C" fn(
        device: *const ropeway_device,
        op: *const ropeway_gemm,
        options: *const ropeway_plan_options,
        out: *mut *mut ropeway_plan,
    ) -> ropeway_status,
    /// plan_create of grouped_gemm.
    pub plan_grouped_gemm: unsafe extern "C" fn(
        device: *const ropeway_device,
        op: *const ropeway_grouped_gemm,
        options: *const ropeway_plan_options,
        out: *mut *mut ropeway_plan,
    ) -> ropeway_status,
    /// plan_create of grouped_gemm_masked.
    pub plan_grouped_gemm_masked: unsafe extern "C" fn(
        device: *const ropeway_device,
        op: *const ropeway_grouped_gemm_masked,
        options: *const ropeway_plan_options,
        out: *mut *mut ropeway_plan,
    ) -> ropeway_status,
    /// plan_create of attention.
    pub plan_attention: unsafe extern "C" fn(
        device: *const ropeway_device,
        op: *const ropeway_attention,
        options: *const ropeway_plan_options,
        out: *mut *mut ropeway_plan,
    ) -> ropeway_status,
    /// plan_create of attention_varlen.
    pub plan_attention_varlen: unsafe extern "C" fn(
        device: *const ropeway_device,
        op: *const ropeway_attention_varlen,
        options: *const ropeway_plan_options,
        out: *mut *mut ropeway_plan,
    ) -> ropeway_status,
    /// plan_create of attention_paged.
    pub plan_attention_paged: unsafe extern "C" fn(
        device: *const ropeway_device,
        op: *const ropeway_attention_paged,
        options: *const ropeway_plan_options,
        out: *mut *mut ropeway_plan,
    ) -> ropeway_status,
    /// plan_create of moe_route.
    pub plan_moe_route: unsafe extern "C" fn(
        device: *const ropeway_device,
        op: *const ropeway_moe_route,
        options: *const ropeway_plan_options,
        out: *mut *mut ropeway_plan,
    ) -> ropeway_status,
    /// plan_create of expert_scatter.
    pub plan_expert_scatter: unsafe extern "C" fn(
        device: *const ropeway_device,
        op: *const ropeway_expert_scatter,
        options: *const ropeway_plan_options,
        out: *mut *mut ropeway_plan,
    ) -> ropeway_status,
    /// plan_create of expert_gather.
    pub plan_expert_gather: unsafe extern "C" fn(
        device: *const ropeway_device,
        op: *const ropeway_expert_gather,
        options: *const ropeway_plan_options,
        out: *mut *mut ropeway_plan,
    ) -> ropeway_status,
    /// plan_create of moe_ffn.
    pub plan_moe_ffn: unsafe extern "C" fn(
        device: *const ropeway_device,
        op: *const ropeway_moe_ffn,
        options: *const ropeway_plan_options,
        out: *mut *mut ropeway_plan,
    ) -> ropeway_status,
    /// What a plan is.
    pub plan_info: unsafe extern "C" fn(
        plan: *const ropeway_plan,
        out: *mut ropeway_plan_info,
    ) -> ropeway_status,
    /// What the operand in this place is: the order in which an execution binds them, inputs first.
    pub plan_operand: unsafe extern "C" fn(
        plan: *const ropeway_plan,
        index: usize,
        out: *mut ropeway_operand_info,
    ) -> ropeway_status,
    /// Brings a constant operand (a weight) into the form that the plan wants where its options list the operand as prepared; enqueued on `queue`. Bind
    /// the buffer in place of the operand, described as plan_operand says.
    pub plan_prepare: unsafe extern "C" fn(
        plan: *const ropeway_plan,
        operand: *const c_char,
        tensor: *const ropeway_tensor,
        queue: *const ropeway_queue,
        out: *mut *mut ropeway_buffer,
    ) -> ropeway_status,
    /// Releases a plan.
    pub plan_release: unsafe extern "C" fn(plan: *mut ropeway_plan),
    /// Makes a graph of executions, in their order; all allocating happens now, queue_replay only submits. The plans, buffers and workspaces stay alive
    /// with it.
    pub graph_create: unsafe extern "C" fn(
        device: *const ropeway_device,
        executions: *const ropeway_execution,
        count: usize,
        out: *mut *mut ropeway_graph,
    ) -> ropeway_status,
    /// Puts other tensors in place of operands (by their places) of an execution (by its number); all its operands must then satisfy the plan together, so a
    /// change of row count names every operand that has those rows. Holds for later replays. A failure leaves the graph as it was.
    pub graph_rebind: unsafe extern "C" fn(
        graph: *const ropeway_graph,
        execution: usize,
        indices: *const u32,
        operands: *const ropeway_tensor,
        count: usize,
    ) -> ropeway_status,
    /// Releases a graph.
    pub graph_release: unsafe extern "C" fn(graph: *mut ropeway_graph),
}

// SAFETY: nothing in it changes.
unsafe impl Sync for ropeway_api {}

static TABLE: ropeway_api = ropeway_api {
    struct_size: size_of::<ropeway_api>(),
    library_version: concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast(),
    last_error: status::last_error,
    set_log: log::set_log,
    probe: device::probe,
    probe_backend_count: device::probe_backend_count,
    probe_backend: device::probe_backend,
    probe_device: device::probe_device,
    probe_release: device::probe_release,
    device_open: device::device_open,
    device_adopt: device::device_adopt,
    device_info: device::device_info,
    device_memory: device::device_memory,
    device_native_context: device::device_native_context,
    device_release: device::device_release,
    buffer_create: memory::buffer_create,
    buffer_import: memory::buffer_import,
    buffer_size: memory::buffer_size,
    buffer_release: memory::buffer_release,
    pinned_create: memory::pinned_create,
    pinned_data: memory::pinned_data,
    pinned_size: memory::pinned_size,
    pinned_wait: memory::pinned_wait,
    pinned_release: memory::pinned_release,
    queue_create: queue::queue_create,
    queue_import: queue::queue_import,
    queue_upload: queue::queue_upload,
    queue_read_blocking: queue::queue_read_blocking,
    queue_download: queue::queue_download,
    queue_copy: queue::queue_copy,
    queue_fill: queue::queue_fill,
    queue_execute: queue::queue_execute,
    queue_replay: queue::queue_replay,
    queue_record: queue::queue_record,
    queue_wait: queue::queue_wait,
    queue_flush: queue::queue_flush,
    queue_synchronize: queue::queue_synchronize,
    queue_release: queue::queue_release,
    event_is_done: event::event_is_done,
    event_wait: event::event_wait,
    event_elapsed: event::event_elapsed,
    event_release: event::event_release,
    op_name: plan::op_name,
    plan_create: plan::plan_create,
    plan_gemm: ops::plan,
    plan_grouped_gemm: ops::plan,
    plan_grouped_gemm_masked: ops::plan,
    plan_attention: ops::plan,
    plan_attention_varlen: ops::plan,
    plan_attention_paged: ops::plan,
    plan_moe_route: ops::plan,
    plan_expert_scatter: ops::plan,
    plan_expert_gather: ops::plan,
    plan_moe_ffn: ops::plan,
    plan_info: plan::plan_info,
    plan_operand: plan::plan_operand,
    plan_prepare: plan::plan_prepare,
    plan_release: plan::plan_release,
    graph_create: graph::graph_create,
    graph_rebind: graph::graph_rebind,
    graph_release: graph::graph_release,
};

/// The table of functions of this version of the interface (ROPEWAY_API_VERSION), which lives as long as the process; NULL if the library does not speak
/// that version. May be called from any thread, any number of times.
#[unsafe(no_mangle)]
pub extern "C" fn ropeway_get_api(version: u32) -> *const ropeway_api {
    match version {
        ROPEWAY_API_VERSION => &TABLE,
        _ => std::ptr::null(),
    }
}
