//! How far a right answer may lie from the reference, from the op, the dtypes and the length of the sums alone.
//!
//! An element goes through four steps, each of which adds to its error: the product (`Dot`), the linear part
//! `alpha · sum + beta · c + bias`, the activation, and the rounding to the output dtype. The sums are bounded after Higham, *Accuracy
//! and Stability of Numerical Algorithms* (2002), section 3.5, in the worst case, and after Higham and Mary, *A New Approach to
//! Probabilistic Rounding Error Analysis* (2019), for independent zero-mean data.

use ropeway_core::DType;
use ropeway_core::spec::DataClass;

use super::Activation;

/// Unit roundoff of the f32 accumulator.
const U: f64 = 1.0 / (1u64 << 24) as f64;
/// One unit in the last place of an f32, relative to it: also the roundoff of matrix units that truncate.
const ULP: f64 = 2.0 * U;
/// Standard deviations, roughly, that the probabilistic bound allows.
///
/// Calibration, greatest error ÷ bound where the output is f32: 0.18 on the cpu device and on PoCL (65,536 sums of 256 products, one fused
/// multiply-add after another; split sums stay below), 0.17 in a plain loop. With accumulators that cut instead of rounding see
/// `reference::tests::truncating_matrix_units_keep_the_bound`. A dropped product fails at every k up to 16,384, so that there is no room
/// for a greater factor.
const LAMBDA: f64 = 8.0;
/// What flushing subnormal f32 values to zero can lose of a sum of ordinary inputs: 2^-120.
const FLUSHED: f64 = 1.0 / ((1u128 << 120) as f64);
/// Absolute error of erf.
const ERF_ERROR: f64 = 1.0 / (1u64 << 20) as f64;
/// Absolute error of tanh, which may be made of exp.
const TANH_ERROR: f64 = 1.0 / (1u64 << 17) as f64;
/// Lipschitz constant of gelu (both) and silu.
const SMOOTH_LIPSCHITZ: f64 = 1.13;
/// Lipschitz constant of silu alone, as swiglu uses it.
const SILU_LIPSCHITZ: f64 = 1.1;

/// Products of 8-bit floats that matrix units may sum among themselves before they go to f32.
const EIGHT_BIT_BLOCK: u64 = 128;
/// Unit roundoff of such a sum: Hopper's accumulator keeps 13 bits behind the largest product's leading one.
const EIGHT_BIT_U: f64 = 1.0 / (1u64 << 13) as f64;
/// Roundings of a block of 128 products between its sum and the whole: two scales, their product with it, an addition.
const SCALINGS: u64 = 4;

/// γ_n of numerical analysis: the relative error of n roundings.
fn gamma(n: u64) -> f64 {
    gamma_of(n, U)
}

/// The same with another unit roundoff.
fn gamma_of(n: u64, u: f64) -> f64 {
    let nu = n as f64 * u;
    nu / (1.0 - nu)
}

/// A sum of products, and what its error depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Dot {
    /// Σ ab.
    pub sum: f64,
    /// Σ |ab|.
    pub magnitude: f64,
    /// Σ (ab)².
    pub squares: f64,
}

impl Dot {
    /// One more product.
    pub(crate) fn add(&mut self, product: f64) {
        self.sum += product;
        self.magnitude += product.abs();
        self.squares += product * product;
    }
}

/// A number and how far a right computation may have strayed from it: infinity where the specification leaves it open.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Approximate {
    value: f64,
    error: f64,
}

impl Approximate {
    /// Exactly this, NaN and infinities included.
    fn exactly(value: f64) -> Approximate {
        Approximate { value, error: 0.0 }
    }

    /// Anything goes.
    const OPEN: Approximate = Approximate {
        value: 0.0,
        error: f64::INFINITY,
    };

    fn is_open(self) -> bool {
        self.error == f64::INFINITY
    }

    /// Whether it may be zero without being so for sure; infinity times such a number is anything.
    fn may_vanish(self) -> bool {
        self.error > 0.0 && self.value.abs() <= self.error
    }
}

