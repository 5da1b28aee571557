//! One product: blocks of the operands in f32, multiplied by the device's service, and the epilogue.

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;
use ropeway_core::native::{Matrix, NativeDevice};

use super::elements::{Element, Elements};
use super::epilogue::{Epilogue, Rows, activate};
use super::skinny::Skinny;
use super::{SWIGLU, Side};
use crate::tiles::{self, LANES, Lanes, ROWS, Sums};

/// Rows and columns of d that are computed together, whose sums and operands then stay in the last cache.
const BLOCK_M: usize = 512;
const BLOCK_N: usize = 2048;
/// k that is converted together. Sums of this many i8 products (at most 2^14 each) are exact in f32.
const BLOCK_K: usize = 512;
/// Rows of d whose panels stay in a core's cache while b passes by, and elements that they hold at most.
const TILES_M: usize = 256;
const PANELS: usize = 1 << 20;
/// Elements that one task handles of what is done to every element.
const SHARE: usize = 1 << 14;

thread_local! {
    /// What a product computes in, kept from one to the next: new pages cost more than what is done to them.
    static MEMORY: Cell<Memory> = Cell::default();
}

#[derive(Default)]
struct Memory {
    a: Vec<f32>,
    b: Vec<f32>,
    sums: Vec<f32>,
    integers: Vec<i32>,
    panels: Vec<Lanes>,
    tiles: Vec<Sums>,
}

fn at_least<T: Copy>(memory: &mut Vec<T>, length: usize, value: T) -> &mut [T] {
    if memory.len() < length {
        memory.resize(length, value);
    }
    &mut memory[..length]
}

/// Where d lies: rows, and strides.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) rows: usize,
    pub(super) row: usize,
    pub(super) column: usize,
}

/// One product with its epilogue.
pub(super) struct Product<'a> {
    pub(super) a: Side<'a>,
    /// [k, n]
    pub(super) b: Side<'a>,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) epilogue: Epilogue<'a>,
    /// Threads that may work on it.
    pub(super) threads: usize,
}

/// A block of d. A row of its sums holds, under swiglu, those of the gate and then those of its value.
struct Block {
    rows: Range<usize>,
    columns: Range<usize>,
    /// Sums of a row.
    width: usize,
}

