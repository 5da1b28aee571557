//! Integer arithmetic, logic, comparison and selection.

use super::{Decoder, Operand, Result};
use crate::ptx::builder::type_bits;
use crate::ptx::instruction::{
    Carry, Compared, Float, Integer, Integer1, Integer2, Integer3, Op, PermuteMode, Predicate, Test,
};

const TESTS: [(&str, Test); 18] = [
    ("eq", Test::Equal),
    ("ne", Test::NotEqual),
    ("lt", Test::Less),
    ("le", Test::LessEqual),
    ("gt", Test::Greater),
    ("ge", Test::GreaterEqual),
    ("lo", Test::Less),
    ("ls", Test::LessEqual),
    ("hi", Test::Greater),
    ("hs", Test::GreaterEqual),
    ("equ", Test::EqualUnordered),
    ("neu", Test::NotEqualUnordered),
    ("ltu", Test::LessUnordered),
    ("leu", Test::LessEqualUnordered),
    ("gtu", Test::GreaterUnordered),
    ("geu", Test::GreaterEqualUnordered),
    ("num", Test::Numbers),
    ("nan", Test::NotNumbers),
];

/// Bits of an integer type.
pub(super) fn bits(ty: Integer) -> u32 {
    match ty {
        Integer::U16 | Integer::S16 => 16,
        Integer::U32 | Integer::S32 => 32,
        Integer::U64 | Integer::S64 => 64,
    }
}

impl Decoder<'_, '_> {
    pub(super) fn arithmetic(&mut self, base: &str) -> Result<Op> {
        match base {
            "setp" | "set" => return self.comparison(base),
            "selp" => {
                let bits = self.type_width()?;
                return Ok(Op::Select {
                    d: self.destination(0)?.0,
                    a: self.source(1, bits)?,
                    b: self.source(2, bits)?,
                    p: self.predicate(3)?,
                });
            }
            "slct" => {
                let float = match self.take_type()? {
                    "s32" => false,
                    "f32" => true,
                    _ => return Err(self.refuse("the last type is s32 or f32")),
                };
                let bits = self.type_width()?;
                return Ok(Op::SelectSign {
                    float,
                    flush: self.take("ftz"),
                    d: self.destination(0)?.0,
                    a: self.source(1, bits)?,
                    b: self.source(2, bits)?,
                    c: self.source(3, 32)?,
                });
            }
            "dp4a" | "dp2a" => return self.dot_product(base),
            "prmt" => return self.permute(),
            "cvt" => return self.convert(),
            "mul24" | "mad24" => {
                let ty = self.need_integer()?;
                let high = self.high()?;
                return match (base, high) {
                    ("mul24", false) => self.two(Integer2::Mul24Low, ty),
                    ("mul24", true) => self.two(Integer2::Mul24High, ty),
                    (_, false) => self.three(Integer3::Mad24Low, ty),
                    (_, true) => self.three(Integer3::Mad24High, ty),
                };
            }
            _ => {}
        }
        let ty = self.modifiers.last().copied().unwrap_or("");
        if ty == "pred" {
            self.modifiers.pop();
            return self.logic(base);
        }
        if self.float_type(ty).is_some() {
            return self.float(base);
        }
        let ty = self.need_integer()?;
        self.integer(base, ty)
    }

    fn need_integer(&mut self) -> Result<Integer> {
        let ty = self.take_type()?;
        self.integer_type(ty)
            .ok_or_else(|| self.refuse("this instruction or type is not accepted"))
    }

    fn type_width(&mut self) -> Result<u32> {
        let ty = self.take_type()?;
        type_bits(ty)
            .filter(|bits| *bits <= 64)
            .ok_or_else(|| self.refuse("this type is not accepted"))
    }

    fn high(&mut self) -> Result<bool> {
        self.need_of(".lo or .hi", &[("lo", false), ("hi", true)])
    }

    fn one(&mut self, op: Integer1, ty: Integer) -> Result<Op> {
        self.count(2..=2)?;
        Ok(Op::Integer1 {
            op,
            ty,
            d: self.destination(0)?.0,
            a: self.source(1, bits(ty))?,
        })
    }

    fn two(&mut self, op: Integer2, ty: Integer) -> Result<Op> {
        self.count(3..=3)?;
        // A shift's count is a 32-bit register whatever the type.
        let second = if matches!(op, Integer2::Shl | Integer2::Shr) {
            32
        } else {
            bits(ty)
        };
        Ok(Op::Integer2 {
            op,
            ty,
            d: self.destination(0)?.0,
            a: self.source(1, bits(ty))?,
            b: self.source(2, second)?,
        })
    }

