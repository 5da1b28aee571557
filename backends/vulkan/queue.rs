//! Copies, launches, events and order.
//!
//! Commands gather in a batch, which is handed over by `flush`, by whoever waits, at an event, or when it is full. The queue's
//! timeline reaches the batch's number when it is done; then what the batch kept alive is let go, and its command buffers are
//! recorded again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ropeway_core::device::{Download, Event, Graph, LaunchCall, PinnedBuffer, Queue, QueueKind};
use ropeway_core::memory::{DeviceId, Slice};
use ropeway_core::{Error, ErrorKind, Result};

use super::batch::{Core, State};
use super::device::Shared;
use super::event::VulkanEvent;
use super::graph::VulkanGraph;
use super::memory::{BLOCK, RawBuffer, Use};
use super::record::{Access, Prepared};
use super::sys::messages;

/// A fill of so few bytes of memory that the host sees is done by the host, if the queue is idle.
const HOST_FILL: u64 = 64 << 10;

/// A queue as the contract has it. Several share one of the device's.
pub(super) struct VulkanQueue(Arc<Core>);

impl VulkanQueue {
    pub(super) fn new(shared: &Arc<Shared>, kind: QueueKind) -> Result<VulkanQueue> {
        Core::new(shared, kind).map(|core| VulkanQueue(Arc::new(core)))
    }

    #[cfg(test)]
    pub(super) fn core(&self) -> &Arc<Core> {
        &self.0
    }

    fn check_length(name: &str, found: usize, slice: &Slice) -> Result<()> {
        if found as u64 != slice.len() {
            return Err(Error::invalid(name, format!("{found} bytes"), slice.len()));
        }
        Ok(())
    }
}

impl Queue for VulkanQueue {
    fn device(&self) -> DeviceId {
        self.0.shared.id
    }

