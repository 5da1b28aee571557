//! A device that passes everything on to a real one, except for one planted fault: other text in a kernel source, or damage done
//! after a launch.

use std::any::Any;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use ropeway_core::device::{
    Argument, Device, Download, Event, Graph, LaunchCall, Module, PinnedBuffer, Queue, QueueKind,
};
use ropeway_core::info::{DeviceInfo, MemoryUse};
use ropeway_core::kernel::{Code, Config, Source};
use ropeway_core::memory::{Buffer, DeviceId, Slice};
use ropeway_core::plan::BoundPlan;
use ropeway_core::{Error, Result};

/// Text that takes the place of other text in a kernel source.
#[derive(Clone, Copy, Debug)]
pub struct Substitution {
    /// The file of the source (`"panels.cl"`).
    pub file: &'static str,
    /// What must occur there exactly once.
    pub find: &'static str,
    /// What takes its place.
    pub replace: &'static str,
}

impl Substitution {
    /// The source with the fault in it; `None` for a source without that file.
    ///
    /// # Errors
    /// `CompileFailed` if the text does not occur exactly once.
    fn apply(&self, source: &Source) -> Result<Option<&'static Source>> {
        let Code::Text(pieces) = source.code else {
            return Ok(None);
        };
        if !pieces.iter().any(|(file, _)| *file == self.file) {
            return Ok(None);
        }
        let mut mutated: Vec<(&'static str, &'static str)> = Vec::new();
        for &(file, text) in pieces {
            if file != self.file {
                mutated.push((file, text));
                continue;
            }
            let found = text.matches(self.find).count();
            if found != 1 {
                return Err(Error::new(
                    ropeway_core::ErrorKind::CompileFailed,
                    format!("{file} holds {:?} {found} times, not once", self.find),
                ));
            }
            mutated.push((file, text.replace(self.find, self.replace).leak()));
        }
        // Leaked: a few kilobytes for each mutation of a test.
        Ok(Some(Box::leak(Box::new(Source {
            code: Code::Text(mutated.leak()),
            ..*source
        }))))
    }
}

/// Damage done after each launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)]
pub enum Damage {
    /// The byte after each written operand.
    PastTheEnd,
    /// The byte before each written operand.
    BeforeTheBegin,
    /// The first byte of each operand that is only read.
    Input,
    /// The last bit of the first element of each written operand, from the second launch on.
    SecondRun,
    /// The first element of each written operand becomes NaN.
    Nan,
    /// The seventh element of each written operand that reaches further than in the first launch.
    SeventhElementIfPadded,
    /// The last bit of the first element of each written operand that reaches less far than in the first launch.
    FirstElementIfShorter,
    /// Nothing is launched at all.
    NoLaunch,
}

/// The real device with a fault.
pub struct FaultyDevice {
    inner: Arc<dyn Device>,
    substitution: Option<Substitution>,
    damage: Option<Damage>,
    /// How many compiled sources hold the fault.
    pub substituted: AtomicUsize,
}

#[allow(dead_code)]
impl FaultyDevice {
    /// Other text in a kernel source.
    pub fn mutated(inner: Arc<dyn Device>, substitution: Substitution) -> Arc<FaultyDevice> {
        Arc::new(FaultyDevice {
            inner,
            substitution: Some(substitution),
            damage: None,
            substituted: AtomicUsize::new(0),
        })
    }

    /// Damage after each launch.
    pub fn damaging(inner: Arc<dyn Device>, damage: Damage) -> Arc<FaultyDevice> {
        Arc::new(FaultyDevice {
            inner,
            substitution: None,
            damage: Some(damage),
            substituted: AtomicUsize::new(0),
        })
    }
}

