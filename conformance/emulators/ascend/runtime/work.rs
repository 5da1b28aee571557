//! What a stream runs.

use std::sync::Arc;

use super::abi::Address;
use super::binary::Launch;
use super::clock::Clock;
use super::device::{Fault, emulator};
use super::graph::Graph;
use super::lock;
use super::memory::Allocation;
use super::settings::Random;
use super::status;
use super::stream::Mark;

/// Where bytes come from or go to.
#[derive(Clone, Debug)]
pub enum Place {
    /// Device memory, which must still be there when the work is run.
    Device(u64),
    /// Pinned memory.
    Pinned(Arc<Allocation>, u64),
    /// Other memory of the host.
    Host(Address),
}

/// A piece of work.
#[derive(Clone, Debug)]
pub enum Work {
    /// A copy.
    Copy {
        /// Where to.
        to: Place,
        /// Where from.
        from: Place,
        /// How much.
        bytes: u64,
    },
    /// Bytes of one value.
    Set {
        /// The address.
        to: u64,
        /// The value.
        value: u8,
        /// How many.
        bytes: u64,
    },
    /// A kernel.
    Launch(Arc<Launch>),
    /// A point that others wait for.
    Mark(Arc<Mark>),
    /// Waiting for such a point, and what is done once it is reached.
    Wait(Arc<Mark>, Clock),
    /// A model runtime instance.
    Graph(Arc<Graph>),
}

impl Work {
    /// Whether it only orders other work.
    pub fn is_order(&self) -> bool {
        matches!(self, Work::Mark(_) | Work::Wait(..))
    }

    /// The allocations that it refers to as far as its arguments tell.
    pub fn allocations(&self) -> Vec<Arc<Allocation>> {
        let memory = &emulator().memory;
        let of = |place: &Place| match place {
            Place::Device(address) => memory.find(*address),
            Place::Pinned(allocation, _) => Some(Arc::clone(allocation)),
            Place::Host(_) => None,
        };
        match self {
            Work::Copy { to, from, .. } => [of(to), of(from)].into_iter().flatten().collect(),
            Work::Set { to, .. } => memory.find(*to).into_iter().collect(),
            Work::Launch(launch) => launch
                .arguments
                .iter()
                .filter_map(|word| memory.find(*word))
                .collect(),
            Work::Graph(graph) => graph
                .nodes
                .iter()
                .flat_map(|node| node.work.allocations())
                .collect(),
            Work::Mark(_) | Work::Wait(..) => Vec::new(),
        }
    }

    /// Notes in all that it refers to that this piece of a stream's work does.
    pub fn mark_used(&self, stream: usize, number: u64) {
        for allocation in self.allocations() {
            lock(&allocation.uses).reach(stream, number);
        }
        self.mark_code_used(stream, number);
    }

    fn mark_code_used(&self, stream: usize, number: u64) {
        match self {
            Work::Launch(launch) => {
                lock(&launch.function.binary.uses).reach(stream, number);
            }
            Work::Graph(graph) => {
                lock(&graph.uses).reach(stream, number);
                for node in &graph.nodes {
                    node.work.mark_code_used(stream, number);
                }
            }
            _ => {}
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// What the device met.
    pub fn run(&self, random: &mut Random) -> Result<(), Fault> {
        match self {
            Work::Copy { to, from, bytes } => copy(to, from, *bytes),
            Work::Set { to, value, bytes } => {
                let (_kept, at) = translate(*to, *bytes)?;
                super::memory::fill(at, *value, *bytes);
                Ok(())
            }
            Work::Launch(launch) => launch.run(),
            Work::Mark(mark) => {
                mark.reach();
                Ok(())
            }
            Work::Wait(mark, _) => {
                mark.wait();
                Ok(())
            }
            Work::Graph(graph) => graph.run(random),
        }
    }
}

/// The bytes of device memory, with what keeps them there.
fn translate(address: u64, bytes: u64) -> Result<(Option<Arc<Allocation>>, *mut u8), Fault> {
    let memory = &emulator().memory;
    match memory.translate(address, bytes) {
        Some((allocation, at)) => Ok((Some(allocation), at)),
        None => {
            let why = format!(
                "queued work reaches {bytes} bytes at {}",
                memory.describe(address)
            );
            emulator().breaches.record(&why);
            Err(Fault {
                status: status::DRIVER,
                why,
            })
        }
    }
}

/// Copies at once.
///
/// # Errors
/// Device memory that is not there.
pub fn copy(to: &Place, from: &Place, bytes: u64) -> Result<(), Fault> {
    let resolve = |place: &Place| match place {
        Place::Device(address) => translate(*address, bytes),
        Place::Pinned(allocation, offset) => {
            Ok((Some(Arc::clone(allocation)), allocation.at(*offset)))
        }
        Place::Host(address) => Ok((None, address.bytes())),
    };
    let (_kept_to, to) = resolve(to)?;
    let (_kept_from, from) = resolve(from)?;
    super::memory::copy(to, from, bytes);
    Ok(())
}
