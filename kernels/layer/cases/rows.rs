//! Cases of `get_rows` and `set_rows`.

use super::*;

/// Cases of `get_rows`.
pub(in crate::layer) mod get_rows {
    use super::*;

    fn case(name: &str, dtype: DType, x: &[u64], ids: &[u64]) -> Recipe {
        let rows = x[x.len() - 2];
        recipe("get_rows", name, DataClass::Exact)
            .tensor("x", dtype, x, plain())
            .tensor("ids", I32, ids, integers(0, rows as i64 - 1))
            .attr("dtype", "F32")
    }

    pub(in crate::layer) fn fixed() -> Vec<Recipe> {
        let padded = recipe("get_rows", "padded_table_f32", DataClass::Exact).tensor(
            "ids",
            I32,
            &[9],
            integers(0, 11),
        );
        let mut same = case("f16_to_f16", F16, &[12, 40], &[5]);
        same.attrs.clear();
        let strided_ids = recipe("get_rows", "strided_ids_f32", DataClass::Exact)
            .tensor("x", F32, &[10, 24], plain())
            .tensor("ids_stored", I32, &[6, 2], integers(0, 9))
            .view("ids", "ids_stored", &[6], &[2], 1);
        vec![
            case("f32", F32, &[20, 64], &[7]),
            case("f16", F16, &[20, 63], &[7]),
            case("bf16", BF16, &[20, 65], &[7]),
            same,
            case("batched_f32", F32, &[3, 8, 33], &[3, 5]),
            case("twice_batched_f32", F32, &[2, 3, 8, 16], &[2, 3, 4]),
            case("one_row_f32", F32, &[300, 576], &[1]),
            case("long_rows_f16", F16, &[3, 5000], &[4]),
            case("narrow_f32", F32, &[50, 1], &[600]),
            strided(padded, "x", F32, &[12, 20], &[0, 1], 3, plain()),
            strided_ids,
            case("no_ids_f32", F32, &[4, 8], &[0]),
            case("no_columns_f32", F32, &[4, 0], &[3]),
        ]
    }

    pub(in crate::layer) fn strategy() -> BoxedStrategy<Recipe> {
        (shapes(), dtypes(), 1u64..=9, 0u64..=9, layouts(), seeds())
            .prop_map(|(mut x, dtype, rows, m, layout, seed)| {
                x.truncate(3);
                let columns = x.pop().unwrap_or(1);
                let mut ids = x.clone();
                ids.push(m);
                x.extend([rows, columns]);
                let name = format!("{x:?}_{m}_{}", lower(dtype)).replace(", ", "x");
                let recipe = Recipe::new("get_rows", name, DataClass::Exact, seed)
                    .tensor("ids", I32, &ids, integers(0, rows as i64 - 1))
                    .attr("dtype", "F32");
                laid_out(recipe, "x", dtype, &x, layout, plain())
            })
            .boxed()
    }
}

/// Cases of `set_rows`.
pub(in crate::layer) mod set_rows {
    use super::*;

    /// Rows of `x` into `rows`; without data all of them are set.
    fn case(name: &str, to: DType, x: &[u64], ids: &[u64], rows: u64, with_data: bool) -> Recipe {
        build(
            recipe("set_rows", name, DataClass::Exact),
            to,
            x,
            ids,
            rows,
            with_data,
        )
    }

    fn build(
        recipe: Recipe,
        to: DType,
        x: &[u64],
        ids: &[u64],
        rows: u64,
        with_data: bool,
    ) -> Recipe {
        let m = x[x.len() - 2];
        let lists: u64 = ids.iter().rev().skip(1).product();
        let numbers = values(distinct(m, rows, lists, recipe.seed));
        let recipe = recipe
            .tensor("x", F32, x, plain())
            .tensor("ids", I32, ids, numbers);
        if !with_data {
            return recipe.attr("rows", rows).attr("dtype", to.name());
        }
        let mut shape = x.to_vec();
        let last = shape.len() - 2;
        shape[last] = rows;
        recipe.tensor("data", to, &shape, plain())
    }

    /// The same ids as pairs of halves.
    fn wide(mut recipe: Recipe, m: u64) -> Recipe {
        let ids = recipe
            .tensors
            .iter_mut()
            .find(|tensor| tensor.name == "ids");
        if let Some(ids) = ids
            && let Fill::Values(values) = &mut ids.fill
        {
            ids.shape = vec![m, 2];
            *values = values.iter().flat_map(|&id| [id, 0.0]).collect();
        }
        recipe
    }

    pub(in crate::layer) fn fixed() -> Vec<Recipe> {
        vec![
            case("all_f32", F32, &[12, 64], &[12], 12, false),
            case("all_f16", F16, &[12, 33], &[12], 12, false),
            case("some_f32", F32, &[5, 64], &[5], 20, true),
            case("some_f16", F16, &[5, 63], &[5], 20, true),
            case("some_bf16", BF16, &[5, 40], &[5], 9, true),
            wide(case("wide_ids_f32", F32, &[6, 48], &[6], 10, true), 6),
            case("batched_f16", F16, &[3, 4, 32], &[3, 4], 7, true),
            case("repeated_ids_f32", F32, &[2, 4, 3, 20], &[1, 2, 3], 6, true),
            case("one_row_f16", F16, &[1, 192], &[1], 64, true),
            case("long_rows_f32", F32, &[2, 5001], &[2], 3, true),
            case("none_f32", F32, &[0, 8], &[0], 4, true),
        ]
    }

    pub(in crate::layer) fn strategy() -> BoxedStrategy<Recipe> {
        let lead = proptest::collection::vec(1u64..=3, 0..=2);
        let sizes = (lead, 1u64..=9, 0u64..=9, 0u64..=40);
        (sizes, select(vec![F32, F16, BF16]), any::<bool>(), seeds())
            .prop_map(|((lead, rows, m, columns), to, with_data, seed)| {
                let m = if with_data { m.min(rows) } else { rows };
                let x = [&lead[..], &[m, columns]].concat();
                let ids = [&lead[..], &[m]].concat();
                let name = format!("{x:?}_{rows}_{}", lower(to)).replace(", ", "x");
                let recipe = Recipe::new("set_rows", name, DataClass::Exact, seed);
                build(recipe, to, &x, &ids, rows, with_data)
            })
            .boxed()
    }
}
