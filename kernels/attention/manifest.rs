//! Manifest.

use ropeway_core::kernel::Kernel;

/// The kernels of this folder.
pub(super) const KERNELS: &[&Kernel] = &[];
