//! Ascend: Huawei's NPUs of the 910B family (`dav-2201`: Atlas A2 and A3), through CANN's runtime (`libacl_rt`), which is found at run time.
//! Kernels are AscendC, compiled by CANN's run-time compiler (`libacl_rtc`) where it is there.
//!
//! **Never run on an NPU.** It is written to CANN's documented interface and tested on an emulated CANN; `docs/ascend.md` says what that proves.
//!
//! # Launches
//!
//! An AscendC kernel has blocks and no work-items: a launch's grid is `x · y · z` blocks, at most 65,535 together, of which `GetBlockIdx()` tells
//! the flat number, `x` the fastest, and its group is 1. Its kernels lay out local memory themselves, so it has no dynamic one.
//!
//! # Imports
//!
//! A device works in the context that `aclrtSetDevice` gives every thread of the process, which CANN's other users work in, too. So
//! [`import_memory`](ropeway_core::device::Device::import_memory) takes any device pointer of that NPU (what `aclrtMalloc` gave) and
//! [`import_queue`](ropeway_core::device::Device::import_queue) any `aclrtStream` of that context but the default one, as long as nobody captures
//! it. Calls leave the context current on the calling thread.

mod compile;
mod device;
mod graph;
mod handles;
mod library;
mod memory;
mod queue;
mod slab;
mod sys;

use std::ffi::c_int;
use std::sync::Arc;

use ropeway_core::device::{Device, Driver, OpenOptions, Reason, Unavailable};
use ropeway_core::info::{DTypeSupport, DeviceInfo, DeviceKind, Execution, Limits, MatrixShape};
use ropeway_core::kernel::Language;
use ropeway_core::{DType, Error, Result};

pub use self::compile::precompile;

use self::device::AscendDevice;
use self::library::{Api, Session};
use self::sys::run;

/// The architecture that kernels are written for.
const ARCHITECTURE: &str = "dav-2201";

/// The driver of Huawei's NPUs.
pub struct AscendDriver;

impl Driver for AscendDriver {
    fn name(&self) -> &'static str {
        "ascend"
    }

    fn probe(&self) -> Result<Vec<DeviceInfo>, Unavailable> {
        let api = library::api()?;
        let count = count(api)?;
        // The chip tells its name after initialisation only. Where there is no NPU nothing is initialised.
        let _session = begin(api)?;
        (0..count).map(|ordinal| describe(api, ordinal)).collect()
    }

    fn open(&self, ordinal: usize, options: &OpenOptions) -> Result<Arc<dyn Device>> {
        let api = library::api()?;
        let count = count(api)?;
        let number = u32::try_from(ordinal).ok().filter(|number| *number < count);
        let number = number
            .ok_or_else(|| Error::invalid("ordinal", ordinal, format!("less than {count}")))?;
        device::sweep_orphans();
        let session = begin(api)?;
        let info = describe(api, number)?;
        Ok(Arc::new(AscendDevice::open(api, session, info, options)?))
    }
}

fn failed(reason: Reason) -> Unavailable {
    Unavailable {
        reason,
        remedy: "check the driver with npu-smi info, and the devices that ASCEND_RT_VISIBLE_DEVICES names".into(),
    }
}

/// How many NPUs there are, which the runtime tells without being initialised.
fn count(api: &Api) -> Result<u32, Unavailable> {
    let mut count = 0;
    // SAFETY: the pointer is valid.
    let counted = unsafe { run!(&api.runtime, aclrtGetDeviceCount(&raw mut count)) };
    counted.map_err(|error| failed(Reason::InitialisationFailed(error)))?;
    match count {
        0 => Err(failed(Reason::NoDevice)),
        count => Ok(count),
    }
}

fn begin(api: &'static Api) -> Result<Session, Unavailable> {
    Session::begin(api).map_err(|error| failed(Reason::InitialisationFailed(error)))
}

/// What is published of a chip.
struct Chip {
    name: &'static str,
    cube_cores: u32,
    l2: u64,
    memory: u64,
}

const fn chip(name: &'static str, cube_cores: u32, l2_mib: u64, memory_gib: u64) -> Chip {
    Chip {
        name,
        cube_cores,
        l2: l2_mib << 20,
        memory: memory_gib << 30,
    }
}

/// The 910B family. `Ascend910B` without a number is another chip, of the generation before.
const CHIPS: [Chip; 4] = [
    chip("Ascend910B1", 24, 192, 64),
    chip("Ascend910B2", 24, 192, 64),
    chip("Ascend910B3", 20, 192, 64),
    chip("Ascend910B4", 20, 96, 32),
];

fn known(soc: &str) -> Option<&'static Chip> {
    CHIPS.iter().find(|chip| soc.starts_with(chip.name))
}

/// Bytes of a vector core's unified buffer, which a kernel of the vector cores lays out.
const UNIFIED_BUFFER: u64 = 192 << 10;
/// Bytes that a copy of AscendC moves at once, and so what buffers begin at a multiple of.
const BLOCK: u64 = 32;
/// The most blocks of a launch.
const MOST_BLOCKS: u64 = 65_535;
/// f32 lanes of a vector instruction.
const LANES: u32 = 64;

/// The tiles of the cube cores.
fn matrix_shapes() -> Vec<MatrixShape> {
    let shape = |k, input, accumulator| MatrixShape {
        m: 16,
        n: 16,
        k,
        input,
        accumulator,
    };
    vec![
        shape(16, DType::F16, DType::F32),
        shape(16, DType::BF16, DType::F32),
        shape(32, DType::I8, DType::I32),
    ]
}

