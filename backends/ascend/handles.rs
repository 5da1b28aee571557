//! CANN's objects: handles that release on drop.
//!
//! Each belongs to the context that `aclrtSetDevice` gives a thread, which is the same for every thread of the process. So what may be dropped
//! on any thread enters the device first.

use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ropeway_core::{Error, ErrorKind, Result};

use crate::moment::Moment;
use super::library::{Api, LaunchPath};
use super::sys::{self, Handle, LoadOption, LoadOptions, run};

/// A device, as calls need it.
#[derive(Clone, Copy)]
pub(super) struct Gate {
    pub(super) api: &'static Api,
    pub(super) ordinal: i32,
}

impl Gate {
    /// Makes the device's context current on this thread, which every call relies on. It may have been another library's turn meanwhile, so
    /// each entry does it anew. The device is never reset: others in this process may work in the same context.
    #[inline]
    pub(super) fn enter(self) -> Result<()> {
        // SAFETY: takes no pointer.
        unsafe { run!(&self.api.runtime, aclrtSetDevice(self.ordinal)) }
    }

    /// Free and whole memory of the device, which the thread has entered.
    pub(super) fn memory_info(self) -> Result<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are valid.
        unsafe {
            run!(
                &self.api.runtime,
                aclrtGetMemInfo(sys::HBM, &raw mut free, &raw mut total)
            )
        }?;
        Ok((free as u64, total as u64))
    }

    /// Device memory.
    pub(super) fn alloc(self, bytes: usize) -> Result<u64> {
        let mut address = ptr::null_mut();
        // SAFETY: the pointer is valid.
        unsafe {
            run!(
                &self.api.runtime,
                aclrtMalloc(&raw mut address, bytes, sys::HUGE_FIRST)
            )
        }?;
        Ok(address as u64)
    }

    /// # Safety
    /// `address` must have come from [`Gate::alloc`], with no work left that uses it.
    pub(super) unsafe fn free(self, address: u64) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { run!(&self.api.runtime, aclrtFree(address as *mut c_void)) }
    }
}

/// An event that keeps time.
pub(super) struct RawEvent {
    raw: Handle,
    gate: Gate,
    /// What went before it is over, and went well.
    done: AtomicBool,
}

// SAFETY: events may be used from any thread that has entered the device.
unsafe impl Send for RawEvent {}
// SAFETY: as above; the runtime locks for itself.
unsafe impl Sync for RawEvent {}

impl Moment for RawEvent {
    /// The event's state does not tell what went wrong in the work before it, so the runtime is asked once it is reached.
    fn is_done(&self) -> Result<bool> {
        if self.done.load(Ordering::Acquire) {
            return Ok(true);
        }
        let mut state = 0;
        // SAFETY: the event is valid, and so is the pointer.
        unsafe {
            run!(
                &self.gate.api.runtime,
                aclrtQueryEventStatus(self.raw, &raw mut state)
            )
        }?;
        if state != sys::EVENT_COMPLETE {
            return Ok(false);
        }
        self.wait().map(|()| true)
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: the event is valid.
        unsafe { run!(&self.gate.api.runtime, aclrtSynchronizeEvent(self.raw)) }?;
        self.done.store(true, Ordering::Release);
        Ok(())
    }
}

impl RawEvent {
    pub(super) fn new(gate: Gate) -> Result<RawEvent> {
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is valid.
        unsafe {
            run!(
                &gate.api.runtime,
                aclrtCreateEventExWithFlag(&raw mut raw, sys::EVENT_FLAGS)
            )
        }?;
        Ok(RawEvent {
            raw,
            gate,
            done: AtomicBool::new(false),
        })
    }

    pub(super) fn milliseconds_since(&self, earlier: &RawEvent) -> Result<f32> {
        let mut milliseconds = 0.0;
        // SAFETY: both events are valid, and so is the pointer.
        unsafe {
            run!(
                &self.gate.api.runtime,
                aclrtEventElapsedTime(&raw mut milliseconds, earlier.raw, self.raw)
            )
        }?;
        Ok(milliseconds)
    }
}

impl Drop for RawEvent {
    fn drop(&mut self) {
        if self.gate.enter().is_ok() {
            // SAFETY: the event is valid, and whoever enqueued it kept it until it was reached. A failure leaves nothing to do.
            let _ = unsafe { run!(&self.gate.api.runtime, aclrtDestroyEvent(self.raw)) };
        }
    }
}

/// A stream: one of our own, which goes with this handle, or somebody else's.
pub(super) struct RawStream {
    raw: Handle,
    gate: Gate,
    foreign: bool,
    /// We capture what is enqueued.
    captures: AtomicBool,
}

