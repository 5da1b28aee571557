//! Graphs.

use std::sync::Arc;

use super::module::prepare;
use crate::driver::abi::{In, Out, Parameters};
use crate::driver::graph::{Executable, Graph};
use crate::driver::state::{Driver, lock};
use crate::driver::status::{self, INVALID_VALUE, Result};
use crate::driver::work::{LaunchWork, Manner, Work};

/// `CUDA_KERNEL_NODE_PARAMS_v2`; the first version ends before `kernel`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct KernelNode {
    function: usize,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    parameters: Parameters,
    extra: Parameters,
}

/// The rest of the second version.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct KernelNodeWithContext {
    node: KernelNode,
    kernel: usize,
    context: usize,
}

exported! {
    fn cuGraphCreate(graph: Out<usize>, flags: u32) |driver| {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        graph.put(driver.graphs.add(Arc::new(Graph::default())))
    }

    fn cuGraphDestroy(graph: usize) |driver| {
        driver.graphs.remove(graph)?.destroy();
        Ok(())
    }

    fn cuGraphAddKernelNode(node: Out<usize>, graph: usize, after: In<usize>, count: usize, parameters: In<KernelNode>) |driver| {
        let launch = launch_of(driver, &parameters.get()?)?;
        add(driver, node, graph, after, count, Work::Launch(Arc::new(launch)))
    }

    fn cuGraphAddKernelNode_v2(
        node: Out<usize>, graph: usize, after: In<usize>, count: usize, parameters: In<KernelNodeWithContext>,
    ) |driver| {
        let launch = launch_of(driver, &parameters.get()?.node)?;
        add(driver, node, graph, after, count, Work::Launch(Arc::new(launch)))
    }

    fn cuGraphAddEmptyNode(node: Out<usize>, graph: usize, after: In<usize>, count: usize) |driver| {
        add(driver, node, graph, after, count, Work::Empty)
    }

    fn cuGraphGetNodes(graph: usize, nodes: Out<usize>, count: Out<usize>) |driver| {
        let graph = driver.graphs.get(graph)?;
        let all = lock(&graph.nodes).clone();
        if nodes.is_null() {
            return count.put(all.len());
        }
        let room = count.get()?;
        let given = room.min(all.len());
        nodes.put_all(all.into_iter().chain(std::iter::repeat(0)).take(room));
        count.put(given)
    }

    fn cuGraphNodeGetType(node: usize, kind: Out<u32>) |driver| {
        let node = driver.nodes.get(node)?;
        // Kernel, copy, set, host, empty.
        kind.put(match lock(&node.graph.steps)[node.number].work {
            Work::Launch(_) => 0,
            Work::Copy { .. } => 1,
            Work::Set { .. } => 2,
            Work::Call(_) => 3,
            _ => 5,
        })
    }

    fn cuGraphKernelNodeGetParams(node: usize, parameters: Out<KernelNode>) |driver| {
        let launch = driver.nodes.get(node)?.launch()?;
        parameters.put(describe(&launch))
    }

    fn cuGraphKernelNodeGetParams_v2(node: usize, parameters: Out<KernelNodeWithContext>) |driver| {
        let launch = driver.nodes.get(node)?.launch()?;
        let context = launch.kernel.module.context;
        parameters.put(KernelNodeWithContext { node: describe(&launch), kernel: 0, context })
    }

    fn cuGraphExecKernelNodeSetParams(executable: usize, node: usize, parameters: In<KernelNode>) |driver| {
        let launch = launch_of(driver, &parameters.get()?)?;
        let node = driver.nodes.get(node)?;
        driver.executables.get(executable)?.set_launch(&node, launch)
    }

    fn cuGraphExecKernelNodeSetParams_v2(executable: usize, node: usize, parameters: In<KernelNodeWithContext>) |driver| {
        let launch = launch_of(driver, &parameters.get()?.node)?;
        let node = driver.nodes.get(node)?;
        driver.executables.get(executable)?.set_launch(&node, launch)
    }

    fn cuGraphInstantiateWithFlags(executable: Out<usize>, graph: usize, flags: u64) |driver| {
        // 4 is launching from a device, which nothing here does.
        if flags & 4 != 0 {
            return Err(INVALID_VALUE);
        }
        let graph = driver.graphs.get(graph)?;
        executable.put(driver.executables.add(Arc::new(Executable::new(&graph))))
    }

    fn cuGraphExecUpdate_v2(executable: usize, graph: usize, result: Out<u32>) |driver| {
        let graph = driver.graphs.get(graph)?;
        let updated = driver.executables.get(executable)?.update(&graph);
        // 0 updated, 2 the form differs.
        result.offer(if updated.is_ok() { 0 } else { 2 });
        updated
    }

    fn cuGraphExecDestroy(executable: usize) |driver| {
        driver.executables.remove(executable).map(|_| ())
    }

    fn cuGraphUpload(executable: usize, stream: usize) |driver| {
        driver.executables.get(executable)?;
        driver.stream(stream)?.context().map(|_| ())
    }

    fn cuGraphLaunch(executable: usize, stream: usize) |driver| {
        let executable = driver.executables.get(executable)?;
        let steps = Arc::clone(&lock(&executable.steps));
        driver.stream(stream)?.enqueue(Work::Graph(steps))
    }
}

fn launch_of(driver: &Driver, node: &KernelNode) -> Result<LaunchWork> {
    if node.function == 0 {
        return Err(status::NOT_SUPPORTED);
    }
    let shape = (node.grid, node.block, node.shared);
    prepare(
        driver,
        node.function,
        shape,
        node.parameters,
        node.extra,
        Manner::default(),
    )
}

fn describe(launch: &LaunchWork) -> KernelNode {
    KernelNode {
        function: launch.handle,
        grid: launch.grid,
        block: launch.block,
        shared: launch.dynamic_shared,
        parameters: Parameters::NONE,
        extra: Parameters::NONE,
    }
}

fn add(
    driver: &Driver,
    place: Out<usize>,
    graph: usize,
    after: In<usize>,
    count: usize,
    work: Work,
) -> Result<()> {
    let graph = driver.graphs.get(graph)?;
    let mut before = Vec::with_capacity(count);
    for index in 0..count {
        let node = driver.nodes.get(after.at(index)?)?;
        if !Arc::ptr_eq(&node.graph, &graph) {
            return Err(INVALID_VALUE);
        }
        before.push(node.number);
    }
    let number = graph.add(work, before);
    let handle = lock(&graph.nodes)[number];
    place.put(handle)
}
