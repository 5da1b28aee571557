//! The cpu device's functions. Each takes the arguments of the OpenCL kernel of its name.

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use ropeway_core::Result;
use ropeway_core::native::NativeCall;

mod experts;
mod route;
mod rows;

pub(super) use experts::moe_experts;
pub(super) use route::moe_route;
pub(super) use rows::{expert_combine, expert_invert, expert_permute, expert_scatter};

/// A float type that tensors are stored in.
trait Element: Pod + Send + Sync {
    fn get(self) -> f32;
    /// `to[i] = from[i]` in f32.
    fn widen(from: &[Self], to: &mut [f32]);
    /// `to[i] = from[i]`, rounded to nearest even.
    fn narrow(from: &[f32], to: &mut [Self]);
    /// The same numbers in f32: themselves, or widened into `scratch`.
    fn wide<'a>(from: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.resize(from.len(), 0.0);
        Self::widen(from, scratch);
        scratch
    }
}

impl Element for f32 {
    fn get(self) -> f32 {
        self
    }
    fn widen(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
    fn narrow(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
    fn wide<'a>(from: &'a [f32], _: &'a mut Vec<f32>) -> &'a [f32] {
        from
    }
}

impl Element for f16 {
    fn get(self) -> f32 {
        self.to_f32()
    }
    fn widen(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
    fn narrow(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
    }
}

impl Element for bf16 {
    fn get(self) -> f32 {
        self.to_f32()
    }
    fn widen(from: &[bf16], to: &mut [f32]) {
        for (wide, narrow) in to.iter_mut().zip(from) {
            *wide = f32::from_bits(u32::from(narrow.to_bits()) << 16);
        }
    }
    fn narrow(from: &[f32], to: &mut [bf16]) {
        to.convert_from_f32_slice(from);
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
