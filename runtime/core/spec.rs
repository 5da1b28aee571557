//! What the conformance suite needs of an op: reference, bounds, cases.
//!
//! A case is a [`Recipe`]: a request without its bytes, small enough for property-based testing to shrink, from which
//! the bytes follow by the seed. The op's [`OpSpec`] computes the answer in f64 together with a bound for each element
//! that follows from the op, the dtypes and the reduction length alone.

use std::sync::Arc;

use proptest::strategy::BoxedStrategy;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::memory::Layout;
use crate::op::Op;
use crate::request::{HostTensor, Operands, Request};

/// What the data of a case is like; it decides how tight the bound may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataClass {
    /// Independent, zero-mean: judged by the probabilistic bound.
    Random,
    /// Integers whose products and sums are exact in the accumulator: the answer must be equal to the last bit.
    Exact,
    /// Anything else (one sign, cancellation, huge ranges, NaN): judged by the hard bound.
    Adversarial,
}

/// How a tensor of a recipe is filled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// Uniform in [-scale, scale), independent.
    Uniform {
        /// Half the width.
        scale: f64,
    },
    /// Whole numbers, uniform from `low` to `high`, both included.
    Integers {
        /// Least value.
        low: i64,
        /// Greatest value.
        high: i64,
    },
    /// One value everywhere.
    Constant(f64),
    /// These values in row-major order, repeated as often as needed.
    Values(Vec<f64>),
    /// Another fill, with single elements (by flat position) replaced.
    Patched {
        /// The rest.
        base: Box<Fill>,
        /// `(position, value)`; NaN and infinities as the words of [`Special`].
        patches: Vec<(u64, Special)>,
    },
    /// Another fill, with NaN (0 in integers) where the flat position modulo `period` lies in `begin..end`: the padding of a view, rows
    /// past a count, and whatever else must never be read.
    Poisoned {
        /// The rest.
        base: Box<Fill>,
        /// Length of the pattern, at least 1.
        period: u64,
        /// First position of it that is poisoned.
        begin: u64,
        /// One past the last.
        end: u64,
    },
    /// Bytes with random bits where a mask has them: `random & mask | bits`, by the position modulo the pattern's length. For U8 that
    /// holds a format, such as blocks of weights, and for 8-bit floats.
    Bits {
        /// `(mask, bits)`, at least one.
        pattern: Vec<(u8, u8)>,
    },
}

/// Uniform in [-scale, scale).
pub fn uniform(scale: f64) -> Fill {
    Fill::Uniform { scale }
}

/// `base` with `special` at these flat positions.
pub fn patched(base: Fill, positions: impl IntoIterator<Item = u64>, special: Special) -> Fill {
    Fill::Patched {
        base: Box::new(base),
        patches: positions.into_iter().map(|at| (at, special)).collect(),
    }
}

/// The seed of a case that is known by its name, for ever (FNV-1a).
pub fn seed_of(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A value that JSON cannot hold as a number, or a number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Special {
    /// Not a number.
    Nan,
    /// +∞.
    Infinity,
    /// −∞.
    NegativeInfinity,
    /// A number.
    Number(f64),
}

impl Special {
    /// As a float.
    pub fn value(self) -> f64 {
        match self {
            Special::Nan => f64::NAN,
            Special::Infinity => f64::INFINITY,
            Special::NegativeInfinity => f64::NEG_INFINITY,
            Special::Number(value) => value,
        }
    }
}

/// A stored tensor of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorRecipe {
    /// Its name.
    pub name: String,
    /// Element type, in the safetensors spelling.
    pub dtype: String,
    /// Extents, outermost first.
    pub shape: Vec<u64>,
    /// Its content.
    pub fill: Fill,
}

/// A strided window into a stored tensor that serves as an operand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ViewRecipe {
    /// The operand.
    pub name: String,
    /// The stored tensor.
    pub of: String,
    /// Extents, outermost first.
    pub shape: Vec<u64>,
    /// Strides in elements.
    pub strides: Vec<u64>,
    /// First element.
    pub offset: u64,
}

