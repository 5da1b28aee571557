//! The plan of a case on other views than the case's own: fewer rows, outputs with gaps between their rows, other alignment, a part of the
//! batch.

use std::collections::BTreeMap;

use ropeway_core::device::Queue;
use ropeway_core::memory::{Layout, TensorDesc};
use ropeway_core::op::{Op, Operand, Signature};
use ropeway_core::plan::{Determinism, Executable, Extent, Form, Plan, StrideRule};
use ropeway_core::request::{HostTensor, Operands};
use ropeway_core::{DType, Result, View};
use serde_json::{Map, Value};

use crate::arena::{Arena, Placement, covered};
use crate::compare::{self, Round};
use crate::ops::{Problem, Subject, Variant, describe};

/// Above this many operations a case is not run again with fewer rows: the reference would take too long.
const RERUN_FLOPS: f64 = 5e7;

/// Elements between the rows of a padded output: odd, so that rows lose every alignment that the plan does not ask for.
const GAP: u64 = 3;

/// A case whose first run was right.
pub(crate) struct Rerun<'a> {
    pub(crate) subject: &'a Subject,
    pub(crate) queue: &'a dyn Queue,
    pub(crate) problem: &'a Problem,
    pub(crate) executable: &'a Executable,
    pub(crate) variant: &'a Variant,
    /// The bytes of its outputs.
    pub(crate) first: &'a BTreeMap<&'static str, Vec<u8>>,
}

