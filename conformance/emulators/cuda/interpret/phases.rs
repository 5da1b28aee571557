//! mbarriers: objects in shared memory that count arrivals and bytes, phase by phase (ISA, "Parallel Synchronization and Communication
//! Instructions: mbarrier").
//!
//! A phase completes when all arrivals it expects are there and as many bytes have come as were announced; both may run ahead of each other within
//! a phase. Who has seen a phase complete is ordered behind all that arrived in it, and behind the copies that were counted in it: each
//! mbarrier has the clock of an engine, whose count rises with each phase.

use super::clocks::{Clock, merge};
use super::cluster::State;
use super::report::{Detector, Fault};
use super::shared::Accessor;
use super::warp::Warp;
use super::{LANES, lanes_of};
use crate::ptx::instruction::{Address, Op, Order, Phase};

/// Most arrivals, and most bytes that may be missing or too many (ISA, "Contents of the mbarrier object").
const MOST: i64 = (1 << 20) - 1;

/// An mbarrier.
#[derive(Clone, Debug)]
pub(super) struct Phased {
    /// Phases that have completed.
    phase: u64,
    /// Arrivals of a phase.
    expected: i64,
    /// Arrivals that this phase lacks.
    missing: i64,
    /// Bytes that were announced in this phase and have not come.
    bytes: i64,
    /// What who arrived in this phase knows.
    arriving: Option<Clock>,
    /// What who has seen a phase complete knows.
    completed: Option<Clock>,
    /// The clock of the engine that copies for it.
    pub(super) engine: usize,
}

impl Phased {
    /// One phase expects so many arrivals more.
    pub(super) fn more(&mut self, count: i64) {
        self.missing += count;
    }
}

impl State {
    /// The mbarrier at an address of shared memory, seen from a block: its block, and its address there.
    pub(super) fn phase_of(
        &mut self,
        rank: usize,
        address: u64,
        by: Accessor,
    ) -> Result<(usize, u64), Box<Fault>> {
        let lane = by.lane() as usize;
        let (block, at) = self.block_of(rank, address, lane)?;
        if !self.blocks[block].phases.contains_key(&at) {
            let message = format!("no mbarrier at {at} of shared memory");
            return Err(Fault::new(Detector::Phase, by.lane(), message));
        }
        // Who uses it has to be ordered behind who made it.
        let ((shared, clocks), offset) = self.shared(rank, address, lane)?;
        shared.check_read(offset, 8, 8, by, clocks)?;
        self.note_access(rank, address, by);
        Ok((block, at))
    }

    /// An mbarrier that was found.
    pub(super) fn phased(
        &mut self,
        (block, at): (usize, u64),
        lane: u32,
    ) -> Result<&mut Phased, Box<Fault>> {
        let message = || format!("the mbarrier at {at} of shared memory is no more");
        self.blocks[block]
            .phases
            .get_mut(&at)
            .ok_or_else(|| Fault::new(Detector::Phase, lane, message()))
    }

    /// Arrivals and bytes come to an mbarrier.
    pub(super) fn count_in_phase(
        &mut self,
        place: (usize, u64),
        lane: u32,
        (arrivals, bytes): (i64, i64),
        knowledge: Option<&Clock>,
    ) -> Result<(), Box<Fault>> {
        let phased = self.phased(place, lane)?;
        phased.missing -= arrivals;
        phased.bytes += bytes;
        if let Some(knowledge) = knowledge {
            merge(&mut phased.arriving, knowledge);
        }
        if phased.missing < 0 || phased.missing > MOST || phased.bytes.abs() > MOST {
            let message = format!(
                "the mbarrier at {} of shared memory lacks {} arrivals and {} bytes",
                place.1, phased.missing, phased.bytes
            );
            return Err(Fault::new(Detector::Phase, lane, message));
        }
        if phased.missing > 0 || phased.bytes != 0 {
            return Ok(());
        }
        phased.phase += 1;
        phased.missing = phased.expected;
        let arrived = phased.arriving.take();
        let engine = phased.engine;
        let copied = self.clocks.knowledge(engine);
        self.clocks.advance(engine);
        self.phase_completed = true;
        let phased = self.phased(place, lane)?;
        merge(&mut phased.completed, &copied);
        if let Some(arrived) = arrived {
            merge(&mut phased.completed, &arrived);
        }
        Ok(())
    }
}

impl Warp {
    /// The address in shared memory that a lane names.
    pub(super) fn shared_address(&self, address: Address, lane: usize) -> u64 {
        let at = self.register(address.base)[lane].wrapping_add_signed(address.offset);
        at & !super::access::WINDOW_MASK
    }

