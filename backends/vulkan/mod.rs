//! Vulkan: every device with API 1.2 that any installed driver offers, discrete, integrated or software. Kernels are SPIR-V that was
//! compiled beforehand.
//!
//! Kernels reach memory by buffer device address alone. The arguments of a launch are one block of 4-byte words in the order of the plan: a
//! buffer is the 64-bit address of its first element, an absent one 0, a 64-bit scalar two words (low, high), a 32-bit scalar one. Up to
//! 128 bytes are push constants; more lie in memory, whose address is the only push constant. Tunables are specialization constants,
//! found by their names.
//!
//! # Imports
//!
//! Neither memory nor queues can be imported: Vulkan shares no object between logical devices, and order with another API's stream needs semaphores
//! that both export.
//!
//! # Validation
//!
//! With `VK_INSTANCE_LAYERS=VK_LAYER_KHRONOS_validation` the layer's warnings and errors go to `tracing`, are counted
//! ([`validation_messages`]) and fail the next `synchronize`.

mod batch;
mod compile;
mod device;
mod event;
mod features;
mod fold;
mod graph;
mod memory;
mod queue;
mod record;
pub mod spirv;
mod sys;
#[cfg(test)]
mod tests;

use std::ffi::CStr;
use std::sync::{Arc, Mutex, Weak};

use ash::vk;
use ropeway_core::device::{Device, Driver, OpenOptions, Reason, Unavailable};
use ropeway_core::info::{DTypeSupport, DeviceInfo, DeviceKind, Execution, Limits, MatrixShape};
use ropeway_core::kernel::Language;
use ropeway_core::{DType, Error, Result};

use self::device::{Shared, VulkanDevice};
use self::features::{Features, NEEDED};
use self::sys::{Gpu, Instance, Opening, failed, lock, text};

/// Rounds after which llvmpipe (22.3) ends the loops of an invocation.
const LLVMPIPE_ROUNDS: u64 = 65_535;

/// The driver of all Vulkan devices.
pub struct VulkanDriver;

impl Driver for VulkanDriver {
    fn name(&self) -> &'static str {
        "vulkan"
    }

    fn probe(&self) -> Result<Vec<DeviceInfo>, Unavailable> {
        let (_instance, found) = find()?;
        Ok(found.into_iter().map(|found| found.info).collect())
    }

    fn open(&self, ordinal: usize, options: &OpenOptions) -> Result<Arc<dyn Device>> {
        let (instance, mut found) = find()?;
        if ordinal >= found.len() {
            let count = found.len();
            return Err(Error::invalid(
                "ordinal",
                ordinal,
                format!("less than {count}"),
            ));
        }
        let found = found.swap_remove(ordinal);
        let gpu = Gpu::open(
            &instance,
            &Opening {
                physical: found.physical,
                features: &found.features,
                extensions: &found.extensions,
                families: &found.families,
            },
        )?;
        let shared = Shared::new(found.info, gpu, found.identity);
        Ok(Arc::new(VulkanDevice::new(shared, options)))
    }
}

/// The warnings and errors of the validation layer so far in this process, and the first of them.
pub fn validation_messages() -> (u64, Option<String>) {
    sys::messages()
}

/// The instance in use, so that a probe and what is opened after it start the drivers once.
fn instance() -> Result<Arc<Instance>, Unavailable> {
    static INSTANCE: Mutex<Weak<Instance>> = Mutex::new(Weak::new());
    let mut known = lock(&INSTANCE);
    if let Some(instance) = known.upgrade() {
        return Ok(instance);
    }
    let instance = Instance::new()?;
    *known = Arc::downgrade(&instance);
    Ok(instance)
}

/// A physical device that can be opened.
struct Found {
    physical: vk::PhysicalDevice,
    features: Features,
    extensions: Vec<&'static CStr>,
    families: Vec<(u32, u32)>,
    identity: Identity,
    info: DeviceInfo,
}

/// What a device says of itself besides its [`DeviceInfo`].
struct Identity {
    /// Whether the driver tells how much memory is free.
    budget: bool,
    device_uuid: String,
    /// Whether the driver leaves out code that the values of specialization constants rule out.
    folds_constants: bool,
    /// What the driver's pipeline cache data begins with (`VkPipelineCacheHeaderVersionOne`).
    cache_header: [u8; compile::CACHE_HEADER],
}

