//! What CUDA devices get.

use ropeway_core::DType::{self, BF16, F16, F32, I8};
use ropeway_core::info::DeviceInfo;
use ropeway_core::kernel::{Config, Kernel};
use ropeway_core::op::{Op, OpKind, PlanRequest};
use ropeway_core::plan::{Arg, Plan};
use serde_json::json;

use super::super::super::manifest::KERNELS;
use super::super::super::{GemmKind, GroupedGemmKind};
use super::kernel_of;
use crate::described::{sm_70, sm_80};
use crate::signatures::parse;

/// The plan of a product d = a b, b as [n, k] if `weights`.
fn product(info: &DeviceInfo, [m, n, k]: [u64; 3], dtypes: [DType; 2], weights: bool) -> Plan {
    let b = if weights { [n, k] } else { [k, n] };
    let tensors = [("a", dtypes[0], &[m, k][..]), ("b", dtypes[1], &b[..])];
    checked(info, &GemmKind, &tensors, json!({ "trans_b": weights }))
}

fn grouped(info: &DeviceInfo, rows: u64, dtype: DType) -> Plan {
    let tensors = [
        ("a", dtype, &[rows, 512][..]),
        ("b", dtype, &[8, 256, 512][..]),
        ("expert_offsets", DType::I32, &[9][..]),
    ];
    checked(info, &GroupedGemmKind, &tensors, json!({}))
}

fn checked(
    info: &DeviceInfo,
    kind: &dyn OpKind,
    tensors: &[(&str, DType, &[u64])],
    attributes: serde_json::Value,
) -> Plan {
    let op = parse(kind, tensors, attributes).expect("a sound problem");
    let plan = Op::plan(&*op, &PlanRequest::new(info)).expect("a kernel takes it");
    for launch in &plan.launches {
        assert!(u64::from(launch.local_memory) <= info.limits.local_memory);
        assert!(launch.group.iter().product::<u32>() <= info.limits.max_group_size);
    }
    plan
}

#[test]
fn f32_and_mixed_pairs_run_on_cuda_cores() {
    for info in [sm_70(), sm_80()] {
        let kernel = |extents, dtypes| kernel_of(&product(&info, extents, dtypes, true));
        assert_eq!(kernel([4096, 4096, 512], [F32; 2]), "gemm_simt");
        assert_eq!(kernel([256, 256, 512], [F32; 2]), "gemm_tiled");
        assert_eq!(kernel([4096, 4096, 512], [F32, F16]), "gemm_simt");
        assert_eq!(kernel([8, 4096, 4096], [F32; 2]), "gemv_lanes");
        assert_eq!(kernel([4096, 1, 4096], [F16, F32]), "gemv_lanes");
    }
}

#[test]
fn matrix_units_multiply_what_they_take() {
    for dtype in [F16, BF16, I8] {
        let kernel =
            |info: &DeviceInfo, extents| kernel_of(&product(info, extents, [dtype; 2], true));
        assert_eq!(kernel(&sm_80(), [4096, 4096, 512]), "gemm_mma");
        assert_eq!(kernel(&sm_80(), [256, 256, 512]), "gemm_mma_small");
        assert_eq!(kernel(&sm_80(), [4, 4096, 4096]), "gemv_lanes");
        assert_eq!(kernel(&sm_80(), [8, 4096, 4096]), "gemm_mma_small");
        assert_eq!(kernel(&sm_70(), [4096, 4096, 512]), "gemm_simt");
        assert_eq!(kernel(&sm_70(), [8, 4096, 4096]), "gemv_lanes");
    }
}

#[test]
fn weights_that_lie_across_k_go_to_the_kernel_that_splits_k() {
    let kernel = |info: &DeviceInfo| kernel_of(&product(info, [1, 4096, 4096], [F16; 2], false));
    assert_eq!(kernel(&sm_80()), "gemm_mma_small");
    assert_eq!(kernel(&sm_70()), "gemv_lanes");
}

