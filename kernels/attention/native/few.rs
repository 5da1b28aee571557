//! Few rows against many keys, as `attention_decode.cl` does it: keys and values are read once, widened in registers, the rows of the next block are
//! asked for while one block is worked on; lanes are the columns of a head.

use std::ops::Range;

use bytemuck::cast_slice;
use pulp::{Simd, WithSimd};

use super::element::{SUMS, exp_lanes, sum_lanes};
use super::{Element, Part, Partial, Problem, STATUS_BLOCK, Sequence, Strides, TILE};

/// Keys between two rescalings.
const BLOCK: usize = 16;

/// `Places::there` of a block whose keys are all there.
const ALL: u32 = (1 << BLOCK) - 1;

/// The rows of some key heads of one sequence against some of its keys.
#[derive(Clone)]
pub(super) struct FewPart {
    pub(super) sequence: Sequence,
    pub(super) kv_heads: Range<usize>,
    /// Of a key head: at most 8.
    pub(super) rows: usize,
    pub(super) first_key: usize,
    pub(super) end_key: usize,
}

impl FewPart {
    /// The rows of one key head.
    pub(super) fn head(&self, kv_head: usize) -> Part {
        Part {
            sequence: self.sequence,
            kv_head,
            first_row: 0,
            rows: self.rows,
            end_key: self.end_key,
        }
    }
}

/// One part, to be run with the machine's vectors; gives what each key head leaves.
pub(super) struct AttendFew<'a, T> {
    pub(super) problem: &'a Problem<'a, T>,
    pub(super) part: FewPart,
}

impl<T: Element> WithSimd for AttendFew<'_, T> {
    type Output = Vec<Partial>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<Partial> {
        match self.part.rows {
            1 => self.run::<S, 1, 16, 4, 8>(simd),
            2 => self.run::<S, 2, 8, 4, 8>(simd),
            3 | 4 => self.run::<S, 4, 4, 4, 4>(simd),
            _ => self.run::<S, 8, 2, 2, 2>(simd),
        }
    }
}

/// The rows of a block's keys or values.
#[derive(Clone, Copy)]
struct Places {
    at: [usize; BLOCK],
    /// Bit j: key j is there, neither past the end nor in a block that the block table does not name.
    there: u32,
}

impl Places {
    #[inline(always)]
    fn get(&self, j: usize) -> Option<usize> {
        (self.there >> j & 1 != 0).then_some(self.at[j])
    }

    /// A row of the block in a tensor whose rows are whole vectors, `head` elements on; zeros for what is not there.
    #[inline(always)]
    fn row<'a, T>(&self, j: usize, head: usize, x: &'a [T], zeros: &'a [T]) -> &'a [T] {
        match self.get(j) {
            Some(at) => &x[at + head..][..zeros.len()],
            None => zeros,
        }
    }
}

/// The next row to ask for: of all heads of a key before the next key, as they lie in memory where heads are done together.
#[derive(Clone, Copy, Default)]
struct Ahead {
    key: usize,
    head: usize,
}

/// Where a query stands.
#[derive(Clone, Copy)]
struct Query {
    index: usize,
    /// Its head, counted from the first of its key head.
    head: usize,
    /// The keys it sees.
    first: usize,
    end: usize,
}

/// The state of `R` rows, of which the last ones may repeat.
struct Rows<const R: usize> {
    /// [row][column], scaled.
    queries: Vec<f32>,
    /// [row][column].
    sums: Vec<f32>,
    most: [f32; R],
    /// Sums of exponentials, a lane for each key of a block.
    sum: [[f32; BLOCK]; R],
}

