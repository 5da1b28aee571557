//! Cases of `elementwise`, `unary`, `glu` and `copy`.

use super::*;

/// Cases of `elementwise`.
pub(in crate::layer) mod elementwise {
    use super::*;

    fn case(name: &str, function: &str, a: (DType, &[u64]), b: (DType, &[u64])) -> Recipe {
        recipe("elementwise", name, DataClass::Random)
            .tensor("a", a.0, a.1, plain())
            .tensor("b", b.0, b.1, plain())
            .attr("function", function)
    }

    fn exact(mut recipe: Recipe) -> Recipe {
        recipe.data = DataClass::Exact;
        for tensor in &mut recipe.tensors {
            tensor.fill = integers(-8, 8);
        }
        recipe
    }

    pub(in crate::layer) fn fixed() -> Vec<Recipe> {
        let start = |name: &str, function: &str| {
            recipe("elementwise", name, DataClass::Random).attr("function", function)
        };
        let mut special = case("specials_f32", "add", (F32, &[3, 40]), (F32, &[3, 40]));
        special.data = DataClass::Adversarial;
        special.tensors[0].fill = patched(plain(), [5, 41], Special::Nan);
        special.tensors[1].fill = patched(
            patched(plain(), [7, 80], Special::Infinity),
            [100],
            Special::NegativeInfinity,
        );
        let mut divides = case("div_f32", "div", (F32, &[5, 37]), (F32, &[5, 37]));
        divides.tensors[1].fill = Fill::Values(vec![1.5, -0.25, 3.0, 7.0, -11.0]);
        vec![
            case("add_f32", "add", (F32, &[7, 100]), (F32, &[7, 100])),
            case("sub_f32", "sub", (F32, &[3, 2, 33]), (F32, &[3, 2, 33])),
            case(
                "mul_f32",
                "mul",
                (F32, &[2, 3, 2, 64]),
                (F32, &[2, 3, 2, 64]),
            ),
            divides,
            exact(case(
                "exact_mul_f32",
                "mul",
                (F32, &[9, 130]),
                (F32, &[130]),
            )),
            exact(case(
                "exact_add_f16",
                "add",
                (F16, &[9, 130]),
                (F16, &[9, 1]),
            )),
            case("add_f16", "add", (F16, &[4, 96]), (F16, &[4, 96])),
            case("mul_bf16", "mul", (BF16, &[4, 95]), (BF16, &[95])),
            case("add_f16_f32", "add", (F16, &[4, 96]), (F32, &[96])),
            case("mul_f32_to_f16", "mul", (F32, &[4, 50]), (F32, &[1])).attr("dtype", "F16"),
            // Each axis of b repeats.
            exact(case(
                "repeats_f32",
                "sub",
                (F32, &[4, 6, 4, 20]),
                (F32, &[2, 3, 1, 5]),
            )),
            exact(case(
                "repeats_odd_f32",
                "add",
                (F32, &[6, 21]),
                (F32, &[2, 7]),
            )),
            // More than a group's block of columns, and many short rows in one.
            case("long_rows_f32", "add", (F32, &[2, 9001]), (F32, &[9001])),
            case(
                "many_rows_f32",
                "mul",
                (F32, &[3, 700, 3]),
                (F32, &[3, 1, 3]),
            ),
            {
                let r = start("permuted_f32", "add");
                let r = strided(r, "a", F32, &[3, 4, 2, 33], &[0, 2, 1, 3], 2, plain());
                strided(r, "b", F32, &[3, 4, 2, 33], &[3, 1, 0, 2], 1, plain())
            },
            strided(
                start("transposed_a_f16", "mul"),
                "a",
                F16,
                &[17, 40],
                &[1, 0],
                3,
                plain(),
            )
            .tensor("b", F16, &[17, 40], plain()),
            special,
            case("one_element_f32", "add", (F32, &[1]), (F32, &[1])),
            case("no_rows_f32", "add", (F32, &[0, 16]), (F32, &[16])),
            case("no_columns_f32", "add", (F32, &[3, 0]), (F32, &[3, 0])),
        ]
    }

