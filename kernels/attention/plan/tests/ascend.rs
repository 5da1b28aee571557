//! What Ascend NPUs get.

use ropeway_core::DType::{BF16, F16, F32};
use ropeway_core::plan::{Arg, Plan, StrideRule};

use super::dense;
use crate::described::npu;

fn entries(plan: &Plan) -> Vec<&'static str> {
    plan.launches.iter().map(|launch| launch.entry).collect()
}

const PASS: [&str; 4] = [
    "attention_scores",
    "attention_softmax",
    "attention_values",
    "attention_finish",
];

#[test]
fn one_pass_takes_what_fits_level_2_cache() {
    for dtype in [F32, F16, BF16] {
        let plan = dense(&npu(), dtype, [32, 8], [1, 4096], [128, 128]);
        assert_eq!(entries(&plan), PASS);
        // 8 items of 16 rows (4 are there) and 8 segments.
        assert_eq!(plan.workspace, 8 * 16 * 8 * (512 * 4 + 128 * 4 + 8));
        for operand in [0, 1, 2] {
            assert_eq!(plan.operands[operand].strides[3], StrideRule::Exactly(1));
        }
    }
}

#[test]
fn many_items_go_through_the_workspace_in_passes() {
    let plan = dense(&npu(), F16, [32, 32], [4096, 4096], [128, 128]);
    let slot = 128 * 8 * (512 * 4 + 128 * 4 + 8);
    let slots = (64 << 20) / slot;
    assert!(plan.workspace <= slots * slot + 3 * 4096);
    let passes = (32u64 * 32).div_ceil(slots) as usize;
    assert_eq!(entries(&plan), PASS.repeat(passes));
    let first =
        |launch: usize| match &plan.launches[launch].args[plan.launches[launch].args.len() - 6] {
            Arg::I32(first) => first.evaluate(&[]),
            other => panic!("{other:?}"),
        };
    assert_eq!(first(0), 0);
    assert_eq!(first(4), slots as i64);
}

#[test]
fn passes_are_at_most_256() {
    let plan = dense(&npu(), F16, [128, 128], [32768, 32768], [128, 128]);
    assert!(plan.launches.len() <= 4 * 256);
}

#[test]
fn without_keys_or_columns_steps_are_left_out() {
    let plan = dense(&npu(), F32, [2, 1], [3, 0], [8, 8]);
    assert_eq!(entries(&plan), PASS[3..]);
    let plan = dense(&npu(), F32, [2, 1], [3, 5], [8, 0]);
    assert_eq!(entries(&plan), [PASS[0], PASS[1], PASS[3]]);
}