    fn upload(&self, to: &Slice, data: &[u8]) -> Result<()> {
        let core = &self.0;
        core.shared.alive()?;
        VulkanQueue::check_length("data", data.len(), to)?;
        let memory = core.shared.memory(to.buffer())?;
        if data.is_empty() {
            return Ok(());
        }
        if let Some(pointer) = memory.buffer.pointer(to.offset()) {
            let state = core.lock();
            if core.nothing_enqueued(&state) {
                // SAFETY: the slice lies in the buffer. The queue's earlier work is done, the lock keeps later work away, and other
                // queues' work has no order with this but what the caller makes.
                unsafe { pointer.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
                return Ok(());
            }
        }
        core.stage(to, memory, data)
    }

    fn download(&self, from: &Slice, mut into: PinnedBuffer) -> Result<Download> {
        let core = &self.0;
        core.shared.alive()?;
        let memory = core.shared.memory(from.buffer())?;
        let target = into.bytes_mut();
        if (target.len() as u64) < from.len() {
            return Err(Error::invalid(
                "into",
                format!("{} bytes", target.len()),
                format!("at least {}", from.len()),
            ));
        }
        if !from.is_empty() {
            let address = target.as_mut_ptr() as usize;
            let place = core.shared.pinned().get(&address).map(|buffer| buffer.at(0));
            let place = place.ok_or_else(|| {
                Error::invalid("into", "pinned memory of another device", "the queue's device's")
            })?;
            core.copy_place(&mut core.lock(), (from, memory), place, false)?;
        }
        match self.record() {
            Ok(event) => Ok(Download::new(event, into)),
            Err(error) => {
                // The copy may yet be done.
                std::mem::forget(into);
                Err(error)
            }
        }
    }

    fn read_blocking(&self, from: &Slice, into: &mut [u8]) -> Result<()> {
        let core = &self.0;
        core.shared.alive()?;
        VulkanQueue::check_length("into", into.len(), from)?;
        let memory = core.shared.memory(from.buffer())?;
        let finish = || {
            core.submit(&mut core.lock())?;
            core.wait(core.submitted(), None)?;
            core.collect(&mut core.lock());
            Ok(())
        };
        if let Some(pointer) = memory.buffer.pointer(from.offset()) {
            finish()?;
            // SAFETY: the slice lies in the buffer, `into` is as long, and the work that could write it is done.
            unsafe { into.as_mut_ptr().copy_from_nonoverlapping(pointer, into.len()) };
            return Ok(());
        }
        if into.is_empty() {
            return finish();
        }
        let mut offset = from.offset();
        for piece in into.chunks_mut(BLOCK as usize) {
            let known = core.lock().readbacks.pop();
            let through = match known {
                Some(buffer) => buffer,
                None => RawBuffer::new(&core.shared.gpu, BLOCK, Use::Download).map_err(|error| core.note(error))?,
            };
            let part = from.buffer().slice(offset, piece.len() as u64)?;
            core.copy_place(&mut core.lock(), (&part, memory), through.at(0), false)?;
            if let Err(error) = finish() {
                // The device may write to it yet: better leaked than freed.
                std::mem::forget(through);
                return Err(error);
            }
            let pointer = through.pointer(0).ok_or_else(|| {
                Error::new(ErrorKind::OutOfMemory, "no memory that the host can reach")
            })?;
            // SAFETY: the buffer is mapped and this call's alone, and the copy into it is done.
            unsafe { piece.as_mut_ptr().copy_from_nonoverlapping(pointer, piece.len()) };
            offset += piece.len() as u64;
            core.lock().readbacks.push(through);
        }
        Ok(())
    }

    fn copy(&self, from: &Slice, to: &Slice) -> Result<()> {
        let core = &self.0;
        core.shared.alive()?;
        if from.len() != to.len() {
            return Err(Error::invalid("to", format!("{} bytes", to.len()), from.len()));
        }
        let source = core.shared.memory(from.buffer())?;
        let target = core.shared.memory(to.buffer())?;
        if from.is_empty() {
            return Ok(());
        }
        if source.serial == target.serial
            && from.offset() < to.offset() + to.len()
            && to.offset() < from.offset() + from.len()
        {
            return Err(Error::invalid(
                "to",
                "a slice that overlaps the source",
                "disjoint slices",
            ));
        }
        let mut state = core.lock();
        let commands = core.commands(&mut state)?;
        Core::keep(&mut state, from.buffer(), source);
        Core::keep(&mut state, to.buffer(), target);
        let accesses = [Access::of(source, from, false), Access::of(target, to, true)];
        state.hazards.enter(commands, &accesses);
        commands.copy(source.buffer.at(from.offset()), target.buffer.at(to.offset()), from.len());
        Ok(())
    }

    fn fill(&self, to: &Slice, byte: u8) -> Result<()> {
        let core = &self.0;
        core.shared.alive()?;
        let memory = core.shared.memory(to.buffer())?;
        if to.is_empty() {
            return Ok(());
        }
        if let Some(pointer) = memory.buffer.pointer(to.offset()).filter(|_| to.len() <= HOST_FILL) {
            let state = core.lock();
            if core.nothing_enqueued(&state) {
                // SAFETY: as in `upload`.
                unsafe { pointer.write_bytes(byte, to.len() as usize) };
                return Ok(());
            }
        }
        // Vulkan fills whole words; what is left at the edges is uploaded.
        let (begin, end) = (to.offset(), to.offset() + to.len());
        let body = begin.next_multiple_of(4).min(end)..end / 4 * 4;
        let edges = match body.is_empty() {
            true => [(begin, end), (end, end)],
            false => [(begin, body.start), (body.end, end)],
        };
        for (begin, end) in edges {
            if begin < end {
                let edge = to.buffer().slice(begin, end - begin)?;
                let bytes = [byte; 8];
                core.stage(&edge, memory, &bytes[..(end - begin) as usize])?;
            }
        }
        if !body.is_empty() {
            let slice = to.buffer().slice(body.start, body.end - body.start)?;
            let mut state = core.lock();
            let commands = core.commands(&mut state)?;
            Core::keep(&mut state, to.buffer(), memory);
            state.hazards.enter(commands, &[Access::of(memory, &slice, true)]);
            commands.fill(memory.buffer.at(body.start), slice.len(), u32::from_le_bytes([byte; 4]));
        }
        Ok(())
    }

    unsafe fn launch(&self, call: &LaunchCall<'_>) -> Result<()> {
        let core = &self.0;
        core.shared.alive()?;
        if !core.launches() {
            return Err(Error::unsupported("a launch on a queue for copies"));
        }
        let prepared = Prepared::new(&core.shared, call, core.status_address())?;
        // SAFETY: the caller's promise is passed on.
        let record = |state: &mut State, at| unsafe { core.launch(state, &prepared, call.function, at) };
        if !prepared.in_memory {
            return record(&mut core.lock(), 0);
        }
        let block = prepared.block.bytes();
        core.with_room(block.len(), |state, room| {
            room.write(block);
            record(state, room.address)
        })
    }

    fn record(&self) -> Result<Arc<dyn Event>> {
        let core = &self.0;
        core.shared.alive()?;
        core.shared.sweep();
        let (batch, slot) = core.mark()?;
        Ok(Arc::new(VulkanEvent {
            core: core.clone(),
            batch,
            slot,
        }))
    }

    fn wait(&self, event: &Arc<dyn Event>) -> Result<()> {
        let core = &self.0;
        core.shared.alive()?;
        let event = core.shared.event(&**event)?;
        if Arc::ptr_eq(&event.core, core) {
            // In order anyway.
            return Ok(());
        }
        // A batch that waits for another queue's needs that batch to be handed over first: they may share a queue of the device.
        event.core.flush_to(event.batch)?;
        if event.core.has_reached(event.batch)? {
            return Ok(());
        }
        core.come_after(&event.core, event.batch)
    }

    fn flush(&self) -> Result<()> {
        let core = &self.0;
        core.shared.alive()?;
        core.submit(&mut core.lock())
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        let core = &self.0;
        core.shared.alive()?;
        let last = {
            let mut state = core.lock();
            core.read_status(&mut state)?;
            core.submit(&mut state)?;
            core.submitted()
        };
        core.wait(last, timeout)?;
        let code = {
            let mut state = core.lock();
            core.collect(&mut state);
            core.status_code(&mut state)
        };
        core.shared.sweep();
        validated()?;
        match code {
            0 => Ok(()),
            code => Err(Error::data_out_of_range(code)),
        }
    }

    fn replay(&self, graph: &dyn Graph) -> Result<()> {
        let core = &self.0;
        core.shared.alive()?;
        let graph = match graph.as_any().downcast_ref::<VulkanGraph>() {
            Some(graph) if graph.shared.id == core.shared.id => graph,
            _ => {
                let wanted = "one of the queue's device";
                return Err(Error::invalid("graph", "another device's", wanted));
            }
        };
        if !core.launches() {
            return Err(Error::unsupported("a graph on a queue for copies"));
        }
        match graph.recorded(core)? {
            Some(recorded) => core.replay(&mut core.lock(), &recorded),
            None => Ok(()),
        }
    }
}

/// # Errors
/// `Driver` if the validation layer has reported anything since the last call.
fn validated() -> Result<()> {
    static REPORTED: AtomicU64 = AtomicU64::new(0);
    let (count, first) = messages();
    let reported = REPORTED.swap(count, Ordering::AcqRel);
    if count <= reported {
        return Ok(());
    }
    let first = first.unwrap_or_default();
    Err(Error::new(
        ErrorKind::Driver,
        format!("{} messages of the Vulkan validation layer, the first in this process: {first}", count - reported),
    ))
}

impl Drop for VulkanQueue {
    fn drop(&mut self) {
        let core = &self.0;
        // A failure leaves nothing under way that was not before.
        let _ = core.submit(&mut core.lock());
        core.collect(&mut core.lock());
        if !core.is_idle() {
            core.shared.outlive(core.clone());
        }
    }
}
