//! Products with few rows on one side: the large operand is read once, as it lies, and never packed.

use rayon::prelude::*;

use ropeway_core::native::NativeDevice;

use super::elements::Elements;
use super::{Side, blocks};
use crate::convert::Widen;
use crate::dots::few_rows;

/// Most rows of the small operand.
pub(super) const ROWS: usize = 8;
/// Most columns of w that one task adds up, where k is its outer dimension.
const MOST_COLUMNS: usize = 1024;
/// Rows of w that are added to the sums at once, where k is w's outer dimension.
const K_STEP: usize = 4;

/// The large operand w, [rows, k], and the small one x, [at most `ROWS`, k].
pub(super) struct Skinny<'a> {
    pub(super) device: &'a dyn NativeDevice,
    pub(super) w: Side<'a>,
    pub(super) w_rows: usize,
    pub(super) x: Side<'a>,
    pub(super) x_rows: usize,
    pub(super) k: usize,
    pub(super) threads: usize,
}

impl Skinny<'_> {
    /// Whether w holds floats (or blocks of them) and one of its strides is 1, so that it can be read forwards.
    pub(super) fn fits(&self) -> bool {
        let floats = matches!(
            self.w.elements,
            Elements::F32(_) | Elements::F16(_) | Elements::BF16(_) | Elements::Blocks(..)
        );
        floats && self.x_rows <= ROWS && (self.w.column == 1 || self.w.row == 1)
    }

    /// All sums, [w_rows, x_rows].
    pub(super) fn sums(&self) -> Vec<f32> {
        let mut x = vec![0.0; self.x_rows * self.k];
        for (row, x) in x.chunks_mut(self.k.max(1)).enumerate() {
            self.x
                .elements
                .widen(self.x.at + row * self.x.row, self.x.column, x);
        }
        let mut sums = vec![0.0; self.w_rows * self.x_rows];
        if self.k == 0 || sums.is_empty() {
            return sums;
        }
        let share = self.w_rows.div_ceil(2 * self.threads);
        let along_k = self.w.column == 1;
        let rows = if along_k {
            share.clamp(1, 64)
        } else {
            share.next_multiple_of(64).clamp(64, MOST_COLUMNS)
        };
        sums.par_chunks_mut(rows * self.x_rows)
            .enumerate()
            .for_each(|(index, sums)| {
                if along_k {
                    self.dot_products(&x, index * rows, sums);
                } else {
                    self.columns(&x, index * rows, sums);
                }
            });
        sums
    }

    /// Rows of w that lie along k.
    fn dot_products(&self, x: &[f32], first: usize, sums: &mut [f32]) {
        match self.w.elements {
            Elements::F32(w) => self.dot_products_of(w, x, first, sums),
            Elements::F16(w) => self.dot_products_of(w, x, first, sums),
            Elements::BF16(w) => self.dot_products_of(w, x, first, sums),
            Elements::Blocks(format, w) => {
                let bytes = self.w.elements.along_row(0, self.k);
                let row = |row: usize| &w[self.w.at + (first + row) * self.w.row..][..bytes];
                blocks::few_rows(format, row, x, self.k, sums);
            }
            _ => unreachable!("`fits` has looked"),
        }
    }

    fn dot_products_of<T: Widen + bytemuck::Pod>(
        &self,
        w: &[T],
        x: &[f32],
        first: usize,
        sums: &mut [f32],
    ) {
        let row = |row: usize| &w[self.w.at + (first + row) * self.w.row..][..self.k];
        few_rows(self.device, row, x, self.k, sums, &mut Vec::new());
    }

    /// Columns of w that lie side by side: multiples of them are added up, a few k at a time.
    fn columns(&self, x: &[f32], first: usize, sums: &mut [f32]) {
        let count = sums.len() / self.x_rows;
        let mut scratch = vec![0.0; K_STEP * count];
        let mut totals = vec![0.0; self.x_rows * count];
        for k0 in (0..self.k).step_by(K_STEP) {
            let steps = K_STEP.min(self.k - k0);
            for (step, line) in scratch.chunks_mut(count).take(steps).enumerate() {
                let at = self.w.at + first + (k0 + step) * self.w.column;
                self.w.elements.widen(at, 1, line);
            }
            for (x, totals) in x.chunks(self.k).zip(totals.chunks_mut(count)) {
                let mut factors = [0.0; K_STEP];
                factors[..steps].copy_from_slice(&x[k0..k0 + steps]);
                // A last, short step must not read what an earlier one left: infinity times 0 is NaN.
                scratch[steps * count..].fill(0.0);
                add_multiples(&scratch, factors, totals);
            }
        }
        for (column, sums) in sums.chunks_mut(self.x_rows).enumerate() {
            for (row, sum) in sums.iter_mut().enumerate() {
                *sum = totals[row * count + column];
            }
        }
    }
}

/// `totals += Σ factors[i] · rows[i]`, with `rows` one after the other.
fn add_multiples(rows: &[f32], factors: [f32; K_STEP], totals: &mut [f32]) {
    let count = totals.len();
    let [f0, f1, f2, f3] = factors;
    let (r0, rest) = rows.split_at(count);
    let (r1, rest) = rest.split_at(count);
    let (r2, r3) = rest.split_at(count);
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            for ((((total, a), b), c), d) in totals.iter_mut().zip(r0).zip(r1).zip(r2).zip(r3) {
                *total = f3.mul_add(*d, f2.mul_add(*c, f1.mul_add(*b, f0.mul_add(*a, *total))));
            }
        },
    );
}
