//! The Vulkan loader, instances and logical devices, through `ash`; handles that release on drop; result codes to errors.

use std::ffi::{CStr, c_void};
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ash::vk;
use gpu_allocator::vulkan::{Allocator, AllocatorCreateDesc};
use gpu_allocator::{AllocationError, AllocationSizes};
use ropeway_core::device::{Reason, Unavailable};
use ropeway_core::{Error, ErrorKind, Result};

use super::features::Features;

/// What the backend needs of loader and devices.
pub(super) const NEEDED_VERSION: u32 = vk::API_VERSION_1_2;

/// The loader's name on this system, as `ash` looks for it.
const LOADER: &str = if cfg!(windows) {
    "vulkan-1.dll"
} else if cfg!(target_vendor = "apple") {
    "libvulkan.dylib"
} else if cfg!(target_os = "android") {
    "libvulkan.so"
} else {
    "libvulkan.so.1"
};

/// A result code that reports failure, as an error of the call that gave it.
pub(super) fn error(call: &'static str, code: vk::Result) -> Error {
    let kind = match code {
        vk::Result::ERROR_OUT_OF_HOST_MEMORY
        | vk::Result::ERROR_OUT_OF_DEVICE_MEMORY
        | vk::Result::ERROR_OUT_OF_POOL_MEMORY
        | vk::Result::ERROR_TOO_MANY_OBJECTS
        | vk::Result::ERROR_FRAGMENTATION => ErrorKind::OutOfMemory,
        vk::Result::ERROR_DEVICE_LOST => ErrorKind::DeviceLost,
        vk::Result::TIMEOUT | vk::Result::NOT_READY => ErrorKind::Timeout,
        vk::Result::ERROR_INCOMPATIBLE_DRIVER
        | vk::Result::ERROR_INITIALIZATION_FAILED
        | vk::Result::ERROR_LAYER_NOT_PRESENT => ErrorKind::Unavailable,
        vk::Result::ERROR_FEATURE_NOT_PRESENT
        | vk::Result::ERROR_EXTENSION_NOT_PRESENT
        | vk::Result::ERROR_FORMAT_NOT_SUPPORTED => ErrorKind::Unsupported,
        vk::Result::ERROR_INVALID_SHADER_NV => ErrorKind::CompileFailed,
        _ => ErrorKind::Driver,
    };
    Error::from_call(kind, call, code.as_raw().into(), format!("{code:?}"))
}

/// Gives `map_err` an error of this call.
pub(super) fn failed(call: &'static str) -> impl Fn(vk::Result) -> Error {
    move |code| error(call, code)
}

pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn text(bytes: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = bytes
        .iter()
        .take_while(|&&c| c != 0)
        .map(|&c| c as u8)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn version(version: u32) -> String {
    format!(
        "{}.{}.{}",
        vk::api_version_major(version),
        vk::api_version_minor(version),
        vk::api_version_patch(version)
    )
}

/// A Vulkan instance: the loader's connection to all drivers.
pub(super) struct Instance {
    raw: ash::Instance,
    messages: Option<(ash::ext::debug_utils::Instance, vk::DebugUtilsMessengerEXT)>,
    /// Keeps the loader's library loaded.
    entry: ash::Entry,
}

impl Instance {
    pub(super) fn new() -> Result<Arc<Instance>, Unavailable> {
        // SAFETY: the loader is the system's, found as every Vulkan program finds it, and stays loaded while `entry` lives.
        let entry = unsafe { ash::Entry::load() }.map_err(|cause| match cause {
            ash::LoadingError::MissingEntryPoint(_) => Unavailable {
                reason: Reason::SymbolMissing {
                    library: LOADER.into(),
                    symbol: "vkGetInstanceProcAddr".into(),
                },
                remedy: "install the system's own Vulkan loader (Debian and Ubuntu: apt-get install libvulkan1)".into(),
            },
            ash::LoadingError::LibraryLoadFailure(_) => Unavailable {
                reason: Reason::LibraryNotFound { tried: vec![LOADER.into()] },
                remedy: "install the Vulkan loader and a driver (Debian and Ubuntu: apt-get install libvulkan1, and \
                         mesa-vulkan-drivers or the GPU vendor's package)"
                    .into(),
            },
        })?;
        // SAFETY: a global command without preconditions.
        let found = unsafe { entry.try_enumerate_instance_version() };
        let found = found.map_err(start_failed)?.unwrap_or(vk::API_VERSION_1_0);
        if found < NEEDED_VERSION {
            return Err(Unavailable {
                reason: Reason::VersionTooOld {
                    found: format!("Vulkan {}", version(found)),
                    needed: format!("Vulkan {}", version(NEEDED_VERSION)),
                },
                remedy: "install a newer Vulkan loader (Debian and Ubuntu: libvulkan1)".into(),
            });
        }
        let validated = validation_is_on();
        let application = vk::ApplicationInfo::default()
            .application_name(c"ropeway")
            .api_version(vk::API_VERSION_1_3.min(found));
        // Devices that only a compatibility layer offers (MoltenVK) are listed on request.
        // SAFETY: a global command without preconditions.
        let offered = unsafe { entry.enumerate_instance_extension_properties(None) };
        let offered = offered.map_err(start_failed)?;
        let has = |name: &CStr| {
            offered
                .iter()
                .any(|extension| extension.extension_name_as_c_str() == Ok(name))
        };
        let mut extensions = Vec::new();
        let mut flags = vk::InstanceCreateFlags::empty();
        if has(vk::KHR_PORTABILITY_ENUMERATION_NAME) {
            extensions.push(vk::KHR_PORTABILITY_ENUMERATION_NAME.as_ptr());
            flags |= vk::InstanceCreateFlags::ENUMERATE_PORTABILITY_KHR;
        }
        if validated {
            extensions.push(vk::EXT_DEBUG_UTILS_NAME.as_ptr());
        }
        let mut listen = listener();
        let mut create = vk::InstanceCreateInfo::default()
            .application_info(&application)
            .enabled_extension_names(&extensions)
            .flags(flags);
        if validated {
            create = create.push_next(&mut listen);
        }
        // SAFETY: the structures live until the call returns.
        let raw = unsafe { entry.create_instance(&create, None) }.map_err(start_failed)?;
        let messages = validated.then(|| {
            let functions = ash::ext::debug_utils::Instance::new(&entry, &raw);
            // SAFETY: the extension is enabled.
            let messenger =
                unsafe { functions.create_debug_utils_messenger(&listener(), None) }.unwrap_or_default();
            (functions, messenger)
        });
        Ok(Arc::new(Instance { raw, messages, entry }))
    }

    pub(super) fn raw(&self) -> &ash::Instance {
        &self.raw
    }

    pub(super) fn entry(&self) -> &ash::Entry {
        &self.entry
    }

    pub(super) fn physical_devices(&self) -> Result<Vec<vk::PhysicalDevice>, vk::Result> {
        // SAFETY: the instance is valid.
        unsafe { self.raw.enumerate_physical_devices() }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // SAFETY: every device of the instance holds it, so none is left.
        unsafe {
            if let Some((functions, messenger)) = &self.messages {
                functions.destroy_debug_utils_messenger(*messenger, None);
            }
            self.raw.destroy_instance(None);
        }
    }
}

/// Why the loader could not start.
pub(super) fn start_failed(code: vk::Result) -> Unavailable {
    let reason = match code {
        vk::Result::ERROR_INCOMPATIBLE_DRIVER => Reason::NoDevice,
        code => Reason::InitialisationFailed(error("vkCreateInstance", code)),
    };
    Unavailable {
        reason,
        remedy: NO_DRIVER.into(),
    }
}

pub(super) const NO_DRIVER: &str = "install a Vulkan driver (Debian and Ubuntu: apt-get install mesa-vulkan-drivers, which also runs \
                                    on the CPU, or the GPU vendor's package) and check VK_DRIVER_FILES, if it is set";

/// Whether the user asked for the validation layer. Its messages are then counted.
fn validation_is_on() -> bool {
    ["VK_INSTANCE_LAYERS", "VK_LOADER_LAYERS_ENABLE"]
        .iter()
        .filter_map(|name| std::env::var(name).ok())
        .any(|value| value.contains("validation"))
}

static MESSAGES: AtomicU64 = AtomicU64::new(0);
static FIRST_MESSAGE: Mutex<Option<String>> = Mutex::new(None);

/// How many warnings and errors the validation layer has given in this process, and the first of them.
pub(super) fn messages() -> (u64, Option<String>) {
    (MESSAGES.load(Ordering::Acquire), lock(&FIRST_MESSAGE).clone())
}

fn listener() -> vk::DebugUtilsMessengerCreateInfoEXT<'static> {
    vk::DebugUtilsMessengerCreateInfoEXT::default()
        .message_severity(
            vk::DebugUtilsMessageSeverityFlagsEXT::WARNING
                | vk::DebugUtilsMessageSeverityFlagsEXT::ERROR,
        )
        .message_type(vk::DebugUtilsMessageTypeFlagsEXT::VALIDATION)
        .pfn_user_callback(Some(heard))
}

