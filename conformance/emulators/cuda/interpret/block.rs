//! A block: its warps in random order, its barriers, and what it means that none can go on.

use super::clocks::{Clock, Clocks, merge};
use super::launch::{Common, Random, step_limit};
use super::report::{Detector, Fault, Report};
use super::shared::Shared;
use super::warp::{Wait, Warp};
use super::{LANES, access::Cache};
use crate::ptx::instruction::{BarrierKind, BarrierReduction};

/// Barriers of a block.
const BARRIERS: usize = 16;
/// Instructions that a warp runs before another gets its turn.
const TURN: u32 = 512;

/// A barrier: what has arrived since it last opened.
#[derive(Clone, Debug, Default)]
pub(super) struct Barrier {
    /// Threads, in whole warps.
    arrived: u32,
    /// Threads that it opens for; `None` where it is all of the block.
    expected: Option<u32>,
    /// Where the first thread arrived.
    pc: Option<u32>,
    knowledge: Option<Clock>,
    /// Threads whose predicate is true, and all.
    votes: (u32, u32),
}

/// What the warps of a block share.
pub(super) struct State {
    pub(super) index: [u32; 3],
    pub(super) shared: Shared,
    pub(super) clocks: Clocks,
    pub(super) cache: Cache,
    pub(super) barriers: [Barrier; BARRIERS],
    pub(super) random: Random,
    /// Threads of the block that have ended.
    pub(super) exited: u32,
    pub(super) lane_instructions: u64,
}

/// How far a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Waits,
    Done,
}

pub(super) struct Block {
    state: State,
    warps: Vec<Warp>,
}

impl Block {
    pub(super) fn new(common: &Common<'_>, number: u64) -> Block {
        let launch = &common.launch;
        let [x, y, _] = launch.grid.map(u64::from);
        let index = [
            (number % x) as u32,
            (number / x % y) as u32,
            (number / x / y) as u32,
        ];
        let threads = launch.block.iter().product::<u32>();
        let warps = threads.div_ceil(LANES as u32);
        let shared = launch.function.shared_bytes.next_multiple_of(16) + launch.dynamic_shared;
        let shared = if launch.dynamic_shared == 0 {
            launch.function.shared_bytes
        } else {
            shared
        };
        Block {
            state: State {
                index,
                shared: Shared::new(shared as usize, launch.options.watch),
                clocks: Clocks::new(warps as usize),
                cache: Cache::default(),
                barriers: Default::default(),
                random: Random(launch.options.seed ^ number.wrapping_mul(0xD6E8_FEB8_6659_FD93)),
                exited: 0,
                lane_instructions: 0,
            },
            warps: (0..warps)
                .map(|warp| Warp::new(launch, index, warp, threads))
                .collect(),
        }
    }

    /// Gives every warp that can go on a turn, in random order.
    pub(super) fn run(&mut self, common: &Common<'_>) -> Result<Progress, Box<Report>> {
        let mut order: Vec<usize> = (0..self.warps.len())
            .filter(|&warp| self.warps[warp].can_run())
            .collect();
        if order.is_empty() {
            let done = self.warps.iter().all(Warp::is_done);
            return Ok(if done {
                Progress::Done
            } else {
                Progress::Waits
            });
        }
        for last in (1..order.len()).rev() {
            order.swap(last, self.state.random.below(last + 1));
        }
        for warp in order {
            // Turns of different lengths bring more orders about.
            let turn = TURN / 8 + self.state.random.below(TURN as usize) as u32;
            if let Err(fault) = self.warps[warp].run(&common.launch, &mut self.state, turn) {
                return Err(Box::new(self.report(common, warp, *fault)));
            }
            self.open_barriers(common);
        }
        let counted = std::mem::take(&mut self.state.lane_instructions);
        if !common.count(counted) {
            let warp = self
                .warps
                .iter()
                .position(|warp| !warp.is_done())
                .unwrap_or(0);
            let (detector, message) = step_limit(common);
            let fault = Fault {
                detector,
                lane: self.warps[warp].first_lane(),
                message,
            };
            return Err(Box::new(self.report(common, warp, fault)));
        }
        Ok(Progress::More)
    }

    fn report(&self, common: &Common<'_>, warp: usize, fault: Fault) -> Report {
        let launch = &common.launch;
        let pc = self.warps[warp].pc_of(fault.lane);
        let thread = warp as u32 * LANES as u32 + fault.lane;
        let [x, y, _] = launch.block;
        Report {
            detector: fault.detector,
            kernel: launch.function.name.clone(),
            line: launch.function.code[pc as usize].line,
            block: self.state.index,
            thread: [thread % x, thread / x % y, thread / x / y],
            message: fault.message,
        }
    }

