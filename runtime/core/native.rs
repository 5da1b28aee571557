//! The cpu device's kernel language: Rust functions that read their arguments in order.
//!
//! A native function gets the same arguments in the same order as the entry of the same name in the other languages
//! (see [`crate::plan::Arg`]): each buffer as a slice that begins at the view's first element and ends with its span, each
//! scalar by value. It runs inside the device's `rayon` pool, so parallel iterators use the device's threads. Matrix
//! products come from the device through [`NativeDevice`]. So a native function needs no unsafe code.

use bytemuck::Pod;

use crate::error::{Error, ErrorKind, Result};
use crate::kernel::Config;

/// A kernel entry written in Rust.
pub type NativeFn = for<'a> fn(&mut NativeCall<'a>) -> Result<()>;

/// One argument of a native call.
#[derive(Debug)]
pub enum NativeArg<'a> {
    /// The bytes of a view that is read.
    Read(&'a [u8]),
    /// The bytes of a view that may be written; no other argument of the call overlaps it.
    Write(&'a mut [u8]),
    /// An operand that the caller left out.
    Absent,
    /// An integer scalar of any width.
    Int(i64),
    /// A float scalar.
    Float(f32),
}

impl NativeArg<'_> {
    fn describe(&self) -> &'static str {
        match self {
            NativeArg::Read(_) => "an operand to read",
            NativeArg::Write(_) => "an operand to write",
            NativeArg::Absent => "an absent operand",
            NativeArg::Int(_) => "an integer",
            NativeArg::Float(_) => "a float",
        }
    }
}

/// A matrix of a native call: strides in elements, so that transposes and broadcasts need no copy.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// From row to row.
    pub row_stride: usize,
    /// From column to column.
    pub column_stride: usize,
}

/// What the cpu device offers its native functions.
pub trait NativeDevice: Sync {
    /// Threads of the pool the call runs in.
    fn threads(&self) -> usize;

    /// Asks the processor to bring bytes that will be read soon into its caches: a hint, without effect on any result.
    fn prefetch(&self, _bytes: &[u8]) {}

    /// `d = alpha · a b + beta · d`, with `a` m × k, `b` k × n and `d` m × n row-major with row stride `ldd`; `d` is not
    /// read if `beta` is 0. Uses up to `threads` threads of the pool.
    ///
    /// # Panics
    /// If a matrix leaves its slice.
    #[allow(clippy::too_many_arguments)]
    fn matmul(
        &self,
        m: usize,
        n: usize,
        k: usize,
        alpha: f32,
        a: Matrix<'_, f32>,
        b: Matrix<'_, f32>,
        beta: f32,
        d: &mut [f32],
        ldd: usize,
        threads: usize,
    );
}

/// The arguments and surroundings of one native launch.
pub struct NativeCall<'a> {
    args: std::vec::IntoIter<NativeArg<'a>>,
    position: usize,
    config: &'a Config,
    device: &'a dyn NativeDevice,
    grid: [u64; 3],
}

impl<'a> NativeCall<'a> {
    /// Made by the cpu device for each launch.
    pub fn new(
        args: Vec<NativeArg<'a>>,
        config: &'a Config,
        device: &'a dyn NativeDevice,
        grid: [u64; 3],
    ) -> NativeCall<'a> {
        NativeCall {
            args: args.into_iter(),
            position: 0,
            config,
            device,
            grid,
        }
    }

    /// The constants and dtypes that the plan fixed.
    pub fn config(&self) -> &'a Config {
        self.config
    }

    /// Threads and matrix products.
    pub fn device(&self) -> &'a dyn NativeDevice {
        self.device
    }

    /// The launch's grid, as the plan computed it.
    pub fn grid(&self) -> [u64; 3] {
        self.grid
    }

    fn next(&mut self, wanted: &str) -> Result<NativeArg<'a>> {
        self.position += 1;
        self.args
            .next()
            .ok_or_else(|| self.mismatch("nothing", wanted))
    }

    fn mismatch(&self, found: &str, wanted: &str) -> Error {
        Error::new(
            ErrorKind::LaunchFailed,
            format!(
                "native argument {}: the plan passes {found}, the function reads {wanted}",
                self.position - 1
            ),
        )
    }

    /// The next argument: an operand to read.
    ///
    /// # Errors
    /// `LaunchFailed` if the plan passes something else.
    pub fn read<T: Pod>(&mut self) -> Result<&'a [T]> {
        self.read_optional()?
            .ok_or_else(|| self.mismatch("an absent operand", "an operand"))
    }

    /// The next argument: an operand to read, or none.
    ///
    /// # Errors
    /// `LaunchFailed` if the plan passes something else.
    pub fn read_optional<T: Pod>(&mut self) -> Result<Option<&'a [T]>> {
        match self.next("an operand to read")? {
            NativeArg::Read(bytes) => self.cast(bytemuck::try_cast_slice(bytes)).map(Some),
            NativeArg::Write(bytes) => self.cast(bytemuck::try_cast_slice(&*bytes)).map(Some),
            NativeArg::Absent => Ok(None),
            other => Err(self.mismatch(other.describe(), "an operand to read")),
        }
    }

    /// The next argument: an operand to write.
    ///
    /// # Errors
    /// `LaunchFailed` if the plan passes something else.
    pub fn write<T: Pod>(&mut self) -> Result<&'a mut [T]> {
        self.write_optional()?
            .ok_or_else(|| self.mismatch("an absent operand", "an operand to write"))
    }

    /// The next argument: an operand to write, or none.
    ///
    /// # Errors
    /// `LaunchFailed` if the plan passes something else.
    pub fn write_optional<T: Pod>(&mut self) -> Result<Option<&'a mut [T]>> {
        match self.next("an operand to write")? {
            NativeArg::Write(bytes) => self.cast(bytemuck::try_cast_slice_mut(bytes)).map(Some),
            NativeArg::Absent => Ok(None),
            other => Err(self.mismatch(other.describe(), "an operand to write")),
        }
    }

    /// The next argument: an integer that is never negative.
    ///
    /// # Errors
    /// `LaunchFailed` if the plan passes something else.
    pub fn size(&mut self) -> Result<usize> {
        match self.next("an integer")? {
            NativeArg::Int(value) if value >= 0 => Ok(value as usize),
            other => Err(self.mismatch(other.describe(), "an integer of 0 or more")),
        }
    }

    /// The next argument: an integer.
    ///
    /// # Errors
    /// `LaunchFailed` if the plan passes something else.
    pub fn int(&mut self) -> Result<i64> {
        match self.next("an integer")? {
            NativeArg::Int(value) => Ok(value),
            other => Err(self.mismatch(other.describe(), "an integer")),
        }
    }

    /// The next argument: a float.
    ///
    /// # Errors
    /// `LaunchFailed` if the plan passes something else.
    pub fn float(&mut self) -> Result<f32> {
        match self.next("a float")? {
            NativeArg::Float(value) => Ok(value),
            other => Err(self.mismatch(other.describe(), "a float")),
        }
    }

    /// # Errors
    /// `LaunchFailed` if the element type's size or alignment does not fit the bytes.
    fn cast<S>(&self, cast: std::result::Result<S, bytemuck::PodCastError>) -> Result<S> {
        cast.map_err(|cause| {
            self.mismatch(
                &format!("bytes that do not cast ({cause})"),
                "whole elements",
            )
        })
    }
}
