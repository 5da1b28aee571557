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

/// Vectors whose lanes are summed together.
pub(super) const SUMS: usize = 16;

/// Each vector's sum over its lanes.
#[inline(always)]
pub(super) fn sum_lanes<S: Simd>(simd: S, vectors: &[S::f32s; SUMS]) -> [f32; SUMS] {
    #[cfg(target_arch = "x86_64")]
    if let Some(v4) = (&simd as &dyn Any).downcast_ref::<V4>() {
        return transposed_sums(*v4, cast_slice(vectors));
    }
    let mut sums = [0.0; SUMS];
    for (sum, &vector) in sums.iter_mut().zip(vectors) {
        *sum = simd.reduce_sum_f32s(vector);
    }
    sums
}

/// Sums of lanes of 16 vectors by 15 sums of two vectors, each of which halves the lanes of both: neighbours of four lanes, then pairs of such
/// fours, then halves of the vector.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transposed_sums(simd: V4, vectors: &[[f32; 16]]) -> [f32; 16] {
    let avx = simd.avx512f;
    let mut sums = [avx._mm512_setzero_ps(); 16];
    for (sum, &vector) in sums.iter_mut().zip(vectors) {
        *sum = cast(vector);
    }
    for count in [8, 4] {
        for i in 0..count {
            let (a, b) = (sums[2 * i], sums[2 * i + 1]);
            sums[i] = avx._mm512_add_ps(
                avx._mm512_shuffle_ps::<0b10_00_10_00>(a, b),
                avx._mm512_shuffle_ps::<0b11_01_11_01>(a, b),
            );
        }
    }
    // Now vector i holds the sums of vectors 4 i to 4 i + 3, a quarter of them in each four lanes.
    for i in 0..2 {
        let (a, b) = (sums[2 * i], sums[2 * i + 1]);
        sums[i] = avx._mm512_add_ps(
            avx._mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
            avx._mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
        );
    }
    let (a, b) = (sums[0], sums[1]);
    cast(avx._mm512_add_ps(
        avx._mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
        avx._mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
    ))
}

/// exp of x <= 0 in each lane, within 2 + 2|x| units in the last place; 0 below the least normal result. NaN stays NaN.
#[inline(always)]
pub(super) fn exp_lanes<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let constant = |value: f32| simd.splat_f32s(value);
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    let t = simd.mul_add_e_f32s(
        x,
        constant(std::f32::consts::LOG2_E),
        constant(12_582_912.0),
    );
    let n = simd.sub_f32s(t, constant(12_582_912.0));
    let f = simd.mul_add_e_f32s(n, constant(-0.693_145_75), x);
    let f = simd.mul_add_e_f32s(n, constant(-1.428_606_8e-6), f);
    let mut y = constant(1.987_569_1e-4);
    for coefficient in [
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        y = simd.mul_add_e_f32s(y, f, constant(coefficient));
    }
    let y = simd.mul_add_e_f32s(y, simd.mul_f32s(f, f), simd.add_f32s(f, constant(1.0)));
    let power = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(t), simd.splat_u32s(23));
    let power = simd.add_u32s(power, simd.splat_u32s(0x3f80_0000));
    let value = simd.mul_f32s(y, simd.transmute_f32s_u32s(power));
    simd.select_f32s(
        simd.less_than_f32s(x, constant(-87.33)),
        constant(0.0),
        value,
    )
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

    /// The sums of lanes of 16 vectors, and what they must be.
    struct Sums;

    impl WithSimd for Sums {
        type Output = ([f32; SUMS], [f32; SUMS]);

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
            let mut vectors = [simd.splat_f32s(0.0); SUMS];
            let mut expected = [0.0; SUMS];
            for (i, (vector, expected)) in vectors.iter_mut().zip(&mut expected).enumerate() {
                let lanes = S::F32_LANES as f32;
                let mut wide = [0.0; 16];
                for (lane, wide) in wide.iter_mut().enumerate().take(S::F32_LANES) {
                    *wide = (100 * i + lane) as f32;
                }
                *vector = S::as_simd_f32s(&wide).0[0];
                *expected = lanes * (100 * i) as f32 + lanes * (lanes - 1.0) / 2.0;
            }
            (sum_lanes(simd, &vectors), expected)
        }
    }

    #[test]
    fn each_vector_has_its_sum() {
        for (found, expected) in [Arch::new().dispatch(Sums), Arch::Scalar.dispatch(Sums)] {
            assert_eq!(found, expected);
        }
    }

    struct Exp<'a>(&'a [f32]);

    impl WithSimd for Exp<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
            let mut values = self.0.to_vec();
            for value in S::as_mut_simd_f32s(&mut values).0 {
                *value = exp_lanes(simd, *value);
            }
            values
        }
    }

    #[test]
    fn exponentials_are_near() {
        let x: Vec<f32> = (0..8192).map(|i| i as f32 * -0.0107).collect();
        for found in [
            Arch::new().dispatch(Exp(&x)),
            Arch::Scalar.dispatch(Exp(&x)),
        ] {
            for (&x, found) in x.iter().zip(found) {
                let exact = f64::from(x).exp();
                let bound = (2.0 - 2.0 * f64::from(x)) * 2f64.powi(-23) * exact;
                let error = (f64::from(found) - exact).abs();
                assert!(error <= bound || x < -87.3 && found == 0.0, "{x}: {found}");
            }
        }
        let special = [f32::NEG_INFINITY, f32::NAN, 0.0, -200.0].repeat(4);
        let found = Arch::new().dispatch(Exp(&special));
        assert!(found[0] == 0.0 && found[1].is_nan() && found[2] == 1.0 && found[3] == 0.0);
    }
}
