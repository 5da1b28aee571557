//! Loads, stores, atomic operations, asynchronous copies, addresses.

use super::{Decoder, Operand, Result};
use crate::ptx::builder::type_bits;
use crate::ptx::instruction::{AtomicOp, AtomicType, Float, Integer, Op, Order, Space};

const SPACES: [(&str, Space); 9] = [
    ("global", Space::Global),
    ("shared", Space::Shared),
    ("shared::cta", Space::Shared),
    // Addresses say themselves whose block's they are.
    ("shared::cluster", Space::Shared),
    ("local", Space::Local),
    ("param", Space::Parameter),
    ("param::entry", Space::Parameter),
    ("const", Space::Constant),
    ("generic", Space::Generic),
];

const ORDERS: [(&str, Order); 8] = [
    ("weak", Order::Weak),
    ("volatile", Order::Relaxed),
    ("relaxed", Order::Relaxed),
    ("mmio", Order::Relaxed),
    ("acquire", Order::Acquire),
    ("release", Order::Release),
    ("acq_rel", Order::AcquireRelease),
    ("sc", Order::AcquireRelease),
];

impl Decoder<'_, '_> {
    /// Modifiers that say how caches should behave change no result.
    fn drop_hints(&mut self) {
        for hint in [
            "nc",
            "ca",
            "cg",
            "cs",
            "lu",
            "cv",
            "wb",
            "wt",
            "cta",
            "cluster",
            "gpu",
            "sys",
            "L1::evict_normal",
            "L1::evict_unchanged",
            "L1::evict_first",
            "L1::evict_last",
            "L1::no_allocate",
            "L2::evict_last",
            "L2::evict_first",
            "L2::evict_normal",
            "L2::64B",
            "L2::128B",
            "L2::256B",
            "L2::cache_hint",
            "noftz",
        ] {
            self.take(hint);
        }
    }

    pub(super) fn memory(&mut self, base: &str) -> Result<Op> {
        match base {
            "cvta" => return self.convert_address(),
            "cp" => return self.copy_async(),
            "ldmatrix" | "stmatrix" => return self.matrix(base),
            "isspacep" => {
                let space = self.need_of("state space", &SPACES)?;
                let d = self.predicate_destination(self.operand(0)?)?;
                return Ok(Op::IsSpace {
                    space,
                    d: d.ok_or_else(|| self.refuse("no destination"))?,
                    a: self.source(1, 64)?,
                });
            }
            "prefetch" | "prefetchu" | "applypriority" => {
                self.modifiers.clear();
                return Ok(Op::Nothing);
            }
            "createpolicy" => {
                // A policy is a hint; its register must still hold something.
                self.modifiers.clear();
                let a = self.source_of(&Operand::Integer(0), 64)?;
                return Ok(Op::Move {
                    d: self.destination(0)?.0,
                    a,
                });
            }
            "discard" => {
                return Err(self.refuse("discard leaves memory undefined and is not accepted"));
            }
            _ => {}
        }
        if base == "atom" || base == "red" {
            return self.atomic(base);
        }
        self.drop_hints();
        let order = self.take_of(&ORDERS).unwrap_or(Order::Weak);
        let space = self.take_of(&SPACES).unwrap_or(Space::Generic);
        let elements = self
            .take_of(&[("v2", 2), ("v4", 4), ("v8", 8)])
            .unwrap_or(1);
        let ty = self.take_type()?;
        let bits = type_bits(ty)
            .filter(|bits| *bits <= 64)
            .ok_or_else(|| self.refuse("this type is not accepted"))?;
        let bytes = (bits / 8) as u8;
        if bytes as usize * elements > 32 {
            return Err(self.refuse("a vector has at most 32 bytes"));
        }
        if base == "st" {
            // A cache policy may follow the value.
            self.count(2..=3)?;
            let address = self.address(0)?;
            let parts = self.list(1)?;
            if parts.len() != elements {
                return Err(self.refuse("the vector's length is another"));
            }
            let values = parts
                .iter()
                .map(|part| self.source_of(part, bits))
                .collect::<Result<_>>()?;
            return Ok(Op::Store {
                space,
                bytes,
                order,
                address,
                values,
            });
        }
        self.count(2..=3)?;
        let mut width = 0;
        let d = self
            .list(0)?
            .iter()
            .map(|part| match part {
                Operand::Sink => Ok(None),
                part => self.register_of(part).map(|(register, bits)| {
                    width = bits;
                    Some(register)
                }),
            })
            .collect::<Result<Box<[_]>>>()?;
        if d.len() != elements {
            return Err(self.refuse("the vector's length is another"));
        }
        let signed = if ty.starts_with('s') && u32::from(width) > bits {
            width
        } else {
            0
        };
        Ok(Op::Load {
            space,
            bytes,
            signed,
            order,
            d,
            address: self.address(1)?,
        })
    }

