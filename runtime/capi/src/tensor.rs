//! Dtypes, tensor descriptions and views.

use std::ffi::c_char;

use ropeway_core::memory::{Layout, MAX_RANK, TensorDesc};
use ropeway_core::{DType, Error, Result, View};

use crate::memory::ropeway_buffer;
use crate::sized::sized_structs;
use crate::status::borrow;

/// The element type of a tensor.
pub type ropeway_dtype = u32;
/// What the function at hand takes by default.
pub const ROPEWAY_DTYPE_DEFAULT: ropeway_dtype = 0;
/// IEEE 754 binary32.
pub const ROPEWAY_DTYPE_F32: ropeway_dtype = 1;
/// IEEE 754 binary16.
pub const ROPEWAY_DTYPE_F16: ropeway_dtype = 2;
/// bfloat16: the upper half of a binary32.
pub const ROPEWAY_DTYPE_BF16: ropeway_dtype = 3;
/// Signed 8-bit integer.
pub const ROPEWAY_DTYPE_I8: ropeway_dtype = 4;
/// Signed 32-bit integer.
pub const ROPEWAY_DTYPE_I32: ropeway_dtype = 5;
/// OCP 8-bit float, 4 exponent and 3 mantissa bits.
pub const ROPEWAY_DTYPE_F8_E4M3: ropeway_dtype = 6;
/// OCP 8-bit float, 5 exponent and 2 mantissa bits.
pub const ROPEWAY_DTYPE_F8_E5M2: ropeway_dtype = 7;
/// Unsigned byte; also the storage of quantised blocks.
pub const ROPEWAY_DTYPE_U8: ropeway_dtype = 8;
/// Signed 4-bit integer, two to a byte, the first in the low half.
pub const ROPEWAY_DTYPE_I4: ropeway_dtype = 9;
/// OCP MXFP4.
pub const ROPEWAY_DTYPE_MXFP4: ropeway_dtype = 10;
/// GGML block of 32 weights, 18 bytes. A tensor of blocks is described as rows of U8, with b_format.
pub const ROPEWAY_DTYPE_Q4_0: ropeway_dtype = 11;
/// GGML block of 32 weights, 20 bytes.
pub const ROPEWAY_DTYPE_Q4_1: ropeway_dtype = 12;
/// GGML block of 32 weights, 34 bytes.
pub const ROPEWAY_DTYPE_Q8_0: ropeway_dtype = 13;
/// GGML block of 256 weights, 144 bytes.
pub const ROPEWAY_DTYPE_Q4_K: ropeway_dtype = 14;
/// GGML block of 256 weights, 210 bytes.
pub const ROPEWAY_DTYPE_Q6_K: ropeway_dtype = 15;

/// The number of a dtype in the interface. It is frozen; the order of the Rust enumeration is not.
pub(crate) const fn dtype_code(dtype: DType) -> ropeway_dtype {
    match dtype {
        DType::F32 => ROPEWAY_DTYPE_F32,
        DType::F16 => ROPEWAY_DTYPE_F16,
        DType::BF16 => ROPEWAY_DTYPE_BF16,
        DType::I8 => ROPEWAY_DTYPE_I8,
        DType::I32 => ROPEWAY_DTYPE_I32,
        DType::F8E4M3 => ROPEWAY_DTYPE_F8_E4M3,
        DType::F8E5M2 => ROPEWAY_DTYPE_F8_E5M2,
        DType::U8 => ROPEWAY_DTYPE_U8,
        DType::I4 => ROPEWAY_DTYPE_I4,
        DType::MxFp4 => ROPEWAY_DTYPE_MXFP4,
        DType::Q4_0 => ROPEWAY_DTYPE_Q4_0,
        DType::Q4_1 => ROPEWAY_DTYPE_Q4_1,
        DType::Q8_0 => ROPEWAY_DTYPE_Q8_0,
        DType::Q4K => ROPEWAY_DTYPE_Q4_K,
        DType::Q6K => ROPEWAY_DTYPE_Q6_K,
        // A dtype that the interface does not name yet.
        _ => ROPEWAY_DTYPE_DEFAULT,
    }
}

