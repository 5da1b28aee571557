//! What `gemm`, `grouped_gemm` and `grouped_gemm_masked` accept: builders for engines and the reading of requests, with one set of
//! checks behind both.
//!
//! A malformed problem is an error even where it is also one that no kernel takes, so the checks of shapes and dtypes come first and
//! the reasons why a sound problem is not taken last.

use ropeway_core::memory::TensorDesc;
use ropeway_core::op::Signature;
use ropeway_core::request::AttrReader;
use ropeway_core::{DType, Error, Result};

use super::Activation;

mod grouped;
mod product;

pub use grouped::{GroupedGemmBuilder, MaskedGroupedGemmBuilder};
pub use product::GemmBuilder;

/// Block of k, and of n in `b_scale`, that shares one scale of an 8-bit float operand.
pub(super) const SCALE_BLOCK: u64 = 128;

/// The dtypes that `out_dtype` can name.
const OUT_DTYPES: &[(&str, DType)] = &[
    ("F32", DType::F32),
    ("F16", DType::F16),
    ("BF16", DType::BF16),
    ("F8_E4M3", DType::F8E4M3),
    ("F8_E5M2", DType::F8E5M2),
    ("I8", DType::I8),
    ("I32", DType::I32),
];

/// The words for GGML's formats in `b_format`.
const BLOCK_FORMATS: &[(&str, Option<DType>)] = &[
    ("q4_0", Some(DType::Q4_0)),
    ("q4_1", Some(DType::Q4_1)),
    ("q8_0", Some(DType::Q8_0)),
    ("q4_k", Some(DType::Q4K)),
    ("q6_k", Some(DType::Q6K)),
];

/// What says how `b` (or both) are quantised.
#[derive(Clone, Copy, Debug, Default)]
struct Quantisation {
    b_format: Option<DType>,
    a_scale: Option<TensorDesc>,
    b_scale: Option<TensorDesc>,
}

fn read_out_dtype(attrs: &mut AttrReader<'_>) -> Result<Option<DType>> {
    let choices: Vec<_> = OUT_DTYPES
        .iter()
        .map(|&(name, dtype)| (name, Some(dtype)))
        .collect();
    attrs.choice("out_dtype", None, &choices)
}

fn read_quantisation(signature: &Signature, attrs: &mut AttrReader<'_>) -> Result<Quantisation> {
    Ok(Quantisation {
        b_format: attrs.choice("b_format", None, BLOCK_FORMATS)?,
        a_scale: signature.optional("a_scale"),
        b_scale: signature.optional("b_scale"),
    })
}

/// Bytes and a format go together.
fn check_format(b: &TensorDesc, format: Option<DType>) -> Result<()> {
    match (format, b.dtype) {
        (None, DType::U8) => Err(Error::invalid(
            "b_format",
            "nothing",
            "the format of the blocks in b, which is U8",
        )),
        (Some(format), _) if !DType::GGML_BLOCKS.contains(&format) => Err(Error::invalid(
            "b_format",
            format,
            format!("one of {:?}", DType::GGML_BLOCKS.map(DType::name)),
        )),
        (None, dtype) if DType::GGML_BLOCKS.contains(&dtype) => Err(Error::invalid(
            "b",
            format!("{dtype}, which has no addressable elements"),
            "U8, rows of blocks, and b_format",
        )),
        (Some(format), dtype) if dtype != DType::U8 => Err(Error::invalid(
            "b",
            format!("{dtype} (b_format is {format})"),
            "U8",
        )),
        _ => Ok(()),
    }
}

/// The leading dimensions of a tensor that must have two others.
fn at_least_two<'a>(name: &str, desc: &'a TensorDesc) -> Result<&'a [u64]> {
    match desc.shape() {
        [batch @ .., _, _] => Ok(batch),
        shape => Err(Error::invalid(
            name,
            format!("shape {shape:?}"),
            "at least two dimensions",
        )),
    }
}

