//! Arrays in host memory: where NumPy and DLPack exporters keep their elements, and how a device gets at them.

use std::any::Any;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use numpy::{PyUntypedArray, PyUntypedArrayMethods, npyffi};
use pyo3::prelude::*;
use ropeway::core::device::Device;
use ropeway::core::memory::{Layout, TensorDesc};
use ropeway::core::{Buffer, Error, ErrorKind, View};

use crate::error::Result;
use crate::{dlpack, dtype};

/// A place in the host's memory.
#[derive(Clone, Copy)]
pub(crate) struct Address(pub(crate) *mut u8);

// SAFETY: a number until somebody goes there, which takes unsafe code of its own.
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

impl Address {
    /// This many bytes on.
    pub(crate) fn on(self, bytes: u64) -> Address {
        Address(self.0.wrapping_add(bytes as usize))
    }
}

/// An array in host memory, kept alive by its owner.
#[derive(Clone)]
pub(crate) struct HostArray {
    data: *mut u8,
    desc: TensorDesc,
    writable: bool,
    owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: it is plain memory without thread affinity, alive for as long as its owner; that nobody else writes to it during a call is what
// the caller of an op promises, as with any function of NumPy's that lets go of the interpreter.
unsafe impl Send for HostArray {}
// SAFETY: as above; a shared reference gives access only through the unsafe blocks below, which say why.
unsafe impl Sync for HostArray {}

impl HostArray {
    /// The memory of a NumPy array, or of another exporter of DLPack's; `None` for anything else. To be read only, so that an array whose
    /// strides no view can have (negative ones, or not whole elements) is copied.
    pub(crate) fn to_read(operand: &str, object: &Bound<'_, PyAny>) -> Result<Option<HostArray>> {
        let Ok(array) = object.cast::<PyUntypedArray>() else {
            return HostArray::of_exporter(operand, object);
        };
        if let Some(array) = HostArray::of_numpy(operand, array)? {
            return Ok(Some(array));
        }
        let copy = array.call_method1("copy", ("C",))?;
        let copy = copy.cast::<PyUntypedArray>().map_err(PyErr::from)?;
        HostArray::of_numpy(operand, copy)
    }

    /// As [`HostArray::to_read`], to be written in place.
    pub(crate) fn to_write(operand: &str, object: &Bound<'_, PyAny>) -> Result<Option<HostArray>> {
        let Ok(array) = object.cast::<PyUntypedArray>() else {
            return HostArray::of_exporter(operand, object);
        };
        let found = HostArray::of_numpy(operand, array)?;
        let wrong = || {
            let found = format!("strides of {:?} bytes", array.strides());
            Error::invalid(operand, found, "whole elements, none of them negative")
        };
        Ok(Some(found.ok_or_else(wrong)?))
    }

    fn of_exporter(operand: &str, object: &Bound<'_, PyAny>) -> Result<Option<HostArray>> {
        let Some(borrowed) = dlpack::borrow(operand, object)? else {
            return Ok(None);
        };
        Ok(Some(HostArray {
            data: borrowed.data,
            desc: borrowed.desc,
            writable: borrowed.writable,
            owner: Arc::new(borrowed),
        }))
    }

    /// An array in bytes of our own.
    pub(crate) fn of_bytes(desc: TensorDesc, mut bytes: Vec<u8>) -> HostArray {
        HostArray {
            data: bytes.as_mut_ptr(),
            desc,
            writable: true,
            owner: Arc::new(bytes),
        }
    }

    /// An array in memory of the cpu device's.
    pub(crate) fn of_buffer(desc: TensorDesc, data: Address, buffer: &Buffer) -> HostArray {
        HostArray {
            data: data.0,
            desc,
            writable: true,
            owner: Arc::new(buffer.clone()),
        }
    }

    /// `None` if its strides are none that a view can have, or its elements are not aligned.
    fn of_numpy(operand: &str, array: &Bound<'_, PyUntypedArray>) -> Result<Option<HostArray>> {
        let dtype = dtype::of_array(operand, &array.dtype())?;
        let size = dtype.size().unwrap_or(1) as isize;
        let shape: Vec<u64> = array.shape().iter().map(|&extent| extent as u64).collect();
        let plain = Layout::contiguous(&shape)?;
        let mut strides = plain.strides().to_vec();
        // The stride of an axis that is never stepped along may be anything.
        let stepped = (0..shape.len()).filter(|&axis| shape[axis] > 1 && plain.elements() > 0);
        for axis in stepped {
            let stride = array.strides()[axis];
            if stride < 0 || stride % size != 0 {
                return Ok(None);
            }
            strides[axis] = (stride / size) as u64;
        }
        // SAFETY: the array is alive and attached to; its header is not changed meanwhile.
        let (data, flags) = unsafe {
            let header = array.as_array_ptr();
            ((*header).fields.data.cast::<u8>(), (*header).fields.flags)
        };
        if !(data as usize).is_multiple_of(size as usize) {
            return Ok(None);
        }
        Ok(Some(HostArray {
            data,
            desc: TensorDesc {
                dtype,
                layout: Layout::strided(&shape, &strides)?,
            },
            writable: flags & npyffi::NPY_ARRAY_WRITEABLE != 0,
            owner: Arc::new(array.clone().unbind()),
        }))
    }

    /// Dtype and layout.
    pub(crate) fn desc(&self) -> TensorDesc {
        self.desc
    }