/// What follows the product of one problem.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epilogue {
    /// Length of the sums.
    pub k: u64,
    /// Factor of the product.
    pub alpha: f64,
    /// The activation.
    pub activation: Activation,
    /// The operands are I8, `c` and `bias` I32.
    pub integers: bool,
    /// The operands are 8-bit floats.
    pub eight_bits: bool,
    /// `alpha` or `beta` scale something, so that integers are computed in f32.
    pub scaled: bool,
    /// The output dtype.
    pub out: DType,
    /// What the data is like.
    pub data: DataClass,
}

impl Epilogue {
    /// The epilogue of a product with nothing but an activation.
    pub(crate) fn plain(k: u64, activation: Activation, out: DType, data: DataClass) -> Epilogue {
        Epilogue {
            k,
            alpha: 1.0,
            activation,
            integers: false,
            eight_bits: false,
            scaled: false,
            out,
            data,
        }
    }

    /// One row of the output, each element with its bound. `c` (already times beta) and `bias` are as long as `row`.
    pub(crate) fn row(&self, row: &[Dot], c: &[f64], bias: &[f64]) -> Vec<(f64, f64)> {
        let x: Vec<_> = row
            .iter()
            .zip(c.iter().zip(bias))
            .map(|(dot, (&c, &bias))| self.linear(dot, c, bias))
            .collect();
        let y: Vec<_> = match self.activation {
            Activation::Swiglu => {
                let (gate, up) = x.split_at(x.len() / 2);
                gate.iter().zip(up).map(|(&g, &u)| swiglu(g, u)).collect()
            }
            activation => x.into_iter().map(|x| activate(activation, x)).collect(),
        };
        y.into_iter().map(|y| self.round(y)).collect()
    }

    /// `alpha · sum + c + bias` in the accumulator.
    fn linear(&self, dot: &Dot, c: f64, bias: f64) -> Approximate {
        let product = self.alpha * dot.sum;
        let value = product + c + bias;
        if !value.is_finite() {
            return Approximate::exactly(value);
        }
        let magnitude = self.alpha.abs() * dot.magnitude + c.abs() + bias.abs();
        if self.integers {
            let exact_so_far = match self.scaled || self.is_smooth() {
                true => dot.magnitude,
                false => magnitude,
            };
            // The accumulator is i32, and nothing says what it does beyond.
            if exact_so_far > f64::from(i32::MAX) {
                return Approximate::OPEN;
            }
        } else if dot.magnitude.max(magnitude) >= f64::from(f32::MAX) {
            // A partial sum may leave f32 where the sum comes back; only if all terms pull in one direction it is infinity for sure.
            let one_sign = value.abs() >= magnitude * (1.0 - 1e-9);
            return match one_sign && value.abs() > 1.001 * f64::from(f32::MAX) {
                true => Approximate::exactly(value),
                false => Approximate::OPEN,
            };
        }
        let error = match self.data {
            DataClass::Exact => 0.0,
            // Conversion of the three to f32, two products, two sums.
            _ if self.integers && (self.scaled || self.is_smooth()) => {
                gamma(6) * (product.abs() + c.abs() + bias.abs())
            }
            _ if self.integers => 0.0,
            DataClass::Adversarial if self.eight_bits => {
                let [within, between] = self.eight_bit_sums();
                (gamma_of(within, EIGHT_BIT_U) + gamma(between + SCALINGS + 3)) * magnitude
            }
            DataClass::Random if self.eight_bits => {
                let [within, between] = self.eight_bit_sums().map(|n| (n as f64).sqrt());
                let sum = LAMBDA * (within * EIGHT_BIT_U + between * ULP) * dot.squares.sqrt();
                self.alpha.abs() * sum
                    + gamma(SCALINGS + 3) * (product.abs() + c.abs() + bias.abs())
            }
            DataClass::Adversarial => gamma(self.k + 3) * magnitude,
            DataClass::Random => {
                let sum = LAMBDA * (self.k as f64).sqrt() * ULP * dot.squares.sqrt();
                self.alpha.abs() * sum + gamma(3) * (product.abs() + c.abs() + bias.abs())
            }
        };
        Approximate { value, error }
    }

