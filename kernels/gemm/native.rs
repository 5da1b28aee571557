//! The cpu device's functions. Products go through the device's matrix product service, in f32; other dtypes are
//! converted block by block, so that no operand is ever copied whole. i8 goes through f32 too: sums of 1,024 products are exact there.

use std::ops::Range;

use bytemuck::Pod;
use half::{bf16, f16};
use rayon::prelude::*;
use ropeway_core::dtype::DType;
use ropeway_core::native::{Matrix, NativeCall, NativeDevice};
use ropeway_core::{Error, ErrorKind, Result};

mod elements;
mod skinny;

use elements::{Element, Elements};
use skinny::Skinny;

/// Rows of d that are computed together.
const BLOCK_M: usize = 512;
/// Most columns of one task.
const BLOCK_N: usize = 256;
/// k that is converted together. Sums of this many i8 products (at most 2^14 each) are exact in f32.
const BLOCK_K: usize = 512;

const HAS_C: i64 = 1;
const HAS_BIAS: i64 = 2;
const EXACT: i64 = 4;

const RELU: i64 = 1;
const GELU: i64 = 2;
const GELU_TANH: i64 = 3;
const SILU: i64 = 4;
const SWIGLU: i64 = 5;

/// `gemm`, with the arguments of the plan: a, b, c, bias, d, sizes, epilogue, strides.
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
    for batch in 0..outer * inner {
        let side = |elements, [row, column, by_outer, by_inner]: [usize; 4]| Side {
            elements,
            at: batch / inner * by_outer + batch % inner * by_inner,
            row,
            column,
        };
        let c = side(c, c_strides);
        let d_side = side(Elements::None, d_strides);
        let product = Product {
            a: side(a, a_strides),
            b: side(b, b_strides),
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

/// `grouped_gemm`, with the arguments of the plan: a, b, offsets or counts, d, status, sizes, activation, strides.
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
                a_at: expert * a_expert,
                d_at: expert * d_expert,
                rows: end,
                limit: capacity,
            }
        } else {
            let begin = std::mem::replace(&mut done, end);
            Job {
                expert,
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
            },
            b: Side {
                elements: b,
                at: job.expert * b_expert,
                row: b_column,
                column: b_row,
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
}

impl<'a> Side<'a> {
    fn transposed(&self) -> Side<'a> {
        Side {
            row: self.column,
            column: self.row,
            ..*self
        }
    }

    /// A block of it in f32: in place if it is f32, else converted into `scratch`.
    fn block<'s>(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        scratch: &'s mut Vec<f32>,
    ) -> Matrix<'s, f32>
    where
        'a: 's,
    {
        let at = self.at + rows.start * self.row + columns.start * self.column;
        if let Elements::F32(data) = self.elements {
            return Matrix {
                data: &data[at..],
                row_stride: self.row,
                column_stride: self.column,
            };
        }
        let (rows, columns) = (rows.len(), columns.len());
        scratch.clear();
        scratch.resize(rows * columns, 0.0);
        // Lines run along the stride of 1, if there is one.
        let by_columns = self.row == 1 && self.column != 1;
        let (lines, length) = if by_columns {
            (columns, rows)
        } else {
            (rows, columns)
        };
        let (line, step) = if by_columns {
            (self.column, self.row)
        } else {
            (self.row, self.column)
        };
        for i in 0..lines {
            self.elements
                .widen(at + i * line, step, &mut scratch[i * length..][..length]);
        }
        Matrix {
            data: scratch,
            row_stride: if by_columns { 1 } else { columns },
            column_stride: if by_columns { rows } else { 1 },
        }
    }
}

/// Where d lies: rows, and strides.
#[derive(Clone, Copy)]
struct Target {
    rows: usize,
    row: usize,
    column: usize,
}

/// What is done to a sum.
#[derive(Clone, Copy)]
struct Epilogue<'a> {
    alpha: f32,
    beta: f32,
    c: Option<Side<'a>>,
    bias: Option<(Elements<'a>, usize)>,
    activation: i64,
    exact: bool,
}

