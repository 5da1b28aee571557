//! `elementwise`, `unary`, `glu` and `copy`: ops whose output elements each depend on one element of every operand.

use ropeway_core::memory::{Layout, TensorDesc};
use ropeway_core::op::{Operand, PlanRequest, Signature};
use ropeway_core::plan::Plan;
use ropeway_core::request::AttrReader;
#[cfg(feature = "spec")]
use ropeway_core::request::Operands;
#[cfg(feature = "spec")]
use ropeway_core::spec::{DataClass, Expected};
use ropeway_core::{DType, Error, Result};

use super::{
    FLOATS, Problem, check_repeats, check_result, check_tensor, operand, output_dtype, plan,
};
use crate::operand::output;

/// What `elementwise` computes of two numbers.
#[derive(Clone, std::marker::Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// a + b
    Add,
    /// a − b
    Sub,
    /// a · b
    Mul,
    /// a / b
    Div,
}

/// `d = a ∘ b`, where `b` is repeated to the extents of `a`.
#[derive(Clone, Debug, PartialEq)]
pub struct Elementwise {
    /// The first operand: F32, F16 or BF16.
    pub a: TensorDesc,
    /// The second: each extent divides that of `a` (axes are matched from the last), element i of an axis is i modulo its extent.
    pub b: TensorDesc,
    /// The result, shaped as `a`.
    pub d: TensorDesc,
    /// What is computed.
    pub function: Binary,
}

impl Elementwise {
    /// The problem, if it is one.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor.
    pub fn checked(self) -> Result<Elementwise> {
        check_tensor("a", &self.a, FLOATS)?;
        check_tensor("b", &self.b, FLOATS)?;
        check_result("d", &self.d, self.a.shape(), FLOATS)?;
        check_repeats("b", &self.b, &self.a)?;
        Ok(self)
    }
}

impl Problem for Elementwise {
    fn parse(signature: &Signature) -> Result<Elementwise> {
        let [a, b] = ["a", "b"].map(|name| signature.required(name));
        let (a, b) = (a?, b?);
        let mut attrs = signature.attrs();
        let functions = [
            ("add", Binary::Add),
            ("sub", Binary::Sub),
            ("mul", Binary::Mul),
            ("div", Binary::Div),
        ];
        let function = attrs.choice("function", Binary::Add, &functions)?;
        let dtype = output_dtype(&mut attrs, a.dtype, FLOATS)?;
        attrs.finish()?;
        let d = output("d", dtype, a.shape())?;
        Elementwise { a, b, d, function }.checked()
    }

    fn tensors(&self) -> Vec<Operand> {
        vec![
            operand("a", self.a, false),
            operand("b", self.b, false),
            operand("d", self.d, true),
        ]
    }

    fn planned(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::elementwise(self, request)
    }

    fn operations(&self) -> f64 {
        1.0
    }

    #[cfg(feature = "spec")]
    fn reference(&self, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        super::reference::elementwise(self, inputs, data)
    }
}

/// What `unary` computes of a number.
#[derive(Clone, std::marker::Copy, Debug, PartialEq)]
pub enum UnaryFunction {
    /// x · σ(x)
    Silu,
    /// x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))
    Gelu,
    /// x · Φ(x)
    GeluErf,
    /// x · σ(1.702 x)
    GeluQuick,
    /// max(x, 0)
    Relu,
    /// σ(x) = 1 / (1 + e⁻ˣ)
    Sigmoid,
    /// tanh x
    Tanh,
    /// eˣ
    Exp,
    /// −x
    Neg,
    /// scale · x + bias
    Scale {
        /// Factor.
        scale: f32,
        /// Addend.
        bias: f32,
    },
    /// x, but at least `min` and at most `max`; NaN stays NaN
    Clamp {
        /// The least result; may be −∞.
        min: f32,
        /// The greatest, not below `min`; may be ∞.
        max: f32,
    },
}

/// `d = f(x)` for each element.
#[derive(Clone, Debug, PartialEq)]
pub struct Unary {
    /// The operand: F32, F16 or BF16.
    pub x: TensorDesc,
    /// The result, shaped as `x`.
    pub d: TensorDesc,
    /// What is computed.
    pub function: UnaryFunction,
}