impl Rerun<'_> {
    fn determinism(&self) -> Determinism {
        self.executable.plan().determinism
    }

    /// The same plan, each symbol in turn at half of what it measures.
    pub(crate) fn with_fewer_rows(
        &self,
        arena: &Arena,
        views: &[View],
        findings: &mut Vec<String>,
    ) -> Result<()> {
        let plan = self.executable.plan();
        let operands = self.problem.op.operands();
        for symbol in 0..plan.symbols.len() {
            if let Some(cut) = Cut::new(self.problem, &operands, plan, symbol, views) {
                self.check_cut(&cut, arena, findings)?;
            }
        }
        Ok(())
    }

    fn check_cut(&self, cut: &Cut, arena: &Arena, findings: &mut Vec<String>) -> Result<()> {
        let mut found = Vec::new();
        let run = arena.run(
            self.queue,
            self.executable,
            &cut.views,
            Round::First,
            &mut found,
        )?;
        let mut outputs = Operands::new();
        for (&name, (desc, offset)) in &cut.windows {
            let output = window(&run[name], desc, *offset)?;
            found.extend(written_outside(name, &run[name], desc, *offset));
            if self.determinism() == Determinism::BatchInvariant
                && cut.same_rows
                && output.to_bytes() != window(&self.first[name], desc, *offset)?.to_bytes()
            {
                found.push(format!(
                    "{name}: rows differ from those of the full batch in a plan that declares BatchInvariant"
                ));
            }
            outputs.insert(name.to_owned(), output);
        }
        let spec = self.problem.kind.spec();
        let judgement = spec.judge(&*cut.op, &cut.inputs, &outputs, self.problem.data)?;
        describe(&judgement, &mut found);
        findings.extend(found.into_iter().map(|f| format!("{}: {f}", cut.what)));
        Ok(())
    }

    /// The same plan with gaps between the rows of its outputs, as far as its rules admit that: the gaps stay as they were, the rows are right.
    pub(crate) fn with_padded_outputs(&self, findings: &mut Vec<String>) -> Result<()> {
        let plan = self.executable.plan();
        let mut operands = self.problem.op.operands();
        let mut padded = false;
        for (operand, rule) in operands.iter_mut().zip(&plan.operands) {
            if operand.output
                && let Some(layout) = with_gaps(&operand.desc.layout, &rule.strides)?
            {
                operand.desc.layout = layout;
                padded = true;
            }
        }
        if !padded {
            return Ok(());
        }
        let what = "with gaps between the rows of the outputs";
        self.run_elsewhere(&operands, Placement::LeastAligned, what, findings)
    }

    /// The same plan with every operand at the begin of an allocation: kernels that load whole vectors where they may do so here.
    pub(crate) fn with_aligned_operands(&self, findings: &mut Vec<String>) -> Result<()> {
        let operands = self.problem.op.operands();
        self.run_elsewhere(
            &operands,
            Placement::Aligned,
            "with aligned operands",
            findings,
        )
    }

    /// The same plan with an input bound to the output's own view, where the plan admits that.
    pub(crate) fn in_place(
        &self,
        arena: &Arena,
        views: &[View],
        findings: &mut Vec<String>,
    ) -> Result<()> {
        let plan = self.executable.plan();
        let operands = self.problem.op.operands();
        for &(output, input) in &plan.in_place {
            let (to, from) = (&operands[output], &operands[input]);
            if to.desc.dtype != from.desc.dtype || to.desc.shape() != from.desc.shape() {
                continue;
            }
            let mut views = views.to_vec();
            views[input] = views[output].clone();
            let bytes = self.problem.inputs[from.name].to_bytes();
            let mut found = Vec::new();
            let run = arena.run_in_place(
                self.queue,
                self.executable,
                &views,
                (to.name, &bytes),
                &mut found,
            )?;
            if run[to.name] != self.first[to.name] {
                // Operands in other places may be summed in another order.
                let output = HostTensor::new(to.desc.dtype, to.desc.shape(), run[to.name].clone())?;
                let outputs = Operands::from([(to.name.to_owned(), output)]);
                describe(&self.problem.judge(&outputs)?, &mut found);
            }
            let what = format!("with {} in place of {}", to.name, from.name);
            findings.extend(found.into_iter().map(|f| format!("{what}: {f}")));
        }
        Ok(())
    }

    /// The same plan on operands in other places: what is not bound stays as it was, the rest is right.
    fn run_elsewhere(
        &self,
        operands: &[Operand],
        placement: Placement,
        what: &str,
        findings: &mut Vec<String>,
    ) -> Result<()> {
        let arena = Arena::new(
            self.subject,
            self.queue,
            self.problem,
            operands,
            self.executable,
            self.variant,
            placement,
        )?;
        let views = arena.views(operands, &self.problem.inputs)?;
        let mut found = Vec::new();
        let run = arena.run(
            self.queue,
            self.executable,
            &views,
            Round::First,
            &mut found,
        )?;
        let (mut outputs, mut same) = (Operands::new(), true);
        for Operand { name, desc, .. } in operands.iter().filter(|operand| operand.output) {
            let output = window(&run[name], desc, 0)?;
            found.extend(written_outside(name, &run[name], desc, 0));
            same &= output.to_bytes() == self.first[name];
            outputs.insert((*name).to_owned(), output);
        }
        if !same {
            // Rows in other places may be summed in another order.
            describe(&self.problem.judge(&outputs)?, &mut found);
        }
        findings.extend(found.into_iter().map(|f| format!("{what}: {f}")));
        Ok(())
    }

    /// The same plan on a part of the batch gives the same bits, where it promises that.
    pub(crate) fn with_part_of_the_batch(&self, findings: &mut Vec<String>) -> Result<()> {
        if self.determinism() != Determinism::BatchInvariant {
            return Ok(());
        }
        let Problem {
            kind,
            op,
            inputs,
            attrs,
            data,
            ..
        } = self.problem;
        let Some(part) = kind.spec().part(&**op, inputs)? else {
            return Ok(());
        };
        let op = kind.parse(&signature(&part.inputs, attrs))?;
        let problem = Problem::new(*kind, op, part.inputs, attrs.clone(), *data);
        let operands = problem.op.operands();
        let arena = Arena::new(
            self.subject,
            self.queue,
            &problem,
            &operands,
            self.executable,
            self.variant,
            Placement::LeastAligned,
        )?;
        let views = arena.views(&operands, &problem.inputs)?;
        let mut found = Vec::new();
        let run = arena.run(
            self.queue,
            self.executable,
            &views,
            Round::First,
            &mut found,
        )?;
        let whole = self.problem.op.operands();
        for operand in whole.iter().filter(|operand| operand.output) {
            let (name, desc) = (operand.name, operand.desc);
            let row = part.first_rows.iter().find(|(output, _)| *output == name);
            let row = row.map_or(0, |(_, row)| row * desc.layout.strides()[0]);
            let begin = (row * desc.dtype.size().unwrap_or(1)) as usize;
            if self.first[name].get(begin..begin + run[name].len()) != Some(&run[name][..]) {
                found.push(format!(
                    "{name}: rows differ from those of the full batch in a plan that declares BatchInvariant"
                ));
            }
        }
        findings.extend(
            found
                .into_iter()
                .map(|f| format!("with a part of the batch: {f}")),
        );
        Ok(())
    }
}

fn signature(inputs: &Operands, attrs: &Map<String, Value>) -> Signature {
    Signature {
        tensors: inputs
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.desc))
            .collect(),
        attrs: attrs.clone(),
    }
}

/// The tensor that lies at element `offset` of an output's bytes.
fn window(bytes: &[u8], desc: &TensorDesc, offset: u64) -> Result<HostTensor> {
    let elements = bytes.len() as u64 / desc.dtype.size().unwrap_or(1);
    HostTensor::new(desc.dtype, &[elements], bytes.to_vec())?.view(desc.layout, offset)
}

