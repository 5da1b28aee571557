//! Loads, stores, atomic operations and asynchronous copies, lane by lane, each checked.

use std::sync::Arc;

use super::cluster::State;
use super::launch::Launch;
use super::report::{Detector, Fault};
use super::shared::Accessor;
use super::warp::Warp;
use super::{LANES, float, integer, lanes_of};
use crate::memory::{Allocation, Lookup, State as Life};
use crate::ptx::instruction::{
    Address, AtomicOp, AtomicType, Float, Integer, Op, Order, Reg, Space,
};

/// Generic addresses of shared memory.
pub(super) const SHARED_WINDOW: u64 = 1 << 56;
/// Generic addresses of local memory.
pub(super) const LOCAL_WINDOW: u64 = 2 << 56;
/// Generic addresses of parameters.
pub(super) const PARAMETER_WINDOW: u64 = 3 << 56;
/// Where an address of shared memory names the block of the cluster, counted from 1; 0 is the thread's own.
pub(super) const RANK_SHIFT: u32 = 24;
/// As many blocks as a cluster may have, and 1.
pub(super) const RANK_MASK: u64 = 0x1F;
/// What tells the windows apart.
pub(super) const WINDOW_MASK: u64 = 0xFF << 56;

/// The allocations that a block met last.
#[derive(Default)]
pub(super) struct Cache {
    entries: [Option<Arc<Allocation>>; 4],
    next: usize,
}

impl Cache {
    /// The allocation that holds so many bytes at an address of global memory.
    fn find(&mut self, launch: &Launch<'_>, access: Access) -> Result<Arc<Allocation>, Box<Fault>> {
        let holds = |entry: &&Arc<Allocation>| holds(entry, access) && entry.state() == Life::Live;
        if let Some(found) = self.entries.iter().flatten().find(holds) {
            return Ok(Arc::clone(found));
        }
        let found = find_slowly(launch, access)?;
        self.next = (self.next + 1) % self.entries.len();
        self.entries[self.next] = Some(Arc::clone(&found));
        Ok(found)
    }

    /// Where an access lies in its allocation, which is held on to for the next lane's.
    #[inline]
    pub(super) fn place(
        &mut self,
        launch: &Launch<'_>,
        held: &mut Option<Arc<Allocation>>,
        access: Access,
    ) -> Result<usize, Box<Fault>> {
        let Access {
            address,
            bytes,
            write,
            lane,
        } = access;
        let found = match held {
            Some(found) if holds(found, access) => found,
            _ => held.insert(self.find(launch, access)?),
        };
        if address & u64::from(bytes - 1) != 0 {
            return Err(Fault::new(
                Detector::Misaligned,
                lane,
                format!("{bytes} bytes at {address:#x}"),
            ));
        }
        if write && found.read_only {
            return Err(Fault::new(
                Detector::ReadOnly,
                lane,
                format!("write at {address:#x} of constant memory"),
            ));
        }
        Ok((address - found.base) as usize)
    }
}

#[inline]
fn holds(found: &Allocation, access: Access) -> bool {
    let offset = access.address.wrapping_sub(found.base);
    offset < found.bytes() && found.bytes() - offset >= u64::from(access.bytes)
}

/// An access to global memory.
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub(super) address: u64,
    pub(super) bytes: u8,
    pub(super) write: bool,
    pub(super) lane: u32,
}

