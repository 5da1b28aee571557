//! What an execution costs.

use super::*;
use crate::api::{ROPEWAY_API_VERSION, ropeway_api, ropeway_get_api};
use crate::device::ropeway_device;
use crate::ops::ropeway_gemm;
use crate::status::ROPEWAY_OK;
use crate::tensor::ROPEWAY_DTYPE_F32;

#[path = "../../../../backends/tests/counting/mod.rs"]
mod counting;

/// A struct of zeros but for its size, as ROPEWAY_INIT makes one.
fn zero<T: sized::SizedStruct>() -> T {
    let mut object = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: zeros are a value of such a struct, which begins with its size.
    unsafe {
        object.as_mut_ptr().cast::<usize>().write(size_of::<T>());
        object.assume_init()
    }
}

#[test]
fn executing_allocates_nothing() {
    let api = ropeway_get_api(ROPEWAY_API_VERSION);
    // SAFETY: the table lives as long as the process.
    let api: &ropeway_api = unsafe { &*api };
    let (mut device, mut queue) = (std::ptr::null_mut(), std::ptr::null_mut());
    let (mut buffer, mut plan) = (std::ptr::null_mut(), std::ptr::null_mut());
    let tensor = ropeway_tensor {
        dtype: ROPEWAY_DTYPE_F32,
        rank: 2,
        shape: [16, 16, 0, 0, 0, 0, 0, 0],
        ..zero()
    };
    let op = ropeway_gemm {
        a: &tensor,
        b: &tensor,
        ..zero()
    };
    // SAFETY: the handles are those that the calls before have made, the structs live until the calls return.
    unsafe {
        let (null_device, no_options) = (c"null".as_ptr(), std::ptr::null());
        assert_eq!(
            (api.device_open)(null_device, no_options, &mut device),
            ROPEWAY_OK
        );
        assert_eq!((api.queue_create)(device, 0, &mut queue), ROPEWAY_OK);
        assert_eq!(
            (api.buffer_create)(device, 3 * 1024, &mut buffer),
            ROPEWAY_OK
        );
        let planned = (api.plan_gemm)(device, &op, std::ptr::null(), &mut plan);
        assert_eq!(planned, ROPEWAY_OK);
        // A recording keeps what it is given.
        let device: &ropeway_device = &*device;
        ropeway_backends::null::recording(&**device.session.device())
            .expect("a null device")
            .pause();
    }
    let mut operands = [tensor; 3];
    for (index, (operand, name)) in operands.iter_mut().zip([c"a", c"b", c"d"]).enumerate() {
        operand.name = name.as_ptr();
        operand.buffer = buffer;
        operand.offset = index as u64 * 256;
    }
    let execution = ropeway_execution {
        plan,
        operands: operands.as_ptr(),
        operand_count: operands.len(),
        ..zero()
    };
    let execute = || {
        // SAFETY: as above.
        let status = unsafe { (api.queue_execute)(queue, &execution) };
        assert_eq!(status, ROPEWAY_OK);
    };
    assert_eq!(
        counting::allocations(|| (0..100).for_each(|_| execute())),
        0
    );
    // SAFETY: each is released once.
    unsafe {
        (api.plan_release)(plan);
        (api.buffer_release)(buffer);
        (api.queue_release)(queue);
        (api.device_release)(device);
    }
}
