//! A cluster, mostly of one block: its warps in random order, its barriers, its engines, and what it means that none can go on.

use std::collections::HashMap;

use super::access::{RANK_MASK, RANK_SHIFT, SHARED_WINDOW};
use super::bulk::InFlight;
use super::clocks::{Clock, Clocks, merge};
use super::launch::{Common, Random, step_limit};
use super::phases::Phased;
use super::report::{Detector, Fault, Report};
use super::shared::{Accessor, Shared};
use super::warp::{Wait, Warp};
use super::{LANES, access::Cache};
use crate::ptx::instruction::{BarrierKind, BarrierReduction, Op};

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

/// Clocks for engines: one an mbarrier, as long as they suffice.
const ENGINES: usize = 64;

/// What the warps of a block share.
pub(super) struct Block {
    pub(super) index: [u32; 3],
    pub(super) shared: Shared,
    barriers: [Barrier; BARRIERS],
    /// Its mbarriers, by their addresses.
    pub(super) phases: HashMap<u64, Phased>,
    threads: u32,
    /// Threads of the block that have ended.
    pub(super) exited: u32,
    /// The last access of each warp of another block, with that warp's count.
    from_elsewhere: HashMap<usize, (Accessor, u32)>,
}

impl Block {
    fn has_ended(&self) -> bool {
        self.exited == self.threads
    }
}

/// What the warps of a cluster share.
pub(super) struct State {
    pub(super) blocks: Vec<Block>,
    pub(super) clocks: Clocks,
    /// Mbarriers that were made, by which they get their engines.
    pub(super) engines_taken: usize,
    /// The first of the engines' clocks.
    pub(super) first_engine: usize,
    /// Bulk copies that have not ended.
    pub(super) engines: Vec<InFlight>,
    /// Whether a phase has completed since the warps were last told.
    pub(super) phase_completed: bool,
    /// The cluster's barrier: warps that arrived, how often it opened, and what they know.
    cluster_arrived: usize,
    cluster_opened: u32,
    cluster_knowledge: Option<Clock>,
    pub(super) cache: Cache,
    pub(super) random: Random,
    pub(super) lane_instructions: u64,
}

/// How far a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Waits,
    Done,
}

pub(super) struct Cluster {
    state: State,
    warps: Vec<Warp>,
}

impl Cluster {
    pub(super) fn new(common: &Common<'_>, number: u64) -> Cluster {
        let launch = &common.launch;
        let clusters: [u64; 3] =
            std::array::from_fn(|axis| u64::from(launch.grid[axis] / launch.cluster[axis]));
        let [x, y, _] = clusters;
        let first = [number % x, number / x % y, number / x / y];
        let [wide, high, deep] = launch.cluster;
        let threads = launch.block.iter().product::<u32>();
        let warps = threads.div_ceil(LANES as u32);
        let function = launch.function;
        let shared = function.dynamic_shared() + launch.dynamic_shared;
        let shared = if launch.dynamic_shared == 0 {
            function.shared_bytes
        } else {
            shared
        };
        let index_of = |rank: u32| {
            let within = [rank % wide, rank / wide % high, rank / wide / high];
            std::array::from_fn(|axis| first[axis] as u32 * launch.cluster[axis] + within[axis])
        };
        let size = wide * high * deep;
        let has_engines = function
            .code
            .iter()
            .any(|of| matches!(of.op, Op::PhaseInit { .. }));
        let first_engine = (size * warps) as usize;
        Cluster {
            state: State {
                blocks: (0..size)
                    .map(|rank| Block {
                        index: index_of(rank),
                        shared: Shared::new(shared as usize, launch.options.watch),
                        barriers: Default::default(),
                        phases: HashMap::new(),
                        threads,
                        exited: 0,
                        from_elsewhere: HashMap::new(),
                    })
                    .collect(),
                clocks: Clocks::new(
                    warps as usize,
                    size as usize,
                    if has_engines { ENGINES } else { 0 },
                ),
                engines_taken: 0,
                first_engine,
                engines: Vec::new(),
                phase_completed: false,
                cluster_arrived: 0,
                cluster_opened: 0,
                cluster_knowledge: None,
                cache: Cache::default(),
                random: Random(launch.options.seed ^ number.wrapping_mul(0xD6E8_FEB8_6659_FD93)),
                lane_instructions: 0,
            },
            warps: (0..size)
                .flat_map(|rank| (0..warps).map(move |warp| (rank, warp)))
                .map(|(rank, warp)| Warp::new(launch, index_of(rank), rank as usize, warp, threads))
                .collect(),
        }
    }

