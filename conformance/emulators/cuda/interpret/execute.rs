//! What an instruction does to a warp's registers, and what its lanes do together.

use super::access::{LOCAL_WINDOW, PARAMETER_WINDOW, SHARED_WINDOW, WINDOW_MASK};
use super::cluster::State;
use super::launch::Launch;
use super::report::{Detector, Fault};
use super::warp::Warp;
use super::{LANES, Lanes, convert, float, integer, lanes_of, map1, map2, map3};
use crate::ptx::instruction::{
    Boolean, Compared, Integer, Integer2, Op, Predicate, Reg, ShuffleMode, Space, Test, VoteMode,
};

/// What a lane gets that reads from a lane that takes no part: nothing that a kernel expects.
const UNDEFINED: u64 = 0x7FFF_DEAD;

impl Op {
    /// Whether lanes do it together, and so may have to wait for each other.
    pub(super) fn is_collective(&self) -> bool {
        matches!(
            self,
            Op::Shuffle { .. }
                | Op::Vote { .. }
                | Op::Match { .. }
                | Op::Reduce { .. }
                | Op::Elect { .. }
                | Op::Barrier { .. }
                | Op::WarpBarrier { .. }
                | Op::LoadMatrix { .. }
                | Op::StoreMatrix { .. }
                | Op::Mma(_)
                | Op::Wgmma(_)
                | Op::WgmmaFence
                | Op::WgmmaCommit
                | Op::WgmmaWait { .. }
                | Op::SetRegisters { .. }
                | Op::PhaseTest { .. }
                | Op::ClusterArrive
                | Op::ClusterWait
        )
    }

    /// The register that names the lanes; `None` is all that live.
    fn members(&self) -> Option<Reg> {
        match self {
            Op::Shuffle { members, .. }
            | Op::Vote { members, .. }
            | Op::Match { members, .. }
            | Op::Reduce { members, .. }
            | Op::Elect { members, .. }
            | Op::WarpBarrier { members } => Some(*members),
            _ => None,
        }
    }
}