unsafe extern "system" fn heard(
    severity: vk::DebugUtilsMessageSeverityFlagsEXT,
    _: vk::DebugUtilsMessageTypeFlagsEXT,
    data: *const vk::DebugUtilsMessengerCallbackDataEXT<'_>,
    _: *mut c_void,
) -> vk::Bool32 {
    // SAFETY: the layer gives valid data for the time of the call.
    let message = unsafe { (*data).message_as_c_str() };
    let message = message.map_or_else(Default::default, |text| text.to_string_lossy().into_owned());
    if severity.contains(vk::DebugUtilsMessageSeverityFlagsEXT::ERROR) {
        tracing::error!("Vulkan validation: {message}");
    } else {
        tracing::warn!("Vulkan validation: {message}");
    }
    lock(&FIRST_MESSAGE).get_or_insert(message);
    MESSAGES.fetch_add(1, Ordering::AcqRel);
    vk::FALSE
}

/// A family of queues that this backend uses, and its queues. Commands of one may be handed over by one thread at a time.
pub(super) struct Family {
    pub(super) index: u32,
    pub(super) launches: bool,
    /// 0 without a device clock.
    pub(super) timestamp_bits: u32,
    queues: Vec<Mutex<vk::Queue>>,
    next: AtomicU64,
}

impl Family {
    /// The queue that the next stream of work goes to.
    pub(super) fn next(&self) -> usize {
        (self.next.fetch_add(1, Ordering::Relaxed) % self.queues.len() as u64) as usize
    }
}

/// A logical device with its allocator.
pub(super) struct Gpu {
    pub(super) raw: ash::Device,
    pub(super) families: Vec<Family>,
    allocator: ManuallyDrop<Mutex<Allocator>>,
    /// Nanoseconds of a timestamp's unit.
    pub(super) timestamp_period: f64,
    /// No descriptors, and all the push constants that every device has.
    layout: vk::PipelineLayout,
    /// Semaphores of dropped timelines, with their values: for the next ones. They are never destroyed before the device: Mesa's submission thread
    /// touches what a submission waited for once more after the submission is seen to be done.
    timelines: Mutex<Vec<(vk::Semaphore, u64)>>,
    pub(super) physical: vk::PhysicalDevice,
    pub(super) instance: Arc<Instance>,
}

/// Bytes of push constants that every Vulkan device has.
pub(super) const PUSH_CONSTANTS: u32 = 128;

/// What to open of a physical device.
pub(super) struct Opening<'a> {
    pub(super) physical: vk::PhysicalDevice,
    pub(super) features: &'a Features,
    pub(super) extensions: &'a [&'static CStr],
    /// Families with the number of queues to take.
    pub(super) families: &'a [(u32, u32)],
}

