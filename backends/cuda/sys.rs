//! CUDA's functions: loading, handles that release on drop, and the one place where its codes become errors.
//!
//! The tables of functions are crate `cudarc`'s, loaded at run time. They panic where a library or a function is missing, so
//! [`load`] looks for every function of [`REQUIRED`] before any is called; what is called beyond those is asked for by
//! [`has`] first.

use std::ffi::{CStr, c_int, c_void};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys as cu;
use ropeway_core::device::{Reason, Unavailable};
use ropeway_core::plan::TensorMap;
use ropeway_core::{DType, Error, ErrorKind, Result};
use crate::moment::Moment;

/// The oldest driver that is used: CUDA 11.4, the first with stream-ordered memory as it is now.
const OLDEST_DRIVER: c_int = 11_040;

/// The first version whose graphs hold launches that begin early.
const FIRST_WITH_OVERLAP: c_int = 12_030;

/// Every function that is called without asking for it first.
const REQUIRED: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamGetCtx",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// Whether the driver library has a function. (One that is there by name only, at address 0, is none.)
pub(super) fn has(symbol: &str) -> bool {
    // SAFETY: called after the library was found; the pointer is only compared.
    let found = unsafe { cu::culib().get::<*const c_void>(symbol.as_bytes()) };
    found.is_ok_and(|function| !function.is_null())
}

/// Whether a kernel may begin before the one before it has ended. From CUDA 12.3 on: graphs know of it since.
pub(super) fn launches_overlap() -> bool {
    let mut version = 0;
    // SAFETY: called after the library was found, which has this function; the pointer is valid.
    let told = has("cuLaunchKernelEx") && unsafe { run!(cuDriverGetVersion(&raw mut version)) }.is_ok();
    told && version >= FIRST_WITH_OVERLAP
}

/// Whether the library is a double of the vendor's: the emulated driver exports functions of its own.
pub(super) fn is_emulated() -> bool {
    has("ropeway_emulated_cuda_calls")
}

/// Loads the driver, and gives the version of CUDA that it speaks.
pub(super) fn load() -> Result<c_int, Unavailable> {
    let install = "install NVIDIA's driver (Debian: apt-get install nvidia-driver; in a container, start it with the GPU)";
    let because = |reason| {
        Err(Unavailable {
            reason,
            remedy: install.into(),
        })
    };
    // SAFETY: opens libraries by their usual names; their initialisers are NVIDIA's.
    if !unsafe { cu::is_culib_present() } {
        let tried = cudarc::get_lib_name_candidates("cuda");
        return because(Reason::LibraryNotFound { tried });
    }
    if let Some(symbol) = REQUIRED.iter().find(|symbol| !has(symbol)) {
        // A driver that old lacks functions before it can tell its version.
        return Err(Unavailable {
            reason: Reason::SymbolMissing {
                library: "libcuda".into(),
                symbol: (*symbol).into(),
            },
            remedy: "install a newer driver: CUDA 11.4 (470) or later is needed".into(),
        });
    }
    let mut version = 0;
    // SAFETY: the pointer is valid; the call needs no initialisation.
    let told = unsafe { run!(cuDriverGetVersion(&raw mut version)) };
    if let Err(error) = told {
        return because(Reason::InitialisationFailed(error));
    }
    if version < OLDEST_DRIVER {
        return Err(Unavailable {
            reason: Reason::VersionTooOld {
                found: version_text(version),
                needed: version_text(OLDEST_DRIVER),
            },
            remedy: "install a newer driver: CUDA 11.4 (470) or later is needed".into(),
        });
    }
    // SAFETY: takes no pointer.
    match unsafe { run!(cuInit(0)) } {
        Ok(()) => Ok(version),
        Err(error) if error.code() == Some(cu::CUresult::CUDA_ERROR_NO_DEVICE as i64) => {
            because(Reason::NoDevice)
        }
        Err(error) => because(Reason::InitialisationFailed(error)),
    }
}

