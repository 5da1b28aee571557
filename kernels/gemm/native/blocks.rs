//! Weights in GGML's blocks, widened in groups of 32: every format's blocks are made of those.

use pulp::Arch;
use ropeway_core::dtype::DType;

/// Weights that are widened together.
const GROUP: usize = 32;

type Group = [f32; GROUP];

/// A block format.
trait Format {
    /// Bytes of a block.
    const BYTES: usize;
    /// Groups in a block.
    const GROUPS: usize;
    /// A group of a block, each weight rounded once at most.
    fn group(block: &[u8], index: usize) -> Group;
}

struct Q4_0;
struct Q4_1;
struct Q8_0;
struct Q4K;
struct Q6K;

/// An F16, by integers: without looking up what the processor can do for each.
#[inline(always)]
fn half(bytes: &[u8], at: usize) -> f32 {
    let bits = u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let (magnitude, sign) = (bits & 0x7fff, (bits & 0x8000) << 16);
    let finite = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
    let special = f32::from_bits(0x7f80_0000 | magnitude << 13);
    let value = if magnitude >= 0x7c00 { special } else { finite };
    f32::from_bits(value.to_bits() | sign)
}

/// Low halves of 16 bytes, then their high halves.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> Group {
    let bytes: &[u8; 16] = bytes.try_into().expect("16 bytes hold 32 halves");
    let mut values = [0.0; GROUP];
    let (low, high) = values.split_at_mut(16);
    for (value, byte) in low.iter_mut().zip(bytes) {
        *value = f32::from(byte & 15);
    }
    for (value, byte) in high.iter_mut().zip(bytes) {
        *value = f32::from(byte >> 4);
    }
    values
}

impl Format for Q4_0 {
    const BYTES: usize = 18;
    const GROUPS: usize = 1;
    #[inline(always)]
    fn group(block: &[u8], _: usize) -> Group {
        let d = half(block, 0);
        nibbles(&block[2..18]).map(|q| d * (q - 8.0))
    }
}

impl Format for Q4_1 {
    const BYTES: usize = 20;
    const GROUPS: usize = 1;
    #[inline(always)]
    fn group(block: &[u8], _: usize) -> Group {
        let (d, m) = (half(block, 0), half(block, 2));
        nibbles(&block[4..20]).map(|q| q.mul_add(d, m))
    }
}

impl Format for Q8_0 {
    const BYTES: usize = 34;
    const GROUPS: usize = 1;
    #[inline(always)]
    fn group(block: &[u8], _: usize) -> Group {
        let d = half(block, 0);
        let quants: &[u8; GROUP] = block[2..34].try_into().expect("32 quants");
        quants.map(|q| d * f32::from(q as i8))
    }
}

impl Format for Q4K {
    const BYTES: usize = 144;
    const GROUPS: usize = 8;
    #[inline(always)]
    fn group(block: &[u8], index: usize) -> Group {
        let packed = &block[4..16];
        let (scale, least) = match index < 4 {
            true => (packed[index] & 63, packed[index + 4] & 63),
            false => (
                packed[index + 4] & 15 | packed[index - 4] >> 6 << 4,
                packed[index + 4] >> 4 | packed[index] >> 6 << 4,
            ),
        };
        let d = half(block, 0) * f32::from(scale);
        let m = half(block, 2) * f32::from(least);
        let at = 16 + index / 2 * GROUP;
        let bytes: &[u8; GROUP] = block[at..at + GROUP].try_into().expect("32 bytes");
        let shift = index % 2 * 4;
        bytes.map(|byte| f32::from(byte >> shift & 15).mul_add(d, -m))
    }
}

