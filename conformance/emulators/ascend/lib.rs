//! An emulated CANN: a double of `libacl_rt.so` and `libacl_rtc.so` that holds its caller to their contract.
//!
//! It stands where there is no NPU, so that an Ascend backend and its kernels are tested with what a user's program calls, unchanged. It
//! proves loading, marshalling, order and what kernels compute by AscendC's documented semantics; never that an NPU does the same, and
//! never speed. Whatever it says of itself says "emulated".
//!
//! * [`runtime`]: `libacl_rt.so`: devices, memory, streams, events, launches, capture
//! * [`compiler`]: `libacl_rtc.so`: AscendC source to a shared object, by g++ and a clean-room subset of AscendC
//! * [`estimate`]: the cycles of a launch, from published figures
//! * [`install`]: the library files of a version of CANN, without the symbols that it lacks
#![deny(unsafe_code)]

pub mod compiler;
#[allow(unsafe_code, reason = "fills device memory")]
pub mod estimate;
pub mod install;
pub mod runtime;
