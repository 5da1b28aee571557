//! Capture, model runtime instances.

use std::sync::Arc;

use crate::runtime::abi::Out;
use crate::runtime::graph::{self, Graph, Mode};
use crate::runtime::status;
use crate::runtime::work::Work;

super::exported! {
    fn aclmdlRICaptureBegin(stream: usize, mode: u32) |emulator| {
        let mode = match mode {
            0 => Mode::Global,
            1 => Mode::ThreadLocal,
            2 => Mode::Relaxed,
            _ => return Err(status::PARAMETER.breach(format!("capture mode {mode}"))),
        };
        if stream == 0 {
            return Err(status::PARAMETER.breach("the default stream cannot be captured"));
        }
        graph::begin(&emulator.stream(stream)?, mode)
    }

    fn aclmdlRICaptureEnd(stream: usize, instance: Out<usize>) |emulator| {
        instance.check("modelRI")?;
        let nodes = graph::end(&emulator.stream(stream)?)?;
        instance.put("modelRI", emulator.graphs.add(|_| Graph::new(nodes)).0)
    }

    fn aclmdlRIExecuteAsync(instance: usize, stream: usize) |emulator| {
        let graph = emulator.graphs.get(instance)?;
        let stream = emulator.stream(stream)?;
        stream.forbid_capture("a model runtime instance is executed on a captured stream")?;
        stream.enqueue(Work::Graph(Arc::clone(&graph)))
    }

    fn aclmdlRIDestroy(instance: usize) |emulator| {
        let graph = emulator.graphs.remove(instance)?;
        let idle = super::require_idle(emulator, &graph.uses, "a model runtime instance is destroyed");
        if let Err(failure) = idle {
            emulator.breaches.record(&failure.why);
        }
        Ok(())
    }
}
