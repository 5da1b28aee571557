//! Bulk copies: into shared memory, counted by an mbarrier, and out of it, in groups that their thread waits for.
//!
//! A load ends at some moment after it was issued, in any order, and last when nothing else can go on; what it brings is its mbarrier's engine's doing.
//! A store is done when it is waited for. Until then nobody may write what it reads.

use std::collections::VecDeque;
use std::ops::Range;

use super::access::{Access, PARAMETER_WINDOW, WINDOW_MASK};
use super::clocks::Clock;
use super::cluster::State;
use super::copies::{PendingCopy, copied};
use super::launch::{Common, Launch};
use super::report::{Detector, Fault, Report};
use super::shared::Accessor;
use super::tensor::{Chunk, ENCODED, TensorMap};
use super::warp::Warp;
use super::{LANES, lanes_of, phases};
use crate::ptx::instruction::{Address, Op, Order, Remote};

/// Of how many copies in flight one ends at a time, on average.
const PATIENCE: usize = 4;

/// The memory beyond the block.
#[derive(Clone, Debug)]
pub(super) enum Far {
    /// A box of a tensor.
    Tensor(Box<TensorMap>, Vec<i64>),
    /// So many bytes from an address on.
    Bytes(u64, u64),
}

impl Far {
    fn bytes(&self) -> u64 {
        match self {
            Far::Tensor(map, _) => map.tile_bytes() as u64,
            Far::Bytes(_, bytes) => *bytes,
        }
    }

    /// Runs over chunks of 16 bytes: their place in shared memory behind an address, and their place here.
    fn chunks(&self, to: u64, mut f: impl FnMut(u64, Chunk)) {
        match self {
            Far::Tensor(map, coordinates) => map.chunks(coordinates, |chunk| {
                f(map.swizzled(to + chunk.offset), chunk);
            }),
            Far::Bytes(address, bytes) => {
                for offset in (0..*bytes).step_by(16) {
                    let chunk = Chunk {
                        offset,
                        bytes: 16,
                        address: address + offset,
                        inside: 0..16,
                    };
                    f(to + offset, chunk);
                }
            }
        }
    }

    fn element(&self) -> u8 {
        match self {
            Far::Tensor(map, _) => map.element,
            Far::Bytes(..) => 1,
        }
    }

    fn fill(&self) -> u32 {
        match self {
            Far::Tensor(map, _) => map.fill,
            Far::Bytes(..) => 0,
        }
    }
}

/// A copy into shared memory that has not ended.
pub(super) enum InFlight {
    /// `cp.async.bulk`: to one place in each of some blocks, each with an mbarrier of its own.
    Load {
        from: Far,
        /// Block, address there, mbarrier there.
        targets: Vec<(usize, u64, (usize, u64))>,
        by: Accessor,
    },
    /// What `cp.async.mbarrier.arrive` stands for.
    Copies {
        copies: Vec<PendingCopy>,
        rank: usize,
        barrier: (usize, u64),
        by: Accessor,
        knowledge: Clock,
    },
}

impl InFlight {
    /// Whether it goes to a block's shared memory. Copies of threads do too, and end with them.
    pub(super) fn brings_to(&self, rank: usize) -> bool {
        match self {
            InFlight::Load { targets, .. } => targets.iter().any(|(block, ..)| *block == rank),
            InFlight::Copies { .. } => false,
        }
    }
}

/// A store that has not been waited for.
#[derive(Clone, Debug)]
struct Store {
    from: u64,
    to: Far,
}

/// The bulk stores of a lane.
#[derive(Clone, Debug, Default)]
pub(super) struct LaneStores {
    open: Vec<Store>,
    groups: VecDeque<Vec<Store>>,
}

impl LaneStores {
    pub(super) fn are_reading(&self) -> bool {
        !self.open.is_empty() || self.groups.iter().any(|group| !group.is_empty())
    }
}

impl State {
    /// Ends some of the copies in flight; `one`: at least one, if there is any. Says whether some ended.
    pub(super) fn end_copies(
        &mut self,
        common: &Common<'_>,
        one: bool,
    ) -> Result<bool, Box<Report>> {
        let mut ended = false;
        let mut must = one;
        while !self.engines.is_empty() && (must || self.random.below(PATIENCE) == 0) {
            must = false;
            ended = true;
            let chosen = self.random.below(self.engines.len());
            let copy = self.engines.swap_remove(chosen);
            let by = match &copy {
                InFlight::Load { by, .. } | InFlight::Copies { by, .. } => *by,
            };
            self.end_copy(&common.launch, copy)
                .map_err(|fault| Box::new(self.report_of(common, by, *fault)))?;
        }
        Ok(ended)
    }