/// `12090` as people write it: `12.9`.
pub(super) fn version_text(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// What the driver's `call` means by `code`.
pub(super) fn error(call: &'static str, code: cu::CUresult) -> Error {
    use cu::CUresult as C;
    let kind = match code {
        C::CUDA_ERROR_OUT_OF_MEMORY => ErrorKind::OutOfMemory,
        // After these the context answers every call with the same code.
        C::CUDA_ERROR_ILLEGAL_ADDRESS
        | C::CUDA_ERROR_LAUNCH_FAILED
        | C::CUDA_ERROR_LAUNCH_TIMEOUT
        | C::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | C::CUDA_ERROR_MISALIGNED_ADDRESS
        | C::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | C::CUDA_ERROR_INVALID_PC
        | C::CUDA_ERROR_HARDWARE_STACK_ERROR
        | C::CUDA_ERROR_ASSERT
        | C::CUDA_ERROR_ECC_UNCORRECTABLE
        | C::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | C::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | C::CUDA_ERROR_DEVICE_UNAVAILABLE
        | C::CUDA_ERROR_DEINITIALIZED => ErrorKind::DeviceLost,
        C::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
        | C::CUDA_ERROR_LAUNCH_INCOMPATIBLE_TEXTURING
        | C::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE => ErrorKind::LaunchFailed,
        C::CUDA_ERROR_INVALID_PTX
        | C::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | C::CUDA_ERROR_NO_BINARY_FOR_GPU
        | C::CUDA_ERROR_INVALID_IMAGE
        | C::CUDA_ERROR_JIT_COMPILER_NOT_FOUND => ErrorKind::CompileFailed,
        C::CUDA_ERROR_NOT_SUPPORTED => ErrorKind::Unsupported,
        C::CUDA_ERROR_NOT_FOUND => ErrorKind::InvalidArgument,
        C::CUDA_ERROR_NO_DEVICE | C::CUDA_ERROR_STUB_LIBRARY => ErrorKind::Unavailable,
        _ => ErrorKind::Driver,
    };
    let mut text = ptr::null();
    // SAFETY: the pointer is valid; what it is set to is a constant of the library.
    let told = unsafe { cu::cuGetErrorString(code, &raw mut text) };
    let text = match told == cu::CUresult::CUDA_SUCCESS && !text.is_null() {
        // SAFETY: a text that ends with NUL, as the driver says.
        true => unsafe { CStr::from_ptr(text) }.to_string_lossy(),
        false => "an unknown code".into(),
    };
    Error::from_call(kind, call, code as i64, text)
}

pub(super) fn check(call: &'static str, code: cu::CUresult) -> Result<()> {
    match code {
        cu::CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(error(call, code)),
    }
}

/// Calls a function of the driver whose value is a status.
macro_rules! run {
    ($function:ident($($argument:expr),* $(,)?)) => {
        $crate::cuda::sys::check(
            stringify!($function),
            cudarc::driver::sys::$function($($argument),*),
        )
    };
}
pub(super) use run;

/// A device's primary context, which everybody in the process shares.
pub(super) struct Context {
    pub(super) raw: cu::CUcontext,
    device: cu::CUdevice,
    /// Not given back: work is under way that nobody waits for.
    leaked: AtomicBool,
}

// SAFETY: a context may be made current on any thread.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks for itself.
unsafe impl Sync for Context {}

impl Context {
    pub(super) fn primary(device: cu::CUdevice) -> Result<Context> {
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is valid.
        unsafe { run!(cuDevicePrimaryCtxRetain(&raw mut raw, device)) }?;
        Ok(Context {
            raw,
            device,
            leaked: AtomicBool::new(false),
        })
    }

    /// Keeps the context for the rest of the process.
    pub(super) fn leak(&self) {
        self.leaked.store(true, Ordering::Relaxed);
    }

    /// Makes it current on this thread, which every call below relies on.
    #[inline]
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained.
        unsafe { run!(cuCtxSetCurrent(self.raw)) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.leaked.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: retained once. A failure leaves nothing to do.
        let _ = unsafe { run!(cuDevicePrimaryCtxRelease_v2(self.device)) };
    }
}

/// An event that keeps time.
pub(super) struct RawEvent(cu::CUevent);

// SAFETY: events may be used from any thread.
unsafe impl Send for RawEvent {}
// SAFETY: as above; the driver locks for itself.
unsafe impl Sync for RawEvent {}

impl Moment for RawEvent {
    fn is_done(&self) -> Result<bool> {
        // SAFETY: the event is valid.
        match unsafe { cu::cuEventQuery(self.0) } {
            cu::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => check("cuEventQuery", code).map(|()| true),
        }
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: the event is valid.
        unsafe { run!(cuEventSynchronize(self.0)) }
    }
}

impl RawEvent {
    /// Of the current context.
    pub(super) fn new() -> Result<RawEvent> {
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is valid.
        unsafe { run!(cuEventCreate(&raw mut raw, 0)) }?;
        Ok(RawEvent(raw))
    }

    pub(super) fn milliseconds_since(&self, earlier: &RawEvent) -> Result<f32> {
        type ElapsedTime = unsafe extern "C" fn(*mut f32, cu::CUevent, cu::CUevent) -> cu::CUresult;
        static FUNCTION: OnceLock<ElapsedTime> = OnceLock::new();
        // Asked for by hand: cudarc knows it by the name that its CUDA version gives it, and drivers before 12.8 have the first alone.
        let function = FUNCTION.get_or_init(|| {
            // SAFETY: the function has this type, and `load` has found it.
            *unsafe { cu::culib().get::<ElapsedTime>(b"cuEventElapsedTime") }.expect("found by load")
        });
        let mut milliseconds = 0.0;
        // SAFETY: both events are valid, and so is the pointer.
        let code = unsafe { function(&raw mut milliseconds, earlier.0, self.0) };
        check("cuEventElapsedTime", code)?;
        Ok(milliseconds)
    }
}

impl Drop for RawEvent {
    fn drop(&mut self) {
        // SAFETY: the event is valid; the driver waits with releasing it until it is done. A failure leaves nothing to do.
        let _ = unsafe { run!(cuEventDestroy_v2(self.0)) };
    }
}

/// A stream: one of our own, which goes with this handle, or somebody else's.
pub(super) struct RawStream {
    raw: cu::CUstream,
    foreign: bool,
    /// We capture what is enqueued.
    captures: AtomicBool,
}

// SAFETY: streams may be used from any thread.
unsafe impl Send for RawStream {}
// SAFETY: as above; the driver locks for itself.
unsafe impl Sync for RawStream {}

impl RawStream {
    /// Of the current context, unordered with its default stream.
    pub(super) fn new() -> Result<RawStream> {
        let flags = cu::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is valid.
        unsafe { run!(cuStreamCreate(&raw mut raw, flags)) }?;
        Ok(RawStream {
            raw,
            foreign: false,
            captures: AtomicBool::new(false),
        })
    }

    /// # Safety
    /// `raw` must be a stream that outlives this handle.
    pub(super) unsafe fn foreign(raw: *mut c_void) -> RawStream {
        RawStream {
            raw: raw.cast(),
            foreign: true,
            captures: AtomicBool::new(false),
        }
    }

    pub(super) fn context(&self) -> Result<cu::CUcontext> {
        let mut context = ptr::null_mut();
        // SAFETY: the stream is valid, and so is the pointer.
        unsafe { run!(cuStreamGetCtx(self.raw, &raw mut context)) }?;
        Ok(context)
    }

    /// Whether what is enqueued is being captured into a graph, by us or by an engine that owns the stream.
    pub(super) fn is_capturing(&self) -> Result<bool> {
        if !self.foreign {
            return Ok(self.captures.load(Ordering::Relaxed));
        }
        let mut status = cu::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the stream is valid, and so is the pointer.
        unsafe { run!(cuStreamIsCapturing(self.raw, &raw mut status)) }?;
        Ok(status != cu::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    pub(super) fn record(&self, event: &RawEvent) -> Result<()> {
        // SAFETY: both are valid.
        unsafe { run!(cuEventRecord(event.0, self.raw)) }
    }

    pub(super) fn wait_for(&self, event: &RawEvent) -> Result<()> {
        // SAFETY: both are valid.
        unsafe { run!(cuStreamWaitEvent(self.raw, event.0, 0)) }
    }

    pub(super) fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is valid.
        unsafe { run!(cuStreamSynchronize(self.raw)) }
    }

    /// # Safety
    /// `from` must have `bytes` bytes that stay as they are until the copy is done, and so many from `to` on must be device memory.
    pub(super) unsafe fn upload(&self, to: u64, from: *const u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { run!(cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, self.raw)) }
    }

    /// # Safety
    /// `to` must have `bytes` bytes that nobody touches until the copy is done, and so many from `from` on must be device memory.
    pub(super) unsafe fn download(&self, to: *mut u8, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { run!(cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.raw)) }
    }

    /// # Safety
    /// Both ranges must be device memory, and apart.
    pub(super) unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { run!(cuMemcpyDtoDAsync_v2(to, from, bytes, self.raw)) }
    }

    /// # Safety
    /// The range must be device memory.
    pub(super) unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { run!(cuMemsetD8Async(to, byte, bytes, self.raw)) }
    }

    /// # Safety
    /// `parameters` must point to the kernel's parameters in number, order and size. A function that `begins_early` may do so before what was
    /// launched before it has ended, and waits for it; the driver must have `cuLaunchKernelEx`.
    pub(super) unsafe fn launch(
        &self,
        (function, begins_early): (cu::CUfunction, bool),
        grid: [u32; 3],
        group: [u32; 3],
        shared_memory: u32,
        parameters: *mut *mut c_void,
    ) -> Result<()> {
        let ([x, y, z], [i, j, k]) = (grid, group);
        if begins_early {
            let mut value = cu::CUlaunchAttributeValue { pad: [0; 64] };
            value.programmaticStreamSerializationAllowed = 1;
            let mut attribute = cu::CUlaunchAttribute {
                id: cu::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                pad: [0; 4],
                value,
            };
            let config = cu::CUlaunchConfig {
                gridDimX: x,
                gridDimY: y,
                gridDimZ: z,
                blockDimX: i,
                blockDimY: j,
                blockDimZ: k,
                sharedMemBytes: shared_memory,
                hStream: self.raw,
                attrs: &raw mut attribute,
                numAttrs: 1,
            };
            // SAFETY: the caller's promise; the configuration and its attribute live until the call returns.
            return unsafe { run!(cuLaunchKernelEx(&raw const config, function, parameters, ptr::null_mut())) };
        }
        // SAFETY: the caller's promise; the function belongs to a module that is loaded.
        unsafe {
            run!(cuLaunchKernel(
                function,
                x,
                y,
                z,
                i,
                j,
                k,
                shared_memory,
                self.raw,
                parameters,
                ptr::null_mut()
            ))
        }
    }

    /// Begins to capture what this thread enqueues into a graph.
    pub(super) fn begin_capture(&self) -> Result<()> {
        let mode = cu::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is valid.
        unsafe { run!(cuStreamBeginCapture_v2(self.raw, mode)) }?;
        self.captures.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Ends the capture. What was captured is ready to launch.
    pub(super) fn end_capture(&self) -> Result<RawGraph> {
        self.captures.store(false, Ordering::Relaxed);
        let mut graph = ptr::null_mut();
        // SAFETY: the stream is valid, and so is the pointer.
        unsafe { run!(cuStreamEndCapture(self.raw, &raw mut graph)) }?;
        let mut exec = ptr::null_mut();
        // SAFETY: the graph is valid, and so is the pointer.
        let made = unsafe { run!(cuGraphInstantiateWithFlags(&raw mut exec, graph, 0)) };
        // SAFETY: an executable graph holds what it needs of the graph that it was made from.
        let _ = unsafe { run!(cuGraphDestroy(graph)) };
        made.map(|()| RawGraph(exec))
    }

    pub(super) fn replay(&self, graph: &RawGraph) -> Result<()> {
        // SAFETY: both are valid.
        unsafe { run!(cuGraphLaunch(graph.0, self.raw)) }
    }

    /// Takes device memory in the stream's order.
    pub(super) fn alloc(&self, bytes: usize) -> Result<u64> {
        let mut address = 0;
        // SAFETY: the pointer is valid.
        unsafe { run!(cuMemAllocAsync(&raw mut address, bytes, self.raw)) }?;
        Ok(address)
    }

    /// # Safety
    /// `address` must have come from an `alloc`, with no work left that uses it.
    pub(super) unsafe fn free(&self, address: u64) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { run!(cuMemFreeAsync(address, self.raw)) }
    }
}

