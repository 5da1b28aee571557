//! Devices that no test machine has, described for planners' tests: planning needs no device.

use ropeway_core::DType;
use ropeway_core::info::{DTypeSupport, DeviceInfo, DeviceKind, Execution, Limits, MatrixShape};
use ropeway_core::kernel::Language;

/// A discrete GPU as its Vulkan driver describes it.
pub(crate) fn gpu(matrix_shapes: Vec<MatrixShape>) -> DeviceInfo {
    let mut features = vec![
        "shaderFloat16",
        "shaderInt64",
        "shaderIntegerDotProduct",
        "storageBuffer16BitAccess",
        "subgroupBasic",
        "subgroupShuffle",
        "vulkanMemoryModel",
    ];
    if !matrix_shapes.is_empty() {
        features.push("cooperativeMatrix");
    }
    features.sort_unstable();
    let both = DTypeSupport {
        storage: true,
        arithmetic: true,
    };
    DeviceInfo {
        backend: "vulkan",
        ordinal: 0,
        name: "a GPU".into(),
        vendor: String::new(),
        platform: String::new(),
        kind: DeviceKind::Gpu,
        execution: Execution::Hardware,
        architecture: String::new(),
        driver_version: String::new(),
        compiler_version: String::new(),
        memory: 1 << 34,
        unified_memory: false,
        compute_units: 60,
        cache: 0,
        vector_width: 1,
        subgroup_sizes: vec![32, 64],
        matrix_shapes,
        dtypes: [both; DType::ALL.len()],
        features: features.into_iter().map(str::to_owned).collect(),
        languages: vec![Language::SpirV],
        limits: Limits {
            max_buffer: 1 << 32,
            base_alignment: 16,
            local_memory: 32 << 10,
            max_group_size: 1024,
            max_group: [1024, 1024, 64],
            max_grid: [u64::from(u16::MAX); 3],
            loop_rounds: None,
        },
        keeps_denormals: true,
    }
}

/// A device as the CUDA backend describes it.
pub(crate) fn cuda(features: &[&str], local_memory: u64) -> DeviceInfo {
    let plain = gpu(Vec::new());
    DeviceInfo {
        backend: "cuda",
        compute_units: 108,
        subgroup_sizes: vec![32],
        features: features.iter().map(|name| (*name).to_owned()).collect(),
        languages: vec![Language::CudaC],
        limits: Limits {
            local_memory,
            max_grid: [(1 << 31) - 1, 65_535, 65_535],
            ..plain.limits
        },
        ..plain
    }
}

/// An A100, but for its name.
pub(crate) fn sm_80() -> DeviceInfo {
    cuda(&["sm_70", "sm_72", "sm_75", "sm_80"], 163 << 10)
}

/// An H100, likewise.
pub(crate) fn sm_90a() -> DeviceInfo {
    let features = [
        "sm_70", "sm_72", "sm_75", "sm_80", "sm_89", "sm_90", "sm_90a",
    ];
    cuda(&features, 227 << 10)
}

/// A V100, likewise.
pub(crate) fn sm_70() -> DeviceInfo {
    cuda(&["sm_70"], 96 << 10)
}

/// A 910B3, as the Ascend backend describes it.
pub(crate) fn npu() -> DeviceInfo {
    let plain = gpu(Vec::new());
    DeviceInfo {
        backend: "ascend",
        kind: DeviceKind::Npu,
        compute_units: 20,
        subgroup_sizes: Vec::new(),
        features: vec!["dav-2201".into()],
        languages: vec![Language::AscendC],
        limits: Limits {
            local_memory: 192 << 10,
            max_group_size: 1,
            max_group: [1; 3],
            max_grid: [65_535; 3],
            ..plain.limits
        },
        ..plain
    }
}