    /// Gives every warp that can go on a turn, in random order.
    pub(super) fn run(&mut self, common: &Common<'_>) -> Result<Progress, Box<Report>> {
        let mut order: Vec<usize> = (0..self.warps.len())
            .filter(|&warp| self.warps[warp].can_run())
            .collect();
        if order.is_empty() && self.state.end_copies(common, true)? {
            self.wake();
            return Ok(Progress::More);
        }
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
            self.state.end_copies(common, false)?;
            self.wake();
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
        let block = &self.state.blocks[self.warps[warp].rank];
        let thread = self.warps[warp].number * LANES as u32 + fault.lane;
        let [x, y, _] = launch.block;
        Report {
            detector: fault.detector,
            kernel: launch.function.name.clone(),
            line: launch.function.code[pc as usize].line,
            block: block.index,
            thread: [thread % x, thread / x % y, thread / x / y],
            message: fault.message,
        }
    }

    /// Tells those who wait for phases and for the cluster that they may look again.
    fn wake(&mut self) {
        if std::mem::take(&mut self.state.phase_completed) {
            self.warps.iter_mut().for_each(Warp::wake);
        }
    }

    fn open_barriers(&mut self, common: &Common<'_>) {
        let warps = self.warps.len() / self.state.blocks.len();
        let all = (warps * LANES) as u32;
        for (rank, id) in
            (0..self.state.blocks.len()).flat_map(|rank| (0..BARRIERS).map(move |id| (rank, id)))
        {
            let barrier = &mut self.state.blocks[rank].barriers[id];
            if barrier.arrived == 0 || barrier.arrived < barrier.expected.unwrap_or(all) {
                continue;
            }
            let opened = std::mem::take(barrier);
            let of_block = self
                .warps
                .iter_mut()
                .enumerate()
                .skip(rank * warps)
                .take(warps);
            for (index, warp) in of_block {
                if !warp.release(&common.launch, id as u32, opened.votes) {
                    continue;
                }
                if let Some(knowledge) = &opened.knowledge {
                    self.state.clocks.learn(index, knowledge);
                }
                self.state.clocks.advance(index);
            }
        }
        // Threads that have ended count as arrived.
        let ended = || self.warps.iter().filter(|warp| warp.is_done()).count();
        let state = &mut self.state;
        if state.cluster_arrived > 0 && state.cluster_arrived + ended() >= self.warps.len() {
            state.cluster_arrived = 0;
            state.cluster_opened += 1;
            let knowledge = state.cluster_knowledge.take();
            for (index, warp) in self.warps.iter_mut().enumerate() {
                warp.release_cluster(state.cluster_opened);
                if let Some(knowledge) = &knowledge {
                    state.clocks.learn(index, knowledge);
                }
                state.clocks.advance(index);
            }
        }
    }

