//! A warp: registers, and groups of lanes that stand at one instruction.
//!
//! Lanes that branch apart become groups; the group that stands first in the text runs, and groups that meet join. Lanes that wait for
//! each other (`.sync` instructions, barriers) stand still until those they name have come, so that reconvergence does not decide
//! about right and wrong. Now and then another group runs first, so that lanes can wait for what others of their warp store.

use super::bulk::LaneStores;
use super::cluster::State;
use super::copies::LaneCopies;
use super::launch::Launch;
use super::products::Products;
use super::report::{Detector, Fault};
use super::{LANES, Lanes, cluster, lanes_of};
use crate::ptx::instruction::{
    BarrierKind, BarrierReduction, Constant, Op, Predicate, Reg, Special,
};

/// What a group waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Nothing,
    /// Other lanes of the warp, at the same instruction.
    Lanes,
    /// A barrier of the block.
    Barrier(u32),
    /// A phase of an mbarrier, asked for again whenever one has completed.
    Phase,
    /// The barrier of the cluster.
    Cluster,
}

impl Wait {
    /// Whether others than lanes of the warp are waited for.
    pub(super) fn is_parked(self) -> bool {
        !matches!(self, Wait::Nothing | Wait::Lanes)
    }
}

/// Lanes that stand at one instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub(super) pc: u32,
    pub(super) mask: u32,
    pub(super) wait: Wait,
}

pub(super) struct Warp {
    /// The block in its cluster.
    pub(super) rank: usize,
    /// Warps of a block.
    pub(super) warps: usize,
    /// Its number in its block.
    pub(super) number: u32,
    pub(super) registers: Vec<Lanes>,
    pub(super) predicates: Vec<u32>,
    pub(super) carry: u32,
    /// Lanes that have not ended.
    pub(super) live: u32,
    groups: Vec<Group>,
    pub(super) local: Vec<u8>,
    /// Asynchronous copies of each lane; empty before the first.
    pub(super) copies: Vec<LaneCopies>,
    /// Bulk stores of each lane; empty before the first.
    pub(super) stores: Vec<LaneStores>,
    /// Products of the warpgroup, as far as they are this warp's.
    pub(super) products: Products,
    /// How often it has arrived at the cluster's barrier.
    pub(super) cluster_arrivals: u32,
    /// Whether it has waited for the launch before.
    pub(super) depends_no_more: bool,
    /// Whether no group could run when it last had its turn.
    is_stuck: bool,
    /// Where the group that runs stands.
    pub(super) pc: u32,
    /// Where each lane stood when it faulted or waited.
    last: u32,
}

