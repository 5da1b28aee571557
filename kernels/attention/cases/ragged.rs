//! The fixed cases of `attention_varlen` and `attention_paged`.

use super::*;

/// The fixed cases of `attention_varlen`.
pub(in crate::attention) fn attention_varlen() -> Vec<Recipe> {
    use Storage::{Padded, Transposed, ValuesInKeys};
    let [queries, keys] = many_sequences();
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
        varlen("many_sequences_f16", F16, [4, 2], [64, 64], &queries, &keys)
            .causal()
            .lse(),
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
        varlen(
            "nan_in_one_sequence_f16",
            F16,
            [2, 1],
            [8, 8],
            &[30, 20, 33],
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

/// Queries and keys of more sequences than a warp has lanes, whose keys are split here and there.
fn many_sequences() -> [[u64; 70]; 2] {
    let queries = std::array::from_fn(|i| if i % 23 == 20 { 9 } else { (i % 5 != 3).into() });
    let keys = std::array::from_fn(|i| if i % 30 == 4 { 300 } else { i as u64 % 4 });
    [queries, keys]
}

/// The fixed cases of `attention_paged`.
pub(in crate::attention) fn attention_paged() -> Vec<Recipe> {
    use Storage::{Padded, Transposed, ValuesInKeys};
    let [queries, keys] = many_sequences();
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
        varlen(
            "long_beside_short_f16",
            F16,
            [8, 2],
            [64, 64],
            &[1, 40, 0, 3],
            &[600, 300, 9, 280],
        )
        .blocks_of(32)
        .causal()
        .lse(),
        varlen(
            "many_sequences_bf16",
            BF16,
            [4, 2],
            [64, 64],
            &queries,
            &keys,
        )
        .blocks_of(16)
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
        varlen(
            "latent_decode_bf16",
            BF16,
            [16, 1],
            [576, 512],
            &[1, 2, 1],
            &[130, 67, 0],
        )
        .blocks_of(64)
        .storage(ValuesInKeys)
        .causal()
        .lse(),
        varlen(
            "latent_values_apart_f16",
            F16,
            [4, 2],
            [576, 512],
            &[3, 1],
            &[30, 75],
        )
        .blocks_of(16)
        .causal(),
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
    .chain([
        unreached_blocks_hold_nan(F32, 4),
        unreached_blocks_hold_nan(F16, 8),
    ])
    .collect()
}

/// Blocks that no sequence reaches, and keys past the last of a block, are NaN and never read.
fn unreached_blocks_hold_nan(dtype: DType, block_size: u64) -> Recipe {
    let (heads, d, keys) = (2, 8, 2 * block_size - 1);
    let row = heads * d;
    // Block 1 then 3 hold the keys; block 0, block 2 and the last key of block 3 are NaN.
    let block = block_size * row;
    let unused = (0..block)
        .chain(2 * block..3 * block)
        .chain(4 * block - row..4 * block);
    let fill = patched(uniform(1.0), unused, Special::Nan);
    let (name, tokens) = match dtype {
        F32 => ("unreached_blocks_hold_nan_f32", 2),
        // More than kernels for few rows take.
        _ => ("unreached_blocks_hold_nan_f16", 20),
    };
    let table = Fill::Values(vec![1.0, 3.0, -1.0]);
    Recipe::new(
        "attention_paged",
        name,
        DataClass::Adversarial,
        seed_of(name),
    )
    .tensor("q", dtype, &[tokens, heads, d], uniform(3.0))
    .tensor(
        "cu_q",
        DType::I32,
        &[2],
        Fill::Values(vec![0.0, tokens as f64]),
    )
    .tensor("k_cache", dtype, &[4, block_size, heads, d], fill.clone())
    .tensor("v_cache", dtype, &[4, block_size, heads, d], fill)
    .tensor("block_table", DType::I32, &[1, 3], table)
    .tensor("kv_lens", DType::I32, &[1], Fill::Constant(keys as f64))
    .attr("return_lse", true)
}
