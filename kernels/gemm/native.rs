//! The cpu device's functions. Products go through the device's matrix product service, in f32; other dtypes are
//! converted block by block, so that no operand is ever copied whole. i8 goes through f32 too: sums of 1,024 products are exact there.
//! 8-bit floats are multiplied by their scales as they are converted.

use bytemuck::Pod;
use half::{bf16, f16};
use rayon::prelude::*;
use ropeway_core::dtype::DType;
use ropeway_core::native::NativeCall;
use ropeway_core::{Error, ErrorKind, Result};

mod blocks;
mod elements;
mod epilogue;
mod product;
mod skinny;

use elements::{Element, Elements};
use epilogue::Epilogue;
use product::{Product, Target};

const HAS_C: i64 = 1;
const HAS_BIAS: i64 = 2;
const EXACT: i64 = 4;

const RELU: i64 = 1;
const GELU: i64 = 2;
const GELU_TANH: i64 = 3;
const SILU: i64 = 4;
const SWIGLU: i64 = 5;

/// `gemm`, with the arguments of the plan: a, b, c, bias, d, sizes, epilogue, strides, scales.
pub(super) fn gemm(call: &mut NativeCall<'_>) -> Result<()> {
    let (a, b) = (source(call, "A_DTYPE")?, source(call, "B_DTYPE")?);
    let addend = match call.config().dtype("A_DTYPE") {
        Some(DType::I8) => DType::I32,
        Some(dtype) => dtype,
        None => return Err(missing("A_DTYPE")),
    };
    let (c, bias) = (source_of(call, addend)?, source_of(call, addend)?);
    match call.config().dtype("D_DTYPE") {
        Some(DType::F32) => gemm_into::<f32>(call, a, b, c, bias),
        Some(DType::F16) => gemm_into::<f16>(call, a, b, c, bias),
        Some(DType::BF16) => gemm_into::<bf16>(call, a, b, c, bias),
        Some(DType::I8) => gemm_into::<i8>(call, a, b, c, bias),
        Some(DType::I32) => gemm_into::<i32>(call, a, b, c, bias),
        _ => Err(missing("D_DTYPE")),
    }
}

fn gemm_into<T: Element>(
    call: &mut NativeCall<'_>,
    a: Elements<'_>,
    b: Elements<'_>,
    c: Elements<'_>,
    bias: Elements<'_>,
) -> Result<()> {
    let device = call.device();
    let d: &mut [T] = call.write()?;
    let [m, n, k, outer, inner] = sizes(call)?;
    let (alpha, beta) = (call.float()?, call.float()?);
    let (has, activation) = (call.int()?, call.int()?);
    let a_strides = sizes::<4>(call)?;
    let b_strides = sizes::<4>(call)?;
    let c_strides = sizes::<4>(call)?;
    let bias_stride = call.size()?;
    let d_strides = sizes::<4>(call)?;
    let (a_scale, b_scale) = (scale(call)?, scale(call)?);
    for batch in 0..outer * inner {
        let side = |elements, [row, column, by_outer, by_inner]: [usize; 4]| Side {
            elements,
            at: batch / inner * by_outer + batch % inner * by_inner,
            row,
            column,
            scale: None,
        };
        let c = side(c, c_strides);
        let d_side = side(Elements::None, d_strides);
        let product = Product {
            a: Side {
                scale: a_scale.map(|scale| scale.of_rows(0)),
                ..side(a, a_strides)
            },
            b: Side {
                scale: b_scale.map(|scale| scale.of_weights(0)),
                ..side(b, b_strides)
            },
            n,
            k,
            epilogue: Epilogue {
                alpha,
                beta,
                c: (has & HAS_C != 0).then_some(c),
                bias: (has & HAS_BIAS != 0).then_some((bias, bias_stride)),
                activation,
                exact: has & EXACT != 0,
            },
            threads: device.threads(),
        };
        let target = Target {
            rows: m,
            row: d_side.row,
            column: d_side.column,
        };
        product.run(device, d.get_mut(d_side.at..).unwrap_or_default(), target);
    }
    Ok(())
}