impl Warp {
    /// Executes what each lane does by itself.
    pub(super) fn execute(
        &mut self,
        launch: &Launch<'_>,
        state: &mut State,
        op: &Op,
        active: u32,
    ) -> Result<(), Box<Fault>> {
        let r = |register: Reg| &self.registers[register as usize];
        let (d, value) = match op {
            Op::Move { d, a } => (*d, *r(*a)),
            Op::Integer2 {
                op: Integer2::Add,
                ty: Integer::U32 | Integer::S32,
                d,
                a,
                b,
            } => (
                *d,
                map2(r(*a), r(*b), |a, b| {
                    u64::from((a as u32).wrapping_add(b as u32))
                }),
            ),
            Op::Integer1 { op, ty, d, a } => (*d, integer::one(*op, *ty, r(*a))),
            Op::Integer2 { op, ty, d, a, b } => (*d, integer::two(*op, *ty, r(*a), r(*b))),
            Op::Integer3 { op, ty, d, a, b, c } => {
                (*d, integer::three(*op, *ty, r(*a), r(*b), r(*c)))
            }
            Op::Insert {
                wide,
                d,
                a,
                b,
                position,
                length,
            } => {
                let (a, b, position, length) = (r(*a), r(*b), r(*position), r(*length));
                let lane = |i: usize| integer::insert(*wide, a[i], b[i], position[i], length[i]);
                (*d, std::array::from_fn(lane))
            }
            Op::Float1 { op, ty, mode, d, a } => (*d, float::one(*op, *ty, *mode, r(*a))),
            Op::Float2 {
                op,
                ty,
                mode,
                d,
                a,
                b,
            } => (*d, float::two(*op, *ty, *mode, r(*a), r(*b))),
            Op::Fma {
                ty,
                mode,
                d,
                a,
                b,
                c,
            } => (*d, float::fma(*ty, *mode, r(*a), r(*b), r(*c))),
            Op::Convert {
                to,
                from,
                integral,
                mode,
                width,
                d,
                a,
            } => (
                *d,
                map1(r(*a), |a| {
                    convert::one(*to, *from, *integral, *mode, *width, a)
                }),
            ),
            Op::ConvertPair { to, mode, d, a, b } => (
                *d,
                map2(r(*a), r(*b), |a, b| convert::pair(*to, *mode, a, b)),
            ),
            Op::WidenPair { from, relu, d, a } => {
                (*d, map1(r(*a), |a| convert::widen_pair(*from, *relu, a)))
            }
            Op::Select { d, a, b, p } => {
                let (a, b, p) = (r(*a), r(*b), self.predicate(*p));
                (
                    *d,
                    std::array::from_fn(|lane| if p >> lane & 1 == 1 { a[lane] } else { b[lane] }),
                )
            }
            Op::SelectSign {
                float,
                flush,
                d,
                a,
                b,
                c,
            } => (
                *d,
                map3(r(*a), r(*b), r(*c), |a, b, c| {
                    let first = if *float {
                        let value = f32::from_bits(c as u32);
                        value >= 0.0 || *flush && value.is_subnormal()
                    } else {
                        c as i32 >= 0
                    };
                    if first { a } else { b }
                }),
            ),
            Op::Pack { d, parts, bits } => {
                let mut value = [0; LANES];
                for (index, part) in parts.iter().enumerate() {
                    let mask = u64::MAX >> (64 - bits);
                    let shift = index as u32 * u32::from(*bits);
                    value = map2(&value, r(*part), |value, part| {
                        value | (part & mask) << shift
                    });
                }
                (*d, value)
            }
            Op::Set {
                ty,
                test,
                flush,
                combine,
                truth,
                d,
                a,
                b,
            } => {
                let (low, _) = self.compare(*ty, *test, *flush, *a, *b);
                let bits = self.combined(*combine, low);
                (
                    *d,
                    std::array::from_fn(|lane| if bits >> lane & 1 == 1 { *truth } else { 0 }),
                )
            }
            Op::ConvertAddress { space, to, d, a } => {
                let window = window_of(*space);
                (
                    *d,
                    map1(r(*a), |a| {
                        if *to {
                            a.wrapping_sub(window)
                        } else {
                            a.wrapping_add(window)
                        }
                    }),
                )
            }
            Op::ActiveMask { d } => (*d, [u64::from(active); LANES]),
            Op::Clock { d, bits } => {
                let now = state.lane_instructions.wrapping_add(u64::from(self.pc));
                (*d, [now & (u64::MAX >> (64 - bits)); LANES])
            }
            _ => return self.execute_other(launch, state, op, active),
        };
        self.write(d, active, &value);
        Ok(())
    }

    /// What writes predicates, several registers, or memory.
    fn execute_other(
        &mut self,
        launch: &Launch<'_>,
        state: &mut State,
        op: &Op,
        active: u32,
    ) -> Result<(), Box<Fault>> {
        match op {
            Op::SetPredicate {
                ty,
                test,
                flush,
                combine,
                p,
                q,
                a,
                b,
            } => {
                let (low, other) = self.compare(*ty, *test, *flush, *a, *b);
                let (first, second) =
                    (self.combined(*combine, low), self.combined(*combine, other));
                if let Some(p) = p {
                    self.write_predicate(*p, active, first);
                }
                if let Some(q) = q {
                    self.write_predicate(*q, active, second);
                }
            }
            Op::MovePredicate { d, a } => {
                let value = self.predicate(*a);
                self.write_predicate(*d, active, value);
            }
            Op::Logic { op, d, a, b } => {
                let value = logic(*op, self.predicate(*a), self.predicate(*b));
                self.write_predicate(*d, active, value);
            }
            Op::TestProperty { property, ty, d, a } => {
                let value = float::has_property(*property, *ty, self.register(*a));
                self.write_predicate(*d, active, value);
            }
            Op::IsSpace { space, d, a } => {
                let window = window_of(*space);
                let inside = |address: u64| address & WINDOW_MASK == window;
                let value = bits(self.register(*a), inside);
                self.write_predicate(*d, active, value);
            }
            Op::Unpack { d, a, bits } => {
                let value = *self.register(*a);
                let mask = u64::MAX >> (64 - bits);
                for (index, d) in d.iter().enumerate() {
                    if let Some(d) = d {
                        let shift = index as u32 * u32::from(*bits);
                        self.write(*d, active, &map1(&value, |value| value >> shift & mask));
                    }
                }
            }
            Op::Carry {
                op,
                ty,
                reads,
                writes,
                d,
                a,
                b,
                c,
            } => {
                let incoming = if *reads { self.carry } else { 0 };
                let sources = [self.register(*a), self.register(*b), self.register(*c)];
                let (value, outgoing) = integer::carry(*op, *ty, incoming, sources);
                if *writes {
                    self.carry = self.carry & !active | outgoing & active;
                }
                self.write(*d, active, &value);
            }
            Op::ProxyFence => state.clocks.fence_for_engines(self.clock(), active),
            Op::DependencyWait => self.depends_no_more = true,
            // Mbarriers only, which engines may count in then.
            Op::PhaseInitFence => {
                state.clocks.fence_for_engines(self.clock(), active);
                state.clocks.fence(self.clock());
            }
            Op::Fence => state.clocks.fence(self.clock()),
            Op::Trap => {
                return Err(Fault::new(
                    Detector::Trap,
                    active.trailing_zeros(),
                    "the kernel executed trap",
                ));
            }
            Op::Nothing => {}
            _ => return self.access(launch, state, op, active),
        }
        Ok(())
    }