/// Why a physical device cannot be used.
enum Unusable {
    Version(u32),
    Features(Vec<&'static str>),
    NoCompute,
}

fn find() -> Result<(Arc<Instance>, Vec<Found>), Unavailable> {
    let instance = instance()?;
    let devices = instance.physical_devices().map_err(sys::start_failed)?;
    let (mut found, mut refused) = (Vec::new(), None);
    for device in devices {
        let name = name(&instance, device);
        match describe(&instance, device, found.len()) {
            Ok(usable) => found.push(usable),
            Err(why) => {
                let why = unavailable(&name, &why);
                tracing::debug!(device = name, reason = %why, "a Vulkan device is left out");
                refused.get_or_insert(why);
            }
        }
    }
    match refused {
        Some(why) if found.is_empty() => Err(why),
        _ if found.is_empty() => Err(Unavailable {
            reason: Reason::NoDevice,
            remedy: sys::NO_DRIVER.into(),
        }),
        _ => Ok((instance, found)),
    }
}

fn unavailable(name: &str, why: &Unusable) -> Unavailable {
    match why {
        Unusable::Version(found) => Unavailable {
            reason: Reason::VersionTooOld {
                found: format!("Vulkan {} ({name})", sys::version(*found)),
                needed: format!("Vulkan {}", sys::version(sys::NEEDED_VERSION)),
            },
            remedy: "install a newer driver for the device".into(),
        },
        Unusable::Features(missing) => Unavailable {
            reason: Reason::FeatureMissing {
                device: name.into(),
                features: missing.iter().map(|&name| name.into()).collect(),
            },
            remedy: "install a newer driver for the device; every Vulkan 1.3 driver has them".into(),
        },
        Unusable::NoCompute => Unavailable {
            reason: Reason::FeatureMissing {
                device: name.into(),
                features: vec!["VK_QUEUE_COMPUTE_BIT".into()],
            },
            remedy: "use another device: this one runs no compute shaders".into(),
        },
    }
}

fn name(instance: &Instance, device: vk::PhysicalDevice) -> String {
    // SAFETY: the handle is the instance's.
    text(&unsafe { instance.raw().get_physical_device_properties(device) }.device_name)
}

/// The queue families to take, with how many queues of each: one that launches, and one that only copies where there is one.
fn families(instance: &Instance, device: vk::PhysicalDevice) -> Option<Vec<(u32, u32)>> {
    /// More add nothing: streams of work share queues.
    const QUEUES: u32 = 4;
    // SAFETY: the handle is the instance's.
    let all = unsafe { instance.raw().get_physical_device_queue_family_properties(device) };
    let numbered = || all.iter().zip(0u32..);
    let is = |flags: vk::QueueFlags, kind| flags.contains(kind);
    let compute = numbered()
        .filter(|(family, _)| is(family.queue_flags, vk::QueueFlags::COMPUTE))
        // One that draws nothing competes with nothing.
        .min_by_key(|(family, _)| is(family.queue_flags, vk::QueueFlags::GRAPHICS))?;
    let transfer = numbered().find(|(family, _)| {
        is(family.queue_flags, vk::QueueFlags::TRANSFER)
            && !family
                .queue_flags
                .intersects(vk::QueueFlags::COMPUTE | vk::QueueFlags::GRAPHICS)
    });
    Some(
        [Some(compute), transfer]
            .into_iter()
            .flatten()
            .map(|(family, index)| (index, family.queue_count.min(QUEUES)))
            .collect(),
    )
}

fn describe(
    instance: &Arc<Instance>,
    device: vk::PhysicalDevice,
    ordinal: usize,
) -> Result<Found, Unusable> {
    let raw = instance.raw();
    // SAFETY: the handle is the instance's.
    let properties = unsafe { raw.get_physical_device_properties(device) };
    if properties.api_version < sys::NEEDED_VERSION {
        return Err(Unusable::Version(properties.api_version));
    }
    // SAFETY: as above.
    let extensions = unsafe { raw.enumerate_device_extension_properties(device) }.unwrap_or_default();
    let (features, mut enable) = Features::of(instance, device, properties.api_version, &extensions);
    let mut names = features.names();
    let missing: Vec<_> = NEEDED
        .into_iter()
        .filter(|needed| !names.contains(needed))
        .collect();
    if !missing.is_empty() {
        return Err(Unusable::Features(missing));
    }
    let families = families(instance, device).ok_or(Unusable::NoCompute)?;
    let has = |name: &CStr| {
        extensions
            .iter()
            .any(|extension| extension.extension_name_as_c_str() == Ok(name))
    };
    let budget = has(vk::EXT_MEMORY_BUDGET_NAME);
    if budget {
        enable.push(vk::EXT_MEMORY_BUDGET_NAME);
    }

    let mut id = vk::PhysicalDeviceIDProperties::default();
    let mut driver = vk::PhysicalDeviceDriverProperties::default();
    let mut subgroup = vk::PhysicalDeviceSubgroupProperties::default();
    let mut floats = vk::PhysicalDeviceFloatControlsProperties::default();
    let mut allocation = vk::PhysicalDeviceMaintenance3Properties::default();
    let mut largest = vk::PhysicalDeviceMaintenance4Properties::default();
    let mut group_sizes = vk::PhysicalDeviceSubgroupSizeControlProperties::default();
    let sized = names.contains(&"subgroupSizeControl");
    let maintained = names.contains(&"maintenance4");
    let (mut nvidia, mut amd) = (
        vk::PhysicalDeviceShaderSMBuiltinsPropertiesNV::default(),
        vk::PhysicalDeviceShaderCorePropertiesAMD::default(),
    );
    let mut all = vk::PhysicalDeviceProperties2::default()
        .push_next(&mut id)
        .push_next(&mut driver)
        .push_next(&mut subgroup)
        .push_next(&mut floats)
        .push_next(&mut allocation);
    if sized {
        all = all.push_next(&mut group_sizes);
    }
    if maintained {
        all = all.push_next(&mut largest);
    }
    if has(vk::NV_SHADER_SM_BUILTINS_NAME) {
        all = all.push_next(&mut nvidia);
    }
    if has(vk::AMD_SHADER_CORE_PROPERTIES_NAME) {
        all = all.push_next(&mut amd);
    }
    // SAFETY: the structures live until the call returns, and the device knows each of them.
    unsafe { raw.get_physical_device_properties2(device, &mut all) };
    let limits = properties.limits;

    // SAFETY: as above.
    let memory = unsafe { raw.get_physical_device_memory_properties(device) };
    let heaps = memory.memory_heaps_as_slice();
    let local = |heap: &&vk::MemoryHeap| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL);
    let heap = heaps.iter().filter(local).map(|heap| heap.size).max().unwrap_or(0);
    let software = properties.device_type == vk::PhysicalDeviceType::CPU;
    let unified = software || properties.device_type == vk::PhysicalDeviceType::INTEGRATED_GPU;