    fn report_of(&self, common: &Common<'_>, by: Accessor, fault: Fault) -> Report {
        let launch = &common.launch;
        let threads = launch
            .block
            .iter()
            .product::<u32>()
            .next_multiple_of(LANES as u32);
        let thread = by.thread % threads;
        let [x, y, _] = launch.block;
        Report {
            detector: fault.detector,
            kernel: launch.function.name.clone(),
            line: launch.function.code[by.pc as usize].line,
            block: self.blocks[(by.thread / threads) as usize].index,
            thread: [thread % x, thread / x % y, thread / x / y],
            message: fault.message,
        }
    }

    fn end_copy(&mut self, launch: &Launch<'_>, copy: InFlight) -> Result<(), Box<Fault>> {
        match copy {
            InFlight::Load { from, targets, by } => {
                let data = self.read_far(launch, &from, by)?;
                for (block, to, barrier) in targets {
                    let engine = self.phased(barrier, by.lane())?.engine;
                    let engine = phases::engine(engine, by.pc);
                    let mut rest = &data[..];
                    let shared = &mut self.blocks[block].shared;
                    from.chunks(to, |at, chunk| {
                        let (bytes, left) = rest.split_at(usize::from(chunk.bytes));
                        rest = left;
                        shared.end_copy(at, bytes, engine, true, &self.clocks);
                    });
                    let bytes = -(from.bytes() as i64);
                    self.count_in_phase(barrier, by.lane(), (0, bytes), None)?;
                }
            }
            InFlight::Copies {
                copies,
                rank,
                barrier,
                by,
                knowledge,
            } => {
                let engine = phases::engine(self.phased(barrier, by.lane())?.engine, by.pc);
                for copy in copies {
                    let lane = by.lane() as usize;
                    let data = copied(launch, self, copy, lane)?;
                    let ((shared, clocks), at) = self.shared(rank, copy.to, lane)?;
                    shared.end_copy(at, &data[..usize::from(copy.bytes)], engine, false, clocks);
                }
                self.count_in_phase(barrier, by.lane(), (1, 0), Some(&knowledge))?;
            }
        }
        Ok(())
    }

    /// The bytes of a box, chunk after chunk.
    fn read_far(
        &mut self,
        launch: &Launch<'_>,
        from: &Far,
        by: Accessor,
    ) -> Result<Vec<u8>, Box<Fault>> {
        let mut data = Vec::with_capacity(from.bytes() as usize);
        let mut fault = None;
        let (element, fill) = (from.element(), from.fill().to_le_bytes());
        let mut held = None;
        from.chunks(0, |_, chunk| {
            if fault.is_some() {
                return;
            }
            let begin = data.len();
            data.resize(begin + usize::from(chunk.bytes), 0);
            if fill != [0; 4] {
                for part in data[begin..].chunks_mut(usize::from(element)) {
                    part.copy_from_slice(&fill[..part.len()]);
                }
            }
            let (step, parts) = steps(&chunk, element);
            for part in parts {
                let offset = u64::from(part) * u64::from(step);
                let access = Access {
                    address: chunk.address.wrapping_add(offset),
                    bytes: step,
                    write: false,
                    lane: by.lane(),
                };
                match self.cache.place(launch, &mut held, access) {
                    Ok(at) => {
                        let Some(found) = &held else { continue };
                        let value = found.region.load(at, step).to_le_bytes();
                        let to = begin + offset as usize;
                        data[to..to + usize::from(step)]
                            .copy_from_slice(&value[..usize::from(step)]);
                    }
                    Err(found) => fault = Some(found),
                }
            }
        });
        fault.map_or(Ok(data), Err)
    }

    fn write_far(
        &mut self,
        launch: &Launch<'_>,
        to: &Far,
        data: &[u8],
        lane: u32,
    ) -> Result<(), Box<Fault>> {
        let mut fault = None;
        let mut rest = data;
        let mut held = None;
        let element = to.element();
        to.chunks(0, |_, chunk| {
            let (bytes, left) = rest.split_at(usize::from(chunk.bytes));
            rest = left;
            let (step, parts) = steps(&chunk, element);
            for part in parts {
                let offset = u64::from(part) * u64::from(step);
                let access = Access {
                    address: chunk.address.wrapping_add(offset),
                    bytes: step,
                    write: true,
                    lane,
                };
                match self.cache.place(launch, &mut held, access) {
                    Ok(at) => {
                        let Some(found) = &held else { continue };
                        let mut value = [0; 8];
                        let width = usize::from(step);
                        value[..width].copy_from_slice(&bytes[offset as usize..][..width]);
                        found.region.store(at, step, u64::from_le_bytes(value));
                    }
                    Err(found) => {
                        fault.get_or_insert(found);
                    }
                }
            }
        });
        fault.map_or(Ok(()), Err)
    }
}

