//! GPUs that are not here: what kernels are compiled for beforehand.

use ropeway_core::info::{DeviceInfo, DeviceKind, Execution, Limits};
use ropeway_core::kernel::Language;
use ropeway_core::{Error, Result};

use super::{capabilities, dtypes, matrix_shapes};

/// Compute capability, KiB of shared memory that a block may ask for, and multiprocessors of GPUs that have been sold with it, few and many:
/// plans depend on no more than that. (Capabilities and shared memory: CUDA C++ Programming Guide, table of technical specifications.)
const GPUS: [(u32, u64, &[u32]); 13] = [
    (70, 96, &[80]),
    (72, 96, &[8]),
    (75, 64, &[16, 40, 72]),
    (80, 163, &[56, 108]),
    (86, 99, &[20, 28, 46, 72, 84]),
    (87, 163, &[8, 16]),
    (89, 99, &[24, 34, 58, 76, 128, 142]),
    (90, 227, &[78, 114, 132]),
    (100, 227, &[148]),
    (103, 227, &[148, 160]),
    (110, 227, &[20]),
    (120, 99, &[36, 70, 84, 170, 188]),
    (121, 99, &[48]),
];

/// GPUs of a compute capability, as far as plans care. Nothing runs on them.
///
/// # Errors
/// `InvalidArgument` for a capability that is not known.
pub fn described(capability: u32) -> Result<Vec<DeviceInfo>> {
    let known = GPUS.iter().find(|(known, ..)| *known == capability);
    let (_, shared_memory, units) = known.ok_or_else(|| {
        let names: Vec<_> = GPUS.iter().map(|(known, ..)| format!("sm_{known}")).collect();
        Error::invalid("architecture", format!("sm_{capability}"), names.join(", "))
    })?;
    let infos = units.iter().map(|units| info(capability, shared_memory << 10, *units));
    Ok(infos.collect())
}

fn info(capability: u32, shared_memory: u64, units: u32) -> DeviceInfo {
    let memory = 16 << 30;
    DeviceInfo {
        backend: "cuda",
        ordinal: 0,
        name: format!("sm_{capability} with {units} multiprocessors"),
        vendor: "NVIDIA".into(),
        platform: "CUDA".into(),
        kind: DeviceKind::Gpu,
        execution: Execution::Hardware,
        architecture: format!("sm_{capability}"),
        driver_version: String::new(),
        compiler_version: String::new(),
        memory,
        unified_memory: false,
        compute_units: units,
        cache: 4 << 20,
        vector_width: 1,
        subgroup_sizes: vec![32],
        matrix_shapes: matrix_shapes(capability),
        dtypes: dtypes(capability),
        features: capabilities(capability),
        languages: vec![Language::CudaC],
        limits: Limits {
            max_buffer: memory,
            base_alignment: 256,
            local_memory: shared_memory,
            max_group_size: 1024,
            max_group: [1024, 1024, 64],
            max_grid: [i32::MAX as u64, 65_535, 65_535],
            loop_rounds: None,
        },
        keeps_denormals: true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::CAPABILITIES;
    use super::*;

    #[test]
    fn every_capability_that_kernels_may_ask_for_is_described() {
        for capability in CAPABILITIES {
            let devices = described(capability).expect("a known capability");
            for info in devices {
                assert!(info.has(&format!("sm_{capability}")), "{}", info.name);
            }
        }
        let unknown = described(81).expect_err("there is no 8.1").to_string();
        assert!(unknown.contains("sm_81") && unknown.contains("sm_80"), "{unknown}");
    }
}