    /// Products of a block that is summed in few bits, and such blocks.
    fn eight_bit_sums(&self) -> [u64; 2] {
        [
            self.k.min(EIGHT_BIT_BLOCK),
            self.k.div_ceil(EIGHT_BIT_BLOCK),
        ]
    }

    fn is_smooth(&self) -> bool {
        !matches!(self.activation, Activation::None | Activation::Relu)
    }

    /// The value to expect in the output and its bound.
    fn round(&self, x: Approximate) -> (f64, f64) {
        if x.is_open() {
            return (x.value, f64::INFINITY);
        }
        let is_exact = x.error == 0.0 && (self.integers || self.data == DataClass::Exact);
        let (low, high) = match self.out {
            DType::I8 => (i8::MIN.into(), i8::MAX.into()),
            DType::I32 => (i32::MIN.into(), i32::MAX.into()),
            _ if !x.value.is_finite() => return (x.value, 0.0),
            out if is_exact => return (nearest(out, x.value), 0.0),
            out => {
                let rounding = out.unit_roundoff() * x.value.abs();
                return (
                    x.value,
                    x.error + rounding + out.smallest_subnormal() + FLUSHED,
                );
            }
        };
        let saturated = |x: f64| x.round_ties_even().clamp(low, high);
        let value = saturated(x.value);
        let [below, above] = [x.value - x.error, x.value + x.error].map(saturated);
        (value, (above - value).max(value - below))
    }
}

/// A value that f32 holds, rounded to nearest even.
fn nearest(dtype: DType, value: f64) -> f64 {
    match dtype {
        DType::F16 => half::f16::from_f32(value as f32).to_f64(),
        DType::BF16 => half::bf16::from_f32(value as f32).to_f64(),
        _ => f64::from(value as f32),
    }
}

fn activate(activation: Activation, x: Approximate) -> Approximate {
    let smooth = |value: f64, own: f64| {
        match x.value {
            x if x.is_nan() || x == f64::INFINITY => Approximate::exactly(x),
            // −∞ · 0, and 0 in the limit.
            x if x <= -f64::from(f32::MAX) => Approximate::OPEN,
            _ => Approximate {
                value,
                error: SMOOTH_LIPSCHITZ * x.error + own,
            },
        }
    };
    let reach = x.value.abs() + x.error;
    match activation {
        _ if x.is_open() => x,
        Activation::None => x,
        Activation::Relu => Approximate {
            value: relu(x.value),
            ..x
        },
        // x / 2 · (1 + erf): the argument's and the last roundings beside erf's own error.
        Activation::Gelu => smooth(gelu(x.value), reach / 2.0 * (ERF_ERROR + 8.0 * U)),
        Activation::GeluTanh => smooth(gelu_tanh(x.value), reach / 2.0 * (TANH_ERROR + 8.0 * U)),
        Activation::Silu => smooth(silu(x.value), silu_error(x.value)),
        Activation::Swiglu => unreachable!("swiglu takes two columns"),
    }
}

/// silu(gate) · up. Bilinear, so that each error is scaled by the other factor.
fn swiglu(gate: Approximate, up: Approximate) -> Approximate {
    let silu_of_gate = match gate {
        _ if gate.value.is_nan() || up.value.is_nan() => return Approximate::exactly(f64::NAN),
        _ if gate.is_open() || up.is_open() => return Approximate::OPEN,
        // −∞ · 0, and 0 in the limit.
        _ if gate.value <= -f64::from(f32::MAX) => return Approximate::OPEN,
        _ if gate.value == f64::INFINITY => Approximate::exactly(f64::INFINITY),
        _ => Approximate {
            value: silu(gate.value),
            error: SILU_LIPSCHITZ * gate.error + silu_error(gate.value),
        },
    };
    let value = silu_of_gate.value * up.value;
    if silu_of_gate.value.is_infinite() || up.value.is_infinite() {
        return match silu_of_gate.may_vanish() || up.may_vanish() {
            true => Approximate::OPEN,
            false => Approximate::exactly(value),
        };
    }
    Approximate {
        value,
        error: silu_of_gate.error * (up.value.abs() + up.error)
            + silu_of_gate.value.abs() * up.error
            + U * value.abs(),
    }
}

