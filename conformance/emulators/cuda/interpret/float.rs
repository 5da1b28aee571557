//! Float instructions over the lanes of a warp.
//!
//! f32 to nearest and f64 are the processor's own operations; the rest goes through [`super::format`]. Approximate instructions
//! give the correctly rounded value of their function, which lies within every error the ISA allows.

use super::format::{self, Format};
use super::{LANES, Lanes, map1, map2, map3};
use crate::ptx::instruction::{AtomicOp, Float, Float1, Float2, Mode, Property, Rounding, Test};

const NAN32: u32 = 0x7FFF_FFFF;
const NAN64: u64 = 0x7FFF_FFFF_FFFF_FFFF;

fn narrow(ty: Float) -> Format {
    match ty {
        Float::F16 | Float::F16x2 => format::F16,
        Float::Bf16 | Float::Bf16x2 => format::BF16,
        Float::F32 | Float::F64 => format::F32,
    }
}

fn single(value: u64) -> f32 {
    f32::from_bits(value as u32)
}

/// A subnormal becomes zero of its sign.
fn flushed(value: f32) -> f32 {
    if value.is_subnormal() {
        0f32.copysign(value)
    } else {
        value
    }
}

fn flushed_bits(bits: u32, format: Format) -> u32 {
    let exponent = ((1 << format.exponent) - 1) << format.fraction;
    if bits & exponent == 0 {
        bits & 1 << (format.exponent + format.fraction)
    } else {
        bits
    }
}

/// What a result of f32 becomes by its modifiers.
#[inline]
fn settle(value: f32, mode: Mode) -> u64 {
    let mut value = value;
    if mode.flush {
        value = flushed(value);
    }
    if mode.saturate {
        value = if value > 0.0 { value.min(1.0) } else { 0.0 };
    }
    if mode.relu && value < 0.0 {
        value = 0.0;
    }
    u64::from(if value.is_nan() {
        NAN32
    } else {
        value.to_bits()
    })
}

/// What a result in f64 becomes in a format of up to 32 bits.
fn settle_narrow(value: f64, format: Format, mode: Mode) -> u64 {
    let mut bits = format.round(value, mode.rounding, mode.finite);
    if mode.flush {
        bits = flushed_bits(bits, format);
    }
    let value = format.widen(bits);
    if mode.saturate {
        let clamped = if value > 0.0 { value.min(1.0) } else { 0.0 };
        bits = format.round(clamped, Rounding::NearestEven, false);
    }
    if mode.relu && value < 0.0 {
        bits = 0;
    }
    u64::from(bits)
}

fn settle64(value: f64) -> u64 {
    if value.is_nan() {
        NAN64
    } else {
        value.to_bits()
    }
}

/// Applies a function of 16-bit values to one or both halves.
fn halves(ty: Float, f: impl Fn(u32) -> u64) -> u64 {
    match ty {
        Float::F16x2 | Float::Bf16x2 => f(0) | f(16) << 16,
        _ => f(0),
    }
}

fn half_at(value: u64, shift: u32) -> u32 {
    (value >> shift) as u32 & 0xFFFF
}

/// Instructions of one source.
pub fn one(op: Float1, ty: Float, mode: Mode, a: &Lanes) -> Lanes {
    match ty {
        Float::F32 => match op {
            Float1::Abs => map1(a, |a| sign_only(a, mode, |a| a & 0x7FFF_FFFF)),
            Float1::Neg => map1(a, |a| sign_only(a, mode, |a| a ^ 0x8000_0000)),
            _ => map1(a, |a| {
                let a = if mode.flush {
                    flushed(single(a))
                } else {
                    single(a)
                };
                match mode.rounding {
                    Rounding::NearestEven => settle(function(op, f64::from(a)) as f32, mode),
                    _ => settle_narrow(directed(op, f64::from(a)), format::F32, mode),
                }
            }),
        },
        Float::F64 => map1(a, |a| match op {
            Float1::Abs => a & !(1 << 63),
            Float1::Neg => a ^ 1 << 63,
            // `.ftz` is part of these approximations: subnormal inputs are zeros.
            Float1::ReciprocalApprox | Float1::ReciprocalSqrtApprox => {
                let value = f64::from_bits(a);
                let value = if value.is_subnormal() {
                    0f64.copysign(value)
                } else {
                    value
                };
                settle64(function(op, value))
            }
            _ => settle64(function(op, f64::from_bits(a))),
        }),
        _ => {
            let format = narrow(ty);
            map1(a, |a| {
                halves(ty, |shift| {
                    let bits = half_at(a, shift);
                    let bits = if mode.flush {
                        flushed_bits(bits, format)
                    } else {
                        bits
                    };
                    match op {
                        Float1::Abs => u64::from(bits & 0x7FFF),
                        Float1::Neg => u64::from(bits ^ 0x8000),
                        _ => settle_narrow(function(op, format.widen(bits)), format, mode),
                    }
                })
            })
        }
    }
}

