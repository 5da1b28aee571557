//! Tensors on a device.

use std::sync::Arc;

use numpy::PyArrayDescr;
use pyo3::exceptions::{PyBufferError, PyIndexError};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict, PyEllipsis, PySlice, PyTuple};
use ropeway::core::memory::{Layout, TensorDesc};
use ropeway::core::{Error, View};

use crate::error::Result;
use crate::host::{self, Address, HostArray};
use crate::session::{self, Line, Session, required};
use crate::{dlpack, dtype};

/// A tensor on a device: a strided window into memory that it shares with the tensors made from it.
#[pyclass(frozen, module = "ropeway")]
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) line: Arc<Line>,
    pub(crate) view: View,
    /// The first element, where the device's memory is the host's.
    pub(crate) data: Option<Address>,
    pub(crate) writable: bool,
}

impl Tensor {
    /// A tensor with undefined content.
    pub(crate) fn new(line: &Arc<Line>, desc: TensorDesc) -> Result<Tensor> {
        let bytes = desc.span_bytes()?;
        let device = line.opened.device();
        let (buffer, data) = match line.opened.is_host() {
            true => {
                let (buffer, data) = host::allocate(device, bytes)?;
                (buffer, Some(Address(data)))
            }
            false => (device.alloc(bytes)?, None),
        };
        Ok(Tensor {
            line: Arc::clone(line),
            view: buffer.view(desc, 0)?,
            data,
            writable: true,
        })
    }

    /// Enqueues a copy of an array into it.
    pub(crate) fn write(&self, array: &HostArray) -> Result<()> {
        let (own, found) = (self.view.desc(), array.desc());
        if found.dtype != own.dtype || found.shape() != own.shape() {
            return Err(Error::invalid("array", found, own).into());
        }
        self.expect_writable("tensor")?;
        if !own.layout.is_contiguous() {
            let found = format!("strides {:?}", own.layout.strides());
            return Err(Error::invalid("tensor", found, "a tensor without gaps").into());
        }
        let _turn = self.line.turn()?;
        let upload = |bytes: &[u8]| Ok(self.line.queue.upload(&self.view.bytes(), bytes)?);
        match found.layout.is_contiguous() {
            true => array.with_bytes(|_, bytes| upload(bytes)),
            false => upload(&array.gather()?.1),
        }
    }

    /// Waits for all earlier work of its session and copies it into an array of its shape and dtype.
    fn read(&self, target: &HostArray) -> Result<()> {
        self.line.synchronize(None)?;
        read(&self.line, &self.view, target)
    }

    pub(crate) fn expect_writable(&self, operand: &str) -> Result<()> {
        match self.writable {
            true => Ok(()),
            false => Err(Error::invalid(operand, "a read-only tensor", "one to write").into()),
        }
    }

    /// A window into it whose first element is this many elements on.
    fn window(&self, layout: Layout, elements: u64) -> Result<Tensor> {
        let dtype = self.view.dtype();
        let desc = TensorDesc { dtype, layout };
        let bytes = elements * dtype.size().unwrap_or(1);
        Ok(Tensor {
            view: self
                .view
                .buffer()
                .view(desc, self.view.offset() + elements)?,
            data: self.data.map(|data| data.on(bytes)),
            ..self.clone()
        })
    }

    fn shape_tuple<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.view.layout().shape())
    }
}

/// Copies a view into an array of its shape and dtype.
pub(crate) fn read(line: &Line, view: &View, target: &HostArray) -> Result<()> {
    let bytes = view.bytes();
    if bytes.is_empty() {
        return Ok(());
    }
    if view.layout().is_contiguous() && target.desc().layout.is_contiguous() {
        return target.with_bytes_mut(|into| Ok(line.queue.read_blocking(&bytes, into)?));
    }
    let mut stored = vec![0; bytes.len() as usize];
    line.queue.read_blocking(&bytes, &mut stored)?;
    target.scatter(&HostArray::of_bytes(*view.desc(), stored).gather()?.1);
    Ok(())
}

