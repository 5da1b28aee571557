//! Slices of f16 and bf16 in f32 and back, in the vectors of the processor at hand.
//!
//! The conversions of `half` take eight elements a call, each with a look at what the processor can do; these look once a slice. The
//! loops hold no table and no branch, so that the compiler makes vectors of them; AVX-512 widens f16 by its own instruction.

use half::{bf16, f16};
use pulp::Arch;
#[cfg(target_arch = "x86_64")]
use pulp::{f32x16, x86::V4};

/// An element that is read as f32.
pub(crate) trait Widen: Copy + 'static {
    /// The same number.
    fn wide(self) -> f32;

    /// Sixteen of them, in a vector of AVX-512.
    #[cfg(target_arch = "x86_64")]
    fn wide_16(simd: V4, from: &[Self; 16]) -> f32x16;
}

impl Widen for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn wide_16(_: V4, from: &[f32; 16]) -> f32x16 {
        pulp::cast(*from)
    }
}

impl Widen for f16 {
    /// Exponent and mantissa are moved to their places in f32, where they mean 2⁻¹¹² times the number, subnormals too; infinity and NaN
    /// get f32's exponent besides.
    #[inline(always)]
    fn wide(self) -> f32 {
        const TWO_TO_112: f32 = f32::from_bits((127 + 112) << 23);
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << 13;
        let special = if magnitude >= 0x7c00 << 13 {
            0x7f80_0000
        } else {
            0
        };
        let number = (f32::from_bits(magnitude) * TWO_TO_112).to_bits();
        f32::from_bits(number | special | (bits & 0x8000) << 16)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn wide_16(simd: V4, from: &[f16; 16]) -> f32x16 {
        let from: [u16; 16] = bytemuck::cast(*from);
        pulp::cast(simd.avx512f._mm512_cvtph_ps(pulp::cast(from)))
    }
}

impl Widen for bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn wide_16(simd: V4, from: &[bf16; 16]) -> f32x16 {
        let from: [u16; 16] = bytemuck::cast(*from);
        let wide = simd.avx512f._mm512_cvtepu16_epi32(pulp::cast(from));
        pulp::cast(simd.avx512f._mm512_slli_epi32::<16>(wide))
    }
}

/// `to[i] = from[i]`
///
/// # Panics
/// If the lengths differ.
pub(crate) fn widen<T: Widen>(from: &[T], to: &mut [f32]) {
    assert_eq!(from.len(), to.len());
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (wide, narrow) in to.iter_mut().zip(from) {
                *wide = narrow.wide();
            }
        },
    );
}

/// As [`widen`], with the instruction of AVX-512 for it.
///
/// # Panics
/// If the lengths differ.
pub(crate) fn widen_f16(from: &[f16], to: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = V4::try_new() {
        assert_eq!(from.len(), to.len());
        return simd.vectorize(WidenF16 { simd, from, to });
    }
    widen(from, to);
}

#[cfg(target_arch = "x86_64")]
struct WidenF16<'a> {
    simd: V4,
    from: &'a [f16],
    to: &'a mut [f32],
}

#[cfg(target_arch = "x86_64")]
impl pulp::NullaryFnOnce for WidenF16<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (from, from_rest) = self.from.as_chunks::<16>();
        let (to, to_rest) = self.to.as_chunks_mut::<16>();
        for (wide, narrow) in to.iter_mut().zip(from) {
            *wide = pulp::cast(f16::wide_16(self.simd, narrow));
        }
        for (wide, narrow) in to_rest.iter_mut().zip(from_rest) {
            *wide = narrow.wide();
        }
    }
}

/// `to[i] = from[i]`, rounded to nearest even; a NaN keeps its sign and stays one.
///
/// # Panics
/// If the lengths differ.
pub(crate) fn narrow_bf16(from: &[f32], to: &mut [bf16]) {
    assert_eq!(from.len(), to.len());
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (narrow, wide) in to.iter_mut().zip(from) {
                let bits = wide.to_bits();
                let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
                let quiet = bits >> 16 | 0x40;
                let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
                *narrow = bf16::from_bits(if is_nan { quiet } else { rounded } as u16);
            }
        },
    );
}

