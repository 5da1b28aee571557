//! Launches, events, order. Everything is done when its call returns, so that order needs no more.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ropeway_core::device::{Argument, Download, Event, Graph, LaunchCall, PinnedBuffer, Queue};
use ropeway_core::memory::{DeviceId, Slice};
use ropeway_core::{Buffer, Error, Result};

use super::compile::NullFunction;
use super::device::{NullMemory, Shared, memory};
use super::recording::{Call, Place, RecordedArgument};
use crate::loop_graph::LoopGraph;

pub(super) struct NullQueue {
    shared: Arc<Shared>,
    number: u64,
}

impl NullQueue {
    pub(super) fn new(shared: Arc<Shared>) -> NullQueue {
        let number = shared.number();
        NullQueue { shared, number }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    fn memory<'a>(&self, buffer: &'a Buffer) -> Result<&'a NullMemory> {
        memory(self.shared.id, buffer)
    }

    fn place(&self, slice: &Slice) -> Result<Place> {
        Ok(Place {
            buffer: self.memory(slice.buffer())?.number,
            offset: slice.offset(),
            bytes: slice.len(),
        })
    }

    fn recorded(&self, argument: &Argument<'_>) -> Result<RecordedArgument> {
        Ok(match *argument {
            Argument::Buffer {
                buffer,
                offset,
                dtype,
                bytes,
                write,
            } => {
                let number = self.memory(buffer)?.number;
                let range = buffer.argument_bytes(dtype, offset, bytes)?;
                RecordedArgument::Buffer {
                    place: Place {
                        buffer: number,
                        offset: range.start,
                        bytes,
                    },
                    element: offset,
                    dtype,
                    write,
                }
            }
            Argument::Absent => RecordedArgument::Absent,
            Argument::U32(value) => RecordedArgument::U32(value),
            Argument::I32(value) => RecordedArgument::I32(value),
            Argument::U64(value) => RecordedArgument::U64(value),
            Argument::I64(value) => RecordedArgument::I64(value),
            Argument::F32(value) => RecordedArgument::F32(value),
            Argument::Status => RecordedArgument::Status,
            Argument::TensorMap { buffer, .. } => RecordedArgument::TensorMap {
                buffer: self.memory(buffer)?.number,
            },
        })
    }
}

fn range(slice: &Slice) -> Range<usize> {
    // The buffer lies in host memory, so its ranges fit.
    slice.offset() as usize..(slice.offset() + slice.len()) as usize
}

fn check_length(name: &str, found: usize, slice: &Slice) -> Result<()> {
    if found as u64 != slice.len() {
        return Err(Error::invalid(name, format!("{found} bytes"), slice.len()));
    }
    Ok(())
}

impl Queue for NullQueue {
    fn device(&self) -> DeviceId {
        self.shared.id
    }

    fn upload(&self, to: &Slice, data: &[u8]) -> Result<()> {
        let place = self.place(to)?;
        check_length("data", data.len(), to)?;
        self.memory(to.buffer())?
            .bytes
            .write(range(to).start, data)?;
        self.shared.recording.add(|| Call::Upload {
            queue: self.number,
            to: place,
        });
        Ok(())
    }

    fn download(&self, from: &Slice, mut into: PinnedBuffer) -> Result<Download> {
        let place = self.place(from)?;
        let size = into.bytes().len();
        let Some(target) = into.bytes_mut().get_mut(..from.len() as usize) else {
            let wanted = format!("at least {}", from.len());
            return Err(Error::invalid("into", format!("{size} bytes"), wanted));
        };
        self.memory(from.buffer())?
            .bytes
            .read(range(from).start, target);
        self.shared.recording.add(|| Call::Download {
            queue: self.number,
            from: place,
        });
        Ok(Download::new(self.record()?, into))
    }

    fn read_blocking(&self, from: &Slice, into: &mut [u8]) -> Result<()> {
        let place = self.place(from)?;
        check_length("into", into.len(), from)?;
        self.memory(from.buffer())?
            .bytes
            .read(range(from).start, into);
        self.shared.recording.add(|| Call::Read {
            queue: self.number,
            from: place,
        });
        Ok(())
    }

