//! Many rows in vectors of the machine's own width: the inner loops of `attention_prefill.cl`, whose lanes are rows.

use pulp::{Simd, WithSimd};

use super::{Element, Part, Partial, Problem, STATUS_BLOCK, TILE};

/// Keys between two rescalings.
const KEY_BLOCK: usize = 64;

/// One part, to be run with the machine's vectors.
pub(super) struct Attend<'a, T> {
    pub(super) problem: &'a Problem<'a, T>,
    pub(super) part: Part,
}

impl<T: Element> WithSimd for Attend<'_, T> {
    type Output = Partial;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Partial {
        let Attend { problem, part } = self;
        let (d_tiles, dv_tiles) = (problem.d.div_ceil(TILE), problem.dv.div_ceil(TILE));
        let mut block = Block {
            keys: vec![[0.0; TILE]; KEY_BLOCK * d_tiles],
            values: vec![[0.0; TILE]; KEY_BLOCK * dv_tiles],
            missing: 0,
            first_key: 0,
            count: 0,
        };
        let lanes = S::F32_LANES;
        let groups = part.rows.div_ceil(lanes);
        let mut rows = Rows::new(problem, &part, lanes, groups, d_tiles);
        let mut scores = vec![0.0; KEY_BLOCK * lanes];
        let mut status = 0;

        let (first, _) = problem.sight(&part.sequence, problem.place(&part, 0).0);
        let (_, end) = problem.sight(&part.sequence, problem.place(&part, part.rows - 1).0);
        let mut first_key = first / KEY_BLOCK * KEY_BLOCK;
        let end = end.min(part.end_key);
        while first_key < end {
            block.load(problem, &part, first_key, KEY_BLOCK.min(end - first_key));
            if block.missing != 0 {
                status |= STATUS_BLOCK;
            }
            for group in 0..groups {
                let queries =
                    &rows.queries[group * d_tiles * TILE * lanes..][..d_tiles * TILE * lanes];
                lane_products(simd, queries, &block, d_tiles, &mut scores);
                rows.finish_scores(problem, &part, group, &block, &mut scores);
                rows.exponentials(group, &mut scores[..block.count * lanes]);
                let sums =
                    &mut rows.sums[group * dv_tiles * TILE * lanes..][..dv_tiles * TILE * lanes];
                add_values_to_lanes(simd, &scores, &block, dv_tiles, &rows.rescale, sums);
            }
            first_key += KEY_BLOCK;
        }
        rows.into_partial(part.rows, problem.dv, dv_tiles * TILE, status)
    }
}

/// Keys and values of a block in f32, rows padded with zeros to whole tiles.
struct Block {
    keys: Vec<[f32; TILE]>,
    values: Vec<[f32; TILE]>,
    /// Bit j: key `first_key + j` is in no block.
    missing: u64,
    first_key: usize,
    count: usize,
}

impl Block {
    fn load<T: Element>(
        &mut self,
        problem: &Problem<'_, T>,
        part: &Part,
        first_key: usize,
        count: usize,
    ) {
        (self.first_key, self.count, self.missing) = (first_key, count, 0);
        let d_tiles = self.keys.len() / KEY_BLOCK;
        let dv_tiles = self.values.len() / KEY_BLOCK;
        for j in 0..count {
            match problem.key_row(&problem.k_strides, part, first_key + j) {
                Some(at) => {
                    let to = &mut self.keys[j * d_tiles..][..d_tiles];
                    Problem::pack(problem.k, at, problem.k_strides.column(), problem.d, to);
                }
                None => self.missing |= 1 << j,
            }
        }
        for j in 0..count {
            let to = &mut self.values[j * dv_tiles..][..dv_tiles];
            match problem.key_row(&problem.v_strides, part, first_key + j) {
                Some(at) => {
                    Problem::pack(problem.v, at, problem.v_strides.column(), problem.dv, to)
                }
                None => to.as_flattened_mut().fill(0.0),
            }
        }
    }
}

