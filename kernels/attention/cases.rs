//! Cases of the attention ops: the fixed ones of the gate, and strategies for random ones.
//!
//! Queries are uniform in [−3, 3), keys and values in [−1, 1): with the scale 1/√d scores have a standard deviation of 1, so that no key
//! decides alone and a lost one shows.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use ropeway_core::DType;
use ropeway_core::spec::{DataClass, Fill, Random, Recipe, Special, patched, seed_of, uniform};
use serde_json::{Map, Value};

use DType::{BF16, F16, F32};

mod ragged;
mod rectangular;
mod strategy;

pub(super) use ragged::{attention_paged, attention_varlen};
pub(super) use rectangular::attention;
pub(super) use strategy::{
    attention_paged_strategy, attention_strategy, attention_varlen_strategy,
};

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

/// NaN in the first three of every d + 3 elements.
fn gaps(fill: Fill, d: u64) -> Fill {
    Fill::Poisoned {
        base: Box::new(fill),
        period: d + 3,
        begin: 0,
        end: 3,
    }
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
        seed: seed_of(name),
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
        seed: seed_of(name),
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
