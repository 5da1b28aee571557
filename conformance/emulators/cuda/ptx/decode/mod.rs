//! Instructions: opcode, modifiers and operands become an [`Op`].
//!
//! Modifiers are taken one by one; whatever is left at the end is not known, and the instruction is refused by that name. So
//! nothing is ever interpreted as if a modifier were not there.

mod arithmetic;
mod asynchronous;
mod collective;
mod float;
mod memory;

use std::collections::HashMap;

use super::Error;
use super::builder::{Builder, Place, Register, type_bits};
use super::instruction::{
    Address, Boolean, Constant, Float, Integer, Op, Pred, Predicate, Reg, Special, TRUE,
};

/// An operand as it is written.
#[derive(Clone, Debug)]
pub(super) enum Operand<'a> {
    Name(&'a str),
    /// `name+4`
    Offset(&'a str, i64),
    Integer(u64),
    Single(u32),
    Double(u64),
    Vector(Vec<Operand<'a>>),
    /// `[base+offset]`
    Address(Box<Operand<'a>>, i64),
    /// `[map, {x, y}]`
    Tensor(Box<Operand<'a>>, Vec<Operand<'a>>),
    /// `!p`
    Not(&'a str),
    /// `p|q`
    Pair(Box<Operand<'a>>, Box<Operand<'a>>),
    /// `_`
    Sink,
}

/// What decoding one instruction knows.
struct Decoder<'d, 'a> {
    builder: &'d mut Builder,
    globals: &'d HashMap<String, Place>,
    opcode: &'d str,
    modifiers: Vec<&'d str>,
    operands: &'d [Operand<'a>],
    line: u32,
}

type Result<T> = std::result::Result<T, Error>;

/// Decodes one instruction.
pub(super) fn decode(
    builder: &mut Builder,
    globals: &HashMap<String, Place>,
    opcode: &str,
    operands: &[Operand<'_>],
    line: u32,
) -> Result<Op> {
    let mut parts = opcode.split('.');
    let base = parts.next().unwrap_or("");
    let mut decoder = Decoder {
        builder,
        globals,
        opcode,
        modifiers: parts.collect(),
        operands,
        line,
    };
    let op = match base {
        "mov" => decoder.mov(),
        "ld" | "ldu" | "st" | "atom" | "red" | "cvta" | "isspacep" | "cp" | "ldmatrix"
        | "stmatrix" | "prefetch" | "prefetchu" | "discard" | "applypriority" | "createpolicy" => {
            decoder.memory(base)
        }
        "shfl" | "vote" | "match" | "redux" | "elect" | "activemask" | "bar" | "barrier"
        | "membar" | "fence" | "mma" => decoder.collective(base),
        "ret" | "exit" => {
            decoder.take("uni");
            Ok(Op::Exit)
        }
        "trap" => Ok(Op::Trap),
        "mbarrier" | "mapa" | "wgmma" | "setmaxnreg" | "griddepcontrol" => {
            decoder.asynchronous(base)
        }
        "nanosleep" | "pmevent" => {
            decoder.modifiers.clear();
            Ok(Op::Nothing)
        }
        "call" => {
            Err(decoder.refuse("calls are not interpreted: inline the function (__forceinline__)"))
        }
        _ => decoder.arithmetic(base),
    }?;
    match decoder.modifiers.first() {
        None => Ok(op),
        Some(modifier) => Err(decoder.refuse(format!("modifier .{modifier} is not accepted"))),
    }
}

impl<'d, 'a> Decoder<'d, 'a> {
    fn refuse(&self, why: impl std::fmt::Display) -> Error {
        Error::new(self.line, format!("{}: {why}", self.opcode))
    }

    /// Takes a modifier away, if it is there.
    fn take(&mut self, modifier: &str) -> bool {
        let found = self.modifiers.iter().position(|m| *m == modifier);
        if let Some(index) = found {
            self.modifiers.remove(index);
        }
        found.is_some()
    }

    /// Takes the first modifier for which a table has an entry.
    fn take_of<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        let (index, value) = self
            .modifiers
            .iter()
            .enumerate()
            .find_map(|(index, modifier)| {
                let entry = table.iter().find(|(name, _)| name == modifier)?;
                Some((index, entry.1))
            })?;
        self.modifiers.remove(index);
        Some(value)
    }

    fn need_of<T: Copy>(&mut self, what: &str, table: &[(&str, T)]) -> Result<T> {
        self.take_of(table)
            .ok_or_else(|| self.refuse(format!("no {what} that is accepted")))
    }

    /// Takes the last modifier, which is the type.
    fn take_type(&mut self) -> Result<&'d str> {
        self.modifiers.pop().ok_or_else(|| self.refuse("no type"))
    }

    fn integer_type(&self, ty: &str) -> Option<Integer> {
        Some(match ty {
            "u16" | "b16" => Integer::U16,
            "s16" => Integer::S16,
            "u32" | "b32" => Integer::U32,
            "s32" => Integer::S32,
            "u64" | "b64" => Integer::U64,
            "s64" => Integer::S64,
            _ => return None,
        })
    }

    fn float_type(&self, ty: &str) -> Option<Float> {
        Some(match ty {
            "f16" => Float::F16,
            "f16x2" => Float::F16x2,
            "bf16" => Float::Bf16,
            "bf16x2" => Float::Bf16x2,
            "f32" => Float::F32,
            "f64" => Float::F64,
            _ => return None,
        })
    }

    fn count(&self, counts: std::ops::RangeInclusive<usize>) -> Result<()> {
        if counts.contains(&self.operands.len()) {
            return Ok(());
        }
        Err(self.refuse(format!("{} operands", self.operands.len())))
    }

    fn operand(&self, index: usize) -> Result<&'d Operand<'a>> {
        self.operands
            .get(index)
            .ok_or_else(|| self.refuse("too few operands"))
    }

    /// A register to write, with its width.
    fn destination(&self, index: usize) -> Result<(Reg, u8)> {
        self.register_of(self.operand(index)?)
    }

    fn register_of(&self, operand: &Operand<'_>) -> Result<(Reg, u8)> {
        match operand {
            Operand::Name(name) => match self.builder.register(name) {
                Some(Register::Value(register, bits)) => Ok((register, bits)),
                Some(Register::Predicate(_)) => Err(self.refuse(format!("{name} is a predicate"))),
                None => Err(self.refuse(format!("no register {name}"))),
            },
            other => Err(self.refuse(format!("{other:?} is not a register"))),
        }
    }

    fn predicate_of(&self, operand: &Operand<'_>) -> Result<Predicate> {
        let (name, negated) = match operand {
            Operand::Name(name) => (name, false),
            Operand::Not(name) => (name, true),
            Operand::Integer(value) => {
                return Ok(Predicate {
                    register: TRUE,
                    negated: *value == 0,
                });
            }
            other => return Err(self.refuse(format!("{other:?} is not a predicate"))),
        };
        match self.builder.register(name) {
            Some(Register::Predicate(register)) => Ok(Predicate { register, negated }),
            _ => Err(self.refuse(format!("{name} is not a predicate"))),
        }
    }

    fn predicate(&self, index: usize) -> Result<Predicate> {
        self.predicate_of(self.operand(index)?)
    }

    /// A predicate to write.
    fn predicate_destination(&self, operand: &Operand<'_>) -> Result<Option<Pred>> {
        match operand {
            Operand::Sink => Ok(None),
            operand => match self.predicate_of(operand)? {
                Predicate {
                    register,
                    negated: false,
                } if register != TRUE => Ok(Some(register)),
                _ => Err(self.refuse("not a predicate to write")),
            },
        }
    }

    /// A source of so many bits.
    fn source(&mut self, index: usize, bits: u32) -> Result<Reg> {
        self.source_of(self.operand(index)?, bits)
    }

    fn source_of(&mut self, operand: &Operand<'_>, bits: u32) -> Result<Reg> {
        let mask = u64::MAX >> (64 - bits);
        let constant = match operand {
            Operand::Integer(value) => Constant::Value(value & mask),
            Operand::Single(value) if bits == 32 => Constant::Value(u64::from(*value)),
            Operand::Double(value) if bits == 64 => Constant::Value(*value),
            Operand::Double(value) if bits == 32 => {
                Constant::Value(u64::from((f64::from_bits(*value) as f32).to_bits()))
            }
            Operand::Name("WARP_SZ") => Constant::Value(32),
            Operand::Name(name) => {
                if let Some(special) = special(name) {
                    Constant::Special(special)
                } else if let Some(address) = self.builder.address(self.globals, name, 0) {
                    address
                } else {
                    return self.register_of(operand).map(|(register, _)| register);
                }
            }
            Operand::Offset(name, offset) => self
                .builder
                .address(self.globals, name, *offset)
                .ok_or_else(|| self.refuse(format!("no variable {name}")))?,
            other => return Err(self.refuse(format!("{other:?} is not a source"))),
        };
        Ok(self.builder.constant(constant))
    }

    fn address(&mut self, index: usize) -> Result<Address> {
        let Operand::Address(base, offset) = self.operand(index)? else {
            return Err(self.refuse("an operand should be an address"));
        };
        let (base, offset) = (base.as_ref(), *offset);
        if let Operand::Name(name) = base
            && self.builder.register(name).is_none()
        {
            if let Some(constant) = self.builder.address(self.globals, name, offset) {
                let base = self.builder.constant(constant);
                return Ok(Address { base, offset: 0 });
            }
            // Dynamic shared memory: its beginning is a constant, the offset is not part of it.
            if let Some(constant) = self.builder.address(self.globals, name, 0) {
                let base = self.builder.constant(constant);
                return Ok(Address { base, offset });
            }
        }
        Ok(Address {
            base: self.source_of(base, 64)?,
            offset,
        })
    }

    /// The operands of a vector, or the one operand.
    fn list(&self, index: usize) -> Result<Vec<Operand<'a>>> {
        Ok(match self.operand(index)? {
            Operand::Vector(parts) => parts.clone(),
            single => vec![single.clone()],
        })
    }

    fn registers(&self, index: usize, count: usize) -> Result<Box<[Reg]>> {
        let parts = self.list(index)?;
        if parts.len() != count {
            return Err(self.refuse(format!(
                "{} registers where {count} are expected",
                parts.len()
            )));
        }
        parts
            .iter()
            .map(|part| self.register_of(part).map(|(register, _)| register))
            .collect()
    }

    /// Registers or immediates, as `mma` takes for its addend.
    fn sources(&mut self, index: usize, count: usize) -> Result<Box<[Reg]>> {
        let parts = self.list(index)?;
        if parts.len() != count {
            return Err(self.refuse(format!(
                "{} registers where {count} are expected",
                parts.len()
            )));
        }
        parts.iter().map(|part| self.source_of(part, 32)).collect()
    }

    fn mov(&mut self) -> Result<Op> {
        let ty = self.take_type()?;
        self.count(2..=2)?;
        if ty == "pred" {
            let d = self.predicate_destination(self.operand(0)?)?;
            return Ok(Op::MovePredicate {
                d: d.ok_or_else(|| self.refuse("no destination"))?,
                a: self.predicate(1)?,
            });
        }
        let bits = type_bits(ty)
            .filter(|bits| *bits <= 64)
            .ok_or_else(|| self.refuse("this type is not accepted"))?;
        match (self.operand(0)?, self.operand(1)?) {
            (Operand::Vector(parts), source) => {
                let d = parts
                    .iter()
                    .map(|part| match part {
                        Operand::Sink => Ok(None),
                        part => self.register_of(part).map(|(register, _)| Some(register)),
                    })
                    .collect::<Result<Box<[_]>>>()?;
                Ok(Op::Unpack {
                    bits: (bits as usize / d.len()) as u8,
                    d,
                    a: self.source_of(source, bits)?,
                })
            }
            (_, Operand::Vector(parts)) => {
                let part_bits = bits / parts.len() as u32;
                Ok(Op::Pack {
                    d: self.destination(0)?.0,
                    parts: parts
                        .iter()
                        .map(|part| self.source_of(part, part_bits))
                        .collect::<Result<_>>()?,
                    bits: part_bits as u8,
                })
            }
            (
                _,
                Operand::Name(
                    "%clock" | "%clock_hi" | "%clock64" | "%globaltimer" | "%globaltimer_lo",
                ),
            ) => Ok(Op::Clock {
                d: self.destination(0)?.0,
                bits: bits as u8,
            }),
            (_, source) => Ok(Op::Move {
                d: self.destination(0)?.0,
                a: self.source_of(source, bits)?,
            }),
        }
    }

    fn boolean(&mut self) -> Option<Boolean> {
        self.take_of(&[
            ("and", Boolean::And),
            ("or", Boolean::Or),
            ("xor", Boolean::Xor),
        ])
    }
}

fn special(name: &str) -> Option<Special> {
    let name = name.strip_prefix('%')?;
    let axis = |name: &str| match name {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    if let Some((base, component)) = name.split_once('.') {
        let axis = axis(component)?;
        return Some(match base {
            "tid" => Special::Tid(axis),
            "ntid" => Special::Ntid(axis),
            "ctaid" => Special::Ctaid(axis),
            "nctaid" => Special::Nctaid(axis),
            "clusterid" => Special::Clusterid(axis),
            "nclusterid" => Special::Nclusterid(axis),
            "cluster_ctaid" => Special::ClusterCtaid(axis),
            "cluster_nctaid" => Special::ClusterNctaid(axis),
            _ => return None,
        });
    }
    Some(match name {
        "laneid" => Special::Laneid,
        "warpid" => Special::Warpid,
        "nwarpid" => Special::Nwarpid,
        "smid" => Special::Smid,
        "nsmid" => Special::Nsmid,
        "gridid" => Special::Gridid,
        "lanemask_eq" => Special::LanemaskEq,
        "lanemask_le" => Special::LanemaskLe,
        "lanemask_lt" => Special::LanemaskLt,
        "lanemask_ge" => Special::LanemaskGe,
        "lanemask_gt" => Special::LanemaskGt,
        "dynamic_smem_size" => Special::DynamicSmemSize,
        "total_smem_size" => Special::TotalSmemSize,
        "cluster_ctarank" => Special::ClusterCtarank,
        "cluster_nctarank" => Special::ClusterNctarank,
        _ => return None,
    })
}