/// `grouped_gemm`, with the arguments of the plan: a, b, offsets or counts, d, status, sizes, activation, strides, scales.
pub(super) fn grouped_gemm(call: &mut NativeCall<'_>) -> Result<()> {
    let (a, b) = (source(call, "A_DTYPE")?, source(call, "B_DTYPE")?);
    match call.config().dtype("D_DTYPE") {
        Some(DType::F32) => grouped_into::<f32>(call, a, b),
        Some(DType::F16) => grouped_into::<f16>(call, a, b),
        Some(DType::BF16) => grouped_into::<bf16>(call, a, b),
        Some(DType::I8) => grouped_into::<i8>(call, a, b),
        Some(DType::I32) => grouped_into::<i32>(call, a, b),
        _ => Err(missing("D_DTYPE")),
    }
}

fn grouped_into<T: Element>(
    call: &mut NativeCall<'_>,
    a: Elements<'_>,
    b: Elements<'_>,
) -> Result<()> {
    let device = call.device();
    let routing: &[i32] = call.read()?;
    let d: &mut [T] = call.write()?;
    let status: &mut [u32] = call.write()?;
    let [rows, experts, capacity, masked, n, k] = sizes(call)?;
    let activation = call.int()?;
    let [a_expert, a_row, a_column] = sizes(call)?;
    let [b_expert, b_row, b_column] = sizes(call)?;
    let [d_expert, d_row, d_column] = sizes(call)?;
    let (a_scale, b_scale) = (scale(call)?, scale(call)?);
    let columns = if activation == SWIGLU { n / 2 } else { n };
    // Offsets that descend or pass the end give empty experts, as in the kernels.
    let mut wrong = masked == 0 && routing[0] != 0;
    let mut jobs = Vec::with_capacity(experts + 1);
    let mut done = 0;
    for expert in 0..experts {
        let given = routing[expert + usize::from(masked == 0)];
        let (least, most) = if masked != 0 {
            (0, capacity)
        } else {
            (done, rows)
        };
        let end = (given.max(0) as usize).clamp(least, most);
        wrong |= end as i64 != i64::from(given);
        jobs.push(if masked != 0 {
            Job {
                expert,
                first: 0,
                a_at: expert * a_expert,
                d_at: expert * d_expert,
                rows: end,
                limit: capacity,
            }
        } else {
            let begin = std::mem::replace(&mut done, end);
            Job {
                expert,
                first: begin,
                a_at: begin * a_row,
                d_at: begin * d_row,
                rows: end - begin,
                limit: end - begin,
            }
        });
    }
    if masked == 0 {
        jobs.push(Job {
            expert: 0,
            first: 0,
            a_at: 0,
            d_at: done * d_row,
            rows: 0,
            limit: rows - done,
        });
    }
    if wrong {
        status[0] = 1;
    }
    let all: usize = jobs.iter().map(|job| job.rows).sum();
    let run = |job: &Job, d: &mut [T]| {
        let product = Product {
            a: Side {
                elements: a,
                at: job.a_at,
                row: a_row,
                column: a_column,
                scale: a_scale.map(|scale| match masked {
                    0 => scale.of_rows(job.first * scale.row),
                    _ => scale.of_rows(job.expert * scale.expert),
                }),
            },
            b: Side {
                elements: b,
                at: job.expert * b_expert,
                row: b_column,
                column: b_row,
                scale: b_scale.map(|scale| scale.of_weights(job.expert * scale.expert)),
            },
            n,
            k,
            epilogue: Epilogue {
                alpha: 1.0,
                beta: 0.0,
                c: None,
                bias: None,
                activation,
                exact: false,
            },
            // An expert with more than its share keeps all threads busy by itself.
            threads: match job.rows * device.threads() > all {
                true => device.threads(),
                false => 1,
            },
        };
        let target = Target {
            rows: job.rows,
            row: d_row,
            column: d_column,
        };
        product.run(device, d, target);
        for row in job.rows..job.limit {
            for column in 0..columns {
                d[row * d_row + column * d_column] = T::from_sum(0.0);
            }
        }
    };
    jobs.retain(|job| job.limit > 0 && columns > 0);
    let span = |job: &Job| (job.limit - 1) * d_row + (columns - 1) * d_column + 1;
    let apart = jobs
        .windows(2)
        .all(|pair| pair[0].d_at + span(&pair[0]) <= pair[1].d_at);
    if !apart {
        for job in &jobs {
            run(job, &mut d[job.d_at..]);
        }
        return Ok(());
    }
    let (mut rest, mut at) = (d, 0);
    let mut parts = Vec::with_capacity(jobs.len());
    for job in &jobs {
        let (part, next) = std::mem::take(&mut rest)[job.d_at - at..].split_at_mut(span(job));
        parts.push((job, part));
        (rest, at) = (next, job.d_at + span(job));
    }
    parts
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(job, part)| run(job, part));
    Ok(())
}