/// Memory of the host in NumPy's array interface, which keeps it alive.
#[pyclass(frozen)]
struct HostMemory {
    tensor: Tensor,
    data: Address,
}

#[pymethods]
impl HostMemory {
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let desc = self.tensor.view.desc();
        let size = desc.dtype.size().unwrap_or(1);
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("shape", self.tensor.shape_tuple(py)?)?;
        // Bare bits: the reader's view says what they are.
        interface.set_item(
            "typestr",
            if size == 1 {
                "|u1".into()
            } else {
                format!("<u{size}")
            },
        )?;
        interface.set_item("data", (self.data.0 as usize, !self.tensor.writable))?;
        let strides = desc.layout.strides().iter().map(|stride| stride * size);
        interface.set_item("strides", PyTuple::new(py, strides.collect::<Vec<_>>())?)?;
        Ok(interface)
    }
}

/// A new NumPy array with undefined content.
pub(crate) fn empty_array<'py>(py: Python<'py>, desc: &TensorDesc) -> Result<Bound<'py, PyAny>> {
    let class = dtype::numpy_class(py, desc.dtype)?;
    let shape = PyTuple::new(py, desc.shape())?;
    Ok(py.import("numpy")?.call_method1("empty", (shape, class))?)
}

#[pymethods]
impl Tensor {
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        self.shape_tuple(py)
    }

    /// In elements.
    #[getter]
    fn strides<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.view.layout().strides())
    }

    #[getter]
    fn ndim(&self) -> usize {
        self.view.layout().rank()
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        dtype::name(self.view.dtype())
    }

    /// The selector of the device it lies on.
    #[getter]
    fn device(&self) -> String {
        self.line.opened.selector()
    }

    /// The session whose calls it waits for.
    #[getter]
    fn session(&self) -> Session {
        Session {
            line: Arc::clone(&self.line),
        }
    }

    /// The tensor as a NumPy array, when the work of its session is done: its memory on the cpu device, a copy on any other.
    fn numpy<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        let desc = TensorDesc::contiguous(self.view.dtype(), self.view.layout().shape())?;
        let Some(data) = self.data else {
            let array = empty_array(py, &desc)?;
            let target = required("array", HostArray::to_write("array", &array)?, &array)?;
            py.detach(|| self.read(&target))?;
            return Ok(array);
        };
        let class = dtype::numpy_class(py, desc.dtype)?;
        py.detach(|| self.line.synchronize(None))?;
        let memory = HostMemory {
            tensor: self.clone(),
            data,
        };
        let bits = py
            .import("numpy")?
            .call_method1("asarray", (memory.into_pyobject(py)?,))?;
        Ok(bits.call_method1("view", (class,))?)
    }

    #[pyo3(signature = (dtype = None, copy = None))]
    fn __array__<'py>(
        &self,
        py: Python<'py>,
        dtype: Option<Bound<'py, PyAny>>,
        copy: Option<bool>,
    ) -> Result<Bound<'py, PyAny>> {
        let copies = self.data.is_none();
        if copies && copy == Some(false) {
            let lack = format!(
                "memory of {} cannot be an array without a copy",
                self.device()
            );
            return Err(pyo3::exceptions::PyValueError::new_err(lack).into());
        }
        let array = self.numpy(py)?;
        if let Some(dtype) = dtype {
            let wanted = PyArrayDescr::new(py, dtype)?;
            return Ok(array.call_method1("astype", (wanted,))?);
        }
        match copy == Some(true) && !copies {
            true => Ok(array.call_method0("copy")?),
            false => Ok(array),
        }
    }

    /// Copies an array of its shape and dtype into it.
    fn copy_from(&self, py: Python<'_>, array: &Bound<'_, PyAny>) -> Result<()> {
        let array = required("array", HostArray::to_read("array", array)?, array)?;
        py.detach(|| self.write(&array))
    }

    /// The same elements in another shape. The tensor must have no gaps.
    #[pyo3(signature = (*shape))]
    fn reshape(&self, shape: Vec<u64>) -> Result<Tensor> {
        let own = self.view.layout();
        let layout = Layout::contiguous(&shape)?;
        if !own.is_contiguous() || layout.elements() != own.elements() {
            let expected = format!("a shape of as many elements as {own:?}, which has no gaps");
            return Err(Error::invalid("shape", format!("{shape:?}"), expected).into());
        }
        self.window(layout, 0)
    }

    /// The same elements with the axes in another order.
    #[pyo3(signature = (*axes))]
    fn transpose(&self, axes: Vec<usize>) -> Result<Tensor> {
        let own = self.view.layout();
        let mut sorted = axes.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..own.rank()) {
            let expected = format!("each of 0 to {} once", own.rank() as i64 - 1);
            return Err(Error::invalid("axes", format!("{axes:?}"), expected).into());
        }
        let pick = |numbers: &[u64]| axes.iter().map(|&axis| numbers[axis]).collect::<Vec<_>>();
        let layout = Layout::strided(&pick(own.shape()), &pick(own.strides()))?;
        self.window(layout, 0)
    }

    /// The last two axes exchanged: a matrix, or a batch of them, transposed.
    #[getter]
    #[pyo3(name = "mT")]
    fn transposed(&self) -> Result<Tensor> {
        let own = self.view.layout();
        match own.rank() {
            rank @ 2.. => self.window(own.transposed(rank - 2, rank - 1), 0),
            rank => {
                let expected = "at least 2";
                Err(Error::invalid("tensor", format!("{rank} dimensions"), expected).into())
            }
        }
    }

    /// A window: integers, slices that step forward, and an ellipsis.
    fn __getitem__(&self, index: &Bound<'_, PyAny>) -> Result<Tensor> {
        let own = self.view.layout();
        let items: Vec<Bound<'_, PyAny>> = match index.cast::<PyTuple>() {
            Ok(tuple) => tuple.iter().collect(),
            Err(_) => vec![index.clone()],
        };
        let is_ellipsis = |item: &Bound<'_, PyAny>| item.is_instance_of::<PyEllipsis>();
        let given = items.iter().filter(|item| !is_ellipsis(item)).count();
        let ellipses = items.len() - given;
        if ellipses > 1 || given > own.rank() {
            let text = format!("too many indices for {} dimensions", own.rank());
            return Err(PyIndexError::new_err(text).into());
        }
        let (mut shape, mut strides, mut offset) = (Vec::new(), Vec::new(), 0);
        let mut axis = 0;
        let whole = |axis: usize, count: usize, shape: &mut Vec<u64>, strides: &mut Vec<u64>| {
            shape.extend(&own.shape()[axis..axis + count]);
            strides.extend(&own.strides()[axis..axis + count]);
        };
        for item in &items {
            if is_ellipsis(item) {
                let count = own.rank() - given;
                whole(axis, count, &mut shape, &mut strides);
                axis += count;
                continue;
            }
            let (extent, stride) = (own.shape()[axis], own.strides()[axis]);
            if let Ok(slice) = item.cast::<PySlice>() {
                let range = slice.indices(extent as isize)?;
                if range.step < 0 {
                    let found = format!("step {}", range.step);
                    return Err(Error::invalid("index", found, "slices that step forward").into());
                }
                shape.push(range.slicelength as u64);
                strides.push(stride * range.step as u64);
                // An empty slice may begin past the end.
                offset += if range.slicelength == 0 {
                    0
                } else {
                    range.start as u64 * stride
                };
            } else {
                let number: i64 = item.extract()?;
                let number = if number < 0 {
                    number + extent as i64
                } else {
                    number
                };
                if !(0..extent as i64).contains(&number) {
                    let text =
                        format!("index {item} is out of bounds for axis {axis} of size {extent}");
                    return Err(PyIndexError::new_err(text).into());
                }
                offset += number as u64 * stride;
            }
            axis += 1;
        }
        whole(axis, own.rank() - axis, &mut shape, &mut strides);
        self.window(Layout::strided(&shape, &strides)?, offset)
    }

    fn __len__(&self) -> PyResult<usize> {
        match self.view.layout().shape() {
            [] => Err(pyo3::exceptions::PyTypeError::new_err(
                "len() of a tensor without dimensions",
            )),
            shape => Ok(shape[0] as usize),
        }
    }

    /// Exports host memory by DLPack: its own on the cpu device; on any other a copy, if the consumer asks for the host (`dl_device`).
    #[pyo3(signature = (*, stream = None, max_version = None, dl_device = None, copy = None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> Result<Bound<'py, PyCapsule>> {
        if stream.is_some() {
            return Err(PyBufferError::new_err("memory of the host has no stream").into());
        }
        let to_host = dl_device == Some((dlpack::CPU, 0));
        if (dl_device.is_some() && !to_host)
            || (self.data.is_none() && (!to_host || copy == Some(false)))
        {
            let text = format!(
                "a tensor on {} is exported to the host only, as a copy where that is another device: dl_device = (1, 0)",
                self.device()
            );
            return Err(PyBufferError::new_err(text).into());
        }
        let versioned = max_version.is_some_and(|(major, _)| major >= 1);
        if self.data.is_none() || copy == Some(true) {
            let copy = py.detach(|| self.copied_to_host())?;
            return copy.export(py, true, versioned);
        }
        py.detach(|| self.line.synchronize(None))?;
        self.export(py, false, versioned)
    }

    /// DLPack's device type and number.
    fn __dlpack_device__(&self) -> (i32, usize) {
        let info = self.line.opened.device().info();
        let device_type = match info.backend {
            "cuda" => 2,
            "opencl" => 4,
            "vulkan" => 7,
            "cpu" => dlpack::CPU,
            // kDLExtDev: of no kind that DLPack knows.
            _ => 12,
        };
        (device_type, info.ordinal)
    }

    fn __repr__(&self) -> String {
        let shape = self.view.layout().shape();
        format!(
            "<ropeway.Tensor {} {shape:?} on {}>",
            self.dtype(),
            self.device()
        )
    }
}

