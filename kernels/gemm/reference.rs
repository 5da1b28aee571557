//! The mathematics of the three products in plain f64 loops, with the bound of each element beside it.

use proptest::strategy::BoxedStrategy;
use ropeway_core::memory::{Layout, TensorDesc};
use ropeway_core::op::Op;
use ropeway_core::request::{HostTensor, Operands};
use ropeway_core::spec::{DataClass, Expected, OpSpec, Recipe};
use ropeway_core::{DType, Error, Result};

use super::bound::{Dot, Epilogue};
mod blocks;

use super::check::SCALE_BLOCK;
use super::{Gemm, GroupedGemm, MaskedGroupedGemm, cases, downcast, i32_values};

/// The mathematics of `gemm`.
pub(super) struct GemmSpec;

impl OpSpec for GemmSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        let op = downcast::<Gemm>(op)?;
        let a = operand(inputs, "a", &op.a)?;
        let b = operand(inputs, "b", &op.b)?;
        let c = op.c.map(|c| operand(inputs, "c", &c)).transpose()?;
        let bias = op
            .bias
            .map(|bias| operand(inputs, "bias", &bias))
            .transpose()?;
        let scales = Scales::of(inputs, op.a_scale, op.b_scale)?;
        // The tensors at hand may be laid out otherwise than those the op was made for.
        let op = Gemm {
            a: a.desc,
            b: b.desc,
            c: c.map(|c| c.desc),
            ..op.clone()
        };
        let (m, n, k) = (op.m() as usize, op.n() as usize, op.k() as usize);
        let epilogue = Epilogue {
            k: roundings(op.k(), op.b_format),
            alpha: op.alpha.into(),
            activation: op.activation,
            integers: op.a.dtype == DType::I8,
            eight_bits: is_eight_bits(op.a.dtype),
            scaled: op.alpha != 1.0 || (op.reads_c() && op.beta != 1.0),
            out: op.d.dtype,
            data,
        };
        // bias [n]
        let bias = bias.map_or(vec![0.0; n], HostTensor::to_f64);
        let mut expected = Answer::new(&op.d);
        for batch in Layout::contiguous(op.batch())?.indices() {
            // C [m, n], scaled by beta
            let c = match (c, op.c_layout()) {
                (Some(c), Some(layout)) if op.reads_c() => matrix(c, &layout, &batch)
                    .into_iter()
                    .map(|c| f64::from(op.beta) * c)
                    .collect(),
                _ => vec![0.0; m * n],
            };
            // A [m, k], B [k, n]
            let (a, b) = if op.reads_product() {
                let mut a = matrix(a, &op.a_layout(), &batch);
                let mut b = match op.b_format {
                    Some(format) => blocks::matrix(b, format, &op.b_layout(), &batch, k),
                    None => matrix(b, &op.b_layout(), &batch),
                };
                scales.scale_rows(&mut a, k, &[]);
                scales.scale_weights(&mut b, n, &[]);
                (a, b)
            } else {
                (vec![0.0; m * k], vec![0.0; k * n])
            };
            for i in 0..m {
                let row = row_times_matrix(&a[i * k..(i + 1) * k], &b, n);
                let c = &c[i * n..(i + 1) * n];
                expected.extend(epilogue.row(&row, c, &bias));
            }
        }
        Ok(vec![expected.finish()])
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        cases::gemm()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        cases::gemm_strategy()
    }
}

/// The mathematics of `grouped_gemm`.
pub(super) struct GroupedGemmSpec;