impl Warp {
    pub(super) fn new(
        launch: &Launch<'_>,
        index: [u32; 3],
        rank: usize,
        number: u32,
        threads: u32,
    ) -> Warp {
        let function = launch.function;
        let present = (threads - number * LANES as u32).min(LANES as u32);
        let live = u32::MAX >> (LANES as u32 - present);
        // Registers begin with a pattern that no kernel expects.
        let mut registers = vec![[0x7FFF_DEAD; LANES]; function.registers as usize];
        for (register, constant) in &function.constants {
            registers[*register as usize] = constant_lanes(launch, index, rank, number, *constant);
        }
        let mut predicates = vec![0; function.predicates as usize];
        predicates[0] = u32::MAX;
        Warp {
            rank,
            warps: threads.div_ceil(LANES as u32) as usize,
            number,
            registers,
            predicates,
            carry: 0,
            live,
            groups: vec![Group {
                pc: 0,
                mask: live,
                wait: Wait::Nothing,
            }],
            local: vec![0xFF; function.local_bytes as usize * LANES],
            copies: Vec::new(),
            stores: Vec::new(),
            products: Products::default(),
            cluster_arrivals: 0,
            depends_no_more: false,
            is_stuck: false,
            pc: 0,
            last: 0,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.live == 0
    }

    pub(super) fn can_run(&self) -> bool {
        let ready = |group: &Group| match group.wait {
            Wait::Nothing => true,
            // They may have come together since.
            Wait::Lanes => !self.is_stuck,
            _ => false,
        };
        self.groups.iter().any(ready)
    }

    /// A phase of an mbarrier has completed: whoever waits for one asks again.
    pub(super) fn wake(&mut self) {
        for group in &mut self.groups {
            if group.wait == Wait::Phase {
                group.wait = Wait::Nothing;
            }
        }
    }

    /// The cluster's barrier has opened so often.
    pub(super) fn release_cluster(&mut self, opened: u32) {
        for group in &mut self.groups {
            if group.wait == Wait::Cluster && self.cluster_arrivals <= opened {
                group.wait = Wait::Nothing;
            }
        }
    }

    /// Arrives at the cluster's barrier, or waits for it; gives the lanes that may go on.
    pub(super) fn cluster_barrier(&mut self, state: &mut State, op: &Op) -> u32 {
        if let Op::ClusterArrive = op {
            self.cluster_arrivals += 1;
            state.arrive_in_cluster(self.clock());
            return self.live;
        }
        if state.has_opened(self.cluster_arrivals) {
            self.live
        } else {
            0
        }
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    pub(super) fn first_lane(&self) -> u32 {
        self.live.trailing_zeros().min(LANES as u32 - 1)
    }

    /// Where a lane stands.
    pub(super) fn pc_of(&self, lane: u32) -> u32 {
        let group = self.groups.iter().find(|group| group.mask >> lane & 1 == 1);
        group.map_or(self.last, |group| group.pc)
    }

    #[inline]
    pub(super) fn register(&self, register: Reg) -> &Lanes {
        &self.registers[register as usize]
    }

    #[inline]
    pub(super) fn write(&mut self, register: Reg, mask: u32, value: &Lanes) {
        let target = &mut self.registers[register as usize];
        if mask == u32::MAX {
            *target = *value;
        } else {
            for lane in 0..LANES {
                if mask >> lane & 1 == 1 {
                    target[lane] = value[lane];
                }
            }
        }
    }

    #[inline]
    pub(super) fn predicate(&self, predicate: Predicate) -> u32 {
        let value = self.predicates[predicate.register as usize];
        if predicate.negated { !value } else { value }
    }

    pub(super) fn write_predicate(&mut self, predicate: u32, mask: u32, value: u32) {
        let target = &mut self.predicates[predicate as usize];
        *target = *target & !mask | value & mask;
    }

    /// Runs up to so many instructions, until nothing can go on.
    pub(super) fn run(
        &mut self,
        launch: &Launch<'_>,
        state: &mut State,
        turn: u32,
    ) -> Result<(), Box<Fault>> {
        let mut left = turn;
        let mut any = state.random.draw().is_multiple_of(4);
        while left > 0 {
            let Some(chosen) = self.choose(state, std::mem::take(&mut any)) else {
                self.is_stuck = true;
                return self.stuck(launch);
            };
            self.is_stuck = false;
            self.run_group(launch, state, chosen, &mut left)?;
        }
        Ok(())
    }

    /// Joins groups that stand at one instruction, and picks the one that runs.
    fn choose(&mut self, state: &mut State, any: bool) -> Option<usize> {
        if self.groups.len() > 1 {
            self.groups.retain(|group| group.mask != 0);
            self.groups.sort_unstable_by_key(|group| group.pc);
            self.groups.dedup_by(|next, group| {
                let join = next.pc == group.pc
                    && ![next.wait, group.wait].into_iter().any(Wait::is_parked);
                if join {
                    group.mask |= next.mask;
                    group.wait = Wait::Nothing;
                }
                join
            });
        }
        let ready = |group: &Group| group.wait == Wait::Nothing && group.mask != 0;
        if any && self.groups.len() > 1 {
            let ready: Vec<_> = (0..self.groups.len())
                .filter(|&index| ready(&self.groups[index]))
                .collect();
            if !ready.is_empty() {
                return Some(ready[state.random.below(ready.len())]);
            }
        }
        self.groups.iter().position(ready)
    }

    /// No group can run: each waits for the block, or lanes wait for lanes that will not come.
    fn stuck(&mut self, launch: &Launch<'_>) -> Result<(), Box<Fault>> {
        let waiting = |parked: bool| {
            self.groups
                .iter()
                .filter(move |group| group.mask != 0 && group.wait.is_parked() == parked)
        };
        let Some(first) = waiting(false).next() else {
            return Ok(());
        };
        if waiting(true).next().is_some() {
            return Ok(());
        }
        let code = &launch.function.code;
        let places: Vec<_> = waiting(false)
            .map(|group| {
                format!(
                    "lanes {:#010x} at line {}",
                    group.mask, code[group.pc as usize].line
                )
            })
            .collect();
        let barrier = self
            .groups
            .iter()
            .any(|group| matches!(code[group.pc as usize].op, Op::Barrier { .. }));
        let detector = if barrier {
            Detector::BarrierDivergence
        } else {
            Detector::WarpDivergence
        };
        Err(Fault::new(
            detector,
            first.mask.trailing_zeros(),
            format!(
                "lanes of a warp wait for each other: {} of {:#010x}",
                places.join(", "),
                self.live
            ),
        ))
    }

    fn run_group(
        &mut self,
        launch: &Launch<'_>,
        state: &mut State,
        chosen: usize,
        left: &mut u32,
    ) -> Result<(), Box<Fault>> {
        let code = &launch.function.code;
        let Group {
            mut pc, mut mask, ..
        } = self.groups[chosen];
        let alone = self.groups.len() == 1;
        // Where it meets another group.
        let limit = self
            .groups
            .iter()
            .filter(|group| group.pc > pc)
            .map(|group| group.pc)
            .min()
            .unwrap_or(u32::MAX);
        while *left > 0 && pc < limit {
            *left -= 1;
            let instruction = &code[pc as usize];
            let active = mask & self.predicate(instruction.guard);
            state.lane_instructions += u64::from(active.count_ones());
            if active == 0 {
                pc += 1;
                continue;
            }
            self.pc = pc;
            self.last = pc;
            if self.products.are_in_flight() {
                let operands = &launch.function.operands[pc as usize];
                if let Err(fault) = self.check_in_flight(instruction, operands, active) {
                    self.groups[chosen].pc = pc;
                    return Err(fault);
                }
            }
            match &instruction.op {
                Op::Branch { target } => {
                    if active == mask {
                        pc = *target;
                        if alone {
                            continue;
                        }
                    } else {
                        self.groups.push(Group {
                            pc: *target,
                            mask: active,
                            wait: Wait::Nothing,
                        });
                        mask &= !active;
                        pc += 1;
                    }
                    break;
                }
                Op::BranchIndexed { index, targets } => {
                    let index = *self.register(*index);
                    mask &= !active;
                    pc += 1;
                    for lane in lanes_of(active) {
                        let Some(target) = targets.get(index[lane] as u32 as usize) else {
                            self.groups[chosen].pc = self.pc;
                            let message =
                                format!("branch {} of {}", index[lane] as u32, targets.len());
                            return Err(Fault::new(Detector::Trap, lane as u32, message));
                        };
                        self.groups.push(Group {
                            pc: *target,
                            mask: 1 << lane,
                            wait: Wait::Nothing,
                        });
                    }
                    break;
                }
                Op::Exit => {
                    self.groups[chosen].pc = pc;
                    self.exit(state, active)?;
                    mask &= !active;
                    pc += 1;
                    if mask == 0 {
                        break;
                    }
                }
                op if op.is_collective() => {
                    self.groups[chosen].pc = pc;
                    let done = self.collective(launch, state, op, active, mask)?;
                    if done == mask {
                        pc += 1;
                        continue;
                    }
                    // Lanes that did it, or need not, go on; the others wait for those they name.
                    let waits = active & !done;
                    let on = mask & !waits;
                    if on != 0 {
                        self.groups.push(Group {
                            pc: pc + 1,
                            mask: on,
                            wait: Wait::Nothing,
                        });
                    }
                    mask = waits;
                    self.groups[chosen].wait = self.waiting_for(op, waits);
                    break;
                }
                op => {
                    self.groups[chosen].pc = pc;
                    self.execute(launch, state, op, active)?;
                    pc += 1;
                }
            }
        }
        self.groups[chosen].pc = pc;
        self.groups[chosen].mask = mask;
        if mask == 0 {
            self.groups.swap_remove(chosen);
        }
        Ok(())
    }

    fn exit(&mut self, state: &mut State, lanes: u32) -> Result<(), Box<Fault>> {
        let reading = |lane: &usize| self.stores.get(*lane).is_some_and(LaneStores::are_reading);
        if let Some(lane) = lanes_of(lanes).find(reading) {
            let message = "the thread ends, and with it its block's shared memory, which bulk stores still read: no cp.async.bulk.wait_group";
            return Err(Fault::new(Detector::Engine, lane as u32, message));
        }
        if self.products.are_in_flight() {
            let message = "the thread ends before wgmma.wait_group";
            return Err(Fault::new(
                Detector::Engine,
                lanes.trailing_zeros(),
                message,
            ));
        }
        state.end_threads(self.rank, self.clock(), lanes)?;
        self.live &= !lanes;
        // Who waits for lanes that ended has to look again.
        for group in &mut self.groups {
            if group.wait == Wait::Lanes {
                group.wait = Wait::Nothing;
            }
        }
        Ok(())
    }

    /// What lanes that did not do a collective instruction wait for: at a barrier they have arrived, unless their warp is not there.
    fn waiting_for(&self, op: &Op, lanes: u32) -> Wait {
        match op {
            Op::Barrier { id, aligned, .. } if !aligned || lanes == self.live => {
                Wait::Barrier(self.register(*id)[lanes.trailing_zeros() as usize] as u32)
            }
            Op::PhaseTest { .. } => Wait::Phase,
            Op::ClusterWait if lanes == self.live => Wait::Cluster,
            _ => Wait::Lanes,
        }
    }

    /// Arrives at a barrier with lanes; gives those that may go on.
    pub(super) fn barrier(
        &mut self,
        state: &mut State,
        op: &Op,
        active: u32,
    ) -> Result<u32, Box<Fault>> {
        let Op::Barrier {
            kind,
            aligned,
            id,
            count,
        } = op
        else {
            return Ok(active);
        };
        if *aligned && active != self.live {
            return Ok(0);
        }
        let lane = active.trailing_zeros();
        let id = self.register(*id)[lane as usize];
        let count = count.map(|count| self.register(count)[lane as usize]);
        let votes = match kind {
            BarrierKind::Reduce(_, source) => (
                (self.predicate(*source) & active).count_ones(),
                active.count_ones(),
            ),
            _ => (0, active.count_ones()),
        };
        // Lanes that a short last warp lacks count with its first.
        let missing = if self.live & active & self.live.wrapping_neg() != 0 {
            LANES as u32 - self.live.count_ones()
        } else {
            0
        };
        state.arrive(
            (self.rank, self.clock()),
            (lane, active.count_ones() + missing),
            self.pc,
            (id, count),
            kind,
            votes,
        )?;
        Ok(if matches!(kind, BarrierKind::Arrive) {
            active
        } else {
            0
        })
    }

    /// A barrier opens: whoever waits there goes on. Says whether somebody did.
    pub(super) fn release(&mut self, launch: &Launch<'_>, id: u32, votes: (u32, u32)) -> bool {
        let mut released = false;
        for index in 0..self.groups.len() {
            let Group { pc, mask, wait } = self.groups[index];
            if wait != Wait::Barrier(id) {
                continue;
            }
            released = true;
            if let Op::Barrier {
                kind: BarrierKind::Reduce(reduction, _),
                ..
            } = &launch.function.code[pc as usize].op
            {
                let value = cluster::reduced(*reduction, votes);
                match *reduction {
                    BarrierReduction::PopulationCount(d) => {
                        self.write(d, mask, &[u64::from(value); LANES])
                    }
                    BarrierReduction::And(p) | BarrierReduction::Or(p) => {
                        self.write_predicate(p, mask, if value == 0 { 0 } else { u32::MAX });
                    }
                }
            }
            self.groups[index].pc = pc + 1;
            self.groups[index].wait = Wait::Nothing;
        }
        released
    }
}

fn constant_lanes(
    launch: &Launch<'_>,
    index: [u32; 3],
    rank: usize,
    warp: u32,
    constant: Constant,
) -> Lanes {
    let function = launch.function;
    let dynamic = function.dynamic_shared();
    let uniform = |value: u64| [value; LANES];
    let lanes = |f: &dyn Fn(u32) -> u32| std::array::from_fn(|lane| u64::from(f(lane as u32)));
    let [x, y, z] = launch.block;
    match constant {
        Constant::Value(value) => uniform(value),
        Constant::Shared(address) | Constant::Local(address) | Constant::Parameter(address) => {
            uniform(u64::from(address))
        }
        Constant::DynamicShared => uniform(u64::from(dynamic)),
        Constant::Variable(number, offset) => uniform(
            launch
                .variables
                .get(number)
                .copied()
                .unwrap_or(0)
                .wrapping_add_signed(offset),
        ),
        Constant::Special(special) => match special {
            Special::Tid(axis) => lanes(&|lane| {
                let thread = warp * LANES as u32 + lane;
                [thread % x, thread / x % y, thread / x / y % z][usize::from(axis)]
            }),
            Special::Ntid(axis) => uniform(u64::from(launch.block[usize::from(axis)])),
            Special::Ctaid(axis) => uniform(u64::from(index[usize::from(axis)])),
            Special::Nctaid(axis) => uniform(u64::from(launch.grid[usize::from(axis)])),
            Special::Laneid => lanes(&|lane| lane),
            Special::Warpid => uniform(u64::from(warp)),
            Special::Nwarpid => uniform(u64::from((x * y * z).div_ceil(LANES as u32))),
            Special::Smid | Special::Gridid => uniform(0),
            Special::Nsmid => uniform(1),
            Special::Clusterid(axis) => {
                let axis = usize::from(axis);
                uniform(u64::from(index[axis] / launch.cluster[axis]))
            }
            Special::Nclusterid(axis) => {
                let axis = usize::from(axis);
                uniform(u64::from(launch.grid[axis] / launch.cluster[axis]))
            }
            Special::ClusterCtaid(axis) => {
                let axis = usize::from(axis);
                uniform(u64::from(index[axis] % launch.cluster[axis]))
            }
            Special::ClusterNctaid(axis) => uniform(u64::from(launch.cluster[usize::from(axis)])),
            Special::ClusterCtarank => uniform(rank as u64),
            Special::ClusterNctarank => {
                uniform(launch.cluster.iter().copied().map(u64::from).product())
            }
            Special::LanemaskEq => lanes(&|lane| 1 << lane),
            Special::LanemaskLt => lanes(&|lane| (1 << lane) - 1),
            Special::LanemaskLe => lanes(&|lane| u32::MAX >> (31 - lane)),
            Special::LanemaskGt => lanes(&|lane| !(u32::MAX >> (31 - lane))),
            Special::LanemaskGe => lanes(&|lane| !((1 << lane) - 1)),
            Special::DynamicSmemSize => uniform(u64::from(launch.dynamic_shared)),
            Special::TotalSmemSize => uniform(u64::from(dynamic + launch.dynamic_shared)),
        },
    }
}
