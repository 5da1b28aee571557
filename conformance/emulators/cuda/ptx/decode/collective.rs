//! What lanes and threads do together: shuffles, votes, barriers, fences, matrix products.

use super::{Decoder, Operand, Result};
use crate::ptx::instruction::{
    AtomicOp, BarrierKind, BarrierReduction, Element, Integer, Mma, Op, ShuffleMode, VoteMode,
};

pub(super) const ELEMENTS: [(&str, Element); 9] = [
    ("f16", Element::F16),
    ("bf16", Element::Bf16),
    ("tf32", Element::Tf32),
    ("e4m3", Element::E4m3),
    ("e5m2", Element::E5m2),
    ("s8", Element::S8),
    ("u8", Element::U8),
    ("f32", Element::F32),
    ("s32", Element::S32),
];

impl Decoder<'_, '_> {
    pub(super) fn collective(&mut self, base: &str) -> Result<Op> {
        match base {
            "activemask" => {
                self.take_type()?;
                Ok(Op::ActiveMask {
                    d: self.destination(0)?.0,
                })
            }
            "membar" | "fence" => self.fence(base),
            "bar" | "barrier" => self.barrier(),
            "mma" => self.mma(),
            _ if !self.take("sync") => Err(self.refuse("only the .sync form is accepted")),
            "shfl" => self.shuffle(),
            "vote" => self.vote(),
            "match" => {
                let all = self.need_of(".any or .all", &[("any", false), ("all", true)])?;
                let bits = match self.take_type()? {
                    "b32" => 32,
                    "b64" => 64,
                    _ => return Err(self.refuse("the type is b32 or b64")),
                };
                let (d, p) = self.with_predicate(0)?;
                Ok(Op::Match {
                    all,
                    d,
                    p,
                    a: self.source(1, bits)?,
                    members: self.source(2, 32)?,
                })
            }
            "redux" => {
                let op = self.need_of(
                    "operation",
                    &[
                        ("add", AtomicOp::Add),
                        ("min", AtomicOp::Min),
                        ("max", AtomicOp::Max),
                        ("and", AtomicOp::And),
                        ("or", AtomicOp::Or),
                        ("xor", AtomicOp::Xor),
                    ],
                )?;
                let ty = match self.take_type()? {
                    "u32" | "b32" => Integer::U32,
                    "s32" => Integer::S32,
                    _ => return Err(self.refuse("the type is u32, s32 or b32")),
                };
                Ok(Op::Reduce {
                    op,
                    ty,
                    d: self.destination(0)?.0,
                    a: self.source(1, 32)?,
                    members: self.source(2, 32)?,
                })
            }
            _ => {
                let Operand::Pair(d, p) = self.operand(0)? else {
                    return Err(self.refuse("the destination is d|p"));
                };
                let d = match d.as_ref() {
                    Operand::Sink => None,
                    d => Some(self.register_of(d)?.0),
                };
                let p = self
                    .predicate_destination(p)?
                    .ok_or_else(|| self.refuse("no predicate"))?;
                Ok(Op::Elect {
                    d,
                    p,
                    members: self.source(1, 32)?,
                })
            }
        }
    }

    /// A destination that may be followed by a predicate, `d|p`.
    fn with_predicate(&self, index: usize) -> Result<(u32, Option<u32>)> {
        match self.operand(index)? {
            Operand::Pair(d, p) => Ok((self.register_of(d)?.0, self.predicate_destination(p)?)),
            d => Ok((self.register_of(d)?.0, None)),
        }
    }

    fn shuffle(&mut self) -> Result<Op> {
        let mode = self.need_of(
            "mode",
            &[
                ("up", ShuffleMode::Up),
                ("down", ShuffleMode::Down),
                ("bfly", ShuffleMode::Butterfly),
                ("idx", ShuffleMode::Index),
            ],
        )?;
        if self.take_type()? != "b32" {
            return Err(self.refuse("the type is b32"));
        }
        self.count(5..=5)?;
        let (d, p) = self.with_predicate(0)?;
        let (a, b, c) = (
            self.source(1, 32)?,
            self.source(2, 32)?,
            self.source(3, 32)?,
        );
        Ok(Op::Shuffle {
            mode,
            d,
            p,
            a,
            b,
            c,
            members: self.source(4, 32)?,
        })
    }

    fn vote(&mut self) -> Result<Op> {
        let mode = self.need_of(
            "mode",
            &[
                ("all", VoteMode::All),
                ("any", VoteMode::Any),
                ("uni", VoteMode::Uniform),
                ("ballot", VoteMode::Ballot),
            ],
        )?;
        self.take_type()?;
        let (d, p) = if mode == VoteMode::Ballot {
            (self.destination(0)?.0, 0)
        } else {
            (
                0,
                self.predicate_destination(self.operand(0)?)?
                    .ok_or_else(|| self.refuse("no destination"))?,
            )
        };
        Ok(Op::Vote {
            mode,
            d,
            p,
            a: self.predicate(1)?,
            members: self.source(2, 32)?,
        })
    }

