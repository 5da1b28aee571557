//! What belongs to another device is refused, and nothing else suffers.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use ropeway_core::device::{Device, Event, Function, FunctionInfo, Graph, QueueKind};
use ropeway_core::memory::{Buffer, DeviceId, Memory, TensorDesc, View};
use ropeway_core::plan::{BoundPlan, Executable};
use ropeway_core::{DType, Error, Result};

use super::probe::{self, Vector, step};
use super::{Outcome, TIMEOUT, ensure, refused};

struct ForeignMemory(DeviceId);

impl Memory for ForeignMemory {
    fn size(&self) -> u64 {
        4096
    }
    fn device(&self) -> DeviceId {
        self.0
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct ForeignEvent;

impl Event for ForeignEvent {
    fn is_done(&self) -> Result<bool> {
        Ok(true)
    }
    fn wait(&self, _: Option<Duration>) -> Result<()> {
        Ok(())
    }
    fn elapsed_since(&self, _: &dyn Event) -> Result<Duration> {
        Err(Error::invalid("event", "a foreign event", "none"))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct ForeignFunction;

impl Function for ForeignFunction {
    fn info(&self) -> FunctionInfo {
        FunctionInfo::default()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct ForeignGraph;

impl Graph for ForeignGraph {
    fn rebind(&self, _: usize, _: &[(usize, View)]) -> Result<()> {
        Ok(())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn foreign_buffer() -> Buffer {
    Buffer::new(Arc::new(ForeignMemory(DeviceId::unique())))
}

/// A buffer that claims this device's identity and is no memory of its backend.
fn impostor(device: &dyn Device) -> Buffer {
    Buffer::new(Arc::new(ForeignMemory(device.id())))
}

/// Buffers of another device: in every call that takes one.
pub(super) fn buffers(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let own = device.alloc(4096)?;
    for foreign in [foreign_buffer(), impostor(&**device)] {
        refused(
            queue.upload(&foreign.all(), &[0; 4096]),
            "an upload to a foreign buffer",
        )?;
        refused(
            queue.read_blocking(&foreign.all(), &mut [0; 4096]),
            "a read of a foreign buffer",
        )?;
        refused(
            queue.download(&foreign.all(), device.alloc_pinned(4096)?),
            "a download of a foreign buffer",
        )?;
        refused(queue.fill(&foreign.all(), 0), "a fill of a foreign buffer")?;
        refused(
            queue.copy(&foreign.all(), &own.all()),
            "a copy from a foreign buffer",
        )?;
        refused(
            queue.copy(&own.all(), &foreign.all()),
            "a copy to a foreign buffer",
        )?;
        let executable = probe::compile(&**device, probe::affine_plan(1024, 3, 1))?;
        let view = foreign.view(TensorDesc::contiguous(DType::I32, &[1024])?, 0)?;
        refused(
            executable.enqueue(&*queue, std::slice::from_ref(&view), None),
            "a launch on a foreign buffer",
        )?;
        let plan = BoundPlan {
            executable,
            operands: vec![view],
            workspace: None,
        };
        // Refused when the graph is made, or at the latest when it is replayed.
        if let Ok(graph) = device.instantiate(vec![plan]) {
            refused(queue.replay(&*graph), "a graph on a foreign buffer")?;
        }
    }
    queue.synchronize(Some(TIMEOUT))?;
    Ok(())
}

/// Events, functions and graphs of another device.
pub(super) fn objects(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let event: Arc<dyn Event> = Arc::new(ForeignEvent);
    refused(queue.wait(&event), "a wait for a foreign event")?;
    let own = queue.record()?;
    queue.synchronize(Some(TIMEOUT))?;
    match own.elapsed_since(&*event) {
        Err(error) if error.kind() == ropeway_core::ErrorKind::Unsupported => {}
        other => refused(other, "the time since a foreign event")?,
    }
    let function: Arc<dyn Function> = Arc::new(ForeignFunction);
    let executable = Executable::new(probe::affine_plan(8, 3, 1), vec![function])?;
    let vector = Vector::new(&**device, &*queue, &[1; 8])?;
    refused(
        executable.enqueue(&*queue, std::slice::from_ref(&vector.view), None),
        "a launch of a foreign function",
    )?;
    refused(queue.replay(&ForeignGraph), "a replay of a foreign graph")?;
    queue.synchronize(Some(TIMEOUT))?;
    Ok(())
}

/// After all those refusals the queue still computes.
pub(super) fn usable_afterwards(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let vector = Vector::new(&**device, &*queue, &[4; 8])?;
    let executable = probe::compile(&**device, probe::affine_plan(8, 3, 1))?;
    let view = std::slice::from_ref(&vector.view);
    for _ in 0..20 {
        refused(
            queue.fill(&foreign_buffer().all(), 0),
            "a fill of a foreign buffer",
        )?;
        let foreign = foreign_buffer().view(TensorDesc::contiguous(DType::I32, &[8])?, 0)?;
        refused(
            executable.enqueue(&*queue, &[foreign], None),
            "a launch on a foreign buffer",
        )?;
    }
    executable.enqueue(&*queue, view, None)?;
    ensure!(
        vector.read(&*queue)? == [step(4, 3, 1); 8],
        "a queue that refused calls does not compute any more"
    );
    Ok(())
}