fn find_slowly(launch: &Launch<'_>, access: Access) -> Result<Arc<Allocation>, Box<Fault>> {
    let Access {
        address,
        bytes,
        write,
        lane,
    } = access;
    let what = if write { "write" } else { "read" };
    let fault = |detector, message: String| {
        Fault::new(
            detector,
            lane,
            format!("{what} of {bytes} bytes at {address:#x}: {message}"),
        )
    };
    match launch.memory.find(address) {
        Lookup::Found(found) => {
            if let Some(device) = found.device
                && device != launch.device
                && launch.peers >> device & 1 == 0
            {
                return Err(fault(
                    Detector::OutOfBounds,
                    format!("memory of device {device}, access to which is not enabled"),
                ));
            }
            let offset = address - found.base;
            if found.state() == Life::Reserved {
                return Err(fault(
                    Detector::UseAfterFree,
                    "its allocation has not had its turn in its stream".into(),
                ));
            }
            if found.bytes() - offset < u64::from(bytes) {
                let message = format!(
                    "byte {offset} of an allocation of {} bytes at {:#x}",
                    found.bytes(),
                    found.base
                );
                return Err(fault(Detector::OutOfBounds, message));
            }
            Ok(found)
        }
        Lookup::Freed(base, size) => Err(fault(
            Detector::UseAfterFree,
            format!(
                "byte {} of {size} bytes at {base:#x} that were freed",
                address - base
            ),
        )),
        Lookup::Nothing(Some((base, size))) => {
            let beyond = (address - base).wrapping_sub(size);
            Err(fault(
                Detector::OutOfBounds,
                format!("{beyond} bytes beyond an allocation of {size} bytes at {base:#x}"),
            ))
        }
        Lookup::Nothing(None) => Err(fault(Detector::OutOfBounds, "no allocation".into())),
    }
}

impl Warp {
    /// Its place among the clocks of the cluster.
    pub(super) fn clock(&self) -> usize {
        self.rank * self.warps + self.number as usize
    }

    pub(super) fn accessor(&self, lane: usize, order: Order) -> Accessor {
        Accessor {
            thread: self.clock() as u32 * LANES as u32 + lane as u32,
            pc: self.pc,
            strong: order != Order::Weak,
        }
    }

    pub(super) fn access(
        &mut self,
        launch: &Launch<'_>,
        state: &mut State,
        op: &Op,
        active: u32,
    ) -> Result<(), Box<Fault>> {
        match op {
            Op::Load {
                space,
                bytes,
                signed,
                order,
                d,
                address,
            } => self.load(
                launch,
                state,
                (*space, *bytes, *signed, *order),
                d,
                *address,
                active,
            ),
            Op::Store {
                space,
                bytes,
                order,
                address,
                values,
            } => self.store(
                launch,
                state,
                (*space, *bytes, *order),
                *address,
                values,
                active,
            ),
            Op::Atomic {
                space,
                op,
                ty,
                order,
                d,
                address,
                b,
                c,
            } => self.atomic(
                launch,
                state,
                (*space, *op, *ty, *order),
                *d,
                *address,
                (*b, *c),
                active,
            ),
            Op::CopyAsync {
                bytes,
                source_bytes,
                ignore,
                to,
                from,
            } => self.copy(
                launch,
                state,
                (*bytes, *source_bytes, *ignore),
                *to,
                *from,
                active,
            ),
            Op::MapAddress { d, a, rank } => {
                let value = super::map2(self.register(*a), self.register(*rank), |a, rank| {
                    a & !(RANK_MASK << RANK_SHIFT) | ((rank + 1) & RANK_MASK) << RANK_SHIFT
                });
                self.write(*d, active, &value);
                Ok(())
            }
            Op::PhaseInit { .. }
            | Op::PhaseInvalidate { .. }
            | Op::PhaseArrive { .. }
            | Op::PhaseExpect { .. } => self.phase(state, op, active),
            Op::CopiesArrive { counted, address } => {
                self.copies_arrive(state, *counted, *address, active)
            }
            Op::BulkLoad { .. } => self.bulk_load(launch, state, op, active),
            Op::BulkStore { to, from } => self.bulk_store(launch, state, to, *from, active),
            Op::BulkCommit => {
                self.commit_stores(active);
                Ok(())
            }
            Op::BulkWait { left } => self.wait_for_stores(launch, state, *left, active),
            Op::CopyCommit => {
                self.commit_copies(active);
                Ok(())
            }
            Op::CopyWait { left } => self.wait_for_copies(launch, state, *left, active),
            _ => Err(Fault::new(
                Detector::Trap,
                active.trailing_zeros(),
                format!("{op:?} cannot be executed"),
            )),
        }
    }

