//! The conformance suite: what a device must do, and every op on it against an f64 reference.
#![deny(unsafe_code)]

pub mod request_file;
pub mod tensor_file;