impl Gpu {
    pub(super) fn open(instance: &Arc<Instance>, opening: &Opening<'_>) -> Result<Gpu> {
        let physical = opening.physical;
        let most = opening.families.iter().map(|(_, count)| *count).max();
        let priorities = vec![1.0; most.unwrap_or(1) as usize];
        let queues: Vec<_> = opening
            .families
            .iter()
            .map(|&(index, count)| {
                vk::DeviceQueueCreateInfo::default()
                    .queue_family_index(index)
                    .queue_priorities(&priorities[..count as usize])
            })
            .collect();
        let extensions: Vec<_> = opening.extensions.iter().map(|name| name.as_ptr()).collect();
        let create = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queues)
            .enabled_extension_names(&extensions);
        let raw = opening
            .features
            .with_chain(create, |create| {
                // SAFETY: the structures live until the call returns; features and extensions are those the device has.
                unsafe { instance.raw.create_device(physical, create, None) }
            })
            .map_err(failed("vkCreateDevice"))?;
        let destroy_on = |error| {
            // SAFETY: nothing has been made of the device yet.
            unsafe { raw.destroy_device(None) };
            error
        };
        // SAFETY: the handle is the instance's.
        let (family_properties, properties) = unsafe {
            (
                instance.raw.get_physical_device_queue_family_properties(physical),
                instance.raw.get_physical_device_properties(physical),
            )
        };
        let families = opening
            .families
            .iter()
            .map(|&(index, count)| {
                let family = family_properties[index as usize];
                // SAFETY: the device was made with these queues.
                let queue = |number| Mutex::new(unsafe { raw.get_device_queue(index, number) });
                Family {
                    index,
                    launches: family.queue_flags.contains(vk::QueueFlags::COMPUTE),
                    timestamp_bits: family.timestamp_valid_bits,
                    queues: (0..count).map(queue).collect(),
                    next: AtomicU64::new(0),
                }
            })
            .collect();
        const MIB: u64 = 1 << 20;
        let sizes = AllocationSizes::new(16 * MIB, 8 * MIB)
            .with_max_device_memblock_size(256 * MIB)
            .with_max_host_memblock_size(64 * MIB);
        let allocator = Allocator::new(&AllocatorCreateDesc {
            instance: instance.raw.clone(),
            device: raw.clone(),
            physical_device: physical,
            debug_settings: Default::default(),
            buffer_device_address: true,
            allocation_sizes: sizes,
        })
        .map_err(|cause| destroy_on(allocation_failed(&cause, 0)))?;
        let ranges = [vk::PushConstantRange::default()
            .stage_flags(vk::ShaderStageFlags::COMPUTE)
            .size(PUSH_CONSTANTS)];
        let layout = vk::PipelineLayoutCreateInfo::default().push_constant_ranges(&ranges);
        // SAFETY: the device is valid.
        let layout = unsafe { raw.create_pipeline_layout(&layout, None) }
            .map_err(|code| destroy_on(error("vkCreatePipelineLayout", code)))?;
        Ok(Gpu {
            families,
            allocator: ManuallyDrop::new(Mutex::new(allocator)),
            timestamp_period: properties.limits.timestamp_period.into(),
            layout,
            timelines: Mutex::default(),
            physical,
            instance: instance.clone(),
            raw,
        })
    }

    pub(super) fn allocator(&self) -> MutexGuard<'_, Allocator> {
        lock(&self.allocator)
    }

    /// Hands work to a queue of a family.
    pub(super) fn submit(&self, family: usize, queue: usize, submission: &vk::SubmitInfo<'_>) -> Result<()> {
        let queue = lock(&self.families[family].queues[queue]);
        // SAFETY: the queue is locked; the batch that the submission is of keeps alive what it names until it is done.
        unsafe {
            self.raw
                .queue_submit(*queue, std::slice::from_ref(submission), vk::Fence::null())
        }
        .map_err(failed("vkQueueSubmit"))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: whatever was made of the device holds it, so nothing is left that could be under way or in use; the allocator is
        // dropped here only.
        unsafe {
            // For the submission thread: see `timelines`.
            let _ = self.raw.device_wait_idle();
            for (semaphore, _) in lock(&self.timelines).drain(..) {
                self.raw.destroy_semaphore(semaphore, None);
            }
            self.raw.destroy_pipeline_layout(self.layout, None);
            ManuallyDrop::drop(&mut self.allocator);
            self.raw.destroy_device(None);
        }
    }
}

/// A failed allocation of so many bytes.
pub(super) fn allocation_failed(cause: &AllocationError, bytes: u64) -> Error {
    let kind = match cause {
        AllocationError::OutOfMemory | AllocationError::NoCompatibleMemoryTypeFound => {
            ErrorKind::OutOfMemory
        }
        _ => ErrorKind::Driver,
    };
    Error::from_call(kind, "vkAllocateMemory", 0, format!("{bytes} bytes: {cause}"))
}

/// A timeline semaphore: a counter that the device sets and anybody waits for.
pub(super) struct Timeline {
    raw: vk::Semaphore,
    /// The value it began with.
    pub(super) first: u64,
    gpu: Arc<Gpu>,
}

impl Timeline {
    pub(super) fn new(gpu: &Arc<Gpu>) -> Result<Timeline> {
        if let Some((raw, first)) = lock(&gpu.timelines).pop() {
            let gpu = gpu.clone();
            return Ok(Timeline { raw, first, gpu });
        }
        let mut kind = vk::SemaphoreTypeCreateInfo::default()
            .semaphore_type(vk::SemaphoreType::TIMELINE)
            .initial_value(0);
        let create = vk::SemaphoreCreateInfo::default().push_next(&mut kind);
        // SAFETY: the device is valid and has timeline semaphores.
        let raw = unsafe { gpu.raw.create_semaphore(&create, None) }.map_err(failed("vkCreateSemaphore"))?;
        Ok(Timeline {
            raw,
            first: 0,
            gpu: gpu.clone(),
        })
    }

