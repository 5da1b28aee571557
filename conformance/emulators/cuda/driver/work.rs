//! What a stream runs: launches, copies, sets, frees, calls of the host, marks, graphs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::abi::{Callback, Host};
use super::graph::Step;
use super::state::{Context, Kernel, driver};
use super::status::{self, Result, Status};
use super::stream::Mark;
use crate::interpret::{self, Detector, Launch, Report};
use crate::memory::{Allocation, Lookup, State};

/// A launch of a kernel.
#[derive(Clone, Debug)]
pub struct LaunchWork {
    /// The kernel.
    pub kernel: Arc<Kernel>,
    /// The kernel's handle, for who asks a graph for it.
    pub handle: usize,
    /// Blocks along each axis.
    pub grid: [u32; 3],
    /// Threads along each axis.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The parameter buffer.
    pub parameters: Vec<u8>,
    /// How its blocks run.
    pub manner: Manner,
}

/// How the blocks of a launch run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// All at once.
    pub cooperative: bool,
    /// Possibly before the launch before has ended.
    pub programmatic: bool,
    /// Blocks of a cluster along each axis, where the launch says it.
    pub cluster: Option<[u32; 3]>,
}

/// One end of a copy.
#[derive(Clone, Debug)]
pub enum Place {
    /// An address that devices reach.
    Device(u64),
    /// Memory of the host.
    Host(Host),
    /// Bytes that were taken over when the call was made.
    Bytes(Arc<[u8]>),
}

/// A piece of work.
#[derive(Clone, Debug)]
pub enum Work {
    /// A launch.
    Launch(Arc<LaunchWork>),
    /// A copy of so many bytes.
    Copy {
        /// Where to.
        to: Place,
        /// Where from.
        from: Place,
        /// How many bytes.
        bytes: usize,
    },
    /// Sets elements of 1, 2 or 4 bytes.
    Set {
        /// Where.
        to: u64,
        /// The value.
        value: u32,
        /// Bytes of an element.
        width: u8,
        /// How many elements.
        count: usize,
    },
    /// An allocation has its turn.
    Begin(Arc<Allocation>),
    /// Memory is given back.
    Free(u64),
    /// The host is called.
    Call(Callback),
    /// A moment that others wait for.
    Mark(Arc<Mark>),
    /// Waits for a moment of another stream.
    Wait(Arc<Mark>),
    /// A graph: pieces of work, each with those it comes after.
    Graph(Arc<Vec<Step>>),
    /// Nothing: a node that joins others.
    Empty,
}

impl Work {
    /// Whether it only orders streams, and so is done also when the context is lost.
    pub fn is_order(&self) -> bool {
        matches!(self, Work::Mark(_) | Work::Wait(_))
    }
}

/// Does what only orders streams.
pub fn reach(work: &Work) {
    match work {
        Work::Mark(mark) => mark.reach(),
        Work::Wait(mark) => mark.wait(),
        _ => {}
    }
}

/// Runs a piece of work.
///
/// # Errors
/// What the context is lost with.
pub fn run(work: &Work, context: &Context) -> Result<()> {
    match work {
        Work::Launch(launch) => run_launch(launch, context),
        Work::Copy { to, from, bytes } => copy(to, from, *bytes),
        Work::Set {
            to,
            value,
            width,
            count,
        } => set(*to, *value, *width, *count),
        Work::Begin(allocation) => {
            allocation.set_state(State::Live);
            Ok(())
        }
        Work::Free(base) => {
            if driver().free(*base) {
                return Ok(());
            }
            illegal(&format!("free of {base:#x}, which is not allocated"))
        }
        Work::Call(callback) => {
            callback.call();
            Ok(())
        }
        Work::Mark(_) | Work::Wait(_) => {
            reach(work);
            Ok(())
        }
        Work::Graph(steps) => run_graph(steps, context),
        Work::Empty => Ok(()),
    }
}

fn illegal(what: &str) -> Result<()> {
    driver().faults.report(&format!("emulated: {what}"));
    Err(status::ILLEGAL_ADDRESS)
}

