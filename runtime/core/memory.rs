//! Device memory, and the two ways to point into it: a [`Slice`] of bytes (copies) and a [`View`] of elements (kernels).
//!
//! # Ownership
//!
//! A [`Buffer`] is reference-counted. A queue keeps a clone of every buffer that queued work uses, so a buffer dropped
//! early is freed only after that work. What a foreign owner imported stays the owner's: dropping the handle releases
//! nothing but the handle.
//!
//! # Views
//!
//! A view carries shape and element strides. A stride of 0 broadcasts. Strides are never negative. A view is checked
//! against its buffer when it is made, on the host, so that no launch starts with a view that leaves its buffer.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};

/// The most dimensions a [`Layout`] holds.
pub const MAX_RANK: usize = 8;

/// Shape and element strides of a tensor, outermost dimension first, kept inline so that copying one allocates nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    rank: u8,
    shape: [u64; MAX_RANK],
    strides: [u64; MAX_RANK],
}

impl Layout {
    /// A row-major layout without gaps.
    ///
    /// # Errors
    /// `Unsupported` above [`MAX_RANK`] dimensions, `InvalidArgument` if the number of elements overflows 64 bits.
    pub fn contiguous(shape: &[u64]) -> Result<Layout> {
        let mut strides = [0; MAX_RANK];
        if shape.len() > MAX_RANK {
            return Err(Error::unsupported(format!(
                "{} dimensions; at most {MAX_RANK} are",
                shape.len()
            )));
        }
        let mut next = 1u64;
        for axis in (0..shape.len()).rev() {
            strides[axis] = next;
            // A dimension of zero leaves the strides of the others as if it were one.
            next = next
                .checked_mul(shape[axis].max(1))
                .ok_or_else(|| overflow(shape))?;
        }
        Layout::strided(shape, &strides[..shape.len()])
    }

    /// A layout with any strides (in elements).
    ///
    /// # Errors
    /// `InvalidArgument` if shape and strides differ in rank or the extent overflows 64 bits.
    pub fn strided(shape: &[u64], strides: &[u64]) -> Result<Layout> {
        if shape.len() > MAX_RANK {
            return Err(Error::unsupported(format!(
                "{} dimensions; at most {MAX_RANK} are",
                shape.len()
            )));
        }
        if shape.len() != strides.len() {
            return Err(Error::invalid(
                "strides",
                format!("{} strides", strides.len()),
                format!("{}, one a dimension", shape.len()),
            ));
        }
        let mut layout = Layout {
            rank: shape.len() as u8,
            shape: [1; MAX_RANK],
            strides: [0; MAX_RANK],
        };
        layout.shape[..shape.len()].copy_from_slice(shape);
        layout.strides[..shape.len()].copy_from_slice(strides);
        let elements = shape
            .iter()
            .try_fold(1u64, |n, &extent| n.checked_mul(extent));
        if elements.is_none() || layout.checked_span().is_none() {
            return Err(overflow(shape));
        }
        Ok(layout)
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[u64] {
        &self.shape[..self.rank()]
    }

    /// Strides in elements, outermost first.
    pub fn strides(&self) -> &[u64] {
        &self.strides[..self.rank()]
    }

    /// Number of elements; 1 for rank 0.
    pub fn elements(&self) -> u64 {
        self.shape().iter().product()
    }

    /// Elements from the first to one past the last that the layout touches; 0 if it has none.
    pub fn span(&self) -> u64 {
        self.checked_span()
            .expect("checked when the layout was made")
    }

    fn checked_span(&self) -> Option<u64> {
        if self.shape().contains(&0) {
            return Some(0);
        }
        self.shape()
            .iter()
            .zip(self.strides())
            .try_fold(0u64, |last, (&extent, &stride)| {
                last.checked_add((extent - 1).checked_mul(stride)?)
            })?
            .checked_add(1)
    }

    /// True if elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        let mut next = 1;
        self.elements() == 0
            || self
                .shape()
                .iter()
                .zip(self.strides())
                .rev()
                .all(|(&extent, &stride)| {
                    let fits = extent == 1 || stride == next;
                    next *= extent;
                    fits
                })
    }

