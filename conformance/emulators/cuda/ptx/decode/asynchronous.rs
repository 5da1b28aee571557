//! What engines beside the warps do, and what waits for it: mbarriers, bulk copies, products of warpgroups, clusters.

use super::{Decoder, Operand, Result};
use crate::ptx::instruction::{Address, Element, Factor, Op, Phase, Remote, Wgmma};

impl Decoder<'_, '_> {
    pub(super) fn asynchronous(&mut self, base: &str) -> Result<Op> {
        match base {
            "mbarrier" => self.phase(),
            "wgmma" => self.wgmma(),
            "mapa" => {
                self.take("shared::cluster");
                if !matches!(self.take_type()?, "u32" | "u64") {
                    return Err(self.refuse("addresses are u32 or u64"));
                }
                Ok(Op::MapAddress {
                    d: self.destination(0)?.0,
                    a: self.source(1, 64)?,
                    rank: self.source(2, 32)?,
                })
            }
            "griddepcontrol" => match self.take("wait") {
                true => Ok(Op::DependencyWait),
                false if self.take("launch_dependents") => Ok(Op::Nothing),
                false => Err(self.refuse("no .wait or .launch_dependents")),
            },
            _ => self.set_registers(),
        }
    }

    fn set_registers(&mut self) -> Result<Op> {
        self.need_of(".inc or .dec", &[("inc", ()), ("dec", ())])?;
        if !(self.take("sync") && self.take("aligned") && self.take("u32")) {
            return Err(self.refuse("only .sync.aligned.u32 is accepted"));
        }
        match self.operand(0)? {
            Operand::Integer(count @ 24..=256) if count % 8 == 0 => Ok(Op::SetRegisters {
                count: *count as u32,
            }),
            _ => Err(self.refuse("registers are a multiple of 8 from 24 to 256")),
        }
    }

    /// Scope and state space of an mbarrier say no more than its address.
    fn phase(&mut self) -> Result<Op> {
        for word in ["release", "acquire", "cta", "cluster"] {
            self.take(word);
        }
        for space in ["shared", "shared::cta", "shared::cluster"] {
            self.take(space);
        }
        let counts_bytes = ["expect_tx", "complete_tx"];
        if self.take("relaxed") && !counts_bytes.iter().any(|of| self.modifiers.contains(of)) {
            return Err(self.refuse("what orders nothing is not accepted"));
        }
        if self.modifiers.pop() != Some("b64") {
            return Err(self.refuse("the type is b64"));
        }
        if self.take("init") {
            return Ok(Op::PhaseInit {
                address: self.address(0)?,
                count: self.source(1, 32)?,
            });
        }
        if self.take("inval") {
            return Ok(Op::PhaseInvalidate {
                address: self.address(0)?,
            });
        }
        let drop = self.take("arrive_drop");
        if drop || self.take("arrive") {
            let noncompleting = self.take("noComplete");
            let expects = self.take("expect_tx");
            if noncompleting {
                return Err(self.refuse("an arrival that may not complete is not accepted"));
            }
            let d = match self.operand(0)? {
                Operand::Sink => None,
                _ => Some(self.destination(0)?.0),
            };
            let last = match self.operands.len() {
                3 => Some(self.source(2, 32)?),
                _ => None,
            };
            return Ok(Op::PhaseArrive {
                d,
                address: self.address(1)?,
                count: last.filter(|_| !expects),
                expect: last.filter(|_| expects),
                drop,
            });
        }
        let complete = self.take("complete_tx");
        if complete || self.take("expect_tx") {
            return Ok(Op::PhaseExpect {
                complete,
                address: self.address(0)?,
                bytes: self.source(1, 32)?,
            });
        }
        let waits = self.take("try_wait");
        if !waits && !self.take("test_wait") {
            return Err(self.refuse("this operation is not accepted"));
        }
        let parity = self.take("parity");
        // A hint of time may follow.
        self.count(3..=4)?;
        let phase = match parity {
            true => Phase::Parity(self.source(2, 32)?),
            false => Phase::Token(self.source(2, 64)?),
        };
        Ok(Op::PhaseTest {
            waits,
            p: self.predicate_destination(self.operand(0)?)?,
            address: self.address(1)?,
            phase,
        })
    }

