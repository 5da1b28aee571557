//! What a device says of itself. Plans are made from this alone, without the device.

use std::fmt;

use crate::dtype::DType;
use crate::kernel::Language;

/// What sort of processor a device is; it decides which kernel variants are sensible, never which are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceKind {
    /// A CPU: few wide cores, explicit vectors, caches.
    Cpu,
    /// A GPU: many narrow lanes, explicit local memory.
    Gpu,
    /// A matrix accelerator such as an Ascend NPU.
    Npu,
    /// Anything else.
    Other,
}

/// What really executes the work; reports always show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Execution {
    /// The named chip itself.
    Hardware,
    /// A driver that runs the vendor-neutral API on the host's CPU (PoCL, lavapipe).
    Software,
    /// A double of a vendor's driver: proves logic, never the chip's speed or rounding.
    Emulated,
    /// Nothing: calls are recorded only.
    Recorded,
}

impl fmt::Display for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Execution::Hardware => "hardware",
            Execution::Software => "software",
            Execution::Emulated => "emulated",
            Execution::Recorded => "recorded",
        })
    }
}

/// How a device can work with a dtype.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DTypeSupport {
    /// Kernels can load and store it (converting to f32 in registers where needed).
    pub storage: bool,
    /// The device computes in it natively.
    pub arithmetic: bool,
}

/// A shape that a matrix unit multiplies at once: `d[m, n] += a[m, k] · b[k, n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixShape {
    /// Rows of a and d.
    pub m: u32,
    /// Columns of b and d.
    pub n: u32,
    /// The reduction length.
    pub k: u32,
    /// Dtype of a and b.
    pub input: DType,
    /// Dtype of the accumulator.
    pub accumulator: DType,
}

/// What an allocation or a launch may not exceed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the largest single buffer.
    pub max_buffer: u64,
    /// Alignment in bytes of a buffer's base address (views add element offsets to it).
    pub base_alignment: u64,
    /// Bytes of memory that a work-group shares.
    pub local_memory: u64,
    /// Work-items in a work-group.
    pub max_group_size: u32,
    /// Work-items in a work-group, along each dimension.
    pub max_group: [u32; 3],
    /// Work-groups in a launch, along each dimension.
    pub max_grid: [u64; 3],
    /// Rounds after which the driver ends the loops of a work-item, all of them counted together and without a word; `None` where they
    /// run as written. Planners offer no kernel that could make more.
    pub loop_rounds: Option<u64>,
}

/// Everything a planner, a report or a tuned look-up needs to know of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceInfo {
    /// The backend (`"opencl"`).
    pub backend: &'static str,
    /// Its number among the backend's devices.
    pub ordinal: usize,
    /// The device's own name.
    pub name: String,
    /// Who made it.
    pub vendor: String,
    /// The platform or driver that speaks for it (`"Portable Computing Language"`).
    pub platform: String,
    /// What sort of processor it is.
    pub kind: DeviceKind,
    /// What executes the work.
    pub execution: Execution,
    /// The vendor's name of the instruction set (`"sm_90a"`, `"dav-2201"`), or empty.
    pub architecture: String,
    /// Driver version; part of the compile cache's key.
    pub driver_version: String,
    /// Version of the run-time compiler; part of the compile cache's key.
    pub compiler_version: String,
    /// Bytes of device memory.
    pub memory: u64,
    /// True if the host can address the same memory without a copy.
    pub unified_memory: bool,
    /// Cores, multiprocessors or compute units that run work-groups side by side.
    pub compute_units: u32,
    /// Bytes of the cache nearest to a compute unit that a tile should stay in, or 0 if unknown.
    pub cache: u64,
    /// Width in f32 lanes at which the device works best when a kernel asks for explicit vectors (1: scalar lanes).
    pub vector_width: u32,
    /// Subgroup (warp, wave) sizes that can occur; empty without subgroups.
    pub subgroup_sizes: Vec<u32>,
    /// The shapes of its matrix units; empty without any.
    pub matrix_shapes: Vec<MatrixShape>,
    /// Per dtype: indexed by the order of [`DType::ALL`].
    pub dtypes: [DTypeSupport; DType::ALL.len()],
    /// Named capabilities that a kernel may require (`"cl_khr_fp16"`, `"shaderIntegerDotProduct"`), sorted.
    pub features: Vec<String>,
    /// The kernel languages it takes, most wanted first.
    pub languages: Vec<Language>,
    /// Limits.
    pub limits: Limits,
    /// True if f32 arithmetic keeps subnormal numbers.
    pub keeps_denormals: bool,
}

impl DeviceInfo {
    /// How the device can work with `dtype`.
    pub fn dtype(&self, dtype: DType) -> DTypeSupport {
        self.dtypes[dtype.code() as usize]
    }

    /// True if the device has this named capability.
    pub fn has(&self, feature: &str) -> bool {
        self.features
            .binary_search_by(|f| f.as_str().cmp(feature))
            .is_ok()
    }

    /// The name by which a user selects it: `"opencl:0"`.
    pub fn selector(&self) -> String {
        format!("{}:{}", self.backend, self.ordinal)
    }
}

/// Device memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// In use through this open device.
    pub used: u64,
    /// Free, where the driver tells.
    pub free: Option<u64>,
    /// All there is.
    pub total: u64,
}
