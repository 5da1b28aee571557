//! Initialisation, devices, contexts.

use std::ffi::c_char;
use std::sync::atomic::Ordering;

use super::call;
use crate::runtime::abi::{Out, Text};
use crate::runtime::device::{current, emulator, set_current};
use crate::runtime::status;

/// What the devices are called.
const SOC_NAME: &std::ffi::CStr = c"Ascend910B3 (emulated)";

/// `aclrtGetSocName`, as CANN's documentation declares it; null before `aclInit`.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetSocName() -> *const c_char {
    match call("aclrtGetSocName", |_| Ok(())) {
        0 => SOC_NAME.as_ptr(),
        _ => std::ptr::null(),
    }
}

super::exported! {
    fn aclInit(config: Text) |emulator| {
        if !config.is_null() {
            let path = config.get("configPath")?;
            if !std::path::Path::new(path).is_file() {
                return Err(status::INVALID_PARAMETER.because(format!("no configuration {path}")));
            }
        }
        if emulator.initialised.fetch_add(1, Ordering::AcqRel) > 0 {
            return Err(status::REPEATED_INITIALISATION.because("aclInit was called before"));
        }
        Ok(())
    }

    fn aclFinalize() |emulator| {
        emulator.finalise();
        Ok(())
    }

    // Each aclInit counts, also one that is told that it came late.
    fn aclFinalizeReference(count: Out<u64>) |emulator| {
        let left = emulator.initialised.load(Ordering::Acquire) - 1;
        if left == 0 {
            emulator.finalise();
        } else {
            emulator.initialised.store(left, Ordering::Release);
        }
        if count.check("refCount").is_ok() {
            count.put("refCount", left)?;
        }
        Ok(())
    }

    // The version of the interface, which is no version of CANN: programs look for symbols, not for this.
    fn aclrtGetVersion(major: Out<i32>, minor: Out<i32>, patch: Out<i32>) |_emulator| {
        major.put("majorVersion", 1)?;
        minor.put("minorVersion", 0)?;
        patch.put("patchVersion", 0)
    }

    fn aclrtGetDeviceCount(count: Out<u32>) |emulator| {
        count.put("count", emulator.devices.len() as u32)
    }

    fn aclrtSetDevice(device: i32) |emulator| {
        emulator.set_device(device)
    }

    fn aclrtGetDevice(device: Out<i32>) |_emulator| {
        device.put("deviceId", current()?.device as i32)
    }

    fn aclrtResetDevice(device: i32) |emulator| {
        emulator.reset_device(device)
    }

    fn aclrtGetDeviceInfo(device: u32, attribute: u32, value: Out<i64>) |emulator| {
        emulator.device(device.into())?;
        // A 910B3.
        value.put("value", match attribute {
            101 | 102 => 20,
            201 => 40,
            204 => 192 << 10,
            301 => emulator.settings.memory as i64,
            302 => 192 << 20,
            601 => 2201,
            _ => return Err(status::UNSUPPORTED.because(format!("attribute {attribute}"))),
        })
    }

    fn aclrtCreateContext(context: Out<usize>, device: i32) |emulator| {
        context.check("context")?;
        let (device, _) = emulator.device(device.into())?;
        let made = emulator.create_context(device);
        set_current(&made);
        context.put("context", made.handle)
    }

    fn aclrtDestroyContext(context: usize) |emulator| {
        emulator.destroy_context(context)
    }

    fn aclrtSetCurrentContext(context: usize) |emulator| {
        let context = emulator.contexts.get(context)?;
        set_current(&context);
        Ok(())
    }

    fn aclrtGetCurrentContext(context: Out<usize>) |_emulator| {
        context.put("context", current()?.handle)
    }

    fn aclrtSynchronizeDevice() |_emulator| {
        let context = current()?;
        let streams: Vec<_> = emulator()
            .contexts
            .all()
            .iter()
            .filter(|other| other.device == context.device)
            .flat_map(|other| other.streams())
            .collect();
        for stream in &streams {
            stream.forbid_capture("aclrtSynchronizeDevice while a stream is captured")?;
        }
        for stream in streams {
            stream.synchronize(None)?;
        }
        context.device().check()
    }
}
