//! What happens before what among the warps of a cluster and the engines beside them: vector clocks.
//!
//! Each warp counts its own synchronisations and knows of each other warp up to which count it is ordered behind it. An access is
//! recorded with its warp's count; it is ordered before what another warp does now if that warp knows of that count. Barriers
//! join the knowledge of their warps. A value passed through memory joins it too, where fences (or `.release` and `.acquire`) stand on
//! both sides.

use std::collections::HashMap;

/// Knowledge of each warp's count.
pub type Clock = Box<[u32]>;

/// The clocks of a block.
#[derive(Debug)]
pub struct Clocks {
    of: Vec<Clock>,
    /// What each warp's last fence released.
    fenced: Vec<Option<Clock>>,
    /// What each warp has read from others and would know after a fence.
    observed: Vec<Option<Clock>>,
    /// What was released through an address of shared memory.
    released: HashMap<u64, Clock>,
    /// The count of its warp at which each thread last had its writes ordered before what engines read.
    for_engines: Vec<u32>,
    /// Warps of a block, and of the cluster: engines have the clocks behind them.
    warps: [usize; 2],
}

fn join(into: &mut [u32], other: &[u32]) {
    for (a, b) in into.iter_mut().zip(other) {
        *a = (*a).max(*b);
    }
}

impl Clocks {
    /// Clocks of so many warps of each block, of blocks, and of so many engines, which know nothing of each other.
    pub fn new(of_block: usize, blocks: usize, engines: usize) -> Clocks {
        let warps = of_block * blocks + engines;
        let mut of = vec![vec![0; warps].into_boxed_slice(); warps];
        for (warp, clock) in of.iter_mut().enumerate() {
            clock[warp] = 1;
        }
        Clocks {
            of,
            fenced: vec![None; warps],
            observed: vec![None; warps],
            released: HashMap::new(),
            for_engines: vec![0; 32 * warps],
            warps: [of_block, of_block * blocks],
        }
    }

    /// What to call a thread of the cluster, or an engine.
    pub fn name(&self, thread: u32) -> String {
        let (warp, [of_block, all]) = (thread as usize / super::LANES, self.warps);
        let within = thread as usize % (of_block * super::LANES);
        if warp >= all {
            "an engine (a bulk copy)".into()
        } else if all == of_block {
            format!("thread {within}")
        } else {
            format!(
                "thread {within} of block {} of the cluster",
                warp / of_block
            )
        }
    }

    /// How many there are.
    #[allow(clippy::len_without_is_empty, reason = "a block has warps")]
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// The counts of all warps up to which a warp is ordered behind them; its own count at its own place.
    #[inline]
    pub fn known(&self, warp: usize) -> &[u32] {
        &self.of[warp]
    }

    /// Begins a new count: after a synchronisation of a warp's own lanes, or after it has released what it did.
    pub fn advance(&mut self, warp: usize) {
        self.of[warp][warp] += 1;
    }

    /// What a warp knows, and with it has done.
    pub fn knowledge(&self, warp: usize) -> Clock {
        self.of[warp].clone()
    }

    /// A warp learns.
    pub fn learn(&mut self, warp: usize, clock: &[u32]) {
        join(&mut self.of[warp], clock);
    }

    /// A fence: what was done before is released by the next store of a value that others wait for, and what was read is known.
    pub fn fence(&mut self, warp: usize) {
        if let Some(observed) = self.observed[warp].take() {
            self.learn(warp, &observed);
        }
        self.fenced[warp] = Some(self.knowledge(warp));
        self.advance(warp);
    }

    /// A fence of the proxy by threads of a warp: engines see what they wrote.
    pub fn fence_for_engines(&mut self, warp: usize, lanes: u32) {
        for lane in super::lanes_of(lanes) {
            self.for_engines[32 * warp + lane] = self.of[warp][warp];
        }
        self.advance(warp);
    }

    /// Whether a fence of the proxy follows what a thread wrote at this count of its warp.
    #[inline]
    pub fn is_fenced_for_engines(&self, thread: u32, count: u32) -> bool {
        count <= self.for_engines[thread as usize]
    }

    /// A strong store: what the last fence covers, or all if it is a release, can be learnt through the address.
    pub fn release(&mut self, warp: usize, address: u64, now: bool) {
        if now {
            self.fence(warp);
        }
        if let Some(fenced) = &self.fenced[warp] {
            let warps = self.of.len();
            let entry = self
                .released
                .entry(address)
                .or_insert_with(|| vec![0; warps].into());
            join(entry, fenced);
        }
    }

    /// A strong load: what was released through the address is known now, or after the next fence.
    pub fn acquire(&mut self, warp: usize, address: u64, now: bool) {
        let Some(released) = self.released.get(&address) else {
            return;
        };
        if now {
            join(&mut self.of[warp], released);
        } else {
            let warps = self.of.len();
            let observed = self.observed[warp].get_or_insert_with(|| vec![0; warps].into());
            join(observed, released);
        }
    }
}

/// Joins one clock into another.
pub fn merge(into: &mut Option<Clock>, other: &Clock) {
    match into {
        Some(clock) => join(clock, other),
        None => *into = Some(other.clone()),
    }
}