impl Drop for RawStream {
    fn drop(&mut self) {
        if !self.foreign {
            // SAFETY: the stream is valid; the driver releases it when its work is done. A failure leaves nothing to do.
            let _ = unsafe { run!(cuStreamDestroy_v2(self.raw)) };
        }
    }
}

/// A captured graph, ready to launch.
pub(super) struct RawGraph(cu::CUgraphExec);

// SAFETY: executable graphs may be used from any thread.
unsafe impl Send for RawGraph {}
// SAFETY: launches are serialised by the driver; nothing else is done to it.
unsafe impl Sync for RawGraph {}

impl Drop for RawGraph {
    fn drop(&mut self) {
        // SAFETY: valid, and kept by the queues until its launches are done.
        let _ = unsafe { run!(cuGraphExecDestroy(self.0)) };
    }
}

/// Host memory that the device copies from and to directly.
pub(super) struct Pinned {
    address: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory, which this handle alone owns.
unsafe impl Send for Pinned {}
// SAFETY: shared access is reading.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// In the current context; not zeroed. The host reads it through its caches.
    pub(super) fn new(bytes: usize) -> Result<Pinned> {
        let mut address = ptr::null_mut();
        // The driver has no allocations without bytes.
        // SAFETY: the pointer is valid. Without flags memory is cached, which write-combined memory is not.
        unsafe { run!(cuMemHostAlloc(&raw mut address, bytes.max(1), 0)) }?;
        Ok(Pinned {
            address: address.cast(),
            bytes,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    pub(super) fn address(&self) -> *mut u8 {
        self.address
    }

    /// # Safety
    /// The memory must have been written, and nobody may write to it meanwhile.
    pub(super) unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: the allocation has so many bytes; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.address, self.bytes) }
    }

