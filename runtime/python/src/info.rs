//! The devices of this machine, and why the rest did not open.

use std::collections::BTreeMap;

use pyo3::prelude::*;
use ropeway::Registry;
use ropeway::core::DType;
use ropeway::core::info::{self, DeviceKind};

use crate::dtype;

/// What a device is and can do.
#[pyclass(frozen, get_all, module = "ropeway")]
pub(crate) struct DeviceInfo {
    /// The name by which it is selected, such as "opencl:0".
    device: String,
    name: String,
    vendor: String,
    /// "cpu", "gpu", "npu" or "other".
    kind: &'static str,
    /// "hardware"; "software" for a driver that runs on the host's processor; "emulated" for a double of a vendor's driver; "recorded" for
    /// one that computes nothing.
    execution: String,
    platform: String,
    architecture: String,
    driver_version: String,
    compiler_version: String,
    /// Bytes.
    memory: u64,
    /// Bytes of the largest single buffer.
    max_buffer: u64,
    unified_memory: bool,
    compute_units: u32,
    subgroup_sizes: Vec<u32>,
    keeps_denormals: bool,
    features: Vec<String>,
    /// By dtype: "arithmetic" where the device computes in it, "storage" where it converts.
    dtypes: BTreeMap<&'static str, &'static str>,
}

#[pymethods]
impl DeviceInfo {
    fn __repr__(&self) -> String {
        format!(
            "<ropeway.DeviceInfo {}: {} ({})>",
            self.device, self.name, self.execution
        )
    }
}

/// A backend that has no device here.
#[pyclass(frozen, get_all, module = "ropeway")]
pub(crate) struct MissingBackend {
    backend: &'static str,
    /// What is missing.
    reason: String,
    /// What to install or set.
    remedy: String,
}

#[pymethods]
impl MissingBackend {
    fn __repr__(&self) -> String {
        format!(
            "<ropeway.MissingBackend {}: {}; {}>",
            self.backend, self.reason, self.remedy
        )
    }
}

pub(crate) fn describe(info: &info::DeviceInfo) -> DeviceInfo {
    let stored = DType::ALL
        .into_iter()
        .filter(|dtype| info.dtype(*dtype).storage);
    let dtypes = stored.map(|dtype| match info.dtype(dtype).arithmetic {
        true => (dtype::name(dtype), "arithmetic"),
        false => (dtype::name(dtype), "storage"),
    });
    DeviceInfo {
        device: info.selector(),
        name: info.name.clone(),
        vendor: info.vendor.clone(),
        kind: match info.kind {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Gpu => "gpu",
            DeviceKind::Npu => "npu",
            _ => "other",
        },
        execution: info.execution.to_string(),
        platform: info.platform.clone(),
        architecture: info.architecture.clone(),
        driver_version: info.driver_version.clone(),
        compiler_version: info.compiler_version.clone(),
        memory: info.memory,
        max_buffer: info.limits.max_buffer,
        unified_memory: info.unified_memory,
        compute_units: info.compute_units,
        subgroup_sizes: info.subgroup_sizes.clone(),
        keeps_denormals: info.keeps_denormals,
        features: info.features.clone(),
        dtypes: dtypes.collect(),
    }
}

/// Asks every backend for its devices: what there is, and what is missing.
#[pyfunction]
pub(crate) fn probe(py: Python<'_>) -> (Vec<DeviceInfo>, Vec<MissingBackend>) {
    let probes = py.detach(|| Registry::default().probe());
    let (mut devices, mut missing) = (Vec::new(), Vec::new());
    for probe in probes {
        match probe.devices {
            Ok(found) => devices.extend(found.iter().map(describe)),
            Err(unavailable) => missing.push(MissingBackend {
                backend: probe.backend,
                reason: unavailable.reason.to_string(),
                remedy: unavailable.remedy,
            }),
        }
    }
    (devices, missing)
}
