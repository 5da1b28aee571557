//! What products of 8-bit floats get.

use ropeway_core::DType::{self, BF16, F8E4M3, F16, F32, I32};
use ropeway_core::ErrorKind;
use ropeway_core::info::DeviceInfo;
use ropeway_core::memory::{Layout, TensorDesc};
use ropeway_core::op::{Op, OpKind, PlanRequest};
use ropeway_core::plan::{Arg, Plan, StrideRule};
use serde_json::{Value, json};

use super::super::super::{Gemm, GemmKind, GroupedGemmKind, MaskedGroupedGemmKind};
use super::kernel_of;
use crate::described::{cuda, gpu, sm_80};
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

fn checked(info: &DeviceInfo, op: &dyn Op) -> Plan {
    let plan = op.plan(&PlanRequest::new(info)).expect("a kernel takes it");
    for launch in &plan.launches {
        assert!(u64::from(launch.local_memory) <= info.limits.local_memory);
        assert!(launch.group.iter().product::<u32>() <= info.limits.max_group_size);
    }
    plan
}

fn parsed(kind: &dyn OpKind, tensors: &[(&str, DType, &[u64])], attributes: Value) -> Box<dyn Op> {
    parse(kind, tensors, attributes).expect("a sound problem")
}

/// The plan of a layer with both scales.
fn layer(info: &DeviceInfo, [m, n, k]: [u64; 3], out: DType, activation: &str) -> Plan {
    let [n_blocks, k_blocks] = [n, k].map(|extent| extent.div_ceil(128));
    let tensors = [
        ("a", F8E4M3, &[m, k][..]),
        ("b", F8E4M3, &[n, k]),
        ("a_scale", F32, &[m, k_blocks]),
        ("b_scale", F32, &[n_blocks, k_blocks]),
    ];
    let attributes = json!({ "trans_b": true, "out_dtype": out.name(), "activation": activation });
    checked(info, &*parsed(&GemmKind, &tensors, attributes))
}

fn value(plan: &Plan, name: &str) -> i64 {
    plan.modules[0].config.value(name)
}

#[test]
fn hopper_multiplies_them_by_warpgroups_where_tensor_maps_take_them() {
    let kernel = |extents, activation| kernel_of(&layer(&sm_90a(), extents, BF16, activation));
    assert_eq!(kernel([4096, 2112, 7168], "none"), "gemm_wgmma_scaled");
    let small = "gemm_wgmma_scaled_small";
    assert_eq!(kernel([1, 2112, 7168], "none"), small);
    assert_eq!(kernel([256, 2112, 7168], "none"), small);
    assert_eq!(kernel([100, 100, 16], "gelu"), small);
    // Rows of 100 bytes do not begin at multiples of 16.
    assert_eq!(kernel([4096, 2112, 100], "none"), "gemm_scaled");
    // 64 columns of gate and as many of up have one scale each, or not.
    assert_eq!(kernel([64, 4096, 512], "swiglu"), small);
    assert_eq!(kernel([64, 4160, 512], "swiglu"), "gemm_scaled");
    assert_eq!(kernel([64, 64, 0], "none"), "gemm_scaled");
    let older = layer(&sm_80(), [4096, 2112, 7168], BF16, "none");
    assert_eq!(kernel_of(&older), "gemm_scaled");
}

#[test]
fn what_is_bound_must_lie_as_it_was_described() {
    let plan = layer(&sm_90a(), [4096, 2112, 7168], BF16, "none");
    let strides = |multiple| [StrideRule::MultipleOf(multiple), StrideRule::Exactly(1)];
    let found: Vec<_> = plan
        .operands
        .iter()
        .map(|rule| (rule.name, rule.offset_multiple))
        .collect();
    assert_eq!(
        found,
        [
            ("a", 16),
            ("b", 16),
            ("a_scale", 1),
            ("b_scale", 1),
            ("d", 8)
        ]
    );
    assert_eq!(plan.operands[0].strides, strides(16));
    assert_eq!(plan.operands[1].strides, strides(16));
    assert_eq!(plan.operands[2].strides, [StrideRule::Any; 2]);
    assert_eq!(plan.operands[4].strides, strides(8));
    // Two tensor maps of what is read, one of what is stored.
    let maps = plan.launches[0]
        .args
        .iter()
        .filter(|arg| matches!(arg, Arg::TensorMap { .. }));
    assert_eq!(maps.count(), 3);
    // Rows of 2114 bytes cannot be stored by the copy engine.
    let odd = layer(&sm_90a(), [4096, 1057, 7168], F16, "none");
    assert_eq!(value(&odd, "D_BY_MAP"), 0);
    assert_eq!(odd.operands[4].strides, [StrideRule::Any; 2]);
}

