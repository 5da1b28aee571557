//! `norm`, `sum_rows` and `softmax`: ops that reduce each row.

use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Operand, PlanRequest, Signature};
use ropeway_core::plan::Plan;
#[cfg(feature = "spec")]
use ropeway_core::request::Operands;
#[cfg(feature = "spec")]
use ropeway_core::spec::{DataClass, Expected};
use ropeway_core::{DType, Error, Result};

use super::{
    FLOATS, Problem, check_repeats, check_result, check_tensor, extents, operand, output_dtype,
    plan,
};
use crate::operand::{expect, output};

/// What a row is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// √(mean of squares + eps)
    Rms,
    /// The mean is subtracted, then √(variance + eps).
    Layer,
}

/// `d = x / √(mean x² + eps) · weight`, or the same of `x − mean x`.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// [.., n]: F32, F16 or BF16.
    pub x: TensorDesc,
    /// `[n]`, F32, F16 or BF16.
    pub weight: Option<TensorDesc>,
    /// Shaped as `x`.
    pub d: TensorDesc,
    /// What a row is divided by.
    pub kind: NormKind,
    /// Added below the root; 0 or more.
    pub eps: f32,
}

impl Norm {
    /// The problem, if it is one.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor or attribute.
    pub fn checked(self) -> Result<Norm> {
        check_tensor("x", &self.x, FLOATS)?;
        if let Some(weight) = &self.weight {
            check_tensor("weight", weight, FLOATS)?;
            expect("weight", weight, weight.dtype, &[extents(&self.x)[0]])?;
        }
        check_result("d", &self.d, self.x.shape(), FLOATS)?;
        if !self.eps.is_finite() || self.eps < 0.0 {
            return Err(Error::invalid("eps", self.eps, "a number of 0 or more"));
        }
        Ok(self)
    }
}

impl Problem for Norm {
    fn parse(signature: &Signature) -> Result<Norm> {
        let x = signature.required("x")?;
        let weight = signature.optional("weight");
        let mut attrs = signature.attrs();
        let kinds = [("rms", NormKind::Rms), ("layer", NormKind::Layer)];
        let kind = attrs.choice("kind", NormKind::Rms, &kinds)?;
        let eps = attrs.float("eps", 1e-5)?;
        let dtype = output_dtype(&mut attrs, x.dtype, FLOATS)?;
        attrs.finish()?;
        let d = output("d", dtype, x.shape())?;
        let norm = Norm {
            x,
            weight,
            d,
            kind,
            eps,
        };
        norm.checked()
    }

    fn tensors(&self) -> Vec<Operand> {
        let mut tensors = vec![operand("x", self.x, false)];
        tensors.extend(self.weight.map(|weight| operand("weight", weight, false)));
        tensors.push(operand("d", self.d, true));
        tensors
    }

    fn planned(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::norm(self, request)
    }

    fn operations(&self) -> f64 {
        4.0
    }

    #[cfg(feature = "spec")]
    fn reference(&self, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        super::reference::norm(self, inputs, data)
    }
}

/// The sum of each row.
#[derive(Clone, Debug, PartialEq)]
pub struct SumRows {
    /// [.., n]: F32, F16 or BF16.
    pub x: TensorDesc,
    /// [.., 1]
    pub d: TensorDesc,
}

impl SumRows {
    /// The problem, if it is one.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor.
    pub fn checked(self) -> Result<SumRows> {
        check_tensor("x", &self.x, FLOATS)?;
        check_result("d", &self.d, &SumRows::shape(&self.x), FLOATS)?;
        Ok(self)
    }

    fn shape(x: &TensorDesc) -> Vec<u64> {
        let mut shape = x.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = 1;
        }
        shape
    }
}

impl Problem for SumRows {
    fn parse(signature: &Signature) -> Result<SumRows> {
        let x = signature.required("x")?;
        let mut attrs = signature.attrs();
        let dtype = output_dtype(&mut attrs, x.dtype, FLOATS)?;
        attrs.finish()?;
        let d = output("d", dtype, &SumRows::shape(&x))?;
        SumRows { x, d }.checked()
    }

    fn tensors(&self) -> Vec<Operand> {
        vec![operand("x", self.x, false), operand("d", self.d, true)]
    }

