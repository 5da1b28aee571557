//! Mixture of experts as the maths says it, in f64, and how far a right answer may lie from it.
//!
//! Routing is a choice: [`routing`] says which choices the scores' errors allow, and weights and rows are judged for the
//! one that the device made, if it is one of them. Permutations are exact. Sums are bounded as matrix products are, and `moe_ffn` composes
//! the bounds of its steps, with the rows between them rounded to the dtype of `x`.

use std::sync::Arc;

use proptest::strategy::BoxedStrategy;
use ropeway_core::memory::TensorDesc;
use ropeway_core::op::Op;
use ropeway_core::request::{HostTensor, Operands};
use ropeway_core::spec::{DataClass, Expected, Judgement, OpSpec, Recipe, compare};
use ropeway_core::{DType, Error, Result};

use self::routing::{Choice, Row};
use super::{ExpertGather, ExpertScatter, MoeFfn, MoeRoute, Routing};
use crate::gemm::Activation;
use crate::gemm::bound::{Dot, Epilogue};

mod routing;
#[cfg(test)]
mod tests;

/// Deviations, roughly, that the probabilistic bound allows to a sum of independent errors.
const LAMBDA: f64 = 8.0;

/// An input as f64 in row-major order; empty if it is not there.
fn read(inputs: &Operands, name: &str, desc: Option<&TensorDesc>) -> Result<Vec<f64>> {
    let Some(desc) = desc else {
        return Ok(Vec::new());
    };
    match inputs.get(name) {
        None => Err(Error::invalid(name, "nothing", "a tensor")),
        Some(tensor) if tensor.shape() == desc.shape() => Ok(tensor.to_f64()),
        Some(tensor) => {
            let found = format!("shape {:?}", tensor.shape());
            Err(Error::invalid(name, found, format!("{:?}", desc.shape())))
        }
    }
}

/// Row `row` of a matrix with `width` columns.
fn row(matrix: &[f64], row: usize, width: u64) -> &[f64] {
    &matrix[row * width as usize..(row + 1) * width as usize]
}

fn described<T: Op>(op: &dyn Op) -> Result<&T> {
    op.as_any()
        .downcast_ref()
        .ok_or_else(|| Error::invalid("op", op.name(), "the op of this specification"))
}

fn expected(name: &'static str, desc: &TensorDesc, elements: Vec<(f64, f64)>) -> Expected {
    let (values, bounds) = elements.into_iter().unzip();
    Expected {
        name,
        dtype: desc.dtype,
        shape: desc.shape().into(),
        values,
        bounds,
    }
}

fn output<'a>(outputs: &'a Operands, name: &str) -> Result<&'a HostTensor> {
    outputs
        .get(name)
        .ok_or_else(|| Error::invalid(name, "nothing", "an output"))
}

/// The rows of a routing problem.
fn routed(
    inputs: &Operands,
    logits: &TensorDesc,
    bias: Option<&TensorDesc>,
    routing: Routing,
) -> Result<Vec<Row>> {
    let experts = logits.shape()[1];
    let matrix = read(inputs, "logits", Some(logits))?;
    let bias = read(inputs, "bias", bias)?;
    Ok(matrix
        .chunks(experts as usize)
        .map(|logits| Row::new(logits, &bias, routing))
        .collect())
}

/// What a device chose, row by row: the ids to judge its other outputs by, and the ids to expect.
struct Chosen {
    /// The device's ids where they are experts, else the reference's.
    taken: Vec<Vec<u64>>,
    /// The device's ids where they are acceptable, else the reference's.
    expected: Expected,
    notes: Vec<String>,
}

