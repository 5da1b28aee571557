//! The least that a Vulkan program can do for the same launches: the figure to compare ours with.

use ash::vk;

use super::TOUCH_SPIRV;

/// Launches that are handed over together, as many as the backend does.
const BATCH: usize = 128;

/// An instance and a device of their own.
pub struct Bare {
    _entry: ash::Entry,
    instance: ash::Instance,
    device: ash::Device,
    queue: vk::Queue,
    commands: Vec<vk::CommandBuffer>,
    layout: vk::PipelineLayout,
    pipeline: vk::Pipeline,
    recorded: usize,
}

impl Bare {
    /// The first device that the loader lists.
    pub fn new() -> Result<Bare, vk::Result> {
        // SAFETY: the system's loader.
        let entry =
            unsafe { ash::Entry::load() }.map_err(|_| vk::Result::ERROR_INITIALIZATION_FAILED)?;
        let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_2);
        let create = vk::InstanceCreateInfo::default().application_info(&application);
        // SAFETY: here and below: every handle is valid, structures outlive the calls, and commands are those of a sound program, as the
        // validation layer confirms; what is made is left to the end of the process.
        unsafe {
            let instance = entry.create_instance(&create, None)?;
            let physical = instance.enumerate_physical_devices()?[0];
            let queues = [vk::DeviceQueueCreateInfo::default().queue_priorities(&[1.0])];
            let mut features = vk::PhysicalDeviceVulkan12Features::default()
                .buffer_device_address(true)
                .scalar_block_layout(true);
            let create = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queues)
                .push_next(&mut features);
            let device = instance.create_device(physical, &create, None)?;
            let pool = vk::CommandPoolCreateInfo::default()
                .flags(vk::CommandPoolCreateFlags::RESET_COMMAND_BUFFER);
            let pool = device.create_command_pool(&pool, None)?;
            let allocate = vk::CommandBufferAllocateInfo::default()
                .command_pool(pool)
                .command_buffer_count(8);
            let ranges = [vk::PushConstantRange::default()
                .stage_flags(vk::ShaderStageFlags::COMPUTE)
                .size(128)];
            let layout = vk::PipelineLayoutCreateInfo::default().push_constant_ranges(&ranges);
            let layout = device.create_pipeline_layout(&layout, None)?;
            let words =
                ash::util::read_spv(&mut std::io::Cursor::new(TOUCH_SPIRV)).expect("a module");
            let module = vk::ShaderModuleCreateInfo::default().code(&words);
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(device.create_shader_module(&module, None)?)
                .name(c"main");
            let create = vk::ComputePipelineCreateInfo::default()
                .stage(stage)
                .layout(layout);
            let pipeline = device
                .create_compute_pipelines(vk::PipelineCache::null(), &[create], None)
                .map_err(|(_, code)| code)?[0];
            Ok(Bare {
                queue: device.get_device_queue(0, 0),
                commands: device.allocate_command_buffers(&allocate)?,
                _entry: entry,
                instance,
                device,
                layout,
                pipeline,
                recorded: 0,
            })
        }
    }

    /// Records a launch behind a barrier, and hands over a batch when it is full.
    pub fn launch(&mut self) {
        let commands = self.commands[self.recorded / BATCH];
        let block = [1u8; 76];
        let access = vk::AccessFlags::SHADER_READ | vk::AccessFlags::SHADER_WRITE;
        let barrier = [vk::MemoryBarrier::default()
            .src_access_mask(vk::AccessFlags::SHADER_WRITE)
            .dst_access_mask(access)];
        let stage = vk::PipelineStageFlags::COMPUTE_SHADER;
        // SAFETY: as in `new`.
        unsafe {
            if self.recorded.is_multiple_of(BATCH) {
                let begin = vk::CommandBufferBeginInfo::default()
                    .flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
                self.device
                    .begin_command_buffer(commands, &begin)
                    .expect("begun");
                self.device.cmd_bind_pipeline(
                    commands,
                    vk::PipelineBindPoint::COMPUTE,
                    self.pipeline,
                );
            }
            let none = vk::DependencyFlags::empty();
            self.device
                .cmd_pipeline_barrier(commands, stage, stage, none, &barrier, &[], &[]);
            self.device.cmd_push_constants(
                commands,
                self.layout,
                vk::ShaderStageFlags::COMPUTE,
                0,
                &block,
            );
            self.device.cmd_dispatch(commands, 1, 1, 1);
        }
        self.recorded += 1;
        if self.recorded.is_multiple_of(BATCH) {
            self.submit(commands);
        }
    }

    fn submit(&self, commands: vk::CommandBuffer) {
        let commands = [commands];
        let submission = vk::SubmitInfo::default().command_buffers(&commands);
        // SAFETY: as in `new`.
        unsafe {
            self.device.end_command_buffer(commands[0]).expect("ended");
            self.device
                .queue_submit(self.queue, &[submission], vk::Fence::null())
                .expect("submitted");
        }
    }

    /// Hands over the rest and waits for all.
    pub fn finish(&mut self) {
        if !self.recorded.is_multiple_of(BATCH) {
            self.submit(self.commands[self.recorded / BATCH]);
        }
        self.recorded = 0;
        // SAFETY: as in `new`.
        unsafe { self.device.queue_wait_idle(self.queue) }.expect("idle");
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // SAFETY: nothing is under way; what the device still holds goes with the process.
        let _ = unsafe { self.device.device_wait_idle() };
        let _ = &self.instance;
    }
}