    fn fence(&mut self, base: &str) -> Result<Op> {
        if self.take("proxy") {
            if !self.take("async") {
                return Err(self.refuse("of proxies only .async is accepted"));
            }
            // Its state space narrows what it orders; here it orders all.
            let _ = self.take("global") || self.take("shared::cta") || self.take("shared::cluster");
            return Ok(Op::ProxyFence);
        }
        if self.take("mbarrier_init") {
            return match self.take("release") && self.take("cluster") {
                true => Ok(Op::PhaseInitFence),
                false => Err(self.refuse("it is .release.cluster")),
            };
        }
        if base == "fence" {
            for order in ["sc", "acq_rel", "acquire", "release"] {
                self.take(order);
            }
        }
        self.need_of(
            "scope",
            &[
                ("cta", ()),
                ("gl", ()),
                ("sys", ()),
                ("gpu", ()),
                ("cluster", ()),
            ],
        )?;
        Ok(Op::Fence)
    }

    fn barrier(&mut self) -> Result<Op> {
        if self.take("warp") {
            self.take("sync");
            return Ok(Op::WarpBarrier {
                members: self.source(0, 32)?,
            });
        }
        if self.take("cluster") {
            self.take("aligned");
            if self.take("wait") {
                self.take("acquire");
                return Ok(Op::ClusterWait);
            }
            if !self.take("arrive") {
                return Err(self.refuse("no .arrive or .wait"));
            }
            if self.take("relaxed") {
                return Err(self.refuse("an arrival that orders nothing is not accepted"));
            }
            self.take("release");
            return Ok(Op::ClusterArrive);
        }
        self.take("cta");
        let aligned = self.take("aligned") || self.opcode.starts_with("bar.");
        if self.take("arrive") {
            self.count(2..=2)?;
            let count = Some(self.source(1, 32)?);
            return Ok(Op::Barrier {
                kind: BarrierKind::Arrive,
                aligned,
                id: self.source(0, 32)?,
                count,
            });
        }
        if self.take("sync") {
            self.count(1..=2)?;
            let count = if self.operands.len() == 2 {
                Some(self.source(1, 32)?)
            } else {
                None
            };
            return Ok(Op::Barrier {
                kind: BarrierKind::Sync,
                aligned,
                id: self.source(0, 32)?,
                count,
            });
        }
        if !self.take("red") {
            return Err(self.refuse("no .sync, .arrive or .red"));
        }
        self.count(3..=4)?;
        let what = self.need_of("operation", &[("popc", 0), ("and", 1), ("or", 2)])?;
        self.take_type()?;
        let last = self.operands.len() - 1;
        let reduction = if what == 0 {
            BarrierReduction::PopulationCount(self.destination(0)?.0)
        } else {
            let p = self
                .predicate_destination(self.operand(0)?)?
                .ok_or_else(|| self.refuse("no destination"))?;
            if what == 1 {
                BarrierReduction::And(p)
            } else {
                BarrierReduction::Or(p)
            }
        };
        let source = self.predicate(last)?;
        let count = if last == 3 {
            Some(self.source(2, 32)?)
        } else {
            None
        };
        Ok(Op::Barrier {
            kind: BarrierKind::Reduce(reduction, source),
            aligned,
            id: self.source(1, 32)?,
            count,
        })
    }

    fn mma(&mut self) -> Result<Op> {
        if !(self.take("sync") && self.take("aligned") && self.take("row") && self.take("col")) {
            return Err(self.refuse("only .sync.aligned with .row.col is accepted"));
        }
        let k = self.need_of(
            "shape",
            &[
                ("m16n8k4", 4_u8),
                ("m16n8k8", 8),
                ("m16n8k16", 16),
                ("m16n8k32", 32),
            ],
        )?;
        let saturate = self.take("satfinite");
        let mut types = [Element::F32; 4];
        for ty in &mut types {
            *ty = self.need_of("element type", &ELEMENTS)?;
        }
        let [d_type, a_type, b_type, c_type] = types;
        use Element::{Bf16, E4m3, E5m2, F16, F32, S8, S32, Tf32, U8};
        let accepted = match (a_type, b_type, k) {
            (F16, F16, 8 | 16) => matches!((c_type, d_type), (F32, F32) | (F16, F16)),
            (Bf16, Bf16, 8 | 16) | (Tf32, Tf32, 4 | 8) => (c_type, d_type) == (F32, F32),
            (E4m3 | E5m2, E4m3 | E5m2, 32) => (c_type, d_type) == (F32, F32),
            (S8 | U8, S8 | U8, 16 | 32) => (c_type, d_type) == (S32, S32),
            _ => false,
        };
        if !accepted {
            return Err(self.refuse("this combination of shape and types is not accepted"));
        }
        // Registers of 32 bits that hold a lane's share: A 16 k / 32 elements, B 8 k / 32, C and D 4.
        let element_bytes = match a_type {
            F16 | Bf16 => 2,
            Tf32 => 4,
            _ => 1,
        };
        let a = usize::from(k) * 16 / 32 * element_bytes / 4;
        let b = usize::from(k) * 8 / 32 * element_bytes / 4;
        let sums = |ty| if ty == F16 { 2 } else { 4 };
        Ok(Op::Mma(Box::new(Mma {
            k,
            a_type,
            b_type,
            c_type,
            d_type,
            saturate,
            d: self.registers(0, sums(d_type))?,
            a: self.registers(1, a)?,
            b: self.registers(2, b)?,
            c: self.sources(3, sums(c_type))?,
        })))
    }
}
