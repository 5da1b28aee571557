//! What the planner gives devices that no test machine has: read off plans, since planning needs no device.

use ropeway_core::DType;
use ropeway_core::info::{DeviceInfo, MatrixShape};
use ropeway_core::op::{Op, PlanRequest};
use ropeway_core::plan::Plan;
use serde_json::json;

use crate::described::gpu;
use crate::signatures::parse;

mod ascend;
mod cuda;
mod hopper;
mod scaled;

const SHAPE: MatrixShape = MatrixShape {
    m: 16,
    n: 8,
    k: 16,
    input: DType::F16,
    accumulator: DType::F32,
};

/// The plan of a product of these extents and dtypes; `kernel` is forced.
fn plan(
    info: &DeviceInfo,
    [m, n, k]: [u64; 3],
    dtype: DType,
    kernel: Option<&'static str>,
) -> Plan {
    let tensors = [("a", dtype, &[m, k][..]), ("b", dtype, &[k, n][..])];
    let op = parse(&super::super::GemmKind, &tensors, json!({})).expect("a sound problem");
    let request = PlanRequest {
        kernel,
        ..PlanRequest::new(info)
    };
    let plan = Op::plan(&*op, &request).expect("a kernel takes it");
    for launch in &plan.launches {
        let key = &plan.modules[launch.module];
        let source = key.kernel.source_for(info).expect("a source");
        source.binary(launch.entry, &key.config).expect("a binary");
        let tunables = key.kernel.default_config();
        key.kernel.validate(&tunables, info).expect("it fits");
        let items: u32 = launch.group.iter().product();
        assert!(items <= info.limits.max_group_size, "{plan}");
    }
    plan
}

fn kernel_of(plan: &Plan) -> &'static str {
    plan.modules[0].kernel.name
}

#[test]
fn a_gpu_gets_the_kernels_for_gpus() {
    let info = gpu(Vec::new());
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::I8] {
        let kernel = |extents| kernel_of(&plan(&info, extents, dtype, None));
        assert_eq!(kernel([512, 512, 512]), "gemm_tiled");
        assert_eq!(kernel([9, 9, 64]), "gemm_tiled");
        assert_eq!(kernel([1, 4096, 4096]), "gemv_lanes");
        assert_eq!(kernel([4096, 8, 4096]), "gemv_lanes");
    }
}

#[test]
fn matrix_units_are_used_for_what_the_driver_reports() {
    let info = gpu(vec![SHAPE]);
    let found = plan(&info, [512, 512, 512], DType::F16, None);
    assert_eq!(kernel_of(&found), "gemm_matrix");
    let config = &found.modules[0].config;
    let shape = ["MATRIX_M", "MATRIX_N", "MATRIX_K"].map(|name| config.value(name));
    assert_eq!(shape, [16, 8, 16]);
    // Four subgroups of any size that may occur.
    assert_eq!(found.launches[0].group, [256, 1, 1]);
    for dtype in [DType::F32, DType::BF16, DType::I8] {
        let found = plan(&info, [512, 512, 512], dtype, None);
        assert_eq!(kernel_of(&found), "gemm_tiled", "{dtype}");
    }
    let other = MatrixShape {
        accumulator: DType::F16,
        ..SHAPE
    };
    let found = plan(&gpu(vec![other]), [512, 512, 512], DType::F16, None);
    assert_eq!(kernel_of(&found), "gemm_tiled");
}

#[test]
fn every_kernel_of_a_gpu_has_a_binary_for_its_plan() {
    let info = gpu(vec![SHAPE]);
    for kernel in ["gemm_matrix", "gemm_tiled", "gemv_lanes", "gemm_subgroup"] {
        let found = plan(&info, [3, 200, 100], DType::F16, Some(kernel));
        assert_eq!(kernel_of(&found), kernel);
    }
}