/// `to[i] = from[i]`, rounded to nearest even; a NaN keeps its sign and stays one, what f16 cannot hold becomes infinity.
///
/// # Panics
/// If the lengths differ.
pub(crate) fn narrow_f16(from: &[f32], to: &mut [f16]) {
    assert_eq!(from.len(), to.len());
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (narrow, wide) in to.iter_mut().zip(from) {
                *narrow = f16::from_bits(f16_bits(*wide));
            }
        },
    );
}

#[inline(always)]
fn f16_bits(wide: f32) -> u16 {
    /// From here on a number rounds to infinity.
    const OVERFLOW: u32 = (127 + 16) << 23;
    /// The least number that is normal in f16, 2⁻¹⁴.
    const NORMAL: u32 = (127 - 14) << 23;
    let sign = wide.to_bits() >> 16 & 0x8000;
    let bits = wide.to_bits() & 0x7fff_ffff;
    let normal = bits
        .wrapping_sub((127 - 15) << 23)
        .wrapping_add(0xfff + (bits >> 13 & 1))
        >> 13;
    // The sum's last place is f16's least subnormal, 2⁻²⁴, so that the addition rounds.
    let subnormal = (f32::from_bits(bits) + 0.5)
        .to_bits()
        .wrapping_sub(0.5f32.to_bits());
    let special = if bits > 0x7f80_0000 {
        0x7e00 | (bits >> 13 & 0x3ff)
    } else {
        0x7c00
    };
    let magnitude = if bits >= OVERFLOW {
        special
    } else if bits < NORMAL {
        subnormal
    } else {
        normal
    };
    (sign | magnitude) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_and_bf16_widens_as_half_does_and_narrows_back() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let mut wide = vec![0.0; all.len()];
        let f16s: &[f16] = bytemuck::cast_slice(&all);
        let mut other = wide.clone();
        widen(f16s, &mut wide);
        widen_f16(&f16s[1..], &mut other[1..]);
        for (one, other) in wide.iter().zip(&other) {
            assert!(one.to_bits() == other.to_bits() || one.is_nan() && other.is_nan());
        }
        let mut back = vec![f16::ZERO; all.len()];
        narrow_f16(&wide, &mut back);
        for ((narrow, wide), back) in f16s.iter().zip(&wide).zip(&back) {
            let expected = narrow.to_f32();
            if narrow.is_nan() {
                assert!(wide.is_nan() && back.is_nan());
                assert_eq!(wide.is_sign_negative(), narrow.is_sign_negative());
            } else {
                assert_eq!(wide.to_bits(), expected.to_bits(), "{narrow:?}");
                assert_eq!(back.to_bits(), narrow.to_bits());
            }
        }
        let bf16s: &[bf16] = bytemuck::cast_slice(&all);
        widen(bf16s, &mut wide);
        let mut back = vec![bf16::ZERO; all.len()];
        narrow_bf16(&wide, &mut back);
        for ((narrow, wide), back) in bf16s.iter().zip(&wide).zip(&back) {
            assert_eq!(wide.to_bits(), u32::from(narrow.to_bits()) << 16);
            if narrow.is_nan() {
                assert!(back.is_nan());
            } else {
                assert_eq!(back.to_bits(), narrow.to_bits());
            }
        }
    }

    /// Numbers beside every f16 and bf16 and beside the middle between neighbours, and their negatives.
    #[test]
    fn numbers_between_round_as_half_rounds_them() {
        let mut wide = Vec::new();
        for upper in 0..=0xffffu32 {
            for low in [
                0, 1, 0x0fff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x3000, 0x7fff, 0x8000, 0x8001,
                0xffff,
            ] {
                wide.push(f32::from_bits(upper << 16 | low));
            }
        }
        let mut f16s = vec![f16::ZERO; wide.len()];
        let mut bf16s = vec![bf16::ZERO; wide.len()];
        narrow_f16(&wide, &mut f16s);
        narrow_bf16(&wide, &mut bf16s);
        for ((wide, f16), bf16) in wide.iter().zip(&f16s).zip(&bf16s) {
            if wide.is_nan() {
                assert!(f16.is_nan() && bf16.is_nan());
                continue;
            }
            assert_eq!(f16.to_bits(), f16::from_f32(*wide).to_bits(), "{wide:e}");
            assert_eq!(bf16.to_bits(), bf16::from_f32(*wide).to_bits(), "{wide:e}");
        }
    }
}
