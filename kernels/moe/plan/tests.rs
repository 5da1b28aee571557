//! What the planners give a CUDA device and an Ascend NPU: read off plans, since planning needs no device.

use std::any::Any;
use std::sync::Arc;

use ropeway_core::ErrorKind::Unsupported;
use ropeway_core::info::DeviceInfo;
use ropeway_core::memory::{DeviceId, Memory};
use ropeway_core::op::{Op, OpKind, Operand, PlanRequest};
use ropeway_core::plan::Plan;
use ropeway_core::{Buffer, DType, Result};
use serde_json::{Value, json};

use crate::described::{npu, sm_80};
use crate::moe::{ExpertGatherKind, ExpertScatterKind, MoeFfnKind, MoeRouteKind};
use crate::signatures::{parse, refused};
use DType::{BF16, F16, F32, I32};

type Tensor<'a> = (&'a str, DType, &'a [u64]);

/// Memory that is only measured.
struct Unbacked(DeviceId);

impl Memory for Unbacked {
    fn size(&self) -> u64 {
        1 << 50
    }

    fn device(&self) -> DeviceId {
        self.0
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn plan_of(kind: &dyn OpKind, tensors: &[Tensor<'_>], attrs: Value) -> Result<(Plan, Vec<String>)> {
    plan_on(&sm_80(), kind, tensors, attrs)
}

fn plan_on(
    info: &DeviceInfo,
    kind: &dyn OpKind,
    tensors: &[Tensor<'_>],
    attrs: Value,
) -> Result<(Plan, Vec<String>)> {
    let op = parse(kind, tensors, attrs)?;
    let plan = Op::plan(&*op, &PlanRequest::new(info))?;
    let buffer = Buffer::new(Arc::new(Unbacked(DeviceId::unique())));
    let view = |operand: Operand| buffer.view(operand.desc, 0);
    let views: Vec<_> = op.operands().into_iter().map(view).collect::<Result<_>>()?;
    let mut launches = Vec::new();
    for launch in &plan.launches {
        let key = &plan.modules[launch.module];
        let source = key.kernel.source_for(info)?;
        assert_eq!(source.language, info.languages[0], "{plan}");
        let threads: u32 = launch.group.iter().product();
        assert!(
            (1..=info.limits.max_group_size).contains(&threads),
            "{plan}"
        );
        let grid = [0, 1, 2].map(|axis| launch.grid[axis].evaluate(&views) as u64);
        for (blocks, most) in grid.into_iter().zip(info.limits.max_grid) {
            assert!(blocks <= most, "{grid:?} of {} in {plan}", launch.entry);
        }
        let [x, y, z] = grid;
        launches.push(format!("{} {} {x}x{y}x{z}", key.kernel.name, launch.entry));
    }
    Ok((plan, launches))
}

fn launches(kind: &dyn OpKind, tensors: &[Tensor<'_>], attrs: Value) -> Vec<String> {
    plan_of(kind, tensors, attrs).expect("a kernel takes it").1
}

#[test]
fn a_warp_routes_a_token_of_few_experts() {
    let route = |experts: u64, topk: u64, dtype| {
        let attrs = json!({"topk": topk});
        launches(&MoeRouteKind, &[("logits", dtype, &[10, experts])], attrs).join(", ")
    };
    // Four warps a block.
    assert_eq!(route(64, 8, F32), "moe_route_warp moe_route_warp 3x1x1");
    assert_eq!(route(512, 32, BF16), "moe_route_warp moe_route_warp 3x1x1");
    assert_eq!(
        route(512, 33, F16),
        "moe_route_group moe_route_group 10x1x1"
    );
    assert_eq!(route(513, 8, F32), "moe_route_group moe_route_group 10x1x1");
}

#[test]
fn more_experts_than_shared_memory_holds_are_refused() {
    let logits: Tensor<'_> = ("logits", F32, &[10, 4096]);
    let routed = plan_of(&MoeRouteKind, &[logits], json!({"topk": 8}));
    refused(routed, Unsupported, &["moe_route_group", "48 KiB"]);
    let tensors: [Tensor<'_>; 2] = [("x", F16, &[5, 8]), ("topk_ids", I32, &[5, 2])];
    let scattered = plan_of(&ExpertScatterKind, &tensors, json!({"experts": 8193}));
    refused(scattered, Unsupported, &["8192 experts"]);
}

fn scatter(tokens: u64, topk: u64, hidden: u64) -> Vec<String> {
    let tensors: [Tensor<'_>; 2] = [
        ("x", BF16, &[tokens, hidden]),
        ("topk_ids", I32, &[tokens, topk]),
    ];
    launches(&ExpertScatterKind, &tensors, json!({"experts": 128}))
}

#[test]
fn ids_take_one_launch_or_three() {
    assert_eq!(
        scatter(512, 8, 5000),
        [
            "expert_rows_group expert_permute 1x1x1",
            "expert_rows_group expert_copy_rows 1536x1x1"
        ]
    );
    assert_eq!(
        scatter(513, 8, 5000),
        [
            "expert_rows_group expert_count 5x1x1",
            "expert_rows_group expert_scan 1x1x1",
            "expert_rows_group expert_place 5x1x1",
            "expert_rows_group expert_copy_rows 1539x1x1"
        ]
    );
}

/// CUDA's second dimension of the grid ends at 65535.
#[test]
fn tokens_may_be_more_than_a_grid_has_rows() {
    let tokens = 100_000;
    assert_eq!(
        scatter(tokens, 2, 64)[3],
        "expert_rows_group expert_copy_rows 100000x1x1"
    );
    let tensors: [Tensor<'_>; 3] = [
        ("rows", F16, &[2 * tokens, 2049]),
        ("source", I32, &[2 * tokens]),
        ("topk_weights", F32, &[tokens, 2]),
    ];
    assert_eq!(
        launches(&ExpertGatherKind, &tensors, json!({})),
        [
            "expert_rows_group expert_clear_inverse 196x1x1",
            "expert_rows_group expert_invert 196x1x1",
            "expert_rows_group expert_combine 200000x1x1"
        ]
    );
}

/// Nothing is left to the host between the steps: the plan is launches alone, all of them with CUDA kernels.
#[test]
fn a_layer_goes_by_steps() {
    for dtype in [F32, F16, BF16] {
        let tensors: [Tensor<'_>; 5] = [
            ("x", dtype, &[64, 2048]),
            ("logits", F32, &[64, 128]),
            ("bias", F32, &[128]),
            ("w_gate_up", dtype, &[128, 2 * 768, 2048]),
            ("w_down", dtype, &[128, 2048, 768]),
        ];
        let attrs = json!({"topk": 8, "renormalize": true});
        let found = launches(&MoeFfnKind, &tensors, attrs);
        let (steps, products): (Vec<&str>, Vec<&str>) = found
            .iter()
            .map(String::as_str)
            .partition(|launch| !launch.starts_with("grouped_"));
        assert_eq!(
            steps,
            [
                "moe_route_warp moe_route_warp 16x1x1",
                "expert_rows_group expert_permute 1x1x1",
                "expert_rows_group expert_copy_rows 64x1x1",
                "expert_rows_group expert_combine 64x1x1"
            ]
        );
        assert_eq!(products.len(), 2, "{found:?}");
    }
}

#[test]
fn an_older_gpu_lacks_what_the_kernels_need() {
    let mut info = sm_80();
    info.features.retain(|feature| feature != "sm_80");
    let logits: Tensor<'_> = ("logits", F32, &[10, 64]);
    let op = parse(&MoeRouteKind, &[logits], json!({"topk": 8})).expect("a sound problem");
    refused(
        Op::plan(&*op, &PlanRequest::new(&info)),
        Unsupported,
        &["sm_80"],
    );
}

/// As many blocks as vector cores, but no more than there is work for.
#[test]
fn an_npu_scatters_and_gathers_in_two_launches_each() {
    let on = |kind: &dyn OpKind, tensors: &[Tensor<'_>], attrs| {
        plan_on(&npu(), kind, tensors, attrs)
            .expect("a kernel takes it")
            .1
    };
    let scatter = |tokens, experts| {
        let tensors: [Tensor<'_>; 2] =
            [("x", BF16, &[tokens, 512]), ("topk_ids", I32, &[tokens, 8])];
        on(&ExpertScatterKind, &tensors, json!({"experts": experts}))
    };
    assert_eq!(
        scatter(4096, 64),
        [
            "expert_rows_vector expert_permute 40x1x1",
            "expert_rows_vector expert_copy_rows 40x1x1"
        ]
    );
    assert_eq!(
        scatter(1, 3),
        [
            "expert_rows_vector expert_permute 3x1x1",
            "expert_rows_vector expert_copy_rows 16x1x1"
        ]
    );
    // Offsets are written where there are no experts, too.
    assert_eq!(scatter(0, 0)[0], "expert_rows_vector expert_permute 1x1x1");
    let tensors: [Tensor<'_>; 3] = [
        ("rows", F16, &[200, 512]),
        ("source", I32, &[200]),
        ("topk_weights", F32, &[100, 2]),
    ];
    assert_eq!(
        on(&ExpertGatherKind, &tensors, json!({})),
        [
            "expert_rows_vector expert_invert 4x1x1",
            "expert_rows_vector expert_combine 40x1x1"
        ]
    );
}

#[test]
fn an_npu_routes_with_one_kernel_a_dtype() {
    let modules = |experts: u64, attrs: Value| {
        let tensors: [Tensor<'_>; 2] = [("logits", F16, &[10, experts]), ("bias", F32, &[experts])];
        plan_on(&npu(), &MoeRouteKind, &tensors, attrs).map(|(plan, _)| plan.modules)
    };
    let softmax = modules(64, json!({"topk": 8})).expect("a kernel takes it");
    let groups = json!({"topk": 8, "score": "sigmoid", "groups": 8, "topk_groups": 4});
    assert_eq!(modules(256, groups).expect("a kernel takes it"), softmax);
    refused(
        modules(2049, json!({"topk": 8})),
        Unsupported,
        &["2048 experts"],
    );
    refused(
        modules(1024, json!({"topk": 513})),
        Unsupported,
        &["AscendC"],
    );
}

#[test]
fn an_npu_goes_through_a_layer_by_steps() {
    let tensors: [Tensor<'_>; 4] = [
        ("x", BF16, &[64, 2048]),
        ("logits", F32, &[64, 128]),
        ("w_gate_up", BF16, &[128, 2 * 768, 2048]),
        ("w_down", BF16, &[128, 2048, 768]),
    ];
    let (_, found) =
        plan_on(&npu(), &MoeFfnKind, &tensors, json!({"topk": 8})).expect("a kernel takes it");
    let steps: Vec<&str> = found
        .iter()
        .map(String::as_str)
        .filter(|launch| !launch.starts_with("grouped_") && !launch.starts_with("gemm_"))
        .collect();
    assert_eq!(
        steps,
        [
            "moe_route_vector moe_route 40x1x1",
            "expert_rows_vector expert_permute 40x1x1",
            "expert_rows_vector expert_copy_rows 40x1x1",
            "expert_rows_vector expert_invert 8x1x1",
            "expert_rows_vector expert_combine 40x1x1"
        ]
    );
}
