//! Random cases, plain first: what fails is shrunk towards that.

use super::*;

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
pub(in crate::moe) fn moe_route_strategy() -> BoxedStrategy<Recipe> {
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
pub(in crate::moe) fn expert_scatter_strategy() -> BoxedStrategy<Recipe> {
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
pub(in crate::moe) fn expert_gather_strategy() -> BoxedStrategy<Recipe> {
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
pub(in crate::moe) fn moe_ffn_strategy() -> BoxedStrategy<Recipe> {
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