fn dtypes() -> [DTypeSupport; DType::ALL.len()] {
    DType::ALL.map(|dtype| match dtype {
        DType::F32 | DType::F16 | DType::I32 => DTypeSupport {
            storage: true,
            arithmetic: true,
        },
        // Cube cores take them, vector cores convert.
        DType::BF16 | DType::I8 | DType::U8 => DTypeSupport {
            storage: true,
            arithmetic: false,
        },
        _ => DTypeSupport::default(),
    })
}

/// What a device is. CANN is initialised.
fn describe(api: &Api, ordinal: u32) -> Result<DeviceInfo, Unavailable> {
    let attribute = |name: c_int| -> Option<i64> {
        let ask = api.runtime.aclrtGetDeviceInfo?;
        let mut value = 0;
        // SAFETY: the pointer is valid. Which attributes a version knows, its answer tells.
        let code = unsafe { ask(ordinal, name, &raw mut value) };
        (code == 0).then_some(value)
    };
    let soc = api.runtime.soc_name().ok_or_else(|| {
        let nameless = Error::from_call(
            ropeway_core::ErrorKind::Driver,
            "aclrtGetSocName",
            0,
            "the chip has no name",
        );
        failed(Reason::InitialisationFailed(nameless))
    })?;
    let chip = known(&soc);
    if chip.is_none() && attribute(sys::NPU_ARCHITECTURE) != Some(2201) {
        return Err(Unavailable {
            reason: Reason::FeatureMissing {
                device: soc,
                features: vec![ARCHITECTURE.into()],
            },
            remedy: "kernels are written for the 910B family (Atlas A2 and A3) alone; use another device".into(),
        });
    }
    let number = |name: c_int, published: Option<u64>| {
        let said = attribute(name).and_then(|value| u64::try_from(value).ok());
        said.filter(|value| *value > 0)
            .or(published)
            .unwrap_or_default()
    };
    let cube_cores = number(sys::CUBE_CORES, chip.map(|chip| chip.cube_cores.into()));
    let vector_cores = number(sys::VECTOR_CORES, Some(2 * cube_cores));
    let memory = number(sys::GLOBAL_MEMORY, chip.map(|chip| chip.memory));
    let l2 = number(sys::L2_CACHE, chip.map(|chip| chip.l2));
    let emulated = soc.contains("emulated");
    Ok(DeviceInfo {
        ordinal: ordinal as usize,
        name: match emulated {
            true => format!("{soc}, never run on Ascend"),
            false => soc,
        },
        execution: match emulated {
            true => Execution::Emulated,
            false => Execution::Hardware,
        },
        driver_version: format!("{} ({})", api.version, api.paths()),
        compiler_version: match &api.compiler {
            Some(compiler) => format!("aclrtc {}", compiler.identity),
            None => "no aclrtc".into(),
        },
        ..info(cube_cores as u32, vector_cores as u32, memory, l2)
    })
}

/// NPUs that are not here, as far as plans care: one for each number of cores. Nothing runs on them.
pub fn described() -> Vec<DeviceInfo> {
    let mut chips: Vec<&Chip> = CHIPS.iter().collect();
    chips.dedup_by_key(|chip| (chip.cube_cores, chip.l2));
    let infos = chips.into_iter().map(|chip| DeviceInfo {
        name: chip.name.into(),
        ..info(chip.cube_cores, 2 * chip.cube_cores, chip.memory, chip.l2)
    });
    infos.collect()
}

/// What all chips of the family have in common, and what these numbers say.
fn info(cube_cores: u32, vector_cores: u32, memory: u64, l2: u64) -> DeviceInfo {
    let mut features = vec![
        format!("aic_{cube_cores}"),
        format!("aiv_{vector_cores}"),
        ARCHITECTURE.to_owned(),
    ];
    features.sort_unstable();
    DeviceInfo {
        backend: "ascend",
        ordinal: 0,
        name: String::new(),
        vendor: "Huawei".into(),
        platform: "CANN".into(),
        kind: DeviceKind::Npu,
        execution: Execution::Hardware,
        architecture: ARCHITECTURE.into(),
        driver_version: String::new(),
        compiler_version: String::new(),
        memory,
        unified_memory: false,
        compute_units: cube_cores,
        cache: l2,
        vector_width: LANES,
        subgroup_sizes: Vec::new(),
        matrix_shapes: matrix_shapes(),
        dtypes: dtypes(),
        features,
        languages: vec![Language::AscendC],
        limits: Limits {
            max_buffer: memory,
            base_alignment: BLOCK,
            local_memory: UNIFIED_BUFFER,
            max_group_size: 1,
            max_group: [1; 3],
            max_grid: [MOST_BLOCKS; 3],
            loop_rounds: None,
        },
        keeps_denormals: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_910b_family_is_known() {
        for (soc, cores) in [
            ("Ascend910B1", 24),
            ("Ascend910B2C", 24),
            ("Ascend910B3 (emulated)", 20),
            ("Ascend910B4-1", 20),
        ] {
            assert_eq!(known(soc).map(|chip| chip.cube_cores), Some(cores), "{soc}");
        }
        for soc in [
            "Ascend910A",
            "Ascend910B",
            "Ascend910ProB",
            "Ascend310P3",
            "Ascend310B1",
            "Ascend910_9391",
            "",
        ] {
            assert!(known(soc).is_none(), "{soc}");
        }
    }
}