    fn copy(&self, from: &Slice, to: &Slice) -> Result<()> {
        let (source, target) = (self.place(from)?, self.place(to)?);
        check_length("to", range(to).len(), from)?;
        let (begin, end) = (range(from), range(to));
        if source.buffer == target.buffer && begin.start < end.end && end.start < begin.end {
            return Err(Error::invalid(
                "to",
                "a slice that overlaps the source",
                "disjoint slices",
            ));
        }
        let target_bytes = &self.memory(to.buffer())?.bytes;
        self.memory(from.buffer())?
            .bytes
            .copy_to(begin, target_bytes, end.start)?;
        self.shared.recording.add(|| Call::Copy {
            queue: self.number,
            from: source,
            to: target,
        });
        Ok(())
    }

    fn fill(&self, to: &Slice, byte: u8) -> Result<()> {
        let place = self.place(to)?;
        self.memory(to.buffer())?.bytes.fill(range(to), byte)?;
        self.shared.recording.add(|| Call::Fill {
            queue: self.number,
            to: place,
            byte,
        });
        Ok(())
    }

    unsafe fn launch(&self, call: &LaunchCall<'_>) -> Result<()> {
        let function = match call.function.as_any().downcast_ref::<NullFunction>() {
            Some(function) if function.shared.id == self.shared.id => function,
            _ => {
                return Err(Error::invalid(
                    "function",
                    "one of another device",
                    "one of the queue's",
                ));
            }
        };
        let limits = &self.shared.info.limits;
        let items = call
            .group
            .iter()
            .fold(1u64, |items, &n| items.saturating_mul(n.into()));
        if items == 0 || items > limits.max_group_size.into() {
            let limit = format!("1 to {} work-items", limits.max_group_size);
            return Err(Error::invalid("group", format!("{:?}", call.group), limit));
        }
        for axis in 0..3 {
            if call.grid[axis] == 0 || call.grid[axis] > limits.max_grid[axis] {
                let limit = format!("1 to {} work-groups along each axis", limits.max_grid[axis]);
                return Err(Error::invalid("grid", format!("{:?}", call.grid), limit));
            }
        }
        if call.local_memory as u64 > limits.local_memory {
            return Err(Error::invalid(
                "local_memory",
                call.local_memory,
                limits.local_memory,
            ));
        }
        for argument in call.arguments {
            self.recorded(argument)?;
        }
        self.shared.recording.add(|| Call::Launch {
            queue: self.number,
            entry: function.entry.clone(),
            grid: call.grid,
            group: call.group,
            local_memory: call.local_memory,
            arguments: call
                .arguments
                .iter()
                .flat_map(|argument| self.recorded(argument))
                .collect(),
        });
        Ok(())
    }

    fn record(&self) -> Result<Arc<dyn Event>> {
        let event = self.shared.number();
        self.shared.recording.add(|| Call::Record {
            queue: self.number,
            event,
        });
        Ok(Arc::new(NullEvent {
            device: self.shared.id,
            number: event,
            at: Instant::now(),
        }))
    }

    fn wait(&self, event: &Arc<dyn Event>) -> Result<()> {
        let event = own(self.shared.id, &**event)?;
        self.shared.recording.add(|| Call::Wait {
            queue: self.number,
            event: event.number,
        });
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.shared
            .recording
            .add(|| Call::Flush { queue: self.number });
        Ok(())
    }

    fn synchronize(&self, _: Option<Duration>) -> Result<()> {
        self.shared
            .recording
            .add(|| Call::Synchronize { queue: self.number });
        Ok(())
    }

    fn replay(&self, graph: &dyn Graph) -> Result<()> {
        let Some(graph) = graph.as_any().downcast_ref::<LoopGraph>() else {
            return Err(Error::invalid(
                "graph",
                "another backend's",
                "one of the queue's device",
            ));
        };
        self.shared
            .recording
            .add(|| Call::Replay { queue: self.number });
        graph.replay(self)
    }
}

/// The event behind the trait object, if it is this device's.
fn own(device: DeviceId, event: &dyn Event) -> Result<&NullEvent> {
    match event.as_any().downcast_ref::<NullEvent>() {
        Some(event) if event.device == device => Ok(event),
        _ => Err(Error::invalid(
            "event",
            "one of another device",
            "one of this device",
        )),
    }
}

/// A point in a queue's work. The host's clock stands for the device's.
struct NullEvent {
    device: DeviceId,
    number: u64,
    at: Instant,
}

impl Event for NullEvent {
    fn is_done(&self) -> Result<bool> {
        Ok(true)
    }

    fn wait(&self, _: Option<Duration>) -> Result<()> {
        Ok(())
    }

    fn elapsed_since(&self, earlier: &dyn Event) -> Result<Duration> {
        let earlier = own(self.device, earlier)?;
        Ok(self.at.saturating_duration_since(earlier.at))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