/// Own error of x / (1 + exp(−x)): exp's 3 + 2|x| ulp as far as they reach the quotient, an addition, a division of 2.5 ulp, a product,
/// and the quotient's flushing.
fn silu_error(x: f64) -> f64 {
    let sigmoid = 1.0 / (1.0 + (-x).exp());
    let exp_error = (3.0 + 2.0 * x.abs()) * ULP;
    let relative = (1.0 - sigmoid) * exp_error + U + 2.5 * ULP + U;
    silu(x).abs() * relative + x.abs() * f64::from(f32::MIN_POSITIVE)
}

fn relu(x: f64) -> f64 {
    if x < 0.0 { 0.0 } else { x }
}

/// x · Φ(x).
fn gelu(x: f64) -> f64 {
    let tail = 0.5 * erfc(x.abs() * std::f64::consts::FRAC_1_SQRT_2);
    x * if x < 0.0 { tail } else { 1.0 - tail }
}

/// x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
fn gelu_tanh(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    // (1 + tanh y) / 2 = σ(2y), without the cancellation at negative y.
    x / (1.0 + (-2.0 * inner).exp())
}

/// x · σ(x).
fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// The complementary error function of x ≥ 0, to about 1e-15 of its value.
///
/// Up to 2 by the series of Abramowitz and Stegun 7.1.6 for erf, beyond by the continued fraction 7.1.14.
fn erfc(x: f64) -> f64 {
    let sqrt_pi = std::f64::consts::PI.sqrt();
    if x < 2.0 {
        // erf(x) = 2/√π · exp(−x²) · Σ 2ⁿ x²ⁿ⁺¹ / (1 · 3 · … · (2n + 1))
        let (mut term, mut sum, mut n) = (x, x, 1.0);
        while term > sum * 1e-17 {
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        return 1.0 - 2.0 / sqrt_pi * (-x * x).exp() * sum;
    }
    // erfc(x) = exp(−x²)/√π · 1/(x + (1/2)/(x + 1/(x + (3/2)/(x + 2/(x + …)))))
    let mut fraction = x;
    for n in (1..=120).rev() {
        fraction = x + f64::from(n) / 2.0 / fraction;
    }
    (-x * x).exp() / sqrt_pi / fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(found: f64, expected: f64) {
        let error = (found - expected).abs() / expected.abs().max(f64::MIN_POSITIVE);
        assert!(error < 1e-13, "found {found:e}, expected {expected:e}");
    }

    /// Values of DLMF chapter 7 and of mpmath at 30 digits.
    #[test]
    fn functions_meet_published_values() {
        close(1.0 - erfc(0.5), 0.520_499_877_813_046_5);
        close(1.0 - erfc(1.0), 0.842_700_792_949_714_9);
        close(erfc(2.0), 0.004_677_734_981_047_266);
        close(erfc(3.0), 2.209_049_699_858_544e-5);
        close(erfc(5.0), 1.537_459_794_428_035e-12);
        close(gelu(1.0), 0.841_344_746_068_542_9);
        close(gelu(-1.0), -0.158_655_253_931_457_05);
        close(gelu(3.0), 2.995_950_305_905_11);
        close(gelu_tanh(1.0), 0.841_191_990_608_276_8);
        close(gelu_tanh(-1.0), -0.158_808_009_391_723_24);
        close(silu(1.0), 0.731_058_578_630_004_9);
        close(silu(-2.0), -0.238_405_844_044_235_1);
        assert_eq!((gelu(0.0), gelu_tanh(0.0), silu(0.0)), (0.0, 0.0, 0.0));
        assert_eq!((relu(-1.0), relu(2.0)), (0.0, 2.0));
        assert!(relu(f64::NAN).is_nan());
    }

    /// The two ways to the complementary error function meet where one takes over from the other.
    #[test]
    fn erfc_has_no_seam() {
        let below = erfc(2.0 - 1e-9);
        let above = erfc(2.0);
        let slope = 2.0 / std::f64::consts::PI.sqrt() * (-4.0f64).exp();
        assert!(((below - above) / 1e-9 - slope).abs() < 1e-5);
    }

    /// The constants bound the slopes, and not by much.
    #[test]
    fn lipschitz_constants_bound_the_slopes() {
        let steepest = |f: fn(f64) -> f64| {
            (-100_000..100_000)
                .map(|i| f64::from(i) * 1e-4)
                .map(|x| ((f(x + 1e-5) - f(x)) / 1e-5).abs())
                .fold(0.0, f64::max)
        };
        for f in [gelu, gelu_tanh, silu] {
            assert!((1.09..=SMOOTH_LIPSCHITZ).contains(&steepest(f)));
        }
        assert!((1.09..=SILU_LIPSCHITZ).contains(&steepest(silu)));
    }

    #[test]
    fn integers_round_to_even_and_saturate() {
        let epilogue = |out, data| Epilogue {
            integers: true,
            scaled: true,
            ..Epilogue::plain(4, Activation::None, out, data)
        };
        let exact = |x: f64| epilogue(DType::I8, DataClass::Exact).round(Approximate::exactly(x));
        assert_eq!(exact(2.5), (2.0, 0.0));
        assert_eq!(exact(3.5), (4.0, 0.0));
        assert_eq!(exact(127.5), (127.0, 0.0));
        assert_eq!(exact(-1e9), (-128.0, 0.0));
        // An error that does not reach the next tie leaves no choice; one that does leaves one.
        let near = |value, error| {
            epilogue(DType::I32, DataClass::Random).round(Approximate { value, error })
        };
        assert_eq!(near(2.25, 0.2), (2.0, 0.0));
        assert_eq!(near(2.25, 0.3), (2.0, 1.0));
        assert_eq!(near(3e9, 300.0), (2_147_483_647.0, 0.0));
    }

    #[test]
    fn exact_answers_are_rounded_to_the_output() {
        let round = |out, x| {
            Epilogue::plain(4, Activation::None, out, DataClass::Exact)
                .round(Approximate::exactly(x))
        };
        assert_eq!(round(DType::F16, 2049.0), (2048.0, 0.0));
        assert_eq!(round(DType::F16, 2051.0), (2052.0, 0.0));
        assert_eq!(round(DType::BF16, 257.0), (256.0, 0.0));
        assert_eq!(round(DType::F32, 16_777_215.0), (16_777_215.0, 0.0));
        assert_eq!(round(DType::F16, 65520.0), (f64::INFINITY, 0.0));
    }

    #[test]
    fn an_accumulator_that_may_overflow_leaves_the_answer_open() {
        let epilogue = Epilogue::plain(2, Activation::None, DType::F32, DataClass::Adversarial);
        let dot = |products: &[f64]| {
            let mut dot = Dot::default();
            products.iter().for_each(|&product| dot.add(product));
            epilogue.linear(&dot, 0.0, 0.0)
        };
        assert!(dot(&[3e38, 3e38, -3e38]).is_open());
        assert_eq!(dot(&[3e38, 3e38]), Approximate::exactly(6e38));
        assert!(!dot(&[1e38, -1e38]).is_open());
    }

    #[test]
    fn swiglu_of_infinities() {
        let exactly = Approximate::exactly;
        let infinity = exactly(f64::INFINITY);
        assert!(swiglu(exactly(0.0), infinity).value.is_nan());
        assert_eq!(swiglu(exactly(1.0), infinity), infinity);
        assert_eq!(swiglu(infinity, exactly(-2.0)).value, f64::NEG_INFINITY);
        assert!(swiglu(exactly(f64::NEG_INFINITY), exactly(1.0)).is_open());
        assert!(
            swiglu(exactly(f64::NEG_INFINITY), exactly(f64::NAN))
                .value
                .is_nan()
        );
        let small = Approximate {
            value: 1e-9,
            error: 1e-8,
        };
        assert!(swiglu(small, infinity).is_open());
    }
}
