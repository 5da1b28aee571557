//! The cpu device's functions. Each takes the arguments of the OpenCL kernel of its name.

use half::{bf16, f16};
use ropeway_core::native::NativeCall;
use ropeway_core::{DType, Error, Result};

mod map;
mod rows;
mod sort;

pub(super) use map::map;
pub(super) use rows::{norm, rope, softmax};
pub(super) use sort::argsort;

/// A tensor's elements, in the dtype that the plan fixed.
#[derive(Clone, Copy)]
enum Elements<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
    I32(&'a [i32]),
}

impl<'a> Elements<'a> {
    /// The next argument.
    fn read(call: &mut NativeCall<'a>, dtype: &str) -> Result<Elements<'a>> {
        Elements::read_optional(call, dtype)?
            .ok_or_else(|| Error::invalid(dtype, "an absent operand", "an operand"))
    }

    /// The next argument, or none.
    fn read_optional(call: &mut NativeCall<'a>, dtype: &str) -> Result<Option<Elements<'a>>> {
        Ok(match fixed(call, dtype)? {
            DType::F32 => call.read_optional()?.map(Elements::F32),
            DType::F16 => call.read_optional()?.map(Elements::F16),
            DType::BF16 => call.read_optional()?.map(Elements::BF16),
            DType::I32 => call.read_optional()?.map(Elements::I32),
            other => return Err(Error::invalid(dtype, other, "F32, F16, BF16 or I32")),
        })
    }

    #[inline(always)]
    fn at(self, i: usize) -> f32 {
        match self {
            Elements::F32(x) => x[i],
            Elements::F16(x) => x[i].to_f32(),
            Elements::BF16(x) => x[i].to_f32(),
            Elements::I32(x) => x[i] as f32,
        }
    }

    /// `to[i]` = the element `i · stride` past `from`.
    fn widen(self, from: usize, stride: usize, to: &mut [f32]) {
        let n = to.len();
        match self {
            _ if n == 0 => {}
            Elements::F32(x) if stride == 1 => to.copy_from_slice(&x[from..from + n]),
            Elements::F16(x) if stride == 1 => crate::convert::widen_f16(&x[from..from + n], to),
            Elements::BF16(x) if stride == 1 => crate::convert::widen(&x[from..from + n], to),
            _ => {
                for (i, to) in to.iter_mut().enumerate() {
                    *to = self.at(from + i * stride);
                }
            }
        }
    }
}

/// A tensor that is written, in pieces that threads take by turns.
enum Target<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [f16]),
    BF16(&'a mut [bf16]),
    I32(&'a mut [i32]),
}

impl<'a> Target<'a> {
    /// The next argument.
    fn write(call: &mut NativeCall<'a>, dtype: &str) -> Result<Target<'a>> {
        Ok(match fixed(call, dtype)? {
            DType::F32 => Target::F32(call.write()?),
            DType::F16 => Target::F16(call.write()?),
            DType::BF16 => Target::BF16(call.write()?),
            DType::I32 => Target::I32(call.write()?),
            other => return Err(Error::invalid(dtype, other, "F32, F16, BF16 or I32")),
        })
    }

    fn len(&self) -> usize {
        match self {
            Target::F32(d) => d.len(),
            Target::F16(d) => d.len(),
            Target::BF16(d) => d.len(),
            Target::I32(d) => d.len(),
        }
    }

    fn split_at(self, at: usize) -> (Target<'a>, Target<'a>) {
        macro_rules! halves {
            ($($kind:ident),*) => {
                match self {
                    $(Target::$kind(d) => {
                        let (first, second) = d.split_at_mut(at);
                        (Target::$kind(first), Target::$kind(second))
                    })*
                }
            };
        }
        halves!(F32, F16, BF16, I32)
    }

    fn set(&mut self, i: usize, value: f32) {
        match self {
            Target::F32(d) => d[i] = value,
            Target::F16(d) => d[i] = f16::from_f32(value),
            Target::BF16(d) => d[i] = bf16::from_f32(value),
            // Rust's cast cuts off, saturates and makes 0 of NaN.
            Target::I32(d) => d[i] = value as i32,
        }
    }

    /// Element `i · stride` past `at` = `from[i]`, rounded to nearest even.
    fn narrow(&mut self, at: usize, stride: usize, from: &[f32]) {
        let n = from.len();
        match self {
            _ if n == 0 => {}
            Target::F32(d) if stride == 1 => d[at..at + n].copy_from_slice(from),
            Target::F16(d) if stride == 1 => crate::convert::narrow_f16(from, &mut d[at..at + n]),
            Target::BF16(d) if stride == 1 => crate::convert::narrow_bf16(from, &mut d[at..at + n]),
            _ => {
                for (i, &value) in from.iter().enumerate() {
                    self.set(at + i * stride, value);
                }
            }
        }
    }
}

fn fixed(call: &NativeCall<'_>, name: &str) -> Result<DType> {
    let dtype = call.config().dtype(name);
    dtype.ok_or_else(|| Error::invalid(name, "nothing", "a dtype"))
}

/// The next `N` sizes.
fn sizes<const N: usize>(call: &mut NativeCall<'_>) -> Result<[usize; N]> {
    let mut found = [0; N];
    for size in &mut found {
        *size = call.size()?;
    }
    Ok(found)
}

/// A row's place: its indices along the second, third and fourth axis from the last.
#[derive(Clone, Copy)]
struct Place([usize; 3]);

impl Place {
    fn of(row: usize, n: [usize; 4]) -> Place {
        let [_, n1, n2, _] = n;
        Place([row % n1, row / n1 % n2, row / n1 / n2])
    }

    /// The first element of the row.
    fn at(self, strides: [usize; 4]) -> usize {
        self.0.iter().zip(&strides[1..]).map(|(i, s)| i * s).sum()
    }

    /// The same where axes of these extents are repeated.
    fn repeated_at(self, extents: [usize; 3], strides: [usize; 4]) -> usize {
        let axes = self.0.iter().zip(extents).zip(&strides[1..]);
        axes.map(|((i, n), s)| i % n.max(1) * s).sum()
    }
}

/// Rows below which a piece of work is not worth a thread, in elements.
const LEAST_WORK: usize = 8192;

/// Calls `work` with each row's number and its part of `d`, on the device's threads where rows lie apart in the order of their numbers,
/// else one after the other.
fn for_each_row(
    d: Target<'_>,
    n: [usize; 4],
    strides: [usize; 4],
    work: impl Fn(usize, &mut Target<'_>, usize) + Sync,
) {
    let rows = n[1] * n[2] * n[3];
    if n[0] == 0 || rows == 0 {
        return;
    }
    let begin = |row: usize| Place::of(row, n).at(strides);
    let span = (n[0] - 1) * strides[0] + 1;
    // Row-major with gaps: each axis steps over what is inside it.
    let mut reach = span;
    let mut apart = true;
    for axis in 1..4 {
        if n[axis] > 1 {
            apart &= strides[axis] >= reach;
            reach += (n[axis] - 1) * strides[axis];
        }
    }
    if !apart {
        let mut d = d;
        for row in 0..rows {
            work(row, &mut d, begin(row));
        }
        return;
    }
    divide(d, 0, 0..rows, n[0], &begin, &work);
}

/// Halves the rows until a piece is small; `d` begins at element `first` of the tensor.
fn divide(
    mut d: Target<'_>,
    first: usize,
    rows: std::ops::Range<usize>,
    columns: usize,
    begin: &(impl Fn(usize) -> usize + Sync),
    work: &(impl Fn(usize, &mut Target<'_>, usize) + Sync),
) {
    if rows.len() < 2 || rows.len() * columns <= LEAST_WORK {
        for row in rows {
            work(row, &mut d, begin(row) - first);
        }
        return;
    }
    let middle = rows.start + rows.len() / 2;
    let cut = begin(middle);
    debug_assert!(cut - first <= d.len());
    let (low, high) = d.split_at(cut - first);
    rayon::join(
        || divide(low, first, rows.start..middle, columns, begin, work),
        || divide(high, cut, middle..rows.end, columns, begin, work),
    );
}
