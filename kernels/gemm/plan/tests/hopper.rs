//! What Hopper devices get.

use ropeway_core::DType::{self, BF16, F16, F32, I8};
use ropeway_core::info::DeviceInfo;
use ropeway_core::memory::{Layout, TensorDesc};
use ropeway_core::op::{Op, OpKind, PlanRequest};
use ropeway_core::plan::{Arg, Expr, Plan, StrideRule};
use serde_json::{Value, json};

use super::super::super::manifest::KERNELS;
use super::super::super::{Gemm, GemmKind, GroupedGemmKind};
use super::cuda::configurations;
use super::kernel_of;
use crate::described::{cuda, sm_80};
use crate::signatures::parse;

/// An H100, but for its name.
fn sm_90a() -> DeviceInfo {
    let features = [
        "sm_70", "sm_72", "sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_90a",
    ];
    DeviceInfo {
        compute_units: 132,
        ..cuda(&features, 227 << 10)
    }
}

fn checked(op: &dyn Op, kernel: Option<&'static str>) -> Plan {
    let info = sm_90a();
    let request = PlanRequest {
        kernel,
        ..PlanRequest::new(&info)
    };
    let plan = op.plan(&request).expect("a kernel takes it");
    for launch in &plan.launches {
        assert!(u64::from(launch.local_memory) <= info.limits.local_memory);
        assert!(launch.group.iter().product::<u32>() <= info.limits.max_group_size);
    }
    plan
}

fn parsed(kind: &dyn OpKind, tensors: &[(&str, DType, &[u64])], attributes: Value) -> Box<dyn Op> {
    parse(kind, tensors, attributes).expect("a sound problem")
}

/// The plan of a product d = a b, b as [n, k] if `weights`.
fn product([m, n, k]: [u64; 3], dtype: DType, weights: bool) -> Plan {
    let b = if weights { [n, k] } else { [k, n] };
    let tensors = [("a", dtype, &[m, k][..]), ("b", dtype, &b[..])];
    checked(
        &*parsed(&GemmKind, &tensors, json!({ "trans_b": weights })),
        None,
    )
}

fn value(plan: &Plan, name: &str) -> i64 {
    plan.modules[0].config.value(name)
}

#[test]
fn warpgroups_multiply_what_tensor_maps_take() {
    for weights in [true, false] {
        let kernel = |extents| kernel_of(&product(extents, BF16, weights));
        assert_eq!(kernel([4096, 4096, 512]), "gemm_wgmma");
        // 128 and 64 tiles of the larger kernel, for 132 multiprocessors.
        assert_eq!(kernel([1024, 4096, 512]), "gemm_wgmma");
        assert_eq!(kernel([512, 4096, 512]), "gemm_wgmma_small");
        assert_eq!(kernel([8, 4096, 4096]), "gemm_wgmma_small");
        // A row of 100 elements of k does not begin at a multiple of 16 bytes; nor one of 4097 columns.
        assert_eq!(kernel([4096, 4096, 100]), "gemm_mma");
    }
    assert_eq!(
        kernel_of(&product([4096, 4097, 512], BF16, false)),
        "gemm_mma"
    );
    assert_eq!(
        kernel_of(&product([4, 4096, 4096], F16, true)),
        "gemv_lanes"
    );
    assert_eq!(
        kernel_of(&product([4, 4096, 4096], F16, false)),
        "gemm_wgmma_small"
    );
    assert_eq!(kernel_of(&product([4096, 4096, 512], I8, true)), "gemm_mma");
    assert_eq!(
        kernel_of(&product([4096, 4096, 512], F32, true)),
        "gemm_simt"
    );
    assert_eq!(kernel_of(&product([4096, 4096, 0], BF16, true)), "gemm_mma");
}

#[test]
fn operands_come_as_they_lie_and_are_required_to() {
    let plan = product([4096, 4096, 512], F16, false);
    assert_eq!(
        ["A_ACROSS", "B_ACROSS", "D_BY_MAP"].map(|name| value(&plan, name)),
        [0, 1, 1]
    );
    for rule in &plan.operands {
        assert_eq!(
            rule.strides,
            [StrideRule::MultipleOf(8), StrideRule::Exactly(1)]
        );
        assert_eq!(rule.offset_multiple, 8);
    }
    let attributes = json!({ "trans_a": true, "out_dtype": "F32" });
    let tensors = [("a", F16, &[512, 4096][..]), ("b", F16, &[512, 4096])];
    let plan = checked(&*parsed(&GemmKind, &tensors, attributes), None);
    assert_eq!(
        ["A_ACROSS", "B_ACROSS"].map(|name| value(&plan, name)),
        [1, 1]
    );
    let multiples: Vec<u64> = plan
        .operands
        .iter()
        .map(|rule| rule.offset_multiple)
        .collect();
    assert_eq!(multiples, [8, 8, 4]);
}

#[test]
fn columns_that_the_copy_engine_cannot_store_are_stored_by_element() {
    let plan = product([4096, 4097, 512], BF16, true);
    assert_eq!(kernel_of(&plan), "gemm_wgmma");
    assert_eq!(value(&plan, "D_BY_MAP"), 0);
    assert_eq!(plan.operands[2].strides, [StrideRule::Any; 2]);
    assert_eq!(maps(&plan).len(), 2);
}

/// The tensor maps of the first launch, by what they are made of.
fn maps(plan: &Plan) -> Vec<(&[Expr], &[Expr], [u32; 2])> {
    let map = |arg| match arg {
        &Arg::TensorMap {
            ref extents,
            ref strides,
            map,
            ..
        } => Some((&extents[..], &strides[..], [map.tile[0], map.tile[1]])),
        _ => None,
    };
    plan.launches[0].args.iter().filter_map(map).collect()
}

