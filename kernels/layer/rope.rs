//! `rope`: rotary position embedding (Su et al., arXiv 2104.09864), with the scaling of YaRN (Peng et al., arXiv 2309.00071).

use std::f64::consts::PI;

use ropeway_core::memory::TensorDesc;
use ropeway_core::op::{Operand, PlanRequest, Signature};
use ropeway_core::plan::Plan;
#[cfg(feature = "spec")]
use ropeway_core::request::Operands;
#[cfg(feature = "spec")]
use ropeway_core::spec::{DataClass, Expected};
use ropeway_core::{DType, Error, Result};

use super::{FLOATS, Problem, check_result, check_tensor, extents, operand, output_dtype, plan};
use crate::operand::{expect, output};

/// Which columns are a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeMode {
    /// 2i and 2i + 1.
    Normal,
    /// i and i + n_dims / 2.
    Neox,
}

/// Rotates each pair of columns by an angle that follows from the token's position.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// [tokens, heads, head_dim], or with a batch axis before them: F32, F16 or BF16.
    pub x: TensorDesc,
    /// I32 `[tokens]`.
    pub positions: TensorDesc,
    /// F32 [n_dims / 2]: each frequency is divided by its factor.
    pub freq_factors: Option<TensorDesc>,
    /// Shaped as `x`.
    pub d: TensorDesc,
    /// Which columns are a pair.
    pub mode: RopeMode,
    /// Columns that are rotated, an even number; the rest is copied.
    pub n_dims: u64,
    /// The greatest wavelength ÷ 2π.
    pub freq_base: f32,
    /// Factor of positions (1 / context extension).
    pub freq_scale: f32,
    /// How much of YaRN's correction is mixed in, 0 to 1.
    pub ext_factor: f32,
    /// Factor of the result.
    pub attn_factor: f32,
    /// Rotations over the original context above which a frequency stays as it is.
    pub beta_fast: f32,
    /// Rotations below which a frequency is scaled.
    pub beta_slow: f32,
    /// The context that the model was trained with; needed for YaRN alone.
    pub n_ctx_orig: u64,
}

/// What a kernel is told of the angles; computed in f64.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Angles {
    /// log2 of the ratio of one frequency to the one before.
    pub(super) log2_ratio: f64,
    /// YaRN's ramp, in pairs: up to `low` frequencies stay as they are, from `high` on they are scaled.
    pub(super) low: f64,
    pub(super) high: f64,
    /// Factor of the result.
    pub(super) magnitude: f64,
}

impl Rope {
    /// The problem, if it is one.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor or attribute.
    pub fn checked(self) -> Result<Rope> {
        check_tensor("x", &self.x, FLOATS)?;
        if self.x.shape().len() < 3 {
            let found = format!("shape {:?}", self.x.shape());
            return Err(Error::invalid("x", found, "[tokens, heads, head_dim]"));
        }
        let [head_dim, _, tokens, _] = extents(&self.x);
        expect("positions", &self.positions, DType::I32, &[tokens])?;
        if !self.n_dims.is_multiple_of(2) || self.n_dims > head_dim {
            let expected = format!("an even number up to the {head_dim} columns");
            return Err(Error::invalid("n_dims", self.n_dims, expected));
        }
        if let Some(factors) = &self.freq_factors {
            expect("freq_factors", factors, DType::F32, &[self.n_dims / 2])?;
        }
        check_result("d", &self.d, self.x.shape(), FLOATS)?;
        for (name, value) in [
            ("freq_base", self.freq_base),
            ("freq_scale", self.freq_scale),
        ] {
            if !value.is_finite() || value <= 0.0 {
                return Err(Error::invalid(name, value, "a number above 0"));
            }
        }
        for (name, value) in [("beta_fast", self.beta_fast), ("beta_slow", self.beta_slow)] {
            if self.ext_factor != 0.0 && (!value.is_finite() || value <= 0.0) {
                return Err(Error::invalid(name, value, "a number above 0"));
            }
        }
        for (name, value) in [
            ("ext_factor", self.ext_factor),
            ("attn_factor", self.attn_factor),
        ] {
            if !value.is_finite() {
                return Err(Error::invalid(name, value, "a finite number"));
            }
        }
        if self.ext_factor != 0.0 && (self.n_ctx_orig == 0 || self.freq_base <= 1.0) {
            let found = format!("{} with freq_base {}", self.n_ctx_orig, self.freq_base);
            let expected = "with ext_factor, a context above 0 and freq_base above 1";
            return Err(Error::invalid("n_ctx_orig", found, expected));
        }
        Ok(self)
    }

