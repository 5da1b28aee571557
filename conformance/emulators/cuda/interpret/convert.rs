//! Conversions between types.

use super::format::{self, Format};
use crate::ptx::instruction::{Mode, Rounding, Scalar};

fn is_signed(ty: Scalar) -> bool {
    matches!(ty, Scalar::S8 | Scalar::S16 | Scalar::S32 | Scalar::S64)
}

/// Bits of a type in a register.
pub fn bits(ty: Scalar) -> u32 {
    match ty {
        Scalar::U8 | Scalar::S8 | Scalar::E4m3 | Scalar::E5m2 => 8,
        Scalar::U16 | Scalar::S16 | Scalar::F16 | Scalar::Bf16 => 16,
        Scalar::U32 | Scalar::S32 | Scalar::F32 | Scalar::Tf32 => 32,
        Scalar::U64 | Scalar::S64 | Scalar::F64 => 64,
    }
}

fn mask(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

fn integer(value: u64, ty: Scalar) -> i128 {
    let bits = bits(ty);
    if is_signed(ty) {
        i128::from((value << (64 - bits)) as i64 >> (64 - bits))
    } else {
        i128::from(value & mask(bits))
    }
}

/// The value of a float register in f64, which holds it exactly.
fn widen(value: u64, ty: Scalar, flush: bool) -> f64 {
    let Some(format) = format::of(ty) else {
        return f64::from_bits(value);
    };
    let value = format.widen(register_to_format(value as u32, ty));
    // Only f32 has subnormals that `.ftz` concerns.
    if flush && ty == Scalar::F32 && value.abs() < f64::from(f32::MIN_POSITIVE) {
        0f64.copysign(value)
    } else {
        value
    }
}

/// tf32 stands in the upper bits of its register.
fn register_to_format(bits: u32, ty: Scalar) -> u32 {
    if ty == Scalar::Tf32 {
        bits >> 13
    } else {
        bits & mask(self::bits(ty)) as u32
    }
}

fn format_to_register(bits: u32, ty: Scalar) -> u64 {
    u64::from(if ty == Scalar::Tf32 { bits << 13 } else { bits })
}

/// Rounds to a whole number.
fn whole(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::NearestEven => value.round_ties_even(),
        Rounding::NearestAway => value.round(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

/// `cvt` of one value, `width` bits of result.
pub fn one(to: Scalar, from: Scalar, integral: bool, mode: Mode, width: u8, value: u64) -> u64 {
    let from_float = format::of(from).is_some() || from == Scalar::F64;
    let to_float = format::of(to).is_some() || to == Scalar::F64;
    match (from_float, to_float) {
        (false, false) => {
            let mut value = integer(value, from);
            if mode.saturate {
                let (least, most) = range(to);
                value = value.clamp(least, most);
            }
            extend(value as u64, to, width)
        }
        (true, false) => {
            let value = widen(value, from, mode.flush);
            extend(to_integer(whole(value, mode.rounding), to, from), to, width)
        }
        (false, true) => {
            let value = integer(value, from);
            if to == Scalar::F64 {
                return of_wide(value, mode.rounding).to_bits();
            }
            settle(odd_of_wide(value), to, mode)
        }
        (true, true) => {
            let mut value = widen(value, from, mode.flush);
            if integral {
                value = whole(value, mode.rounding);
            }
            settle(value, to, mode)
        }
    }
}

fn range(ty: Scalar) -> (i128, i128) {
    let bits = bits(ty);
    if is_signed(ty) {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    }
}

/// Results narrower than their register are extended by their sign.
fn extend(value: u64, ty: Scalar, width: u8) -> u64 {
    (integer(value, ty) as u64) & mask(u32::from(width))
}

/// A whole number of f64 as an integer: clamped, and NaN as the ISA has it.
fn to_integer(value: f64, ty: Scalar, from: Scalar) -> u64 {
    if value.is_nan() {
        let wide = from == Scalar::F64 || matches!(ty, Scalar::S64 | Scalar::U64);
        return if wide { 1 << (bits(ty) - 1) } else { 0 };
    }
    let (least, most) = range(ty);
    (value as i128).clamp(least, most) as u64
}

/// The nearest f64 in a direction.
fn of_wide(value: i128, rounding: Rounding) -> f64 {
    let nearest = value as f64;
    let lost = value - nearest as i128;
    let step = |up: bool| {
        let up = up == (nearest > 0.0);
        f64::from_bits(if up {
            nearest.to_bits() + 1
        } else {
            nearest.to_bits() - 1
        })
    };
    match rounding {
        Rounding::Up if lost > 0 => step(true),
        Rounding::Down if lost < 0 => step(false),
        Rounding::Zero if lost < 0 && value > 0 => step(false),
        Rounding::Zero if lost > 0 && value < 0 => step(true),
        _ => nearest,
    }
}

fn odd_of_wide(value: i128) -> f64 {
    let nearest = value as f64;
    format::odd(nearest, (value - nearest as i128) as f64)
}

/// Rounds into a float type and applies the modifiers.
fn settle(value: f64, to: Scalar, mode: Mode) -> u64 {
    let value = if mode.saturate {
        if value > 0.0 { value.min(1.0) } else { 0.0 }
    } else {
        value
    };
    let value = if mode.relu && value < 0.0 { 0.0 } else { value };
    let Some(format) = format::of(to) else {
        return if value.is_nan() {
            0x7FFF_FFFF_FFFF_FFFF
        } else {
            value.to_bits()
        };
    };
    let mut bits = format.round(value, mode.rounding, mode.finite);
    if mode.finite && value.is_infinite() {
        bits = format.round(f64::MAX.copysign(value), Rounding::NearestEven, true);
    }
    if mode.flush && to == Scalar::F32 && bits & 0x7F80_0000 == 0 {
        bits &= 0x8000_0000;
    }
    format_to_register(bits, to)
}

/// `cvt` of two f32 into a pair, the first above the second.
pub fn pair(to: Scalar, mode: Mode, a: u64, b: u64) -> u64 {
    let half = |value: u64| settle(widen(value & 0xFFFF_FFFF, Scalar::F32, false), to, mode);
    half(a) << bits(to) | half(b)
}

/// `cvt` of a pair of 8-bit floats into f16x2.
pub fn widen_pair(from: Scalar, relu: bool, value: u64) -> u64 {
    let mode = Mode {
        relu,
        ..Mode::default()
    };
    let half = |shift: u32| {
        let format: Format = format::of(from).unwrap_or(format::E4M3);
        settle(
            format.widen((value >> shift) as u32 & 0xFF),
            Scalar::F16,
            mode,
        )
    };
    half(0) | half(8) << 16
}