/// Judges the ids of `found`; without it, takes the reference's.
fn chosen(rows: &[Row], topk_ids: &TensorDesc, found: Option<&HostTensor>) -> Chosen {
    let topk = topk_ids.shape()[1] as usize;
    let found = found
        .filter(|found| found.shape() == topk_ids.shape())
        .and_then(|found| found.to_i32().ok());
    let (mut taken, mut ids, mut near_ties) = (Vec::new(), Vec::new(), 0);
    for (number, row) in rows.iter().enumerate() {
        let reference = row.choice();
        let device: Option<Vec<i64>> = found.as_ref().map(|found| {
            let slots = number * topk..(number + 1) * topk;
            found[slots].iter().map(|&id| i64::from(id)).collect()
        });
        let choice = device.as_ref().map(|device| row.judge(device));
        near_ties += usize::from(choice == Some(Choice::NearTie));
        let choice = match (choice, device) {
            (Some(Choice::NearTie | Choice::Free), Some(device)) => {
                device.into_iter().map(|id| id as u64).collect()
            }
            _ => reference,
        };
        ids.extend(choice.iter().map(|&id| (id as f64, 0.0)));
        taken.push(choice);
    }
    let notes = match near_ties {
        0 => Vec::new(),
        n => vec![format!(
            "{n} of {} rows chose within the scores' error (near ties)",
            rows.len()
        )],
    };
    Chosen {
        taken,
        expected: expected("topk_ids", topk_ids, ids),
        notes,
    }
}

/// The mathematics of `moe_route`.
pub(super) struct MoeRouteSpec;

impl MoeRouteSpec {
    fn answer(
        &self,
        op: &MoeRoute,
        inputs: &Operands,
        found: Option<&HostTensor>,
    ) -> Result<(Vec<Expected>, Vec<String>)> {
        let rows = routed(inputs, &op.logits, op.bias.as_ref(), op.routing)?;
        let chosen = chosen(&rows, &op.topk_ids, found);
        let weights = rows.iter().zip(&chosen.taken);
        let weights = weights.flat_map(|(row, ids)| row.weights(ids)).collect();
        let weights = expected("topk_weights", &op.topk_weights, weights);
        Ok((vec![chosen.expected, weights], chosen.notes))
    }
}

impl OpSpec for MoeRouteSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, _: DataClass) -> Result<Vec<Expected>> {
        Ok(self.answer(described(op)?, inputs, None)?.0)
    }

    fn judge_by(
        &self,
        _: &dyn Fn() -> Result<Arc<Vec<Expected>>>,
        op: &dyn Op,
        inputs: &Operands,
        outputs: &Operands,
        _: DataClass,
    ) -> Result<Judgement> {
        let found = output(outputs, "topk_ids")?;
        let (expected, notes) = self.answer(described(op)?, inputs, Some(found))?;
        compared(&expected, outputs, notes)
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        super::cases::moe_route()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        super::cases::moe_route_strategy()
    }
}

fn compared(expected: &[Expected], outputs: &Operands, notes: Vec<String>) -> Result<Judgement> {
    let judged = expected.iter().map(|expected| {
        let found = output(outputs, expected.name)?;
        Ok(compare(expected, found))
    });
    Ok(Judgement {
        outputs: judged.collect::<Result<_>>()?,
        notes,
    })
}

/// The mathematics of `expert_scatter`.
pub(super) struct ExpertScatterSpec;

impl OpSpec for ExpertScatterSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, _: DataClass) -> Result<Vec<Expected>> {
        let op: &ExpertScatter = described(op)?;
        let x = read(inputs, "x", Some(&op.x))?;
        let ids = read(inputs, "topk_ids", Some(&op.topk_ids))?;
        if let Some(id) = ids
            .iter()
            .find(|&&id| !(-1.0..op.experts as f64).contains(&id))
        {
            let experts = format!("−1 or an expert below {}", op.experts);
            return Err(Error::invalid("topk_ids", id, experts));
        }
        // Slots in the order of (expert, token, slot); those of no expert take no row.
        let mut source = Vec::new();
        let mut expert_offsets = vec![0.0];
        for expert in 0..op.experts {
            let slots = (0..ids.len()).filter(|&slot| ids[slot] == expert as f64);
            source.extend(slots);
            expert_offsets.push(source.len() as f64);
        }
        let mut rows = Vec::new();
        for &slot in &source {
            rows.extend_from_slice(row(&x, slot / op.topk() as usize, op.hidden()));
        }
        rows.resize(ids.len() * op.hidden() as usize, 0.0);
        let mut source: Vec<f64> = source.into_iter().map(|slot| slot as f64).collect();
        source.resize(ids.len(), -1.0);
        let exactly = |values: Vec<f64>| values.into_iter().map(|value| (value, 0.0)).collect();
        Ok(vec![
            expected("rows", &op.rows, exactly(rows)),
            expected(
                "expert_offsets",
                &op.expert_offsets,
                exactly(expert_offsets),
            ),
            expected("source", &op.source, exactly(source)),
        ])
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        super::cases::expert_scatter()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        super::cases::expert_scatter_strategy()
    }
}