#[test]
fn what_broadcasts_has_one_batch() {
    let desc = |shape: &[u64]| TensorDesc::contiguous(BF16, shape).expect("a shape");
    let op = Gemm::builder(desc(&[2, 3, 256, 64]), desc(&[3, 64, 512])).build();
    let plan = checked(&op.expect("a sound problem"), Some("gemm_wgmma"));
    let found = maps(&plan);
    let extents: Vec<Vec<i64>> = found
        .iter()
        .map(|(extents, ..)| extents[2..].iter().map(|e| e.evaluate(&[])).collect())
        .collect();
    assert_eq!(extents, [[3, 2], [3, 1], [3, 2]]);
    // The one that is not there steps by something that can be encoded.
    assert_eq!(found[1].1[3], Expr::from(8u64));
    let tiles: Vec<_> = found.iter().map(|(.., tile)| *tile).collect();
    assert_eq!(tiles, [[64, 128], [64, 64], [64, 16]]);
    // m, n, k, inner batch, batches, batched
    assert_eq!(plan.launches[0].args[12], Arg::U32(Expr::from(0b0111u64)));
}

#[test]
fn a_view_that_repeats_rows_is_left_to_others() {
    let repeated = Layout::strided(&[4096, 512], &[0, 1]).expect("a layout");
    let a = TensorDesc {
        dtype: BF16,
        layout: repeated,
    };
    let b = TensorDesc::contiguous(BF16, &[512, 4096]).expect("a shape");
    let op = Gemm::builder(a, b).build().expect("a sound problem");
    assert_eq!(kernel_of(&checked(&op, None)), "gemm_mma");
}

#[test]
fn blocks_stay_and_clusters_share_where_rows_suffice() {
    let grid = |plan: &Plan| match &plan.launches[0].grid[0] {
        Expr::Mul(pair) => match &pair.0 {
            Expr::Min(pair) => pair.1.evaluate(&[]) * value(plan, "CLUSTER"),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let plan = product([4096, 4096, 512], BF16, true);
    assert_eq!((value(&plan, "CLUSTER"), grid(&plan)), (2, 132));
    // Three tiles along m: one in four would have no row.
    let plan = product([384, 32_768, 512], BF16, true);
    assert_eq!((value(&plan, "CLUSTER"), grid(&plan)), (1, 132));
}

#[test]
fn k_is_split_where_tiles_are_few() {
    let plan = product([16, 1024, 4096], BF16, true);
    let entries: Vec<_> = plan.launches.iter().map(|launch| launch.entry).collect();
    assert_eq!(entries, ["gemm_wgmma", "gemm_reduce"]);
    // 8 tiles of 128 columns on 132 multiprocessors: 16 parts of 256 k.
    assert_eq!(plan.workspace, 16 * 16 * 1024 * 4);
    assert_eq!(
        ["SPLIT_K", "D_BY_MAP"].map(|name| value(&plan, name)),
        [1, 0]
    );
    let whole = product([4096, 4096, 4096], BF16, true);
    assert_eq!((whole.launches.len(), whole.workspace), (1, 0));
}

#[test]
fn experts_get_tiles_by_their_rows() {
    let kernel = |rows, [n, k]: [u64; 2], dtype| {
        let tensors = [
            ("a", dtype, &[rows, k][..]),
            ("b", dtype, &[8, n, k][..]),
            ("expert_offsets", DType::I32, &[9][..]),
        ];
        kernel_of(&checked(
            &*parsed(&GroupedGemmKind, &tensors, json!({})),
            None,
        ))
    };
    assert_eq!(kernel(16, [256, 512], BF16), "grouped_wgmma_small");
    assert_eq!(kernel(400, [256, 512], BF16), "grouped_wgmma_small");
    assert_eq!(kernel(4096, [256, 512], BF16), "grouped_wgmma");
    assert_eq!(kernel(4096, [255, 512], BF16), "grouped_wgmma");
    assert_eq!(kernel(4096, [256, 100], BF16), "grouped_mma");
    assert_eq!(kernel(16, [256, 100], BF16), "grouped_mma_small");
    assert_eq!(kernel(4096, [256, 512], F32), "grouped_tiled");
}

#[test]
fn tiles_of_one_expert_share_rows_where_columns_suffice() {
    // Tiles of 256 columns: of three, the last pair's second would have none; of nine it may.
    for (n, cluster, rows) in [(512, 2, 64), (768, 1, 128), (2304, 2, 64)] {
        let tensors = [
            ("a", BF16, &[4096, 512][..]),
            ("b", BF16, &[8, n, 512][..]),
            ("expert_offsets", DType::I32, &[9][..]),
        ];
        let op = parsed(&GroupedGemmKind, &tensors, json!({}));
        let plan = checked(&*op, Some("grouped_wgmma"));
        assert_eq!(value(&plan, "CLUSTER"), cluster);
        assert_eq!(maps(&plan)[0].2, [64, rows]);
    }
}

#[test]
fn what_is_tunable_fits_a_multiprocessor() {
    let info = sm_90a();
    for kernel in KERNELS
        .iter()
        .filter(|kernel| kernel.name.contains("_wgmma"))
    {
        assert!(kernel.source_for(&sm_80()).is_err());
        kernel
            .validate(&kernel.default_config(), &info)
            .expect("the default fits");
        let mut valid = 0;
        for config in configurations(kernel) {
            if kernel.validate(&config, &info).is_err() {
                continue;
            }
            valid += 1;
            assert!((kernel.local_memory)(&config) <= info.limits.local_memory);
        }
        assert!(valid >= 4, "{}: {valid}", kernel.name);
    }
}