    /// # Safety
    /// As [`Pinned::bytes`].
    pub(super) unsafe fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, and owned by this handle. A failure leaks it.
        let _ = unsafe { run!(cuMemFreeHost(self.address.cast())) };
    }
}

/// Device memory that is not taken in the order of a stream.
pub(super) fn alloc(bytes: usize) -> Result<u64> {
    let mut address = 0;
    // SAFETY: the pointer is valid.
    unsafe { run!(cuMemAlloc_v2(&raw mut address, bytes)) }?;
    Ok(address)
}

/// # Safety
/// `address` must have come from [`alloc`], with no work left that uses it.
pub(super) unsafe fn free(address: u64) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { run!(cuMemFree_v2(address)) }
}

/// Free and whole memory of the current context's device.
pub(super) fn memory_info() -> Result<(u64, u64)> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: the pointers are valid.
    unsafe { run!(cuMemGetInfo_v2(&raw mut free, &raw mut total)) }?;
    Ok((free as u64, total as u64))
}

/// A loaded module.
pub(super) struct RawModule(cu::CUmodule);

// SAFETY: modules may be used from any thread.
unsafe impl Send for RawModule {}
// SAFETY: as above; the driver locks for itself.
unsafe impl Sync for RawModule {}

impl RawModule {
    /// Loads a cubin, or PTX that ends with NUL, into the current context.
    pub(super) fn load(image: &[u8]) -> Result<RawModule> {
        let mut raw = ptr::null_mut();
        // SAFETY: the image says its own length, and the driver copies it.
        unsafe { run!(cuModuleLoadData(&raw mut raw, image.as_ptr().cast())) }?;
        Ok(RawModule(raw))
    }