    fn atomic(&mut self, base: &str) -> Result<Op> {
        self.drop_hints();
        let order = self.take_of(&ORDERS).unwrap_or(Order::Relaxed);
        let space = self.take_of(&SPACES).unwrap_or(Space::Generic);
        let op = self.need_of(
            "operation",
            &[
                ("and", AtomicOp::And),
                ("or", AtomicOp::Or),
                ("xor", AtomicOp::Xor),
                ("exch", AtomicOp::Exchange),
                ("cas", AtomicOp::CompareSwap),
                ("add", AtomicOp::Add),
                ("inc", AtomicOp::Increment),
                ("dec", AtomicOp::Decrement),
                ("min", AtomicOp::Min),
                ("max", AtomicOp::Max),
            ],
        )?;
        let name = self.take_type()?;
        let ty = match (self.float_type(name), self.integer_type(name)) {
            (
                Some(
                    Float::F16
                    | Float::Bf16
                    | Float::F16x2
                    | Float::Bf16x2
                    | Float::F32
                    | Float::F64,
                ),
                _,
            ) if !matches!(op, AtomicOp::Add | AtomicOp::Min | AtomicOp::Max) => {
                return Err(self.refuse("this operation is not of floats"));
            }
            (Some(float), _) => AtomicType::Float(float),
            (None, Some(Integer::U16))
                if op != AtomicOp::CompareSwap && op != AtomicOp::Exchange =>
            {
                return Err(self.refuse("16 bits can be compared and swapped only"));
            }
            (None, Some(integer)) => AtomicType::Integer(integer),
            _ => return Err(self.refuse("this type is not accepted")),
        };
        if self.take("v2") || self.take("v4") || self.take("v8") {
            return Err(self.refuse("vectors are not accepted"));
        }
        let bits = type_bits(name).unwrap_or(32);
        let first = usize::from(base == "atom");
        let d = match (first, self.operand(0)?) {
            (0, _) | (_, Operand::Sink) => None,
            _ => Some(self.destination(0)?.0),
        };
        let address = self.address(first)?;
        let b = self.source(first + 1, bits)?;
        let c = if op == AtomicOp::CompareSwap {
            self.source(first + 2, bits)?
        } else {
            b
        };
        Ok(Op::Atomic {
            space,
            op,
            ty,
            order,
            d,
            address,
            b,
            c,
        })
    }

    fn convert_address(&mut self) -> Result<Op> {
        let to = self.take("to");
        let space = self.need_of("state space", &SPACES)?;
        if self.take_type()? != "u64" {
            return Err(self.refuse("addresses have 64 bits"));
        }
        Ok(Op::ConvertAddress {
            space,
            to,
            d: self.destination(0)?.0,
            a: self.source(1, 64)?,
        })
    }

    fn copy_async(&mut self) -> Result<Op> {
        if !self.take("async") {
            return Err(self.refuse("only cp.async is accepted"));
        }
        if self.take("bulk") {
            return self.bulk();
        }
        if self.take("mbarrier") {
            return self.copies_arrive();
        }
        if self.take("commit_group") {
            return Ok(Op::CopyCommit);
        }
        if self.take("wait_all") {
            return Ok(Op::CopyWait { left: None });
        }
        if self.take("wait_group") {
            let Operand::Integer(left) = self.operand(0)? else {
                return Err(self.refuse("the number of groups is an immediate"));
            };
            return Ok(Op::CopyWait {
                left: Some(*left as u32),
            });
        }
        let whole_lines = self.take("cg");
        self.drop_hints();
        if !(self.take("shared") || self.take("shared::cta")) || !self.take("global") {
            return Err(self.refuse("the copy goes from global to shared memory"));
        }
        let (to, from) = (self.address(0)?, self.address(1)?);
        let Operand::Integer(bytes @ (4 | 8 | 16)) = self.operand(2)? else {
            return Err(self.refuse("the size is 4, 8 or 16"));
        };
        if whole_lines && *bytes != 16 {
            return Err(self.refuse("the size of .cg is 16"));
        }
        let (mut source_bytes, mut ignore) = (None, None);
        if let Some(operand) = self.operands.get(3) {
            match self.predicate_of(operand) {
                Ok(predicate) if !matches!(operand, Operand::Integer(_)) => {
                    ignore = Some(predicate)
                }
                _ => source_bytes = Some(self.source(3, 32)?),
            }
        }
        Ok(Op::CopyAsync {
            bytes: *bytes as u8,
            source_bytes,
            ignore,
            to,
            from,
        })
    }

    fn matrix(&mut self, base: &str) -> Result<Op> {
        if !(self.take("sync") && self.take("aligned") && self.take("m8n8")) {
            return Err(self.refuse("the shape m8n8 is accepted, with .sync.aligned"));
        }
        let count = self.need_of("number", &[("x1", 1), ("x2", 2), ("x4", 4)])?;
        let transposed = self.take("trans");
        self.take("shared");
        self.take("shared::cta");
        if self.take_type()? != "b16" {
            return Err(self.refuse("elements have 16 bits"));
        }
        if base == "ldmatrix" {
            Ok(Op::LoadMatrix {
                transposed,
                d: self.registers(0, count)?,
                address: self.address(1)?,
            })
        } else {
            Ok(Op::StoreMatrix {
                transposed,
                address: self.address(0)?,
                values: self.registers(1, count)?,
            })
        }
    }
}
