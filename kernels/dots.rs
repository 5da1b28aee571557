//! Dot products of several rows with several rows, in the vectors of the processor at hand.

use std::any::TypeId;

use pulp::{Arch, Simd, WithSimd};
use ropeway_core::native::NativeDevice;

use crate::convert::{self, Widen};

/// Elements of a row that are converted at once, where that takes a step of its own.
const BLOCK: usize = 1024;

/// Rows of w that are read side by side.
const SIDE_BY_SIDE: usize = 4;

/// Elements of a row between two looks ahead.
const AHEAD: usize = 1024;

/// `sums[i][j] = Σ w(i)[k] · x[j][k]` for few rows of x, which lie one after the other: each row of w is read once. Four rows of w are read
/// side by side, which is what keeps memory busy, and each of their vectors serves up to four rows of x.
///
/// Rows of f16 and bf16, and short ones of f32, are too few bytes for that: those of the next four are asked for while four are multiplied,
/// unless so many rows of x make memory wait anyway. (Long rows of f32 lost by it.)
///
/// # Panics
/// If x or sums hold no whole rows.
pub(crate) fn few_rows<'w, T: Widen + bytemuck::Pod>(
    device: &dyn NativeDevice,
    w: impl Fn(usize) -> &'w [T],
    x: &[f32],
    k: usize,
    sums: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    match x.len() / k {
        1 => few_rows_by::<T, 1>(device, w, x, k, sums, scratch),
        2 => few_rows_by::<T, 2>(device, w, x, k, sums, scratch),
        _ => few_rows_by::<T, 4>(device, w, x, k, sums, scratch),
    }
}

fn few_rows_by<'w, T: Widen + bytemuck::Pod, const X: usize>(
    device: &dyn NativeDevice,
    w: impl Fn(usize) -> &'w [T],
    x: &[f32],
    k: usize,
    sums: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    let (x_rows, w_rows) = (x.len() / k, sums.len() / (x.len() / k));
    let look_ahead = X <= 2 && (size_of::<T>() < 4 || k <= AHEAD);
    let block = if look_ahead { AHEAD } else { k };
    for (tile, sums) in sums.chunks_mut(SIDE_BY_SIDE * x_rows).enumerate() {
        let first = tile * SIDE_BY_SIDE;
        // Rows past the last repeat it; nobody looks at their sums.
        let rows: [&[T]; SIDE_BY_SIDE] = std::array::from_fn(|i| w((first + i).min(w_rows - 1)));
        for begin in (0..k).step_by(block) {
            let range = begin..k.min(begin + block);
            if look_ahead {
                for next in first + SIDE_BY_SIDE..w_rows.min(first + 2 * SIDE_BY_SIDE) {
                    device.prefetch(bytemuck::cast_slice(&w(next)[range.clone()]));
                }
            }
            let w = rows.map(|row| &row[range.clone()]);
            for (part, x) in x.chunks(X * k).enumerate() {
                let count = x.len() / k;
                let x: [&[f32]; X] =
                    std::array::from_fn(|j| &x[j.min(count - 1) * k..][range.clone()]);
                let products = dots(w, x, scratch);
                for (sums, products) in sums.chunks_mut(x_rows).zip(&products) {
                    let sums = &mut sums[part * X..][..count];
                    for (sum, product) in sums.iter_mut().zip(products) {
                        *sum = if begin == 0 { *product } else { *sum + product };
                    }
                }
            }
        }
    }
}

/// `dots[i][j] = Σ w[i][k] · x[j][k]`, in f32. With AVX-512 elements are converted as they are multiplied, so that memory never waits;
/// W = 4 keeps four streams of it busy. Elsewhere f16 and bf16 are converted in `scratch`, a block at a time.
///
/// # Panics
/// If the lengths differ.
fn dots<T: Widen + bytemuck::Pod, const W: usize, const X: usize>(
    w: [&[T]; W],
    x: [&[f32]; X],
    scratch: &mut Vec<f32>,
) -> [[f32; X]; W] {
    let k = w[0].len();
    assert!(w.iter().all(|w| w.len() == k) && x.iter().all(|x| x.len() == k));
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V4::try_new() {
        return simd.vectorize(WideDots { simd, w, x });
    }
    if TypeId::of::<T>() == TypeId::of::<f32>() {
        return Arch::new().dispatch(Dots {
            w: w.map(bytemuck::cast_slice),
            x,
        });
    }
    let mut sums = [[0.0; X]; W];
    scratch.resize(W * BLOCK.min(k), 0.0);
    for begin in (0..k).step_by(BLOCK) {
        let count = BLOCK.min(k - begin);
        for (to, w) in scratch.chunks_mut(count).zip(&w) {
            convert::widen(&w[begin..][..count], to);
        }
        let part = Arch::new().dispatch(Dots::<W, X> {
            w: std::array::from_fn(|i| &scratch[i * count..][..count]),
            x: x.map(|x| &x[begin..][..count]),
        });
        for (sum, part) in sums.as_flattened_mut().iter_mut().zip(part.as_flattened()) {
            *sum += part;
        }
    }
    sums
}

