//! Cases of `argsort`.

use super::*;

fn case(name: &str, order: &str, dtype: DType, shape: &[u64], fill: Fill) -> Recipe {
    recipe("argsort", name, DataClass::Exact)
        .tensor("x", dtype, shape, fill)
        .attr("order", order)
}

pub(in crate::layer) fn fixed() -> Vec<Recipe> {
    let mut cases = Vec::new();
    for order in ["asc", "desc"] {
        let name = |rest: &str| format!("{order}_{rest}");
        cases.push(case(&name("f32"), order, F32, &[5, 64], plain()));
        cases.push(case(&name("f16"), order, F16, &[5, 63], plain()));
        cases.push(case(&name("bf16"), order, BF16, &[2, 3, 100], plain()));
        cases.push(case(
            &name("ties_f32"),
            order,
            F32,
            &[4, 90],
            integers(-2, 2),
        ));
        let specials = patched(
            patched(plain(), [3, 60], Special::Nan),
            [7, 50],
            Special::Infinity,
        );
        let specials = patched(specials, [20, 71], Special::NegativeInfinity);
        let specials = patched(
            patched(specials, [5], Special::Number(0.0)),
            [2, 9],
            Special::Number(-0.0),
        );
        cases.push(case(
            &name("specials_f32"),
            order,
            F32,
            &[2, 40],
            specials.clone(),
        ));
        cases.push(case(&name("specials_f16"), order, F16, &[2, 40], specials));
        cases.push(case(&name("two_runs_f32"), order, F32, &[2, 300], plain()));
        cases.push(case(
            &name("many_runs_f32"),
            order,
            F32,
            &[2, 1500],
            integers(-300, 300),
        ));
        cases.push(case(&name("top_8_of_64_f32"), order, F32, &[6, 64], plain()).attr("k", 8));
        cases
            .push(case(&name("top_40_of_3000_f32"), order, F32, &[2, 3000], plain()).attr("k", 40));
        cases.push(
            case(
                &name("top_700_of_1100_f32"),
                order,
                F32,
                &[1100],
                integers(0, 99),
            )
            .attr("k", 700),
        );
    }
    // Several widths to merge, none of them whole.
    let ties = integers(-2000, 2000);
    cases.push(case("desc_long_f32", "desc", F32, &[2, 5000], ties));
    let permuted = recipe("argsort", "permuted_f32", DataClass::Exact);
    cases.push(strided(
        permuted,
        "x",
        F32,
        &[3, 4, 40],
        &[2, 1, 0],
        2,
        plain(),
    ));
    cases.push(case("one_column_f32", "asc", F32, &[5, 1], plain()));
    cases.push(case("top_none_f32", "asc", F32, &[5, 8], plain()).attr("k", 0));
    cases.push(case("no_columns_f32", "asc", F32, &[5, 0], plain()));
    cases.push(case("no_rows_f32", "asc", F32, &[0, 7], plain()));
    cases
}

pub(in crate::layer) fn strategy() -> BoxedStrategy<Recipe> {
    let columns = prop_oneof![4 => 0u64..=70, 1 => 250u64..=1100];
    let fill = prop_oneof![Just(plain()), Just(integers(-3, 3))];
    let options = (
        select(vec!["asc", "desc"]),
        proptest::option::of(any::<prop::sample::Index>()),
    );
    (
        0u64..=4,
        columns,
        dtypes(),
        fill,
        layouts(),
        options,
        seeds(),
    )
        .prop_map(|(rows, columns, dtype, fill, layout, (order, k), seed)| {
            let name = format!("{order}_{rows}x{columns}_{}", lower(dtype));
            let recipe = Recipe::new("argsort", name, DataClass::Exact, seed).attr("order", order);
            let recipe = laid_out(recipe, "x", dtype, &[rows, columns], layout, fill);
            match k {
                Some(k) => recipe.attr("k", k.index(columns as usize + 1) as u64),
                None => recipe,
            }
        })
        .boxed()
}
