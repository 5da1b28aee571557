//! The fixed cases of `expert_scatter` and `expert_gather`.

use super::*;

/// The fixed cases of `expert_scatter`.
pub(in crate::moe) fn expert_scatter() -> Vec<Recipe> {
    let nowhere = || Fill::Constant(-1.0);
    let without_x = |name: &str, topk: u64, tokens: u64, experts: u64| {
        recipe("expert_scatter", name, DataClass::Exact)
            .tensor(
                "topk_ids",
                I32,
                &[tokens, topk],
                integers(-1, experts as i64 - 1),
            )
            .attr("experts", experts)
    };
    let mut nan = scatter("nan_moves_along_f32", F32, [6, 4], [2, 3], integers(0, 2));
    nan.tensors[0].fill = patched(uniform(1.0), [5, 6, 23], Special::Nan);
    vec![
        scatter(
            "five_tokens_f32",
            F32,
            [5, 3],
            [2, 4],
            Fill::Values([1., 3., 0., 1., 3., 1., 2., 0., 1., 3.].into()),
        ),
        scatter("random_f32", F32, [64, 32], [4, 16], integers(0, 15)),
        scatter("random_f16", F16, [33, 40], [2, 8], integers(0, 7)),
        scatter("random_bf16", BF16, [33, 129], [6, 60], integers(0, 59)),
        scatter("many_tokens_f32", F32, [700, 8], [3, 11], integers(0, 10)),
        scatter(
            "experts_512_f32",
            F32,
            [40, 16],
            [10, 512],
            integers(0, 511),
        ),
        scatter(
            "all_on_one_expert_f32",
            F32,
            [50, 16],
            [2, 8],
            Fill::Constant(5.0),
        ),
        scatter(
            "all_on_the_last_expert_f16",
            F16,
            [50, 16],
            [1, 8],
            Fill::Constant(7.0),
        ),
        scatter("only_expert_f32", F32, [9, 16], [1, 1], Fill::Constant(0.0)),
        scatter(
            "empty_experts_f32",
            F32,
            [9, 16],
            [2, 40],
            Fill::Values([7., 31., 7., 8., 39., 31., 0.].into()),
        ),
        scatter("some_nowhere_f32", F32, [20, 16], [3, 5], integers(-1, 4)),
        scatter(
            "most_nowhere_bf16",
            BF16,
            [20, 17],
            [2, 5],
            patched(nowhere(), [7, 8, 31], Special::Number(3.0)),
        ),
        scatter("all_nowhere_f32", F32, [6, 16], [2, 5], nowhere()),
        scatter("no_experts_f32", F32, [6, 16], [2, 0], nowhere()),
        scatter("one_token_f32", F32, [1, 2048], [8, 64], integers(0, 63)),
        // More than a MiB of rows, which kernels may store past the caches: whole vectors, and not.
        scatter("large_rows_f32", F32, [40, 2864], [3, 6], integers(-1, 5)),
        scatter("large_rows_f16", F16, [72, 2864], [3, 6], integers(-1, 5)),
        scatter(
            "large_odd_rows_bf16",
            BF16,
            [72, 2861],
            [3, 6],
            integers(-1, 5),
        ),
        scatter("one_element_f16", F16, [70, 1], [2, 4], integers(0, 3)),
        nan,
        padded(
            without_x("padded_rows_f32", 2, 12, 6),
            "x",
            F32,
            [12, 20],
            3,
            uniform(1.0),
        ),
        padded(
            without_x("padded_odd_rows_bf16", 2, 12, 6),
            "x",
            BF16,
            [12, 19],
            2,
            uniform(1.0),
        ),
        without_x("one_row_for_all_f32", 2, 12, 6)
            .tensor("x_stored", F32, &[1, 20], uniform(1.0))
            .view("x", "x_stored", &[12, 20], &[0, 1], 0),
        // The two middle columns of a wider table of ids.
        recipe("expert_scatter", "ids_within_a_table_f32", DataClass::Exact)
            .tensor("x", F32, &[10, 8], uniform(1.0))
            .tensor("table", I32, &[10, 4], integers(0, 5))
            .view("topk_ids", "table", &[10, 2], &[4, 1], 1)
            .attr("experts", 6),
        scatter("no_tokens_f32", F32, [0, 16], [2, 5], nowhere()),
        scatter("no_elements_f32", F32, [7, 0], [2, 5], integers(-1, 4)),
        scatter("no_slots_f32", F32, [7, 4], [0, 5], nowhere()),
    ]
}