    pub(super) fn raw(&self) -> vk::Semaphore {
        self.raw
    }

    pub(super) fn value(&self) -> Result<u64> {
        // SAFETY: the semaphore is valid.
        unsafe { self.gpu.raw.get_semaphore_counter_value(self.raw) }
            .map_err(failed("vkGetSemaphoreCounterValue"))
    }

    /// Whether the counter reached `value` within this time.
    pub(super) fn wait(&self, value: u64, limit: Duration) -> Result<bool> {
        let (semaphores, values) = ([self.raw], [value]);
        let wait = vk::SemaphoreWaitInfo::default()
            .semaphores(&semaphores)
            .values(&values);
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        // SAFETY: the semaphore is valid.
        match unsafe { self.gpu.raw.wait_semaphores(&wait, limit) } {
            Ok(()) => Ok(true),
            Err(vk::Result::TIMEOUT) => Ok(false),
            Err(code) => Err(error("vkWaitSemaphores", code)),
        }
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        // Whoever submits work with the semaphore holds it until that work is done, so the value stays.
        if let Ok(value) = self.value() {
            lock(&self.gpu.timelines).push((self.raw, value));
        }
    }
}

/// Slots for timestamps that the device writes.
pub(super) struct Queries {
    raw: vk::QueryPool,
    gpu: Arc<Gpu>,
}

impl Queries {
    pub(super) fn new(gpu: &Arc<Gpu>, count: u32) -> Result<Queries> {
        let create = vk::QueryPoolCreateInfo::default()
            .query_type(vk::QueryType::TIMESTAMP)
            .query_count(count);
        // SAFETY: the device is valid.
        let raw = unsafe { gpu.raw.create_query_pool(&create, None) }.map_err(failed("vkCreateQueryPool"))?;
        Ok(Queries { raw, gpu: gpu.clone() })
    }

    /// Makes a slot ready to be written, which no work under way may write.
    pub(super) fn reset(&self, slot: u32) {
        // SAFETY: the slot is one of the pool's and not in use; the device has hostQueryReset.
        unsafe { self.gpu.raw.reset_query_pool(self.raw, slot, 1) };
    }

    /// The device's clock as it was when a slot was written, in its own unit.
    pub(super) fn read(&self, slot: u32) -> Result<u64> {
        let mut ticks = [0u64];
        // SAFETY: the slot is one of the pool's, and room for one 64-bit result is given.
        unsafe {
            self.gpu.raw.get_query_pool_results(
                self.raw,
                slot,
                &mut ticks,
                vk::QueryResultFlags::TYPE_64 | vk::QueryResultFlags::WAIT,
            )
        }
        .map_err(failed("vkGetQueryPoolResults"))?;
        Ok(ticks[0])
    }
}

impl Drop for Queries {
    fn drop(&mut self) {
        // SAFETY: the batches that write slots hold the pool until they are done.
        unsafe { self.gpu.raw.destroy_query_pool(self.raw, None) };
    }
}

/// A compute pipeline.
pub(super) struct Pipeline {
    raw: vk::Pipeline,
    gpu: Arc<Gpu>,
}

/// A specialization constant's value in the bytes that the module's type has.
pub(super) struct Specialization<'a> {
    pub(super) entries: &'a [vk::SpecializationMapEntry],
    pub(super) data: &'a [u8],
}

