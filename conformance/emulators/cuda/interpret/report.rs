//! What the sanitizer reports.

use std::fmt;

/// Which detector reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Detector {
    /// An access outside every allocation, or outside a block's shared or a thread's local memory.
    OutOfBounds,
    /// An access to freed memory, or to memory before its allocation's turn in the stream.
    UseAfterFree,
    /// An access at no multiple of its size.
    Misaligned,
    /// A write to constant memory.
    ReadOnly,
    /// A read of shared memory that nobody wrote.
    Uninitialised,
    /// Two accesses to the same shared memory, one a write, that nothing orders.
    Race,
    /// An access to what an asynchronous copy has not been waited for.
    AsyncCopy,
    /// A write of what a product or bulk store reads that has not been waited for, or an access to registers of such a product.
    Engine,
    /// An engine's read of shared memory that a thread wrote, without a fence of the proxy between.
    Proxy,
    /// An mbarrier that is none, or whose counts overflow.
    Phase,
    /// An access to global memory before `griddepcontrol.wait`, in a launch that may begin before the one it depends on has ended.
    Dependency,
    /// Threads of a block that do not all reach the same barrier.
    BarrierDivergence,
    /// Lanes of a warp that do not all reach an instruction that they must execute together.
    WarpDivergence,
    /// Threads that wait for each other.
    Deadlock,
    /// More instructions than the limit.
    StepLimit,
    /// `trap`, or what cannot be executed.
    Trap,
}

impl fmt::Display for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Detector::OutOfBounds => "out of bounds",
            Detector::UseAfterFree => "use after free",
            Detector::Misaligned => "misaligned",
            Detector::ReadOnly => "read-only memory",
            Detector::Uninitialised => "uninitialised shared memory",
            Detector::Race => "race",
            Detector::AsyncCopy => "asynchronous copy not waited for",
            Detector::Engine => "product or bulk store not waited for",
            Detector::Proxy => "no fence of the proxy",
            Detector::Phase => "mbarrier",
            Detector::Dependency => "dependency not waited for",
            Detector::BarrierDivergence => "barrier divergence",
            Detector::WarpDivergence => "warp divergence",
            Detector::Deadlock => "deadlock",
            Detector::StepLimit => "step limit",
            Detector::Trap => "trap",
        })
    }
}

/// What went wrong, before it is known where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which detector.
    pub detector: Detector,
    /// The lane.
    pub lane: u32,
    /// What happened.
    pub message: String,
}

impl Fault {
    pub(crate) fn new(detector: Detector, lane: u32, message: impl Into<String>) -> Box<Fault> {
        Box::new(Fault {
            detector,
            lane,
            message: message.into(),
        })
    }
}

/// What went wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Which detector.
    pub detector: Detector,
    /// The kernel.
    pub kernel: String,
    /// The line of the PTX text.
    pub line: u32,
    /// The block.
    pub block: [u32; 3],
    /// The thread.
    pub thread: [u32; 3],
    /// What happened.
    pub message: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [bx, by, bz] = self.block;
        let [tx, ty, tz] = self.thread;
        write!(
            f,
            "emulated: {}: kernel {}, PTX line {}, block ({bx}, {by}, {bz}), thread ({tx}, {ty}, {tz}): {}",
            self.detector, self.kernel, self.line, self.message
        )
    }
}

impl std::error::Error for Report {}