/// A conformance case: everything but the bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The op.
    pub op: String,
    /// A short name for lists (`"tall_m1000_n3_k64_f32"`).
    pub name: String,
    /// What the data is like.
    pub data: DataClass,
    /// Where the bytes come from.
    pub seed: u64,
    /// Stored tensors.
    pub tensors: Vec<TensorRecipe>,
    /// Operands that are windows into stored tensors. A stored tensor that has views is no operand itself.
    #[serde(default)]
    pub views: Vec<ViewRecipe>,
    /// Attributes.
    #[serde(default)]
    pub attrs: Map<String, Value>,
}

impl Recipe {
    /// A case of `op` without tensors.
    pub fn new(op: &str, name: impl Into<String>, data: DataClass, seed: u64) -> Recipe {
        Recipe {
            op: op.into(),
            name: name.into(),
            data,
            seed,
            tensors: Vec::new(),
            views: Vec::new(),
            attrs: Map::new(),
        }
    }

    /// Adds a tensor.
    #[must_use]
    pub fn tensor(mut self, name: &str, dtype: DType, shape: &[u64], fill: Fill) -> Recipe {
        self.tensors.push(TensorRecipe {
            name: name.into(),
            dtype: dtype.name().into(),
            shape: shape.into(),
            fill,
        });
        self
    }

    /// Adds an operand that is a window into a tensor.
    #[must_use]
    pub fn view(
        mut self,
        name: &str,
        of: &str,
        shape: &[u64],
        strides: &[u64],
        offset: u64,
    ) -> Recipe {
        let (shape, strides) = (shape.into(), strides.into());
        self.views.push(ViewRecipe {
            name: name.into(),
            of: of.into(),
            shape,
            strides,
            offset,
        });
        self
    }

    /// Adds an attribute.
    #[must_use]
    pub fn attr(mut self, name: &str, value: impl Into<Value>) -> Recipe {
        self.attrs.insert(name.into(), value.into());
        self
    }

    /// Makes the bytes. The same recipe always makes the same request.
    ///
    /// # Errors
    /// `InvalidArgument` for a recipe that contradicts itself.
    pub fn request(&self) -> Result<Request> {
        let mut stored = Operands::new();
        for (number, tensor) in self.tensors.iter().enumerate() {
            let dtype = DType::from_name(&tensor.dtype)
                .ok_or_else(|| Error::invalid(&tensor.name, &tensor.dtype, "a dtype"))?;
            let elements = Layout::contiguous(&tensor.shape)?.elements();
            let mut random =
                Random::new(self.seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let values: Vec<f64> = (0..elements)
                .map(|position| tensor.fill.value(position, &mut random))
                .collect();
            // Bits are bytes whatever these stand for.
            let written = match tensor.fill {
                Fill::Bits { .. } if dtype.size() == Some(1) => DType::U8,
                _ => dtype,
            };
            let bytes = HostTensor::from_f64(written, &tensor.shape, &values)?.to_bytes();
            stored.insert(
                tensor.name.clone(),
                HostTensor::new(dtype, &tensor.shape, bytes)?,
            );
        }
        let mut inputs = Operands::new();
        for view in &self.views {
            let of = stored
                .get(&view.of)
                .ok_or_else(|| Error::invalid(&view.of, "nothing", "a stored tensor"))?;
            let layout = Layout::strided(&view.shape, &view.strides)?;
            inputs.insert(
                view.name.clone(),
                of.view(layout, view.offset)
                    .map_err(|e| e.within(&view.name))?,
            );
        }
        for (name, tensor) in stored {
            if !self.views.iter().any(|view| view.of == name) {
                inputs.insert(name, tensor);
            }
        }
        Ok(Request {
            op: self.op.clone(),
            inputs,
            attrs: self.attrs.clone(),
        })
    }
}

impl Fill {
    fn value(&self, position: u64, random: &mut Random) -> f64 {
        match self {
            Fill::Uniform { scale } => (random.unit() * 2.0 - 1.0) * scale,
            Fill::Integers { low, high } => {
                (*low + (random.next() % (high - low + 1).max(1) as u64) as i64) as f64
            }
            Fill::Constant(value) => *value,
            Fill::Values(values) => values[position as usize % values.len()],
            Fill::Patched { base, patches } => {
                let value = base.value(position, random);
                patches
                    .iter()
                    .find(|(at, _)| *at == position)
                    .map_or(value, |(_, special)| special.value())
            }
            Fill::Poisoned {
                base,
                period,
                begin,
                end,
            } => {
                let value = base.value(position, random);
                let place = position % (*period).max(1);
                if (*begin..*end).contains(&place) {
                    f64::NAN
                } else {
                    value
                }
            }
            Fill::Bits { pattern } => {
                let (mask, bits) = pattern[position as usize % pattern.len()];
                f64::from(random.next() as u8 & mask | bits)
            }
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same on every platform for ever, so that an id's seed is enough
/// to replay it.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A stream that follows from `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// 64 random bits.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 * 2f64.powi(-53)
    }

    /// Uniform from 0 to `bound - 1`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// The reference's answer for one output.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// The output's name.
    pub name: &'static str,
    /// Its dtype.
    pub dtype: DType,
    /// Its extents.
    pub shape: Vec<u64>,
    /// The answer in row-major order; NaN and infinities where the maths gives them.
    pub values: Vec<f64>,
    /// How far each element may lie from the answer; infinity where the specification leaves it open.
    pub bounds: Vec<f64>,
}

/// An element that lies outside its bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Mismatch {
    /// Its index.
    pub index: Vec<u64>,
    /// What the device gave.
    pub found: f64,
    /// What the reference says.
    pub expected: f64,
    /// How far they may lie apart.
    pub bound: f64,
}

/// How one output compares.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputJudgement {
    /// The output's name.
    pub name: String,
    /// Elements compared.
    pub elements: u64,
    /// Elements outside their bound.
    pub mismatches: u64,
    /// The greatest error ÷ bound of all elements; at most 1 if none mismatches.
    pub worst_ratio: f64,
    /// The first element of the greatest ratio among those that mismatch.
    pub worst: Option<Mismatch>,
}