/// The mathematics of `expert_gather`.
pub(super) struct ExpertGatherSpec;

impl OpSpec for ExpertGatherSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        let op: &ExpertGather = described(op)?;
        let rows = read(inputs, "rows", Some(&op.rows))?;
        let source = read(inputs, "source", Some(&op.source))?;
        let weights = read(inputs, "topk_weights", Some(&op.topk_weights))?;
        // The row of each slot; at most one has it as its source.
        let row_of = |slot: usize| source.iter().position(|&source| source == slot as f64);
        let (topk, hidden) = (op.topk() as usize, op.hidden() as usize);
        let epilogue = Epilogue::plain(op.topk(), Activation::None, op.y.dtype, data);
        let mut y = Vec::new();
        for token in 0..op.tokens() as usize {
            // y[token] = Σ weights[token, slot] · rows[row_of(token, slot)]
            let mut sums = vec![Dot::default(); hidden];
            for (slot, weight) in row(&weights, token, op.topk()).iter().enumerate() {
                if let Some(at) = row_of(token * topk + slot) {
                    for (sum, value) in sums.iter_mut().zip(row(&rows, at, op.hidden())) {
                        sum.add(weight * value);
                    }
                }
            }
            y.extend(plain_row(&epilogue, &sums));
        }
        Ok(vec![expected("y", &op.y, y)])
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        super::cases::expert_gather()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        super::cases::expert_gather_strategy()
    }
}

/// Sums rounded to the output, with nothing added.
fn plain_row(epilogue: &Epilogue, sums: &[Dot]) -> Vec<(f64, f64)> {
    let zeros = vec![0.0; sums.len()];
    epilogue.row(sums, &zeros, &zeros)
}

/// The mathematics of `moe_ffn`.
pub(super) struct MoeFfnSpec;

impl MoeFfnSpec {
    fn answer(
        &self,
        op: &MoeFfn,
        inputs: &Operands,
        data: DataClass,
        found: Option<&HostTensor>,
    ) -> Result<(Vec<Expected>, Vec<String>)> {
        let x = read(inputs, "x", Some(&op.x))?;
        let w_gate_up = read(inputs, "w_gate_up", Some(&op.w_gate_up))?;
        let w_down = read(inputs, "w_down", Some(&op.w_down))?;
        let rows = routed(inputs, &op.logits, op.bias.as_ref(), op.routing)?;
        let chosen = chosen(&rows, &op.topk_ids, found);
        let (hidden, inter) = (op.hidden(), op.inter());
        let mut y = Vec::new();
        for (token, (routed, ids)) in rows.iter().zip(&chosen.taken).enumerate() {
            let weights = routed.weights(ids);
            let answers: Vec<Vec<(f64, f64)>> = ids
                .iter()
                .map(|&id| {
                    let size = 2 * inter * hidden;
                    let gate_up = row(&w_gate_up, id as usize, size);
                    let down = row(&w_down, id as usize, inter * hidden);
                    expert(op, row(&x, token, hidden), gate_up, down, data)
                })
                .collect();
            y.extend(combine(&weights, &answers, op, data));
        }
        let y = expected("y", &op.y, y);
        Ok((vec![y, chosen.expected], chosen.notes))
    }
}

