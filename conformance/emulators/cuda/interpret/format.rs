//! Float formats by their bits: exact widening to f64, and rounding from it in every direction.
//!
//! An operation of a narrow format is computed in f64 and, where that is not exact, rounded to odd ([`odd`]): 53 bits are at least two
//! more than f32 has, so that a second rounding in any direction gives what one rounding of the exact value would (Boldo and
//! Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008).

use crate::ptx::instruction::{Rounding, Scalar};

/// A binary format of up to 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bits of the exponent.
    pub exponent: u32,
    /// Bits of the fraction.
    pub fraction: u32,
    /// Whether the largest exponent means infinity and NaN; else (e4m3) only all ones mean NaN.
    pub infinite: bool,
}

/// IEEE binary16.
pub const F16: Format = Format {
    exponent: 5,
    fraction: 10,
    infinite: true,
};
/// The upper half of binary32.
pub const BF16: Format = Format {
    exponent: 8,
    fraction: 7,
    infinite: true,
};
/// IEEE binary32.
pub const F32: Format = Format {
    exponent: 8,
    fraction: 23,
    infinite: true,
};
/// Binary32 with 10 bits of fraction, in the upper bits of a register.
pub const TF32: Format = Format {
    exponent: 8,
    fraction: 10,
    infinite: true,
};
/// OCP 8-bit, 4 bits of exponent, no infinity.
pub const E4M3: Format = Format {
    exponent: 4,
    fraction: 3,
    infinite: false,
};
/// OCP 8-bit, 5 bits of exponent.
pub const E5M2: Format = Format {
    exponent: 5,
    fraction: 2,
    infinite: true,
};

/// The format of a float type up to 32 bits.
pub fn of(ty: Scalar) -> Option<Format> {
    Some(match ty {
        Scalar::F16 => F16,
        Scalar::Bf16 => BF16,
        Scalar::F32 => F32,
        Scalar::Tf32 => TF32,
        Scalar::E4m3 => E4M3,
        Scalar::E5m2 => E5M2,
        _ => return None,
    })
}

impl Format {
    fn bits(self) -> u32 {
        1 + self.exponent + self.fraction
    }

    fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    /// The canonical NaN: all ones but the sign, as PTX has it.
    pub fn nan(self) -> u32 {
        (1_u32 << (self.bits() - 1)) - 1
    }

    fn infinity(self) -> u32 {
        ((1 << self.exponent) - 1) << self.fraction
    }

    /// The largest finite value.
    pub fn largest(self) -> u32 {
        if self.infinite {
            self.infinity() - 1
        } else {
            self.nan() - 1
        }
    }

    /// The value of these bits, which f64 holds exactly.
    pub fn widen(self, bits: u32) -> f64 {
        let sign = if bits >> (self.bits() - 1) & 1 == 1 {
            -1.0
        } else {
            1.0
        };
        let fraction = bits & ((1 << self.fraction) - 1);
        let exponent = (bits >> self.fraction & ((1 << self.exponent) - 1)) as i32;
        if self.infinite && exponent == (1 << self.exponent) - 1 {
            return if fraction == 0 {
                sign * f64::INFINITY
            } else {
                f64::NAN
            };
        }
        if !self.infinite && bits & self.nan() == self.nan() {
            return f64::NAN;
        }
        let scale = |power: i32| f64::from_bits(((power + 1023) as u64) << 52);
        let unit = 1 - self.bias() - self.fraction as i32;
        if exponent == 0 {
            sign * f64::from(fraction) * scale(unit)
        } else {
            sign * f64::from(fraction | 1 << self.fraction) * scale(unit + exponent - 1)
        }
    }

    /// A value rounded to the format. Overflow gives infinity or, by direction or where `finite` asks for it, the largest finite value;
    /// NaN gives the canonical one.
    pub fn round(self, value: f64, rounding: Rounding, finite: bool) -> u32 {
        if value.is_nan() {
            return self.nan();
        }
        let negative = value.is_sign_negative();
        let sign = u32::from(negative) << (self.bits() - 1);
        let finite = finite || !self.infinite;
        let overflow = |toward: bool| {
            if finite || !toward {
                sign | self.largest()
            } else {
                sign | self.infinity()
            }
        };
        if value.is_infinite() {
            return overflow(true);
        }
        let bits = value.to_bits() & !(1 << 63);
        if bits >> 52 == 0 {
            // Zero, or far below every format's subnormals.
            let up = bits != 0
                && matches!(
                    (rounding, negative),
                    (Rounding::Up, false) | (Rounding::Down, true)
                );
            return sign | u32::from(up);
        }
        let exponent = (bits >> 52) as i32 - 1023;
        let significand = bits & ((1 << 52) - 1) | 1 << 52;
        // Bits of the significand that go; more for subnormals, of which one exponent stands for all.
        let least = 1 - self.bias();
        let drop = (52 - self.fraction as i32 + (least - exponent).max(0)).min(63) as u32;
        let kept = significand >> drop;
        let rest = significand & ((1 << drop) - 1);
        let half = 1_u64 << (drop - 1);
        let up = match rounding {
            Rounding::NearestEven => rest > half || rest == half && kept & 1 == 1,
            Rounding::NearestAway => rest >= half,
            Rounding::Zero => false,
            Rounding::Down => negative && rest != 0,
            Rounding::Up => !negative && rest != 0,
        };
        let kept = kept + u64::from(up);
        // The hidden bit adds 1 to the exponent's field; a carry out of the fraction does the right thing too.
        let field = (exponent - least).max(0) as u64;
        let magnitude = (field << self.fraction) + kept;
        if magnitude > u64::from(self.largest()) {
            let toward = match rounding {
                Rounding::NearestEven | Rounding::NearestAway => true,
                Rounding::Zero => false,
                Rounding::Down => negative,
                Rounding::Up => !negative,
            };
            return overflow(toward);
        }
        sign | magnitude as u32
    }
}

