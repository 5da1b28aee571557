//! The float types that tensors are stored in, and their conversion in registers.

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pulp::Simd;
#[cfg(target_arch = "x86_64")]
use {
    bytemuck::cast, bytemuck::cast_slice, bytemuck::pod_read_unaligned, pulp::x86::V4,
    std::any::Any,
};

/// A float type that tensors are stored in.
pub(super) trait Element: Pod + Send + Sync {
    fn get(self) -> f32;
    fn put(value: f32) -> Self;
    /// `to[i] = from[i]` in f32.
    fn widen(from: &[Self], to: &mut [f32]);
    /// A vector of as many elements as it has lanes, in f32.
    fn vector<S: Simd>(simd: S, from: &[Self]) -> S::f32s;
}

impl Element for f32 {
    fn get(self) -> f32 {
        self
    }
    fn put(value: f32) -> f32 {
        value
    }
    fn widen(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
    #[inline(always)]
    fn vector<S: Simd>(_simd: S, from: &[f32]) -> S::f32s {
        S::as_simd_f32s(from).0[0]
    }
}

impl Element for f16 {
    fn get(self) -> f32 {
        self.to_f32()
    }
    fn put(value: f32) -> f16 {
        f16::from_f32(value)
    }
    fn widen(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
    #[inline(always)]
    fn vector<S: Simd>(simd: S, from: &[f16]) -> S::f32s {
        #[cfg(target_arch = "x86_64")]
        if let Some(v4) = (&simd as &dyn Any).downcast_ref::<V4>() {
            let narrow = pod_read_unaligned(cast_slice(from));
            return lanes::<S, 16>(simd, cast(v4.avx512f._mm512_cvtph_ps(narrow)));
        }
        each::<S>(simd, |lane| widen_f16(from[lane].to_bits()))
    }
}

impl Element for bf16 {
    fn get(self) -> f32 {
        self.to_f32()
    }
    fn put(value: f32) -> bf16 {
        bf16::from_f32(value)
    }
    fn widen(from: &[bf16], to: &mut [f32]) {
        for (wide, narrow) in to.iter_mut().zip(from) {
            *wide = f32::from_bits(u32::from(narrow.to_bits()) << 16);
        }
    }
    #[inline(always)]
    fn vector<S: Simd>(simd: S, from: &[bf16]) -> S::f32s {
        #[cfg(target_arch = "x86_64")]
        if let Some(v4) = (&simd as &dyn Any).downcast_ref::<V4>() {
            let narrow = pod_read_unaligned(cast_slice(from));
            let wide = v4
                .avx512f
                ._mm512_slli_epi32::<16>(v4.avx512f._mm512_cvtepu16_epi32(narrow));
            return lanes::<S, 16>(simd, cast(wide));
        }
        each::<S>(simd, |lane| {
            f32::from_bits(u32::from(from[lane].to_bits()) << 16)
        })
    }
}

/// A vector of the first lanes of an array.
#[inline(always)]
fn lanes<S: Simd, const N: usize>(_simd: S, wide: [f32; N]) -> S::f32s {
    S::as_simd_f32s(&wide).0[0]
}

/// A vector made lane by lane: a loop of whole numbers, which compilers turn into vectors.
#[inline(always)]
fn each<S: Simd>(simd: S, lane: impl Fn(usize) -> f32) -> S::f32s {
    let mut wide = [0.0; 16];
    for (i, wide) in wide.iter_mut().enumerate().take(S::F32_LANES) {
        *wide = lane(i);
    }
    lanes::<S, 16>(simd, wide)
}

/// f16 to f32 without a branch: the exponent is moved by a multiplication, which is exact for subnormals too.
#[inline(always)]
fn widen_f16(bits: u16) -> f32 {
    let (magnitude, sign) = (u32::from(bits & 0x7fff), u32::from(bits & 0x8000) << 16);
    let moved = (f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000)).to_bits();
    let special = if magnitude >= 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(moved | special | sign)
}

#[cfg(test)]
mod tests {
    use pulp::{Arch, Simd, WithSimd};

    use super::*;

    #[test]
    fn every_f16_widens_to_its_value() {
        for bits in 0..=u16::MAX {
            let (found, expected) = (widen_f16(bits), f16::from_bits(bits).to_f32());
            assert!(
                found == expected || found.is_nan() && expected.is_nan(),
                "{bits:#x}"
            );
        }
    }

    struct Widen<'a, T>(&'a [T]);

    impl<T: Element> WithSimd for Widen<'_, T> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
            let vectors = self.0.chunks_exact(S::F32_LANES);
            let vectors: Vec<S::f32s> = vectors.map(|lanes| T::vector(simd, lanes)).collect();
            bytemuck::cast_slice(&vectors).to_vec()
        }
    }

    #[test]
    fn vectors_hold_the_values() {
        let halves: Vec<f16> = (0..64)
            .map(|i| f16::from_f32(i as f32 * 0.37 - 11.0))
            .collect();
        let brains: Vec<bf16> = (0..64).map(|i| bf16::from_bits(i * 251)).collect();
        let expected: Vec<f32> = halves.iter().map(|half| half.to_f32()).collect();
        assert_eq!(Arch::new().dispatch(Widen(&halves)), expected);
        let expected: Vec<f32> = brains.iter().map(|brain| brain.to_f32()).collect();
        assert_eq!(Arch::new().dispatch(Widen(&brains)), expected);
    }
}
