//! `ldmatrix`, `stmatrix` and `mma.sync`.
//!
//! Fragments, with `g = lane / 4`, `t = lane % 4` and `e` elements a register (ISA, "Matrix Fragments for mma"):
//!
//! ```text
//! A  register r, element j:  row g + 8 (r % 2),  k = 4 e (r / 2) + e t + j
//! B  register r, element j:  k = 4 e r + e t + j,  column g
//! C  element i:              row g + 8 (i / 2),  column 2 t + i % 2
//! ```
//!
//! The ISA leaves the order and rounding of float sums open ("at least single precision"). Here products are exact, their sum with the addend is
//! made in f64 in the order of k, and rounded once; a GPU truncates more. Tests judge both by the same bound.

use std::sync::OnceLock;

use super::cluster::State;
use super::format;
use super::launch::Launch;
use super::report::{Detector, Fault};
use super::shared::Accessor;
use super::warp::Warp;
use super::{LANES, Lanes};
use crate::ptx::instruction::{Address, Element, Mma, Op, Order, Reg, Rounding};

impl Warp {
    pub(super) fn matrix(
        &mut self,
        _launch: &Launch<'_>,
        state: &mut State,
        op: &Op,
        active: u32,
    ) -> Result<(), Box<Fault>> {
        if active != u32::MAX {
            let message =
                format!("lanes {active:#010x} alone execute an instruction of the whole warp");
            return Err(Fault::new(
                Detector::WarpDivergence,
                active.trailing_zeros(),
                message,
            ));
        }
        match op {
            Op::LoadMatrix {
                transposed,
                d,
                address,
            } => self.load_matrix(state, *transposed, d, *address),
            Op::StoreMatrix {
                transposed,
                address,
                values,
            } => self.store_matrix(state, *transposed, *address, values),
            Op::Mma(mma) => {
                self.multiply(mma);
                Ok(())
            }
            Op::Wgmma(product) => self.product(state, product),
            Op::WgmmaFence => {
                self.products.fence();
                Ok(())
            }
            Op::WgmmaCommit => {
                self.products.commit();
                Ok(())
            }
            Op::WgmmaWait { left } => self.wait_for_products(state, *left),
            _ => Ok(()),
        }
    }

    fn row(&self, address: Address, lane: usize) -> (u64, Accessor) {
        (
            self.shared_address(address, lane),
            self.accessor(lane, Order::Weak),
        )
    }

    fn load_matrix(
        &mut self,
        state: &mut State,
        transposed: bool,
        d: &[Reg],
        address: Address,
    ) -> Result<(), Box<Fault>> {
        for (matrix, d) in d.iter().enumerate() {
            let mut elements = [[0_u16; 8]; 8];
            for (row, elements) in elements.iter_mut().enumerate() {
                // Lanes 8 i to 8 i + 7 name the rows of matrix i.
                let (at, by) = self.row(address, matrix * 8 + row);
                let ((shared, clocks), at) = state.shared(self.rank, at, by.lane() as usize)?;
                let at = shared.check_read(at, 16, 16, by, clocks)?;
                for (column, element) in elements.iter_mut().enumerate() {
                    *element = shared.load(at + 2 * column, 2) as u16;
                }
            }
            let value: Lanes = std::array::from_fn(|lane| {
                let (g, t) = (lane / 4, lane % 4);
                let pick = |j: usize| {
                    if transposed {
                        elements[2 * t + j][g]
                    } else {
                        elements[g][2 * t + j]
                    }
                };
                u64::from(pick(0)) | u64::from(pick(1)) << 16
            });
            self.write(*d, u32::MAX, &value);
        }
        Ok(())
    }

    fn store_matrix(
        &mut self,
        state: &mut State,
        transposed: bool,
        address: Address,
        values: &[Reg],
    ) -> Result<(), Box<Fault>> {
        for (matrix, register) in values.iter().enumerate() {
            let value = self.register(*register);
            let mut elements = [[0_u8; 16]; 8];
            for (lane, value) in value.iter().enumerate() {
                let (g, t) = (lane / 4, lane % 4);
                for j in 0..2 {
                    let (row, column) = if transposed {
                        (2 * t + j, g)
                    } else {
                        (g, 2 * t + j)
                    };
                    let half = (*value >> (16 * j)) as u16;
                    elements[row][2 * column..2 * column + 2].copy_from_slice(&half.to_le_bytes());
                }
            }
            for (row, elements) in elements.iter().enumerate() {
                let (at, by) = self.row(address, matrix * 8 + row);
                let ((shared, clocks), at) = state.shared(self.rank, at, by.lane() as usize)?;
                let at = shared.check_write(at, elements, 16, by, clocks)?;
                for (index, byte) in elements.iter().enumerate() {
                    shared.store(at + index, 1, u64::from(*byte));
                }
            }
        }
        Ok(())
    }