    /// `cp.async.mbarrier.arrive`
    pub(super) fn copies_arrive(&mut self) -> Result<Op> {
        if !self.take("arrive") {
            return Err(self.refuse("no .arrive"));
        }
        let counted = self.take("noinc");
        let _ = self.take("shared") || self.take("shared::cta");
        if !self.take("b64") {
            return Err(self.refuse("the type is b64"));
        }
        Ok(Op::CopiesArrive {
            counted,
            address: self.address(0)?,
        })
    }

    /// `cp.async.bulk`
    pub(super) fn bulk(&mut self) -> Result<Op> {
        if self.take("commit_group") {
            return Ok(Op::BulkCommit);
        }
        if self.take("wait_group") {
            // Here what has been read has been written too.
            self.take("read");
            let Operand::Integer(left) = self.operand(0)? else {
                return Err(self.refuse("the number of groups is an immediate"));
            };
            return Ok(Op::BulkWait { left: *left as u32 });
        }
        if self.take("prefetch") {
            self.modifiers.clear();
            return Ok(Op::Nothing);
        }
        let tensor = self.take("tensor");
        let rank = match tensor {
            true => Some(self.need_of(
                "rank",
                &[("1d", 1), ("2d", 2), ("3d", 3), ("4d", 4), ("5d", 5)],
            )?),
            false => None,
        };
        self.take("tile");
        let cached = self.take("L2::cache_hint");
        if self.take("bulk_group") {
            if !(self.take("global") && self.take("shared::cta")) {
                return Err(self.refuse("a bulk group goes from shared::cta to global"));
            }
            self.count(
                (if tensor { 2 } else { 3 }) + usize::from(cached)..=3 + usize::from(cached),
            )?;
            return Ok(Op::BulkStore {
                to: self.remote(0, 2, rank)?,
                from: self.address(1)?,
            });
        }
        if !(self.take("mbarrier::complete_tx::bytes") && self.take("global"))
            || !(self.take("shared::cluster") || self.take("shared::cta"))
        {
            return Err(self.refuse(
                "copies go from global to shared memory by an mbarrier, or back by a bulk group",
            ));
        }
        let multicast = self.take("multicast::cluster");
        let barrier = if tensor { 2 } else { 3 };
        Ok(Op::BulkLoad {
            to: self.address(0)?,
            from: self.remote(1, 2, rank)?,
            barrier: self.address(barrier)?,
            multicast: match multicast {
                true => Some(self.source(barrier + 1, 16)?),
                false => None,
            },
        })
    }

    /// The memory beyond the block: a tensor's box, or bytes whose number stands elsewhere.
    fn remote(&mut self, index: usize, bytes: usize, rank: Option<usize>) -> Result<Remote> {
        let Some(rank) = rank else {
            return Ok(Remote::Bytes {
                address: self.address(index)?,
                bytes: self.source(bytes, 32)?,
            });
        };
        let Operand::Tensor(map, coordinates) = self.operand(index)? else {
            return Err(self.refuse("no tensor map with coordinates"));
        };
        if coordinates.len() != rank {
            return Err(self.refuse(format!("{} coordinates", coordinates.len())));
        }
        let Operand::Address(base, offset) = map.as_ref() else {
            return Err(self.refuse("no address of a tensor map"));
        };
        let map = Address {
            base: self.source_of(base, 64)?,
            offset: *offset,
        };
        let coordinates = coordinates
            .iter()
            .map(|coordinate| self.source_of(coordinate, 32))
            .collect::<Result<_>>()?;
        Ok(Remote::Tensor { map, coordinates })
    }

