//! A workload at other sizes than its own: small enough to be checked, off its tiles, and elsewhere in its bucket.

use ropeway_core::spec::{Random, seed_of};
use ropeway_core::{Error, Result};

use super::{Form, Sizes, blocks, evaluate, form_of, resized, sizes};
use crate::definition::Workload;

/// Operations and bytes of a problem that is checked for every configuration: the f64 reference takes about a tenth of a second.
const CHECKED_WORK: f64 = 2e7;

/// Work that the reference has at these sizes.
fn work(workload: &Workload, dtype: &str, sizes: &Sizes) -> Result<f64> {
    let cost = resized(workload, sizes, false)?.op(dtype)?.cost();
    Ok(cost.flops.max(cost.bytes))
}

/// What a size must be a multiple of: columns that an activation pairs, or weights that lie in blocks, stay whole.
fn step(form: &Form, size: &str, workload: &Workload) -> u64 {
    match (form.op, size) {
        ("gemm" | "grouped_gemm" | "grouped_gemm_masked", "n") => 2,
        ("gemm" | "grouped_gemm" | "grouped_gemm_masked", "k") => {
            blocks("b", workload).map_or(1, |block| block.elements)
        }
        _ => 1,
    }
}

/// The problems that a configuration must solve before it is timed: the shape with what is too large made smaller, every size off its
/// tiles, and one row. A workload of no known form gives none.
///
/// # Errors
/// As [`Workload::op`].
pub fn checks(workload: &Workload, dtype: &str) -> Result<Vec<Workload>> {
    let (Some(form), Some(mut reduced)) = (form_of(&workload.op), sizes(workload)) else {
        return Ok(Vec::new());
    };
    let step = |name: &str| step(form, name, workload);
    let shrink = |sizes: &mut Sizes, names: &[&str], floor: u64| {
        let largest = names
            .iter()
            .filter(|name| {
                sizes
                    .get(**name)
                    .is_some_and(|size| *size > floor.max(step(name)))
            })
            .max_by_key(|name| sizes[**name]);
        match largest {
            Some(name) => {
                let half = sizes[*name].div_ceil(2);
                sizes.insert((*name).into(), half.next_multiple_of(step(name)));
                true
            }
            None => false,
        }
    };
    while work(workload, dtype, &reduced)? > CHECKED_WORK {
        let smaller = shrink(&mut reduced, form.rows, 160)
            || shrink(&mut reduced, form.counts, 4)
            || shrink(&mut reduced, form.free, 160)
            || shrink(&mut reduced, form.rows, 8)
            || shrink(&mut reduced, form.free, 32);
        if !smaller {
            break;
        }
        // A pool of no more blocks than the sequences have.
        if let Some(blocks) = reduced.get("blocks").copied() {
            let used = evaluate("batch*max_blocks", &reduced)?;
            reduced.insert("blocks".into(), blocks.min(used));
        }
    }
    let mut tails = reduced.clone();
    for name in form.rows.iter().chain(form.free) {
        let step = step(name);
        if let Some(size) = tails.get_mut(*name).filter(|size| **size > step) {
            *size -= step;
        }
    }
    let mut one = tails.clone();
    for name in form.rows {
        one.insert((*name).into(), 1);
    }
    let mut found = vec![resized(workload, &reduced, false)?];
    for (sizes, edge) in [(tails, true), (one, true)] {
        let problem = resized(workload, &sizes, edge)?;
        // Of a single row, what differs may be which expert has it.
        let differs =
            |known: &Workload| known.tensors != problem.tensors || known.fill != problem.fill;
        if found.iter().all(differs) {
            found.push(problem);
        }
    }
    Ok(found)
}

/// Places in the bucket of a shape, besides itself, at which a winner meets the default.
const PLACES: u64 = 8;

/// The sizes of a workload that vary from call to call: tokens, rows, lengths. What is left belongs to a model's weights.
pub fn varying(workload: &Workload) -> Vec<String> {
    let rows = form_of(&workload.op).map_or(&[][..], |form| form.rows);
    rows.iter().map(|name| String::from(*name)).collect()
}

