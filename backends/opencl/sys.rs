//! OpenCL's functions: loading, counted handles, and the one place where its codes become errors.
//!
//! The table of functions is crate `cl3`'s, loaded at run time. Its Rust wrappers are passed over: they ask the driver for an
//! event at each command and collect answers in vectors, which an enqueue cannot afford.

// `cl3` declares its table's functions safe. They are not: each trusts its pointers.
#![allow(unused_unsafe)]

use std::ffi::{CStr, c_void};
use std::ptr;

use cl3::error_codes as codes;
use cl3::types::{cl_device_id, cl_int, cl_uint, cl_ulong};
use ropeway_core::{Error, ErrorKind, Result};
use crate::moment::Moment;

/// The code that NVIDIA's driver gives after an illegal memory access; the context is lost.
const NVIDIA_ILLEGAL_ACCESS: cl_int = -9999;
/// The loader's code for an installation without any driver (`cl_khr_icd`).
pub(super) const PLATFORM_NOT_FOUND: cl_int = -1001;

/// Stands for the call where a command failed after its enqueueing.
const EXECUTION: &str = "the execution of a command";

/// What OpenCL's `call` means by `code`.
pub(super) fn error(call: &'static str, code: cl_int) -> Error {
    let kind = match code {
        codes::CL_MEM_OBJECT_ALLOCATION_FAILURE
        | codes::CL_OUT_OF_HOST_MEMORY
        | codes::CL_INVALID_BUFFER_SIZE => ErrorKind::OutOfMemory,
        codes::CL_OUT_OF_RESOURCES if call == "clCreateBuffer" => ErrorKind::OutOfMemory,
        // The queue was valid when it was made, so a driver that calls it invalid has shut it down.
        codes::CL_DEVICE_NOT_AVAILABLE
        | codes::CL_INVALID_COMMAND_QUEUE
        | NVIDIA_ILLEGAL_ACCESS => ErrorKind::DeviceLost,
        codes::CL_BUILD_PROGRAM_FAILURE
        | codes::CL_COMPILE_PROGRAM_FAILURE
        | codes::CL_LINK_PROGRAM_FAILURE
        | codes::CL_INVALID_BUILD_OPTIONS => ErrorKind::CompileFailed,
        codes::CL_INVALID_KERNEL_NAME => ErrorKind::InvalidArgument,
        codes::CL_OUT_OF_RESOURCES
        | codes::CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST
        | codes::CL_INVALID_KERNEL_ARGS
        | codes::CL_INVALID_ARG_INDEX
        | codes::CL_INVALID_ARG_VALUE
        | codes::CL_INVALID_ARG_SIZE
        | codes::CL_INVALID_WORK_GROUP_SIZE
        | codes::CL_INVALID_WORK_ITEM_SIZE
        | codes::CL_INVALID_GLOBAL_WORK_SIZE => ErrorKind::LaunchFailed,
        codes::CL_COMPILER_NOT_AVAILABLE | codes::CL_INVALID_OPERATION => ErrorKind::Unsupported,
        PLATFORM_NOT_FOUND
        | codes::DLOPEN_RUNTIME_LOAD_FAILED
        | codes::DLOPEN_FUNCTION_NOT_AVAILABLE => ErrorKind::Unavailable,
        _ if call == EXECUTION => ErrorKind::LaunchFailed,
        _ => ErrorKind::Driver,
    };
    let text = match (call, kind) {
        // Drivers make up codes here (PoCL: -1), so their names mislead.
        (EXECUTION, ErrorKind::LaunchFailed) => {
            "the device abandoned a command, or one it waited for"
        }
        _ => codes::error_text(code),
    };
    Error::from_call(kind, call, code.into(), text)
}

pub(super) fn check(call: &'static str, code: cl_int) -> Result<()> {
    match code {
        codes::CL_SUCCESS => Ok(()),
        code => Err(error(call, code)),
    }
}

