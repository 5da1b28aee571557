//! Ropeway as a backend of ggml: the library that llama.cpp loads by `GGML_BACKEND_PATH` or `ggml_backend_load`.
//!
//! | file | what of ggml's interface |
//! |---|---|
//! | `abi` | layouts and numbers |
//! | `host` | the ggml that has loaded the plugin, its release and functions |
//! | `device` | devices: which there are, what they support, their plans |
//! | `memory` | buffer types and buffers |
//! | `stream` | backends, which are streams of work: copies, events, graphs |
//! | `tensor` | tensors as views |
//! | `ops` | nodes as Ropeway's ops |
//! | `report` | what ran and what was declined |
//!
//! `README.md` beside this crate says how to use it, what is supported and what is not.

// A plugin speaks a foreign interface: each unsafe block says what ggml promises there.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::OnceLock;

pub mod abi;
mod device;
mod host;
mod memory;
mod ops;
mod report;
mod stream;
mod tensor;

use abi::{Reg, RegInterface, log_level};
use device::RopewayDevice;
use host::{host, log};

/// What ggml holds of the plugin: the registration, and devices at addresses that stay.
struct Registered {
    reg: *mut Reg,
    devices: Vec<*mut abi::Device>,
}

// SAFETY: both are made once, before anybody else has them, and only read since.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

static REGISTERED: OnceLock<Option<Registered>> = OnceLock::new();

/// How well the plugin serves this machine: 0 where it cannot work, which ggml then says.
#[unsafe(no_mangle)]
pub extern "C" fn ggml_backend_score() -> c_int {
    guard("ggml_backend_score", 0, || host().is_some().into())
}

/// The plugin's registration, or null with the reason logged.
#[unsafe(no_mangle)]
pub extern "C" fn ggml_backend_init() -> *mut Reg {
    guard("ggml_backend_init", ptr::null_mut(), || {
        let registered = REGISTERED.get_or_init(register);
        registered
            .as_ref()
            .map_or(ptr::null_mut(), |registered| registered.reg)
    })
}

fn register() -> Option<Registered> {
    let host = host()?;
    let devices = match device::find() {
        Ok(devices) => devices,
        Err(error) => {
            log(log_level::ERROR, &format!("not loaded: {error}"));
            return None;
        }
    };
    let reg = Box::into_raw(Box::new(Reg {
        api_version: host.api_version,
        interface: RegInterface {
            get_name: reg_name,
            get_device_count,
            get_device,
            get_proc_address: None,
        },
        context: ptr::null_mut(),
    }));
    let devices: Vec<_> = devices
        .into_iter()
        .map(|device| device.register(host, reg))
        .collect();
    for &device in &devices {
        // SAFETY: just made.
        let device = unsafe { RopewayDevice::of(device) };
        log(log_level::INFO, &device.to_string());
    }
    Some(Registered { reg, devices })
}

fn devices() -> &'static [*mut abi::Device] {
    match REGISTERED.get() {
        Some(Some(registered)) => &registered.devices,
        _ => &[],
    }
}

/// Whether a buffer type is one of the plugin's.
fn is_own_type(kind: *mut abi::BufferType) -> bool {
    // SAFETY: devices of the plugin, which live as long as the process.
    devices()
        .iter()
        .any(|&device| unsafe { RopewayDevice::of(device) }.buffer_type() == kind)
}

unsafe extern "C" fn reg_name(_: *mut Reg) -> *const c_char {
    c"Ropeway".as_ptr()
}

unsafe extern "C" fn get_device_count(_: *mut Reg) -> usize {
    devices().len()
}

unsafe extern "C" fn get_device(_: *mut Reg, index: usize) -> *mut abi::Device {
    devices().get(index).copied().unwrap_or(ptr::null_mut())
}

/// Runs a function that ggml calls. No panic crosses into it: it is logged, and `otherwise` is the answer.
fn guard<T>(what: &str, otherwise: T, run: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        log(
            log_level::ERROR,
            &format!("{what}: a defect of the plugin, see above"),
        );
        otherwise
    })
}
