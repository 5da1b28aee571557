//! Requests in memory: an op's name, its input tensors with their bytes, and its attributes.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::memory::{Layout, TensorDesc};
use crate::op::Signature;

/// A tensor on the host: shared bytes and a strided window into them.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Dtype and layout.
    pub desc: TensorDesc,
    /// First element, counted from the begin of `data`.
    pub offset: u64,
    /// The stored bytes, little endian.
    pub data: Arc<Vec<u8>>,
}

impl HostTensor {
    /// A row-major tensor over all of `data`.
    ///
    /// # Errors
    /// `InvalidArgument` if the bytes do not fit shape and dtype.
    pub fn new(dtype: DType, shape: &[u64], data: Vec<u8>) -> Result<HostTensor> {
        let desc = TensorDesc::contiguous(dtype, shape)?;
        let tensor = HostTensor {
            desc,
            offset: 0,
            data: Arc::new(data),
        };
        match desc.span_bytes()? {
            bytes if bytes == tensor.data.len() as u64 => Ok(tensor),
            bytes => Err(Error::invalid(
                "data",
                format!("{} bytes", tensor.data.len()),
                format!("{bytes} for {desc}"),
            )),
        }
    }

    /// A row-major F32 tensor.
    ///
    /// # Errors
    /// `InvalidArgument` if the number of values does not fit the shape.
    pub fn from_f32(shape: &[u64], values: &[f32]) -> Result<HostTensor> {
        HostTensor::new(DType::F32, shape, bytemuck::cast_slice(values).to_vec())
    }

    /// A row-major I32 tensor.
    ///
    /// # Errors
    /// `InvalidArgument` if the number of values does not fit the shape.
    pub fn from_i32(shape: &[u64], values: &[i32]) -> Result<HostTensor> {
        HostTensor::new(DType::I32, shape, bytemuck::cast_slice(values).to_vec())
    }

    /// A row-major tensor of `dtype`, each value rounded to nearest even.
    ///
    /// # Errors
    /// `InvalidArgument` if the number of values does not fit the shape, `Unsupported` for dtypes without addressable elements.
    pub fn from_f64(dtype: DType, shape: &[u64], values: &[f64]) -> Result<HostTensor> {
        let mut data = Vec::with_capacity(values.len() * dtype.size().unwrap_or(1) as usize);
        for &value in values {
            encode(dtype, value, &mut data)?;
        }
        HostTensor::new(dtype, shape, data)
    }

    /// Another window into the same bytes.
    ///
    /// # Errors
    /// `InvalidArgument` if it leaves them.
    pub fn view(&self, layout: Layout, offset: u64) -> Result<HostTensor> {
        let size = self.desc.dtype.size().unwrap_or(1);
        let end = offset
            .checked_add(layout.span())
            .and_then(|end| end.checked_mul(size));
        match end {
            Some(end) if end <= self.data.len() as u64 => Ok(HostTensor {
                desc: TensorDesc {
                    dtype: self.desc.dtype,
                    layout,
                },
                offset,
                data: Arc::clone(&self.data),
            }),
            _ => Err(Error::invalid(
                "view",
                format!("{layout:?} at element {offset}"),
                format!("a window into {} elements", self.data.len() as u64 / size),
            )),
        }
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[u64] {
        self.desc.shape()
    }

    /// The element at an index, exactly, as f64.
    pub fn at(&self, index: &[u64]) -> f64 {
        self.element(self.offset + self.desc.layout.offset_of(index))
    }

    /// The element this many elements from the begin of the stored bytes, exactly, as f64.
    pub fn element(&self, position: u64) -> f64 {
        decode(self.desc.dtype, &self.data, position as usize)
    }

    /// All elements in row-major order, exactly, as f64.
    pub fn to_f64(&self) -> Vec<f64> {
        let mut values = Vec::with_capacity(self.desc.layout.elements() as usize);
        self.walk(|position| values.push(self.element(position)));
        values
    }

    /// All elements of an I32 tensor in row-major order.
    ///
    /// # Errors
    /// `InvalidArgument` for another dtype.
    pub fn to_i32(&self) -> Result<Vec<i32>> {
        if self.desc.dtype != DType::I32 {
            return Err(Error::invalid("dtype", self.desc.dtype, DType::I32));
        }
        Ok(self
            .to_f64()
            .into_iter()
            .map(|value| value as i32)
            .collect())
    }

    /// The bytes of its elements in row-major order.
    pub fn to_bytes(&self) -> Vec<u8> {
        let size = self.desc.dtype.size().unwrap_or(1) as usize;
        let mut bytes = Vec::with_capacity(self.desc.layout.elements() as usize * size);
        self.walk(|position| {
            let at = position as usize * size;
            bytes.extend_from_slice(&self.data[at..at + size]);
        });
        bytes
    }

    /// Calls `visit` with the position of every element, in row-major order.
    fn walk(&self, mut visit: impl FnMut(u64)) {
        let (shape, strides) = (self.desc.layout.shape(), self.desc.layout.strides());
        let elements = self.desc.layout.elements();
        let mut index = vec![0u64; shape.len()];
        let mut position = self.offset;
        for _ in 0..elements {
            visit(position);
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                position += strides[axis];
                if index[axis] < shape[axis] {
                    break;
                }
                position -= strides[axis] * shape[axis];
                index[axis] = 0;
            }
        }
    }
}

