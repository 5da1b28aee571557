//! Cases of the mixture-of-experts ops: the fixed ones of the gate, and strategies for random ones.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use ropeway_core::DType;
use ropeway_core::spec::{DataClass, Fill, Random, Recipe, Special};
use serde_json::{Map, Value, json};

use DType::{BF16, F16, F32, I32};

/// A seed that follows from a name for ever (FNV-1a).
fn seed(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn recipe(op: &str, name: &str, data: DataClass) -> Recipe {
    Recipe::new(op, name, data, seed(name))
}

/// `base` with values replaced by `special`.
fn patched(base: Fill, positions: impl IntoIterator<Item = u64>, special: Special) -> Fill {
    let patches = positions.into_iter().map(|at| (at, special)).collect();
    let base = Box::new(base);
    Fill::Patched { base, patches }
}

fn uniform(scale: f64) -> Fill {
    Fill::Uniform { scale }
}

fn integers(low: i64, high: i64) -> Fill {
    Fill::Integers { low, high }
}

/// `json!({…})` as attributes.
fn attrs(recipe: Recipe, attrs: Value) -> Recipe {
    let Value::Object(attrs) = attrs else {
        unreachable!("attributes are an object");
    };
    Recipe { attrs, ..recipe }
}

/// A matrix whose rows lie `gap` elements apart, the gaps NaN.
fn padded(
    recipe: Recipe,
    name: &str,
    dtype: DType,
    shape: [u64; 2],
    gap: u64,
    fill: Fill,
) -> Recipe {
    let [rows, columns] = shape;
    let stored = format!("{name}_stored");
    let fill = Fill::Poisoned {
        base: Box::new(fill),
        period: columns + gap,
        begin: columns,
        end: columns + gap,
    };
    recipe
        .tensor(&stored, dtype, &[rows, columns + gap], fill)
        .view(name, &stored, &shape, &[columns + gap, 1], 0)
}

fn route(name: &str, dtype: DType, shape: [u64; 2], logits: Fill, attributes: Value) -> Recipe {
    let recipe = recipe("moe_route", name, DataClass::Adversarial);
    attrs(recipe, attributes).tensor("logits", dtype, &shape, logits)
}

/// The fixed cases of `moe_route`.
pub(super) fn moe_route() -> Vec<Recipe> {
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

/// Sizes are [tokens, hidden], [topk, experts].
fn scatter(name: &str, dtype: DType, x: [u64; 2], ids: [u64; 2], fill: Fill) -> Recipe {
    let recipe = recipe("expert_scatter", name, DataClass::Exact)
        .tensor("x", dtype, &x, uniform(1.0))
        .tensor("topk_ids", I32, &[x[0], ids[0]], fill);
    recipe.attr("experts", ids[1])
}

/// The fixed cases of `expert_scatter`.
pub(super) fn expert_scatter() -> Vec<Recipe> {
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

/// Every slot once in some order, of which `dropped` are −1 instead.
fn sources(slots: u64, dropped: u64, seed: u64) -> Fill {
    let mut random = Random::new(seed);
    let mut sources: Vec<f64> = (0..slots).map(|slot| slot as f64).collect();
    for last in (1..sources.len()).rev() {
        sources.swap(last, random.below(last as u64 + 1) as usize);
    }
    for _ in 0..dropped.min(slots) {
        sources[random.below(slots) as usize] = -1.0;
    }
    if sources.is_empty() {
        sources.push(-1.0);
    }
    Fill::Values(sources)
}

/// Sizes are [tokens, topk], hidden.
fn gather(name: &str, dtype: DType, slots: [u64; 2], hidden: u64, dropped: u64) -> Recipe {
    let rows = slots[0] * slots[1];
    recipe("expert_gather", name, DataClass::Random)
        .tensor("rows", dtype, &[rows, hidden], uniform(1.0))
        .tensor("source", I32, &[rows], sources(rows, dropped, seed(name)))
        .tensor("topk_weights", F32, &slots, uniform(1.0))
}

/// With data of which every sum is exact.
fn exact(mut recipe: Recipe) -> Recipe {
    recipe.data = DataClass::Exact;
    recipe.tensors[0].fill = integers(-4, 4);
    recipe.tensors[2].fill = integers(-2, 2);
    recipe
}

/// The fixed cases of `expert_gather`.
pub(super) fn expert_gather() -> Vec<Recipe> {
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

/// The sizes of a layer.
#[derive(Clone, Copy, Debug)]
struct Layer {
    tokens: u64,
    hidden: u64,
    inter: u64,
    experts: u64,
}

/// Gate, up and output have a standard deviation of about 1.
fn ffn(name: &str, dtype: DType, layer: Layer, attributes: Value) -> Recipe {
    let Layer {
        tokens,
        hidden,
        inter,
        experts,
    } = layer;
    let scale = |n: u64| uniform((3072.0 / (n.max(1) as f64).sqrt()).round() / 1024.0);
    attrs(recipe("moe_ffn", name, DataClass::Random), attributes)
        .tensor("x", dtype, &[tokens, hidden], uniform(1.0))
        .tensor("logits", dtype, &[tokens, experts], uniform(3.0))
        .tensor(
            "w_gate_up",
            dtype,
            &[experts, 2 * inter, hidden],
            scale(hidden),
        )
        .tensor("w_down", dtype, &[experts, hidden, inter], scale(inter))
}

/// Sizes are [tokens, hidden], [experts, inter].
fn layer(x: [u64; 2], weights: [u64; 2]) -> Layer {
    Layer {
        tokens: x[0],
        hidden: x[1],
        experts: weights[0],
        inter: weights[1],
    }
}

/// The fixed cases of `moe_ffn`.
pub(super) fn moe_ffn() -> Vec<Recipe> {
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

fn dtypes() -> impl Strategy<Value = DType> {
    prop_oneof![2 => Just(F32), 1 => Just(F16), 1 => Just(BF16)]
}

/// Attributes of a routing problem with a number of experts, plain first; and whether there is a bias.
fn routing_strategy() -> impl Strategy<Value = (u64, Map<String, Value>, bool)> {
    let groups = prop_oneof![
        3 => (Just(1u64), prop_oneof![1u64..=40, select(vec![64u64, 128, 256])]),
        2 => (1u64..=8, 1u64..=16),
    ];
    let chosen = (any::<Index>(), any::<Index>());
    let scale = option::weighted(0.3, select(vec![2.5, 16.0, 0.0, -1.0]));
    (groups, chosen, any::<[bool; 3]>(), scale).prop_map(
        |((groups, size), (topk_groups, topk), [sigmoid, renormalize, bias], scale)| {
            let topk_groups = topk_groups.index(groups as usize) as u64 + 1;
            let topk = topk.index((topk_groups * size).min(16) as usize) as u64 + 1;
            let mut attrs = Map::new();
            attrs.insert("topk".into(), topk.into());
            if sigmoid {
                attrs.insert("score".into(), "sigmoid".into());
            }
            if groups > 1 {
                attrs.insert("groups".into(), groups.into());
                attrs.insert("topk_groups".into(), topk_groups.into());
            }
            if renormalize {
                attrs.insert("renormalize".into(), true.into());
            }
            if let Some(scale) = scale {
                attrs.insert("scale".into(), scale.into());
            }
            (groups * size, attrs, bias)
        },
    )
}

/// A seed that stays when the rest of a case shrinks.
fn seeds() -> impl Strategy<Value = u64> {
    any::<u64>().no_shrink()
}

/// Random cases of `moe_route`.
pub(super) fn moe_route_strategy() -> BoxedStrategy<Recipe> {
    let fill = prop_oneof![
        4 => Just(uniform(3.0)),
        1 => Just(uniform(100.0)),
        2 => Just(integers(-2, 2)),
    ];
    let special = select(vec![
        Special::Nan,
        Special::NegativeInfinity,
        Special::Infinity,
    ]);
    let special = option::weighted(0.1, (special, vec(0u64..500, 1..4)));
    let bias = prop_oneof![3 => Just(uniform(0.3)), 1 => Just(integers(0, 1))];
    let data = (dtypes(), fill, special, bias);
    (0u64..=9, routing_strategy(), data, seeds())
        .prop_map(|(tokens, (experts, attrs, has_bias), data, seed)| {
            let (dtype, mut fill, special, bias) = data;
            if let Some((special, at)) = special {
                let elements = (tokens * experts).max(1);
                fill = patched(fill, at.into_iter().map(|at| at % elements), special);
            }
            let name = format!("t{tokens}_e{experts}_{}", dtype.name().to_lowercase());
            let mut recipe = recipe("moe_route", &name, DataClass::Adversarial).tensor(
                "logits",
                dtype,
                &[tokens, experts],
                fill,
            );
            if has_bias {
                recipe = recipe.tensor("bias", F32, &[experts], bias);
            }
            Recipe {
                attrs,
                seed,
                ..recipe
            }
        })
        .boxed()
}

/// Random cases of `expert_scatter`.
pub(super) fn expert_scatter_strategy() -> BoxedStrategy<Recipe> {
    let sizes = (0u64..=20, 0u64..=4, 1u64..=12, 0u64..=40);
    let gap = prop_oneof![3 => Just(None), 1 => (0u64..=4).prop_map(Some)];
    (sizes, dtypes(), any::<bool>(), gap, seeds())
        .prop_map(
            |((tokens, topk, experts, hidden), dtype, nowhere, gap, seed)| {
                let name = format!("t{tokens}_k{topk}_e{experts}_h{hidden}");
                let name = format!("{name}_{}", dtype.name().to_lowercase());
                let least = if nowhere { -1 } else { 0 };
                let recipe = Recipe::new("expert_scatter", name, DataClass::Exact, seed)
                    .tensor(
                        "topk_ids",
                        I32,
                        &[tokens, topk],
                        integers(least, experts as i64 - 1),
                    )
                    .attr("experts", experts);
                match gap {
                    None => recipe.tensor("x", dtype, &[tokens, hidden], uniform(1.0)),
                    Some(gap) => padded(recipe, "x", dtype, [tokens, hidden], gap, uniform(1.0)),
                }
            },
        )
        .boxed()
}

/// Random cases of `expert_gather`.
pub(super) fn expert_gather_strategy() -> BoxedStrategy<Recipe> {
    let sizes = (0u64..=20, 0u64..=8, 0u64..=40, 0u64..=8);
    (sizes, dtypes(), any::<bool>(), seeds())
        .prop_map(
            |((tokens, topk, hidden, dropped), dtype, is_random, seed)| {
                let rows = tokens * topk;
                let name = format!(
                    "t{tokens}_k{topk}_h{hidden}_{}",
                    dtype.name().to_lowercase()
                );
                let recipe = Recipe::new("expert_gather", name, DataClass::Random, seed)
                    .tensor("rows", dtype, &[rows, hidden], uniform(1.0))
                    .tensor("source", I32, &[rows], sources(rows, dropped, seed))
                    .tensor("topk_weights", F32, &[tokens, topk], uniform(1.0));
                if is_random { recipe } else { exact(recipe) }
            },
        )
        .boxed()
}

/// Random cases of `moe_ffn`.
pub(super) fn moe_ffn_strategy() -> BoxedStrategy<Recipe> {
    let sizes = (0u64..=8, 1u64..=48, 0u64..=32);
    (sizes, routing_strategy(), dtypes(), any::<bool>(), seeds())
        .prop_map(
            |(sizes, (experts, attrs, has_bias), dtype, wide_logits, seed)| {
                let (tokens, hidden, inter) = sizes;
                let layer = Layer {
                    tokens,
                    hidden,
                    inter,
                    experts,
                };
                let name = format!("t{tokens}_e{experts}_h{hidden}_i{inter}");
                let name = format!("{name}_{}", dtype.name().to_lowercase());
                let mut recipe = ffn(&name, dtype, layer, Value::Object(attrs));
                if wide_logits {
                    recipe.tensors[1].dtype = F32.name().into();
                }
                if has_bias {
                    recipe = recipe.tensor("bias", F32, &[experts], uniform(0.3));
                }
                Recipe { seed, ..recipe }
            },
        )
        .boxed()
}