/// Calls a function of the table; its value, or an error if the library or the function is missing.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        match cl3::load_library() {
            Ok(library) => library
                .$function($($argument),*)
                .ok_or_else(|| error(stringify!($function), codes::DLOPEN_FUNCTION_NOT_AVAILABLE)),
            Err(_) => Err(error(stringify!($function), codes::DLOPEN_RUNTIME_LOAD_FAILED)),
        }
    };
}

/// Calls a function whose value is a status.
macro_rules! run {
    ($function:ident($($argument:expr),* $(,)?)) => {
        call!($function($($argument),*)).and_then(|code| check(stringify!($function), code))
    };
}

/// Calls a function that makes an object and stores a status through its last argument.
macro_rules! make {
    ($function:ident($($argument:expr),* $(,)?)) => {{
        let mut code: cl_int = codes::CL_INVALID_VALUE;
        call!($function($($argument,)* &raw mut code))
            .and_then(|object| check(stringify!($function), code).map(|()| object))
    }};
}

/// A counted handle to an object.
pub(super) trait Handle: Sized {
    /// The object, valid as long as this handle.
    fn raw(&self) -> *mut c_void;

    /// A handle of its own to somebody's object.
    ///
    /// # Safety
    /// `raw` must be a valid object of this kind.
    unsafe fn retained(raw: *mut c_void) -> Result<Self>;
}