/// Reads element `position` of a little-endian array, exactly.
fn decode(dtype: DType, data: &[u8], position: usize) -> f64 {
    let two = || u16::from_le_bytes([data[position * 2], data[position * 2 + 1]]);
    let four = || [0, 1, 2, 3].map(|byte| data[position * 4 + byte]);
    match dtype {
        DType::F32 => f32::from_le_bytes(four()).into(),
        DType::F16 => half::f16::from_bits(two()).to_f64(),
        DType::BF16 => half::bf16::from_bits(two()).to_f64(),
        DType::I8 => (data[position] as i8).into(),
        DType::I32 => i32::from_le_bytes(four()).into(),
        DType::U8 => data[position].into(),
        DType::F8E4M3 => decode_f8(data[position], 4, 7, false),
        DType::F8E5M2 => decode_f8(data[position], 5, 15, true),
        DType::I4
        | DType::MxFp4
        | DType::Q4_0
        | DType::Q4_1
        | DType::Q8_0
        | DType::Q4K
        | DType::Q6K => unreachable!("host tensors hold addressable elements"),
    }
}

fn decode_f8(bits: u8, exponent_bits: u32, bias: i32, has_infinity: bool) -> f64 {
    let mantissa_bits = 7 - exponent_bits;
    let sign = if bits & 0x80 != 0 { -1.0 } else { 1.0 };
    let exponent = ((bits & 0x7f) >> mantissa_bits) as i32;
    let mantissa = (bits & ((1 << mantissa_bits) - 1)) as f64;
    let top = (1 << exponent_bits) - 1;
    let fraction = mantissa / f64::from(1u32 << mantissa_bits);
    match exponent {
        e if has_infinity && e == top => {
            sign * if mantissa == 0.0 {
                f64::INFINITY
            } else {
                f64::NAN
            }
        }
        _ if !has_infinity && bits & 0x7f == 0x7f => f64::NAN,
        0 => sign * fraction * 2f64.powi(1 - bias),
        e => sign * (1.0 + fraction) * 2f64.powi(e - bias),
    }
}

/// Appends `value`, rounded to nearest even, as little-endian bytes. Integers saturate.
///
/// The 16-bit floats are rounded by way of f32: `half` converts f64 in other ways on other platforms, and a case's bytes must not differ.
fn encode(dtype: DType, value: f64, data: &mut Vec<u8>) -> Result<()> {
    match dtype {
        DType::F32 => data.extend_from_slice(&(value as f32).to_le_bytes()),
        DType::F16 => data.extend_from_slice(&half::f16::from_f32(value as f32).to_le_bytes()),
        DType::BF16 => data.extend_from_slice(&half::bf16::from_f32(value as f32).to_le_bytes()),
        DType::I8 => data.push(value.round_ties_even() as i8 as u8),
        DType::I32 => data.extend_from_slice(&(value.round_ties_even() as i32).to_le_bytes()),
        DType::U8 => data.push(value.round_ties_even() as u8),
        DType::F8E4M3 => data.push(encode_e4m3(value)),
        _ => {
            return Err(Error::unsupported(format!(
                "values cannot be rounded to {dtype} yet"
            )));
        }
    }
    Ok(())
}

/// The nearest number of F8_E4M3, ties to even; beyond the largest that one, as there is no infinity.
fn encode_e4m3(value: f64) -> u8 {
    if value.is_nan() {
        return 0x7f;
    }
    let magnitude = value.abs().min(448.0);
    // Numbers up to 2^(e + 1) lie 2^(e - 3) apart, and those below 2^-6 as far as those above.
    let exponent = (-6..=8)
        .rev()
        .find(|&exponent| magnitude >= 2f64.powi(exponent))
        .unwrap_or(-6);
    // Steps of this size from zero on: the number's bits, as a mantissa that overflows carries into the exponent.
    let steps = (magnitude / 2f64.powi(exponent - 3)).round_ties_even() as u8;
    let bits = ((exponent + 6) as u8) * 8 + steps;
    bits | if value.is_sign_negative() { 0x80 } else { 0 }
}

/// Inputs or outputs by name.
pub type Operands = BTreeMap<String, HostTensor>;

