//! An OpenCL device whose driver miscompiles one configuration, in the test program only.

use std::sync::Arc;

use ropeway::Registry;
use ropeway_core::device::{Device, Driver, OpenOptions, Unavailable};
use ropeway_core::info::DeviceInfo;
use ropeway_core::{ErrorKind, Result};

use crate::wrapped::Wrapped;

/// The configuration of `gemm_packed` that comes out wrong.
pub const CONFIG: [(&str, i64); 3] = [("KC", 192), ("MR", 12), ("STRIPS", 8)];

/// The first OpenCL device in a registry of its own, with the fault; `None` without one.
pub fn registry() -> Option<(Registry, DeviceInfo)> {
    let device = match Registry::default().open("opencl") {
        Ok(device) => device,
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            eprintln!("not tested, no OpenCL device: {error}");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let info = device.info().clone();
    let mut registry = Registry::empty(OpenOptions::default());
    registry.add(Box::new(Miscompiling(device)));
    Some((registry, info))
}

struct Miscompiling(Arc<dyn Device>);

impl Driver for Miscompiling {
    fn name(&self) -> &'static str {
        self.0.info().backend
    }

    fn probe(&self) -> std::result::Result<Vec<DeviceInfo>, Unavailable> {
        Ok(vec![self.0.info().clone()])
    }

    fn open(&self, _: usize, _: &OpenOptions) -> Result<Arc<dyn Device>> {
        Ok(Arc::new(Wrapped {
            device: self.0.clone(),
            compiling: Box::new(|config| {
                let is_it = |(name, value): &(&str, i64)| config.get(name) == Some(*value);
                if CONFIG.iter().all(is_it) {
                    // Tiles of fewer rows than the launch is made for: less work, and rows that are never written.
                    config.set("MR", 8);
                }
            }),
            allocating: Box::new(|| Ok(())),
        }))
    }
}