/// How a case compares.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgement {
    /// One an output.
    pub outputs: Vec<OutputJudgement>,
    /// What a reader should know besides (near ties accepted, say).
    pub notes: Vec<String>,
}

impl Judgement {
    /// True if no element mismatches.
    pub fn passes(&self) -> bool {
        self.outputs.iter().all(|output| output.mismatches == 0)
    }

    /// The greatest error ÷ bound of all outputs.
    pub fn worst_ratio(&self) -> f64 {
        self.outputs
            .iter()
            .map(|output| output.worst_ratio)
            .fold(0.0, f64::max)
    }
}

/// Compares an output with the reference's answer, element by element.
///
/// A NaN where the reference has none fails, as does its absence where the reference has one; an infinity must be the same infinity. An
/// answer that the dtype cannot hold must have overflowed to infinity, or be the largest finite value where the bound reaches it.
pub fn compare(expected: &Expected, found: &HostTensor) -> OutputJudgement {
    let mut judgement = OutputJudgement {
        name: expected.name.into(),
        elements: expected.values.len() as u64,
        mismatches: 0,
        worst_ratio: 0.0,
        worst: None,
    };
    let found_values = found.to_f64();
    if found.shape() != expected.shape || found.desc.dtype != expected.dtype {
        judgement.mismatches = judgement.elements.max(1);
        judgement.worst_ratio = f64::INFINITY;
        return judgement;
    }
    let mut worst_mismatch = -1.0;
    for (position, ((&value, &bound), &got)) in expected
        .values
        .iter()
        .zip(&expected.bounds)
        .zip(&found_values)
        .enumerate()
    {
        let ratio = ratio(expected.dtype, value, bound, got);
        judgement.worst_ratio = judgement.worst_ratio.max(ratio);
        if ratio > 1.0 {
            judgement.mismatches += 1;
            if ratio > worst_mismatch {
                worst_mismatch = ratio;
                let mut rest = position as u64;
                let mut index = vec![0; expected.shape.len()];
                for (axis, extent) in expected.shape.iter().enumerate().rev() {
                    index[axis] = rest % extent;
                    rest /= extent;
                }
                judgement.worst = Some(Mismatch {
                    index,
                    found: got,
                    expected: value,
                    bound,
                });
            }
        }
    }
    judgement
}