    /// True if two different indices never share an element (so that the layout may be written).
    pub fn is_injective(&self) -> bool {
        let mut axes: Vec<(u64, u64)> = self
            .strides()
            .iter()
            .zip(self.shape())
            .filter(|&(_, &n)| n > 1)
            .map(|(&s, &n)| (s, n))
            .collect();
        axes.sort_unstable();
        let mut reach = 0u64;
        self.elements() == 0
            || axes.into_iter().all(|(stride, extent)| {
                let fits = stride > reach;
                reach += (extent - 1) * stride;
                fits
            })
    }

    /// Element offset of an index, which must have the layout's rank.
    pub fn offset_of(&self, index: &[u64]) -> u64 {
        debug_assert_eq!(index.len(), self.rank());
        index.iter().zip(self.strides()).map(|(i, s)| i * s).sum()
    }

    /// The layout seen as `shape` by NumPy's broadcasting: missing leading dimensions and extents of 1 get stride 0.
    pub fn broadcast_to(&self, shape: &[u64]) -> Result<Layout> {
        let fail = || {
            Error::new(
                ErrorKind::InvalidArgument,
                format!("shape {:?} does not broadcast to {shape:?}", self.shape()),
            )
        };
        let lead = shape.len().checked_sub(self.rank()).ok_or_else(fail)?;
        let mut strides = vec![0; shape.len()];
        for axis in 0..self.rank() {
            strides[lead + axis] = match self.shape[axis] {
                n if n == shape[lead + axis] => self.strides[axis],
                1 => 0,
                _ => return Err(fail()),
            };
        }
        Layout::strided(shape, &strides)
    }

    /// The same elements with two dimensions exchanged.
    #[must_use]
    pub fn transposed(mut self, a: usize, b: usize) -> Layout {
        self.shape[..self.rank as usize].swap(a, b);
        self.strides[..self.rank as usize].swap(a, b);
        self
    }

    /// Every index in row-major order.
    pub fn indices(&self) -> impl Iterator<Item = Vec<u64>> + '_ {
        (0..self.elements()).map(move |flat| {
            let mut rest = flat;
            let mut index = vec![0; self.rank()];
            for axis in (0..self.rank()).rev() {
                index[axis] = rest % self.shape[axis];
                rest /= self.shape[axis];
            }
            index
        })
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.shape())?;
        if !self.is_contiguous() {
            write!(f, " strides {:?}", self.strides())?;
        }
        Ok(())
    }
}

fn overflow(shape: &[u64]) -> Error {
    Error::invalid("shape", format!("{shape:?}"), "a size that fits 64 bits")
}

/// Dtype and layout of a tensor: what an op must know of it before there is any memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorDesc {
    /// Element type.
    pub dtype: DType,
    /// Shape and strides.
    pub layout: Layout,
}

impl TensorDesc {
    /// A row-major tensor without gaps.
    ///
    /// # Errors
    /// As [`Layout::contiguous`].
    pub fn contiguous(dtype: DType, shape: &[u64]) -> Result<TensorDesc> {
        Ok(TensorDesc {
            dtype,
            layout: Layout::contiguous(shape)?,
        })
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[u64] {
        self.layout.shape()
    }

    /// Bytes from the first element to the end of the last.
    ///
    /// # Errors
    /// `InvalidArgument` if that overflows 64 bits, `Unsupported` for dtypes without addressable elements.
    pub fn span_bytes(&self) -> Result<u64> {
        let size = self.dtype.size().ok_or_else(|| {
            Error::unsupported(format!("{} has no addressable elements", self.dtype))
        })?;
        self.layout
            .span()
            .checked_mul(size)
            .ok_or_else(|| overflow(self.shape()))
    }
}

impl fmt::Display for TensorDesc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.layout)
    }
}

/// Which open device an object belongs to; unique within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId(u64);

