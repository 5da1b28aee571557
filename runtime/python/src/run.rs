//! One op on operands of any kind: arrays of the host and tensors of a device.

use std::ops::Range;
use std::sync::Arc;

use numpy::PyUntypedArray;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyString, PyTuple};
use ropeway::core::memory::{Layout, TensorDesc};
use ropeway::core::op::{Op, OpKind, Operand, Signature};
use ropeway::core::plan::{OperandRule, StrideRule};
use ropeway::core::request::{HostTensor, Operands};
use ropeway::core::{DType, Error, View};
use ropeway::kernels;
use serde_json::{Map, Number, Value};

use crate::dtype;
use crate::error::Result;
use crate::host::HostArray;
use crate::session::{self, Line, required};
use crate::tensor::{self, Tensor};

/// Where an operand lies.
enum Place {
    Tensor(Tensor),
    Host(HostArray),
}

impl Place {
    fn to_read(name: &str, object: &Bound<'_, PyAny>) -> Result<Place> {
        match object.cast::<Tensor>() {
            Ok(tensor) => Ok(Place::Tensor(tensor.get().clone())),
            Err(_) => required(name, HostArray::to_read(name, object)?, object).map(Place::Host),
        }
    }

    /// As [`Place::to_read`], as an output of this shape and dtype.
    fn to_write(name: &str, object: &Bound<'_, PyAny>, expected: &TensorDesc) -> Result<Place> {
        let place = match object.cast::<Tensor>() {
            Ok(tensor) => {
                tensor.get().expect_writable(name)?;
                Place::Tensor(tensor.get().clone())
            }
            Err(_) => Place::Host(required(name, HostArray::to_write(name, object)?, object)?),
        };
        let found = place.desc();
        if found.dtype != expected.dtype || found.shape() != expected.shape() {
            return Err(Error::invalid(name, found, expected).into());
        }
        if !found.layout.is_injective() {
            let expected = "strides with which no two elements share memory";
            return Err(Error::invalid(name, found, expected).into());
        }
        match &place {
            Place::Host(array) if !array.writable() => {
                Err(Error::invalid(name, "a read-only array", "one to write").into())
            }
            _ => Ok(place),
        }
    }

    fn desc(&self) -> TensorDesc {
        match self {
            Place::Tensor(tensor) => *tensor.view.desc(),
            Place::Host(array) => array.desc(),
        }
    }

    /// Its bytes in the host's memory, if they are there.
    fn addresses(&self) -> Result<Range<usize>> {
        match self {
            Place::Host(array) => array.addresses(),
            Place::Tensor(tensor) => Ok(tensor.data.map_or(0..0, |data| {
                let first = data.0 as usize;
                first..first + tensor.view.bytes().len() as usize
            })),
        }
    }
}

/// An op with its operands: all that runs without Python.
struct Call {
    line: Arc<Line>,
    op: Box<dyn Op>,
    /// In the op's order.
    places: Vec<(Operand, Place)>,
}

impl Call {
    /// Plans and enqueues it; waits if memory of the host is used. The answer: for each operand, where the cpu device finds it.
    fn run(&self) -> Result<Vec<(&'static str, Option<usize>)>> {
        let line = &*self.line;
        let executable = line.opened.plans.plan(&*self.op)?;
        let mut turn = line.turn()?;
        let mut views = Vec::with_capacity(self.places.len());
        let mut addresses = Vec::with_capacity(self.places.len());
        let mut results = Vec::new();
        for ((operand, place), rule) in self.places.iter().zip(&executable.plan().operands) {
            let (view, address) = match place {
                Place::Tensor(tensor) => {
                    (tensor.view.clone(), tensor.data.map(|data| data.0 as usize))
                }
                Place::Host(array) => {
                    let (view, in_place) = self.bind(operand, array, rule)?;
                    if operand.output && !in_place {
                        results.push((view.clone(), array));
                    }
                    (view, in_place.then_some(array.data() as usize))
                }
            };
            views.push(view);
            addresses.push((operand.name, address));
        }
        let workspace = turn.workspace(line, &executable)?;
        let others = self.other_sessions();
        for other in &others {
            line.follow(other)?;
        }
        let enqueued = executable.enqueue(&*line.queue, &views, workspace.as_ref());
        if self.uses_host_memory() {
            let done = line.queue.synchronize(None);
            enqueued.and(done)?;
        } else {
            enqueued?;
            line.queue.flush()?;
            for other in &others {
                other.follow(line)?;
            }
        }
        for (view, array) in results {
            tensor::read(line, &view, array)?;
        }
        Ok(addresses)
    }

