//! The native half of the Python package `ropeway`: devices, sessions and tensors, and one function that runs any op.
//!
//! The other half, in `python/ropeway`, gives each op its signature and documentation.

mod dlpack;
mod dtype;
mod error;
mod host;
mod info;
mod run;
mod session;
mod tensor;

/// The module `ropeway._native`.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use super::info::{DeviceInfo, MissingBackend, probe};
    #[pymodule_export]
    use super::run::run;
    #[pymodule_export]
    use super::session::Session;
    #[pymodule_export]
    use super::tensor::{Tensor, from_dlpack};
}