#[test]
fn decoding_gives_two_blocks_a_multiprocessor_where_rows_suffice() {
    let blocks = |extents, dtypes, weights| {
        let plan = product(&sm_80(), extents, dtypes, weights);
        assert_eq!(kernel_of(&plan), "gemv_lanes");
        plan.launches[0].grid[0].evaluate(&[])
    };
    // Two rows a thread along k, four rows of eight lanes across it.
    assert_eq!(blocks([1, 4096, 4096], [BF16; 2], true), 4096 / 16);
    assert_eq!(blocks([1, 4096, 4096], [F32; 2], false), 4096 / 32);
    assert_eq!(blocks([1, 65_536, 4096], [F32; 2], false), 65_536 / 64);
}

#[test]
fn k_is_split_where_tiles_are_few_and_added_up_in_order() {
    let plan = product(&sm_80(), [16, 1024, 4096], [BF16; 2], true);
    let entries: Vec<_> = plan.launches.iter().map(|launch| launch.entry).collect();
    assert_eq!(entries, ["gemm_mma", "gemm_reduce"]);
    // 16 tiles of 64 columns on 108 multiprocessors: six parts of k.
    let parts = plan.launches[0].grid[1].evaluate(&[]);
    assert_eq!(parts, 6);
    assert_eq!(plan.workspace, 6 * 16 * 1024 * 4);
    let whole = product(&sm_80(), [4096, 4096, 4096], [BF16; 2], true);
    assert_eq!(whole.launches.len(), 1);
    assert_eq!(whole.launches[0].args[5], Arg::Absent);
    assert_eq!(whole.workspace, 0);
}

#[test]
fn operands_come_to_shared_memory_as_they_lie() {
    let across = |weights| {
        let plan = product(&sm_80(), [512, 512, 512], [F16; 2], weights);
        ["A_ACROSS", "B_ACROSS"].map(|name| plan.modules[0].config.value(name))
    };
    assert_eq!(across(true), [0, 0]);
    assert_eq!(across(false), [0, 1]);
    // ldmatrix cannot transpose bytes.
    let bytes = product(&sm_80(), [512, 512, 512], [I8; 2], false);
    assert_eq!(bytes.modules[0].config.value("B_ACROSS"), 0);
}

#[test]
fn experts_with_few_rows_get_small_tiles() {
    let kernel = |info: &DeviceInfo, rows, dtype| kernel_of(&grouped(info, rows, dtype));
    assert_eq!(kernel(&sm_80(), 16, BF16), "grouped_mma_small");
    assert_eq!(kernel(&sm_80(), 4096, BF16), "grouped_mma");
    assert_eq!(kernel(&sm_80(), 4096, F32), "grouped_tiled");
    assert_eq!(kernel(&sm_70(), 4096, BF16), "grouped_tiled");
}

/// Every configuration of a kernel's tunables.
pub(super) fn configurations(kernel: &Kernel) -> Vec<Config> {
    kernel
        .tunables
        .iter()
        .fold(vec![Config::default()], |configs, tunable| {
            let with = |config: &Config, value: &i64| {
                let mut config = config.clone();
                config.set(tunable.name, *value);
                config
            };
            configs
                .iter()
                .flat_map(|config| tunable.values.iter().map(move |value| with(config, value)))
                .collect()
        })
}

#[test]
fn what_is_tunable_keeps_the_rules_of_the_source() {
    let info = sm_80();
    let sources = |kernel: &&&Kernel| kernel.name.contains("_mma");
    for kernel in KERNELS.iter().filter(sources) {
        kernel
            .validate(&kernel.default_config(), &info)
            .expect("the default fits");
        let mut valid = 0;
        for config in configurations(kernel) {
            if kernel.validate(&config, &info).is_err() {
                continue;
            }
            valid += 1;
            let value = |name| config.value(name);
            // Fragments are 16 x 16, and their sums stay in registers.
            let [rows, columns] = [("BLOCK_M", "WARPS_M"), ("BLOCK_N", "WARPS_N")]
                .map(|(block, warps)| value(block) / value(warps));
            assert!(rows % 16 == 0 && columns % 16 == 0 && rows * columns <= 128 * 32);
            assert!((kernel.local_memory)(&config) <= info.limits.local_memory);
        }
        assert!(valid > 20, "{}: {valid}", kernel.name);
    }
}