/// The last two extents, in the order of the product. The tensor must have them.
pub(super) fn last_two(desc: &TensorDesc, transposed: bool) -> [u64; 2] {
    let shape = desc.shape();
    let (rows, columns) = (shape[shape.len() - 2], shape[shape.len() - 1]);
    if transposed {
        [columns, rows]
    } else {
        [rows, columns]
    }
}

/// NumPy's broadcasting of leading dimensions.
fn broadcast(name: &str, so_far: &[u64], batch: &[u64]) -> Result<Vec<u64>> {
    let rank = so_far.len().max(batch.len());
    let extent = |shape: &[u64], axis: usize| match (axis + shape.len()).checked_sub(rank) {
        Some(axis) => shape[axis],
        None => 1,
    };
    (0..rank)
        .map(|axis| match (extent(so_far, axis), extent(batch, axis)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(Error::invalid(
                name,
                format!("leading dimensions {batch:?}"),
                format!("ones that broadcast with {so_far:?}"),
            )),
        })
        .collect()
}

fn inner_mismatch(b: &TensorDesc, k: u64, trans_b: bool) -> Error {
    let axis = b.shape().len() - if trans_b { 1 } else { 2 };
    Error::invalid(
        "b",
        format!(
            "extent {} on axis {axis} of {:?}",
            b.shape()[axis],
            b.shape()
        ),
        format!("k = {k}, as a has"),
    )
}

fn expect_rank(name: &str, desc: &TensorDesc, rank: usize, meaning: &str) -> Result<()> {
    if desc.shape().len() == rank {
        return Ok(());
    }
    Err(Error::invalid(
        name,
        format!("shape {:?}", desc.shape()),
        format!("{rank} dimensions {meaning}"),
    ))
}

fn expect_shape(name: &str, desc: &TensorDesc, shape: &[u64], meaning: &str) -> Result<()> {
    if desc.shape() == shape {
        return Ok(());
    }
    Err(Error::invalid(
        name,
        format!("shape {:?}", desc.shape()),
        format!("{shape:?}: {meaning}"),
    ))
}

fn expect_dtype(name: &str, desc: &TensorDesc, dtype: DType, meaning: &str) -> Result<()> {
    if desc.dtype == dtype {
        return Ok(());
    }
    Err(Error::invalid(name, desc.dtype, meaning))
}

/// Rows of `b` that hold k weights in whole blocks, one after the other.
fn expect_rows_of_blocks(b: &TensorDesc, format: DType, k: u64) -> Result<()> {
    let block = format.block().expect("`check_format` has looked");
    let (axis, found) = (b.shape().len() - 1, b.shape()[b.shape().len() - 1]);
    let expected = (k / block.elements).checked_mul(block.bytes);
    if !k.is_multiple_of(block.elements) || expected != Some(found) {
        return Err(Error::invalid(
            "b",
            format!("rows of {found} bytes"),
            format!(
                "rows of k = {k} weights in whole {format} blocks of {} weights and {} bytes",
                block.elements, block.bytes
            ),
        ));
    }
    match b.layout.strides()[axis] {
        stride if stride != 1 && found > 0 => Err(Error::invalid(
            "b",
            format!("stride {stride} on axis {axis}"),
            format!("1: the bytes of {format} blocks lie one after the other"),
        )),
        _ => Ok(()),
    }
}

fn expect_scaled(name: &str, a: DType, b: DType) -> Result<()> {
    if is_f8(a) && is_f8(b) {
        return Ok(());
    }
    Err(Error::invalid(
        name,
        format!("scales beside {a} × {b}"),
        "8-bit float a and b",
    ))
}

/// A scale of an 8-bit float operand, of this shape.
fn expect_scale(name: &str, scale: &TensorDesc, shape: &[u64], meaning: &str) -> Result<()> {
    expect_dtype(name, scale, DType::F32, "F32")?;
    expect_shape(name, scale, shape, meaning)
}

