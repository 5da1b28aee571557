//! Runs vectors through the driver library that the machine has.

use std::ffi::{CString, c_char, c_void};

use libloading::Library;

use super::Vector;

/// The names of the driver library.
const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// A driver, with a context on its first device.
pub struct Driver {
    library: Library,
    /// The device's name for itself.
    pub device: String,
    /// The driver's version of CUDA.
    pub version: String,
    /// The device's compute capability, as `9.0`.
    pub architecture: String,
}

type Call<A> = Result<A, String>;

macro_rules! call {
    ($driver:expr, $name:literal, fn($($ty:ty),*), $($argument:expr),*) => {{
        let symbol = concat!($name, "\0");
        // SAFETY: the driver's function of this name has this type, and the arguments are what it asks for.
        let status = unsafe {
            let function = $driver.library.get::<unsafe extern "C" fn($($ty),*) -> u32>(symbol.as_bytes()).map_err(|error| error.to_string())?;
            function($($argument),*)
        };
        if status == 0 { Ok(()) } else { Err(format!("{} gave {status}", $name)) }
    }};
}

impl Driver {
    /// Opens the driver and its first device.
    ///
    /// # Errors
    /// What is missing, or the call that failed.
    pub fn open() -> Call<Driver> {
        // SAFETY: a driver library may be loaded; that is what it is for.
        let library = NAMES
            .iter()
            .find_map(|name| unsafe { Library::new(name) }.ok());
        let mut driver = Driver {
            library: library
                .ok_or_else(|| format!("no driver: {} cannot be loaded", NAMES.join(", ")))?,
            device: String::new(),
            version: String::new(),
            architecture: String::new(),
        };
        let mut version = 0_i32;
        let mut name = [0_u8; 128];
        let mut context = 0_usize;
        call!(driver, "cuInit", fn(u32), 0)?;
        call!(driver, "cuDriverGetVersion", fn(*mut i32), &mut version)?;
        call!(
            driver,
            "cuDeviceGetName",
            fn(*mut c_char, i32, i32),
            name.as_mut_ptr().cast(),
            127,
            0
        )?;
        call!(
            driver,
            "cuDevicePrimaryCtxRetain",
            fn(*mut usize, i32),
            &mut context,
            0
        )?;
        call!(driver, "cuCtxSetCurrent", fn(usize), context)?;
        let mut capability = [0_i32; 2];
        // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
        for (part, attribute) in capability.iter_mut().zip([75_u32, 76]) {
            call!(
                driver,
                "cuDeviceGetAttribute",
                fn(*mut i32, u32, i32),
                part,
                attribute,
                0
            )?;
        }
        driver.architecture = format!("{}.{}", capability[0], capability[1]);
        let length = name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(name.len());
        driver.device = String::from_utf8_lossy(&name[..length]).into_owned();
        driver.version = format!("{}.{}", version / 1000, version % 1000 / 10);
        Ok(driver)
    }

    /// Runs a vector.
    ///
    /// # Errors
    /// The call that failed.
    pub fn run(&self, vector: &Vector) -> Call<Vec<u8>> {
        let text = CString::new(vector.text.as_str()).map_err(|error| error.to_string())?;
        let name = c"golden";
        let (mut module, mut function, mut input, mut output) = (0_usize, 0_usize, 0_u64, 0_u64);
        call!(
            self,
            "cuModuleLoadData",
            fn(*mut usize, *const c_char),
            &mut module,
            text.as_ptr()
        )?;
        call!(
            self,
            "cuModuleGetFunction",
            fn(*mut usize, usize, *const c_char),
            &mut function,
            module,
            name.as_ptr()
        )?;
        call!(
            self,
            "cuMemAlloc_v2",
            fn(*mut u64, usize),
            &mut input,
            vector.input.len()
        )?;
        call!(
            self,
            "cuMemAlloc_v2",
            fn(*mut u64, usize),
            &mut output,
            vector.output_bytes
        )?;
        call!(
            self,
            "cuMemcpyHtoD_v2",
            fn(u64, *const u8, usize),
            input,
            vector.input.as_ptr(),
            vector.input.len()
        )?;
        call!(
            self,
            "cuMemsetD8_v2",
            fn(u64, u8, usize),
            output,
            0,
            vector.output_bytes
        )?;
        let mut parameters: [*mut c_void; 2] = [(&raw mut input).cast(), (&raw mut output).cast()];
        call!(
            self,
            "cuLaunchKernel",
            fn(usize, u32, u32, u32, u32, u32, u32, u32, usize, *mut *mut c_void, *mut c_void),
            function,
            1,
            1,
            1,
            vector.threads,
            1,
            1,
            0,
            0,
            parameters.as_mut_ptr(),
            std::ptr::null_mut()
        )?;
        call!(self, "cuCtxSynchronize", fn(),)?;
        let mut bytes = vec![0; vector.output_bytes];
        call!(
            self,
            "cuMemcpyDtoH_v2",
            fn(*mut u8, u64, usize),
            bytes.as_mut_ptr(),
            output,
            bytes.len()
        )?;
        call!(self, "cuMemFree_v2", fn(u64), input)?;
        call!(self, "cuMemFree_v2", fn(u64), output)?;
        call!(self, "cuModuleUnload", fn(usize), module)?;
        Ok(bytes)
    }
}
