//! Cases of the attention ops: the fixed ones of the gate, and strategies for random ones.
//!
//! Queries are uniform in [−3, 3), keys and values in [−1, 1): with the scale 1/√d scores have a standard deviation of 1, so that no key
//! decides alone and a lost one shows.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use ropeway_core::DType;
use ropeway_core::spec::{DataClass, Fill, Random, Recipe, Special};
use serde_json::{Map, Value};

use DType::{BF16, F16, F32};

/// How queries, keys and values lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Storage {
    /// As the op names the axes, without gaps.
    Plain,
    /// [batch, seq, heads, d], as projections leave them.
    TokensFirst,
    /// Keys and values alternate: [batch, seq, 2, kv_heads, d].
    Interleaved,
    /// The values are the first dv elements of the keys (multi-head latent attention).
    ValuesInKeys,
    /// Rows have gaps of three elements, which hold NaN.
    Padded,
    /// All sequences share the keys and values of one (stride 0).
    Shared,
    /// [batch, heads, d, seq]: the innermost stride is not 1.
    Transposed,
}

/// What a case says besides its shapes.
#[derive(Clone, Debug)]
struct Options {
    data: DataClass,
    dtype: DType,
    /// Of q, k and v.
    fills: [Fill; 3],
    sinks: Option<Fill>,
    slopes: Option<Fill>,
    attrs: Map<String, Value>,
}

impl Options {
    fn new(dtype: DType) -> Options {
        Options {
            data: DataClass::Random,
            dtype,
            fills: [3.0, 1.0, 1.0].map(|scale| Fill::Uniform { scale }),
            sinks: None,
            slopes: None,
            attrs: Map::new(),
        }
    }

    fn finish(&self, mut recipe: Recipe, heads: u64) -> Recipe {
        for (name, fill) in [("sinks", &self.sinks), ("alibi_slopes", &self.slopes)] {
            if let Some(fill) = fill {
                recipe = recipe.tensor(name, F32, &[heads], fill.clone());
            }
        }
        recipe.attrs = self.attrs.clone();
        recipe
    }
}

/// The slopes of the ALiBi paper, 2^(−8 (h + 1) / heads), to the nearest 1/1024: the same numbers on every platform.
fn alibi(heads: u64) -> Fill {
    let slope = |h| 2f64.powf(-8.0 * (h + 1) as f64 / heads.max(1) as f64);
    let rounded = |h| (slope(h) * 1024.0).round() / 1024.0;
    Fill::Values((0..heads.max(1)).map(rounded).collect())
}

