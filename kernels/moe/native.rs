//! The cpu device's functions. Each takes the arguments of the OpenCL kernel of its name.

use bytemuck::Pod;
use half::{bf16, f16};
use ropeway_core::Result;
use ropeway_core::native::NativeCall;

use crate::convert::{self, Widen};

mod experts;
mod route;
mod rows;

pub(super) use experts::moe_experts;
pub(super) use route::moe_route;
pub(super) use rows::{expert_combine, expert_invert, expert_permute, expert_scatter};

/// A float type that tensors are stored in.
trait Element: Pod + Send + Sync + Widen {
    /// `to[i] = from[i]` in f32.
    fn widen(from: &[Self], to: &mut [f32]);
    /// `to[i] = from[i]`, rounded to nearest even.
    fn narrow(from: &[f32], to: &mut [Self]);
}

impl Element for f32 {
    fn widen(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
    fn narrow(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Element for f16 {
    fn widen(from: &[f16], to: &mut [f32]) {
        convert::widen_f16(from, to);
    }
    fn narrow(from: &[f32], to: &mut [f16]) {
        convert::narrow_f16(from, to);
    }
}

impl Element for bf16 {
    fn widen(from: &[bf16], to: &mut [f32]) {
        convert::widen(from, to);
    }
    fn narrow(from: &[f32], to: &mut [bf16]) {
        convert::narrow_bf16(from, to);
    }
}

/// Calls a function generic over [`Element`] with the type that the plan fixed under this name.
macro_rules! with_element {
    ($call:expr, $name:literal, $function:ident) => {
        match $call.config().dtype($name) {
            Some(ropeway_core::DType::F32) => $function::<f32>($call),
            Some(ropeway_core::DType::F16) => $function::<half::f16>($call),
            Some(ropeway_core::DType::BF16) => $function::<half::bf16>($call),
            other => Err(ropeway_core::Error::invalid(
                $name,
                format!("{other:?}"),
                "F32, F16 or BF16",
            )),
        }
    };
}
use with_element;

/// The next `N` sizes.
fn sizes<const N: usize>(call: &mut NativeCall<'_>) -> Result<[usize; N]> {
    let mut found = [0; N];
    for size in &mut found {
        *size = call.size()?;
    }
    Ok(found)
}
