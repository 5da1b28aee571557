//! The experts of `moe_ffn` on the cpu device.

use std::any::TypeId;

use rayon::prelude::*;
use ropeway_core::Result;
use ropeway_core::native::{Matrix, NativeCall, NativeDevice};

use super::{Element, sizes, with_element};
use crate::dots::dots;

/// Rows of an expert that one task multiplies.
const TASK_ROWS: usize = 256;

/// The most rows that are multiplied as dot products.
const DOT_ROWS: usize = 4;

/// Weight rows that one task multiplies as dot products.
const TASK_DOTS: usize = 64;

/// Weight rows of dot products that are read side by side.
const SIDE_BY_SIDE: usize = 4;

/// Rows of f16 and bf16 weights that are widened at once, so that they stay in a cache; a product packs its other operand for each lot.
const WIDE_ROWS: usize = 256;

/// `rows[r] = w_down[e] (silu(gate) · up)` for the rows of each expert e, gathered from `x` by `source`.
pub(in crate::moe) fn moe_experts(call: &mut NativeCall<'_>) -> Result<()> {
    with_element!(call, "X_DTYPE", experts)
}

/// Rows that share an expert, and where their results go.
struct Task<'a> {
    expert: usize,
    source: &'a [i32],
    rows: &'a mut [f32],
}

/// A matrix of weights of each expert, its rows dense.
struct Weights<'a, T> {
    data: &'a [T],
    expert_stride: usize,
    row_stride: usize,
    /// Rows and columns of one expert's.
    shape: [usize; 2],
}

/// Memory of one worker, reused from task to task.
#[derive(Default)]
struct Buffers {
    x: Vec<f32>,
    gate_up: Vec<f32>,
    h: Vec<f32>,
    down: Vec<f32>,
    wide: Vec<f32>,
}

impl<T: Element> Weights<'_, T> {
    fn row(&self, expert: usize, row: usize) -> &[T] {
        let begin = expert * self.expert_stride + row * self.row_stride;
        &self.data[begin..begin + self.shape[1]]
    }

    /// `d [n, m] = w [n, k] a [k, m]`. The few columns of `a` are what the product packs; the weights are read in place.
    fn multiply(
        &self,
        device: &dyn NativeDevice,
        expert: usize,
        a: Matrix<'_, f32>,
        d: &mut [f32],
        wide: &mut Vec<f32>,
        threads: usize,
    ) {
        let [n, k] = self.shape;
        if n == 0 {
            return;
        }
        let m = d.len() / n;
        let product = |w: &[f32], row_stride, d: &mut [f32]| {
            let w = Matrix {
                data: w,
                row_stride,
                column_stride: 1,
            };
            device.matmul(d.len() / m, m, k, 1.0, w, a, 0.0, d, m, threads);
        };
        if TypeId::of::<T>() == TypeId::of::<f32>() {
            let all: &[f32] = bytemuck::cast_slice(self.data);
            return product(
                &all[(expert * self.expert_stride).min(all.len())..],
                self.row_stride,
                d,
            );
        }
        for (block, d) in d.chunks_mut(WIDE_ROWS * m).enumerate() {
            let rows = d.len() / m;
            wide.resize(rows * k, 0.0);
            for (row, to) in wide.chunks_mut(k.max(1)).enumerate() {
                T::widen(self.row(expert, block * WIDE_ROWS + row), to);
            }
            product(wide, k, d);
        }
    }

    /// The same for the few dense rows `a` [m, k], a dot product for each element.
    fn dot_products(&self, expert: usize, a: &[f32], d: &mut [f32]) {
        let [n, k] = self.shape;
        if n == 0 {
            return;
        }
        let m = d.len() / n;
        d.par_chunks_mut(TASK_DOTS * m).enumerate().for_each_init(
            Vec::new,
            |scratch, (block, d)| {
                for (tile, d) in d.chunks_mut(SIDE_BY_SIDE * m).enumerate() {
                    let first = block * TASK_DOTS + tile * SIDE_BY_SIDE;
                    let rows = d.len() / m;
                    // Rows past the last repeat it; nobody looks at their sums.
                    let w: [&[T]; SIDE_BY_SIDE] =
                        std::array::from_fn(|i| self.row(expert, first + i.min(rows - 1)));
                    for r in 0..m {
                        let products = dots(w, [&a[r * k..][..k]], scratch);
                        for (d, [product]) in d.iter_mut().skip(r).step_by(m).zip(products) {
                            *d = product;
                        }
                    }
                }
            },
        );
    }
}