impl<T: Element> AttendFew<'_, T> {
    /// `SIDE` keys side by side share the load of a query, and the products of `KEYS` = `SUMS / R` keys are summed together; values are summed
    /// `COLUMNS` vectors of columns at a time. Where neither is going on, the next block's rows are asked for: a call between the
    /// multiplications would empty the registers.
    #[inline(always)]
    fn run<S: Simd, const R: usize, const KEYS: usize, const SIDE: usize, const COLUMNS: usize>(
        &self,
        simd: S,
    ) -> Vec<Partial> {
        let (problem, part) = (self.problem, &self.part);
        let (d_columns, dv_columns) = (
            problem.d.next_multiple_of(TILE),
            problem.dv.next_multiple_of(TILE),
        );
        let mut heads: Vec<Rows<R>> = part
            .kv_heads
            .clone()
            .map(|kv_head| self.rows(kv_head, d_columns, dv_columns))
            .collect();
        let whole = |strides: &Strides, columns: usize| {
            strides.column() == 1 && columns > 0 && columns.is_multiple_of(TILE)
        };
        let (whole_keys, whole_values) = (
            whole(&problem.k_strides, problem.d),
            whole(&problem.v_strides, problem.dv),
        );
        let zeros = vec![T::put(0.0); problem.d.max(problem.dv)];
        let scratch = |whole: bool, columns: usize| match whole {
            true => Vec::new(),
            false => vec![[0.0; TILE]; BLOCK * columns / TILE],
        };
        let mut keys = scratch(whole_keys, d_columns);
        let mut values = scratch(whole_values, dv_columns);

        let (first, _) = problem.sight(&part.sequence, 0);
        let (_, end) = problem.sight(&part.sequence, (part.rows - 1) / problem.group);
        let end = end.min(part.end_key);
        let mut first_key = (first / BLOCK * BLOCK).max(part.first_key);
        let mut status = 0;
        let find = |first_key: usize, [keys, values]: &mut [Places; 2]| {
            self.find(&problem.k_strides, first_key, end, keys);
            self.find(&problem.v_strides, first_key, end, values);
        };
        let mut queries = [self.query(0, end); R];
        for (r, query) in queries.iter_mut().enumerate() {
            *query = self.query(r.min(part.rows - 1), end);
        }
        let nowhere = Places {
            at: [0; BLOCK],
            there: 0,
        };
        let [mut one, mut other] = [[nowhere; 2]; 2];
        let (mut now, mut next) = (&mut one, &mut other);
        find(first_key, now);
        while first_key < end {
            find(first_key + BLOCK, next);
            let count = BLOCK.min(end - first_key);
            if now[0].there.count_ones() < count as u32 {
                status |= STATUS_BLOCK;
            }
            let mut ahead = [Ahead::default(); 2];
            for (h, (kv_head, rows)) in part.kv_heads.clone().zip(&mut heads).enumerate() {
                let mut scores = [[0.0; BLOCK]; R];
                let head = h * problem.k_strides.head();
                if !whole_keys {
                    pack(
                        problem.k,
                        &now[0],
                        head,
                        problem.k_strides.column(),
                        problem.d,
                        &mut keys,
                    );
                }
                for j in (0..BLOCK).step_by(KEYS) {
                    let (strides, ahead) = (&problem.k_strides, &mut ahead[0]);
                    self.prefetch(problem.k, strides, problem.d, &next[0], ahead, KEYS);
                    let mut sums = [simd.splat_f32s(0.0); SUMS];
                    for (i, sums) in sums.chunks_exact_mut(R * SIDE).enumerate() {
                        let first = j + i * SIDE;
                        if whole_keys {
                            let zeros = &zeros[..d_columns];
                            let mut keys = [zeros; SIDE];
                            for (i, key) in keys.iter_mut().enumerate() {
                                *key = now[0].row(first + i, head, problem.k, zeros);
                            }
                            products::<S, T, R, SIDE>(simd, keys, &rows.queries, sums);
                        } else {
                            let packed = keys.as_flattened();
                            let mut keys = [packed; SIDE];
                            for (i, key) in keys.iter_mut().enumerate() {
                                *key = &packed[(first + i) * d_columns..][..d_columns];
                            }
                            products::<S, f32, R, SIDE>(simd, keys, &rows.queries, sums);
                        }
                    }
                    let products = sum_lanes(simd, &sums);
                    for (i, products) in products.chunks_exact(R).enumerate() {
                        for (scores, &product) in scores.iter_mut().zip(products) {
                            scores[j + i] = product;
                        }
                    }
                }
                for (scores, query) in scores.iter_mut().zip(&queries) {
                    self.finish_scores(kv_head, query, first_key, now[0].there, scores);
                }
                let rescale = exponentials(simd, &mut scores, &mut rows.most, &mut rows.sum);
                let head = h * problem.v_strides.head();
                if whole_values {
                    let zeros = &zeros[..dv_columns];
                    let mut values = [zeros; BLOCK];
                    for (j, value) in values.iter_mut().enumerate() {
                        *value = now[1].row(j, head, problem.v, zeros);
                    }
                    let ahead = |count: usize| {
                        let (strides, ahead) = (&problem.v_strides, &mut ahead[1]);
                        self.prefetch(problem.v, strides, problem.dv, &next[1], ahead, count);
                    };
                    add_values::<S, T, R, COLUMNS>(
                        simd,
                        &scores,
                        &values,
                        &rescale,
                        &mut rows.sums,
                        ahead,
                    );
                } else {
                    pack(
                        problem.v,
                        &now[1],
                        head,
                        problem.v_strides.column(),
                        problem.dv,
                        &mut values,
                    );
                    let packed = values.as_flattened();
                    let mut values = [packed; BLOCK];
                    for (j, value) in values.iter_mut().enumerate() {
                        *value = &packed[j * dv_columns..][..dv_columns];
                    }
                    add_values::<S, f32, R, COLUMNS>(
                        simd,
                        &scores,
                        &values,
                        &rescale,
                        &mut rows.sums,
                        |_| (),
                    );
                }
            }
            (now, next) = (next, now);
            first_key += BLOCK;
        }
        let finish = |rows: Rows<R>| rows.into_partial(part.rows, problem.dv, status);
        heads.into_iter().map(finish).collect()
    }

    fn rows<const R: usize>(&self, kv_head: usize, d_columns: usize, dv_columns: usize) -> Rows<R> {
        let problem = self.problem;
        let part = self.part.head(kv_head);
        let mut queries = vec![0.0; R * d_columns];
        for r in 0..R {
            let (query, head) = problem.place(&part, r.min(part.rows - 1));
            let sequence = &part.sequence;
            let at = problem
                .q_strides
                .row(sequence.batch, head, sequence.first_query + query);
            let to = queries[r * d_columns..][..d_columns].as_chunks_mut().0;
            Problem::pack(problem.q, at, problem.q_strides.column(), problem.d, to);
        }
        for query in &mut queries {
            *query *= problem.scale;
        }
        Rows {
            queries,
            sums: vec![0.0; R * dv_columns],
            most: [f32::NEG_INFINITY; R],
            sum: [[0.0; BLOCK]; R],
        }
    }

    fn query(&self, row: usize, end: usize) -> Query {
        let problem = self.problem;
        let index = row / problem.group;
        let (first, last) = problem.sight(&self.part.sequence, index);
        Query {
            index,
            head: row % problem.group,
            first,
            end: last.min(end),
        }
    }

    /// Finds the rows of a block, of the part's first head.
    fn find(&self, strides: &Strides, first_key: usize, end: usize, places: &mut Places) {
        let problem = self.problem;
        let part = self.part.head(self.part.kv_heads.start);
        places.there = 0;
        let count = end.saturating_sub(first_key).min(BLOCK);
        let mut j = 0;
        while j < count {
            let key = first_key + j;
            let mut run = count - j;
            if problem.paged {
                run = run.min(problem.block_size - key % problem.block_size);
            }
            if let Some(at) = problem.key_row(strides, &part, key) {
                for (i, to) in places.at[j..j + run].iter_mut().enumerate() {
                    *to = at + strides.row(0, 0, i);
                }
                places.there |= ((1 << run) - 1) << j;
            }
            j += run;
        }
    }

    /// Asks for `count` rows of a block, of all heads of a key before the next key: as they lie in memory where heads are done together.
    /// `ahead` says how many were asked for before.
    #[inline(always)]
    fn prefetch(
        &self,
        x: &[T],
        strides: &Strides,
        columns: usize,
        places: &Places,
        ahead: &mut Ahead,
        count: usize,
    ) {
        if strides.column() != 1 || columns == 0 {
            return;
        }
        // Rows that touch are asked for together.
        let (mut begin, mut end) = (0, 0);
        for _ in 0..count {
            if let Some(place) = places.get(ahead.key) {
                let at = place + ahead.head * strides.head();
                if at != end {
                    if begin < end {
                        self.problem.device.prefetch(cast_slice(&x[begin..end]));
                    }
                    begin = at;
                }
                end = at + columns;
            }
            ahead.head += 1;
            if ahead.head == self.part.kv_heads.len() {
                *ahead = Ahead {
                    key: (ahead.key + 1) % BLOCK,
                    head: 0,
                };
            }
        }
        if begin < end {
            self.problem.device.prefetch(cast_slice(&x[begin..end]));
        }
    }

    /// Turns a row's products into scores, -inf where it does not see a key.
    #[inline(always)]
    fn finish_scores(
        &self,
        kv_head: usize,
        query: &Query,
        first_key: usize,
        there: u32,
        scores: &mut [f32; BLOCK],
    ) {
        let problem = self.problem;
        let sequence = &self.part.sequence;
        let head = kv_head * problem.group + query.head;
        if problem.softcap > 0.0 {
            for score in scores.iter_mut() {
                *score = problem.softcap * (*score * (1.0 / problem.softcap)).tanh();
            }
        }
        if let Some(slopes) = problem.alibi_slopes {
            let slope = slopes[head * problem.alibi_slopes_stride];
            let position = sequence.keys as i64 - sequence.queries as i64 + query.index as i64;
            let distance = first_key as i64 - position;
            for (j, score) in scores.iter_mut().enumerate() {
                *score += slope * (distance + j as i64) as f32;
            }
        }
        if let Some(mask) = problem.mask {
            let at = problem.mask_strides.row(sequence.index, head, query.index);
            for (score, key) in scores.iter_mut().zip(first_key..query.end) {
                let bias = mask[at + key * problem.mask_strides.column()];
                // A mask of -inf hides a key even from a NaN query.
                *score = if bias == f32::NEG_INFINITY {
                    bias
                } else {
                    *score + bias
                };
            }
        }
        if query.first > first_key || query.end < first_key + BLOCK || there != ALL {
            for (j, score) in scores.iter_mut().enumerate() {
                if !(query.first..query.end).contains(&(first_key + j)) || there >> j & 1 == 0 {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
}

impl<const R: usize> Rows<R> {
    fn into_partial(self, rows: usize, dv: usize, status: u32) -> Partial {
        let columns = self.sums.len() / R;
        let mut sums = self.sums;
        for row in 1..rows {
            sums.copy_within(row * columns..row * columns + dv, row * dv);
        }
        sums.truncate(rows * dv);
        Partial {
            sums,
            most: self.most[..rows].to_vec(),
            sum: self.sum[..rows]
                .iter()
                .map(|lanes| lanes.iter().sum())
                .collect(),
            status,
        }
    }
}

/// Copies the rows of a block in f32, padded with zeros.
fn pack<T: Element>(
    from: &[T],
    places: &Places,
    head: usize,
    stride: usize,
    columns: usize,
    to: &mut [[f32; TILE]],
) {
    let tiles = to.len() / BLOCK;
    for j in 0..BLOCK {
        let to = &mut to[j * tiles..][..tiles];
        match places.get(j) {
            Some(at) => Problem::pack(from, at + head, stride, columns, to),
            None => to.as_flattened_mut().fill(0.0),
        }
    }
}

/// `sums[key · R + row]`, summed over its lanes, is `Σ_x queries[row][x] · keys[key][x]`.
#[inline(always)]
fn products<S: Simd, E: Element, const R: usize, const SIDE: usize>(
    simd: S,
    keys: [&[E]; SIDE],
    queries: &[f32],
    sums: &mut [S::f32s],
) {
    let columns = queries.len() / R;
    let queries = S::as_simd_f32s(queries).0;
    let vectors = columns / S::F32_LANES;
    let mut rows = [queries; R];
    for (r, row) in rows.iter_mut().enumerate() {
        *row = &queries[r * vectors..][..vectors];
    }
    let mut acc = [[simd.splat_f32s(0.0); R]; SIDE];
    for x in 0..vectors {
        let mut key = [simd.splat_f32s(0.0); SIDE];
        for (key, from) in key.iter_mut().zip(&keys) {
            *key = E::vector(simd, &from[x * S::F32_LANES..][..S::F32_LANES]);
        }
        for (r, row) in rows.iter().enumerate() {
            let query = row[x];
            for (acc, &key) in acc.iter_mut().zip(&key) {
                acc[r] = simd.mul_add_e_f32s(key, query, acc[r]);
            }
        }
    }
    sums.copy_from_slice(acc.as_flattened());
}

/// Turns scores into exponentials relative to each row's new maximum; gives what the sums so far are worth.
#[inline(always)]
fn exponentials<S: Simd, const R: usize>(
    simd: S,
    scores: &mut [[f32; BLOCK]; R],
    most: &mut [f32; R],
    sum: &mut [[f32; BLOCK]; R],
) -> [f32; BLOCK] {
    let mut base = [0.0; R];
    let mut rescale = [0.0; BLOCK];
    for r in 0..R {
        let mut tops = simd.splat_f32s(f32::NEG_INFINITY);
        for &score in S::as_simd_f32s(&scores[r]).0 {
            // A NaN score is no maximum: it reaches the result through its exponential.
            tops = simd.select_f32s(simd.greater_than_f32s(score, tops), score, tops);
        }
        let top = simd.reduce_max_f32s(tops);
        let top = if top > most[r] { top } else { most[r] };
        // Where nothing was seen yet the maximum is -inf, and -inf - -inf would be NaN.
        base[r] = if top == f32::NEG_INFINITY { 0.0 } else { top };
        rescale[r] = most[r] - base[r];
        most[r] = top;
    }
    for worth in S::as_mut_simd_f32s(&mut rescale).0 {
        *worth = exp_lanes(simd, *worth);
    }
    for r in 0..R {
        let (base, worth) = (simd.splat_f32s(base[r]), simd.splat_f32s(rescale[r]));
        let scores = S::as_mut_simd_f32s(&mut scores[r]).0;
        for (score, sum) in scores.iter_mut().zip(S::as_mut_simd_f32s(&mut sum[r]).0) {
            *score = exp_lanes(simd, simd.sub_f32s(*score, base));
            *sum = simd.mul_add_e_f32s(*sum, worth, *score);
        }
    }
    rescale
}

/// `sums[row][column] = sums[row][column] · rescale[row] + Σ_key p[row][key] · values[key][column]`. `ahead` is called with a number of keys before
/// each group of columns, of all keys together.
#[inline(always)]
fn add_values<S: Simd, E: Element, const R: usize, const COLUMNS: usize>(
    simd: S,
    p: &[[f32; BLOCK]; R],
    values: &[&[E]; BLOCK],
    rescale: &[f32; BLOCK],
    sums: &mut [f32],
    mut ahead: impl FnMut(usize),
) {
    let columns = sums.len() / R;
    let wide = COLUMNS * S::F32_LANES;
    let groups = (columns / wide).max(1);
    let mut column = 0;
    while column + wide <= columns {
        let group = column / wide;
        ahead((group + 1) * BLOCK / groups - group * BLOCK / groups);
        add_columns::<S, E, R, COLUMNS>(simd, p, values, rescale, sums, column);
        column += wide;
    }
    while column < columns {
        add_columns::<S, E, R, 1>(simd, p, values, rescale, sums, column);
        column += S::F32_LANES;
    }
}

#[inline(always)]
fn add_columns<S: Simd, E: Element, const R: usize, const COLUMNS: usize>(
    simd: S,
    p: &[[f32; BLOCK]; R],
    values: &[&[E]; BLOCK],
    rescale: &[f32; BLOCK],
    sums: &mut [f32],
    column: usize,
) {
    let lanes = S::F32_LANES;
    let columns = sums.len() / R;
    let mut acc = [[simd.splat_f32s(0.0); COLUMNS]; R];
    for (r, acc) in acc.iter_mut().enumerate() {
        let sums = S::as_simd_f32s(&sums[r * columns + column..][..COLUMNS * lanes]).0;
        for (acc, &sum) in acc.iter_mut().zip(sums) {
            *acc = simd.mul_f32s(sum, simd.splat_f32s(rescale[r]));
        }
    }
    for (j, values) in values.iter().enumerate() {
        let values = &values[column..][..COLUMNS * lanes];
        let mut value = [simd.splat_f32s(0.0); COLUMNS];
        for (value, from) in value.iter_mut().zip(values.chunks_exact(lanes)) {
            *value = E::vector(simd, from);
        }
        for (acc, p) in acc.iter_mut().zip(p) {
            let p = simd.splat_f32s(p[j]);
            for (acc, &value) in acc.iter_mut().zip(&value) {
                *acc = simd.mul_add_e_f32s(value, p, *acc);
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        let sums = S::as_mut_simd_f32s(&mut sums[r * columns + column..][..COLUMNS * lanes]).0;
        for (sum, &acc) in sums.iter_mut().zip(acc) {
            *sum = acc;
        }
    }
}
