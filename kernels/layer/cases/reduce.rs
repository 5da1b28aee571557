//! Cases of `norm`, `sum_rows` and `softmax`.

use super::*;

/// Cases of `norm`.
pub(in crate::layer) mod norm {
    use super::*;

    fn case(name: &str, kind: &str, dtype: DType, shape: &[u64]) -> Recipe {
        recipe("norm", name, DataClass::Random)
            .tensor("x", dtype, shape, plain())
            .attr("kind", kind)
            .attr("eps", 1e-6)
    }

    fn weighted(recipe: Recipe, dtype: DType, columns: u64) -> Recipe {
        recipe.tensor("weight", dtype, &[columns], plain())
    }

    pub(in crate::layer) fn fixed() -> Vec<Recipe> {
        let mut cases = Vec::new();
        for kind in ["rms", "layer"] {
            let name = |rest: &str| format!("{kind}_{rest}");
            cases.push(case(&name("f32"), kind, F32, &[5, 64]));
            cases.push(weighted(
                case(&name("weight_f32"), kind, F32, &[5, 576]),
                F32,
                576,
            ));
            cases.push(weighted(
                case(&name("odd_f32"), kind, F32, &[2, 3, 67]),
                F32,
                67,
            ));
            cases.push(weighted(case(&name("f16"), kind, F16, &[4, 130]), F32, 130));
            cases.push(weighted(
                case(&name("bf16"), kind, BF16, &[4, 96]),
                BF16,
                96,
            ));
            cases.push(case(&name("long_f32"), kind, F32, &[2, 5003]));
            cases.push(case(&name("narrow_f32"), kind, F32, &[3, 400, 3]));
            let permuted =
                recipe("norm", &name("permuted_f32"), DataClass::Random).attr("kind", kind);
            cases.push(strided(
                permuted,
                "x",
                F32,
                &[3, 4, 40],
                &[1, 0, 2],
                2,
                plain(),
            ));
            let columns =
                recipe("norm", &name("of_columns_f32"), DataClass::Random).attr("kind", kind);
            cases.push(strided(columns, "x", F32, &[6, 40], &[1, 0], 1, plain()));
            let mut nan = case(&name("specials_f32"), kind, F32, &[4, 40]);
            nan.data = DataClass::Adversarial;
            nan.tensors[0].fill =
                patched(patched(plain(), [5], Special::Nan), [90], Special::Infinity);
            cases.push(nan);
            // The mean is large beside the deviations.
            let mut offset = case(&name("offset_f32"), kind, F32, &[3, 200]);
            offset.data = DataClass::Adversarial;
            offset.tensors[0].fill = Fill::Values(vec![100.0, 100.5, 99.25, 101.0, 98.5]);
            cases.push(offset);
        }
        let mut zeros = case("rms_zeros_f32", "rms", F32, &[2, 20]);
        zeros.tensors[0].fill = Fill::Constant(0.0);
        cases.push(zeros);
        cases.push(case("no_rows_f32", "rms", F32, &[0, 16]));
        cases.push(case("no_columns_f32", "rms", F32, &[3, 0]));
        cases
    }

    pub(in crate::layer) fn strategy() -> BoxedStrategy<Recipe> {
        let kinds = select(vec!["rms", "layer"]);
        (shapes(), dtypes(), kinds, layouts(), any::<bool>(), seeds())
            .prop_map(|(shape, dtype, kind, layout, has_weight, seed)| {
                let name = format!("{kind}_{shape:?}_{}", lower(dtype)).replace(", ", "x");
                let recipe = Recipe::new("norm", name, DataClass::Random, seed)
                    .attr("kind", kind)
                    .attr("eps", 1e-5);
                let columns = shape.last().copied().unwrap_or(1);
                let recipe = laid_out(recipe, "x", dtype, &shape, layout, plain());
                match has_weight {
                    true => weighted(recipe, if dtype == BF16 { BF16 } else { F32 }, columns),
                    false => recipe,
                }
            })
            .boxed()
    }
}

/// Cases of `sum_rows`.
pub(in crate::layer) mod sum_rows {
    use super::*;

    fn case(name: &str, dtype: DType, shape: &[u64]) -> Recipe {
        recipe("sum_rows", name, DataClass::Random)
            .tensor("x", dtype, shape, plain())
            .attr("dtype", "F32")
    }

    pub(in crate::layer) fn fixed() -> Vec<Recipe> {
        let mut exact = case("exact_f32", F32, &[6, 333]);
        exact.data = DataClass::Exact;
        exact.tensors[0].fill = integers(-50, 50);
        let columns = recipe("sum_rows", "of_columns_f32", DataClass::Random);
        vec![
            case("f32", F32, &[5, 64]),
            case("f16", F16, &[5, 65]),
            case("bf16", BF16, &[2, 3, 2, 40]),
            exact,
            case("long_f32", F32, &[2, 10_007]),
            case("experts_f32", F32, &[700, 8]),
            strided(columns, "x", F32, &[6, 40], &[1, 0], 1, plain()),
            case("no_columns_f32", F32, &[3, 0]),
            case("no_rows_f32", F32, &[0, 3]),
        ]
    }