/// A request: op, input tensors (views of one another allowed) and attributes.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The op.
    pub op: String,
    /// The inputs the op takes, each a window into stored bytes.
    pub inputs: Operands,
    /// Attributes, without `views`.
    pub attrs: Map<String, Value>,
}

impl Request {
    /// What the op is to be checked against.
    pub fn signature(&self) -> Signature {
        Signature {
            tensors: self
                .inputs
                .iter()
                .map(|(name, tensor)| (name.clone(), tensor.desc))
                .collect(),
            attrs: self.attrs.clone(),
        }
    }
}

/// Reads attributes by name with defaults, and refuses keys that nobody asked for.
pub struct AttrReader<'a> {
    attrs: &'a Map<String, Value>,
    known: Vec<&'static str>,
}

impl<'a> AttrReader<'a> {
    /// A reader of `attrs`.
    pub fn new(attrs: &'a Map<String, Value>) -> AttrReader<'a> {
        AttrReader {
            attrs,
            known: Vec::new(),
        }
    }

    fn get<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        self.known.push(name);
        match self.attrs.get(name) {
            None => Ok(None),
            Some(value) => read(value)
                .map(Some)
                .ok_or_else(|| Error::invalid(name, value, expected)),
        }
    }

    /// True or false.
    ///
    /// # Errors
    /// `InvalidArgument` naming the attribute.
    pub fn bool(&mut self, name: &'static str, default: bool) -> Result<bool> {
        Ok(self
            .get(name, "true or false", Value::as_bool)?
            .unwrap_or(default))
    }

    /// A whole number of 0 or more.
    ///
    /// # Errors
    /// `InvalidArgument` naming the attribute.
    pub fn size(&mut self, name: &'static str, default: u64) -> Result<u64> {
        Ok(self.optional_size(name)?.unwrap_or(default))
    }

    /// A whole number of 0 or more, if it is there.
    ///
    /// # Errors
    /// `InvalidArgument` naming the attribute.
    pub fn optional_size(&mut self, name: &'static str) -> Result<Option<u64>> {
        self.get(name, "a whole number of 0 or more", Value::as_u64)
    }

    /// A whole number that must be there.
    ///
    /// # Errors
    /// `InvalidArgument` naming the attribute.
    pub fn required_size(&mut self, name: &'static str) -> Result<u64> {
        self.optional_size(name)?
            .ok_or_else(|| Error::invalid(name, "nothing", "a whole number"))
    }

    /// A list of whole numbers of 0 or more, if it is there.
    ///
    /// # Errors
    /// `InvalidArgument` naming the attribute.
    pub fn optional_sizes(&mut self, name: &'static str) -> Result<Option<Vec<u64>>> {
        self.get(name, "a list of whole numbers of 0 or more", |value| {
            value.as_array()?.iter().map(Value::as_u64).collect()
        })
    }

    /// A number, if it is there; finite in f32.
    ///
    /// # Errors
    /// `InvalidArgument` naming the attribute.
    pub fn optional_float(&mut self, name: &'static str) -> Result<Option<f32>> {
        self.get(name, "a number that f32 can hold", |value| {
            value.as_f64().map(|v| v as f32).filter(|v| v.is_finite())
        })
    }

    /// A number, finite in f32.
    ///
    /// # Errors
    /// `InvalidArgument` naming the attribute.
    pub fn float(&mut self, name: &'static str, default: f32) -> Result<f32> {
        Ok(self.optional_float(name)?.unwrap_or(default))
    }

    /// A word, if it is there.
    ///
    /// # Errors
    /// `InvalidArgument` naming the attribute.
    pub fn optional_word(&mut self, name: &'static str) -> Result<Option<&'a str>> {
        self.get(name, "a string", Value::as_str)
    }

    /// One of several words.
    ///
    /// # Errors
    /// `InvalidArgument` naming the attribute and the choices.
    pub fn choice<T: Copy>(
        &mut self,
        name: &'static str,
        default: T,
        choices: &[(&str, T)],
    ) -> Result<T> {
        match self.optional_word(name)? {
            None => Ok(default),
            Some(word) => match choices.iter().find(|(choice, _)| *choice == word) {
                Some((_, value)) => Ok(*value),
                None => {
                    let words: Vec<_> = choices.iter().map(|(choice, _)| *choice).collect();
                    Err(Error::invalid(
                        name,
                        format!("{word:?}"),
                        format!("one of {words:?}"),
                    ))
                }
            },
        }
    }

    /// Fails if there is an attribute that was never asked for.
    ///
    /// # Errors
    /// `InvalidArgument` naming it.
    pub fn finish(self) -> Result<()> {
        match self
            .attrs
            .keys()
            .find(|key| !self.known.contains(&key.as_str()))
        {
            Some(unknown) => Err(Error::invalid(
                unknown,
                "an unknown attribute",
                format!("one of {:?}", self.known),
            )),
            None => Ok(()),
        }
    }
}