impl Warp {
    fn far(
        &self,
        launch: &Launch<'_>,
        state: &mut State,
        remote: &Remote,
        lane: usize,
    ) -> Result<Far, Box<Fault>> {
        let value = |address: &Address| {
            self.register(address.base)[lane].wrapping_add_signed(address.offset)
        };
        match remote {
            Remote::Bytes { address, bytes } => {
                let (at, bytes) = (value(address), self.register(*bytes)[lane] & 0xFFFF_FFFF);
                if !at.is_multiple_of(16) || !bytes.is_multiple_of(16) {
                    let message = format!("a bulk copy of {bytes} bytes at {at:#x}");
                    return Err(Fault::new(Detector::Misaligned, lane as u32, message));
                }
                Ok(Far::Bytes(at, bytes))
            }
            Remote::Tensor { map, coordinates } => {
                let at = value(map);
                let map = tensor_map(launch, state, at, lane)?;
                if usize::from(map.rank) != coordinates.len() {
                    let message = format!(
                        "{} coordinates of a tensor map of {} dimensions",
                        coordinates.len(),
                        map.rank
                    );
                    return Err(Fault::new(Detector::Trap, lane as u32, message));
                }
                let coordinates = coordinates
                    .iter()
                    .map(|register| i64::from(self.register(*register)[lane] as i32))
                    .collect();
                Ok(Far::Tensor(Box::new(map), coordinates))
            }
        }
    }

    /// `cp.async.bulk` into shared memory.
    pub(super) fn bulk_load(
        &mut self,
        launch: &Launch<'_>,
        state: &mut State,
        op: &Op,
        active: u32,
    ) -> Result<(), Box<Fault>> {
        let Op::BulkLoad {
            to,
            from,
            barrier,
            multicast,
        } = op
        else {
            return Ok(());
        };
        for lane in lanes_of(active) {
            self.check_dependency(launch, lane)?;
            let far = self.far(launch, state, from, lane)?;
            let align = alignment(&far);
            let (to, barrier) = (
                self.shared_address(*to, lane),
                self.shared_address(*barrier, lane),
            );
            let ranks: Vec<usize> = match multicast {
                None => vec![self.rank],
                Some(mask) => lanes_of(self.register(*mask)[lane] as u32 & 0xFFFF).collect(),
            };
            let by = self.accessor(lane, Order::Weak);
            let strong = self.accessor(lane, Order::Relaxed);
            let mut targets = Vec::new();
            for rank in ranks {
                if rank >= state.blocks.len() {
                    let message = format!("block {rank} of a cluster of {}", state.blocks.len());
                    return Err(Fault::new(Detector::OutOfBounds, lane as u32, message));
                }
                state.check_lives(rank, lane)?;
                let barrier = state.phase_of(rank, barrier, strong)?;
                // The engine counts in it.
                let State { blocks, clocks, .. } = &mut *state;
                let held = &mut blocks[barrier.0].shared;
                held.check_proxy(barrier.1 as usize, 8, by, clocks)?;
                let (block, at) = state.block_of(rank, to, lane)?;
                let ((shared, clocks), at) = state.shared(block, at, lane)?;
                if !at.is_multiple_of(align) {
                    let message = format!(
                        "a bulk copy to {at} of shared memory, which is no multiple of {align}"
                    );
                    return Err(Fault::new(Detector::Misaligned, lane as u32, message));
                }
                shared.begin_copy(at, far.bytes() as usize, 16, by, clocks)?;
                targets.push((block, at, barrier));
            }
            state.engines.push(InFlight::Load {
                from: far,
                targets,
                by,
            });
        }
        Ok(())
    }

