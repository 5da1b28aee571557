//! The experts of `moe_ffn` on the cpu device.

use std::cell::Cell;

use rayon::prelude::*;
use ropeway_core::Result;
use ropeway_core::native::{NativeCall, NativeDevice};

use super::{Element, sizes, with_element};
use crate::dots::few_rows;
use crate::exp::swiglu;
use crate::tiles::{self, LANES, Lanes, ROWS, Sums};

/// Rows of an expert that one task multiplies: their panels stay in the second cache while the weights pass by.
const TASK_ROWS: usize = 256;

/// The most rows that are multiplied as dot products.
const DOT_ROWS: usize = 8;

/// Weight rows that one task multiplies as dot products.
const TASK_DOTS: usize = 64;

thread_local! {
    /// What a worker computes in, kept from task to task and from call to call: new pages cost more than what is done to them.
    static BUFFERS: Cell<Buffers> = Cell::default();
}

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

#[derive(Default)]
struct Buffers {
    wide: Vec<f32>,
    /// For few rows.
    x: Vec<f32>,
    gate_up: Vec<f32>,
    h: Vec<f32>,
    down: Vec<f32>,
    /// For many.
    x_panels: Vec<Lanes>,
    gate_up_sums: Vec<Sums>,
    h_panels: Vec<Lanes>,
    down_sums: Vec<Sums>,
}

fn at_least<T: Copy>(memory: &mut Vec<T>, length: usize, value: T) -> &mut [T] {
    if memory.len() < length {
        memory.resize(length, value);
    }
    &mut memory[..length]
}

impl<T: Element> Weights<'_, T> {
    fn row(&self, expert: usize, row: usize) -> &[T] {
        let begin = expert * self.expert_stride + row * self.row_stride;
        &self.data[begin..begin + self.shape[1]]
    }

    /// Sums of all weight rows with the `rows` rows in `panels`. The weights that come next are asked for while others are multiplied.
    fn multiply(
        &self,
        device: &dyn NativeDevice,
        [expert, rows, threads]: [usize; 3],
        panels: &[Lanes],
        sums: &mut [Sums],
    ) {
        let [n, k] = self.shape;
        tiles::products([n, rows, k], panels, sums, threads, |row, first, to| {
            let elements = first..first + to.len();
            if row + ROWS < n {
                let next = &self.row(expert, row + ROWS)[elements.clone()];
                device.prefetch(bytemuck::cast_slice(next));
            }
            T::widen(&self.row(expert, row)[elements], to);
        });
    }

    /// The same for the few dense rows `a` [m, k], a dot product for each element of `d` [n, m].
    fn dot_products(&self, device: &dyn NativeDevice, expert: usize, a: &[f32], d: &mut [f32]) {
        let [n, k] = self.shape;
        let m = d.len() / n;
        d.par_chunks_mut(TASK_DOTS * m).enumerate().for_each_init(
            Vec::new,
            |scratch, (block, d)| {
                let row = |row| self.row(expert, block * TASK_DOTS + row);
                few_rows(device, row, a, k, d, scratch);
            },
        );
    }
}

/// One call's operands.
struct Experts<'a, T> {
    device: &'a dyn NativeDevice,
    x: &'a [T],
    token_stride: usize,
    column_stride: usize,
    topk: usize,
    gate_up: Weights<'a, T>,
    down: Weights<'a, T>,
}

impl<T: Element> Experts<'_, T> {
    fn run(&self, task: &mut Task<'_>, threads: usize) {
        let mut buffers = BUFFERS.take();
        match task.source.len() <= DOT_ROWS {
            true => self.few_rows(&mut buffers, task),
            false => self.many_rows(&mut buffers, task, threads),
        }
        BUFFERS.set(buffers);
    }

    /// The row of x that a (token, slot) pair names.
    fn load(&self, pair: i32, to: &mut [f32]) {
        let token = &self.x[pair as usize / self.topk * self.token_stride..];
        if self.column_stride == 1 {
            T::widen(&token[..to.len()], to);
        } else {
            for (column, to) in to.iter_mut().enumerate() {
                *to = token[column * self.column_stride].wide();
            }
        }
    }

    /// Dot products along k.
    fn few_rows(&self, buffers: &mut Buffers, task: &mut Task<'_>) {
        let m = task.source.len();
        let [hidden, inter] = self.down.shape;
        let x = at_least(&mut buffers.x, m * hidden, 0.0);
        for (to, pair) in x.chunks_mut(hidden).zip(task.source) {
            self.load(*pair, to);
        }
        let both = at_least(&mut buffers.gate_up, 2 * inter * m, 0.0);
        self.gate_up.dot_products(self.device, task.expert, x, both);
        let (gate, up) = both.split_at(inter * m);
        let by_column = at_least(&mut buffers.wide, inter * m, 0.0);
        swiglu(gate, up, by_column);
        let h = at_least(&mut buffers.h, inter * m, 0.0);
        transpose(by_column, m, h);
        let down = at_least(&mut buffers.down, hidden * m, 0.0);
        self.down.dot_products(self.device, task.expert, h, down);
        transpose(down, m, task.rows);
    }

    /// Rows in the lanes of vectors.
    fn many_rows(&self, buffers: &mut Buffers, task: &mut Task<'_>, threads: usize) {
        let m = task.source.len();
        let [hidden, inter] = self.down.shape;
        let panels = tiles::panels(m);
        let x = at_least(&mut buffers.x_panels, panels * hidden, [0.0; LANES]);
        tiles::pack(m, hidden, x, threads, |row, to| {
            self.load(task.source[row], to);
        });
        let none = [[0.0; LANES]; ROWS];
        let both = at_least(
            &mut buffers.gate_up_sums,
            panels * (2 * inter).div_ceil(ROWS),
            none,
        );
        self.gate_up
            .multiply(self.device, [task.expert, m, threads], x, both);
        let h = at_least(&mut buffers.h_panels, panels * inter, [0.0; LANES]);
        let lanes = |row: usize, panel: usize| &both[row / ROWS * panels + panel][row % ROWS..];
        for (panel, h) in h.chunks_mut(inter).enumerate() {
            // Gate and up begin in the same place of their tiles, if inter is a multiple of ROWS.
            let step = if inter.is_multiple_of(ROWS) { ROWS } else { 1 };
            for (first, h) in h.chunks_mut(step).enumerate() {
                let gate = &lanes(first * step, panel)[..step];
                let up = &lanes(inter + first * step, panel)[..step];
                swiglu(gate.as_flattened(), up.as_flattened(), h.as_flattened_mut());
            }
        }
        let down = at_least(&mut buffers.down_sums, panels * hidden.div_ceil(ROWS), none);
        self.down
            .multiply(self.device, [task.expert, m, threads], h, down);
        tiles::unpack([hidden, m], down, threads, task.rows);
    }
}

/// `to` [m, n] is `from` [n, m].
fn transpose(from: &[f32], m: usize, to: &mut [f32]) {
    let n = from.len() / m;
    for (r, row) in to.chunks_mut(n).enumerate() {
        for (to, from) in row.iter_mut().zip(from[r..].iter().step_by(m)) {
            *to = *from;
        }
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
    let experts = Experts {
        device,
        x,
        token_stride,
        column_stride,
        topk,
        gate_up,
        down,
    };
    if tasks.len() >= device.threads() {
        tasks
            .par_iter_mut()
            .with_max_len(1)
            .for_each(|task| experts.run(task, 1));
    } else {
        for task in &mut tasks {
            experts.run(task, device.threads());
        }
    }
    Ok(())
}