fn sign_only(a: u64, mode: Mode, f: impl Fn(u32) -> u32) -> u64 {
    let a = if mode.flush {
        flushed(single(a))
    } else {
        single(a)
    };
    u64::from(f(a.to_bits()))
}

fn function(op: Float1, a: f64) -> f64 {
    match op {
        Float1::Abs => a.abs(),
        Float1::Neg => -a,
        Float1::Sqrt | Float1::SqrtApprox => a.sqrt(),
        Float1::Reciprocal | Float1::ReciprocalApprox => 1.0 / a,
        Float1::ReciprocalSqrtApprox => 1.0 / a.sqrt(),
        Float1::Sin => a.sin(),
        Float1::Cos => a.cos(),
        Float1::Lg2 => a.log2(),
        Float1::Ex2 => a.exp2(),
        Float1::Tanh => a.tanh(),
    }
}

/// Square root and reciprocal rounded to odd in f64, for the directed roundings.
fn directed(op: Float1, a: f64) -> f64 {
    let value = function(op, a);
    if !value.is_finite() || value == 0.0 {
        return value;
    }
    match op {
        Float1::Sqrt => format::odd(value, (-value).mul_add(value, a)),
        Float1::Reciprocal => format::odd(value, (-value).mul_add(a, 1.0) * a.signum()),
        _ => value,
    }
}

/// Instructions of two sources.
pub fn two(op: Float2, ty: Float, mode: Mode, a: &Lanes, b: &Lanes) -> Lanes {
    let nearest = mode.rounding == Rounding::NearestEven;
    match ty {
        Float::F32 => {
            let pair = |f: fn(f32, f32) -> f32| {
                if mode == Mode::default() {
                    return map2(a, b, |a, b| {
                        settle(f(single(a), single(b)), Mode::default())
                    });
                }
                map2(a, b, |a, b| {
                    let (a, b) = (single(a), single(b));
                    let (a, b) = if mode.flush {
                        (flushed(a), flushed(b))
                    } else {
                        (a, b)
                    };
                    settle(f(a, b), mode)
                })
            };
            match op {
                Float2::Add if nearest => pair(|a, b| a + b),
                Float2::Sub if nearest => pair(|a, b| a - b),
                Float2::Mul if nearest => pair(|a, b| a * b),
                Float2::Div | Float2::DivApprox | Float2::DivFull if nearest => pair(|a, b| a / b),
                _ => map2(a, b, |a, b| {
                    two_narrow(op, format::F32, mode, a as u32, b as u32)
                }),
            }
        }
        Float::F64 => map2(a, b, |a, b| {
            two64(op, mode, f64::from_bits(a), f64::from_bits(b))
        }),
        _ => {
            let format = narrow(ty);
            map2(a, b, |a, b| {
                halves(ty, |shift| {
                    two_narrow(op, format, mode, half_at(a, shift), half_at(b, shift))
                })
            })
        }
    }
}

fn two_narrow(op: Float2, format: Format, mode: Mode, a: u32, b: u32) -> u64 {
    let top = 1 << (format.exponent + format.fraction);
    if op == Float2::CopySign {
        // The sign of the first on the second.
        return u64::from(b & !top | a & top);
    }
    let (a, b) = if mode.flush {
        (flushed_bits(a, format), flushed_bits(b, format))
    } else {
        (a, b)
    };
    let (x, y) = (format.widen(a), format.widen(b));
    let value = match op {
        Float2::Add => zero_signed(format::sum(x, y), x, y, mode),
        Float2::Sub => zero_signed(format::sum(x, -y), x, -y, mode),
        Float2::Mul => x * y,
        Float2::Div | Float2::DivApprox | Float2::DivFull => {
            let quotient = x / y;
            if quotient.is_finite() && quotient != 0.0 && y.is_finite() {
                format::odd(quotient, (-quotient).mul_add(y, x) * y.signum())
            } else {
                quotient
            }
        }
        Float2::Min | Float2::Max => extreme(op == Float2::Max, mode, x, y),
        Float2::CopySign => y,
    };
    settle_narrow(value, format, mode)
}

/// An exact zero of operands of differing signs is negative where rounding goes down.
fn zero_signed(value: f64, a: f64, b: f64, mode: Mode) -> f64 {
    if value == 0.0
        && mode.rounding == Rounding::Down
        && a.is_sign_negative() != b.is_sign_negative()
    {
        -0.0
    } else {
        value
    }
}

fn two64(op: Float2, mode: Mode, a: f64, b: f64) -> u64 {
    settle64(match op {
        Float2::Add => a + b,
        Float2::Sub => a - b,
        Float2::Mul => a * b,
        Float2::Div | Float2::DivApprox | Float2::DivFull => a / b,
        Float2::Min | Float2::Max => extreme(op == Float2::Max, mode, a, b),
        Float2::CopySign => return b.copysign(a).to_bits(),
    })
}

