//! Elements of any dtype, read into f32 and rounded from it.

use std::ops::Range;

use bytemuck::Pod;
use half::{bf16, f16};
use ropeway_core::dtype::DType;

use super::blocks;
use crate::convert;

/// Elements to read, whatever their dtype.
#[derive(Clone, Copy)]
pub(super) enum Elements<'a> {
    None,
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
    I8(&'a [i8]),
    I32(&'a [i32]),
    F8E4M3(&'a [u8]),
    /// Rows of blocks of this format. Places are bytes, of whole blocks.
    Blocks(DType, &'a [u8]),
}

impl Elements<'_> {
    pub(super) fn get(&self, at: usize) -> f32 {
        match self {
            Elements::None => 0.0,
            Elements::F32(x) => x[at],
            Elements::F16(x) => x[at].to_f32(),
            Elements::BF16(x) => x[at].to_f32(),
            Elements::I8(x) => f32::from(x[at]),
            Elements::I32(x) => x[at] as f32,
            Elements::F8E4M3(x) => E4M3[usize::from(x[at])],
            Elements::Blocks(..) => unreachable!("blocks are read whole"),
        }
    }

    pub(super) fn integer(&self, at: usize) -> f64 {
        match self {
            Elements::I32(x) => f64::from(x[at]),
            other => f64::from(other.get(at)),
        }
    }

    /// The bytes of some elements.
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        match self {
            Elements::None => &[],
            Elements::F32(x) => bytemuck::cast_slice(&x[range]),
            Elements::F16(x) => bytemuck::cast_slice(&x[range]),
            Elements::BF16(x) => bytemuck::cast_slice(&x[range]),
            Elements::I8(x) => bytemuck::cast_slice(&x[range]),
            Elements::I32(x) => bytemuck::cast_slice(&x[range]),
            Elements::F8E4M3(x) | Elements::Blocks(_, x) => &x[range],
        }
    }

    /// Where the element lies that follows `k` others in a row that begins at `at`, one after the other.
    pub(super) fn along_row(&self, at: usize, k: usize) -> usize {
        match self {
            Elements::Blocks(format, _) => {
                let block = format.block().expect("a format of blocks");
                at + k / block.elements as usize * block.bytes as usize
            }
            _ => at + k,
        }
    }

    /// `to[i]` = element `at + i * stride`; of blocks, those from the block at byte `at` on.
    pub(super) fn widen(&self, at: usize, stride: usize, to: &mut [f32]) {
        if to.is_empty() {
            return;
        }
        if stride != 1 {
            for (i, wide) in to.iter_mut().enumerate() {
                *wide = self.get(at + i * stride);
            }
            return;
        }
        let range = at..at + to.len();
        match self {
            Elements::Blocks(format, x) => blocks::widen(*format, &x[at..], to),
            Elements::None => to.fill(0.0),
            Elements::F32(x) => to.copy_from_slice(&x[range]),
            Elements::F16(x) => convert::widen_f16(&x[range], to),
            Elements::BF16(x) => convert::widen(&x[range], to),
            Elements::I8(x) => {
                for (wide, narrow) in to.iter_mut().zip(&x[range]) {
                    *wide = f32::from(*narrow);
                }
            }
            Elements::I32(x) => {
                for (wide, narrow) in to.iter_mut().zip(&x[range]) {
                    *wide = *narrow as f32;
                }
            }
            Elements::F8E4M3(x) => {
                for (wide, narrow) in to.iter_mut().zip(&x[range]) {
                    *wide = E4M3[usize::from(*narrow)];
                }
            }
        }
    }
}

/// The number of every byte of F8_E4M3: sign, four bits of exponent (bias 7), three of mantissa; no infinity, and one NaN of either sign.
const E4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut bits = 0;
    while bits < 256 {
        let (exponent, mantissa) = (bits >> 3 & 15, bits & 7);
        let magnitude = match (exponent, mantissa) {
            (15, 7) => f32::NAN,
            // Multiples of 2^-9.
            (0, _) => mantissa as f32 / 512.0,
            _ => f32::from_bits((exponent + 120) << 23 | mantissa << 20),
        };
        table[bits as usize] = match bits >> 7 {
            0 => magnitude,
            _ => -magnitude,
        };
        bits += 1;
    }
    table
};

/// A type that results are stored in.
pub(super) trait Element: Pod + Send + Sync {
    /// Whether sums may be formed in the output itself.
    const IS_F32: bool = false;
    /// Rounds to nearest even; integers saturate.
    fn from_sum(value: f64) -> Self;
    /// As `from_sum`, a row at once.
    fn narrow(from: &[f32], to: &mut [Self]) {
        for (narrow, wide) in to.iter_mut().zip(from) {
            *narrow = Self::from_sum(f64::from(*wide));
        }
    }
}

impl Element for f32 {
    const IS_F32: bool = true;
    fn from_sum(value: f64) -> f32 {
        value as f32
    }
    fn narrow(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Element for f16 {
    fn from_sum(value: f64) -> f16 {
        f16::from_f64(value)
    }
    fn narrow(from: &[f32], to: &mut [f16]) {
        convert::narrow_f16(from, to);
    }
}

impl Element for bf16 {
    fn from_sum(value: f64) -> bf16 {
        bf16::from_f64(value)
    }
    fn narrow(from: &[f32], to: &mut [bf16]) {
        convert::narrow_bf16(from, to);
    }
}

impl Element for i8 {
    fn from_sum(value: f64) -> i8 {
        value.round_ties_even() as i8
    }
}

impl Element for i32 {
    fn from_sum(value: f64) -> i32 {
        value.round_ties_even() as i32
    }
}
