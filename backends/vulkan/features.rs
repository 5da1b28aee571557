//! Which features of a physical device the backend knows, asks for and enables, under Vulkan's own names.

use std::ffi::CStr;

use ash::vk;

use super::sys::Instance;

/// A device's features, as far as kernels or this backend can use them.
#[derive(Clone, Default)]
pub(super) struct Features {
    core: vk::PhysicalDeviceFeatures,
    v11: vk::PhysicalDeviceVulkan11Features<'static>,
    v12: vk::PhysicalDeviceVulkan12Features<'static>,
    v13: vk::PhysicalDeviceVulkan13Features<'static>,
    dot: vk::PhysicalDeviceShaderIntegerDotProductFeatures<'static>,
    group_size: vk::PhysicalDeviceSubgroupSizeControlFeatures<'static>,
    matrix: vk::PhysicalDeviceCooperativeMatrixFeaturesKHR<'static>,
    float_atomics: vk::PhysicalDeviceShaderAtomicFloatFeaturesEXT<'static>,
    chain: Chain,
}

/// The structures that a device knows; others must not be in the chain.
#[derive(Clone, Copy, Default)]
struct Chain {
    v13: bool,
    dot: bool,
    group_size: bool,
    matrix: bool,
    float_atomics: bool,
}

/// Declares the features that are enabled where a device has them, with the names by which kernels require them.
macro_rules! features {
    ($($group:ident { $($field:ident $name:literal),* $(,)? })*) => {
        impl Features {
            /// Those that the device has.
            pub(super) fn names(&self) -> Vec<&'static str> {
                let mut names = Vec::new();
                $($(
                    if self.$group.$field != vk::FALSE {
                        names.push($name);
                    }
                )*)*
                names
            }

            /// The same without those that nothing here uses.
            fn known(&self) -> Features {
                let mut known = Features { chain: self.chain, ..Features::default() };
                $($( known.$group.$field = self.$group.$field; )*)*
                known
            }
        }
    };
}

features! {
    core {
        shader_int64 "shaderInt64",
        shader_int16 "shaderInt16",
        shader_float64 "shaderFloat64",
    }
    v11 {
        storage_buffer16_bit_access "storageBuffer16BitAccess",
        uniform_and_storage_buffer16_bit_access "uniformAndStorageBuffer16BitAccess",
        storage_push_constant16 "storagePushConstant16",
        variable_pointers_storage_buffer "variablePointersStorageBuffer",
        variable_pointers "variablePointers",
    }
    v12 {
        storage_buffer8_bit_access "storageBuffer8BitAccess",
        uniform_and_storage_buffer8_bit_access "uniformAndStorageBuffer8BitAccess",
        storage_push_constant8 "storagePushConstant8",
        shader_buffer_int64_atomics "shaderBufferInt64Atomics",
        shader_shared_int64_atomics "shaderSharedInt64Atomics",
        shader_float16 "shaderFloat16",
        shader_int8 "shaderInt8",
        scalar_block_layout "scalarBlockLayout",
        shader_subgroup_extended_types "shaderSubgroupExtendedTypes",
        host_query_reset "hostQueryReset",
        timeline_semaphore "timelineSemaphore",
        buffer_device_address "bufferDeviceAddress",
        vulkan_memory_model "vulkanMemoryModel",
        vulkan_memory_model_device_scope "vulkanMemoryModelDeviceScope",
    }
    v13 {
        subgroup_size_control "subgroupSizeControl",
        compute_full_subgroups "computeFullSubgroups",
        shader_integer_dot_product "shaderIntegerDotProduct",
        shader_zero_initialize_workgroup_memory "shaderZeroInitializeWorkgroupMemory",
        maintenance4 "maintenance4",
    }
    dot {
        shader_integer_dot_product "shaderIntegerDotProduct",
    }
    group_size {
        subgroup_size_control "subgroupSizeControl",
        compute_full_subgroups "computeFullSubgroups",
    }
    matrix {
        cooperative_matrix "cooperativeMatrix",
    }
    float_atomics {
        shader_buffer_float32_atomics "shaderBufferFloat32Atomics",
        shader_buffer_float32_atomic_add "shaderBufferFloat32AtomicAdd",
        shader_shared_float32_atomics "shaderSharedFloat32Atomics",
        shader_shared_float32_atomic_add "shaderSharedFloat32AtomicAdd",
    }
}

