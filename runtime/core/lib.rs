//! The contract between the ops of Ropeway and the devices that run them.
//!
//! Two kinds of people implement what is declared here. A **backend** implements [`device::Driver`],
//! [`device::Device`], [`device::Queue`] and [`device::Event`]: it speaks memory, modules, launches and events, and
//! knows no op. An **op** implements [`op::Op`]: it checks a problem and turns it into a [`plan::Plan`], pure data that
//! carries kernel sources in several languages, and knows no vendor. The two never meet; the runtime (crate `ropeway`)
//! brings them together, and the conformance suite judges every pair against the same reference.
//!
//! Nothing here is unsafe code; three functions are declared `unsafe` for backends to define:
//! [`device::Queue::launch`] and the imports of [`device::Device`].
#![deny(unsafe_code)]

pub mod device;
pub mod dtype;
pub mod error;
pub mod executable;
pub mod expr;
pub mod info;
pub mod kernel;
pub mod memory;
pub mod native;
pub mod op;
pub mod plan;
pub mod request;
#[cfg(feature = "spec")]
pub mod spec;

pub use dtype::DType;
pub use error::{Error, ErrorKind, Result};
pub use memory::{Buffer, Layout, Slice, View};
