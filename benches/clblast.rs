//! CLBlast beside Ropeway: loaded at run time if it is there, on the same OpenCL device, with the parameters it chooses
//! itself or with those that its own tuner found.

// Foreign functions have no safe form; each call says why it holds.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char};
use std::fs;
use std::path::Path;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[allow(deprecated)]
use cl3::command_queue::create_command_queue;
use cl3::command_queue::{finish, release_command_queue};
use cl3::context::{CL_CONTEXT_DEVICES, get_context_info};
use cl3::memory::{CL_MEM_COPY_HOST_PTR, CL_MEM_READ_WRITE, create_buffer, release_mem_object};
use cl3::types::{cl_command_queue, cl_context, cl_device_id, cl_event, cl_mem};
use libloading::{Library, Symbol};
use ropeway_backends::opencl;
use ropeway_core::device::Device;
use ropeway_core::op::Op;
use ropeway_core::request::Request;
use ropeway_core::{DType, Error, ErrorKind, Result};
use ropeway_kernels::gemm::{Activation, Gemm};

use crate::measure::median;

/// The names under which the library is looked for.
const NAMES: [&str; 4] = [
    "libclblast.so.1",
    "libclblast.so",
    "libclblast.dylib",
    "clblast.dll",
];

const ROW_MAJOR: i32 = 101;
const NO_TRANSPOSE: i32 = 111;
const TRANSPOSE: i32 = 112;

/// A batch lasts at least this long, since the host's clock takes the time.
const BATCH: Duration = Duration::from_millis(50);

/// `CLBlastSgemm` of `clblast_c.h`.
type Sgemm = unsafe extern "C" fn(
    layout: i32,
    a_transpose: i32,
    b_transpose: i32,
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: cl_mem,
    a_offset: usize,
    a_ld: usize,
    b: cl_mem,
    b_offset: usize,
    b_ld: usize,
    beta: f32,
    c: cl_mem,
    c_offset: usize,
    c_ld: usize,
    queue: *mut cl_command_queue,
    event: *mut cl_event,
) -> i32;

/// `CLBlastOverrideParameters` of `clblast_c.h`.
type OverrideParameters = unsafe extern "C" fn(
    device: cl_device_id,
    kernel_name: *const c_char,
    precision: i32,
    num_parameters: usize,
    parameters_names: *const *const c_char,
    parameters_values: *const usize,
) -> i32;

/// `CLBlastPrecisionSingle`.
const SINGLE: i32 = 32;

/// The library on one device.
pub struct Clblast {
    library: Library,
    name: &'static str,
    context: cl_context,
    device: cl_device_id,
    queue: cl_command_queue,
    /// Keeps the context alive.
    _device: Arc<dyn Device>,
}

impl Clblast {
    /// Loads the library for an OpenCL device; `None` if it is not there or the device is another backend's.
    pub fn load(device: &Arc<dyn Device>) -> Option<Clblast> {
        let context = opencl::context(&**device)?;
        let devices: Vec<isize> = get_context_info(context, CL_CONTEXT_DEVICES).ok()?.into();
        let id = *devices.first()?;
        let (name, library) = NAMES.into_iter().find_map(|name| {
            // SAFETY: CLBlast's initialisers fill tables of its own and ask nothing of the process.
            Some((name, unsafe { Library::new(name) }.ok()?))
        })?;
        // Deprecated, but the only one that OpenCL 1.2 drivers have.
        #[allow(deprecated)]
        // SAFETY: `id` is the one device of this context, which `_device` keeps alive.
        let queue = unsafe { create_command_queue(context, id as _, 0) }.ok()?;
        Some(Clblast {
            library,
            name,
            context,
            device: id as _,
            queue,
            _device: Arc::clone(device),
        })
    }