// SAFETY: streams may be used from any thread that has entered the device.
unsafe impl Send for RawStream {}
// SAFETY: as above; the runtime locks for itself.
unsafe impl Sync for RawStream {}

impl RawStream {
    pub(super) fn new(gate: Gate) -> Result<RawStream> {
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is valid.
        unsafe { run!(&gate.api.runtime, aclrtCreateStream(&raw mut raw)) }?;
        Ok(RawStream {
            raw,
            gate,
            foreign: false,
            captures: AtomicBool::new(false),
        })
    }

    /// # Safety
    /// `raw` must be a stream of the device that outlives this handle.
    pub(super) unsafe fn foreign(gate: Gate, raw: *mut c_void) -> RawStream {
        RawStream {
            raw,
            gate,
            foreign: true,
            captures: AtomicBool::new(false),
        }
    }

    /// Whether we capture what is enqueued.
    pub(super) fn is_capturing(&self) -> bool {
        self.captures.load(Ordering::Relaxed)
    }

    pub(super) fn record(&self, event: &RawEvent) -> Result<()> {
        // SAFETY: both are valid.
        unsafe {
            run!(
                &self.gate.api.runtime,
                aclrtRecordEvent(event.raw, self.raw)
            )
        }
    }

    pub(super) fn wait_for(&self, event: &RawEvent) -> Result<()> {
        // SAFETY: both are valid.
        unsafe {
            run!(
                &self.gate.api.runtime,
                aclrtStreamWaitEvent(self.raw, event.raw)
            )
        }
    }