    /// Why no warp can go on.
    pub(super) fn deadlock(&self, common: &Common<'_>) -> Report {
        let code = &common.launch.function.code;
        let mut places: Vec<(String, u32)> = Vec::new();
        for warp in &self.warps {
            for group in warp.groups() {
                let what = match group.wait {
                    Wait::Barrier(id) => format!("barrier {id}"),
                    Wait::Phase => "an mbarrier's phase".into(),
                    Wait::Cluster => "the cluster's barrier".into(),
                    Wait::Nothing | Wait::Lanes => continue,
                };
                places.push((what, code[group.pc as usize].line));
            }
        }
        places.sort_unstable();
        places.dedup();
        let exited: u32 = self.state.blocks.iter().map(|block| block.exited).sum();
        let of_barriers = places.iter().all(|(what, _)| what.starts_with("barrier"));
        let diverged = of_barriers && (exited > 0 || places.len() > 1);
        let waiting: Vec<_> = places
            .iter()
            .map(|(what, line)| format!("{what} at line {line}"))
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
    /// The shared memory of the block that an address names, seen from a block; with the clocks, and the address there.
    #[allow(
        clippy::type_complexity,
        reason = "shared memory is checked against the clocks"
    )]
    #[inline]
    pub(super) fn shared(
        &mut self,
        rank: usize,
        address: u64,
        lane: usize,
    ) -> Result<((&mut Shared, &Clocks), u64), Box<Fault>> {
        let (rank, address) = self.block_of(rank, address, lane)?;
        Ok(((&mut self.blocks[rank].shared, &self.clocks), address))
    }

    /// The block that an address of shared memory names, seen from a block, and the address there.
    #[inline]
    pub(super) fn block_of(
        &self,
        rank: usize,
        address: u64,
        lane: usize,
    ) -> Result<(usize, u64), Box<Fault>> {
        let named = (address >> RANK_SHIFT & RANK_MASK) as usize;
        let inner = address & !(RANK_MASK << RANK_SHIFT);
        match named {
            0 => Ok((rank, inner)),
            named if named > self.blocks.len() => {
                let message = format!("block {} of a cluster of {}", named - 1, self.blocks.len());
                Err(Fault::new(Detector::OutOfBounds, lane as u32, message))
            }
            named => {
                self.check_lives(named - 1, lane)?;
                Ok((named - 1, inner))
            }
        }
    }

    /// Whether a block has not ended, and with it its shared memory.
    pub(super) fn check_lives(&self, rank: usize, lane: usize) -> Result<(), Box<Fault>> {
        if self.blocks[rank].has_ended() {
            let message = format!("shared memory of block {rank} of the cluster, which has ended");
            return Err(Fault::new(Detector::UseAfterFree, lane as u32, message));
        }
        Ok(())
    }

    /// What an address of shared memory is called where values are handed over through it, from whichever block.
    pub(super) fn flag_of(&self, rank: usize, address: u64) -> u64 {
        let named = address >> RANK_SHIFT & RANK_MASK;
        let named = if named == 0 { rank as u64 + 1 } else { named };
        address & !(RANK_MASK << RANK_SHIFT) | named << RANK_SHIFT | SHARED_WINDOW
    }

    /// Notes an access to the shared memory of another block, which may not end before.
    #[inline]
    pub(super) fn note_access(&mut self, rank: usize, address: u64, by: Accessor) {
        let named = (address >> RANK_SHIFT & RANK_MASK) as usize;
        if named != 0 && named - 1 != rank {
            let warp = by.thread as usize / LANES;
            let count = self.clocks.known(warp)[warp];
            if let Some(block) = self.blocks.get_mut(named - 1) {
                block.from_elsewhere.insert(warp, (by, count));
            }
        }
    }

    /// Threads of a block end; with the last of them its shared memory, which nobody may need any more.
    pub(super) fn end_threads(
        &mut self,
        rank: usize,
        warp: usize,
        lanes: u32,
    ) -> Result<(), Box<Fault>> {
        let block = &mut self.blocks[rank];
        block.exited += lanes.count_ones();
        if !block.has_ended() {
            return Ok(());
        }
        let lane = lanes.trailing_zeros();
        let block = &self.blocks[rank];
        if self.engines.iter().any(|copy| copy.brings_to(rank)) {
            let message = "the block ends before bulk copies into its shared memory have";
            return Err(Fault::new(Detector::AsyncCopy, lane, message));
        }
        let warps = self.first_engine / self.blocks.len();
        let first = warp / warps * warps;
        let is_known = |of: usize, count: u32| {
            (first..first + warps).any(|warp| self.clocks.known(warp)[of] >= count)
        };
        let mut unknown: Vec<_> = block
            .from_elsewhere
            .iter()
            .filter(|(of, (_, count))| !is_known(**of, *count))
            .map(|(_, (by, _))| by)
            .collect();
        unknown.sort_unstable_by_key(|by| by.thread);
        match unknown.first() {
            None => Ok(()),
            Some(by) => {
                let message = format!(
                    "the block's end, and with it that of its shared memory, and an access by {} (instruction {}) have no order",
                    self.clocks.name(by.thread),
                    by.pc
                );
                Err(Fault::new(Detector::Race, lane, message))
            }
        }
    }

    /// A warp arrives at the cluster's barrier.
    pub(super) fn arrive_in_cluster(&mut self, warp: usize) {
        self.cluster_arrived += 1;
        merge(&mut self.cluster_knowledge, &self.clocks.knowledge(warp));
        self.clocks.advance(warp);
    }

    /// Whether the cluster's barrier has opened so often.
    pub(super) fn has_opened(&self, times: u32) -> bool {
        self.cluster_opened >= times
    }

    /// Lanes of a warp arrive at a barrier.
    pub(super) fn arrive(
        &mut self,
        (rank, warp): (usize, usize),
        (lane, arriving): (u32, u32),
        pc: u32,
        (id, count): (u64, Option<u64>),
        kind: &BarrierKind,
        votes: (u32, u32),
    ) -> Result<(), Box<Fault>> {
        let block = &mut self.blocks[rank];
        let Some(barrier) = usize::try_from(id)
            .ok()
            .and_then(|id| block.barriers.get_mut(id))
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
        if count.is_none() && block.exited > 0 {
            let message = format!(
                "{} threads of the block have ended before barrier {id}",
                block.exited
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
