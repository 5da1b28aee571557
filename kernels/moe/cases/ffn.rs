//! The fixed cases of `moe_ffn`.

use super::*;

/// The fixed cases of `moe_ffn`.
pub(in crate::moe) fn moe_ffn() -> Vec<Recipe> {
    let plain = |topk: u64| json!({"topk": topk});
    let renormalized = json!({"topk": 2, "renormalize": true});
    let deepseek_v3 = json!({
        "topk": 4, "score": "sigmoid", "groups": 4, "topk_groups": 2, "renormalize": true, "scale": 2.5
    });
    let with = |mut recipe: Recipe, tensor: usize, fill: Fill| {
        recipe.tensors[tensor].fill = fill;
        recipe
    };
    let adversarial = |recipe: Recipe| Recipe {
        data: DataClass::Adversarial,
        ..recipe
    };
    let mut logits_in_f32 = ffn(
        "logits_in_f32_bf16",
        BF16,
        layer([9, 32], [8, 24]),
        plain(2),
    );
    logits_in_f32.tensors[1].dtype = F32.name().into();
    let mut padded_rows = ffn("padded_rows_f32", F32, layer([6, 24], [4, 16]), plain(2));
    padded_rows.tensors.remove(0);
    vec![
        ffn("small_f32", F32, layer([7, 16], [4, 24]), plain(2)),
        ffn("small_f16", F16, layer([7, 16], [4, 24]), plain(2)),
        ffn("small_bf16", BF16, layer([7, 16], [4, 24]), plain(2)),
        ffn(
            "mixtral_like_bf16",
            BF16,
            layer([17, 64], [8, 112]),
            renormalized.clone(),
        ),
        ffn(
            "mixtral_like_f32",
            F32,
            layer([33, 64], [8, 112]),
            renormalized.clone(),
        ),
        ffn("many_experts_f32", F32, layer([12, 64], [64, 32]), plain(8)),
        ffn(
            "deepseek_like_f32",
            F32,
            layer([10, 48], [32, 40]),
            deepseek_v3.clone(),
        )
        .tensor("bias", F32, &[32], uniform(0.2)),
        ffn(
            "deepseek_like_bf16",
            BF16,
            layer([10, 48], [32, 40]),
            deepseek_v3,
        )
        .tensor("bias", F32, &[32], uniform(0.2)),
        ffn("unaligned_f32", F32, layer([13, 33], [5, 17]), plain(3)),
        ffn("unaligned_f16", F16, layer([13, 35], [5, 19]), plain(3)),
        ffn("one_token_f32", F32, layer([1, 128], [16, 96]), plain(4)),
        ffn("one_token_bf16", BF16, layer([1, 128], [16, 96]), plain(4)),
        ffn("one_expert_f32", F32, layer([11, 32], [1, 40]), plain(1)),
        ffn("every_expert_f32", F32, layer([6, 32], [5, 16]), plain(5)),
        ffn("empty_experts_f32", F32, layer([2, 32], [40, 16]), plain(1)),
        ffn(
            "one_of_everything_f32",
            F32,
            layer([1, 1], [1, 1]),
            plain(1),
        ),
        with(
            ffn(
                "all_tokens_on_one_expert_f32",
                F32,
                layer([40, 24], [8, 16]),
                plain(1),
            ),
            1,
            patched(
                Fill::Constant(0.0),
                (0..40).map(|t| t * 8 + 5),
                Special::Number(9.0),
            ),
        ),
        ffn("long_rows_f32", F32, layer([3, 700], [3, 300]), plain(1)),
        ffn("long_rows_bf16", BF16, layer([3, 513], [3, 257]), plain(2)),
        logits_in_f32,
        padded(padded_rows, "x", F32, [6, 24], 5, uniform(1.0)),
        adversarial(with(
            ffn(
                "nan_in_one_token_f32",
                F32,
                layer([5, 16], [4, 8]),
                plain(2),
            ),
            0,
            patched(uniform(1.0), [20], Special::Nan),
        )),
        adversarial(with(
            ffn(
                "nan_logits_bf16",
                BF16,
                layer([5, 16], [4, 8]),
                renormalized,
            ),
            1,
            patched(uniform(1.0), [9], Special::Nan),
        )),
        adversarial(with(
            ffn("nan_weight_f32", F32, layer([8, 16], [4, 8]), plain(2)),
            3,
            patched(uniform(0.5), [130], Special::Nan),
        )),
        // Positive everywhere: nothing averages out.
        adversarial(with(
            with(
                ffn("one_sign_f32", F32, layer([5, 64], [4, 48]), plain(2)),
                0,
                Fill::Constant(1.0),
            ),
            2,
            Fill::Constant(0.125),
        )),
        ffn("no_tokens_f32", F32, layer([0, 16], [4, 8]), plain(2)),
        ffn("no_inter_f32", F32, layer([3, 16], [4, 0]), plain(2)),
        ffn("no_hidden_f32", F32, layer([3, 0], [4, 8]), plain(2)),
    ]
}