/// The workload at other places in its bucket. Of each size that varies from call to call, the values between half the power of two that it
/// is rounded up to and the whole are cut into as many equal parts as there are places; a place has a value drawn from its part, the same at
/// each call. How well tiles share out depends on the value in ways that no corner of the bucket shows. None for a workload of no known form,
/// or with nothing that varies.
///
/// # Errors
/// `InvalidArgument` if the sizes do not fit 64 bits.
pub fn elsewhere(workload: &Workload) -> Result<Vec<Workload>> {
    let (Some(form), Some(own)) = (form_of(&workload.op), sizes(workload)) else {
        return Ok(Vec::new());
    };
    let mut seen = vec![own.clone()];
    let mut found = Vec::new();
    for place in 0..PLACES {
        let mut sizes = own.clone();
        let mut random = Random::new(seed_of(&workload.name).wrapping_add(place));
        for name in form.rows {
            if let Some(size) = sizes.get_mut(*name).filter(|size| **size > 2) {
                let top = size.checked_next_power_of_two();
                let half = top.ok_or_else(|| Error::invalid(name, *size, "at most 2^63"))? / 2;
                let part = (half / PLACES).max(1);
                let offset = part * place + random.below(part);
                *size = half + 1 + offset.min(half - 1);
            }
        }
        if !seen.contains(&sizes) {
            let mut there = resized(workload, &sizes, false)?;
            there.name += &format!(" (elsewhere {place})");
            found.push(there);
            seen.push(sizes);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::workload;
    use super::*;
    use crate::definition::{BUILT_IN, Definition};

    #[test]
    fn edges_have_one_row_tails_and_empty_experts() {
        let large = workload("gemm", "m=4096 n=4096 k=4096 trans_b=true", "F32").unwrap();
        let problems = checks(&large, "F32").unwrap();
        let [reduced, tails, one] = &problems[..] else {
            panic!("three problems")
        };
        let sizes_of = |workload| sizes(workload).unwrap();
        assert!(sizes_of(reduced)["m"] >= 128, "{:?}", reduced.tensors);
        assert_eq!(sizes_of(tails)["m"], sizes_of(reduced)["m"] - 1);
        assert_eq!(sizes_of(tails)["k"] % 2, 1);
        assert_eq!(sizes_of(one)["m"], 1);

        let experts = workload("grouped_gemm", "rows=512 experts=16 n=64 k=64", "F32").unwrap();
        for check in &checks(&experts, "F32").unwrap()[1..] {
            let (request, _) = check.request("F32").unwrap();
            let offsets = request.inputs["expert_offsets"].to_i32().unwrap();
            assert!(offsets.windows(2).any(|w| w[0] == w[1]), "{offsets:?}");
            assert_eq!(i64::from(offsets[16]), sizes_of(check)["rows"] as i64);
        }
    }

    /// Weights in blocks are held to as much as plain ones.
    #[test]
    fn quantised_weights_have_the_edges_of_plain_ones() {
        for (format, block) in [
            ("q4_0", 32),
            ("q4_1", 32),
            ("q8_0", 32),
            ("q4_k", 256),
            ("q6_k", 256),
        ] {
            let shape = format!("m=4096 n=4096 k=4096 trans_b=true b_format={format}");
            let large = workload("gemm", &shape, "F32").unwrap();
            let problems = checks(&large, "F32").unwrap();
            let [reduced, tails, one] = &problems[..] else {
                panic!("{format}: {problems:?}")
            };
            let of = |workload| sizes(workload).unwrap();
            let (reduced, tails, one) = (of(reduced), of(tails), of(one));
            assert!(
                reduced["m"] >= 128 && reduced["k"] >= block,
                "{format}: {reduced:?}"
            );
            assert_eq!(tails["m"], reduced["m"] - 1);
            assert_eq!(tails["n"], reduced["n"] - 2);
            assert_eq!(tails["k"], (reduced["k"] - block).max(block), "{format}");
            assert_eq!((one["m"], one["n"]), (1, tails["n"]));

            let shape = format!("rows=512 experts=16 n=1024 k=1024 b_format={format}");
            let experts = workload("grouped_gemm", &shape, "F32").unwrap();
            let problems = checks(&experts, "F32").unwrap();
            assert_eq!(problems.len(), 3, "{format}");
            for check in &problems[1..] {
                let (request, _) = check.request("F32").unwrap();
                let offsets = request.inputs["expert_offsets"].to_i32().unwrap();
                assert!(offsets.windows(2).any(|w| w[0] == w[1]), "{offsets:?}");
            }
        }
        // Two rows of two experts are one each: at the edge one of them has none.
        let few = workload(
            "grouped_gemm",
            "rows=1 experts=2 n=2 k=32 b_format=q4_0",
            "F32",
        );
        let problems = checks(&few.unwrap(), "F32").unwrap();
        let fills: Vec<_> = problems.iter().map(|p| &p.fill["expert_offsets"]).collect();
        assert_eq!(fills, ["rows 1", "skewed 1"]);
    }

    #[test]
    fn checks_of_what_ships_can_be_posed_and_are_small() {
        for (_, text) in BUILT_IN {
            for workload in Definition::parse(text).unwrap().workloads {
                for dtype in &workload.dtypes {
                    let Ok(op) = workload.op(dtype) else { continue };
                    let work = |cost: ropeway_core::op::Cost| cost.flops.max(cost.bytes);
                    let problems = checks(&workload, dtype).unwrap();
                    assert_eq!(
                        problems.is_empty(),
                        sizes(&workload).is_none(),
                        "{}",
                        workload.name
                    );
                    for check in problems {
                        let (_, small) = check.request(dtype).unwrap();
                        let work = work(small.cost()).min(work(op.cost()));
                        assert!(
                            work <= CHECKED_WORK,
                            "{}: {:?}",
                            workload.name,
                            check.tensors
                        );
                    }
                }
            }
        }
    }
}