/// A sum or product in f64 with the sign of what its rounding lost, rounded to odd: where something was lost and the last bit is even,
/// the neighbour on the side of the loss.
#[inline]
pub fn odd(value: f64, lost: f64) -> f64 {
    let bits = value.to_bits();
    let step = if (lost > 0.0) == (value > 0.0) {
        1
    } else {
        u64::MAX
    };
    let adjust = lost.abs() > 0.0 && bits & 1 == 0 && value != 0.0;
    f64::from_bits(if adjust {
        bits.wrapping_add(step)
    } else {
        bits
    })
}

/// `a b + c` rounded to odd; `a b` must be exact in f64, as products of formats up to 32 bits are.
#[inline]
pub fn fused(a: f64, b: f64, c: f64) -> f64 {
    let product = a * b;
    sum(product, c)
}

/// `a + b` rounded to odd (Knuth's two-sum gives what is lost).
#[inline]
pub fn sum(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let part = sum - a;
    let lost = (a - (sum - part)) + (b - part);
    odd(sum, lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_and_rounding_agree_on_every_16_bit_value() {
        for format in [F16, BF16] {
            for bits in 0..=0xFFFF_u32 {
                let value = format.widen(bits);
                let again = format.round(value, Rounding::NearestEven, false);
                if value.is_nan() {
                    assert_eq!(again, format.nan());
                } else {
                    assert_eq!(again, bits, "{value}");
                }
            }
        }
    }

    #[test]
    fn f32_rounds_as_the_processor_does() {
        let mut state = 1_u64;
        for _ in 0..200_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            // Exponents around the range of f32, subnormals and overflow among them.
            let exponent = 1023 - 160 + (state >> 40) % 320;
            let value = f64::from_bits(state << 63 | exponent << 52 | state >> 12);
            assert_eq!(
                F32.round(value, Rounding::NearestEven, false),
                (value as f32).to_bits(),
                "{value:e}"
            );
        }
    }

    #[test]
    fn directions() {
        let just_above_one = 1.0 + f64::EPSILON;
        let round = |value, rounding| F16.round(value, rounding, false);
        assert_eq!(round(just_above_one, Rounding::Up), 0x3C01);
        assert_eq!(round(just_above_one, Rounding::Down), 0x3C00);
        assert_eq!(round(-just_above_one, Rounding::Down), 0xBC01);
        assert_eq!(round(-just_above_one, Rounding::Zero), 0xBC00);
        // A tie: 1 + 2^-11.
        let tie = 1.0 + 2f64.powi(-11);
        assert_eq!(round(tie, Rounding::NearestEven), 0x3C00);
        assert_eq!(round(tie, Rounding::NearestAway), 0x3C01);
        // Overflow: 65520 is the tie between 65504 and what would be 65536.
        assert_eq!(round(65520.0, Rounding::NearestEven), 0x7C00);
        assert_eq!(round(65519.0, Rounding::NearestEven), 0x7BFF);
        assert_eq!(round(1e9, Rounding::Zero), 0x7BFF);
        assert_eq!(F16.round(1e9, Rounding::NearestEven, true), 0x7BFF);
    }

    #[test]
    fn eight_bits() {
        assert_eq!(E4M3.widen(0x7E), 448.0);
        assert_eq!(E4M3.round(1000.0, Rounding::NearestEven, true), 0x7E);
        assert_eq!(E4M3.round(f64::NAN, Rounding::NearestEven, true), 0x7F);
        assert_eq!(E4M3.widen(1), 2f64.powi(-9));
        assert_eq!(E5M2.widen(0x7B), 57344.0);
        assert_eq!(E5M2.round(1e9, Rounding::NearestEven, true), 0x7B);
        assert_eq!(E5M2.widen(1), 2f64.powi(-16));
    }

    #[test]
    fn fused_is_rounded_once() {
        // 2^-24 would be lost as a tie if the sum were rounded to f64 first: 1 + 2^-24 + 2^-80 must round up.
        let value = fused(2f64.powi(-40), 2f64.powi(-40), 1.0 + 2f64.powi(-24));
        assert_eq!(F32.round(value, Rounding::NearestEven, false), 0x3F80_0001);
        assert_eq!(value as f32, 1.0 + f32::EPSILON);
    }
}