impl Epilogue<'_> {
    fn is_identity(&self) -> bool {
        self.alpha == 1.0 && self.c.is_none() && self.bias.is_none() && self.activation == 0
    }

    /// alpha * sum + beta * c + bias
    fn affine(&self, sum: f32, row: usize, column: usize) -> f32 {
        let mut value = self.alpha * sum;
        if let Some(c) = &self.c {
            let at = c.at + row * c.row + column * c.column;
            value += self.beta * c.elements.get(at);
        }
        if let Some((bias, stride)) = &self.bias {
            value += bias.get(column * stride);
        }
        value
    }

    /// sum + c + bias, exactly: three i32 fit f64.
    fn exact(&self, sum: f64, row: usize, column: usize) -> f64 {
        let mut value = sum;
        if let Some(c) = &self.c {
            value += c.elements.integer(c.at + row * c.row + column * c.column);
        }
        if let Some((bias, stride)) = &self.bias {
            value += bias.integer(column * stride);
        }
        if self.activation == RELU {
            value.max(0.0)
        } else {
            value
        }
    }
}

/// One product with its epilogue.
struct Product<'a> {
    a: Side<'a>,
    /// [k, n]
    b: Side<'a>,
    n: usize,
    k: usize,
    epilogue: Epilogue<'a>,
    /// Threads that may work on it.
    threads: usize,
}