    fn three(&mut self, op: Integer3, ty: Integer) -> Result<Op> {
        self.count(4..=4)?;
        let wide = |op| {
            if op == Integer3::MadWide {
                2 * bits(ty)
            } else {
                bits(ty)
            }
        };
        let (second, third) = match op {
            Integer3::Bfe => (32, 32),
            op => (bits(ty), wide(op)),
        };
        Ok(Op::Integer3 {
            op,
            ty,
            d: self.destination(0)?.0,
            a: self.source(1, bits(ty))?,
            b: self.source(2, second)?,
            c: self.source(3, third)?,
        })
    }

    fn integer(&mut self, base: &str, ty: Integer) -> Result<Op> {
        let writes = self.take("cc");
        let reads = matches!(base, "addc" | "subc" | "madc");
        if writes || reads {
            return self.carry(base, ty, reads, writes);
        }
        match base {
            "not" => self.one(Integer1::Not, ty),
            "cnot" => self.one(Integer1::Cnot, ty),
            "abs" => self.one(Integer1::Abs, ty),
            "neg" => self.one(Integer1::Neg, ty),
            "popc" => self.one(Integer1::Popc, ty),
            "clz" => self.one(Integer1::Clz, ty),
            "brev" => self.one(Integer1::Brev, ty),
            "bfind" if self.take("shiftamt") => self.one(Integer1::BfindShift, ty),
            "bfind" => self.one(Integer1::Bfind, ty),
            "add" if self.take("sat") => self.two(Integer2::AddSaturate, ty),
            "add" => self.two(Integer2::Add, ty),
            "sub" if self.take("sat") => self.two(Integer2::SubSaturate, ty),
            "sub" => self.two(Integer2::Sub, ty),
            "mul" if self.take("wide") => self.two(Integer2::MulWide, ty),
            "mul" if self.high()? => self.two(Integer2::MulHigh, ty),
            "mul" => self.two(Integer2::MulLow, ty),
            "div" => self.two(Integer2::Div, ty),
            "rem" => self.two(Integer2::Rem, ty),
            "min" if self.take("relu") => Err(self.refuse(".relu of integers is not accepted")),
            "min" => self.two(Integer2::Min, ty),
            "max" => self.two(Integer2::Max, ty),
            "and" => self.two(Integer2::And, ty),
            "or" => self.two(Integer2::Or, ty),
            "xor" => self.two(Integer2::Xor, ty),
            "shl" => self.two(Integer2::Shl, ty),
            "shr" => self.two(Integer2::Shr, ty),
            "bmsk" if self.take("clamp") => self.two(Integer2::BmskClamp, ty),
            "bmsk" if self.take("wrap") => self.two(Integer2::BmskWrap, ty),
            "szext" if self.take("clamp") => self.two(Integer2::SzextClamp, ty),
            "szext" if self.take("wrap") => self.two(Integer2::SzextWrap, ty),
            "mad" if self.take("wide") => self.three(Integer3::MadWide, ty),
            "mad" if self.high()? => {
                let op = if self.take("sat") {
                    Integer3::MadHighSaturate
                } else {
                    Integer3::MadHigh
                };
                self.three(op, ty)
            }
            "mad" => self.three(Integer3::MadLow, ty),
            "sad" => self.three(Integer3::Sad, ty),
            "bfe" => self.three(Integer3::Bfe, ty),
            "bfi" => {
                self.count(5..=5)?;
                Ok(Op::Insert {
                    wide: bits(ty) == 64,
                    d: self.destination(0)?.0,
                    a: self.source(1, bits(ty))?,
                    b: self.source(2, bits(ty))?,
                    position: self.source(3, 32)?,
                    length: self.source(4, 32)?,
                })
            }
            "lop3" => {
                self.count(5..=5)?;
                let Operand::Integer(table @ 0..=255) = self.operand(4)? else {
                    return Err(self.refuse("the table is an immediate of 8 bits"));
                };
                Ok(Op::Integer3 {
                    op: Integer3::Lop3(*table as u8),
                    ty,
                    d: self.destination(0)?.0,
                    a: self.source(1, 32)?,
                    b: self.source(2, 32)?,
                    c: self.source(3, 32)?,
                })
            }
            "shf" => {
                let left = self.need_of(".l or .r", &[("l", true), ("r", false)])?;
                let clamp = self.need_of(".clamp or .wrap", &[("clamp", true), ("wrap", false)])?;
                let op = if left {
                    Integer3::FunnelLeft { clamp }
                } else {
                    Integer3::FunnelRight { clamp }
                };
                self.three(op, ty)
            }
            _ => Err(self.refuse("this instruction is not accepted")),
        }
    }

