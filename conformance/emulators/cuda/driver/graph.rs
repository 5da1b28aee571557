//! Capture and graphs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::state::{driver, lock};
use super::status::{self, Result};
use super::work::{LaunchWork, Work};

/// A piece of work in a graph, and the pieces it comes after, by their numbers.
#[derive(Clone, Debug)]
pub struct Step {
    /// What is done.
    pub work: Work,
    /// What comes before.
    pub after: Vec<usize>,
}

/// A graph.
#[derive(Debug, Default)]
pub struct Graph {
    /// Its pieces of work; each comes after lower numbers only.
    pub steps: Mutex<Vec<Step>>,
    /// The handles of its nodes.
    pub nodes: Mutex<Vec<usize>>,
}

impl Graph {
    /// Adds a piece of work; gives its number.
    pub fn add(self: &Arc<Self>, work: Work, after: Vec<usize>) -> usize {
        let mut steps = lock(&self.steps);
        steps.push(Step { work, after });
        let number = steps.len() - 1;
        let node = driver().nodes.add(Arc::new(Node {
            graph: Arc::clone(self),
            number,
        }));
        lock(&self.nodes).push(node);
        number
    }

    /// Forgets its nodes' handles.
    pub fn destroy(&self) {
        for node in lock(&self.nodes).drain(..) {
            let _ = driver().nodes.remove(node);
        }
    }
}

/// A node of a graph.
#[derive(Debug)]
pub struct Node {
    /// The graph.
    pub graph: Arc<Graph>,
    /// Its number in it.
    pub number: usize,
}

impl Node {
    /// The launch that it is.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where it is no kernel node.
    pub fn launch(&self) -> Result<Arc<LaunchWork>> {
        match &lock(&self.graph.steps)[self.number].work {
            Work::Launch(launch) => Ok(Arc::clone(launch)),
            _ => Err(status::INVALID_VALUE),
        }
    }
}

/// A graph that can be launched.
#[derive(Debug)]
pub struct Executable {
    /// The graph it was made from.
    pub graph: Arc<Graph>,
    /// What the next launch runs; a launch under way keeps what it began with.
    pub steps: Mutex<Arc<Vec<Step>>>,
}

impl Executable {
    /// Makes a graph launchable.
    pub fn new(graph: &Arc<Graph>) -> Executable {
        Executable {
            graph: Arc::clone(graph),
            steps: Mutex::new(Arc::new(lock(&graph.steps).clone())),
        }
    }

    /// Replaces a launch.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where the node is not the graph's, or no kernel node.
    pub fn set_launch(&self, node: &Node, launch: LaunchWork) -> Result<()> {
        if !Arc::ptr_eq(&node.graph, &self.graph) {
            return Err(status::INVALID_VALUE);
        }
        let mut steps = lock(&self.steps);
        let step = Arc::make_mut(&mut steps)
            .get_mut(node.number)
            .ok_or(status::INVALID_VALUE)?;
        if !matches!(step.work, Work::Launch(_)) {
            return Err(status::INVALID_VALUE);
        }
        step.work = Work::Launch(Arc::new(launch));
        Ok(())
    }

    /// Takes over what another graph of the same form holds.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where the form differs.
    pub fn update(&self, graph: &Graph) -> Result<()> {
        let new = lock(&graph.steps).clone();
        let mut steps = lock(&self.steps);
        let alike = |a: &Step, b: &Step| {
            a.after == b.after && std::mem::discriminant(&a.work) == std::mem::discriminant(&b.work)
        };
        if steps.len() != new.len() || !steps.iter().zip(&new).all(|(a, b)| alike(a, b)) {
            return Err(status::INVALID_VALUE);
        }
        *steps = Arc::new(new);
        Ok(())
    }
}

/// A capture that is under way.
#[derive(Debug)]
pub struct Capture {
    /// Its number, which a program can ask for.
    pub id: u64,
    /// The graph it makes.
    pub graph: Arc<Graph>,
    /// The graph's handle.
    pub graph_handle: usize,
    /// The stream that began it.
    pub origin: usize,
    /// Whether its mode forbids unsafe calls of every thread.
    pub global: bool,
    /// Whether a call that is not allowed spoiled it.
    pub spoiled: AtomicBool,
    ended: AtomicBool,
}

impl Capture {
    /// Begins a capture of a stream.
    pub fn new(origin: usize, global: bool) -> Arc<Capture> {
        let graph = Arc::new(Graph::default());
        let handle = driver().graphs.add(Arc::clone(&graph));
        Arc::new(Capture {
            id: handle as u64,
            graph,
            graph_handle: handle,
            origin,
            global,
            spoiled: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        })
    }

    /// Adds a piece of work; gives its number.
    ///
    /// # Errors
    /// `CUDA_ERROR_STREAM_CAPTURE_INVALIDATED` for a spoiled capture; `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED` for what graphs do not hold here.
    pub fn add(&self, work: Work, after: Vec<usize>) -> Result<usize> {
        if self.spoiled.load(Ordering::Relaxed) {
            return Err(status::STREAM_CAPTURE_INVALIDATED);
        }
        if matches!(work, Work::Begin(_) | Work::Free(_)) {
            self.spoiled.store(true, Ordering::Relaxed);
            return Err(status::STREAM_CAPTURE_UNSUPPORTED);
        }
        if let Work::Graph(steps) = &work {
            return Ok(self.add_child(steps, &after));
        }
        Ok(self.graph.add(work, after))
    }

    /// A graph that is launched into a capture becomes part of it.
    fn add_child(&self, steps: &[Step], after: &[usize]) -> usize {
        let first = self.graph.add(Work::Empty, after.to_vec());
        let mut numbers = Vec::with_capacity(steps.len());
        for step in steps {
            let mut after: Vec<usize> = step.after.iter().map(|&before| numbers[before]).collect();
            if after.is_empty() {
                after.push(first);
            }
            numbers.push(self.graph.add(step.work.clone(), after));
        }
        numbers.push(first);
        self.graph.add(Work::Empty, numbers)
    }

    /// Whether it is over.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Ends it. `after`: what its first stream's next work would come after.
    ///
    /// # Errors
    /// `CUDA_ERROR_STREAM_CAPTURE_INVALIDATED`, or `CUDA_ERROR_STREAM_CAPTURE_UNJOINED` where other streams' work is not waited for.
    pub fn end(&self, after: &[usize]) -> Result<()> {
        self.ended.store(true, Ordering::Relaxed);
        if self.spoiled.load(Ordering::Relaxed) {
            return Err(status::STREAM_CAPTURE_INVALIDATED);
        }
        let steps = lock(&self.graph.steps);
        let followed = |number: usize| {
            steps.iter().any(|step| step.after.contains(&number)) || after.contains(&number)
        };
        if (0..steps.len()).all(followed) {
            Ok(())
        } else {
            Err(status::STREAM_CAPTURE_UNJOINED)
        }
    }
}
