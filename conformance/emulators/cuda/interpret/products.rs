//! `wgmma`: products of a warpgroup, whose warps each have 16 of the 64 rows.
//!
//! ```text
//! D  element i:  row 16 w + g + 8 (i / 2 % 2),  column 8 (i / 4) + 2 t + i % 2     (w = warp % 4, g = lane / 4, t = lane % 4)
//! ```
//!
//! A in registers is as for `mma.m16n8k16` (k32). In shared memory an operand is made of atoms of 8 lines, as wide as the swizzle (ISA, "Strides", and
//! "Matrix Descriptor Format"); `lines` are rows of A or columns of B:
//!
//! ```text
//! along k   line l, byte b of k:   l / 8 * stride + l % 8 * width + b                      (no swizzle: l / 8 * stride + b / 16 * leading + l % 8 * 16 + b % 16)
//! across k  byte b of lines, k:    b / width * leading + k / 8 * stride + k % 8 * width + b % width       (no swizzle: the strides change places)
//! ```
//!
//! Products read shared memory until `wgmma.wait_group`, and their sums are nobody's until then: what they come to is kept aside, registers that
//! hold such a sum know its place, and `mov` hands it on, as compilers do with registers that the instruction reads and writes.
//! How sums are rounded: see `matrix`.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use super::cluster::State;
use super::format;
use super::matrix::widen;
use super::report::{Detector, Fault};
use super::tensor::swizzled;
use super::warp::Warp;
use super::{LANES, Lanes, lanes_of};
use crate::ptx::instruction::{Element, Factor, Instruction, Op, Order, Reg, Rounding, Wgmma};
use crate::ptx::operands::Operands;

/// Shared memory of a block ends before.
const ADDRESSES: u64 = 1 << 18;

/// A product that has not been waited for.
#[derive(Debug, Default)]
struct InFlight {
    /// Chunks of 16 bytes that it reads.
    reads: Vec<u32>,
    /// Where its sums are kept.
    sums: Range<usize>,
    /// Registers of its first factor.
    factor: Box<[Reg]>,
}

/// The products of a warp.
#[derive(Debug, Default)]
pub(super) struct Products {
    /// Whether registers are ordered for the next product.
    fenced: bool,
    open: Vec<InFlight>,
    groups: VecDeque<Vec<InFlight>>,
    /// Sums in flight, and which registers hold them.
    sums: Vec<Lanes>,
    holders: HashMap<Reg, usize>,
    /// How many products in flight read a register.
    factors: HashMap<Reg, u32>,
}

impl Products {
    #[inline]
    pub(super) fn are_in_flight(&self) -> bool {
        !self.sums.is_empty()
    }

    pub(super) fn fence(&mut self) {
        self.fenced = true;
    }

    pub(super) fn commit(&mut self) {
        self.groups.push_back(std::mem::take(&mut self.open));
    }
}

/// Where an operand lies in shared memory, out of its descriptor.
#[derive(Clone, Copy)]
struct Operand {
    start: u64,
    leading: u64,
    stride: u64,
    /// Bytes of a swizzled row: 128, 64, 32, or 0.
    swizzle: u8,
    across: bool,
    /// Bytes of an element.
    element: u64,
}

impl Operand {
    fn new(descriptor: u64, across: bool, element: u64) -> Result<Operand, String> {
        let field = |at: u32| (descriptor >> at & 0x3FFF) << 4;
        if descriptor >> 49 & 7 != 0 {
            return Err("a base offset is not accepted: atoms begin where the swizzle does".into());
        }
        Ok(Operand {
            start: field(0),
            leading: field(16),
            stride: field(32),
            swizzle: match descriptor >> 62 {
                0 => 0,
                1 => 128,
                2 => 64,
                _ => 32,
            },
            across,
            element,
        })
    }

    /// Addresses of the chunks of 16 bytes in which k and lines lie: `(line, k)` of the first element, address.
    fn chunks(&self, lines: Range<u64>, k: u64, mut f: impl FnMut(u64, u64, u64)) {
        let each = 16 / self.element;
        let width = u64::from(self.swizzle.max(16));
        let mut at = |line: u64, k: u64| {
            let place = if self.across {
                let byte = line * self.element;
                let (leading, stride) = match self.swizzle {
                    0 => (self.stride, self.leading),
                    _ => (self.leading, self.stride),
                };
                byte / width * leading + k / 8 * stride + k % 8 * width + byte % width
            } else {
                let byte = k * self.element;
                let (further, byte) = match self.swizzle {
                    0 => (byte / 16 * self.leading, byte % 16),
                    _ => (0, byte),
                };
                line / 8 * self.stride + further + line % 8 * width + byte
            };
            let address = (self.start + place) % ADDRESSES;
            f(line, k, swizzled(self.swizzle, address));
        };
        if self.across {
            for k in 0..k {
                for line in lines.clone().step_by(each as usize) {
                    at(line, k);
                }
            }
        } else {
            for line in lines {
                for k in (0..k).step_by(each as usize) {
                    at(line, k);
                }
            }
        }
    }
}