    fn carry(&mut self, base: &str, ty: Integer, reads: bool, writes: bool) -> Result<Op> {
        if !matches!(
            ty,
            Integer::U32 | Integer::S32 | Integer::U64 | Integer::S64
        ) {
            return Err(self.refuse("carries are of 32 or 64 bits"));
        }
        let op = match base {
            "add" | "addc" => Carry::Add,
            "sub" | "subc" => Carry::Sub,
            "mad" | "madc" if self.high()? => Carry::MadHigh,
            "mad" | "madc" => Carry::MadLow,
            _ => return Err(self.refuse("this instruction has no carry")),
        };
        let a = self.source(1, bits(ty))?;
        let b = self.source(2, bits(ty))?;
        let c = if matches!(op, Carry::Add | Carry::Sub) {
            self.count(3..=3)?;
            a
        } else {
            self.source(3, bits(ty))?
        };
        Ok(Op::Carry {
            op,
            ty,
            reads,
            writes,
            d: self.destination(0)?.0,
            a,
            b,
            c,
        })
    }

    fn dot_product(&mut self, base: &str) -> Result<Op> {
        let signed = |ty: &str| match ty {
            "u32" => Some(false),
            "s32" => Some(true),
            _ => None,
        };
        let (b, a) = (self.take_type()?, self.take_type()?);
        let (Some(a), Some(b)) = (signed(a), signed(b)) else {
            return Err(self.refuse("the types are u32 or s32"));
        };
        let op = if base == "dp4a" {
            Integer3::Dp4a(a, b)
        } else {
            Integer3::Dp2a(a, b, self.high()?)
        };
        self.three(op, Integer::U32)
    }

    fn permute(&mut self) -> Result<Op> {
        let mode = self.take_of(&[
            ("f4e", PermuteMode::F4e),
            ("b4e", PermuteMode::B4e),
            ("rc8", PermuteMode::Rc8),
            ("ecl", PermuteMode::Ecl),
            ("ecr", PermuteMode::Ecr),
            ("rc16", PermuteMode::Rc16),
        ]);
        if self.take_type()? != "b32" {
            return Err(self.refuse("the type is b32"));
        }
        self.three(
            Integer3::Permute(mode.unwrap_or(PermuteMode::Index)),
            Integer::U32,
        )
    }

    fn logic(&mut self, base: &str) -> Result<Op> {
        let d = self.predicate_destination(self.operand(0)?)?;
        let d = d.ok_or_else(|| self.refuse("no destination"))?;
        let a = self.predicate(1)?;
        if base == "not" {
            let negated = !a.negated;
            return Ok(Op::MovePredicate {
                d,
                a: Predicate { negated, ..a },
            });
        }
        let op = match base {
            "and" => super::Boolean::And,
            "or" => super::Boolean::Or,
            "xor" => super::Boolean::Xor,
            _ => return Err(self.refuse("this instruction is not accepted on predicates")),
        };
        Ok(Op::Logic {
            op,
            d,
            a,
            b: self.predicate(2)?,
        })
    }

    fn comparison(&mut self, base: &str) -> Result<Op> {
        let ty = self.take_type()?;
        let (compared, bits) = match (self.float_type(ty), self.integer_type(ty)) {
            (Some(float), _) => (Compared::Float(float), type_bits(ty).unwrap_or(32)),
            (None, Some(integer)) => (Compared::Integer(integer), bits(integer)),
            _ => return Err(self.refuse("this type is not accepted")),
        };
        let truth = if base == "set" {
            Some(match self.take_type()? {
                "u32" | "s32" => 0xFFFF_FFFF,
                "f32" => u64::from(1f32.to_bits()),
                "f16" if compared == Compared::Float(Float::F16) => 0x3C00,
                "bf16" if compared == Compared::Float(Float::Bf16) => 0x3F80,
                "u16" | "s16" if matches!(compared, Compared::Float(Float::F16 | Float::Bf16)) => {
                    0xFFFF
                }
                _ => return Err(self.refuse("this result type is not accepted")),
            })
        } else {
            None
        };
        let test = self.need_of("comparison", &TESTS)?;
        let flush = self.take("ftz");
        let boolean = self.boolean();
        let (a, b) = (self.source(1, bits)?, self.source(2, bits)?);
        let combine = match boolean {
            Some(boolean) => Some((boolean, self.predicate(3)?)),
            None => None,
        };
        if let Some(truth) = truth {
            if matches!(compared, Compared::Float(Float::F16x2 | Float::Bf16x2)) {
                return Err(self.refuse("packed comparisons are accepted as setp alone"));
            }
            return Ok(Op::Set {
                ty: compared,
                test,
                flush,
                combine,
                truth,
                d: self.destination(0)?.0,
                a,
                b,
            });
        }
        let (p, q) = match self.operand(0)? {
            Operand::Pair(p, q) => (
                self.predicate_destination(p)?,
                self.predicate_destination(q)?,
            ),
            p => (self.predicate_destination(p)?, None),
        };
        Ok(Op::SetPredicate {
            ty: compared,
            test,
            flush,
            combine,
            p,
            q,
            a,
            b,
        })
    }
}