/// Declares counted handles: the name, the function that takes another count, the one that gives one back.
macro_rules! handles {
    ($($(#[$doc:meta])* $name:ident: $retain:ident, $release:ident;)*) => {$(
        $(#[$doc])*
        pub(super) struct $name(*mut c_void);

        // SAFETY: OpenCL's objects may be used and released from any thread (specification, appendix A.2).
        unsafe impl Send for $name {}

        impl Handle for $name {
            fn raw(&self) -> *mut c_void {
                self.0
            }

            unsafe fn retained(raw: *mut c_void) -> Result<$name> {
                // SAFETY: the caller gives a valid object; the count taken here is given back in `drop`.
                unsafe { run!($retain(raw)) }?;
                Ok($name(raw))
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: the object is valid and this handle owns one count of it. A failure leaves nothing to do.
                let _ = unsafe { run!($release(self.0)) };
            }
        }
    )*};
}

handles! {
    /// A context of one device.
    Context: clRetainContext, clReleaseContext;
    /// A command queue.
    RawQueue: clRetainCommandQueue, clReleaseCommandQueue;
    /// A buffer.
    Mem: clRetainMemObject, clReleaseMemObject;
    /// A program.
    Program: clRetainProgram, clReleaseProgram;
    /// A kernel. Not `Sync`: two threads may not set its arguments at once.
    Kernel: clRetainKernel, clReleaseKernel;
    /// An event.
    RawEvent: clRetainEvent, clReleaseEvent;
}

// SAFETY: every function but `clSetKernelArg` is thread-safe (specification, appendix A.2), so all but kernels may be shared.
unsafe impl Sync for Context {}
// SAFETY: as above.
unsafe impl Sync for RawQueue {}
// SAFETY: as above.
unsafe impl Sync for Mem {}
// SAFETY: as above.
unsafe impl Sync for Program {}
// SAFETY: as above.
unsafe impl Sync for RawEvent {}

/// A root device: never created nor freed, so it is only a number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct DeviceHandle(pub(super) cl_device_id);

// SAFETY: OpenCL's objects may be used from any thread (specification, appendix A.2), and root devices live forever.
unsafe impl Send for DeviceHandle {}
// SAFETY: as above.
unsafe impl Sync for DeviceHandle {}

/// Asks twice, for the size and for the bytes, as all of OpenCL's query functions work.
fn query(mut ask: impl FnMut(usize, *mut c_void, *mut usize) -> Result<()>) -> Result<Vec<u8>> {
    let mut size = 0;
    ask(0, ptr::null_mut(), &mut size)?;
    let mut bytes = vec![0u8; size];
    if size > 0 {
        ask(size, bytes.as_mut_ptr().cast(), ptr::null_mut())?;
    }
    Ok(bytes)
}

/// The text of a query's answer.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end_matches('\0')
        .trim()
        .to_owned()
}

/// The unsigned integer of a query's answer, whatever its width.
pub(super) fn number(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    let len = bytes.len().min(8);
    word[..len].copy_from_slice(&bytes[..len]);
    u64::from_le_bytes(word)
}

pub(super) fn platforms() -> Result<Vec<*mut c_void>> {
    let mut count: cl_uint = 0;
    // SAFETY: asks for the number only.
    unsafe { run!(clGetPlatformIDs(0, ptr::null_mut(), &raw mut count)) }?;
    let mut ids = vec![ptr::null_mut(); count as usize];
    if count > 0 {
        // SAFETY: `ids` has room for `count`.
        unsafe { run!(clGetPlatformIDs(count, ids.as_mut_ptr(), ptr::null_mut())) }?;
    }
    Ok(ids)
}

pub(super) fn platform_text(platform: *mut c_void, name: cl_uint) -> Result<String> {
    // SAFETY: `platform` comes from `platforms`; `query` gives room for what it says.
    query(|size, value, needed| unsafe {
        run!(clGetPlatformInfo(platform, name, size, value, needed))
    })
    .map(|bytes| text(&bytes))
}

pub(super) fn devices(platform: *mut c_void) -> Result<Vec<DeviceHandle>> {
    let kinds = cl3::device::CL_DEVICE_TYPE_ALL;
    let mut count: cl_uint = 0;
    // SAFETY: asks for the number only.
    match unsafe {
        run!(clGetDeviceIDs(
            platform,
            kinds,
            0,
            ptr::null_mut(),
            &raw mut count
        ))
    } {
        Err(error) if error.code() == Some(codes::CL_DEVICE_NOT_FOUND.into()) => {
            return Ok(Vec::new());
        }
        answer => answer?,
    }
    let mut ids = vec![ptr::null_mut(); count as usize];
    if count > 0 {
        // SAFETY: `ids` has room for `count`.
        unsafe {
            run!(clGetDeviceIDs(
                platform,
                kinds,
                count,
                ids.as_mut_ptr(),
                ptr::null_mut()
            ))
        }?;
    }
    Ok(ids.into_iter().map(DeviceHandle).collect())
}

impl DeviceHandle {
    pub(super) fn query(self, name: cl_uint) -> Result<Vec<u8>> {
        // SAFETY: root devices are always valid; `query` gives room for what it says.
        query(|size, value, needed| unsafe {
            run!(clGetDeviceInfo(self.0, name, size, value, needed))
        })
    }

    pub(super) fn text(self, name: cl_uint) -> Result<String> {
        self.query(name).map(|bytes| text(&bytes))
    }

    pub(super) fn number(self, name: cl_uint) -> Result<u64> {
        self.query(name).map(|bytes| number(&bytes))
    }
}

impl Context {
    pub(super) fn new(device: DeviceHandle) -> Result<Context> {
        // SAFETY: one valid device, no properties, no callback.
        unsafe {
            make!(clCreateContext(
                ptr::null(),
                1,
                &device.0,
                None,
                ptr::null_mut()
            ))
        }
        .map(Context)
    }

    /// True if the context holds this device.
    pub(super) fn holds(&self, device: DeviceHandle) -> Result<bool> {
        let name = cl3::context::CL_CONTEXT_DEVICES;
        // SAFETY: the context is valid; `query` gives room for what it says.
        let bytes = query(|size, value, needed| unsafe {
            run!(clGetContextInfo(self.0, name, size, value, needed))
        })?;
        Ok(bytes
            .chunks_exact(size_of::<usize>())
            .any(|id| number(id) == device.0 as u64))
    }

    pub(super) fn queue(&self, device: DeviceHandle) -> Result<RawQueue> {
        let properties = cl3::command_queue::CL_QUEUE_PROFILING_ENABLE;
        // SAFETY: the device is the context's. The function is deprecated, but the only one that OpenCL 1.2 drivers have.
        unsafe { make!(clCreateCommandQueue(self.0, device.0, properties)) }.map(RawQueue)
    }

    pub(super) fn buffer(&self, flags: u64, bytes: usize) -> Result<Mem> {
        // SAFETY: no host pointer goes with these flags.
        unsafe { make!(clCreateBuffer(self.0, flags, bytes, ptr::null_mut())) }.map(Mem)
    }

    pub(super) fn buffer_from(&self, bytes: &[u8]) -> Result<Mem> {
        let flags = cl3::memory::CL_MEM_READ_WRITE | cl3::memory::CL_MEM_COPY_HOST_PTR;
        let data = bytes.as_ptr().cast_mut().cast();
        // SAFETY: `bytes` is as long as it says and is copied, not kept or written.
        unsafe { make!(clCreateBuffer(self.0, flags, bytes.len(), data)) }.map(Mem)
    }

    pub(super) fn program(&self, source: &str) -> Result<Program> {
        let (text, len) = (source.as_ptr().cast(), source.len());
        // SAFETY: one string of the length given.
        unsafe {
            make!(clCreateProgramWithSource(
                self.0,
                1,
                &raw const text,
                &raw const len
            ))
        }
        .map(Program)
    }

    /// A program from what [`Program::binary`] gave on the same device and driver.
    pub(super) fn program_from_binary(
        &self,
        device: DeviceHandle,
        binary: &[u8],
    ) -> Result<Program> {
        let (data, len) = (binary.as_ptr(), binary.len());
        let mut status: cl_int = 0;
        // SAFETY: one device of the context, one binary of the length given. The driver trusts the content: the caller takes it
        // from a directory that others cannot write.
        unsafe {
            make!(clCreateProgramWithBinary(
                self.0,
                1,
                &device.0,
                &raw const len,
                &raw const data,
                &raw mut status,
            ))
        }
        .map(Program)
    }
}

impl Program {
    pub(super) fn build(&self, device: DeviceHandle, options: &CStr) -> Result<()> {
        // SAFETY: one device of the program's context; no callback, so the call returns when the build is done.
        unsafe {
            run!(clBuildProgram(
                self.0,
                1,
                &device.0,
                options.as_ptr(),
                None,
                ptr::null_mut()
            ))
        }
    }

    pub(super) fn log(&self, device: DeviceHandle) -> Result<String> {
        let name = cl3::program::CL_PROGRAM_BUILD_LOG;
        // SAFETY: program and device are valid; `query` gives room for what it says.
        query(|size, value, needed| unsafe {
            run!(clGetProgramBuildInfo(
                self.0, device.0, name, size, value, needed
            ))
        })
        .map(|bytes| text(&bytes))
    }

    /// The built program of its one device, in the driver's own format; empty if the driver gives none.
    pub(super) fn binary(&self) -> Result<Vec<u8>> {
        let mut size = 0usize;
        let name = cl3::program::CL_PROGRAM_BINARY_SIZES;
        let width = size_of::<usize>();
        // SAFETY: the program has one device, so the answer is one size.
        unsafe {
            run!(clGetProgramInfo(
                self.0,
                name,
                width,
                (&raw mut size).cast(),
                ptr::null_mut()
            ))
        }?;
        let mut bytes = vec![0u8; size];
        if size > 0 {
            let mut target = bytes.as_mut_ptr();
            let (name, width) = (cl3::program::CL_PROGRAM_BINARIES, size_of::<*mut u8>());
            // SAFETY: the argument is an array of one pointer, to the room that the driver has just asked for.
            unsafe {
                run!(clGetProgramInfo(
                    self.0,
                    name,
                    width,
                    (&raw mut target).cast(),
                    ptr::null_mut()
                ))
            }?;
        }
        Ok(bytes)
    }

    pub(super) fn kernel(&self, entry: &CStr) -> Result<Kernel> {
        // SAFETY: the program is built; an unknown name is an error, not a fault.
        unsafe { make!(clCreateKernel(self.0, entry.as_ptr())) }.map(Kernel)
    }
}

impl Kernel {
    pub(super) fn arguments(&self) -> Result<u32> {
        let name = cl3::kernel::CL_KERNEL_NUM_ARGS;
        // SAFETY: the kernel is valid; `query` gives room for what it says.
        query(|size, value, needed| unsafe {
            run!(clGetKernelInfo(self.0, name, size, value, needed))
        })
        .map(|bytes| number(&bytes) as u32)
    }

    pub(super) fn work_group(&self, device: DeviceHandle, name: cl_uint) -> Result<u64> {
        // SAFETY: kernel and device are valid; `query` gives room for what it says.
        query(|size, value, needed| unsafe {
            run!(clGetKernelWorkGroupInfo(
                self.0, device.0, name, size, value, needed
            ))
        })
        .map(|bytes| number(&bytes))
    }

    /// Sets an argument to the bytes of `value`.
    ///
    /// # Safety
    /// The kernel's argument of this number must be of type `T`; a global pointer, if `T` is a `cl_mem`.
    #[inline]
    pub(super) unsafe fn set<T>(&mut self, index: u32, value: &T) -> Result<()> {
        let value = ptr::from_ref(value).cast();
        // SAFETY: `value` is as long as `T`; the exclusive borrow keeps other threads off this kernel; the rest is the caller's
        // promise. (A wrong size or number would be a status, not a fault.)
        unsafe { run!(clSetKernelArg(self.0, index, size_of::<T>(), value)) }
    }
}

impl RawQueue {
    /// The queue's context, device or properties.
    pub(super) fn query(&self, name: cl_uint) -> Result<u64> {
        // SAFETY: the queue is valid; `query` gives room for what it says.
        query(|size, value, needed| unsafe {
            run!(clGetCommandQueueInfo(self.0, name, size, value, needed))
        })
        .map(|bytes| number(&bytes))
    }

    /// # Safety
    /// The kernel's arguments must be set to what the kernel expects, and the kernel must stay within its buffers.
    #[inline]
    pub(super) unsafe fn launch(
        &self,
        kernel: &Kernel,
        global: &[usize; 3],
        local: &[usize; 3],
    ) -> Result<()> {
        // SAFETY: sizes for three dimensions, no events; the rest is the caller's promise. The driver keeps kernel and buffers
        // alive until the work is done.
        unsafe {
            run!(clEnqueueNDRangeKernel(
                self.0,
                kernel.0,
                3,
                ptr::null(),
                global.as_ptr(),
                local.as_ptr(),
                0,
                ptr::null(),
                ptr::null_mut(),
            ))
        }
    }

    /// Begins or, if `blocking`, does a copy from host memory.
    ///
    /// # Safety
    /// The range lies in `mem`; unless `blocking`, `from` stays alive and unchanged until the event is done.
    pub(super) unsafe fn write(
        &self,
        mem: &Mem,
        offset: u64,
        from: &[u8],
        blocking: bool,
    ) -> Result<RawEvent> {
        let mut event = ptr::null_mut();
        // SAFETY: `from` is as long as it says; the rest is the caller's promise.
        unsafe {
            run!(clEnqueueWriteBuffer(
                self.0,
                mem.0,
                blocking.into(),
                offset as usize,
                from.len(),
                from.as_ptr().cast(),
                0,
                ptr::null(),
                &raw mut event,
            ))
        }?;
        Ok(RawEvent(event))
    }

    /// Begins or, if `blocking`, does a copy to host memory.
    ///
    /// # Safety
    /// The range lies in `mem`; `into` has room for `len` bytes and, unless `blocking`, stays alive and untouched until the
    /// event is done.
    pub(super) unsafe fn read(
        &self,
        mem: &Mem,
        offset: u64,
        into: *mut u8,
        len: usize,
        blocking: bool,
    ) -> Result<RawEvent> {
        let mut event = ptr::null_mut();
        // SAFETY: the caller's promise.
        unsafe {
            run!(clEnqueueReadBuffer(
                self.0,
                mem.0,
                blocking.into(),
                offset as usize,
                len,
                into.cast(),
                0,
                ptr::null(),
                &raw mut event,
            ))
        }?;
        Ok(RawEvent(event))
    }

    /// # Safety
    /// Both ranges lie in their buffers and do not overlap.
    pub(super) unsafe fn copy(
        &self,
        from: &Mem,
        from_offset: u64,
        to: &Mem,
        to_offset: u64,
        len: u64,
    ) -> Result<()> {
        // SAFETY: the caller's promise; no events.
        unsafe {
            run!(clEnqueueCopyBuffer(
                self.0,
                from.0,
                to.0,
                from_offset as usize,
                to_offset as usize,
                len as usize,
                0,
                ptr::null(),
                ptr::null_mut(),
            ))
        }
    }

    /// Repeats `pattern`, whose length is a power of two up to 128 and divides offset and length.
    ///
    /// # Safety
    /// The range lies in `mem`.
    pub(super) unsafe fn fill(
        &self,
        mem: &Mem,
        pattern: &[u8],
        offset: u64,
        len: u64,
    ) -> Result<()> {
        // SAFETY: the pattern is as long as it says and copied by the call; the rest is the caller's promise.
        unsafe {
            run!(clEnqueueFillBuffer(
                self.0,
                mem.0,
                pattern.as_ptr().cast(),
                pattern.len(),
                offset as usize,
                len as usize,
                0,
                ptr::null(),
                ptr::null_mut(),
            ))
        }
    }

    /// Maps a host-visible buffer and waits for it.
    pub(super) fn map(&self, mem: &Mem, len: usize) -> Result<*mut u8> {
        let flags = cl3::memory::CL_MAP_READ | cl3::memory::CL_MAP_WRITE;
        // SAFETY: the buffer is `len` bytes long; the pointer stays valid until `unmap`.
        unsafe {
            make!(clEnqueueMapBuffer(
                self.0,
                mem.0,
                cl3::types::CL_TRUE,
                flags,
                0,
                len,
                0,
                ptr::null(),
                ptr::null_mut(),
            ))
        }
        .map(|pointer| pointer.cast())
    }

    /// # Safety
    /// `pointer` comes from [`RawQueue::map`] of this buffer and is not used afterwards.
    pub(super) unsafe fn unmap(&self, mem: &Mem, pointer: *mut u8) -> Result<()> {
        // SAFETY: the caller's promise; no events.
        unsafe {
            run!(clEnqueueUnmapMemObject(
                self.0,
                mem.0,
                pointer.cast(),
                0,
                ptr::null(),
                ptr::null_mut(),
            ))
        }
    }

    /// An event that is done when all earlier commands are.
    pub(super) fn marker(&self) -> Result<RawEvent> {
        let mut event = ptr::null_mut();
        // SAFETY: an empty wait list stands for all earlier commands.
        unsafe {
            run!(clEnqueueMarkerWithWaitList(
                self.0,
                0,
                ptr::null(),
                &raw mut event
            ))
        }?;
        Ok(RawEvent(event))
    }

    /// Later commands wait for `event`.
    pub(super) fn barrier(&self, event: &RawEvent) -> Result<()> {
        // SAFETY: a list of one valid event.
        unsafe {
            run!(clEnqueueBarrierWithWaitList(
                self.0,
                1,
                &event.0,
                ptr::null_mut()
            ))
        }
    }

    pub(super) fn flush(&self) -> Result<()> {
        // SAFETY: the queue is valid.
        unsafe { run!(clFlush(self.0)) }
    }
}

impl Mem {
    /// The buffer's size or context.
    pub(super) fn query(&self, name: cl_uint) -> Result<u64> {
        // SAFETY: the buffer is valid; `query` gives room for what it says.
        query(|size, value, needed| unsafe {
            run!(clGetMemObjectInfo(self.0, name, size, value, needed))
        })
        .map(|bytes| number(&bytes))
    }
}

impl Moment for RawEvent {
    fn is_done(&self) -> Result<bool> {
        let mut status: cl_int = 0;
        let name = cl3::event::CL_EVENT_COMMAND_EXECUTION_STATUS;
        let (width, value) = (size_of::<cl_int>(), (&raw mut status).cast());
        // SAFETY: the event is valid and the answer a `cl_int`.
        unsafe { run!(clGetEventInfo(self.0, name, width, value, ptr::null_mut())) }?;
        match status {
            cl3::event::CL_COMPLETE => Ok(true),
            failed if failed < 0 => Err(error(EXECUTION, failed)),
            _ => Ok(false),
        }
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: a list of one valid event.
        let waited = unsafe { run!(clWaitForEvents(1, &self.0)) };
        // The call says only that something failed; the event says what.
        self.is_done()?;
        waited
    }
}

impl RawEvent {
    /// When the device finished the command, in nanoseconds of its clock.
    pub(super) fn finished_at(&self) -> Result<u64> {
        let mut time: cl_ulong = 0;
        let name = cl3::event::CL_PROFILING_COMMAND_END;
        let (width, value) = (size_of::<cl_ulong>(), (&raw mut time).cast());
        // SAFETY: the event is valid and the answer a `cl_ulong`.
        unsafe {
            run!(clGetEventProfilingInfo(
                self.0,
                name,
                width,
                value,
                ptr::null_mut()
            ))
        }?;
        Ok(time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_become_errors_of_their_kind() {
        for (call, code, kind) in [
            ("clCreateBuffer", -4, ErrorKind::OutOfMemory),
            ("clCreateBuffer", -5, ErrorKind::OutOfMemory),
            ("clCreateBuffer", -61, ErrorKind::OutOfMemory),
            ("clEnqueueNDRangeKernel", -4, ErrorKind::OutOfMemory),
            ("clEnqueueNDRangeKernel", -5, ErrorKind::LaunchFailed),
            ("clEnqueueNDRangeKernel", -52, ErrorKind::LaunchFailed),
            ("clFinish", -36, ErrorKind::DeviceLost),
            ("clFinish", -9999, ErrorKind::DeviceLost),
            (EXECUTION, -1, ErrorKind::LaunchFailed),
            (EXECUTION, -4, ErrorKind::OutOfMemory),
            ("clBuildProgram", -11, ErrorKind::CompileFailed),
            ("clCreateKernel", -46, ErrorKind::InvalidArgument),
            ("clGetPlatformIDs", -1001, ErrorKind::Unavailable),
            ("clGetPlatformIDs", -2000, ErrorKind::Unavailable),
            ("clSetKernelArg", -38, ErrorKind::Driver),
        ] {
            let error = error(call, code);
            assert_eq!(error.kind(), kind, "{error}");
            assert_eq!((error.call(), error.code()), (call, Some(code.into())));
        }
    }

    #[test]
    fn numbers_of_any_width_and_texts_with_their_end() {
        assert_eq!(number(&[1, 2]), 0x201);
        assert_eq!(number(&u64::MAX.to_le_bytes()), u64::MAX);
        assert_eq!(text(b"PoCL \0"), "PoCL");
        assert_eq!(text(b""), "");
    }
}