    pub(in crate::layer) fn strategy() -> BoxedStrategy<Recipe> {
        let functions = select(vec!["add", "sub", "mul"]);
        let dtypes = prop_oneof![
            3 => Just((F32, F32)), 1 => Just((F16, F16)), 1 => Just((BF16, BF16)), 1 => Just((F16, F32))
        ];
        let repeats = (proptest::collection::vec(1u64..=3, 4), any::<[bool; 4]>());
        let sizes = (shapes(), repeats, 0usize..=4);
        (
            sizes,
            dtypes,
            functions,
            [layouts(), layouts()],
            any::<bool>(),
            seeds(),
        )
            .prop_map(
                |((shape, (times, repeat), rank), (a, b), function, layouts, is_exact, seed)| {
                    // a is b, repeated along some axes.
                    let mut part = shape.clone();
                    let mut whole = shape;
                    for axis in 0..part.len() {
                        if repeat[axis] {
                            whole[axis] = part[axis] * times[axis];
                        }
                    }
                    let lead = part.len().saturating_sub(rank.max(1));
                    part.drain(..lead);
                    let fill = || if is_exact { integers(-8, 8) } else { plain() };
                    let name = format!("{function}_{whole:?}_{}_{}", lower(a), lower(b))
                        .replace(", ", "x");
                    let data = if is_exact {
                        DataClass::Exact
                    } else {
                        DataClass::Random
                    };
                    let recipe =
                        Recipe::new("elementwise", name, data, seed).attr("function", function);
                    let recipe = laid_out(recipe, "a", a, &whole, layouts[0], fill());
                    laid_out(recipe, "b", b, &part, layouts[1], fill())
                },
            )
            .boxed()
    }
}

/// Cases of `unary`.
pub(in crate::layer) mod unary {
    use super::*;

    const FUNCTIONS: [&str; 11] = [
        "silu",
        "gelu",
        "gelu_erf",
        "gelu_quick",
        "relu",
        "sigmoid",
        "tanh",
        "exp",
        "neg",
        "scale",
        "clamp",
    ];

    fn case(name: &str, function: &str, dtype: DType, shape: &[u64], fill: Fill) -> Recipe {
        recipe("unary", name, DataClass::Random)
            .tensor("x", dtype, shape, fill)
            .attr("function", function)
    }

    fn parameters(recipe: Recipe, function: &str) -> Recipe {
        match function {
            "scale" => recipe.attr("scale", -1.5).attr("bias", 0.25),
            "clamp" => recipe.attr("min", -0.5).attr("max", 1.25),
            _ => recipe,
        }
    }

    pub(in crate::layer) fn fixed() -> Vec<Recipe> {
        let mut cases = Vec::new();
        let special = || {
            let fill = patched(uniform(30.0), [3, 50], Special::Nan);
            patched(
                patched(fill, [8], Special::Infinity),
                [21],
                Special::NegativeInfinity,
            )
        };
        for function in FUNCTIONS {
            let name = format!("{function}_f32");
            cases.push(parameters(
                case(&name, function, F32, &[5, 67], uniform(6.0)),
                function,
            ));
            let name = format!("{function}_f16");
            cases.push(parameters(
                case(&name, function, F16, &[3, 48], uniform(4.0)),
                function,
            ));
            let mut wide = parameters(
                case(
                    &format!("{function}_wide_f32"),
                    function,
                    F32,
                    &[4, 40],
                    special(),
                ),
                function,
            );
            wide.data = DataClass::Adversarial;
            cases.push(wide);
        }
        cases.push(
            case("silu_bf16_to_f32", "silu", BF16, &[2, 3, 2, 21], plain()).attr("dtype", "F32"),
        );
        cases.push(case("long_rows_relu_f32", "relu", F32, &[2, 8195], plain()));
        cases.push(strided(
            recipe("unary", "permuted_neg_f32", DataClass::Exact).attr("function", "neg"),
            "x",
            F32,
            &[3, 2, 5, 20],
            &[2, 0, 3, 1],
            2,
            plain(),
        ));
        cases.push(case("half_open_clamp_f32", "clamp", F32, &[30], plain()).attr("max", 0.5));
        cases.push(case("no_elements_f32", "exp", F32, &[2, 0], plain()));
        cases
    }