    if subgroup.supported_stages.contains(vk::ShaderStageFlags::COMPUTE) {
        let operations = subgroup.supported_operations;
        let of_subgroups = [
            (vk::SubgroupFeatureFlags::BASIC, "subgroupBasic"),
            (vk::SubgroupFeatureFlags::VOTE, "subgroupVote"),
            (vk::SubgroupFeatureFlags::ARITHMETIC, "subgroupArithmetic"),
            (vk::SubgroupFeatureFlags::BALLOT, "subgroupBallot"),
            (vk::SubgroupFeatureFlags::SHUFFLE, "subgroupShuffle"),
            (vk::SubgroupFeatureFlags::SHUFFLE_RELATIVE, "subgroupShuffleRelative"),
            (vk::SubgroupFeatureFlags::CLUSTERED, "subgroupClustered"),
            (vk::SubgroupFeatureFlags::QUAD, "subgroupQuad"),
        ];
        names.extend(
            of_subgroups
                .into_iter()
                .filter(|(operation, _)| operations.contains(*operation))
                .map(|(_, name)| name),
        );
    }
    let half = names.contains(&"shaderFloat16");
    let bytes = names.contains(&"shaderInt8");
    let shapes = if names.contains(&"cooperativeMatrix") {
        matrix_shapes(instance, device)
    } else {
        Vec::new()
    };
    let mut features_listed: Vec<String> = names.into_iter().map(str::to_owned).collect();
    features_listed.sort_unstable();
    features_listed.dedup();
    let subgroup_sizes = match sized {
        true => (group_sizes.min_subgroup_size.ilog2()..=group_sizes.max_subgroup_size.ilog2())
            .map(|power| 1 << power)
            .collect(),
        false => vec![subgroup.subgroup_size],
    };
    let stored = DTypeSupport {
        storage: true,
        arithmetic: false,
    };
    let computed = |arithmetic| DTypeSupport {
        storage: true,
        arithmetic,
    };
    let info = DeviceInfo {
        backend: "vulkan",
        ordinal,
        name: text(&properties.device_name),
        vendor: vendor(properties.vendor_id),
        platform: text(&driver.driver_name),
        kind: match properties.device_type {
            vk::PhysicalDeviceType::CPU => DeviceKind::Cpu,
            vk::PhysicalDeviceType::OTHER => DeviceKind::Other,
            _ => DeviceKind::Gpu,
        },
        execution: match software {
            true => Execution::Software,
            false => Execution::Hardware,
        },
        architecture: String::new(),
        driver_version: format!("{} ({:#x})", text(&driver.driver_info), properties.driver_version),
        // The driver changes it whenever code that it compiled could be another.
        compiler_version: format!(
            "Vulkan {}, pipelines {}",
            sys::version(properties.api_version),
            hexadecimal(&properties.pipeline_cache_uuid)
        ),
        memory: heap,
        unified_memory: unified,
        compute_units: match () {
            () if software => std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
            () if nvidia.shader_sm_count > 0 => nvidia.shader_sm_count,
            () if amd.shader_engine_count > 0 => {
                amd.shader_engine_count * amd.shader_arrays_per_engine_count * amd.compute_units_per_shader_array
            }
            // Vulkan has no question for it.
            () => 0,
        },
        cache: 0,
        // Lanes are invocations: explicit vectors gain nothing.
        vector_width: 1,
        subgroup_sizes,
        matrix_shapes: shapes,
        dtypes: DType::ALL.map(|dtype| match dtype {
            DType::F32 | DType::I32 => computed(true),
            // Where there are no types of 8 or 16 bits, kernels take words apart.
            DType::I8 | DType::U8 => computed(bytes),
            DType::F16 => computed(half),
            DType::BF16 => stored,
            _ => DTypeSupport::default(),
        }),
        features: features_listed,
        languages: vec![Language::SpirV],
        limits: Limits {
            max_buffer: [
                heap,
                allocation.max_memory_allocation_size,
                if maintained { largest.max_buffer_size } else { u64::MAX },
            ]
            .into_iter()
            .min()
            .unwrap_or(0),
            base_alignment: memory::ALIGNMENT,
            local_memory: limits.max_compute_shared_memory_size.into(),
            max_group_size: limits.max_compute_work_group_invocations,
            max_group: limits.max_compute_work_group_size,
            max_grid: limits.max_compute_work_group_count.map(u64::from),
            loop_rounds: (driver.driver_id == vk::DriverId::MESA_LLVMPIPE).then_some(LLVMPIPE_ROUNDS),
        },
        keeps_denormals: floats.shader_denorm_preserve_float32 != vk::FALSE,
    };
    Ok(Found {
        physical: device,
        features,
        extensions: enable,
        families,
        identity: Identity {
            budget,
            device_uuid: hexadecimal(&id.device_uuid),
            folds_constants: driver.driver_id != vk::DriverId::GOOGLE_SWIFTSHADER,
            cache_header: cache_header(&properties),
        },
        info,
    })
}

