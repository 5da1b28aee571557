//! Graphs: launches recorded once in a command buffer that is handed over again and again.

use std::any::Any;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ash::vk;
use ropeway_core::device::{Download, Event, Graph, LaunchCall, PinnedBuffer, Queue};
use ropeway_core::memory::{DeviceId, Slice};
use ropeway_core::plan::BoundPlan;
use ropeway_core::{Error, Result, View};

use super::device::Shared;
use super::memory::{Arena, Room};
use super::batch::Core;
use super::record::{Hazards, Prepared};
use super::sys::{CommandPool, Commands, lock};
use crate::loop_graph::LoopGraph;

/// Recordings of queues that are kept for the next replay.
const QUEUES: usize = 8;

/// Bound plans, and what was recorded of them.
pub(super) struct VulkanGraph {
    pub(super) shared: Arc<Shared>,
    plans: LoopGraph,
    recordings: Mutex<Recordings>,
}

#[derive(Default)]
struct Recordings {
    /// For every queue, if no launch gets a queue's status word.
    of_all: Option<Arc<Recorded>>,
    /// By status word.
    of_queues: Vec<(u64, Arc<Recorded>)>,
}

impl VulkanGraph {
    pub(super) fn new(shared: &Arc<Shared>, plans: Vec<BoundPlan>) -> Result<VulkanGraph> {
        let graph = VulkanGraph {
            shared: shared.clone(),
            plans: LoopGraph::new(shared.id, plans)?,
            recordings: Mutex::default(),
        };
        // Finds what is wrong now. A recording with a status word is of a queue, which is not known yet.
        let family = shared.gpu.families[0].index;
        let recorded = graph.record(family, 0)?;
        if !recorded.uses_status {
            lock(&graph.recordings).of_all = Some(Arc::new(recorded));
        }
        Ok(graph)
    }

    /// The recording for a queue, `None` if there is nothing to do.
    pub(super) fn recorded(&self, core: &Core) -> Result<Option<Arc<Recorded>>> {
        let status = core.status_address();
        let mut recordings = lock(&self.recordings);
        let known = recordings.of_all.as_ref().or_else(|| {
            let of_queue = recordings.of_queues.iter().find(|(word, _)| *word == status);
            of_queue.map(|(_, recorded)| recorded)
        });
        let recorded = match known {
            Some(recorded) => recorded.clone(),
            None => {
                let recorded = Arc::new(self.record(core.family_index(), status)?);
                if recorded.uses_status {
                    if recordings.of_queues.len() == QUEUES {
                        recordings.of_queues.remove(0);
                    }
                    recordings.of_queues.push((status, recorded.clone()));
                } else {
                    recordings.of_all = Some(recorded.clone());
                }
                recorded
            }
        };
        Ok((recorded.launches > 0).then_some(recorded))
    }

    fn record(&self, family: u32, status: u64) -> Result<Recorded> {
        let shared = &self.shared;
        let pool = CommandPool::new(&shared.gpu, family)?;
        let commands = pool.allocate()?;
        let recorder = Recorder {
            shared: shared.clone(),
            commands,
            status,
            state: Mutex::new(RecorderState {
                hazards: Hazards::new(),
                bound: None,
                arena: Arena::new(),
                launches: 0,
                uses_status: false,
            }),
        };
        recorder.commands().begin(true)?;
        recorder.commands().barrier();
        self.plans.replay(&recorder)?;
        recorder.commands().barrier_to_host();
        recorder.commands().end()?;
        let state = recorder.state.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(Recorded {
            commands,
            launches: state.launches,
            uses_status: state.uses_status,
            _plans: self.plans.plans(),
            _arena: state.arena,
            _pool: pool,
        })
    }
}

impl Graph for VulkanGraph {
    fn rebind(&self, plan: usize, views: &[(usize, View)]) -> Result<()> {
        let mut recordings = lock(&self.recordings);
        self.plans.rebind(plan, views)?;
        // Replays under way keep theirs.
        *recordings = Recordings::default();
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A command buffer that any number of batches may contain at once, with what it needs.
pub(super) struct Recorded {
    commands: vk::CommandBuffer,
    launches: u32,
    uses_status: bool,
    /// Their buffers and functions.
    _plans: Vec<BoundPlan>,
    _arena: Arena,
    _pool: CommandPool,
}

impl Recorded {
    pub(super) fn commands(&self) -> vk::CommandBuffer {
        self.commands
    }

    pub(super) fn launches(&self) -> u32 {
        self.launches
    }

    pub(super) fn uses_status(&self) -> bool {
        self.uses_status
    }
}

/// Stands in for a queue while plans are enqueued, and takes their launches down.
struct Recorder {
    shared: Arc<Shared>,
    commands: vk::CommandBuffer,
    status: u64,
    state: Mutex<RecorderState>,
}

struct RecorderState {
    hazards: Hazards,
    bound: Option<usize>,
    /// Holds the argument blocks that are too long to be pushed, for as long as the recording lives.
    arena: Arena,
    launches: u32,
    uses_status: bool,
}

impl Recorder {
    fn commands(&self) -> Commands<'_> {
        Commands {
            raw: self.commands,
            gpu: &self.shared.gpu,
            launches: true,
        }
    }
}

fn only_launches<T>() -> Result<T> {
    Err(Error::unsupported("anything but launches in a graph"))
}

impl Queue for Recorder {
    fn device(&self) -> DeviceId {
        self.shared.id
    }

    fn upload(&self, _: &Slice, _: &[u8]) -> Result<()> {
        only_launches()
    }

    fn download(&self, _: &Slice, _: PinnedBuffer) -> Result<Download> {
        only_launches()
    }

    fn read_blocking(&self, _: &Slice, _: &mut [u8]) -> Result<()> {
        only_launches()
    }

    fn copy(&self, _: &Slice, _: &Slice) -> Result<()> {
        only_launches()
    }

    fn fill(&self, _: &Slice, _: u8) -> Result<()> {
        only_launches()
    }

    unsafe fn launch(&self, call: &LaunchCall<'_>) -> Result<()> {
        let shared = &self.shared;
        let prepared = Prepared::new(shared, call, self.status)?;
        let mut state = lock(&self.state);
        let mut at = 0;
        if prepared.in_memory {
            let block = prepared.block.bytes();
            // No room comes free while a recording lives: its batch is never over.
            let room: Option<Room> = state.arena.take(&shared.gpu, block.len(), u64::MAX, 0)?;
            let room = room.ok_or_else(|| Error::unsupported("a graph with so many arguments"))?;
            room.write(block);
            at = room.address;
        }
        let RecorderState { hazards, bound, .. } = &mut *state;
        // SAFETY: the caller's promise; the recording keeps the plans, which keep buffers and functions.
        unsafe { prepared.record(self.commands(), hazards, bound, at) };
        state.launches += 1;
        state.uses_status |= prepared.uses_status;
        Ok(())
    }

    fn record(&self) -> Result<Arc<dyn Event>> {
        only_launches()
    }

    fn wait(&self, _: &Arc<dyn Event>) -> Result<()> {
        only_launches()
    }

    fn flush(&self) -> Result<()> {
        only_launches()
    }

    fn synchronize(&self, _: Option<Duration>) -> Result<()> {
        only_launches()
    }

    fn replay(&self, _: &dyn Graph) -> Result<()> {
        only_launches()
    }
}
