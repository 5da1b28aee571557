//! What CUDA devices get, read off plans.

use ropeway_core::DType::{self, BF16, F16, F32, I32};
use ropeway_core::info::DeviceInfo;
use ropeway_core::op::{Op, OpKind, PlanRequest};
use ropeway_core::plan::{Arg, Plan};
use serde_json::{Value, json};

use crate::attention::manifest::wgmma_local_memory;
use crate::attention::{AttentionKind, PagedAttentionKind};
use crate::described::{cuda, sm_70, sm_80, sm_90a};
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
fn hopper_multiplies_by_warpgroups_where_rows_are_many() {
    for dtype in [F16, BF16] {
        let plan = dense(&sm_90a(), dtype, [32, 8], [512, 512], [128, 128]);
        assert_eq!(kernels(&plan), ["attention_wgmma"]);
        let launch = &plan.launches[0];
        assert_eq!(launch.group, [384, 1, 1]);
        // Queries of two warpgroups, two tiles each of keys and values, and what alignment may take.
        assert_eq!(launch.local_memory, 1024 + 2 * 64 * 256 + 4 * 128 * 256);
        // 60 rows of a key head, then one.
        let plan = dense(&sm_90a(), dtype, [32, 8], [15, 512], [128, 128]);
        assert_eq!(kernels(&plan)[0], "attention_mma");
        let plan = dense(&sm_90a(), dtype, [32, 8], [1, 512], [128, 128]);
        assert_eq!(kernels(&plan)[0], "attention_mma_few");
    }
    let plan = dense(&sm_90a(), F32, [32, 8], [512, 512], [128, 128]);
    assert_eq!(kernels(&plan), ["attention_tiled"]);
    // 64 heads of one query are a warpgroup's rows, another has none, and their keys are split.
    let plan = dense(&sm_90a(), BF16, [64, 1], [1, 4096], [128, 128]);
    assert_eq!(kernels(&plan), ["attention_wgmma", "attention_merge"]);
    assert_eq!(plan.launches[0].group, [384, 1, 1]);
}

#[test]
fn tiles_of_warpgroups_fit_registers_and_shared_memory() {
    for (size, keys) in [
        ([64, 64], 128),
        ([80, 80], 128),
        ([96, 96], 128),
        ([128, 128], 128),
        ([192, 128], 128),
        ([192, 192], 96),
        ([256, 256], 80),
    ] {
        let plan = dense(&sm_90a(), BF16, [8, 8], [512, 512], size);
        let config = &plan.modules[0].config;
        assert_eq!(config.value("KEYS"), keys, "{size:?}");
        assert!(wgmma_local_memory(config) <= 227 << 10, "{size:?}");
        let [k, v] = plan.launches[0].args.last_chunk().expect("two maps");
        for (arg, columns) in [(k, 64), (v, [64, 16, 32][panel(size[1])])] {
            let Arg::TensorMap { map, .. } = arg else {
                panic!("{arg:?}");
            };
            assert_eq!(map.tile, [columns, keys as u32, 1, 1, 1], "{size:?}");
            assert_eq!(u32::from(map.swizzle), 2 * columns, "{size:?}");
        }
    }
}

/// Which swizzle divides rows of so many columns: 128, 32 or 64 bytes.
fn panel(columns: u64) -> usize {
    match columns {
        80 => 1,
        96 => 2,
        _ => 0,
    }
}

#[test]
fn warpgroups_take_options_of_scores_with_narrow_values() {
    for (size, kernel) in [(128, "attention_wgmma"), (256, "attention_mma")] {
        let shape = [1, 8, 512, size];
        let tensors = ["q", "k", "v"].map(|name| (name, BF16, &shape[..]));
        let attributes = json!({ "softcap": 30.0 });
        let plan = planned(&sm_90a(), &AttentionKind, &tensors, attributes);
        assert_eq!(kernels(&plan), [kernel]);
        if size == 128 {
            let config = &plan.modules[0].config;
            assert_eq!(["OPTIONS", "KEYS"].map(|name| config.value(name)), [1, 64]);
        }
    }
}