fn bytes_of(element: Element) -> u64 {
    match element {
        Element::F16 | Element::Bf16 => 2,
        Element::Tf32 => 4,
        _ => 1,
    }
}

/// How elements widen to f64, integers too.
fn widened(element: Element) -> fn(u32) -> f64 {
    match element {
        Element::S8 => |bits| f64::from(bits as u8 as i8),
        Element::U8 => |bits| f64::from(bits as u8),
        other => widen(other),
    }
}

impl Warp {
    /// Whether an instruction leaves alone what products in flight have in registers; `mov` of a sum hands it on.
    pub(super) fn check_in_flight(
        &mut self,
        instruction: &Instruction,
        operands: &Operands,
        active: u32,
    ) -> Result<(), Box<Fault>> {
        let fault = |what: &str| {
            Err(Fault::new(
                Detector::Engine,
                active.trailing_zeros(),
                format!("{what} before wgmma.wait_group"),
            ))
        };
        let products = &mut self.products;
        if let Op::Move { d, a } = instruction.op {
            let held = products.holders.get(&a).copied();
            match held {
                Some(sum) => products.holders.insert(d, sum),
                None => products.holders.remove(&d),
            };
            return Ok(());
        }
        if let Op::Wgmma(product) = &instruction.op {
            let factor = match &product.a {
                Factor::Registers(a) => &a[..],
                Factor::Shared(_) => &[],
            };
            if factor.iter().any(|a| products.holders.contains_key(a)) {
                return fault("a sum of a product is the factor of another");
            }
        }
        if operands
            .reads
            .iter()
            .any(|read| products.holders.contains_key(read))
        {
            return fault("a sum of a product is read");
        }
        for written in &operands.writes {
            if products.holders.contains_key(written) {
                return fault("a sum of a product is written");
            }
            if products.factors.contains_key(written) {
                return fault("a factor of a product is written");
            }
        }
        Ok(())
    }

