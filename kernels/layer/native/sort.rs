//! The order of each row's elements.

use ropeway_core::Result;
use ropeway_core::native::NativeCall;

use super::{Elements, Place, Target, for_each_row, sizes};

/// The arguments of `argsort.cl` without what divides the work.
pub(in crate::layer) fn argsort(call: &mut NativeCall<'_>) -> Result<()> {
    let x = Elements::read(call, "X_DTYPE")?;
    let d = Target::I32(call.write()?);
    let n: [usize; 4] = sizes(call)?;
    let x_strides: [usize; 4] = sizes(call)?;
    let d_strides: [usize; 4] = sizes(call)?;
    let [keep, descending] = sizes(call)?;
    for_each_row(d, [keep, n[1], n[2], n[3]], d_strides, |row, d, at| {
        let from = Place::of(row, n).at(x_strides);
        let mut order: Vec<(u32, u32)> = (0..n[0])
            .map(|i| {
                (
                    key(x.at(from + i * x_strides[0]), descending == 1),
                    i as u32,
                )
            })
            .collect();
        if keep < order.len() && keep > 0 {
            order.select_nth_unstable(keep - 1);
            order.truncate(keep);
        }
        order.sort_unstable();
        if let Target::I32(d) = d {
            for (place, (_, index)) in order.into_iter().enumerate() {
                d[at + place * d_strides[0]] = index as i32;
            }
        }
    });
    Ok(())
}

/// Orders as the number does, NaN last. −0 is 0.
fn key(x: f32, descending: bool) -> u32 {
    if x.is_nan() {
        return u32::MAX;
    }
    let bits = if x == 0.0 { 0 } else { x.to_bits() };
    let ascending = if bits >> 31 == 0 {
        bits | 1 << 31
    } else {
        !bits
    };
    if descending { !ascending } else { ascending }
}
