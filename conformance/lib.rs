//! The conformance suite: what a device must do, and every op on it against an f64 reference.
//!
//! ```
//! use ropeway::Registry;
//! use ropeway_conformance::cases::{Selection, select};
//! use ropeway_conformance::suite::{Settings, Suite};
//!
//! # fn main() -> ropeway_core::Result<()> {
//! let device = Registry::default().open("cpu")?;
//! let selection = Selection { filter: Some("device/copies".into()), ..Selection::default() };
//! let cases = select(device.info(), &selection)?;
//! let report = Suite::new(device, Settings::default())?.run(&cases, |_| {})?;
//! assert!(report.passes(), "{:?}", report.failures().collect::<Vec<_>>());
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

mod arena;
pub mod cases;
pub mod compare;
pub mod device;
pub mod expectations;
pub mod generate;
pub mod ops;
pub mod report;
pub mod request_file;
mod reruns;
pub mod saved;
pub mod suite;
pub mod tensor_file;
pub mod verdict;