    pub(in crate::layer) fn strategy() -> BoxedStrategy<Recipe> {
        (shapes(), dtypes(), layouts(), seeds())
            .prop_map(|(shape, dtype, layout, seed)| {
                let name = format!("{shape:?}_{}", lower(dtype)).replace(", ", "x");
                let recipe =
                    Recipe::new("sum_rows", name, DataClass::Random, seed).attr("dtype", "F32");
                laid_out(recipe, "x", dtype, &shape, layout, plain())
            })
            .boxed()
    }
}

/// Cases of `softmax`.
pub(in crate::layer) mod softmax {
    use super::*;

    fn case(name: &str, dtype: DType, shape: &[u64]) -> Recipe {
        recipe("softmax", name, DataClass::Random).tensor("x", dtype, shape, uniform(4.0))
    }

    /// Zero, and −∞ for every third.
    fn hiding() -> Fill {
        let hidden = (0..4000).filter(|at| at % 3 == 1);
        patched(uniform(1.0), hidden, Special::NegativeInfinity)
    }

    pub(in crate::layer) fn fixed() -> Vec<Recipe> {
        let mut nan = case("specials_f32", F32, &[4, 40]);
        nan.data = DataClass::Adversarial;
        nan.tensors[0].fill = patched(patched(plain(), [5], Special::Nan), [90], Special::Infinity);
        let mut blind = case("blind_rows_f32", F32, &[3, 20]);
        blind.data = DataClass::Adversarial;
        blind.tensors[0].fill = patched(plain(), [3, 30], Special::Nan);
        let hidden = (0..20).chain([30]);
        let blind = blind.tensor(
            "mask",
            F32,
            &[3, 20],
            patched(plain(), hidden, Special::NegativeInfinity),
        );
        let mut wide = case("wide_f32", F32, &[3, 100]);
        wide.data = DataClass::Adversarial;
        wide.tensors[0].fill = uniform(300.0);
        let masked = |name: &str, dtype, mask| {
            case(name, F32, &[2, 4, 5, 33])
                .tensor("mask", dtype, mask, hiding())
                .attr("scale", 0.125)
        };
        let permuted = recipe("softmax", "permuted_f32", DataClass::Random);
        vec![
            case("f32", F32, &[7, 100]),
            case("f16", F16, &[5, 67]),
            case("bf16", BF16, &[5, 64]),
            case("scaled_f32", F32, &[2, 3, 64]).attr("scale", -0.7),
            masked("mask_f32", F32, &[5, 33]),
            masked("mask_f16", F16, &[2, 1, 5, 33]),
            masked("mask_of_heads_f32", F32, &[2, 5, 33]),
            masked("alibi_f16", F16, &[5, 33]).attr("max_bias", 8.0),
            case("alibi_odd_heads_f32", F32, &[7, 3, 20])
                .tensor("mask", F32, &[3, 20], uniform(20.0))
                .attr("max_bias", 8.0),
            masked("sinks_f32", F32, &[5, 33]).tensor("sinks", F32, &[4], plain()),
            case("only_sinks_f32", F32, &[3, 2, 16]).tensor("sinks", F32, &[3], plain()),
            nan,
            blind,
            wide,
            case("long_f32", F32, &[2, 5003]),
            case("narrow_f32", F32, &[900, 4]),
            case("one_column_f32", F32, &[5, 1]),
            strided(permuted, "x", F32, &[3, 4, 40], &[1, 0, 2], 2, plain()),
            case("no_rows_f32", F32, &[0, 16]),
            case("no_columns_f32", F32, &[3, 0]),
        ]
    }

    pub(in crate::layer) fn strategy() -> BoxedStrategy<Recipe> {
        let masks = (any::<[bool; 4]>(), select(vec![F32, F16]));
        let options = (
            masks,
            prop_oneof![Just(0.0), Just(8.0)],
            select(vec![1.0, 0.125]),
        );
        (
            shapes(),
            dtypes(),
            layouts(),
            options,
            any::<bool>(),
            seeds(),
        )
            .prop_map(|(shape, dtype, layout, options, has_sinks, seed)| {
                let (([has_mask, rows, heads, batch], mask_dtype), max_bias, scale) = options;
                let name = format!("{shape:?}_{}", lower(dtype)).replace(", ", "x");
                let mut recipe =
                    Recipe::new("softmax", name, DataClass::Random, seed).attr("scale", scale);
                recipe = laid_out(recipe, "x", dtype, &shape, layout, uniform(4.0));
                if has_mask {
                    let mut mask = shape.clone();
                    let axes = mask.iter_mut().rev().skip(1);
                    for (extent, repeat) in axes.zip([rows, heads, batch]) {
                        *extent = if repeat { (*extent).min(1) } else { *extent };
                    }
                    // No dtype of the mask more than fixed cases have beside x.
                    let mask_dtype = if dtype == F32 { mask_dtype } else { F32 };
                    recipe = recipe
                        .tensor("mask", mask_dtype, &mask, hiding())
                        .attr("max_bias", max_bias);
                }
                let heads = shape.iter().rev().nth(2).copied().unwrap_or(1);
                if has_sinks {
                    recipe.tensor("sinks", F32, &[heads], plain())
                } else {
                    recipe
                }
            })
            .boxed()
    }
}
