//! The C interface of Ropeway. `include/ropeway.h` is made of this crate's public items by cbindgen and is its documentation; the test `header`
//! keeps the two equal.
//!
//! [`api`] is the table of functions; the other modules hold what it points to, with the structs they take. Three rules keep the interface stable:
//! structs grow at their end by fields whose zero is the old behaviour ([`sized`]), the table grows at its end, numbers of constants
//! never change. The test `layout` holds the place of every field.
// Names are C's.
#![allow(non_camel_case_types)]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the structs of the C interface are laid out for 64-bit platforms");

mod api;
mod device;
mod event;
mod execution;
mod graph;
#[cfg(test)]
mod layout;
mod log;
mod memory;
mod ops;
mod plan;
mod queue;
mod sized;
mod status;
mod tensor;

pub use api::{ROPEWAY_API_VERSION, ropeway_api, ropeway_get_api};
