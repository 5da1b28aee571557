//! The fixed cases of `attention`.

use super::*;

/// The fixed cases of `attention`.
pub(in crate::attention) fn attention() -> Vec<Recipe> {
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
        case("d256_f16", F16, [1, 4, 2], [9, 70], [256, 256]).causal(),
        case("d80_dv64_f16", F16, [1, 2, 2], [17, 40], [80, 64]).lse(),
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
        case("causal_tiles_f16", F16, [1, 2, 1], [150, 300], [64, 64])
            .causal()
            .lse(),
        case("window_tiles_bf16", BF16, [1, 1, 1], [140, 300], [128, 128])
            .causal()
            .attr("window", 70),
        case(
            "splits_of_many_rows_f16",
            F16,
            [1, 8, 2],
            [20, 600],
            [64, 64],
        )
        .kv_lens(&[590])
        .lse(),
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
        // Nothing hides a key, and lines are whole: what else orders work between bias and softmax is not there.
        case("alibi_whole_lines_f32", F32, [1, 4, 2], [3, 128], [64, 64]).alibi(),
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
        // Tiles of many keys end beyond those that there are.
        case(
            "absent_keys_hold_nan_f16",
            F16,
            [2, 2, 1],
            [40, 200],
            [16, 16],
        )
        .fills(
            uniform(3.0),
            patched(uniform(1.0), 50 * 16..200 * 16, Nan),
            patched(uniform(1.0), 50 * 16..200 * 16, Nan),
        )
        .kv_lens(&[50, 200])
        .lse(),
        case("decode_gqa_f16", F16, [3, 8, 2], [1, 257], [64, 64])
            .kv_lens(&[1, 257, 0])
            .lse(),
        case("decode_long_f32", F32, [1, 2, 1], [1, 5000], [64, 64]).lse(),
        case("decode_mla_bf16", BF16, [1, 16, 1], [1, 130], [576, 512]).storage(ValuesInKeys),
        case(
            "latent_two_queries_bf16",
            BF16,
            [1, 4, 1],
            [2, 530],
            [576, 512],
        )
        .storage(ValuesInKeys)
        .causal()
        .kv_lens(&[520])
        .lse(),
        case(
            "latent_values_apart_f16",
            F16,
            [1, 66, 1],
            [1, 70],
            [576, 512],
        )
        .sinks(uniform(2.0))
        .lse(),
        // Keys and values past the last are NaN.
        case(
            "latent_absent_keys_f16",
            F16,
            [1, 4, 1],
            [2, 100],
            [520, 264],
        )
        .fills(
            uniform(3.0),
            patched(uniform(1.0), 70 * 520..100 * 520, Nan),
            patched(uniform(1.0), 70 * 264..100 * 264, Nan),
        )
        .kv_lens(&[70])
        .causal()
        .adversarial(),
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
