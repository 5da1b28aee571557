//! What Ascend NPUs get.

use ropeway_core::DType::{self, BF16, F16, F32, I8};
use ropeway_core::op::{Op, PlanRequest};
use ropeway_core::plan::{Plan, StrideRule};
use serde_json::json;

use super::super::super::{GemmKind, GroupedGemmKind};
use crate::described::npu;
use crate::signatures::parse;

/// The entries that the plan of d = a b launches; b is [n, k] if `weights`.
fn entries(
    extents: [u64; 3],
    dtypes: [DType; 2],
    weights: bool,
    attributes: serde_json::Value,
) -> Vec<&'static str> {
    product(extents, dtypes, weights, attributes)
        .launches
        .iter()
        .map(|launch| launch.entry)
        .collect()
}

fn product(
    [m, n, k]: [u64; 3],
    [a, b]: [DType; 2],
    weights: bool,
    mut attributes: serde_json::Value,
) -> Plan {
    let shape = if weights { [n, k] } else { [k, n] };
    let tensors = [("a", a, &[m, k][..]), ("b", b, &shape[..])];
    attributes["trans_b"] = weights.into();
    let op = parse(&GemmKind, &tensors, attributes).expect("a sound problem");
    let plan = Op::plan(&*op, &PlanRequest::new(&npu())).expect("a kernel takes it");
    for launch in &plan.launches {
        assert_eq!((launch.group, launch.local_memory), ([1; 3], 0));
        let key = &plan.modules[launch.module];
        let tunables = key.kernel.default_config();
        key.kernel.validate(&tunables, &npu()).expect("it fits");
    }
    plan
}

#[test]
fn sixteen_bits_go_straight_through_the_cube_cores() {
    for dtype in [F16, BF16] {
        for weights in [true, false] {
            let plan = product([512, 512, 512], [dtype; 2], weights, json!({}));
            let across = plan.modules[0].config.value("B_ACROSS");
            assert_eq!(across, i64::from(!weights));
            assert_eq!(plan.launches.len(), 1);
            assert_eq!(plan.workspace, 0);
            // What lies otherwise is refused when it is bound, not computed wrongly.
            assert_eq!(plan.operands[0].strides[1], StrideRule::Exactly(1));
            assert_eq!(plan.operands[2].strides[1], StrideRule::Exactly(1));
        }
    }
}

#[test]
fn what_the_cube_cores_cannot_take_is_packed() {
    let plain = json!({});
    let entries = |dtypes, weights| entries([2048; 3], dtypes, weights, plain.clone());
    assert_eq!(entries([F32; 2], true), ["gemm_cube"]);
    assert_eq!(entries([F32; 2], false), ["gemm_pack_b", "gemm_cube"]);
    assert_eq!(entries([I8; 2], false), ["gemm_pack_b", "gemm_cube"]);
    // Two dtypes meet in f32.
    assert_eq!(entries([F32, F16], true), ["gemm_pack_b", "gemm_cube"]);
    assert_eq!(entries([F16, F32], true), ["gemm_pack_a", "gemm_cube"]);
}

#[test]
fn what_the_copy_out_cannot_do_follows_on_vector_cores() {
    let attributes = json!({ "activation": "silu" });
    let silu = entries([64, 512, 512], [F16; 2], true, attributes);
    assert_eq!(silu, ["gemm_cube", "gemm_finish"]);
    let nothing = entries([64, 512, 512], [F16; 2], true, json!({ "alpha": 0.0 }));
    assert_eq!(nothing, ["gemm_finish"]);
    // Few tiles: k is cut, the parts are added up behind.
    let few = product([1, 256, 65_536], [F16; 2], true, json!({}));
    assert_eq!(few.launches.len(), 2);
    assert_eq!(few.workspace, 16 * 256 * 4);
}

#[test]
fn blocks_of_weights_are_unpacked_on_vector_cores() {
    let tensors = [("a", F32, &[4, 64][..]), ("b", DType::U8, &[8, 36][..])];
    let attributes = json!({ "trans_b": true, "b_format": "q4_0" });
    let op = parse(&GemmKind, &tensors, attributes).expect("a sound problem");
    let plan = Op::plan(&*op, &PlanRequest::new(&npu())).expect("a kernel takes it");
    let entries: Vec<_> = plan.launches.iter().map(|launch| launch.entry).collect();
    assert_eq!(entries, ["gemm_pack_b", "gemm_cube"]);
}

#[test]
fn experts_are_found_on_the_device() {
    let tensors = [
        ("a", F16, &[4096, 512][..]),
        ("b", F16, &[8, 256, 512][..]),
        ("expert_offsets", DType::I32, &[9][..]),
    ];
    let op = parse(&GroupedGemmKind, &tensors, json!({})).expect("a sound problem");
    let plan = Op::plan(&*op, &PlanRequest::new(&npu())).expect("a kernel takes it");
    let entries: Vec<_> = plan.launches.iter().map(|launch| launch.entry).collect();
    // The second zeroes the rows that no expert has, and says what is wrong with offsets.
    assert_eq!(entries, ["grouped_cube", "grouped_finish"]);
    assert_eq!(plan.workspace, 0);
}
