//! GGML's blocks of weights, as ggml-quants defines them, weight by weight in f64.

use half::f16;
use ropeway_core::DType;
use ropeway_core::memory::Layout;
use ropeway_core::request::HostTensor;

/// The matrix [k, n] at `batch` of blocks seen through `layout` [batch..., bytes of k weights, n], row by row.
pub(super) fn matrix(
    tensor: &HostTensor,
    format: DType,
    layout: &Layout,
    batch: &[u64],
    k: usize,
) -> Vec<f64> {
    let n = layout.shape()[batch.len() + 1];
    let mut values = vec![0.0; k * n as usize];
    if k == 0 {
        return values;
    }
    for column in 0..n {
        let at = tensor.offset + layout.offset_of(&[batch, &[0, column]].concat());
        for (row, weight) in row(format, &tensor.data[at as usize..], k)
            .into_iter()
            .enumerate()
        {
            values[row * n as usize + column as usize] = weight;
        }
    }
    values
}

/// The first k weights of a row of blocks.
pub(super) fn row(format: DType, bytes: &[u8], k: usize) -> Vec<f64> {
    let block = format.block().expect("a format of blocks");
    (0..k)
        .map(|i| {
            let at = i / block.elements as usize * block.bytes as usize;
            weight(format, &bytes[at..], i % block.elements as usize)
        })
        .collect()
}

/// Weight `i` of a block.
fn weight(format: DType, block: &[u8], i: usize) -> f64 {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f64();
    let byte = |at: usize| u32::from(block[at]);
    // Sixteen bytes hold weights 0 to 15 in their low halves, 16 to 31 in their high ones.
    let nibble = |at: usize| f64::from(byte(at + i % 16) >> (i / 16 * 4) & 15);
    match format {
        // d, quants
        DType::Q4_0 => half(0) * (nibble(2) - 8.0),
        // d, m, quants
        DType::Q4_1 => half(0) * nibble(4) + half(2),
        // d, quants
        DType::Q8_0 => half(0) * f64::from(block[2 + i] as i8),
        // d, e, 12 bytes of scales and minima, 128 of quants: 32 bytes hold group 2j in their low halves, 2j + 1 in their high ones
        DType::Q4K => {
            let group = i / 32;
            let packed = |at: usize| byte(4 + at);
            let (scale, minimum) = match group {
                // Six bits each of 4 scales, then of 4 minima; the two bits above belong to the other four.
                0..4 => (packed(group) & 63, packed(group + 4) & 63),
                _ => (
                    packed(group + 4) & 15 | (packed(group - 4) >> 6) << 4,
                    packed(group + 4) >> 4 | (packed(group) >> 6) << 4,
                ),
            };
            let quant = byte(16 + group / 2 * 32 + i % 32) >> (group % 2 * 4) & 15;
            half(0) * f64::from(scale) * f64::from(quant) - half(2) * f64::from(minimum)
        }
        // 128 bytes of low halves, 64 of upper two bits, 16 scales, d; each half of the block for itself
        DType::Q6K => {
            let (part, j) = (i / 128, i % 128);
            let low = byte(part * 64 + j % 64) >> (j / 64 * 4) & 15;
            let high = byte(128 + part * 32 + j % 32) >> (j / 32 * 2) & 3;
            let scale = f64::from(block[192 + i / 16] as i8);
            half(208) * scale * (f64::from(low | high << 4) - 32.0)
        }
        other => unreachable!("{other} is no format of blocks"),
    }
}