impl Pipeline {
    /// Compiles a module. Gives the driver's cache data, if it has any that `known` did not hold.
    ///
    /// # Safety
    /// `words` must be valid SPIR-V for Vulkan that needs no feature that the device was not opened with.
    pub(super) unsafe fn new(
        gpu: &Arc<Gpu>,
        words: &[u32],
        entry: &CStr,
        specialization: &Specialization<'_>,
        known: Option<&[u8]>,
    ) -> Result<(Pipeline, Option<Vec<u8>>)> {
        let device = &gpu.raw;
        let module = vk::ShaderModuleCreateInfo::default().code(words);
        // SAFETY: the caller's promise.
        let module = unsafe { device.create_shader_module(&module, None) }.map_err(failed("vkCreateShaderModule"))?;
        let cache = vk::PipelineCacheCreateInfo::default().initial_data(known.unwrap_or_default());
        // SAFETY: the data is what this very driver gave (checked by its header and our hash).
        let cache = unsafe { device.create_pipeline_cache(&cache, None) }.unwrap_or_default();
        let specialization = vk::SpecializationInfo::default()
            .map_entries(specialization.entries)
            .data(specialization.data);
        let stage = vk::PipelineShaderStageCreateInfo::default()
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(module)
            .name(entry)
            .specialization_info(&specialization);
        let create = vk::ComputePipelineCreateInfo::default()
            .stage(stage)
            .layout(gpu.layout);
        // SAFETY: the module is valid, and the layout holds all that a module of ours may use.
        let made = unsafe { device.create_compute_pipelines(cache, std::slice::from_ref(&create), None) };
        // SAFETY: as above; module and cache are used no more after this.
        let data = unsafe {
            let data = device.get_pipeline_cache_data(cache);
            device.destroy_pipeline_cache(cache, None);
            device.destroy_shader_module(module, None);
            data
        };
        let made = made.map_err(|(_, code)| error("vkCreateComputePipelines", code))?;
        let pipeline = Pipeline { raw: made[0], gpu: gpu.clone() };
        let data = data.ok().filter(|data| known.is_none_or(|known| known != &data[..]));
        Ok((pipeline, data))
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // SAFETY: what is recorded with the pipeline holds it until it is done.
        unsafe { self.gpu.raw.destroy_pipeline(self.raw, None) };
    }
}

/// Command buffers that are recorded by one thread at a time.
pub(super) struct CommandPool {
    raw: vk::CommandPool,
    gpu: Arc<Gpu>,
}

/// Memory that a command reads or writes: a `VkBuffer`, and the first byte.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) buffer: vk::Buffer,
    pub(super) offset: u64,
}

impl CommandPool {
    pub(super) fn new(gpu: &Arc<Gpu>, family: u32) -> Result<CommandPool> {
        let create = vk::CommandPoolCreateInfo::default()
            .queue_family_index(family)
            .flags(vk::CommandPoolCreateFlags::RESET_COMMAND_BUFFER);
        // SAFETY: the device is valid and has the family.
        let raw = unsafe { gpu.raw.create_command_pool(&create, None) }.map_err(failed("vkCreateCommandPool"))?;
        Ok(CommandPool { raw, gpu: gpu.clone() })
    }

    /// A new command buffer, freed with the pool.
    pub(super) fn allocate(&self) -> Result<vk::CommandBuffer> {
        let allocate = vk::CommandBufferAllocateInfo::default()
            .command_pool(self.raw)
            .level(vk::CommandBufferLevel::PRIMARY)
            .command_buffer_count(1);
        // SAFETY: the pool is valid, and `&self` is held under its queue's lock.
        unsafe { self.gpu.raw.allocate_command_buffers(&allocate) }
            .map(|buffers| buffers[0])
            .map_err(failed("vkAllocateCommandBuffers"))
    }
}

impl Drop for CommandPool {
    fn drop(&mut self) {
        // SAFETY: the pool's owner waits for its work first.
        unsafe { self.gpu.raw.destroy_command_pool(self.raw, None) };
    }
}

/// A command buffer that is being recorded.
#[derive(Clone, Copy)]
pub(super) struct Commands<'a> {
    pub(super) raw: vk::CommandBuffer,
    pub(super) gpu: &'a Gpu,
    /// Whether the queue runs launches.
    pub(super) launches: bool,
}

