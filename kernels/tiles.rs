//! Products of many rows of weights, read where and as they lie, with rows of x that lie in the lanes of vectors.
//!
//! ```text
//!   w, ROWS rows        panel of x, [k][LANES]            sums, [row of w][LANES]
//!   ------ k ----->     x0k0 x1k0 x2k0 ...  x31k0
//!   ------ k ----->     x0k1 x1k1 x2k1 ...  x31k1         w[row][k] times the lanes of k, added up over k
//!   ...                 ...
//! ```
//!
//! A few dozen rows of x are too few to pay for packing the weights. Here each weight is converted once, into the nearest cache, and takes part
//! in LANES products for each load of it.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Rows of x in a panel.
pub(crate) const LANES: usize = 32;

/// Rows of w that are multiplied together.
pub(crate) const ROWS: usize = 8;

/// Products that are added up before they are added to the sums: what keeps the converted weights in the first cache, and a long k from
/// losing more than a short one.
const BLOCK_K: usize = 512;

/// k of which rows are turned into lanes together.
const TURN: usize = 16;

/// Tiles of one task.
const TASK: usize = 8;

/// What one k contributes to a panel: an element of each row of x.
pub(crate) type Lanes = [f32; LANES];

/// Sums of [`ROWS`] rows of w.
pub(crate) type Sums = [Lanes; ROWS];

/// Rows of w in f32.
type Tile = [[f32; BLOCK_K]; ROWS];

/// Panels of this many rows.
pub(crate) fn panels(rows: usize) -> usize {
    rows.div_ceil(LANES)
}

/// Writes the panels of `rows` rows of k elements, [panel][k][LANES]; `load` writes a row in f32. Lanes without a row keep what they hold.
pub(crate) fn pack(
    rows: usize,
    k: usize,
    panels: &mut [Lanes],
    threads: usize,
    load: impl Fn(usize, &mut [f32]) + Sync,
) {
    let pack = |wide: &mut Vec<f32>, (index, panel): (usize, &mut [Lanes])| {
        let first = index * LANES;
        let live = LANES.min(rows - first);
        wide.resize(live * k, 0.0);
        for (lane, wide) in wide.chunks_mut(k).enumerate() {
            load(first + lane, wide);
        }
        for (block, lanes) in panel.chunks_mut(TURN).enumerate() {
            for lane in 0..live {
                let row = &wide[lane * k + block * TURN..][..lanes.len()];
                for (lanes, x) in lanes.iter_mut().zip(row) {
                    lanes[lane] = *x;
                }
            }
        }
    };
    let panels = &mut panels[..self::panels(rows) * k];
    let panels_of = k.max(1);
    if threads > 1 {
        let panels = panels.par_chunks_mut(panels_of).enumerate();
        panels.for_each_init(Vec::new, pack);
    } else {
        let mut wide = Vec::new();
        let panels = panels.chunks_mut(panels_of).enumerate();
        panels.for_each(|panel| pack(&mut wide, panel));
    }
}

/// `sums[row of w][row of x] = Σ_k w[row of w][k] · x[row of x][k]`, with x in panels of `x_rows` rows; the sums lie
/// [row of w / ROWS][panel][row of w % ROWS][LANES], those of lanes and rows that do not exist undefined. `load` writes the elements of a row
/// of w from some k on in f32.
///
/// # Panics
/// If `panels` or `sums` are too short.
pub(crate) fn products(
    [w_rows, x_rows, k]: [usize; 3],
    panels: &[Lanes],
    sums: &mut [Sums],
    threads: usize,
    load: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let count = self::panels(x_rows);
    let (panels, sums) = (
        &panels[..count * k],
        &mut sums[..count * w_rows.div_ceil(ROWS)],
    );
    let task = |(index, sums): (usize, &mut [Sums])| {
        let mut tile = [[0.0; BLOCK_K]; ROWS];
        for k0 in (0..k).step_by(BLOCK_K) {
            let block = BLOCK_K.min(k - k0);
            for (at, sums) in sums.chunks_mut(count).enumerate() {
                let first = (index * TASK + at) * ROWS;
                // Rows past the last keep what was there; nobody looks at their sums.
                for (w, row) in tile.iter_mut().zip(first..w_rows) {
                    load(row, k0, &mut w[..block]);
                }
                for (p, (panel, sums)) in panels.chunks(k).zip(sums).enumerate() {
                    Arch::new().dispatch(Multiply {
                        w: &tile,
                        panel: &panel[k0..][..block],
                        live: LANES.min(x_rows - p * LANES),
                        first: k0 == 0,
                        sums,
                    });
                }
            }
        }
    };
    if k == 0 {
        sums.fill([[0.0; LANES]; ROWS]);
    } else if threads > 1 {
        sums.par_chunks_mut(TASK * count).enumerate().for_each(task);
    } else {
        sums.chunks_mut(TASK * count).enumerate().for_each(task);
    }
}