/// Loops count here and below, since what closures hold leaves the registers.
struct Dots<'a, const W: usize, const X: usize> {
    w: [&'a [f32]; W],
    x: [&'a [f32]; X],
}

impl<const W: usize, const X: usize> WithSimd for Dots<'_, W, X> {
    type Output = [[f32; X]; W];

    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn with_simd<S: Simd>(self, simd: S) -> [[f32; X]; W] {
        let vectors = self.w[0].len() / S::F32_LANES;
        let mut w: [&[S::f32s]; W] = [&[]; W];
        let mut x: [&[S::f32s]; X] = [&[]; X];
        for i in 0..W {
            w[i] = &S::as_simd_f32s(self.w[i]).0[..vectors];
        }
        for j in 0..X {
            x[j] = &S::as_simd_f32s(self.x[j]).0[..vectors];
        }
        let mut sums = [[simd.splat_f32s(0.0); X]; W];
        for at in 0..vectors {
            for i in 0..W {
                for j in 0..X {
                    sums[i][j] = simd.mul_add_f32s(w[i][at], x[j][at], sums[i][j]);
                }
            }
        }
        let mut dots = rests(&self.w, &self.x, vectors * S::F32_LANES);
        for i in 0..W {
            for j in 0..X {
                dots[i][j] += simd.reduce_sum_f32s(sums[i][j]);
            }
        }
        dots
    }
}

/// As [`Dots`], of elements of any dtype.
#[cfg(target_arch = "x86_64")]
struct WideDots<'a, T, const W: usize, const X: usize> {
    simd: pulp::x86::V4,
    w: [&'a [T]; W],
    x: [&'a [f32]; X],
}

#[cfg(target_arch = "x86_64")]
impl<T: Widen, const W: usize, const X: usize> pulp::NullaryFnOnce for WideDots<'_, T, W, X> {
    type Output = [[f32; X]; W];

    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn call(self) -> [[f32; X]; W] {
        let simd = self.simd;
        let vectors = self.w[0].len() / 16;
        let mut w: [&[[T; 16]]; W] = [&[]; W];
        let mut x: [&[[f32; 16]]; X] = [&[]; X];
        for i in 0..W {
            w[i] = &self.w[i].as_chunks::<16>().0[..vectors];
        }
        for j in 0..X {
            x[j] = &self.x[j].as_chunks::<16>().0[..vectors];
        }
        let mut sums = [[simd.splat_f32x16(0.0); X]; W];
        for at in 0..vectors {
            for i in 0..W {
                let w = T::wide_16(simd, &w[i][at]);
                for j in 0..X {
                    sums[i][j] = simd.mul_add_f32x16(w, pulp::cast(x[j][at]), sums[i][j]);
                }
            }
        }
        let mut dots = rests(&self.w, &self.x, vectors * 16);
        for i in 0..W {
            for j in 0..X {
                dots[i][j] += simd.reduce_sum_f32s(sums[i][j]);
            }
        }
        dots
    }
}

/// The sums from `begin` on, where no whole vector is left.
fn rests<T: Widen, const W: usize, const X: usize>(
    w: &[&[T]; W],
    x: &[&[f32]; X],
    begin: usize,
) -> [[f32; X]; W] {
    let mut sums = [[0.0; X]; W];
    for (sums, w) in sums.iter_mut().zip(w) {
        for (sum, x) in sums.iter_mut().zip(x) {
            let products = w[begin..]
                .iter()
                .zip(&x[begin..])
                .map(|(w, x)| w.wide() * x);
            *sum = products.sum();
        }
    }
    sums
}
