//! Ropeway: matrix products, attention and mixture-of-experts routing on whatever chip there is.
//!
//! ```
//! use ropeway::prelude::*;
//!
//! # fn main() -> Result<()> {
//! let registry = Registry::default();
//! let session = Session::new(registry.open("cpu")?)?;
//! println!("{}", session.device().info().name);
//! # Ok(())
//! # }
//! ```
//!
//! An engine opens a device through a [`Registry`], makes a [`Session`] on it, plans each op once for the largest row count it
//! will see ([`Session::plan`]) and enqueues the plan as often as it likes, with its own queue, buffers and workspace
//! ([`ropeway_core::plan::Executable::enqueue`]). Planning looks up tuned configurations and compiles; enqueueing does neither and allocates
//! nothing.
#![deny(unsafe_code)]

mod registry;
mod session;
mod tuned;

pub use registry::{Probe, Registry, cache_dir};
pub use ropeway_core as core;
pub use ropeway_kernels as kernels;
pub use session::{PlanOptions, Session};
pub use tuned::{TunedEntry, TunedTables, data_dir};

/// What most users need.
pub mod prelude {
    pub use crate::core::device::{Device, Event, Queue, QueueKind};
    pub use crate::core::memory::{Buffer, Layout, Slice, TensorDesc, View};
    pub use crate::core::op::{Op, OpKind};
    pub use crate::core::plan::{BoundPlan, Executable};
    pub use crate::core::request::HostTensor;
    pub use crate::core::{DType, Error, ErrorKind, Result};
    pub use crate::kernels::{attention, gemm, moe};
    pub use crate::{PlanOptions, Registry, Session};
}