    pub(super) fn function(&self, entry: &CStr) -> Result<RawFunction> {
        let mut raw = ptr::null_mut();
        // SAFETY: the module is valid, and so is the pointer.
        unsafe {
            run!(cuModuleGetFunction(
                &raw mut raw,
                self.0,
                entry.as_ptr()
            ))
        }?;
        Ok(RawFunction(raw))
    }
}

impl Drop for RawModule {
    fn drop(&mut self) {
        // SAFETY: valid; its device keeps it until no work can use it.
        let _ = unsafe { run!(cuModuleUnload(self.0)) };
    }
}

/// An entry of a module, valid as long as that.
#[derive(Clone, Copy)]
pub(super) struct RawFunction(pub(super) cu::CUfunction);

// SAFETY: functions may be launched from any thread.
unsafe impl Send for RawFunction {}
// SAFETY: as above; the driver locks for itself.
unsafe impl Sync for RawFunction {}

impl RawFunction {
    pub(super) fn attribute(self, name: cu::CUfunction_attribute) -> Result<c_int> {
        let mut value = 0;
        // SAFETY: the function is valid, and so is the pointer.
        unsafe { run!(cuFuncGetAttribute(&raw mut value, name, self.0)) }?;
        Ok(value)
    }

    /// Allows so many bytes of dynamic shared memory, beyond the 48 KiB that need no permission.
    pub(super) fn allow_shared_memory(self, bytes: u32) -> Result<()> {
        let name = cu::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is valid.
        unsafe { run!(cuFuncSetAttribute(self.0, name, bytes as c_int)) }
    }