    pub(crate) fn writable(&self) -> bool {
        self.writable
    }

    /// The first element.
    pub(crate) fn data(&self) -> *mut u8 {
        self.data
    }

    fn span(&self) -> Result<usize> {
        Ok(self.desc.span_bytes()? as usize)
    }

    /// Where it lies, from its first to its last element.
    pub(crate) fn addresses(&self) -> Result<Range<usize>> {
        let first = self.data as usize;
        Ok(first..first + self.span()?)
    }

    /// The array as memory of the cpu device, without a copy.
    pub(crate) fn import(&self, device: &dyn Device) -> Result<View> {
        let bytes = self.span()?;
        if bytes == 0 {
            return Ok(device.alloc(0)?.view(self.desc, 0)?);
        }
        let owner = Some(Arc::clone(&self.owner));
        // SAFETY: the array has this many bytes from its first to its last element, and lives for as long as its owner.
        let buffer = unsafe { device.import_memory(self.data.cast(), bytes as u64, owner) }?;
        Ok(buffer.view(self.desc, 0)?)
    }

    /// Its elements for an upload: as they lie if that is not much more than they are, else put together.
    pub(crate) fn with_bytes<T>(
        &self,
        use_bytes: impl FnOnce(TensorDesc, &[u8]) -> Result<T>,
    ) -> Result<T> {
        let elements = self.desc.layout.elements();
        if self.desc.layout.span() / 2 > elements {
            let (desc, bytes) = self.gather()?;
            return use_bytes(desc, &bytes);
        }
        let span = self.span()?;
        let bytes = match span {
            0 => &[],
            // SAFETY: as in `import`; nobody writes to it during the call.
            _ => unsafe { std::slice::from_raw_parts(self.data, span) },
        };
        use_bytes(self.desc, bytes)
    }

    /// Its elements in row-major order.
    pub(crate) fn gather(&self) -> Result<(TensorDesc, Vec<u8>)> {
        let desc = TensorDesc::contiguous(self.desc.dtype, self.desc.shape())?;
        let length = desc.span_bytes()?;
        let mut bytes = Vec::new();
        // A view that repeats elements can be longer than any memory.
        bytes.try_reserve_exact(length as usize).map_err(|error| {
            let full = Error::new(
                ErrorKind::OutOfMemory,
                format!("{length} bytes of host memory"),
            );
            full.with_source(error)
        })?;
        self.for_each_row(|row, length| {
            // SAFETY: rows lie in the array; nobody writes to it during the call.
            bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(row, length) });
        });
        Ok((desc, bytes))
    }

    /// Writes its elements, which come in row-major order.
    pub(crate) fn scatter(&self, mut bytes: &[u8]) {
        self.for_each_row(|row, length| {
            let (head, rest) = bytes.split_at(length);
            // SAFETY: rows lie in the array, which is writable; nobody else uses it during the call.
            unsafe { std::slice::from_raw_parts_mut(row, length) }.copy_from_slice(head);
            bytes = rest;
        });
    }

    /// The bytes of a writable array without gaps, to read results into.
    pub(crate) fn with_bytes_mut<T>(
        &self,
        use_bytes: impl FnOnce(&mut [u8]) -> Result<T>,
    ) -> Result<T> {
        let bytes: &mut [u8] = match self.span()? {
            0 => &mut [],
            // SAFETY: as in `scatter`.
            span => unsafe { std::slice::from_raw_parts_mut(self.data, span) },
        };
        use_bytes(bytes)
    }

    /// Every stretch of elements that lie side by side, in row-major order: first byte and length.
    fn for_each_row(&self, mut visit: impl FnMut(*mut u8, usize)) {
        let size = self.desc.dtype.size().unwrap_or(1) as usize;
        let (shape, strides) = (self.desc.shape(), self.desc.layout.strides());
        let (outer, length) = match (shape.split_last(), strides.last()) {
            (Some((&last, outer)), Some(1)) => (outer, last as usize),
            _ => (shape, 1),
        };
        if self.desc.layout.elements() == 0 {
            return;
        }
        let mut index = vec![0u64; outer.len()];
        loop {
            let offset: u64 = index
                .iter()
                .zip(strides)
                .map(|(i, stride)| i * stride)
                .sum();
            visit(
                self.data.wrapping_add(offset as usize * size),
                length * size,
            );
            let Some(axis) = (0..outer.len())
                .rev()
                .find(|&axis| index[axis] + 1 < outer[axis])
            else {
                return;
            };
            index[axis] += 1;
            index[axis + 1..].fill(0);
        }
    }
}

/// Memory of the cpu device that Python can look into: pinned memory, whose bytes keep their address, as a device buffer.
pub(crate) fn allocate(device: &dyn Device, bytes: u64) -> Result<(Buffer, *mut u8)> {
    let mut pinned = device.alloc_pinned(bytes)?;
    let data = pinned.bytes_mut().as_mut_ptr();
    if bytes == 0 {
        return Ok((device.alloc(0)?, data));
    }
    // Nobody locks it: it makes the owner `Sync`.
    let owner: Arc<dyn Any + Send + Sync> = Arc::new(Mutex::new(pinned));
    // SAFETY: the memory has this size and lives, at this address, for as long as its owner.
    let buffer = unsafe { device.import_memory(data.cast(), bytes, Some(owner)) }?;
    Ok((buffer, data))
}