/// Error ÷ bound of one element: above 1 fails. Never NaN.
fn ratio(dtype: DType, expected: f64, bound: f64, found: f64) -> f64 {
    if bound == f64::INFINITY {
        return 0.0;
    }
    if expected.is_nan() || found.is_nan() {
        return if expected.is_nan() && found.is_nan() {
            0.0
        } else {
            f64::INFINITY
        };
    }
    if expected == found {
        return 0.0;
    }
    // Beyond this magnitude rounding to nearest gives infinity.
    let overflow = dtype.max_finite() * (1.0 + dtype.unit_roundoff() / 2.0);
    let may_overflow = dtype.is_float() && expected.abs() + bound >= overflow;
    if found.is_infinite() {
        return if may_overflow && found.signum() == expected.signum() {
            0.0
        } else {
            f64::INFINITY
        };
    }
    if expected.is_infinite() {
        return f64::INFINITY;
    }
    let error = (found - expected).abs();
    match () {
        () if error <= bound => error / bound,
        () if bound > 0.0 => error / bound,
        () => f64::INFINITY,
    }
}

/// A part of a batch, as a problem of its own with the same attributes.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its inputs.
    pub inputs: Operands,
    /// For each output, the row (along its outermost axis) of the whole problem's output at which the part's output begins.
    pub first_rows: Vec<(&'static str, u64)>,
}

/// The mathematics of an op.
pub trait OpSpec: Send + Sync {
    /// The answer in f64 over the inputs as they are stored, with a bound for each element.
    ///
    /// # Errors
    /// `InvalidArgument` for inputs that are not the op's.
    fn reference(&self, op: &dyn Op, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>>;

    /// Compares a device's outputs with the reference. The default compares element by element; ops whose answer is a
    /// choice (routing with near ties) judge for themselves.
    ///
    /// # Errors
    /// As [`OpSpec::reference`], and `InvalidArgument` if an output is missing.
    fn judge(
        &self,
        op: &dyn Op,
        inputs: &Operands,
        outputs: &Operands,
        data: DataClass,
    ) -> Result<Judgement> {
        let reference = || self.reference(op, inputs, data).map(Arc::new);
        self.judge_by(&reference, op, inputs, outputs, data)
    }

    /// As [`OpSpec::judge`], with what [`OpSpec::reference`] gives for these inputs from whoever keeps it: of many outputs for the same
    /// inputs, it is computed once. Ops whose answer depends on the device's choice do not ask for it.
    ///
    /// # Errors
    /// As [`OpSpec::judge`].
    fn judge_by(
        &self,
        reference: &dyn Fn() -> Result<Arc<Vec<Expected>>>,
        _op: &dyn Op,
        _inputs: &Operands,
        outputs: &Operands,
        _data: DataClass,
    ) -> Result<Judgement> {
        let mut judgement = Judgement::default();
        for expected in reference()?.iter() {
            let found = outputs
                .get(expected.name)
                .ok_or_else(|| Error::invalid(expected.name, "nothing", "an output"))?;
            judgement.outputs.push(compare(expected, found));
        }
        Ok(judgement)
    }

    /// A part of the batch whose results must be those of the whole to the last bit, in plans that declare
    /// [`BatchInvariant`](crate::plan::Determinism::BatchInvariant). Only for ops in which it is not enough to cut the operands' rows,
    /// since offsets among them point at others.
    ///
    /// # Errors
    /// As [`OpSpec::reference`].
    fn part(&self, _op: &dyn Op, _inputs: &Operands) -> Result<Option<Part>> {
        Ok(None)
    }

    /// The cases of the gate: tiny, odd, prime, tall, wide, large, exact, adversarial, zero sizes, NaN and infinity.
    fn fixed_cases(&self) -> Vec<Recipe>;

    /// Random cases; what fails is shrunk towards small shapes and plain attributes. Their seeds are part of them.
    fn strategy(&self) -> BoxedStrategy<Recipe>;
}
