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
}

impl DType {
    /// Every dtype, in the order of [`DType::code`].
    pub const ALL: [DType; 10] = [
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
        }
    }

    /// Bytes of one element, or `None` where an element has no address of its own.
    pub const fn size(self) -> Option<u64> {
        match self {
            DType::F32 | DType::I32 => Some(4),
            DType::F16 | DType::BF16 => Some(2),
            DType::I8 | DType::U8 | DType::F8E4M3 | DType::F8E5M2 => Some(1),
            DType::I4 | DType::MxFp4 => None,
        }
    }

    /// True for floating-point types.
    pub const fn is_float(self) -> bool {
        !matches!(self, DType::I8 | DType::I32 | DType::U8 | DType::I4)
    }

    /// The unit roundoff u (half the distance from 1 to the next number), or 0 for integers.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            DType::F32 => 2f64.powi(-24),
            DType::F16 => 2f64.powi(-11),
            DType::BF16 => 2f64.powi(-8),
            DType::F8E4M3 => 2f64.powi(-4),
            DType::F8E5M2 => 2f64.powi(-3),
            DType::MxFp4 => 2f64.powi(-2),
            DType::I8 | DType::I32 | DType::U8 | DType::I4 => 0.0,
        }
    }

    /// The smallest positive subnormal number, or 0 for integers.
    pub fn smallest_subnormal(self) -> f64 {
        match self {
            DType::F32 => 2f64.powi(-149),
            DType::F16 => 2f64.powi(-24),
            DType::BF16 => 2f64.powi(-133),
            DType::F8E4M3 => 2f64.powi(-9),
            DType::F8E5M2 => 2f64.powi(-16),
            DType::MxFp4 => 2f64.powi(-128),
            DType::I8 | DType::I32 | DType::U8 | DType::I4 => 0.0,
        }
    }

    /// The smallest positive normal number, or 0 for integers.
    pub fn smallest_normal(self) -> f64 {
        match self {
            DType::F32 | DType::BF16 => 2f64.powi(-126),
            DType::F16 => 2f64.powi(-14),
            DType::F8E4M3 => 2f64.powi(-6),
            DType::F8E5M2 => 2f64.powi(-14),
            DType::MxFp4 => 2f64.powi(-127),
            DType::I8 | DType::I32 | DType::U8 | DType::I4 => 0.0,
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
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