impl Format for Q6K {
    const BYTES: usize = 210;
    const GROUPS: usize = 8;
    #[inline(always)]
    fn group(block: &[u8], index: usize) -> Group {
        let (half_block, quarter) = (index / 4, index % 4);
        let low = &block[half_block * 64 + quarter % 2 * GROUP..][..GROUP];
        let high = &block[128 + half_block * GROUP..][..GROUP];
        let d = half(block, 208);
        let scales = [0, 1].map(|i| d * f32::from(block[192 + index * 2 + i] as i8));
        let mut values = [0.0; GROUP];
        for (i, value) in values.iter_mut().enumerate() {
            let q = low[i] >> (quarter / 2 * 4) & 15 | (high[i] >> (quarter * 2) & 3) << 4;
            *value = scales[i / 16] * (f32::from(q) - 32.0);
        }
        values
    }
}

/// Calls a generic function with the type of a format.
macro_rules! by_format {
    ($format:expr, $call:ident $arguments:tt) => {
        match $format {
            DType::Q4_0 => $call::<Q4_0> $arguments,
            DType::Q4_1 => $call::<Q4_1> $arguments,
            DType::Q8_0 => $call::<Q8_0> $arguments,
            DType::Q4K => $call::<Q4K> $arguments,
            _ => $call::<Q6K> $arguments,
        }
    };
}

/// The weights of whole blocks, from the first of `blocks` on.
pub(super) fn widen(format: DType, blocks: &[u8], to: &mut [f32]) {
    by_format!(format, widen_blocks(blocks, to));
}

fn widen_blocks<F: Format>(blocks: &[u8], to: &mut [f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let blocks = blocks.chunks_exact(F::BYTES);
            for (block, to) in blocks.zip(to.chunks_exact_mut(F::GROUPS * GROUP)) {
                for (index, to) in to.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                    *to = F::group(block, index);
                }
            }
        },
    );
}

/// `sums[i][j] = Σ w(i)[k] · x[j][k]` for few rows of x, which lie one after the other: each row of blocks is read once for four rows of x.
pub(super) fn few_rows<'w>(
    format: DType,
    w: impl Fn(usize) -> &'w [u8],
    x: &[f32],
    k: usize,
    sums: &mut [f32],
) {
    by_format!(format, few_rows_of(w, x, k, sums));
}

fn few_rows_of<'w, F: Format>(
    w: impl Fn(usize) -> &'w [u8],
    x: &[f32],
    k: usize,
    sums: &mut [f32],
) {
    let x_rows = x.len() / k;
    for (row, sums) in sums.chunks_mut(x_rows).enumerate() {
        for (x, sums) in x.chunks(4 * k).zip(sums.chunks_mut(4)) {
            match sums.len() {
                1 => dots::<F, 1>(w(row), x, k, sums),
                2 => dots::<F, 2>(w(row), x, k, sums),
                3 => dots::<F, 3>(w(row), x, k, sums),
                _ => dots::<F, 4>(w(row), x, k, sums),
            }
        }
    }
}

fn dots<F: Format, const X: usize>(w: &[u8], x: &[f32], k: usize, sums: &mut [f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let x: [&[Group]; X] = std::array::from_fn(|j| x[j * k..][..k].as_chunks().0);
            let mut acc = [[0.0; GROUP]; X];
            for (at, block) in w.chunks_exact(F::BYTES).enumerate() {
                for index in 0..F::GROUPS {
                    let w = F::group(block, index);
                    for (acc, x) in acc.iter_mut().zip(x) {
                        let x = &x[at * F::GROUPS + index];
                        for i in 0..GROUP {
                            acc[i] = w[i].mul_add(x[i], acc[i]);
                        }
                    }
                }
            }
            for (sum, acc) in sums.iter_mut().zip(&acc) {
                *sum = sum_of(acc);
            }
        },
    );
}

/// By halves, as vectors add up.
#[inline(always)]
fn sum_of(acc: &Group) -> f32 {
    let mut acc = *acc;
    let mut width = GROUP / 2;
    while width > 0 {
        for i in 0..width {
            acc[i] += acc[i + width];
        }
        width /= 2;
    }
    acc[0]
}
