//! Element types: what a tensor holds, how wide it is, and what rounding to it loses.

use std::fmt;

/// The element type of a tensor.
///
/// Sub-byte and block types have no address per element: [`DType::size`] is `None` for them, and a view of them is
/// addressed in whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// Signed 8-bit integer.
    I8,
    /// Signed 32-bit integer.
    I32,
    /// OCP 8-bit float, 4 exponent and 3 mantissa bits, no infinity, largest value 448.
    F8E4M3,
    /// OCP 8-bit float, 5 exponent and 2 mantissa bits, largest finite value 57,344.
    F8E5M2,
    /// Unsigned byte; also the storage of quantised blocks.
    U8,
    /// Signed 4-bit integer, two to a byte, the first in the low half.
    I4,
    /// OCP MXFP4: 32 four-bit floats (E2M1) that share one 8-bit power-of-two scale.
    MxFp4,
    /// GGML: 32 weights d · (q − 8), d an F16, q of 4 bits; 18 bytes.
    Q4_0,
    /// GGML: 32 weights d · q + m, d and m F16, q of 4 bits; 20 bytes.
    Q4_1,
    /// GGML: 32 weights d · q, d an F16, q of 8 bits; 34 bytes.
    Q8_0,
    /// GGML: 256 weights in 8 groups, d · s · q − e · m, d and e F16, s and m of 6 bits a group, q of 4 bits; 144 bytes.
    Q4K,
    /// GGML: 256 weights in 16 groups, d · s · (q − 32), d an F16, s of 8 bits a group, q of 6 bits; 210 bytes.
    Q6K,
}

/// What elements without an address of their own are stored in: the unit that has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Elements in a block.
    pub elements: u64,
    /// Bytes of a block.
    pub bytes: u64,
}

impl DType {
    /// Every dtype, in the order of [`DType::code`].
    pub const ALL: [DType; 15] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::I8,
        DType::I32,
        DType::F8E4M3,
        DType::F8E5M2,
        DType::U8,
        DType::I4,
        DType::MxFp4,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q8_0,
        DType::Q4K,
        DType::Q6K,
    ];

    /// GGML's blocks of weights, which products read as rows of bytes.
    pub const GGML_BLOCKS: [DType; 5] = [
        DType::Q4_0,
        DType::Q4_1,
        DType::Q8_0,
        DType::Q4K,
        DType::Q6K,
    ];

    /// The number by which kernel sources know this dtype (`-D A_DTYPE=1`).
    pub const fn code(self) -> i64 {
        match self {
            DType::F32 => 0,
            DType::F16 => 1,
            DType::BF16 => 2,
            DType::I8 => 3,
            DType::I32 => 4,
            DType::F8E4M3 => 5,
            DType::F8E5M2 => 6,
            DType::U8 => 7,
            DType::I4 => 8,
            DType::MxFp4 => 9,
            DType::Q4_0 => 10,
            DType::Q4_1 => 11,
            DType::Q8_0 => 12,
            DType::Q4K => 13,
            DType::Q6K => 14,
        }
    }

    /// Bytes of one element, or `None` where an element has no address of its own.
    pub const fn size(self) -> Option<u64> {
        match self {
            DType::F32 | DType::I32 => Some(4),
            DType::F16 | DType::BF16 => Some(2),
            DType::I8 | DType::U8 | DType::F8E4M3 | DType::F8E5M2 => Some(1),
            DType::I4
            | DType::MxFp4
            | DType::Q4_0
            | DType::Q4_1
            | DType::Q8_0
            | DType::Q4K
            | DType::Q6K => None,
        }
    }

    /// The block that elements without an address lie in, or `None` where each has its own. A tensor of them is a view of bytes
    /// ([`DType::U8`]) whose rows hold whole blocks.
    pub const fn block(self) -> Option<Block> {
        let (elements, bytes) = match self {
            DType::I4 => (2, 1),
            DType::MxFp4 => (32, 17),
            DType::Q4_0 => (32, 18),
            DType::Q4_1 => (32, 20),
            DType::Q8_0 => (32, 34),
            DType::Q4K => (256, 144),
            DType::Q6K => (256, 210),
            _ => return None,
        };
        Some(Block { elements, bytes })
    }

    /// True for floating-point types.
    pub const fn is_float(self) -> bool {
        !matches!(self, DType::I8 | DType::I32 | DType::U8 | DType::I4)
    }

    /// The unit roundoff u (half the distance from 1 to the next number), or 0 for integers and for weights in GGML's blocks, which have
    /// no fixed one.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            DType::F32 => 2f64.powi(-24),
            DType::F16 => 2f64.powi(-11),
            DType::BF16 => 2f64.powi(-8),
            DType::F8E4M3 => 2f64.powi(-4),
            DType::F8E5M2 => 2f64.powi(-3),
            DType::MxFp4 => 2f64.powi(-2),
            _ => 0.0,
        }
    }

    /// The smallest positive subnormal number, or 0 for integers and for weights in GGML's blocks, which have no fixed one.
    pub fn smallest_subnormal(self) -> f64 {
        match self {
            DType::F32 => 2f64.powi(-149),
            DType::F16 => 2f64.powi(-24),
            DType::BF16 => 2f64.powi(-133),
            DType::F8E4M3 => 2f64.powi(-9),
            DType::F8E5M2 => 2f64.powi(-16),
            DType::MxFp4 => 2f64.powi(-128),
            _ => 0.0,
        }
    }

    /// The smallest positive normal number, or 0 for integers and for weights in GGML's blocks, which have no fixed one.
    pub fn smallest_normal(self) -> f64 {
        match self {
            DType::F32 | DType::BF16 => 2f64.powi(-126),
            DType::F16 => 2f64.powi(-14),
            DType::F8E4M3 => 2f64.powi(-6),
            DType::F8E5M2 => 2f64.powi(-14),
            DType::MxFp4 => 2f64.powi(-127),
            _ => 0.0,
        }
    }

    /// The largest finite value.
    pub fn max_finite(self) -> f64 {
        match self {
            DType::F32 => f32::MAX as f64,
            DType::F16 => 65504.0,
            DType::BF16 => half::bf16::MAX.to_f64(),
            DType::F8E4M3 => 448.0,
            DType::F8E5M2 => 57344.0,
            DType::MxFp4 => 6.0 * 2f64.powi(127),
            DType::I8 => 127.0,
            DType::I32 => i32::MAX as f64,
            DType::U8 => 255.0,
            DType::I4 => 7.0,
            DType::Q4_0 => 8.0 * 65504.0,
            DType::Q4_1 => 16.0 * 65504.0,
            DType::Q8_0 => 128.0 * 65504.0,
            DType::Q4K => (63.0 * 15.0 + 63.0) * 65504.0,
            DType::Q6K => 128.0 * 32.0 * 65504.0,
        }
    }

    /// The dtype of this name (`"F32"`, `"bf16"`, `"F8_E4M3"`), upper or lower case.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL
            .into_iter()
            .find(|d| d.name().eq_ignore_ascii_case(name))
    }

    /// The name in the safetensors spelling (`"F32"`, `"BF16"`, `"F8_E4M3"`).
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::I8 => "I8",
            DType::I32 => "I32",
            DType::F8E4M3 => "F8_E4M3",
            DType::F8E5M2 => "F8_E5M2",
            DType::U8 => "U8",
            DType::I4 => "I4",
            DType::MxFp4 => "MXFP4",
            DType::Q4_0 => "Q4_0",
            DType::Q4_1 => "Q4_1",
            DType::Q8_0 => "Q8_0",
            DType::Q4K => "Q4_K",
            DType::Q6K => "Q6_K",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
