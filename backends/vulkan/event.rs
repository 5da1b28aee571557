//! Points in a queue's work, and the times between them.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use ropeway_core::device::Event;
use ropeway_core::{Error, Result};

use super::batch::Core;
use super::device::Shared;

/// A point in a queue's work: a batch, and a slot for the time.
pub(super) struct VulkanEvent {
    pub(super) core: Arc<Core>,
    pub(super) batch: u64,
    pub(super) slot: Option<u32>,
}

impl Drop for VulkanEvent {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.core.drop_slot(self.batch, slot);
        }
    }
}

impl Shared {
    /// The event behind the trait object, if it is this device's.
    pub(super) fn event<'a>(&self, event: &'a dyn Event) -> Result<&'a VulkanEvent> {
        match event.as_any().downcast_ref::<VulkanEvent>() {
            Some(event) if event.core.shared.id == self.id => Ok(event),
            _ => Err(Error::invalid(
                "event",
                "one of another device",
                "one of this device",
            )),
        }
    }
}

impl Event for VulkanEvent {
    fn is_done(&self) -> Result<bool> {
        self.core.shared.alive()?;
        self.core.flush_to(self.batch)?;
        self.core.has_reached(self.batch)
    }

    fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        let core = &self.core;
        core.shared.alive()?;
        core.flush_to(self.batch)?;
        core.wait(self.batch, timeout)?;
        core.collect(&mut core.lock());
        core.shared.sweep();
        Ok(())
    }

    fn elapsed_since(&self, earlier: &dyn Event) -> Result<Duration> {
        let shared = &self.core.shared;
        let earlier = shared.event(earlier)?;
        for event in [earlier, self] {
            if !event.is_done()? {
                return Err(Error::invalid(
                    "event",
                    "one that is not done",
                    "two that are done",
                ));
            }
        }
        let ticks = |event: &VulkanEvent| {
            let slot = event
                .slot
                .ok_or_else(|| Error::unsupported("times of a queue without a device clock"))?;
            event.core.ticks(slot).map_err(|error| shared.note(error))
        };
        let family = |event: &VulkanEvent| shared.gpu.families[event.core.family].timestamp_bits;
        let bits = family(earlier).min(family(self)).min(64);
        let passed = ticks(self)?.wrapping_sub(ticks(earlier)?) << (64 - bits) >> (64 - bits);
        // Two queues' events may come in any order.
        let passed = if passed >> (bits - 1) == 0 { passed } else { 0 };
        Ok(Duration::from_nanos((passed as f64 * shared.gpu.timestamp_period) as u64))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