/// `sums (+)= w · panel` for the first `live` lanes.
struct Multiply<'a> {
    w: &'a Tile,
    panel: &'a [Lanes],
    live: usize,
    /// There are no sums yet.
    first: bool,
    sums: &'a mut Sums,
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // As many sums as registers hold, beside two vectors of the panel and a weight.
        if S::REGISTER_COUNT >= 2 * ROWS + 3 {
            self.rows::<S, ROWS>(simd);
        } else {
            self.rows::<S, 4>(simd);
        }
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn rows<S: Simd, const R: usize>(self, simd: S) {
        let (w, sums) = (self.w.as_chunks::<R>().0, self.sums.as_chunks_mut::<R>().0);
        for (w, sums) in w.iter().zip(sums) {
            let mut lane = 0;
            while lane < self.live {
                if self.live - lane <= S::F32_LANES {
                    vectors::<S, R, 1>(simd, w, self.panel, lane, self.first, sums);
                } else {
                    vectors::<S, R, 2>(simd, w, self.panel, lane, self.first, sums);
                }
                lane += 2 * S::F32_LANES;
            }
        }
    }
}

/// The sums of R rows of w and V vectors of lanes, in registers. Loops count, since what closures hold leaves the registers.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn vectors<S: Simd, const R: usize, const V: usize>(
    simd: S,
    w: &[[f32; BLOCK_K]; R],
    panel: &[Lanes],
    lane: usize,
    first: bool,
    sums: &mut [Lanes; R],
) {
    let range = lane..lane + V * S::F32_LANES;
    let mut acc = [[simd.splat_f32s(0.0); V]; R];
    for (k, lanes) in panel[..panel.len().min(BLOCK_K)].iter().enumerate() {
        let x = &S::as_simd_f32s(&lanes[range.clone()]).0[..V];
        for r in 0..R {
            let w = simd.splat_f32s(w[r][k]);
            for v in 0..V {
                acc[r][v] = simd.mul_add_f32s(w, x[v], acc[r][v]);
            }
        }
    }
    for r in 0..R {
        let to = &mut S::as_mut_simd_f32s(&mut sums[r][range.clone()]).0[..V];
        for v in 0..V {
            to[v] = match first {
                true => acc[r][v],
                false => simd.add_f32s(to[v], acc[r][v]),
            };
        }
    }
}

/// Brings what [`products`] left into rows of x, one after the other, each with its sums of all rows of w.
///
/// # Panics
/// If `to` is too short.
pub(crate) fn unpack([w_rows, x_rows]: [usize; 2], sums: &[Sums], threads: usize, to: &mut [f32]) {
    let panels = panels(x_rows);
    let unpack = |(panel, to): (usize, &mut [f32])| {
        let tiles = sums[panel..].iter().step_by(panels);
        for (tile, sums) in tiles.take(w_rows.div_ceil(ROWS)).enumerate() {
            let count = ROWS.min(w_rows - tile * ROWS);
            for (lane, to) in to.chunks_mut(w_rows).enumerate() {
                let to = &mut to[tile * ROWS..][..count];
                for (to, lanes) in to.iter_mut().zip(sums) {
                    *to = lanes[lane];
                }
            }
        }
    };
    let rows = &mut to[..x_rows * w_rows];
    if threads > 1 {
        rows.par_chunks_mut(LANES * w_rows)
            .enumerate()
            .for_each(unpack);
    } else {
        rows.chunks_mut(LANES * w_rows).enumerate().for_each(unpack);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_exact_at_every_edge() {
        for (w_rows, x_rows, k) in [
            (1usize, 1usize, 1usize),
            (8, 32, 512),
            (9, 33, 513),
            (7, 16, 511),
            (70, 17, 1025),
            (200, 70, 40),
            (3, 5, 0),
        ] {
            let w = |row: usize, k: usize| ((row * 7 + k * 3) % 11) as f32 - 5.0;
            let x = |row: usize, k: usize| ((row * 5 + k * 2) % 13) as f32 - 6.0;
            let mut packed = vec![[f32::NAN; LANES]; panels(x_rows) * k];
            for threads in [1, 2] {
                pack(x_rows, k, &mut packed, threads, |row, to| {
                    (0..k).for_each(|k| to[k] = x(row, k));
                });
                let mut sums =
                    vec![[[f32::NAN; LANES]; ROWS]; w_rows.div_ceil(ROWS) * panels(x_rows)];
                products(
                    [w_rows, x_rows, k],
                    &packed,
                    &mut sums,
                    threads,
                    |row, first, to| {
                        to.iter_mut()
                            .enumerate()
                            .for_each(|(i, to)| *to = w(row, first + i));
                    },
                );
                let mut rows = vec![f32::NAN; x_rows * w_rows];
                unpack([w_rows, x_rows], &sums, threads, &mut rows);
                for row in 0..w_rows {
                    for column in 0..x_rows {
                        let exact: f32 = (0..k).map(|k| w(row, k) * x(column, k)).sum();
                        let found = rows[column * w_rows + row];
                        assert_eq!(found, exact, "{w_rows} {x_rows} {k}: [{row}][{column}]");
                    }
                }
            }
        }
    }
}