    /// The library's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Uses what `clblast_tuner_xgemm` wrote into a file for the indirect kernel in single precision.
    ///
    /// # Errors
    /// `InvalidArgument` if it is no such file, `Driver` with the code if the library refuses it.
    pub fn tuned(&self, path: &Path) -> Result<()> {
        let wrong = |found: String| {
            let expected = "a clblast_xgemm_*_32.json as clblast_tuner_xgemm writes it";
            Error::invalid("--clblast-parameters", found, expected).within(path.display())
        };
        let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let json: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let is = |name: &str, value: &str| json[name].as_str() == Some(value);
        let best = json["best_parameters"].as_str();
        let best = best.filter(|_| is("best_kernel", "Xgemm") && is("precision", "32"));
        let best = best.ok_or_else(|| wrong("another document".into()))?;
        let mut names = Vec::new();
        let mut values: Vec<usize> = Vec::new();
        for pair in best.split_whitespace() {
            let parsed = pair
                .split_once('=')
                .and_then(|(name, value)| Some((CString::new(name).ok()?, value.parse().ok()?)));
            let (name, value) = parsed.ok_or_else(|| wrong(pair.to_owned()))?;
            // Of the file's own: no parameter of the kernel.
            if name.as_bytes() != b"PRECISION" {
                names.push(name);
                values.push(value);
            }
        }
        let pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        // SAFETY: this is the function's declaration in clblast_c.h of every version since 1.0.
        let override_parameters: Symbol<'_, OverrideParameters> = unsafe {
            self.library.get(b"CLBlastOverrideParameters\0")
        }
        .map_err(|error| Error::new(ErrorKind::Unavailable, format!("{}: {error}", self.name)))?;
        // SAFETY: both arrays have that many elements, the names end in zero, and nothing is kept.
        let code = unsafe {
            override_parameters(
                self.device,
                c"Xgemm".as_ptr(),
                SINGLE,
                values.len(),
                pointers.as_ptr(),
                values.as_ptr(),
            )
        };
        check("CLBlastOverrideParameters", code)
    }

    /// Median seconds of one plain f32 product; `None` for other ops, dtypes, layouts and epilogues.
    ///
    /// # Errors
    /// `Driver` with the code of the call that failed.
    pub fn gemm(&self, op: &dyn Op, request: &Request, budget: Duration) -> Result<Option<f64>> {
        let Some(gemm) = op
            .as_any()
            .downcast_ref::<Gemm>()
            .filter(|gemm| is_plain(gemm))
        else {
            return Ok(None);
        };
        // SAFETY: this is the function's declaration in clblast_c.h of every version since 1.0.
        let sgemm: Symbol<'_, Sgemm> =
            unsafe { self.library.get(b"CLBlastSgemm\0") }.map_err(|error| {
                Error::new(ErrorKind::Unavailable, format!("{}: {error}", self.name))
            })?;
        let (d, b) = (gemm.d.shape(), gemm.b.shape());
        let (m, n) = (d[0] as usize, d[1] as usize);
        let k = b[usize::from(gemm.trans_b)] as usize;
        let transpose = |transposed| if transposed { TRANSPOSE } else { NO_TRANSPOSE };
        let a_ld = if gemm.trans_a { m } else { k };
        let b_ld = if gemm.trans_b { k } else { n };
        let a = self.buffer(&request.inputs["a"].data)?;
        let b = self.buffer(&request.inputs["b"].data)?;
        let c = self.buffer(&vec![0; 4 * m * n])?;
        let mut queue = self.queue;
        let mut batch = |runs: usize| -> Result<f64> {
            let begin = Instant::now();
            for _ in 0..runs {
                // SAFETY: the buffers hold m × k, k × n and m × n floats in this layout; the queue is of their context; no event is asked for.
                let code = unsafe {
                    sgemm(
                        ROW_MAJOR,
                        transpose(gemm.trans_a),
                        transpose(gemm.trans_b),
                        m,
                        n,
                        k,
                        gemm.alpha,
                        a.0,
                        0,
                        a_ld,
                        b.0,
                        0,
                        b_ld,
                        0.0,
                        c.0,
                        0,
                        n,
                        &raw mut queue,
                        ptr::null_mut(),
                    )
                };
                check("CLBlastSgemm", code)?;
            }
            finish(self.queue).map_err(|code| failed("clFinish", code))?;
            Ok(begin.elapsed().as_secs_f64())
        };
        batch(1)?;
        let runs = (BATCH.as_secs_f64() / batch(1)?).ceil().max(1.0) as usize;
        let begin = Instant::now();
        let mut times = Vec::new();
        while times.len() < 3 || begin.elapsed() < budget {
            times.push(batch(runs)? / runs as f64);
        }
        Ok(Some(median(&mut times)))
    }

    fn buffer(&self, bytes: &[u8]) -> Result<ClBuffer> {
        let flags = CL_MEM_READ_WRITE | CL_MEM_COPY_HOST_PTR;
        let data = bytes.as_ptr().cast_mut().cast();
        // SAFETY: the context is alive; `bytes` is as long as it says and is copied, not kept or written.
        unsafe { create_buffer(self.context, flags, bytes.len(), data) }
            .map(ClBuffer)
            .map_err(|code| failed("clCreateBuffer", code))
    }
}

impl Drop for Clblast {
    fn drop(&mut self) {
        // SAFETY: the queue is this object's own and is not used again. A failure leaves nothing to do.
        let _ = unsafe { release_command_queue(self.queue) };
    }
}

struct ClBuffer(cl_mem);

impl Drop for ClBuffer {
    fn drop(&mut self) {
        // SAFETY: the buffer is this object's own and is not used again. A failure leaves nothing to do.
        let _ = unsafe { release_mem_object(self.0) };
    }
}

fn is_plain(gemm: &Gemm) -> bool {
    let plain = |desc: &ropeway_core::memory::TensorDesc| {
        desc.dtype == DType::F32 && desc.shape().len() == 2 && desc.layout.is_contiguous()
    };
    [gemm.a, gemm.b, gemm.d].iter().all(plain)
        && gemm.c.is_none()
        && gemm.bias.is_none()
        && gemm.activation == Activation::None
}

fn check(call: &'static str, code: i32) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(failed(call, code)),
    }
}

fn failed(call: &'static str, code: i32) -> Error {
    Error::from_call(ErrorKind::Driver, call, code.into(), "beside the benchmark")
}
