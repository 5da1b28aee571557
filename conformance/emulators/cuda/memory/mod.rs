//! Device memory: allocations with addresses that are never given twice, and the bytes behind them.

#[allow(unsafe_code, reason = "bytes that several threads and the host share")]
mod region;
mod space;

pub use region::Region;
pub use space::{AddressSpace, Allocation, Lookup, State};
