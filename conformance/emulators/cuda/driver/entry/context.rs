//! Contexts.

use crate::driver::abi::Out;
use crate::driver::state::{
    Context, Driver, current, current_or_none, lock, pop_current, push_current,
};
use crate::driver::status::{self, INVALID_CONTEXT, INVALID_VALUE, Result};
use std::ffi::c_void;
use std::sync::atomic::Ordering;

exported! {
    fn cuCtxCreate_v2(context: Out<usize>, flags: u32, device: i32) |driver| {
        create(driver, context, flags, device)
    }

    fn cuCtxCreate_v3(context: Out<usize>, _affinity: *const c_void, _count: i32, flags: u32, device: i32) |driver| {
        create(driver, context, flags, device)
    }

    fn cuCtxCreate_v4(context: Out<usize>, _parameters: *const c_void, flags: u32, device: i32) |driver| {
        create(driver, context, flags, device)
    }

    fn cuCtxDestroy_v2(context: usize) |driver| {
        let context = driver.contexts.get(context).map_err(|_| INVALID_CONTEXT)?;
        if current_or_none().is_some_and(|current| current.handle == context.handle) {
            pop_current()?;
        }
        context.destroy();
        Ok(())
    }

    fn cuCtxSetCurrent(context: usize) |driver| {
        let _ = pop_current();
        if context != 0 {
            push_current(driver.contexts.get(context).map_err(|_| INVALID_CONTEXT)?);
        }
        Ok(())
    }

    fn cuCtxGetCurrent(context: Out<usize>) |_driver| {
        context.put(current_or_none().map_or(0, |context| context.handle))
    }

    fn cuCtxPushCurrent_v2(context: usize) |driver| {
        push_current(driver.contexts.get(context).map_err(|_| INVALID_CONTEXT)?);
        Ok(())
    }

    fn cuCtxPopCurrent_v2(context: Out<usize>) |_driver| {
        let popped = pop_current()?;
        context.offer(popped.handle);
        Ok(())
    }

    fn cuCtxGetDevice(device: Out<i32>) |_driver| {
        let context = current_or_none().ok_or(INVALID_CONTEXT)?;
        device.put(context.device as i32)
    }

    fn cuCtxGetApiVersion(_context: usize, version: Out<u32>) |_driver| {
        version.put(super::VERSION as u32)
    }

    fn cuCtxGetId(context: usize, id: Out<u64>) |_driver| {
        let handle = if context == 0 { current()?.handle } else { context };
        id.put(handle as u64)
    }

    fn cuCtxSynchronize() |_driver| {
        let context = current()?;
        forbid_while_capturing(&context)?;
        context.synchronize()
    }

    fn cuCtxGetFlags(flags: Out<u32>) |_driver| {
        flags.put(current()?.flags.load(Ordering::Relaxed))
    }

    fn cuCtxSetFlags(flags: u32) |_driver| {
        current()?.flags.store(flags, Ordering::Relaxed);
        Ok(())
    }

    fn cuCtxSetLimit(limit: u32, value: usize) |_driver| {
        lock(&current()?.limits).insert(limit, value);
        Ok(())
    }

    fn cuCtxGetLimit(value: Out<usize>, limit: u32) |_driver| {
        let context = current()?;
        let otherwise = match limit {
            0 => 1024,
            1 => 1 << 20,
            2 => 8 << 20,
            _ => 0,
        };
        let set = lock(&context.limits).get(&limit).copied();
        value.put(set.unwrap_or(otherwise))
    }

    fn cuCtxSetCacheConfig(_config: u32) |_driver| {
        current().map(|_| ())
    }

    fn cuCtxGetCacheConfig(config: Out<u32>) |_driver| {
        current()?;
        config.put(0)
    }

    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) |_driver| {
        current()?;
        least.offer(0);
        greatest.offer(-5);
        Ok(())
    }

    fn cuProfilerStart() |_driver| {
        current().map(|_| ())
    }

    fn cuProfilerStop() |_driver| {
        current().map(|_| ())
    }
}

fn create(driver: &Driver, place: Out<usize>, flags: u32, device: i32) -> Result<()> {
    let (number, _) = driver.device(device)?;
    if place.is_null() {
        return Err(INVALID_VALUE);
    }
    let context = Context::new(number);
    context.flags.store(flags, Ordering::Relaxed);
    push_current(context.clone());
    place.put(context.handle)
}

/// Calls that might wait for other streams are not allowed while one of them is captured in mode global.
pub(super) fn forbid_while_capturing(context: &Context) -> Result<()> {
    if context.global_captures.load(Ordering::Relaxed) == 0 {
        return Ok(());
    }
    for stream in context.streams() {
        let _ = stream.forbid_capture();
    }
    Err(status::STREAM_CAPTURE_UNSUPPORTED)
}
