//! Float arithmetic and conversions.

use super::{Decoder, Operand, Result};
use crate::ptx::instruction::{Float, Float1, Float2, Mode, Op, Property, Rounding, Scalar};

const ROUNDINGS: [(&str, Rounding); 5] = [
    ("rn", Rounding::NearestEven),
    ("rna", Rounding::NearestAway),
    ("rz", Rounding::Zero),
    ("rm", Rounding::Down),
    ("rp", Rounding::Up),
];

const INTEGER_ROUNDINGS: [(&str, Rounding); 4] = [
    ("rni", Rounding::NearestEven),
    ("rzi", Rounding::Zero),
    ("rmi", Rounding::Down),
    ("rpi", Rounding::Up),
];

const SCALARS: [(&str, Scalar); 13] = [
    ("u8", Scalar::U8),
    ("s8", Scalar::S8),
    ("u16", Scalar::U16),
    ("s16", Scalar::S16),
    ("u32", Scalar::U32),
    ("s32", Scalar::S32),
    ("u64", Scalar::U64),
    ("s64", Scalar::S64),
    ("f16", Scalar::F16),
    ("bf16", Scalar::Bf16),
    ("f32", Scalar::F32),
    ("f64", Scalar::F64),
    ("tf32", Scalar::Tf32),
];

fn bits(ty: Float) -> u32 {
    match ty {
        Float::F16 | Float::Bf16 => 16,
        Float::F16x2 | Float::Bf16x2 | Float::F32 => 32,
        Float::F64 => 64,
    }
}

pub(super) fn scalar_bits(ty: Scalar) -> u8 {
    match ty {
        Scalar::U8 | Scalar::S8 | Scalar::E4m3 | Scalar::E5m2 => 8,
        Scalar::U16 | Scalar::S16 | Scalar::F16 | Scalar::Bf16 => 16,
        Scalar::U32 | Scalar::S32 | Scalar::F32 | Scalar::Tf32 => 32,
        Scalar::U64 | Scalar::S64 | Scalar::F64 => 64,
    }
}

fn is_float(ty: Scalar) -> bool {
    matches!(
        ty,
        Scalar::F16
            | Scalar::Bf16
            | Scalar::F32
            | Scalar::F64
            | Scalar::Tf32
            | Scalar::E4m3
            | Scalar::E5m2
    )
}

impl Decoder<'_, '_> {
    fn mode(&mut self) -> Mode {
        Mode {
            rounding: self.take_of(&ROUNDINGS).unwrap_or_default(),
            flush: self.take("ftz"),
            saturate: self.take("sat"),
            relu: self.take("relu"),
            nan: self.take("NaN"),
            xorsign: false,
            finite: self.take("satfinite"),
        }
    }

    pub(super) fn float(&mut self, base: &str) -> Result<Op> {
        let ty = self.take_type()?;
        let ty = self
            .float_type(ty)
            .ok_or_else(|| self.refuse("this type is not accepted"))?;
        if base == "testp" {
            let property = self.need_of(
                "property",
                &[
                    ("finite", Property::Finite),
                    ("infinite", Property::Infinite),
                    ("number", Property::Number),
                    ("notanumber", Property::NotANumber),
                    ("normal", Property::Normal),
                    ("subnormal", Property::Subnormal),
                ],
            )?;
            let d = self.predicate_destination(self.operand(0)?)?;
            return Ok(Op::TestProperty {
                property,
                ty,
                d: d.ok_or_else(|| self.refuse("no destination"))?,
                a: self.source(1, bits(ty))?,
            });
        }
        let approximate = self.take("approx");
        let full = self.take("full");
        let mut mode = self.mode();
        let exact_only = self.modifiers.is_empty() || !approximate;
        if let Some(op) = self.one_source(base, ty, approximate)? {
            self.count(2..=2)?;
            if ty == Float::F64
                && mode.rounding != Rounding::NearestEven
                && matches!(op, Float1::Reciprocal | Float1::Sqrt)
            {
                return Err(self.refuse("f64 is rounded to nearest only"));
            }
            return Ok(Op::Float1 {
                op,
                ty,
                mode,
                d: self.destination(0)?.0,
                a: self.source(1, bits(ty))?,
            });
        }
        let op = match base {
            "add" => Float2::Add,
            "sub" => Float2::Sub,
            "mul" => Float2::Mul,
            "div" if approximate => Float2::DivApprox,
            "div" if full => Float2::DivFull,
            "div" => Float2::Div,
            "min" | "max" => {
                if self.take("xorsign") {
                    mode.xorsign = self.take("abs");
                }
                if base == "min" {
                    Float2::Min
                } else {
                    Float2::Max
                }
            }
            "copysign" => Float2::CopySign,
            "fma" | "mad" => {
                self.count(4..=4)?;
                if ty == Float::F64 && mode.rounding != Rounding::NearestEven {
                    return Err(self.refuse("f64 is rounded to nearest only"));
                }
                let (d, _) = self.destination(0)?;
                let (a, b, c) = (
                    self.source(1, bits(ty))?,
                    self.source(2, bits(ty))?,
                    self.source(3, bits(ty))?,
                );
                return Ok(Op::Fma {
                    ty,
                    mode,
                    d,
                    a,
                    b,
                    c,
                });
            }
            _ => return Err(self.refuse("this instruction is not accepted for floats")),
        };
        if !exact_only || (approximate && op != Float2::DivApprox) {
            return Err(self.refuse("this approximation is not accepted"));
        }
        if ty == Float::F64 && mode.rounding != Rounding::NearestEven {
            return Err(self.refuse("f64 is rounded to nearest only"));
        }
        self.count(3..=3)?;
        Ok(Op::Float2 {
            op,
            ty,
            mode,
            d: self.destination(0)?.0,
            a: self.source(1, bits(ty))?,
            b: self.source(2, bits(ty))?,
        })
    }