    /// Waits until all work is done, at most `timeout` if there is one.
    ///
    /// # Errors
    /// `Timeout`, or what went wrong in the work.
    pub(super) fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        let milliseconds = match timeout {
            None => -1,
            // Whole milliseconds, and 0 is no limit that the runtime knows.
            Some(timeout) => timeout
                .as_micros()
                .div_ceil(1000)
                .clamp(1, i32::MAX as u128) as i32,
        };
        // SAFETY: the stream is valid.
        unsafe {
            run!(
                &self.gate.api.runtime,
                aclrtSynchronizeStreamWithTimeout(self.raw, milliseconds)
            )
        }
    }

    /// # Safety
    /// `from` must be pinned and have `bytes` bytes that stay as they are until the copy is done; from `to` on there must be `room` bytes of
    /// device memory.
    pub(super) unsafe fn upload(
        &self,
        to: u64,
        room: u64,
        from: *const u8,
        bytes: usize,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            self.copy_bytes(
                to as *mut c_void,
                room,
                from.cast(),
                bytes,
                sys::HOST_TO_DEVICE,
            )
        }
    }

    /// # Safety
    /// `to` must be pinned and have `room` bytes that nobody touches until the copy is done; `bytes` from `from` on must be device memory.
    pub(super) unsafe fn download(
        &self,
        to: *mut u8,
        room: u64,
        from: u64,
        bytes: usize,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            self.copy_bytes(
                to.cast(),
                room,
                from as *const c_void,
                bytes,
                sys::DEVICE_TO_HOST,
            )
        }
    }

    /// # Safety
    /// Both ranges must be device memory, and apart; from `to` on there must be `room` bytes of it.
    pub(super) unsafe fn copy(&self, to: u64, room: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            self.copy_bytes(
                to as *mut c_void,
                room,
                from as *const c_void,
                bytes,
                sys::DEVICE_TO_DEVICE,
            )
        }
    }

    /// # Safety
    /// As the three above, which differ in `kind`.
    unsafe fn copy_bytes(
        &self,
        to: *mut c_void,
        room: u64,
        from: *const c_void,
        bytes: usize,
        kind: i32,
    ) -> Result<()> {
        /// What old versions want addresses to be multiples of.
        const ALIGNMENT: usize = 64;
        let is_aligned =
            to.addr().is_multiple_of(ALIGNMENT) && from.addr().is_multiple_of(ALIGNMENT);
        if !is_aligned && self.gate.api.wants_aligned_copies() {
            if self.is_capturing() {
                return Err(Error::unsupported(
                    "capturing a copy that is not aligned to 64 bytes, on this version of CANN",
                ));
            }
            // In order, though not asynchronous: there is no other copy that takes any address.
            self.synchronize(None)?;
            // SAFETY: the caller's promise; the copy is done when this returns.
            return unsafe {
                run!(
                    &self.gate.api.runtime,
                    aclrtMemcpy(to, room as usize, from, bytes, kind)
                )
            };
        }
        // SAFETY: the caller's promise.
        unsafe {
            run!(
                &self.gate.api.runtime,
                aclrtMemcpyAsync(to, room as usize, from, bytes, kind, self.raw)
            )
        }
    }

    /// # Safety
    /// From `to` on there must be `room` bytes of device memory.
    pub(super) unsafe fn fill(&self, to: u64, room: u64, byte: u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            run!(
                &self.gate.api.runtime,
                aclrtMemsetAsync(
                    to as *mut c_void,
                    room as usize,
                    byte.into(),
                    bytes,
                    self.raw
                )
            )
        }
    }

    /// # Safety
    /// The arguments must be those of the kernel in number, order and size.
    pub(super) unsafe fn launch(
        &self,
        function: RawFunction,
        blocks: u32,
        arguments: &mut Arguments,
    ) -> Result<()> {
        match self.gate.api.launch {
            // SAFETY: the caller's promise.
            LaunchPath::HostArgs => unsafe { self.launch_at_once(function, blocks, arguments) },
            // SAFETY: the caller's promise.
            LaunchPath::KernelArgs => unsafe {
                self.launch_one_by_one(function, blocks, arguments)
            },
        }
    }

    /// # Safety
    /// As [`RawStream::launch`].
    unsafe fn launch_at_once(
        &self,
        function: RawFunction,
        blocks: u32,
        arguments: &mut Arguments,
    ) -> Result<()> {
        let runtime = &self.gate.api.runtime;
        let launch = runtime
            .aclrtLaunchKernelWithHostArgs
            .ok_or_else(|| missing("aclrtLaunchKernelWithHostArgs"))?;
        let none = ptr::null_mut();
        // SAFETY: the caller's promise; the runtime copies the arguments before it returns.
        let code = unsafe {
            launch(
                function.0,
                blocks,
                self.raw,
                none,
                arguments.words.as_mut_ptr().cast(),
                arguments.bytes,
                none,
                0,
            )
        };
        runtime.check("aclrtLaunchKernelWithHostArgs", code)
    }

    /// # Safety
    /// As [`RawStream::launch`].
    unsafe fn launch_one_by_one(
        &self,
        function: RawFunction,
        blocks: u32,
        arguments: &mut Arguments,
    ) -> Result<()> {
        let runtime = &self.gate.api.runtime;
        let begin = runtime
            .aclrtKernelArgsInit
            .ok_or_else(|| missing("aclrtKernelArgsInit"))?;
        let append = runtime
            .aclrtKernelArgsAppend
            .ok_or_else(|| missing("aclrtKernelArgsAppend"))?;
        let end = runtime
            .aclrtKernelArgsFinalize
            .ok_or_else(|| missing("aclrtKernelArgsFinalize"))?;
        let launch = runtime
            .aclrtLaunchKernelWithConfig
            .ok_or_else(|| missing("aclrtLaunchKernelWithConfig"))?;
        let mut list = ptr::null_mut();
        // SAFETY: the kernel is valid, and so is the pointer. The list is the runtime's, and goes with its launch.
        runtime.check("aclrtKernelArgsInit", unsafe {
            begin(function.0, &raw mut list)
        })?;
        let base = arguments.words.as_mut_ptr().cast::<u8>();
        for &(offset, bytes) in &arguments.parts[..arguments.count] {
            let mut handle = ptr::null_mut();
            // SAFETY: each part lies in the words; the runtime copies it.
            let code = unsafe {
                append(
                    list,
                    base.add(offset.into()).cast(),
                    bytes.into(),
                    &raw mut handle,
                )
            };
            runtime.check("aclrtKernelArgsAppend", code)?;
        }
        // SAFETY: the list is valid.
        runtime.check("aclrtKernelArgsFinalize", unsafe { end(list) })?;
        let none = ptr::null_mut();
        // SAFETY: the caller's promise; all handles are valid.
        let code = unsafe { launch(function.0, blocks, self.raw, none, list, none) };
        runtime.check("aclrtLaunchKernelWithConfig", code)
    }

    /// Begins to capture what this thread enqueues into a graph.
    pub(super) fn begin_capture(&self) -> Result<()> {
        let runtime = &self.gate.api.runtime;
        let begin = runtime
            .aclmdlRICaptureBegin
            .ok_or_else(|| missing("aclmdlRICaptureBegin"))?;
        // SAFETY: the stream is valid.
        runtime.check("aclmdlRICaptureBegin", unsafe {
            begin(self.raw, sys::CAPTURE_THREAD_LOCAL)
        })?;
        self.captures.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Ends the capture. What was captured is ready to run.
    pub(super) fn end_capture(&self) -> Result<RawGraph> {
        self.captures.store(false, Ordering::Relaxed);
        let runtime = &self.gate.api.runtime;
        let end = runtime
            .aclmdlRICaptureEnd
            .ok_or_else(|| missing("aclmdlRICaptureEnd"))?;
        let mut raw = ptr::null_mut();
        // SAFETY: the stream is valid, and so is the pointer.
        runtime.check("aclmdlRICaptureEnd", unsafe { end(self.raw, &raw mut raw) })?;
        Ok(RawGraph {
            raw,
            gate: self.gate,
        })
    }

    pub(super) fn replay(&self, graph: &RawGraph) -> Result<()> {
        let runtime = &self.gate.api.runtime;
        let execute = runtime
            .aclmdlRIExecuteAsync
            .ok_or_else(|| missing("aclmdlRIExecuteAsync"))?;
        // SAFETY: both are valid.
        runtime.check("aclmdlRIExecuteAsync", unsafe {
            execute(graph.raw, self.raw)
        })
    }
}