impl DeviceId {
    /// A new identity; a backend takes one each time it opens a device.
    pub fn unique() -> DeviceId {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        DeviceId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// An allocation of some backend. Backends implement it, everybody else holds a [`Buffer`].
///
/// Dropping the last handle frees the memory; a queue must hold one for as long as its work needs it.
pub trait Memory: Send + Sync + Any {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// The open device it belongs to.
    fn device(&self) -> DeviceId;
    /// For the backend to find its own type again.
    fn as_any(&self) -> &dyn Any;
}

/// A counted handle to device memory.
#[derive(Clone)]
pub struct Buffer(Arc<dyn Memory>);

impl Buffer {
    /// Wraps a backend's allocation.
    pub fn new(memory: Arc<dyn Memory>) -> Buffer {
        Buffer(memory)
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.0.size()
    }

    /// The open device it belongs to.
    pub fn device(&self) -> DeviceId {
        self.0.device()
    }

    /// The backend's own object, if it is a `T`.
    pub fn downcast<T: 'static>(&self) -> Option<&T> {
        self.0.as_any().downcast_ref()
    }

    /// True if both handles are of one allocation.
    pub fn same(&self, other: &Buffer) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// All of it.
    pub fn all(&self) -> Slice {
        Slice {
            buffer: self.clone(),
            offset: 0,
            len: self.size(),
        }
    }

    /// The bytes of a launch argument: `bytes` from element `offset` of `dtype` on.
    ///
    /// # Errors
    /// `InvalidArgument` if they leave the buffer.
    pub fn argument_bytes(&self, dtype: DType, offset: u64, bytes: u64) -> Result<Range<u64>> {
        let range = offset
            .checked_mul(dtype.size().unwrap_or(1))
            .and_then(|begin| Some(begin..begin.checked_add(bytes)?))
            .filter(|range| range.end <= self.size());
        range.ok_or_else(|| {
            Error::invalid(
                "buffer",
                format!("{bytes} bytes from {dtype} element {offset} on"),
                format!("a range of its {} bytes", self.size()),
            )
        })
    }

    /// `len` bytes from byte `offset` on.
    ///
    /// # Errors
    /// `InvalidArgument` if that leaves the buffer.
    pub fn slice(&self, offset: u64, len: u64) -> Result<Slice> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(Slice {
                buffer: self.clone(),
                offset,
                len,
            }),
            _ => Err(Error::invalid(
                "slice",
                format!("{len} bytes at offset {offset}"),
                format!("a range within the buffer's {} bytes", self.size()),
            )),
        }
    }

    /// A view of `desc` that begins `offset` elements into the buffer.
    ///
    /// # Errors
    /// `InvalidArgument` if the view leaves the buffer.
    pub fn view(&self, desc: TensorDesc, offset: u64) -> Result<View> {
        View::new(self.clone(), desc, offset)
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.size())
    }
}

/// A range of bytes of a buffer, for copies and fills.
#[derive(Clone, Debug)]
pub struct Slice {
    buffer: Buffer,
    offset: u64,
    len: u64,
}

impl Slice {
    /// The buffer it lies in.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// First byte.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Number of bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True if it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A strided, typed window into a buffer: the operand of a kernel. It lies within its buffer, by construction.
#[derive(Clone, Debug)]
pub struct View {
    buffer: Buffer,
    desc: TensorDesc,
    offset: u64,
}

impl View {
    /// A view that begins `offset` elements into `buffer`.
    ///
    /// # Errors
    /// `InvalidArgument` if the view leaves the buffer.
    pub fn new(buffer: Buffer, desc: TensorDesc, offset: u64) -> Result<View> {
        let size = desc.dtype.size().ok_or_else(|| {
            Error::unsupported(format!("a view of {}: view its bytes as U8", desc.dtype))
        })?;
        let end = offset
            .checked_add(desc.layout.span())
            .and_then(|elements| elements.checked_mul(size));
        match end {
            Some(end) if end <= buffer.size() => Ok(View {
                buffer,
                desc,
                offset,
            }),
            _ => Err(Error::invalid(
                "view",
                format!("{desc} at element {offset}"),
                format!("a view within the buffer's {} bytes", buffer.size()),
            )),
        }
    }

    /// The buffer it lies in.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Dtype and layout.
    pub fn desc(&self) -> &TensorDesc {
        &self.desc
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.desc.dtype
    }

    /// Shape and strides.
    pub fn layout(&self) -> &Layout {
        &self.desc.layout
    }

    /// First element, counted from the buffer's begin.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The bytes from its first to its last element.
    pub fn bytes(&self) -> Slice {
        let size = self.desc.dtype.size().expect("a view's dtype has a size");
        Slice {
            buffer: self.buffer.clone(),
            offset: self.offset * size,
            len: self.desc.layout.span() * size,
        }
    }
}
