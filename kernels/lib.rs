//! The ops of Ropeway, one folder each: descriptor and checks (`mod.rs`), kernels in every language beside their manifest
//! (`manifest.rs`), the planner (`plan.rs`), the cpu device's functions (`native.rs`) and, under the feature `spec`, the f64
//! reference with its error bounds (`reference.rs`) and the conformance cases (`cases.rs`).
#![deny(unsafe_code)]

pub mod attention;
mod convert;
#[cfg(all(test, feature = "spec"))]
mod described;
mod dots;
mod exp;
pub mod gemm;
pub mod layer;
pub mod moe;
mod operand;
#[cfg(all(test, feature = "spec"))]
mod signatures;
mod tiles;
mod tuned;

use ropeway_core::op::OpKind;

pub use tuned::TUNED;

/// Hopper's asynchronous units, for CUDA kernels.
pub(crate) const HOPPER_CU: (&str, &str) = ("hopper.cu", include_str!("hopper.cu"));

/// Launches of CUDA kernels that begin before the launch before them has ended.
pub(crate) const DEPENDENT_CU: (&str, &str) = ("dependent.cu", include_str!("dependent.cu"));

/// What the vector kernels in AscendC stand on.
pub(crate) const LINES: (&str, &str) = ("lines.asc", include_str!("lines.asc"));

/// Every op that Ropeway ships, in the order of reports.
pub fn ops() -> Vec<&'static dyn OpKind> {
    [gemm::OPS, attention::OPS, moe::OPS, layer::OPS].concat()
}

/// The op of this name.
pub fn op(name: &str) -> Option<&'static dyn OpKind> {
    ops().into_iter().find(|op| op.name() == name)
}