    pub(in crate::layer) fn strategy() -> BoxedStrategy<Recipe> {
        (
            shapes(),
            dtypes(),
            select(FUNCTIONS.to_vec()),
            layouts(),
            seeds(),
        )
            .prop_map(|(shape, dtype, function, layout, seed)| {
                let name = format!("{function}_{shape:?}_{}", lower(dtype)).replace(", ", "x");
                let recipe =
                    Recipe::new("unary", name, DataClass::Random, seed).attr("function", function);
                let recipe = laid_out(recipe, "x", dtype, &shape, layout, uniform(5.0));
                let recipe = parameters(recipe, function);
                if dtype == BF16 {
                    recipe.attr("dtype", "F32")
                } else {
                    recipe
                }
            })
            .boxed()
    }
}

/// Cases of `glu`.
pub(in crate::layer) mod glu {
    use super::*;

    const FUNCTIONS: [&str; 5] = ["swiglu", "geglu", "reglu", "geglu_erf", "geglu_quick"];

    fn packed(name: &str, function: &str, dtype: DType, shape: &[u64]) -> Recipe {
        recipe("glu", name, DataClass::Random)
            .tensor("x", dtype, shape, uniform(4.0))
            .attr("function", function)
    }

    pub(in crate::layer) fn fixed() -> Vec<Recipe> {
        let mut cases = Vec::new();
        for function in FUNCTIONS {
            cases.push(packed(
                &format!("{function}_packed_f32"),
                function,
                F32,
                &[5, 2 * 43],
            ));
            let split = packed(&format!("{function}_split_f32"), function, F32, &[3, 64]);
            cases.push(split.tensor("up", F32, &[3, 64], plain()));
        }
        cases.push(packed("swapped_f32", "swiglu", F32, &[2, 3, 66]).attr("swapped", true));
        cases.push(packed("swiglu_f16", "swiglu", F16, &[6, 128]));
        cases.push(packed("geglu_bf16", "geglu", BF16, &[6, 50]));
        cases.push(packed("long_rows_f32", "swiglu", F32, &[2, 2 * 5003]));
        let split = recipe("glu", "permuted_split_f32", DataClass::Random);
        let split = strided(split, "x", F32, &[4, 3, 33], &[1, 0, 2], 5, plain());
        cases.push(strided(
            split,
            "up",
            F32,
            &[4, 3, 33],
            &[2, 0, 1],
            0,
            plain(),
        ));
        let within = recipe("glu", "packed_within_rows_f32", DataClass::Random);
        cases.push(strided(
            within,
            "x",
            F32,
            &[4, 3, 34],
            &[1, 0, 2],
            2,
            plain(),
        ));
        let mut exact = packed("exact_reglu_f32", "reglu", F32, &[4, 40]);
        exact.data = DataClass::Exact;
        exact.tensors[0].fill = integers(-9, 9);
        cases.push(exact);
        let mut nan = packed("nan_f32", "swiglu", F32, &[3, 40]);
        nan.data = DataClass::Adversarial;
        nan.tensors[0].fill = patched(plain(), [1, 25, 70], Special::Nan);
        cases.push(nan);
        cases.push(packed("no_rows_f32", "swiglu", F32, &[0, 8]));
        cases
    }

    pub(in crate::layer) fn strategy() -> BoxedStrategy<Recipe> {
        (
            shapes(),
            dtypes(),
            select(FUNCTIONS.to_vec()),
            layouts(),
            any::<[bool; 2]>(),
            seeds(),
        )
            .prop_map(
                |(mut shape, dtype, function, layout, [split, swapped], seed)| {
                    let name = format!("{function}_{shape:?}_{}", lower(dtype)).replace(", ", "x");
                    let recipe = Recipe::new("glu", name, DataClass::Random, seed)
                        .attr("function", function);
                    if split {
                        let recipe = laid_out(recipe, "x", dtype, &shape, layout, uniform(4.0));
                        return recipe.tensor("up", dtype, &shape, plain());
                    }
                    if let Some(last) = shape.last_mut() {
                        *last *= 2;
                    }
                    let recipe = laid_out(recipe, "x", dtype, &shape, layout, uniform(4.0));
                    if swapped {
                        recipe.attr("swapped", true)
                    } else {
                        recipe
                    }
                },
            )
            .boxed()
    }
}

