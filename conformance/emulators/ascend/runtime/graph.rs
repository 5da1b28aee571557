//! Capture, and the model runtime instances that it gives.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use super::clock::Clock;
use super::device::{Fault, emulator};
use super::lock;
use super::memory::Allocation;
use super::settings::Random;
use super::status::{self, Result};
use super::stream::Stream;
use super::work::Work;

/// Work, and the nodes that come before it.
#[derive(Debug)]
pub struct Node {
    /// The work.
    pub work: Work,
    /// Indices of nodes.
    pub after: Vec<usize>,
}

/// What calls a capture forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No thread may make synchronous copies.
    Global,
    /// The capturing thread may not.
    ThreadLocal,
    /// Nothing is forbidden.
    Relaxed,
}

/// A capture under way.
#[derive(Debug)]
pub struct Capture {
    nodes: Mutex<Vec<Node>>,
    /// Why it cannot become an instance any more.
    spoiled: Mutex<Option<String>>,
    /// Whether it is over.
    pub ended: AtomicBool,
    mode: Mode,
    thread: ThreadId,
    /// The stream that it began on.
    origin: usize,
    /// All streams that became part of it.
    pub(super) members: Mutex<Vec<Arc<Stream>>>,
}

/// A stream's part in a capture.
#[derive(Debug)]
pub struct Member {
    /// The capture.
    pub capture: Arc<Capture>,
    /// What the stream's next node comes after.
    pub after: Vec<usize>,
}

impl Member {
    /// Adds a node.
    pub fn add(&mut self, work: Work) {
        let mut nodes = lock(&self.capture.nodes);
        let after = std::mem::replace(&mut self.after, vec![nodes.len()]);
        nodes.push(Node { work, after });
    }
}

impl Capture {
    /// Makes it impossible to end well.
    pub fn spoil(&self, why: &str) {
        lock(&self.spoiled).get_or_insert_with(|| why.to_owned());
    }
}

/// Begins to capture a stream.
///
/// # Errors
/// 107025 if it is captured already.
pub fn begin(stream: &Arc<Stream>, mode: Mode) -> Result<()> {
    stream.forbid_capture("a capture begins on a stream that is captured")?;
    let capture = Arc::new(Capture {
        nodes: Mutex::default(),
        spoiled: Mutex::default(),
        ended: AtomicBool::new(false),
        mode,
        thread: std::thread::current().id(),
        origin: stream.handle,
        members: Mutex::new(vec![Arc::clone(stream)]),
    });
    lock(&emulator().captures).push(Arc::clone(&capture));
    *lock(&stream.capture) = Some(Member {
        capture,
        after: Vec::new(),
    });
    Ok(())
}

/// Ends a capture; gives its nodes.
///
/// # Errors
/// 107027 if there is none, it began on another stream or was spoiled; 107030 if a stream did not join again.
pub fn end(stream: &Arc<Stream>) -> Result<Vec<Node>> {
    let member = lock(&stream.capture).take();
    let Some(member) = member else {
        return Err(status::NOT_CAPTURED.breach("the stream is not captured"));
    };
    let capture = member.capture;
    if capture.origin != stream.handle {
        *lock(&stream.capture) = Some(Member {
            capture,
            after: member.after,
        });
        return Err(status::NOT_CAPTURED.breach("the capture began on another stream"));
    }
    capture.ended.store(true, Ordering::Release);
    lock(&emulator().captures).retain(|other| !Arc::ptr_eq(other, &capture));
    let nodes = std::mem::take(&mut *lock(&capture.nodes));
    let mut unjoined = None;
    for other in std::mem::take(&mut *lock(&capture.members)) {
        let Some(other_member) = lock(&other.capture).take() else {
            continue;
        };
        if !other_member
            .after
            .iter()
            .all(|tail| precedes(&nodes, *tail, &member.after))
        {
            unjoined = Some(other.handle);
        }
    }
    if capture.mode != Mode::Relaxed && capture.thread != std::thread::current().id() {
        return Err(
            status::NOT_CAPTURED.breach("the capture ends on another thread than it began on")
        );
    }
    if let Some(why) = lock(&capture.spoiled).take() {
        return Err(status::NOT_CAPTURED.because(format!("the capture was spoiled: {why}")));
    }
    if let Some(other) = unjoined {
        let why = format!("stream {other:#x} did not join its capture again");
        return Err(status::UNJOINED.breach(why));
    }
    Ok(nodes)
}

/// Whether a node is one of these, or before one of them.
fn precedes(nodes: &[Node], node: usize, tails: &[usize]) -> bool {
    tails
        .iter()
        .any(|tail| *tail == node || (*tail > node && precedes(nodes, node, &nodes[*tail].after)))
}

/// Fails, and spoils the captures that forbid synchronous calls on this thread.
///
/// # Errors
/// 107025.
pub fn forbid_synchronous(name: &str) -> Result<()> {
    let this = std::thread::current().id();
    let mut forbidden = None;
    for capture in lock(&emulator().captures).iter() {
        let forbids = match capture.mode {
            Mode::Global => true,
            Mode::ThreadLocal => capture.thread == this,
            Mode::Relaxed => false,
        };
        if forbids {
            let why = format!("{name} while a stream is captured");
            capture.spoil(&why);
            forbidden = Some(why);
        }
    }
    match forbidden {
        Some(why) => Err(status::CAPTURED.breach(why)),
        None => Ok(()),
    }
}

/// A model runtime instance.
#[derive(Debug)]
pub struct Graph {
    /// Its work, each node after those before it.
    pub nodes: Vec<Node>,
    /// Queued work that refers to it.
    pub uses: Mutex<Clock>,
    /// What may not be freed while it lives.
    held: Vec<Arc<Allocation>>,
}

impl Graph {
    /// An instance of these nodes.
    pub fn new(nodes: Vec<Node>) -> Graph {
        let held: Vec<_> = nodes
            .iter()
            .flat_map(|node| node.work.allocations())
            .collect();
        for allocation in &held {
            allocation.graphs.fetch_add(1, Ordering::Relaxed);
        }
        Graph {
            nodes,
            uses: Mutex::default(),
            held,
        }
    }

    /// Runs its nodes, in an order by chance of those that their edges allow.
    ///
    /// # Errors
    /// What the device met.
    pub fn run(&self, random: &mut Random) -> std::result::Result<(), Fault> {
        let mut done = vec![false; self.nodes.len()];
        for _ in 0..self.nodes.len() {
            let ready: Vec<usize> = (0..self.nodes.len())
                .filter(|node| {
                    !done[*node] && self.nodes[*node].after.iter().all(|node| done[*node])
                })
                .collect();
            // Edges only lead to earlier nodes, so that there is always one.
            let node = ready[(random.draw() % ready.len() as u64) as usize];
            self.nodes[node].work.run(random)?;
            done[node] = true;
        }
        Ok(())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        for allocation in &self.held {
            allocation.graphs.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