fn is_f8(dtype: DType) -> bool {
    matches!(dtype, DType::F8E4M3 | DType::F8E5M2)
}

/// Columns of the output for n columns of the product.
fn output_columns(n: u64, activation: Activation) -> Result<u64> {
    match activation {
        Activation::Swiglu if n % 2 == 1 => Err(Error::invalid(
            "b",
            format!("n = {n}"),
            "an even n (swiglu: as many gates as values)",
        )),
        Activation::Swiglu => Ok(n / 2),
        _ => Ok(n),
    }
}

/// The dtype of the output, if `a` may have it.
fn out_dtype(a: DType, wanted: Option<DType>) -> Result<DType> {
    let (default, others): (DType, &[DType]) = match a {
        DType::I8 => (DType::I32, &[DType::I32, DType::I8, DType::F32]),
        a if a.is_float() => (
            a,
            &[
                DType::F32,
                DType::F16,
                DType::BF16,
                DType::F8E4M3,
                DType::F8E5M2,
            ],
        ),
        // No product of this dtype is taken; whatever it would give.
        a => return Ok(wanted.unwrap_or(a)),
    };
    let wanted = wanted.unwrap_or(default);
    if others.contains(&wanted) {
        return Ok(wanted);
    }
    let names: Vec<_> = others.iter().map(|dtype| dtype.name()).collect();
    Err(Error::invalid(
        "out_dtype",
        wanted,
        format!("one of {names:?} (a is {a})"),
    ))
}

/// The caller's output if it fits, else a row-major one.
fn output(shape: &[u64], dtype: DType, wanted: Option<TensorDesc>) -> Result<TensorDesc> {
    let Some(d) = wanted else {
        return TensorDesc::contiguous(dtype, shape).map_err(|error| error.within("d"));
    };
    expect_dtype("d", &d, dtype, &format!("{dtype} (out_dtype)"))?;
    expect_shape("d", &d, shape, "the shape of the product")?;
    if !d.layout.is_injective() {
        return Err(Error::invalid(
            "d",
            format!("strides {:?}", d.layout.strides()),
            "strides that keep its elements apart",
        ));
    }
    Ok(d)
}

/// Sizes in bytes that overflow are an error, even of tensors that will not be taken.
fn check_spans(operands: &[(&str, Option<TensorDesc>)]) -> Result<()> {
    for (name, desc) in operands {
        if let Some(desc) = desc
            && desc.dtype.size().is_some()
        {
            desc.span_bytes().map_err(|error| error.within(name))?;
        }
    }
    Ok(())
}

/// Whether a sound product of these dtypes is one that Ropeway has kernels for on some device.
fn supported(a: DType, b: DType, d: DType, integers: bool) -> Result<()> {
    if is_f8(d) {
        return Err(Error::unsupported(format!(
            "{d}: no kernel writes 8-bit floats yet"
        )));
    }
    if [a, b].contains(&DType::F8E5M2) {
        return Err(Error::unsupported(
            "F8_E5M2: of 8-bit floats kernels read F8_E4M3 only",
        ));
    }
    match (a, b) {
        (DType::F8E4M3, DType::F8E4M3) => Ok(()),
        (DType::F32 | DType::F16 | DType::BF16, _) if a == b => Ok(()),
        (DType::F32, DType::F16 | DType::BF16) | (DType::F16, DType::F32) => Ok(()),
        (DType::F32 | DType::F16, b) if DType::GGML_BLOCKS.contains(&b) => Ok(()),
        (DType::I8, DType::I8) if integers => Ok(()),
        _ => Err(Error::unsupported(format!(
            "{a} × {b} is not among the pairs of dtypes that are multiplied"
        ))),
    }
}

#[cfg(all(test, feature = "spec"))]
mod hostile;
#[cfg(all(test, feature = "spec"))]
mod tests;
