//! The runtime's C interface, over host memory and threads.
//!
//! | file | holds |
//! |---|---|
//! | [`abi`] | what crosses the interface: places to write, structures, text, host memory |
//! | [`status`] | the codes of `aclError`, and failures with their reasons |
//! | [`settings`] | environment variables, and the version that a library file stands for |
//! | [`faults`] | failures on demand |
//! | [`breaches`] | what the caller did against the contract, kept until it is read |
//! | [`memory`] | device memory that the host cannot touch, pinned memory |
//! | [`clock`] | which work is known to be done |
//! | [`device`] | devices, contexts, the tables of handles |
//! | [`stream`] | streams with threads of their own, events |
//! | [`work`] | what a stream runs |
//! | [`graph`] | capture, model runtime instances |
//! | [`binary`] | compiled kernels, and launching them |
//! | `entry` | the exported functions |
//!
//! A handle is a number in a table, never a pointer that is followed: a stale or foreign one is 107017.

#[allow(unsafe_code, reason = "the C interface")]
pub mod abi;
#[allow(unsafe_code, reason = "calls compiled kernels")]
pub mod binary;
#[allow(unsafe_code, reason = "runs when the process ends")]
pub mod breaches;
pub mod clock;
pub mod device;
#[allow(unsafe_code, reason = "exported names")]
pub mod entry;
pub mod faults;
pub mod graph;
#[allow(unsafe_code, reason = "maps memory")]
pub mod memory;
#[allow(unsafe_code, reason = "reads what an installer wrote into the file")]
pub mod settings;
pub mod status;
pub mod stream;
pub mod work;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after a panic elsewhere: the emulator's own state is changed in single steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