/// Asked for only where [`Api`] says that it is there.
fn missing(symbol: &str) -> Error {
    Error::unsupported(format!("CANN's runtime has no function {symbol}"))
}

impl Drop for RawStream {
    fn drop(&mut self) {
        if !self.foreign && self.gate.enter().is_ok() {
            // SAFETY: the stream is valid, and whoever enqueued work kept it until that was done. A failure leaves nothing to do.
            let _ = unsafe { run!(&self.gate.api.runtime, aclrtDestroyStream(self.raw)) };
        }
    }
}

/// The arguments of a launch as CANN lays them out: in order, each in its own size and alignment.
pub(super) struct Arguments {
    words: [u64; 2 * ropeway_core::plan::MAX_ARGUMENTS],
    /// Where each begins, and how long it is.
    parts: [(u16, u8); 2 * ropeway_core::plan::MAX_ARGUMENTS],
    count: usize,
    bytes: usize,
}

impl Arguments {
    pub(super) fn new() -> Arguments {
        Arguments {
            words: [0; 2 * ropeway_core::plan::MAX_ARGUMENTS],
            parts: [(0, 0); 2 * ropeway_core::plan::MAX_ARGUMENTS],
            count: 0,
            bytes: 0,
        }
    }

    pub(super) fn u64(&mut self, value: u64) -> Result<()> {
        self.push(value, 8)
    }

    pub(super) fn u32(&mut self, value: u32) -> Result<()> {
        self.push(value.into(), 4)
    }

    /// Of a value of 8 bytes or, the rest being 0, of 4.
    #[inline]
    fn push(&mut self, value: u64, size: usize) -> Result<()> {
        let offset = self.bytes.next_multiple_of(size);
        let most = ropeway_core::plan::MAX_ARGUMENTS;
        let too_many = || Error::invalid("arguments", "more", format!("at most {most}"));
        let word = self.words.get_mut(offset / 8).ok_or_else(too_many)?;
        let part = self.parts.get_mut(self.count).ok_or_else(too_many)?;
        *word |= value << (8 * (offset % 8));
        *part = (offset as u16, size as u8);
        self.count += 1;
        self.bytes = offset + size;
        Ok(())
    }
}

/// A captured graph, ready to run.
pub(super) struct RawGraph {
    raw: Handle,
    gate: Gate,
}

// SAFETY: may be used from any thread that has entered the device.
unsafe impl Send for RawGraph {}
// SAFETY: runs are serialised by the runtime; nothing else is done to it.
unsafe impl Sync for RawGraph {}

impl Drop for RawGraph {
    fn drop(&mut self) {
        if let Some(destroy) = self.gate.api.runtime.aclmdlRIDestroy
            && self.gate.enter().is_ok()
        {
            // SAFETY: valid, and kept by the queues until its runs are done. A failure leaks it.
            let _ = unsafe { destroy(self.raw) };
        }
    }
}

/// Host memory that the device copies from and to directly.
pub(super) struct Pinned {
    address: *mut u8,
    bytes: usize,
    gate: Gate,
}

