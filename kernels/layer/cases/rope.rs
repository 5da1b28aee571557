//! Cases of `rope`.

use super::*;

fn case(name: &str, mode: &str, dtype: DType, shape: &[u64], last: i64) -> Recipe {
    let tokens = shape[shape.len() - 3];
    recipe("rope", name, DataClass::Random)
        .tensor("x", dtype, shape, plain())
        .tensor("positions", I32, &[tokens], integers(0, last))
        .attr("mode", mode)
}

fn yarn(recipe: Recipe) -> Recipe {
    recipe
        .attr("freq_scale", 0.25)
        .attr("ext_factor", 1.0)
        .attr("attn_factor", 0.9)
        .attr("beta_fast", 32.0)
        .attr("beta_slow", 1.0)
        .attr("n_ctx_orig", 4096)
}

pub(in crate::layer) fn fixed() -> Vec<Recipe> {
    let mut cases = Vec::new();
    for mode in ["normal", "neox"] {
        let name = |rest: &str| format!("{mode}_{rest}");
        cases.push(case(&name("f32"), mode, F32, &[5, 3, 64], 20));
        cases.push(case(&name("f16"), mode, F16, &[4, 2, 80], 500));
        cases.push(case(&name("bf16"), mode, BF16, &[4, 2, 32], 500));
        cases.push(case(&name("partial_f32"), mode, F32, &[3, 2, 40], 100).attr("n_dims", 24));
        cases.push(
            case(&name("late_f32"), mode, F32, &[3, 2, 128], 100_000).attr("freq_base", 500_000.0),
        );
        cases.push(yarn(case(&name("yarn_f32"), mode, F32, &[4, 2, 128], 9000)));
        let factors = Fill::Values(vec![1.0, 1.25, 2.0, 8.0, 0.5]);
        cases.push(
            case(&name("factors_f32"), mode, F32, &[4, 2, 64], 300).tensor(
                "freq_factors",
                F32,
                &[32],
                factors,
            ),
        );
        let permuted = recipe("rope", &name("permuted_f32"), DataClass::Random)
            .tensor("positions", I32, &[4], integers(0, 30))
            .attr("mode", mode);
        cases.push(strided(
            permuted,
            "x",
            F32,
            &[2, 4, 3, 32],
            &[0, 2, 1, 3],
            4,
            plain(),
        ));
        cases.push(case(&name("batch_f32"), mode, F32, &[3, 2, 2, 16], 50));
    }
    let mut extreme = case("extreme_positions_f32", "normal", F32, &[4, 1, 16], 0);
    extreme.data = DataClass::Adversarial;
    extreme.tensors[1].fill =
        Fill::Values(vec![2_147_483_647.0, -2_147_483_648.0, -7.0, 16_777_217.0]);
    cases.push(extreme);
    let mut nan = case("nan_f32", "neox", F32, &[2, 2, 16], 9);
    nan.data = DataClass::Adversarial;
    nan.tensors[0].fill = patched(plain(), [3, 40], Special::Nan);
    cases.push(nan);
    cases.push(case("many_heads_f32", "neox", F32, &[1, 40, 64], 700));
    cases.push(case("nothing_turned_f32", "normal", F32, &[2, 2, 8], 9).attr("n_dims", 0));
    cases.push(case("no_tokens_f32", "normal", F32, &[0, 2, 8], 9));
    cases
}

pub(in crate::layer) fn strategy() -> BoxedStrategy<Recipe> {
    let sizes = (
        0u64..=4,
        0u64..=3,
        0u64..=24,
        0u64..=12,
        proptest::option::weighted(0.3, 1u64..=2),
    );
    let options = (
        any::<[bool; 2]>(),
        select(vec!["normal", "neox"]),
        0i64..=5000,
    );
    (sizes, dtypes(), layouts(), options, seeds())
        .prop_map(
            |(
                (tokens, heads, pairs, rest, batch),
                dtype,
                layout,
                ([scaled, factors], mode, last),
                seed,
            )| {
                let mut shape = vec![tokens, heads, 2 * pairs + rest];
                if let Some(batch) = batch {
                    shape.insert(0, batch);
                }
                let name =
                    format!("{mode}_{shape:?}_{}_{}", 2 * pairs, lower(dtype)).replace(", ", "x");
                let recipe = Recipe::new("rope", name, DataClass::Random, seed)
                    .tensor("positions", I32, &[tokens], integers(0, last))
                    .attr("mode", mode)
                    .attr("n_dims", 2 * pairs);
                let recipe = laid_out(recipe, "x", dtype, &shape, layout, plain());
                let recipe = if scaled { yarn(recipe) } else { recipe };
                match factors {
                    true => recipe.tensor(
                        "freq_factors",
                        F32,
                        &[pairs],
                        Fill::Values(vec![1.0, 2.0, 0.75]),
                    ),
                    false => recipe,
                }
            },
        )
        .boxed()
}