impl Device for FaultyDevice {
    fn id(&self) -> DeviceId {
        self.inner.id()
    }
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
    fn memory(&self) -> Result<MemoryUse> {
        self.inner.memory()
    }
    fn alloc(&self, bytes: u64) -> Result<Buffer> {
        self.inner.alloc(bytes)
    }
    fn alloc_pinned(&self, bytes: u64) -> Result<PinnedBuffer> {
        self.inner.alloc_pinned(bytes)
    }
    fn create_queue(&self, kind: QueueKind) -> Result<Arc<dyn Queue>> {
        let inner = self.inner.create_queue(kind)?;
        Ok(match self.damage {
            None => inner,
            Some(damage) => Arc::new(FaultyQueue {
                inner,
                damage,
                launches: AtomicUsize::new(0),
                first_bytes: AtomicU64::new(0),
            }),
        })
    }
    fn compile(&self, source: &'static Source, config: &Config) -> Result<Arc<dyn Module>> {
        let mutated = match self.substitution {
            None => None,
            Some(substitution) => substitution.apply(source)?,
        };
        if mutated.is_some() {
            self.substituted.fetch_add(1, Ordering::Relaxed);
        }
        self.inner.compile(mutated.unwrap_or(source), config)
    }
    unsafe fn import_memory(
        &self,
        handle: *mut c_void,
        bytes: u64,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Buffer> {
        // SAFETY: the caller's promise is passed on as it is.
        unsafe { self.inner.import_memory(handle, bytes, owner) }
    }
    unsafe fn import_queue(
        &self,
        handle: *mut c_void,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Arc<dyn Queue>> {
        // SAFETY: the caller's promise is passed on as it is.
        unsafe { self.inner.import_queue(handle, owner) }
    }
    fn instantiate(&self, plans: Vec<BoundPlan>) -> Result<Arc<dyn Graph>> {
        self.inner.instantiate(plans)
    }
}

struct FaultyQueue {
    inner: Arc<dyn Queue>,
    damage: Damage,
    launches: AtomicUsize,
    /// Bytes of the operand that the first launch wrote.
    first_bytes: AtomicU64,
}

impl FaultyQueue {
    fn harm(&self, argument: &Argument<'_>, launch: usize) -> Result<()> {
        let Argument::Buffer {
            buffer,
            offset,
            dtype,
            bytes,
            write,
        } = *argument
        else {
            return Ok(());
        };
        let begin = offset * dtype.size().unwrap_or(1);
        if bytes == 0 {
            return Ok(());
        }
        if write && launch == 0 {
            self.first_bytes.store(bytes, Ordering::Relaxed);
        }
        let first = self.first_bytes.load(Ordering::Relaxed);
        let hit = match self.damage {
            Damage::PastTheEnd if write => Some((begin + bytes, 1, 0x11)),
            Damage::BeforeTheBegin if write => Some((begin - 1, 1, 0x11)),
            Damage::Input if !write => Some((begin, 1, 0x11)),
            Damage::SecondRun if write && launch > 0 => Some((begin, 1, 0x11)),
            Damage::SeventhElementIfPadded if write && bytes > first => {
                Some((begin + 6 * dtype.size().unwrap_or(1), 1, 0x11))
            }
            Damage::FirstElementIfShorter if write && bytes < first => Some((begin, 1, 0x11)),
            Damage::Nan if write => Some((begin, 4, 0xff)),
            _ => None,
        };
        match hit {
            Some((at, len, byte)) => self.inner.fill(&buffer.slice(at, len)?, byte),
            None => Ok(()),
        }
    }
}

impl Queue for FaultyQueue {
    fn device(&self) -> DeviceId {
        self.inner.device()
    }
    fn upload(&self, to: &Slice, data: &[u8]) -> Result<()> {
        self.inner.upload(to, data)
    }
    fn download(&self, from: &Slice, into: PinnedBuffer) -> Result<Download> {
        self.inner.download(from, into)
    }
    fn read_blocking(&self, from: &Slice, into: &mut [u8]) -> Result<()> {
        self.inner.read_blocking(from, into)
    }
    fn copy(&self, from: &Slice, to: &Slice) -> Result<()> {
        self.inner.copy(from, to)
    }
    fn fill(&self, to: &Slice, byte: u8) -> Result<()> {
        self.inner.fill(to, byte)
    }
    unsafe fn launch(&self, call: &LaunchCall<'_>) -> Result<()> {
        if self.damage == Damage::NoLaunch {
            return Ok(());
        }
        // SAFETY: the caller's promise is passed on as it is.
        unsafe { self.inner.launch(call)? };
        let launch = self.launches.fetch_add(1, Ordering::Relaxed);
        for argument in call.arguments {
            self.harm(argument, launch)?;
        }
        Ok(())
    }
    fn record(&self) -> Result<Arc<dyn Event>> {
        self.inner.record()
    }
    fn wait(&self, event: &Arc<dyn Event>) -> Result<()> {
        self.inner.wait(event)
    }
    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }
    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        self.inner.synchronize(timeout)
    }
    fn replay(&self, graph: &dyn Graph) -> Result<()> {
        self.inner.replay(graph)
    }
}
