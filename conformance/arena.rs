//! The device memory of a case: its stored inputs, outputs and workspace, each between canaries.

use std::collections::BTreeMap;
use std::sync::Arc;

use ropeway_core::device::Queue;
use ropeway_core::memory::{Layout, TensorDesc};
use ropeway_core::op::{Operand, PlanRequest};
use ropeway_core::plan::{Executable, Extent};
use ropeway_core::request::{HostTensor, Operands};
use ropeway_core::{DType, Error, Result, Slice, View};

use crate::compare::{self, Guarded, Round};
use crate::ops::{HUNG, Problem, Subject, Variant};

/// The device memory of a case, every part of it between canaries.
pub(crate) struct Arena {
    /// Stored tensors: several operands may be windows into one.
    stored: Vec<Stored>,
    outputs: BTreeMap<&'static str, (Operand, Guarded)>,
    prepared: BTreeMap<&'static str, Guarded>,
    workspace: Option<Guarded>,
}

struct Stored {
    /// The operands that are windows into it.
    operands: Vec<String>,
    /// What is on the device: the stored bytes, and poison where no operand looks.
    bytes: Vec<u8>,
    memory: Guarded,
}

/// Where operands begin.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// As badly aligned as the plan admits: where it asks for no alignment, one element off.
    LeastAligned,
    /// At the begin of an allocation, where whole vectors can be loaded: kernels may take another way there.
    Aligned,
}

impl Arena {
    /// Allocates it and writes the inputs. `operands` are the problem's, whose outputs may have other strides than the problem says.
    pub(crate) fn new(
        subject: &Subject,
        queue: &dyn Queue,
        problem: &Problem,
        operands: &[Operand],
        executable: &Executable,
        variant: &Variant,
        placement: Placement,
    ) -> Result<Arena> {
        let device = &**subject.device();
        let plan = executable.plan();
        let shift = |name: &str, dtype: DType| {
            let rule = plan.operands.iter().find(|rule| rule.name == name);
            match placement {
                Placement::Aligned => 0,
                Placement::LeastAligned => {
                    dtype.size().unwrap_or(1) * rule.map_or(1, |rule| rule.offset_multiple.max(1))
                }
            }
        };
        let mut stored: Vec<Stored> = Vec::new();
        let mut sources: Vec<&Arc<Vec<u8>>> = Vec::new();
        for (name, tensor) in &problem.inputs {
            match sources
                .iter()
                .position(|data| Arc::ptr_eq(data, &tensor.data))
            {
                Some(number) => stored[number].operands.push(name.clone()),
                None => {
                    sources.push(&tensor.data);
                    let dtype = tensor.desc.dtype;
                    stored.push(Stored {
                        operands: vec![name.clone()],
                        bytes: Vec::new(),
                        memory: Guarded::new(
                            device,
                            name,
                            tensor.data.len() as u64,
                            shift(name, dtype),
                            compare::poison(dtype, Round::First),
                        )?,
                    });
                }
            }
        }
        for (stored, data) in stored.iter_mut().zip(sources) {
            let windows = stored.operands.iter().map(|name| &problem.inputs[name]);
            stored.bytes = poison_gaps(data, &windows.collect::<Vec<_>>());
            stored.memory.write(queue, &stored.bytes)?;
        }
        let mut outputs = BTreeMap::new();
        for operand in operands.iter().filter(|operand| operand.output) {
            let (name, dtype) = (operand.name, operand.desc.dtype);
            let memory = Guarded::new(
                device,
                name,
                operand.desc.span_bytes()?,
                shift(name, dtype),
                compare::poison(dtype, Round::First),
            )?;
            outputs.insert(name, (*operand, memory));
        }
        let workspace = match plan.workspace {
            0 => None,
            bytes => Some(Guarded::new(
                device,
                "workspace",
                bytes,
                0,
                compare::workspace_poison(Round::First),
            )?),
        };
        let mut arena = Arena {
            stored,
            outputs,
            prepared: BTreeMap::new(),
            workspace,
        };
        for &name in &variant.prepared {
            arena.prepare(subject, queue, problem, variant, name)?;
        }
        Ok(arena)
    }

    /// Brings an operand into its prepared form.
    fn prepare(
        &mut self,
        subject: &Subject,
        queue: &dyn Queue,
        problem: &Problem,
        variant: &Variant,
        name: &'static str,
    ) -> Result<()> {
        let request = PlanRequest {
            kernel: variant.kernel,
            ..PlanRequest::new(subject.info())
        };
        let executable = subject.executable(problem.op.prepare(name, &request)?)?;
        let plan = executable.plan();
        let rule = plan
            .operands
            .last()
            .ok_or_else(|| Error::invalid(name, "a prepare plan without operands", "two"))?;
        let desc = match rule.shape[..] {
            [Extent::Exactly(bytes)] => TensorDesc::contiguous(DType::U8, &[bytes])?,
            _ => return Err(Error::invalid(name, format!("{rule:?}"), "a U8 vector")),
        };
        let workspace = match plan.workspace {
            0 => None,
            bytes => Some(subject.device().alloc(bytes)?.all()),
        };
        let memory = Guarded::new(
            &**subject.device(),
            name,
            desc.span_bytes()?,
            0,
            compare::workspace_poison(Round::First),
        )?;
        let unwritten =
            compare::repeated(compare::workspace_poison(Round::First), desc.span_bytes()?);
        memory.write(queue, &unwritten)?;
        let tensor = &problem.inputs[name];
        let views = [
            self.stored_of(name)?
                .memory
                .view(tensor.desc, tensor.offset)?,
            memory.view(desc, 0)?,
        ];
        executable.enqueue(queue, &views, workspace.as_ref())?;
        queue.synchronize(Some(HUNG))?;
        self.prepared.insert(name, memory);
        Ok(())
    }

