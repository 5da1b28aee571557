//! The devices of Ropeway, one folder each with the same file names: `mod.rs` (probe and limits), `device.rs` (memory and
//! info), `queue.rs` (launches, events, order), `compile.rs` (source and configuration to module), `sys.rs` (foreign
//! functions, loading, status codes to errors).

pub mod cache;
pub mod loop_graph;
#[cfg(any(
    feature = "cuda",
    feature = "opencl",
    feature = "vulkan",
    feature = "ascend"
))]
mod lost;
#[cfg(any(feature = "cuda", feature = "opencl", feature = "ascend"))]
mod moment;

use ropeway_core::device::Driver;

/// Declares the shipped backends: a module and a driver for each name, behind a feature of the same name.
macro_rules! drivers {
    ($($feature:literal $module:ident :: $driver:ident),* $(,)?) => {
        $(
            #[cfg(feature = $feature)]
            pub mod $module;
        )*

        /// A driver for every backend that was built in, in the order of reports.
        pub fn drivers() -> Vec<Box<dyn Driver>> {
            vec![$(
                #[cfg(feature = $feature)]
                Box::new($module::$driver),
            )*]
        }
    };
}

drivers! {
    "cpu" cpu::CpuDriver,
    "null" null::NullDriver,
    "cuda" cuda::CudaDriver,
    "opencl" opencl::OpenClDriver,
    "vulkan" vulkan::VulkanDriver,
    "ascend" ascend::AscendDriver,
}