impl Unary {
    /// The problem, if it is one.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor or attribute.
    pub fn checked(self) -> Result<Unary> {
        check_tensor("x", &self.x, FLOATS)?;
        check_result("d", &self.d, self.x.shape(), FLOATS)?;
        match self.function {
            UnaryFunction::Clamp { min, max } if min > max || min.is_nan() || max.is_nan() => {
                Err(Error::invalid("min", min, format!("at most max, {max}")))
            }
            UnaryFunction::Scale { scale, bias } if !scale.is_finite() || !bias.is_finite() => {
                let found = format!("{scale} and bias {bias}");
                Err(Error::invalid("scale", found, "finite numbers"))
            }
            _ => Ok(self),
        }
    }
}

impl Problem for Unary {
    fn parse(signature: &Signature) -> Result<Unary> {
        let x = signature.required("x")?;
        let mut attrs = signature.attrs();
        let word = attrs.optional_word("function")?;
        let function = match word {
            Some("scale") => UnaryFunction::Scale {
                scale: attrs.float("scale", 1.0)?,
                bias: attrs.float("bias", 0.0)?,
            },
            Some("clamp") => UnaryFunction::Clamp {
                min: attrs.optional_float("min")?.unwrap_or(f32::NEG_INFINITY),
                max: attrs.optional_float("max")?.unwrap_or(f32::INFINITY),
            },
            Some("silu") => UnaryFunction::Silu,
            Some("gelu") => UnaryFunction::Gelu,
            Some("gelu_erf") => UnaryFunction::GeluErf,
            Some("gelu_quick") => UnaryFunction::GeluQuick,
            Some("relu") => UnaryFunction::Relu,
            Some("sigmoid") => UnaryFunction::Sigmoid,
            Some("tanh") => UnaryFunction::Tanh,
            Some("exp") => UnaryFunction::Exp,
            Some("neg") => UnaryFunction::Neg,
            other => {
                let found = other.map_or("nothing".into(), |word| format!("{word:?}"));
                let expected = "one of silu, gelu, gelu_erf, gelu_quick, relu, sigmoid, tanh, exp, \
                                neg, scale, clamp";
                return Err(Error::invalid("function", found, expected));
            }
        };
        let dtype = output_dtype(&mut attrs, x.dtype, FLOATS)?;
        attrs.finish()?;
        let d = output("d", dtype, x.shape())?;
        Unary { x, d, function }.checked()
    }

    fn tensors(&self) -> Vec<Operand> {
        vec![operand("x", self.x, false), operand("d", self.d, true)]
    }

    fn planned(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::unary(self, request)
    }

    fn operations(&self) -> f64 {
        1.0
    }

    #[cfg(feature = "spec")]
    fn reference(&self, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        super::reference::unary(self, inputs, data)
    }
}

/// The activation of a gated linear unit's gate.
#[derive(Clone, std::marker::Copy, Debug, PartialEq, Eq)]
pub enum GluFunction {
    /// silu
    Swiglu,
    /// gelu, by tanh
    Geglu,
    /// relu
    Reglu,
    /// gelu, by erf
    GegluErf,
    /// gelu, by a sigmoid
    GegluQuick,
}

/// `d = f(gate) · up` for each element.
#[derive(Clone, Debug, PartialEq)]
pub struct Glu {
    /// [.., n] the gate beside `up`, or [.., 2 n] gate and up side by side: F32, F16 or BF16.
    pub x: TensorDesc,
    /// [.., n], of the dtype of `x`; `None` if `x` holds both.
    pub up: Option<TensorDesc>,
    /// [.., n]
    pub d: TensorDesc,
    /// The activation.
    pub function: GluFunction,
    /// With both in `x`: up comes first.
    pub swapped: bool,
}

impl Glu {
    /// The problem, if it is one.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor or attribute.
    pub fn checked(self) -> Result<Glu> {
        check_tensor("x", &self.x, FLOATS)?;
        match &self.up {
            Some(_) if self.swapped => {
                return Err(Error::invalid("swapped", true, "false, beside up"));
            }
            Some(up) => crate::operand::expect("up", up, self.x.dtype, self.x.shape())?,
            None => {}
        }
        check_result(
            "d",
            &self.d,
            &Glu::shape(&self.x, self.up.is_some())?,
            FLOATS,
        )?;
        Ok(self)
    }