/// What this backend itself cannot do without.
pub(super) const NEEDED: [&str; 4] = [
    "bufferDeviceAddress",
    "hostQueryReset",
    "scalarBlockLayout",
    "timelineSemaphore",
];

impl Features {
    /// What a device has, beside the extensions that must be enabled for it.
    pub(super) fn of(
        instance: &Instance,
        device: vk::PhysicalDevice,
        api_version: u32,
        extensions: &[vk::ExtensionProperties],
    ) -> (Features, Vec<&'static CStr>) {
        let mut enable = Vec::new();
        let mut has = |name: &'static CStr| {
            let found = extensions
                .iter()
                .any(|extension| extension.extension_name_as_c_str() == Ok(name));
            if found {
                enable.push(name);
            }
            found
        };
        let v13 = api_version >= vk::API_VERSION_1_3;
        let chain = Chain {
            v13,
            dot: !v13 && has(vk::KHR_SHADER_INTEGER_DOT_PRODUCT_NAME),
            group_size: !v13 && has(vk::EXT_SUBGROUP_SIZE_CONTROL_NAME),
            matrix: has(vk::KHR_COOPERATIVE_MATRIX_NAME),
            float_atomics: has(vk::EXT_SHADER_ATOMIC_FLOAT_NAME),
        };
        // A portability device (MoltenVK) wants this one enabled.
        has(vk::KHR_PORTABILITY_SUBSET_NAME);
        let mut found = Features {
            chain,
            ..Features::default()
        };
        let core = found.linked(|first| {
            let mut all = vk::PhysicalDeviceFeatures2 {
                p_next: first,
                ..Default::default()
            };
            // SAFETY: the structures live until the call returns, and the device knows each of them.
            unsafe { instance.raw().get_physical_device_features2(device, &mut all) };
            all.features
        });
        found.core = core;
        (found.known(), enable)
    }

    /// Calls `create` with a description of the device that enables all of these features.
    pub(super) fn with_chain<T>(
        &self,
        mut create: vk::DeviceCreateInfo<'_>,
        call: impl FnOnce(&vk::DeviceCreateInfo<'_>) -> T,
    ) -> T {
        let mut enabled = self.clone();
        let core = enabled.core;
        enabled.linked(|first| {
            let all = vk::PhysicalDeviceFeatures2 {
                p_next: first,
                features: core,
                ..Default::default()
            };
            create.p_next = (&raw const all).cast();
            call(&create)
        })
    }

    /// Calls with the structures linked one to the next, and takes them apart again.
    fn linked<T>(&mut self, call: impl FnOnce(*mut std::ffi::c_void) -> T) -> T {
        let mut next = std::ptr::null_mut();
        macro_rules! link {
            ($($condition:expr => $field:ident),*) => {$(
                if $condition {
                    self.$field.p_next = next;
                    next = (&raw mut self.$field).cast();
                }
            )*};
        }
        let Chain {
            v13,
            dot,
            group_size,
            matrix,
            float_atomics,
        } = self.chain;
        link!(true => v11, true => v12, v13 => v13, dot => dot, group_size => group_size, matrix => matrix,
              float_atomics => float_atomics);
        let result = call(next);
        let end = std::ptr::null_mut();
        self.v11.p_next = end;
        self.v12.p_next = end;
        self.v13.p_next = end;
        self.dot.p_next = end;
        self.group_size.p_next = end;
        self.matrix.p_next = end;
        self.float_atomics.p_next = end;
        result
    }
}
