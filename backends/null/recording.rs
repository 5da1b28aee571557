//! The record of calls.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ropeway_core::DType;
use ropeway_core::device::QueueKind;
use ropeway_core::kernel::Language;

/// A range of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The buffer's number, in order of allocation.
    pub buffer: u64,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

/// An argument of a recorded launch.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum RecordedArgument {
    /// A buffer argument: what the launch may touch, the first element, and whether it writes.
    Buffer {
        place: Place,
        element: u64,
        dtype: DType,
        write: bool,
    },
    Absent,
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    Status,
    /// A tile access to this buffer.
    TensorMap {
        buffer: u64,
    },
}

/// A call on a null device or one of its queues. Queues and events have numbers in order of their making.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Call {
    Alloc {
        buffer: u64,
        bytes: u64,
    },
    AllocPinned {
        bytes: u64,
    },
    CreateQueue {
        queue: u64,
        kind: QueueKind,
    },
    /// The configuration as it prints itself.
    Compile {
        language: Language,
        config: String,
    },
    Instantiate {
        plans: usize,
    },
    Upload {
        queue: u64,
        to: Place,
    },
    Download {
        queue: u64,
        from: Place,
    },
    Read {
        queue: u64,
        from: Place,
    },
    Copy {
        queue: u64,
        from: Place,
        to: Place,
    },
    Fill {
        queue: u64,
        to: Place,
        byte: u8,
    },
    Launch {
        queue: u64,
        entry: String,
        grid: [u64; 3],
        group: [u32; 3],
        local_memory: u32,
        arguments: Vec<RecordedArgument>,
    },
    Record {
        queue: u64,
        event: u64,
    },
    Wait {
        queue: u64,
        event: u64,
    },
    Flush {
        queue: u64,
    },
    Synchronize {
        queue: u64,
    },
    Replay {
        queue: u64,
    },
}

/// The calls that a recording holds before it forgets the oldest.
const CAPACITY: usize = 1 << 16;

/// What a null device was asked to do, in order: the latest 65,536 calls.
#[derive(Debug, Default)]
pub struct Recording {
    calls: Mutex<Calls>,
    paused: AtomicBool,
}

#[derive(Debug, Default)]
struct Calls {
    latest: VecDeque<Call>,
    forgotten: u64,
}

impl Recording {
    /// The calls so far, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().latest.iter().cloned().collect()
    }

    /// How many calls were made before those that [`Recording::calls`] gives.
    pub fn forgotten(&self) -> u64 {
        self.lock().forgotten
    }

    /// Forgets all calls.
    pub fn clear(&self) {
        *self.lock() = Calls::default();
    }

    /// Records nothing until [`Recording::resume`]. Enqueueing then allocates nothing, so that its cost can be measured.
    pub fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    /// Records again.
    pub fn resume(&self) {
        self.paused.store(false, Ordering::Relaxed);
    }

    /// Adds a call, which is not even made while the recording is paused.
    #[inline]
    pub(super) fn add(&self, call: impl FnOnce() -> Call) {
        if self.paused.load(Ordering::Relaxed) {
            return;
        }
        let call = call();
        let mut calls = self.lock();
        if calls.latest.len() == CAPACITY {
            calls.latest.pop_front();
            calls.forgotten += 1;
        }
        calls.latest.push_back(call);
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
