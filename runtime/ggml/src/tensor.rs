//! ggml's tensors as Ropeway's descriptions and views.
//!
//! ggml counts dimensions from the innermost and strides in bytes, Ropeway from the outermost and in elements.

use std::ffi::CStr;

use ropeway::prelude::*;

use crate::abi::{self, MAX_DIMS, kind};
use crate::host::{Operation, host};
use crate::memory::Allocation;

/// A tensor of a graph: data, or a node that computes some.
#[derive(Clone, Copy)]
pub struct Tensor<'a>(pub &'a abi::Tensor);

/// Weights of a product as its op sees them: elements, or bytes of blocks.
pub struct Weights {
    /// The type of what is counted.
    pub dtype: DType,
    /// The blocks' format.
    pub format: Option<DType>,
    /// How many a row has.
    pub columns: u64,
    /// Strides, innermost first.
    pub strides: [u64; MAX_DIMS],
}

impl<'a> Tensor<'a> {
    /// What computes it.
    pub fn operation(self) -> Operation {
        host().map_or(Operation::Other, |host| host.operation(self.0.op))
    }

    /// ggml's name of what computes it.
    pub fn operation_name(self) -> &'static str {
        host().map_or("?", |host| host.operation_name(self.0.op))
    }

    /// The name that the engine gave it.
    pub fn name(self) -> String {
        // SAFETY: ggml ends the names it copies into this array.
        let name = unsafe { CStr::from_ptr(self.0.name.as_ptr()) };
        name.to_string_lossy().into_owned()
    }

    /// Operand `index`, if the node has it.
    pub fn src(self, index: usize) -> Option<Tensor<'a>> {
        // SAFETY: operands live as long as the node that names them.
        unsafe { self.0.src[index].as_ref() }.map(Tensor)
    }

    /// Operand `index`.
    ///
    /// # Errors
    /// `InvalidArgument` if the node has none.
    pub fn operand(self, index: usize) -> Result<Tensor<'a>> {
        self.src(index)
            .ok_or_else(|| Error::invalid(&format!("operand {index}"), "nothing", "a tensor"))
    }

    /// The tensor in whose memory it lies, if it has none of its own.
    pub fn owner(self) -> Option<Tensor<'a>> {
        // SAFETY: a view's source lives as long as the view.
        unsafe { self.0.view_src.as_ref() }.map(Tensor)
    }

    /// Extents, innermost first.
    pub fn ne(self) -> [u64; MAX_DIMS] {
        self.0.ne.map(|extent| extent.max(0) as u64)
    }

    /// Whether it has no element.
    pub fn is_empty(self) -> bool {
        self.0.ne.contains(&0)
    }

    /// The dtype of its elements.
    ///
    /// # Errors
    /// `Unsupported` for types that are not elements, such as quantised blocks.
    pub fn dtype(self) -> Result<DType> {
        match self.0.kind {
            kind::F32 => Ok(DType::F32),
            kind::F16 => Ok(DType::F16),
            kind::BF16 => Ok(DType::BF16),
            kind::I32 => Ok(DType::I32),
            _ => Err(Error::unsupported(format!(
                "elements of type {}",
                self.type_name()
            ))),
        }
    }

    /// What ggml calls the type of its elements.
    pub fn type_name(self) -> &'static str {
        host().map_or("?", |host| host.type_name(self.0.kind))
    }

    /// The tensor as the weights of a product.
    ///
    /// # Errors
    /// `Unsupported` for types that products do not read, and blocks that do not lie one after the other.
    pub fn weights(self) -> Result<Weights> {
        let format = match self.0.kind {
            kind::Q4_0 => DType::Q4_0,
            kind::Q4_1 => DType::Q4_1,
            kind::Q8_0 => DType::Q8_0,
            kind::Q4_K => DType::Q4K,
            kind::Q6_K => DType::Q6K,
            _ => {
                return Ok(Weights {
                    dtype: self.dtype()?,
                    format: None,
                    columns: self.ne()[0],
                    strides: self.strides()?,
                });
            }
        };
        let block = format
            .block()
            .filter(|block| self.0.nb[0] as u64 == block.bytes);
        let block = block.ok_or_else(|| Error::unsupported("blocks with gaps between them"))?;
        let [_, rows, matrices, batch] = self.0.nb.map(|bytes| bytes as u64);
        Ok(Weights {
            dtype: DType::U8,
            format: Some(format),
            columns: self.ne()[0] / block.elements * block.bytes,
            strides: [1, rows, matrices, batch],
        })
    }

    /// Strides in elements, innermost first.
    ///
    /// # Errors
    /// `Unsupported` for strides that are not whole elements.
    pub fn strides(self) -> Result<[u64; MAX_DIMS]> {
        let size = self.dtype()?.size().unwrap_or(1);
        let mut strides = [0; MAX_DIMS];
        for (stride, &bytes) in strides.iter_mut().zip(&self.0.nb) {
            if !(bytes as u64).is_multiple_of(size) {
                return Err(Error::unsupported(format!("a stride of {bytes} bytes")));
            }
            *stride = bytes as u64 / size;
        }
        Ok(strides)
    }

    /// Parameter `index` as an integer.
    pub fn integer(self, index: usize) -> i32 {
        self.0.op_params[index]
    }

    /// Parameter `index` as a float.
    pub fn float(self, index: usize) -> f32 {
        f32::from_bits(self.0.op_params[index] as u32)
    }

    /// Where its data lies: the buffer and the byte of its first element.
    ///
    /// # Errors
    /// `InvalidArgument` if it lies in no buffer of the plugin.
    pub fn place(self) -> Result<(&'a Allocation, u64)> {
        let buffer = match self.owner() {
            Some(owner) if self.0.buffer.is_null() => owner.0.buffer,
            _ => self.0.buffer,
        };
        // SAFETY: ggml keeps the buffers of a graph's tensors alive.
        let allocation = unsafe { Allocation::of(buffer) };
        let allocation = allocation.ok_or_else(|| {
            Error::invalid(&self.name(), "foreign memory", "a buffer of this plugin")
        })?;
        let offset = allocation.offset_of(self.0.data as usize);
        let offset = offset.ok_or_else(|| {
            Error::invalid(&self.name(), "an address outside its buffer", "one inside")
        })?;
        Ok((allocation, offset))
    }
}