pub(crate) fn dtype(code: ropeway_dtype, name: &str) -> Result<DType> {
    DType::ALL
        .into_iter()
        .find(|&dtype| dtype_code(dtype) == code)
        .ok_or_else(|| Error::invalid(name, format!("dtype {code}"), "one of ROPEWAY_DTYPE_..."))
}

/// The most dimensions of a tensor.
pub const ROPEWAY_MAX_RANK: usize = 8;
const _: () = assert!(ROPEWAY_MAX_RANK == MAX_RANK);

/// How a tensor's elements lie.
pub type ropeway_layout = u32;
/// Row-major without gaps; `strides` are not read.
pub const ROPEWAY_LAYOUT_CONTIGUOUS: ropeway_layout = 0;
/// As `strides` say.
pub const ROPEWAY_LAYOUT_STRIDED: ropeway_layout = 1;

/// A tensor: what a plan must know of it, and, for an execution, where it lies.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ropeway_tensor {
    /// sizeof(ropeway_tensor)
    pub struct_size: usize,
    /// Its name among an op's operands ("a", "expert_offsets"). Needed in ropeway_request only; in an execution NULL or the name of the
    /// operand in that place; not read elsewhere.
    pub name: *const c_char,
    /// Where it lies. Needed for an execution; not read by a plan.
    pub buffer: *const ropeway_buffer,
    /// First element, counted in elements from the buffer's begin.
    pub offset: u64,
    /// Element type. In an execution ROPEWAY_DTYPE_DEFAULT means dtype, shape and strides as they were planned.
    pub dtype: ropeway_dtype,
    /// Dimensions in use, at most ROPEWAY_MAX_RANK.
    pub rank: u32,
    /// Extents, outermost first. A plan holds for these and for smaller row counts and lengths.
    pub shape: [u64; ROPEWAY_MAX_RANK],
    /// Strides in elements, outermost first; 0 broadcasts.
    pub strides: [u64; ROPEWAY_MAX_RANK],
    /// Whether `strides` are read.
    pub layout: ropeway_layout,
    /// 0.
    pub reserved: u32,
}

sized_structs!(ropeway_tensor);

impl ropeway_tensor {
    /// Dtype and layout.
    pub(crate) fn desc(&self, name: &str) -> Result<TensorDesc> {
        let dtype = dtype(self.dtype, name)?;
        let rank = self.rank as usize;
        if rank > ROPEWAY_MAX_RANK {
            let expected = format!("at most {ROPEWAY_MAX_RANK}");
            return Err(Error::invalid(name, format!("{rank} dimensions"), expected));
        }
        if self.reserved != 0 {
            return Err(Error::invalid(
                name,
                format!("reserved = {}", self.reserved),
                0,
            ));
        }
        let shape = &self.shape[..rank];
        let layout = match self.layout {
            ROPEWAY_LAYOUT_CONTIGUOUS => Layout::contiguous(shape),
            ROPEWAY_LAYOUT_STRIDED => Layout::strided(shape, &self.strides[..rank]),
            other => {
                let found = format!("layout {other}");
                return Err(Error::invalid(name, found, "one of ROPEWAY_LAYOUT_..."));
            }
        };
        let layout = layout.map_err(|error| error.within(name))?;
        Ok(TensorDesc { dtype, layout })
    }

    /// The view, described as `planned` if it does not describe itself.
    ///
    /// # Safety
    /// The buffer is null or alive.
    pub(crate) unsafe fn view(&self, planned: TensorDesc, name: &str) -> Result<View> {
        // SAFETY: the caller's promise.
        let buffer = unsafe { borrow(self.buffer, name) }
            .map_err(|_| Error::invalid(name, "a tensor without a buffer", "a buffer"))?;
        let desc = match self.dtype {
            ROPEWAY_DTYPE_DEFAULT => planned,
            _ => self.desc(name)?,
        };
        let view = buffer.buffer.view(desc, self.offset);
        view.map_err(|error| error.within(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_has_a_number_of_its_own() {
        for each in DType::ALL {
            assert_eq!(dtype(dtype_code(each), "dtype").unwrap(), each);
        }
        assert!(dtype(ROPEWAY_DTYPE_DEFAULT, "dtype").is_err());
        assert!(dtype(99, "dtype").is_err());
    }
}