    /// An array as an operand: where it lies on the cpu device, which the answer tells; else a copy, or room for a result.
    fn bind(
        &self,
        operand: &Operand,
        array: &HostArray,
        rule: &OperandRule,
    ) -> Result<(View, bool)> {
        let device = self.line.opened.device();
        let is_host = self.line.opened.is_host();
        if is_host && (operand.output || admits(rule, &array.desc().layout)) {
            return Ok((array.import(device)?, true));
        }
        if operand.output {
            let buffer = device.alloc(operand.desc.span_bytes()?)?;
            return Ok((buffer.view(operand.desc, 0)?, false));
        }
        let upload = |desc: TensorDesc, bytes: &[u8]| -> Result<View> {
            let buffer = device.alloc(bytes.len() as u64)?;
            self.line.queue.upload(&buffer.all(), bytes)?;
            Ok(buffer.view(desc, 0)?)
        };
        let view = match admits(rule, &array.desc().layout) {
            true => array.with_bytes(upload)?,
            false => {
                let (desc, bytes) = array.gather()?;
                upload(desc, &bytes)?
            }
        };
        Ok((view, false))
    }

    /// The sessions of tensors that are not of this call's.
    fn other_sessions(&self) -> Vec<&Line> {
        let mut others: Vec<&Line> = Vec::new();
        for (_, place) in &self.places {
            if let Place::Tensor(tensor) = place
                && !Arc::ptr_eq(&tensor.line, &self.line)
                && !others
                    .iter()
                    .any(|other| std::ptr::eq(*other, &*tensor.line))
            {
                others.push(&tensor.line);
            }
        }
        others
    }

    /// Whether the call must wait, since arrays of the caller's are read or written by the device or hold the results.
    fn uses_host_memory(&self) -> bool {
        let is_host = self.line.opened.is_host();
        let uses = |(operand, place): &(Operand, Place)| {
            matches!(place, Place::Host(_)) && (is_host || operand.output)
        };
        self.places.iter().any(uses)
    }
}

/// Whether a plan takes an operand with these strides.
fn admits(rule: &OperandRule, layout: &Layout) -> bool {
    let axes = layout
        .shape()
        .iter()
        .zip(layout.strides())
        .zip(&rule.strides);
    axes.into_iter()
        .all(|((&extent, &stride), rule)| match *rule {
            StrideRule::Exactly(n) => extent <= 1 || stride == n,
            StrideRule::MultipleOf(n) => extent <= 1 || stride % n == 0,
            StrideRule::Any => true,
        })
}

/// Attributes as request files have them.
fn attributes(given: &Bound<'_, PyDict>) -> Result<Map<String, Value>> {
    let mut attrs = Map::new();
    for (name, value) in given {
        let name: String = name.extract()?;
        let value = if value.is_none() {
            continue;
        } else if let Ok(value) = value.cast::<PyBool>() {
            Value::Bool(value.is_true())
        } else if let Ok(value) = value.cast::<PyString>() {
            let value = value.to_string();
            Value::String(match &*name {
                // Python's name for a dtype is not that of request files.
                "out_dtype" | "dtype" => dtype::from_name("dtype", &value)?.name().to_owned(),
                _ => value,
            })
        } else if name == "shape" {
            let wrong = |_| Error::invalid(&name, &value, "whole numbers of 0 or more");
            Value::from(value.extract::<Vec<u64>>().map_err(wrong)?)
        } else if value.is_instance_of::<PyInt>()
            || !value.is_instance_of::<PyFloat>() && value.hasattr("__index__")?
        {
            let too_large = |_| Error::invalid(&name, &value, "a number of 64 bits");
            Value::Number(value.extract::<i64>().map_err(too_large)?.into())
        } else {
            let number: f64 = value.extract()?;
            let finite = Number::from_f64(number);
            Value::Number(finite.ok_or_else(|| Error::invalid(&name, number, "a finite number"))?)
        };
        attrs.insert(name, value);
    }
    Ok(attrs)
}

/// Ids, offsets, lengths and block numbers are checked before the device meets them, if all of them are on the host.
fn check_values(kind: &dyn OpKind, op: &dyn Op, inputs: &[(String, Place)]) -> Result<()> {
    let mut values = Operands::new();
    for (name, place) in inputs
        .iter()
        .filter(|(_, place)| place.desc().dtype == DType::I32)
    {
        let Place::Host(array) = place else {
            return Ok(());
        };
        let (desc, bytes) = array.gather()?;
        values.insert(
            name.clone(),
            HostTensor::new(desc.dtype, desc.shape(), bytes)?,
        );
    }
    Ok(kind.check_values(op, &values)?)
}

