//! An emulated CUDA driver: a double of `libcuda.so.1` whose kernels are run by a PTX interpreter and watched by a sanitizer.
//!
//! It stands where there is no GPU, so that a CUDA backend and its kernels are tested with what a user's program calls, unchanged. It is
//! no simulator of a GPU: results are what the PTX ISA says, time means nothing. Whatever it says of itself says "emulated".
//!
//! * [`driver`]: the C interface
//! * [`ptx`]: the text, decoded
//! * [`memory`]: device memory
//! * [`golden`]: what GPUs do, and the interpreter held to it
//! * [`interpret`]: launches, and the sanitizer
#![deny(unsafe_code)]

pub mod driver;
pub mod golden;
pub mod interpret;
pub mod memory;
pub mod ptx;