fn cache_header(properties: &vk::PhysicalDeviceProperties) -> [u8; compile::CACHE_HEADER] {
    let mut header = [0; compile::CACHE_HEADER];
    let words = [
        compile::CACHE_HEADER as u32,
        vk::PipelineCacheHeaderVersion::ONE.as_raw() as u32,
        properties.vendor_id,
        properties.device_id,
    ];
    for (bytes, word) in header.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    header[16..].copy_from_slice(&properties.pipeline_cache_uuid);
    header
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Who made a device, by its PCI vendor or Khronos's number.
fn vendor(id: u32) -> String {
    match id {
        0x1002 => "AMD",
        0x1010 => "Imagination",
        0x106b => "Apple",
        0x10de => "NVIDIA",
        0x13b5 => "ARM",
        0x1ae0 => "Google",
        0x5143 => "Qualcomm",
        0x8086 => "Intel",
        0x10005 => "Mesa",
        _ => return format!("vendor {id:#x}"),
    }
    .into()
}

/// The shapes that subgroups multiply at once, of dtypes that we have.
fn matrix_shapes(instance: &Instance, device: vk::PhysicalDevice) -> Vec<MatrixShape> {
    let functions = ash::khr::cooperative_matrix::Instance::new(instance.entry(), instance.raw());
    // SAFETY: the device has the extension.
    let found = unsafe { functions.get_physical_device_cooperative_matrix_properties(device) }
        .map_err(failed("vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"));
    let found = found.unwrap_or_else(|error| {
        tracing::warn!(%error, "the driver does not tell its matrix shapes");
        Vec::new()
    });
    let dtype = |kind| match kind {
        vk::ComponentTypeKHR::FLOAT32 => Some(DType::F32),
        vk::ComponentTypeKHR::FLOAT16 => Some(DType::F16),
        vk::ComponentTypeKHR::SINT8 => Some(DType::I8),
        vk::ComponentTypeKHR::UINT8 => Some(DType::U8),
        vk::ComponentTypeKHR::SINT32 => Some(DType::I32),
        _ => None,
    };
    found
        .iter()
        .filter(|shape| {
            shape.scope == vk::ScopeKHR::SUBGROUP
                && shape.a_type == shape.b_type
                && shape.c_type == shape.result_type
        })
        .filter_map(|shape| {
            Some(MatrixShape {
                m: shape.m_size,
                n: shape.n_size,
                k: shape.k_size,
                input: dtype(shape.a_type)?,
                accumulator: dtype(shape.c_type)?,
            })
        })
        .collect()
}
