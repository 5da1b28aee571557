//! Few rows against many keys, as `attention_decode.cl` does it: keys and values are read once, widened in registers, the rows of the next block are
//! asked for while one block is worked on; lanes are the columns of a head.

use std::array;
use std::ops::Range;

use bytemuck::cast_slice;
use pulp::{Simd, WithSimd};

use super::blocks::exp_nonpositive;
use super::{Element, Part, Partial, Problem, STATUS_BLOCK, Sequence, Strides, TILE};

/// Keys between two rescalings.
const BLOCK: usize = 16;

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
            1 => self.run::<S, 1, 4, 8>(simd),
            2 => self.run::<S, 2, 4, 8>(simd),
            3 | 4 => self.run::<S, 4, 4, 4>(simd),
            _ => self.run::<S, 8, 2, 2>(simd),
        }
    }
}

/// The rows of a block's keys or values; `None` past the end and where the block table names no block.
type Places = [Option<usize>; BLOCK];

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
    /// `SIDE` keys side by side share the load of a query; values are summed `COLUMNS` vectors of columns at a time.
    #[inline(always)]
    fn run<S: Simd, const R: usize, const SIDE: usize, const COLUMNS: usize>(
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
        let places = |first_key: usize| {
            [
                self.places(&problem.k_strides, first_key, end),
                self.places(&problem.v_strides, first_key, end),
            ]
        };
        let mut now = places(first_key);
        while first_key < end {
            let next = places(first_key + BLOCK);
            let count = BLOCK.min(end - first_key);
            if now[0][..count].contains(&None) {
                status |= STATUS_BLOCK;
            }
            for (h, (kv_head, rows)) in part.kv_heads.clone().zip(&mut heads).enumerate() {
                let mut scores = [[0.0; BLOCK]; R];
                let at = |place: usize| place + h * problem.k_strides.head();
                if !whole_keys {
                    pack(
                        problem.k,
                        &now[0].map(|place| place.map(at)),
                        problem.k_strides.column(),
                        problem.d,
                        &mut keys,
                    );
                }
                for j in (0..BLOCK).step_by(SIDE) {
                    for i in j..j + SIDE {
                        self.prefetch(
                            problem.k,
                            &problem.k_strides,
                            problem.d,
                            &next[0],
                            h * BLOCK + i,
                        );
                    }
                    let products = if whole_keys {
                        let keys: [&[T]; SIDE] = array::from_fn(|i| match now[0][j + i] {
                            Some(place) => &problem.k[at(place)..][..d_columns],
                            None => &zeros[..d_columns],
                        });
                        products::<S, T, R, SIDE>(simd, keys, &rows.queries)
                    } else {
                        let keys = keys.as_flattened();
                        let keys: [&[f32]; SIDE] =
                            array::from_fn(|i| &keys[(j + i) * d_columns..][..d_columns]);
                        products::<S, f32, R, SIDE>(simd, keys, &rows.queries)
                    };
                    for (scores, products) in scores.iter_mut().zip(products) {
                        for (score, product) in scores[j..j + SIDE].iter_mut().zip(products) {
                            *score = product;
                        }
                    }
                }
                let mut rescale = [0.0; R];
                for r in 0..R {
                    let row = r.min(part.rows - 1);
                    self.finish_scores(kv_head, row, first_key, &now[0], &mut scores[r]);
                    rescale[r] = exponentials(&mut scores[r], &mut rows.most[r], &mut rows.sum[r]);
                }
                let at = |place: usize| place + h * problem.v_strides.head();
                if whole_values {
                    let values: [&[T]; BLOCK] = array::from_fn(|j| match now[1][j] {
                        Some(place) => &problem.v[at(place)..][..dv_columns],
                        None => &zeros[..dv_columns],
                    });
                    let ahead = |j: usize| {
                        self.prefetch(
                            problem.v,
                            &problem.v_strides,
                            problem.dv,
                            &next[1],
                            h * BLOCK + j,
                        )
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
                        &now[1].map(|place| place.map(at)),
                        problem.v_strides.column(),
                        problem.dv,
                        &mut values,
                    );
                    let values = values.as_flattened();
                    let values: [&[f32]; BLOCK] =
                        array::from_fn(|j| &values[j * dv_columns..][..dv_columns]);
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
            now = next;
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
            for (column, to) in queries[r * d_columns..][..problem.d].iter_mut().enumerate() {
                *to = problem.q[at + column * problem.q_strides.column()].get() * problem.scale;
            }
        }
        Rows {
            queries,
            sums: vec![0.0; R * dv_columns],
            most: [f32::NEG_INFINITY; R],
            sum: [[0.0; BLOCK]; R],
        }
    }

    /// Where the rows of a block lie, of the part's first head.
    fn places(&self, strides: &Strides, first_key: usize, end: usize) -> Places {
        let part = self.part.head(self.part.kv_heads.start);
        array::from_fn(|j| {
            let key = first_key + j;
            (key < end).then(|| self.problem.key_row(strides, &part, key))?
        })
    }

    /// Asks for one of a block's rows, counted as they lie in memory if the heads of a key follow each other.
    #[inline(always)]
    fn prefetch(&self, x: &[T], strides: &Strides, columns: usize, places: &Places, index: usize) {
        let heads = self.part.kv_heads.len();
        if strides.column() == 1
            && columns > 0
            && let Some(place) = places[index / heads]
        {
            let row = &x[place + index % heads * strides.head()..][..columns];
            self.problem.device.prefetch(cast_slice(row));
        }
    }

    /// Turns a row's products into scores, -inf where it does not see a key.
    #[inline(always)]
    fn finish_scores(
        &self,
        kv_head: usize,
        row: usize,
        first_key: usize,
        places: &Places,
        scores: &mut [f32; BLOCK],
    ) {
        let problem = self.problem;
        let part = self.part.head(kv_head);
        let (query, head) = problem.place(&part, row);
        let sequence = &part.sequence;
        if problem.softcap > 0.0 {
            for score in scores.iter_mut() {
                *score = problem.softcap * (*score * (1.0 / problem.softcap)).tanh();
            }
        }
        if let Some(slopes) = problem.alibi_slopes {
            let slope = slopes[head * problem.alibi_slopes_stride];
            let position = sequence.keys as i64 - sequence.queries as i64 + query as i64;
            let distance = first_key as i64 - position;
            for (j, score) in scores.iter_mut().enumerate() {
                *score += slope * (distance + j as i64) as f32;
            }
        }
        let (first, end) = problem.sight(sequence, query);
        let end = end.min(part.end_key);
        if let Some(mask) = problem.mask {
            let at = problem.mask_strides.row(sequence.index, head, query);
            for (score, key) in scores.iter_mut().zip(first_key..end) {
                let bias = mask[at + key * problem.mask_strides.column()];
                // A mask of -inf hides a key even from a NaN query.
                *score = if bias == f32::NEG_INFINITY {
                    bias
                } else {
                    *score + bias
                };
            }
        }
        if first > first_key || end < first_key + BLOCK || places.contains(&None) {
            for (j, (score, place)) in scores.iter_mut().zip(places).enumerate() {
                if !(first..end).contains(&(first_key + j)) || place.is_none() {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
}

impl<const R: usize> Rows<R> {
    fn into_partial(self, rows: usize, dv: usize, status: u32) -> Partial {
        let columns = self.sums.len() / R;
        let sums = (0..rows).flat_map(|row| &self.sums[row * columns..][..dv]);
        Partial {
            sums: sums.copied().collect(),
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
    stride: usize,
    columns: usize,
    to: &mut [[f32; TILE]],
) {
    let tiles = to.len() / BLOCK;
    for (j, place) in places.iter().enumerate() {
        let to = &mut to[j * tiles..][..tiles];
        match place {
            Some(at) => Problem::pack(from, *at, stride, columns, to),
            None => to.as_flattened_mut().fill(0.0),
        }
    }
}

/// `products[row][key] = Σ_x queries[row][x] · keys[key][x]`.
#[inline(always)]
fn products<S: Simd, E: Element, const R: usize, const SIDE: usize>(
    simd: S,
    keys: [&[E]; SIDE],
    queries: &[f32],
) -> [[f32; SIDE]; R] {
    let columns = queries.len() / R;
    let queries: [&[S::f32s]; R] =
        array::from_fn(|r| S::as_simd_f32s(&queries[r * columns..][..columns]).0);
    let keys = keys.map(|key| &key[..columns]);
    let mut acc = [[simd.splat_f32s(0.0); SIDE]; R];
    for x in 0..columns / S::F32_LANES {
        let mut key = [simd.splat_f32s(0.0); SIDE];
        for (key, from) in key.iter_mut().zip(&keys) {
            *key = E::vector(simd, &from[x * S::F32_LANES..][..S::F32_LANES]);
        }
        for (acc, queries) in acc.iter_mut().zip(&queries) {
            let query = queries[x];
            for (acc, &key) in acc.iter_mut().zip(&key) {
                *acc = simd.mul_add_e_f32s(key, query, *acc);
            }
        }
    }
    let mut products = [[0.0; SIDE]; R];
    for (products, acc) in products.iter_mut().zip(&acc) {
        for (product, &acc) in products.iter_mut().zip(acc) {
            *product = simd.reduce_sum_f32s(acc);
        }
    }
    products
}

/// Turns a row's scores into exponentials relative to its new maximum; gives what the sums so far are worth.
#[inline(always)]
fn exponentials(scores: &mut [f32; BLOCK], most: &mut f32, sum: &mut [f32; BLOCK]) -> f32 {
    let mut tops = *scores;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            // A NaN score is no maximum: it reaches the result through its exponential.
            tops[i] = if tops[i + half] > tops[i] || tops[i].is_nan() {
                tops[i + half]
            } else {
                tops[i]
            };
        }
    }
    let top = if tops[0] > *most { tops[0] } else { *most };
    // Where nothing was seen yet the maximum is -inf, and -inf - -inf would be NaN.
    let base = if top == f32::NEG_INFINITY { 0.0 } else { top };
    let rescale = exp_nonpositive(*most - base);
    *most = top;
    for (score, sum) in scores.iter_mut().zip(sum) {
        *score = exp_nonpositive(*score - base);
        *sum = *sum * rescale + *score;
    }
    rescale
}

/// `sums[row][column] = sums[row][column] · rescale[row] + Σ_key p[row][key] · values[key][column]`. `ahead` is called once for each key.
#[inline(always)]
fn add_values<S: Simd, E: Element, const R: usize, const COLUMNS: usize>(
    simd: S,
    p: &[[f32; BLOCK]; R],
    values: &[&[E]; BLOCK],
    rescale: &[f32; R],
    sums: &mut [f32],
    ahead: impl Fn(usize),
) {
    let columns = sums.len() / R;
    let wide = COLUMNS * S::F32_LANES;
    let mut column = 0;
    while column + wide <= columns {
        add_columns::<S, E, R, COLUMNS>(simd, p, values, rescale, sums, column, |j| {
            if column == 0 {
                ahead(j);
            }
        });
        column += wide;
    }
    while column < columns {
        add_columns::<S, E, R, 1>(simd, p, values, rescale, sums, column, |_| ());
        column += S::F32_LANES;
    }
}

#[inline(always)]
fn add_columns<S: Simd, E: Element, const R: usize, const COLUMNS: usize>(
    simd: S,
    p: &[[f32; BLOCK]; R],
    values: &[&[E]; BLOCK],
    rescale: &[f32; R],
    sums: &mut [f32],
    column: usize,
    ahead: impl Fn(usize),
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
        ahead(j);
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
