//! Many rows in vectors of the machine's own width: the inner loops of `attention_prefill.cl`, whose lanes are rows.

use pulp::{Simd, WithSimd};

use super::element::exp_lanes;
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
            block.load(
                simd,
                problem,
                &part,
                first_key,
                KEY_BLOCK.min(end - first_key),
            );
            if block.missing != 0 {
                status |= STATUS_BLOCK;
            }
            for group in 0..groups {
                let queries =
                    &rows.queries[group * d_tiles * TILE * lanes..][..d_tiles * TILE * lanes];
                lane_products(simd, queries, &block, d_tiles, &mut scores);
                rows.finish_scores(problem, &part, group, &block, &mut scores);
                rows.exponentials(simd, group, &mut scores[..block.count * lanes]);
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
    #[inline(always)]
    fn load<S: Simd, T: Element>(
        &mut self,
        simd: S,
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
                    pack(
                        simd,
                        problem.k,
                        at,
                        problem.k_strides.column(),
                        problem.d,
                        to,
                    );
                }
                None => self.missing |= 1 << j,
            }
        }
        for j in 0..count {
            let to = &mut self.values[j * dv_tiles..][..dv_tiles];
            match problem.key_row(&problem.v_strides, part, first_key + j) {
                Some(at) => pack(
                    simd,
                    problem.v,
                    at,
                    problem.v_strides.column(),
                    problem.dv,
                    to,
                ),
                None => to.as_flattened_mut().fill(0.0),
            }
        }
    }
}

/// `Problem::pack`, in registers where rows are whole vectors.
#[inline(always)]
fn pack<S: Simd, T: Element>(
    simd: S,
    from: &[T],
    at: usize,
    stride: usize,
    columns: usize,
    to: &mut [[f32; TILE]],
) {
    let lanes = S::F32_LANES;
    if stride != 1 || columns == 0 || !columns.is_multiple_of(lanes) {
        return Problem::pack(from, at, stride, columns, to);
    }
    let (to, padding) = to.as_flattened_mut().split_at_mut(columns);
    let from = from[at..][..columns].chunks_exact(lanes);
    for (to, from) in S::as_mut_simd_f32s(to).0.iter_mut().zip(from) {
        *to = T::vector(simd, from);
    }
    padding.fill(0.0);
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
    fn exponentials<S: Simd>(&mut self, simd: S, group: usize, scores: &mut [f32]) {
        let lanes = self.lanes;
        let most = &mut S::as_mut_simd_f32s(&mut self.most[group * lanes..][..lanes]).0[0];
        let sum = &mut S::as_mut_simd_f32s(&mut self.sum[group * lanes..][..lanes]).0[0];
        let rescale = &mut S::as_mut_simd_f32s(&mut self.rescale).0[0];
        let scores = S::as_mut_simd_f32s(scores).0;
        // A NaN score is no maximum: it reaches the result through its exponential.
        let greater = |a, b| simd.select_f32s(simd.greater_than_f32s(b, a), b, a);
        // Four at a time, which need not wait for each other.
        let mut tops = [*most; 4];
        let (fours, rest) = scores.as_chunks::<4>();
        for four in fours {
            for (top, &score) in tops.iter_mut().zip(four) {
                *top = greater(*top, score);
            }
        }
        for &score in rest {
            tops[0] = greater(tops[0], score);
        }
        let top = greater(greater(tops[0], tops[1]), greater(tops[2], tops[3]));
        // Where nothing was seen yet the maximum is -inf, and -inf - -inf would be NaN.
        let nothing = simd.equal_f32s(top, simd.splat_f32s(f32::NEG_INFINITY));
        let base = simd.select_f32s(nothing, simd.splat_f32s(0.0), top);
        *rescale = exp_lanes(simd, simd.sub_f32s(*most, base));
        *most = top;
        let mut total = simd.mul_f32s(*sum, *rescale);
        for score in scores {
            *score = exp_lanes(simd, simd.sub_f32s(*score, base));
            total = simd.add_f32s(total, *score);
        }
        *sum = total;
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