#[test]
fn pages_divide_tiles_of_warpgroups() {
    let plan = paged(&sm_90a(), 600, [32, 8]);
    let all = ["attention_mma_few", "attention_wgmma", "attention_merge"];
    assert_eq!(kernels(&plan), all);
    let Some(Arg::TensorMap { map, .. }) = plan.launches[1].args.last() else {
        panic!("{:?}", plan.launches[1]);
    };
    assert_eq!(map.tile, [64, 64, 1, 1, 1]);
}

#[test]
fn heads_of_other_sizes_run_on_cuda_cores() {
    for sizes in [[576, 512], [68, 68], [64, 20]] {
        let plan = dense(&sm_80(), F16, [4, 4], [512, 512], sizes);
        assert_eq!(kernels(&plan), ["attention_tiled"], "{sizes:?}");
    }
}

#[test]
fn latent_attention_has_a_kernel_on_hopper() {
    let split = ["attention_latent", "attention_merge"];
    for (dtype, heads, rows, kernels_of_plan) in [
        (BF16, [128, 1], [1, 4096], &split[..]),
        (F16, [16, 1], [2, 4096], &split[..]),
        (BF16, [128, 1], [2, 4096], &split[..]),
        (BF16, [128, 1], [1, 500], &split[..1]),
        (BF16, [128, 1], [3, 4096], &split[..1]),
        (F32, [128, 1], [1, 500], &["attention_tiled"][..]),
    ] {
        let plan = dense(&sm_90a(), dtype, heads, rows, [576, 512]);
        assert_eq!(
            kernels(&plan),
            kernels_of_plan,
            "{dtype} {heads:?} {rows:?}"
        );
        let launch = &plan.launches[0];
        if kernels_of_plan[0] == split[0] {
            assert_eq!(launch.group, [384, 1, 1]);
            // Queries, two tiles, probabilities, what alignment may take.
            let bytes = 1024 + 3 * 64 * 1152 + 64 * 128;
            assert_eq!(launch.local_memory, bytes);
            for arg in launch.args.last_chunk::<2>().expect("two maps") {
                let Arg::TensorMap { map, .. } = arg else {
                    panic!("{arg:?}");
                };
                assert_eq!((map.tile, map.swizzle), ([64, 64, 1, 1, 1], 128));
            }
        }
    }
    let plan = dense(&sm_80(), BF16, [128, 1], [1, 500], [576, 512]);
    assert_eq!(kernels(&plan), ["attention_tiled"]);
    let plan = dense(&sm_90a(), BF16, [128, 1], [1, 500], [576, 256]);
    assert_eq!(kernels(&plan), ["attention_tiled"]);
}

#[test]
fn latent_attention_splits_the_keys_of_as_many_queries_as_sequences_have() {
    for (tokens, heads, rows) in [(8, 128, 128), (16, 128, 256), (24, 128, 128), (32, 16, 64)] {
        let tensors = [
            ("q", BF16, &[tokens, heads, 576][..]),
            ("cu_q", I32, &[9][..]),
            ("k_cache", BF16, &[1000, 32, 1, 576][..]),
            ("v_cache", BF16, &[1000, 32, 1, 512][..]),
            ("block_table", I32, &[8, 64][..]),
            ("kv_lens", I32, &[8][..]),
        ];
        let attributes = json!({ "causal": true });
        let plan = planned(&sm_90a(), &PagedAttentionKind, &tensors, attributes);
        assert_eq!(kernels(&plan), ["attention_latent", "attention_merge"]);
        // Sequences of four splits, each with its rows' sums, maximum and sum of exponentials.
        assert_eq!(plan.workspace, 8 * 4 * rows * 514 * 4, "{tokens} {heads}");
        let Some(Arg::TensorMap { map, .. }) = plan.launches[0].args.last() else {
            panic!("{:?}", plan.launches[0]);
        };
        assert_eq!(map.tile, [64, 32, 1, 1, 1]);
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