    fn multiply(&mut self, mma: &Mma) {
        if mma.d_type == Element::S32 {
            return self.multiply_integers(mma);
        }
        // The common types without a call for each element.
        let (a, b) = match (mma.a_type, mma.b_type) {
            (Element::Bf16, Element::Bf16) => {
                let widen = |bits: u32| f64::from(f32::from_bits(bits << 16));
                self.fragments(mma, widen, widen, 0.0)
            }
            (Element::F16, Element::F16) => {
                let table = half_table();
                let widen = |bits: u32| f64::from(table[bits as usize & 0xFFFF]);
                self.fragments(mma, widen, widen, 0.0)
            }
            (a, b) => self.fragments(mma, widen(a), widen(b), 0.0),
        };
        let c = |register: usize, lane: usize| self.register(mma.c[register])[lane];
        let k = usize::from(mma.k);
        let mut result = [[0_u64; LANES]; 4];
        for g in 0..16 {
            let mut sums = [0_f64; 8];
            for (a, b) in a[g][..k].iter().zip(&b) {
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum += a * b;
                }
            }
            for (column, sum) in sums.iter().enumerate() {
                let (lane, i) = (g % 8 * 4 + column / 2, g / 8 * 2 + column % 2);
                let halves = mma.c_type == Element::F16;
                let addend = if halves {
                    format::F16.widen((c(i / 2, lane) >> (16 * (i % 2))) as u32 & 0xFFFF)
                } else {
                    f64::from(f32::from_bits(c(i, lane) as u32))
                };
                let sum = sum + addend;
                if mma.d_type == Element::F16 {
                    let bits = format::F16.round(sum, Rounding::NearestEven, false);
                    result[i / 2][lane] |= u64::from(bits) << (16 * (i % 2));
                } else {
                    let sum = sum as f32;
                    result[i][lane] = u64::from(if sum.is_nan() {
                        0x7FFF_FFFF
                    } else {
                        sum.to_bits()
                    });
                }
            }
        }
        for (d, value) in mma.d.iter().zip(&result) {
            self.write(*d, u32::MAX, value);
        }
    }

    fn multiply_integers(&mut self, mma: &Mma) {
        let byte = |ty: Element| {
            move |bits: u32| {
                if ty == Element::S8 {
                    i64::from(bits as u8 as i8)
                } else {
                    i64::from(bits as u8)
                }
            }
        };
        let (a, b) = self.fragments(mma, byte(mma.a_type), byte(mma.b_type), 0_i64);
        let mut result = [[0_u64; LANES]; 4];
        for (g, a) in a.iter().enumerate() {
            for column in 0..8 {
                let (lane, i) = (g % 8 * 4 + column / 2, g / 8 * 2 + column % 2);
                let sum: i64 = a.iter().zip(&b).map(|(a, b)| a * b[column]).sum();
                let sum = sum + i64::from(self.register(mma.c[i])[lane] as i32);
                let sum = if mma.saturate {
                    sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX))
                } else {
                    sum
                };
                result[i][lane] = u64::from(sum as u32);
            }
        }
        for (d, value) in mma.d.iter().zip(&result) {
            self.write(*d, u32::MAX, value);
        }
    }

    /// A (16 x k) and B (k x 8), gathered from the lanes' registers.
    fn fragments<T: Copy>(
        &self,
        mma: &Mma,
        widen_a: impl Fn(u32) -> T,
        widen_b: impl Fn(u32) -> T,
        zero: T,
    ) -> ([[T; 32]; 16], [[T; 8]; 32]) {
        let bits = match mma.a_type {
            Element::F16 | Element::Bf16 => 16,
            Element::Tf32 => 32,
            _ => 8,
        };
        let each = 32 / bits;
        let mask = u64::MAX >> (64 - bits);
        let mut a = [[zero; 32]; 16];
        let mut b = [[zero; 8]; 32];
        for (r, register) in mma.a.iter().enumerate() {
            for (lane, value) in self.register(*register).iter().enumerate() {
                for j in 0..each {
                    let k = 4 * each * (r / 2) + each * (lane % 4) + j;
                    a[lane / 4 + 8 * (r % 2)][k] = widen_a((value >> (bits * j) & mask) as u32);
                }
            }
        }
        for (r, register) in mma.b.iter().enumerate() {
            for (lane, value) in self.register(*register).iter().enumerate() {
                for j in 0..each {
                    let k = 4 * each * r + each * (lane % 4) + j;
                    b[k][lane / 4] = widen_b((value >> (bits * j) & mask) as u32);
                }
            }
        }
        (a, b)
    }
}

/// How elements widen to f64.
pub(super) fn widen(ty: Element) -> fn(u32) -> f64 {
    match ty {
        Element::F16 => |bits| f64::from(half_table()[bits as usize & 0xFFFF]),
        Element::Bf16 => |bits| f64::from(f32::from_bits(bits << 16)),
        // The unit reads the upper 19 bits.
        Element::Tf32 => |bits| f64::from(f32::from_bits(bits & 0xFFFF_E000)),
        Element::E4m3 => |bits| format::E4M3.widen(bits),
        Element::E5m2 => |bits| format::E5M2.widen(bits),
        _ => |bits| f64::from(f32::from_bits(bits)),
    }
}

fn half_table() -> &'static [f32] {
    static TABLE: OnceLock<Vec<f32>> = OnceLock::new();
    TABLE.get_or_init(|| {
        (0..=0xFFFF)
            .map(|bits| format::F16.widen(bits) as f32)
            .collect()
    })
}