/// The rows of one expert: `rows` to compute, the rest up to `limit` to zero.
struct Job {
    expert: usize,
    /// The first row, where rows of all experts are numbered through.
    first: usize,
    a_at: usize,
    d_at: usize,
    rows: usize,
    limit: usize,
}

fn sizes<const N: usize>(call: &mut NativeCall<'_>) -> Result<[usize; N]> {
    let mut sizes = [0; N];
    for size in &mut sizes {
        *size = call.size()?;
    }
    Ok(sizes)
}

fn missing(name: &str) -> Error {
    Error::new(
        ErrorKind::LaunchFailed,
        format!("the plan set no {name} that the function knows"),
    )
}

fn source<'a>(call: &mut NativeCall<'a>, name: &str) -> Result<Elements<'a>> {
    match call.config().dtype(name) {
        Some(dtype) => source_of(call, dtype),
        None => Err(missing(name)),
    }
}

fn source_of<'a>(call: &mut NativeCall<'a>, dtype: DType) -> Result<Elements<'a>> {
    fn of<'a, T: Pod>(
        call: &mut NativeCall<'a>,
        wrap: fn(&'a [T]) -> Elements<'a>,
    ) -> Result<Elements<'a>> {
        Ok(call.read_optional()?.map_or(Elements::None, wrap))
    }
    match dtype {
        DType::F32 => of(call, Elements::F32),
        DType::F16 => of(call, Elements::F16),
        DType::BF16 => of(call, Elements::BF16),
        DType::I8 => of(call, Elements::I8),
        DType::I32 => of(call, Elements::I32),
        DType::F8E4M3 => of(call, Elements::F8E4M3),
        format if DType::GGML_BLOCKS.contains(&format) => Ok(call
            .read_optional()?
            .map_or(Elements::None, |bytes| Elements::Blocks(format, bytes))),
        other => Err(missing(other.name())),
    }
}

/// An operand as a matrix.
#[derive(Clone, Copy)]
struct Side<'a> {
    elements: Elements<'a>,
    at: usize,
    row: usize,
    column: usize,
    /// What its elements are multiplied by.
    scale: Option<Scale<'a>>,
}

/// Rows and columns of b, and k, that share a scale.
const SCALE_BLOCK: usize = super::check::SCALE_BLOCK as usize;

/// The scales of an operand as they are passed: [experts..., rows, blocks of k], and strides.
#[derive(Clone, Copy)]
struct Scales<'a> {
    values: &'a [f32],
    expert: usize,
    row: usize,
    block: usize,
}

impl<'a> Scales<'a> {
    /// Those of a [m, k], from the element `at` on: one for each row.
    fn of_rows(self, at: usize) -> Scale<'a> {
        Scale {
            values: &self.values[at.min(self.values.len())..],
            rows: 1,
            columns: SCALE_BLOCK,
            row: self.row,
            column: self.block,
        }
    }

    /// Those of b [k, n], from the element `at` on: one for each block of columns.
    fn of_weights(self, at: usize) -> Scale<'a> {
        Scale {
            values: &self.values[at.min(self.values.len())..],
            rows: SCALE_BLOCK,
            columns: SCALE_BLOCK,
            row: self.block,
            column: self.row,
        }
    }
}

/// The scales of a matrix: one for so many rows and columns of it.
#[derive(Clone, Copy)]
struct Scale<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row: usize,
    column: usize,
}

impl Scale<'_> {
    /// That of an element.
    fn at(&self, row: usize, column: usize) -> f32 {
        self.values[row / self.rows * self.row + column / self.columns * self.column]
    }
}

/// The next scales: values, and the strides of experts, rows and blocks of k.
fn scale<'a>(call: &mut NativeCall<'a>) -> Result<Option<Scales<'a>>> {
    let values = call.read_optional()?;
    let [expert, row, block] = sizes(call)?;
    Ok(values.map(|values| Scales {
        values,
        expert,
        row,
        block,
    }))
}

impl<'a> Side<'a> {
    fn transposed(&self) -> Side<'a> {
        Side {
            row: self.column,
            column: self.row,
            scale: self.scale.map(|scale| Scale {
                rows: scale.columns,
                columns: scale.rows,
                row: scale.column,
                column: scale.row,
                ..scale
            }),
            ..*self
        }
    }
}