    /// What a lane does to an mbarrier, but asking for a phase.
    pub(super) fn phase(
        &mut self,
        state: &mut State,
        op: &Op,
        active: u32,
    ) -> Result<(), Box<Fault>> {
        for lane in lanes_of(active) {
            let by = self.accessor(lane, Order::Relaxed);
            let value = |register: u32| self.register(register)[lane] as u32;
            match op {
                Op::PhaseInit { address, count } => {
                    let at = self.shared_address(*address, lane);
                    let count = i64::from(value(*count));
                    self.init_phase(state, at, count, lane)?;
                }
                Op::PhaseInvalidate { address } => {
                    let at = self.shared_address(*address, lane);
                    let (block, at) = state.phase_of(self.rank, at, by)?;
                    state.blocks[block].phases.remove(&at);
                }
                Op::PhaseArrive {
                    d,
                    address,
                    count,
                    expect,
                    drop,
                } => {
                    let at = self.shared_address(*address, lane);
                    let count = count.map_or(1, |count| i64::from(value(count)));
                    let bytes = expect.map_or(0, |bytes| i64::from(value(bytes)));
                    let place = state.phase_of(self.rank, at, by)?;
                    let phased = state.phased(place, lane as u32)?;
                    let token = phased.phase;
                    if *drop {
                        phased.expected -= count;
                    }
                    let clock = self.clock();
                    let knowledge = state.clocks.knowledge(clock);
                    let counted = (count, bytes);
                    state.count_in_phase(place, lane as u32, counted, Some(&knowledge))?;
                    state.clocks.advance(clock);
                    if let Some(d) = d {
                        self.registers[*d as usize][lane] = token;
                    }
                }
                Op::PhaseExpect {
                    complete,
                    address,
                    bytes,
                } => {
                    let at = self.shared_address(*address, lane);
                    let bytes = i64::from(value(*bytes));
                    let bytes = if *complete { -bytes } else { bytes };
                    let place = state.phase_of(self.rank, at, by)?;
                    state.count_in_phase(place, lane as u32, (0, bytes), None)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn init_phase(
        &mut self,
        state: &mut State,
        address: u64,
        count: i64,
        lane: usize,
    ) -> Result<(), Box<Fault>> {
        let by = self.accessor(lane, Order::Weak);
        let (block, at) = state.block_of(self.rank, address, lane)?;
        if !(1..=MOST).contains(&count) {
            let message = format!("an mbarrier of {count} arrivals");
            return Err(Fault::new(Detector::Phase, lane as u32, message));
        }
        if state.blocks[block].phases.contains_key(&at) {
            let message = format!("the mbarrier at {at} of shared memory is initialised twice");
            return Err(Fault::new(Detector::Phase, lane as u32, message));
        }
        // Distinct values, so that no two writes count as the same.
        let data = (count as u64 ^ u64::from(by.thread) << 32).to_le_bytes();
        let ((shared, clocks), offset) = state.shared(self.rank, address, lane)?;
        shared.check_write(offset, &data, 8, by, clocks)?;
        let engines = state.clocks.len() - state.first_engine;
        let engine = state.first_engine + state.engines_taken % engines.max(1);
        state.engines_taken += 1;
        let phased = Phased {
            phase: 0,
            expected: count,
            missing: count,
            bytes: 0,
            arriving: None,
            completed: None,
            engine,
        };
        state.blocks[block].phases.insert(at, phased);
        Ok(())
    }

    /// Asks whether a phase has completed; gives the lanes that have their answer. `try_wait` has none before it is yes.
    pub(super) fn test_phase(
        &mut self,
        state: &mut State,
        op: &Op,
        active: u32,
    ) -> Result<u32, Box<Fault>> {
        let Op::PhaseTest {
            waits,
            p,
            address,
            phase,
        } = op
        else {
            return Ok(active);
        };
        let mut completed = 0;
        let mut learnt: Option<Clock> = None;
        for lane in lanes_of(active) {
            let at = self.shared_address(*address, lane);
            let place = state.phase_of(self.rank, at, self.accessor(lane, Order::Relaxed))?;
            let phased = state.phased(place, lane as u32)?;
            let is_over = match phase {
                Phase::Parity(parity) => phased.phase & 1 != self.register(*parity)[lane] & 1,
                Phase::Token(token) => phased.phase != self.register(*token)[lane],
            };
            if is_over {
                completed |= 1 << lane;
                if let Some(known) = &phased.completed {
                    merge(&mut learnt, known);
                }
            }
        }
        if let Some(known) = learnt {
            state.clocks.learn(self.clock(), &known);
        }
        let answered = if *waits { completed } else { active };
        if let Some(p) = p {
            self.write_predicate(*p, answered, completed);
        }
        Ok(answered)
    }
}

/// The accessor of an engine.
pub(super) fn engine(number: usize, pc: u32) -> Accessor {
    Accessor {
        thread: (number * LANES) as u32,
        pc,
        strong: false,
    }
}