impl OpSpec for GroupedGemmSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        let op = downcast::<GroupedGemm>(op)?;
        let a = operand(inputs, "a", &op.a)?;
        let b = operand(inputs, "b", &op.b)?;
        let offsets: Vec<_> = i32_values("expert_offsets", inputs)?.collect();
        let scales = Scales::of(inputs, op.a_scale, op.b_scale)?;
        let epilogue = Epilogue {
            eight_bits: is_eight_bits(op.a.dtype),
            ..Epilogue::plain(
                roundings(op.k(), op.b_format),
                op.activation,
                op.d.dtype,
                data,
            )
        };
        let (n, k) = (op.n() as usize, op.k() as usize);
        // A [rows, k]; the rows of expert e are those from offsets[e] to offsets[e + 1]
        let mut a = matrix(a, &a.desc.layout, &[]);
        scales.scale_rows(&mut a, k, &[]);
        let zeros = vec![0.0; n];
        let mut expected = Answer::new(&op.d);
        for expert in 0..op.experts() as usize {
            // B[expert] transposed: [k, n]
            let mut b = expert_weights(b, op.b_format, expert as u64, k);
            scales.scale_weights(&mut b, n, &[expert as u64]);
            for row in offsets[expert] as usize..offsets[expert + 1] as usize {
                let row = row_times_matrix(&a[row * k..(row + 1) * k], &b, n);
                expected.extend(epilogue.row(&row, &zeros, &zeros));
            }
        }
        expected.fill_with_zeros();
        Ok(vec![expected.finish()])
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        cases::grouped_gemm()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        cases::grouped_gemm_strategy()
    }
}

/// The mathematics of `grouped_gemm_masked`.
pub(super) struct MaskedGroupedGemmSpec;

impl OpSpec for MaskedGroupedGemmSpec {
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        let op = downcast::<MaskedGroupedGemm>(op)?;
        let a = operand(inputs, "a", &op.a)?;
        let b = operand(inputs, "b", &op.b)?;
        let counts: Vec<_> = i32_values("counts", inputs)?.collect();
        let scales = Scales::of(inputs, op.a_scale, op.b_scale)?;
        let epilogue = Epilogue {
            eight_bits: is_eight_bits(op.a.dtype),
            ..Epilogue::plain(
                roundings(op.k(), op.b_format),
                op.activation,
                op.d.dtype,
                data,
            )
        };
        let (n, k) = (op.n() as usize, op.k() as usize);
        let zeros = vec![0.0; n];
        let mut expected = Answer::new(&op.d);
        for expert in 0..op.experts() {
            // A[expert] [capacity, k], B[expert] transposed: [k, n]
            let mut a = matrix(a, &a.desc.layout, &[expert]);
            let mut b = expert_weights(b, op.b_format, expert, k);
            scales.scale_rows(&mut a, k, &[expert]);
            scales.scale_weights(&mut b, n, &[expert]);
            for row in 0..op.capacity() as usize {
                if row < counts[expert as usize] as usize {
                    let row = row_times_matrix(&a[row * k..(row + 1) * k], &b, n);
                    expected.extend(epilogue.row(&row, &zeros, &zeros));
                } else {
                    expected.zero_row();
                }
            }
        }
        Ok(vec![expected.finish()])
    }

    fn fixed_cases(&self) -> Vec<Recipe> {
        cases::grouped_gemm_masked()
    }

    fn strategy(&self) -> BoxedStrategy<Recipe> {
        cases::grouped_gemm_masked_strategy()
    }
}

/// An input, which must be what the op says it is (its strides aside).
fn operand<'a>(inputs: &'a Operands, name: &str, desc: &TensorDesc) -> Result<&'a HostTensor> {
    match inputs.get(name) {
        Some(tensor) if tensor.shape() == desc.shape() && tensor.desc.dtype == desc.dtype => {
            Ok(tensor)
        }
        Some(tensor) => Err(Error::invalid(name, tensor.desc, desc)),
        None => Err(Error::invalid(name, "nothing", "a tensor")),
    }
}

/// The matrix at `batch` of a tensor seen through `layout` [batch..., rows, columns], row by row.
fn matrix(tensor: &HostTensor, layout: &Layout, batch: &[u64]) -> Vec<f64> {
    let (shape, strides) = (layout.shape(), layout.strides());
    let [rows, columns] = [shape[batch.len()], shape[batch.len() + 1]];
    let [row_stride, column_stride] = [strides[batch.len()], strides[batch.len() + 1]];
    let origin = tensor.offset + layout.offset_of(&[batch, &[0, 0]].concat());
    let mut values = Vec::with_capacity((rows * columns) as usize);
    for row in 0..rows {
        for column in 0..columns {
            values.push(tensor.element(origin + row * row_stride + column * column_stride));
        }
    }
    values
}

