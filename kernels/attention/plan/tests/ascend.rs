//! What Ascend NPUs get.

use ropeway_core::DType::{BF16, F16, F32};
use ropeway_core::op::{Op, PlanRequest};
use ropeway_core::plan::{Arg, Plan, StrideRule};
use serde_json::json;

use super::dense;
use crate::attention::AttentionKind;
use crate::described::npu;
use crate::signatures::parse;

fn entries(plan: &Plan) -> Vec<&'static str> {
    plan.launches.iter().map(|launch| launch.entry).collect()
}

/// A rectangular batch in launches apart: heads and key heads, queries and keys, head sizes.
fn apart(dtype: ropeway_core::DType, heads: [u64; 2], rows: [u64; 2], sizes: [u64; 2]) -> Plan {
    let tensors = [
        ("q", dtype, &[1, heads[0], rows[0], sizes[0]][..]),
        ("k", dtype, &[1, heads[1], rows[1], sizes[0]][..]),
        ("v", dtype, &[1, heads[1], rows[1], sizes[1]][..]),
    ];
    let op = parse(&AttentionKind, &tensors, json!({ "causal": true })).expect("a sound problem");
    let info = npu();
    let request = PlanRequest {
        kernel: Some("attention_cube"),
        ..PlanRequest::new(&info)
    };
    Op::plan(&*op, &request).expect("the kernel takes it")
}

const PASS: [&str; 4] = [
    "attention_scores",
    "attention_softmax",
    "attention_values",
    "attention_finish",
];

const FUSED: [&str; 1] = ["attention_fused"];

#[test]
fn one_launch_has_room_for_two_segments_and_two_items_a_core() {
    for dtype in [F32, F16, BF16] {
        let plan = dense(&npu(), dtype, [16, 16], [2048, 2048], [128, 128]);
        assert_eq!(entries(&plan), FUSED);
        assert_eq!(plan.workspace, 2 * 20 * 128 * (512 * 4 + 4 * (128 * 4 + 8)));
        for operand in [0, 1, 2] {
            assert_eq!(plan.operands[operand].strides[3], StrideRule::Exactly(1));
        }
    }
    // Fewer items than cores, of one segment each.
    let plan = dense(&npu(), F16, [12, 12], [128, 128], [64, 64]);
    assert_eq!(entries(&plan), FUSED);
    assert_eq!(plan.workspace, 2 * 12 * 128 * (512 * 4 + 64 * 4 + 8));
}

#[test]
fn few_items_of_many_keys_go_apart() {
    // 8 items of 8 segments for 20 cores.
    for dtype in [F32, F16, BF16] {
        let plan = dense(&npu(), dtype, [32, 8], [1, 4096], [128, 128]);
        assert_eq!(entries(&plan), PASS);
        // 8 items of 16 rows (4 are there) and 8 segments.
        assert_eq!(plan.workspace, 8 * 16 * 8 * (512 * 4 + 128 * 4 + 8));
        for operand in [0, 1, 2] {
            assert_eq!(plan.operands[operand].strides[3], StrideRule::Exactly(1));
        }
    }
    // Enough items, or too few segments for what launches take.
    for (heads, keys) in [(32, 4096), (8, 1024)] {
        let plan = dense(&npu(), F16, [32, heads], [1, keys], [128, 128]);
        assert_eq!(entries(&plan), FUSED);
    }
}

#[test]
fn one_launch_keeps_its_workspace_bounded() {
    // 32 rows of an item, where 128 would have partial sums of 650 MiB.
    let plan = dense(&npu(), F16, [32, 32], [131_072, 131_072], [128, 128]);
    assert_eq!(entries(&plan), FUSED);
    assert!(plan.workspace <= 256 << 20);
    // Even so they are too many.
    let plan = dense(&npu(), F16, [32, 32], [1 << 20, 1 << 20], [128, 128]);
    assert_eq!(entries(&plan)[..4], PASS);
}

#[test]
fn many_items_go_through_the_workspace_in_passes() {
    let plan = apart(F16, [32, 32], [4096, 4096], [128, 128]);
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
    let plan = apart(F16, [128, 128], [32768, 32768], [128, 128]);
    assert!(plan.launches.len() <= 4 * 256);
}

#[test]
fn without_keys_or_columns_steps_are_left_out() {
    let plan = apart(F32, [2, 1], [3, 0], [8, 8]);
    assert_eq!(entries(&plan), PASS[3..]);
    let plan = apart(F32, [2, 1], [3, 5], [8, 0]);
    assert_eq!(entries(&plan), [PASS[0], PASS[1], PASS[3]]);
}