    fn shape(x: &TensorDesc, split: bool) -> Result<Vec<u64>> {
        let mut shape = x.shape().to_vec();
        let Some(last) = shape.last_mut() else {
            return Err(Error::invalid("x", "shape []", "one to four dimensions"));
        };
        if !split {
            if !last.is_multiple_of(2) {
                let found = format!("{last} columns");
                return Err(Error::invalid("x", found, "an even number, without up"));
            }
            *last /= 2;
        }
        Ok(shape)
    }
}

impl Problem for Glu {
    fn parse(signature: &Signature) -> Result<Glu> {
        let x = signature.required("x")?;
        let up = signature.optional("up");
        let mut attrs = signature.attrs();
        let functions = [
            ("swiglu", GluFunction::Swiglu),
            ("geglu", GluFunction::Geglu),
            ("reglu", GluFunction::Reglu),
            ("geglu_erf", GluFunction::GegluErf),
            ("geglu_quick", GluFunction::GegluQuick),
        ];
        let function = attrs.choice("function", GluFunction::Swiglu, &functions)?;
        let swapped = attrs.bool("swapped", false)?;
        let dtype = output_dtype(&mut attrs, x.dtype, FLOATS)?;
        attrs.finish()?;
        let d = output("d", dtype, &Glu::shape(&x, up.is_some())?)?;
        let glu = Glu {
            x,
            up,
            d,
            function,
            swapped,
        };
        glu.checked()
    }

    fn tensors(&self) -> Vec<Operand> {
        let mut tensors = vec![operand("x", self.x, false)];
        tensors.extend(self.up.map(|up| operand("up", up, false)));
        tensors.push(operand("d", self.d, true));
        tensors
    }

    fn planned(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::glu(self, request)
    }

    fn operations(&self) -> f64 {
        2.0
    }

    #[cfg(feature = "spec")]
    fn reference(&self, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        super::reference::glu(self, inputs, data)
    }
}

/// The elements of `x` in row-major order, in another layout, dtype or shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Copy {
    /// F32, F16, BF16 or I32.
    pub x: TensorDesc,
    /// As many elements. F32 becomes I32 towards zero, saturated, NaN as 0.
    pub d: TensorDesc,
}

/// The dtypes that are copied.
const COPIED: &[DType] = &[DType::F32, DType::F16, DType::BF16, DType::I32];

impl Copy {
    /// The problem, if it is one.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor.
    pub fn checked(self) -> Result<Copy> {
        check_tensor("x", &self.x, COPIED)?;
        check_result("d", &self.d, self.d.shape(), COPIED)?;
        let [from, to] = [&self.x, &self.d].map(|desc| desc.layout.elements());
        if from == to {
            return Ok(self);
        }
        let found = format!("shape {:?}", self.d.shape());
        Err(Error::invalid(
            "shape",
            found,
            format!("the {from} elements of x"),
        ))
    }
}

fn shape(attrs: &mut AttrReader<'_>, x: &TensorDesc) -> Result<Vec<u64>> {
    let Some(sizes) = attrs.optional_sizes("shape")? else {
        return Ok(x.shape().into());
    };
    // Says so if there are too many.
    Layout::contiguous(&sizes).map_err(|e| e.within("shape"))?;
    Ok(sizes)
}

impl Problem for Copy {
    fn parse(signature: &Signature) -> Result<Copy> {
        let x = signature.required("x")?;
        let mut attrs = signature.attrs();
        let shape = shape(&mut attrs, &x)?;
        let dtype = output_dtype(&mut attrs, x.dtype, COPIED)?;
        attrs.finish()?;
        let d = output("d", dtype, &shape)?;
        Copy { x, d }.checked()
    }

    fn tensors(&self) -> Vec<Operand> {
        vec![operand("x", self.x, false), operand("d", self.d, true)]
    }

    fn planned(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::copy(self, request)
    }

    fn operations(&self) -> f64 {
        0.0
    }

    #[cfg(feature = "spec")]
    fn reference(&self, inputs: &Operands, _: DataClass) -> Result<Vec<Expected>> {
        super::reference::copy(self, inputs)
    }
}
