//! A launch: its clusters, mostly of one block, dealt to threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::cluster::{Cluster, Progress};
use super::report::{Detector, Report};
use super::shared::Watch;
use crate::memory::AddressSpace;
use crate::ptx::Function;

/// How launches are run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides the order of warps and blocks.
    pub seed: u64,
    /// Threads that blocks are dealt to.
    pub threads: usize,
    /// What is watched for in shared memory; bounds, freed memory, barriers and asynchronous copies always are.
    pub watch: Watch,
    /// Instructions of a warp's lanes after which a launch is ended.
    pub steps: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            seed: 0,
            threads: 1,
            watch: Watch {
                uninitialised: true,
                races: true,
            },
            steps: 1 << 40,
        }
    }
}

/// A launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'l> {
    /// The kernel.
    pub function: &'l Function,
    /// Blocks along each axis.
    pub grid: [u32; 3],
    /// Blocks of a cluster along each axis, which divide the grid.
    pub cluster: [u32; 3],
    /// Threads of a block along each axis.
    pub block: [u32; 3],
    /// The parameter buffer.
    pub parameters: &'l [u8],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// Whether all blocks run at once, as a cooperative launch promises.
    pub cooperative: bool,
    /// Whether it may begin before the launch before it has ended: then it has to wait before it touches global memory.
    pub programmatic: bool,
    /// Where allocations are found.
    pub memory: &'l AddressSpace,
    /// The device, whose memory and the host's may be reached; others' where peers are enabled.
    pub device: usize,
    /// Devices whose memory may be reached, as bits.
    pub peers: u64,
    /// Addresses of the module's variables.
    pub variables: &'l [u64],
    /// How it is run.
    pub options: Options,
    /// Set from elsewhere to end it.
    pub cancelled: Option<&'l AtomicBool>,
}

/// What a launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Instructions times the lanes that executed them.
    pub lane_instructions: u64,
}

/// A generator for orders: splitmix64.
#[derive(Clone, Debug)]
pub struct Random(pub(super) u64);

impl Random {
    /// A generator of this seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    /// A number below a bound.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.draw() % bound.max(1) as u64) as usize
    }
}

/// What the threads of a launch share.
pub(super) struct Common<'l> {
    pub(super) launch: Launch<'l>,
    lane_instructions: AtomicU64,
    stop: AtomicBool,
    report: Mutex<Option<Report>>,
}

impl Common<'_> {
    /// Counts what a block did; false if the launch has to end.
    pub(super) fn count(&self, lane_instructions: u64) -> bool {
        let before = self
            .lane_instructions
            .fetch_add(lane_instructions, Ordering::Relaxed);
        before + lane_instructions <= self.launch.options.steps
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
            || self
                .launch
                .cancelled
                .is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    fn fail(&self, report: Report) {
        self.stop.store(true, Ordering::Relaxed);
        let mut first = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(report);
    }
}

/// Runs a launch to its end.
///
/// # Errors
/// The first thing that the sanitizer found. A cancelled launch ends without error.
pub fn run(launch: Launch<'_>) -> Result<Statistics, Box<Report>> {
    let common = Common {
        launch,
        lane_instructions: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        report: Mutex::new(None),
    };
    let blocks = launch
        .grid
        .iter()
        .zip(launch.cluster)
        .map(|(&extent, cluster)| u64::from(extent / cluster))
        .product::<u64>();
    let threads = launch
        .options
        .threads
        .clamp(1, usize::try_from(blocks).unwrap_or(usize::MAX).max(1));
    let next = AtomicU64::new(0);
    let work = |thread: usize| {
        if launch.cooperative {
            together(&common, (thread as u64..blocks).step_by(threads).collect());
        } else {
            one_by_one(&common, blocks, &next);
        }
    };
    if threads == 1 {
        work(0);
    } else {
        std::thread::scope(|scope| {
            for thread in 1..threads {
                scope.spawn(move || work(thread));
            }
            work(0);
        });
    }
    match common
        .report
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
    {
        Some(report) => Err(Box::new(report)),
        None => Ok(Statistics {
            lane_instructions: common.lane_instructions.into_inner(),
        }),
    }
}

fn one_by_one(common: &Common<'_>, blocks: u64, next: &AtomicU64) {
    // A walk in steps that share no factor with the number of blocks visits each once.
    let seed = common.launch.options.seed;
    let mut step = (Random(seed).draw() % blocks.max(1)) | 1;
    while common_factor(step, blocks) {
        step += 2;
    }
    loop {
        let turn = next.fetch_add(1, Ordering::Relaxed);
        if turn >= blocks || common.stopped() {
            return;
        }
        let number = (u128::from(turn) * u128::from(step) % u128::from(blocks)) as u64;
        let mut block = Cluster::new(common, number);
        loop {
            match block.run(common) {
                Ok(Progress::More) => {}
                Ok(Progress::Waits) => {
                    common.fail(block.deadlock(common));
                    return;
                }
                Ok(Progress::Done) => break,
                Err(report) => return common.fail(*report),
            }
            if common.stopped() {
                return;
            }
        }
    }
}

fn common_factor(mut a: u64, mut b: u64) -> bool {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a > 1
}

/// Runs blocks in turns, so that each gets on while it waits for another.
fn together(common: &Common<'_>, numbers: Vec<u64>) {
    let mut blocks: Vec<_> = numbers
        .iter()
        .map(|&number| Cluster::new(common, number))
        .collect();
    while !blocks.is_empty() && !common.stopped() {
        let mut left = Vec::with_capacity(blocks.len());
        for mut block in blocks {
            match block.run(common) {
                Ok(Progress::More) => left.push(block),
                Ok(Progress::Waits) => return common.fail(block.deadlock(common)),
                Ok(Progress::Done) => {}
                Err(report) => return common.fail(*report),
            }
        }
        blocks = left;
        // Others may be waited for.
        std::thread::yield_now();
    }
}

pub(super) fn step_limit(common: &Common<'_>) -> (Detector, String) {
    (
        Detector::StepLimit,
        format!(
            "more than {} lane-instructions",
            common.launch.options.steps
        ),
    )
}