impl Product<'_> {
    /// Columns of d.
    fn columns(&self) -> usize {
        match self.epilogue.activation {
            SWIGLU => self.n / 2,
            _ => self.n,
        }
    }

    /// Writes the product to `d`, which begins at its first element.
    fn run<T: Element>(&self, device: &dyn NativeDevice, d: &mut [T], target: Target) {
        let columns = self.columns();
        if target.rows == 0 || columns == 0 {
            return;
        }
        if self.run_skinny(d, target) {
            return;
        }
        let floats = matches!(self.a.elements, Elements::F32(_))
            && matches!(self.b.elements, Elements::F32(_));
        let rows_apart = target.column == 1 && (target.rows == 1 || target.row >= columns);
        if T::IS_F32 && floats && rows_apart && self.epilogue.activation != SWIGLU && self.k > 0 {
            return self.run_in_place(device, bytemuck::cast_slice_mut(d), target);
        }
        let tasks = if self.threads > 1 {
            2 * self.threads
        } else {
            1
        };
        let block_n = columns.div_ceil(tasks).next_multiple_of(32).min(BLOCK_N);
        for begin in (0..target.rows).step_by(BLOCK_M) {
            let blocks = Blocks {
                rows: begin..(begin + BLOCK_M).min(target.rows),
                columns,
                block_n,
                halves: self.halves(),
            };
            let d = &mut d[begin * target.row..];
            if matches!(self.a.elements, Elements::I8(_)) {
                let mut sums = vec![0i32; blocks.len()];
                self.sum(device, &blocks, &mut sums, |sums, part, _| {
                    for (sum, part) in sums.iter_mut().zip(part) {
                        *sum = sum.wrapping_add(*part as i32);
                    }
                });
                self.store(&blocks, &sums, d, target);
            } else {
                let mut sums = vec![0f32; blocks.len()];
                self.sum(device, &blocks, &mut sums, |sums, part, first| {
                    if first {
                        sums.copy_from_slice(part);
                        return;
                    }
                    for (sum, part) in sums.iter_mut().zip(part) {
                        *sum += part;
                    }
                });
                self.store(&blocks, &sums, d, target);
            }
        }
    }

    /// Few rows, or few columns: the large operand is read once, as it lies. False if the problem is not of that kind.
    fn run_skinny<T: Element>(&self, d: &mut [T], target: Target) -> bool {
        if matches!(self.a.elements, Elements::I8(_)) || self.k == 0 {
            return false;
        }
        let (rows, columns) = (target.rows, self.columns());
        let halves = self.halves();
        let few_rows = rows <= self.n;
        let (w, x) = match few_rows {
            true => (self.b.transposed(), self.a),
            false => (self.a, self.b.transposed()),
        };
        let skinny = Skinny {
            w,
            w_rows: rows.max(self.n),
            x,
            x_rows: rows.min(self.n),
            k: self.k,
            threads: self.threads,
        };
        if !skinny.fits() {
            return false;
        }
        let mut sums = skinny.sums();
        if few_rows {
            let by_column = std::mem::take(&mut sums);
            sums = (0..rows)
                .flat_map(|row| by_column.iter().skip(row).step_by(rows))
                .copied()
                .collect();
        }
        let blocks = Blocks {
            rows: 0..rows,
            columns,
            block_n: columns,
            halves,
        };
        self.store(&blocks, &sums, d, target);
        true
    }

    /// Parts of n that make one column of d.
    fn halves(&self) -> usize {
        if self.epilogue.activation == SWIGLU {
            2
        } else {
            1
        }
    }

    /// f32 operands, and a d of f32 rows: the sums are formed where they belong.
    fn run_in_place(&self, device: &dyn NativeDevice, d: &mut [f32], target: Target) {
        let matrix = |side: &Side<'_>, data| Matrix {
            data,
            row_stride: side.row,
            column_stride: side.column,
        };
        let (Elements::F32(a), Elements::F32(b)) = (self.a.elements, self.b.elements) else {
            unreachable!("the caller has looked");
        };
        let ldd = target.row.max(self.n);
        device.matmul(
            target.rows,
            self.n,
            self.k,
            self.epilogue.alpha,
            matrix(&self.a, &a[self.a.at..]),
            matrix(&self.b, &b[self.b.at..]),
            0.0,
            d,
            ldd,
            self.threads,
        );
        let epilogue = Epilogue {
            alpha: 1.0,
            ..self.epilogue
        };
        if epilogue.is_identity() {
            return;
        }
        d.par_chunks_mut(ldd)
            .take(target.rows)
            .enumerate()
            .with_min_len(4)
            .for_each(|(row, d)| {
                for (column, value) in d[..self.n].iter_mut().enumerate() {
                    *value = activate(epilogue.affine(*value, row, column), epilogue.activation);
                }
            });
    }

    /// Adds up the blocks of a row range: `add` takes a tile's sums, the products of one k block, and whether it is the first.
    fn sum<S: Send>(
        &self,
        device: &dyn NativeDevice,
        blocks: &Blocks,
        sums: &mut [S],
        add: impl Fn(&mut [S], &[f32], bool) + Sync,
    ) {
        let mut a_scratch = Vec::new();
        for k0 in (0..self.k).step_by(BLOCK_K) {
            let ks = k0..(k0 + BLOCK_K).min(self.k);
            let a = self
                .a
                .block(blocks.rows.clone(), ks.clone(), &mut a_scratch);
            sums.par_chunks_mut(blocks.tile_len())
                .enumerate()
                .for_each_init(
                    || (Vec::new(), Vec::new()),
                    |(b_scratch, part), (index, sums)| {
                        let columns = blocks.tile_columns(index);
                        let width = columns.len();
                        let ld = width * blocks.halves;
                        part.resize(blocks.rows.len() * ld, 0.0);
                        for half in 0..blocks.halves {
                            let first = columns.start + half * self.n / 2;
                            let b = self.b.block(ks.clone(), first..first + width, b_scratch);
                            let part = &mut part[half * width..];
                            device.matmul(
                                blocks.rows.len(),
                                width,
                                ks.len(),
                                1.0,
                                a,
                                b,
                                0.0,
                                part,
                                ld,
                                1,
                            );
                        }
                        add(&mut sums[..part.len()], part, k0 == 0);
                    },
                );
        }
    }

    /// Epilogue and rounding of a row range; `d` begins at its first row.
    fn store<T: Element, S: Sum>(&self, blocks: &Blocks, sums: &[S], d: &mut [T], target: Target) {
        let epilogue = &self.epilogue;
        let columns = blocks.columns;
        let row_of = |index: usize, buffer: &mut Vec<f32>, d: &mut [T]| {
            let row = blocks.rows.start + index;
            if epilogue.exact {
                for column in 0..columns {
                    let sum = sums[blocks.at(index, column)].exact();
                    d[column * target.column] = T::from_sum(epilogue.exact(sum, row, column));
                }
                return;
            }
            buffer.clear();
            buffer.extend((0..columns).map(|column| {
                let at = blocks.at(index, column);
                let value = epilogue.affine(sums[at].float(), row, column);
                if blocks.halves == 1 {
                    return activate(value, epilogue.activation);
                }
                let up = sums[at + blocks.tile_width(column)].float();
                silu(value) * epilogue.affine(up, row, column + columns)
            }));
            if target.column == 1 {
                T::narrow(buffer, &mut d[..columns]);
            } else {
                for (column, value) in buffer.iter().enumerate() {
                    d[column * target.column] = T::from_sum(f64::from(*value));
                }
            }
        };
        let rows = blocks.rows.len();
        if rows > 1 && target.row > (columns - 1) * target.column {
            d.par_chunks_mut(target.row)
                .take(rows)
                .enumerate()
                .with_min_len(4)
                .for_each_init(Vec::new, |buffer, (row, d)| row_of(row, buffer, d));
        } else {
            let mut buffer = Vec::new();
            for row in 0..rows {
                row_of(row, &mut buffer, &mut d[row * target.row..]);
            }
        }
    }
}