/// Cases of `copy`.
pub(in crate::layer) mod copy {
    use super::*;

    fn case(name: &str, from: DType, to: DType, shape: &[u64]) -> Recipe {
        let fill = match (from, to) {
            (I32, _) => integers(-40_000_000, 40_000_000),
            (_, I32) => uniform(1000.0),
            _ => plain(),
        };
        recipe("copy", name, DataClass::Exact)
            .tensor("x", from, shape, fill)
            .attr("dtype", to.name())
    }

    pub(in crate::layer) fn fixed() -> Vec<Recipe> {
        let permuted = |name: &str, dtype, order: &[usize]| {
            strided(
                recipe("copy", name, DataClass::Exact),
                "x",
                dtype,
                &[2, 3, 5, 32],
                order,
                1,
                plain(),
            )
        };
        let mut specials = case("specials_to_f16", F32, F16, &[4, 40]);
        specials.tensors[0].fill = patched(
            patched(uniform(70_000.0), [2, 77], Special::Nan),
            [9, 90],
            Special::Infinity,
        );
        let mut truncated = case("specials_to_i32", F32, I32, &[4, 40]);
        truncated.tensors[0].fill = patched(
            patched(uniform(9.0), [2, 77], Special::Nan),
            [9, 90],
            Special::Number(-3e9),
        );
        vec![
            case("f32", F32, F32, &[7, 100]),
            case("i32", I32, I32, &[7, 33]),
            case("f16", F16, F16, &[5, 67]),
            case("f32_to_f16", F32, F16, &[7, 100]),
            case("f32_to_bf16", F32, BF16, &[7, 99]),
            case("f16_to_f32", F16, F32, &[2, 3, 64]),
            case("bf16_to_f32", BF16, F32, &[2, 3, 65]),
            case("f32_to_i32", F32, I32, &[3, 40]),
            case("i32_to_f32", I32, F32, &[3, 40]),
            specials,
            truncated,
            permuted("permuted_f32", F32, &[0, 2, 1, 3]),
            permuted("transposed_f32", F32, &[0, 1, 3, 2]),
            permuted("turned_f16", F16, &[3, 0, 2, 1]),
            permuted("permuted_to_matrix_f32", F32, &[0, 2, 1, 3]).attr("shape", vec![6u64, 160]),
            permuted("transposed_to_vector_f32", F32, &[3, 2, 1, 0]).attr("shape", vec![960u64]),
            case("to_more_axes_f32", F32, F32, &[12, 35]).attr("shape", vec![3u64, 7, 2, 10]),
            case("long_rows_f32", F32, F32, &[2, 8203]),
            case("many_rows_f32", F32, F32, &[3, 900, 2]),
            case("no_elements_f32", F32, F32, &[0, 8]).attr("shape", vec![8u64, 0]),
        ]
    }

    pub(in crate::layer) fn strategy() -> BoxedStrategy<Recipe> {
        let dtypes = select(vec![
            (F32, F32),
            (F32, F16),
            (F16, F32),
            (F16, F16),
            (F32, BF16),
            (BF16, F32),
            (I32, I32),
        ]);
        (shapes(), dtypes, layouts(), any::<bool>(), seeds())
            .prop_map(|(shape, (from, to), layout, flat, seed)| {
                let name = format!("{shape:?}_{}_{}", lower(from), lower(to)).replace(", ", "x");
                let fill = if from == I32 {
                    integers(-9_999, 9_999)
                } else {
                    plain()
                };
                let recipe =
                    Recipe::new("copy", name, DataClass::Exact, seed).attr("dtype", to.name());
                let recipe = laid_out(recipe, "x", from, &shape, layout, fill);
                match flat {
                    true => recipe.attr("shape", vec![shape.iter().product::<u64>()]),
                    false => recipe,
                }
            })
            .boxed()
    }
}