/// A seed that follows from a name for ever (FNV-1a).
fn seed(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// `base` with values replaced by `special`.
fn patched(base: Fill, positions: impl IntoIterator<Item = u64>, special: Special) -> Fill {
    let patches = positions.into_iter().map(|at| (at, special)).collect();
    let base = Box::new(base);
    Fill::Patched { base, patches }
}

/// NaN in the first three of every d + 3 elements.
fn gaps(fill: Fill, d: u64) -> Fill {
    Fill::Poisoned {
        base: Box::new(fill),
        period: d + 3,
        begin: 0,
        end: 3,
    }
}

fn uniform(scale: f64) -> Fill {
    Fill::Uniform { scale }
}

/// A case of `attention`.
#[derive(Clone, Debug)]
struct Case {
    name: String,
    seed: u64,
    batch: u64,
    heads: u64,
    kv_heads: u64,
    q_len: u64,
    kv_len: u64,
    d: u64,
    dv: u64,
    storage: Storage,
    mask: Option<(Vec<u64>, Fill)>,
    kv_lens: Option<Vec<u64>>,
    options: Options,
}

/// Sizes are [batch, heads, kv_heads], [q_len, kv_len], [d, dv].
fn case(name: &str, dtype: DType, heads: [u64; 3], lens: [u64; 2], size: [u64; 2]) -> Case {
    Case {
        name: name.into(),
        seed: seed(name),
        batch: heads[0],
        heads: heads[1],
        kv_heads: heads[2],
        q_len: lens[0],
        kv_len: lens[1],
        d: size[0],
        dv: size[1],
        storage: Storage::Plain,
        mask: None,
        kv_lens: None,
        options: Options::new(dtype),
    }
}

/// The attributes and options that all cases share.
macro_rules! with_options {
    ($($case:ty),*) => {$(
        impl $case {
            fn attr(mut self, name: &str, value: impl Into<Value>) -> Self {
                self.options.attrs.insert(name.into(), value.into());
                self
            }

            fn causal(self) -> Self {
                self.attr("causal", true)
            }

            fn lse(self) -> Self {
                self.attr("return_lse", true)
            }

            fn sinks(mut self, fill: Fill) -> Self {
                self.options.sinks = Some(fill);
                self
            }

            fn alibi(mut self) -> Self {
                self.options.slopes = Some(alibi(self.heads));
                self
            }

            fn storage(mut self, storage: Storage) -> Self {
                self.storage = storage;
                self
            }

            fn fills(mut self, q: Fill, k: Fill, v: Fill) -> Self {
                self.options.fills = [q, k, v];
                self
            }

            /// Not independent or not zero-mean.
            fn adversarial(mut self) -> Self {
                self.options.data = DataClass::Adversarial;
                self
            }
        }
    )*};
}

with_options!(Case, RaggedCase);

impl Case {
    fn mask(mut self, shape: &[u64], fill: Fill) -> Case {
        self.mask = Some((shape.into(), fill));
        self
    }

    fn kv_lens(mut self, kv_lens: &[u64]) -> Case {
        self.kv_lens = Some(kv_lens.into());
        self
    }

    fn recipe(self) -> Recipe {
        let Case { batch, q_len, .. } = self;
        let mut recipe = Recipe::new("attention", &self.name, self.options.data, self.seed);
        let [q, k, v] = &self.options.fills;
        let rows = [
            ("q", self.heads, q_len, self.d, q),
            ("k", self.kv_heads, self.kv_len, self.d, k),
            ("v", self.kv_heads, self.kv_len, self.dv, v),
        ];
        for (name, heads, len, d, fill) in rows {
            recipe = self.operand(recipe, name, [batch, heads, len, d], fill.clone());
        }
        if let Some((shape, fill)) = &self.mask {
            recipe = recipe.tensor("mask", F32, shape, fill.clone());
        }
        if let Some(kv_lens) = &self.kv_lens {
            let lens = kv_lens.iter().map(|&len| len as f64).collect();
            recipe = recipe.tensor("kv_lens", DType::I32, &[batch], Fill::Values(lens));
        }
        self.options.finish(recipe, self.heads)
    }

    /// Adds q, k or v, of `shape` [batch, heads, len, d].
    fn operand(&self, recipe: Recipe, name: &str, shape: [u64; 4], fill: Fill) -> Recipe {
        let [batch, heads, len, d] = shape;
        let dtype = self.options.dtype;
        let stored = format!("{name}_stored");
        let plain = |recipe: Recipe, fill| recipe.tensor(name, dtype, &shape, fill);
        match self.storage {
            Storage::Plain => plain(recipe, fill),
            Storage::TokensFirst => recipe
                .tensor(&stored, dtype, &[batch, len, heads, d], fill)
                .view(
                    name,
                    &stored,
                    &shape,
                    &[len * heads * d, d, heads * d, 1],
                    0,
                ),
            // Each row begins with three elements that are never read.
            Storage::Padded => {
                let strides = [heads * len * (d + 3), len * (d + 3), d + 3, 1];
                let offset = if batch * heads * len == 0 { 0 } else { 3 };
                recipe
                    .tensor(&stored, dtype, &[batch, heads, len, d + 3], gaps(fill, d))
                    .view(name, &stored, &shape, &strides, offset)
            }
            Storage::Transposed => {
                let strides = [heads * len * d, len * d, 1, len];
                recipe
                    .tensor(&stored, dtype, &[batch, heads, d, len], fill)
                    .view(name, &stored, &shape, &strides, 0)
            }
            Storage::Shared if name == "q" => plain(recipe, fill),
            Storage::Shared => recipe
                .tensor(&stored, dtype, &[1, heads, len, d], fill)
                .view(name, &stored, &shape, &[0, len * d, d, 1], 0),
            Storage::Interleaved if name == "q" => plain(recipe, fill),
            Storage::Interleaved => {
                let row = heads * (self.d + self.dv);
                let strides = [len * row, d, row, 1];
                let offset = if name == "v" { heads * self.d } else { 0 };
                let recipe = match name {
                    "k" => recipe.tensor("kv_stored", dtype, &[batch, len, row], fill),
                    _ => recipe,
                };
                let offset = offset.min(batch * len * row);
                recipe.view(name, "kv_stored", &shape, &strides, offset)
            }
            Storage::ValuesInKeys if name == "q" => plain(recipe, fill),
            Storage::ValuesInKeys => {
                let strides = [heads * len * self.d, len * self.d, self.d, 1];
                let recipe = match name {
                    "k" => recipe.tensor("latent", dtype, &shape, fill),
                    _ => recipe,
                };
                recipe.view(name, "latent", &shape, &strides, 0)
            }
        }
    }
}

/// The fixed cases of `attention`.
pub(super) fn attention() -> Vec<Recipe> {
    use Special::{Infinity, Nan, NegativeInfinity, Number};
    use Storage::{Interleaved, Padded, Shared, TokensFirst, Transposed, ValuesInKeys};
    let hidden =
        |base: Fill, positions: &[u64]| patched(base, positions.iter().copied(), NegativeInfinity);
    let zeros = Fill::Constant(0.0);
    [
        // Head sizes and dtypes.
        case("one_of_everything", F32, [1, 1, 1], [1, 1], [1, 1]).lse(),
        case("d1_f32", F32, [2, 3, 3], [7, 11], [1, 1]),
        case("d5_f32", F32, [2, 3, 3], [7, 11], [5, 5]),
        case("d5_f16", F16, [1, 2, 2], [9, 17], [5, 3]),
        case("d64_f32", F32, [2, 4, 4], [16, 16], [64, 64]),
        case("d64_f16", F16, [1, 4, 4], [33, 65], [64, 64]),
        case("d64_bf16", BF16, [1, 4, 4], [33, 65], [64, 64]),
        case("d80_f32", F32, [1, 2, 2], [17, 40], [80, 80]),
        case("d96_bf16", BF16, [1, 2, 2], [15, 31], [96, 96]),
        case("d128_f32", F32, [1, 4, 4], [32, 96], [128, 128]),
        case("d128_f16", F16, [1, 4, 1], [31, 129], [128, 128]),
        case("d192_dv128_bf16", BF16, [1, 3, 3], [13, 47], [192, 128]),
        case("d256_f32", F32, [1, 2, 2], [9, 70], [256, 256]),
        case("mla_d576_dv512_f32", F32, [1, 6, 1], [3, 50], [576, 512]),
        // Heads.
        case("gqa_8_to_2_f32", F32, [2, 8, 2], [10, 21], [64, 64]),
        case("mqa_6_to_1_f16", F16, [2, 6, 1], [10, 21], [64, 64]),
        case("gqa_odd_15_to_5_f32", F32, [1, 15, 5], [6, 13], [32, 48]),
        // Causality and windows.
        case("causal_square_f32", F32, [1, 2, 2], [33, 33], [64, 64])
            .causal()
            .lse(),
        case(
            "causal_fewer_queries_f32",
            F32,
            [1, 2, 1],
            [5, 37],
            [64, 64],
        )
        .causal(),
        case("causal_more_queries_f32", F32, [1, 2, 1], [37, 5], [64, 64])
            .causal()
            .lse(),
        case("causal_long_bf16", BF16, [1, 2, 1], [130, 130], [64, 64]).causal(),
        case("window_1_f32", F32, [1, 2, 2], [12, 20], [16, 16])
            .causal()
            .attr("window", 1),
        case("window_7_f32", F32, [1, 2, 2], [40, 40], [32, 32])
            .causal()
            .attr("window", 7)
            .lse(),
        case("window_16_decode_f16", F16, [2, 4, 2], [1, 200], [64, 64])
            .causal()
            .attr("window", 16),
        case(
            "window_larger_than_all_f32",
            F32,
            [1, 2, 2],
            [9, 12],
            [32, 32],
        )
        .causal()
        .attr("window", 1_000_000_007u64),
        case(
            "window_more_queries_f32",
            F32,
            [1, 1, 1],
            [30, 11],
            [32, 32],
        )
        .causal()
        .attr("window", 4),
        // What changes the scores.
        case("scale_f32", F32, [1, 2, 2], [9, 19], [64, 64]).attr("scale", 0.3),
        case("scale_zero_f32", F32, [1, 2, 2], [9, 19], [64, 64])
            .attr("scale", 0)
            .lse(),
        case("softcap_f32", F32, [1, 2, 2], [14, 30], [64, 64])
            .attr("softcap", 5.0)
            .attr("scale", 1.0)
            .lse(),
        case("softcap_50_bf16", BF16, [1, 4, 2], [14, 30], [128, 128])
            .attr("softcap", 50)
            .causal(),
        case("sinks_f32", F32, [2, 4, 2], [9, 19], [64, 64])
            .sinks(uniform(4.0))
            .lse(),
        case(
            "sinks_causal_more_queries_f32",
            F32,
            [1, 4, 2],
            [19, 9],
            [64, 64],
        )
        .sinks(uniform(4.0))
        .causal()
        .lse(),
        case("sink_over_all_f32", F32, [1, 2, 2], [5, 9], [64, 64])
            .sinks(Fill::Values(vec![120.0, -120.0]))
            .lse()
            .adversarial(),
        case("alibi_f32", F32, [2, 8, 8], [17, 40], [64, 64])
            .alibi()
            .causal(),
        case("alibi_not_causal_f16", F16, [1, 4, 2], [17, 29], [64, 64])
            .alibi()
            .lse(),
        case("all_attributes_bf16", BF16, [2, 4, 2], [21, 45], [64, 64])
            .causal()
            .attr("window", 19)
            .attr("softcap", 30)
            .attr("scale", 0.2)
            .sinks(uniform(2.0))
            .alibi()
            .mask(&[2, 1, 21, 45], uniform(1.0))
            .kv_lens(&[45, 24])
            .lse(),
        // Masks of every broadcast form.
        case("mask_full_f32", F32, [2, 2, 1], [9, 13], [32, 32]).mask(&[2, 2, 9, 13], uniform(3.0)),
        case("mask_per_key_f32", F32, [2, 2, 1], [9, 13], [32, 32]).mask(&[13], uniform(3.0)),
        case("mask_per_query_f32", F32, [2, 2, 1], [9, 13], [32, 32])
            .mask(&[9, 1], uniform(3.0))
            .lse(),
        case("mask_per_head_f32", F32, [2, 2, 1], [9, 13], [32, 32])
            .mask(&[2, 1, 1], uniform(3.0))
            .lse(),
        case("mask_per_batch_f16", F16, [2, 2, 1], [9, 13], [32, 32])
            .mask(&[2, 1, 1, 13], uniform(3.0)),
        case("mask_scalar_f32", F32, [2, 2, 1], [9, 13], [32, 32])
            .mask(&[], uniform(3.0))
            .lse(),
        case("mask_hides_keys_f32", F32, [1, 2, 2], [5, 40], [32, 32]).mask(
            &[5, 40],
            hidden(
                zeros.clone(),
                &[0, 1, 2, 40, 41, 79, 83, 100, 125, 160, 199],
            ),
        ),
        case("mask_hides_rows_f32", F32, [1, 2, 2], [4, 6], [32, 32])
            .mask(
                &[4, 6],
                hidden(uniform(1.0), &(6..12).chain(18..24).collect::<Vec<_>>()),
            )
            .lse(),
        case(
            "mask_hides_rows_with_sink_f16",
            F16,
            [1, 2, 2],
            [4, 6],
            [32, 32],
        )
        .mask(&[4, 6], hidden(uniform(1.0), &(6..12).collect::<Vec<_>>()))
        .sinks(uniform(2.0))
        .lse(),
        case(
            "mask_large_and_finite_f32",
            F32,
            [1, 2, 2],
            [4, 30],
            [32, 32],
        )
        .mask(&[30], patched(zeros.clone(), 10..20, Number(-1e9)))
        .adversarial(),
        // Lengths.
        case("kv_lens_f32", F32, [4, 2, 1], [3, 50], [64, 64])
            .kv_lens(&[50, 0, 1, 33])
            .lse(),
        case("kv_lens_causal_bf16", BF16, [3, 4, 2], [6, 50], [64, 64])
            .kv_lens(&[4, 50, 17])
            .causal(),
        case(
            "kv_lens_never_reads_past_f32",
            F32,
            [2, 2, 2],
            [3, 8],
            [16, 16],
        )
        .fills(
            uniform(3.0),
            patched(uniform(1.0), (5 * 16..8 * 16).chain(13 * 16..16 * 16), Nan),
            patched(uniform(1.0), (5 * 16..8 * 16).chain(13 * 16..16 * 16), Nan),
        )
        .kv_lens(&[5, 0])
        .lse()
        .adversarial(),
        // Decoding.
        case("decode_f32", F32, [1, 4, 4], [1, 777], [64, 64]).lse(),
        case("decode_gqa_bf16", BF16, [2, 8, 2], [1, 513], [128, 128])
            .kv_lens(&[513, 300])
            .causal(),
        case("decode_gqa_f16", F16, [3, 8, 2], [1, 257], [64, 64])
            .kv_lens(&[1, 257, 0])
            .lse(),
        case("decode_long_f32", F32, [1, 2, 1], [1, 5000], [64, 64]).lse(),
        case("decode_mla_bf16", BF16, [1, 16, 1], [1, 130], [576, 512]).storage(ValuesInKeys),
        case("speculative_f32", F32, [2, 4, 2], [4, 129], [64, 64])
            .causal()
            .lse(),
        // Views.
        case("tokens_first_f32", F32, [2, 4, 2], [13, 27], [64, 64])
            .storage(TokensFirst)
            .lse(),
        case(
            "tokens_first_causal_bf16",
            BF16,
            [2, 4, 2],
            [27, 27],
            [64, 64],
        )
        .storage(TokensFirst)
        .causal(),
        case("interleaved_f16", F16, [2, 4, 2], [5, 27], [64, 64]).storage(Interleaved),
        case("interleaved_unequal_f32", F32, [2, 4, 2], [5, 27], [48, 40]).storage(Interleaved),
        case("values_in_keys_f32", F32, [2, 4, 1], [5, 27], [96, 64]).storage(ValuesInKeys),
        case("padded_f32", F32, [2, 2, 2], [5, 27], [33, 17]).storage(Padded),
        case("shared_keys_f32", F32, [3, 2, 1], [5, 27], [64, 64]).storage(Shared),
        case("transposed_f32", F32, [1, 2, 2], [5, 12], [16, 16]).storage(Transposed),
        // Scores that overflow a softmax without its maximum, and one key that takes all.
        case("large_scores_f32", F32, [1, 2, 2], [9, 33], [64, 64])
            .fills(uniform(100.0), uniform(10.0), uniform(1.0))
            .lse(),
        case("large_scores_f16", F16, [1, 2, 2], [9, 33], [64, 64]).fills(
            uniform(50.0),
            uniform(10.0),
            uniform(1.0),
        ),
        case("ascending_scores_f32", F32, [1, 1, 1], [2, 300], [1, 2])
            .fills(
                Fill::Constant(1.0),
                Fill::Values((0..300).map(|j| f64::from(j) / 2.0).collect()),
                uniform(1.0),
            )
            .lse()
            .adversarial(),
        case("descending_scores_f32", F32, [1, 1, 1], [2, 300], [1, 2])
            .fills(
                Fill::Constant(1.0),
                Fill::Values((0..300).map(|j| -f64::from(j) / 2.0).collect()),
                uniform(1.0),
            )
            .lse()
            .adversarial(),
        case("equal_scores_f32", F32, [1, 2, 2], [3, 64], [16, 16])
            .fills(zeros.clone(), uniform(1.0), uniform(1.0))
            .lse()
            .adversarial(),
        // Ones weighed by anything are ones.
        case("values_of_one_bf16", BF16, [1, 2, 2], [9, 100], [64, 64])
            .fills(uniform(3.0), uniform(1.0), Fill::Constant(1.0))
            .adversarial(),
        // NaN and infinity.
        case("nan_query_f32", F32, [1, 2, 1], [5, 9], [16, 16])
            .fills(patched(uniform(3.0), [35], Nan), uniform(1.0), uniform(1.0))
            .lse()
            .adversarial(),
        case("nan_key_f16", F16, [2, 2, 1], [5, 9], [16, 16])
            .fills(
                uniform(3.0),
                patched(uniform(1.0), [100], Nan),
                uniform(1.0),
            )
            .lse()
            .adversarial(),
        case("nan_value_bf16", BF16, [2, 2, 1], [5, 9], [16, 16])
            .fills(
                uniform(3.0),
                uniform(1.0),
                patched(uniform(1.0), [100], Nan),
            )
            .lse()
            .adversarial(),
        case(
            "nan_value_of_last_key_causal_f32",
            F32,
            [1, 1, 1],
            [5, 9],
            [16, 16],
        )
        .fills(
            uniform(3.0),
            uniform(1.0),
            patched(uniform(1.0), [8 * 16 + 3], Nan),
        )
        .causal()
        .adversarial(),
        case("infinite_values_f32", F32, [1, 1, 1], [3, 40], [8, 8])
            .fills(
                uniform(3.0),
                uniform(1.0),
                patched(uniform(1.0), [9, 20, 200], Infinity),
            )
            .adversarial(),
        case("infinite_query_f32", F32, [1, 1, 1], [3, 6], [8, 8])
            .fills(
                patched(uniform(3.0), [9], Infinity),
                uniform(1.0),
                uniform(1.0),
            )
            .adversarial(),
        case("nan_mask_f32", F32, [1, 2, 2], [3, 6], [8, 8])
            .mask(&[3, 6], patched(uniform(1.0), [7], Nan))
            .lse()
            .adversarial(),
        // Row 1 of each head is hidden wholly, and its query NaN: nothing reads it.
        case(
            "nan_query_that_sees_no_key_f32",
            F32,
            [1, 2, 2],
            [3, 6],
            [8, 8],
        )
        .fills(
            patched(uniform(3.0), (8..16).chain(32..40), Nan),
            uniform(1.0),
            uniform(1.0),
        )
        .mask(&[3, 6], hidden(uniform(1.0), &[6, 7, 8, 9, 10, 11]))
        .lse()
        .adversarial(),
        case("nan_sink_f32", F32, [1, 2, 2], [3, 6], [8, 8])
            .sinks(patched(uniform(1.0), [1], Nan))
            .lse()
            .adversarial(),
        // Zero sizes.
        case("no_batch_f32", F32, [0, 2, 1], [3, 4], [8, 8]).lse(),
        case("no_queries_f16", F16, [2, 2, 1], [0, 4], [8, 8]).lse(),
        case("no_keys_f32", F32, [2, 2, 1], [3, 0], [8, 8]).lse(),
        case("no_keys_with_sink_bf16", BF16, [1, 2, 1], [3, 0], [8, 8])
            .sinks(uniform(1.0))
            .lse(),
        case("no_heads_f32", F32, [2, 0, 1], [3, 4], [8, 8]).lse(),
        case("no_value_elements_f32", F32, [1, 2, 1], [3, 4], [8, 0]).lse(),
    ]
    .map(Case::recipe)
    .to_vec()
}

/// A case of `attention_varlen`, or of `attention_paged` if it has a block size.
#[derive(Clone, Debug)]
struct RaggedCase {
    name: String,
    seed: u64,
    heads: u64,
    kv_heads: u64,
    d: u64,
    dv: u64,
    q_lens: Vec<u64>,
    kv_lens: Vec<u64>,
    block_size: Option<u64>,
    storage: Storage,
    options: Options,
}

/// Sizes are [heads, kv_heads], [d, dv]; the lengths are those of the sequences.
fn varlen(
    name: &str,
    dtype: DType,
    heads: [u64; 2],
    size: [u64; 2],
    q_lens: &[u64],
    kv_lens: &[u64],
) -> RaggedCase {
    RaggedCase {
        name: name.into(),
        seed: seed(name),
        heads: heads[0],
        kv_heads: heads[1],
        d: size[0],
        dv: size[1],
        q_lens: q_lens.into(),
        kv_lens: kv_lens.into(),
        block_size: None,
        storage: Storage::Plain,
        options: Options::new(dtype),
    }
}

impl RaggedCase {
    fn blocks_of(mut self, block_size: u64) -> RaggedCase {
        self.block_size = Some(block_size);
        self
    }

    fn recipe(self) -> Recipe {
        let op = match self.block_size {
            None => "attention_varlen",
            Some(_) => "attention_paged",
        };
        let mut recipe = Recipe::new(op, &self.name, self.options.data, self.seed);
        let tokens = self.q_lens.iter().sum();
        let [q, ..] = &self.options.fills;
        recipe = self.operand(recipe, "q", [tokens, 1, self.heads, self.d], q.clone());
        recipe = recipe.tensor(
            "cu_q",
            DType::I32,
            &[self.q_lens.len() as u64 + 1],
            offsets(&self.q_lens),
        );
        recipe = match self.block_size {
            None => self.laid_end_to_end(recipe),
            Some(block_size) => self.paged(recipe, block_size),
        };
        self.options.finish(recipe, self.heads)
    }

    fn laid_end_to_end(&self, recipe: Recipe) -> Recipe {
        let kv_tokens = self.kv_lens.iter().sum();
        let [_, k, v] = &self.options.fills;
        let recipe = self.operand(
            recipe,
            "k",
            [kv_tokens, 1, self.kv_heads, self.d],
            k.clone(),
        );
        let recipe = self.operand(
            recipe,
            "v",
            [kv_tokens, 1, self.kv_heads, self.dv],
            v.clone(),
        );
        let shape = [self.kv_lens.len() as u64 + 1];
        recipe.tensor("cu_kv", DType::I32, &shape, offsets(&self.kv_lens))
    }

    /// Blocks lie in any order, some belong to nobody, and the table's unused entries are −1.
    fn paged(&self, recipe: Recipe, block_size: u64) -> Recipe {
        let used: Vec<u64> = self
            .kv_lens
            .iter()
            .map(|len| len.div_ceil(block_size))
            .collect();
        let batch = used.len() as u64;
        let blocks = used.iter().sum::<u64>() + 2;
        let max_blocks = used.iter().copied().max().unwrap_or(0) + self.seed % 2;
        let mut free: Vec<u64> = (0..blocks).collect();
        let mut random = Random::new(self.seed);
        let mut table = Vec::new();
        for used in used {
            for entry in 0..max_blocks {
                table.push(match entry < used {
                    true => free.swap_remove(random.below(free.len() as u64) as usize) as f64,
                    false => -1.0,
                });
            }
        }
        if table.is_empty() {
            table.push(-1.0);
        }
        let lens = match self.kv_lens.is_empty() {
            true => vec![0.0],
            false => self.kv_lens.iter().map(|&len| len as f64).collect(),
        };
        let [_, k, v] = &self.options.fills;
        let keys = [blocks, block_size, self.kv_heads, self.d];
        let values = [blocks, block_size, self.kv_heads, self.dv];
        let recipe = self.operand(recipe, "k_cache", keys, k.clone());
        self.operand(recipe, "v_cache", values, v.clone())
            .tensor(
                "block_table",
                DType::I32,
                &[batch, max_blocks],
                Fill::Values(table),
            )
            .tensor("kv_lens", DType::I32, &[batch], Fill::Values(lens))
    }

    /// Adds q, k, v or a cache, of `shape` [rows or blocks, rows a block, heads, d].
    fn operand(&self, recipe: Recipe, name: &str, shape: [u64; 4], fill: Fill) -> Recipe {
        let [blocks, size, heads, d] = shape;
        let (dtype, stored) = (self.options.dtype, format!("{name}_stored"));
        // Only a cache has blocks.
        let axes = |all: [u64; 4]| match name.ends_with("_cache") {
            true => all.to_vec(),
            false => vec![all[0], all[2], all[3]],
        };
        match self.storage {
            Storage::Padded => {
                let row = heads * (d + 3);
                recipe
                    .tensor(&stored, dtype, &[blocks, size, heads, d + 3], gaps(fill, d))
                    .view(
                        name,
                        &stored,
                        &axes(shape),
                        &axes([size * row, row, d + 3, 1]),
                        if blocks * size * heads == 0 { 0 } else { 3 },
                    )
            }
            // [blocks, kv_heads, block_size, d], or [heads, tokens, d].
            Storage::Transposed if name.ends_with("_cache") => {
                let strides = [heads * size * d, d, size * d, 1];
                recipe
                    .tensor(&stored, dtype, &[blocks, heads, size, d], fill)
                    .view(name, &stored, &shape, &strides, 0)
            }
            Storage::Transposed => recipe
                .tensor(&stored, dtype, &[heads, blocks, d], fill)
                .view(name, &stored, &axes(shape), &[d, blocks * d, 1], 0),
            Storage::ValuesInKeys if name.starts_with('k') => {
                let row = heads * d;
                recipe.tensor("latent", dtype, &shape, fill).view(
                    name,
                    "latent",
                    &axes(shape),
                    &axes([size * row, row, d, 1]),
                    0,
                )
            }
            Storage::ValuesInKeys if name.starts_with('v') => {
                let row = heads * self.d;
                recipe.view(
                    name,
                    "latent",
                    &axes(shape),
                    &axes([size * row, row, self.d, 1]),
                    0,
                )
            }
            _ => recipe.tensor(name, dtype, &axes(shape), fill),
        }
    }
}

/// Offsets from 0: [0, a, a + b, …].
fn offsets(lens: &[u64]) -> Fill {
    let mut offsets = vec![0.0];
    for &len in lens {
        offsets.push(offsets[offsets.len() - 1] + len as f64);
    }
    Fill::Values(offsets)
}

/// The fixed cases of `attention_varlen`.
pub(super) fn attention_varlen() -> Vec<Recipe> {
    use Storage::{Padded, Transposed, ValuesInKeys};
    let poison = |from: u64, to: u64| patched(uniform(1.0), from..to, Special::Nan);
    [
        varlen("one_sequence_f32", F32, [4, 4], [64, 64], &[17], &[17]).lse(),
        varlen(
            "three_sequences_f32",
            F32,
            [4, 2],
            [64, 64],
            &[5, 1, 9],
            &[7, 12, 9],
        ),
        varlen(
            "causal_f32",
            F32,
            [4, 2],
            [64, 64],
            &[5, 30, 9],
            &[7, 30, 3],
        )
        .causal()
        .lse(),
        varlen(
            "causal_bf16",
            BF16,
            [4, 1],
            [128, 128],
            &[33, 1, 17],
            &[33, 65, 40],
        )
        .causal(),
        varlen("causal_f16", F16, [2, 2], [80, 80], &[16, 16], &[16, 31]).causal(),
        varlen(
            "empty_sequences_f32",
            F32,
            [2, 1],
            [32, 32],
            &[0, 4, 0, 3, 0],
            &[0, 0, 5, 6, 0],
        )
        .lse(),
        varlen(
            "decode_f16",
            F16,
            [8, 2],
            [64, 64],
            &[1, 1, 1, 1],
            &[100, 1, 0, 33],
        )
        .lse(),
        varlen(
            "prefill_and_decode_bf16",
            BF16,
            [8, 2],
            [64, 64],
            &[40, 1, 1, 7],
            &[40, 90, 3, 21],
        )
        .causal(),
        varlen("window_f32", F32, [2, 2], [32, 32], &[20, 6], &[20, 25])
            .causal()
            .attr("window", 5),
        varlen("sinks_f32", F32, [4, 2], [64, 64], &[6, 3], &[2, 9])
            .sinks(uniform(3.0))
            .causal()
            .lse(),
        varlen(
            "alibi_softcap_f32",
            F32,
            [4, 4],
            [64, 64],
            &[6, 11],
            &[12, 11],
        )
        .alibi()
        .attr("softcap", 10)
        .attr("scale", 0.5),
        varlen(
            "unequal_sizes_f32",
            F32,
            [3, 3],
            [192, 128],
            &[6, 11],
            &[12, 11],
        ),
        varlen("mla_bf16", BF16, [8, 1], [576, 512], &[1, 2], &[30, 21]).storage(ValuesInKeys),
        varlen("padded_f32", F32, [4, 2], [33, 17], &[6, 11], &[12, 11])
            .storage(Padded)
            .causal(),
        varlen(
            "heads_first_f32",
            F32,
            [4, 2],
            [32, 32],
            &[6, 11],
            &[12, 11],
        )
        .storage(Transposed),
        // A NaN stays within its sequence.
        varlen(
            "nan_in_one_sequence_f32",
            F32,
            [2, 1],
            [8, 8],
            &[3, 2, 3],
            &[4, 5, 6],
        )
        .fills(
            uniform(3.0),
            poison(4 * 8, 4 * 8 + 1),
            poison(9 * 8, 9 * 8 + 3),
        )
        .lse()
        .adversarial(),
        varlen("d1_f32", F32, [2, 1], [1, 1], &[3, 2, 3], &[4, 5, 6]).causal(),
        varlen("no_tokens_f32", F32, [2, 1], [8, 8], &[0, 0], &[3, 0]).lse(),
        varlen("no_keys_f32", F32, [2, 1], [8, 8], &[3, 1], &[0, 0]).lse(),
        varlen("no_sequences_f32", F32, [2, 1], [8, 8], &[], &[]).lse(),
    ]
    .map(RaggedCase::recipe)
    .to_vec()
}

/// The fixed cases of `attention_paged`.
pub(super) fn attention_paged() -> Vec<Recipe> {
    use Storage::{Padded, Transposed, ValuesInKeys};
    [
        varlen("one_sequence_f32", F32, [4, 4], [64, 64], &[5], &[20])
            .blocks_of(16)
            .lse(),
        varlen("blocks_of_1_f32", F32, [2, 1], [32, 32], &[2, 1], &[7, 5]).blocks_of(1),
        varlen(
            "blocks_of_33_f32",
            F32,
            [4, 2],
            [64, 64],
            &[1, 3],
            &[70, 33],
        )
        .blocks_of(33)
        .lse(),
        varlen(
            "decode_f32",
            F32,
            [4, 2],
            [64, 64],
            &[1, 1, 1],
            &[50, 1, 129],
        )
        .blocks_of(16)
        .causal(),
        varlen("decode_bf16", BF16, [8, 2], [128, 128], &[1, 1], &[257, 64])
            .blocks_of(16)
            .lse(),
        varlen(
            "decode_f16",
            F16,
            [8, 1],
            [64, 64],
            &[1, 1, 1, 1],
            &[0, 16, 17, 100],
        )
        .blocks_of(16)
        .lse(),
        varlen("prefill_f32", F32, [4, 2], [64, 64], &[33], &[33])
            .blocks_of(16)
            .causal(),
        varlen(
            "prefill_and_decode_bf16",
            BF16,
            [8, 2],
            [64, 64],
            &[20, 1, 1, 5],
            &[20, 90, 3, 48],
        )
        .blocks_of(16)
        .causal()
        .lse(),
        varlen(
            "more_queries_than_keys_f32",
            F32,
            [2, 1],
            [32, 32],
            &[9, 4],
            &[5, 0],
        )
        .blocks_of(4)
        .causal()
        .lse(),
        varlen(
            "empty_sequences_f32",
            F32,
            [2, 1],
            [32, 32],
            &[0, 3, 0],
            &[9, 0, 0],
        )
        .blocks_of(4)
        .lse(),
        varlen("window_f16", F16, [4, 2], [64, 64], &[1, 8], &[150, 60])
            .blocks_of(16)
            .causal()
            .attr("window", 20),
        varlen(
            "sinks_alibi_softcap_f32",
            F32,
            [4, 2],
            [64, 64],
            &[4, 1],
            &[30, 17],
        )
        .blocks_of(8)
        .causal()
        .alibi()
        .sinks(uniform(2.0))
        .attr("softcap", 20)
        .lse(),
        varlen("mla_f32", F32, [8, 1], [576, 512], &[1, 2], &[30, 21])
            .blocks_of(16)
            .storage(ValuesInKeys),
        varlen("padded_f32", F32, [4, 2], [33, 17], &[2, 1], &[12, 29])
            .blocks_of(5)
            .storage(Padded),
        varlen(
            "heads_first_cache_f32",
            F32,
            [4, 2],
            [32, 32],
            &[2, 1],
            &[12, 29],
        )
        .blocks_of(8)
        .storage(Transposed),
        varlen("d80_bf16", BF16, [2, 2], [80, 80], &[3, 1], &[40, 55])
            .blocks_of(16)
            .causal(),
        varlen("no_tokens_f32", F32, [2, 1], [8, 8], &[0, 0], &[3, 0])
            .blocks_of(2)
            .lse(),
        varlen("no_sequences_f32", F32, [2, 1], [8, 8], &[], &[])
            .blocks_of(2)
            .lse(),
    ]
    .map(RaggedCase::recipe)
    .into_iter()
    .chain([unreached_blocks_hold_nan()])
    .collect()
}

/// Blocks that no sequence reaches, and keys past the last of a block, are NaN and never read.
fn unreached_blocks_hold_nan() -> Recipe {
    let (heads, d, block_size) = (2, 8, 4);
    let row = heads * d;
    // Block 1 then 3 hold the seven keys; block 0, block 2 and the last key of block 3 are NaN.
    let unused = (0..4 * row)
        .chain(8 * row..12 * row)
        .chain(15 * row..16 * row);
    let fill = patched(uniform(1.0), unused, Special::Nan);
    let name = "unreached_blocks_hold_nan_f32";
    let table = Fill::Values(vec![1.0, 3.0, -1.0]);
    Recipe::new("attention_paged", name, DataClass::Adversarial, seed(name))
        .tensor("q", F32, &[2, heads, d], uniform(3.0))
        .tensor("cu_q", DType::I32, &[2], Fill::Values(vec![0.0, 2.0]))
        .tensor("k_cache", F32, &[4, block_size, heads, d], fill.clone())
        .tensor("v_cache", F32, &[4, block_size, heads, d], fill)
        .tensor("block_table", DType::I32, &[1, 3], table)
        .tensor("kv_lens", DType::I32, &[1], Fill::Constant(7.0))
        .attr("return_lse", true)
}

/// Options over all attributes, plain first. `keys` is about as many as there are.
fn options_strategy() -> impl Strategy<Value = (Options, bool, bool)> {
    let dtype = prop_oneof![4 => Just(F32), 2 => Just(F16), 2 => Just(BF16)];
    let causal = prop_oneof![
        Just((false, 0u64)),
        Just((true, 0)),
        (1u64..40).prop_map(|window| (true, window)),
    ];
    let softcap = option::weighted(0.2, select(vec![30.0, 50.0, 5.0, 1.0]));
    let scale = option::weighted(0.3, select(vec![1.0, 0.125, 0.3, 0.0, -0.25]));
    let magnitude = prop_oneof![4 => Just(3.0), 1 => Just(30.0)];
    let (sinks, alibi, lse) = (
        prop::bool::weighted(0.25),
        prop::bool::weighted(0.2),
        any::<bool>(),
    );
    (dtype, causal, softcap, scale, magnitude, sinks, alibi, lse).prop_map(
        |(dtype, (causal, window), softcap, scale, magnitude, sinks, alibi, lse)| {
            let mut options = Options::new(dtype);
            options.fills[0] = uniform(magnitude);
            let mut attr = |name: &str, value: Option<Value>| {
                value.map(|value| options.attrs.insert(name.into(), value))
            };
            attr("causal", causal.then(|| true.into()));
            attr("window", (window > 0).then(|| window.into()));
            attr("softcap", softcap.map(f64::into));
            attr("scale", scale.map(f64::into));
            attr("return_lse", lse.then(|| true.into()));
            (options, sinks, alibi)
        },
    )
}

/// (kv_heads, heads / kv_heads).
fn heads_strategy() -> impl Strategy<Value = (u64, u64)> {
    (1u64..=3, 1u64..=4)
}

/// (d, dv).
fn size_strategy() -> impl Strategy<Value = (u64, u64)> {
    let size = || prop_oneof![3 => 1u64..=20, 2 => select(vec![32u64, 64, 80, 96, 128])];
    prop_oneof![
        6 => size().prop_map(|d| (d, d)),
        2 => (size(), size()),
        1 => select(vec![(192, 128), (256, 256), (576, 512)]),
    ]
}

fn mask_strategy() -> impl Strategy<Value = Option<([bool; 4], usize, Vec<u64>)>> {
    let form = (any::<[bool; 4]>(), 0usize..=4, vec(0u64..4000, 0..24));
    option::weighted(0.35, form)
}

/// Random cases of `attention`.
pub(super) fn attention_strategy() -> BoxedStrategy<Recipe> {
    let batch = prop_oneof![1 => Just(0u64), 12 => Just(1), 12 => 2u64..=3];
    let lens = prop_oneof![
        1 => (0u64..=2, 0u64..=2),
        4 => (1u64..=20, 1u64..=60),
        2 => (Just(1u64), 1u64..=300),
    ];
    let storage = prop_oneof![
        4 => Just(Storage::Plain),
        2 => Just(Storage::TokensFirst),
        1 => Just(Storage::Interleaved),
        1 => Just(Storage::ValuesInKeys),
        1 => Just(Storage::Padded),
        1 => Just(Storage::Shared),
    ];
    let shape = (batch, heads_strategy(), lens, size_strategy());
    let kv_lens = option::weighted(0.3, vec(0u64..=64, 3));
    let seed = any::<u64>().no_shrink();
    (
        shape,
        storage,
        mask_strategy(),
        kv_lens,
        options_strategy(),
        seed,
    )
        .prop_map(
            |(shape, storage, mask, kv_lens, (options, sinks, alibi), seed)| {
                let (batch, (kv_heads, group), (q_len, kv_len), (d, dv)) = shape;
                let heads = kv_heads * group;
                let name = format!("b{batch}_h{heads}_{kv_heads}_q{q_len}_kv{kv_len}_d{d}_{dv}");
                let name = format!("{name}_{}", options.dtype.name().to_lowercase());
                let mut case = case(
                    &name,
                    options.dtype,
                    [batch, heads, kv_heads],
                    [q_len, kv_len],
                    [
                        d,
                        if storage == Storage::ValuesInKeys {
                            dv.min(d)
                        } else {
                            dv
                        },
                    ],
                );
                // The values' bytes are the keys': no longer independent of the scores.
                if storage == Storage::ValuesInKeys {
                    case = case.adversarial();
                }
                case.seed = seed;
                case.options = Options {
                    data: case.options.data,
                    ..options
                };
                if let Some((full, rank, hidden)) = mask {
                    let scores = [batch, heads, q_len, kv_len];
                    let extents = scores.iter().zip(full);
                    let shape: Vec<u64> = extents
                        .map(|(&extent, full)| if full { extent } else { 1 })
                        .skip(4 - rank)
                        .collect();
                    let elements = shape.iter().product::<u64>().max(1);
                    let hidden = hidden.into_iter().map(|at| at % elements);
                    let fill = patched(uniform(2.0), hidden, Special::NegativeInfinity);
                    case = case.mask(&shape, fill);
                }
                if let Some(parts) = kv_lens {
                    let lens = parts.iter().map(|part| (kv_len * part).div_ceil(64));
                    case.kv_lens = Some(lens.collect());
                }
                if sinks {
                    case = case.sinks(uniform(3.0));
                }
                if alibi {
                    case = case.alibi();
                }
                case.storage(storage).recipe()
            },
        )
        .boxed()
}

fn ragged_strategy(paged: bool) -> BoxedStrategy<Recipe> {
    let sequence = prop_oneof![
        1 => (0u64..=2, 0u64..=2),
        4 => (1u64..=16, 1u64..=40),
        3 => (Just(1u64), 1u64..=120),
    ];
    let storage = prop_oneof![
        4 => Just(Storage::Plain),
        1 => Just(Storage::Padded),
        1 => Just(Storage::Transposed),
        1 => Just(Storage::ValuesInKeys),
    ];
    let shape = (heads_strategy(), size_strategy(), vec(sequence, 0..=4));
    let block_size = prop_oneof![Just(16u64), 1u64..=9, Just(33)];
    let seed = any::<u64>().no_shrink();
    (shape, storage, block_size, options_strategy(), seed)
        .prop_map(move |(shape, storage, block_size, options, seed)| {
            let ((kv_heads, group), (d, dv), lens) = shape;
            let (options, sinks, alibi) = options;
            let heads = kv_heads * group;
            let (q_lens, kv_lens): (Vec<u64>, Vec<u64>) = lens.into_iter().unzip();
            let name = format!("n{}_h{heads}_{kv_heads}_d{d}_{dv}", q_lens.len());
            let name = format!("{name}_{}", options.dtype.name().to_lowercase());
            let in_keys = storage == Storage::ValuesInKeys;
            let size = [d, if in_keys { dv.min(d) } else { dv }];
            let dtype = options.dtype;
            let mut case = varlen(&name, dtype, [heads, kv_heads], size, &q_lens, &kv_lens);
            case.options = options;
            if in_keys {
                case = case.adversarial();
            }
            case.seed = seed;
            case.block_size = paged.then_some(block_size);
            if sinks {
                case = case.sinks(uniform(3.0));
            }
            if alibi {
                case = case.alibi();
            }
            case.storage(storage).recipe()
        })
        .boxed()
}

/// Random cases of `attention_varlen`.
pub(super) fn attention_varlen_strategy() -> BoxedStrategy<Recipe> {
    ragged_strategy(false)
}

/// Random cases of `attention_paged`.
pub(super) fn attention_paged_strategy() -> BoxedStrategy<Recipe> {
    ragged_strategy(true)
}