/// What was written of an output's bytes outside of that tensor.
fn written_outside(name: &str, bytes: &[u8], desc: &TensorDesc, offset: u64) -> Option<String> {
    let poison = compare::poison(desc.dtype, Round::First);
    let inside = covered(
        bytes.len() / poison.len(),
        [(&desc.layout, offset)].into_iter(),
    );
    let at = bytes
        .chunks_exact(poison.len())
        .zip(inside)
        .position(|(element, inside)| !inside && element != poison)?;
    Some(format!(
        "{name}: element {at}, outside the rows that were bound, was written"
    ))
}

/// A row-major layout with [`GAP`] elements or more after each row; `None` for what has no rows or whose strides are fixed.
fn with_gaps(layout: &Layout, rules: &[StrideRule]) -> Result<Option<Layout>> {
    let shape = layout.shape();
    if shape.len() < 2 || layout.elements() == 0 {
        return Ok(None);
    }
    let mut strides = vec![1; shape.len()];
    for axis in (0..shape.len() - 1).rev() {
        let gap = if axis == shape.len() - 2 { GAP } else { 0 };
        let stride = strides[axis + 1] * shape[axis + 1] + gap;
        strides[axis] = match rules[axis] {
            StrideRule::Any => stride,
            StrideRule::MultipleOf(n) => stride.next_multiple_of(n.max(1)),
            StrideRule::Exactly(_) => return Ok(None),
        };
    }
    Layout::strided(shape, &strides).map(Some)
}

/// The same plan with fewer rows: half of what one symbol measures, the last ones, so that a causal mask stays aligned.
struct Cut {
    inputs: Operands,
    op: Box<dyn Op>,
    views: Vec<View>,
    /// Where the rows that remain lie in each output.
    windows: BTreeMap<&'static str, (TensorDesc, u64)>,
    /// Whether the rows that remain are those of the full run.
    same_rows: bool,
    /// For messages.
    what: String,
}

impl Cut {
    /// `None` where the problem has too few rows, or is no sound problem without the others (offsets would point past the end).
    fn new(
        problem: &Problem,
        operands: &[Operand],
        plan: &Plan,
        symbol: usize,
        views: &[View],
    ) -> Option<Cut> {
        let varies = |operand: usize| {
            plan.operands[operand]
                .shape
                .iter()
                .enumerate()
                .find_map(|(axis, extent)| match *extent {
                    Extent::Varies {
                        symbol: s,
                        times,
                        plus,
                    } if s == symbol => Some((axis, times, plus)),
                    _ => None,
                })
        };
        let rows = (0..operands.len()).find_map(|operand| {
            let (axis, times, plus) = varies(operand)?;
            Some((operands[operand].desc.shape()[axis] - plus) / times)
        })?;
        let kept = rows / 2;
        if kept == 0 || problem.op.cost().flops > RERUN_FLOPS {
            return None;
        }
        let mut inputs = problem.inputs.clone();
        let mut cut_views = views.to_vec();
        let mut windows = BTreeMap::new();
        let mut same_rows = true;
        for (number, operand) in operands.iter().enumerate() {
            let mut desc = operand.desc;
            let mut skipped = 0;
            match varies(number) {
                Some((axis, times, plus)) => {
                    let mut shape = desc.shape().to_vec();
                    skipped = (rows - kept) * times * desc.layout.strides()[axis];
                    shape[axis] = kept * times + plus;
                    desc.layout = Layout::strided(&shape, desc.layout.strides()).ok()?;
                    if desc.layout.elements() == 0 {
                        skipped = 0;
                    }
                    let is_index = !operand.output && desc.dtype == DType::I32;
                    same_rows &= plus == 0 && !(is_index && times != 1);
                }
                None => same_rows &= !operand.output && desc.dtype != DType::I32,
            }
            let multiple = plan.operands[number].offset_multiple.max(1);
            let offset = views[number].offset() + skipped;
            if !offset.is_multiple_of(multiple) {
                return None;
            }
            let view = views[number].buffer().view(desc, offset).ok()?;
            if operand.output {
                windows.insert(operand.name, (desc, skipped));
            } else if plan.operands[number].form == Form::Plain {
                let tensor = &problem.inputs[operand.name];
                let tensor = tensor.view(desc.layout, tensor.offset + skipped).ok()?;
                inputs.insert(operand.name.to_owned(), tensor);
            } else {
                continue;
            }
            cut_views[number] = view;
        }
        let op = problem
            .kind
            .parse(&signature(&inputs, &problem.attrs))
            .ok()?;
        problem.kind.check_values(&*op, &inputs).ok()?;
        let fits = op.operands().iter().all(|operand| {
            !operand.output
                || windows
                    .get(operand.name)
                    .is_some_and(|(desc, _)| desc.shape() == operand.desc.shape())
        });
        fits.then(|| Cut {
            inputs,
            op,
            views: cut_views,
            windows,
            same_rows,
            what: format!(
                "with {} = {kept} of {rows} on the same plan",
                plan.symbols[symbol].name
            ),
        })
    }
}