/// The state of a part's rows, `lanes` of them side by side.
struct Rows {
    lanes: usize,
    /// [group][column][lane], scaled.
    queries: Vec<f32>,
    /// [group][column][lane].
    sums: Vec<f32>,
    /// [group][lane].
    most: Vec<f32>,
    sum: Vec<f32>,
    /// The keys that each row sees, and its query's position among the keys.
    first: Vec<usize>,
    end: Vec<usize>,
    position: Vec<i64>,
    /// What the sums so far are worth after `exponentials`, one a lane.
    rescale: Vec<f32>,
}

impl Rows {
    fn new<T: Element>(
        problem: &Problem<'_, T>,
        part: &Part,
        lanes: usize,
        groups: usize,
        d_tiles: usize,
    ) -> Rows {
        let dv_tiles = problem.dv.div_ceil(TILE);
        let mut rows = Rows {
            lanes,
            queries: vec![0.0; groups * d_tiles * TILE * lanes],
            sums: vec![0.0; groups * dv_tiles * TILE * lanes],
            most: vec![f32::NEG_INFINITY; groups * lanes],
            sum: vec![0.0; groups * lanes],
            first: vec![0; groups * lanes],
            end: vec![0; groups * lanes],
            position: vec![0; groups * lanes],
            rescale: vec![0.0; lanes],
        };
        for row in 0..groups * lanes {
            let (query, head) = problem.place(part, row.min(part.rows - 1));
            let sequence = &part.sequence;
            (rows.first[row], rows.end[row]) = problem.sight(sequence, query);
            rows.position[row] = sequence.keys as i64 - sequence.queries as i64 + query as i64;
            let at = problem
                .q_strides
                .row(sequence.batch, head, sequence.first_query + query);
            let stride = problem.q_strides.column();
            let to = &mut rows.queries[row / lanes * d_tiles * TILE * lanes..];
            for column in 0..problem.d {
                to[column * lanes + row % lanes] =
                    problem.q[at + column * stride].get() * problem.scale;
            }
        }
        rows
    }