// SAFETY: plain memory, which this handle alone owns.
unsafe impl Send for Pinned {}
// SAFETY: shared access is reading.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Not zeroed.
    pub(super) fn new(gate: Gate, bytes: usize) -> Result<Pinned> {
        let mut address = ptr::null_mut();
        // The runtime has no allocations without bytes.
        // SAFETY: the pointer is valid.
        unsafe {
            run!(
                &gate.api.runtime,
                aclrtMallocHost(&raw mut address, bytes.max(1))
            )
        }?;
        Ok(Pinned {
            address: address.cast(),
            bytes,
            gate,
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
        if self.gate.enter().is_ok() {
            // SAFETY: allocated by `new`, owned by this handle, and no copy is under way. A failure leaks it.
            let _ = unsafe { run!(&self.gate.api.runtime, aclrtFreeHost(self.address.cast())) };
        }
    }
}

/// A loaded binary.
pub(super) struct RawModule {
    raw: Handle,
    gate: Gate,
    /// The file that it was loaded from, where the runtime loads from files only.
    _file: Option<tempfile::TempPath>,
}

// SAFETY: binaries may be used from any thread that has entered the device.
unsafe impl Send for RawModule {}
// SAFETY: as above; the runtime locks for itself.
unsafe impl Sync for RawModule {}

impl RawModule {
    /// Loads a binary for the cores that `magic` names.
    pub(super) fn load(gate: Gate, image: &[u8], magic: u32) -> Result<RawModule> {
        let runtime = &gate.api.runtime;
        let mut option = LoadOption {
            kind: sys::LOAD_MAGIC,
            value: [magic, 0, 0, 0],
        };
        let mut options = LoadOptions {
            options: &raw mut option,
            count: 1,
        };
        let mut raw = ptr::null_mut();
        let mut file = None;
        match runtime.aclrtBinaryLoadFromData {
            Some(load) => {
                // SAFETY: the image is as long as said, and the runtime copies it; the options are valid.
                let code = unsafe {
                    load(
                        image.as_ptr().cast(),
                        image.len(),
                        &raw const options,
                        &raw mut raw,
                    )
                };
                runtime.check("aclrtBinaryLoadFromData", code)?;
            }
            None => {
                let path = write(image)?;
                let name = path.to_string_lossy().into_owned();
                let name = std::ffi::CString::new(name).map_err(|_| {
                    Error::new(
                        ErrorKind::File,
                        "a temporary directory with NUL in its name",
                    )
                })?;
                // SAFETY: the name ends with NUL, and so are the options and the pointer valid.
                unsafe {
                    run!(
                        runtime,
                        aclrtBinaryLoadFromFile(name.as_ptr(), &raw mut options, &raw mut raw)
                    )
                }?;
                file = Some(path);
            }
        }
        Ok(RawModule {
            raw,
            gate,
            _file: file,
        })
    }

    pub(super) fn function(&self, entry: &CStr) -> Result<RawFunction> {
        let mut raw = ptr::null_mut();
        // SAFETY: the binary is valid, and so are the pointers.
        unsafe {
            run!(
                &self.gate.api.runtime,
                aclrtBinaryGetFunction(self.raw, entry.as_ptr(), &raw mut raw)
            )
        }?;
        Ok(RawFunction(raw))
    }
}

/// A file of this user's alone, with the name that the runtime expects.
fn write(image: &[u8]) -> Result<tempfile::TempPath> {
    use std::io::Write;
    let mut file = tempfile::Builder::new()
        .prefix("ropeway-kernel-")
        .suffix(".o")
        .tempfile()?;
    file.write_all(image)?;
    Ok(file.into_temp_path())
}

impl Drop for RawModule {
    fn drop(&mut self) {
        if self.gate.enter().is_ok() {
            // SAFETY: valid; its device keeps it until no work can use it.
            let _ = unsafe { run!(&self.gate.api.runtime, aclrtBinaryUnLoad(self.raw)) };
        }
    }
}

/// A kernel of a binary, valid as long as that.
#[derive(Clone, Copy)]
pub(super) struct RawFunction(Handle);

// SAFETY: kernels may be launched from any thread that has entered the device.
unsafe impl Send for RawFunction {}
// SAFETY: as above; the runtime locks for itself.
unsafe impl Sync for RawFunction {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_lie_as_in_a_structure() {
        let mut arguments = Arguments::new();
        arguments.u64(0x1122_3344_5566_7788).expect("room");
        arguments.u32(1).expect("room");
        arguments.u32(2).expect("room");
        arguments.u32(3).expect("room");
        arguments.u64(4).expect("room");
        arguments.u32(5).expect("room");
        assert_eq!(
            arguments.words[..5],
            [0x1122_3344_5566_7788, 2 << 32 | 1, 3, 4, 5]
        );
        assert_eq!(
            arguments.parts[..6],
            [(0, 8), (8, 4), (12, 4), (16, 4), (24, 8), (32, 4)]
        );
        assert_eq!((arguments.count, arguments.bytes), (6, 36));
        let mut many = Arguments::new();
        let pushed = (0..1000).take_while(|_| many.u64(1).is_ok()).count();
        assert_eq!(pushed, 2 * ropeway_core::plan::MAX_ARGUMENTS);
    }
}