/// Minimum or maximum: a NaN gives the other operand unless `.NaN` is set; -0 is below +0.
fn extreme(max: bool, mode: Mode, a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        return match (mode.nan, a.is_nan(), b.is_nan()) {
            (false, true, false) => b,
            (false, false, true) => a,
            _ => f64::NAN,
        };
    }
    let negative = a.is_sign_negative() != b.is_sign_negative();
    let (a, b) = if mode.xorsign {
        (a.abs(), b.abs())
    } else {
        (a, b)
    };
    let first_less = match a.partial_cmp(&b) {
        Some(std::cmp::Ordering::Equal) => a.is_sign_negative(),
        order => order == Some(std::cmp::Ordering::Less),
    };
    let value = if first_less == max { b } else { a };
    if mode.xorsign && negative {
        -value
    } else {
        value
    }
}

/// `fma`.
pub fn fma(ty: Float, mode: Mode, a: &Lanes, b: &Lanes, c: &Lanes) -> Lanes {
    match ty {
        Float::F32 if mode == Mode::default() => map3(a, b, c, |a, b, c| {
            let value = format::fused(
                f64::from(single(a)),
                f64::from(single(b)),
                f64::from(single(c)),
            );
            settle(value as f32, Mode::default())
        }),
        Float::F64 => map3(a, b, c, |a, b, c| {
            settle64(f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)))
        }),
        Float::F32 => map3(a, b, c, |a, b, c| {
            fma_narrow(format::F32, mode, a as u32, b as u32, c as u32)
        }),
        _ => {
            let format = narrow(ty);
            map3(a, b, c, |a, b, c| {
                halves(ty, |shift| {
                    fma_narrow(
                        format,
                        mode,
                        half_at(a, shift),
                        half_at(b, shift),
                        half_at(c, shift),
                    )
                })
            })
        }
    }
}

fn fma_narrow(format: Format, mode: Mode, a: u32, b: u32, c: u32) -> u64 {
    let widen = |bits| {
        format.widen(if mode.flush {
            flushed_bits(bits, format)
        } else {
            bits
        })
    };
    let (a, b, c) = (widen(a), widen(b), widen(c));
    let value = zero_signed(format::fused(a, b, c), a * b, c, mode);
    settle_narrow(value, format, mode)
}

/// `testp`.
pub fn has_property(property: Property, ty: Float, a: &Lanes) -> u32 {
    (0..LANES).fold(0, |bits, lane| {
        let holds = if ty == Float::F64 {
            let value = f64::from_bits(a[lane]);
            of_class(property, value.classify())
        } else {
            of_class(property, single(a[lane]).classify())
        };
        bits | u32::from(holds) << lane
    })
}

fn of_class(property: Property, class: std::num::FpCategory) -> bool {
    use std::num::FpCategory::{Infinite, Nan, Normal, Subnormal, Zero};
    match property {
        Property::Finite => !matches!(class, Infinite | Nan),
        Property::Infinite => class == Infinite,
        Property::Number => class != Nan,
        Property::NotANumber => class == Nan,
        // The ISA counts zero as neither.
        Property::Normal => class == Normal && class != Zero,
        Property::Subnormal => class == Subnormal,
    }
}

/// Comparisons: a bit a lane; of packed pairs the low halves, then the high ones.
pub fn compare(test: Test, ty: Float, flush: bool, a: &Lanes, b: &Lanes) -> (u32, u32) {
    let widen = |bits: u64, shift: u32| match ty {
        Float::F64 => f64::from_bits(bits),
        Float::F32 => f64::from(if flush {
            flushed(single(bits))
        } else {
            single(bits)
        }),
        _ => {
            let bits = half_at(bits, shift);
            narrow(ty).widen(if flush {
                flushed_bits(bits, narrow(ty))
            } else {
                bits
            })
        }
    };
    let lanes = |shift| {
        (0..LANES).fold(0, |bits, lane| {
            bits | u32::from(holds(test, widen(a[lane], shift), widen(b[lane], shift))) << lane
        })
    };
    let low = lanes(0);
    (
        low,
        if matches!(ty, Float::F16x2 | Float::Bf16x2) {
            lanes(16)
        } else {
            !low
        },
    )
}

fn holds(test: Test, a: f64, b: f64) -> bool {
    let unordered = a.is_nan() || b.is_nan();
    match test {
        Test::Equal => a == b,
        Test::NotEqual => !unordered && a != b,
        Test::Less => a < b,
        Test::LessEqual => a <= b,
        Test::Greater => a > b,
        Test::GreaterEqual => a >= b,
        Test::EqualUnordered => unordered || a == b,
        Test::NotEqualUnordered => a != b,
        Test::LessUnordered => unordered || a < b,
        Test::LessEqualUnordered => unordered || a <= b,
        Test::GreaterUnordered => unordered || a > b,
        Test::GreaterEqualUnordered => unordered || a >= b,
        Test::Numbers => !unordered,
        Test::NotNumbers => unordered,
    }
}

/// One step of an atomic operation.
pub fn combine(op: AtomicOp, ty: Float, old: u64, b: u64) -> u64 {
    let op = match op {
        AtomicOp::Min => Float2::Min,
        AtomicOp::Max => Float2::Max,
        _ => Float2::Add,
    };
    two(op, ty, Mode::default(), &[old; LANES], &[b; LANES])[0]
}