    /// Turns products into scores, -inf where a row does not see a key.
    #[inline(always)]
    fn finish_scores<T: Element>(
        &self,
        problem: &Problem<'_, T>,
        part: &Part,
        group: usize,
        block: &Block,
        scores: &mut [f32],
    ) {
        let lanes = self.lanes;
        let scores = &mut scores[..block.count * lanes];
        if problem.softcap > 0.0 {
            for score in scores.iter_mut() {
                *score = problem.softcap * (*score * (1.0 / problem.softcap)).tanh();
            }
        }
        let block_end = block.first_key + block.count;
        for lane in 0..lanes {
            let row = group * lanes + lane;
            let (query, head) = problem.place(part, row.min(part.rows - 1));
            if let Some(slopes) = problem.alibi_slopes {
                let slope = slopes[head * problem.alibi_slopes_stride];
                let distance = block.first_key as i64 - self.position[row];
                for (j, scores) in scores.chunks_exact_mut(lanes).enumerate() {
                    scores[lane] += slope * (distance + j as i64) as f32;
                }
            }
            if let Some(mask) = problem.mask {
                let at = problem.mask_strides.row(part.sequence.index, head, query);
                let stride = problem.mask_strides.column();
                for (j, scores) in scores.chunks_exact_mut(lanes).enumerate() {
                    let bias = mask[at + (block.first_key + j) * stride];
                    // A mask of -inf hides a key even from a NaN query.
                    scores[lane] = if bias == f32::NEG_INFINITY {
                        bias
                    } else {
                        scores[lane] + bias
                    };
                }
            }
            if self.first[row] > block.first_key || self.end[row] < block_end || block.missing != 0
            {
                for (j, scores) in scores.chunks_exact_mut(lanes).enumerate() {
                    let key = block.first_key + j;
                    if key < self.first[row] || key >= self.end[row] || block.missing >> j & 1 != 0
                    {
                        scores[lane] = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }

    /// Turns scores into exponentials relative to the new maximum; leaves in `rescale` what the sums so far are worth.
    #[inline(always)]
    fn exponentials(&mut self, group: usize, scores: &mut [f32]) {
        let lanes = self.lanes;
        let most = &mut self.most[group * lanes..][..lanes];
        let sum = &mut self.sum[group * lanes..][..lanes];
        let mut base = [0.0; 64];
        let base = &mut base[..lanes];
        base.copy_from_slice(most);
        for scores in scores.chunks_exact(lanes) {
            for (base, &score) in base.iter_mut().zip(scores) {
                // A NaN score is no maximum: it reaches the result through its exponential.
                *base = if score > *base { score } else { *base };
            }
        }
        for (((base, most), sum), rescale) in base
            .iter_mut()
            .zip(most)
            .zip(sum.iter_mut())
            .zip(&mut self.rescale)
        {
            let top = *base;
            // Where nothing was seen yet the maximum is -inf, and -inf - -inf would be NaN.
            *base = if top == f32::NEG_INFINITY { 0.0 } else { top };
            *rescale = exp_nonpositive(*most - *base);
            *most = top;
            *sum *= *rescale;
        }
        for scores in scores.chunks_exact_mut(lanes) {
            for ((score, &base), sum) in scores.iter_mut().zip(&*base).zip(sum.iter_mut()) {
                *score = exp_nonpositive(*score - base);
                *sum += *score;
            }
        }
    }

    /// Rows one after the other, without what pads them.
    fn into_partial(self, rows: usize, dv: usize, columns: usize, status: u32) -> Partial {
        let mut sums = vec![0.0; rows * dv];
        for row in 0..rows {
            let from = &self.sums[row / self.lanes * columns * self.lanes..];
            for (column, to) in sums[row * dv..][..dv].iter_mut().enumerate() {
                *to = from[column * self.lanes + row % self.lanes];
            }
        }
        Partial {
            sums,
            most: self.most,
            sum: self.sum,
            status,
        }
    }
}

/// exp of x <= 0 within 2 + 2|x| units in the last place; 0 below the least normal result. NaN stays NaN.
#[inline(always)]
pub(super) fn exp_nonpositive(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    let t = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = t - 12_582_912.0;
    let f = x - n * 0.693_145_75 - n * 1.428_606_8e-6;
    let mut y = 1.987_569_1e-4;
    for coefficient in [
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        y = y * f + coefficient;
    }
    let y = y * (f * f) + (f + 1.0);
    let power = f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < -87.33 { 0.0 } else { y * power }
}

/// `scores[key][lane] = Σ_x queries[x][lane] · keys[key][x]`.
#[inline(always)]
fn lane_products<S: Simd>(
    simd: S,
    queries: &[f32],
    block: &Block,
    d_tiles: usize,
    scores: &mut [f32],
) {
    let (queries, _) = S::as_simd_f32s(queries);
    let (scores, _) = S::as_mut_simd_f32s(scores);
    let (queries, _) = queries.as_chunks::<TILE>();
    for (keys, scores) in block
        .keys
        .chunks_exact(TILE * d_tiles)
        .zip(scores.chunks_exact_mut(TILE))
    {
        let mut acc = [simd.splat_f32s(0.0); TILE];
        for (x, queries) in queries.iter().enumerate() {
            let rows: [&[f32; TILE]; TILE] = std::array::from_fn(|t| &keys[t * d_tiles + x]);
            for (column, &query) in queries.iter().enumerate() {
                for (acc, row) in acc.iter_mut().zip(rows) {
                    *acc = simd.mul_add_e_f32s(simd.splat_f32s(row[column]), query, *acc);
                }
            }
        }
        scores.copy_from_slice(&acc);
    }
}

/// `sums[column][lane] = sums[column][lane] · rescale[lane] + Σ_key scores[key][lane] · values[key][column]`.
#[inline(always)]
fn add_values_to_lanes<S: Simd>(
    simd: S,
    scores: &[f32],
    block: &Block,
    dv_tiles: usize,
    rescale: &[f32],
    sums: &mut [f32],
) {
    let (scores, _) = S::as_simd_f32s(scores);
    let (sums, _) = S::as_mut_simd_f32s(sums);
    let rescale = S::as_simd_f32s(rescale).0[0];
    for (tile, sums) in sums.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
        let mut acc = sums.map(|sum| simd.mul_f32s(sum, rescale));
        let values = block.values[tile..].iter().step_by(dv_tiles);
        for (&p, values) in scores[..block.count].iter().zip(values) {
            for (acc, &value) in acc.iter_mut().zip(values) {
                *acc = simd.mul_add_e_f32s(simd.splat_f32s(value), p, *acc);
            }
        }
        *sums = acc;
    }
}