    fn compare(&self, ty: Compared, test: Test, flush: bool, a: Reg, b: Reg) -> (u32, u32) {
        let (a, b) = (self.register(a), self.register(b));
        match ty {
            Compared::Integer(ty) => {
                let low = integer::compare(test, ty, a, b);
                (low, !low)
            }
            Compared::Float(ty) => float::compare(test, ty, flush, a, b),
        }
    }

    fn combined(&self, combine: Option<(Boolean, Predicate)>, value: u32) -> u32 {
        combine.map_or(value, |(op, with)| logic(op, value, self.predicate(with)))
    }

    /// Executes what lanes do together, for those whose partners are all here; gives the lanes that are through.
    pub(super) fn collective(
        &mut self,
        launch: &Launch<'_>,
        state: &mut State,
        op: &Op,
        active: u32,
        mask: u32,
    ) -> Result<u32, Box<Fault>> {
        let beside = mask & !active;
        let Some(members) = op.members() else {
            if let Op::Barrier { .. } = op {
                return Ok(self.barrier(state, op, active)? | beside);
            }
            if let Op::PhaseTest { .. } = op {
                return Ok(self.test_phase(state, op, active)? | beside);
            }
            if active != self.live {
                return Ok(beside);
            }
            if let Op::ClusterArrive | Op::ClusterWait = op {
                return Ok(self.cluster_barrier(state, op) | beside);
            }
            self.matrix(launch, state, op, active)?;
            return Ok(active | beside);
        };
        let members = *self.register(members);
        let mut done = 0;
        let mut left = active;
        while left != 0 {
            let lane = left.trailing_zeros();
            let named = members[lane as usize] as u32;
            let same = lanes_of(left)
                .filter(|&other| members[other] as u32 == named)
                .fold(0, |same, lane| same | 1 << lane);
            left &= !same;
            if same & !named != 0 {
                let lane = (same & !named).trailing_zeros();
                return Err(Fault::new(
                    Detector::WarpDivergence,
                    lane,
                    format!("lane {lane} is not in its own mask {named:#010x}"),
                ));
            }
            if named & self.live & !same == 0 {
                self.together(state, op, same)?;
                done |= same;
            }
        }
        Ok(done | beside)
    }