    /// How many parameters it has, where the driver tells (CUDA 12.4).
    pub(super) fn parameters(self) -> Option<usize> {
        if !has("cuFuncGetParamInfo") {
            return None;
        }
        (0..=2 * ropeway_core::plan::MAX_ARGUMENTS).find(|index| {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: the function is valid, and so are the pointers.
            unsafe {
                run!(cuFuncGetParamInfo(
                    self.0,
                    *index,
                    &raw mut offset,
                    &raw mut size
                ))
            }
            .is_err()
        })
    }
}

/// The tensor map of a tile access, as the hardware reads it.
pub(super) fn tensor_map(
    map: &TensorMap,
    address: u64,
    extents: &[u64; 5],
    strides: &[u64; 5],
) -> Result<cu::CUtensorMap> {
    use cu::CUtensorMapDataType as T;
    use cu::CUtensorMapSwizzle as S;
    if !has("cuTensorMapEncodeTiled") {
        return Err(Error::unsupported(
            "tensor maps with a driver before CUDA 12.0",
        ));
    }
    let dtype = match map.dtype {
        DType::F32 => T::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::F16 => T::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DType::BF16 => T::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::I32 => T::CU_TENSOR_MAP_DATA_TYPE_INT32,
        other if other.size() == Some(1) => T::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        other => return Err(Error::unsupported(format!("tensor maps of {other}"))),
    };
    let swizzle = match map.swizzle {
        0 => S::CU_TENSOR_MAP_SWIZZLE_NONE,
        32 => S::CU_TENSOR_MAP_SWIZZLE_32B,
        64 => S::CU_TENSOR_MAP_SWIZZLE_64B,
        128 => S::CU_TENSOR_MAP_SWIZZLE_128B,
        other => {
            return Err(Error::invalid(
                "swizzle",
                format!("{other} bytes"),
                "0, 32, 64 or 128",
            ));
        }
    };
    let mut encoded = cu::CUtensorMap { opaque: [0; 16] };
    // SAFETY: `rank` is at most 5, which all arrays have (strides: one fewer, the innermost is implied).
    unsafe {
        run!(cuTensorMapEncodeTiled(
            &raw mut encoded,
            dtype,
            map.rank.min(5).into(),
            address as *mut c_void,
            extents.as_ptr(),
            strides[1..].as_ptr(),
            map.tile.as_ptr(),
            [1; 5].as_ptr(),
            cu::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            cu::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            cu::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ))
    }?;
    Ok(encoded)
}