    /// Global memory may be touched: the launch begins behind what it depends on, or has waited for it.
    #[inline]
    pub(super) fn check_dependency(
        &self,
        launch: &Launch<'_>,
        lane: usize,
    ) -> Result<(), Box<Fault>> {
        if !launch.programmatic || self.depends_no_more {
            return Ok(());
        }
        let message = "global memory is touched before griddepcontrol.wait";
        Err(Fault::new(Detector::Dependency, lane as u32, message))
    }

    /// Tells the state space of a generic address, and the address in it.
    pub(super) fn resolve(space: Space, address: u64) -> (Space, u64) {
        let inner = address & !WINDOW_MASK;
        match (space, address & WINDOW_MASK) {
            (Space::Generic, SHARED_WINDOW) => (Space::Shared, inner),
            (Space::Generic, LOCAL_WINDOW) => (Space::Local, inner),
            (Space::Generic, PARAMETER_WINDOW) => (Space::Parameter, inner),
            (Space::Generic, _) => (Space::Global, address),
            // A shared address of 32 bits, or one that came out of a generic one by truncation.
            _ => (space, address),
        }
    }

    fn load(
        &mut self,
        launch: &Launch<'_>,
        state: &mut State,
        (space, bytes, signed, order): (Space, u8, u8, Order),
        d: &[Option<Reg>],
        address: Address,
        active: u32,
    ) -> Result<(), Box<Fault>> {
        let base = *self.register(address.base);
        let total = bytes * d.len() as u8;
        let extend = |value: u64| {
            if signed == 0 {
                return value;
            }
            let shift = 64 - 8 * u32::from(bytes);
            ((value << shift) as i64 >> shift) as u64 & (u64::MAX >> (64 - signed))
        };
        let mut held = None;
        // What lanes of one address read is the same.
        let mut before: Option<(u64, usize, usize)> = None;
        for lane in lanes_of(active) {
            let at = base[lane].wrapping_add_signed(address.offset);
            if let Some((same, first, place)) = before.filter(|(same, ..)| *same == at) {
                for d in d.iter().flatten() {
                    let register = &mut self.registers[*d as usize];
                    register[lane] = register[first];
                }
                if place != usize::MAX {
                    let (shared, _) = state.shared(self.rank, at, lane)?;
                    shared.0.read_by_many(place, usize::from(total));
                    before = Some((same, first, usize::MAX));
                }
                continue;
            }
            before = None;
            let whole = at;
            let (space, at) = Self::resolve(space, at);
            match space {
                Space::Shared => {
                    let by = self.accessor(lane, order);
                    let warp = self.clock();
                    if by.strong {
                        let flag = state.flag_of(self.rank, at);
                        state.clocks.acquire(
                            warp,
                            flag,
                            matches!(order, Order::Acquire | Order::AcquireRelease),
                        );
                    }
                    state.note_access(self.rank, at, by);
                    let (shared, at) = state.shared(self.rank, at, lane)?;
                    let total = usize::from(total);
                    let at = shared.0.check_read(at, total, total, by, shared.1)?;
                    let shared = shared.0;
                    for (index, d) in d.iter().enumerate() {
                        if let Some(d) = d {
                            let value = shared.load(at + index * usize::from(bytes), bytes);
                            self.registers[*d as usize][lane] = extend(value);
                        }
                    }
                    if !by.strong {
                        before = Some((whole, lane, at));
                    }
                }
                Space::Global | Space::Constant | Space::Generic => {
                    self.check_dependency(launch, lane)?;
                    if order != Order::Weak {
                        let now = matches!(order, Order::Acquire | Order::AcquireRelease);
                        state.clocks.acquire(self.clock(), at, now);
                    }
                    let access = Access {
                        address: at,
                        bytes: total,
                        write: false,
                        lane: lane as u32,
                    };
                    let at = state.cache.place(launch, &mut held, access)?;
                    let Some(found) = &held else { continue };
                    for (index, d) in d.iter().enumerate() {
                        if let Some(d) = d {
                            let value = found.region.load(at + index * usize::from(bytes), bytes);
                            self.registers[*d as usize][lane] = extend(value);
                        }
                    }
                    if order == Order::Weak {
                        before = Some((whole, lane, usize::MAX));
                    }
                }
                Space::Parameter | Space::Local => {
                    let size = launch.function.local_bytes as usize;
                    let memory = match space {
                        Space::Parameter => launch.parameters,
                        _ => &self.local[lane * size..(lane + 1) * size],
                    };
                    let mut values = [0_u64; 8];
                    for (index, value) in values.iter_mut().enumerate().take(d.len()) {
                        let mut raw = [0; 8];
                        raw[..usize::from(bytes)]
                            .copy_from_slice(own(memory, space, at, index, bytes, total, lane)?);
                        *value = u64::from_le_bytes(raw);
                    }
                    for (d, value) in d.iter().zip(values) {
                        if let Some(d) = d {
                            self.registers[*d as usize][lane] = extend(value);
                        }
                    }
                    if space == Space::Parameter {
                        before = Some((whole, lane, usize::MAX));
                    }
                }
            }
        }
        Ok(())
    }