fn experts<T: Element>(call: &mut NativeCall<'_>) -> Result<()> {
    let x = call.read::<T>()?;
    let gate_up = call.read::<T>()?;
    let down = call.read::<T>()?;
    let expert_offsets = call.read::<i32>()?;
    let source = call.read::<i32>()?;
    let rows = call.write::<f32>()?;
    let [topk, experts, hidden, inter] = sizes(call)?;
    let [token_stride, column_stride] = sizes(call)?;
    let [gate_up_expert, gate_up_row, down_expert, down_row] = sizes(call)?;
    let device = call.device();
    if hidden == 0 || inter == 0 {
        rows.fill(0.0);
        return Ok(());
    }
    let gate_up = Weights {
        data: gate_up,
        expert_stride: gate_up_expert,
        row_stride: gate_up_row,
        shape: [2 * inter, hidden],
    };
    let down = Weights {
        data: down,
        expert_stride: down_expert,
        row_stride: down_row,
        shape: [hidden, inter],
    };

    let mut tasks = Vec::new();
    let mut rest = rows;
    for expert in 0..experts {
        let range = expert_offsets[expert] as usize..expert_offsets[expert + 1] as usize;
        for source in source[range].chunks(TASK_ROWS) {
            let (rows, after) = std::mem::take(&mut rest).split_at_mut(source.len() * hidden);
            rest = after;
            tasks.push(Task {
                expert,
                source,
                rows,
            });
        }
    }
    let run = |buffers: &mut Buffers, task: &mut Task<'_>, threads: usize| {
        let m = task.source.len();
        let Buffers {
            x: rows,
            gate_up: both,
            h,
            down: y,
            wide,
        } = buffers;
        rows.resize(m * hidden, 0.0);
        for (to, &pair) in rows.chunks_mut(hidden).zip(task.source) {
            let token = &x[pair as usize / topk * token_stride..];
            if column_stride == 1 {
                T::widen(&token[..hidden], to);
            } else {
                for (column, to) in to.iter_mut().enumerate() {
                    *to = token[column * column_stride].wide();
                }
            }
        }
        both.resize(2 * inter * m, 0.0);
        h.resize(inter * m, 0.0);
        y.resize(hidden * m, 0.0);
        if m <= DOT_ROWS {
            gate_up.dot_products(task.expert, rows, both);
            let (gate, up) = both.split_at(inter * m);
            for (j, (gate, up)) in gate.chunks(m).zip(up.chunks(m)).enumerate() {
                for (r, (gate, up)) in gate.iter().zip(up).enumerate() {
                    h[r * inter + j] = silu(*gate) * up;
                }
            }
            down.dot_products(task.expert, h, y);
        } else {
            let a = Matrix {
                data: rows,
                row_stride: 1,
                column_stride: hidden,
            };
            gate_up.multiply(device, task.expert, a, both, wide, threads);
            let (gate, up) = both.split_at(inter * m);
            for (h, (gate, up)) in h.iter_mut().zip(gate.iter().zip(up)) {
                *h = silu(*gate) * up;
            }
            let a = Matrix {
                data: h,
                row_stride: m,
                column_stride: 1,
            };
            down.multiply(device, task.expert, a, y, wide, threads);
        }
        for (r, row) in task.rows.chunks_mut(hidden).enumerate() {
            for (to, y) in row.iter_mut().zip(y[r..].iter().step_by(m)) {
                *to = *y;
            }
        }
    };
    if tasks.len() >= device.threads() {
        tasks
            .par_iter_mut()
            .for_each_init(Buffers::default, |buffers, task| run(buffers, task, 1));
    } else {
        let mut buffers = Buffers::default();
        tasks
            .iter_mut()
            .for_each(|task| run(&mut buffers, task, device.threads()));
    }
    Ok(())
}

fn silu(v: f32) -> f32 {
    v / (1.0 + (-v).exp())
}