/// A range of rows of d, cut into tiles of columns; each tile's sums lie together, gate beside up under swiglu.
struct Blocks {
    rows: Range<usize>,
    columns: usize,
    block_n: usize,
    halves: usize,
}

impl Blocks {
    fn len(&self) -> usize {
        self.rows.len() * self.columns * self.halves
    }

    fn tile_len(&self) -> usize {
        self.rows.len() * self.block_n * self.halves
    }

    fn tile_columns(&self, index: usize) -> Range<usize> {
        let begin = index * self.block_n;
        begin..(begin + self.block_n).min(self.columns)
    }

    fn tile_width(&self, column: usize) -> usize {
        self.tile_columns(column / self.block_n).len()
    }

    /// Where the sum of this row of the range and column of d lies.
    fn at(&self, row: usize, column: usize) -> usize {
        let tile = column / self.block_n;
        let width = self.tile_width(column);
        tile * self.tile_len() + row * width * self.halves + column % self.block_n
    }
}

/// A finished sum.
trait Sum: Copy + Send + Sync {
    fn float(self) -> f32;
    fn exact(self) -> f64;
}

impl Sum for f32 {
    fn float(self) -> f32 {
        self
    }
    fn exact(self) -> f64 {
        f64::from(self)
    }
}

impl Sum for i32 {
    fn float(self) -> f32 {
        self as f32
    }
    fn exact(self) -> f64 {
        f64::from(self)
    }
}

fn activate(x: f32, activation: i64) -> f32 {
    match activation {
        // Written so that NaN stays NaN.
        RELU if x < 0.0 => 0.0,
        GELU => gelu(x),
        GELU_TANH => x / (1.0 + (-1.595_769 * (x + 0.044_715 * x * x * x)).exp()),
        SILU => silu(x),
        _ => x,
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// x Φ(x), with Φ(−|x|) = erfc(|x| / √2) / 2 after Abramowitz and Stegun 7.1.26 (absolute error of erf 1.5e-7 < 2^-22).
fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let polynomial = [
        1.061_405_4,
        -1.453_152,
        1.421_413_7,
        -0.284_496_74,
        0.254_829_6,
    ]
    .into_iter()
    .fold(0.0, |sum, term: f32| sum * t + term);
    let tail = 0.5 * polynomial * t * (-z * z).exp();
    x * if x > 0.0 { 1.0 - tail } else { tail }
}
