//! Weights in GGML's blocks: bytes whose scales are what a case wants, and whose quants are any.

use ropeway_core::DType;
use ropeway_core::spec::{Fill, Recipe, Special};

use super::problem::{Data, Storage};

/// Bytes between the rows of padded weights.
const PADDING: u64 = 6;
/// A byte of any bits, one of none that is not there, and one of a NaN.
const ANY: (u8, u8) = (0xff, 0);
const NONE: (u8, u8) = (0, 0);
const NAN: (u8, u8) = (0, 0xff);

/// Weights [batch..., n, k].
pub(super) struct Weights<'a> {
    pub format: DType,
    pub shape: &'a [u64],
    pub data: &'a Data,
    pub storage: Storage,
}

impl Weights<'_> {
    /// Adds them to `recipe` as the operand b.
    pub(super) fn add_to(self, recipe: Recipe) -> Recipe {
        let [batch @ .., n, k] = self.shape else {
            unreachable!("weights have two dimensions")
        };
        let block = self.format.block().expect("a format of blocks");
        let bytes = k / block.elements * block.bytes;
        let blocks = bytes / block.bytes;
        let shape = [batch, &[*n, bytes]].concat();
        let recipe = recipe.attr("b_format", self.format.name().to_ascii_lowercase());
        let pattern = self.pattern();
        if self.storage == Storage::Plain || shape.contains(&0) {
            return recipe.tensor("b", DType::U8, &shape, self.fill(pattern));
        }
        let rows: u64 = batch.iter().product::<u64>() * n;
        let (row, rows_stored) = match self.storage {
            Storage::Repeated => (0, 1),
            _ => (bytes + PADDING, rows),
        };
        let stored = bytes + PADDING;
        let mut line = vec![NAN; 2];
        line.extend(pattern.repeat(blocks as usize));
        line.resize(stored as usize, NAN);
        let mut strides = vec![1, row];
        let mut next = row * n;
        for extent in batch.iter().rev() {
            strides.push(next);
            next *= extent;
        }
        strides.reverse();
        recipe
            .tensor(
                "b_stored",
                DType::U8,
                &[rows_stored, stored],
                self.fill(line),
            )
            .view("b", "b_stored", &shape, &strides, 2)
    }

    fn fill(&self, pattern: Vec<(u8, u8)>) -> Fill {
        let base = Fill::Bits { pattern };
        match self.data {
            Data::NanBlocks(blocks) => {
                let block = self.format.block().expect("a format of blocks").bytes;
                let at = if self.format == DType::Q6K { 208 } else { 0 };
                let patches = blocks.iter().flat_map(|number| {
                    [0, 1].map(|byte| (number * block + at + byte, Special::Number(255.0)))
                });
                Fill::Patched {
                    base: Box::new(base),
                    patches: patches.collect(),
                }
            }
            _ => base,
        }
    }

    /// Mask and bits of each byte of a block.
    fn pattern(&self) -> Vec<(u8, u8)> {
        // The upper byte of an F16: either sign, this exponent, any mantissa.
        let random = |exponent: i32| [ANY, (0x83, ((exponent + 15) as u8) << 2)];
        // Either sign, exactly 1; or 8, 10, 12 or 14.
        let (one, eight) = ([NONE, (0x80, 0x3c)], [NONE, (0x83, 0x48)]);
        // Up to 4, subnormals and zeros among them.
        let any = [ANY, (0xbf, 0)];
        let (scale, minimum) = match (self.data, self.format) {
            (Data::Exact(_), DType::Q4_1) => (one, eight),
            (Data::Exact(_), _) => (one, one),
            (Data::Adversarial(..), _) => (any, any),
            (_, DType::Q8_0) => (random(-8), [NONE; 2]),
            (_, DType::Q4K) => (random(-10), random(-6)),
            (_, DType::Q6K) => (random(-12), [NONE; 2]),
            _ => (random(-5), random(-2)),
        };
        if *self.data == Data::Unread {
            return vec![NAN; self.format.block().expect("a format of blocks").bytes as usize];
        }
        let with = |head: &[(u8, u8)], any: usize| [head, &vec![ANY; any]].concat();
        match self.format {
            DType::Q4_0 => with(&scale, 16),
            DType::Q4_1 => with(&[scale, minimum].concat(), 16),
            DType::Q8_0 => with(&scale, 32),
            DType::Q4K => with(&[scale, minimum].concat(), 140),
            _ => [with(&[], 208), scale.to_vec()].concat(),
        }
    }
}