impl Tensor {
    /// A copy in memory of the cpu device.
    fn copied_to_host(&self) -> Result<Tensor> {
        let desc = TensorDesc::contiguous(self.view.dtype(), self.view.layout().shape())?;
        let copy = Tensor::new(&session::of_thread("cpu")?, desc)?;
        let data = copy
            .data
            .ok_or_else(|| Error::unsupported("no memory of the host"))?;
        self.read(&HostArray::of_buffer(desc, data, copy.view.buffer()))?;
        Ok(copy)
    }

    fn export<'py>(
        &self,
        py: Python<'py>,
        copied: bool,
        versioned: bool,
    ) -> Result<Bound<'py, PyCapsule>> {
        let data = self
            .data
            .ok_or_else(|| Error::unsupported("no memory of the host"))?;
        dlpack::export(py, &self.view, data.0, self.writable, copied, versioned)
    }
}

/// A tensor of what another library exports by DLPack, or of a NumPy array: on the cpu device the same memory, on any other a copy.
#[pyfunction]
#[pyo3(signature = (array, device = None))]
pub(crate) fn from_dlpack(
    py: Python<'_>,
    array: &Bound<'_, PyAny>,
    device: Option<&Bound<'_, PyAny>>,
) -> Result<Tensor> {
    let line = session::chosen(py, device)?;
    if !line.opened.is_host() {
        return Session { line }.tensor(py, array);
    }
    let array = required("array", HostArray::to_write("array", array)?, array)?;
    Ok(Tensor {
        view: array.import(line.opened.device())?,
        data: Some(Address(array.data())),
        writable: array.writable(),
        line,
    })
}