    /// A collective instruction of lanes that name each other.
    fn together(&mut self, state: &mut State, op: &Op, lanes: u32) -> Result<(), Box<Fault>> {
        match op {
            Op::WarpBarrier { .. } => state.clocks.advance(self.clock()),
            Op::Shuffle {
                mode,
                d,
                p,
                a,
                b,
                c,
                ..
            } => {
                let (value, valid) = self.shuffled(*mode, *a, *b, *c, lanes);
                self.write(*d, lanes, &value);
                if let Some(p) = p {
                    self.write_predicate(*p, lanes, valid);
                }
            }
            Op::Vote { mode, d, p, a, .. } => {
                let votes = self.predicate(*a) & lanes;
                let result = match mode {
                    VoteMode::Ballot => {
                        self.write(*d, lanes, &[u64::from(votes); LANES]);
                        return Ok(());
                    }
                    VoteMode::All => votes == lanes,
                    VoteMode::Any => votes != 0,
                    VoteMode::Uniform => votes == lanes || votes == 0,
                };
                self.write_predicate(*p, lanes, if result { u32::MAX } else { 0 });
            }
            Op::Match { all, d, p, a, .. } => {
                let value = *self.register(*a);
                let same = |lane: usize| {
                    lanes_of(lanes)
                        .filter(|&other| value[other] == value[lane])
                        .fold(0_u32, |m, l| m | 1 << l)
                };
                let masks: Lanes = std::array::from_fn(|lane| u64::from(same(lane)));
                if *all {
                    let agree = masks[lanes.trailing_zeros() as usize] == u64::from(lanes);
                    self.write(
                        *d,
                        lanes,
                        &[if agree { u64::from(lanes) } else { 0 }; LANES],
                    );
                    if let Some(p) = p {
                        self.write_predicate(*p, lanes, if agree { u32::MAX } else { 0 });
                    }
                } else {
                    self.write(*d, lanes, &masks);
                }
            }
            Op::Reduce { op, ty, d, a, .. } => {
                let value = *self.register(*a);
                let total = lanes_of(lanes)
                    .map(|lane| value[lane])
                    .reduce(|x, y| integer::combine(*op, *ty, x, y, 0));
                self.write(*d, lanes, &[total.unwrap_or(0); LANES]);
            }
            Op::Elect { d, p, .. } => {
                let leader = lanes.trailing_zeros();
                if let Some(d) = d {
                    self.write(*d, lanes, &[u64::from(leader); LANES]);
                }
                self.write_predicate(*p, lanes, 1 << leader);
            }
            _ => {}
        }
        Ok(())
    }

    fn shuffled(&self, mode: ShuffleMode, a: Reg, b: Reg, c: Reg, lanes: u32) -> (Lanes, u32) {
        let (a, b, c) = (self.register(a), self.register(b), self.register(c));
        let mut valid = 0;
        let value = std::array::from_fn(|lane| {
            // The ISA's own formulas: c holds a clamp in bits 0-4 and a segment mask in bits 8-12.
            let (b, clamp, segment) = (
                b[lane] as u32 & 31,
                c[lane] as u32 & 31,
                c[lane] as u32 >> 8 & 31,
            );
            let me = lane as u32;
            let max = me & segment | clamp & !segment;
            let min = me & segment;
            let (from, inside) = match mode {
                ShuffleMode::Up => (me.wrapping_sub(b), me as i32 - b as i32 >= max as i32),
                ShuffleMode::Down => (me + b, me + b <= max),
                ShuffleMode::Butterfly => (me ^ b, me ^ b <= max),
                ShuffleMode::Index => (min | b & !segment, min | b & !segment <= max),
            };
            valid |= u32::from(inside) << lane;
            let from = if inside { from } else { me };
            if lanes >> from & 1 == 1 {
                a[from as usize]
            } else {
                UNDEFINED
            }
        });
        (value, valid)
    }
}

fn logic(op: Boolean, a: u32, b: u32) -> u32 {
    match op {
        Boolean::And => a & b,
        Boolean::Or => a | b,
        Boolean::Xor => a ^ b,
    }
}

fn bits(a: &Lanes, f: impl Fn(u64) -> bool) -> u32 {
    (0..LANES).fold(0, |bits, lane| bits | u32::from(f(a[lane])) << lane)
}

/// Where a state space lies among generic addresses.
fn window_of(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Parameter => PARAMETER_WINDOW,
        Space::Global | Space::Constant | Space::Generic => 0,
    }
}