    fn stored_of(&self, operand: &str) -> Result<&Stored> {
        self.stored
            .iter()
            .find(|stored| stored.operands.iter().any(|name| name == operand))
            .ok_or_else(|| Error::invalid(operand, "nothing", "an input of the request"))
    }

    /// The views to bind, in the op's order.
    pub(crate) fn views(&self, operands: &[Operand], inputs: &Operands) -> Result<Vec<View>> {
        operands
            .iter()
            .map(|operand| {
                if operand.output {
                    return self.outputs[operand.name].1.view(operand.desc, 0);
                }
                if let Some(memory) = self.prepared.get(operand.name) {
                    let bytes = memory.slice()?.len();
                    return memory.view(TensorDesc::contiguous(DType::U8, &[bytes])?, 0);
                }
                let stored = self.stored_of(operand.name)?;
                stored
                    .memory
                    .view(operand.desc, inputs[operand.name].offset)
            })
            .collect()
    }

    /// The workspace, if the plan needs one.
    pub(crate) fn workspace(&self) -> Result<Option<Slice>> {
        self.workspace.as_ref().map(Guarded::slice).transpose()
    }

    /// Poisons what the plan shall write, runs it, and looks at everything around the results.
    pub(crate) fn run(
        &self,
        queue: &dyn Queue,
        executable: &Executable,
        views: &[View],
        round: Round,
        findings: &mut Vec<String>,
    ) -> Result<BTreeMap<&'static str, Vec<u8>>> {
        self.enqueue(queue, executable, views, round)?;
        queue.synchronize(Some(HUNG))?;
        self.inspect(queue, findings)
    }

    /// Runs a plan with one of its outputs holding `input` before, to whose view an input is bound.
    pub(crate) fn run_in_place(
        &self,
        queue: &dyn Queue,
        executable: &Executable,
        views: &[View],
        (output, input): (&'static str, &[u8]),
        findings: &mut Vec<String>,
    ) -> Result<BTreeMap<&'static str, Vec<u8>>> {
        self.outputs[output].1.write(queue, input)?;
        executable.enqueue(queue, views, self.workspace()?.as_ref())?;
        queue.synchronize(Some(HUNG))?;
        self.inspect(queue, findings)
    }

    /// Poisons what the plan shall write, and enqueues it.
    pub(crate) fn enqueue(
        &self,
        queue: &dyn Queue,
        executable: &Executable,
        views: &[View],
        round: Round,
    ) -> Result<()> {
        for (operand, memory) in self.outputs.values() {
            let pattern = compare::poison(operand.desc.dtype, round);
            let bytes = operand.desc.span_bytes()?;
            memory.write(queue, &compare::repeated(pattern, bytes))?;
        }
        let workspace = self.workspace()?;
        if let (Some(memory), Some(slice)) = (&self.workspace, &workspace) {
            let pattern = compare::workspace_poison(round);
            memory.write(queue, &compare::repeated(pattern, slice.len()))?;
        }
        executable.enqueue(queue, views, workspace.as_ref())
    }

    /// Reads the outputs, and looks at canaries and inputs.
    pub(crate) fn inspect(
        &self,
        queue: &dyn Queue,
        findings: &mut Vec<String>,
    ) -> Result<BTreeMap<&'static str, Vec<u8>>> {
        for stored in &self.stored {
            stored
                .memory
                .expect_unchanged(queue, &stored.bytes, findings)?;
        }
        for memory in self.workspace.iter().chain(self.prepared.values()) {
            memory.read(queue, findings)?;
        }
        self.outputs
            .iter()
            .map(|(&name, (_, memory))| Ok((name, memory.read(queue, findings)?)))
            .collect()
    }
}

/// The stored bytes with poison in every element that no window covers, so that reading a padding shows.
fn poison_gaps(data: &[u8], windows: &[&HostTensor]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    let dtype = windows[0].desc.dtype;
    let size = dtype.size().unwrap_or(1) as usize;
    let whole = |tensor: &&HostTensor| {
        tensor.offset == 0
            && tensor.desc.layout.is_contiguous()
            && tensor.desc.layout.elements() as usize * size == data.len()
    };
    if windows.iter().any(whole) {
        return bytes;
    }
    let windows = windows
        .iter()
        .map(|tensor| (&tensor.desc.layout, tensor.offset));
    let covered = covered(data.len() / size, windows);
    let poison = compare::poison(dtype, Round::Second);
    for (element, _) in bytes
        .chunks_exact_mut(size)
        .zip(covered)
        .filter(|(_, covered)| !covered)
    {
        element.copy_from_slice(poison);
    }
    bytes
}

/// For each of `elements`, whether some window reaches it.
pub(crate) fn covered<'a>(
    elements: usize,
    windows: impl Iterator<Item = (&'a Layout, u64)>,
) -> Vec<bool> {
    let mut covered = vec![false; elements];
    for (layout, offset) in windows {
        for index in layout.indices() {
            covered[(offset + layout.offset_of(&index)) as usize] = true;
        }
    }
    covered
}
