//! What the checks of the ops ask of an operand's descriptor.

use ropeway_core::memory::TensorDesc;
use ropeway_core::{DType, Error, Result};

/// The extents of an operand of `N` dimensions.
pub(crate) fn dims<const N: usize>(name: &str, desc: &TensorDesc, axes: &str) -> Result<[u64; N]> {
    let shape = || format!("shape {:?}", desc.shape());
    desc.shape()
        .try_into()
        .map_err(|_| Error::invalid(name, shape(), axes))
}

/// Checks dtype, shape and that the size in bytes fits 64 bits.
pub(crate) fn expect(name: &str, desc: &TensorDesc, dtype: DType, shape: &[u64]) -> Result<()> {
    if desc.dtype != dtype {
        return Err(Error::invalid(name, desc.dtype, dtype));
    }
    if desc.shape() != shape {
        let found = format!("shape {:?}", desc.shape());
        return Err(Error::invalid(name, found, format!("{shape:?}")));
    }
    desc.span_bytes().map(drop).map_err(|e| e.within(name))
}

/// As [`expect`], for an output: no two elements may share memory.
pub(crate) fn check_output(
    name: &str,
    desc: &TensorDesc,
    dtype: DType,
    shape: &[u64],
) -> Result<()> {
    expect(name, desc, dtype, shape)?;
    if desc.layout.is_injective() {
        return Ok(());
    }
    let strides = format!("strides {:?}", desc.layout.strides());
    let expected = "strides with which no two elements share memory";
    Err(Error::invalid(name, strides, expected))
}

pub(crate) fn output(name: &str, dtype: DType, shape: &[u64]) -> Result<TensorDesc> {
    TensorDesc::contiguous(dtype, shape).map_err(|e| e.within(name))
}