    pub(super) fn angles(&self) -> Angles {
        let (n_dims, base) = (self.n_dims as f64, f64::from(self.freq_base));
        let mut angles = Angles {
            log2_ratio: -2.0 * base.log2() / n_dims.max(1.0),
            low: 0.0,
            high: 0.0,
            magnitude: f64::from(self.attn_factor),
        };
        if self.ext_factor != 0.0 {
            let pair = |rotations: f32| {
                let context = self.n_ctx_orig as f64 / (f64::from(rotations) * 2.0 * PI);
                n_dims * context.ln() / (2.0 * base.ln())
            };
            angles.low = pair(self.beta_fast).floor().max(0.0);
            angles.high = pair(self.beta_slow).ceil().min(n_dims - 1.0);
            angles.magnitude *= 1.0 + 0.1 * (1.0 / f64::from(self.freq_scale)).ln();
        }
        angles
    }
}

impl Problem for Rope {
    fn parse(signature: &Signature) -> Result<Rope> {
        let [x, positions] = ["x", "positions"].map(|name| signature.required(name));
        let (x, positions) = (x?, positions?);
        let freq_factors = signature.optional("freq_factors");
        let mut attrs = signature.attrs();
        let modes = [("normal", RopeMode::Normal), ("neox", RopeMode::Neox)];
        let mode = attrs.choice("mode", RopeMode::Normal, &modes)?;
        let n_dims = attrs.size("n_dims", x.shape().last().copied().unwrap_or(0))?;
        let freq_base = attrs.float("freq_base", 10_000.0)?;
        let freq_scale = attrs.float("freq_scale", 1.0)?;
        let ext_factor = attrs.float("ext_factor", 0.0)?;
        let attn_factor = attrs.float("attn_factor", 1.0)?;
        let beta_fast = attrs.float("beta_fast", 32.0)?;
        let beta_slow = attrs.float("beta_slow", 1.0)?;
        let n_ctx_orig = attrs.size("n_ctx_orig", 0)?;
        let dtype = output_dtype(&mut attrs, x.dtype, FLOATS)?;
        attrs.finish()?;
        let d = output("d", dtype, x.shape())?;
        let rope = Rope {
            x,
            positions,
            freq_factors,
            d,
            mode,
            n_dims,
            freq_base,
            freq_scale,
            ext_factor,
            attn_factor,
            beta_fast,
            beta_slow,
            n_ctx_orig,
        };
        rope.checked()
    }

    fn tensors(&self) -> Vec<Operand> {
        let mut tensors = vec![
            operand("x", self.x, false),
            operand("positions", self.positions, false),
        ];
        tensors.extend(self.freq_factors.map(|f| operand("freq_factors", f, false)));
        tensors.push(operand("d", self.d, true));
        tensors
    }

    fn planned(&self, request: &PlanRequest<'_>) -> Result<Plan> {
        plan::rope(self, request)
    }

    fn operations(&self) -> f64 {
        6.0
    }

    #[cfg(feature = "spec")]
    fn reference(&self, inputs: &Operands, _: DataClass) -> Result<Vec<Expected>> {
        super::reference::rope(self, inputs)
    }
}