/// The code that a GPU's driver would give.
fn status_of(report: &Report) -> Status {
    match report.detector {
        Detector::OutOfBounds | Detector::UseAfterFree | Detector::ReadOnly => {
            status::ILLEGAL_ADDRESS
        }
        Detector::Misaligned => status::MISALIGNED_ADDRESS,
        Detector::StepLimit => status::LAUNCH_TIMEOUT,
        _ => status::LAUNCH_FAILED,
    }
}

fn run_launch(work: &LaunchWork, context: &Context) -> Result<()> {
    let driver = driver();
    driver.faults.launch().inspect_err(|_| {
        driver.faults.report(&format!(
            "emulated: launch of {} fails on demand",
            work.kernel.function().name
        ));
    })?;
    let turn = driver.launches.fetch_add(1, Ordering::Relaxed);
    let result = interpret::run(Launch {
        function: work.kernel.function(),
        grid: work.grid,
        cluster: work.manner.cluster.unwrap_or([1; 3]),
        block: work.block,
        parameters: &work.parameters,
        dynamic_shared: work.dynamic_shared,
        cooperative: work.manner.cooperative,
        programmatic: work.manner.programmatic,
        memory: &driver.space,
        device: context.device,
        peers: context.peers.load(Ordering::Relaxed),
        variables: &work.kernel.module.addresses,
        options: driver.settings.options(turn.wrapping_mul(0x9E37_79B9)),
        cancelled: Some(&context.cancelled),
    });
    result.map(|_| ()).map_err(|report| {
        driver.faults.report(&report.to_string());
        status_of(&report)
    })
}

/// The allocation that holds a range, and where in it the range begins.
fn range(address: u64, bytes: usize, what: &str) -> Result<(Arc<Allocation>, usize)> {
    let complaint = match driver().space.find(address) {
        Lookup::Found(found) if found.state() == State::Reserved => {
            "memory whose allocation has not had its turn"
        }
        Lookup::Found(found) if found.bytes() - (address - found.base) >= bytes as u64 => {
            let offset = (address - found.base) as usize;
            return Ok((found, offset));
        }
        Lookup::Found(_) => "more than its allocation",
        Lookup::Freed(..) => "freed memory",
        Lookup::Nothing(_) => "no allocation",
    };
    illegal(&format!(
        "{what} of {bytes} bytes at {address:#x}: {complaint}"
    ))?;
    Err(status::ILLEGAL_ADDRESS)
}

fn copy(to: &Place, from: &Place, bytes: usize) -> Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let mut data = vec![0; bytes];
    match from {
        Place::Device(address) => {
            let (found, at) = range(*address, bytes, "copy")?;
            found.region.read(at, &mut data);
        }
        Place::Host(host) => host.read(&mut data),
        Place::Bytes(taken) => data.copy_from_slice(&taken[..bytes]),
    }
    match to {
        Place::Device(address) => {
            let (found, at) = range(*address, bytes, "copy")?;
            found.region.write(at, &data);
        }
        Place::Host(host) => host.write(&data),
        Place::Bytes(_) => {}
    }
    Ok(())
}

fn set(to: u64, value: u32, width: u8, count: usize) -> Result<()> {
    let bytes = count * usize::from(width);
    if bytes == 0 {
        return Ok(());
    }
    let (found, at) = range(to, bytes, "memset")?;
    let element = value.to_le_bytes();
    let data: Vec<u8> = element[..usize::from(width)]
        .iter()
        .copied()
        .cycle()
        .take(bytes)
        .collect();
    found.region.write(at, &data);
    Ok(())
}

/// Runs a graph's steps, each after those it depends on, in one of the orders that this allows.
fn run_graph(steps: &[Step], context: &Context) -> Result<()> {
    let driver = driver();
    let turn = driver.launches.fetch_add(1, Ordering::Relaxed);
    let mut random = interpret::launch::Random::new(driver.settings.seed ^ turn);
    let mut done = vec![false; steps.len()];
    loop {
        let ready: Vec<_> = (0..steps.len())
            .filter(|&step| !done[step] && steps[step].after.iter().all(|&before| done[before]))
            .collect();
        if ready.is_empty() {
            return Ok(());
        }
        let step = ready[random.below(ready.len())];
        run(&steps[step].work, context)?;
        done[step] = true;
    }
}