    fn one_source(&mut self, base: &str, ty: Float, approximate: bool) -> Result<Option<Float1>> {
        let wide = matches!(ty, Float::F32 | Float::F64);
        let narrow = !wide;
        let op = match (base, approximate) {
            ("abs", false) => Float1::Abs,
            ("neg", false) => Float1::Neg,
            ("sqrt", false) if wide => Float1::Sqrt,
            ("rcp", false) if wide => Float1::Reciprocal,
            ("sqrt", true) if ty == Float::F32 => Float1::SqrtApprox,
            ("rcp", true) if wide => Float1::ReciprocalApprox,
            ("rsqrt", true) if wide => Float1::ReciprocalSqrtApprox,
            ("sin", true) if ty == Float::F32 => Float1::Sin,
            ("cos", true) if ty == Float::F32 => Float1::Cos,
            ("lg2", true) if ty == Float::F32 => Float1::Lg2,
            ("ex2", true) if ty == Float::F32 || narrow => Float1::Ex2,
            ("tanh", true) if ty == Float::F32 || narrow => Float1::Tanh,
            (
                "abs" | "neg" | "sqrt" | "rcp" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh",
                _,
            ) => {
                return Err(self.refuse("this form is not accepted"));
            }
            _ => return Ok(None),
        };
        Ok(Some(op))
    }

    pub(super) fn convert(&mut self) -> Result<Op> {
        if self.take("pack") {
            return Err(self.refuse("cvt.pack is not accepted"));
        }
        let from = self.take_type()?;
        let to = self.take_type()?;
        let packed = |name: &str| match name {
            "f16x2" => Some(Scalar::F16),
            "bf16x2" => Some(Scalar::Bf16),
            "e4m3x2" => Some(Scalar::E4m3),
            "e5m2x2" => Some(Scalar::E5m2),
            _ => None,
        };
        let integral = self.take_of(&INTEGER_ROUNDINGS);
        let mut mode = self.mode();
        if let (Some(from @ (Scalar::E4m3 | Scalar::E5m2)), "f16x2") = (packed(from), to) {
            self.count(2..=2)?;
            return Ok(Op::WidenPair {
                from,
                relu: mode.relu,
                d: self.destination(0)?.0,
                a: self.source(1, 16)?,
            });
        }
        if let Some(to) = packed(to) {
            let (a, b) = match (from, to) {
                ("f32", _) => {
                    self.count(3..=3)?;
                    (self.source(1, 32)?, self.source(2, 32)?)
                }
                _ => return Err(self.refuse("this conversion of pairs is not accepted")),
            };
            return Ok(Op::ConvertPair {
                to,
                mode,
                d: self.destination(0)?.0,
                a,
                b,
            });
        }
        let find = |name: &str| {
            SCALARS
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, ty)| *ty)
        };
        let (Some(from), Some(to)) = (find(from), find(to)) else {
            return Err(self.refuse("this conversion is not accepted"));
        };
        if let Some(rounding) = integral {
            mode.rounding = rounding;
        } else if is_float(from) && !is_float(to) {
            return Err(self.refuse("a conversion to an integer says how it rounds"));
        }
        self.count(2..=2)?;
        let (d, width) = self.destination(0)?;
        if let Operand::Vector(_) = self.operand(1)? {
            return Err(self.refuse("vectors are not accepted"));
        }
        let a = self.source(1, u32::from(scalar_bits(from)))?;
        Ok(Op::Convert {
            to,
            from,
            integral: integral.is_some(),
            mode,
            width,
            d,
            a,
        })
    }
}