    /// `cp.async.bulk` out of shared memory.
    pub(super) fn bulk_store(
        &mut self,
        launch: &Launch<'_>,
        state: &mut State,
        to: &Remote,
        from: Address,
        active: u32,
    ) -> Result<(), Box<Fault>> {
        if self.stores.is_empty() {
            self.stores.resize_with(LANES, LaneStores::default);
        }
        for lane in lanes_of(active) {
            self.check_dependency(launch, lane)?;
            let far = self.far(launch, state, to, lane)?;
            let from = self.shared_address(from, lane);
            let align = alignment(&far);
            if !from.is_multiple_of(align) {
                let message = format!(
                    "a bulk store of {from} of shared memory, which is no multiple of {align}"
                );
                return Err(Fault::new(Detector::Misaligned, lane as u32, message));
            }
            let by = self.accessor(lane, Order::Weak);
            let ((shared, clocks), at) = state.shared(self.rank, from, lane)?;
            shared.begin_engine_read(at, far.bytes() as usize, 16, by, clocks)?;
            self.stores[lane].open.push(Store { from: at, to: far });
        }
        Ok(())
    }

    /// Closes the group of stores of each lane.
    pub(super) fn commit_stores(&mut self, active: u32) {
        if self.stores.is_empty() {
            return;
        }
        for lane in lanes_of(active) {
            let stores = &mut self.stores[lane];
            stores.groups.push_back(std::mem::take(&mut stores.open));
        }
    }

    pub(super) fn wait_for_stores(
        &mut self,
        launch: &Launch<'_>,
        state: &mut State,
        left: u32,
        active: u32,
    ) -> Result<(), Box<Fault>> {
        if self.stores.is_empty() {
            return Ok(());
        }
        for lane in lanes_of(active) {
            let by = self.accessor(lane, Order::Weak);
            while self.stores[lane].groups.len() > left as usize {
                for store in self.stores[lane].groups.pop_front().unwrap_or_default() {
                    let bytes = store.to.bytes() as usize;
                    let mut data = Vec::with_capacity(bytes);
                    let block = &mut state.blocks[self.rank];
                    store.to.chunks(store.from, |at, chunk| {
                        data.extend(block.shared.bytes_at(at as usize, chunk.bytes.into()));
                    });
                    block
                        .shared
                        .end_engine_read(store.from as usize, bytes, by, &state.clocks);
                    state.write_far(launch, &store.to, &data, lane as u32)?;
                }
            }
        }
        Ok(())
    }
}

/// In how many bytes at a time what is inside a tensor is read or written, and which such parts of the chunk it is: eight bytes where the whole
/// chunk is there.
fn steps(chunk: &Chunk, element: u8) -> (u8, Range<u8>) {
    let whole = usize::from(chunk.inside.end) * usize::from(element) == 16
        && chunk.inside.start == 0
        && chunk.address.is_multiple_of(8);
    match whole {
        true => (8, 0..2),
        false => (element, chunk.inside.clone()),
    }
}

/// What the place in shared memory has to be a multiple of (CUDA C++ Programming Guide, "Asynchronous Data Copies using TMA").
fn alignment(far: &Far) -> u64 {
    match far {
        Far::Tensor(map, _) if map.swizzle != 0 => u64::from(map.swizzle) * 8,
        Far::Tensor(..) => 128,
        Far::Bytes(..) => 16,
    }
}

/// The map at a generic address: a parameter of the kernel, or global memory.
fn tensor_map(
    launch: &Launch<'_>,
    state: &mut State,
    address: u64,
    lane: usize,
) -> Result<TensorMap, Box<Fault>> {
    let fault = |message: &str| {
        let message = format!("the tensor map at {address:#x} {message}");
        Fault::new(Detector::Trap, lane as u32, message)
    };
    if !address.is_multiple_of(64) {
        return Err(fault("begins at no multiple of 64"));
    }
    let mut bytes = [0; ENCODED];
    if address & WINDOW_MASK == PARAMETER_WINDOW {
        let at = (address & !WINDOW_MASK) as usize;
        let held = launch.parameters.get(at..at + ENCODED);
        bytes.copy_from_slice(held.ok_or_else(|| fault("is beyond the parameters"))?);
    } else {
        let mut held = None;
        for (index, part) in bytes.chunks_mut(8).enumerate() {
            let access = Access {
                address: address + 8 * index as u64,
                bytes: 8,
                write: false,
                lane: lane as u32,
            };
            let at = state.cache.place(launch, &mut held, access)?;
            if let Some(found) = &held {
                part.copy_from_slice(&found.region.load(at, 8).to_le_bytes());
            }
        }
    }
    TensorMap::decode(&bytes).ok_or_else(|| fault("was not encoded by cuTensorMapEncodeTiled"))
}