// Every method records a command. The caller holds the lock of the command buffer's pool and keeps alive, until the work is done, what the
// command names; places lie in their buffers.
impl Commands<'_> {
    pub(super) fn begin(self, again: bool) -> Result<()> {
        let usage = match again {
            true => vk::CommandBufferUsageFlags::SIMULTANEOUS_USE,
            false => vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT,
        };
        let begin = vk::CommandBufferBeginInfo::default().flags(usage);
        // SAFETY: the buffer is not in use; beginning resets it.
        unsafe { self.gpu.raw.begin_command_buffer(self.raw, &begin) }.map_err(failed("vkBeginCommandBuffer"))
    }

    pub(super) fn end(self) -> Result<()> {
        // SAFETY: the buffer is being recorded.
        unsafe { self.gpu.raw.end_command_buffer(self.raw) }.map_err(failed("vkEndCommandBuffer"))
    }

    /// Later commands see what earlier ones wrote, and write after they have read.
    pub(super) fn barrier(self) {
        let write = self.write_access();
        let read_write = write | self.read_access();
        self.pipeline_barrier(self.stages(), read_write, write);
    }

    /// The host sees what earlier commands wrote, once it knows that they are done.
    pub(super) fn barrier_to_host(self) {
        self.pipeline_barrier(
            vk::PipelineStageFlags::HOST,
            vk::AccessFlags::HOST_READ,
            self.write_access(),
        );
    }

    fn pipeline_barrier(self, to: vk::PipelineStageFlags, sees: vk::AccessFlags, written: vk::AccessFlags) {
        let barrier = [vk::MemoryBarrier::default()
            .src_access_mask(written)
            .dst_access_mask(sees)];
        // SAFETY: see the block's comment; the stages are those that the queue's family has.
        unsafe {
            self.gpu.raw.cmd_pipeline_barrier(
                self.raw,
                self.stages(),
                to,
                vk::DependencyFlags::empty(),
                &barrier,
                &[],
                &[],
            );
        }
    }

    fn stages(self) -> vk::PipelineStageFlags {
        match self.launches {
            true => vk::PipelineStageFlags::TRANSFER | vk::PipelineStageFlags::COMPUTE_SHADER,
            false => vk::PipelineStageFlags::TRANSFER,
        }
    }

    fn write_access(self) -> vk::AccessFlags {
        match self.launches {
            true => vk::AccessFlags::TRANSFER_WRITE | vk::AccessFlags::SHADER_WRITE,
            false => vk::AccessFlags::TRANSFER_WRITE,
        }
    }

    fn read_access(self) -> vk::AccessFlags {
        match self.launches {
            true => vk::AccessFlags::TRANSFER_READ | vk::AccessFlags::SHADER_READ,
            false => vk::AccessFlags::TRANSFER_READ,
        }
    }

    pub(super) fn copy(self, from: Place, to: Place, bytes: u64) {
        let region = [vk::BufferCopy {
            src_offset: from.offset,
            dst_offset: to.offset,
            size: bytes,
        }];
        // SAFETY: see the block's comment.
        unsafe { self.gpu.raw.cmd_copy_buffer(self.raw, from.buffer, to.buffer, &region) };
    }

    /// Sets words; offset and length are multiples of 4.
    pub(super) fn fill(self, to: Place, bytes: u64, word: u32) {
        // SAFETY: see the block's comment.
        unsafe { self.gpu.raw.cmd_fill_buffer(self.raw, to.buffer, to.offset, bytes, word) };
    }

    pub(super) fn bind(self, pipeline: &Pipeline) {
        // SAFETY: see the block's comment.
        unsafe {
            self.gpu
                .raw
                .cmd_bind_pipeline(self.raw, vk::PipelineBindPoint::COMPUTE, pipeline.raw);
        }
    }

    /// Sets the first push constants; the length is a multiple of 4.
    pub(super) fn push(self, bytes: &[u8]) {
        // SAFETY: see the block's comment; the layout's range is as long.
        unsafe {
            self.gpu.raw.cmd_push_constants(
                self.raw,
                self.gpu.layout,
                vk::ShaderStageFlags::COMPUTE,
                0,
                bytes,
            );
        }
    }

    /// Launches the bound pipeline.
    ///
    /// # Safety
    /// The pipeline must stay within memory that is alive until the work is done.
    pub(super) unsafe fn dispatch(self, grid: [u32; 3]) {
        // SAFETY: the caller's promise.
        unsafe { self.gpu.raw.cmd_dispatch(self.raw, grid[0], grid[1], grid[2]) };
    }

    /// Writes the device's clock into a slot, once all earlier commands are done.
    pub(super) fn timestamp(self, queries: &Queries, slot: u32) {
        // SAFETY: see the block's comment; the slot is one of the pool's, in no other use, and reset (by the host where the queue cannot).
        unsafe {
            if self.launches {
                // Not by the host: lavapipe then works in the queue thread's context.
                self.gpu.raw.cmd_reset_query_pool(self.raw, queries.raw, slot, 1);
            }
            self.gpu.raw.cmd_write_timestamp(
                self.raw,
                vk::PipelineStageFlags::BOTTOM_OF_PIPE,
                queries.raw,
                slot,
            );
        }
    }
}