    fn planned(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::sum_rows(self, request)
    }

    fn operations(&self) -> f64 {
        extents(&self.x)[0] as f64
    }

    #[cfg(feature = "spec")]
    fn reference(&self, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        super::reference::sum_rows(self, inputs, data)
    }
}

/// `d = softmax(scale · x + slope · mask)` of each row, the heads' sinks among what is summed.
#[derive(Clone, Debug, PartialEq)]
pub struct Softmax {
    /// [.., heads, rows, n]: F32, F16 or BF16.
    pub x: TensorDesc,
    /// F32, F16 or BF16, its last extent n; the others divide those of `x`, and are repeated.
    pub mask: Option<TensorDesc>,
    /// F32 `[heads]`: e^sink joins each sum.
    pub sinks: Option<TensorDesc>,
    /// Shaped as `x`.
    pub d: TensorDesc,
    /// Factor of `x`.
    pub scale: f32,
    /// ALiBi (arXiv 2108.12409): above 0, head h multiplies the mask by its slope, 2^(−max_bias (h + 1) / heads) where heads is a power of two.
    pub max_bias: f32,
}

impl Softmax {
    /// The problem, if it is one.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor or attribute.
    pub fn checked(self) -> Result<Softmax> {
        check_tensor("x", &self.x, FLOATS)?;
        let whole = extents(&self.x);
        if let Some(mask) = &self.mask {
            check_tensor("mask", mask, FLOATS)?;
            check_repeats("mask", mask, &self.x)?;
            if extents(mask)[0] != whole[0] {
                let found = format!("shape {:?}", mask.shape());
                return Err(Error::invalid(
                    "mask",
                    found,
                    format!("{} columns", whole[0]),
                ));
            }
        }
        if let Some(sinks) = &self.sinks {
            expect("sinks", sinks, DType::F32, &[whole[2]])?;
        }
        check_result("d", &self.d, self.x.shape(), FLOATS)?;
        if !self.scale.is_finite() {
            return Err(Error::invalid("scale", self.scale, "a finite number"));
        }
        let biased = self.max_bias.is_finite() && self.max_bias >= 0.0;
        if !biased || (self.max_bias > 0.0 && self.mask.is_none()) {
            let expected = "0, or with a mask a number above 0";
            return Err(Error::invalid("max_bias", self.max_bias, expected));
        }
        Ok(self)
    }

    /// The exponents, to the base 2, of the slopes' first and second series, and how many heads the first has.
    pub(super) fn alibi(&self) -> (f64, f64, u64) {
        let heads = extents(&self.x)[2].max(1);
        let first = 1u64 << heads.ilog2();
        let max_bias = f64::from(self.max_bias);
        (
            -max_bias / first as f64,
            -max_bias / 2.0 / first as f64,
            first,
        )
    }
}

impl Problem for Softmax {
    fn parse(signature: &Signature) -> Result<Softmax> {
        let x = signature.required("x")?;
        let [mask, sinks] = ["mask", "sinks"].map(|name| signature.optional(name));
        let mut attrs = signature.attrs();
        let scale = attrs.float("scale", 1.0)?;
        let max_bias = attrs.float("max_bias", 0.0)?;
        let dtype = output_dtype(&mut attrs, x.dtype, FLOATS)?;
        attrs.finish()?;
        let d = output("d", dtype, x.shape())?;
        let softmax = Softmax {
            x,
            mask,
            sinks,
            d,
            scale,
            max_bias,
        };
        softmax.checked()
    }

    fn tensors(&self) -> Vec<Operand> {
        let mut tensors = vec![operand("x", self.x, false)];
        tensors.extend(self.mask.map(|mask| operand("mask", mask, false)));
        tensors.extend(self.sinks.map(|sinks| operand("sinks", sinks, false)));
        tensors.push(operand("d", self.d, true));
        tensors
    }

    fn planned(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::softmax(self, request)
    }

    fn operations(&self) -> f64 {
        5.0
    }

    #[cfg(feature = "spec")]
    fn reference(&self, inputs: &Operands, data: DataClass) -> Result<Vec<Expected>> {
        super::reference::softmax(self, inputs, data)
    }
}
