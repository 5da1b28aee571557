//! The command line of Ropeway.
#![deny(unsafe_code)]

fn main() {}