/// One expert's answer to one row: w_down · (silu(gate) · up), where (gate, up) = w_gate_up · x.
fn expert(
    op: &MoeFfn,
    x: &[f64],
    gate_up: &[f64],
    down: &[f64],
    data: DataClass,
) -> Vec<(f64, f64)> {
    let (hidden, inter) = (op.hidden(), op.inter());
    let sums: Vec<Dot> = (0..2 * inter as usize)
        .map(|i| {
            let mut sum = Dot::default();
            let weights = row(gate_up, i, hidden);
            x.iter().zip(weights).for_each(|(x, w)| sum.add(x * w));
            sum
        })
        .collect();
    let swiglu = Epilogue::plain(hidden, Activation::Swiglu, op.x.dtype, data);
    let between: Vec<(f64, f64)> = overflowing(plain_row(&swiglu, &sums), op.x.dtype);
    let product = Epilogue::plain(inter, Activation::None, op.x.dtype, data);
    let mut sums = Vec::new();
    let mut carried = Vec::new();
    for h in 0..hidden as usize {
        let mut sum = Dot::default();
        // What the errors of the rows between make of the sum.
        let (mut hard, mut squares) = (0.0, 0.0);
        for (&(value, error), w) in between.iter().zip(row(down, h, inter)) {
            sum.add(value * w);
            hard += error * w.abs();
            squares += (error * w).powi(2);
        }
        sums.push(sum);
        carried.push(independent(data, hard, squares));
    }
    let answers = plain_row(&product, &sums).into_iter().zip(carried);
    let answers = answers.map(|((value, own), carried)| widened(value, own + carried));
    overflowing(answers.collect(), op.x.dtype)
}

/// y = Σ weight · answer over the slots of one token.
fn combine(
    weights: &[(f64, f64)],
    answers: &[Vec<(f64, f64)>],
    op: &MoeFfn,
    data: DataClass,
) -> Vec<(f64, f64)> {
    let epilogue = Epilogue::plain(op.topk(), Activation::None, op.y.dtype, data);
    let mut sums = vec![Dot::default(); op.hidden() as usize];
    let mut carried = vec![0.0; sums.len()];
    for (&(weight, weight_error), answer) in weights.iter().zip(answers) {
        for ((sum, carried), &(value, error)) in sums.iter_mut().zip(&mut carried).zip(answer) {
            sum.add(weight * value);
            *carried += (weight.abs() + weight_error) * error + weight_error * value.abs();
        }
    }
    let y = plain_row(&epilogue, &sums).into_iter().zip(carried);
    y.map(|((value, own), carried)| widened(value, own + carried))
        .collect()
}

/// The error of a sum of terms whose errors are independent in random data.
fn independent(data: DataClass, hard: f64, squares: f64) -> f64 {
    match data {
        DataClass::Random => hard.min(LAMBDA * squares.sqrt()),
        DataClass::Exact | DataClass::Adversarial => hard,
    }
}

/// NaN and infinities are what they are; an error that is none of either leaves the element open.
fn widened(value: f64, error: f64) -> (f64, f64) {
    match error {
        _ if !value.is_finite() => (value, 0.0),
        error if error.is_nan() => (value, f64::INFINITY),
        error => (value, error),
    }
}

/// Rows between steps may or may not be rounded to `dtype`: what it cannot hold is open.
fn overflowing(elements: Vec<(f64, f64)>, dtype: DType) -> Vec<(f64, f64)> {
    let open = |(value, error): (f64, f64)| match value.abs() + error >= dtype.max_finite() {
        true if value.is_finite() => (0.0, f64::INFINITY),
        _ => (value, error),
    };
    elements.into_iter().map(open).collect()
}

impl OpSpec for MoeFfnSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        Ok(self.answer(described(op)?, inputs, data, None)?.0)
    }

    fn judge_by(
        &self,
        _: &dyn Fn() -> Result<Arc<Vec<Expected>>>,
        op: &dyn Op,
        inputs: &Operands,
        outputs: &Operands,
        data: DataClass,
    ) -> Result<Judgement> {
        let found = output(outputs, "topk_ids")?;
        let (expected, notes) = self.answer(described(op)?, inputs, data, Some(found))?;
        compared(&expected, outputs, notes)
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        super::cases::moe_ffn()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        super::cases::moe_ffn_strategy()
    }
}
