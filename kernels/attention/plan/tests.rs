//! What CUDA devices get, read off plans.

use ropeway_core::DType::{self, BF16, F16, F32, I32};
use ropeway_core::info::DeviceInfo;
use ropeway_core::op::{Op, OpKind, PlanRequest};
use ropeway_core::plan::Plan;
use serde_json::{Value, json};

use crate::attention::{AttentionKind, PagedAttentionKind};
use crate::described::{cuda, sm_70, sm_80};
use crate::signatures::parse;

mod ascend;

fn planned(
    info: &DeviceInfo,
    kind: &dyn OpKind,
    tensors: &[(&str, DType, &[u64])],
    attributes: Value,
) -> Plan {
    let op = parse(kind, tensors, attributes).expect("a sound problem");
    let plan = Op::plan(&*op, &PlanRequest::new(info)).expect("a kernel takes it");
    for launch in &plan.launches {
        assert!(u64::from(launch.local_memory) <= info.limits.local_memory);
        assert!(launch.group.iter().product::<u32>() <= info.limits.max_group_size);
    }
    plan
}

/// A rectangular batch: heads and key heads, queries and keys, head sizes.
fn dense(
    info: &DeviceInfo,
    dtype: DType,
    heads: [u64; 2],
    rows: [u64; 2],
    sizes: [u64; 2],
) -> Plan {
    let tensors = [
        ("q", dtype, &[1, heads[0], rows[0], sizes[0]][..]),
        ("k", dtype, &[1, heads[1], rows[1], sizes[0]][..]),
        ("v", dtype, &[1, heads[1], rows[1], sizes[1]][..]),
    ];
    planned(info, &AttentionKind, &tensors, json!({ "causal": true }))
}

fn paged(info: &DeviceInfo, tokens: u64, heads: [u64; 2]) -> Plan {
    let tensors = [
        ("q", BF16, &[tokens, heads[0], 128][..]),
        ("cu_q", I32, &[9][..]),
        ("k_cache", BF16, &[1000, 64, heads[1], 128][..]),
        ("v_cache", BF16, &[1000, 64, heads[1], 128][..]),
        ("block_table", I32, &[8, 64][..]),
        ("kv_lens", I32, &[8][..]),
    ];
    planned(
        info,
        &PagedAttentionKind,
        &tensors,
        json!({ "causal": true }),
    )
}

/// The kernels of a plan's launches, in order.
fn kernels(plan: &Plan) -> Vec<&'static str> {
    let kernel = |launch: &ropeway_core::plan::Launch| plan.modules[launch.module].kernel.name;
    plan.launches.iter().map(kernel).collect()
}

#[test]
fn matrix_units_take_sixteen_bits_from_sm_80_on() {
    for dtype in [F16, BF16] {
        let plan = dense(&sm_80(), dtype, [32, 8], [512, 512], [128, 128]);
        assert_eq!(kernels(&plan), ["attention_mma"]);
        let plan = dense(&sm_70(), dtype, [32, 8], [512, 512], [128, 128]);
        assert_eq!(kernels(&plan), ["attention_tiled"]);
    }
    let plan = dense(&sm_80(), F32, [32, 8], [512, 512], [128, 128]);
    assert_eq!(kernels(&plan), ["attention_tiled"]);
}

#[test]
fn heads_of_other_sizes_run_on_cuda_cores() {
    for sizes in [[576, 512], [68, 68], [64, 20]] {
        let plan = dense(&sm_80(), F16, [4, 4], [512, 512], sizes);
        assert_eq!(kernels(&plan), ["attention_tiled"], "{sizes:?}");
    }
}

#[test]
fn few_rows_share_a_fragment_and_split_their_keys() {
    let split = ["attention_mma_few", "attention_merge"];
    let plan = dense(&sm_80(), F16, [32, 8], [1, 4096], [128, 128]);
    assert_eq!(kernels(&plan), split);
    assert_eq!(plan.launches[0].local_memory, 16 * 272 + 4 * 64 * 272);
    let plan = dense(&sm_80(), F16, [16, 1], [1, 4096], [128, 128]);
    assert_eq!(kernels(&plan), split);
    let plan = dense(&sm_80(), F16, [16, 1], [1, 200], [128, 128]);
    assert_eq!(kernels(&plan), ["attention_mma_few"]);
    // More than one fragment: tiles of rows, whose keys are split nevertheless.
    let plan = dense(&sm_80(), F16, [32, 1], [1, 4096], [128, 128]);
    assert_eq!(kernels(&plan), ["attention_mma", "attention_merge"]);
}

#[test]
fn a_ragged_batch_has_a_launch_for_each_kind_of_sequence() {
    let plan = paged(&sm_80(), 600, [32, 8]);
    let both = ["attention_mma_few", "attention_mma", "attention_merge"];
    assert_eq!(kernels(&plan), both);
    let plan = paged(&sm_80(), 600, [128, 4]);
    assert_eq!(kernels(&plan), ["attention_mma", "attention_merge"]);
}

#[test]
fn wide_heads_and_small_multiprocessors_get_fewer_fragments_and_tiles() {
    let ada = cuda(&["sm_70", "sm_72", "sm_75", "sm_80", "sm_89"], 99 << 10);
    for (info, size, row_fragments, ring) in [
        (sm_80(), 64, 2, 4),
        (sm_80(), 128, 2, 4),
        (sm_80(), 192, 1, 4),
        (sm_80(), 256, 1, 4),
        (ada.clone(), 128, 2, 4),
        (ada.clone(), 256, 1, 4),
    ] {
        let plan = dense(&info, BF16, [8, 8], [512, 512], [size; 2]);
        let config = &plan.modules[0].config;
        let found = ["D_MAX", "DV_MAX", "ROW_FRAGMENTS", "RING"].map(|name| config.value(name));
        assert_eq!(found, [size as i64, size as i64, row_fragments, ring]);
    }
    let plan = dense(&ada, BF16, [8, 8], [1, 512], [256; 2]);
    assert_eq!(plan.modules[0].config.value("RING"), 2);
}
