//! Asynchronous copies: issued, grouped, and done when they are waited for.

use std::collections::VecDeque;

use super::access::Access;
use super::bulk::InFlight;
use super::cluster::State;
use super::launch::Launch;
use super::report::{Detector, Fault};
use super::warp::Warp;
use super::{LANES, lanes_of};
use crate::ptx::instruction::{Address, Order, Predicate, Reg, Space};

/// A copy that has been issued and not been waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingCopy {
    pub(super) to: u64,
    from: u64,
    pub(super) bytes: u8,
    source_bytes: u8,
}

/// The asynchronous copies of a lane.
#[derive(Clone, Debug, Default)]
pub(super) struct LaneCopies {
    open: Vec<PendingCopy>,
    groups: VecDeque<Vec<PendingCopy>>,
}

impl Warp {
    pub(super) fn copy(
        &mut self,
        launch: &Launch<'_>,
        state: &mut State,
        (bytes, source_bytes, ignore): (u8, Option<Reg>, Option<Predicate>),
        to: Address,
        from: Address,
        active: u32,
    ) -> Result<(), Box<Fault>> {
        let ignored = ignore.map_or(0, |predicate| self.predicate(predicate));
        for lane in lanes_of(active) {
            let (_, to) = Self::resolve(
                Space::Shared,
                self.register(to.base)[lane].wrapping_add_signed(to.offset),
            );
            let from = self.register(from.base)[lane].wrapping_add_signed(from.offset);
            let source_bytes = source_bytes.map_or(u64::from(bytes), |register| {
                self.register(register)[lane] & 0xFFFF_FFFF
            });
            if source_bytes > u64::from(bytes) {
                let message = format!("cp.async of {bytes} bytes from {source_bytes}");
                return Err(Fault::new(Detector::OutOfBounds, lane as u32, message));
            }
            let source_bytes = if ignored >> lane & 1 == 1 {
                0
            } else {
                source_bytes as u8
            };
            let copy = PendingCopy {
                to,
                from,
                bytes,
                source_bytes,
            };
            // Where the source is wrong, this is the line to name.
            self.check_dependency(launch, lane)?;
            copied(launch, state, copy, lane)?;
            let by = self.accessor(lane, Order::Weak);
            let ((shared, clocks), at) = state.shared(self.rank, to, lane)?;
            shared.begin_copy(at, usize::from(bytes), usize::from(bytes), by, clocks)?;
            if self.copies.is_empty() {
                self.copies.resize_with(LANES, LaneCopies::default);
            }
            self.copies[lane].open.push(copy);
        }
        Ok(())
    }

    /// `cp.async.mbarrier.arrive`: the copies of each lane so far become the engine's, which arrives when they are done.
    pub(super) fn copies_arrive(
        &mut self,
        state: &mut State,
        counted: bool,
        address: Address,
        active: u32,
    ) -> Result<(), Box<Fault>> {
        for lane in lanes_of(active) {
            let barrier = self.shared_address(address, lane);
            let by = self.accessor(lane, Order::Relaxed);
            let barrier = state.phase_of(self.rank, barrier, by)?;
            if !counted {
                state.phased(barrier, lane as u32)?.more(1);
            }
            let mut copies = Vec::new();
            if let Some(of) = self.copies.get_mut(lane) {
                copies.extend(of.groups.drain(..).flatten());
                copies.append(&mut of.open);
            }
            state.engines.push(InFlight::Copies {
                copies,
                rank: self.rank,
                barrier,
                by,
                knowledge: state.clocks.knowledge(self.clock()),
            });
            state.clocks.advance(self.clock());
        }
        Ok(())
    }

    /// Closes the group of copies of each lane.
    pub(super) fn commit_copies(&mut self, active: u32) {
        // A group of nothing that is older than the first copy is never waited for.
        if self.copies.is_empty() {
            return;
        }
        for lane in lanes_of(active) {
            let copies = &mut self.copies[lane];
            copies.groups.push_back(std::mem::take(&mut copies.open));
        }
    }

    pub(super) fn wait_for_copies(
        &mut self,
        launch: &Launch<'_>,
        state: &mut State,
        left: Option<u32>,
        active: u32,
    ) -> Result<(), Box<Fault>> {
        if self.copies.is_empty() {
            return Ok(());
        }
        for lane in lanes_of(active) {
            let by = self.accessor(lane, Order::Weak);
            let copies = &mut self.copies[lane];
            if left.is_none() {
                copies.groups.push_back(std::mem::take(&mut copies.open));
            }
            while copies.groups.len() > left.unwrap_or(0) as usize {
                for copy in copies.groups.pop_front().unwrap_or_default() {
                    let data = copied(launch, state, copy, lane)?;
                    let ((shared, clocks), at) = state.shared(self.rank, copy.to, lane)?;
                    shared.end_copy(at, &data[..usize::from(copy.bytes)], by, false, clocks);
                }
            }
        }
        Ok(())
    }
}

/// The bytes that a copy brings: those of its source, then zeros.
pub(super) fn copied(
    launch: &Launch<'_>,
    state: &mut State,
    copy: PendingCopy,
    lane: usize,
) -> Result<[u8; 16], Box<Fault>> {
    let mut data = [0; 16];
    if !copy.from.is_multiple_of(u64::from(copy.bytes)) {
        let message = format!("cp.async of {} bytes from {:#x}", copy.bytes, copy.from);
        return Err(Fault::new(Detector::Misaligned, lane as u32, message));
    }
    // Byte by byte where the source ends within the copy.
    let step = if copy.source_bytes == copy.bytes {
        copy.bytes.min(8)
    } else {
        1
    };
    for at in (0..copy.source_bytes).step_by(usize::from(step)) {
        let access = Access {
            address: copy.from + u64::from(at),
            bytes: step,
            write: false,
            lane: lane as u32,
        };
        let mut held = None;
        let offset = state.cache.place(launch, &mut held, access)?;
        let Some(found) = &held else { continue };
        let value = found.region.load(offset, step).to_le_bytes();
        data[usize::from(at)..usize::from(at + step)].copy_from_slice(&value[..usize::from(step)]);
    }
    Ok(data)
}