    fn open_barriers(&mut self, common: &Common<'_>) {
        let all = self.warps.len() as u32 * LANES as u32;
        for id in 0..BARRIERS {
            let barrier = &self.state.barriers[id];
            if barrier.arrived == 0 || barrier.arrived < barrier.expected.unwrap_or(all) {
                continue;
            }
            let opened = std::mem::take(&mut self.state.barriers[id]);
            for (index, warp) in self.warps.iter_mut().enumerate() {
                if !warp.release(&common.launch, id as u32, opened.votes) {
                    continue;
                }
                if let Some(knowledge) = &opened.knowledge {
                    self.state.clocks.learn(index, knowledge);
                }
                self.state.clocks.advance(index);
            }
        }
    }

    /// Why no warp can go on.
    pub(super) fn deadlock(&self, common: &Common<'_>) -> Report {
        let code = &common.launch.function.code;
        let mut places: Vec<(u32, u32)> = Vec::new();
        for warp in &self.warps {
            for group in warp.groups() {
                if let Wait::Barrier(id) = group.wait {
                    places.push((id, code[group.pc as usize].line));
                }
            }
        }
        places.sort_unstable();
        places.dedup();
        let exited = self.state.exited;
        let diverged = exited > 0 || places.len() > 1;
        let waiting: Vec<_> = places
            .iter()
            .map(|(id, line)| format!("barrier {id} at line {line}"))
            .collect();
        let message = format!(
            "threads wait for {}; {exited} threads have ended",
            waiting.join(" and ")
        );
        let warp = self
            .warps
            .iter()
            .position(|warp| !warp.is_done())
            .unwrap_or(0);
        let detector = if diverged {
            Detector::BarrierDivergence
        } else {
            Detector::Deadlock
        };
        self.report(
            common,
            warp,
            Fault {
                detector,
                lane: self.warps[warp].first_lane(),
                message,
            },
        )
    }
}

impl State {
    /// Lanes of a warp arrive at a barrier.
    pub(super) fn arrive(
        &mut self,
        warp: usize,
        (lane, arriving): (u32, u32),
        pc: u32,
        (id, count): (u64, Option<u64>),
        kind: &BarrierKind,
        votes: (u32, u32),
    ) -> Result<(), Box<Fault>> {
        let Some(barrier) = usize::try_from(id)
            .ok()
            .and_then(|id| self.barriers.get_mut(id))
        else {
            return Err(Fault::new(
                Detector::Trap,
                lane,
                format!("barrier {id} of 16"),
            ));
        };
        if count.is_some_and(|count| count == 0 || count % LANES as u64 != 0) {
            return Err(Fault::new(
                Detector::Trap,
                lane,
                "a barrier's threads are not whole warps",
            ));
        }
        if count.is_none() && self.exited > 0 {
            let message = format!(
                "{} threads of the block have ended before barrier {id}",
                self.exited
            );
            return Err(Fault::new(Detector::BarrierDivergence, lane, message));
        }
        let count = count.map(|count| count as u32);
        if barrier.arrived > 0 && barrier.expected != count {
            let message = format!("barrier {id} is waited for with different numbers of threads");
            return Err(Fault::new(Detector::BarrierDivergence, lane, message));
        }
        // Named barriers with a count join different places by design; a barrier of all threads is one instruction.
        if count.is_none() && barrier.pc.is_some_and(|first| first != pc) {
            let message =
                format!("threads of the block arrive at barrier {id} by different instructions");
            return Err(Fault::new(Detector::BarrierDivergence, lane, message));
        }
        barrier.pc.get_or_insert(pc);
        barrier.expected = count;
        barrier.arrived += arriving;
        barrier.votes.0 += votes.0;
        barrier.votes.1 += votes.1;
        merge(&mut barrier.knowledge, &self.clocks.knowledge(warp));
        if matches!(kind, BarrierKind::Arrive) {
            self.clocks.advance(warp);
        }
        Ok(())
    }
}

/// What `barrier.red` gives a thread.
pub(super) fn reduced(reduction: BarrierReduction, (true_votes, votes): (u32, u32)) -> u32 {
    match reduction {
        BarrierReduction::PopulationCount(_) => true_votes,
        BarrierReduction::And(_) => u32::from(true_votes == votes),
        BarrierReduction::Or(_) => u32::from(true_votes > 0),
    }
}