    fn store(
        &mut self,
        launch: &Launch<'_>,
        state: &mut State,
        (space, bytes, order): (Space, u8, Order),
        address: Address,
        values: &[Reg],
        active: u32,
    ) -> Result<(), Box<Fault>> {
        let base = *self.register(address.base);
        let total = bytes * values.len() as u8;
        let width = usize::from(bytes);
        let mut held = None;
        for lane in lanes_of(active) {
            let at = base[lane].wrapping_add_signed(address.offset);
            let (space, at) = Self::resolve(space, at);
            let mut data = [0; 32];
            for (index, register) in values.iter().enumerate() {
                let value = self.register(*register)[lane].to_le_bytes();
                data[index * width..(index + 1) * width].copy_from_slice(&value[..width]);
            }
            let data = &data[..usize::from(total)];
            match space {
                Space::Shared => {
                    let by = self.accessor(lane, order);
                    state.note_access(self.rank, at, by);
                    let ((shared, clocks), offset) = state.shared(self.rank, at, lane)?;
                    let at_byte = shared.check_write(offset, data, data.len(), by, clocks)?;
                    for (index, register) in values.iter().enumerate() {
                        shared.store(
                            at_byte + index * width,
                            bytes,
                            self.register(*register)[lane],
                        );
                    }
                    if by.strong {
                        let flag = state.flag_of(self.rank, at);
                        state
                            .clocks
                            .release(self.clock(), flag, order == Order::Release);
                    }
                }
                Space::Global | Space::Constant | Space::Generic => {
                    self.check_dependency(launch, lane)?;
                    if order != Order::Weak {
                        state
                            .clocks
                            .release(self.clock(), at, order == Order::Release);
                    }
                    let access = Access {
                        address: at,
                        bytes: total,
                        write: true,
                        lane: lane as u32,
                    };
                    let at = state.cache.place(launch, &mut held, access)?;
                    let Some(found) = &held else { continue };
                    for (index, register) in values.iter().enumerate() {
                        found.region.store(
                            at + index * width,
                            bytes,
                            self.registers[*register as usize][lane],
                        );
                    }
                }
                Space::Local => {
                    let size = launch.function.local_bytes as usize;
                    let memory = &self.local[lane * size..(lane + 1) * size];
                    own(memory, space, at, 0, total, total, lane)?;
                    let at = lane * size + at as usize;
                    self.local[at..at + data.len()].copy_from_slice(data);
                }
                Space::Parameter => {
                    return Err(Fault::new(
                        Detector::ReadOnly,
                        lane as u32,
                        "write of a parameter",
                    ));
                }
            }
        }
        Ok(())
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "one argument for each operand of the instruction"
    )]
    fn atomic(
        &mut self,
        launch: &Launch<'_>,
        state: &mut State,
        (space, op, ty, order): (Space, AtomicOp, AtomicType, Order),
        d: Option<Reg>,
        address: Address,
        (b, c): (Reg, Reg),
        active: u32,
    ) -> Result<(), Box<Fault>> {
        let bytes = match ty {
            AtomicType::Integer(Integer::U16 | Integer::S16)
            | AtomicType::Float(Float::F16 | Float::Bf16) => 2,
            AtomicType::Integer(Integer::U64 | Integer::S64) | AtomicType::Float(Float::F64) => 8,
            _ => 4,
        };
        let base = *self.register(address.base);
        let warp = self.clock();
        let (acquires, releases) = match order {
            Order::Acquire => (true, false),
            Order::Release => (false, true),
            Order::AcquireRelease => (true, true),
            _ => (false, false),
        };
        for lane in lanes_of(active) {
            let (b, c) = (self.register(b)[lane], self.register(c)[lane]);
            let step = |old: u64| match ty {
                AtomicType::Integer(ty) => integer::combine(op, ty, old, b, c),
                AtomicType::Float(ty) => float::combine(op, ty, old, b),
            };
            let at = base[lane].wrapping_add_signed(address.offset);
            let (space, at) = Self::resolve(space, at);
            let old = match space {
                Space::Shared => {
                    let by = self.accessor(lane, Order::Relaxed);
                    let flag = state.flag_of(self.rank, at);
                    state.clocks.acquire(warp, flag, acquires);
                    state.clocks.release(warp, flag, releases);
                    let size = usize::from(bytes);
                    state.note_access(self.rank, at, by);
                    let ((shared, clocks), at) = state.shared(self.rank, at, lane)?;
                    let place = shared.check_read(at, size, size, by, clocks)?;
                    let old = shared.load(place, bytes);
                    let new = step(old);
                    shared.check_write(at, &new.to_le_bytes()[..size], size, by, clocks)?;
                    shared.store(place, bytes, new);
                    old
                }
                Space::Global | Space::Generic => {
                    self.check_dependency(launch, lane)?;
                    state.clocks.acquire(warp, at, acquires);
                    state.clocks.release(warp, at, releases);
                    let access = Access {
                        address: at,
                        bytes,
                        write: true,
                        lane: lane as u32,
                    };
                    let mut held = None;
                    let at = state.cache.place(launch, &mut held, access)?;
                    let Some(found) = &held else { continue };
                    found.region.update(at, bytes, step)
                }
                _ => {
                    return Err(Fault::new(
                        Detector::OutOfBounds,
                        lane as u32,
                        "an atomic operation outside global and shared memory",
                    ));
                }
            };
            if let Some(d) = d {
                self.registers[d as usize][lane] = old;
            }
        }
        Ok(())
    }
}

/// The bytes of one element in a lane's own memory.
fn own(
    memory: &[u8],
    space: Space,
    at: u64,
    index: usize,
    bytes: u8,
    total: u8,
    lane: usize,
) -> Result<&[u8], Box<Fault>> {
    let begin = usize::try_from(at)
        .unwrap_or(usize::MAX)
        .saturating_add(index * usize::from(bytes));
    if !at.is_multiple_of(u64::from(total)) && space == Space::Local {
        return Err(Fault::new(
            Detector::Misaligned,
            lane as u32,
            format!("{total} bytes at {at} of local memory"),
        ));
    }
    memory
        .get(begin..begin.saturating_add(usize::from(bytes)))
        .ok_or_else(|| {
            let name = if space == Space::Local {
                "local memory"
            } else {
                "parameters"
            };
            let message = format!("{total} bytes at {at} of {} bytes of {name}", memory.len());
            Fault::new(Detector::OutOfBounds, lane as u32, message)
        })
}