#[test]
fn blocks_stay_and_share_b_where_rows_suffice() {
    let grid = |m, n| {
        let plan = layer(&sm_90a(), [m, n, 512], BF16, "none");
        assert_eq!(kernel_of(&plan), "gemm_wgmma_scaled");
        let cluster = value(&plan, "CLUSTER");
        // m is that of this run, and no views are bound.
        (cluster, format!("{}", plan.launches[0].grid[0]))
    };
    assert_eq!(grid(4096, 4096).0, 2);
    assert_eq!(grid(128, 32_768).0, 1);
    assert_eq!(grid(129, 32_768).0, 2);
    assert!(grid(4096, 4096).1.contains("66"), "{}", grid(4096, 4096).1);
}

#[test]
fn views_decide() {
    // Every other byte, and k that does not lie side by side.
    let op = |strides: &[u64]| {
        let layout = Layout::strided(&[256, 512], strides).unwrap();
        let a = TensorDesc {
            dtype: F8E4M3,
            layout,
        };
        let b = TensorDesc::contiguous(F8E4M3, &[256, 512]).unwrap();
        Gemm::builder(a, b)
            .trans_b(true)
            .out_dtype(BF16)
            .build()
            .unwrap()
    };
    let kernel = |strides: &[u64]| kernel_of(&checked(&sm_90a(), &op(strides)));
    assert_eq!(kernel(&[512, 1]), "gemm_wgmma_scaled_small");
    assert_eq!(kernel(&[1024, 1]), "gemm_wgmma_scaled_small");
    assert_eq!(kernel(&[1024, 2]), "gemm_scaled");
    assert_eq!(kernel(&[1, 256]), "gemm_scaled");
    assert_eq!(kernel(&[520, 1]), "gemm_scaled");
    assert_eq!(kernel(&[0, 1]), "gemm_scaled");
}

#[test]
fn experts() {
    let grouped = |info: &DeviceInfo, n, k: u64| {
        let tensors = [
            ("a", F8E4M3, &[3000, k][..]),
            ("b", F8E4M3, &[8, n, k]),
            ("expert_offsets", I32, &[9]),
            ("a_scale", F32, &[3000, k.div_ceil(128)]),
            ("b_scale", F32, &[8, n.div_ceil(128), k.div_ceil(128)]),
        ];
        let attributes = json!({ "out_dtype": "BF16", "activation": "swiglu" });
        kernel_of(&checked(
            info,
            &*parsed(&GroupedGemmKind, &tensors, attributes),
        ))
    };
    assert_eq!(grouped(&sm_90a(), 512, 256), "grouped_wgmma_scaled");
    assert_eq!(grouped(&sm_90a(), 512, 250), "grouped_scaled");
    assert_eq!(grouped(&sm_90a(), 500, 256), "grouped_scaled");
    assert_eq!(grouped(&sm_80(), 512, 256), "grouped_scaled");
    let tensors = [
        ("a", F8E4M3, &[8, 100, 256][..]),
        ("b", F8E4M3, &[8, 500, 256]),
        ("counts", I32, &[8]),
        ("b_scale", F32, &[8, 4, 2]),
    ];
    let op = parsed(
        &MaskedGroupedGemmKind,
        &tensors,
        json!({ "out_dtype": "F32" }),
    );
    let plan = checked(&sm_90a(), &*op);
    assert_eq!(kernel_of(&plan), "grouped_wgmma_scaled");
    let names: Vec<_> = plan.operands.iter().map(|rule| rule.name).collect();
    assert_eq!(names, ["a", "b", "counts", "b_scale", "d"]);
}

#[test]
fn other_devices_say_that_they_have_no_kernel() {
    let tensors = [("a", F8E4M3, &[5, 64][..]), ("b", F8E4M3, &[64, 7])];
    let op = parsed(&GemmKind, &tensors, json!({ "out_dtype": "F32" }));
    let info = gpu(Vec::new());
    let error = op.plan(&PlanRequest::new(&info)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("F8_E4M3"), "{error}");
}
