//! The driver's C interface: `cu…` functions as `cuda.h` declares them, over the interpreter.
//!
//! | file | holds |
//! |---|---|
//! | [`abi`] | what crosses the interface: places to write, structures, text, host memory; all unsafe code but the symbols |
//! | [`status`] | the codes of `CUresult` |
//! | [`settings`] | environment variables |
//! | [`faults`] | failures on demand, and the sanitizer's reports |
//! | [`state`] | devices, contexts, modules, the tables of handles |
//! | [`stream`] | streams with threads of their own, events |
//! | [`work`] | what a stream runs |
//! | [`graph`] | capture and graphs |
//! | `entry` | the exported functions |
//!
//! A handle is a number in a table, never a pointer that is followed: a stale or foreign one is `CUDA_ERROR_INVALID_HANDLE`.

#[allow(unsafe_code, reason = "the C interface")]
pub mod abi;
#[allow(unsafe_code, reason = "exported names")]
pub mod entry;
pub mod faults;
pub mod graph;
pub mod settings;
pub mod state;
pub mod status;
pub mod stream;
pub mod work;