/// The fixed cases of `expert_gather`.
pub(in crate::moe) fn expert_gather() -> Vec<Recipe> {
    let adversarial = |recipe: Recipe| Recipe {
        data: DataClass::Adversarial,
        ..recipe
    };
    let with = |mut recipe: Recipe, tensor: usize, fill: Fill| {
        recipe.tensors[tensor].fill = fill;
        recipe
    };
    let nowhere = || Fill::Constant(-1.0);
    let unread = with(
        gather("nan_rows_of_no_slot_f32", F32, [4, 2], 8, 0),
        1,
        Fill::Values([3., 0., -1., 7., -1., 1., 4., -1.].into()),
    );
    let unread_rows = (16..24).chain(32..40).chain(56..64);
    vec![
        gather("random_f32", F32, [32, 4], 40, 0),
        gather("random_f16", F16, [17, 2], 64, 0),
        gather("random_bf16", BF16, [17, 6], 33, 0),
        exact(gather("exact_f32", F32, [25, 5], 48, 0)),
        exact(gather("exact_f16", F16, [25, 3], 48, 6)),
        exact(gather("exact_bf16", BF16, [25, 3], 17, 6)),
        exact(gather("one_slot_f32", F32, [40, 1], 16, 0)),
        exact(gather("one_token_f32", F32, [1, 8], 2048, 0)),
        gather("ten_slots_f32", F32, [50, 10], 24, 0),
        exact(gather("many_tokens_f32", F32, [600, 2], 8, 100)),
        gather("some_dropped_f32", F32, [20, 4], 32, 30),
        with(gather("all_dropped_f32", F32, [6, 2], 16, 0), 1, nowhere()),
        adversarial(with(
            unread,
            0,
            patched(uniform(1.0), unread_rows, Special::Nan),
        )),
        adversarial(with(
            gather("nan_row_f32", F32, [4, 2], 8, 2),
            0,
            patched(uniform(1.0), [9, 50], Special::Nan),
        )),
        adversarial(with(
            gather("nan_weight_bf16", BF16, [4, 2], 8, 0),
            2,
            patched(uniform(1.0), [3], Special::Nan),
        )),
        adversarial(with(
            with(
                gather("infinite_rows_f32", F32, [4, 2], 8, 0),
                2,
                Fill::Constant(0.5),
            ),
            0,
            patched(
                patched(uniform(1.0), [0, 17, 40], Special::Infinity),
                [1, 25],
                Special::NegativeInfinity,
            ),
        )),
        // 3 · 30,000 is beyond F16.
        adversarial(with(
            with(
                gather("overflows_f16", F16, [4, 3], 8, 0),
                0,
                Fill::Constant(30_000.0),
            ),
            2,
            Fill::Constant(1.0),
        )),
        // Cancellation: the sum is far smaller than its terms.
        adversarial(with(
            with(
                gather("cancels_f32", F32, [8, 4], 8, 0),
                2,
                Fill::Values(vec![1.0, -1.0]),
            ),
            0,
            Fill::Values(vec![1e6, 1e6 + 1.0, 1e6 - 3.0]),
        )),
        padded(
            recipe("expert_gather", "padded_rows_f32", DataClass::Random)
                .tensor("source", I32, &[14], sources(14, 2, 5))
                .tensor("topk_weights", F32, &[7, 2], uniform(1.0)),
            "rows",
            F32,
            [14, 20],
            3,
            uniform(1.0),
        ),
        gather("no_tokens_f32", F32, [0, 2], 16, 0),
        gather("no_elements_f32", F32, [3, 2], 0, 0),
        gather("no_slots_f16", F16, [3, 0], 16, 0),
    ]
}
