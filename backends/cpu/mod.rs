//! placeholder
use ropeway_core::device::*;
use ropeway_core::info::DeviceInfo;
use ropeway_core::Result;
use std::sync::Arc;
/// cpu
pub struct CpuDriver;
impl Driver for CpuDriver {
    fn name(&self) -> &'static str { "cpu" }
    fn probe(&self) -> std::result::Result<Vec<DeviceInfo>, Unavailable> { Ok(vec![]) }
    fn open(&self, _: usize, _: &OpenOptions) -> Result<Arc<dyn Device>> { todo!() }
}