    /// `wgmma.mma_async`, as far as it is this warp's: 16 rows.
    pub(super) fn product(&mut self, state: &mut State, product: &Wgmma) -> Result<(), Box<Fault>> {
        let fault = |message: String| Err(Fault::new(Detector::Engine, 0, message));
        if !self.products.fenced {
            return fault("a product before wgmma.fence: its registers are not ordered".into());
        }
        let (n, k) = (usize::from(product.n), usize::from(product.k));
        let mut reads = Vec::new();
        // k by lines.
        let mut a = [[0_f64; 16]; 32];
        let mut b = vec![0_f64; k * n];
        let mut factor: Box<[Reg]> = Box::default();
        match &product.a {
            Factor::Registers(registers) => {
                factor = registers.clone();
                let bits = 8 * bytes_of(product.a_type) as u32;
                let each = (32 / bits) as usize;
                let widen = widened(product.a_type);
                for (r, register) in registers.iter().enumerate() {
                    for (lane, value) in self.register(*register).iter().enumerate() {
                        for j in 0..each {
                            let k = 4 * each * (r / 2) + each * (lane % 4) + j;
                            let value = value >> (bits * j as u32) & (u64::MAX >> (64 - bits));
                            a[k][lane / 4 + 8 * (r % 2)] = widen(value as u32);
                        }
                    }
                }
            }
            Factor::Shared(descriptor) => {
                let first = u64::from(self.number % 4) * 16;
                let lines = first..first + 16;
                let side = (*descriptor, product.a_type, product.across[0]);
                self.read_factor(
                    state,
                    side,
                    lines,
                    k as u64,
                    &mut reads,
                    |line, k, value| {
                        a[k as usize][(line - first) as usize] = value;
                    },
                )?;
            }
        }
        let side = (product.b, product.b_type, product.across[1]);
        self.read_factor(
            state,
            side,
            0..n as u64,
            k as u64,
            &mut reads,
            |line, k, value| {
                b[k as usize * n + line as usize] = value;
            },
        )?;
        let sign = if product.negate[0] != product.negate[1] {
            -1.0
        } else {
            1.0
        };
        let accumulates = self.predicate(product.accumulate) & 1 == 1;
        let mut sums = vec![[0_u64; LANES]; product.d.len()];
        let mut row = vec![0_f64; n];
        let halves = product.d_type == Element::F16;
        for line in 0..16 {
            row.fill(0.0);
            for (a, b) in a[..k].iter().zip(b.chunks_exact(n)) {
                let a = sign * a[line];
                for (sum, b) in row.iter_mut().zip(b) {
                    *sum += a * b;
                }
            }
            for (column, sum) in row.iter().enumerate() {
                let lane = line % 8 * 4 + column % 8 / 2;
                let i = column / 8 * 4 + line / 8 * 2 + column % 2;
                let at = if halves { i / 2 } else { i };
                let addend = match accumulates {
                    true => self.sum(product.d[at])[lane],
                    false => 0,
                };
                match product.d_type {
                    Element::F16 => {
                        let shift = 16 * (i % 2);
                        let addend = format::F16.widen((addend >> shift) as u32 & 0xFFFF);
                        let bits = format::F16.round(sum + addend, Rounding::NearestEven, false);
                        sums[at][lane] |= u64::from(bits) << shift;
                    }
                    Element::S32 => {
                        let sum = *sum as i64 + i64::from(addend as i32);
                        let sum = match product.saturate {
                            true => sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX)),
                            false => sum,
                        };
                        sums[at][lane] = u64::from(sum as u32);
                    }
                    _ => {
                        let sum = (sum + f64::from(f32::from_bits(addend as u32))) as f32;
                        sums[at][lane] = u64::from(match sum.is_nan() {
                            true => 0x7FFF_FFFF,
                            false => sum.to_bits(),
                        });
                    }
                }
            }
        }
        self.begin_product(product, factor, reads, sums);
        Ok(())
    }

    /// What a register holds, or will when its product is done.
    fn sum(&self, register: Reg) -> &Lanes {
        match self.products.holders.get(&register) {
            Some(&sum) => &self.products.sums[sum],
            None => self.register(register),
        }
    }

    fn begin_product(
        &mut self,
        product: &Wgmma,
        factor: Box<[Reg]>,
        reads: Vec<u32>,
        sums: Vec<Lanes>,
    ) {
        let products = &mut self.products;
        let first = products.sums.len();
        products.sums.extend(sums);
        for (index, register) in product.d.iter().enumerate() {
            products.holders.insert(*register, first + index);
        }
        for register in &factor {
            *products.factors.entry(*register).or_default() += 1;
        }
        products.open.push(InFlight {
            reads,
            sums: first..first + product.d.len(),
            factor,
        });
        for register in &product.d {
            // NaN, for who would get hold of it.
            self.registers[*register as usize] = [0x7FFF_DEAD; LANES];
        }
    }

    /// Reads an operand in shared memory, which it begins to: `f` gets line, k and value of each element.
    fn read_factor(
        &mut self,
        state: &mut State,
        (descriptor, element, across): (Reg, Element, bool),
        lines: Range<u64>,
        k: u64,
        reads: &mut Vec<u32>,
        mut f: impl FnMut(u64, u64, f64),
    ) -> Result<(), Box<Fault>> {
        let lanes = self.register(descriptor);
        if let Some(lane) = lanes_of(u32::MAX).find(|&lane| lanes[lane] != lanes[0]) {
            let message = "lanes of a warp give different descriptors";
            return Err(Fault::new(Detector::WarpDivergence, lane as u32, message));
        }
        let bytes = bytes_of(element);
        let operand = Operand::new(lanes[0], across, bytes)
            .map_err(|message| Fault::new(Detector::Trap, 0, message))?;
        let by = self.accessor(0, Order::Weak);
        let State { blocks, clocks, .. } = state;
        let shared = &mut blocks[self.rank].shared;
        let widen = widened(element);
        let mut found = Ok(());
        operand.chunks(lines, k, |line, k, address| {
            if found.is_err() {
                return;
            }
            match shared.begin_engine_read(address, 16, 16, by, clocks) {
                Ok(at) => {
                    reads.push(at as u32);
                    let chunk = shared.bytes_at(at, 16).chunks_exact(bytes as usize);
                    for (index, value) in chunk.enumerate() {
                        let mut bits = [0; 4];
                        bits[..value.len()].copy_from_slice(value);
                        let (line, k) = match across {
                            true => (line + index as u64, k),
                            false => (line, k + index as u64),
                        };
                        f(line, k, widen(u32::from_le_bytes(bits)));
                    }
                }
                Err(fault) => found = Err(fault),
            }
        });
        found
    }

    /// `wgmma.wait_group`: the products of all groups but the last ones are done.
    pub(super) fn wait_for_products(
        &mut self,
        state: &mut State,
        left: u32,
    ) -> Result<(), Box<Fault>> {
        if !self.products.open.is_empty() {
            let message = "wgmma.wait_group with products that no wgmma.commit_group closed";
            return Err(Fault::new(Detector::Engine, 0, message));
        }
        let by = self.accessor(0, Order::Weak);
        let State { blocks, clocks, .. } = state;
        let shared = &mut blocks[self.rank].shared;
        let mut done = 0;
        while self.products.groups.len() > left as usize {
            for product in self.products.groups.pop_front().unwrap_or_default() {
                for read in product.reads {
                    shared.end_engine_read(read as usize, 16, by, clocks);
                }
                for register in &product.factor {
                    if let Some(count) = self.products.factors.get_mut(register) {
                        *count -= 1;
                        if *count == 0 {
                            self.products.factors.remove(register);
                        }
                    }
                }
                done = done.max(product.sums.end);
            }
        }
        let Products { sums, holders, .. } = &mut self.products;
        let registers = &mut self.registers;
        holders.retain(|register, sum| {
            let is_done = *sum < done;
            if is_done {
                registers[*register as usize] = sums[*sum];
            }
            !is_done
        });
        if self.products.groups.is_empty() {
            self.products.sums.clear();
            self.products.fenced = false;
        }
        Ok(())
    }
}
