//! What is done to sums, a row at a time, so that the processor's vectors do it.

use pulp::Arch;

use super::elements::Elements;
use super::{GELU, GELU_TANH, RELU, SILU, SWIGLU, Side};
use crate::exp::{exp, silu, swiglu};

/// act(alpha · sum + beta · c + bias)
#[derive(Clone, Copy)]
pub(super) struct Epilogue<'a> {
    pub(super) alpha: f32,
    pub(super) beta: f32,
    pub(super) c: Option<Side<'a>>,
    pub(super) bias: Option<(Elements<'a>, usize)>,
    pub(super) activation: i64,
    /// Integers throughout.
    pub(super) exact: bool,
}

/// Memory that rows pass through.
#[derive(Default)]
pub(super) struct Rows {
    values: Vec<f32>,
    addend: Vec<f32>,
}

impl Epilogue<'_> {
    /// Whether sums are the result.
    pub(super) fn is_identity(&self) -> bool {
        self.alpha == 1.0 && self.c.is_none() && self.bias.is_none() && self.activation == 0
    }

    /// alpha · sum + beta · c + bias in place, for the columns from `column` on.
    pub(super) fn affine(
        &self,
        values: &mut [f32],
        row: usize,
        column: usize,
        addend: &mut Vec<f32>,
    ) {
        let alpha = self.alpha;
        if alpha != 1.0 {
            Arch::new().dispatch(
                #[inline(always)]
                || values.iter_mut().for_each(|value| *value *= alpha),
            );
        }
        addend.resize(values.len(), 0.0);
        let mut add = |elements: &Elements<'_>, at, stride, factor: f32| {
            elements.widen(at, stride, addend);
            Arch::new().dispatch(
                #[inline(always)]
                || {
                    for (value, more) in values.iter_mut().zip(&*addend) {
                        *value += factor * more;
                    }
                },
            );
        };
        if let Some(c) = &self.c {
            let at = c.at + row * c.row + column * c.column;
            add(&c.elements, at, c.column, self.beta);
        }
        if let Some((bias, stride)) = &self.bias {
            add(bias, column * stride, *stride, 1.0);
        }
    }

    /// The row that `sums` become: under swiglu those of the gate, then those of its value, whose columns begin at `second`.
    pub(super) fn row<'r>(
        &self,
        sums: impl Iterator<Item = f32>,
        row: usize,
        column: usize,
        second: usize,
        rows: &'r mut Rows,
    ) -> &'r [f32] {
        let Rows { values, addend } = rows;
        values.clear();
        values.extend(sums);
        if self.activation == SWIGLU {
            let width = values.len() / 2;
            let (gate, up) = values.split_at_mut(width);
            self.affine(gate, row, column, addend);
            self.affine(up, row, second, addend);
            swiglu(gate, up, addend);
            return addend;
        }
        self.affine(values, row, column, addend);
        activate(values, self.activation);
        values
    }

    /// sum + c + bias, exactly: three i32 fit f64.
    pub(super) fn exact(&self, sum: i32, row: usize, column: usize) -> f64 {
        let mut value = f64::from(sum);
        if let Some(c) = &self.c {
            value += c.elements.integer(c.at + row * c.row + column * c.column);
        }
        if let Some((bias, stride)) = &self.bias {
            value += bias.integer(column * stride);
        }
        if self.activation == RELU {
            value.max(0.0)
        } else {
            value
        }
    }
}

/// Every value after its activation.
pub(super) fn activate(values: &mut [f32], activation: i64) {
    match activation {
        // Written so that NaN stays NaN.
        RELU => each(values, |x| if x < 0.0 { 0.0 } else { x }),
        GELU => each(values, gelu),
        GELU_TANH => each(values, |x| {
            x / (1.0 + exp(-1.595_769 * (x + 0.044_715 * x * x * x)))
        }),
        SILU => each(values, silu),
        _ => {}
    }
}

fn each(values: &mut [f32], function: impl Fn(f32) -> f32) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for x in values {
                *x = function(*x);
            }
        },
    );
}

/// x Φ(x), with Φ(−|x|) = erfc(|x| / √2) / 2 after Abramowitz and Stegun 7.1.26 (absolute error of erf 1.5e-7 < 2^-22).
#[inline(always)]
fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let mut polynomial = 0.0;
    for coefficient in [
        1.061_405_4,
        -1.453_152,
        1.421_413_7,
        -0.284_496_74,
        0.254_829_6,
    ] {
        polynomial = polynomial * t + coefficient;
    }
    let tail = 0.5 * polynomial * t * exp(-z * z);
    x * if x > 0.0 { 1.0 - tail } else { tail }
}
