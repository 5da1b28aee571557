//! The fixed cases of `moe_route`.

use super::*;

/// The fixed cases of `moe_route`.
pub(in crate::moe) fn moe_route() -> Vec<Recipe> {
    use Special::{Infinity, Nan, NegativeInfinity};
    let rows = |rows: &[u64], experts: u64| {
        let rows = rows.to_vec();
        rows.into_iter()
            .flat_map(move |row| row * experts..(row + 1) * experts)
    };
    let deepseek_v3 = json!({
        "topk": 8, "score": "sigmoid", "groups": 8, "topk_groups": 4, "renormalize": true, "scale": 2.5
    });
    let deepseek_v2 = json!({"topk": 6, "groups": 8, "topk_groups": 3, "scale": 16});
    vec![
        route(
            "softmax_8_of_2_f32",
            F32,
            [9, 8],
            uniform(2.0),
            json!({"topk": 2}),
        ),
        route(
            "softmax_8_of_2_f16",
            F16,
            [9, 8],
            uniform(2.0),
            json!({"topk": 2}),
        ),
        route(
            "softmax_60_of_4_bf16",
            BF16,
            [17, 60],
            uniform(4.0),
            json!({"topk": 4}),
        ),
        route(
            "softmax_128_of_8_renormalized_bf16",
            BF16,
            [33, 128],
            uniform(4.0),
            json!({"topk": 8, "renormalize": true}),
        ),
        route(
            "one_expert_f32",
            F32,
            [3, 1],
            uniform(2.0),
            json!({"topk": 1}),
        ),
        route(
            "one_token_f32",
            F32,
            [1, 64],
            uniform(2.0),
            json!({"topk": 6}),
        ),
        route(
            "all_experts_f32",
            F32,
            [5, 7],
            uniform(2.0),
            json!({"topk": 7}),
        ),
        route(
            "all_512_experts_f32",
            F32,
            [2, 512],
            uniform(3.0),
            json!({"topk": 512}),
        ),
        route(
            "softmax_512_of_10_f32",
            F32,
            [19, 512],
            uniform(3.0),
            json!({"topk": 10}),
        ),
        route(
            "experts_33_f32",
            F32,
            [257, 33],
            uniform(3.0),
            json!({"topk": 3}),
        ),
        route(
            "experts_300_f32",
            F32,
            [4, 300],
            uniform(3.0),
            json!({"topk": 1}),
        ),
        route(
            "sigmoid_64_of_6_f32",
            F32,
            [12, 64],
            uniform(3.0),
            json!({"topk": 6, "score": "sigmoid"}),
        ),
        route(
            "deepseek_v3_f32",
            F32,
            [13, 256],
            uniform(3.0),
            deepseek_v3.clone(),
        )
        .tensor("bias", F32, &[256], uniform(0.2)),
        route(
            "deepseek_v3_bf16",
            BF16,
            [5, 256],
            uniform(3.0),
            deepseek_v3.clone(),
        )
        .tensor("bias", F32, &[256], uniform(0.2)),
        route("deepseek_v2_f32", F32, [9, 160], uniform(3.0), deepseek_v2),
        route(
            "groups_of_one_f32",
            F32,
            [9, 8],
            uniform(3.0),
            json!({"topk": 3, "groups": 8, "topk_groups": 4}),
        ),
        route(
            "groups_of_two_sigmoid_f16",
            F16,
            [9, 12],
            uniform(3.0),
            json!({"topk": 2, "groups": 6, "topk_groups": 1, "score": "sigmoid"}),
        ),
        route(
            "all_groups_f32",
            F32,
            [9, 12],
            uniform(3.0),
            json!({"topk": 12, "groups": 3, "topk_groups": 3}),
        ),
        route(
            "softmax_bias_f32",
            F32,
            [20, 32],
            uniform(2.0),
            json!({"topk": 4}),
        )
        .tensor("bias", F32, &[32], uniform(0.1)),
        route(
            "bias_decides_f32",
            F32,
            [6, 16],
            uniform(1.0),
            json!({"topk": 3, "score": "sigmoid", "renormalize": true}),
        )
        .tensor("bias", F32, &[16], uniform(1000.0)),
        route(
            "bias_takes_experts_out_f32",
            F32,
            [6, 16],
            uniform(1.0),
            json!({"topk": 3, "score": "sigmoid"}),
        )
        .tensor(
            "bias",
            F32,
            &[16],
            patched(uniform(0.1), 0..9, NegativeInfinity),
        ),
        // Ties.
        route(
            "ties_f32",
            F32,
            [31, 16],
            integers(0, 2),
            json!({"topk": 5}),
        ),
        route(
            "ties_sigmoid_bf16",
            BF16,
            [31, 16],
            integers(-1, 1),
            json!({"topk": 5, "score": "sigmoid"}),
        )
        .tensor("bias", F32, &[16], integers(0, 1)),
        route(
            "ties_between_groups_f32",
            F32,
            [31, 24],
            integers(0, 1),
            json!({"topk": 4, "groups": 6, "topk_groups": 2}),
        ),
        route(
            "all_equal_f16",
            F16,
            [3, 64],
            Fill::Constant(0.75),
            json!({"topk": 8}),
        ),
        route(
            "zeros_of_both_signs_f32",
            F32,
            [2, 6],
            Fill::Values(vec![-0.0, 0.0, -0.0, 0.0, 0.0]),
            json!({"topk": 4}),
        ),
        route(
            "sigmoid_saturates_f32",
            F32,
            [9, 32],
            uniform(80.0),
            json!({"topk": 12, "score": "sigmoid", "renormalize": true}),
        ),
        route(
            "sigmoid_saturates_in_groups_bf16",
            BF16,
            [9, 32],
            uniform(60.0),
            json!({"topk": 6, "score": "sigmoid", "groups": 8, "topk_groups": 3}),
        ),
        // Without bias the order is that of the logits, however small the scores.
        route(
            "softmax_underflows_f32",
            F32,
            [9, 32],
            uniform(1000.0),
            json!({"topk": 12}),
        ),
        route(
            "softmax_underflows_with_bias_f32",
            F32,
            [9, 32],
            uniform(500.0),
            json!({"topk": 12}),
        )
        .tensor("bias", F32, &[32], uniform(0.01)),
        route(
            "renormalizes_tiny_scores_f32",
            F32,
            [4, 8],
            Fill::Values([-80.0, -85.0, -90.0, -95.0, -50.0, -48.0, -45.0, -88.0].into()),
            json!({"topk": 3, "score": "sigmoid", "renormalize": true}),
        ),
        // NaN and infinity.
        route(
            "nan_logits_f32",
            F32,
            [5, 16],
            patched(uniform(2.0), [3, 16 + 15, 3 * 16], Nan),
            json!({"topk": 4}),
        ),
        route(
            "nan_rows_sigmoid_groups_bf16",
            BF16,
            [5, 16],
            patched(uniform(2.0), rows(&[1, 4], 16), Nan),
            json!({"topk": 4, "score": "sigmoid", "groups": 4, "topk_groups": 2, "renormalize": true}),
        ),
        route(
            "nan_bias_f32",
            F32,
            [3, 16],
            uniform(2.0),
            json!({"topk": 16}),
        )
        .tensor("bias", F32, &[16], patched(uniform(0.1), [7], Nan)),
        route(
            "minus_infinity_f32",
            F32,
            [4, 8],
            patched(uniform(2.0), (2..8).chain(rows(&[2], 8)), NegativeInfinity),
            json!({"topk": 4}),
        ),
        route(
            "infinity_softmax_f32",
            F32,
            [3, 8],
            patched(uniform(2.0), [2, 9, 11], Infinity),
            json!({"topk": 2}),
        ),
        route(
            "infinities_sigmoid_f16",
            F16,
            [3, 8],
            patched(
                patched(uniform(2.0), [2, 9, 11], Infinity),
                [4, 8],
                NegativeInfinity,
            ),
            json!({"topk": 3, "score": "sigmoid"}),
        ),
        // Scales, views, zero sizes.
        route(
            "scale_zero_f32",
            F32,
            [3, 8],
            uniform(2.0),
            json!({"topk": 2, "scale": 0}),
        ),
        route(
            "scale_negative_f32",
            F32,
            [3, 8],
            uniform(2.0),
            json!({"topk": 2, "scale": -1.5}),
        ),
        padded(
            attrs(
                recipe("moe_route", "padded_rows_f32", DataClass::Adversarial),
                json!({"topk": 4}),
            ),
            "logits",
            F32,
            [7, 24],
            5,
            uniform(2.0),
        ),
        route(
            "no_tokens_f32",
            F32,
            [0, 8],
            uniform(2.0),
            json!({"topk": 2}),
        ),
    ]
}