    fn wgmma(&mut self) -> Result<Op> {
        let operation = self.modifiers.first().copied().unwrap_or_default();
        self.take(operation);
        if !(self.take("sync") && self.take("aligned")) {
            return Err(self.refuse("only .sync.aligned is accepted"));
        }
        match operation {
            "fence" => return Ok(Op::WgmmaFence),
            "commit_group" => return Ok(Op::WgmmaCommit),
            "wait_group" => {
                let Operand::Integer(left @ 0..=7) = self.operand(0)? else {
                    return Err(self.refuse("the number of groups is an immediate up to 7"));
                };
                return Ok(Op::WgmmaWait { left: *left as u32 });
            }
            "mma_async" => {}
            _ => return Err(self.refuse("this operation is not accepted")),
        }
        let saturate = self.take("satfinite");
        let [shape, d_type, a_type, b_type] = self.modifiers[..] else {
            return Err(self.refuse("shape and three types are expected"));
        };
        self.modifiers.clear();
        let sizes = shape
            .strip_prefix("m64n")
            .and_then(|rest| rest.split_once('k'));
        let sizes = sizes.and_then(|(n, k)| Some((n.parse::<u16>().ok()?, k.parse::<u8>().ok()?)));
        let (n, k) = sizes.ok_or_else(|| self.refuse("the shape is not accepted"))?;
        let element = |name| {
            let found = super::collective::ELEMENTS
                .iter()
                .find(|(of, _)| *of == name);
            found.map(|(_, element)| *element)
        };
        let types = [d_type, a_type, b_type].map(element);
        let [Some(d_type), Some(a_type), Some(b_type)] = types else {
            return Err(self.refuse("a type is not accepted"));
        };
        use Element::{Bf16, E4m3, E5m2, F16, F32, S8, S32, Tf32, U8};
        let (long, d_types): (u8, &[Element]) = match (a_type, b_type) {
            (F16, F16) => (16, &[F16, F32]),
            (Bf16, Bf16) => (16, &[F32]),
            (Tf32, Tf32) => (8, &[F32]),
            (E4m3 | E5m2, E4m3 | E5m2) => (32, &[F16, F32]),
            (S8 | U8, S8 | U8) => (32, &[S32]),
            _ => (0, &[]),
        };
        let whole = a_type == S8 || a_type == U8;
        // Integers: 8, 16, 24, 32 and from there on multiples of 16.
        let wide = (8..=256).contains(&n)
            && n.is_multiple_of(8)
            && (!whole || n <= 32 || n.is_multiple_of(16));
        if k != long || !wide || !d_types.contains(&d_type) || saturate && !whole {
            return Err(self.refuse("this combination of shape and types is not accepted"));
        }
        let halves = matches!(a_type, F16 | Bf16);
        let in_registers = matches!(self.operand(1)?, Operand::Vector(_));
        let signs = if whole { 0 } else { 2 };
        let turns = match (halves, in_registers) {
            (false, _) => 0,
            (true, true) => 1,
            (true, false) => 2,
        };
        self.count(4 + signs + turns..=4 + signs + turns)?;
        let immediate = |index: usize| match self.operand(index)? {
            Operand::Integer(value) => Ok(*value as i64),
            _ => Err(self.refuse("an immediate is expected")),
        };
        let mut negate = [false; 2];
        for (index, negate) in negate.iter_mut().enumerate().take(signs) {
            *negate = match immediate(4 + index)? {
                1 => false,
                -1 => true,
                _ => return Err(self.refuse("a scale is 1 or -1")),
            };
        }
        let mut across = [false; 2];
        for index in 0..turns {
            across[2 - turns + index] = match immediate(4 + signs + index)? {
                0 => false,
                1 => true,
                _ => return Err(self.refuse("a transposition is 0 or 1")),
            };
        }
        let sums = usize::from(n) / if d_type == F16 { 4 } else { 2 };
        Ok(Op::Wgmma(Box::new(Wgmma {
            n,
            k,
            a_type,
            b_type,
            d_type,
            saturate,
            d: self.registers(0, sums)?,
            a: match in_registers {
                true => Factor::Registers(self.registers(1, 4)?),
                false => Factor::Shared(self.source(1, 64)?),
            },
            b: self.source(2, 64)?,
            accumulate: self.predicate(3)?,
            negate,
            across,
        })))
    }
}