/// The factors of 8-bit float operands, where the problem has them.
struct Scales<'a> {
    a: Option<&'a HostTensor>,
    b: Option<&'a HostTensor>,
}

impl<'a> Scales<'a> {
    fn of(
        inputs: &'a Operands,
        a: Option<TensorDesc>,
        b: Option<TensorDesc>,
    ) -> Result<Scales<'a>> {
        Ok(Scales {
            a: a.map(|desc| operand(inputs, "a_scale", &desc))
                .transpose()?,
            b: b.map(|desc| operand(inputs, "b_scale", &desc))
                .transpose()?,
        })
    }

    /// `a` [rows, k] times a_scale [rows, k / 128] at `batch`.
    fn scale_rows(&self, a: &mut [f64], k: usize, batch: &[u64]) {
        let Some(scale) = self.a else { return };
        let blocks = k.div_ceil(SCALE_BLOCK as usize);
        let scale = matrix(scale, &scale.desc.layout, batch);
        for (at, a) in a.iter_mut().enumerate() {
            *a *= scale[at / k * blocks + at % k / SCALE_BLOCK as usize];
        }
    }

    /// `b` [k, n] times b_scale [n / 128, k / 128] at `batch`.
    fn scale_weights(&self, b: &mut [f64], n: usize, batch: &[u64]) {
        let Some(scale) = self.b else { return };
        let layout = scale.desc.layout;
        let blocks = layout.shape()[layout.rank() - 1] as usize;
        let scale = matrix(scale, &layout, batch);
        for (at, b) in b.iter_mut().enumerate() {
            let [row, column] = [at % n, at / n].map(|i| i / SCALE_BLOCK as usize);
            *b *= scale[row * blocks + column];
        }
    }
}

/// Whether matrix units may sum the products of such an operand in few bits.
fn is_eight_bits(dtype: DType) -> bool {
    dtype == DType::F8E4M3
}

/// Products and what else a sum may be rounded for: a weight out of a block once, as f32 does not hold each of them.
fn roundings(k: u64, b_format: Option<DType>) -> u64 {
    k + u64::from(b_format.is_some())
}

/// The weights of an expert, transposed: [k, n].
fn expert_weights(b: &HostTensor, format: Option<DType>, expert: u64, k: usize) -> Vec<f64> {
    let layout = b.desc.layout.transposed(1, 2);
    match format {
        Some(format) => blocks::matrix(b, format, &layout, &[expert], k),
        None => matrix(b, &layout, &[expert]),
    }
}

/// `a` [k] times `b` [k, n], with the magnitudes that the bound is made of.
fn row_times_matrix(a: &[f64], b: &[f64], n: usize) -> Vec<Dot> {
    let mut row = vec![Dot::default(); n];
    for (p, &a) in a.iter().enumerate() {
        for (dot, &b) in row.iter_mut().zip(&b[p * n..(p + 1) * n]) {
            dot.add(a * b);
        }
    }
    row
}

/// The output in the making.
struct Answer {
    desc: TensorDesc,
    values: Vec<f64>,
    bounds: Vec<f64>,
}

impl Answer {
    fn new(desc: &TensorDesc) -> Answer {
        Answer {
            desc: *desc,
            values: Vec::new(),
            bounds: Vec::new(),
        }
    }

    /// The next elements, each with its bound.
    fn extend(&mut self, elements: Vec<(f64, f64)>) {
        for (value, bound) in elements {
            self.values.push(value);
            self.bounds.push(bound);
        }
    }

    /// A row of zeros, exactly.
    fn zero_row(&mut self) {
        let columns = self.desc.shape()[self.desc.shape().len() - 1] as usize;
        self.extend(vec![(0.0, 0.0); columns]);
    }

    /// Zeros, exactly, to the end.
    fn fill_with_zeros(&mut self) {
        let elements = self.desc.layout.elements() as usize;
        self.values.resize(elements, 0.0);
        self.bounds.resize(elements, 0.0);
    }

    fn finish(self) -> Expected {
        Expected {
            name: "d",
            dtype: self.desc.dtype,
            shape: self.desc.shape().to_vec(),
            values: self.values,
            bounds: self.bounds,
        }
    }
}

#[cfg(test)]
mod tests;