impl Product<'_> {
    /// Columns of d.
    fn columns(&self) -> usize {
        self.n / self.halves()
    }

    /// Parts of n that make one column of d.
    fn halves(&self) -> usize {
        match self.epilogue.activation {
            SWIGLU => 2,
            _ => 1,
        }
    }

    /// Writes the product to `d`, which begins at its first element.
    pub(super) fn run<T: Element>(&self, device: &dyn NativeDevice, d: &mut [T], target: Target) {
        let columns = self.columns();
        if target.rows == 0 || columns == 0 {
            return;
        }
        if self.run_skinny(device, d, target) {
            return;
        }
        if self.run_tiles(device, d, target) {
            return;
        }
        let floats = matches!(self.a.elements, Elements::F32(_))
            && matches!(self.b.elements, Elements::F32(_));
        let rows_apart = target.column == 1 && (target.rows == 1 || target.row >= columns);
        if T::IS_F32 && floats && rows_apart && self.halves() == 1 && self.k > 0 {
            return self.run_in_place(device, bytemuck::cast_slice_mut(d), target);
        }
        let mut memory = MEMORY.take();
        for row in (0..target.rows).step_by(BLOCK_M) {
            for block in self.blocks(row..(row + BLOCK_M).min(target.rows)) {
                let d = &mut d[row * target.row + block.columns.start * target.column..];
                if matches!(self.a.elements, Elements::I8(_)) {
                    let sums = self.sum_integers(device, &block, &mut memory);
                    self.store(&block, sums, d, target);
                } else {
                    let sums = self.sum(device, &block, &mut memory);
                    self.store(&block, sums, d, target);
                }
            }
        }
        MEMORY.set(memory);
    }

    /// Few rows, or few columns: the large operand is read once, as it lies. False if the problem is not of that kind.
    fn run_skinny<T: Element>(
        &self,
        device: &dyn NativeDevice,
        d: &mut [T],
        target: Target,
    ) -> bool {
        if matches!(self.a.elements, Elements::I8(_)) || self.k == 0 {
            return false;
        }
        let rows = target.rows;
        let few_rows = rows <= self.n;
        let (w, x) = match few_rows {
            true => (self.b.transposed(), self.a),
            false => (self.a, self.b.transposed()),
        };
        let skinny = Skinny {
            device,
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
        if few_rows && rows > 1 {
            let by_column = std::mem::take(&mut sums);
            sums = (0..rows)
                .flat_map(|row| by_column.iter().skip(row).step_by(rows))
                .copied()
                .collect();
        }
        let block = Block {
            rows: 0..rows,
            columns: 0..self.columns(),
            width: self.n,
        };
        self.store(&block, &sums, d, target);
        true
    }

    /// b lies [n, k], and no operand is packed but the rows of a, in lanes. False if the problem is not of that kind.
    fn run_tiles<T: Element>(
        &self,
        device: &dyn NativeDevice,
        d: &mut [T],
        target: Target,
    ) -> bool {
        let (a, b) = (&self.a, &self.b);
        let others = matches!(a.elements, Elements::I8(_) | Elements::F8E4M3(_));
        if others || b.row != 1 || self.k == 0 {
            return false;
        }
        let mut memory = MEMORY.take();
        let most = (PANELS / self.k / LANES * LANES).clamp(LANES, TILES_M);
        for row in (0..target.rows).step_by(most) {
            let rows = most.min(target.rows - row);
            let count = tiles::panels(rows);
            let panels = at_least(&mut memory.panels, count * self.k, [0.0; LANES]);
            tiles::pack(rows, self.k, panels, self.threads, |index, to| {
                a.elements.widen(a.at + (row + index) * a.row, a.column, to);
            });
            for block in self.blocks(row..row + rows) {
                let columns = block.columns.len();
                // Rows of w: those of the gate, then those of its value.
                let place = |w: usize, k: usize| {
                    let column = match w < columns {
                        true => block.columns.start + w,
                        false => self.columns() + block.columns.start + w - columns,
                    };
                    b.elements.along_row(b.at + column * b.column, k)
                };
                let sizes = [block.width, rows, self.k];
                let tiles = count * block.width.div_ceil(ROWS);
                let tiles = at_least(&mut memory.tiles, tiles, [[0.0; LANES]; ROWS]);
                tiles::products(sizes, panels, tiles, self.threads, |w, k, to| {
                    // What comes next is asked for while others are multiplied.
                    if w + ROWS < block.width {
                        let next = place(w + ROWS, k);
                        let end = b.elements.along_row(next, to.len());
                        device.prefetch(b.elements.bytes(next..end));
                    }
                    b.elements.widen(place(w, k), 1, to);
                });
                let sums = at_least(&mut memory.sums, rows * block.width, 0.0);
                tiles::unpack([block.width, rows], tiles, self.threads, sums);
                let d = &mut d[row * target.row + block.columns.start * target.column..];
                self.store(&block, sums, d, target);
            }
        }
        MEMORY.set(memory);
        true
    }

    /// The blocks of some rows of d.
    fn blocks(&self, rows: Range<usize>) -> impl Iterator<Item = Block> {
        let (columns, halves) = (self.columns(), self.halves());
        let step = BLOCK_N / halves;
        (0..columns).step_by(step).map(move |column| {
            let columns = column..(column + step).min(columns);
            Block {
                width: columns.len() * halves,
                rows: rows.clone(),
                columns,
            }
        })
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
            .with_min_len((SHARE / self.n).max(1))
            .for_each_init(Vec::new, |addend, (row, d)| {
                let d = &mut d[..self.n];
                epilogue.affine(d, row, 0, addend);
                activate(d, epilogue.activation);
            });
    }

    /// The sums of a block, in f32.
    fn sum<'m>(
        &self,
        device: &dyn NativeDevice,
        block: &Block,
        memory: &'m mut Memory,
    ) -> &'m [f32] {
        let Memory { a, b, sums, .. } = memory;
        let sums = at_least(sums, block.rows.len() * block.width, 0.0);
        if self.k == 0 {
            sums.fill(0.0);
        }
        for k in (0..self.k).step_by(BLOCK_K) {
            self.multiply(device, block, k, (k > 0).into(), a, b, sums);
        }
        sums
    }

    /// The sums of a block, in i32: each range of k in f32, where it is exact.
    fn sum_integers<'m>(
        &self,
        device: &dyn NativeDevice,
        block: &Block,
        memory: &'m mut Memory,
    ) -> &'m [i32] {
        let Memory {
            a,
            b,
            sums: part,
            integers,
            ..
        } = memory;
        let sums = at_least(integers, block.rows.len() * block.width, 0);
        let part = at_least(part, sums.len(), 0.0);
        sums.fill(0);
        for k in (0..self.k).step_by(BLOCK_K) {
            self.multiply(device, block, k, 0.0, a, b, part);
            sums.par_chunks_mut(SHARE)
                .zip(part.par_chunks(SHARE))
                .for_each(|(sums, part)| {
                    for (sum, part) in sums.iter_mut().zip(part) {
                        *sum = sum.wrapping_add(*part as i32);
                    }
                });
        }
        sums
    }

    /// `sums = beta · sums +` the products of a range of k that begins at `k`.
    #[allow(clippy::too_many_arguments)]
    fn multiply(
        &self,
        device: &dyn NativeDevice,
        block: &Block,
        k: usize,
        beta: f32,
        a: &mut Vec<f32>,
        b: &mut Vec<f32>,
        sums: &mut [f32],
    ) {
        let ks = k..(k + BLOCK_K).min(self.k);
        let count = ks.len();
        let a = self.block_of(&self.a, block.rows.clone(), ks.clone(), a);
        let columns = block.columns.len();
        for half in 0..self.halves() {
            let first = block.columns.start + half * self.columns();
            let b = self.block_of(&self.b, ks.clone(), first..first + columns, b);
            device.matmul(
                block.rows.len(),
                columns,
                count,
                1.0,
                a,
                b,
                beta,
                &mut sums[half * columns..],
                block.width,
                self.threads,
            );
        }
    }

    /// A block of an operand in f32: in place if it is f32, else converted into `memory`, and scaled.
    fn block_of<'s, 'a: 's>(
        &self,
        side: &Side<'a>,
        rows: Range<usize>,
        columns: Range<usize>,
        memory: &'s mut Vec<f32>,
    ) -> Matrix<'s, f32> {
        let at = side.at + rows.start * side.row + columns.start * side.column;
        if let Elements::F32(data) = side.elements {
            return Matrix {
                data: &data[at..],
                row_stride: side.row,
                column_stride: side.column,
            };
        }
        // Lines run along the stride of 1, if there is one.
        let by_columns = side.row == 1 && side.column != 1;
        let (length, line, step) = match by_columns {
            true => (rows.len(), side.column, side.row),
            false => (columns.len(), side.row, side.column),
        };
        let memory = at_least(memory, rows.len() * columns.len(), 0.0);
        let widen = |(index, to): (usize, &mut [f32])| {
            side.elements.widen(at + index * line, step, to);
            let Some(scale) = side.scale else { return };
            for (place, element) in to.iter_mut().enumerate() {
                *element *= match by_columns {
                    true => scale.at(rows.start + place, columns.start + index),
                    false => scale.at(rows.start + index, columns.start + place),
                };
            }
        };
        match self.threads {
            1 => memory.chunks_mut(length).enumerate().for_each(widen),
            _ => memory
                .par_chunks_mut(length)
                .enumerate()
                .with_min_len((SHARE / length).max(1))
                .for_each(widen),
        }
        Matrix {
            data: memory,
            row_stride: if by_columns { 1 } else { length },
            column_stride: if by_columns { length } else { 1 },
        }
    }

    /// Epilogue and rounding of a block; `d` begins at its first element.
    fn store<T: Element, S: Sum>(&self, block: &Block, sums: &[S], d: &mut [T], target: Target) {
        let columns = block.columns.len();
        let store = |rows: &mut Rows, (index, d): (usize, &mut [T])| {
            self.store_row(
                block,
                index,
                &sums[index * block.width..][..block.width],
                d,
                target,
                rows,
            );
        };
        let rows = block.rows.len();
        if self.threads > 1 && rows > 1 && target.row > (columns - 1) * target.column {
            d.par_chunks_mut(target.row)
                .take(rows)
                .enumerate()
                .with_min_len((SHARE / columns).max(1))
                .for_each_init(Rows::default, store);
        } else {
            let mut buffers = Rows::default();
            for row in 0..rows {
                store(&mut buffers, (row, &mut d[row * target.row..]));
            }
        }
    }

    fn store_row<T: Element, S: Sum>(
        &self,
        block: &Block,
        index: usize,
        sums: &[S],
        d: &mut [T],
        target: Target,
        rows: &mut Rows,
    ) {
        let (row, column) = (block.rows.start + index, block.columns.start);
        let columns = block.columns.len();
        if self.epilogue.exact {
            for (i, sum) in sums.iter().enumerate() {
                let value = self.epilogue.exact(sum.integer(), row, column + i);
                d[i * target.column] = T::from_sum(value);
            }
            return;
        }
        let values = match S::floats(sums) {
            Some(sums) if self.epilogue.is_identity() => sums,
            _ => {
                let sums = sums.iter().map(|sum| sum.float());
                self.epilogue
                    .row(sums, row, column, column + self.columns(), rows)
            }
        };
        if target.column == 1 {
            T::narrow(values, &mut d[..columns]);
        } else {
            for (i, value) in values.iter().enumerate() {
                d[i * target.column] = T::from_sum(f64::from(*value));
            }
        }
    }
}

/// A finished sum.
trait Sum: Copy + Send + Sync {
    fn float(self) -> f32;
    fn integer(self) -> i32;
    /// All of them as they are, if they are f32.
    fn floats(sums: &[Self]) -> Option<&[f32]>;
}

impl Sum for f32 {
    fn float(self) -> f32 {
        self
    }
    fn integer(self) -> i32 {
        self as i32
    }
    fn floats(sums: &[f32]) -> Option<&[f32]> {
        Some(sums)
    }
}

impl Sum for i32 {
    fn float(self) -> f32 {
        self as f32
    }
    fn integer(self) -> i32 {
        self
    }
    fn floats(_: &[i32]) -> Option<&[f32]> {
        None
    }
}