/// No output may share memory with another operand.
fn check_overlap(places: &[(Operand, Place)]) -> Result<()> {
    for (index, (written, place)) in places
        .iter()
        .enumerate()
        .filter(|(_, (operand, _))| operand.output)
    {
        let own = place.addresses()?;
        for (other_index, (other, other_place)) in places.iter().enumerate() {
            let there = other_place.addresses()?;
            if index != other_index && own.start < there.end && there.start < own.end {
                let found = format!("memory that overlaps {}", other.name);
                return Err(Error::invalid(&output_name(written), found, "disjoint memory").into());
            }
        }
    }
    Ok(())
}

fn output_name(operand: &Operand) -> String {
    format!("out ({})", operand.name)
}

/// Runs an op. The results are of the first input's kind, a NumPy array or a tensor, unless `outs` says where they go. `addresses`, if
/// given, learns where the cpu device found each operand.
#[pyfunction]
#[pyo3(signature = (op, inputs, attrs, outs = None, device = None, addresses = None))]
pub(crate) fn run<'py>(
    py: Python<'py>,
    op: &str,
    inputs: &Bound<'py, PyDict>,
    attrs: &Bound<'py, PyDict>,
    outs: Option<Vec<Bound<'py, PyAny>>>,
    device: Option<&Bound<'py, PyAny>>,
    addresses: Option<&Bound<'py, PyDict>>,
) -> Result<Bound<'py, PyTuple>> {
    let kind = kernels::op(op).ok_or_else(|| Error::invalid("op", op, "an op of Ropeway's"))?;
    let mut given = Vec::new();
    let mut results_are_arrays = false;
    for (name, object) in inputs.iter().filter(|(_, object)| !object.is_none()) {
        let name: String = name.extract()?;
        if given.is_empty() {
            results_are_arrays = object.is_instance_of::<PyUntypedArray>();
        }
        let place = Place::to_read(&name, &object)?;
        given.push((name, place));
    }
    let line = match (device, line_of_tensors(&given, outs.as_deref())) {
        (None, Some(line)) => line,
        _ => session::chosen(py, device)?,
    };
    let signature = Signature {
        tensors: given
            .iter()
            .map(|(name, place)| (name.clone(), place.desc()))
            .collect(),
        attrs: attributes(attrs)?,
    };
    let op = kind.parse(&signature)?;
    check_values(kind, &*op, &given)?;
    let mut outs = outs.map(|outs| outs.into_iter());
    let operands = op.operands();
    let expected = operands.iter().filter(|operand| operand.output).count();
    if let Some(outs) = &outs
        && outs.len() != expected
    {
        let found = format!("{} arrays", outs.len());
        return Err(Error::invalid("out", found, expected).into());
    }
    let mut places = Vec::with_capacity(operands.len());
    let mut results = Vec::with_capacity(expected);
    for operand in operands {
        if !operand.output {
            let at = given.iter().position(|(name, _)| name == operand.name);
            let at = at.ok_or_else(|| Error::invalid(operand.name, "nothing", "a tensor"))?;
            places.push((operand, given.swap_remove(at).1));
            continue;
        }
        let result = match outs.as_mut().and_then(Iterator::next) {
            Some(out) => out,
            None if results_are_arrays => tensor::empty_array(py, &operand.desc)?,
            None => {
                let tensor = py.detach(|| Tensor::new(&line, operand.desc))?;
                tensor.into_pyobject(py)?.into_any()
            }
        };
        let place = Place::to_write(&output_name(&operand), &result, &operand.desc)?;
        places.push((operand, place));
        results.push(result);
    }
    for (operand, place) in &places {
        if let Place::Tensor(tensor) = place
            && !Arc::ptr_eq(&tensor.line.opened, &line.opened)
        {
            let found = format!("a tensor on {}", tensor.line.opened.selector());
            let expected = format!("an array, or a tensor on {}", line.opened.selector());
            return Err(Error::invalid(operand.name, found, expected).into());
        }
    }
    check_overlap(&places)?;
    let call = Call { line, op, places };
    let bound = py.detach(|| call.run())?;
    if let Some(addresses) = addresses {
        for (name, address) in bound {
            addresses.set_item(name, address)?;
        }
    }
    Ok(PyTuple::new(py, results)?)
}

/// The session of the first tensor among the operands.
fn line_of_tensors(
    inputs: &[(String, Place)],
    outs: Option<&[Bound<'_, PyAny>]>,
) -> Option<Arc<Line>> {
    let input = inputs.iter().find_map(|(_, place)| match place {
        Place::Tensor(tensor) => Some(&tensor.line),
        Place::Host(_) => None,
    });
    let out = || {
        let tensors = outs.unwrap_or_default().iter();
        tensors.filter_map(|out| out.cast::<Tensor>().ok()).next()
    };
    input
        .or_else(|| out().map(|tensor| &tensor.get().line))
        .map(Arc::clone)
}
